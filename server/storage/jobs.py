"""What the embedded store does with its database: each function runs inside a transaction."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crdt.access import Member
from crdt.errors import Conflict, DocumentDamaged, Gone
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import (
    TRAINING_ROLES,
    Append,
    Best,
    Entry,
    Loaded,
    Stored,
    Summary,
    Trained,
    Training,
)
from crdt.progress import best_first
from crdt.records import Award, RecordType, Score
from crdt.revocations import Revocation, hidden

log = logging.getLogger(__name__)

MAX_VALUE = 2**53
MAX_KNOWN = 10_000

SUMMARY_COLUMNS = (
    "d.doc, d.owner_id, d.title, d.status, d.mode, d.visibility,"
    " d.created_at, d.started_at, d.ended_at"
)
"""What `summary_of` needs of `documents d`: not the snapshot, which may be large."""


Bests = dict[tuple[UserId, str], dict[RecordType, float]]
"""(user, exercise) -> the largest value of each type among that user's sets."""


@dataclass(slots=True)
class Known:
    """What the writer remembers of the database, good for as long as nothing is rolled back."""

    bests: Bests = field(default_factory=dict)
    last_seqs: dict[str, int] = field(default_factory=dict)
    """document -> the last position of its log."""

    def forget(self) -> None:
        self.bests.clear()
        self.last_seqs.clear()


_TYPES: tuple[RecordType, ...] = ("volume", "weight", "e1rm", "reps", "seconds")
_SCORE_KEY = "user_id = ? AND exercise = ? AND doc = ? AND set_id = ?"
_BEST_OF_OTHERS = f"""SELECT {", ".join(f"max({type_})" for type_ in _TYPES)} FROM scores
    WHERE user_id = ? AND exercise = ? AND NOT (doc = ? AND set_id = ?)"""

_to_json = json.JSONEncoder(separators=(",", ":")).encode


def load(db: sqlite3.Connection, doc: DocName) -> Loaded | None:
    key = (str(doc),)
    db.execute("BEGIN")  # one state of the database for all reads
    try:
        row = db.execute("SELECT * FROM documents WHERE doc = ?", key).fetchone()
        if row is None:
            return None
        if row["snapshot"] is not None:
            _check(doc, row["snapshot_seq"], row["snapshot"], row["snapshot_crc"])
        updates = []
        seq = row["snapshot_seq"]
        for entry in db.execute("SELECT seq, yjs, crc FROM log WHERE doc = ? ORDER BY seq", key):
            seq = entry["seq"]
            _check(doc, seq, entry["yjs"], entry["crc"])
            updates.append(entry["yjs"])
        members = {
            UserId(member["user_id"]): Member(
                UserId(member["user_id"]), member["role"], member["name"]
            )
            for member in db.execute("SELECT * FROM members WHERE doc = ?", key)
        }
        awards: dict[str, dict[str, Award]] = {}
        for won in db.execute("SELECT * FROM awards WHERE doc = ?", key):
            awards.setdefault(won["set_id"], {})[won["type"]] = Award(
                won["set_id"],
                UserId(won["user_id"]),
                won["exercise"],
                won["type"],
                _whole(won["value"]),
                None if won["previous"] is None else _whole(won["previous"]),
            )
        client_ids = {
            bound["client_id"]: UserId(bound["user_id"])
            for bound in db.execute("SELECT client_id, user_id FROM client_ids WHERE doc = ?", key)
        }
        removed = frozenset(
            gone["exercise_id"]
            for gone in db.execute("SELECT exercise_id FROM removed_exercises WHERE doc = ?", key)
        )
    finally:
        db.execute("COMMIT")
    return Loaded(
        row["snapshot"], updates, seq, row["snapshot_seq"], members, awards, client_ids, removed
    )


def _check(doc: DocName, seq: int, data: bytes, crc: int) -> None:
    if zlib.crc32(data) != crc:
        log.error("a stored record is damaged", extra={"document": str(doc), "seq": seq})
        raise DocumentDamaged(f"{doc} is damaged in the store at position {seq}")


def append(db: sqlite3.Connection, batch: Append, known: Known) -> Stored:
    """Append a record."""
    doc = str(batch.doc)
    if batch.summary is not None:
        _list(db, batch, batch.summary)
    seq = known.last_seqs.get(doc)
    if seq is None:
        (seq,) = db.execute(_LAST_SEQ, (doc,)).fetchone()
        if seq is None:
            raise Gone(doc)
        if len(known.last_seqs) >= MAX_KNOWN:
            known.last_seqs.clear()
    if batch.update is not None:
        seq += 1
        entries = _to_json([_who(entry) for entry in batch.entries])
        db.execute(
            "INSERT INTO log VALUES (?, ?, ?, ?, ?)",
            (doc, seq, batch.update, zlib.crc32(batch.update), entries),
        )
    known.last_seqs[doc] = seq
    won: dict[str, dict[str, Award]] = {}
    by_entry: list[dict[str, dict[str, Award]]] = []
    for entry in batch.entries:
        by_entry.append({})
        for member in entry.members:
            _set_member(db, doc, member)
        for bound in entry.client_ids:
            db.execute("INSERT OR IGNORE INTO client_ids VALUES (?, ?, ?)", (doc, *bound))
        for exercise_id in entry.removed_exercises:
            db.execute("INSERT OR IGNORE INTO removed_exercises VALUES (?, ?)", (doc, exercise_id))
        for score in entry.scores:
            for award in _keep_score(db, known.bests, doc, score, entry.at_ms):
                won.setdefault(award.set_id, {})[award.type] = award
                by_entry[-1].setdefault(award.set_id, {})[award.type] = award
    stored = Stored(seq, won, by_entry)
    for index, entry in enumerate(batch.entries):
        _keep_answer(db, entry, stored.of(index))
    return stored


def _keep_answer(db: sqlite3.Connection, entry: Entry, stored: Stored) -> None:
    if entry.op_id is not None and entry.answer is not None:
        answer = _to_json(entry.answer(stored))
        db.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?)",
            (entry.author.user_id, entry.op_id, answer, entry.at_ms),
        )


_LAST_SEQ = """SELECT coalesce(
    (SELECT max(seq) FROM log WHERE doc = ?1),
    (SELECT snapshot_seq FROM documents WHERE doc = ?1)
)"""


def _list(db: sqlite3.Connection, batch: Append, summary: Summary) -> None:
    """Bring the document's row up to date, or make it."""
    shown = (
        summary.owner_id,
        summary.title,
        summary.status,
        summary.mode,
        summary.visibility,
        summary.created_at,
        summary.started_at,
        summary.ended_at,
        str(batch.doc),
    )
    if batch.creates:
        _demand_not_buried(db, str(batch.doc))
        try:
            db.execute(
                "INSERT INTO documents (owner_id, title, status, mode, visibility, created_at,"
                " started_at, ended_at, doc, kind, listed_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*shown, batch.doc.kind.value, batch.entries[0].at_ms),
            )
        except sqlite3.IntegrityError as exc:
            raise Conflict(f"{batch.doc} exists already") from exc
    else:
        db.execute(
            "UPDATE documents SET owner_id = ?, title = ?, status = ?, mode = ?, visibility = ?,"
            " created_at = ?, started_at = ?, ended_at = ? WHERE doc = ?",
            shown,
        )
    if batch.doc.kind is DocKind.WORKOUT and summary.status in ("completed", "abandoned"):
        db.execute(
            "DELETE FROM active_workouts WHERE owner_id = ? AND workout_id = ?",
            (summary.owner_id, batch.doc.id),
        )


def _demand_not_buried(db: sqlite3.Connection, doc: str) -> None:
    """Raises Gone if the document was deleted for good."""
    kept = db.execute("SELECT salt FROM salts WHERE name = 'erasure'").fetchone()
    if kept is None:
        return  # nothing ever was
    id_ = hidden(kept["salt"], doc)
    if db.execute("SELECT 1 FROM tombstones WHERE id = ?", (id_,)).fetchone():
        raise Gone(doc)


def _who(entry: Entry) -> dict[str, Any]:
    return {
        "user_id": entry.author.user_id,
        "device_id": entry.author.device_id,
        "at_ms": entry.at_ms,
        "event": entry.event,
        "op_id": entry.op_id,
    }


def _set_member(db: sqlite3.Connection, doc: str, member: Member) -> None:
    if member.role:
        db.execute(
            "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?)",
            (doc, member.user_id, member.role, member.name),
        )
    else:
        db.execute("DELETE FROM members WHERE doc = ? AND user_id = ?", (doc, member.user_id))


def _keep_score(
    db: sqlite3.Connection, bests: Bests, doc: str, score: Score, at_ms: int
) -> list[Award]:
    """Note what a set is worth now. Returns: the records that it wins by that."""
    who = (score.user_id, score.exercise)
    row = (*who, doc, score.set_id)
    values = {type_: value for type_, value in score.values.items() if 0 < value < MAX_VALUE}
    # Nearly every set is a new one: that its row goes in says so.
    if not values or not _insert_score(db, row, values):
        # A set that is corrected competes with the others, not with what it was.
        if db.execute(f"DELETE FROM scores WHERE {_SCORE_KEY}", row).rowcount:
            bests.pop(who, None)
        if not values:
            return []
        _insert_score(db, row, values)
    best = bests.get(who)
    if best is None:
        if len(bests) >= MAX_KNOWN:
            bests.clear()
        best = bests[who] = _best_of_others(db, row)
    won: list[Award] = []
    for type_, value in values.items():
        previous = best.get(type_)
        if previous is not None and value <= previous:
            continue
        best[type_] = value
        given = db.execute(
            "INSERT OR IGNORE INTO awards VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (doc, score.set_id, type_, *who, value, previous, at_ms),
        )
        if given.rowcount:
            before = None if previous is None else _whole(previous)
            won.append(Award(score.set_id, *who, type_, _whole(value), before))
    return won


def _insert_score(
    db: sqlite3.Connection, row: tuple[str, ...], values: Mapping[RecordType, float]
) -> bool:
    columns = (values.get(type_) for type_ in _TYPES)
    return bool(
        db.execute(
            "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*row, *columns),
        ).rowcount
    )


def _best_of_others(db: sqlite3.Connection, row: tuple[str, ...]) -> dict[RecordType, float]:
    found = db.execute(_BEST_OF_OTHERS, row).fetchone()
    return {type_: value for type_, value in zip(_TYPES, found, strict=True) if value is not None}


def compact(db: sqlite3.Connection, doc: DocName, snapshot: bytes, upto: int, base: int) -> bool:
    done = db.execute(
        "UPDATE documents SET snapshot = ?, snapshot_crc = ?, snapshot_seq = ?"
        " WHERE doc = ? AND snapshot_seq = ?",
        (snapshot, zlib.crc32(snapshot), upto, str(doc), base),
    )
    if not done.rowcount:
        return False
    db.execute("DELETE FROM log WHERE doc = ? AND seq <= ?", (str(doc), upto))
    return True


_SHOWN = """(:circles IS NULL OR d.visibility = 'public'
    OR (d.visibility = 'friends' AND d.owner_id IN (SELECT value FROM json_each(:circles))))"""
_TRAINED = f"""FROM members m JOIN documents d ON d.doc = m.doc
    WHERE m.user_id = :user_id AND d.kind = 'workout'
    AND m.role IN ({", ".join(f"'{role}'" for role in TRAINING_ROLES)})"""
_SCORED = f"""FROM scores s CROSS JOIN documents d ON d.doc = s.doc
    WHERE s.user_id = :user_id AND {_SHOWN}"""


def training(
    db: sqlite3.Connection, user_id: UserId, limit: int, circles: Collection[UserId] | None
) -> Training:
    """What a user has done, in all workouts or in those that these circles see."""
    which: dict[str, Any] = {"user_id": user_id, "limit": limit, "circles": None}
    if circles is not None:
        which["circles"] = json.dumps(list(circles))
    db.execute("BEGIN")  # one state of the database for all reads
    try:
        listed = db.execute(
            f"SELECT {SUMMARY_COLUMNS} {_TRAINED} AND {_SHOWN}"
            " ORDER BY d.listed_at DESC, d.doc LIMIT :limit",
            which,
        ).fetchall()
        (count,) = db.execute(f"SELECT count(*) {_TRAINED} AND {_SHOWN}", which).fetchone()
        shades = db.execute(
            f"SELECT DISTINCT d.visibility, d.owner_id {_TRAINED} AND d.visibility <> 'private'",
            which,
        ).fetchall()
        done = {
            row["doc"]: (row["sets"], row["volume"])
            for row in db.execute(
                f"SELECT s.doc, count(*) AS sets, total(s.volume) AS volume {_SCORED}"
                " GROUP BY s.doc",
                which,
            )
        }
        bests = [best for type_ in _TYPES for best in _bests(db, type_, which)]
    finally:
        db.execute("COMMIT")
    summaries = map(summary_of, listed)
    return Training(
        [Trained(summary, *done.get(str(summary.doc), (0, 0.0))) for summary in summaries],
        sorted(bests),
        count,
        sum(sets for sets, _ in done.values()),
        sum(volume for _, volume in done.values()),
        frozenset(UserId(owner) for visibility, owner in shades if visibility == "friends"),
        any(visibility == "public" for visibility, _ in shades),
    )


def _bests(db: sqlite3.Connection, type_: RecordType, which: Mapping[str, Any]) -> Iterable[Best]:
    rows = db.execute(
        f"""SELECT s.exercise, s.doc, s.set_id, s.{type_} AS value {_SCORED}
            AND (s.exercise, s.{type_}) IN (
                SELECT s.exercise, max(s.{type_}) {_SCORED} GROUP BY s.exercise
            )""",
        which,
    )
    best: dict[str, Best] = {}
    for row in rows:
        doc = DocName.parse(row["doc"])
        found = Best(row["exercise"], type_, _whole(row["value"]), doc, row["set_id"])
        known = best.get(found.exercise)
        if known is None or best_first(found) < best_first(known):
            best[found.exercise] = found
    return best.values()


def active_workout(db: sqlite3.Connection, owner_id: UserId) -> str | None:
    row = db.execute(
        "SELECT workout_id FROM active_workouts WHERE owner_id = ?", (owner_id,)
    ).fetchone()
    return str(row["workout_id"]) if row else None


def revoke(db: sqlite3.Connection, revocation: Revocation, entry: Entry) -> None:
    db.execute(
        "INSERT INTO revocations VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " issued_until = max(issued_until, excluded.issued_until),"
        " until = max(until, excluded.until),"
        " revoked_by = excluded.revoked_by, revoked_at = excluded.revoked_at",
        (
            revocation.kind,
            revocation.id,
            revocation.issued_until_ms,
            revocation.until_ms,
            entry.author.user_id,
            entry.at_ms,
        ),
    )
    _keep_answer(db, entry, Stored(0))


def revocations(db: sqlite3.Connection, now_ms: int) -> list[Revocation]:
    rows = db.execute("SELECT * FROM revocations WHERE until > ?", (now_ms,))
    return [Revocation(row["kind"], row["id"], row["until"], row["issued_until"]) for row in rows]


def forget_ended(db: sqlite3.Connection, now_ms: int, answers_kept_ms: int) -> None:
    """Delete what has been kept for long enough."""
    db.execute("DELETE FROM answers WHERE at_ms < ?", (now_ms - answers_kept_ms,))
    db.execute("DELETE FROM revocations WHERE until <= ?", (now_ms,))


def summary_of(row: sqlite3.Row) -> Summary:
    return Summary(
        DocName.parse(row["doc"]),
        UserId(row["owner_id"]),
        row["title"],
        row["status"],
        row["mode"],
        row["visibility"],
        row["created_at"],
        row["started_at"],
        row["ended_at"],
    )


def _whole(value: float) -> float:
    """SQLite hands out REAL as float; JSON shows 100, not 100.0."""
    return int(value) if value == int(value) else value
