"""The embedded store: one SQLite file, one writer thread, group commit.

Whatever the rooms ask for while a commit is being synced to the disk goes into the next one, so
under load one fsync carries the appends of many rooms, and an idle server waits for nobody. A job
that fails takes nothing else with it. Reads have a thread and
a connection of their own; WAL lets them run beside the writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from crdt.errors import Unavailable
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import Answer, Append, Durability, Entry, Loaded, Stored, Summary
from crdt.revocations import Revocation
from server.storage import jobs
from server.storage.port import ANSWERS_KEPT_S, StorageError, StoreStats

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA = ("schema.sql", "schema_2.sql")
"""What makes each version of the schema of the one before; the first one makes it of nothing."""
SCHEMA_VERSION = len(SCHEMA)
BUSY_GROUP = 8
WIDEST_WINDOW = 8


class SqliteStore:
    """A `Store` in `folder`/repsync.db, which one process at a time may have open."""

    kind = "sqlite"
    durability: Durability = "disk"

    def __init__(self, folder: Path, *, commit_window_s: float = 0.003) -> None:
        """Open or create the store.

        Args:
            commit_window_s: how far apart commits are under load; several times as far where a
                window brings more than `BUSY_GROUP` jobs, so that rooms gather their changes and
                send them as one instead of falling behind.
        Raises:
            StorageError: the folder cannot be written, is in use, or holds a newer version.
        """
        self.stats = StoreStats()
        self._lock = _lock_folder(folder)
        path = folder / "repsync.db"
        try:
            self._db = _open(path)
            # Room for the last pages of thousands of logs: with the default of 2 MiB nearly every
            # append reads its page again, and a checkpoint finds each page changed once only.
            self._db.execute("PRAGMA cache_size = -32768")
            self._db.execute("PRAGMA wal_autocheckpoint = 4000")
            self._read_db = _connect(path)
            self._read_db.execute("PRAGMA query_only = ON")
        except sqlite3.Error as exc:
            self._lock.close()
            raise StorageError(f"{path} cannot be opened: {exc}") from exc
        except StorageError:
            self._lock.close()
            raise
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="sqlite-read")
        self._commit_window_s = commit_window_s
        self._group: list[_Job] = []
        self._window_s = commit_window_s
        self._loop: asyncio.AbstractEventLoop | None = None  # of whoever writes
        self._handing_over: asyncio.Handle | None = None
        self._handed_over_at = 0.0
        self._groups: queue.SimpleQueue[tuple[list[_Job], asyncio.AbstractEventLoop] | None] = (
            queue.SimpleQueue()
        )
        self._purged_at = 0.0
        self._is_closed = False
        self._known = jobs.Known()  # the writer thread's own
        self._writer = threading.Thread(target=self._write_groups, name="sqlite-write", daemon=True)
        self._writer.start()

    async def open(self) -> None:
        """Nothing is left to do: the folder is locked and the file is open."""

    async def close(self) -> None:
        """Finish what was asked for, and let go of the folder."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._handing_over is not None:
            self._handing_over.cancel()
            self._hand_over(asyncio.get_running_loop())
        self._groups.put(None)
        await asyncio.to_thread(self._writer.join)
        self._reader.shutdown()
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._read_db.close()
        self._lock.close()

    # -- the port ---------------------------------------------------------------------------

    async def load(self, doc: DocName) -> Loaded | None:
        return await self._read(lambda db: jobs.load(db, doc))

    def append(self, batch: Append) -> asyncio.Future[Stored]:
        self.stats.appends += 1
        return self._write(lambda db: jobs.append(db, batch, self._known))

    async def compact(self, doc: DocName, snapshot: bytes, upto: int, base: int) -> bool:
        return await self._write(lambda db: jobs.compact(db, doc, snapshot, upto, base))

    async def answer(
        self, user_id: UserId, op_id: str, doc: DocName | None = None
    ) -> Answer | None:
        def find(db: sqlite3.Connection) -> Answer | None:
            row = db.execute(
                "SELECT answer FROM answers WHERE user_id = ? AND op_id = ?", (user_id, op_id)
            ).fetchone()
            answer: Answer | None = json.loads(row["answer"]) if row else None
            return answer

        return await self._read(find)

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

        return await self._read(find)

    async def summary(self, doc: DocName) -> Summary | None:
        def find(db: sqlite3.Connection) -> Summary | None:
            row = db.execute("SELECT * FROM documents WHERE doc = ?", (str(doc),)).fetchone()
            return jobs.summary_of(row) if row else None

        return await self._read(find)

    async def active_workout(self, owner_id: UserId) -> str | None:
        return await self._read(lambda db: jobs.active_workout(db, owner_id))

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

        return await self._write(claim)

    async def revoke(self, revocation: Revocation, entry: Entry) -> None:
        await self._write(lambda db: jobs.revoke(db, revocation, entry))

    async def revocations(self, now_ms: int) -> Sequence[Revocation]:
        return await self._read(lambda db: jobs.revocations(db, now_ms))

    async def check(self) -> float:
        """Go through the writer and back. Returns: how long that took, in seconds."""
        started = time.perf_counter()
        await self._write(lambda db: db.execute("SELECT 1").fetchone())
        return time.perf_counter() - started

    # -- threads ----------------------------------------------------------------------------

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._is_closed:
            raise Unavailable("the store is closed")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reader, work, self._read_db)
        except sqlite3.Error as exc:
            self.stats.failures += 1
            log.error("the store cannot be read", extra={"cause": str(exc)})
            raise Unavailable("the store cannot be read now", retry_after_ms=1_000) from exc

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Have the writer do some work, in the next commit.

        A lone job goes to the writer at once. When jobs follow each other within the commit
        window, they wait for its end, and share one sync.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if self._is_closed:
            done.set_exception(Unavailable("the store is closed"))
            return done
        self._group.append(_Job(work, done))
        if self._handing_over is None:
            due = self._handed_over_at + self._window_s
            self._handing_over = (
                loop.call_soon(self._hand_over, loop)
                if loop.time() >= due
                else loop.call_at(due, self._hand_over, loop)
            )
        return done

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handing_over = None
        self._handed_over_at = loop.time()
        group, self._group = self._group, []
        busier = len(group) / BUSY_GROUP
        self._window_s = min(max(1.0, busier), WIDEST_WINDOW) * self._commit_window_s
        self._groups.put((group, loop))

    def _write_groups(self) -> None:
        """The writer thread: one commit for all groups that have come by now."""
        while (handed := self._groups.get()) is not None:
            group, loop = handed
            last = False
            while not last and not self._groups.empty():
                following = self._groups.get()
                if following is None:
                    last = True
                else:
                    group += following[0]
            self._commit(group, loop)
            if last:
                return

    def _commit(self, group: list[_Job], loop: asyncio.AbstractEventLoop) -> None:
        started = time.perf_counter()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for job in group:
                    job.result = job.work(self._db)
            except sqlite3.OperationalError:
                raise  # full, locked, failing: it is no job's fault
            except Exception:
                # One of them cannot be done. Begin again, each under a savepoint of its own.
                self._roll_back()
                self._db.execute("BEGIN IMMEDIATE")
                for job in group:
                    self._try(job)
            self._purge()
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            self.stats.failures += 1
            log.error("the store cannot be written", extra={"cause": str(exc)})
            with contextlib.suppress(sqlite3.Error):
                self._roll_back()
            for job in group:
                job.error = Unavailable("the store cannot be written now", retry_after_ms=1_000)
                job.error.__cause__ = exc
        self.stats.commits += 1
        self.stats.commit_seconds += time.perf_counter() - started
        # All jobs of a store belong to one loop; one wake-up serves them all. It may be gone.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, group)

    def _try(self, job: _Job) -> None:
        self._db.execute("SAVEPOINT job")
        try:
            job.result = job.work(self._db)
        except sqlite3.OperationalError:
            raise
        except Exception as exc:
            self._db.execute("ROLLBACK TO job")
            self._known.forget()
            job.error = exc
        self._db.execute("RELEASE job")

    def _roll_back(self) -> None:
        self._known.forget()
        self._db.execute("ROLLBACK")

    def _purge(self) -> None:
        if time.monotonic() - self._purged_at > 3_600 or not self._purged_at:
            self._purged_at = time.monotonic()
            jobs.forget_ended(self._db, int(time.time() * 1_000), ANSWERS_KEPT_S * 1_000)


class _Job:
    __slots__ = ("done", "error", "result", "work")

    def __init__(
        self, work: Callable[[sqlite3.Connection], Any], done: asyncio.Future[Any]
    ) -> None:
        self.work = work
        self.done = done
        self.result: Any = None
        self.error: Exception | None = None


def _settle(group: list[_Job]) -> None:
    for job in group:
        if job.done.cancelled():
            continue
        if job.error is not None:
            job.done.set_exception(job.error)
        else:
            job.done.set_result(job.result)


# -- opening ----------------------------------------------------------------------------------


def _lock_folder(folder: Path) -> Any:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(folder / "lock", "a")  # noqa: SIM115 - held open as long as the store
    except OSError as exc:
        raise StorageError(f"the data folder {folder} cannot be written: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        raise StorageError(f"the data folder {folder} is in use by another server") from exc
    return lock


def _open(path: Path) -> sqlite3.Connection:
    db = _connect(path)
    try:
        _migrate(db)
    except BaseException:
        db.close()  # a step that failed half-way would hold the file for as long as we live
        raise
    return db


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode = WAL")
    # FULL syncs the WAL at every commit: an ack means that the disk has it.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA busy_timeout = 5000")
    return db


def _migrate(db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StorageError(f"the data were written by a newer RepSync (schema {version})")
    for step in range(version, SCHEMA_VERSION):
        script = files("server.storage").joinpath(SCHEMA[step]).read_text()
        db.executescript(f"BEGIN;\n{script}\nPRAGMA user_version = {step + 1};\nCOMMIT;")
