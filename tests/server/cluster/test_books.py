"""Personal records across instances: the rule of the stores, decided in Redis."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.ids import UserId
from crdt.ports import Entry
from crdt.records import Award, Score, e1rm_kg
from server.cluster.books import Book, Books, Prize, Row, Seed
from server.cluster.connection import Connection, NotNow, connect
from tests.helpers.rooms import entry

ANA, BEN = UserId("ana"), UserId("ben")
LEG_DAY, PULL_DAY = "workout:leg-day", "workout:pull-day"
SQUAT = Book(ANA, "name:squat")


@dataclass
class Library:
    """Where books are seeded from: what MongoDB has."""

    seeds: dict[Book, Seed] = field(default_factory=dict)
    asked: list[Book] = field(default_factory=list)

    async def seed(self, book: Book) -> Seed:
        self.asked.append(book)
        return self.seeds.get(book, Seed([], []))


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def books(redis: Connection, prefix: str, library: Library) -> Books:
    return Books(redis, prefix, seed=library.seed)


def score(
    set_id: str, user_id: UserId = ANA, exercise: str = SQUAT.exercise, **values: float
) -> Score:
    return Score(set_id, user_id, exercise, values)  # type: ignore[arg-type]


async def log_set(
    books: Books,
    *scores: Score,
    doc: str = LEG_DAY,
    given: Sequence[tuple[str, str]] = (),
    origin: str = "here",
    op_id: str | None = None,
) -> list[Award]:
    """What sets win that come together."""
    (won,) = await books.judge(doc, [entry(scores=scores, op_id=op_id)], given, origin=origin)
    return won


def brief(awards: Sequence[Award]) -> list[tuple[str, str]]:
    return [(award.set_id, award.type) for award in awards]


# -- the rule -------------------------------------------------------------------------------------


async def test_the_first_set_is_the_first_record(books: Books) -> None:
    assert await log_set(books, score("s", weight=100, volume=500)) == [
        Award("s", ANA, SQUAT.exercise, "weight", 100, previous=None),
        Award("s", ANA, SQUAT.exercise, "volume", 500, previous=None),
    ]


async def test_only_what_is_strictly_better_is_a_record(books: Books) -> None:
    await log_set(books, score("a", weight=100, volume=500))
    assert brief(await log_set(books, score("b", weight=100, volume=500.5))) == [("b", "volume")]
    assert await log_set(books, score("c", weight=99, volume=500)) == []


async def test_a_record_tells_what_it_beat(books: Books) -> None:
    await log_set(books, score("a", weight=100))
    (award,) = await log_set(books, score("b", weight=102.5))
    assert (award.previous, award.value) == (100, 102.5)
    assert repr(award.previous) == "100"


async def test_numbers_come_back_to_the_last_digit(books: Books) -> None:
    first, second = e1rm_kg(97.3, 7), e1rm_kg(97.3, 7) * (1 + 2**-52)
    await log_set(books, score("a", e1rm=first))
    (award,) = await log_set(books, score("b", e1rm=second))
    assert (award.previous, award.value) == (first, second)
    assert first < second


async def test_a_changed_set_wins_nothing_more_of_a_type(books: Books) -> None:
    await log_set(books, score("s", weight=100))
    for weight in (110, 90, 120, 100):
        assert await log_set(books, score("s", weight=weight), given=[("s", "weight")]) == []


async def test_what_another_instance_has_claimed_is_not_won_here(books: Books) -> None:
    await log_set(books, score("s", weight=100), origin="there")
    for weight in (100, 110):
        assert await log_set(books, score("s", weight=weight)) == []


async def test_an_operation_wins_what_it_has_claimed_on_another_instance(books: Books) -> None:
    won = await log_set(books, score("s", weight=100), origin="there", op_id="one")
    assert await log_set(books, score("s", weight=100), op_id="two") == []
    assert await log_set(books, score("s", weight=100), op_id="one") == won


async def test_a_claim_that_was_not_stored_is_forgotten_when_the_value_changes(
    books: Books,
) -> None:
    await log_set(books, score("s", weight=100))
    (award,) = await log_set(books, score("s", weight=110))
    assert award.value == 110
    await log_set(books, score("t", weight=200))
    assert await log_set(books, score("s", weight=120)) == []


async def test_what_is_asked_again_is_answered_again(books: Books) -> None:
    await log_set(books, score("a", weight=90))
    won = await log_set(books, score("s", weight=100.1))
    assert brief(won) == [("s", "weight")]
    assert await log_set(books, score("s", weight=100.1)) == won
    await log_set(books, score("b", weight=200))
    assert await log_set(books, score("s", weight=100.1)) == won


async def test_a_batch_that_is_asked_for_again_is_answered_again(books: Books) -> None:
    batch = [
        entry(scores=[score("a", weight=100), score("b", weight=100, volume=5)]),
        entry(),
        entry(scores=[score("a", weight=110), score("c", weight=105, volume=7)]),
        entry(scores=[score("b", exercise="name:press", weight=10), score("d", BEN, weight=1)]),
    ]
    won = await books.judge(LEG_DAY, batch, origin="here")
    assert [brief(awards) for awards in won] == [
        [("a", "weight"), ("b", "volume")],
        [],
        [("c", "volume")],
        [("b", "weight"), ("d", "weight")],
    ]
    assert await books.judge(LEG_DAY, batch, origin="here") == won


async def test_a_set_that_comes_twice_in_one_batch_wins_once(books: Books) -> None:
    twice = [entry(scores=[score("s", weight=weight)]) for weight in (100, 110)]
    first, second = await books.judge(LEG_DAY, twice, origin="here")
    assert [award.value for award in first] == [100]
    assert second == []


async def test_a_set_may_win_another_type_later(books: Books) -> None:
    await log_set(books, score("s", reps=10))
    corrected = await log_set(books, score("s", weight=20, volume=200))
    assert brief(corrected) == [("s", "weight"), ("s", "volume")]


async def test_a_set_that_changed_its_kind_gives_the_old_record_free(books: Books) -> None:
    await log_set(books, score("s", reps=10))
    await log_set(books, score("s", weight=20))
    (award,) = await log_set(books, score("t", reps=5))
    assert award.previous is None


async def test_a_set_that_was_edited_down_gives_the_record_free(books: Books) -> None:
    await log_set(books, score("typo", weight=1_000))
    await log_set(books, score("typo", weight=100))
    (award,) = await log_set(books, score("next", weight=105))
    assert award.previous == 100


async def test_a_removed_set_gives_the_record_free(books: Books) -> None:
    await log_set(books, score("s", weight=100))
    await log_set(books, score("s"))
    (award,) = await log_set(books, score("t", weight=90))
    assert award.previous is None


async def test_two_sets_of_one_batch_compete_in_their_order(books: Books) -> None:
    sets = [score("a", weight=100), score("b", weight=110), score("c", weight=105)]
    assert brief(await log_set(books, *sets)) == [("a", "weight"), ("b", "weight")]


async def test_the_types_do_not_mix(books: Books) -> None:
    await log_set(books, score("a", reps=500))
    assert brief(await log_set(books, score("b", seconds=60, weight=20))) == [
        ("b", "seconds"),
        ("b", "weight"),
    ]


async def test_users_and_exercises_do_not_mix(books: Books) -> None:
    await log_set(books, score("a", weight=200))
    assert brief(await log_set(books, score("b", BEN, weight=60))) == [("b", "weight")]
    press = score("c", exercise="name:press", weight=60)
    assert brief(await log_set(books, press)) == [("c", "weight")]


async def test_one_exercise_is_the_same_in_every_workout(books: Books) -> None:
    await log_set(books, score("s", weight=100))
    assert await log_set(books, score("s", weight=90), doc=PULL_DAY) == []
    (award,) = await log_set(books, score("s", weight=110), doc=PULL_DAY)
    assert award.previous == 100


async def test_a_set_that_counts_for_another_exercise_leaves_the_first(books: Books) -> None:
    await log_set(books, score("s", weight=200))
    await log_set(books, score("s"), score("s", exercise="name:press", weight=200))
    assert brief(await log_set(books, score("t", weight=100))) == [("t", "weight")]


async def test_what_a_set_won_in_one_exercise_it_does_not_win_in_another(books: Books) -> None:
    await log_set(books, score("s", weight=200))
    moved = [score("s"), score("s", exercise="name:press", weight=200, volume=900)]
    won = await log_set(books, *moved, given=[("s", "weight")])
    assert brief(won) == [("s", "volume")]


async def test_a_set_that_changes_its_exercise_within_a_batch_wins_once(books: Books) -> None:
    batch = [
        entry(scores=[score("s", weight=200)]),
        entry(scores=[score("s"), score("s", exercise="name:press", weight=300)]),
        entry(scores=[score("t", weight=100)]),
    ]
    won = await books.judge(LEG_DAY, batch, origin="here")
    assert [brief(awards) for awards in won] == [[("s", "weight")], [], [("t", "weight")]]
    given = [("s", "weight"), ("t", "weight")]
    assert await books.judge(LEG_DAY, batch, given, origin="here") == [[], [], []]


@pytest.mark.parametrize("value", [1e300, float("inf"), float("nan"), 10**400, 0, -5])
async def test_a_value_beyond_reason_does_not_count(books: Books, value: float) -> None:
    assert await log_set(books, score("s", weight=value)) == []
    (award,) = await log_set(books, score("t", weight=1))
    assert award.previous is None


async def test_any_name_is_an_exercise(books: Books) -> None:
    for odd in ("a}b{c", "{}", "}", "ž\x00\n", "\ud800", '"],[', "x" * 2_000):
        assert brief(await log_set(books, score("s" + odd, exercise=odd, weight=1))) != []
        assert await log_set(books, score("t" + odd, exercise=odd, weight=1)) == []


async def test_nothing_is_asked_where_nothing_competes(books: Books, library: Library) -> None:
    assert await books.judge(LEG_DAY, [], origin="here") == []
    assert await books.judge(LEG_DAY, [entry(), entry()], origin="here") == [[], []]
    assert library.asked == []


# -- at once --------------------------------------------------------------------------------------


async def test_of_sets_that_come_at_once_each_beats_the_one_before(
    redis: Connection, prefix: str, library: Library
) -> None:
    instances = [Books(redis, prefix, seed=library.seed) for _ in range(3)]
    weights = [float(w) for w in range(1, 41)]
    won = await asyncio.gather(
        *(
            log_set(instances[i % 3], score(f"s{i}", weight=weight))
            for i, weight in enumerate(weights)
        )
    )
    awards = sorted((award for some in won for award in some), key=lambda award: award.value)
    assert [award.previous for award in awards] == [None, *(award.value for award in awards[:-1])]
    assert awards[-1].value == max(weights)


async def test_one_set_on_two_instances_is_one_record(
    redis: Connection, prefix: str, library: Library
) -> None:
    instances = [Books(redis, prefix, seed=library.seed) for _ in range(2)]
    first, second = await asyncio.gather(*(log_set(one, score("s", weight=9)) for one in instances))
    assert first == second
    assert brief(first) == [("s", "weight")]


# -- seeding --------------------------------------------------------------------------------------


async def test_a_book_that_redis_has_not_is_seeded_once(books: Books, library: Library) -> None:
    rows = [Row(PULL_DAY, "old", {"weight": 97.3 / 3, "reps": 8}), Row(LEG_DAY, "none", {})]
    library.seeds[SQUAT] = Seed(rows, [])
    (award,) = await log_set(books, score("s", weight=33))
    assert award.previous == 97.3 / 3
    assert await log_set(books, score("t", weight=32, reps=8)) == []
    assert library.asked == [SQUAT]


async def test_an_empty_book_is_seeded_once(books: Books, library: Library) -> None:
    await log_set(books, score("s"))
    await log_set(books, score("s"))
    assert library.asked == [SQUAT]


async def test_prizes_that_were_given_before_are_not_given_again(
    books: Books, library: Library
) -> None:
    prizes = [Prize(LEG_DAY, "s", "weight", 100.1, 99.9), Prize(LEG_DAY, "t", "weight", 99.9, None)]
    library.seeds[SQUAT] = Seed([Row(LEG_DAY, "s", {"weight": 100.1})], prizes)
    assert await log_set(books, score("s", weight=300)) == []
    assert await log_set(books, score("s", weight=100.1)) == []
    assert await log_set(books, score("t", weight=500)) == []


async def test_a_seed_that_comes_late_overwrites_nothing(
    redis: Connection, prefix: str, library: Library
) -> None:
    """While one instance reads MongoDB, another seeds the book and a set is changed."""
    library.seeds[SQUAT] = Seed([Row(LEG_DAY, "s", {"weight": 100})], [])
    others = Books(redis, prefix, seed=library.seed)

    async def slow(book: Book) -> Seed:
        read = await library.seed(book)
        await log_set(others, score("s", weight=50))
        return read

    (award,) = await log_set(Books(redis, prefix, seed=slow), score("t", weight=60))
    assert award.previous == 50


async def test_a_large_book_is_seeded_whole(books: Books, library: Library) -> None:
    rows = [Row(PULL_DAY, f"s{i}", {"weight": i + 1, "reps": i + 1}) for i in range(20_000)]
    prizes = [Prize(PULL_DAY, f"s{i}", "weight", i + 1, i or None) for i in range(20_000)]
    library.seeds[SQUAT] = Seed(rows, prizes)
    assert await log_set(books, score("s", weight=20_000)) == []
    (award,) = await log_set(books, score("t", weight=20_001))
    assert award.previous == 20_000


async def test_books_are_kept_for_a_week_after_their_last_use(
    books: Books, redis: Connection, prefix: str
) -> None:
    keys = [f'{prefix}:{{["ana","name:squat"]}}:{name}' for name in ("prizes", "weight", "reps")]
    await log_set(books, score("s", weight=100, reps=3))
    for key in keys:
        await redis.expire(key, 100)
    await log_set(books, score("t", weight=1))
    assert all([604_000 < await redis.ttl(key) <= 604_800 for key in keys])


async def test_what_seeding_raises_is_told(redis: Connection, prefix: str) -> None:
    async def fails(book: Book) -> Seed:
        raise LookupError("no MongoDB")

    with pytest.raises(LookupError):
        await log_set(Books(redis, prefix, seed=fails), score("s", weight=1))


async def test_a_redis_that_forgets_what_it_is_told_counts_as_away(
    redis: Connection, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: Any) -> None:
        pass

    monkeypatch.setattr("server.cluster.books.SEED", lost)
    with pytest.raises(NotNow):
        await log_set(Books(redis, prefix, seed=Library().seed), score("s", weight=1))


# -- against the rule, written down in Python -----------------------------------------------------


@dataclass
class Model:
    """The rule of `mongo_records`."""

    rows: dict[Book, dict[tuple[str, str], Mapping[Any, float]]] = field(default_factory=dict)
    prizes: dict[tuple[str, str, str], tuple[Book, Award]] = field(default_factory=dict)
    has_taken_away: bool = False
    """Whether the last judgement left a set worth less than it was before, or on the way."""

    def judge(self, doc: str, entries: Sequence[Entry]) -> list[list[Award]]:
        self.has_taken_away = False
        return [
            [award for score in entry.scores for award in self._wins(doc, score)]
            for entry in entries
        ]

    def _wins(self, doc: str, score: Score) -> list[Award]:
        book = Book(score.user_id, score.exercise)
        rows = self.rows.setdefault(book, {})
        others = [values for row, values in rows.items() if row != (doc, score.set_id)]
        won = []
        for type_, value in score.values.items():
            best = max((other[type_] for other in others if type_ in other), default=None)
            prize = (doc, score.set_id, type_)
            if prize not in self.prizes and (best is None or value > best):
                award = Award(score.set_id, *book, type_, value, best)
                self.prizes[prize] = (book, award)
                won.append(award)
        before = rows.get((doc, score.set_id), {})
        self.has_taken_away |= any(
            value > score.values.get(type_, 0) for type_, value in before.items()
        )
        rows[doc, score.set_id] = dict(score.values)
        return won

    async def seed(self, book: Book) -> Seed:
        rows = [Row(*row, values) for row, values in self.rows.get(book, {}).items()]
        prizes = [
            Prize(*prize, award.value, award.previous)
            for prize, (of, award) in self.prizes.items()
            if of == book
        ]
        return Seed(rows, prizes)

    def given(self, doc: str) -> list[tuple[str, str]]:
        """What the sets of one document have won."""
        return [(set_id, type_) for of, set_id, type_ in self.prizes if of == doc]


AMOUNTS = st.sampled_from([0.1, 0.1 + 0.2, 0.3, 7, *(e1rm_kg(100, reps) for reps in (1, 7, 11))])
SCORES = st.builds(
    lambda set_id, exercise, values: score(set_id, exercise=exercise, **values),
    st.sampled_from("stu"),
    st.sampled_from(["squat", "squat", "squat", "press"]),
    st.dictionaries(st.sampled_from(["weight", "e1rm"]), AMOUNTS),
)
BATCHES = st.tuples(
    st.sampled_from([LEG_DAY, PULL_DAY]),
    st.lists(st.lists(SCORES, max_size=3).map(lambda scores: entry(scores=scores)), max_size=3),
    st.sampled_from(["once", "once", "twice", "after it was lost"]),
)


@settings(max_examples=150, deadline=None)
@given(batches=st.lists(BATCHES, max_size=8))
def test_books_are_judged_by_the_rule(
    redis_server: str, batches: list[tuple[str, list[Entry], str]]
) -> None:
    async def live_through_it() -> None:
        client = connect(redis_server, timeout_s=10)
        model, prefix = Model(), f"test-{secrets.token_hex(6)}"
        stored = deepcopy(model)
        books = Books(client, prefix, seed=lambda book: stored.seed(book))
        for doc, entries, how in batches:
            if how == "after it was lost":
                for key in await client.keys(f"{prefix}:*"):
                    await client.delete(key)
            given, stored = model.given(doc), deepcopy(model)
            won = model.judge(doc, entries)
            # The first was not stored. If it took values away, the second is another question.
            is_asked_again = how == "twice" and not model.has_taken_away
            for _ in range(2 if is_asked_again else 1):
                assert await books.judge(doc, entries, given, origin="here") == won
        await client.aclose()

    asyncio.run(live_through_it())
