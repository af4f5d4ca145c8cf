"""The log record of the MongoDB store: all that must not come apart, in one MongoDB document.

{_id, doc, pos, seq,          pos: 1, 2, 3, ... of the document's records, unique with `doc`;
                              seq: the position in its log of updates
 yjs?, crc?,                  the update
 entries: [{user_id, device_id, at_ms, event, op_id, answer?}],  answer: JSON
 ops?: [key(user, op id)],    of the entries that have an answer; unique
 kind, listed_at,             of the document, kept with members so that lists need no join
 summary?, members?, scores?, awards?, client_ids?, removed_exercises?, revocation?,
 pending?: true,              until what follows from it has been written elsewhere
 expires_ms?}                 it is in a snapshot, stripped to who did what and the answers,
                              and is deleted then
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from bson import ObjectId

from crdt.access import Member
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import Answer, Append, Entry, Stored, Summary
from crdt.records import Award, RecordType
from crdt.revocations import Revocation

Record = Mapping[str, Any]
"""A document of MongoDB's."""

RECORD_TYPES: tuple[RecordType, ...] = get_args(RecordType)

BODY = (
    "yjs",
    "crc",
    "summary",
    "members",
    "scores",
    "awards",
    "client_ids",
    "removed_exercises",
    "pending",
)
"""What a record loses when it is in a snapshot."""

_SUMMARY = (
    "owner_id",
    "title",
    "status",
    "mode",
    "visibility",
    "created_at",
    "started_at",
    "ended_at",
)

_to_json = json.JSONEncoder(separators=(",", ":")).encode


class Head(NamedTuple):
    """Where a document's log ends. `listed_at`: when the document was made, ms since the epoch."""

    pos: int
    seq: int
    listed_at: int


def key(*parts: str | int) -> str:
    """One `_id` made of several: names of users and exercises may hold any character."""
    return _to_json(parts)


def book_key(user_id: str, exercise: str) -> str:
    """Whose values compete with each other: one user's in one exercise."""
    return key(user_id, exercise)


def score_key(doc: str, user_id: str, exercise: str, set_id: str) -> str:
    return key(user_id, exercise, doc, set_id)


def make(batch: Append, head: Head, by_entry: Sequence[Sequence[Award]]) -> dict[str, Any]:
    """The record that comes after `head`; `by_entry` are the awards that each entry won."""
    follows: dict[str, Any] = {
        "summary": None if batch.summary is None else _of_summary(batch.summary),
        "members": [_of_member(member) for entry in batch.entries for member in entry.members],
        "scores": _of_scores(batch.entries),
        "awards": [_of_award(award) for won in by_entry for award in won],
        "client_ids": [list(bound) for entry in batch.entries for bound in entry.client_ids],
        "removed_exercises": [id_ for entry in batch.entries for id_ in entry.removed_exercises],
    }
    follows = {name: value for name, value in follows.items() if value}
    stored = stored_as(batch, head, by_entry)
    record = {
        "_id": ObjectId(),
        "doc": str(batch.doc),
        "pos": head.pos + 1,
        "seq": stored.seq,
        "kind": batch.doc.kind.value,
        "listed_at": head.listed_at,
        **_entries(batch.entries, stored),
        **follows,
    }
    if batch.update is not None:
        record |= {"yjs": batch.update, "crc": checksum(batch.update)}
    if follows:
        record["pending"] = True
    return record


def make_revocation(revocation: Revocation, entry: Entry, expires_ms: int) -> dict[str, Any]:
    """A record of a log of its own, for the one revocation."""
    id_ = ObjectId()
    return {
        "_id": id_,
        "doc": f"revocation:{id_}",
        "pos": 1,
        "seq": 0,
        **_entries([entry], Stored(0)),
        "revocation": {
            "kind": revocation.kind,
            "id": revocation.id,
            "until_ms": revocation.until_ms,
            "issued_until_ms": revocation.issued_until_ms,
        },
        "pending": True,
        "expires_ms": expires_ms,
    }


def stored_as(batch: Append, head: Head, by_entry: Sequence[Sequence[Award]]) -> Stored:
    """What the caller is told of the record that comes after `head`."""
    seq = head.seq + (batch.update is not None)
    every = [award for won in by_entry for award in won]
    return Stored(seq, _by_set(every), [_by_set(won) for won in by_entry])


def answer_in(record: Record, user_id: UserId, op_id: str) -> Answer | None:
    """What a user's operation was answered, if it is one of this record's."""
    for entry in record["entries"]:
        if entry["user_id"] == user_id and entry["op_id"] == op_id and "answer" in entry:
            answer: Answer = json.loads(entry["answer"])
            return answer
    return None


def checksum(data: bytes) -> int:
    return zlib.crc32(data)


def is_intact(data: bytes, crc: int) -> bool:
    return checksum(data) == crc


# -- as MongoDB has it, and as we have it -----------------------------------------------------


def _entries(entries: Sequence[Entry], stored: Stored) -> dict[str, Any]:
    shown, ops = [], []
    for index, entry in enumerate(entries):
        who: dict[str, Any] = {
            "user_id": entry.author.user_id,
            "device_id": entry.author.device_id,
            "at_ms": entry.at_ms,
            "event": entry.event,
            "op_id": entry.op_id,
        }
        if entry.op_id is not None and entry.answer is not None:
            who["answer"] = _to_json(entry.answer(stored.of(index)))
            ops.append(key(entry.author.user_id, entry.op_id))
        shown.append(who)
    # The index of operations is sparse: a record that has none must not have an empty list.
    return {"entries": shown, "ops": ops} if ops else {"entries": shown}


def _of_summary(summary: Summary) -> dict[str, Any]:
    return {name: getattr(summary, name) for name in _SUMMARY}


def summary_of(row: Record) -> Summary:
    return Summary(DocName.parse(row["_id"]), **{name: row[name] for name in _SUMMARY})


def ended_by(record: Record) -> str | None:
    """The owner of the workout that ends with this record, if one does."""
    summary = record.get("summary") if record.get("kind") == DocKind.WORKOUT else None
    has_ended = summary is not None and summary["status"] in ("completed", "abandoned")
    return str(summary["owner_id"]) if summary and has_ended else None


def _of_member(member: Member) -> dict[str, Any]:
    return {"user_id": member.user_id, "role": member.role, "name": member.name}


def member_of(row: Record) -> Member:
    return Member(UserId(row["user_id"]), row["role"], row["name"])


def _of_scores(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    last = {
        (score.user_id, score.exercise, score.set_id): score
        for entry in entries
        for score in entry.scores
    }
    return [
        {"user_id": user_id, "exercise": exercise, "set_id": set_id, "values": sane(score.values)}
        for (user_id, exercise, set_id), score in last.items()
    ]


MAX_VALUE = 2**53


def sane(values: Mapping[Any, float]) -> dict[str, float]:
    """The values that count: none that is beyond all reason."""
    return {type_: value for type_, value in values.items() if 0 < value < MAX_VALUE}


def _of_award(award: Award) -> dict[str, Any]:
    return {
        "set_id": award.set_id,
        "user_id": award.user_id,
        "exercise": award.exercise,
        "type": award.type,
        "value": award.value,
        "previous": award.previous,
    }


def award_of(row: Record) -> Award:
    return Award(
        row["set_id"],
        UserId(row["user_id"]),
        row["exercise"],
        row["type"],
        whole(row["value"]),
        None if row["previous"] is None else whole(row["previous"]),
    )


def _by_set(awards: Sequence[Award]) -> dict[str, dict[str, Award]]:
    by_set: dict[str, dict[str, Award]] = {}
    for award in awards:
        by_set.setdefault(award.set_id, {})[award.type] = award
    return by_set


def whole(value: float) -> float:
    """JSON shows 100, not 100.0."""
    return int(value) if value == int(value) else value
