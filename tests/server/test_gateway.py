"""The doors: who gets in, for how long, and what those inside are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycrdt import Map

from crdt import ids
from crdt.errors import Unavailable
from crdt.ids import DocName
from crdt.ports import Append, Stored
from crdt.wire import AwarenessEntry, decode_awareness, encode_awareness
from server import documents
from server.replay.devices import DocumentClient, EventClient, Refused
from server.sessions import Session
from tests.helpers.replicas import Peer
from tests.helpers.servers import RunningServer, running_server

WORKOUT, TEMPLATE = ids.workout("w"), ids.template("t")
DEADLINE_S = 10.0


async def make_workout(owner: EventClient, **fields: Any) -> None:
    await owner.do("workout:create", {"workout_id": WORKOUT.id, "title": "Leg day", **fields})
    await owner.do(
        "workout:exercise:add",
        {"workout_id": WORKOUT.id, "exercise_id": "squat", "exercise": {"name": "Squat"}},
    )


async def make_template(owner: EventClient, **fields: Any) -> None:
    await owner.do("template:create", {"template_id": TEMPLATE.id, "title": "Plan", **fields})


async def log_set(client: EventClient, **measures: Any) -> str:
    done = await client.do(
        "workout:set:complete",
        {"workout_id": WORKOUT.id, "exercise_id": "squat", "set": {"reps": 5, **measures}},
    )
    return str(done["set_id"])


def write_set(client: DocumentClient, set_id: str, user_id: str = "ana") -> None:
    client.map("sets")[set_id] = Map(
        {
            "user_id": user_id,
            "exercise": "squat",
            "order": f"b{set_id}",
            "kind": "normal",
            "reps": 5.0,
            "completed_at": 1_700_000_000_000.0,
        }
    )


async def with_token(server: RunningServer, token: str) -> EventClient:
    client = EventClient(server.url, token, {"id": "phone", "name": "Phone"})
    server.clients.append(client)
    return await client.connect()


async def document_with_token(server: RunningServer, name: DocName, token: str) -> DocumentClient:
    client = DocumentClient(server.url, name, token)
    server.clients.append(client)
    return await client.connect()


def names(client: EventClient) -> list[str]:
    return [event for event, _, _ in client.events]


async def barrier(*clients: EventClient) -> None:
    """Wait until everything that was sent to these clients has come: the ack comes behind it."""
    for client in clients:
        await client.do("time:sync", {"t0": 0.0})


async def until(condition: Callable[[], bool], client: EventClient) -> None:
    """Wait for something in the server, asking it for the time meanwhile."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await barrier(client)


# -- welcome --------------------------------------------------------------------------------------


async def test_welcome_tells_who_one_is_and_what_is_allowed(server: RunningServer) -> None:
    phone = await server.events("ana", name="Ana", role="trainer")
    welcome = phone.welcome
    assert welcome["user"] == {"id": "ana", "name": "Ana", "role": "trainer"}
    assert welcome["device_id"] == "phone"
    assert welcome["protocol"] == 1
    assert welcome["active_workout"] is None
    assert isinstance(welcome["instance"], str)
    assert abs(welcome["server_time"] - time.time() * 1_000) < 60_000
    assert welcome["limits"]["max_update_bytes"] == 4 * 1024 * 1024
    assert all(isinstance(limit, int) for limit in welcome["limits"].values())


async def test_welcome_names_the_active_workout(server: RunningServer) -> None:
    phone = await server.events("ana")
    await make_workout(phone)
    await phone.do("workout:start", {"workout_id": WORKOUT.id})
    assert (await server.events("ana", "watch")).welcome["active_workout"] == WORKOUT.id
    assert (await server.events("ben")).welcome["active_workout"] is None
    await phone.do("workout:complete", {"workout_id": WORKOUT.id})
    assert (await server.events("ana", "watch")).welcome["active_workout"] is None


async def test_a_client_without_a_device_is_given_an_id(server: RunningServer) -> None:
    clients = [EventClient(server.url, server.token("ana")) for _ in range(2)]
    server.clients.extend(clients)
    given = [(await client.connect()).welcome["device_id"] for client in clients]
    assert all(given)
    assert given[0] != given[1]


async def test_polling_clients_are_welcome_and_get_events(server: RunningServer) -> None:
    polling = EventClient(server.url, server.token("ana"))
    await polling.connect(transports=("polling",))
    await make_workout(polling)
    phone = await server.events("ana")
    set_id = await log_set(phone)
    assert (await polling.next("workout:set:completed"))["set_id"] == set_id
    async with asyncio.timeout(DEADLINE_S):
        await polling.close()


# -- the end of a token ---------------------------------------------------------------------------


async def test_a_connection_is_told_of_its_end_and_ends(tmp_path: Path) -> None:
    async with running_server(tmp_path, auth_expiring_notice_s=1.0) as server:
        owner = await server.events("ana")
        await make_workout(owner)
        token = server.token("ana", ttl_s=1.6)
        phone = await with_token(server, token)
        laptop = await document_with_token(server, WORKOUT, token)
        expiring = await phone.next("auth:expiring")
        left_ms = expiring["expires_at"] - time.time() * 1_000
        assert 0 < left_ms < 1_500
        expired = await phone.next("auth:expired")
        assert expired["code"] == "token_expired"
        await phone.wait_until_gone()
        await laptop.wait_until_gone()
        await until(lambda: server.parts.gateway.session_counts["document"] == 0, owner)
        with pytest.raises(Refused) as refused:
            await with_token(server, server.token("ana", ttl_s=-60))
        assert refused.value.error["code"] == "token_expired"


async def test_nothing_is_told_behind_the_end(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        owner = await server.events("ana")
        await make_workout(owner)
        phone = await with_token(server, server.token("ana", ttl_s=0.6))
        await phone.do("workout:join", {"workout_id": WORKOUT.id})
        await phone.wait_until_gone()
        set_id = await log_set(owner)
        await barrier(owner)
        assert not [e for e in phone.events if e[1].get("set_id") == set_id]


async def test_a_new_token_keeps_every_connection_of_the_old_one(tmp_path: Path) -> None:
    async with running_server(tmp_path, auth_expiring_notice_s=0.2) as server:
        owner = await server.events("ana")
        await make_workout(owner)
        old = server.token("ana", ttl_s=1.5)
        phone = await with_token(server, old)
        laptop = await document_with_token(server, WORKOUT, old)
        witness = await with_token(server, server.token("ana", ttl_s=1.6))
        new = server.token("ana", ttl_s=600)
        answer = await phone.do("auth:refresh", {"token": new})
        assert answer["expires_at"] == pytest.approx(time.time() * 1_000 + 600_000, abs=30_000)
        await witness.wait_until_gone()  # by now the old token's end has passed
        await barrier(phone)
        assert "auth:expired" not in names(phone)
        write_set(laptop, "s1")
        await laptop.settled()
        assert phone.is_connected
        assert laptop.is_connected


async def test_a_new_token_does_not_keep_the_connections_of_a_third_one(tmp_path: Path) -> None:
    async with running_server(tmp_path, auth_expiring_notice_s=0.2) as server:
        phone = await with_token(server, server.token("ana", ttl_s=1.0))
        watch = await with_token(server, server.token("ana", ttl_s=1.1))
        await phone.do("auth:refresh", {"token": server.token("ana", ttl_s=600)})
        await watch.wait_until_gone()
        assert phone.is_connected


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda server: server.token("ben"), "forbidden"),
        (lambda server: server.token("ana", ttl_s=-60), "token_expired"),
        (lambda server: server.token("ana") + "x", "unauthenticated"),
        (lambda server: "", "unauthenticated"),
    ],
)
async def test_a_new_token_that_is_no_good_changes_nothing(
    server: RunningServer, make: Callable[[RunningServer], str], code: str
) -> None:
    phone = await server.events("ana")
    answer = await phone.ask("auth:refresh", {"token": make(server)})
    assert answer["error"]["code"] == code
    await make_workout(phone)
    synced = await phone.do("workout:sync", {"workout_id": WORKOUT.id})
    assert synced["workout"]["owner_id"] == "ana"


async def test_another_role_counts_from_the_refresh_on(server: RunningServer) -> None:
    phone = await server.events("ana")
    denied = await phone.do("subscribe", {"streams": ["system:health"]})
    assert denied["denied"] == ["system:health"]
    await phone.do("auth:refresh", {"token": server.token("ana", role="admin")})
    assert (await phone.do("subscribe", {"streams": ["system:health"]}))["denied"] == []


async def test_a_friendship_that_has_ended_counts_from_the_refresh_on(
    server: RunningServer,
) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="friends")
    ben = await server.events("ben", friends=("ana",))
    assert (await ben.ask("workout:sync", {"workout_id": WORKOUT.id}))["ok"]
    await ben.do("auth:refresh", {"token": server.token("ben")})
    answer = await ben.ask("workout:sync", {"workout_id": WORKOUT.id})
    assert answer["error"]["code"] == "forbidden"


# -- strangers ------------------------------------------------------------------------------------

WORKOUT_DOORS: dict[str, dict[str, Any]] = {
    "workout:sync": {},
    "workout:join": {},
    "workout:start": {},
    "workout:pause": {},
    "workout:resume": {},
    "workout:complete": {},
    "workout:abandon": {},
    "workout:invite": {"user_id": "ben", "role": "coach"},
    "workout:exercise:add": {"exercise": {"name": "Row"}},
    "workout:exercise:update": {"exercise_id": "squat", "exercise": {"name": "Row"}},
    "workout:exercise:move": {"exercise_id": "squat"},
    "workout:exercise:remove": {"exercise_id": "squat"},
    "workout:set:complete": {"exercise_id": "squat", "set": {"reps": 5}},
    "workout:set:update": {"set_id": "s1", "set": {"reps": 6}},
    "workout:set:remove": {"set_id": "s1"},
}
TEMPLATE_DOORS: dict[str, dict[str, Any]] = {
    "template:get": {},
    "template:join": {},
    "template:update_meta": {"meta": {"title": "Mine"}},
    "template:share": {"user_id": "ben", "role": "editor"},
    "template:unshare": {"user_id": "ana"},
}


@pytest.mark.parametrize("event", [*WORKOUT_DOORS, *TEMPLATE_DOORS])
async def test_strangers_are_refused_at_every_intent(server: RunningServer, event: str) -> None:
    ana, ben = await server.events("ana"), await server.events("ben")
    await make_workout(ana)
    await make_template(ana)
    data = (
        {"workout_id": WORKOUT.id, **WORKOUT_DOORS[event]}
        if event in WORKOUT_DOORS
        else {"template_id": TEMPLATE.id, **TEMPLATE_DOORS[event]}
    )
    answer = await ben.ask(event, data)
    assert answer["error"]["code"] == "forbidden"
    assert "Leg day" not in str(answer)


@pytest.mark.parametrize("name", [WORKOUT, TEMPLATE])
async def test_strangers_are_refused_at_a_documents_door(
    server: RunningServer, name: DocName
) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    await make_template(ana)
    with pytest.raises(Refused) as refused:
        await server.document("ben", name)
    assert refused.value.error["code"] == "forbidden"


async def test_strangers_see_nothing_in_lists_and_streams(server: RunningServer) -> None:
    ana, ben = await server.events("ana"), await server.events("ben")
    await make_workout(ana)
    await make_template(ana)
    assert (await ben.do("workout:list"))["workouts"] == []
    assert (await ben.do("template:list"))["templates"] == []
    stream = f"{WORKOUT}:progress"
    answer = await ben.do("subscribe", {"streams": [stream]})
    assert (answer["subscribed"], answer["denied"]) == ([], [stream])
    await log_set(ana)
    await barrier(ben)
    assert names(ben) == ["subscription:confirmed"]


async def test_what_there_is_not_is_not_found_at_a_documents_door(server: RunningServer) -> None:
    with pytest.raises(Refused) as refused:
        await server.document("ana", ids.workout("none"))
    assert refused.value.error["code"] == "not_found"


@pytest.mark.parametrize(
    ("visibility", "friends", "is_let_in"),
    [
        ("private", ("ana",), False),
        ("friends", ("ana",), True),
        ("friends", ("cleo",), False),
        ("friends", (), False),
        ("public", (), True),
    ],
)
async def test_visibility_decides_who_may_look_in(
    server: RunningServer, visibility: str, friends: tuple[str, ...], is_let_in: bool
) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility=visibility)
    ben = await server.events("ben", friends=friends)
    answer = await ben.ask("workout:sync", {"workout_id": WORKOUT.id})
    assert answer["ok"] is is_let_in
    if not is_let_in:
        with pytest.raises(Refused):
            await server.document("ben", WORKOUT, friends=friends)
        return
    laptop = await server.document("ben", WORKOUT, friends=friends)
    assert "squat" in laptop.content()["exercises"]
    answer = await ben.ask(
        "workout:exercise:add", {"workout_id": WORKOUT.id, "exercise": {"name": "Row"}}
    )
    assert answer["error"]["code"] == "forbidden"


async def test_a_rejection_names_the_place(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    laptop = await server.document("ana", WORKOUT)
    await laptop.send(Peer(state=laptop.doc.get_update()).put("meta", "status", "completed"))
    await laptop.until(lambda: bool(laptop.rejections))
    (rejection,) = laptop.rejections
    assert (rejection["code"], rejection["path"]) == ("forbidden", "meta.status")


async def test_a_spectators_edits_are_rejected_whole(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="public")
    laptop = await server.document("ben", WORKOUT)
    update = set_update("s1", "ben")
    answer = await laptop.send(update)
    assert answer["error"]["code"] == "forbidden"
    await laptop.until(lambda: bool(laptop.rejections))
    assert laptop.rejections[0]["code"] == "forbidden"
    synced = await ana.do("workout:sync", {"workout_id": WORKOUT.id})
    assert synced["workout"]["sets"] == []
    await log_set(ana)
    await laptop.until(lambda: len(laptop.content()["sets"]) == 1)


def set_update(set_id: str, user_id: str) -> bytes:
    """What a replica that nobody else has would send of one set."""
    client = DocumentClient("", WORKOUT, "")
    write_set(client, set_id, user_id)
    return client.doc.get_update()


async def test_a_set_of_somebody_else_is_not_for_a_yjs_client_to_change(
    server: RunningServer,
) -> None:
    ana = await server.events("ana")
    await make_workout(ana, mode="group")
    set_id = await log_set(ana)
    await ana.do(
        "workout:invite", {"workout_id": WORKOUT.id, "user_id": "ben", "role": "participant"}
    )
    laptop = await server.document("ben", WORKOUT)
    laptop.map("sets")[set_id]["reps"] = 99.0
    await asyncio.gather(*laptop._unacked, return_exceptions=True)
    synced = await ana.do("workout:sync", {"workout_id": WORKOUT.id})
    assert synced["workout"]["sets"][0]["reps"] == 5


async def test_who_may_look_in_no_more_is_put_out(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_template(ana, visibility="public")
    laptop = await server.document("ben", TEMPLATE)
    await ana.do(
        "template:update_meta", {"template_id": TEMPLATE.id, "meta": {"visibility": "private"}}
    )
    await laptop.wait_until_gone(timeout_s=3)


async def test_who_is_a_friend_no_more_is_put_out(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="friends")
    token = server.token("ben", friends=("ana",))
    phone = await with_token(server, token)
    laptop = await document_with_token(server, WORKOUT, token)
    await phone.do("auth:refresh", {"token": server.token("ben")})
    await laptop.wait_until_gone(timeout_s=3)


# -- members --------------------------------------------------------------------------------------


async def group(server: RunningServer) -> tuple[EventClient, EventClient]:
    """Ana's and Ben's phones, both in a group workout."""
    ana = await server.events("ana", name="Ana")
    await make_workout(ana, mode="group", visibility="public")
    ben = await server.events("ben", name="Ben")
    await ben.do("workout:join", {"workout_id": WORKOUT.id})
    joined = await ana.next("workout:member:joined", lambda e: e["user"]["id"] == "ben")
    assert joined["role"] == "participant"
    ana.events.clear()
    return ana, ben


async def test_a_member_with_several_devices_joins_and_leaves_once(server: RunningServer) -> None:
    ana, ben = await group(server)
    watch = await server.events("ben", "watch", name="Ben")
    await watch.do("workout:join", {"workout_id": WORKOUT.id})
    laptop = await document_with_token(server, WORKOUT, server.token("ben", name="Ben"))
    synced = await ana.do("workout:sync", {"workout_id": WORKOUT.id})
    members = {member["user"]["id"]: member for member in synced["workout"]["members"]}
    assert members["ben"]["user"] == {"id": "ben", "name": "Ben"}
    assert members["ben"]["role"] == "participant"
    assert members["ben"]["online"] is True
    devices = {device["id"] for device in members["ben"]["devices"]}
    assert {"phone", "watch"} < devices
    assert len(devices) == 3
    assert members["ana"]["role"] == "owner"

    await ben.do("workout:leave", {"workout_id": WORKOUT.id})
    await watch.close()
    await barrier(ana)
    assert "workout:member:joined" not in names(ana)
    assert "workout:member:left" not in names(ana)
    await laptop.drop()
    left = await ana.next("workout:member:left")
    assert left == {
        "workout_id": WORKOUT.id,
        "user": {"id": "ben", "name": "Ben"},
        "role": "participant",
    }
    synced = await ana.do("workout:sync", {"workout_id": WORKOUT.id})
    members = {member["user"]["id"]: member for member in synced["workout"]["members"]}
    assert (members["ben"]["online"], members["ben"]["devices"]) == (False, [])


async def test_two_who_join_see_what_the_other_does(server: RunningServer) -> None:
    ana, ben = await group(server)
    for actor, other in ((ana, ben), (ben, ana)):
        set_id = await log_set(actor)
        for told in (actor, other):
            event = await told.next("workout:set:completed")
            assert event["set_id"] == set_id
            assert event["user"]["name"] == actor.welcome["user"]["name"]


async def test_a_visitor_with_a_replica_is_shown_as_a_spectator(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="public")
    await server.document("ben", WORKOUT)
    synced = await ana.do("workout:sync", {"workout_id": WORKOUT.id})
    members = {member["user"]["id"]: member for member in synced["workout"]["members"]}
    assert members["ben"]["role"] == "spectator"
    assert members["ben"]["online"] is True


async def test_who_has_left_is_told_no_more_and_may_still_act(server: RunningServer) -> None:
    ana, ben = await group(server)
    await ben.do("workout:leave", {"workout_id": WORKOUT.id})
    ben.events.clear()
    await log_set(ana)
    await log_set(ben)
    await barrier(ben)
    assert names(ben) == []


async def test_an_invitation_comes_to_all_devices(server: RunningServer) -> None:
    ana = await server.events("ana", name="Ana")
    await make_workout(ana)
    devices = [await server.events("ben"), await server.events("ben", "watch")]
    await ana.do("workout:invite", {"workout_id": WORKOUT.id, "user_id": "ben", "role": "coach"})
    for device in devices:
        told = await device.next("workout:invited")
        assert told == {
            "workout_id": WORKOUT.id,
            "title": "Leg day",
            "role": "coach",
            "by": {"id": "ana", "name": "Ana"},
        }
    assert (await devices[0].do("workout:join", {"workout_id": WORKOUT.id}))["role"] == "coach"


async def test_unsharing_puts_the_users_sockets_out(server: RunningServer) -> None:
    ana, ben = await server.events("ana"), await server.events("ben")
    await make_template(ana)
    share = {"template_id": TEMPLATE.id, "user_id": "ben"}
    await ana.do("template:share", {**share, "role": "editor"})
    assert (await ben.next("template:shared"))["role"] == "editor"
    await ben.do("template:join", {"template_id": TEMPLATE.id})
    laptop = await server.document("ben", TEMPLATE)
    mine = await server.document("ana", TEMPLATE)
    await ana.do("template:unshare", share)
    await laptop.wait_until_gone()
    ben.events.clear()
    mine.roots["notes"].insert(0, "not for ben")
    await mine.settled()
    await barrier(ben)
    assert names(ben) == []
    assert laptop.content()["notes"] == ""
    answer = await ben.ask("template:get", {"template_id": TEMPLATE.id})
    assert answer["error"]["code"] == "forbidden"
    with pytest.raises(Refused):
        await laptop.connect()
    assert mine.is_connected


# -- presence -------------------------------------------------------------------------------------


def presence(client_id: int, clock: int, **state: Any) -> bytes:
    return encode_awareness([AwarenessEntry(client_id, clock, state)])


async def test_presence_is_shown_to_the_others_and_to_newcomers_and_ends(
    server: RunningServer,
) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="public")
    mine, his = await server.document("ana", WORKOUT), await server.document("ben", WORKOUT)
    await his.announce(presence(7, 1, cursor=3, user={"name": "Ana", "id": "ana", "color": "red"}))
    await mine.until(lambda: bool(mine.awareness))
    (shown,) = decode_awareness(mine.awareness[0])
    assert shown.client_id == 7
    assert shown.state == {"cursor": 3, "user": {"id": "ben", "name": "ben", "color": "red"}}

    late = await server.document("ana", WORKOUT)
    await late.until(lambda: bool(late.awareness))
    assert decode_awareness(late.awareness[0]) == [shown]

    await his.drop()
    await mine.until(lambda: len(mine.awareness) == 2)
    (gone,) = decode_awareness(mine.awareness[1])
    assert (gone.client_id, gone.state) == (7, None)
    assert his.awareness == []


async def test_nobody_can_speak_for_somebody_else(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="public")
    mine, his = await server.document("ana", WORKOUT), await server.document("ben", WORKOUT)
    await mine.announce(presence(1, 1, cursor=1))
    await his.until(lambda: len(his.awareness) == 1)
    await his.announce(presence(2, 1, cursor=2))
    await mine.until(lambda: len(mine.awareness) == 1)
    await his.announce(encode_awareness([AwarenessEntry(1, 9, None)]))
    await his.announce(presence(1, 9, cursor=9))
    await his.announce(presence(2, 2, cursor=3))
    await mine.until(lambda: (2, 3) in seen_by(mine))
    assert not [cursor for client_id, cursor in seen_by(mine) if client_id == 1 and cursor]
    await his.sync()
    assert seen_by(his) == [(1, 1)]


def seen_by(client: DocumentClient) -> list[tuple[int, Any]]:
    """(client ID, cursor) of all that was told; None for the cursor of who has gone."""
    return [
        (entry.client_id, entry.state["cursor"] if entry.state else None)
        for update in client.awareness
        for entry in decode_awareness(update)
    ]


# -- order ----------------------------------------------------------------------------------------


async def test_a_thin_client_is_told_everything_once_and_in_one_order(
    server: RunningServer,
) -> None:
    ana, ben = await group(server)
    laptops = [await server.document("ana", WORKOUT) for _ in range(2)]
    watch = await server.events("ana", "watch")
    await watch.do("workout:join", {"workout_id": WORKOUT.id})

    async def by_intents(client: EventClient) -> list[str]:
        return [await log_set(client) for _ in range(15)]

    async def by_yjs(client: DocumentClient, name: str) -> list[str]:
        made = [f"{name}{number}" for number in range(15)]
        for set_id in made:
            write_set(client, set_id)
            if set_id.endswith(("3", "7")):
                await client.settled()
        await client.settled()
        return made

    written = await asyncio.gather(
        by_intents(ana),
        by_intents(ben),
        *(by_yjs(laptop, name) for laptop, name in zip(laptops, "xy", strict=True)),
    )
    await barrier(ana, ben, watch)
    told = [
        [payload["set_id"] for event, payload, _ in client.events if event.endswith(":completed")]
        for client in (ana, ben, watch)
    ]
    assert told[0] == told[1] == told[2]
    assert sorted(told[0]) == sorted(set_id for made in written for set_id in made)
    for made in written:
        assert [set_id for set_id in told[0] if set_id in made] == made
    contents = [laptop.content() for laptop in laptops]
    assert contents[0] == contents[1]


async def test_the_event_of_a_change_comes_before_its_ack(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    set_id = await log_set(ana)
    assert ("workout:set:completed", set_id) in [
        (event, payload.get("set_id")) for event, payload, _ in ana.events
    ]


async def test_a_sender_gets_no_copy_of_its_own_update(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    mine, other = await server.document("ana", WORKOUT), await server.document("ana", WORKOUT)
    came: list[bytes] = []
    mine.on_remote = came.append
    write_set(mine, "s1")
    await mine.settled()
    await other.until(lambda: "s1" in other.content()["sets"])
    await mine.sync()
    assert came == []


# -- durability -----------------------------------------------------------------------------------


async def test_the_same_update_again_is_acked_when_the_first_is_durable(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    first, second = await server.document("ana", WORKOUT), await server.document("ana", WORKOUT)
    append, synced, asked = server.parts.store.append, asyncio.Event(), asyncio.Event()

    async def slow_append(batch: Append) -> Stored:
        asked.set()
        await synced.wait()
        return await append(batch)

    monkeypatch.setattr(server.parts.store, "append", slow_append)
    update = set_update("s1", "ana")
    answers = [asyncio.ensure_future(first.send(update))]
    async with asyncio.timeout(DEADLINE_S):
        await asked.wait()
    answers.append(asyncio.ensure_future(second.send(update)))
    for _ in range(3):
        await second.sync()  # answered behind the update: an ack of that would be here by now
    try:
        assert not any(answer.done() for answer in answers)
    finally:
        synced.set()
        assert all(answer["ok"] for answer in await asyncio.gather(*answers))


async def test_nothing_is_shown_or_acked_before_it_is_durable(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    laptop = await server.document("ana", WORKOUT)
    watch = await server.events("ana", "watch")
    await watch.do("workout:join", {"workout_id": WORKOUT.id})
    append, synced, asked = server.parts.store.append, asyncio.Event(), asyncio.Event()

    async def slow_append(batch: Append) -> Stored:
        asked.set()
        await synced.wait()
        return await append(batch)

    monkeypatch.setattr(server.parts.store, "append", slow_append)
    logging = asyncio.ensure_future(log_set(ana))
    async with asyncio.timeout(DEADLINE_S):
        await asked.wait()
    shown = await watch.do("workout:sync", {"workout_id": WORKOUT.id})
    await laptop.sync()
    assert shown["workout"]["sets"] == []
    assert laptop.content()["sets"] == {}
    assert "workout:set:completed" not in names(watch)
    assert not logging.done()
    synced.set()
    set_id = await logging
    await laptop.until(lambda: set_id in laptop.content()["sets"])
    assert (await watch.next("workout:set:completed"))["set_id"] == set_id


async def test_a_failed_append_is_told_and_the_next_one_goes_well(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    laptop = await server.document("ana", WORKOUT)
    append = server.parts.store.append
    failures = 2

    async def failing_append(batch: Append) -> Stored:
        nonlocal failures
        if failures:
            failures -= 1
            raise Unavailable("no room on the disk", retry_after_ms=1_000)
        return await append(batch)

    monkeypatch.setattr(server.parts.store, "append", failing_append)
    answer = await ana.ask(
        "workout:set:complete",
        {"workout_id": WORKOUT.id, "exercise_id": "squat", "set": {"reps": 5}},
    )
    assert answer["error"]["code"] == "unavailable"
    assert answer["error"]["retryable"] is True
    await laptop.until(lambda: bool(laptop.resets))
    write_set(laptop, "s1")
    await asyncio.gather(*laptop._unacked, return_exceptions=True)  # the second failure
    # The server has asked for what it lacks; the replica is kept, and its edit arrives after all.
    told = await ana.next("workout:set:completed")
    assert told["set_id"] == "s1"
    set_id = await log_set(ana)
    await laptop.until(lambda: set_id in laptop.content()["sets"])


# -- what a client lacks itself -------------------------------------------------------------------


class LackingClient(DocumentClient):
    """Answers the server's question with `gap`, as long as there is one, and not with all it has.

    So does a Yjs client that was given something which builds on what it has not got itself.
    """

    gap = b""
    asked = 0

    async def _on_event(self, event: str, *args: Any) -> Any:
        if event != "sync-step-1":
            return await super()._on_event(event, *args)
        self.asked += 1
        answer = await super()._on_event(event, *args)
        return self.gap or answer


def gap() -> bytes:
    """The second of two updates."""
    peer = Peer()
    peer.set("s-1", exercise="squat")
    return peer.set("s-2", exercise="squat")


async def lacking_client(server: RunningServer) -> LackingClient:
    client = LackingClient(server.url, WORKOUT, server.token("ana"))
    client.gap = gap()
    server.clients.append(client)
    await client.connect()
    await client.until(lambda: bool(client.resets))  # its first answer has been refused
    return client


def session_of_the_document(server: RunningServer) -> Session:
    (session,) = (s for s in server.parts.gateway._sessions.values() if s.document is not None)
    return session


def write_unheard(client: DocumentClient, set_id: str) -> None:
    """Write a set whose update gets lost on the way."""
    client._is_remote = True
    write_set(client, set_id)
    client._is_remote = False


@pytest.fixture
def long_ask_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a test takes."""
    monkeypatch.setattr(documents, "FIRST_ASK_DELAY_S", 3_600.0)
    monkeypatch.setattr(documents, "LAST_ASK_DELAY_S", 3_600.0)


@pytest.mark.usefixtures("long_ask_delay")
async def test_who_answers_with_a_gap_is_not_asked_again_at_once(server: RunningServer) -> None:
    await make_workout(await server.events("ana"))
    laptop = await lacking_client(server)
    for _ in range(3):
        answer = await laptop.send(gap())
        assert answer["error"]["code"] == "unsynced"
    await laptop.until(lambda: len(laptop.resets) >= 4)
    assert laptop.asked == 1


async def test_who_goes_on_answering_with_a_gap_is_asked_more_and_more_rarely(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays_s: list[float] = []
    start_timer = Session.start_timer

    def start_at_once(
        session: Session, name: str, delay_s: float, call: Callable[[], None]
    ) -> None:
        if name == documents.ASK:
            delays_s.append(delay_s)
            delay_s = 0.0
        start_timer(session, name, delay_s, call)

    monkeypatch.setattr(Session, "start_timer", start_at_once)
    ana = await server.events("ana")
    await make_workout(ana)
    laptop = await lacking_client(server)
    await laptop.until(lambda: laptop.asked > 7)
    assert delays_s[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    # The part that it lacked has come to it.
    write_unheard(laptop, "s1")
    laptop.gap = b""
    assert (await ana.next("workout:set:completed"))["set_id"] == "s1"
    delays_s.clear()
    laptop.gap = gap()
    await laptop.send(laptop.gap)
    await laptop.until(lambda: len(delays_s) > 1)
    assert delays_s[:2] == [1.0, 2.0]


@pytest.mark.usefixtures("long_ask_delay")
async def test_who_is_merely_ahead_is_asked_at_once_each_time(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    laptop = await server.document("ana", WORKOUT)
    for lost, sent in (("s1", "s2"), ("s3", "s4")):
        write_unheard(laptop, lost)
        write_set(laptop, sent)
        told = {(await ana.next("workout:set:completed"))["set_id"] for _ in range(2)}
        assert told == {lost, sent}
    assert [reset["reason"] for reset in laptop.resets] == ["unsynced", "unsynced"]


@pytest.mark.usefixtures("long_ask_delay")
async def test_another_reason_to_sync_does_not_wait_for_the_next_question(
    server: RunningServer,
) -> None:
    await make_workout(await server.events("ana"))
    laptop = await lacking_client(server)
    server.parts.gateway.reset(WORKOUT, "append_failed")
    await laptop.until(lambda: laptop.asked == 2)


@pytest.mark.usefixtures("long_ask_delay")
async def test_the_next_question_outlasts_a_token_and_not_the_connection(
    server: RunningServer,
) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    laptop = await lacking_client(server)
    session = session_of_the_document(server)
    question = session.timers[documents.ASK]
    new = server.token("ana", ttl_s=600)
    await laptop._call("auth:refresh", {"token": new}, timeout_s=DEADLINE_S)
    assert session.timers[documents.ASK] is question
    assert not question.cancelled()
    await laptop.close()
    await until(question.cancelled, ana)
    assert session.timers == {}
