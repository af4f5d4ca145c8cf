"""The store in MongoDB: what every store promises, and what becomes of it when servers die, stall
and race."""

from __future__ import annotations

import asyncio
import gc
import itertools
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import (
    AutoReconnect,
    NetworkTimeout,
    OperationFailure,
    ServerSelectionTimeoutError,
)

from crdt import ids
from crdt.access import Member
from crdt.errors import Conflict, NotFound, TooLarge, Unavailable
from crdt.ids import DocKind, UserId
from crdt.revocations import Revocation
from server.storage import mongo, mongo_projection
from server.storage.mongo import MongoStore
from server.storage.mongo_schema import SCHEMA_VERSION
from server.storage.port import StorageError
from tests.contracts.update_store import (
    ANA,
    BEN,
    LATER_MS,
    PULL_DAY,
    StoreContract,
    create,
    log_set,
    record,
    score,
    summary,
    won,
)
from tests.helpers.mongo_servers import MongoProcess
from tests.helpers.proxies import Proxy, proxied
from tests.helpers.rooms import LEG_DAY, NOW_MS, entry

DEADLINE_S = 20.0
Database = Any


@asynccontextmanager
async def opening(uri: str) -> AsyncIterator[MongoStore]:
    store = MongoStore(uri)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(mongo_uri: str) -> AsyncIterator[MongoStore]:
    async with opening(mongo_uri) as store:
        yield store


@pytest.fixture
async def other(mongo_uri: str) -> AsyncIterator[MongoStore]:
    """A second writer on the same database."""
    async with opening(mongo_uri) as store:
        yield store


@pytest.fixture
async def raw(mongo_uri: str) -> AsyncIterator[Database]:
    """The database behind the store's back."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_uri)
    yield client.get_default_database()
    await client.close()


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 - MongoDB signals nothing
            await asyncio.sleep(0.02)


async def stored(store: MongoStore, doc: ids.DocName = LEG_DAY) -> list[bytes]:
    loaded = await store.load(doc)
    assert loaded is not None
    return list(loaded.updates)


def everything(set_id: str = "s") -> Any:
    """An entry that brings along all that there can be beside the log."""
    return entry(
        op_id="op",
        answer=lambda stored: {"ok": True, "records": sorted(stored.awards.get(set_id, {}))},
        members=[Member(BEN, "coach", "Ben")],
        scores=[score(set_id, weight=100)],
        client_ids=[(7, ANA)],
        removed_exercises=["squat"],
    )


async def assert_everything(store: MongoStore, *, status: str = "planned") -> None:
    assert await store.answer(ANA, "op") == {"ok": True, "records": ["weight"]}
    listed = await store.summaries(BEN, DocKind.WORKOUT, limit=10)
    assert list(listed) == [(summary(status=status), "coach")]
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert loaded.members[BEN].role == "coach"
    assert loaded.awards["s"].keys() == {"weight"}
    assert (loaded.client_ids, loaded.removed_exercises) == ({7: ANA}, {"squat"})
    assert await log_set(store, score("t", weight=90)) == set()


class TestMongoStore(StoreContract):
    pass


# -- what it keeps ----------------------------------------------------------------------------


async def test_it_promises_what_a_shared_log_can(store: MongoStore) -> None:
    assert store.durability == "cluster"


async def test_a_reopened_store_finds_everything(store: MongoStore, mongo_uri: str) -> None:
    await create(store)
    await store.append(record(b"a", everything()))
    await store.compact(LEG_DAY, b"snapshot", upto=1, base=0)
    await store.claim_active(ANA, "leg-day")
    await store.revoke(Revocation("token", "t1", LATER_MS), entry("root"))
    before = await store.load(LEG_DAY)
    await store.close()
    async with opening(mongo_uri) as again:
        assert await again.load(LEG_DAY) == before
        assert await again.active_workout(ANA) == "leg-day"
        assert list(await again.revocations(NOW_MS)) == [Revocation("token", "t1", LATER_MS)]
        await assert_everything(again)


async def test_who_made_a_change_is_kept_with_it(store: MongoStore, raw: Database) -> None:
    await create(store)
    await store.append(record(b"a", entry("ben", event="workout:set:complete", op_id="op")))
    found = await raw["log"].find_one({"doc": str(LEG_DAY), "pos": 2})
    [who] = found["entries"]
    assert (who["user_id"], who["event"], who["op_id"]) == ("ben", "workout:set:complete", "op")


async def test_a_record_is_marked_no_longer_than_it_takes(store: MongoStore, raw: Database) -> None:
    await create(store)
    await store.append(record(b"a", everything()))
    await store.revoke(Revocation("token", "t1", LATER_MS), entry("root"))

    async def nothing_is_pending() -> bool:
        return not await raw["log"].find({"pending": True}).to_list()

    await until(nothing_is_pending)


async def test_an_append_that_brings_an_update_alone_is_one_write(
    store: MongoStore, raw: Database
) -> None:
    await create(store)
    await store.append(record(b"a", entry())._replace(summary=None))
    assert "pending" not in await raw["log"].find_one({"doc": str(LEG_DAY), "pos": 2})


# -- snapshots --------------------------------------------------------------------------------


async def test_a_compaction_leaves_who_did_what_and_the_answers(
    store: MongoStore, raw: Database
) -> None:
    await create(store)
    await store.append(record(b"a" * 1_000, everything()))
    assert await store.compact(LEG_DAY, b"snapshot", upto=2, base=0)
    await assert_everything(store)
    stripped = await raw["log"].find_one({"doc": str(LEG_DAY), "pos": 2})
    assert "yjs" not in stripped
    assert [who["user_id"] for who in stripped["entries"]] == ["ana"]


async def test_of_several_snapshots_the_last_one_is_kept(store: MongoStore, raw: Database) -> None:
    await create(store)
    for seq, snapshot in ((2, b"older"), (3, b"newer")):
        await store.append(record(b"a"))
        assert await store.compact(LEG_DAY, snapshot, upto=seq, base=seq - 1 if seq > 2 else 0)
    parts = await raw["snapshots"].find().to_list()
    assert [part["data"] for part in parts] == [b"newer"]


async def test_a_snapshot_that_lost_the_race_leaves_nothing(
    store: MongoStore, raw: Database
) -> None:
    await create(store)
    await store.append(record(b"a"))
    both = (store.compact(LEG_DAY, side, upto=2, base=0) for side in (b"left", b"right"))
    assert sorted(await asyncio.gather(*both)) == [False, True]
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert [part["data"] for part in await raw["snapshots"].find().to_list()] == [loaded.snapshot]


@pytest.mark.parametrize("size", [0, 4, 5, 41])
async def test_a_snapshot_of_any_size_comes_back(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(mongo, "SNAPSHOT_PART_BYTES", 4)
    snapshot = bytes(range(size))
    await create(store)
    assert await store.compact(LEG_DAY, snapshot, upto=1, base=0)
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert loaded.snapshot == snapshot


async def test_records_that_brought_no_update_come_through_a_compaction(
    store: MongoStore,
) -> None:
    await create(store)
    await store.append(record(None, entry(members=[Member(BEN, "coach", "Ben")])))
    assert await store.compact(LEG_DAY, b"snapshot", upto=1, base=0)
    await store.append(record(None, entry(members=[Member(BEN, "spectator", "Ben")])))
    assert (await store.append(record(b"a"))).seq == 2
    assert await store.compact(LEG_DAY, b"newer", upto=2, base=1)
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert loaded.members[BEN].role == "spectator"
    assert (loaded.snapshot, loaded.seq) == (b"newer", 2)


async def test_a_room_is_read_right_while_others_make_snapshots_of_it(
    store: MongoStore, other: MongoStore
) -> None:
    await create(store)
    is_over = False

    async def write() -> None:
        nonlocal is_over
        for seq in range(2, 40):
            await store.append(record(bytes([seq])))
            assert await store.compact(
                LEG_DAY, bytes(range(1, seq)), upto=seq, base=seq - 1 if seq > 2 else 0
            )
        is_over = True

    writing = asyncio.ensure_future(write())
    while not is_over:
        loaded = await other.load(LEG_DAY)
        assert loaded is not None
        assert len(loaded.snapshot or b"") in (0, loaded.snapshot_seq - 1)
        assert loaded.seq == loaded.snapshot_seq + len(loaded.updates)
        assert not writing.done() or writing.exception() is None
    await writing


async def test_what_has_been_kept_for_a_week_is_deleted_at_the_next_start(
    store: MongoStore, raw: Database, mongo_uri: str
) -> None:
    await create(store)
    await store.append(record(b"a", everything()))
    await store.revoke(Revocation("token", "ended", 1), entry("root"))
    await store.compact(LEG_DAY, b"snapshot", upto=2, base=0)
    await store.close()
    await raw["log"].update_many({"doc": str(LEG_DAY)}, {"$set": {"expires_ms": 1}})
    async with opening(mongo_uri) as again:
        assert await raw["log"].find({"doc": str(LEG_DAY)}).to_list() == []
        assert await raw["revocations"].find().to_list() == []
        assert await again.answer(ANA, "op") is None
        with pytest.raises(Conflict):
            await create(again)
        assert (await again.append(record(b"b"))).seq == 3
        assert await stored(again) == [b"b"]


# -- a crash between the commit and what follows from it ----------------------------------------


@contextmanager
def cut_short() -> Iterator[None]:
    """The connection is lost right after a log record was written."""

    async def fail(*_: object) -> None:
        raise AutoReconnect("connection closed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mongo_projection, "project", fail)
        yield


async def test_an_append_that_was_cut_short_is_unavailable(store: MongoStore) -> None:
    with cut_short():
        with pytest.raises(Unavailable) as refused:
            await create(store)
        assert refused.value.retry_after_ms
        for asked in (store.load(LEG_DAY), store.summary(LEG_DAY), store.append(record(b"a"))):
            with pytest.raises(Unavailable):
                await asked


async def test_an_operation_that_was_cut_short_has_its_answer(store: MongoStore) -> None:
    await create(store)
    with cut_short():
        with pytest.raises(Unavailable):
            await store.append(record(b"a", everything()))
        assert await store.answer(ANA, "op") == {"ok": True, "records": ["weight"]}


async def test_a_creation_that_was_cut_short_is_one(store: MongoStore, other: MongoStore) -> None:
    with cut_short(), pytest.raises(Unavailable):
        await create(store)
    for which in (other, store):
        with pytest.raises(Conflict):
            await create(which)
    assert await stored(other) == [b"created"]
    assert await store.summary(LEG_DAY) == summary()


NEXT: dict[str, Callable[[MongoStore], Awaitable[Any]]] = {
    "load": lambda store: store.load(LEG_DAY),
    "append": lambda store: store.append(record(b"next", status="completed")),
    "an append elsewhere": lambda store: create(store, PULL_DAY),
    "summary": lambda store: store.summary(LEG_DAY),
    "summaries": lambda store: store.summaries(BEN, DocKind.WORKOUT, limit=1),
    "active_workout": lambda store: store.active_workout(ANA),
    "claim_active": lambda store: store.claim_active(BEN, "w"),
    "compact": lambda store: store.compact(LEG_DAY, b"snapshot", upto=1, base=0),
}


@pytest.mark.parametrize("ask", NEXT.values(), ids=NEXT.keys())
async def test_whatever_is_asked_next_repairs_what_was_cut_short(
    store: MongoStore, raw: Database, ask: Callable[[MongoStore], Awaitable[Any]]
) -> None:
    await create(store)
    await store.claim_active(ANA, "leg-day")
    with cut_short(), pytest.raises(Unavailable):
        await store.append(record(b"a", everything(), status="completed"))
    assert await raw["awards"].find().to_list() == []
    await ask(store)
    assert len(await raw["awards"].find().to_list()) == 1
    assert await store.active_workout(ANA) is None
    await assert_everything(store, status="completed")


async def test_a_start_repairs_what_the_crash_before_it_cut_short(
    store: MongoStore, mongo_uri: str
) -> None:
    await create(store)
    await store.claim_active(ANA, "leg-day")
    with cut_short(), pytest.raises(Unavailable):
        await store.append(record(b"a", everything(), status="completed"))
    async with opening(mongo_uri) as again:
        assert await again.active_workout(ANA) is None
        assert len(await again.summaries(BEN, DocKind.WORKOUT, limit=1)) == 1
        await assert_everything(again, status="completed")


async def test_what_another_server_left_is_repaired_by_a_server_that_runs(
    store: MongoStore, other: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo, "SWEEP_EVERY_S", 0)
    await create(store)
    with cut_short():
        with pytest.raises(Unavailable):
            await store.append(record(b"a", everything()))
        await store.close()

    async def is_repaired() -> bool:
        return bool(await other.summaries(BEN, DocKind.WORKOUT, limit=1))

    await until(is_repaired)


async def test_a_revocation_that_was_cut_short_is_kept(store: MongoStore, mongo_uri: str) -> None:
    revocation = Revocation("token", "t1", LATER_MS)
    op = entry("root", op_id="op", answer=lambda stored: {"ok": True})
    with cut_short(), pytest.raises(Unavailable):
        await store.revoke(revocation, op)
    assert list(await store.revocations(NOW_MS)) == [revocation]
    async with opening(mongo_uri) as again:
        assert list(await again.revocations(NOW_MS)) == [revocation]
        assert await again.answer(UserId("root"), "op") == {"ok": True}


async def test_what_follows_from_a_record_may_be_written_twice_and_late(
    store: MongoStore, raw: Database
) -> None:
    await create(store)
    await store.append(record(b"a", everything(), title="Older", status="active"))
    late = await raw["log"].find_one({"doc": str(LEG_DAY), "pos": 2})
    later = entry(members=[Member(BEN, "", "Ben")], scores=[score("s", weight=80)])
    await store.append(record(b"b", later, title="Newer", status="paused"))
    await store.claim_active(ANA, "leg-day")
    before = await store.load(LEG_DAY)
    for _ in range(2):
        await mongo_projection.project(store._db, late)
        assert await store.load(LEG_DAY) == before
        assert await store.summary(LEG_DAY) == summary(title="Newer", status="paused")
        assert await store.summaries(BEN, DocKind.WORKOUT, limit=1) == []
        assert await store.active_workout(ANA) == "leg-day"
    assert await log_set(store, score("t", weight=90)) == {("t", "weight")}


# -- two writers --------------------------------------------------------------------------------


async def test_of_two_who_write_the_same_position_one_wins_and_the_other_reads_again(
    store: MongoStore, other: MongoStore
) -> None:
    await create(store)
    await other.load(LEG_DAY)
    await store.append(record(b"a"))
    with pytest.raises(Unavailable):
        await other.append(record(b"b"))
    assert await stored(other) == [b"created", b"a"]
    assert (await other.append(record(b"b"))).seq == 3
    assert await stored(store) == [b"created", b"a", b"b"]


async def test_a_race_of_two_writers_loses_and_doubles_nothing(
    store: MongoStore, other: MongoStore
) -> None:
    await create(store)
    won_by: list[bytes] = []

    async def write(writer: MongoStore, name: bytes) -> None:
        for number in range(30):
            mine = name + bytes([number])
            while True:
                try:
                    seq = (await writer.append(record(mine))).seq
                except Unavailable:
                    await writer.load(LEG_DAY)
                else:
                    won_by.append(mine)
                    assert (await stored(writer))[seq - 1] == mine
                    break

    await asyncio.gather(write(store, b"a"), write(other, b"b"))
    found = await stored(store)
    assert sorted(found[1:]) == sorted(won_by)
    assert len(found) == 61
    assert [update for update in found if update[:1] == b"a"] == [
        b"a" + bytes([number]) for number in range(30)
    ]


async def test_who_slept_through_a_compaction_cannot_write_behind_it(
    store: MongoStore, other: MongoStore
) -> None:
    await create(store)
    await other.load(LEG_DAY)
    await store.append(record(b"a"))
    assert await store.compact(LEG_DAY, b"snapshot", upto=2, base=0)
    with pytest.raises(Unavailable):
        await other.append(record(b"lost"))
    assert await stored(other) == []


async def test_of_two_writers_who_create_one_wins(store: MongoStore, other: MongoStore) -> None:
    outcomes = await asyncio.gather(create(store), create(other), return_exceptions=True)
    assert sorted(type(outcome) for outcome in outcomes if outcome) == [Conflict]


async def test_records_of_one_user_in_many_workouts_at_once_are_won_one_after_the_other(
    store: MongoStore,
) -> None:
    docs = [ids.workout(f"w{number}") for number in range(12)]
    for doc in docs:
        await create(store, doc)
    outcomes = await asyncio.gather(
        *(
            store.append(record(b"set", entry(scores=[score("s", weight=100 + number)]), doc=doc))
            for number, doc in enumerate(docs)
        )
    )
    awards = [outcome.awards["s"]["weight"] for outcome in outcomes if won(outcome)]
    previous = [award.previous for award in awards]
    assert len(previous) == len(set(previous)), "two sets beat the same one"
    assert max(award.value for award in awards) == 111


async def test_a_document_that_there_is_not_takes_no_record(store: MongoStore) -> None:
    with pytest.raises(NotFound):
        await store.append(record(b"orphan"))
    assert await store.load(LEG_DAY) is None


# -- too large ----------------------------------------------------------------------------------


async def test_a_record_that_mongodb_would_not_take_is_not_sent(store: MongoStore) -> None:
    await create(store)
    with pytest.raises(TooLarge) as refused:
        await store.append(record(b"x" * mongo.MAX_RECORD_BYTES, everything()))
    assert refused.value.details["limit_bytes"] == mongo.MAX_RECORD_BYTES
    assert await stored(store) == [b"created"]
    assert await store.answer(ANA, "op") is None
    assert (await store.append(record(b"small"))).seq == 2


async def test_an_answer_that_cannot_be_made_leaves_nothing(store: MongoStore) -> None:
    await create(store)
    bad = entry(op_id="op", answer=lambda stored: {"ok": object()})
    with pytest.raises(TypeError):
        await store.append(record(b"a", bad))
    assert (await store.append(record(b"b"))).seq == 2


# -- damage -------------------------------------------------------------------------------------


async def test_a_damaged_record_is_not_served(store: MongoStore, raw: Database) -> None:
    await create(store)
    await create(store, PULL_DAY)
    await raw["log"].update_one({"doc": str(LEG_DAY)}, {"$set": {"yjs": b"creates"}})
    with pytest.raises(Unavailable, match="damaged"):
        await store.load(LEG_DAY)
    assert await stored(store, PULL_DAY) == [b"created"]


async def test_a_log_with_a_gap_is_not_served(store: MongoStore, raw: Database) -> None:
    await create(store)
    for update in (b"a", b"b"):
        await store.append(record(update))
    await raw["log"].delete_one({"doc": str(LEG_DAY), "pos": 2})
    with pytest.raises(Unavailable, match="damaged"):
        await store.load(LEG_DAY)


@pytest.mark.parametrize("damage", ["changed", "gone"])
async def test_a_damaged_snapshot_is_not_served(
    store: MongoStore, raw: Database, damage: str
) -> None:
    await create(store)
    await store.compact(LEG_DAY, b"snapshot", upto=1, base=0)
    if damage == "gone":
        await raw["snapshots"].delete_many({})
    else:
        await raw["snapshots"].update_many({}, {"$set": {"data": b"snapshut"}})
    with pytest.raises(Unavailable, match="damaged"):
        await store.load(LEG_DAY)


# -- opening and closing --------------------------------------------------------------------------


async def test_data_of_a_newer_version_are_left_alone(
    store: MongoStore, raw: Database, mongo_uri: str
) -> None:
    newer = {"$set": {"version": SCHEMA_VERSION + 1}}
    await raw["meta"].update_one({"_id": "schema"}, newer)
    late = MongoStore(mongo_uri)
    with pytest.raises(StorageError, match="newer RepSync"):
        await late.open()
    await late.close()


@pytest.mark.parametrize(
    ("path", "name"), [("", "repsync"), ("/", "repsync"), ("/training", "training")]
)
async def test_the_path_names_the_database(path: str, name: str) -> None:
    store = MongoStore(f"mongodb://127.0.0.1{path}")
    assert store._db.name == name
    await store.close()


async def test_no_uri_makes_acks_mean_less() -> None:
    lax = "w=0&journal=false&retryWrites=false&readPreference=secondary"
    store = MongoStore(f"mongodb://127.0.0.1/?{lax}&maxPoolSize=7&timeoutMS=700")
    assert store._db.write_concern.document == {"w": "majority", "j": True}
    assert store._db.read_preference.name == "Primary"
    assert store._client.options.retry_writes
    assert store._client.options.pool_options.max_pool_size == 7
    assert store._client.options.timeout == 0.7
    await store.close()


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://",
        "mongodb://u:hunter2/@host",
        "mongodb://u:hunter2@host:port",
        "mongodb://u:hunter2@[::1",
        "mongodb://u:hunter2@host/$a",
    ],
)
def test_a_uri_that_is_none_is_told_without_its_password(uri: str) -> None:
    with pytest.raises(StorageError) as refused:
        MongoStore(uri)
    assert "MONGODB_URI" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.fixture
def cut_connects() -> Iterator[None]:
    """The driver does not close a socket whose connecting it cancels; the collector does."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.usefixtures("cut_connects")
async def test_a_mongodb_that_is_not_there_is_told_by_its_address() -> None:
    store = MongoStore("mongodb://u:hunter2@127.0.0.1:1", start_timeout_s=0.3)
    with pytest.raises(StorageError) as refused:
        await store.open()
    await store.close()
    assert "127.0.0.1:1 has not answered" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("ask", NEXT.values(), ids=NEXT.keys())
async def test_what_is_asked_of_a_closed_store_is_refused(
    store: MongoStore, ask: Callable[[MongoStore], Awaitable[Any]]
) -> None:
    await store.close()
    await store.close()
    with pytest.raises(Unavailable):
        await ask(store)


def test_a_failure_is_explained_without_hosts() -> None:
    told = [
        mongo.explain(exc)
        for exc in (
            ServerSelectionTimeoutError("db.internal:27017: refused"),
            NetworkTimeout("db.internal:27017: timed out"),
            AutoReconnect("db.internal:27017: closed"),
            OperationFailure("db.internal", 13, {"codeName": "Unauthorized"}),
        )
    ]
    assert not any("internal" in text for text in told)
    assert "Unauthorized" in told[-1]


@pytest.mark.parametrize(
    ("hello", "is_replicated"),
    [({"setName": "rs0"}, True), ({"msg": "isdbgrid"}, True), ({"ok": 1}, False)],
)
def test_a_majority_is_asked_for_where_there_is_one(
    hello: dict[str, Any], is_replicated: bool
) -> None:
    assert mongo.is_replicated(hello) == is_replicated


# -- a MongoDB that is slow, cut off, or killed ---------------------------------------------------


@pytest.fixture
async def proxy(mongo_server: str, cut_connects: None) -> AsyncIterator[Proxy]:
    """Stands between the store and a MongoDB server."""
    parts = urlsplit(mongo_server)
    async with proxied(parts.hostname or "127.0.0.1", parts.port or 27017) as proxy:
        yield proxy


@pytest.fixture
async def distant(mongo_uri: str, proxy: Proxy) -> AsyncIterator[MongoStore]:
    """A store that reaches its MongoDB through the proxy, and waits for it half a second."""
    async with opening(behind(proxy, mongo_uri)) as store:
        yield store


def behind(proxy: Proxy, uri: str) -> str:
    parts = urlsplit(proxy.url(uri))
    query = "&".join(filter(None, (parts.query, "timeoutMS=500&directConnection=true")))
    return urlunsplit(parts._replace(query=query))


async def recovered(store: MongoStore) -> None:
    async def answers() -> bool:
        try:
            return bool(await store.check())
        except Unavailable:
            return False

    await until(answers)


async def test_a_slow_mongodb_is_waited_for(distant: MongoStore, proxy: Proxy) -> None:
    proxy.latency(0.02)
    await create(distant)
    await distant.append(record(b"a", entry(scores=[score("s", weight=100)])))
    assert await stored(distant) == [b"created", b"a"]
    assert await distant.check() > 0.02


async def test_a_mongodb_that_stalls_is_unavailable_and_then_back(
    distant: MongoStore, store: MongoStore, proxy: Proxy
) -> None:
    await create(distant)
    proxy.black_hole()
    asked = [
        distant.append(record(b"a")),
        distant.load(LEG_DAY),
        distant.answer(ANA, "op"),
        distant.summary(LEG_DAY),
        distant.summaries(ANA, DocKind.WORKOUT, limit=1),
        distant.claim_active(ANA, "w"),
        distant.revocations(NOW_MS),
        distant.check(),
    ]
    async with asyncio.timeout(DEADLINE_S):
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * len(asked)
    proxy.heal()
    await recovered(distant)
    # What became of the append is not known, and both ends agree on it.
    assert await stored(distant) == await stored(store)
    await distant.append(record(b"b"))
    assert (await stored(store))[-1] == b"b"


async def test_a_connection_that_is_cut_comes_back_by_itself(
    distant: MongoStore, store: MongoStore, proxy: Proxy
) -> None:
    await create(distant)
    proxy.down()
    with pytest.raises(Unavailable) as refused:
        await distant.append(record(b"a"))
    assert "127.0.0.1" not in f"{refused.value} {refused.value.__cause__}"
    proxy.heal()
    await recovered(distant)
    assert await stored(distant) == await stored(store)
    assert (await distant.append(record(b"b"))).seq


async def test_connections_that_are_cut_at_work_lose_nothing_that_was_acked(
    distant: MongoStore, store: MongoStore, proxy: Proxy
) -> None:
    docs = [ids.workout(f"w{number}") for number in range(8)]
    for doc in docs:
        await create(distant, doc)
    acked: dict[ids.DocName, list[bytes]] = {doc: [] for doc in docs}
    unknown: dict[ids.DocName, list[bytes]] = {doc: [] for doc in docs}
    is_over = False

    async def write(doc: ids.DocName) -> None:
        for number in itertools.count():
            if is_over:
                return
            update = number.to_bytes(4)
            try:
                await distant.append(record(update, entry(scores=[score("s", weight=1)]), doc=doc))
            except Unavailable:
                unknown[doc].append(update)
                await asyncio.sleep(0.02)
            else:
                acked[doc].append(update)

    writing = asyncio.gather(*map(write, docs))
    for _ in range(5):
        counts = {doc: len(acked[doc]) for doc in docs}

        async def all_go_on() -> bool:
            return writing.done() or all(len(acked[doc]) > counts[doc] for doc in docs)  # noqa: B023

        await until(all_go_on)
        proxy.down()
        await asyncio.sleep(0.01)
        proxy.heal()
    is_over = True
    await writing
    assert any(unknown.values())
    for doc in docs:
        found = (await stored(store, doc))[1:]
        assert set(acked[doc]) <= set(found) <= {*acked[doc], *unknown[doc]}
        assert len(found) == len(set(found))
        assert found == sorted(found)


@pytest.mark.usefixtures("cut_connects")
async def test_a_start_waits_for_a_mongodb_that_comes_up(mongo_process: MongoProcess) -> None:
    mongo_process.kill()
    store = MongoStore(mongo_process.uri)
    opening = asyncio.ensure_future(store.open())
    await asyncio.sleep(0)
    await asyncio.to_thread(mongo_process.start)
    async with asyncio.timeout(DEADLINE_S):
        await opening
    await create(store)
    await store.close()


@pytest.mark.usefixtures("cut_connects")
async def test_what_was_acked_survives_the_death_of_mongodb(mongo_process: MongoProcess) -> None:
    async with opening(f"{mongo_process.uri}/?timeoutMS=1000") as store:
        await create(store)
        await store.append(record(b"a", everything()))
        mongo_process.kill()
        for asked in (store.append(record(b"lost")), store.load(LEG_DAY), store.check()):
            with pytest.raises(Unavailable):
                await asked
        await asyncio.to_thread(mongo_process.start)
        await recovered(store)
        assert await stored(store) == [b"created", b"a"]
        await assert_everything(store)
