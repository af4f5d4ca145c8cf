"""What is read without the log, made of its records: lists, members, scores, awards and the like.

Each step may be repeated, by several at once, and may come too late or too early: what comes of
it all is the same in any order. Rows carry the position that they are of (`pos`). Where the latest
record of the document counts, an earlier one changes nothing; where the first one counts, a later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pymongo import DeleteOne, UpdateOne
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError

from crdt.ids import DocName
from server.storage.mongo_log import RECORD_TYPES, Record, book_key, ended_by, key, score_key

Database = AsyncDatabase[dict[str, Any]]
Operation = UpdateOne | DeleteOne

DUPLICATE_KEY = 11_000


async def project(db: Database, *records: Record) -> None:
    """Write what follows from these records."""
    by_collection: dict[str, list[Operation]] = {}
    for record in records:
        for collection, operations in _operations(record).items():
            by_collection.setdefault(collection, []).extend(operations)
    await asyncio.gather(
        *(
            _write(db, collection, operations)
            for collection, operations in by_collection.items()
            if operations
        )
    )


def _operations(record: Record) -> dict[str, list[Operation]]:
    doc, pos = record["doc"], record["pos"]
    of_doc = {"doc": doc}
    operations: dict[str, list[Operation]] = {
        "members": [
            _if_later(
                key(doc, user_id),
                pos,
                {
                    **of_doc,
                    "kind": record["kind"],
                    "listed_at": record["listed_at"],
                    "user_id": user_id,
                    "role": member["role"],  # empty for one who has gone: it must stay so
                    "name": member["name"],
                },
            )
            for user_id, member in {m["user_id"]: m for m in record.get("members", ())}.items()
        ],
        "scores": [_of_score(doc, pos, score) for score in record.get("scores", ())],
        "awards": [
            _if_first(key(doc, award["set_id"], award["type"]), pos, {**of_doc, **award})
            for award in record.get("awards", ())
        ],
        "client_ids": [
            _if_first(
                key(doc, client_id), pos, {**of_doc, "client_id": client_id, "user_id": user_id}
            )
            for client_id, user_id in record.get("client_ids", ())
        ],
        "removed_exercises": [
            _if_first(key(doc, exercise_id), pos, {**of_doc, "exercise_id": exercise_id})
            for exercise_id in record.get("removed_exercises", ())
        ],
    }
    if summary := record.get("summary"):
        operations["documents"] = [
            UpdateOne(
                {"_id": doc, "pos": {"$lt": pos}},
                {
                    "$set": {**summary, "pos": pos},
                    "$setOnInsert": {
                        "kind": record["kind"],
                        "listed_at": record["listed_at"],
                        "snapshot_id": None,
                        "snapshot_seq": 0,
                        "snapshot_pos": 0,
                    },
                },
                upsert=True,
            )
        ]
    if (owner_id := ended_by(record)) is not None:
        workout_id = DocName.parse(doc).id
        operations["active_workouts"] = [DeleteOne({"_id": owner_id, "workout_id": workout_id})]
    if revocation := record.get("revocation"):
        by = record["entries"][0]
        operations["revocations"] = [
            UpdateOne(
                {"_id": key(revocation["kind"], revocation["id"])},
                {
                    "$max": {
                        "until_ms": revocation["until_ms"],
                        "issued_until_ms": revocation["issued_until_ms"],
                    },
                    "$set": {
                        "kind": revocation["kind"],
                        "id": revocation["id"],
                        "revoked_by": by["user_id"],
                        "revoked_at": by["at_ms"],
                    },
                },
                upsert=True,
            )
        ]
    return operations


def _of_score(doc: str, pos: int, score: Record) -> UpdateOne:
    user_id, exercise, values = score["user_id"], score["exercise"], score["values"]
    update = {"$set": {"of": book_key(user_id, exercise), **values, "pos": pos}}
    if gone := [type_ for type_ in RECORD_TYPES if type_ not in values]:
        update["$unset"] = dict.fromkeys(gone, "")
    row = score_key(doc, user_id, exercise, score["set_id"])
    return UpdateOne({"_id": row, "pos": {"$lt": pos}}, update, upsert=True)


def _if_later(id_: str, pos: int, fields: dict[str, Any]) -> UpdateOne:
    return UpdateOne(
        {"_id": id_, "pos": {"$lt": pos}}, {"$set": {**fields, "pos": pos}}, upsert=True
    )


def _if_first(id_: str, pos: int, fields: dict[str, Any]) -> UpdateOne:
    # Rows of the first schema have no position: they were written in the order of the log.
    return UpdateOne(
        {"_id": id_, "pos": {"$gt": pos}}, {"$set": {**fields, "pos": pos}}, upsert=True
    )


async def _write(db: Database, collection: str, operations: Sequence[Operation]) -> None:
    # An upsert that finds none but a row that counts more tries to insert one beside it, in vain:
    # so it should. But it also does so in vain if somebody else inserts the row at that moment,
    # maybe one that counts less. The second time the row is there.
    for _ in range(2):
        taken = await _write_once(db, collection, operations)
        operations = [operations[index] for index in taken]
        if not operations:
            return


async def _write_once(
    db: Database, collection: str, operations: Sequence[Operation]
) -> Sequence[int]:
    """Returns: which of the operations found their `_id` taken."""
    try:
        await db[collection].bulk_write(operations, ordered=False)
    except BulkWriteError as exc:
        errors = exc.details.get("writeErrors", ())
        if exc.details.get("writeConcernErrors") or any(
            error["code"] != DUPLICATE_KEY for error in errors
        ):
            raise
        return [error["index"] for error in errors]
    return ()
