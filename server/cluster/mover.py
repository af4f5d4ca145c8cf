"""From the shared log to MongoDB: records are copied, and dropped from the stream.

**What is promised.** What a mover drops from the stream is in MongoDB, in the order of the stream
and once. Any number of movers may work on the same document, and be killed anywhere: MongoDB's log
grows at its end only (`MongoStore.persist`), and what was copied is copied again by nobody.

**Who owns what.** The stream owns what comes after the end of MongoDB's log, that owns the rest.
Redis owns the queue of work. A worker owns the tasks that it holds; they are another's when it has
been silent for `IDLE_S`.

**What fails.** Redis or MongoDB away: the worker tries again, slower and slower, and says so once.
A document of which a record is damaged, or whose stream and MongoDB contradict each other, is
*quarantined*: nothing more of it is moved or trimmed, so nothing is lost, and it is looked at again
with each of its tasks. Others go on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import TimeoutError as RedisTimeoutError

from crdt.errors import Gone, Invalid, Unavailable
from crdt.ids import DocName
from crdt.replica import Replica
from server.cluster.connection import unavailable
from server.cluster.log import Head, Record, RedisLog, Task
from server.metrics import Metrics
from server.storage.mongo import Last, MongoStore
from server.storage.mongo_log import Damaged
from server.tasks import heed_cancellation

log = logging.getLogger(__name__)

KEPT_POSITIONS = 256
"""What stays in the stream behind what was moved, for those who have missed a message."""
EPOCH_LEAP = 50_000
"""Positions leap by more from one epoch to the next, and never within one."""

FIRST_PAGE, LARGEST_PAGE = 64, 512
PAGE_BYTES = 4 * 1024 * 1024
LOOKS = 3

TAKEN_AT_ONCE = 32
BLOCK_S = 1.0
IDLE_S = 15.0
TAKE_OVER_EVERY_S = 5.0
SWEEP_EVERY_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class Progress(NamedTuple):
    """How far a document is in MongoDB, and how far in a snapshot there."""

    pos: int
    snapshot_pos: int


class Mover:
    """Moves the records of one document at a time, whenever it is told to."""

    def __init__(
        self,
        log: RedisLog,
        store: MongoStore,
        open_record: Callable[[DocName, Record], Mapping[str, Any]],
        *,
        on_moved: Callable[[DocName, str, int], None] | None = None,
        keep: int = KEPT_POSITIONS,
    ) -> None:
        """Nothing is asked of either before the first call.

        Args:
            open_record: the draft (`mongo_log`) in a record of the stream. Raises Damaged.
            on_moved: told the document, an epoch, and the position of this epoch up to which all
                is in MongoDB. Must not block.
            keep: how many positions stay in the stream behind what was moved; 1 or more.
        """
        self._log = log
        self._store = store
        self._open = open_record
        self._on_moved = on_moved
        self._keep = keep
        self.moved = 0
        """Records that were moved since the start."""
        self.quarantined: dict[DocName, str] = {}
        """Documents of which nothing is moved, and why."""

    async def move(self, doc: DocName) -> int | None:
        """Move all that the stream has beyond MongoDB.

        Returns: the position up to which the document is in MongoDB; None if neither of the two
            knows of it.

        Raises:
            Gone: the document was deleted for good; the stream is gone as well.
            Unavailable: MongoDB is away. It may have been done in part.
            connection.ERRORS: Redis is.
        """
        progress = await self.advance(doc)
        return None if progress is None else progress.pos

    async def advance(self, doc: DocName) -> Progress | None:
        """The same; tells of the snapshot as well."""
        try:
            return await self._advance(doc)
        except Gone:
            await self._log.drop(doc)
            raise

    async def _advance(self, doc: DocName) -> Progress | None:
        head = await self._log.head(doc)
        page = FIRST_PAGE
        try:
            is_behind = True
            while is_behind:
                last, found, page = await self._look(doc, head, page)
                at = 0 if last is None else last.pos
                news = [record for record in found if record.pos > at]
                if news:
                    last = await self._copy(doc, last, news)
                is_behind = len(news) >= page
                page = _next_page(page, found)
        except Damaged as exc:
            self._quarantine(doc, str(exc))
            last = await self._store.last(doc)
            return None if last is None else Progress(last.pos, last.snapshot_pos)
        self.quarantined.pop(doc, None)
        if last is None:
            return None
        # Asked now, because what was copied may be of a newer epoch than the one before. If this is
        # a newer one still, its positions are all behind ours, and nothing is said of them.
        head = await self._log.head(doc)
        if head is not None:
            await self._log.trim(doc, last.pos, self._keep)
            if self._on_moved is not None:
                self._on_moved(doc, head.epoch, last.pos)
        return Progress(last.pos, last.snapshot_pos)

    async def has_all(self, doc: DocName, head: Head) -> bool:
        """Whether MongoDB has all that the stream has had up to `head`."""
        try:
            last, found, _ = await self._look(doc, head, 2)
        except Damaged as exc:
            self._quarantine(doc, str(exc))
            return False
        return all(last is not None and record.pos <= last.pos for record in found)

    async def _look(
        self, doc: DocName, head: Head | None, page: int
    ) -> tuple[Last | None, Sequence[Record], int]:
        """Where MongoDB's log ends, and what the stream has from there on, this end included.

        Args:
            head: of the stream, looked at before.
            page: how many records to ask for, not counting the one at MongoDB's end.
        Returns: with the page that was asked for in the end.

        Raises:
            Damaged: the two contradict each other.
        """
        looks = 0
        while True:
            last = await self._store.last(doc)
            at = 0 if last is None else last.pos
            try:
                found = await self._log.read(doc, max(at - 1, 0), page + 1)
            except RedisTimeoutError:
                if page == 1:
                    raise
                page = max(1, page // 8)  # it may be too much at once, if records are large
                continue
            flaw = _contradiction(last, found, head)
            looks += 1
            if flaw is None:
                return last, found, page
            if looks == LOOKS:  # else somebody may have moved it between our two questions
                raise Damaged(flaw)

    async def _copy(self, doc: DocName, last: Last | None, news: Sequence[Record]) -> Last:
        drafts: list[tuple[int, Mapping[str, Any]]] = []
        damage: Damaged | None = None
        for record in news:
            try:
                draft = self._open(doc, record)
            except Damaged as exc:
                damage = Damaged(f"the record at position {record.pos}: {exc}")
                break
            drafts.append((record.pos, {**draft, "by": [record.origin, record.n]}))
        if drafts:
            pos = await self._store.persist(doc, drafts)
            self.moved += len(drafts)
            listed_at, snapshot_pos = last[1:3] if last else (drafts[0][1]["listed_at"], 0)
            last = Last(pos, listed_at, snapshot_pos)
        if damage is not None:
            raise damage
        assert last is not None
        return last

    def watch(self, metrics: Metrics) -> None:
        """Show what is counted here."""
        metrics.total("repsync_moved_records", "Records moved to MongoDB", lambda: self.moved)
        metrics.watch(
            "repsync_quarantined_documents",
            "Documents that are not moved to MongoDB: their log is damaged",
            lambda: len(self.quarantined),
        )

    def _quarantine(self, doc: DocName, why: str) -> None:
        if doc not in self.quarantined:
            log.error(
                "a document is not moved to MongoDB any more: its log is damaged",
                extra={"document": str(doc), "cause": why},
            )
        self.quarantined[doc] = why


def _next_page(page: int, found: Sequence[Record]) -> int:
    size_bytes = sum(len(record.data) for record in found)
    return max(1, min(LARGEST_PAGE, 4 * page, page * PAGE_BYTES // max(size_bytes, 1)))


def _contradiction(last: Last | None, found: Sequence[Record], head: Head | None) -> str | None:
    """Why what MongoDB has and what the stream has cannot be one log.

    A Redis that was killed and has lost its last second, or a replica that took over and had not
    got it, gives positions to other records than those which were moved already. Taken for the
    same, these would be left out, and then dropped.
    """
    at = 0 if last is None else last.pos
    if found and last is not None and found[0].pos == at:
        if last.by not in (None, (found[0].origin, found[0].n)):
            return f"MongoDB and the stream have different records at position {at}"
        following = [record.pos for record in found[1:]]
    else:
        following = [record.pos for record in found]
    if not following and head is not None:
        following = [head.pos + 1]
    if following and 1 < following[0] - at < EPOCH_LEAP:
        return f"what came after position {at} and before {following[0]} is nowhere"
    return None


class Backlog(NamedTuple):
    """What a worker has to do, and has done. `waiting`: documents that it holds; `oldest_s`: since
    when the one that waits longest has been announced."""

    waiting: int
    oldest_s: float
    moved: int
    failures: int
    quarantined: int


class Worker:
    """Carries out the work that is queued, until it is cancelled. Any number may run."""

    def __init__(
        self,
        mover: Mover,
        log: RedisLog,
        store: MongoStore,
        *,
        consumer: str,
        compact_after: int = 500,
        idle_s: float = IDLE_S,
        sweep_every_s: float = SWEEP_EVERY_S,
    ) -> None:
        """
        Args:
            consumer: this worker's name in the queue, used by no other.
            compact_after: how many records are gathered before they become a snapshot.
            idle_s: a worker that has held a task for so long is taken for dead.
            sweep_every_s: how often all documents are looked at.
        """
        self._mover = mover
        self._log = log
        self._store = store
        self._consumer = consumer
        self._compact_after = compact_after
        self._idle_s = idle_s
        self._sweep_every_s = sweep_every_s
        self._held: dict[DocName, list[Task]] = {}
        self._took_over_at_s = -TAKE_OVER_EVERY_S
        self._failures = 0
        self._failed_in_a_row = 0
        self._incomplete: set[DocName] = set()

    @property
    def backlog(self) -> Backlog:
        announced_ms = [int(task.id.split("-")[0]) for held in self._held.values() for task in held]
        oldest_s = time.time() - min(announced_ms) / 1_000 if announced_ms else 0.0
        return Backlog(
            len(self._held),
            max(0.0, oldest_s),
            self._mover.moved,
            self._failures,
            len(self._mover.quarantined),
        )

    def watch(self, metrics: Metrics) -> None:
        """Show what is counted here."""
        metrics.watch(
            "repsync_backlog_documents",
            "Documents that wait for the worker",
            lambda: self.backlog.waiting,
        )
        metrics.watch(
            "repsync_backlog_age_seconds",
            "Since when the one that waits longest does",
            lambda: self.backlog.oldest_s,
        )
        metrics.total(
            "repsync_worker_failures",
            "Documents and rounds that a worker could not finish",
            lambda: self.backlog.failures,
        )

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._work())
            tasks.create_task(self._sweep_again_and_again())

    # -- the queue --------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            heed_cancellation()
            try:
                if not self._held:
                    await self._take()
                await self._carry_out()
            except Exception as exc:
                await self._pause(exc)
            else:
                if self._failed_in_a_row:
                    self._failed_in_a_row = 0
                    log.info("records are moved to MongoDB again")

    async def _pause(self, exc: Exception) -> None:
        if not self._failed_in_a_row:
            log.error(
                "records cannot be moved to MongoDB",
                exc_info=None if is_outage(exc) else exc,
                extra={"cause": str(exc)},
            )
        self._failures += 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failed_in_a_row, 10))
        self._failed_in_a_row += 1
        await asyncio.sleep(pause_s * random.uniform(0.5, 1))

    async def _take(self) -> None:
        tasks: list[Task] = []
        if time.monotonic() - self._took_over_at_s >= TAKE_OVER_EVERY_S:
            tasks = await self._log.take_over(
                self._consumer, idle_s=self._idle_s, count=TAKEN_AT_ONCE
            )
            if not tasks:  # else there may be more of them
                self._took_over_at_s = time.monotonic()
        if not tasks:
            tasks = await self._log.take(self._consumer, count=TAKEN_AT_ONCE, block_s=BLOCK_S)
        for task in tasks:
            self._held.setdefault(task.doc, []).append(task)

    async def _carry_out(self) -> None:
        """Do all that is held. What could not be done because of an outage is held on to."""
        held = dict(self._held)
        outcomes = await asyncio.gather(*map(self._do, held), return_exceptions=True)
        done: list[Task] = []
        outage: BaseException | None = None
        for doc, outcome in zip(held, outcomes, strict=True):
            if outcome is None:
                done += held[doc]
            elif is_outage(outcome):
                outage = outcome
                continue
            else:
                # This one is not finished: it comes again when we have been silent about it.
                self._failures += 1
                log.error(
                    "a document could not be moved", exc_info=outcome, extra={"document": str(doc)}
                )
                del self._held[doc]
        if done:
            await self._log.finish(done)
            for task in done:
                self._held.pop(task.doc, None)
        if outage is not None:
            raise outage

    async def _do(self, doc: DocName) -> None:
        try:
            progress = await self._mover.advance(doc)
        except Gone:
            return  # nothing of it is to be moved any more
        if progress is None or doc in self._mover.quarantined or doc in self._incomplete:
            return
        # After a leap from one epoch to the next this is too many, once: then there is a snapshot.
        if progress.pos - progress.snapshot_pos > self._compact_after:
            try:
                await self._compact(doc)
            except Unavailable as exc:  # the next task tries again
                self._failures += 1
                extra = {"document": str(doc), "cause": str(exc)}
                log.warning("a snapshot is put off", extra=extra)

    async def _compact(self, doc: DocName) -> None:
        loaded = await self._store.load(doc)
        if loaded is None:
            return
        replica = Replica(doc.kind, is_watched=False)
        replica.load(*filter(None, (loaded.snapshot, *loaded.updates)))
        # What builds on changes that are missing is not in the document, and a snapshot of it would
        # be without. As records they wait for what is missing.
        try:
            is_complete = not any(map(replica.brings_news, loaded.updates))
        except Invalid:
            is_complete = False
        if not is_complete:
            self._incomplete.add(doc)
            log.error("a log is incomplete: it gets no snapshots", extra={"document": str(doc)})
            return
        # To lose the race is normal.
        await self._store.compact(doc, replica.diff(), loaded.seq, loaded.snapshot_seq)

    # -- what nobody has announced ----------------------------------------------------------

    async def _sweep_again_and_again(self) -> None:
        seen: dict[DocName, tuple[Head, bool]] = {}
        while True:
            heed_cancellation()
            try:
                seen = await self._sweep(seen)
            except Exception as exc:  # of an outage the other half tells
                self._failures += 1
                if not is_outage(exc):
                    log.exception("the documents in the shared log could not be looked at")
            # Not all workers at the same moment.
            await asyncio.sleep(self._sweep_every_s * random.uniform(0.8, 1.2))

    async def _sweep(
        self, seen: Mapping[DocName, tuple[Head, bool]]
    ) -> dict[DocName, tuple[Head, bool]]:
        """Announce documents whose writer may have died before it did so, and retire those that
        nobody needs in Redis any more.

        Args:
            seen: what the last sweep found: each document's head, and whether MongoDB had all.
        """
        found: dict[DocName, tuple[Head, bool]] = {}
        forgotten: list[DocName] = []
        async for doc in self._log.heads():
            head = await self._log.head(doc)
            if head is None:
                continue
            before, had_all = seen.get(doc, (head, False))
            if before != head:
                found[doc] = (head, False)  # somebody is writing, and announces it
                continue
            try:
                has_all = had_all or await self._mover.has_all(doc, head)
            except Gone:
                await self._log.drop(doc)
                continue
            found[doc] = (head, has_all)
            if not has_all:
                forgotten.append(doc)
            elif doc in seen and doc not in self._mover.quarantined:
                await self._log.retire(doc, head.pos)
        await self._log.announce(forgotten)
        return found


def is_outage(exc: BaseException) -> bool:
    """Whether it says that Redis or MongoDB is away, and not that something is wrong."""
    return isinstance(exc, Unavailable | TimeoutError) or unavailable(exc)
