"""Who is in a room on other instances, and what a hub makes of what these tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from crdt import ids
from crdt.access import User
from crdt.elsewhere import Elsewhere, Guest
from crdt.errors import Outdated, Unavailable
from crdt.ids import ConnectionId, DocName, UserId
from crdt.ports import Foreign
from crdt.replica import Put
from crdt.room import Room
from crdt.wire import AwarenessEntry, encode_awareness
from tests.helpers.replicas import Peer, set_fields
from tests.helpers.rooms import LEG_DAY, Bench, connection, until


def guest(user_id: str, device: str = "phone") -> Guest:
    return Guest(User(UserId(user_id), user_id.title()), {"id": device, "name": device})


def test_a_user_is_there_until_the_last_socket_has_gone() -> None:
    elsewhere = Elsewhere()
    elsewhere.enter("a", ConnectionId("1"), guest("ben"))
    elsewhere.enter("a", ConnectionId("1"), guest("ben"))
    elsewhere.enter("b", ConnectionId("2"), guest("ben", "watch"))
    assert len(elsewhere) == 2
    assert elsewhere.exit("a", ConnectionId("1")) == guest("ben")
    assert elsewhere.has(UserId("ben"))
    assert elsewhere.exit("a", ConnectionId("1")) is None
    elsewhere.exit("b", ConnectionId("2"))
    assert not elsewhere.has(UserId("ben"))
    assert len(elsewhere) == 0


@dataclass
class Sharing:
    """What a hub asks of a shared log besides storing."""

    released: list[DocName] = field(default_factory=list)
    caught_up: list[DocName] = field(default_factory=list)
    is_behind: bool = False
    is_full: bool = False
    asked: int = 0

    async def persist(self, doc: DocName) -> None:
        self.asked += 1
        if self.is_behind:
            raise Unavailable("behind", retry_after_ms=1)

    def demand_space(self, doc: DocName) -> None:
        if self.is_full:
            raise Unavailable("full", retry_after_ms=1)

    async def catch_up(self, doc: DocName) -> None:
        self.caught_up.append(doc)

    def release(self, doc: DocName) -> None:
        self.released.append(doc)


@pytest.fixture
async def shared() -> AsyncIterator[tuple[Bench, Sharing]]:
    """Ana's workout, open here, in a log to which others write as well."""
    sharing = Sharing()
    bench = Bench(idle_timeout_s=0.01, shared=sharing)
    await bench.create()
    yield bench, sharing
    await bench.close()


def titled(room: Room, title: str) -> bytes:
    return Peer(state=room.diff()).put("meta", "title", title)


Shared = tuple[Bench, Sharing]


async def test_what_others_write_reaches_the_members_here(shared: Shared) -> None:
    bench, _ = shared
    async with bench.room() as live:
        update = Peer(state=live.room.diff()).put("sets", "s9", set_fields())
        bench.hub.foreign(LEG_DAY, [Foreign(live.room.seq + 1, update, {UserId("ana"): "Ana"})])
        assert "s9" in live.room.view["sets"]
    assert bench.outlet.commits[-1].update == update
    assert bench.outlet.commits[-1].sender is None
    (told,) = bench.outlet.named("workout:set:completed")
    assert told["user"] == {"id": "ana", "name": "Ana"}


async def test_what_others_wrote_during_an_append_stands_where_the_log_has_it(
    shared: Shared,
) -> None:
    bench, _ = shared
    async with bench.room() as live:
        base = live.room.seq
        gate = bench.store.hold("append")
        mine = asyncio.create_task(bench.edit(Put(("meta", "title"), "Mine")))
        await until(lambda: bench.store.calls["append"] == 2)
        shown = len(bench.outlet.commits)
        before, behind = titled(live.room, "Before"), titled(live.room, "Behind")
        # Our own gets base + 2 in the shared log, which the store in memory cannot know.
        bench.hub.foreign(LEG_DAY, [Foreign(base, before), Foreign(base + 3, behind)])
        assert len(bench.outlet.commits) == shown
        gate.set()
        await mine
        assert bench.outlet.commits[shown].update == before
        assert bench.outlet.commits[-1].update == behind
        assert len(bench.outlet.commits) == shown + 3


async def test_a_record_that_cannot_be_applied_makes_the_room_be_read_again(
    shared: Shared,
) -> None:
    bench, _ = shared
    await bench.join(connection("ana", "laptop"))
    async with bench.room() as live:
        bench.hub.foreign(LEG_DAY, [Foreign(live.room.seq + 1, b"\xff\xff")])
        assert live.is_dropped
    await until(lambda: bench.outlet.resets)
    assert bench.outlet.resets == [(LEG_DAY, "unreadable_record")]
    async with bench.room() as again:
        assert not again.is_dropped
        assert set(again.connections) == {"laptop", "ana-events"}


async def test_who_gets_events_is_told_what_happened_while_the_log_was_lost(
    shared: Shared,
) -> None:
    bench, _ = shared
    async with bench.room() as live:
        update = Peer(state=live.room.diff()).put("sets", "s9", set_fields())
    elsewhere = bench.another_hub()
    async with elsewhere.lease(LEG_DAY) as there:
        await elsewhere.submit(there, update, connection())
    bench.outlet.commits.clear()
    bench.hub.outdated(LEG_DAY, "gap")
    await until(lambda: bench.outlet.named("workout:set:completed"))
    assert bench.outlet.resets == [(LEG_DAY, "gap")]
    await elsewhere.close()


async def test_what_is_being_stored_when_a_room_is_given_up_is_answered_when_that_is_known(
    shared: Shared,
) -> None:
    bench, _ = shared
    gate, reading = bench.store.hold("append"), bench.store.hold("load")
    stored, later = (asyncio.create_task(bench.edit(Put(("meta", "title"), t))) for t in "ab")
    await until(lambda: bench.store.calls["append"] == 2)  # the first one made the workout
    waiting = asyncio.create_task(bench.edit(Put(("meta", "title"), "c")))
    await asyncio.sleep(0)
    bench.hub.outdated(LEG_DAY, "gap")
    with pytest.raises(Outdated):
        await waiting
    gate.set()
    assert (await stored)["seq"] == (await later)["seq"]
    reading.set()
    async with bench.room() as again:
        assert again.room.view["meta"]["title"] == "b"


async def test_what_cannot_be_stored_after_its_room_was_given_up_is_refused(
    shared: Shared,
) -> None:
    bench, _ = shared
    gate = bench.store.hold("append")
    bench.store.fail("append", Unavailable("the disk is full"))
    edit = asyncio.create_task(bench.edit(Put(("meta", "title"), "a")))
    await until(lambda: bench.store.calls["append"] == 2)
    bench.hub.outdated(LEG_DAY, "gap")
    gate.set()
    with pytest.raises(Unavailable, match="the disk is full"):
        await edit


async def test_a_room_stays_until_its_log_is_where_it_lasts(shared: Shared) -> None:
    bench, sharing = shared
    sharing.is_behind = True
    bench.hub.leave(LEG_DAY, ConnectionId("ana-events"))
    await until(lambda: sharing.asked == 2)
    assert bench.hub.find(LEG_DAY) is not None
    sharing.is_behind = False
    await until(lambda: bench.hub.find(LEG_DAY) is None)
    assert sharing.released == [LEG_DAY]


async def test_who_comes_later_sees_what_was_durable_when_they_came(shared: Shared) -> None:
    bench, sharing = shared
    now_s = time.monotonic()
    for _ in range(2):
        async with bench.hub.lease(LEG_DAY, since_s=now_s):
            assert sharing.caught_up == [LEG_DAY]
    async with bench.hub.lease(LEG_DAY, since_s=time.monotonic()):
        assert sharing.caught_up == [LEG_DAY] * 2


async def test_a_change_that_cannot_be_stored_is_refused_before_it_is_admitted(
    shared: Shared,
) -> None:
    bench, sharing = shared
    sharing.is_full = True
    with pytest.raises(Unavailable):
        await bench.edit(Put(("meta", "title"), "Mine"))
    sharing.is_full = False
    async with bench.room() as live:
        assert not live.is_dropped
        assert live.room.head["meta"]["title"] != "Mine"


async def test_a_room_that_is_watched_stays(shared: Shared) -> None:
    bench, sharing = shared
    bench.hub.keep(LEG_DAY)
    await bench.create(other := ids.workout("other"))
    for name in (LEG_DAY, other):
        bench.hub.leave(name, ConnectionId("ana-events"))
    await until(lambda: sharing.released == [other])
    assert bench.hub.find(LEG_DAY) is not None
    bench.hub.unkeep(LEG_DAY)
    await until(lambda: sharing.released == [other, LEG_DAY])


async def test_a_user_comes_and_goes_once_whatever_the_number_of_instances(
    shared: Shared,
) -> None:
    bench, _ = shared
    hub, outlet = bench.hub, bench.outlet
    outlet.presences.clear()
    hub.guest_came(LEG_DAY, "there", ConnectionId("1"), guest("ben"))
    hub.guest_came(LEG_DAY, "there", ConnectionId("2"), guest("ben", "watch"))
    await bench.join(connection("ben", "here"))
    assert [event for event, _ in outlet.presences] == ["workout:member:joined"]
    async with bench.room() as live:
        (shown,) = [m for m in live.members() if m["user"]["id"] == "ben"]
        assert len(shown["devices"]) == 2
    hub.leave(LEG_DAY, ConnectionId("here"))
    hub.guest_left(LEG_DAY, "there", ConnectionId("1"))
    assert len(outlet.presences) == 1
    hub.instance_left("there")
    assert [event for event, _ in outlet.presences][1:] == ["workout:member:left"]


async def test_presence_of_another_instance_goes_with_it(shared: Shared) -> None:
    bench, _ = shared
    state = encode_awareness([AwarenessEntry(500, 1, {"user": {"id": "ben"}})])
    bench.hub.guest_aware(LEG_DAY, "there", state)
    bench.hub.instance_left("there")
    gone = encode_awareness([AwarenessEntry(500, 1, None)])
    assert bench.outlet.shown == [state, gone]
