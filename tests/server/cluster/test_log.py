"""The shared log, in a real Redis and in a real Redis Cluster."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt import ids
from crdt.ids import DocName
from server.cluster.connection import Connection, connect
from server.cluster.envelope import Update, unpack_update
from server.cluster.log import (
    EpochChanged,
    Exists,
    Head,
    Missing,
    Outpaced,
    Record,
    RedisLog,
    Refused,
    Repeated,
    Unfounded,
)
from tests.helpers.redis_servers import ClusterProcesses
from tests.helpers.rooms import DEADLINE_S

DOC = ids.workout("leg-day")


async def founded(log: RedisLog, doc: DocName = DOC, *, pos: int = 0) -> Head:
    """The head of a document that exists."""
    return await log.found(doc, pos, exists=True)


async def append(log: RedisLog, origin: str, n: int, data: bytes = b"x", **options: Any) -> int:
    """Append to `DOC`, in its present epoch."""
    head = await log.head(DOC)
    assert head is not None
    return await log.append(DOC, data, epoch=head.epoch, origin=origin, n=n, **options)


@asynccontextmanager
async def listening(log: RedisLog, doc: DocName | None) -> AsyncIterator[Callable[[], Awaitable]]:
    """Gives a function that waits for the next message of the channel."""
    await log._redis.initialize()
    pubsub = log._redis.pubsub()
    await pubsub.subscribe(log.channel(doc))

    async def heard(type_: str = "message") -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while (message := await pubsub.get_message(timeout=1)) is None:
                pass
        assert message["type"] == type_
        return message["data"]

    await heard("subscribe")
    yield heard
    await pubsub.aclose()


# -- founding -------------------------------------------------------------------------------------


async def test_nothing_is_known_of_a_document_that_was_never_founded(log: RedisLog) -> None:
    assert await log.head(DOC) is None
    assert await log.read(DOC, 0) == []
    assert await log.length(DOC) == 0
    with pytest.raises(Unfounded):
        await log.append(DOC, b"x", epoch="e", origin="a", n=1)


async def test_the_first_founding_stands(log: RedisLog) -> None:
    first = await log.found(DOC, 7, exists=False)
    assert (first.pos, first.exists) == (7, False)
    assert await log.found(DOC, 99, exists=True) == first
    assert await log.head(DOC) == first


async def test_of_many_foundings_at_once_one_stands(log: RedisLog) -> None:
    heads = await asyncio.gather(*(log.found(DOC, pos, exists=True) for pos in range(20)))
    assert len(set(heads)) == 1


async def test_each_founding_is_an_epoch_of_its_own(log: RedisLog) -> None:
    other = ids.workout("pull-day")
    assert (await founded(log)).epoch != (await founded(log, other)).epoch


async def test_positions_go_on_from_the_founding(log: RedisLog) -> None:
    await founded(log, pos=100_007)
    assert await append(log, "a", 1) == 100_008


async def test_records_that_outlived_their_head_are_kept_and_the_new_ones_come_after(
    log: RedisLog, redis: Connection, prefix: str
) -> None:
    await founded(log, pos=10)
    await append(log, "a", 1, b"old")
    await redis.delete(f"{prefix}:{{{DOC}}}:head")
    head = await founded(log, pos=5)
    assert head.pos == 11
    await append(log, "b", 1, b"new")
    assert [record.data for record in await log.read(DOC, 0)] == [b"old", b"new"]


async def test_a_stream_of_which_all_was_trimmed_does_not_stop_a_founding(
    log: RedisLog, redis: Connection, prefix: str
) -> None:
    await founded(log, pos=10)
    await append(log, "a", 1)
    await redis.xtrim(f"{prefix}:{{{DOC}}}:log", maxlen=0, approximate=False)
    await redis.delete(f"{prefix}:{{{DOC}}}:head")
    await founded(log, pos=5)
    assert await append(log, "a", 1) == 6


# -- appending ------------------------------------------------------------------------------------


async def test_a_record_comes_back_as_it_went(log: RedisLog) -> None:
    await founded(log)
    everything = bytes(range(256)) * 300
    await append(log, "ana’s", 1, everything)
    assert await log.read(DOC, 0) == [Record(1, "ana’s", 1, everything)]


async def test_records_are_read_in_their_order_from_where_one_stands(log: RedisLog) -> None:
    await founded(log)
    for n in range(1, 13):
        await append(log, "a", n, bytes([n]))
    assert [record.pos for record in await log.read(DOC, 9)] == [10, 11, 12]
    assert [record.pos for record in await log.read(DOC, 3, limit=2)] == [4, 5]
    assert await log.read(DOC, 12) == []


async def test_who_listens_to_the_channel_is_told_of_a_record(log: RedisLog) -> None:
    head = await founded(log, pos=2**40)
    async with listening(log, DOC) as heard:
        await append(log, "ana’s", 7, b"\x00\xff" * 40_000)
        told = Update(2**40 + 1, head.epoch, "ana’s", 7, b"\x00\xff" * 40_000)
        assert unpack_update(await heard()) == told


async def test_what_is_published_is_heard_in_its_room_and_no_other(log: RedisLog) -> None:
    async with listening(log, DOC) as heard, listening(log, None) as heard_by_all:
        await log.publish(ids.workout("other"), b"elsewhere")
        await log.publish(DOC, b"here")
        await log.publish(None, b"everywhere")
        assert await heard() == b"here"
        assert await heard_by_all() == b"everywhere"


async def test_an_append_that_comes_again_gets_the_position_it_got(log: RedisLog) -> None:
    await founded(log)
    assert await append(log, "a", 1) == 1
    assert await append(log, "b", 1) == 2
    assert await append(log, "a", 1, creates=True, guards={"g": 0}) == 1
    assert await log.length(DOC) == 2
    assert await append(log, "b", 2, guards={"g": 0}) == 3


async def test_an_append_that_comes_late_and_again_adds_nothing(log: RedisLog) -> None:
    await founded(log)
    assert [await append(log, "a", n) for n in (1, 2)] == [1, 2]
    assert await append(log, "a", 1) == 2
    assert await log.length(DOC) == 2


async def test_a_repeated_append_tells_nobody(log: RedisLog) -> None:
    await founded(log)
    await append(log, "a", 1)
    async with listening(log, DOC) as heard:
        await append(log, "a", 1)
        await log.publish(DOC, b"next")
        assert await heard() == b"next"


async def test_appends_of_many_at_once_get_a_position_each(log: RedisLog) -> None:
    head = await founded(log)

    async def write(origin: str) -> list[int]:
        return [
            await log.append(DOC, b"x", epoch=head.epoch, origin=origin, n=n) for n in range(1, 21)
        ]

    by_origin = await asyncio.gather(*(write(f"o{i}") for i in range(10)))
    assert all(positions == sorted(positions) for positions in by_origin)
    assert sorted(itertools.chain(*by_origin)) == list(range(1, 201))
    assert [record.pos for record in await log.read(DOC, 0)] == list(range(1, 201))


async def test_documents_do_not_mix(log: RedisLog) -> None:
    other = await founded(log, ids.template("leg-day"))
    await founded(log)
    await append(log, "a", 1)
    assert await log.head(ids.template("leg-day")) == other


# -- what stands in the way -----------------------------------------------------------------------


async def test_a_writer_of_an_older_epoch_is_refused(log: RedisLog) -> None:
    head = await founded(log)
    with pytest.raises(EpochChanged) as refused:
        await log.append(DOC, b"x", epoch="older", origin="a", n=1)
    assert refused.value.epoch == head.epoch


async def test_a_document_is_created_once(log: RedisLog) -> None:
    await log.found(DOC, 0, exists=False)
    with pytest.raises(Missing):
        await append(log, "a", 1)
    assert await append(log, "a", 1, creates=True) == 1
    head = await log.head(DOC)
    assert head is not None
    assert head.exists
    with pytest.raises(Exists):
        await append(log, "b", 1, creates=True)


async def test_an_operation_is_answered_once(log: RedisLog) -> None:
    await founded(log)
    await append(log, "a", 1, answers={"ana/1": b"yes \xff", "ben/1": b"no"})
    assert await log.answer(DOC, "ana/1") == b"yes \xff"
    assert await log.answer(DOC, "ben/1") == b"no"
    assert await log.answer(DOC, "ana/2") is None
    assert await log.answer(ids.workout("other"), "ana/1") is None
    with pytest.raises(Repeated) as refused:
        await append(log, "b", 1, answers={"ana/2": b"new", "ben/1": b"again"})
    assert refused.value.key == "ben/1"
    assert await log.answer(DOC, "ana/2") is None


async def test_answers_are_kept_for_a_day(log: RedisLog, redis: Connection, prefix: str) -> None:
    await founded(log)
    await append(log, "a", 1, answers={"op": b"yes"})
    assert 86_000 < await redis.ttl(f"{prefix}:{{{DOC}}}:op:op") <= 86_400


async def test_of_two_creations_by_one_operation_the_later_is_told_that_it_is_a_repetition(
    log: RedisLog,
) -> None:
    await log.found(DOC, 0, exists=False)
    await append(log, "a", 1, creates=True, answers={"op": b"made"})
    with pytest.raises(Repeated):
        await append(log, "b", 1, creates=True, answers={"op": b"made"})


@pytest.mark.parametrize("guard", ["set:1", "set:2"])
async def test_who_has_not_seen_what_another_did_to_a_guarded_thing_is_refused(
    log: RedisLog, guard: str
) -> None:
    await founded(log)
    await append(log, "a", 1, guards={"set:1": 0, "set:2": 0})
    with pytest.raises(Outpaced) as refused:
        await append(log, "b", 1, guards={"set:3": 0, guard: 0})
    assert refused.value.name == guard
    assert await append(log, "b", 1, guards={"set:3": 0, guard: 1}) == 2


async def test_a_writer_has_always_seen_what_it_did_itself(log: RedisLog) -> None:
    await founded(log)
    for n in (1, 2, 3):
        await append(log, "a", n, guards={"set:1": 0})
    assert await log.length(DOC) == 3


async def test_a_guard_that_another_took_over_holds_against_its_first_owner(log: RedisLog) -> None:
    await founded(log)
    await append(log, "a", 1, guards={"set:1": 0})
    await append(log, "b", 1, guards={"set:1": 1})
    with pytest.raises(Outpaced):
        await append(log, "a", 2, guards={"set:1": 1})


async def test_many_guards_are_no_trouble(log: RedisLog) -> None:
    await founded(log)
    many: Mapping[str, int] = {f"set:{i}": 0 for i in range(10_000)}
    assert await append(log, "a", 1, guards=many) == 1
    with pytest.raises(Outpaced):
        await append(log, "b", 1, guards=many)


@pytest.mark.parametrize(
    "options",
    [
        {"creates": True},
        {"answers": {"new": b"", "op": b""}},
        {"guards": {"new": 0, "g": 0}},
        {"epoch": "older"},
    ],
    ids=["exists", "repeated", "outpaced", "epoch"],
)
async def test_a_refused_append_leaves_nothing_of_itself(
    log: RedisLog, redis: Connection, prefix: str, options: dict[str, Any]
) -> None:
    head = await founded(log)
    await append(log, "a", 1, answers={"op": b""}, guards={"g": 0})
    key = f"{prefix}:{{{DOC}}}:head"
    before = await redis.hgetall(key)
    async with listening(log, DOC) as heard:
        with pytest.raises(Refused):
            await log.append(DOC, b"x", **{"epoch": head.epoch, "origin": "b", "n": 1, **options})
        await log.publish(DOC, b"next")
        assert await heard() == b"next"
    assert await redis.hgetall(key) == before
    assert await log.length(DOC) == 1
    assert await log.answer(DOC, "new") is None


# -- trimming, retiring ---------------------------------------------------------------------------


async def test_trimming_keeps_the_last_of_what_is_stored_elsewhere(log: RedisLog) -> None:
    await founded(log)
    for n in range(1, 21):
        await append(log, "a", n)
    await log.trim(DOC, upto=15, keep=5)
    assert [record.pos for record in await log.read(DOC, 0)] == list(range(11, 21))
    await log.trim(DOC, upto=3, keep=256)
    assert await log.length(DOC) == 10


async def test_positions_go_on_after_everything_was_trimmed(log: RedisLog) -> None:
    await founded(log)
    await append(log, "a", 1)
    await log.trim(DOC, upto=1, keep=0)
    assert await log.length(DOC) == 0
    assert await append(log, "a", 2) == 2


async def test_trimming_what_is_unknown_makes_nothing(log: RedisLog) -> None:
    await log.trim(DOC, upto=1_000)
    assert await log.head(DOC) is None


async def test_a_retired_document_is_unknown(log: RedisLog) -> None:
    head = await founded(log)
    await append(log, "a", 1, answers={"op": b"yes"})
    assert await log.retire(DOC, 1)
    assert await log.head(DOC) is None
    assert await log.read(DOC, 0) == []
    assert await log.answer(DOC, "op") == b"yes"
    with pytest.raises(Unfounded):
        await log.append(DOC, b"x", epoch=head.epoch, origin="a", n=2)
    assert not await log.retire(DOC, 1)


async def test_a_document_to_which_was_appended_since_is_not_retired(log: RedisLog) -> None:
    await founded(log)
    await append(log, "a", 1)
    await append(log, "a", 2)
    assert not await log.retire(DOC, 1)
    assert await log.length(DOC) == 2


async def test_a_document_that_somebody_listens_to_is_not_retired(log: RedisLog) -> None:
    await founded(log, pos=3)
    async with listening(log, DOC):
        assert not await log.retire(DOC, 3)
    async with listening(log, ids.workout("another")):
        async with asyncio.timeout(DEADLINE_S):
            while not await log.retire(DOC, 3):  # until Redis has noticed that nobody does
                pass


@pytest.mark.parametrize("at", [0, 1])
async def test_in_a_cluster_who_listens_at_any_node_is_seen(
    redis_nodes: ClusterProcesses, prefix: str, at: int
) -> None:
    client, node = connect(redis_nodes.url, timeout_s=10), connect(redis_nodes.nodes[at].url)
    log, docs = RedisLog(client, prefix), [ids.workout(f"w{i}") for i in range(8)]
    for doc in docs:  # of both nodes
        await founded(log, doc)
        async with listening(RedisLog(node, prefix), doc) as heard:
            await log.publish(doc, b"hello")
            assert await heard() == b"hello"
            assert not await log.retire(doc, 0)
    await node.aclose()
    await client.aclose()


async def test_all_documents_that_have_a_head_are_found(log: RedisLog, redis: Connection) -> None:
    docs = {ids.workout(f"w{i}") for i in range(50)} | {ids.template("t")}
    await asyncio.gather(*(founded(log, doc) for doc in docs))
    await founded(RedisLog(redis, "test-another"), ids.workout("foreign"))
    await log.retire(ids.workout("w7"), 0)
    assert {doc async for doc in log.heads()} == docs - {ids.workout("w7")}


async def test_a_prefix_with_wildcards_finds_its_own(redis: Connection, prefix: str) -> None:
    odd = RedisLog(redis, f"{prefix}[a-z]*?\\")
    await founded(odd)
    await founded(RedisLog(redis, f"{prefix}bb?"), ids.workout("foreign"))
    assert [doc async for doc in odd.heads()] == [DOC]


# -- the queue of work ----------------------------------------------------------------------------


async def test_a_task_goes_to_one_consumer(log: RedisLog) -> None:
    docs = [ids.workout(f"w{i}") for i in range(20)]
    await log.announce(docs)
    taken = await asyncio.gather(*(log.take(f"c{i}", count=7) for i in range(3)))
    assert sorted(task.doc.id for tasks in taken for task in tasks) == sorted(
        doc.id for doc in docs
    )


async def test_a_consumer_waits_for_work(log: RedisLog) -> None:
    taking = asyncio.create_task(log.take("c", block_s=DEADLINE_S))
    await asyncio.sleep(0)
    await log.announce([DOC])
    assert [task.doc for task in await taking] == [DOC]


async def test_a_consumer_that_finds_no_work_goes_on(log: RedisLog) -> None:
    assert await log.take("c", block_s=0.01) == []
    assert await log.take("c", block_s=0) == []
    assert await log.take_over("c", idle_s=0) == []


async def test_a_wait_may_be_longer_than_the_time_after_which_redis_counts_as_away(
    redis_server: str, prefix: str
) -> None:
    client = connect(redis_server, timeout_s=0.4)
    assert await RedisLog(client, prefix).take("c", block_s=1) == []
    await client.aclose()


async def test_a_document_waits_in_the_queue_once(
    log: RedisLog, redis: Connection, prefix: str
) -> None:
    for _ in range(5):
        await log.announce([DOC, DOC, ids.workout("other")])
    assert await redis.xlen(f"{prefix}:work") == 2
    assert len(await log.take("c")) == 2
    assert await log.take("c", block_s=0) == []


async def test_what_is_announced_while_it_is_worked_on_is_queued_again(log: RedisLog) -> None:
    await log.announce([DOC])
    first = await log.take("c")
    await log.announce([DOC])
    second = await log.take("d")
    assert [task.doc for task in second] == [DOC]
    assert first[0].id != second[0].id


async def test_finished_tasks_leave_nothing(log: RedisLog, redis: Connection, prefix: str) -> None:
    await log.announce([DOC, ids.workout("other")])
    tasks = await log.take("c")
    await log.finish(tasks)
    await log.finish(tasks)
    await log.finish([])
    assert await redis.xlen(f"{prefix}:work") == 0
    assert await log.take_over("d", idle_s=0) == []


async def test_a_deleted_document_is_nobodys_task_any_more(
    log: RedisLog, redis: Connection, prefix: str
) -> None:
    other = ids.workout("other")
    await log.announce([DOC, other])
    await log.take("dead")
    await log.announce([DOC])
    await log.drop(DOC)
    assert await redis.xlen(f"{prefix}:work") == 1
    assert [task.doc for task in await log.take_over("c", idle_s=0)] == [other]
    assert await log.take("c", block_s=0) == []
    await log.announce([DOC])  # it waits no more, so it can be announced
    assert [task.doc for task in await log.take("c")] == [DOC]


async def test_the_tasks_of_a_consumer_that_died_are_taken_over(log: RedisLog) -> None:
    await log.announce([DOC, ids.workout("other")])
    tasks = await log.take("dead")
    assert await log.take_over("d", idle_s=60) == []
    assert await log.take_over("d", idle_s=0, count=1) == tasks[:1]
    assert await log.take_over("d", idle_s=0) == tasks
    await log.announce([DOC])
    assert [task.doc for task in await log.take("e")] == [DOC]


async def test_a_consumer_that_died_before_it_knew_what_it_took_stops_nothing(
    log: RedisLog, redis: Connection, prefix: str
) -> None:
    await log.announce([DOC])
    await log.take("c", count=1)
    await log.announce([DOC])
    # It was delivered, and nobody heard of it.
    await redis.xreadgroup("movers", "dead", {f"{prefix}:work": ">"})
    assert {task.doc for task in await log.take_over("d", idle_s=0)} == {DOC}
    await log.announce([DOC])
    assert [task.doc for task in await log.take("d")] == [DOC]


async def test_a_queue_that_was_lost_begins_again(
    log: RedisLog, redis: Connection, prefix: str
) -> None:
    await log.announce([DOC])
    assert await log.take("c") != []
    await log.announce([DOC])
    await redis.delete(f"{prefix}:work")
    await log.announce([DOC])
    assert [task.doc for task in await log.take("c")] == [DOC]


async def test_a_kind_of_document_that_is_unknown_here_stops_nothing(
    log: RedisLog, redis: Connection, prefix: str
) -> None:
    await log.take("c", block_s=0)
    await redis.xadd(f"{prefix}:work", {"d": "diary:leg-day"})
    await log.announce([DOC])
    assert [task.doc for task in await log.take("c")] == [DOC]


# -- any order of appends -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30),
    start=st.sampled_from([0, 100_000, 2**40]),
)
def test_positions_have_no_gaps_and_no_append_is_there_twice(
    redis_server: str, steps: list[tuple[str, int]], start: int
) -> None:
    """Each step is an origin's next append, or the repetition of one that it made before."""

    async def live_through_it() -> None:
        client = connect(redis_server, timeout_s=10)
        log = RedisLog(client, f"test-{secrets.token_hex(6)}")
        head = await founded(log, pos=start)
        got: dict[tuple[str, int], int] = {}
        last: Counter[str] = Counter()
        for origin, back in steps:
            n = max(last[origin] + 1 - back, 1)
            pos = await log.append(DOC, b"x", epoch=head.epoch, origin=origin, n=n)
            if n > last[origin]:
                last[origin], got[origin, n] = n, pos
            else:
                assert pos == got[origin, last[origin]]
        assert sorted(got.values()) == [start + i for i in range(1, len(got) + 1)]
        there = {(record.origin, record.n): record.pos for record in await log.read(DOC, 0)}
        assert there == got
        assert await log.length(DOC) == len(got)
        await client.aclose()

    asyncio.run(live_through_it())


async def test_a_redis_that_has_forgotten_the_scripts_is_sent_them(log: RedisLog) -> None:
    await founded(log)
    await log._redis.script_flush()
    assert await append(log, "a", 1) == 1


def test_a_prefix_that_would_decide_the_slot_is_refused() -> None:
    with pytest.raises(ValueError):
        RedisLog(connect("redis://localhost"), "a{b}")
