"""What a database must have before it is used: the version of its schema, and indexes."""

from __future__ import annotations

from pymongo import ASCENDING, DESCENDING, IndexModel

from server.storage.mongo_projection import Database
from server.storage.port import StorageError

SCHEMA_VERSION = 1

INDEXES = {
    "log": [
        # Of two writers one alone takes a position.
        IndexModel([("doc", ASCENDING), ("pos", ASCENDING)], unique=True),
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
    for collection, indexes in INDEXES.items():
        await db[collection].create_indexes(indexes)
    if found is None:
        await db["meta"].update_one(
            _SCHEMA, {"$setOnInsert": {"version": SCHEMA_VERSION}}, upsert=True
        )


async def probe(db: Database, at_ms: int) -> None:
    """Write something, durably."""
    await db["meta"].update_one(_SCHEMA, {"$set": {"probed_at": at_ms}})
