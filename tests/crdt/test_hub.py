"""The owner of all rooms: loading, joining, writing, failing, letting go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import pytest

from crdt import ids
from crdt.access import Right
from crdt.errors import Conflict, Forbidden, NotFound, TooLarge, Unavailable
from crdt.ids import ConnectionId
from crdt.live import LiveRoom
from crdt.ports import Stored
from crdt.replica import Put
from crdt.wire import AwarenessEntry, decode_awareness, encode_awareness
from tests.helpers.replicas import Peer
from tests.helpers.rooms import LEG_DAY, Bench, connection, idle, until, user

PHONE = connection("ana", "phone")
LAPTOP = connection("ana", "laptop")
FULL_DISK = OSError(28, "No space left on device")
TITLE = Put(("meta", "title"), "Pull day")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A hub with one workout of ana's."""
    bench = Bench()
    await bench.create()
    bench.store.calls.clear()
    yield bench
    await bench.close()


async def reopen(bench: Bench, **settings: Any) -> Bench:
    """Another hub on the same store, with nothing in memory."""
    return Bench(bench.store, bench.outlet, bench.clock, **settings)


async def peer_of(bench: Bench) -> Peer:
    return Peer(state=await bench.state())


async def fails(waiting: asyncio.Future[Stored]) -> bool:
    """Whether the change was refused as unavailable."""
    async with asyncio.timeout(5):
        await asyncio.wait([waiting])
    return isinstance(waiting.exception(), Unavailable)


def here(bench: Bench) -> set[str]:
    """The sockets in the room."""
    live = bench.hub.find(LEG_DAY)
    return set(live.connections) if live else set()


# -- opening ----------------------------------------------------------------------------------


async def test_many_who_open_a_room_at_once_cause_one_load(bench: Bench) -> None:
    again = await reopen(bench)
    gate = bench.store.hold("load")
    joins = [asyncio.ensure_future(again.join(connection("ana", f"c{i}"))) for i in range(20)]
    await idle()
    gate.set()
    await asyncio.gather(*joins)
    assert bench.store.calls["load"] == 1
    assert len(here(again)) == 20


async def test_a_room_in_memory_is_not_loaded_again(bench: Bench) -> None:
    await bench.state()
    await bench.state()
    assert bench.store.calls["load"] == 0


async def test_one_who_gives_up_does_not_take_the_load_from_the_others(bench: Bench) -> None:
    again = await reopen(bench)
    gate = bench.store.hold("load")
    hasty, patient = (asyncio.ensure_future(again.state()) for _ in range(2))
    await idle()
    hasty.cancel()
    await idle()
    gate.set()
    assert await patient == await bench.state()


async def test_a_document_that_never_was_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.state(ids.workout("nothing"))
    assert len(bench.hub) == 1


async def test_a_load_that_failed_is_tried_again_by_the_next(bench: Bench) -> None:
    again = await reopen(bench)
    bench.store.fail("load", Unavailable("not now"))
    with pytest.raises(Unavailable):
        await again.state()
    assert await again.state() == await bench.state()


async def test_all_who_wait_for_a_load_hear_that_it_failed(bench: Bench) -> None:
    again = await reopen(bench)
    gate = bench.store.hold("load")
    bench.store.fail("load", Unavailable("not now"))
    waiting = [asyncio.ensure_future(again.state()) for _ in range(3)]
    await idle()
    gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3


async def test_a_right_that_is_not_given_is_forbidden(bench: Bench) -> None:
    async with bench.room() as live:
        live.demand(user("ana"), Right.MANAGE)
        with pytest.raises(Forbidden):
            live.demand(user("ben"), Right.READ)


# -- creating ---------------------------------------------------------------------------------


async def test_a_new_workout_has_its_owner_as_member_and_in_the_room() -> None:
    bench = Bench()
    answer = await bench.create()
    [member] = answer["workout"]["members"]
    assert (member["user"]["id"], member["role"], member["online"]) == ("ana", "owner", True)
    assert bench.hub.joined(ConnectionId("ana-events")) == {LEG_DAY}
    async with bench.room() as live:
        assert answer["workout"] == live.snapshot(bench.clock.now_ms())


async def test_a_name_that_is_taken_is_a_conflict(bench: Bench) -> None:
    with pytest.raises(Conflict):
        await bench.create(user_id="ben")
    again = await reopen(bench)
    with pytest.raises(Conflict):
        await again.create(user_id="ben")
    assert (await peer_of(again)).content()["meta"]["owner_id"] == "ana"


async def test_of_two_who_create_at_once_one_wins() -> None:
    bench = Bench()
    outcomes = await asyncio.gather(
        bench.create(), bench.create(user_id="ben"), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "dict"]


async def test_of_two_servers_that_create_at_once_one_wins() -> None:
    bench = Bench()
    other = await reopen(bench)
    gate = bench.store.hold("append")
    both = [asyncio.ensure_future(b.create(user_id=u)) for b, u in ((bench, "ana"), (other, "ben"))]
    await idle()
    gate.set()
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict", "dict"]
    assert await bench.state() == await other.state()


async def test_a_creation_that_could_not_be_stored_leaves_nothing() -> None:
    bench = Bench()
    bench.store.fail("append", Unavailable("not now"))
    with pytest.raises(Unavailable):
        await bench.create()
    assert len(bench.hub) == 0
    assert (await bench.create())["workout"]["id"] == "leg-day"


async def test_somebody_who_asks_too_early_does_not_stand_in_the_way_of_a_creation() -> None:
    bench = Bench()
    gate = bench.store.hold("load")
    early = asyncio.ensure_future(bench.state())
    await idle()
    created = asyncio.ensure_future(bench.create())
    await idle()
    gate.set()
    await asyncio.gather(early, return_exceptions=True)
    assert (await created)["workout"]["id"] == "leg-day"


async def test_a_room_under_creation_is_shown_to_nobody_else() -> None:
    bench = Bench()
    gate = bench.store.hold("append")
    created = asyncio.ensure_future(bench.create())
    await idle()
    async with bench.room() as live:
        assert live.room.rights(user("ben")) == Right.NONE
    gate.set()
    await created


# -- joining and leaving ----------------------------------------------------------------------


async def test_a_user_is_announced_with_the_first_socket_and_the_last(bench: Bench) -> None:
    bench.outlet.presences.clear()
    for name in ("b1", "b2"):
        await bench.join(connection("ben", name, document=False))
    bench.hub.leave(LEG_DAY, ConnectionId("b1"))
    bench.hub.leave(LEG_DAY, ConnectionId("b2"))
    told = [(event, payload["user"]["id"]) for event, payload in bench.outlet.presences]
    assert told == [("workout:member:joined", "ben"), ("workout:member:left", "ben")]


async def test_joining_twice_changes_nothing(bench: Bench) -> None:
    await bench.join(PHONE)
    await bench.join(PHONE)
    assert len(here(bench)) == 2


async def test_who_never_joined_leaves_without_a_word(bench: Bench) -> None:
    before = list(bench.outlet.presences)
    assert bench.hub.leave(LEG_DAY, ConnectionId("stranger")) == b""
    assert bench.hub.leave(ids.workout("nothing"), ConnectionId("stranger")) == b""
    assert bench.outlet.presences == before


async def test_leaving_removes_the_state_that_others_saw(bench: Bench) -> None:
    await bench.join(PHONE)
    async with bench.room() as live:
        frame = encode_awareness([AwarenessEntry(300, 1, {})])
        live.presence.receive(PHONE.id, PHONE.user, frame)
    gone = decode_awareness(bench.hub.leave(LEG_DAY, PHONE.id))
    assert gone == [AwarenessEntry(300, 1, None)]


async def test_members_are_shown_with_their_devices_and_visitors_as_spectators(
    bench: Bench,
) -> None:
    await bench.join(PHONE)
    await bench.join(connection("ben"))
    async with bench.room() as live:
        shown = {member["user"]["id"]: member for member in live.members()}
    assert (shown["ana"]["role"], len(shown["ana"]["devices"])) == ("owner", 1)
    assert (shown["ben"]["role"], shown["ben"]["online"]) == ("spectator", True)


async def test_a_new_token_is_in_force_in_all_rooms(bench: Bench) -> None:
    await bench.join(PHONE)
    bench.hub.renew(connection("ana", "phone", name="Ana B"))
    async with bench.room() as live:
        assert live.connections[PHONE.id].user.name == "Ana B"


# -- writing ----------------------------------------------------------------------------------


async def test_a_change_is_durable_before_it_is_acked_and_told(bench: Bench) -> None:
    ana = await peer_of(bench)
    gate = bench.store.hold("append")
    bench.outlet.commits.clear()
    waiting = await bench.submit(ana.set("s"))
    await idle()
    assert not waiting.done()
    assert bench.outlet.commits == []
    gate.set()
    assert (await waiting).seq == 2
    assert [commit.seq for commit in bench.outlet.commits] == [2]


async def test_what_arrives_during_an_append_is_stored_as_one_record(bench: Bench) -> None:
    ana = await peer_of(bench)
    gate = bench.store.hold("append")
    waiting = [await bench.submit(ana.set("first"))]
    await idle()
    waiting += [await bench.submit(ana.set(f"s{i}")) for i in range(10)]
    intent = asyncio.ensure_future(bench.edit(TITLE))
    await idle()
    gate.set()
    assert [stored.seq for stored in await asyncio.gather(*waiting)] == [2] + [3] * 10
    assert await intent == {"seq": 3}
    assert bench.store.calls["append"] == 2


async def test_what_arrives_at_once_is_stored_as_one_record(bench: Bench) -> None:
    ana = await peer_of(bench)
    async with bench.room() as live:
        waiting = [bench.hub.submit(live, ana.set(f"s{i}"), PHONE) for i in range(5)]
        await asyncio.gather(*waiting)
    assert bench.store.calls["append"] == 1


async def test_commits_are_told_in_the_order_of_the_log(bench: Bench) -> None:
    ana = await peer_of(bench)
    bench.outlet.commits.clear()
    for i in range(5):
        await bench.submit(ana.set(f"s{i}"))
        await idle(3)
    await until(lambda: len(bench.outlet.named("workout:set:completed")) == 5)
    seqs = [commit.seq for commit in bench.outlet.commits]
    assert seqs == sorted(seqs)
    told = [event["set_id"] for event in bench.outlet.named("workout:set:completed")]
    assert told == [f"s{i}" for i in range(5)]


async def test_a_duplicate_is_acked_and_told_to_nobody(bench: Bench) -> None:
    update = (await peer_of(bench)).set("s")
    await bench.store_update(update)
    commits = len(bench.outlet.commits)
    assert (await bench.store_update(update)).seq == 2
    assert len(bench.outlet.commits) == commits


async def test_a_duplicate_of_what_is_not_yet_durable_is_not_acked_before_it_is(
    bench: Bench,
) -> None:
    update = (await peer_of(bench)).set("s")
    gate = bench.store.hold("append")
    first = await bench.submit(update)
    again = await bench.submit(update, LAPTOP)
    await idle()
    assert not first.done()
    assert not again.done()
    gate.set()
    assert (await first).seq == (await again).seq == 2


async def test_an_intent_is_carried_out_although_its_caller_gave_up(bench: Bench) -> None:
    gate = bench.store.hold("append")
    intent = asyncio.ensure_future(bench.edit(TITLE))
    await idle()
    intent.cancel()
    await idle()
    bench.outlet.commits.clear()
    gate.set()
    await until(lambda: bench.outlet.named("workout:changed"))
    assert (await peer_of(bench)).content()["meta"]["title"] == "Pull day"


async def test_a_stranger_can_write_nothing(bench: Bench) -> None:
    with pytest.raises(Forbidden):
        await bench.submit((await peer_of(bench)).set("s"), connection("ben"))


# -- when the store fails ---------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Unavailable("full"), FULL_DISK, RuntimeError("bug")])
async def test_all_who_waited_for_a_failed_append_are_told_to_try_again(
    bench: Bench, fault: Exception
) -> None:
    ana = await peer_of(bench)
    gate = bench.store.hold("append")
    bench.store.fail("append", fault)
    first = await bench.submit(ana.set("s"))
    await idle()
    second = await bench.submit(ana.set("t"))
    gate.set()
    assert await fails(first)
    assert await fails(second)


async def test_who_waited_for_a_record_that_is_too_large_is_told_so(bench: Bench) -> None:
    bench.store.fail("append", TooLarge("the log record", 17, 16))
    with pytest.raises(TooLarge):
        await bench.edit(TITLE)
    assert (await bench.edit(TITLE))["seq"] == 2


async def test_after_a_failed_append_the_room_is_read_from_the_log(bench: Bench) -> None:
    durable = await bench.state()
    bench.store.fail("append", Unavailable("full"))
    assert await fails(await bench.submit((await peer_of(bench)).set("s")))
    assert await bench.state() == durable
    assert bench.store.calls["load"] == 1


async def test_a_record_that_was_stored_although_it_failed_is_there_after_all(
    bench: Bench,
) -> None:
    update = (await peer_of(bench)).set("s")
    real_append = bench.store.inner.append

    async def store_and_fail(batch: object) -> None:
        bench.store.inner.append = real_append
        await real_append(batch)
        raise Unavailable("the answer was lost")

    bench.store.inner.append = store_and_fail
    assert await fails(await bench.submit(update))
    assert (await bench.store_update(update)).seq == 2
    assert "s" in (await peer_of(bench)).content()["sets"]


async def test_what_is_durable_is_acked_although_the_room_cannot_show_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = await peer_of(bench)
    async with bench.room() as live:
        gate = bench.store.hold("append")
        first = await bench.submit(ana.set("s"))
        await idle()
        second = await bench.submit(ana.set("t"))
        monkeypatch.setattr(live.room, "award", Mock(side_effect=RuntimeError("bug")))
        gate.set()
        assert (await first).seq == 2
        assert await fails(second)
    assert list((await peer_of(bench)).content()["sets"]) == ["s"]


async def test_those_in_a_room_whose_append_failed_are_in_the_one_read_anew(bench: Bench) -> None:
    await bench.join(PHONE)
    bench.store.fail("append", Unavailable("full"))
    await fails(await bench.submit((await peer_of(bench)).set("s"), PHONE))
    await until(lambda: bench.outlet.resets)
    assert bench.outlet.resets == [(LEG_DAY, "append_failed")]
    assert here(bench) == {"ana-events", "phone"}
    assert (await bench.store_update((await peer_of(bench)).set("t"), PHONE)).seq == 2


async def test_they_are_moved_however_long_the_store_is_away(bench: Bench) -> None:
    bench.store.fail("load", Unavailable("away"), Unavailable("away"))
    bench.store.fail("append", Unavailable("full"))
    await fails(await bench.submit((await peer_of(bench)).set("s")))
    await until(lambda: bench.outlet.resets)
    assert here(bench) == {"ana-events"}


async def drop(bench: Bench, *load_faults: Exception) -> None:
    """Let an append fail while ana's phone is in the room."""
    bench.store.fail("load", *load_faults)
    await bench.join(PHONE)
    ana = await peer_of(bench)
    bench.store.fail("append", Unavailable("full"))
    await fails(await bench.submit(ana.set("lost"), PHONE))


async def test_who_leaves_while_the_room_is_read_anew_has_left(bench: Bench) -> None:
    await drop(bench, Unavailable("away"))
    bench.hub.leave(LEG_DAY, PHONE.id)
    await until(lambda: bench.outlet.resets)
    assert here(bench) == {"ana-events"}


async def test_a_newcomer_who_leaves_while_others_are_being_moved_has_left(bench: Bench) -> None:
    await drop(bench, Unavailable("away"))
    await idle()  # the first try to read the room has failed
    await bench.join(connection("ana", "newcomer"))
    bench.hub.leave(LEG_DAY, ConnectionId("newcomer"))
    await until(lambda: bench.outlet.resets)
    assert here(bench) == {"ana-events", "phone"}


async def test_a_newcomers_presence_outlives_the_move_of_the_others(bench: Bench) -> None:
    await drop(bench, Unavailable("away"))
    await idle()
    newcomer = connection("ana", "newcomer")
    async with bench.room() as live:
        bench.hub.join(live, newcomer)
        frame = encode_awareness([AwarenessEntry(300, 1, {})])
        live.presence.receive(newcomer.id, newcomer.user, frame)
    await until(lambda: bench.outlet.resets)
    assert bench.hub.leave(LEG_DAY, newcomer.id) != b""


async def test_who_joins_again_while_being_moved_still_counts_once(bench: Bench) -> None:
    ben = connection("ben", document=False)
    await bench.join(ben)
    await drop(bench, Unavailable("away"))
    await idle()
    await bench.join(ben)
    await until(lambda: bench.outlet.resets)
    bench.outlet.presences.clear()
    bench.hub.leave(LEG_DAY, ben.id)
    assert [event for event, _ in bench.outlet.presences] == ["workout:member:left"]


async def test_two_failures_in_a_row_lose_nobody(bench: Bench) -> None:
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    await drop(bench, Unavailable("away"))
    await idle()
    newcomer = connection("ana", "newcomer")
    await bench.join(newcomer)
    bench.store.fail("append", Unavailable("full"))
    await fails(await bench.submit((await peer_of(bench)).set("lost-too"), newcomer))
    await until(lambda: bench.outlet.resets)
    await idle()
    assert here(bench) == {"ana-events", "phone", "newcomer"}
    assert faults == []


async def test_a_lease_taken_before_a_failure_does_not_wait_for_ever(bench: Bench) -> None:
    async with bench.room() as live:
        bench.store.fail("append", Unavailable("full"))
        await fails(bench.hub.submit(live, (await peer_of(bench)).set("s"), PHONE))
        edit = bench.hub.edit(live, [TITLE], PHONE.author(), "test", answer=lambda _: {"ok": True})
        try:
            async with asyncio.timeout(1):
                answer = await edit
        except Unavailable:
            return
    assert answer == {"ok": True}
    assert (await peer_of(bench)).content()["meta"]["title"] == "Pull day"


async def test_a_store_that_hangs_holds_up_its_own_rooms_only(bench: Bench) -> None:
    other = ids.workout("other")
    await bench.create(other)
    gate = bench.store.hold("append")
    waiting = await bench.submit((await peer_of(bench)).set("s"))
    await idle()
    assert Peer(state=await bench.state(other)).content()["sets"] == {}
    gate.set()
    await waiting


# -- letting go -------------------------------------------------------------------------------


async def test_a_room_that_everybody_left_is_unloaded() -> None:
    bench = Bench(idle_timeout_s=0.01)
    await bench.create()
    await bench.join(PHONE)
    bench.hub.leave(LEG_DAY, ConnectionId("ana-events"))
    bench.hub.leave(LEG_DAY, PHONE.id)
    await until(lambda: not len(bench.hub))
    assert (await peer_of(bench)).content()["meta"]["title"] == "Leg day"


async def test_a_room_that_was_only_read_is_unloaded() -> None:
    bench = Bench(idle_timeout_s=0.01)
    await bench.create()
    again = await reopen(bench, idle_timeout_s=0.01)
    await again.state()
    await until(lambda: not len(again.hub))


async def test_a_room_that_goes_when_nobody_is_there_is_read_once_for_all_who_wait() -> None:
    bench = Bench()
    await bench.create()
    again = await reopen(bench, idle_timeout_s=0.0)

    async def read() -> LiveRoom:
        async with again.room() as live:
            return live

    first, second = await asyncio.wait_for(asyncio.gather(read(), read()), 10)
    assert first is second
    await until(lambda: not len(again.hub))


async def test_a_room_stays_while_somebody_is_in_it_or_reads_it() -> None:
    bench = Bench(idle_timeout_s=0.005)
    await bench.create()
    async with bench.room() as live:
        bench.hub.leave(LEG_DAY, ConnectionId("ana-events"))
        await until(lambda: passed(bench, 0.02))
        assert bench.hub.find(LEG_DAY) is live
        bench.hub.join(live, PHONE)
    await until(lambda: passed(bench, 0.04))
    assert bench.hub.find(LEG_DAY) is live


def passed(bench: Bench, s: float) -> bool:
    """Whether this much time has gone by since the first question."""
    now = asyncio.get_running_loop().time()
    started: float = bench.__dict__.setdefault(f"asked{s}", now)
    return now - started > s


async def test_a_room_stays_until_its_last_append_is_durable() -> None:
    bench = Bench(idle_timeout_s=0.005)
    await bench.create()
    update = (await peer_of(bench)).set("s")
    gate = bench.store.hold("append")
    waiting = await bench.submit(update)
    bench.hub.leave(LEG_DAY, ConnectionId("ana-events"))
    await until(lambda: passed(bench, 0.02))
    assert bench.hub.find(LEG_DAY) is not None
    gate.set()
    await waiting
    await until(lambda: not len(bench.hub))


async def test_who_comes_back_in_time_finds_the_room_in_memory() -> None:
    bench = Bench(idle_timeout_s=0.05)
    await bench.create()
    bench.hub.leave(LEG_DAY, ConnectionId("ana-events"))
    await bench.join(PHONE)
    await until(lambda: passed(bench, 0.07))
    assert bench.hub.find(LEG_DAY) is not None


# -- compaction -------------------------------------------------------------------------------


async def log_length(bench: Bench) -> int:
    loaded = await bench.store.inner.load(LEG_DAY)
    return len(loaded.updates)


async def write_some(bench: Bench, count: int, prefix: str = "s") -> None:
    for i in range(count):
        await bench.store_update((await peer_of(bench)).set(f"{prefix}{i}"))


async def test_a_long_log_becomes_a_snapshot() -> None:
    bench = Bench(compact_after=5)
    await bench.create()
    await write_some(bench, 5)
    await until(lambda: bench.store.calls["compact"])
    await idle()
    assert await log_length(bench) <= 1
    again = await reopen(bench)
    assert await again.state() == await bench.state()


async def test_an_unloaded_room_leaves_a_snapshot() -> None:
    bench = Bench(idle_timeout_s=0.01)
    await bench.create()
    await write_some(bench, 3)
    bench.hub.leave(LEG_DAY, ConnectionId("ana-events"))
    await until(lambda: bench.store.calls["compact"])
    await idle()
    assert await log_length(bench) == 0


async def test_of_two_servers_that_compact_one_wins_and_nothing_is_lost() -> None:
    bench = Bench(compact_after=3)
    await bench.create()
    other = await reopen(bench, compact_after=3)
    await other.state()  # both know the same snapshot
    await write_some(bench, 4)
    await write_some(other, 4, "t")
    await until(lambda: bench.store.calls["compact"] >= 1)
    await idle()
    sets = (await peer_of(await reopen(bench))).content()["sets"]
    assert sets.keys() == {f"{prefix}{i}" for prefix in "st" for i in range(4)}


async def test_a_room_that_lost_the_race_compacts_again_later() -> None:
    bench = Bench(compact_after=3)
    await bench.create()
    other = await reopen(bench)
    await other.state()
    loaded = await bench.store.inner.load(LEG_DAY)
    assert await bench.store.inner.compact(LEG_DAY, await other.state(), loaded.seq, 0)
    await write_some(bench, 12)
    await idle()
    assert await log_length(bench) <= 4


async def test_a_compaction_that_fails_is_put_off() -> None:
    bench = Bench(compact_after=3)
    await bench.create()
    bench.store.fail("compact", Unavailable("full"))
    await write_some(bench, 6)
    await until(lambda: bench.store.calls["compact"] >= 2)
    await idle()
    assert await log_length(bench) <= 3


async def test_a_compaction_under_way_does_not_hold_up_writing() -> None:
    bench = Bench(compact_after=2)
    await bench.create()
    gate = bench.store.hold("compact")
    await write_some(bench, 6)
    gate.set()
    await idle()
    assert len((await peer_of(await reopen(bench))).content()["sets"]) == 6


# -- the end ----------------------------------------------------------------------------------


async def test_closing_waits_for_the_appends_under_way(bench: Bench) -> None:
    gate = bench.store.hold("append")
    waiting = await bench.submit((await peer_of(bench)).set("s"))
    closing = asyncio.ensure_future(bench.hub.close())
    await idle()
    assert not closing.done()
    gate.set()
    await closing
    assert waiting.result().seq == 2
    assert len(bench.hub) == 0


async def test_closing_waits_for_an_append_whose_caller_gave_up() -> None:
    bench = Bench()
    gate = bench.store.hold("append")
    created = asyncio.ensure_future(bench.create())
    await idle()
    created.cancel()
    await idle()
    closing = asyncio.ensure_future(bench.hub.close())
    await idle()
    assert not closing.done()
    gate.set()
    await closing


async def test_a_quiet_hub_has_answered_what_was_under_way_and_takes_nothing_more(
    bench: Bench,
) -> None:
    gate = bench.store.hold("append")
    waiting = await bench.submit((await peer_of(bench)).set("s"))
    quiet = asyncio.ensure_future(bench.hub.quiesce())
    await idle()
    assert not quiet.done()
    with pytest.raises(Unavailable):
        await bench.submit((await peer_of(bench)).set("t"))
    gate.set()
    await quiet
    assert waiting.result().seq == 2
    assert len(bench.hub) == 1  # its members are still there


async def test_closing_an_idle_hub_takes_no_time(bench: Bench) -> None:
    await bench.hub.close()
    await bench.hub.close()
    assert len(bench.hub) == 0


async def test_nothing_is_left_running_after_the_end() -> None:
    bench = Bench(idle_timeout_s=0.01, compact_after=1)
    await bench.create()
    await write_some(bench, 2)
    await bench.hub.close()
    await idle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
