"""Who wins a personal record, decided before the log record is written that says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from crdt.ids import DocName, UserId
from crdt.ports import Entry
from crdt.progress import SetWorth
from crdt.records import Award, RecordType, Score
from server.storage.mongo_log import (
    RECORD_TYPES,
    award_of,
    book_key,
    key,
    sane,
    score_key,
    whole,
)
from server.storage.mongo_projection import Database

Values = Mapping[str, float]
CHUNK = 10_000
CHUNK_OF_SETS = 500
"""So many are read in one go: they are decoded on the event loop."""


class BookRow(NamedTuple):
    """What one set is worth; no values if it has been removed, counts for nothing, or is one of
    another exercise now."""

    doc: DocName
    set_id: str
    values: Values


class BookRows(NamedTuple):
    """One user's book of one exercise: all sets, and what these have won, in this exercise or in
    another one before."""

    rows: Sequence[BookRow]
    awards: Sequence[tuple[DocName, Award]]


async def book(db: Database, user_id: UserId, exercise: str) -> BookRows:
    """All that stands in a book."""
    rows = []
    async for row in db["scores"].find({"of": book_key(user_id, exercise)}):
        _, _, doc, set_id = json.loads(row["_id"])
        rows.append(BookRow(DocName.parse(doc), set_id, _values(row)))
    prizes = [key(str(row.doc), row.set_id, type_) for row in rows for type_ in RECORD_TYPES]
    awards = []
    for start in range(0, len(prizes), CHUNK):
        which = {"_id": {"$in": prizes[start : start + CHUNK]}}
        async for given in db["awards"].find(which):
            awards.append((DocName.parse(given["doc"]), award_of(given)))
    return BookRows(rows, awards)


async def sets_of(db: Database, user_id: UserId) -> list[SetWorth]:
    """All sets of a user's that count for records."""
    # Books are named `["ana","name:squat"]`: all of ana's begin alike.
    first = f"{key(user_id)[:-1]},"
    beyond = f"{first[:-1]}{chr(ord(',') + 1)}"
    found = db["scores"].find({"of": {"$gte": first, "$lt": beyond}}, batch_size=CHUNK_OF_SETS)
    sets = []
    async for row in found:
        if values := _values(row):
            _, exercise, doc, set_id = json.loads(row["_id"])
            worth = {cast(RecordType, type_): whole(value) for type_, value in values.items()}
            sets.append(SetWorth(DocName.parse(doc), set_id, exercise, worth))
    return sets


def books(entries: Iterable[Entry]) -> list[str]:
    """The books that these entries write in: one for each user and exercise."""
    return sorted({_book(score) for entry in entries for score in entry.scores})


async def judge(db: Database, doc: str, entries: Sequence[Entry]) -> list[list[Award]]:
    """What each entry wins, given all that has been written in its books; while this is decided,
    and until the log record stands, nobody else may write in them.

    A value wins when no other set of the user and exercise has reached it; a set wins each type
    at most once, however often it comes.
    """
    scores = [score for entry in entries for score in entry.scores]
    if not scores:
        return [[] for _ in entries]
    touched = {_row(doc, score): score for score in scores}
    standing, rows, given = await asyncio.gather(
        _standing(db, {_book(score) for score in scores}, list(touched)),
        _rows(db, list(touched)),
        _given(db, doc, scores),
    )
    # What the touched sets are worth, as the judging goes on.
    worth: dict[str, dict[str, Values]] = {}
    for row, score in touched.items():
        worth.setdefault(_book(score), {})[score.set_id] = rows.get(row, {})
    by_entry: list[list[Award]] = []
    for entry in entries:
        by_entry.append([])
        for score in entry.scores:
            book, values = _book(score), sane(score.values)
            others = [worth_ for id_, worth_ in worth[book].items() if id_ != score.set_id]
            others.append(standing.get(book, {}))
            for type_, value in values.items():
                best = max((other[type_] for other in others if type_ in other), default=None)
                prize = key(doc, score.set_id, type_)
                if (best is None or value > best) and prize not in given:
                    given.add(prize)
                    by_entry[-1].append(
                        Award(
                            score.set_id,
                            score.user_id,
                            score.exercise,
                            cast(RecordType, type_),
                            whole(value),
                            None if best is None else whole(best),
                        )
                    )
            worth[book][score.set_id] = values
    return by_entry


def _book(score: Score) -> str:
    return book_key(score.user_id, score.exercise)


def _row(doc: str, score: Score) -> str:
    return score_key(doc, score.user_id, score.exercise, score.set_id)


async def _standing(db: Database, of: set[str], but: list[str]) -> dict[str, Values]:
    """By book, the largest value of each type among all sets but the named ones."""
    best: dict[str, Any] = {type_: {"$max": f"${type_}"} for type_ in RECORD_TYPES}
    found = await db["scores"].aggregate(
        [
            {"$match": {"of": {"$in": sorted(of)}, "_id": {"$nin": but}}},
            {"$group": {"_id": "$of", **best}},
        ]
    )
    return {row["_id"]: _values(row) async for row in found}


async def _rows(db: Database, ids: list[str]) -> dict[str, Values]:
    return {row["_id"]: _values(row) async for row in db["scores"].find({"_id": {"$in": ids}})}


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    return {type_: row[type_] for type_ in RECORD_TYPES if row.get(type_) is not None}


async def _given(db: Database, doc: str, scores: Iterable[Score]) -> set[str]:
    prizes = sorted({key(doc, score.set_id, type_) for score in scores for type_ in score.values})
    found = db["awards"].find({"_id": {"$in": prizes}}, {"_id": True})
    return {row["_id"] async for row in found}
