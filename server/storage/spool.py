"""What the shared log could not take: a bounded, durable queue in `spool.db` in the data folder.

**Promise.** A record whose `append` has returned is on the disk, and stays there until `remove`.
Records come out in the order they went in. The spool takes no more than it was told to: who finds
it full, or its disk failing, gets `Unavailable`, and nothing of the record is kept.

**Damage.** Every record has a checksum. One that does not match is set aside: it stays in the file
as it is, named in the table `quarantine`, counted and logged, and is not handed out; those behind
it are. The whole file is checked when it is opened, and again when damage shows.

**Owner.** One process at a time, by a lock on `spool.lock`. What `count` and the like tell is kept
in memory, and follows the commits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Set
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from crdt.errors import Invalid, Unavailable
from crdt.ids import DocName
from server.storage.port import StorageError, StoreStats
from server.storage.sqlite_file import SqliteFile

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA = ("spool.sql",)
SCHEMA_VERSION = len(SCHEMA)
MAX_BYTES = 256 * 1024 * 1024
MAX_RECORDS = 1_000_000
FULL_RETRY_MS = 5_000

NEARLY_FULL = 7 / 8


class Spooled(NamedTuple):
    """A record that waits. `at_ms`: when it was spooled, ms since the epoch."""

    id: int
    doc: DocName
    origin: str
    n: int
    record: bytes
    at_ms: int


class Spool:
    """The spool in `folder`/spool.db."""

    def __init__(
        self, folder: Path, *, max_bytes: int = MAX_BYTES, max_records: int = MAX_RECORDS
    ) -> None:
        """Nothing is opened before `open`.

        Args:
            max_bytes: of all records that wait, without what SQLite needs around them.
        """
        self._path = folder / "spool.db"
        self._max_bytes = max_bytes
        self._max_records = max_records
        self._file: SqliteFile | None = None
        self._stock = _Stock()
        self._arriving = 0
        self._arriving_bytes = 0
        self.stats = StoreStats()

    async def open(self) -> None:
        """Open or create the file, and check every record in it.

        Raises:
            StorageError: the folder cannot be written, is in use, holds a newer version, or the
                file is damaged so that its records cannot be told apart.
        """
        make = partial(SqliteFile, name="spool", lock="spool.lock", stats=self.stats)
        self._file = await asyncio.to_thread(make, self._path, SCHEMA)
        try:
            # What SQLite may pass over without a word, such as a page that lost its end.
            found = await self._file.read(_quick_check)
            if found == "ok":
                return await self._take_stock()
        except Unavailable as exc:
            found = str(exc.__cause__)
        await self.close()
        raise StorageError(
            f"{self._path} is damaged ({found}). It may hold changes that were acknowledged and are"
            " nowhere else: keep a copy, then repair it or move it away"
        )

    async def close(self) -> None:
        """Finish what was asked for, and let go of the file."""
        if self._file is not None:
            await self._file.close()

    # -- what is there ----------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many records wait."""
        return self._stock.count

    @property
    def is_nearly_full(self) -> bool:
        """Whether so little is left that only what is on its way should still come."""
        used = max(self.size_bytes / self._max_bytes, self.count / self._max_records)
        return used > NEARLY_FULL

    @property
    def size_bytes(self) -> int:
        """The bytes of all records that wait."""
        return self._stock.size_bytes

    @property
    def max_bytes(self) -> int:
        """What they may be at most."""
        return self._max_bytes

    @property
    def oldest_at_ms(self) -> int | None:
        """When the record was spooled that comes next, ms since the epoch."""
        return self._stock.oldest_at_ms

    @property
    def docs(self) -> Set[DocName]:
        """The documents that have records here."""
        return frozenset(self._stock.docs)

    @property
    def quarantined(self) -> int:
        """How many records have been set aside."""
        return self._stock.quarantined

    # -- the queue --------------------------------------------------------------------------

    def append(self, doc: DocName, origin: str, n: int, record: bytes) -> Awaitable[int]:
        """Keep a record. Records are kept in the order of the calls.

        Returns:
            Its id, once the disk has it.
        Raises:
            Unavailable: the spool is full, or the disk is, or fails.
        """
        file, size = self._opened, len(record)
        if (
            self.count + self._arriving >= self._max_records
            or self.size_bytes + self._arriving_bytes + size > self._max_bytes
        ):
            refused: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            refused.set_exception(Unavailable("the spool is full", retry_after_ms=FULL_RETRY_MS))
            return refused
        at_ms = int(time.time() * 1_000)
        self._arriving += 1
        self._arriving_bytes += size
        self.stats.appends += 1

        def insert(db: sqlite3.Connection) -> int:
            crc = _checksum(str(doc).encode(), origin.encode(), n, at_ms, record)
            row = (str(doc), origin, n, at_ms, record, crc)
            added = db.execute(
                "INSERT INTO records (doc, origin, n, at_ms, record, crc)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            return added.lastrowid or 0

        def arrived(outcome: asyncio.Future[int]) -> None:
            self._arriving -= 1
            self._arriving_bytes -= size
            if not outcome.exception():
                self._stock.add(doc, size, at_ms)

        return self._write(file, insert, arrived)

    async def first(self, doc: DocName | None = None, limit: int = 100) -> list[Spooled]:
        """The oldest records, of one document or of all; they stay where they are.

        Raises:
            Unavailable: the file cannot be read.
        """
        found, is_damaged = await self._opened.read(partial(_first, doc=doc, limit=limit))
        if is_damaged:
            # Where that cannot be written down now, it is next time.
            with contextlib.suppress(Unavailable):
                await self._take_stock()
        return found

    async def remove(self, ids: Iterable[int]) -> None:
        """Forget records that are in the shared log. Ids that are not here do no harm.

        Raises:
            Unavailable: the disk fails; none has been removed.
        """

        def removed(outcome: asyncio.Future[_Stock]) -> None:
            if not outcome.exception():
                self._stock.subtract(outcome.result())

        gone = await self._write(self._opened, partial(_remove, ids=tuple(ids)), removed)
        if gone.damaged:
            # Nobody can tell what it was counted as.
            with contextlib.suppress(Unavailable):
                await self._take_stock()
        if not self.count and not self._arriving and not self.quarantined:
            # What was in it is elsewhere, and maybe deleted there: let no free page hold it. Where
            # that cannot be done now, it is the next time.
            with contextlib.suppress(Unavailable):
                await self._opened.rebuild()

    # -- behind it --------------------------------------------------------------------------

    @property
    def _opened(self) -> SqliteFile:
        if self._file is None:
            raise Unavailable("the spool is not open")
        return self._file

    def _write(
        self,
        file: SqliteFile,
        work: Callable[[sqlite3.Connection], T],
        settle: Callable[[asyncio.Future[T]], None],
    ) -> asyncio.Future[T]:
        """Have something written, and then noted by `settle`, in order, whether or not the caller
        still waits for it."""
        written = file.write(work)
        written.add_done_callback(settle)
        return asyncio.shield(written)

    async def _take_stock(self) -> None:
        """Check every record; set aside those that are damaged."""

        def taken(outcome: asyncio.Future[_Stock]) -> None:
            if not outcome.exception():
                self._stock = outcome.result()
                for damaged in self._stock.damaged:
                    log.error("a spooled record is damaged: it is set aside", extra=damaged)

        await self._write(self._opened, _take_stock, taken)


class _Stock:
    """What waits in a spool."""

    def __init__(self) -> None:
        self.docs: Counter[DocName] = Counter()
        self.count = 0
        self.size_bytes = 0
        self.oldest_at_ms: int | None = None
        self.quarantined = 0
        self.damaged: list[dict[str, object]] = []
        """What has just been found to be, as it is logged."""

    def add(self, doc: DocName, size: int, at_ms: int) -> None:
        self.docs[doc] += 1
        self.count += 1
        self.size_bytes += size
        if self.oldest_at_ms is None:
            self.oldest_at_ms = at_ms

    def subtract(self, gone: _Stock) -> None:
        """Take away what has been removed; `gone` tells the oldest of what is left."""
        self.docs -= gone.docs  # and forget those of which none is left
        self.count -= gone.count
        self.size_bytes -= gone.size_bytes
        self.oldest_at_ms = gone.oldest_at_ms
        self.quarantined -= gone.quarantined


# -- inside a transaction -----------------------------------------------------------------------

# Each as what it ought to be, and texts as bytes: the driver stops at a text that is none.
_COLUMNS = (
    "id, CAST(doc AS BLOB) AS doc, CAST(origin AS BLOB) AS origin, CAST(n AS INTEGER) AS n,"
    " CAST(at_ms AS INTEGER), CAST(record AS BLOB), CAST(crc AS INTEGER)"
)
_WAITING = "id NOT IN (SELECT id FROM quarantine)"


def _checksum(doc: bytes, origin: bytes, n: int, at_ms: int, record: bytes) -> int:
    return zlib.crc32(record, zlib.crc32(repr((doc, origin, n, at_ms)).encode()))


def _read(row: sqlite3.Row) -> Spooled | None:
    """Returns: the record, None if it is damaged."""
    id_, *sealed, crc = row
    try:
        doc, origin, n, at_ms, record = sealed
        if _checksum(doc, origin, n, at_ms, record) != crc:
            return None
        return Spooled(id_, DocName.parse(doc.decode()), origin.decode(), n, record, at_ms)
    except (TypeError, ValueError, Invalid):
        return None


def _first(db: sqlite3.Connection, doc: DocName | None, limit: int) -> tuple[list[Spooled], bool]:
    """Returns: what was found, and whether anything damaged was."""
    found: list[Spooled] = []
    is_damaged = False
    of = "" if doc is None else " AND doc = :doc"
    with contextlib.closing(
        db.execute(
            f"SELECT {_COLUMNS} FROM records WHERE {_WAITING}{of} ORDER BY id", {"doc": str(doc)}
        )
    ) as rows:
        for row in rows:
            if len(found) >= limit:
                break
            if (spooled := _read(row)) is None:
                is_damaged = True
            else:
                found.append(spooled)
    return found, is_damaged


def _quick_check(db: sqlite3.Connection) -> str:
    """Returns: `ok`, or what is wrong with the file."""
    return str(db.execute("PRAGMA quick_check(1)").fetchone()[0])


def _take_stock(db: sqlite3.Connection) -> _Stock:
    stock = _Stock()
    rows = db.execute(f"SELECT {_COLUMNS} FROM records WHERE {_WAITING} ORDER BY id")
    for row in rows:
        if (spooled := _read(row)) is not None:
            stock.add(spooled.doc, len(spooled.record), spooled.at_ms)
        else:
            stock.damaged.append(_told(row))
    now_ms = int(time.time() * 1_000)
    db.executemany(
        "INSERT INTO quarantine VALUES (?, ?)", [(told["id"], now_ms) for told in stock.damaged]
    )
    (stock.quarantined,) = db.execute("SELECT count(*) FROM quarantine").fetchone()
    return stock


def _told(row: sqlite3.Row) -> dict[str, object]:
    """What can still be read of a damaged record."""
    doc, origin = (bytes(row[name] or b"").decode(errors="replace") for name in ("doc", "origin"))
    return {"id": row["id"], "document": doc, "origin": origin, "n": row["n"]}


def _remove(db: sqlite3.Connection, ids: tuple[int, ...]) -> _Stock:
    """Returns: what has been removed, and the oldest of what is left."""
    gone = _Stock()
    for id_ in ids:
        row = db.execute(f"SELECT {_COLUMNS} FROM records WHERE id = ?", (id_,)).fetchone()
        if row is None:
            continue
        db.execute("DELETE FROM records WHERE id = ?", (id_,))
        if db.execute("DELETE FROM quarantine WHERE id = ?", (id_,)).rowcount:
            gone.quarantined += 1
        elif (spooled := _read(row)) is not None:
            gone.add(spooled.doc, len(spooled.record), spooled.at_ms)
        else:
            gone.damaged.append(_told(row))
    left = db.execute(f"SELECT at_ms FROM records WHERE {_WAITING} ORDER BY id LIMIT 1").fetchone()
    gone.oldest_at_ms = left["at_ms"] if left else None
    return gone
