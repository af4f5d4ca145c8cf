"""What the embedded store knows of a person, and how that is deleted: each function runs inside a
transaction. Everything is looked for by the id, in the bytes of documents as well."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from crdt.erasure import ERASED, scrubbed
from crdt.ids import DocName, UserId
from crdt.ports import SERVER, Loaded
from crdt.revocations import FOR_EVER_MS, Revocation, hidden
from crdt.wire import var_bytes
from server.storage import jobs
from server.storage.port import Erasure, PersonalRow, StorageError

_to_json = json.JSONEncoder(separators=(",", ":")).encode

SALT_BYTES = 16

_DOCUMENTS = """
    SELECT doc FROM members WHERE user_id = :user_id
    UNION SELECT doc FROM documents WHERE owner_id = :user_id OR instr(snapshot, :value)
    UNION SELECT doc FROM log WHERE instr(yjs, :value) OR instr(entries, :quoted)
    UNION SELECT doc FROM client_ids WHERE user_id = :user_id
    UNION SELECT doc FROM scores WHERE user_id = :user_id
    UNION SELECT doc FROM awards WHERE user_id = :user_id
"""
_OF_DOCUMENT = (
    "documents",
    "log",
    "members",
    "scores",
    "awards",
    "client_ids",
    "removed_exercises",
)


class SqliteRecords:
    """`PersonalRecords` in `folder`/repsync.db, which a server may have open."""

    def __init__(self, folder: Path) -> None:
        """Raises StorageError: there is no such file, or it cannot be read."""
        path = folder / "repsync.db"
        if not path.exists():
            raise StorageError(f"there are no data in {folder}: set DATA_DIR to where they are")
        try:
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            self._db.isolation_level = None
            self._db.row_factory = sqlite3.Row
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as exc:
            raise StorageError(f"{path} cannot be read: {exc}") from exc
        if not FIRST_READABLE <= version <= LAST_READABLE:
            self.close()
            raise StorageError(
                f"{path} has schema {version}, this version reads {FIRST_READABLE} to"
                f" {LAST_READABLE}: start the server of this version once"
            )

    def close(self) -> None:
        self._db.close()

    async def documents_of(self, user_id: UserId) -> Sequence[DocName]:
        return documents_of(self._db, user_id)

    async def rows_of(self, user_id: UserId) -> AsyncIterator[PersonalRow]:
        for row in rows_of(self._db, user_id):
            yield row

    async def stored(self, doc: DocName) -> Loaded | None:
        return jobs.load(self._db, doc)


FIRST_READABLE, LAST_READABLE = 2, 3


def documents_of(db: sqlite3.Connection, user_id: UserId) -> list[DocName]:
    searched = {
        "user_id": user_id,
        "value": var_bytes(user_id.encode()),
        "quoted": _to_json(user_id),
    }
    return [DocName.parse(row["doc"]) for row in db.execute(_DOCUMENTS, searched)]


def rows_of(db: sqlite3.Connection, user_id: UserId) -> Iterator[PersonalRow]:
    """See `PersonalRecords.rows_of`."""
    who, quoted = (user_id,), _to_json(user_id)
    found = db.execute(
        "SELECT doc, seq, entries FROM log WHERE instr(entries, ?) ORDER BY doc, seq", (quoted,)
    )
    for row in found:
        for entry in json.loads(row["entries"]):
            if entry["user_id"] == user_id:
                yield PersonalRow("log", {"doc": row["doc"], "seq": row["seq"], **entry})
    for row in db.execute("SELECT op_id, answer, at_ms FROM answers WHERE user_id = ?", who):
        yield PersonalRow("answers", {**dict(row), "answer": json.loads(row["answer"])})
    for section, query in (
        ("scores", "SELECT * FROM scores WHERE user_id = ?"),
        ("records", "SELECT * FROM awards WHERE user_id = ?"),
        ("client_ids", "SELECT doc, client_id FROM client_ids WHERE user_id = ?"),
        ("claims", "SELECT workout_id FROM active_workouts WHERE owner_id = ?"),
        ("memberships", "SELECT doc, role, name FROM members WHERE user_id = ?"),
    ):
        for row in db.execute(query, who):
            yield PersonalRow(section, {key: row[key] for key in row.keys() if key != "user_id"})  # noqa: SIM118 - a row's values are its elements
    for row in db.execute(
        "SELECT * FROM revocations WHERE (kind = 'user' AND id = ?1) OR revoked_by = ?1", who
    ):
        yield PersonalRow("revocations", dict(row))


# -- erasing ----------------------------------------------------------------------------------


def salt(db: sqlite3.Connection) -> str:
    """What names are hidden with; made when it is first asked for."""
    made = secrets.token_hex(SALT_BYTES)
    db.execute("INSERT OR IGNORE INTO salts VALUES ('erasure', ?)", (made,))
    (kept,) = db.execute("SELECT salt FROM salts WHERE name = 'erasure'").fetchone()
    return str(kept)


def begin_erasure(db: sqlite3.Connection, user_id: UserId, issued_until_ms: int) -> Revocation:
    id_ = hidden(salt(db), user_id)
    db.execute(
        "INSERT INTO erasures VALUES (?, ?, ?, NULL, '{}', NULL) ON CONFLICT DO UPDATE SET"
        " user_id = excluded.user_id, issued_until = max(issued_until, excluded.issued_until),"
        " report = iif(done_at IS NULL, report, '{}'), done_at = NULL",
        (id_, user_id, issued_until_ms),
    )
    (until_ms,) = db.execute("SELECT issued_until FROM erasures WHERE id = ?", (id_,)).fetchone()
    return Revocation("erased", id_, FOR_EVER_MS, until_ms)


def revocations(db: sqlite3.Connection) -> list[Revocation]:
    """Those of users who were erased."""
    rows = db.execute("SELECT id, issued_until FROM erasures")
    return [Revocation("erased", row["id"], FOR_EVER_MS, row["issued_until"]) for row in rows]


def erasures(db: sqlite3.Connection) -> list[Erasure]:
    return [_erasure(row) for row in db.execute("SELECT * FROM erasures WHERE done_at IS NULL")]


def erasure_of(db: sqlite3.Connection, user_id: UserId) -> Erasure | None:
    kept = db.execute("SELECT salt FROM salts WHERE name = 'erasure'").fetchone()
    if kept is None:
        return None
    id_ = hidden(kept["salt"], user_id)
    row = db.execute("SELECT * FROM erasures WHERE id = ?", (id_,)).fetchone()
    return _erasure(row) if row else None


def _erasure(row: sqlite3.Row) -> Erasure:
    user_id = None if row["user_id"] is None else UserId(row["user_id"])
    return Erasure(row["id"], user_id, row["done_at"], json.loads(row["report"]), row["error"])


def note_erasure(
    db: sqlite3.Connection, id_: str, report: dict[str, Any], error: str | None
) -> None:
    db.execute(
        "UPDATE erasures SET report = ?, error = ? WHERE id = ?", (_to_json(report), error, id_)
    )


def bury(db: sqlite3.Connection, doc: DocName, known: jobs.Known, now_ms: int) -> None:
    name = str(doc)
    id_ = hidden(salt(db), name)
    db.execute("INSERT OR IGNORE INTO tombstones VALUES (?, ?)", (id_, now_ms))
    for table in _OF_DOCUMENT:
        db.execute(f"DELETE FROM {table} WHERE doc = ?", (name,))
    db.execute("DELETE FROM active_workouts WHERE workout_id = ?", (doc.id,))
    db.execute("DELETE FROM answers WHERE instr(answer, ?)", (_to_json(doc.id),))
    known.forget()


def forget_in(
    db: sqlite3.Connection, doc: DocName, user_id: UserId, known: jobs.Known
) -> Counter[str]:
    where, who = "WHERE doc = ? AND user_id = ?", (str(doc), user_id)
    deleted = Counter(
        {
            "client_ids": db.execute(
                f"UPDATE client_ids SET user_id = ? {where}", (SERVER, *who)
            ).rowcount,
            "scores": db.execute(f"DELETE FROM scores {where}", who).rowcount,
            "records": db.execute(f"DELETE FROM awards {where}", who).rowcount,
            "memberships": db.execute(f"DELETE FROM members {where}", who).rowcount,
        }
    )
    known.forget()
    return deleted


def forget(db: sqlite3.Connection, user_id: UserId, known: jobs.Known) -> Counter[str]:
    who, quoted = (user_id,), _to_json(user_id)
    deleted = Counter(
        {
            "answers": db.execute("DELETE FROM answers WHERE user_id = ?", who).rowcount,
            "scores": db.execute("DELETE FROM scores WHERE user_id = ?", who).rowcount,
            "records": db.execute("DELETE FROM awards WHERE user_id = ?", who).rowcount,
            "memberships": db.execute("DELETE FROM members WHERE user_id = ?", who).rowcount,
            "claims": db.execute("DELETE FROM active_workouts WHERE owner_id = ?", who).rowcount,
            "revocations": db.execute(
                "DELETE FROM revocations WHERE kind = 'user' AND id = ?", who
            ).rowcount,
        }
    )
    db.execute("UPDATE revocations SET revoked_by = ? WHERE revoked_by = ?", (ERASED, user_id))
    named = db.execute(
        "SELECT user_id, op_id, answer FROM answers WHERE instr(answer, ?)", (quoted,)
    )
    for row in named.fetchall():
        answer = _to_json(scrubbed(json.loads(row["answer"]), user_id))
        db.execute(
            "UPDATE answers SET answer = ? WHERE user_id = ? AND op_id = ?",
            (answer, row["user_id"], row["op_id"]),
        )
        deleted["mentions_in_answers"] += 1
    for row in db.execute(
        "SELECT doc, seq, entries FROM log WHERE instr(entries, ?)", (quoted,)
    ).fetchall():
        entries = [
            {**entry, "user_id": ERASED, "device_id": "", "op_id": None}
            if entry["user_id"] == user_id
            else entry
            for entry in json.loads(row["entries"])
        ]
        db.execute(
            "UPDATE log SET entries = ? WHERE doc = ? AND seq = ?",
            (_to_json(entries), row["doc"], row["seq"]),
        )
        deleted["log_entries"] += 1
    known.forget()
    return deleted


def unname(db: sqlite3.Connection, user_id: UserId, report: dict[str, Any]) -> None:
    """Let an erasure not say any more whose it is."""
    db.execute(
        "UPDATE erasures SET user_id = NULL, error = NULL, report = ? WHERE user_id = ?",
        (_to_json(report), user_id),
    )


def end(db: sqlite3.Connection, id_: str, now_ms: int) -> None:
    db.execute("UPDATE erasures SET done_at = ? WHERE id = ?", (now_ms, id_))
