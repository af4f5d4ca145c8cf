"""A log record as it stands in the stream and comes by a room's channel, packed and sealed; and
what it says to a room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from crdt.access import Member
from crdt.ids import DocName, UserId
from crdt.ports import Foreign, Loaded
from server.cluster.envelope import Malformed, Sealer
from server.cluster.log import Record
from server.storage import mongo_log
from server.storage.mongo_log import Damaged


def seal_record(
    sealer: Sealer, doc: DocName, origin: str, n: int, draft: Mapping[str, Any]
) -> bytes:
    return sealer.seal(mongo_log.pack(draft), _place(doc, origin, n))


def open_record(sealer: Sealer, doc: DocName, record: Record) -> Mapping[str, Any]:
    """What is in a record of the log.

    Raises:
        Damaged: it is none of ours.
    """
    try:
        data = sealer.open(record.data, _place(doc, record.origin, record.n))
    except Malformed as exc:
        raise Damaged(str(exc)) from exc
    return mongo_log.unpack(data)


def _place(doc: DocName, origin: str, n: int) -> bytes:
    # Not the position: Redis gives that, and it is another one in another epoch.
    return f"{doc} {origin} {n}".encode()


def answers_in(draft: Mapping[str, Any]) -> dict[str, bytes]:
    """The answers in a record, by the keys under which they are asked for."""
    return {
        mongo_log.key(entry["user_id"], entry["op_id"]): entry["answer"].encode()
        for entry in draft["entries"]
        if "answer" in entry
    }


def foreign_of(draft: Mapping[str, Any], pos: int) -> Foreign:
    """What a room takes in of a record at this position."""
    return Foreign(
        pos,
        draft.get("yjs"),
        {UserId(e["user_id"]): e["name"] for e in draft["entries"] if e.get("name")},
        mongo_log.members_of(draft),
        mongo_log.client_ids_of(draft),
        mongo_log.removed_exercises_of(draft),
        mongo_log.awards_of(draft),
        draft["entries"][0]["at_ms"] if draft["entries"] else 0,
    )


def with_records(loaded: Loaded, records: Sequence[Foreign]) -> Loaded:
    """A document with what came after it was read."""
    if not records:
        return loaded
    members: dict[UserId, Member] = dict(loaded.members)
    awards = {set_id: dict(won) for set_id, won in loaded.awards.items()}
    client_ids = dict(loaded.client_ids)
    removed = set(loaded.removed_exercises)
    for record in records:
        for member in record.members:
            if member.role:
                members[member.user_id] = member
            else:
                members.pop(member.user_id, None)
        for set_id, won in record.awards.items():
            awards[set_id] = {**won, **awards.get(set_id, {})}
        for client_id, user_id in record.client_ids:
            client_ids.setdefault(client_id, user_id)
        removed.update(record.removed_exercises)
    return replace(
        loaded,
        updates=[*loaded.updates, *(r.update for r in records if r.update is not None)],
        seq=max(loaded.seq, records[-1].seq),
        members=members,
        awards=awards,
        client_ids=client_ids,
        removed_exercises=removed,
    )
