"""What a MongoDB knows of a person, and how that is deleted. Everything is looked for by the id, in
the bytes of documents as well, which MongoDB cannot search itself.

`tombstones`: {_id: hidden document}; `erasures`: {_id: hidden user, user_id?, issued_until_ms,
done_at_ms?, report, error?, by?, taken_until_ms?}. What is deleted, MongoDB overwrites when it
needs the space; its oplog and backups keep it as long as they are told to.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, Literal

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from crdt.erasure import ERASED, scrubbed
from crdt.errors import Gone, Invalid
from crdt.ids import DocName, UserId
from crdt.ports import SERVER
from crdt.revocations import FOR_EVER_MS, Revocation, hidden
from crdt.wire import var_bytes
from server.storage.mongo_log import Record, key
from server.storage.mongo_projection import Database
from server.storage.port import Erasure, PersonalRow

SALT_BYTES = 16
TAKEN_MS = 30_000

_SALT = {"_id": "salt"}
_RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
_OF_DOCUMENT = (
    "snapshots",
    "members",
    "awards",
    "client_ids",
    "removed_exercises",
    "log",
)

_to_json = json.JSONEncoder(separators=(",", ":")).encode


async def salt(db: Database) -> str | None:
    """What names are hidden with; None if nothing ever was."""
    found = await db["meta"].find_one(_SALT)
    return None if found is None else str(found["salt"])


async def _make_salt(db: Database) -> str:
    made = secrets.token_hex(SALT_BYTES)
    await db["meta"].update_one(_SALT, {"$setOnInsert": {"salt": made}}, upsert=True)
    kept = await salt(db)
    assert kept is not None
    return kept


async def demand_not_buried(db: Database, doc: str) -> Literal[False]:
    """Raises Gone if the document was deleted for good."""
    kept = await salt(db)
    if kept is not None and await db["tombstones"].find_one({"_id": hidden(kept, doc)}):
        raise Gone(doc)
    return False


# -- what there is ----------------------------------------------------------------------------


async def documents_of(db: Database, user_id: UserId) -> Sequence[DocName]:
    """See `PersonalRecords.documents_of`."""
    found: set[str] = set()
    for collection in ("members", "awards", "client_ids"):
        found.update([row["doc"] async for row in db[collection].find({"user_id": user_id})])
    owned = db["documents"].find({"owner_id": user_id}, {"_id": True})
    found.update([row["_id"] async for row in owned])
    async for row in db["scores"].find(_scores_of(user_id), {"_id": True}):
        found.add(json.loads(row["_id"])[2])
    async for record in _naming(db, {}, user_id):
        found.add(record["doc"])
    value = var_bytes(user_id.encode())
    end, of = b"", ("", "")
    async for part in db["snapshots"].find(sort=[("doc", 1), ("snapshot_id", 1), ("part", 1)]):
        if of != (part["doc"], part["snapshot_id"]):
            end, of = b"", (part["doc"], part["snapshot_id"])
        data = end + part["data"]  # it may stand where two parts meet
        if value in data:
            found.add(part["doc"])
        end = data[-len(value) :]
    return [name for doc in sorted(found) if (name := _document(doc)) is not None]


async def _naming(
    db: Database, which: dict[str, Any], user_id: UserId
) -> AsyncIterator[RawBSONDocument]:
    """The records of the log that have the id of somebody anywhere: as a value of Yjs's, as a text
    of BSON's, or within an answer or a key."""
    text = user_id.encode()
    forms = (
        var_bytes(text),
        (len(text) + 1).to_bytes(4, "little") + text + b"\x00",
        _to_json(user_id).encode(),
    )
    raw = db["log"].with_options(codec_options=_RAW)
    async for record in raw.find(which):
        assert isinstance(record, RawBSONDocument)
        if any(form in record.raw for form in forms):
            yield record


def _document(doc: str) -> DocName | None:
    try:
        return DocName.parse(doc)
    except Invalid:
        return None  # a revocation has a log of its own


def _scores_of(user_id: UserId) -> dict[str, Any]:
    book = key(user_id, "")  # ["ana",""]
    return {"of": {"$regex": "^" + re.escape(book.removesuffix('"]'))}}


async def rows_of(db: Database, user_id: UserId) -> AsyncIterator[PersonalRow]:
    """See `PersonalRecords.rows_of`."""
    of_entries = {"entries.user_id": user_id}
    order = [("doc", 1), ("pos", 1)]
    async for record in db["log"].find(of_entries, {"yjs": False}, sort=order):
        for entry in record["entries"]:
            if entry["user_id"] == user_id:
                shown = {name: value for name, value in entry.items() if name != "answer"}
                yield PersonalRow("log", {"doc": record["doc"], "seq": record["seq"], **shown})
    async for record in db["log"].find(of_entries, {"yjs": False}, sort=order):
        for entry in record["entries"]:
            if entry["user_id"] == user_id and "answer" in entry:
                answer = json.loads(entry["answer"])
                told = {"op_id": entry["op_id"], "answer": answer, "at_ms": entry["at_ms"]}
                yield PersonalRow("answers", told)
    async for row in db["scores"].find(_scores_of(user_id)):
        _, exercise, doc, set_id = json.loads(row["_id"])
        values = {name: row[name] for name in row if name not in ("_id", "of", "pos")}
        yield PersonalRow("scores", {"exercise": exercise, "doc": doc, "set_id": set_id, **values})
    for section, collection, which in (
        ("records", "awards", {"user_id": user_id}),
        ("client_ids", "client_ids", {"user_id": user_id}),
        ("claims", "active_workouts", {"_id": user_id}),
        ("memberships", "members", {"user_id": user_id, "role": {"$ne": ""}}),
        ("revocations", "revocations", _revocations_of(user_id)),
    ):
        async for row in db[collection].find(which):
            yield PersonalRow(
                section,
                {name: row[name] for name in row if name not in ("_id", "user_id", "pos")},
            )


def _revocations_of(user_id: UserId) -> dict[str, Any]:
    return {"$or": [{"kind": "user", "id": user_id}, {"revoked_by": user_id}]}


# -- erasing ----------------------------------------------------------------------------------


async def begin_erasure(db: Database, user_id: UserId, issued_until_ms: int) -> Revocation:
    id_ = hidden(await _make_salt(db), user_id)
    ended = {"_id": id_, "done_at_ms": {"$gt": 0}}
    await db["erasures"].update_one(ended, {"$set": {"report": {}}})
    await db["erasures"].update_one(
        {"_id": id_},
        {
            "$set": {"user_id": user_id, "done_at_ms": None},
            "$max": {"issued_until_ms": issued_until_ms},
            "$setOnInsert": {"report": {}, "error": None},
        },
        upsert=True,
    )
    row = await db["erasures"].find_one({"_id": id_})
    until_ms = issued_until_ms if row is None else row["issued_until_ms"]
    return Revocation("erased", id_, FOR_EVER_MS, until_ms)


async def revocations(db: Database) -> list[Revocation]:
    """Those of users who were erased."""
    return [
        Revocation("erased", row["_id"], FOR_EVER_MS, row["issued_until_ms"])
        async for row in db["erasures"].find()
    ]


async def erasures(db: Database) -> list[Erasure]:
    return [_erasure(row) async for row in db["erasures"].find({"done_at_ms": None})]


async def erasure_of(db: Database, user_id: UserId) -> Erasure | None:
    kept = await salt(db)
    if kept is None:
        return None
    row = await db["erasures"].find_one({"_id": hidden(kept, user_id)})
    return None if row is None else _erasure(row)


def _erasure(row: Record) -> Erasure:
    return Erasure(
        row["_id"],
        row.get("user_id"),
        row["done_at_ms"],
        dict(row["report"]),
        row["error"],
        row.get("by"),
    )


async def take(db: Database, erasure_id: str, by: str, now_ms: int) -> bool:
    free = [{"by": None}, {"by": by}, {"taken_until_ms": {"$lt": now_ms}}]
    taken = await db["erasures"].update_one(
        {"_id": erasure_id, "done_at_ms": None, "$or": free},
        {"$set": {"by": by, "taken_until_ms": now_ms + TAKEN_MS}},
    )
    return bool(taken.matched_count)


async def leave(db: Database, erasure_id: str, by: str) -> None:
    taken = {"_id": erasure_id, "by": by}
    await db["erasures"].update_one(taken, {"$unset": {"by": "", "taken_until_ms": ""}})


async def note(
    db: Database, erasure_id: str, report: dict[str, Any], error: str | None, now_ms: int
) -> None:
    noted = {"report": report, "error": error, "taken_until_ms": now_ms + TAKEN_MS}
    await db["erasures"].update_one({"_id": erasure_id}, {"$set": noted})


async def end(db: Database, erasure_id: str, now_ms: int, report: dict[str, Any]) -> None:
    await db["erasures"].update_one(
        {"_id": erasure_id},
        {
            "$set": {"done_at_ms": now_ms, "report": report, "error": None},
            "$unset": {"user_id": "", "by": "", "taken_until_ms": ""},
        },
    )


async def bury(db: Database, doc: str, now_ms: int) -> None:
    id_ = hidden(await _make_salt(db), doc)
    buried = {"$setOnInsert": {"at_ms": now_ms}}
    await db["tombstones"].update_one({"_id": id_}, buried, upsert=True)
    await delete(db, doc)


async def delete(db: Database, doc: str, scores: Collection[str] = ()) -> None:
    """Delete all that is of a document. Its row goes first: without it there is none.

    Args:
        scores: the `_id`s of those that are to go along; else they go with whose they are.
    """
    await db["documents"].delete_one({"_id": doc})
    for collection in _OF_DOCUMENT:
        await db[collection].delete_many({"doc": doc})
    if scores:
        await db["scores"].delete_many({"_id": {"$in": list(scores)}})
    name = _document(doc)
    if name is not None:
        await db["active_workouts"].delete_many({"workout_id": name.id})


async def forget_in(db: Database, doc: str, user_id: UserId) -> Counter[str]:
    of_both = {"doc": doc, "user_id": user_id}
    freed = await db["client_ids"].update_many(of_both, {"$set": {"user_id": SERVER}})
    return Counter(
        {
            "client_ids": freed.modified_count,
            "records": (await db["awards"].delete_many(of_both)).deleted_count,
            "memberships": (await db["members"].delete_many(of_both)).deleted_count,
            **await _unname(db, {"doc": doc}, user_id),
        }
    )


async def forget(db: Database, user_id: UserId) -> Counter[str]:
    whose = {"user_id": user_id}
    own = {"kind": "user", "id": user_id}
    counts = Counter(
        {
            "scores": (await db["scores"].delete_many(_scores_of(user_id))).deleted_count,
            "records": (await db["awards"].delete_many(whose)).deleted_count,
            "memberships": (await db["members"].delete_many(whose)).deleted_count,
            "claims": (await db["active_workouts"].delete_many({"_id": user_id})).deleted_count,
            "revocations": (await db["revocations"].delete_many(own)).deleted_count,
            **await _unname(db, {}, user_id),
        }
    )
    await db["log"].delete_many({"revocation.id": user_id, "revocation.kind": "user"})
    by = {"$set": {"revoked_by": ERASED}}
    await db["revocations"].update_many({"revoked_by": user_id}, by)
    return counts


async def _unname(db: Database, which: dict[str, Any], user_id: UserId) -> dict[str, int]:
    """Take somebody out of who did what, with the answers that they got."""
    entries_changed = answers = 0
    ids = [record["_id"] async for record in _naming(db, which, user_id)]
    for id_ in ids:
        record = await db["log"].find_one({"_id": id_}, {"entries": True, "ops": True})
        if record is None:
            continue
        entries = []
        for entry in record["entries"]:
            if entry["user_id"] == user_id:
                entries_changed += 1
                answers += "answer" in entry
                unnamed = {"user_id": SERVER, "name": ERASED, "device_id": "", "op_id": None}
                shown = {**entry, **unnamed}
                shown.pop("answer", None)
            elif "answer" in entry:
                answer = _to_json(scrubbed(json.loads(entry["answer"]), user_id))
                shown = {**entry, "answer": answer}
            else:
                shown = entry
            entries.append(shown)
        ops = [op for op in record.get("ops", ()) if json.loads(op)[0] != user_id]
        change: dict[str, Any] = {"$set": {"entries": entries}}
        if ops:
            change["$set"]["ops"] = ops
        else:  # the index is sparse, and an empty list would be in it
            change["$unset"] = {"ops": ""}
        await db["log"].update_one({"_id": record["_id"]}, change)
    return {"log_entries": entries_changed, "answers": answers}
