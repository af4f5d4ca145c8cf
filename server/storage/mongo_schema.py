"""What a database must have before it is used: the version of its schema, and indexes."""

from __future__ import annotations

import logging

import pymongo
from pymongo import ASCENDING, DESCENDING, IndexModel, UpdateOne

from server.storage.mongo_log import prev_of
from server.storage.mongo_projection import Database
from server.storage.port import StorageError

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
MIGRATION_TIMEOUT_S = 3_600.0
CHUNK = 5_000

INDEXES = {
    "log": [
        # Of two writers one alone takes a position, and one alone comes after a record.
        IndexModel([("doc", ASCENDING), ("pos", ASCENDING)], unique=True),
        IndexModel([("doc", ASCENDING), ("prev", ASCENDING)], unique=True),
        IndexModel("ops", unique=True, sparse=True),
        IndexModel("pending", sparse=True),
        IndexModel("expires_ms", sparse=True),
    ],
    "snapshots": [IndexModel("doc")],
    "members": [
        IndexModel("doc"),
        IndexModel(
            [
                ("user_id", ASCENDING),
                ("kind", ASCENDING),
                ("listed_at", DESCENDING),
                ("doc", ASCENDING),
            ]
        ),
    ],
    "scores": [IndexModel("of")],
    "awards": [IndexModel("doc")],
    "client_ids": [IndexModel("doc")],
    "removed_exercises": [IndexModel("doc")],
    "revocations": [IndexModel("until_ms")],
}
"""`documents` and `active_workouts` are found by their `_id`, the document's and the owner's."""

_SCHEMA = {"_id": "schema"}


async def prepare(db: Database) -> None:
    """Make a new database ready, and an older one.

    Raises:
        StorageError: its data are a newer version's.
    """
    found = await db["meta"].find_one(_SCHEMA)
    if found is not None and found["version"] > SCHEMA_VERSION:
        raise StorageError(
            f"the data in MongoDB's database {db.name} were written by a newer RepSync"
            f" (schema {found['version']}): run that version, or name another database in"
            " MONGODB_URI"
        )
    if found is not None and found["version"] < SCHEMA_VERSION:
        with pymongo.timeout(MIGRATION_TIMEOUT_S):
            await _migrate(db)
            await _index(db)
    else:
        await _index(db)
    await db["meta"].update_one(_SCHEMA, {"$max": {"version": SCHEMA_VERSION}}, upsert=True)


async def _index(db: Database) -> None:
    for collection, indexes in INDEXES.items():
        await db[collection].create_indexes(indexes)


async def _migrate(db: Database) -> None:
    """From schema 1: records get the position of the one before. May be done again, or by several
    at once."""
    log.warning("MongoDB's data are brought to schema %s", SCHEMA_VERSION)
    old = db["log"].find({"prev": {"$exists": False}}, {"pos": True})
    while records := await old.to_list(CHUNK):
        await db["log"].bulk_write(
            [
                UpdateOne({"_id": record["_id"]}, {"$set": {"prev": prev_of(record)}})
                for record in records
            ],
            ordered=False,
        )


async def probe(db: Database, at_ms: int) -> None:
    """Write something, durably."""
    await db["meta"].update_one(_SCHEMA, {"$set": {"probed_at": at_ms}})
