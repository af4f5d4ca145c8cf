"""A log record as it stands in the stream and comes by a room's channel, packed and sealed; and
what it says to a room."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from crdt.access import Member
from crdt.ids import DocName, UserId
from crdt.ports import SERVER, Append, Foreign, Loaded
from crdt.repeated import take_back
from crdt.room import summary_of
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


MAX_PARTS_BYTES = mongo_log.MAX_RECORD_BYTES // 8
"""A record that is larger than this does without `parts`."""


def with_parts(draft: dict[str, Any], batch: Append, known: int) -> dict[str, Any]:
    """A draft that can be told apart again, as long as the record waits in the spool: `parts` is
    what each entry has brought, `status_seen` up to where a change of the status knew the log.

    Args:
        known: up to where the log is known here.
    """
    if batch.status_seen is not None:
        draft = {**draft, "status_seen": min(batch.status_seen, known)}
    size_bytes = sum(len(part.update or b"") for part in batch.parts)
    if len(batch.entries) < 2 or size_bytes > MAX_PARTS_BYTES:
        return draft
    parts = [
        {
            "yjs": part.update,
            "members": [mongo_log.of_member(member) for member in entry.members],
            "changes_status": part.changes_status,
        }
        for entry, part in zip(batch.entries, batch.parts, strict=True)
    ]
    return {**draft, "parts": parts}


_OF_THE_SPOOL = ("parts", "status_seen", "is_judged")


def without_parts(draft: Mapping[str, Any]) -> dict[str, Any]:
    """A draft without what it has only as long as it waits in the spool."""
    return {name: value for name, value in draft.items() if name not in _OF_THE_SPOOL}


def without_answers(draft: Mapping[str, Any], repeated: Collection[str]) -> dict[str, Any]:
    """The draft of a record, some of whose operations were answered elsewhere, too: those answers
    are not in it."""
    made = without_parts(draft)
    made["entries"] = [
        {name: value for name, value in entry.items() if name != "answer"}
        if _key(entry) in repeated
        else entry
        for entry in draft["entries"]
    ]
    made["ops"] = [op for op in draft.get("ops", ()) if op not in repeated]
    return _without_empty(made, "ops")


def taken_back(
    draft: Mapping[str, Any],
    doc: DocName,
    shared: Iterable[bytes],
    *,
    repeated: Collection[str],
    is_outpaced: bool,
) -> dict[str, Any]:
    """The draft of a record as it goes into a log that others have written to since: some of its
    operations leave nothing behind, and what lists show is what the document will be. Who did what
    stays in it; answers that were given elsewhere do not.

    Args:
        shared: the document as the shared log has it, as Yjs updates.
        repeated: the keys of the answers to operations that were carried out elsewhere, too.
        is_outpaced: whether its changes of the status are to leave nothing behind.

    Raises:
        Invalid, Unsynced: the record does not go with that document.
    """
    made = without_answers(draft, repeated)
    entries = draft["entries"]
    whole = {
        "yjs": draft.get("yjs"),
        "members": draft.get("members", ()),
        "changes_status": "status_seen" in draft,
    }
    parts = draft.get("parts", [whole])
    # What cannot be told apart stays as it is.
    can_be_told = len(parts) == len(entries)
    fates = [
        (
            part,
            can_be_told and (_key(entry) in repeated or (is_outpaced and part["changes_status"])),
        )
        for entry, part in zip(entries, parts, strict=False)
    ]
    made["members"] = [row for part, is_gone in fates if not is_gone for row in part["members"]]
    changes = [(part["yjs"], is_gone) for part, is_gone in fates if part["yjs"] is not None]
    back = take_back(doc.kind, shared, changes)
    if changes and any(is_gone for _, is_gone in fates):
        made |= {"yjs": back.update, "crc": mongo_log.checksum(back.update)}
        made["client_ids"] = [*draft.get("client_ids", ()), [back.client_id, SERVER]]
    if "summary" in draft:
        made["summary"] = mongo_log.of_summary(summary_of(doc, back.view))
    return _without_empty(made, "members")


def _without_empty(draft: dict[str, Any], name: str) -> dict[str, Any]:
    """What a record does not have is not in it."""
    if not draft[name]:
        del draft[name]
    return draft


def _key(entry: Mapping[str, Any]) -> str:
    return mongo_log.key(entry["user_id"], entry["op_id"])


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
