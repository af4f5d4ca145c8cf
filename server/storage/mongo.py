"""The store in MongoDB: one record in the log is the commit point of everything.

**What is atomic.** An append is one insert into `log`. Its record carries all that must not come
apart: the update, who made it, the answers kept by `op_id`, members, scores, the records that were
won, client IDs, removed exercises, the summary (`mongo_log`). The insert is acknowledged by a
majority of the replica set's journals. `(doc, pos)` is unique, so of two writers who have read the
same log one alone can go on; the other gets `Unavailable` and its room is read again. A snapshot
becomes valid by one conditional update of its document's row; a claim, a revocation are one write.
No transactions over several documents are used: a single MongoDB server has none.

**What is moved here.** Where several instances share a log, records are committed there, with
their positions, and `persist` copies them. Any number of processes may do so with the same records
at the same moment, and die at it: each record names the one before it (`prev`, unique as well), so
the log is one chain that grows at its end only. Who comes too late, be it with positions from
before the shared log was founded anew, finds its place taken, looks where the log ends now, and
goes on from there. Nothing that is remembered here of a log's end is used for that.

**What is repaired.** Lists, members, scores and awards are read from collections of their own,
which are made of the records right after their insert and before the append returns
(`mongo_projection`). A crash or an outage between the two leaves records marked as `pending`.
They are projected when their document is opened or written next, before a snapshot takes their
place, before any list or record book is read (if it was this process that failed), at the next
start, and by a sweep every ten seconds. Projecting is repeatable, in any order, by several at once.

**Kept beside the snapshot.** Records that a snapshot covers lose their bodies at once, and stay for
a week as who did what, with the answers. That they stay is also what makes a writer fail that slept
through a compaction: its position is taken still.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakValueDictionary

import bson.errors
import pymongo
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.read_concern import ReadConcern

from crdt.access import Member, is_shown
from crdt.errors import Conflict, DocumentDamaged, Gone, NotFound, TooLarge, Unavailable
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import (
    TRAINING_ROLES,
    Answer,
    Append,
    Durability,
    Entry,
    Loaded,
    Stored,
    Summary,
    Training,
)
from crdt.progress import training
from crdt.records import Award
from crdt.revocations import Revocation
from server.breaker import Breaker, BreakerOpen
from server.storage import (
    mongo_log,
    mongo_personal,
    mongo_projection,
    mongo_records,
    mongo_schema,
)
from server.storage.mongo_log import Damaged, Head, Record, key
from server.storage.mongo_records import BookRows
from server.storage.port import ANSWERS_KEPT_S, Erasure, PersonalRow, StorageError, StoreStats
from server.tasks import end

log = logging.getLogger(__name__)

DEFAULT_DATABASE = "repsync"
SNAPSHOT_PART_BYTES = 8 * 1024 * 1024

DEFAULT_TIMEOUT_S = 5.0
DEFAULTS: dict[str, Any] = {
    "timeoutMS": int(DEFAULT_TIMEOUT_S * 1_000),
    "maxPoolSize": 64,
    "appname": "repsync",
}
"""Unless the URI says otherwise; `timeoutMS` is the time for one append or read, in all."""
DURABLE: dict[str, Any] = {
    "w": "majority",
    "journal": True,
    "retryWrites": True,
    "readPreference": "primary",
}
"""Whatever the URI says."""

START_TIMEOUT_S = 15.0
PROBE_TIMEOUT_S = 1.5
SEARCH_TIMEOUT_S = 3_600.0
"""For going through everything that there is."""
FAILURES_IN_A_ROW, FAILING_FOR_S = 3, 1.0
"""After so many calls that MongoDB did not answer, for so long, others are refused at once for a
while."""
FIRST_OPEN_S, LONGEST_OPEN_S = 1.0, 5.0
CLOSE_TIMEOUT_S = 2.0
TICK_S = 0.5
SWEEP_EVERY_S = 10.0
PURGE_EVERY_S = 3_600.0

MAX_KNOWN = 100_000
HEAD_TRUSTED_S = 86_400.0
"""Much shorter than stripped records stay: a head that is older might not meet a taken position."""
LOAD_ATTEMPTS = 5
CHUNK = 10_000
PERSISTED_AT_ONCE = 500
PERSISTED_AT_ONCE_BYTES = 8 * 1024 * 1024
LOST_RACE_PAUSE_S = 0.05
NOBODY = ("", 0)


class _Known(NamedTuple):
    head: Head
    at_s: float  # monotonic


class Last(NamedTuple):
    """Where a document's log ends, and up to where it is in a snapshot (0: there is none).
    `listed_at`: when the document was made, ms since the epoch. `by`: whose append the last record
    was in the log that it was moved from; nobody's if it was made here, None if it is gone."""

    pos: int
    listed_at: int
    snapshot_pos: int
    by: tuple[str, int] | None = None


class _Moved(Exception):
    """A snapshot took the place of records while these were being read."""

    def __init__(self, seq: int) -> None:
        self.seq = seq


class MongoStore:
    """A `Store` in one database of MongoDB, named by the URI's path, else `repsync`."""

    kind = "mongodb"
    # Not `disk`, which says that this machine has it: the log is elsewhere, on as many disks as
    # make a majority there, and whoever reads it finds the change.
    durability: Durability = "cluster"
    settles_after_s = 0.0

    def __init__(self, uri: str, *, start_timeout_s: float = START_TIMEOUT_S) -> None:
        """Nothing is connected before `open`.

        Raises:
            StorageError: the URI is none. The text does not repeat it: it may hold a password.
        """
        self.stats = StoreStats()
        self._client = client_of(uri)
        self._db = self._client.get_default_database(DEFAULT_DATABASE)
        self._timeout_s = self._client.options.timeout or DEFAULT_TIMEOUT_S
        self._breaker = Breaker(
            "MongoDB",
            threshold=FAILURES_IN_A_ROW,
            least_s=FAILING_FOR_S,
            first_open_s=FIRST_OPEN_S,
            longest_open_s=LONGEST_OPEN_S,
        )
        self.breaker: Breaker | None = self._breaker
        self._start_timeout_s = start_timeout_s
        self._locks = _Locks()
        self._heads: dict[str, _Known] = {}
        self._unsettled: dict[str, object] = {}
        """Documents where a write failed: records may not be projected. With a token for the
        failure, because there may be another one while the first is being mended."""
        self._settling = asyncio.Lock()
        self._projected: set[ObjectId] = set()
        """Records that are still marked as pending, and are not."""
        self._housekeeping: asyncio.Task[None] | None = None
        self._is_closed = False

    async def open(self) -> None:
        started = time.monotonic()
        try:
            await self._connect()
        except PyMongoError as exc:
            raise StorageError(self._why_not(exc, time.monotonic() - started)) from exc
        self._housekeeping = asyncio.create_task(self._keep_house(), name="MongoDB housekeeping")

    async def _connect(self) -> None:
        with pymongo.timeout(self._start_timeout_s):
            hello = await self._client.admin.command("hello")
        if is_replicated(hello):
            # What a majority has not got yet can be lost when another server becomes the primary.
            # A room that had read such a record would go on after a gap.
            self._db = self._db.with_options(read_concern=ReadConcern("majority"))
        else:
            log.warning("MongoDB is a single server: what it acknowledges is on its one disk")
        self._log = self._db["log"]
        await mongo_schema.prepare(self._db)
        await self._sweep({})
        await self._purge()

    def _why_not(self, exc: PyMongoError, after_s: float) -> str:
        servers = self._client.topology_description.server_descriptions()
        where = ", ".join(sorted(f"{host}:{port}" if port else host for host, port in servers))
        if isinstance(exc, ServerSelectionTimeoutError) or exc.timeout:
            return (
                f"MongoDB at {where} has not answered within {after_s:.1f} s:"
                " start it, or correct MONGODB_URI"
            )
        if isinstance(exc, OperationFailure):
            return (
                f"MongoDB at {where} refuses to serve the database {self._db.name}:"
                f" {explain(exc)}; look at the user, the password and the database in"
                " MONGODB_URI, and at what that user may do"
            )
        return f"MongoDB at {where} cannot be used ({explain(exc)}): correct MONGODB_URI"

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._housekeeping is not None:
            await end(self._housekeeping)
            # What stays marked is projected once more at the next start, and nothing else.
            with contextlib.suppress(PyMongoError), pymongo.timeout(PROBE_TIMEOUT_S):
                await self._unmark()
        # The driver says goodbye to the server, and has no end of patience.
        closing = asyncio.create_task(self._client.close(), name="MongoDB closing")
        await end(closing, patience_s=CLOSE_TIMEOUT_S)

    # -- appending --------------------------------------------------------------------------

    async def append(self, batch: Append) -> Stored:
        self.stats.appends += 1
        doc = str(batch.doc)
        books = mongo_records.books(batch.entries)
        async with self._locks.hold(doc, *books):
            try:
                with self._telling("written"):
                    return await self._append(doc, batch)
            except BaseException:  # cancellation too
                self._doubt(doc)
                raise

    async def _append(self, doc: str, batch: Append) -> Stored:
        await self._settle()
        if batch.creates:
            if await self._exists(doc):
                raise Conflict(f"{doc} exists already")
            head = Head(0, 0, batch.entries[0].at_ms)
        else:
            head = await self._head(doc)
        by_entry = await mongo_records.judge(self._db, doc, batch.entries)
        record = mongo_log.make(batch, head, by_entry)
        data = mongo_log.encode(record)
        started = time.perf_counter()
        try:
            await self._log.insert_one(RawBSONDocument(data))
        except DuplicateKeyError as exc:
            if batch.creates and await self._exists(doc):
                raise Conflict(f"{doc} exists already") from exc
            log.warning("somebody else wrote to a document", extra={"document": doc})
            raise Unavailable("somebody else wrote to it", retry_after_ms=100) from exc
        self.stats.committed(1, time.perf_counter() - started)
        await self._project(record)
        self._remember(doc, Head(record["pos"], record["seq"], head.listed_at))
        return mongo_log.stored_as(batch, head, by_entry)

    async def is_empty(self) -> bool:
        """Whether there has never been a document.

        Raises:
            Unavailable: the database cannot say.
        """
        only_id = {"_id": True}
        with self._telling("read"):
            return (
                await self._db["documents"].find_one({}, only_id) is None
                and await self._log.find_one({}, only_id) is None
                and await self._db["tombstones"].find_one({}, only_id) is None
            )

    async def _exists(self, doc: str) -> bool:
        """Raises Gone if it was deleted for good."""
        # Its row, or before that is projected its first record.
        only_id = {"_id": True}
        return (
            await self._db["documents"].find_one({"_id": doc}, only_id) is not None
            or await self._log.find_one(_of(doc), only_id) is not None
            or await mongo_personal.demand_not_buried(self._db, doc)
        )

    async def _head(self, doc: str) -> Head:
        """Where the log ends, with all of it projected.

        Raises:
            NotFound: there is no such document.
        """
        known = self._heads.get(doc)
        if known is not None and time.monotonic() - known.at_s < HEAD_TRUSTED_S:
            return known.head
        last = await self._last_record(doc)
        if last is not None:
            await self._sweep(_of(doc))
        row = await self._db["documents"].find_one({"_id": doc}, _ROW_OF_LOG)
        if row is None:
            await mongo_personal.demand_not_buried(self._db, doc)
            raise NotFound(f"there is no {doc}")
        return self._remember(doc, _head_of(row, last))

    async def _last_record(self, doc: str) -> Record | None:
        shown = {"pos": True, "seq": True, "listed_at": True, "by": True}
        return await self._log.find_one(_of(doc), shown, sort=[("pos", -1)])

    def _remember(self, doc: str, head: Head) -> Head:
        if len(self._heads) >= MAX_KNOWN:
            self._heads.clear()
        self._heads[doc] = _Known(head, time.monotonic())
        return head

    def _doubt(self, doc: str) -> None:
        self._heads.pop(doc, None)
        self._unsettled[doc] = object()

    def _settled(self, doc: str, doubt: object) -> None:
        if self._unsettled.get(doc) is doubt:
            self._unsettled.pop(doc, None)

    # -- taking over what was committed elsewhere -------------------------------------------

    @property
    def timeout_s(self) -> float:
        """How long one append or read may take, in all."""
        return self._timeout_s

    async def last(self, doc: DocName) -> Last | None:
        """Where the document's log ends in MongoDB now; None if there is no such document.

        Raises:
            Unavailable: it cannot be read. That is not logged here: who moves tries again.
            Gone: it was deleted for good.
        """
        with self._telling("read", quietly=True):
            return await self._last(str(doc))

    async def _last(self, doc: str) -> Last | None:
        record, row = await asyncio.gather(
            self._last_record(doc), self._db["documents"].find_one({"_id": doc}, _ROW_OF_LOG)
        )
        # Its row may not be there yet, and its records may all have been deleted.
        pos, by = 0, None
        if record is not None:
            pos, by = record["pos"], _append_of(record)
        if row is None and record is None:
            await mongo_personal.demand_not_buried(self._db, doc)
            return None
        if row is None:
            return Last(pos, record["listed_at"], 0, by)
        if row["snapshot_pos"] > pos:
            pos, by = row["snapshot_pos"], None
        return Last(pos, row["listed_at"], row["snapshot_pos"], by)

    async def persist(self, doc: DocName, records: Sequence[tuple[int, Record]]) -> int:
        """Copy records that were committed elsewhere to the end of the document's log.

        May be done by several at once, and again. Positions at or before the log's end are there
        already, and left out.

        Args:
            records: position and draft, by position; the positions may jump.
        Returns: the position at which the log ends now.
        Raises:
            Damaged: a record is nothing that MongoDB could hold; those before it may be stored.
            Unavailable: it cannot be written. That is not logged here: who moves tries again.
            Gone: the document was deleted for good, and nothing of this is kept.
        """
        name = str(doc)
        end, start = 0, 0
        try:
            while True:
                portion = _portion(records, start)
                with self._telling("written", quietly=True):
                    end = await self._persist(name, portion)
                start += len(portion)
                if start >= len(records):
                    return end
        except BaseException:  # cancellation too
            self._doubt(name)
            raise
        finally:
            self._heads.pop(name, None)

    async def _persist(self, doc: str, records: Sequence[tuple[int, Record]]) -> int:
        ops = [op for _, draft in records for op in draft.get("ops", ())]
        while True:
            last, taken = await asyncio.gather(self._last(doc), self._taken(ops))
            end = 0 if last is None else last.pos
            prev = end
            batch: list[Record] = []
            encoded: list[bytes] = []
            for pos, draft in records:
                if pos <= prev:
                    continue
                record = _placed(doc, pos, prev, draft, taken)
                try:
                    encoded.append(_encoded(record))
                except Damaged:
                    if not batch:
                        raise
                    break  # first what comes before it
                batch.append(record)
                prev = pos
            if not batch:
                return end
            inserted = await self._insert(encoded)
            await self._project(*batch[:inserted])
            # It may have been deleted since we looked, in another process.
            try:
                await mongo_personal.demand_not_buried(self._db, doc)
            except Gone:
                await mongo_personal.delete(self._db, doc, _scores_in(doc, batch))
                raise
            if inserted == len(batch):
                if prev == records[-1][0]:
                    return prev
                continue
            # Somebody else was faster. To go on at once would be to race for each record.
            await asyncio.sleep(random.uniform(0, LOST_RACE_PAUSE_S))

    async def _taken(self, ops: Sequence[str]) -> set[str]:
        """Which of these operations have a record already.

        The same change may come again under another position, committed once more in a shared log
        that was founded anew. There is one answer to an operation, and the first one counts.
        """
        if not ops:
            return set()
        found = self._log.find({"ops": {"$in": list(ops)}}, {"ops": True})
        return {op async for record in found for op in record["ops"]}

    async def _insert(self, records: Sequence[bytes]) -> int:
        """Returns: how many were inserted before one found its place taken."""
        started = time.perf_counter()
        inserted = len(records)
        try:
            await self._log.insert_many([*map(RawBSONDocument, records)], ordered=True)
        except BulkWriteError as exc:
            errors = exc.details.get("writeErrors", ())
            if exc.details.get("writeConcernErrors") or any(
                error["code"] != mongo_projection.DUPLICATE_KEY for error in errors
            ):
                raise
            inserted = int(exc.details["nInserted"])
        self.stats.committed(inserted, time.perf_counter() - started)
        return inserted

    async def appends_at(self, doc: DocName, places: Collection[int]) -> dict[int, tuple[str, int]]:
        """Which append stands at each of these positions of a document's log, by `by` of its
        record; positions that are free are not in it.

        Raises:
            Unavailable: the database cannot say.
        """
        with self._telling("read"):
            which = _of(str(doc), pos={"$in": list(places)})
            found = self._log.find(which, {"pos": True, "by": True})
            return {int(row["pos"]): _append_of(row) async for row in found}

    async def appends_of(self, ops: Collection[str]) -> dict[str, tuple[str, int]]:
        """Which append has answered each of these operations (`mongo_log.key`), by `by` of its
        record; those that are not known are not in it.

        Raises:
            Unavailable: the database cannot say.
        """
        with self._telling("read"):
            found = self._log.find({"ops": {"$in": list(ops)}}, {"ops": True, "by": True})
            return {op: _append_of(row) async for row in found for op in row["ops"]}

    async def book(self, user_id: UserId, exercise: str) -> BookRows:
        """What one user's sets of one exercise are worth, and what they have won.

        Records that were inserted before, by whomever, are in it.
        """
        with self._telling("read"):
            of = {"user_id": user_id, "exercise": exercise}
            await self._sweep({"scores": {"$elemMatch": of}})
            return await mongo_records.book(self._db, user_id, exercise)

    # -- projecting -------------------------------------------------------------------------

    async def _project(self, *records: Record) -> None:
        """Project those of the records that are marked, unless they are known to be projected."""
        marked = [
            record
            for record in records
            if "pending" in record and record["_id"] not in self._projected
        ]
        if marked:
            await mongo_projection.project(self._db, *marked)
            self._projected.update(record["_id"] for record in marked)

    async def _settle(self) -> None:
        """See to it that nothing is missing where we read beside the log."""
        if not self._unsettled:
            return
        async with self._settling:
            doubts = sorted(self._unsettled.items(), key=lambda doubt: doubt[0])
            for start in range(0, len(doubts), CHUNK):
                docs = [doc for doc, _ in doubts[start : start + CHUNK]]
                await self._sweep({"doc": {"$in": docs}})
            for doc, doubt in doubts:
                self._settled(doc, doubt)

    async def _sweep(self, which: Mapping[str, Any]) -> None:
        """Project all records that are marked as pending."""
        found = self._log.find({"pending": True, **which}, {"yjs": False}, sort=[("pos", 1)])
        while records := await found.to_list(PERSISTED_AT_ONCE):
            await self._project(*records)

    async def _unmark(self) -> None:
        done = list(self._projected)
        for start in range(0, len(done), CHUNK):
            ids = done[start : start + CHUNK]
            await self._log.update_many({"_id": {"$in": ids}}, {"$unset": {"pending": ""}})
        self._projected.difference_update(done)

    async def _purge(self) -> None:
        """Delete what has been kept for long enough."""
        now = now_ms()
        ended = {"expires_ms": {"$lt": now}, "pending": {"$exists": False}}
        await self._log.delete_many(ended)
        await self._db["revocations"].delete_many({"until_ms": {"$lte": now}})

    async def _keep_house(self) -> None:
        swept_at = purged_at = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            try:
                with pymongo.timeout(self._timeout_s):
                    await self._unmark()
                if time.monotonic() - swept_at > SWEEP_EVERY_S:
                    swept_at = time.monotonic()
                    await self._sweep({})
                if time.monotonic() - purged_at > PURGE_EVERY_S:
                    purged_at = time.monotonic()
                    await self._purge()
            except PyMongoError as exc:
                log.warning("MongoDB cannot be tidied up", extra={"cause": str(exc)})

    # -- reading ----------------------------------------------------------------------------

    async def load(self, doc: DocName) -> Loaded | None:
        name = str(doc)
        async with self._locks.hold(name):
            for _ in range(LOAD_ATTEMPTS):
                try:
                    with self._telling("read"):
                        return await self._load(name)
                except _Moved as moved:
                    seq = moved.seq
        raise _damaged(name, seq)

    async def _load(self, doc: str) -> Loaded | None:
        doubt = self._unsettled.get(doc)
        row = await self._db["documents"].find_one({"_id": doc})
        if row is None:
            # Maybe its first record has not been projected.
            await self._sweep(_of(doc))
            row = await self._db["documents"].find_one({"_id": doc})
        if row is None:
            return None
        pos, seq = row["snapshot_pos"], row["snapshot_seq"]
        found = self._log.find(_of(doc, pos={"$gt": pos}), sort=[("pos", 1)])
        records = await found.to_list()
        updates = []
        for record in records:
            if mongo_log.prev_of(record) != pos or "expires_ms" in record:
                raise _Moved(seq)
            pos, seq = record["pos"], record["seq"]
            if "yjs" in record:
                if not mongo_log.is_intact(record["yjs"], record["crc"]):
                    raise _damaged(doc, seq)
                updates.append(record["yjs"])
        await self._project(*records)
        snapshot, members, awards, client_ids, removed = await asyncio.gather(
            self._snapshot(row), *(self._rows(name, doc) for name in _BESIDE)
        )
        self._remember(doc, _head_of(row, records[-1] if records else None))
        self._settled(doc, doubt)
        return Loaded(
            snapshot,
            updates,
            seq,
            row["snapshot_seq"],
            _members(members),
            _awards(awards),
            {bound["client_id"]: UserId(bound["user_id"]) for bound in client_ids},
            frozenset(gone["exercise_id"] for gone in removed),
        )

    async def _rows(self, collection: str, doc: str) -> list[dict[str, Any]]:
        return await self._db[collection].find({"doc": doc}).to_list()

    async def _snapshot(self, row: Record) -> bytes | None:
        id_ = row["snapshot_id"]
        if id_ is None:
            return None
        which = {"doc": row["_id"], "snapshot_id": id_}
        parts = await self._db["snapshots"].find(which, sort=[("part", 1)]).to_list()
        snapshot = b"".join(part["data"] for part in parts)
        if not mongo_log.is_intact(snapshot, row["snapshot_crc"]):
            raise _Moved(row["snapshot_seq"])
        return snapshot

    async def answer(
        self, user_id: UserId, op_id: str, doc: DocName | None = None
    ) -> Answer | None:
        with self._telling("read"):
            record = await self._log.find_one(
                {"ops": {"$in": [key(user_id, op_id)]}}, {"entries": True}
            )
        return None if record is None else mongo_log.answer_in(record, user_id, op_id)

    async def summaries(
        self, user_id: UserId, kind: DocKind, *, limit: int, before: DocName | None = None
    ) -> Sequence[tuple[Summary, str]]:
        if limit < 1:
            return []  # to MongoDB, no limit at all
        with self._telling("read"):
            await self._settle()
            which: dict[str, Any] = {"user_id": user_id, "kind": kind.value, "role": {"$ne": ""}}
            if before is not None:
                row = await self._db["documents"].find_one({"_id": str(before)}, _ROW_OF_LOG)
                if row is None:
                    return []
                listed_at = row["listed_at"]
                which["$or"] = [
                    {"listed_at": {"$lt": listed_at}},
                    {"listed_at": listed_at, "doc": {"$gt": str(before)}},
                ]
            order = [("listed_at", -1), ("doc", 1)]
            members = await self._db["members"].find(which, sort=order, limit=limit).to_list()
            ids = [member["doc"] for member in members]
            found = await self._db["documents"].find({"_id": {"$in": ids}}).to_list()
        rows = {row["_id"]: row for row in found}
        return [
            (mongo_log.summary_of(rows[member["doc"]]), member["role"])
            for member in members
            if member["doc"] in rows
        ]

    async def training(
        self, user_id: UserId, *, limit: int, circles: Collection[UserId] | None = None
    ) -> Training:
        with self._telling("read"):
            await self._settle()
            which = {
                "user_id": user_id,
                "kind": DocKind.WORKOUT.value,
                "role": {"$in": list(TRAINING_ROLES)},
            }
            order = [("listed_at", -1), ("doc", 1)]
            mine = [row["doc"] async for row in self._db["members"].find(which, sort=order)]
            sets = await mongo_records.sets_of(self._db, user_id)
            # Sets stay with who did them, also in a workout that they have left since.
            docs = {*mine, *(str(worth.doc) for worth in sets)}
            found = self._db["documents"].find({"_id": {"$in": sorted(docs)}})
            rows = {row["_id"]: mongo_log.summary_of(row) async for row in found}
        shown = {
            row.doc
            for row in rows.values()
            if circles is None or is_shown(row.visibility, row.owner_id, circles)
        }
        workouts = [rows[doc] for doc in mine if doc in rows]
        return training(workouts, shown, sets, limit=limit)

    async def summary(self, doc: DocName) -> Summary | None:
        with self._telling("read"):
            await self._settle()
            row = await self._db["documents"].find_one({"_id": str(doc)})
        return None if row is None else mongo_log.summary_of(row)

    async def check(self) -> float:
        started = time.perf_counter()
        with self._telling("written", timeout_s=PROBE_TIMEOUT_S, looks=True):
            await mongo_schema.probe(self._db, now_ms())
        return time.perf_counter() - started

    # -- other writes -----------------------------------------------------------------------

    async def compact(self, doc: DocName, snapshot: bytes, upto: int, base: int) -> bool:
        with self._telling("written"):
            await self._settle()
            return await self._compact(str(doc), snapshot, upto, base)

    async def _compact(self, doc: str, snapshot: bytes, upto: int, base: int) -> bool:
        row = await self._db["documents"].find_one({"_id": doc}, _ROW_OF_LOG)
        if row is None or row["snapshot_seq"] != base:
            return False
        # The record that brought this update; those behind it that brought none may be under way.
        last = await self._log.find_one(
            _of(doc, pos={"$gt": row["snapshot_pos"]}, seq=upto), sort=[("pos", 1)]
        )
        if last is None:
            return False
        # Who opens the document reads on behind the snapshot, and what it covers is stripped.
        await self._sweep(_of(doc, pos={"$lte": last["pos"]}))
        id_ = str(ObjectId())
        sizes = range(0, max(len(snapshot), 1), SNAPSHOT_PART_BYTES)
        await self._db["snapshots"].insert_many(
            {
                "doc": doc,
                "seq": upto,
                "snapshot_id": id_,
                "part": part,
                "data": snapshot[start : start + SNAPSHOT_PART_BYTES],
            }
            for part, start in enumerate(sizes)
        )
        done = await self._db["documents"].update_one(
            {"_id": doc, "snapshot_seq": base},
            {
                "$set": {
                    "snapshot_id": id_,
                    "snapshot_crc": mongo_log.checksum(snapshot),
                    "snapshot_seq": upto,
                    "snapshot_pos": last["pos"],
                }
            },
        )
        if not done.matched_count:
            await self._db["snapshots"].delete_many({"doc": doc, "snapshot_id": id_})
            return False
        try:
            # Older ones only: who comes next with a snapshot may have begun to write it.
            await self._db["snapshots"].delete_many({"doc": doc, "seq": {"$lt": upto}})
            await self._log.update_many(
                _of(doc, pos={"$lte": last["pos"]}, expires_ms={"$exists": False}),
                {
                    "$unset": dict.fromkeys(mongo_log.BODY, ""),
                    "$set": {"expires_ms": now_ms() + ANSWERS_KEPT_S * 1_000},
                },
            )
        except PyMongoError as exc:  # it stands; the next compaction takes the rest along
            log.warning("a log was not shortened", extra={"document": doc, "cause": str(exc)})
        return True

    async def active_workout(self, owner_id: UserId) -> str | None:
        with self._telling("read"):
            await self._settle()
            return await self._claim(owner_id)

    async def _claim(self, owner_id: UserId) -> str | None:
        row = await self._db["active_workouts"].find_one({"_id": owner_id})
        return None if row is None else str(row["workout_id"])

    async def claim_active(
        self, owner_id: UserId, workout_id: str, instead_of: str | None = None
    ) -> str:
        claims = self._db["active_workouts"]
        with self._telling("written"):
            await self._settle()
            while True:
                with contextlib.suppress(DuplicateKeyError):
                    await claims.insert_one({"_id": owner_id, "workout_id": workout_id})
                    return workout_id
                if instead_of is not None:
                    taken = await claims.update_one(
                        {"_id": owner_id, "workout_id": instead_of},
                        {"$set": {"workout_id": workout_id}},
                    )
                    if taken.matched_count:
                        return workout_id
                holder = await self._claim(owner_id)
                if holder is not None:  # else it has just ended
                    return holder

    async def revoke(self, revocation: Revocation, entry: Entry) -> None:
        expires_ms = now_ms() + ANSWERS_KEPT_S * 1_000
        record = mongo_log.make_revocation(revocation, entry, expires_ms)
        try:
            with self._telling("written"):
                await self._log.insert_one(record)
                await self._project(record)
        except BaseException:
            self._doubt(record["doc"])
            raise

    async def revocations(self, now_ms: int) -> Sequence[Revocation]:
        with self._telling("read"):
            await self._settle()
            found = await self._db["revocations"].find({"until_ms": {"$gt": now_ms}}).to_list()
            erased = await mongo_personal.revocations(self._db)
        return [
            *erased,
            *(
                Revocation(row["kind"], row["id"], row["until_ms"], row["issued_until_ms"])
                for row in found
            ),
        ]

    # -- persons ----------------------------------------------------------------------------

    async def documents_of(self, user_id: UserId) -> Sequence[DocName]:
        with self._telling("searched", timeout_s=SEARCH_TIMEOUT_S):
            return await mongo_personal.documents_of(self._db, user_id)

    async def rows_of(self, user_id: UserId) -> AsyncIterator[PersonalRow]:
        with self._telling("searched", timeout_s=SEARCH_TIMEOUT_S):
            async for row in mongo_personal.rows_of(self._db, user_id):
                yield row

    async def stored(self, doc: DocName) -> Loaded | None:
        return await self.load(doc)

    async def begin_erasure(self, user_id: UserId, issued_until_ms: int) -> Revocation:
        with self._telling("written"):
            return await mongo_personal.begin_erasure(self._db, user_id, issued_until_ms)

    async def erasures(self) -> Sequence[Erasure]:
        with self._telling("read", quietly=True):
            return await mongo_personal.erasures(self._db)

    async def erasure_of(self, user_id: UserId) -> Erasure | None:
        with self._telling("read"):
            return await mongo_personal.erasure_of(self._db, user_id)

    async def take_erasure(self, erasure_id: str, by: str) -> bool:
        with self._telling("written"):
            return await mongo_personal.take(self._db, erasure_id, by, now_ms())

    async def leave_erasure(self, erasure_id: str, by: str) -> None:
        with self._telling("written"):
            await mongo_personal.leave(self._db, erasure_id, by)

    async def note_erasure(
        self, erasure_id: str, report: dict[str, Any], error: str | None
    ) -> None:
        with self._telling("written"):
            await mongo_personal.note(self._db, erasure_id, report, error, now_ms())

    async def bury(self, doc: DocName) -> None:
        name = str(doc)
        async with self._locks.hold(name):
            with self._telling("written"):
                await mongo_personal.bury(self._db, name, now_ms())
            self._heads.pop(name, None)

    async def forget_in(self, doc: DocName, user_id: UserId) -> Counter[str]:
        name = str(doc)
        async with self._locks.hold(name):
            with self._telling("written"):
                await self._sweep(_of(name))
                return await mongo_personal.forget_in(self._db, name, user_id)

    async def forget(self, user_id: UserId) -> Counter[str]:
        with self._telling("written", timeout_s=SEARCH_TIMEOUT_S):
            await self._sweep({})
            return await mongo_personal.forget(self._db, user_id)

    async def end_erasure(self, erasure: Erasure, now_ms: int, report: dict[str, Any]) -> None:
        with self._telling("written"):
            await mongo_personal.end(self._db, erasure.id, now_ms, report)

    # -- failing ----------------------------------------------------------------------------

    @contextmanager
    def _telling(
        self,
        what: str,
        *,
        timeout_s: float | None = None,
        quietly: bool = False,
        looks: bool = False,
    ) -> Iterator[None]:
        """A failure of MongoDB's within the block, or taking too long, is `Unavailable`. So is,
        before the block is begun, a MongoDB that has not answered others; unless this one `looks`
        whether it does."""
        if self._is_closed:
            raise Unavailable("the store is closed")
        try:
            attempt = self._breaker.look() if looks else self._breaker.attempt(is_outage)
        except BreakerOpen as exc:
            cause = StorageError("MongoDB has not answered, and is left alone for the moment")
            cause.__cause__ = exc
            retry_after_ms = max(1_000, round(exc.retry_in_s * 1_000))
            raise Unavailable(
                f"the store cannot be {what} now", retry_after_ms=retry_after_ms
            ) from cause
        try:
            with attempt, pymongo.timeout(timeout_s or self._timeout_s):
                yield
        except PyMongoError as exc:
            self.stats.failures += 1
            level = logging.DEBUG if quietly else logging.ERROR
            log.log(level, "the store cannot be %s", what, extra={"cause": str(exc)})
            cause = StorageError(explain(exc))
            raise Unavailable(f"the store cannot be {what} now", retry_after_ms=1_000) from cause


class _Locks:
    """One lock for each name that somebody holds or waits for; first come, first served."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, *names: str) -> AsyncIterator[None]:
        """Hold all of these, taken in this order."""
        async with AsyncExitStack() as held:
            for name in names:
                lock = self._locks.setdefault(name, asyncio.Lock())
                await held.enter_async_context(lock)
            yield


def client_of(uri: str, **options: Any) -> AsyncMongoClient[dict[str, Any]]:
    """A client for the MongoDB at `uri`. Nothing is connected yet.

    Args:
        options: of pymongo, whatever the URI says.
    Raises:
        StorageError: the URI is none. The text does not repeat it: it may hold a password.
    """
    try:
        given = {name.lower() for name, _ in parse_qsl(urlsplit(uri).query)}
        defaults = {name: value for name, value in DEFAULTS.items() if name.lower() not in given}
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            uri, **{**defaults, **DURABLE, **options}
        )
        client.get_default_database(DEFAULT_DATABASE)
    except (PyMongoError, ValueError, TypeError) as exc:
        raise StorageError(
            "MONGODB_URI is no connection string of MongoDB's:"
            " mongodb://[user:password@]host[:port][,...][/database][?options], with"
            " reserved characters in the user name and the password percent-encoded"
        ) from exc
    return client


def is_replicated(hello: Mapping[str, Any]) -> bool:
    """Whether the server that said this is of a replica set, or stands before some."""
    return "setName" in hello or hello.get("msg") == "isdbgrid"


def is_outage(exc: Exception) -> bool:
    """Whether it says that MongoDB is away, or does not answer in time."""
    return isinstance(exc, ConnectionFailure) or (isinstance(exc, PyMongoError) and exc.timeout)


def explain(exc: PyMongoError) -> str:
    """Why MongoDB did not do it, without a word of hosts and names: /health shows it to anybody."""
    if isinstance(exc, ServerSelectionTimeoutError):
        return "no MongoDB server that takes writes can be reached"
    if exc.timeout:
        return "MongoDB did not answer in time"
    if isinstance(exc, OperationFailure) and not isinstance(exc, BulkWriteError):
        return f"MongoDB refused it ({(exc.details or {}).get('codeName') or exc.code})"
    return f"MongoDB failed ({type(exc).__name__})"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- rows -------------------------------------------------------------------------------------

_BESIDE = ("members", "awards", "client_ids", "removed_exercises")
_ROW_OF_LOG = {"listed_at": True, "snapshot_seq": True, "snapshot_pos": True}


def _of(doc: str, **more: Any) -> Record:
    """A query for records of a document.

    `$eq` is what a bare value means, said so that the index (doc, pos) serves it on stand-ins for
    MongoDB, too, which would look through all records for lists that contain the bare one.
    """
    return {"doc": {"$eq": doc}, **more}


def _append_of(record: Record) -> tuple[str, int]:
    """Whose append a record was, and the how-manieth; `NOBODY` if it was made here."""
    origin, n = record.get("by", NOBODY)
    return str(origin), int(n)


def _head_of(row: Record, last: Record | None) -> Head:
    if last is None:
        return Head(row["snapshot_pos"], row["snapshot_seq"], row["listed_at"])
    return Head(last["pos"], last["seq"], row["listed_at"])


def _portion(records: Sequence[tuple[int, Record]], start: int) -> Sequence[tuple[int, Record]]:
    """So many of them, from `start` on, as may go in one batch; one at least, if there is one."""
    size_bytes = 0
    for index in range(start, min(len(records), start + PERSISTED_AT_ONCE)):
        size_bytes += len(records[index][1].get("yjs", b""))
        if size_bytes > PERSISTED_AT_ONCE_BYTES and index > start:
            return records[start:index]
    return records[start : start + PERSISTED_AT_ONCE]


def _placed(doc: str, pos: int, prev: int, draft: Record, taken: set[str]) -> Record:
    """The record to insert, without operations that are `taken`; its own are from then on."""
    record = mongo_log.placed(draft, doc, pos=pos, seq=pos, prev=prev)
    if "ops" in record:
        # The index is sparse: a record that has none must not have an empty list.
        ops = [op for op in dict.fromkeys(record.pop("ops")) if op not in taken]
        taken.update(ops)
        if ops:
            record["ops"] = ops
    return record


def _scores_in(doc: str, records: Sequence[Record]) -> list[str]:
    """The `_id`s of what the records' sets are worth."""
    return [
        mongo_log.score_key(doc, score["user_id"], score["exercise"], score["set_id"])
        for record in records
        for score in record.get("scores", ())
    ]


def _encoded(record: Record) -> bytes:
    try:
        return mongo_log.encode(record)
    except (TooLarge, bson.errors.BSONError, OverflowError, ValueError, TypeError) as exc:
        raise Damaged(f"at position {record['pos']} is nothing for MongoDB: {exc}") from exc


def _members(rows: Sequence[Record]) -> dict[UserId, Member]:
    members = map(mongo_log.member_of, rows)
    return {member.user_id: member for member in members if member.role}


def _awards(rows: Sequence[Record]) -> dict[str, dict[str, Award]]:
    awards: dict[str, dict[str, Award]] = {}
    for award in map(mongo_log.award_of, rows):
        awards.setdefault(award.set_id, {})[award.type] = award
    return awards


def _damaged(doc: str, seq: int) -> DocumentDamaged:
    log.error("a stored record is damaged", extra={"document": doc, "seq": seq})
    return DocumentDamaged(f"{doc} is damaged in the store at position {seq}")
