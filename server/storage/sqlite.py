"""The embedded store: everything in one SQLite file, whose commits rooms share (`sqlite_file`)."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any

from crdt.ids import DocKind, DocName, UserId
from crdt.ports import Answer, Append, Durability, Entry, Loaded, Stored, Summary, Training
from crdt.revocations import Revocation
from server.breaker import Breaker
from server.storage import jobs, personal
from server.storage.port import ANSWERS_KEPT_S, Erasure, PersonalRow, StoreStats
from server.storage.sqlite_file import SqliteFile

SCHEMA = ("schema.sql", "schema_2.sql", "schema_3.sql")
"""What makes each version of the schema of the one before; the first one makes it of nothing."""
SCHEMA_VERSION = len(SCHEMA)


class SqliteStore:
    """A `Store` in `folder`/repsync.db, which one process at a time may have open."""

    kind = "sqlite"
    durability: Durability = "disk"
    settles_after_s = 0.0
    breaker: Breaker | None = None  # what fails here fails at once

    def __init__(self, folder: Path, *, commit_window_s: float = 0.003) -> None:
        """Open or create the store.

        Args:
            commit_window_s: how far apart commits are under load (`SqliteFile`).
        Raises:
            StorageError: the folder cannot be written, is in use, or holds a newer version.
        """
        self.stats = StoreStats()
        self._purged_at = 0.0
        self._known = jobs.Known()  # the writer thread's own
        self._file = SqliteFile(
            folder / "repsync.db",
            SCHEMA,
            name="store",
            lock="lock",
            stats=self.stats,
            commit_window_s=commit_window_s,
            # Room for the last pages of thousands of logs: with the default of 2 MiB nearly every
            # append reads its page again, and a checkpoint finds each page changed once only.
            pragmas=("cache_size = -32768", "wal_autocheckpoint = 4000"),
            before_commit=self._purge,
            on_rollback=self._known.forget,
        )

    async def open(self) -> None:
        """Nothing is left to do: the folder is locked and the file is open."""

    async def close(self) -> None:
        """Finish what was asked for, and let go of the folder."""
        await self._file.close()

    # -- the port ---------------------------------------------------------------------------

    async def load(self, doc: DocName) -> Loaded | None:
        return await self._file.read(lambda db: jobs.load(db, doc))

    def append(self, batch: Append) -> asyncio.Future[Stored]:
        self.stats.appends += 1
        return self._file.write(lambda db: jobs.append(db, batch, self._known))

    async def compact(self, doc: DocName, snapshot: bytes, upto: int, base: int) -> bool:
        return await self._file.write(lambda db: jobs.compact(db, doc, snapshot, upto, base))

    async def answer(
        self, user_id: UserId, op_id: str, doc: DocName | None = None
    ) -> Answer | None:
        def find(db: sqlite3.Connection) -> Answer | None:
            row = db.execute(
                "SELECT answer FROM answers WHERE user_id = ? AND op_id = ?", (user_id, op_id)
            ).fetchone()
            answer: Answer | None = json.loads(row["answer"]) if row else None
            return answer

        return await self._file.read(find)

    async def summaries(
        self, user_id: UserId, kind: DocKind, *, limit: int, before: DocName | None = None
    ) -> Sequence[tuple[Summary, str]]:
        def find(db: sqlite3.Connection) -> list[tuple[Summary, str]]:
            after = (
                " JOIN documents b ON b.doc = :before AND (d.listed_at < b.listed_at"
                " OR (d.listed_at = b.listed_at AND d.doc > b.doc))"
            )
            rows = db.execute(
                f"SELECT {jobs.SUMMARY_COLUMNS}, m.role"
                " FROM members m JOIN documents d ON d.doc = m.doc"
                f"{after if before is not None else ''}"
                " WHERE m.user_id = :user_id AND d.kind = :kind"
                " ORDER BY d.listed_at DESC, d.doc LIMIT :limit",
                {"user_id": user_id, "kind": kind, "limit": limit, "before": str(before)},
            )
            return [(jobs.summary_of(row), row["role"]) for row in rows]

        return await self._file.read(find)

    async def training(
        self, user_id: UserId, *, limit: int, circles: Collection[UserId] | None = None
    ) -> Training:
        return await self._file.read(lambda db: jobs.training(db, user_id, limit, circles))

    async def summary(self, doc: DocName) -> Summary | None:
        def find(db: sqlite3.Connection) -> Summary | None:
            row = db.execute("SELECT * FROM documents WHERE doc = ?", (str(doc),)).fetchone()
            return jobs.summary_of(row) if row else None

        return await self._file.read(find)

    async def active_workout(self, owner_id: UserId) -> str | None:
        return await self._file.read(lambda db: jobs.active_workout(db, owner_id))

    async def claim_active(
        self, owner_id: UserId, workout_id: str, instead_of: str | None = None
    ) -> str:
        def claim(db: sqlite3.Connection) -> str:
            db.execute(
                "INSERT INTO active_workouts VALUES (?, ?) ON CONFLICT DO UPDATE"
                " SET workout_id = excluded.workout_id WHERE workout_id = ?",
                (owner_id, workout_id, instead_of),
            )
            return jobs.active_workout(db, owner_id) or workout_id

        return await self._file.write(claim)

    async def revoke(self, revocation: Revocation, entry: Entry) -> None:
        await self._file.write(lambda db: jobs.revoke(db, revocation, entry))

    async def revocations(self, now_ms: int) -> Sequence[Revocation]:
        return await self._file.read(
            lambda db: [*jobs.revocations(db, now_ms), *personal.revocations(db)]
        )

    # -- persons ----------------------------------------------------------------------------

    async def documents_of(self, user_id: UserId) -> Sequence[DocName]:
        return await self._file.read(lambda db: personal.documents_of(db, user_id))

    async def rows_of(self, user_id: UserId) -> AsyncIterator[PersonalRow]:
        for row in await self._file.read(lambda db: list(personal.rows_of(db, user_id))):
            yield row

    async def stored(self, doc: DocName) -> Loaded | None:
        return await self.load(doc)

    async def begin_erasure(self, user_id: UserId, issued_until_ms: int) -> Revocation:
        return await self._file.write(
            lambda db: personal.begin_erasure(db, user_id, issued_until_ms)
        )

    async def erasures(self) -> Sequence[Erasure]:
        return await self._file.read(personal.erasures)

    async def erasure_of(self, user_id: UserId) -> Erasure | None:
        return await self._file.read(lambda db: personal.erasure_of(db, user_id))

    async def take_erasure(self, erasure_id: str, by: str) -> bool:
        return True  # nobody else has the file

    async def leave_erasure(self, erasure_id: str, by: str) -> None: ...

    async def note_erasure(
        self, erasure_id: str, report: dict[str, Any], error: str | None
    ) -> None:
        await self._file.write(lambda db: personal.note_erasure(db, erasure_id, report, error))

    async def bury(self, doc: DocName) -> None:
        now_ms = int(time.time() * 1_000)
        await self._file.write(lambda db: personal.bury(db, doc, self._known, now_ms))

    async def forget_in(self, doc: DocName, user_id: UserId) -> Counter[str]:
        return await self._file.write(lambda db: personal.forget_in(db, doc, user_id, self._known))

    async def forget(self, user_id: UserId) -> Counter[str]:
        return await self._file.write(lambda db: personal.forget(db, user_id, self._known))

    async def end_erasure(self, erasure: Erasure, now_ms: int, report: dict[str, Any]) -> None:
        if (user_id := erasure.user_id) is not None:
            await self._file.write(lambda db: personal.unname(db, user_id, report))
        await self._file.rebuild()
        await self._file.write(lambda db: personal.end(db, erasure.id, now_ms))

    async def check(self) -> float:
        """Go through the writer and back. Returns: how long that took, in seconds."""
        started = time.perf_counter()
        await self._file.write(lambda db: db.execute("SELECT 1").fetchone())
        return time.perf_counter() - started

    def _purge(self, db: sqlite3.Connection) -> None:
        if time.monotonic() - self._purged_at > 3_600 or not self._purged_at:
            self._purged_at = time.monotonic()
            jobs.forget_ended(db, int(time.time() * 1_000), ANSWERS_KEPT_S * 1_000)
