"""One SQLite file of this process's own: one writer thread, group commit.

Whatever is asked for while a commit is being synced to the disk goes into the next one, so under
load one fsync carries the work of many, and an idle server waits for nobody. A job that fails takes
nothing else with it. Reads have a thread and a connection of their own; WAL lets them run beside
the writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from crdt.errors import Unavailable
from server.storage.port import InUse, StorageError, StoreStats

log = logging.getLogger(__name__)

T = TypeVar("T")

BUSY_GROUP = 8
WIDEST_WINDOW = 8
CHECKPOINT_ATTEMPTS, CHECKPOINT_PAUSE_S = 100, 0.05


class SqliteFile:
    """A file that one process at a time may have open, and what is done in it."""

    def __init__(
        self,
        path: Path,
        schema: Sequence[str],
        *,
        name: str,
        lock: str,
        stats: StoreStats | None = None,
        commit_window_s: float = 0.003,
        pragmas: Sequence[str] = (),
        before_commit: Callable[[sqlite3.Connection], None] = lambda db: None,
        on_rollback: Callable[[], None] = lambda: None,
    ) -> None:
        """Open or create the file.

        Args:
            schema: files of this package: what makes each version of the schema of the one before;
                the first one makes it of nothing.
            name: what it is called in errors.
            lock: the file beside it that is locked for as long as it is open.
            stats: where commits and failures are counted.
            commit_window_s: how far apart commits are under load; several times as far where a
                window brings more than `BUSY_GROUP` jobs, so that their callers gather their
                changes and send them as one instead of falling behind.
            pragmas: of the writer's connection.
            before_commit: takes part in every commit; called by the writer's thread.
            on_rollback: what was read or written in this transaction may be gone; likewise.
        Raises:
            StorageError: the folder cannot be written, is in use, or holds a newer version.
        """
        self.stats = stats or StoreStats()
        self._name = name
        self._lock = _lock_folder(path.parent, lock)
        try:
            self._db = _open(path, schema)
            for pragma in pragmas:
                self._db.execute(f"PRAGMA {pragma}")
            self._read_db = _connect(path)
            self._read_db.execute("PRAGMA query_only = ON")
        except sqlite3.Error as exc:
            self._lock.close()
            raise StorageError(f"{path} cannot be opened: {exc}") from exc
        except StorageError:
            self._lock.close()
            raise
        self._before_commit = before_commit
        self._on_rollback = on_rollback
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="sqlite-read")
        self._commit_window_s = commit_window_s
        self._group: list[_Job] = []
        self._window_s = commit_window_s
        self._loop: asyncio.AbstractEventLoop | None = None  # of whoever writes
        self._handing_over: asyncio.Handle | None = None
        self._handed_over_at = 0.0
        self._groups: queue.SimpleQueue[
            tuple[list[_Job], asyncio.AbstractEventLoop] | _Rebuild | None
        ] = queue.SimpleQueue()
        self._is_closed = False
        self._writer = threading.Thread(target=self._write_groups, name="sqlite-write", daemon=True)
        self._writer.start()

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

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Have the reader do some work. It sees what has been committed.

        Raises:
            Unavailable: it cannot be done now, or the file is closed.
        """
        if self._is_closed:
            raise Unavailable(f"the {self._name} is closed")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reader, work, self._read_db)
        except sqlite3.Error as exc:
            raise self._unavailable("read", exc) from exc

    def write(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Have the writer do some work, in the next commit.

        A lone job goes to the writer at once. When jobs follow each other within the commit
        window, they wait for its end, and share one sync. The future is done when the disk has it,
        in the order of the calls.

        Raises:
            Unavailable: (the future) it cannot be done now, or the file is closed. Nothing is kept.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if self._is_closed:
            done.set_exception(Unavailable(f"the {self._name} is closed"))
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

    def rebuild(self) -> asyncio.Future[None]:
        """Write the file anew, with what is in it now and nothing of what was: deleted rows stay in
        free pages, and in the WAL, until something else is written there. What is asked for
        meanwhile waits. It takes as long as the file is large, and twice its space on the disk.

        Raises:
            Unavailable: (the future) it cannot be done now.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self._is_closed:
            done.set_exception(Unavailable(f"the {self._name} is closed"))
        else:
            self._groups.put(_Rebuild(done, loop))
        return done

    def _rebuild(self, rebuild: _Rebuild) -> None:
        error: Exception | None = None
        try:
            self._db.execute("VACUUM")
            for _ in range(CHECKPOINT_ATTEMPTS):
                is_busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if not is_busy:
                    break
                time.sleep(CHECKPOINT_PAUSE_S)  # somebody reads an older state
            else:
                error = Unavailable(f"the {self._name} is being read", retry_after_ms=1_000)
        except sqlite3.Error as exc:
            error = self._unavailable("rewritten", exc)
        with contextlib.suppress(RuntimeError):
            rebuild.loop.call_soon_threadsafe(_rebuilt, rebuild.done, error)

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
            if isinstance(handed, _Rebuild):
                self._rebuild(handed)
                continue
            group, loop = handed
            following: Any = handed
            while isinstance(following, tuple) and not self._groups.empty():
                following = self._groups.get()
                if isinstance(following, tuple):
                    group += following[0]
            self._commit(group, loop)
            if isinstance(following, _Rebuild):
                self._rebuild(following)
            elif following is None:
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
            self._before_commit(self._db)
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            error = self._unavailable("written", exc)
            with contextlib.suppress(sqlite3.Error):
                self._roll_back()
            for job in group:
                # Each its own: raising one adds to its trace.
                job.error = Unavailable(str(error), retry_after_ms=error.retry_after_ms)
                job.error.__cause__ = exc
        self.stats.committed(len(group), time.perf_counter() - started)
        # All jobs of a file belong to one loop; one wake-up serves them all. It may be gone.
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
            self._on_rollback()
            job.error = exc
            if type(exc) is sqlite3.DatabaseError:  # this part of the file is damaged
                job.error = self._unavailable("written", exc)
        self._db.execute("RELEASE job")

    def _roll_back(self) -> None:
        self._on_rollback()
        self._db.execute("ROLLBACK")

    def _unavailable(self, what: str, exc: sqlite3.Error) -> Unavailable:
        self.stats.failures += 1
        log.error(f"the {self._name} cannot be {what}", extra={"cause": str(exc)})
        error = Unavailable(f"the {self._name} cannot be {what} now", retry_after_ms=1_000)
        error.__cause__ = exc
        return error


class _Rebuild(NamedTuple):
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


def _rebuilt(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.cancelled():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(None)


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


def _lock_folder(folder: Path, name: str) -> Any:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(folder / name, "a")  # noqa: SIM115 - held open as long as the file
    except OSError as exc:
        raise StorageError(f"the data folder {folder} cannot be written: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        raise InUse(f"the data folder {folder} is in use by another server") from exc
    return lock


def _open(path: Path, schema: Sequence[str]) -> sqlite3.Connection:
    db = _connect(path)
    try:
        _migrate(db, schema)
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
    # What is deleted is overwritten at once, whatever is usual where SQLite was built.
    db.execute("PRAGMA secure_delete = ON")
    return db


def _migrate(db: sqlite3.Connection, schema: Sequence[str]) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(schema):
        raise StorageError(f"the data were written by a newer RepSync (schema {version})")
    for step in range(version, len(schema)):
        script = files("server.storage").joinpath(schema[step]).read_text()
        db.executescript(f"BEGIN;\n{script}\nPRAGMA user_version = {step + 1};\nCOMMIT;")
