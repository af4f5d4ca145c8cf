"""Moving records from a real Redis to a real MongoDB: whole, in order, once, by any number."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from crdt import ids
from crdt.ids import DocName
from crdt.ports import Loaded, Stored
from crdt.replica import Replica
from server.cluster import mover as module
from server.cluster.connection import connect
from server.cluster.log import EpochChanged, Record, RedisLog, Unfounded
from server.cluster.mover import Mover, Worker
from server.storage import mongo_log
from server.storage.mongo import MongoStore
from server.tasks import end
from tests.contracts.update_store import OWNER, PULL_DAY, record
from tests.helpers.mongo_servers import opening
from tests.helpers.proxies import Proxy
from tests.helpers.replicas import Peer, set_fields
from tests.helpers.rooms import LEG_DAY, NOW_MS, entry

STRIDE = 100_000
DEADLINE_S = 30.0


def packed(update: bytes | None, doc: DocName = LEG_DAY, **options: Any) -> bytes:
    made = entry(members=[OWNER]) if options.get("creates") else entry()
    return mongo_log.pack(
        mongo_log.draft(record(update, made, doc=doc, **options), [()], Stored(0), NOW_MS)
    )


def open_record(doc: DocName, record: Record) -> dict[str, Any]:
    return mongo_log.unpack(record.data)


def titled(roots: dict[str, Any]) -> None:
    roots["meta"].update({"title": "Legs"})


class Instance:
    """One that appends to the shared log."""

    def __init__(self, log: RedisLog, origin: str = "a") -> None:
        self.log = log
        self.origin = origin
        self.n = 0

    async def create(self, doc: DocName = LEG_DAY, update: bytes = b"created") -> None:
        head = await self.log.found(doc, 0, exists=False)
        await self._append(doc, packed(update, doc, creates=True), head.epoch, creates=True)

    async def append(self, *updates: bytes | None, doc: DocName = LEG_DAY) -> int:
        """Returns: the position of the last one."""
        head = await self.log.head(doc)
        if head is None:
            raise Unfounded
        pos = 0
        for update in updates:
            pos = await self._append(doc, packed(update, doc), head.epoch)
        return pos

    async def insist(self, store: MongoStore, update: bytes, doc: DocName) -> None:
        """Append to a document that may be retired at any moment: then it is founded anew."""
        while True:
            with contextlib.suppress(Unfounded, EpochChanged):
                if await self.log.head(doc) is None:
                    last = await store.last(doc)
                    assert last is not None
                    await self.log.found(doc, last.pos + STRIDE, exists=True)
                else:
                    await self.append(update, doc=doc)
                    return

    async def damage(self, doc: DocName = LEG_DAY) -> int:
        """Append what is no record."""
        head = await self.log.head(doc)
        assert head is not None
        return await self._append(doc, b"no record", head.epoch)

    async def _append(self, doc: DocName, data: bytes, epoch: str, *, creates: bool = False) -> int:
        self.n += 1
        return await self.log.append(
            doc, data, epoch=epoch, origin=self.origin, n=self.n, creates=creates
        )


@pytest.fixture
async def store(mongo_uri: str) -> AsyncIterator[MongoStore]:
    async with opening(mongo_uri) as store:
        yield store


@pytest.fixture
def instance(log: RedisLog) -> Instance:
    return Instance(log)


@pytest.fixture
def mover(log: RedisLog, store: MongoStore) -> Mover:
    return Mover(log, store, open_record, keep=2)


@asynccontextmanager
async def working(*workers: Worker) -> AsyncIterator[None]:
    async with asyncio.timeout(DEADLINE_S):
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            yield
            assert not any(task.done() for task in tasks)
        finally:
            await end(*tasks)


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 - neither Redis nor MongoDB signals it
            await asyncio.sleep(0.02)


async def loaded(store: MongoStore, doc: DocName = LEG_DAY) -> Loaded:
    found = await store.load(doc)
    assert found is not None
    return found


async def updates(store: MongoStore, doc: DocName = LEG_DAY) -> list[bytes]:
    return list((await loaded(store, doc)).updates)


async def in_stream(log: RedisLog, doc: DocName = LEG_DAY) -> list[int]:
    return [found.pos for found in await log.read(doc, 0)]


async def forget(log: RedisLog, doc: DocName, *what: str) -> None:
    """Redis loses some of a document's keys."""
    for name in what:
        await log._redis.delete(log._key(doc, name))


async def rewind(log: RedisLog, pos: int, doc: DocName = LEG_DAY) -> None:
    """Redis comes back without what came after `pos`."""
    for lost in range(pos + 1, pos + 20):
        await log._redis.xdel(log._key(doc, "log"), f"{lost}-0")
    # A stream keeps its last ID, but not when it is read back from an older file.
    held = await log.read(doc, 0)
    await forget(log, doc, "log")
    for kept in held:
        fields: dict[Any, Any] = {"r": kept.data, "o": kept.origin, "n": kept.n}
        await log._redis.xadd(log._key(doc, "log"), fields, id=f"{kept.pos}-0")
    await log._redis.hset(log._key(doc, "head"), "pos", str(pos))


# -- one document ------------------------------------------------------------------------------


async def test_all_that_is_in_the_stream_comes_to_mongodb(
    instance: Instance, mover: Mover, store: MongoStore, log: RedisLog
) -> None:
    assert await mover.move(LEG_DAY) is None
    await instance.create()
    assert await instance.append(b"a", None, b"b", b"c") == 5
    assert await mover.move(LEG_DAY) == 5
    assert await updates(store) == [b"created", b"a", b"b", b"c"]
    assert (await loaded(store)).seq == 5
    assert await in_stream(log) == [4, 5]
    assert await mover.move(LEG_DAY) == 5
    await instance.append(b"d")
    assert await mover.move(LEG_DAY) == 6
    assert (await updates(store))[-1] == b"d"
    assert mover.moved == 6


@pytest.mark.parametrize("page_bytes", [100, 1_000_000])
async def test_a_backlog_of_many_pages_arrives_whole(
    instance: Instance,
    mover: Mover,
    store: MongoStore,
    monkeypatch: pytest.MonkeyPatch,
    page_bytes: int,
) -> None:
    monkeypatch.setattr(module, "PAGE_BYTES", page_bytes)
    monkeypatch.setattr(module, "FIRST_PAGE", 3)
    await instance.create()
    written = [number.to_bytes(2) for number in range(150)]
    await instance.append(*written)
    assert await mover.move(LEG_DAY) == 151
    assert await updates(store) == [b"created", *written]


async def test_who_is_told_knows_how_far_which_epoch_is(
    instance: Instance, log: RedisLog, store: MongoStore
) -> None:
    told: list[tuple[DocName, str, int]] = []
    mover = Mover(log, store, open_record, on_moved=lambda *what: told.append(what))
    await instance.create()
    await instance.append(b"a")
    first = await log.head(LEG_DAY)
    assert first is not None
    await mover.move(LEG_DAY)
    await instance.append(b"lost")
    await forget(log, LEG_DAY, "head", "log")
    assert await mover.move(LEG_DAY) == 2  # nobody can be told of which epoch that is
    second = await log.found(LEG_DAY, 2 + STRIDE, exists=True)
    await instance.append(b"b")
    assert await mover.move(LEG_DAY) == STRIDE + 3
    assert told == [(LEG_DAY, first.epoch, 2), (LEG_DAY, second.epoch, STRIDE + 3)]
    assert await updates(store) == [b"created", b"a", b"b"]


async def test_records_of_an_older_epoch_that_come_late_stay_out(
    instance: Instance, log: RedisLog, store: MongoStore, mover: Mover, mongo_uri: str
) -> None:
    await instance.create()
    await instance.append(b"a")
    reached, may_go_on = asyncio.Event(), asyncio.Event()

    def sleep_before(doc: DocName, record: Record) -> dict[str, Any]:
        reached.set()
        return open_record(doc, record)

    async with opening(mongo_uri) as slow_store:
        persist = slow_store.persist

        async def slowly(*what: Any) -> int:
            await may_go_on.wait()
            return await persist(*what)

        slow_store.persist = slowly  # type: ignore[method-assign]
        late = asyncio.create_task(Mover(log, slow_store, sleep_before).move(LEG_DAY))
        await reached.wait()
        await mover.move(LEG_DAY)
        await forget(log, LEG_DAY, "head", "log")
        await log.found(LEG_DAY, 2 + STRIDE, exists=True)
        await instance.append(b"b")
        await mover.move(LEG_DAY)
        may_go_on.set()
        assert await late == STRIDE + 3
    assert await updates(store) == [b"created", b"a", b"b"]


# -- what must not be moved --------------------------------------------------------------------


async def test_a_damaged_record_holds_up_its_own_document_alone(
    instance: Instance, log: RedisLog, store: MongoStore, caplog: pytest.LogCaptureFixture
) -> None:
    is_mended = False

    def opened(doc: DocName, record: Record) -> Any:
        mended = packed(b"mended") if is_mended and record.data == b"no record" else record.data
        return mongo_log.unpack(mended)

    mover = Mover(log, store, opened, keep=1)
    for doc in (LEG_DAY, PULL_DAY):
        await instance.create(doc)
        await instance.append(b"a", doc=doc)
    await instance.damage(LEG_DAY)
    for doc in (LEG_DAY, PULL_DAY):
        await instance.append(b"b", doc=doc)
    for _ in range(2):
        assert await mover.move(LEG_DAY) == 2
        assert await mover.move(PULL_DAY) == 3
    assert "position 3" in mover.quarantined[LEG_DAY]
    assert list(mover.quarantined) == [LEG_DAY]
    assert await updates(store) == [b"created", b"a"]
    assert await in_stream(log) == [1, 2, 3, 4]
    assert await updates(store, PULL_DAY) == [b"created", b"a", b"b"]
    assert [told.levelname for told in caplog.records if "damaged" in told.message] == ["ERROR"]
    is_mended = True
    assert await mover.move(LEG_DAY) == 4
    assert not mover.quarantined
    assert await updates(store) == [b"created", b"a", b"mended", b"b"]


@pytest.mark.parametrize("after", [1, 3])
async def test_a_redis_that_has_gone_back_in_time_loses_nothing_that_it_took_since(
    instance: Instance, log: RedisLog, store: MongoStore, mover: Mover, after: int
) -> None:
    await instance.create()
    await instance.append(b"a", b"b")
    assert await mover.move(LEG_DAY) == 3
    await rewind(log, 2)
    taken = [bytes([number]) for number in range(after)]
    assert await Instance(log, "other").append(*taken) == 2 + after
    assert await mover.move(LEG_DAY) == 3
    assert "different records at position 3" in mover.quarantined[LEG_DAY]
    assert (await in_stream(log))[-after:] == list(range(3, 3 + after))
    assert await updates(store) == [b"created", b"a", b"b"]


@pytest.mark.parametrize("lost", ["from the stream", "with the stream", "from MongoDB"])
async def test_records_that_are_nowhere_are_not_passed_over(
    instance: Instance, log: RedisLog, store: MongoStore, mover: Mover, lost: str
) -> None:
    await instance.create()
    await instance.append(b"a", b"b", b"c")
    if lost == "from MongoDB":  # it was read back from an older backup
        await mover.move(LEG_DAY)
        await store._log.delete_many({"doc": str(LEG_DAY), "pos": {"$gt": 1}})
    elif lost == "with the stream":
        await forget(log, LEG_DAY, "log")
    else:
        await log._redis.xdel(log._key(LEG_DAY, "log"), "1-0", "2-0")
    for _ in range(2):
        await mover.move(LEG_DAY)
        assert "nowhere" in mover.quarantined[LEG_DAY]
    head = await log.head(LEG_DAY)
    assert head is not None
    assert not await mover.has_all(LEG_DAY, head)


# -- workers -----------------------------------------------------------------------------------


async def test_what_is_announced_is_moved_and_done(
    instance: Instance, log: RedisLog, store: MongoStore, mover: Mover
) -> None:
    docs = [ids.workout(f"w{number}") for number in range(40)]
    for doc in docs:
        await instance.create(doc)
        await instance.append(b"a", b"b", doc=doc)
    worker = Worker(mover, log, store, consumer="one")
    async with working(worker):
        await log.announce(docs)

        async def all_are_moved() -> bool:
            return all([await log.length(doc) <= 2 for doc in docs])

        await until(all_are_moved)
        for doc in docs:
            assert await updates(store, doc) == [b"created", b"a", b"b"]

        async def nothing_is_left() -> bool:
            return worker.backlog.waiting == 0 and not await log.take_over("other", idle_s=0)

        await until(nothing_is_left)
    assert worker.backlog == (0, 0.0, 120, 0, 0)


async def test_a_long_log_becomes_a_snapshot(
    instance: Instance, log: RedisLog, store: MongoStore, mover: Mover
) -> None:
    lifter = Peer()
    await instance.create(update=lifter.change(titled))
    edits = [
        lifter.change(lambda roots, n=n: roots["sets"].update({f"s{n}": set_fields(reps=n)}))
        for n in range(1, 30)
    ]
    async with working(Worker(mover, log, store, consumer="one", compact_after=10)):
        for edit in edits:
            await instance.append(edit)
            await log.announce([LEG_DAY])

        async def is_short() -> bool:
            last = await store.last(LEG_DAY)
            return last is not None and last.pos == 30 and last.pos - last.snapshot_pos <= 10

        await until(is_short)
    found = await loaded(store)
    assert found.snapshot is not None
    assert found.seq == 30
    replica = Replica(LEG_DAY.kind, found.snapshot)
    replica.load(*found.updates)
    assert {set_["reps"] for set_ in replica.read()["sets"].values()} == set(range(1, 30))


async def test_a_log_that_lacks_something_is_left_as_it_is(
    instance: Instance,
    log: RedisLog,
    store: MongoStore,
    mover: Mover,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lifter = Peer()
    await instance.create(update=lifter.change(titled))
    missing, building_on_it = (
        lifter.change(lambda roots, n=n: roots["sets"].update({f"s{n}": set_fields(reps=n)}))
        for n in range(2)
    )
    await instance.append(building_on_it)
    worker = Worker(mover, log, store, consumer="one", compact_after=1)
    async with working(worker):
        for _ in range(2):
            await log.announce([LEG_DAY])

            async def is_told() -> bool:
                return "a log is incomplete: it gets no snapshots" in caplog.messages

            await until(is_told)
    assert (await loaded(store)).snapshot is None
    assert caplog.messages.count("a log is incomplete: it gets no snapshots") == 1
    await instance.append(missing)
    await mover.move(LEG_DAY)
    replica = Replica(LEG_DAY.kind)
    replica.load(*await updates(store))
    assert replica.read()["sets"].keys() == {"s0", "s1"}


async def test_the_tasks_of_a_dead_worker_are_taken_over(
    instance: Instance, log: RedisLog, store: MongoStore, mover: Mover
) -> None:
    await instance.create()
    await log.announce([LEG_DAY])
    assert await log.take("dead")
    async with working(
        Worker(mover, log, store, consumer="alive", idle_s=0.05, sweep_every_s=1_000)
    ):

        async def is_moved() -> bool:
            return await store.load(LEG_DAY) is not None

        await until(is_moved)


async def test_what_nobody_announced_is_found(
    instance: Instance, log: RedisLog, store: MongoStore, mover: Mover
) -> None:
    async with working(Worker(mover, log, store, consumer="one", sweep_every_s=0.05)):
        await instance.create()

        async def is_moved() -> bool:
            return await store.load(LEG_DAY) is not None

        await until(is_moved)


async def test_a_document_that_nobody_hosts_leaves_redis(
    instance: Instance, log: RedisLog, store: MongoStore, mover: Mover
) -> None:
    await instance.create()
    await instance.create(PULL_DAY)
    await log._redis.initialize()
    pubsub = log._redis.pubsub()
    await pubsub.subscribe(log.channel(PULL_DAY))  # somebody hosts it
    empty = ids.workout("founded-only")
    await log.found(empty, STRIDE, exists=True)
    async with working(Worker(mover, log, store, consumer="one", sweep_every_s=0.02)):

        async def is_retired() -> bool:
            return await log.head(LEG_DAY) is None and await log.head(empty) is None

        await until(is_retired)
    assert await log.length(LEG_DAY) == 0
    assert await updates(store) == [b"created"]
    assert await updates(store, PULL_DAY) == [b"created"]
    assert await log.head(PULL_DAY) is not None
    await pubsub.aclose()


async def test_a_document_that_is_written_to_is_never_retired_with_something_unmoved(
    log: RedisLog, store: MongoStore, mover: Mover
) -> None:
    instance = Instance(log)
    await instance.create()
    written = [number.to_bytes(2) for number in range(60)]
    workers = [
        Worker(mover, log, store, consumer=name, sweep_every_s=0.001) for name in ("one", "two")
    ]
    async with working(*workers):
        for update in written:
            await instance.insist(store, update, LEG_DAY)

        async def is_all_there() -> bool:
            found = await store.load(LEG_DAY)
            return found is not None and len(found.updates) > len(written)

        await until(is_all_there)
    assert await updates(store) == [b"created", *written]


async def test_workers_that_die_lose_and_double_nothing(
    log: RedisLog, mongo_uri: str, prefix: str
) -> None:
    docs = [ids.workout(f"w{number}") for number in range(6)]
    instances = [Instance(log, f"i{number}") for number in range(3)]
    written: dict[DocName, list[bytes]] = {doc: [b"created"] for doc in docs}
    for doc in docs:
        await instances[0].create(doc)
    is_over = False
    deaths: dict[str, asyncio.Event] = {}

    async def write(store: MongoStore) -> None:
        for number in range(300):
            doc = random.choice(docs)
            update = number.to_bytes(2)
            await random.choice(instances).insist(store, update, doc)
            written[doc].append(update)
            await log.announce([doc])

    async def die_again_and_again(name: str) -> None:
        generation = 0
        while not is_over:
            generation += 1
            async with opening(mongo_uri) as store:
                if is_over:
                    return  # whoever ended it knew nothing of this life
                mover = Mover(log, store, open_record, keep=1)
                killed_after = random.randrange(1, 12)
                persist = store.persist

                async def persist_and_die(*what: Any) -> int:
                    nonlocal killed_after
                    pos = await persist(*what)  # noqa: B023
                    killed_after -= 1
                    if killed_after <= 0 and not is_over:
                        dead.set()  # noqa: B023
                        await asyncio.Event().wait()
                    return pos

                store.persist = persist_and_die  # type: ignore[method-assign]
                dead = deaths[name] = asyncio.Event()
                worker = Worker(
                    mover,
                    log,
                    store,
                    consumer=f"{name}-{generation}",
                    idle_s=0.2,
                    sweep_every_s=0.1,
                )
                async with working(worker):
                    await dead.wait()

    async with asyncio.timeout(60), opening(mongo_uri) as store:
        dying = [asyncio.create_task(die_again_and_again(name)) for name in ("one", "two", "three")]
        await write(store)

        async def are_all_there() -> bool:
            found = [await store.load(doc) for doc in docs]
            return [len(each.updates) if each else 0 for each in found] == [
                len(each) for each in written.values()
            ]

        try:
            await until(are_all_there)
        finally:
            is_over = True
            for dead in deaths.values():
                dead.set()
            await asyncio.gather(*dying)
        for doc in docs:
            assert await updates(store, doc) == written[doc]


async def test_something_wrong_with_one_document_stops_no_other(
    instance: Instance,
    log: RedisLog,
    store: MongoStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stumble(doc: DocName, record: Record) -> Any:
        if doc == LEG_DAY:
            raise RuntimeError("what nobody thought of")
        return open_record(doc, record)

    worker = Worker(Mover(log, store, stumble), log, store, consumer="one", sweep_every_s=1_000)
    await instance.create()
    await instance.create(PULL_DAY)
    async with working(worker):
        await log.announce([LEG_DAY, PULL_DAY])

        async def is_moved() -> bool:
            is_done = worker.backlog.failures > 0 and not worker.backlog.waiting
            return is_done and await store.load(PULL_DAY) is not None

        await until(is_moved)
    assert await store.load(LEG_DAY) is None
    assert "a document could not be moved" in caplog.messages
    assert {task.doc for task in await log.take_over("other", idle_s=0)} == {LEG_DAY}


# -- outages -----------------------------------------------------------------------------------


async def proxied(stack: AsyncExitStack, url: str) -> Proxy:
    parts = urlsplit(url)
    proxy = await Proxy(parts.hostname or "127.0.0.1", parts.port or 0).start()
    stack.push_async_callback(proxy.stop)
    return proxy


@pytest.mark.parametrize("away", ["Redis", "MongoDB"])
async def test_an_outage_is_lived_through_and_told_once(
    away: str,
    redis_server: str,
    mongo_server: str,
    mongo_uri: str,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        redis_proxy = await proxied(stack, redis_server)
        mongo_proxy = await proxied(stack, mongo_server)
        proxy = redis_proxy if away == "Redis" else mongo_proxy
        redis = connect(f"redis://127.0.0.1:{redis_proxy.port}", timeout_s=0.5)
        stack.push_async_callback(redis.aclose)
        direct = connect(redis_server, timeout_s=10)
        stack.push_async_callback(direct.aclose)
        path = urlsplit(mongo_uri).path
        options = "timeoutMS=500&directConnection=true"
        store = await stack.enter_async_context(
            opening(f"mongodb://127.0.0.1:{mongo_proxy.port}{path}?{options}")
        )
        log, behind = RedisLog(direct, prefix), RedisLog(redis, prefix)
        worker = Worker(Mover(behind, store, open_record), behind, store, consumer="one")
        instance = Instance(log)
        await instance.create()
        async with working(worker):
            await log.announce([LEG_DAY])
            await until(lambda: store.load(LEG_DAY))
            proxy.down()
            await instance.append(b"a")
            await log.announce([LEG_DAY])

            async def has_failed_often() -> bool:
                return worker.backlog.failures >= 3

            await until(has_failed_often)
            if away == "MongoDB":
                assert worker.backlog.waiting == 1
                assert worker.backlog.oldest_s >= 0
            proxy.heal()

            async def is_moved() -> bool:
                return "records are moved to MongoDB again" in caplog.messages

            await until(is_moved)

            async def is_there() -> bool:
                last = await store.last(LEG_DAY)
                return last is not None and last.pos == 2

            await until(is_there)
    told = [said.message for said in caplog.records if said.name == "server.cluster.mover"]
    assert told == ["records cannot be moved to MongoDB", "records are moved to MongoDB again"]
