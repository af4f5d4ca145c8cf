"""The log record of the MongoDB store: all that must not come apart, in one MongoDB document.

{_id, doc, pos, seq,          pos: rises from record to record of a document, unique with `doc`;
                              seq: the position in its log of updates, or `pos` once more where
                              the record was committed elsewhere and moved here
 prev,                        the `pos` before it, 0 in the first; unique with `doc`, so that a
                              document's records are one chain
 yjs?, crc?,                  the update
 entries: [{user_id, name, device_id, at_ms, event, op_id, answer?}],  answer: JSON; older ones
                              have no name
 ops?: [key(user, op id)],    of the entries that have an answer; unique
 by?: [origin, n],            of one that was moved here: whose append it was, and the how-manieth
 kind, listed_at,             of the document, kept with members so that lists need no join
 summary?, members?, scores?, awards?, client_ids?, removed_exercises?, revocation?,
 pending?: true,              until what follows from it has been written elsewhere
 expires_ms?}                 it is in a snapshot, stripped to who did what and the answers,
                              and is deleted then

What does not depend on the place in the log, from `yjs` to `removed_exercises`, is a *draft*. It
travels as bytes through a log that is elsewhere (`pack`, `unpack`), and is given its place here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args

import bson
import msgpack
from bson import ObjectId
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crdt.access import Member
from crdt.errors import TooLarge
from crdt.ids import ConnectionId, DocKind, DocName, UserId
from crdt.ports import Answer, Append, Author, Awards, Entry, Stored, Summary
from crdt.records import Award, RecordType, Score
from crdt.revocations import Revocation

Record = Mapping[str, Any]
"""A document of MongoDB's."""

RECORD_TYPES: tuple[RecordType, ...] = get_args(RecordType)

FOLLOWS = ("summary", "members", "scores", "awards", "client_ids", "removed_exercises")
"""What something is to be written of elsewhere."""

BODY = ("yjs", "crc", *FOLLOWS, "pending")
"""What a record loses when it is in a snapshot."""

PLACE = ("_id", "doc", "pos", "seq", "prev", "pending", "expires_ms")
"""What a draft has not."""

MAX_RECORD_BYTES = 16 * 1024 * 1024
"""MongoDB's limit."""
MAX_PLACE_BYTES = 4 * 1024
_CHECKSUM_BYTES = 4

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


class Damaged(ValueError):
    """A record is not what was written, or nothing that MongoDB could hold."""


def make(batch: Append, head: Head, by_entry: Sequence[Sequence[Award]]) -> dict[str, Any]:
    """The record that comes after `head`; `by_entry` are the awards that each entry won."""
    stored = stored_as(batch, head, by_entry)
    return placed(
        draft(batch, by_entry, stored, head.listed_at),
        str(batch.doc),
        pos=head.pos + 1,
        seq=stored.seq,
        prev=head.pos,
    )


def draft(
    batch: Append, by_entry: Sequence[Sequence[Award]], stored: Stored, listed_at: int
) -> dict[str, Any]:
    """A record without its place in the log.

    Args:
        by_entry: the awards that each entry won.
        stored: what the answers are made of.
        listed_at: when the document was made, ms since the epoch.
    """
    follows: dict[str, Any] = {
        "summary": None if batch.summary is None else of_summary(batch.summary),
        "members": [of_member(member) for entry in batch.entries for member in entry.members],
        "scores": _of_scores(batch.entries),
        "awards": [of_award(award) for won in by_entry for award in won],
        "client_ids": [list(bound) for entry in batch.entries for bound in entry.client_ids],
        "removed_exercises": [id_ for entry in batch.entries for id_ in entry.removed_exercises],
    }
    record = {
        "kind": batch.doc.kind.value,
        "listed_at": listed_at,
        **_entries(batch.entries, stored),
        **{name: value for name, value in follows.items() if value},
    }
    if batch.update is not None:
        record |= {"yjs": batch.update, "crc": checksum(batch.update)}
    return record


def placed(draft: Record, doc: str, *, pos: int, seq: int, prev: int) -> dict[str, Any]:
    """A draft with its place in the log."""
    record = {"_id": ObjectId(), "doc": doc, "pos": pos, "seq": seq, "prev": prev, **draft}
    if any(name in draft for name in FOLLOWS):
        record["pending"] = True
    return record


def encode(record: Record) -> bytes:
    """As BSON. Raises TooLarge."""
    data = bson.encode(record)
    if len(data) > MAX_RECORD_BYTES:
        raise TooLarge("the log record", len(data), MAX_RECORD_BYTES)
    return data


def make_revocation(revocation: Revocation, entry: Entry, expires_ms: int) -> dict[str, Any]:
    """A record of a log of its own, for the one revocation."""
    id_ = ObjectId()
    return {
        "_id": id_,
        "doc": f"revocation:{id_}",
        "pos": 1,
        "seq": 0,
        "prev": 0,
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
    return stored_at(head.seq + (batch.update is not None), by_entry)


def stored_at(seq: int, by_entry: Sequence[Sequence[Award]]) -> Stored:
    """The outcome of an append at this position; `by_entry` are the awards that each entry won."""
    every = [award for won in by_entry for award in won]
    return Stored(seq, by_set(every), [by_set(won) for won in by_entry])


def answer_in(record: Record, user_id: UserId, op_id: str) -> Answer | None:
    """What a user's operation was answered, if it is one of this record's."""
    for entry in record["entries"]:
        if entry["user_id"] == user_id and entry["op_id"] == op_id and "answer" in entry:
            return answer_of(entry["answer"])
    return None


def prev_of(record: Record) -> int:
    """The position before it; records of the first schema stand one after the other."""
    return int(record.get("prev", record["pos"] - 1))


def checksum(data: bytes) -> int:
    return zlib.crc32(data)


def is_intact(data: bytes, crc: int) -> bool:
    return checksum(data) == crc


# -- a draft on its way -----------------------------------------------------------------------


def pack(record: Record) -> bytes:
    """A draft as bytes: a checksum, and msgpack.

    Raises:
        TooLarge: MongoDB could not keep it as one record.
    """
    data: bytes = msgpack.packb(record)
    if len(data) > MAX_RECORD_BYTES // 16:  # BSON needs more, but never so much more
        size_bytes = len(bson.encode(record)) + MAX_PLACE_BYTES
        if size_bytes > MAX_RECORD_BYTES:
            raise TooLarge("the log record", size_bytes, MAX_RECORD_BYTES)
    return checksum(data).to_bytes(_CHECKSUM_BYTES) + data


def unpack(data: bytes) -> dict[str, Any]:
    """The draft that was packed. What a newer version has put in besides stays in it.

    Raises:
        Damaged: it is another one, or none.
    """
    crc, packed = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    if checksum(packed).to_bytes(_CHECKSUM_BYTES) != crc:
        raise Damaged("the checksum is another one")
    try:
        record = msgpack.unpackb(packed)
        _Draft.model_validate(record)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in error["loc"])
        raise Damaged(f"no log record: {where or 'all of it'}: {error['msg']}") from exc
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise Damaged(f"no msgpack: {exc}") from exc
    given: dict[str, Any] = record
    if place := [name for name in PLACE if name in given]:
        raise Damaged(f"it has a place already: {', '.join(place)}")
    if ("yjs" in given) != ("crc" in given) or (
        "yjs" in given and not is_intact(given["yjs"], given["crc"])
    ):
        raise Damaged("the update's checksum is another one")
    return given


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Number = Annotated[float, Field(allow_inf_nan=False, gt=-(2.0**63), lt=2.0**63)]


class _Who(_Shape):
    user_id: str
    name: str
    device_id: str
    at_ms: _Int
    event: str
    op_id: str | None
    answer: str = ""


class _SummaryShown(_Shape):
    owner_id: str
    title: str
    status: str | None
    mode: str | None
    visibility: str
    created_at: _Int | None
    started_at: _Int | None
    ended_at: _Int | None


class _Membership(_Shape):
    user_id: str
    role: str
    name: str


class _Scored(_Shape):
    user_id: str
    exercise: str
    set_id: str
    values: dict[str, _Number]


class _Won(_Shape):
    set_id: str
    user_id: str
    exercise: str
    type: str
    value: _Number
    previous: _Number | None


class _Draft(_Shape):
    kind: str
    listed_at: _Int
    entries: list[_Who]
    ops: list[str] = []
    yjs: bytes = b""
    crc: _Int = 0
    summary: _SummaryShown | None = None
    members: list[_Membership] = []
    scores: list[_Scored] = []
    awards: list[_Won] = []
    client_ids: list[Annotated[tuple[_Int, str], Field(strict=False)]] = []  # lists, in msgpack
    removed_exercises: list[str] = []


# -- what a record says -----------------------------------------------------------------------


def entries_of(record: Record) -> list[Entry]:
    """Who did what, with the answers. What the entries brought besides is the record's."""
    return [
        Entry(
            Author(UserId(who["user_id"]), who.get("name", ""), who["device_id"], ConnectionId("")),
            who["at_ms"],
            who["event"],
            op_id=who["op_id"],
            answer=_kept(who["answer"]) if "answer" in who else None,
        )
        for who in record["entries"]
    ]


def _kept(answer: str) -> Callable[[Stored], Answer]:
    def repeat(_: Stored) -> Answer:
        return answer_of(answer)

    return repeat


def members_of(record: Record) -> list[Member]:
    """Whose role is another one since, the last one of a user counts; no role for who has gone."""
    return [member_of(row) for row in record.get("members", ())]


def client_ids_of(record: Record) -> list[tuple[int, UserId]]:
    """Yjs client IDs that write here for the first time, and whose they are."""
    return [(client_id, UserId(user_id)) for client_id, user_id in record.get("client_ids", ())]


def removed_exercises_of(record: Record) -> list[str]:
    return list(record.get("removed_exercises", ()))


def awards_of(record: Record) -> Awards:
    """All that was won with it."""
    return by_set([award_of(row) for row in record.get("awards", ())])


# -- as MongoDB has it, and as we have it -----------------------------------------------------


def _entries(entries: Sequence[Entry], stored: Stored) -> dict[str, Any]:
    shown, ops = [], []
    for index, entry in enumerate(entries):
        who: dict[str, Any] = {
            "user_id": entry.author.user_id,
            "name": entry.author.name,
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


def of_summary(summary: Summary) -> dict[str, Any]:
    return {name: getattr(summary, name) for name in _SUMMARY}


def summary_of(row: Record) -> Summary:
    return Summary(DocName.parse(row["_id"]), **{name: row[name] for name in _SUMMARY})


def ended_by(record: Record) -> str | None:
    """The owner of the workout that ends with this record, if one does."""
    summary = record.get("summary") if record.get("kind") == DocKind.WORKOUT else None
    has_ended = summary is not None and summary["status"] in ("completed", "abandoned")
    return str(summary["owner_id"]) if summary and has_ended else None


def of_member(member: Member) -> dict[str, Any]:
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


def scored_by(record: Record) -> Entry:
    """An entry with all scores of a record, to be judged once more."""
    entry = entries_of(record)[0]
    scores = [
        Score(row["set_id"], UserId(row["user_id"]), row["exercise"], row["values"])
        for row in record.get("scores", ())
    ]
    return entry._replace(op_id=None, answer=None, scores=scores)


def answer_of(data: str | bytes) -> Answer:
    """An answer as it stands in a record."""
    answer: Answer = json.loads(data)
    return answer


def of_award(award: Award) -> dict[str, Any]:
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


def by_set(awards: Sequence[Award]) -> dict[str, dict[str, Award]]:
    by_set: dict[str, dict[str, Award]] = {}
    for award in awards:
        by_set.setdefault(award.set_id, {})[award.type] = award
    return by_set


def whole(value: float) -> float:
    """JSON shows 100, not 100.0."""
    return int(value) if value == int(value) else value
