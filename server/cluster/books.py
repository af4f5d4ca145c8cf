"""Personal records across instances: who wins one, decided in Redis.

The rule is `mongo_records`': a value wins when no other set of the user and exercise has reached
it; a set wins each type at most once, however often it comes.

**What is promised.** A *book* (what one user has done in one exercise) is judged in one step, so of
two sets that come at once on two instances one is the record. Judging is repeatable: a value that
won is told again with what it beat, whenever the same set comes with it. Nothing else is won for
that set and type. So a judgement whose outcome is unknown may simply be asked for again, and an
award is no news by itself: who keeps what was won, with the document, knows what is. A set that won
nothing may win when asked again, if scores behind its own took away what it had been beaten by: by
then nothing is better.

**Who owns what.** The records that were won are in the log; a book is worked out from it. One that
Redis has not, or has not used for a week, is *seeded* from what MongoDB has.

**What fails.** `judge` raises one of `connection.ERRORS` when Redis cannot do it now. Some of the
scores may be in their books then. A score whose append fails for good stays in its book until the
set comes again with another, or with none.

Keys, for prefix P and book B (`["ana","name:squat"]`): `P:{B}:prizes` hash, `P:{B}:TYPE` sorted
sets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from hashlib import sha1
from typing import Any, NamedTuple

import msgpack

from crdt.ids import UserId
from crdt.ports import Entry
from crdt.records import Award, Score
from server.cluster.connection import Connection, NotNow
from server.cluster.scripts import Script, checked_prefix
from server.storage.mongo_log import RECORD_TYPES, book_key, key, sane, whole

JUDGE, SEED = Script("judge"), Script("seed")

BOOK_KEPT_S = 7 * 86_400
SEED_ATTEMPTS = 3
NOBODY = "-"

_INDEX: dict[str, int] = {type_: index for index, type_ in enumerate(RECORD_TYPES, start=1)}


class Book(NamedTuple):
    """Whose values compete with each other: one user's in one exercise."""

    user_id: UserId
    exercise: str


class Row(NamedTuple):
    """What one set is worth now."""

    doc: str
    set_id: str
    values: Mapping[str, float]


class Prize(NamedTuple):
    """A record that a set has won, and what it beat."""

    doc: str
    set_id: str
    type: str
    value: float
    previous: float | None


class Seed(NamedTuple):
    """A book as MongoDB has it."""

    rows: Sequence[Row]
    prizes: Sequence[Prize]


class Books:
    """The books of all users, in one Redis."""

    def __init__(
        self,
        redis: Connection,
        prefix: str = "repsync",
        *,
        seed: Callable[[Book], Awaitable[Seed]],
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            redis: made by `connect`; stays the caller's.
            prefix: of all keys; no braces.
            seed: reads a book that Redis has not. What it raises, `judge` raises.
        """
        self._redis = redis
        self._prefix = checked_prefix(prefix)
        self._seed = seed

    async def judge(
        self,
        doc: str,
        entries: Sequence[Entry],
        given: Collection[tuple[str, str]] = (),
        *,
        origin: str,
    ) -> list[list[Award]]:
        """What each entry wins, given all that came before it, and write it into the books.

        What is won is claimed: for `origin`, and for the entry's operation, whoever carries that
        out. They win it again as long as it is not `given`, because what they won has not been
        stored then; nobody else does.

        Args:
            given: (set id, type) of the records that sets of this document have won, as far as is
                known here.
            origin: who stores what is won, without a space.
        """
        scores = [score for entry in entries for score in entry.scores]
        ops = [_op(entry) for entry in entries for _ in entry.scores]
        by_score: list[list[Award]] = [[] for _ in scores]
        barred = set(given)
        for books in _rounds(scores):
            # Books do not know of each other, so they are judged at once.
            judged = await asyncio.gather(
                *(
                    self._judge_book(
                        book,
                        [scores[at] for at in places],
                        [_competing(doc, scores[at], ops[at], barred) for at in places],
                        origin,
                    )
                    for book, places in books.items()
                )
            )
            for places, won in zip(books.values(), judged, strict=True):
                for at, awards in zip(places, won, strict=True):
                    by_score[at] = awards
                    barred.update((award.set_id, award.type) for award in awards)
        in_order = iter(by_score)
        return [[award for _ in entry.scores for award in next(in_order)] for entry in entries]

    async def _judge_book(
        self, book: Book, scores: Sequence[Score], competing: Sequence[Any], origin: str
    ) -> list[list[Award]]:
        keys = self._keys(book)
        asked = msgpack.packb(competing)
        for _ in range(SEED_ATTEMPTS):
            told = await JUDGE(self._redis, keys, [BOOK_KEPT_S, origin, asked])
            if told is not None:
                return _awards(scores, told)
            seed = msgpack.packb(_packed(await self._seed(book)))
            await SEED(self._redis, keys, [BOOK_KEPT_S, seed])
        raise NotNow("Redis loses record books as soon as they are there")

    def _keys(self, book: Book) -> list[str]:
        # A brace in the name of an exercise ends the hash tag: early, but for all of its keys.
        tag = f"{self._prefix}:{{{book_key(*book)}}}"
        return [f"{tag}:prizes", *(f"{tag}:{type_}" for type_ in RECORD_TYPES)]


def _rounds(scores: Sequence[Score]) -> list[dict[Book, list[int]]]:
    """What can be judged at once: book -> indexes of scores. Rounds come one after the other."""
    places: dict[Book, list[int]] = {}
    books_of: dict[str, set[Book]] = {}
    for at, score in enumerate(scores):
        book = Book(score.user_id, score.exercise)
        places.setdefault(book, []).append(at)
        if score.values:
            books_of.setdefault(score.set_id, set()).add(book)
    if all(len(books) == 1 for books in books_of.values()):
        return [places] if places else []
    # A set that competes in two exercises wins a type in the first alone.
    return [{Book(score.user_id, score.exercise): [at]} for at, score in enumerate(scores)]


# -- as the scripts read and write it -------------------------------------------------------------


def _op(entry: Entry) -> str:
    """A short name of the operation, without a space; `NOBODY` if it has none."""
    if entry.op_id is None:
        return NOBODY
    return sha1(key(entry.author.user_id, entry.op_id).encode(), usedforsecurity=False).hexdigest()


def _competing(doc: str, score: Score, op: str, barred: Collection[tuple[str, str]]) -> list[Any]:
    values = [
        [_INDEX[type_], text, key(doc, score.set_id, type_), (score.set_id, type_) in barred]
        for type_, text in _texts(score.values)
    ]
    return [key(doc, score.set_id), values, op]


def _packed(seed: Seed) -> list[Any]:
    rows = [
        [
            key(row.doc, row.set_id),
            [[_INDEX[type_], text] for type_, text in _texts(row.values)],
        ]
        for row in seed.rows
    ]
    prizes = [
        [
            key(prize.doc, prize.set_id, prize.type),
            f"{_text(prize.value)} {_text(prize.previous)} {NOBODY} {NOBODY}",
        ]
        for prize in seed.prizes
    ]
    return [rows, prizes]


def _awards(scores: Sequence[Score], told: Sequence[Any]) -> list[list[Award]]:
    by_score: list[list[Award]] = [[] for _ in scores]
    for at, index, won in told:
        score = scores[at - 1]
        value, previous, *_ = won.decode().split(" ")
        by_score[at - 1].append(
            Award(
                score.set_id,
                score.user_id,
                score.exercise,
                RECORD_TYPES[index - 1],
                whole(float(value)),
                None if previous == NOBODY else whole(float(previous)),
            )
        )
    return by_score


def _texts(values: Mapping[Any, float]) -> list[tuple[str, str]]:
    return [(type_, _text(value)) for type_, value in sane(values).items() if type_ in _INDEX]


def _text(value: float | None) -> str:
    """To the last digit: what is read from it is the same number."""
    return NOBODY if value is None else repr(float(value))
