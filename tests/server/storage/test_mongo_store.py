"""The store in MongoDB: what every store promises, and what becomes of it when servers die, stall
and race."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from crdt.ids import ConnectionId, DocKind, UserId
from crdt.ports import Append, Author, Entry, Stored
from crdt.records import Award
from crdt.revocations import Revocation
from server.storage import mongo, mongo_log, mongo_projection, mongo_schema
from server.storage.mongo import MongoStore
from server.storage.mongo_log import Damaged
from server.storage.mongo_schema import SCHEMA_VERSION
from server.storage.port import StorageError
from tests.contracts.update_store import (
    ANA,
    BEN,
    LATER_MS,
    OWNER,
    PULL_DAY,
    StoreContract,
    create,
    log_set,
    record,
    score,
    summary,
    won,
)
from tests.helpers import mongo_servers
from tests.helpers.mongo_servers import MongoProcess, opening
from tests.helpers.proxies import Proxy, proxied
from tests.helpers.rooms import LEG_DAY, NOW_MS, entry

DEADLINE_S = 20.0
Database = Any


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


# -- records that were committed elsewhere ------------------------------------------------------

EPOCH_STRIDE = 100_000
SQUAT = "name:squat"


def drafted(batch: Append, *awards: Award, seq: int = 0) -> dict[str, Any]:
    """What another log holds of a record, of which its first entry won these."""
    by_entry = [awards, *([()] * (len(batch.entries) - 1))]
    by_set: dict[str, dict[str, Award]] = {}
    for award in awards:
        by_set.setdefault(award.set_id, {})[award.type] = award
    return mongo_log.draft(batch, by_entry, Stored(seq, by_set, [by_set]), NOW_MS)


CREATED = drafted(record(b"created", entry(members=[OWNER]), creates=True))
FIRST_SQUAT = Award("s", ANA, SQUAT, "weight", 100, None)


def moved(updates: Mapping[int, bytes]) -> list[tuple[int, dict[str, Any]]]:
    return [(pos, drafted(record(update))) for pos, update in updates.items()]


async def chain(raw: Database, doc: ids.DocName = LEG_DAY) -> list[int]:
    """The positions of a document's records, once they are known to be one chain."""
    records = await raw["log"].find({"doc": str(doc)}, sort=[("pos", 1)]).to_list()
    positions = [found["pos"] for found in records]
    assert [found["prev"] for found in records] == [0, *positions][:-1]
    return positions


async def test_a_record_that_was_moved_here_is_the_same_in_all(
    store: MongoStore, raw: Database
) -> None:
    assert await store.last(LEG_DAY) is None
    assert await store.persist(LEG_DAY, [(1, CREATED)]) == 1
    packed = mongo_log.pack(drafted(record(b"a", everything()), FIRST_SQUAT))
    assert await store.persist(LEG_DAY, [(2, mongo_log.unpack(packed))]) == 2
    assert await store.persist(LEG_DAY, [(3, drafted(record(None)))]) == 3
    assert await store.last(LEG_DAY) == (3, NOW_MS, 0, ("", 0))
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert (list(loaded.updates), loaded.seq) == ([b"created", b"a"], 3)
    assert await chain(raw) == [1, 2, 3]
    await assert_everything(store)


async def test_moving_the_same_again_changes_nothing(store: MongoStore, raw: Database) -> None:
    records = [(1, CREATED), (2, drafted(record(b"a", everything()), FIRST_SQUAT))]
    assert await store.persist(LEG_DAY, records) == 2
    before = await store.load(LEG_DAY)
    assert await store.persist(LEG_DAY, records) == 2
    assert await store.persist(LEG_DAY, [*records, *moved({3: b"b"})]) == 3
    assert await store.persist(LEG_DAY, []) == 3
    loaded = await store.load(LEG_DAY)
    assert before is not None
    assert loaded is not None
    assert list(loaded.updates) == [*before.updates, b"b"]
    assert (loaded.members, loaded.awards) == (before.members, before.awards)


async def test_what_was_moved_here_goes_on_where_appends_ended(
    store: MongoStore, other: MongoStore, raw: Database
) -> None:
    await create(store)
    await store.append(record(None))
    last = await other.last(LEG_DAY)
    assert last is not None
    assert last == (2, NOW_MS, 0, ("", 0))
    at = last.pos + EPOCH_STRIDE
    assert await other.persist(LEG_DAY, moved({at + 1: b"a", at + 2: b"b"})) == at + 2
    with pytest.raises(Unavailable):  # whoever had seen the log's end before
        await store.append(record(b"late"))
    assert (await store.append(record(b"c"))).seq == at + 3
    assert await stored(other) == [b"created", b"a", b"b", b"c"]
    assert await chain(raw) == [1, 2, at + 1, at + 2, at + 3]


@pytest.mark.parametrize("at_once", [1, 3, 1_000])
async def test_a_long_backlog_arrives_whole_and_in_order(
    store: MongoStore, raw: Database, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(mongo, "PERSISTED_AT_ONCE", at_once)
    monkeypatch.setattr(mongo, "PERSISTED_AT_ONCE_BYTES", 100)
    updates = {pos: bytes([pos]) * pos for pos in range(2, 60)}
    assert await store.persist(LEG_DAY, [(1, CREATED), *moved(updates)]) == 59
    assert await stored(store) == [b"created", *updates.values()]
    assert await chain(raw) == list(range(1, 60))


class Killed(BaseException):
    """The process is no more."""


def shaky(store: MongoStore, dice: random.Random) -> None:
    """Let it pause between any two steps of moving, and be killed there now and then."""

    def shake(step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def shaken(*args: Any) -> Any:
            await pause()
            result = await step(*args)
            await pause()
            return result

        return shaken

    async def pause() -> None:
        await asyncio.sleep(dice.choice([0, 0, 0.001, 0.02]))
        if dice.random() < 0.05:
            raise Killed

    for name in ("_last", "_insert", "_project"):
        setattr(store, name, shake(getattr(store, name)))


async def test_movers_of_the_same_records_never_harm_each_other(
    mongo_uri: str, raw: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo, "PERSISTED_AT_ONCE", 5)
    monkeypatch.setattr(mongo, "LOST_RACE_PAUSE_S", 0.005)
    updates = {pos: pos.to_bytes(3) for pos in [*range(2, 40), *range(100_039, 100_080)]}
    sets = {pos: Award(f"s{pos}", ANA, SQUAT, "weight", pos, None) for pos in updates}
    records = [
        (1, CREATED),
        *(
            (
                pos,
                drafted(
                    record(
                        update,
                        entry(
                            op_id=f"op{pos}",
                            answer=lambda stored: {"ok": True},
                            scores=[score(sets[pos].set_id, weight=pos)],
                            client_ids=[(7, UserId(f"user{pos}"))],
                        ),
                        title=f"Day {pos}",
                    ),
                    sets[pos],
                ),
            )
            for pos, update in updates.items()
        ),
    ]

    positions = [pos for pos, _ in records]

    async def move(number: int) -> None:
        """Move all of it, in parts; begin again as another process each time one is killed."""
        dice = random.Random(number)
        while True:
            async with opening(mongo_uri) as mover:
                shaky(mover, dice)
                try:
                    while (last := await mover.last(LEG_DAY)) is None or last.pos < positions[-1]:
                        there = 0 if last is None else positions.index(last.pos) + 1
                        start = dice.randrange(there + 1)
                        await mover.persist(LEG_DAY, records[start : there + dice.randrange(12)])
                except Killed:
                    continue
                return

    async with asyncio.timeout(60):
        await asyncio.gather(*map(move, range(4)))
    assert await chain(raw) == [1, *updates]
    async with opening(mongo_uri) as store:
        loaded = await store.load(LEG_DAY)
        assert loaded is not None
        assert (list(loaded.updates), loaded.seq) == ([b"created", *updates.values()], 100_079)
        assert loaded.client_ids == {7: "user2"}
        assert {id_: set(won) for id_, won in loaded.awards.items()} == {
            award.set_id: {"weight"} for award in sets.values()
        }
        assert await store.summary(LEG_DAY) == summary(title="Day 100079")
        for pos in updates:
            assert await store.answer(ANA, f"op{pos}") == {"ok": True}
    assert len(await raw["scores"].find().to_list()) == len(updates)


async def test_a_late_writer_of_an_older_epoch_cannot_slip_in(
    store: MongoStore, other: MongoStore, raw: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.persist(LEG_DAY, [(1, CREATED), *moved({2: b"a"})])
    insert, is_reached, may_go_on = store._insert, asyncio.Event(), asyncio.Event()

    async def sleep_before(batch: Any) -> int:
        is_reached.set()
        await may_go_on.wait()
        return await insert(batch)

    monkeypatch.setattr(store, "_insert", sleep_before)
    late = asyncio.ensure_future(store.persist(LEG_DAY, moved({3: b"lost", 4: b"lost"})))
    await is_reached.wait()
    assert await other.persist(LEG_DAY, moved({100_003: b"b"})) == 100_003
    may_go_on.set()
    assert await late == 100_003
    assert await stored(store) == [b"created", b"a", b"b"]
    assert await chain(raw) == [1, 2, 100_003]


async def test_the_same_change_under_another_position_stops_nobody(
    store: MongoStore, raw: Database
) -> None:
    again = drafted(record(b"a", everything()), FIRST_SQUAT)
    better = Award("s", ANA, SQUAT, "weight", 100, 90)
    await store.persist(LEG_DAY, [(1, CREATED), (2, again)])
    records = [(100_002, drafted(record(b"a", everything()), better)), *moved({100_003: b"b"})]
    assert await store.persist(LEG_DAY, records) == 100_003
    assert await stored(store) == [b"created", b"a", b"a", b"b"]
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert loaded.awards == {"s": {"weight": FIRST_SQUAT}}
    await assert_everything(store)
    with_op = await raw["log"].find({"ops": {"$exists": True}}).to_list()
    assert [found["pos"] for found in with_op] == [2]


async def test_an_operation_that_comes_twice_in_one_batch_is_kept_once(
    store: MongoStore, raw: Database
) -> None:
    twice = drafted(record(b"a", everything()), FIRST_SQUAT)
    assert await store.persist(LEG_DAY, [(1, CREATED), (2, twice), (3, twice)]) == 3
    with_op = await raw["log"].find({"ops": {"$exists": True}}).to_list()
    assert [found["pos"] for found in with_op] == [2]
    await assert_everything(store)


async def test_moving_that_was_cut_short_is_repaired_by_who_opens_the_document(
    store: MongoStore, other: MongoStore
) -> None:
    records = [
        (1, CREATED),
        (2, drafted(record(b"a", everything(), title="Older"), FIRST_SQUAT)),
        (3, drafted(record(b"b")._replace(summary=None))),
    ]
    with cut_short(), pytest.raises(Unavailable):
        await store.persist(LEG_DAY, records)
    assert await other.summary(LEG_DAY) is None
    assert await stored(other) == [b"created", b"a", b"b"]
    assert await store.summary(LEG_DAY) == summary(title="Older")
    assert await store.persist(LEG_DAY, [*records, *((4, drafted(record(b"c"))),)]) == 4
    await assert_everything(store)


async def test_a_snapshot_of_what_another_left_unfinished_takes_nothing_along(
    store: MongoStore, other: MongoStore
) -> None:
    await store.persist(LEG_DAY, [(1, CREATED)])
    with cut_short(), pytest.raises(Unavailable):
        await store.persist(LEG_DAY, [(2, drafted(record(b"a", everything()), FIRST_SQUAT))])
    assert await other.compact(LEG_DAY, b"snapshot", upto=2, base=0)
    loaded = await other.load(LEG_DAY)
    assert loaded is not None
    assert (loaded.snapshot, list(loaded.updates)) == (b"snapshot", [])
    await assert_everything(other)


async def test_snapshots_of_a_log_that_jumps_lose_nothing(
    store: MongoStore, raw: Database, mongo_uri: str
) -> None:
    at = EPOCH_STRIDE
    await store.persist(LEG_DAY, [(1, CREATED), (2, drafted(record(None))), *moved({at: b"a"})])
    assert not await store.compact(LEG_DAY, b"of nothing that is here", upto=3, base=0)
    assert await store.compact(LEG_DAY, b"upto 2", upto=2, base=0)
    assert await store.last(LEG_DAY) == (at, NOW_MS, 2, ("", 0))
    assert await stored(store) == [b"a"]
    await store.persist(LEG_DAY, moved({at + 1: b"b", 2 * at: b"c"}))
    assert not await store.compact(LEG_DAY, b"older", upto=at, base=1)
    assert await store.compact(LEG_DAY, b"newer", upto=at + 1, base=2)
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert (loaded.snapshot, list(loaded.updates)) == (b"newer", [b"c"])
    assert (loaded.snapshot_seq, loaded.seq) == (at + 1, 2 * at)
    assert await store.compact(LEG_DAY, b"newest", upto=2 * at, base=at + 1)
    await raw["log"].update_many({"doc": str(LEG_DAY)}, {"$set": {"expires_ms": 1}})
    async with opening(mongo_uri) as again:  # which deletes what was kept for long enough
        assert await raw["log"].find().to_list() == []
        assert await again.last(LEG_DAY) == (2 * at, NOW_MS, 2 * at, None)
        assert await again.persist(LEG_DAY, moved({2 * at + 1: b"d"})) == 2 * at + 1
        assert await stored(again) == [b"d"]


async def test_a_room_is_read_right_while_others_move_and_make_snapshots(
    store: MongoStore, other: MongoStore, mongo_uri: str
) -> None:
    await store.persist(LEG_DAY, [(1, CREATED)])
    is_over = False

    async def move() -> None:
        nonlocal is_over
        for pos in range(2, 80, 3):
            await store.persist(LEG_DAY, moved({p: bytes([p]) for p in range(pos, pos + 3)}))
        is_over = True

    async def shorten(compactor: MongoStore) -> None:
        while not is_over:
            loaded = await compactor.load(LEG_DAY)
            assert loaded is not None
            await compactor.compact(
                LEG_DAY, bytes(loaded.seq), upto=loaded.seq, base=loaded.snapshot_seq
            )

    moving = asyncio.ensure_future(move())
    async with opening(mongo_uri) as third:
        shortening = [asyncio.ensure_future(shorten(each)) for each in (other, third)]
        while not is_over:
            loaded = await store.load(LEG_DAY)
            assert loaded is not None
            # A snapshot of this test is as long as what it stands for.
            assert len(loaded.snapshot or b"") == loaded.snapshot_seq
            assert loaded.seq == loaded.snapshot_seq + len(loaded.updates)
            assert not moving.done() or moving.exception() is None
        await asyncio.gather(moving, *shortening)
    loaded = await store.load(LEG_DAY)
    assert loaded is not None
    assert loaded.seq == 79


async def test_what_mongodb_cannot_hold_is_told_once_all_before_it_is_stored(
    store: MongoStore,
) -> None:
    too_large = drafted(record(b"x" * mongo_log.MAX_RECORD_BYTES))
    odd = {**drafted(record(b"b")), "members": [object()]}
    for bad in (too_large, odd):
        with pytest.raises(Damaged):
            await store.persist(
                LEG_DAY, [(1, CREATED), *moved({2: b"a"}), (3, bad), *moved({4: b"b"})]
            )
        assert await stored(store) == [b"created", b"a"]


async def test_a_mongodb_that_stalls_holds_no_mover_for_long(
    distant: MongoStore, store: MongoStore, proxy: Proxy
) -> None:
    await distant.persist(LEG_DAY, [(1, CREATED)])
    proxy.black_hole()
    async with asyncio.timeout(DEADLINE_S):
        for asked in (distant.persist(LEG_DAY, moved({2: b"a"})), distant.last(LEG_DAY)):
            with pytest.raises(Unavailable):
                await asked
    proxy.heal()
    await recovered(distant)
    assert await distant.persist(LEG_DAY, moved({2: b"a", 3: b"b"})) == 3
    assert await stored(store) == [b"created", b"a", b"b"]


async def test_a_book_holds_all_sets_and_what_they_have_won(
    store: MongoStore, other: MongoStore
) -> None:
    await store.persist(LEG_DAY, [(1, CREATED)])
    await create(store, PULL_DAY)
    await log_set(store, score("p", weight=80), score("b", ANA, "name:bench", reps=9), doc=PULL_DAY)
    await log_set(store, score("x", BEN, weight=500), doc=PULL_DAY)
    with cut_short(), pytest.raises(Unavailable):  # its scores are not in the book yet
        await store.persist(LEG_DAY, [(2, drafted(record(b"a", everything()), FIRST_SQUAT))])
    await log_set(store, score("p", weight=85, volume=900), score("gone"), doc=PULL_DAY)
    book = await other.book(ANA, SQUAT)
    assert sorted(book.rows, key=str) == [
        (LEG_DAY, "s", {"weight": 100}),
        (PULL_DAY, "gone", {}),
        (PULL_DAY, "p", {"volume": 900, "weight": 85}),
    ]
    assert {(str(doc), award.set_id, award.type, award.value) for doc, award in book.awards} == {
        (str(LEG_DAY), "s", "weight", 100),
        (str(PULL_DAY), "p", "weight", 80),
        (str(PULL_DAY), "p", "volume", 900),
    }
    assert await other.book(BEN, "name:bench") == ([], [])


@settings(max_examples=25)
@given(order=st.permutations(range(6)), again=st.lists(st.integers(0, 5), max_size=4))
def test_what_follows_from_records_is_the_same_in_any_order(
    mongo_server: str, order: list[int], again: list[int]
) -> None:
    """Several movers, each with some of the records, and one that comes late with the first."""
    records = [
        mongo_log.placed(
            drafted(
                record(
                    bytes([number]),
                    entry(
                        members=[Member(BEN, "coach" if number % 2 else "", "Ben")],
                        scores=[score("s", weight=100 + number)],
                        client_ids=[(7, UserId(f"user{number}"))],
                        removed_exercises=["squat"],
                    ),
                    title=f"Day {number}",
                ),
                Award("s", ANA, SQUAT, "weight", 100 + number, None),
            ),
            str(LEG_DAY),
            pos=number + 1,
            seq=number + 1,
            prev=number,
        )
        for number in range(6)
    ]

    async def project() -> None:
        async with mongo_servers.database_at(mongo_server) as uri:
            client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
            db = client.get_default_database()
            await mongo_projection.project(db, *(records[number] for number in order[:2]))
            together = (mongo_projection.project(db, records[number]) for number in order[2:])
            await asyncio.gather(*together)
            await mongo_projection.project(db, *(records[number] for number in again))
            [row] = await db["documents"].find().to_list()
            [member] = await db["members"].find().to_list()
            [scored] = await db["scores"].find().to_list()
            [award] = await db["awards"].find().to_list()
            [bound] = await db["client_ids"].find().to_list()
            [gone] = await db["removed_exercises"].find().to_list()
            assert (row["title"], member["role"], scored["weight"]) == ("Day 5", "coach", 105)
            assert (award["value"], bound["user_id"]) == (100, "user0")
            assert gone["exercise_id"] == "squat"
            await client.close()

    asyncio.run(project())


async def test_of_two_who_insert_a_row_at_once_the_one_that_counts_stays(
    raw: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MongoDB tells the slower one that the `_id` is taken, whichever of the two counts."""
    write_once = mongo_projection._write_once
    others = {"documents": 1, "client_ids": 3}

    def at(pos: int) -> dict[str, Any]:
        batch = record(None, entry(client_ids=[(7, UserId(f"user{pos}"))]), title=f"Day {pos}")
        return mongo_log.placed(drafted(batch), str(LEG_DAY), pos=pos, seq=pos, prev=pos - 1)

    outpaced: set[str] = set()

    async def outpace(db: Database, collection: str, operations: Any) -> Any:
        if collection not in outpaced:
            outpaced.add(collection)
            other = mongo_projection._operations(at(others[collection]))[collection]
            await write_once(db, collection, other)
            return range(len(operations))
        return await write_once(db, collection, operations)

    monkeypatch.setattr(mongo_projection, "_write_once", outpace)
    await mongo_projection.project(raw, at(2))
    [row] = await raw["documents"].find().to_list()
    [bound] = await raw["client_ids"].find().to_list()
    assert (row["title"], bound["user_id"]) == ("Day 2", "user2")


# -- a record as bytes --------------------------------------------------------------------------


def test_a_draft_says_who_did_what_and_all_that_it_brought() -> None:
    left = Member(BEN, "", "Ben")
    wrote = Entry(
        Author(BEN, "Ben", "watch", ConnectionId("c")), NOW_MS, "sync-update", members=[left]
    )
    batch = record(b"a", everything(), wrote)
    draft = mongo_log.unpack(mongo_log.pack(drafted(batch, FIRST_SQUAT, seq=9)))
    first, second = mongo_log.entries_of(draft)
    assert second.author == Author(BEN, "Ben", "watch", ConnectionId(""))
    assert (first.op_id, second.op_id, second.answer) == ("op", None, None)
    assert (first.event, first.at_ms) == ("sync-update", NOW_MS)
    assert first.answer is not None
    assert first.answer(Stored(0)) == {"ok": True, "records": ["weight"]}
    assert mongo_log.members_of(draft) == [Member(BEN, "coach", "Ben"), left]
    assert mongo_log.client_ids_of(draft) == [(7, ANA)]
    assert mongo_log.removed_exercises_of(draft) == ["squat"]
    assert mongo_log.awards_of(draft) == {"s": {"weight": FIRST_SQUAT}}
    assert draft["yjs"] == b"a"


async def test_records_without_names_can_be_read(store: MongoStore, raw: Database) -> None:
    await create(store)
    [found] = await raw["log"].find().to_list()
    del found["entries"][0]["name"]
    [made] = mongo_log.entries_of(found)
    assert (made.author.user_id, made.author.name) == (ANA, "")


PACKED = mongo_log.pack(drafted(record(b"abc", everything()), FIRST_SQUAT))


@given(at=st.integers(0, len(PACKED) - 1), flip=st.integers(1, 255))
def test_a_byte_that_has_flipped_is_seen(at: int, flip: int) -> None:
    with pytest.raises(Damaged):
        mongo_log.unpack(PACKED[:at] + bytes([PACKED[at] ^ flip]) + PACKED[at + 1 :])


@given(length=st.integers(0, len(PACKED) - 1))
def test_a_record_that_was_cut_off_is_seen(length: int) -> None:
    with pytest.raises(Damaged):
        mongo_log.unpack(PACKED[:length])


def sealed(value: Any) -> bytes:
    data: bytes = msgpack.packb(value)
    return mongo_log.checksum(data).to_bytes(4) + data


@given(
    st.binary(max_size=40)
    | st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ).map(sealed)
)
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(Damaged):
        mongo_log.unpack(data)


@pytest.mark.parametrize(
    "odd",
    [
        {"entries": None},
        {"entries": [{"user_id": "ana"}]},
        {"listed_at": "now"},
        {"listed_at": 2**63},
        {"yjs": b"another"},
        {"yjs": "text"},
        {"members": [{"user_id": "ben"}]},
        {"client_ids": [[7]]},
        {"client_ids": [["seven", 7]]},
        {"scores": [{"set_id": "s"}]},
        {"awards": [[]]},
        {"summary": {"title": "Leg day"}},
        {"pos": 7},
        {"doc": "workout:other"},
        {"expires_ms": 1},
    ],
    ids=str,
)
def test_a_record_of_another_shape_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(Damaged):
        mongo_log.unpack(sealed({**drafted(record(b"a", everything()), FIRST_SQUAT), **odd}))


def test_what_a_newer_version_puts_into_a_record_stays_in_it() -> None:
    newer = {**drafted(record(b"a")), "mood": "fine"}
    assert mongo_log.unpack(mongo_log.pack(newer)) == newer


def test_a_record_that_mongodb_would_not_take_is_not_packed() -> None:
    with pytest.raises(TooLarge):
        mongo_log.pack(drafted(record(b"x" * mongo_log.MAX_RECORD_BYTES)))
    largest = drafted(record(b"x" * (12 * 1024 * 1024), everything()), FIRST_SQUAT)
    assert mongo_log.unpack(mongo_log.pack(largest)) == largest


# -- too large ----------------------------------------------------------------------------------


async def test_a_record_that_mongodb_would_not_take_is_not_sent(store: MongoStore) -> None:
    await create(store)
    with pytest.raises(TooLarge) as refused:
        await store.append(record(b"x" * mongo_log.MAX_RECORD_BYTES, everything()))
    assert refused.value.details["limit_bytes"] == mongo_log.MAX_RECORD_BYTES
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


async def test_data_of_the_first_schema_are_brought_forward(
    store: MongoStore, raw: Database, mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(store)
    await store.append(record(b"a", everything()))
    await store.compact(LEG_DAY, b"snapshot", upto=1, base=0)
    await store.append(record(b"b"))
    await store.revoke(Revocation("token", "t1", LATER_MS), entry("root"))
    await store.close()
    await raw["log"].drop_index([("doc", 1), ("prev", 1)])
    await raw["log"].update_many({}, {"$unset": {"prev": ""}})
    await raw["meta"].update_one({"_id": "schema"}, {"$set": {"version": 1}})
    monkeypatch.setattr(mongo_schema, "CHUNK", 3)
    async with opening(mongo_uri) as again, opening(mongo_uri):
        assert await chain(raw) == [1, 2, 3]
        assert await stored(again) == [b"a", b"b"]
        assert await again.persist(LEG_DAY, moved({100_003: b"c"})) == 100_003
        assert await stored(again) == [b"a", b"b", b"c"]
    meta = await raw["meta"].find_one({"_id": "schema"})
    assert meta["version"] == SCHEMA_VERSION


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


async def test_it_closes_although_the_driver_loses_a_cancellation(
    mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_unmarking = asyncio.Event()

    async def unmark() -> None:
        is_unmarking.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(mongo, "TICK_S", 0.01)
    async with opening(mongo_uri) as store:
        monkeypatch.setattr(store, "_unmark", unmark)
        async with asyncio.timeout(10):
            await is_unmarking.wait()
            monkeypatch.undo()
            await store.close()


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


async def test_a_mongodb_that_does_not_answer_is_left_alone_until_somebody_has_looked(
    distant: MongoStore, store: MongoStore, proxy: Proxy
) -> None:
    await create(distant)
    proxy.black_hole()
    while distant.breaker.state == "closed":
        with pytest.raises(Unavailable):
            await distant.load(LEG_DAY)
    failures = distant.stats.failures
    assert failures >= mongo.FAILURES_IN_A_ROW
    for _ in range(5):
        with pytest.raises(Unavailable) as refused:
            await distant.append(record(b"a"))
        assert refused.value.retry_after_ms >= 1_000
        assert "left alone" in str(refused.value.__cause__)
    assert distant.stats.failures == failures
    proxy.heal()
    await recovered(distant)
    assert distant.breaker.state == "closed"
    assert await stored(distant) == await stored(store) == [b"created"]
    assert (await distant.append(record(b"b"))).seq == 2


async def test_who_is_only_impatient_keeps_nobody_else_from_asking(
    distant: MongoStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(distant)
    monkeypatch.setattr(mongo, "PROBE_TIMEOUT_S", 0.02)
    proxy.latency(0.05)
    for _ in range(2 * mongo.FAILURES_IN_A_ROW):
        with pytest.raises(Unavailable):
            await distant.check()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await distant.load(LEG_DAY)
    assert distant.breaker.state == "closed"
    proxy.heal()
    assert await stored(distant) == [b"created"]


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
