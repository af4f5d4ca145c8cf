"""Who belongs to a document: let in, given another role, taken out, told; and how many fit."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crdt import ids
from crdt.errors import RepSyncError, Unavailable
from crdt.ids import ConnectionId, DocKind, DocName
from crdt.ports import Append, Entry, Stored
from tests.helpers.replicas import Peer
from tests.helpers.rooms import Bench, Desk, connection, idle

NAMES = {DocKind.WORKOUT: ids.workout("w"), DocKind.TEMPLATE: ids.template("t")}
LET_IN = {DocKind.WORKOUT: "workout:invite", DocKind.TEMPLATE: "template:share"}
LET_OUT = {DocKind.WORKOUT: "workout:member:remove", DocKind.TEMPLATE: "template:unshare"}
ROLES = {DocKind.WORKOUT: ("coach", "spectator"), DocKind.TEMPLATE: ("editor", "viewer")}

kinds = pytest.mark.parametrize("kind", list(DocKind))


def about(name: DocName) -> dict[str, str]:
    return {f"{name.kind.value}_id": name.id}


async def opened(kind: DocKind, bench: Bench | None = None, **data: Any) -> Desk:
    """A desk with a workout `w` or a template `t` of ana's, with all that was told forgotten."""
    desk = Desk(bench)
    if kind is DocKind.WORKOUT:
        data = {"mode": "group", **data}
    await desk.do(
        "ana", f"{kind.value}:create", **about(NAMES[kind]), **{"title": "Leg day", **data}
    )
    desk.outlet.commits.clear()
    return desk


async def let_in(desk: Desk, kind: DocKind, user_id: str, role: str) -> Any:
    data = {**about(NAMES[kind]), "user_id": user_id, "role": role}
    return await desk.ask("ana", LET_IN[kind], data)


async def let_out(desk: Desk, kind: DocKind, user_id: str) -> Any:
    return await desk.ask("ana", LET_OUT[kind], {**about(NAMES[kind]), "user_id": user_id})


async def roles(desk: Desk, kind: DocKind) -> dict[str, str]:
    """User id -> role, as it is stored."""
    loaded = await desk.store.inner.load(NAMES[kind])
    return {user_id: member.role for user_id, member in loaded.members.items()}


def told(desk: Desk, kind: DocKind) -> list[tuple[str, str | None]]:
    """(user, role) of all changes that the room was told of."""
    changes = desk.outlet.named(f"{kind.value}:member:changed")
    return [(change["user"]["id"], change["role"]) for change in changes]


# -- letting in and out -----------------------------------------------------------------------


@kinds
async def test_who_is_let_in_and_out_is_told_to_the_room(kind: DocKind) -> None:
    desk = await opened(kind)
    first, second = ROLES[kind]
    for role in (first, second, second):
        await let_in(desk, kind, "ben", role)
    await let_out(desk, kind, "ben")
    assert told(desk, kind) == [("ben", first), ("ben", second), ("ben", None)]
    [change, *_] = desk.outlet.named(f"{kind.value}:member:changed")
    assert change == {**about(NAMES[kind]), "user": {"id": "ben", "name": "ben"}, "role": first}


@kinds
async def test_who_is_taken_out_is_told_on_all_devices(kind: DocKind) -> None:
    desk = await opened(kind)
    await let_in(desk, kind, "ben", ROLES[kind][0])
    desk.sessions.told.clear()
    answer = await let_out(desk, kind, "ben")
    assert answer == {"ok": True, "durability": "memory", "user_id": "ben"}
    event = "workout:uninvited" if kind is DocKind.WORKOUT else "template:unshared"
    by = {"id": "ana", "name": "Ana"}
    assert desk.sessions.told == [
        ("ben", event, {**about(NAMES[kind]), "title": "Leg day", "by": by})
    ]


@kinds
async def test_membership_outlives_the_server(kind: DocKind) -> None:
    desk = await opened(kind)
    stays, goes = ROLES[kind]
    await let_in(desk, kind, "ben", stays)
    await let_in(desk, kind, "cara", goes)
    await let_out(desk, kind, "cara")
    desk.bench.hub = desk.bench.another_hub()
    again = Desk(desk.bench)
    event = "workout:sync" if kind is DocKind.WORKOUT else "template:get"
    await again.do("ben", event, **about(NAMES[kind]))
    error = await again.refused("cara", event, **about(NAMES[kind]))
    assert error["code"] == "forbidden"
    assert await roles(again, kind) == {"ana": "owner", "ben": stays}


async def test_who_joins_of_their_own_accord_is_told_to_the_room() -> None:
    desk = await opened(DocKind.WORKOUT, visibility="public")
    await desk.do("ben", "workout:join", workout_id="w")
    await desk.do("ben/watch", "workout:join", workout_id="w")
    assert told(desk, DocKind.WORKOUT) == [("ben", "participant")]


async def test_who_was_taken_out_of_a_public_workout_may_come_back_as_a_visitor() -> None:
    desk = await opened(DocKind.WORKOUT, visibility="public")
    await let_in(desk, DocKind.WORKOUT, "ben", "coach")
    await let_out(desk, DocKind.WORKOUT, "ben")
    assert (await desk.do("ben", "workout:join", workout_id="w"))["role"] == "participant"


@kinds
async def test_an_operation_sent_again_takes_nobody_out_twice(kind: DocKind) -> None:
    desk = await opened(kind)
    await let_in(desk, kind, "ben", ROLES[kind][0])
    op = {"op_id": "7b0b3d1c-0a4e-4a3c-9f7f-4f2f4cf4a1de"}
    data = {**about(NAMES[kind]), "user_id": "ben", **op}
    first = await desk.do("ana", LET_OUT[kind], **data)
    assert await desk.do("ana/watch", LET_OUT[kind], **data) == first


# -- at the same moment -----------------------------------------------------------------------


async def at_once(desk: Desk, *asked: Any) -> list[Any]:
    """Answers to what is asked while nothing becomes durable."""
    gate = desk.store.hold("append")
    waiting = []
    for one in asked:
        waiting.append(asyncio.ensure_future(one))
        await idle()
    gate.set()
    return list(await asyncio.gather(*waiting))


async def test_who_joins_while_being_invited_gets_the_role_of_the_invitation() -> None:
    desk = await opened(DocKind.WORKOUT, visibility="public")
    join = desk.ask("ben", "workout:join", {"workout_id": "w"})
    _, joined = await at_once(desk, let_in(desk, DocKind.WORKOUT, "ben", "coach"), join)
    assert joined["role"] == "coach"
    assert await roles(desk, DocKind.WORKOUT) == {"ana": "owner", "ben": "coach"}


async def test_who_comes_by_another_name_while_being_demoted_stays_demoted() -> None:
    desk = await opened(DocKind.WORKOUT)
    await let_in(desk, DocKind.WORKOUT, "ben", "coach")
    desk.knows("ben", name="Benjamin")
    join = desk.ask("ben", "workout:join", {"workout_id": "w"})
    _, joined = await at_once(desk, let_in(desk, DocKind.WORKOUT, "ben", "spectator"), join)
    assert joined["role"] == "spectator"
    assert await roles(desk, DocKind.WORKOUT) == {"ana": "owner", "ben": "spectator"}


async def test_who_joins_while_being_taken_out_stays_out() -> None:
    desk = await opened(DocKind.WORKOUT)
    await let_in(desk, DocKind.WORKOUT, "ben", "participant")
    join = desk.ask("ben", "workout:join", {"workout_id": "w"})
    _, joined = await at_once(desk, let_out(desk, DocKind.WORKOUT, "ben"), join)
    assert joined["error"]["code"] == "forbidden"
    assert await roles(desk, DocKind.WORKOUT) == {"ana": "owner"}
    assert not desk.bench.hub.joined(ConnectionId("ben-phone"))


async def test_who_is_taken_out_while_joining_is_not_in_the_room() -> None:
    desk = await opened(DocKind.WORKOUT)
    await let_in(desk, DocKind.WORKOUT, "ben", "participant")
    desk.knows("ben", name="Benjamin")
    join = desk.ask("ben", "workout:join", {"workout_id": "w"})
    await at_once(desk, join, let_out(desk, DocKind.WORKOUT, "ben"))
    assert await roles(desk, DocKind.WORKOUT) == {"ana": "owner"}
    assert not desk.bench.hub.joined(ConnectionId("ben-phone"))


async def test_two_devices_that_join_at_once_are_told_one_role() -> None:
    desk = await opened(DocKind.WORKOUT, visibility="public")
    joins = [
        desk.ask("ben", "workout:join", {"workout_id": "w"}),
        desk.ask("ben/watch", "workout:join", {"workout_id": "w"}),
        desk.ask("ben/tv", "workout:join", {"workout_id": "w", "role": "spectator"}),
    ]
    phone, watch, tv = await at_once(desk, *joins)
    assert (phone["role"], watch["role"]) == ("participant", "participant")
    assert tv["error"]["details"] == {"role": "participant"}
    assert (await roles(desk, DocKind.WORKOUT))["ben"] == "participant"


@kinds
async def test_an_invitation_can_be_taken_back_before_it_is_durable(kind: DocKind) -> None:
    desk = await opened(kind)
    answers = await at_once(
        desk, let_in(desk, kind, "ben", ROLES[kind][0]), let_out(desk, kind, "ben")
    )
    assert all(answer["ok"] for answer in answers)
    assert await roles(desk, kind) == {"ana": "owner"}


@kinds
async def test_nothing_by_a_right_that_was_taken_is_stored_behind_the_taking(
    kind: DocKind,
) -> None:
    desk = await opened(kind)
    writer, reader = ("coach", "spectator") if kind is DocKind.WORKOUT else ("editor", "viewer")
    await let_in(desk, kind, "ben", writer)
    if kind is DocKind.WORKOUT:
        edit = desk.ask(
            "ben", "workout:exercise:add", {"workout_id": "w", "exercise": {"name": "Row"}}
        )
    else:
        edit = desk.ask("ben", "template:update_meta", {"template_id": "t", "meta": {"title": "x"}})
    _, edited = await at_once(desk, let_in(desk, kind, "ben", reader), edit)
    assert edited["error"]["code"] == "forbidden"


async def test_a_coach_who_is_demoted_while_starting_does_not_start() -> None:
    desk = await opened(DocKind.WORKOUT)
    await let_in(desk, DocKind.WORKOUT, "ben", "coach")
    gate = desk.store.hold("claim_active")
    started = asyncio.ensure_future(desk.ask("ben", "workout:start", {"workout_id": "w"}))
    await idle()
    assert (await let_in(desk, DocKind.WORKOUT, "ben", "participant"))["ok"]
    gate.set()
    assert (await started)["error"]["code"] == "forbidden"
    assert (await desk.shown("w"))["status"] == "planned"


async def test_a_membership_that_could_not_be_stored_is_none() -> None:
    desk = await opened(DocKind.WORKOUT)
    desk.store.fail("append", Unavailable("full"))
    answer = await let_in(desk, DocKind.WORKOUT, "ben", "coach")
    assert answer["error"]["code"] == "unavailable"
    assert (await desk.refused("ben", "workout:sync", workout_id="w"))["code"] == "forbidden"
    assert (await let_in(desk, DocKind.WORKOUT, "ben", "coach"))["ok"]


# -- how many fit -----------------------------------------------------------------------------


@kinds
async def test_no_more_members_are_let_in_than_fit(kind: DocKind) -> None:
    desk = await opened(kind, Bench(max_room_members=3))
    role, other = ROLES[kind]
    for user_id in ("ben", "cara"):
        assert (await let_in(desk, kind, user_id, role))["ok"]
    error = (await let_in(desk, kind, "dora", role))["error"]
    assert (error["code"], error["retryable"]) == ("room_full", True)
    assert error["details"] == {"capacity": 3}
    assert (await let_in(desk, kind, "ben", other))["ok"]  # who is in may get another role
    assert (await let_out(desk, kind, "cara"))["ok"]
    assert (await let_in(desk, kind, "dora", role))["ok"]
    assert (await roles(desk, kind)).keys() == {"ana", "ben", "dora"}


async def test_who_joins_needs_a_place_and_who_is_a_member_has_one() -> None:
    desk = await opened(DocKind.WORKOUT, Bench(max_room_members=2), visibility="public")
    await desk.do("ben", "workout:join", workout_id="w")
    error = await desk.refused("cara", "workout:join", workout_id="w")
    assert error["code"] == "room_full"
    assert not desk.bench.hub.joined(ConnectionId("cara-phone"))
    await desk.do("ben/watch", "workout:join", workout_id="w")
    await desk.do("cara", "workout:sync", workout_id="w")  # looking in takes no place


@pytest.mark.parametrize("event", ["workout:join", "template:join"])
async def test_no_more_sockets_join_than_fit(event: str) -> None:
    kind = DocKind(event.partition(":")[0])
    desk = await opened(kind, Bench(max_room_connections=2), visibility="public")
    await desk.do("ben", event, **about(NAMES[kind]))
    for who in ("cara", "ana/watch"):
        error = await desk.refused(who, event, **about(NAMES[kind]))
        assert (error["code"], error["details"]) == ("room_full", {"capacity": 2})
    assert "cara" not in await roles(desk, kind)  # not a member in vain
    await desk.do("ben", event, **about(NAMES[kind]))  # it is in already
    await desk.do("ben", f"{kind.value}:leave", **about(NAMES[kind]))
    await desk.do("cara", event, **about(NAMES[kind]))


async def test_those_who_are_being_moved_keep_their_seats() -> None:
    desk = await opened(DocKind.WORKOUT, Bench(max_room_connections=2), visibility="public")
    await desk.do("ben", "workout:join", workout_id="w")
    desk.store.fail("load", Unavailable("away"))
    desk.store.fail("append", Unavailable("full"))
    await desk.refused("ana", "workout:start", workout_id="w")
    await idle()  # the first try to read the room has failed
    error = await desk.refused("cara", "workout:join", workout_id="w")
    assert error["code"] == "room_full"
    await desk.do("ben", "workout:join", workout_id="w")


PEOPLE = tuple("abcdefgh")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("invite", "remove", "join", "join", "join", "leave", "store")),
        st.sampled_from(PEOPLE),
        st.sampled_from(("phone", "watch", "wait", "go on", "fail")),
    ),
    min_size=10,
    max_size=60,
)


def trouble(desk: Desk, how: str) -> None:
    if how == "wait":
        desk.store.hold("append")
    elif how == "fail":
        desk.store.fail("append", Unavailable("full"))
    else:
        desk.store.release()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_a_room_is_never_fuller_than_it_may_be(steps: list[tuple[str, str, str]]) -> None:
    """Whatever is asked at once, and whatever the store does meanwhile."""

    async def live_through_it() -> None:
        bench = Bench(max_room_members=4, max_room_connections=3)
        desk = await opened(DocKind.WORKOUT, bench, visibility="public")
        asked = []
        for what, who, how in steps:
            if what == "store":
                trouble(desk, how)
            else:
                asked.append(asyncio.ensure_future(step(desk, what, who, how)))
            await idle(3)
            await fits(desk)
        desk.store.release()
        for answer in await asyncio.gather(*asked):
            assert answer["ok"] or answer["error"]["code"] != "internal"
        await fits(desk)
        async with bench.room(NAMES[DocKind.WORKOUT]) as live:
            assert live.room.roster == live.room.members
        await bench.close()

    async def step(desk: Desk, what: str, who: str, device: str) -> Any:
        if what == "invite":
            return await let_in(desk, DocKind.WORKOUT, who, "coach")
        if what == "remove":
            return await let_out(desk, DocKind.WORKOUT, who)
        return await desk.ask(f"{who}/{device}", f"workout:{what}", {"workout_id": "w"})

    async def fits(desk: Desk) -> None:
        assert len(await roles(desk, DocKind.WORKOUT)) <= 4
        for live in desk.bench.hub.live:
            assert len(live.room.members) <= 4
            assert len(live.room.roster) <= 4
            assert len(live.connections) <= 3

    with patch("crdt.hub.FIRST_RETRY_S", 0.001):
        asyncio.run(live_through_it())


async def test_of_many_who_want_the_last_place_one_gets_it() -> None:
    desk = await opened(DocKind.WORKOUT, Bench(max_room_members=2), visibility="public")
    asked = [desk.ask(who, "workout:join", {"workout_id": "w"}) for who in PEOPLE]
    answers = await at_once(desk, *asked)
    codes = [answer["error"]["code"] for answer in answers if not answer["ok"]]
    assert codes == ["room_full"] * (len(PEOPLE) - 1)
    assert len(await roles(desk, DocKind.WORKOUT)) == 2


async def test_of_many_who_want_the_last_seat_one_gets_it() -> None:
    desk = await opened(DocKind.WORKOUT, Bench(max_room_connections=2), visibility="public")
    asked = [desk.ask(who, "workout:join", {"workout_id": "w"}) for who in PEOPLE]
    answers = await at_once(desk, *asked)
    assert sum(answer["ok"] for answer in answers) == 1
    live = desk.bench.hub.find(NAMES[DocKind.WORKOUT])
    assert live is not None
    assert len(live.connections) == 2


# -- the log ----------------------------------------------------------------------------------

HISTORY = st.lists(
    st.one_of(
        st.tuples(
            st.just("role"), st.sampled_from("ab"), st.sampled_from(("editor", "viewer", ""))
        ),
        st.tuples(st.just("update"), st.sampled_from(("a", "b", "ana")), st.just("")),
        st.tuples(st.just("intend"), st.sampled_from(("a", "b", "ana")), st.just("")),
        st.tuples(st.just("lock"), st.just("ana"), st.sampled_from(("lock", "unlock"))),
        st.tuples(st.just("store"), st.just(""), st.sampled_from(("wait", "go on", "fail"))),
    ),
    min_size=15,
    max_size=60,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=HISTORY)
def test_nothing_stands_in_the_log_that_its_author_had_no_right_to_write_there(
    history: list[tuple[str, str, str]],
) -> None:
    """Whatever becomes durable when: read from its beginning, every change was allowed."""

    async def live_through_it() -> None:
        desk = await opened(DocKind.TEMPLATE)
        logged: list[Entry] = []
        append = desk.store.inner.append

        async def noted(batch: Append) -> Stored:
            stored: Stored = await append(batch)
            logged.extend(batch.entries)
            return stored

        desk.store.inner.append = noted
        asked = []
        for what, who, how in history:
            if what == "store":
                trouble(desk, how)
            else:
                asked.append(asyncio.ensure_future(step(desk, what, who, how)))
            await idle(3)
        desk.store.release()
        await asyncio.gather(*asked)
        members, is_locked = {"ana": "owner"}, False
        for entry in logged:
            if entry.event in ("template:lock", "template:unlock"):
                is_locked = entry.event == "template:lock"
            elif entry.members:
                members.update({member.user_id: member.role for member in entry.members})
            else:
                assert members.get(entry.author.user_id) in ("owner", "editor")
                assert not is_locked
        await desk.bench.close()

    async def step(desk: Desk, what: str, who: str, how: str) -> None:
        if what == "role" and how:
            await let_in(desk, DocKind.TEMPLATE, who, how)
        elif what == "role":
            await let_out(desk, DocKind.TEMPLATE, who)
        elif what == "lock":
            await lock(desk, how)
        elif what == "intend":
            change = {"template_id": "t", "meta": {"title": f"by {who}"}}
            await desk.ask(who, "template:update_meta", change)
        else:
            name = NAMES[DocKind.TEMPLATE]
            with contextlib.suppress(RepSyncError):
                peer = Peer(DocKind.TEMPLATE, await desk.bench.state(name))
                update = peer.put("meta", "goal", f"by {who}")
                await (await desk.bench.submit(update, connection(who), name))

    with patch("crdt.hub.FIRST_RETRY_S", 0.001):
        asyncio.run(live_through_it())


# -- the lock ---------------------------------------------------------------------------------


async def lock(desk: Desk, event: str = "lock", who: str = "ana") -> Any:
    return await desk.ask(who, f"template:{event}", {"template_id": "t"})


async def test_locking_and_unlocking_is_told_and_shown() -> None:
    desk = await opened(DocKind.TEMPLATE)
    for event, is_locked in (("lock", True), ("unlock", False)):
        answer = await lock(desk, event)
        assert (answer["template_id"], answer["locked"]) == ("t", is_locked)
        assert answer["durability"] == "memory"
        assert desk.outlet.named("template:changed")[-1]["meta"] == {"locked": is_locked}
        shown = (await desk.do("ana", "template:get", template_id="t"))["template"]
        assert shown["locked"] is is_locked


@pytest.mark.parametrize("event", ["lock", "unlock"])
async def test_what_is_so_already_is_fine_and_told_to_nobody(event: str) -> None:
    desk = await opened(DocKind.TEMPLATE)
    await lock(desk, event)
    desk.outlet.commits.clear()
    assert (await lock(desk, event))["ok"]
    assert desk.outlet.events == []


async def test_nothing_is_stored_behind_the_lock_even_before_it_is_durable() -> None:
    desk = await opened(DocKind.TEMPLATE)
    edit = desk.ask("ana", "template:update_meta", {"template_id": "t", "meta": {"title": "x"}})
    locked, edited = await at_once(desk, lock(desk), edit)
    assert locked["ok"]
    assert edited["error"]["code"] == "locked"
    assert edited["error"]["retryable"] is False


async def test_the_lock_outlives_the_server() -> None:
    desk = await opened(DocKind.TEMPLATE)
    await lock(desk)
    desk.bench.hub = desk.bench.another_hub()
    again = Desk(desk.bench)
    change = {"template_id": "t", "meta": {"title": "x"}}
    assert (await again.refused("ana", "template:update_meta", **change))["code"] == "locked"
    await lock(again, "unlock")
    await again.do("ana", "template:update_meta", **change)


async def test_a_locked_template_can_be_trained_by() -> None:
    desk = await opened(DocKind.TEMPLATE)
    await lock(desk)
    made = await desk.do("ana", "workout:create", template_id="t")
    assert made["workout"]["template_id"] == "t"


async def test_a_template_that_is_not_there_cannot_be_locked() -> None:
    desk = Desk()
    assert (await lock(desk))["error"]["code"] == "not_found"
