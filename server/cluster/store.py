"""The store of an instance that shares its documents with others: the log in Redis, and MongoDB
for what lasts.

**What is promised.** What `crdt.ports.Store` promises, whichever instance is asked. An append is in
the shared log (`cluster`) or, while that is away, on this instance's disk (`local`). Lists and the
like are read from MongoDB, where the log arrives a moment later: before a user's are read, what was
appended that concerns them is moved there.

**Who owns what.** `Replicator` the documents that are open here, `MongoStore` what lasts; this puts
them together, and dispatches what the channels bring.

**What fails.** Redis away: degraded, see `Replicator`. MongoDB away: what is open goes on; what
must be read from it is `Unavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgpack

from crdt.errors import Gone, Unavailable
from crdt.hub import RoomHub
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import (
    SERVER,
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
from crdt.revocations import Revocation
from server.breaker import Breaker
from server.cluster.books import Book, Books, Prize, Row, Seed
from server.cluster.bus import Bus
from server.cluster.connection import AWAY, Connection, connect
from server.cluster.envelope import Malformed, Sealer, unpack_update
from server.cluster.log import RedisLog
from server.cluster.mover import Mover, Worker
from server.cluster.neighbours import ClusterNeighbours, Here
from server.cluster.peers import Peers
from server.cluster.record import open_record
from server.cluster.replicator import Replicator
from server.metrics import Metrics
from server.settings import Settings
from server.storage.mongo import MongoStore
from server.storage.mongo_log import key
from server.storage.port import Erasure, PersonalRow, StoreStats
from server.storage.spool import Spool
from server.tasks import end

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S, ANSWER_AGAIN_AFTER_S = 0.25, 2.0
BACKLOG_DEGRADED, BACKLOG_OLD_S = 0.5, 60.0
ENDED = ("completed", "abandoned")
SEED_TIMEOUT_S, SEED_AGAIN_AFTER_S = 1.5, 2.0


class ClusterStore:
    """A `ServerStore` and `SharedLog` over one Redis and one MongoDB.

    Args:
        redis: is closed with the store.
        embedded_worker: whether this process moves logs to MongoDB as well as serving.
    """

    kind = "mongodb"
    durability: Durability = "cluster"

    def __init__(
        self,
        redis: Connection,
        store: MongoStore,
        spool: Spool,
        sealer: Sealer,
        *,
        prefix: str,
        instance: str,
        embedded_worker: bool = True,
        compact_after: int = 500,
        max_backlog_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        self.stats: StoreStats = store.stats
        self.settles_after_s = store.timeout_s
        self.breaker: Breaker | None = store.breaker
        self.describe: Callable[[], Mapping[str, Any]] = dict
        """What this instance tells the others of itself, with each heartbeat."""
        self._peers = Peers()
        self._redis = redis
        self._store = store
        self._spool = spool
        self._log = RedisLog(redis, prefix)
        books = Books(redis, prefix, seed=self._seed)
        self._bus = Bus(
            redis,
            self._heard,
            self._missed,
            heartbeat_channel=f"{prefix}:alive",
            instance=instance,
            state=lambda: self.describe(),
            on_peer=self._peers.heard,
            on_peer_lost=self._peer_lost,
        )
        self._mover = Mover(self._log, store, partial(open_record, sealer), on_moved=self._moved)
        self._replicator = Replicator(
            self._log,
            books,
            self._bus,
            store,
            spool,
            self._mover,
            sealer,
            origin=instance,
            max_tails_bytes=max_backlog_bytes,
        )
        self._outage = self._replicator.outage
        self.neighbours = ClusterNeighbours(
            self._log,
            sealer,
            instance,
            persisted=self._replicator.following.persisted,
            hear_of=self._bus.hear_of,
        )
        self._worker = (
            Worker(self._mover, self._log, store, consumer=instance, compact_after=compact_after)
            if embedded_worker
            else None
        )
        self._no_seed_before_s = self._no_answer_before_s = 0.0
        self._working: asyncio.Task[None] | None = None
        self._here: Here | None = None

    @classmethod
    def from_settings(cls, settings: Settings, instance: str) -> ClusterStore:
        """Raises StorageError: an address is none."""
        assert settings.redis_url is not None
        assert settings.mongodb_uri is not None
        return cls(
            connect(settings.redis_url.get_secret_value()),
            MongoStore(settings.mongodb_uri.get_secret_value()),
            Spool(settings.data_dir, max_bytes=settings.spool_max_bytes),
            Sealer.configured(settings.bus_secret),
            prefix=settings.redis_prefix,
            instance=instance,
            embedded_worker=settings.embedded_worker,
            compact_after=settings.compact_after,
            max_backlog_bytes=settings.backlog_max_bytes,
        )

    async def open(self) -> None:
        await self._store.open()
        await self._spool.open()

    async def begin(self, hub: RoomHub, here: Here) -> None:
        """Take part: from now on others are heard, and what was left in the spool is appended."""
        self._here = here
        self.neighbours.open(hub, here)
        self._replicator.open(hub)
        await self._bus.open()
        with contextlib.suppress(Unavailable):  # the wish stays
            await self._bus.subscribe(self._log.channel(None))
        if self._worker is not None:
            self._working = asyncio.create_task(self._worker.run(), name="worker")

    async def close(self) -> None:
        await self._replicator.close()
        await self.neighbours.close()
        await end(self._working)
        await self._bus.close()
        await self._spool.close()
        await self._store.close()
        await self._redis.aclose()

    # -- what the channels bring --------------------------------------------------------------

    def _heard(self, channel: str, data: bytes) -> None:
        try:
            parts = msgpack.unpackb(data, raw=True)
            kind = parts[1]
            if kind == b"u":
                self._replicator.following.heard(channel, unpack_update(data))
            elif kind == b"n":
                doc = self._replicator.document_at(channel)
                if doc is not None or channel == self._log.channel(None):
                    self.neighbours.heard(channel, doc, parts[2])
        except (Malformed, ValueError, TypeError, IndexError, msgpack.UnpackException) as exc:
            log.error("a message is malformed", extra={"channel": channel, "cause": str(exc)})

    def _missed(self) -> None:
        self._replicator.following.missed()
        self.neighbours.missed()
        if self._here is not None:
            self._here.reload_revocations()

    def _peer_lost(self, instance: str) -> None:
        self._peers.gone(instance)
        self.neighbours.gone(instance)

    def _moved(self, doc: DocName, epoch: str, upto: int) -> None:
        self.neighbours.moved(doc, epoch, upto)

    async def _seed(self, book: Book) -> Seed:
        """A record book as MongoDB has it.

        Raises:
            Unavailable: it cannot be read, or could not a moment ago: sets wait for this.
            One of `connection.ERRORS`: Redis was emptied, and others may hold what was won.
        """
        if time.monotonic() < self._no_seed_before_s:
            raise Unavailable("the record books cannot be read now")
        await self._replicator.demand_memory()
        try:
            async with asyncio.timeout(SEED_TIMEOUT_S):
                found = await self._store.book(UserId(book.user_id), book.exercise)
        except (Unavailable, TimeoutError) as exc:
            self._no_seed_before_s = time.monotonic() + SEED_AGAIN_AFTER_S
            told = {"cause": str(exc) or "no answer in time", "for_s": SEED_AGAIN_AFTER_S}
            log.warning("records are not judged", extra=told)
            raise Unavailable("the record books cannot be read now") from exc
        return Seed(
            [Row(str(row.doc), row.set_id, row.values) for row in found.rows],
            [
                Prize(str(doc), award.set_id, award.type, award.value, award.previous)
                for doc, award in found.awards
            ],
        )

    # -- documents ----------------------------------------------------------------------------

    async def load(self, doc: DocName) -> Loaded | None:
        loaded = await self._replicator.load(doc)
        if loaded is not None:
            self.neighbours.opened(doc)
        return loaded

    async def append(self, batch: Append) -> Stored:
        stored = await self._replicator.append(batch)
        if batch.creates or batch.summary or any(entry.members for entry in batch.entries):
            await self._mark_unlisted(batch)
        return stored

    def demand_space(self, doc: DocName) -> None:
        self._replicator.demand_space(doc)

    async def catch_up(self, doc: DocName) -> None:
        await self._replicator.catch_up(doc)

    async def persist(self, doc: DocName) -> None:
        await self._replicator.persist(doc)

    def release(self, doc: DocName) -> None:
        self._replicator.release(doc)

    async def compact(self, doc: DocName, snapshot: bytes, upto: int, base: int) -> bool:
        await self._see_that_it_is_moved(doc)
        return await self._store.compact(doc, snapshot, upto, base)

    # -- beside the log -----------------------------------------------------------------------

    async def _see_that_it_is_moved(self, doc: DocName) -> None:
        """Let MongoDB have what was appended here, if Redis can be asked for it."""
        if self._replicator.holds(doc) and not self._outage.is_away:
            try:
                await self._mover.move(doc)
            except AWAY as exc:
                self._outage.went_away(exc)

    async def _mark_unlisted(self, batch: Append) -> None:
        """Let all instances know whose lists lack this, before anybody is told that it is there."""
        users = {member.user_id for entry in batch.entries for member in entry.members}
        users |= {entry.author.user_id for entry in batch.entries}
        if batch.summary is not None:
            users.add(batch.summary.owner_id)
        users.discard(SERVER)
        if not self._outage.is_away:
            try:
                await self._log.mark_unlisted(users, batch.doc)
            except AWAY as exc:
                self._outage.went_away(exc)

    async def _list(self, user_id: UserId) -> None:
        """See to it that this user's lists have what was appended, wherever that was."""
        if self._outage.is_away:
            return  # what is in MongoDB is all that can be shown
        try:
            docs = await self._log.unlisted(user_id)
            for doc in docs:
                with contextlib.suppress(Gone):  # deleted meanwhile
                    await self._mover.move(doc)
            await self._log.mark_listed(user_id, docs)
        except AWAY as exc:
            self._outage.went_away(exc)

    async def answer(
        self, user_id: UserId, op_id: str, doc: DocName | None = None
    ) -> Answer | None:
        if doc is not None:
            found = await self._replicator.answer(doc, key(user_id, op_id))
            if found is not None:
                return found
            if time.monotonic() < self._no_answer_before_s:
                return None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S if doc is not None else None):
                return await self._store.answer(user_id, op_id)
        except (Unavailable, TimeoutError):
            if doc is None:
                raise
            # Redis has the answers of the last day, unless it has lost everything since.
            self._no_answer_before_s = time.monotonic() + ANSWER_AGAIN_AFTER_S
            return None

    async def summaries(
        self, user_id: UserId, kind: DocKind, *, limit: int, before: DocName | None = None
    ) -> Sequence[tuple[Summary, str]]:
        await self._list(user_id)
        return await self._store.summaries(user_id, kind, limit=limit, before=before)

    async def training(
        self, user_id: UserId, *, limit: int, circles: Collection[UserId] | None = None
    ) -> Training:
        await self._see_that_sets_are_moved(user_id, limit)
        return await self._store.training(user_id, limit=limit, circles=circles)

    async def _see_that_sets_are_moved(self, user_id: UserId, limit: int) -> None:
        """Let MongoDB have what was done in workouts that have not ended, wherever that is, or that
        are open here."""
        newest = await self.summaries(user_id, DocKind.WORKOUT, limit=limit)
        docs = [
            summary.doc
            for summary, role in newest
            if role in TRAINING_ROLES
            and (summary.status not in ENDED or self._replicator.holds(summary.doc))
        ]
        if self._outage.is_away:
            return  # what is in MongoDB is all that can be shown
        try:
            for doc in docs:
                await self._mover.move(doc)
        except AWAY as exc:
            self._outage.went_away(exc)

    async def summary(self, doc: DocName) -> Summary | None:
        await self._see_that_it_is_moved(doc)
        return await self._store.summary(doc)

    async def active_workout(self, owner_id: UserId) -> str | None:
        await self._list(owner_id)
        return await self._store.active_workout(owner_id)

    async def claim_active(
        self, owner_id: UserId, workout_id: str, instead_of: str | None = None
    ) -> str:
        await self._list(owner_id)
        return await self._store.claim_active(owner_id, workout_id, instead_of)

    async def revoke(self, revocation: Revocation, entry: Entry) -> None:
        await self._store.revoke(revocation, entry)
        self.neighbours.revoked(revocation)

    async def revocations(self, now_ms: int) -> Sequence[Revocation]:
        return await self._store.revocations(now_ms)

    # -- persons ------------------------------------------------------------------------------

    async def documents_of(self, user_id: UserId) -> Sequence[DocName]:
        with self._shared_log_needed():
            async for doc in self._log.heads():
                with contextlib.suppress(Gone):
                    await self._mover.move(doc)
        return await self._store.documents_of(user_id)

    def rows_of(self, user_id: UserId) -> AsyncIterator[PersonalRow]:
        return self._store.rows_of(user_id)

    async def stored(self, doc: DocName) -> Loaded | None:
        with self._shared_log_needed():
            await self._mover.move(doc)
        return await self._store.load(doc)

    async def begin_erasure(self, user_id: UserId, issued_until_ms: int) -> Revocation:
        revocation = await self._store.begin_erasure(user_id, issued_until_ms)
        self.neighbours.revoked(revocation)
        return revocation

    async def erasures(self) -> Sequence[Erasure]:
        return await self._store.erasures()

    async def erasure_of(self, user_id: UserId) -> Erasure | None:
        return await self._store.erasure_of(user_id)

    async def take_erasure(self, erasure_id: str, by: str) -> bool:
        return not self._outage.is_away and await self._store.take_erasure(erasure_id, by)

    async def leave_erasure(self, erasure_id: str, by: str) -> None:
        await self._store.leave_erasure(erasure_id, by)

    async def note_erasure(
        self, erasure_id: str, report: dict[str, Any], error: str | None
    ) -> None:
        await self._store.note_erasure(erasure_id, report, error)

    async def bury(self, doc: DocName) -> None:
        await self._store.bury(doc)
        self._replicator.forget(doc)
        with self._shared_log_needed():
            await self._log.drop(doc)

    async def forget_in(self, doc: DocName, user_id: UserId) -> Counter[str]:
        with self._shared_log_needed():
            upto = await self._mover.move(doc)
            if upto is not None:  # what it still holds is from before
                await self._log.trim(doc, upto, keep=0)
        return await self._store.forget_in(doc, user_id)

    async def forget(self, user_id: UserId) -> Counter[str]:
        with self._shared_log_needed():
            counts = await self._log.forget_user(user_id)
        counts.update(await self._store.forget(user_id))
        return counts

    async def end_erasure(self, erasure: Erasure, now_ms: int, report: dict[str, Any]) -> None:
        await self._store.end_erasure(erasure, now_ms, report)

    @contextmanager
    def _shared_log_needed(self) -> Iterator[None]:
        """What is done in the block is `Unavailable` while Redis is away."""
        if self._outage.is_away:
            raise Unavailable("the shared log is away", retry_after_ms=1_000)
        try:
            yield
        except AWAY as exc:
            raise Unavailable("the shared log is away", retry_after_ms=1_000) from exc

    # -- how it is ----------------------------------------------------------------------------

    async def check(self) -> float:
        return await self._store.check()

    @property
    def is_deaf(self) -> bool:
        return self._bus.is_deaf

    def watch(self, metrics: Metrics) -> None:
        """Show what is counted here."""
        gauges: list[tuple[str, str, Callable[[], float]]] = [
            ("spool_records", "Records that wait for the shared log", lambda: self._spool.count),
            ("spool_bytes", "What the records in the spool take", lambda: self._spool.size_bytes),
            (
                "bus_deaf_seconds",
                "Since the bus brought a heartbeat of our own",
                lambda: self._bus.deaf_s,
            ),
            (
                "bus_instances",
                "Instances that are heard of, this one included",
                lambda: len(self._bus.peers) + 1,
            ),
            (
                "shared_log_away",
                "Whether appends go to the spool",
                lambda: self._outage.is_away,
            ),
            (
                "hosted_documents",
                "Documents whose shared log is followed",
                lambda: self._replicator.hosted_count,
            ),
            (
                "unpersisted_bytes",
                "Records that may be in the shared log alone",
                lambda: self._replicator.tails_bytes,
            ),
            (
                "bus_lag_seconds",
                "How long the last heartbeat was under way, from this instance to itself",
                lambda: self._bus.lag_s,
            ),
        ]
        for name, text, read in gauges:
            metrics.watch(f"repsync_{name}", text, read)
        self._mover.watch(metrics)
        if self._worker is not None:
            self._worker.watch(metrics)

    @property
    def peers(self) -> list[dict[str, Any]]:
        """The other instances, as they say they are."""
        return self._peers.shown(self._bus.peers, time.monotonic())

    @property
    def quarantined(self) -> Mapping[DocName, str]:
        """Documents of which nothing is moved to MongoDB any more, and why."""
        return self._mover.quarantined

    @property
    def spool_quarantined(self) -> int:
        """How many spooled records are damaged and set aside."""
        return self._spool.quarantined

    @property
    def spool_bytes(self) -> int:
        return self._spool.size_bytes

    @property
    def deaf_s(self) -> float:
        return self._bus.deaf_s

    @property
    def oldest_spooled_ms(self) -> int | None:
        """When the record was spooled that waits longest for the shared log, ms since the epoch."""
        return self._spool.oldest_at_ms

    def report(self) -> dict[str, dict[str, Any]]:
        """What is shared, as dependencies in the health report: the log in Redis, the channels, and
        what has still to be moved to MongoDB."""
        return {"redis": self._report_log(), "bus": self._report_bus(), "backlog": self._backlog()}

    def _report_log(self) -> dict[str, Any]:
        error = self._outage.why or self._bus.publish_error
        report: dict[str, Any] = {
            "kind": "redis",
            "state": "degraded" if error or self._outage.is_away else "healthy",
            "breaker": self._outage.breaker,
            "latency_ms": round((self._bus.publish_latency_s or 0.0) * 1_000, 3),
            "deaf_s": round(self._bus.deaf_s, 1),
            "spool_records": self._spool.count,
            "spool_bytes": self._spool.size_bytes,
            "spool_max_bytes": self._spool.max_bytes,
            "instances": len(self._bus.peers) + 1,
        }
        if error:
            report["error"] = error
        return report

    def _report_bus(self) -> dict[str, Any]:
        error = self._bus.last_error
        report: dict[str, Any] = {
            "kind": "redis",
            "state": "degraded" if error or self.is_deaf else "healthy",
            "latency_ms": round(self._bus.lag_s * 1_000, 3),
            "deaf_s": round(self._bus.deaf_s, 1),
            "is_deaf": self.is_deaf,
        }
        if error:
            report["error"] = error
        return report

    def _backlog(self) -> dict[str, Any]:
        size_bytes, most = self._replicator.tails_bytes, self._replicator.max_tails_bytes
        report: dict[str, Any] = {
            "state": "healthy",
            "bytes": size_bytes,
            "max_bytes": most,
            "quarantined": len(self._mover.quarantined),
        }
        if self._worker is not None:
            backlog = self._worker.backlog
            report |= {
                "waiting": backlog.waiting,
                "oldest_s": round(backlog.oldest_s, 1),
                "failures": backlog.failures,
            }
        if size_bytes >= BACKLOG_DEGRADED * most:
            report["error"] = "more than half of what may wait for MongoDB does"
        elif report.get("oldest_s", 0.0) > BACKLOG_OLD_S:
            report["error"] = "records wait long for MongoDB"
        if "error" in report:
            report["state"] = "degraded"
        return report
