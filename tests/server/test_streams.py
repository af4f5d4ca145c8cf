"""Streams for dashboards: the present first, then what changes, and no more than can be read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pycrdt import Map

from crdt import ids
from handlers.streams import ALERTS_KEPT
from server.replay.devices import EventClient
from server.streams import MIN_INTERVAL_S
from tests.helpers.rooms import until
from tests.helpers.servers import RunningServer

WORKOUT = ids.workout("w")
STREAM = f"{WORKOUT}:progress"
DEADLINE_S = 10.0


async def make_workout(owner: EventClient, **fields: Any) -> None:
    await owner.do("workout:create", {"workout_id": WORKOUT.id, **fields})
    await owner.do(
        "workout:exercise:add",
        {
            "workout_id": WORKOUT.id,
            "exercise_id": "squat",
            "exercise": {"name": "Squat", "target": [{"reps": 5}, {"reps": 5}]},
        },
    )


async def log_set(client: EventClient, **measures: Any) -> None:
    await client.do(
        "workout:set:complete",
        {"workout_id": WORKOUT.id, "exercise_id": "squat", "set": {"reps": 5, **measures}},
    )


async def watch(client: EventClient, *streams: str) -> dict[str, Any]:
    return await client.do("subscribe", {"streams": list(streams)})


def done(count: int) -> Any:
    """Whether a `progress` tells of this many sets of ana's."""
    return lambda value: value["progress"]["ana"]["sets_done"] == count


def came(client: EventClient, name: str) -> list[dict[str, Any]]:
    return [payload for event, payload, _ in client.events if event == name]


async def test_the_present_comes_first(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    await log_set(ana, weight_kg=100)
    board = await server.events("ana", "board")
    before = time.time() * 1_000
    answer = await watch(board, STREAM)
    assert (answer["subscribed"], answer["denied"]) == ([STREAM], [])
    assert (await board.next("subscription:confirmed"))["subscribed"] == [STREAM]
    value = await board.next("progress")
    assert value["workout_id"] == WORKOUT.id
    assert value["status"] == "planned"
    assert value["version"] == 3
    assert before - 1_000 <= value["server_time"] <= time.time() * 1_000 + 1_000
    mine = value["progress"]["ana"]
    assert (mine["sets_done"], mine["sets_planned"]) == (1, 2)
    assert (mine["volume_kg"], mine["reps"]) == (500, 5)
    assert {record["type"] for record in mine["records"]} == {"volume", "weight", "e1rm"}


async def test_changes_arrive_whoever_makes_them(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    board = await server.events("ana", "board")
    await watch(board, STREAM)
    await board.next("progress", done(0))
    await log_set(ana)
    await board.next("progress", done(1))
    laptop = await server.document("ana", WORKOUT)
    laptop.map("sets")["s1"] = Map({"user_id": "ana", "exercise": "squat", "reps": 5.0})
    value = await board.next("progress", done(2))
    assert value["version"] == 4


async def test_another_status_arrives(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    board = await server.events("ana", "board")
    await watch(board, STREAM)
    await board.next("progress")
    await ana.do("workout:start", {"workout_id": WORKOUT.id})
    await board.next("progress", lambda value: value["status"] == "active", timeout_s=2)


async def test_many_changes_are_few_values_and_the_last_one_counts(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    board = await server.events("ana", "board")
    await watch(board, STREAM)
    await board.next("progress", done(0))
    started = time.monotonic()
    await asyncio.gather(*(log_set(ana) for _ in range(200)))
    last = await board.next("progress", done(200))
    assert last["progress"]["ana"]["reps"] == 1_000
    took_s = time.monotonic() - started
    assert len(came(board, "progress")) <= took_s / MIN_INTERVAL_S + 1


async def test_subscribing_again_gives_the_present_again_and_nothing_twice(
    server: RunningServer,
) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    board = await server.events("ana", "board")
    await watch(board, STREAM, STREAM)
    await board.next("progress", done(0))
    await watch(board, STREAM)
    await board.next("progress", done(0))
    await log_set(ana)
    await board.next("progress", done(1))
    await board.do("time:sync", {"t0": 0.0})
    assert came(board, "progress") == []
    assert server.parts.streams.watcher_count == 1


async def test_who_unsubscribes_is_told_no_more(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    board, other = await server.events("ana", "board"), await server.events("ana", "other")
    for client in (board, other):
        await watch(client, STREAM)
        await client.next("progress")
    answer = await board.do("unsubscribe", {"streams": [STREAM, "system:health", "nothing"]})
    assert answer["unsubscribed"] == [STREAM]
    await log_set(ana)
    await other.next("progress", done(1))
    await board.do("time:sync", {"t0": 0.0})
    assert came(board, "progress") == []
    assert (await board.do("unsubscribe", {"streams": [STREAM]}))["unsubscribed"] == []


async def test_each_stream_that_is_denied_is_named_with_its_reason(server: RunningServer) -> None:
    ana, ben = await server.events("ana"), await server.events("ben")
    await make_workout(ana)
    await ben.do("workout:create", {"workout_id": "bens"})
    wanted = {
        "workout:bens:progress": None,
        STREAM: "forbidden",
        "workout:none:progress": "not_found",
        "system:health": "forbidden",
        "template:x:progress": "not_found",
        "workout:w": "not_found",
        "progress": "not_found",
        "": "not_found",
        "workout:a b:progress": "not_found",
    }
    answer = await watch(ben, *wanted)
    assert answer["subscribed"] == ["workout:bens:progress"]
    denied = {stream: code for stream, code in wanted.items() if code}
    assert answer["denied"] == list(denied)
    assert {stream: error["code"] for stream, error in answer["errors"].items()} == denied
    assert (await ben.next("subscription:confirmed"))["subscribed"] == ["workout:bens:progress"]


@pytest.mark.parametrize("role", ["user", "premium", "trainer"])
async def test_the_servers_health_is_for_admins_only(server: RunningServer, role: str) -> None:
    board = await server.events("ana", role=role)
    answer = await watch(board, "system:health")
    assert answer["denied"] == ["system:health"]
    await board.do("time:sync", {"t0": 0.0})
    assert came(board, "system:health") == []


async def test_the_servers_health_comes_at_once_and_again(server: RunningServer) -> None:
    board = await server.events("ana", role="admin")
    await watch(board, "system:health")
    first = await board.next("system:health")
    assert first["status"] == "healthy"
    assert first["dependencies"]["store"]["kind"] == "sqlite"
    assert first["connections"] == 1
    second = await board.next("system:health")
    assert second["uptime_s"] > first["uptime_s"]
    await board.do("unsubscribe", {"streams": ["system:health"]})


async def test_a_watcher_whose_connection_breaks_is_forgotten(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.streams.LINGER_S", 0.01)
    ana = await server.events("ana")
    await make_workout(ana)
    boards = [await server.events("ana", f"b{number}", role="admin") for number in range(3)]
    for board in boards:
        await watch(board, STREAM, "system:health")
    streams = server.parts.streams
    assert streams.watcher_count == 3
    await boards[0].close()
    await boards[1].drop()
    async with asyncio.timeout(DEADLINE_S):
        while streams.watcher_count != 1:
            await ana.do("time:sync", {"t0": 0.0})
    await boards[2].next("progress")
    await log_set(ana)
    await boards[2].next("progress", done(1))
    await boards[2].close()
    async with asyncio.timeout(DEADLINE_S):
        while streams.watcher_count:
            await ana.do("time:sync", {"t0": 0.0})
    await until(lambda: streams.stream_count == 0)


async def test_a_watched_workout_is_watched_by_its_members_and_friends(
    server: RunningServer,
) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="friends")
    friend = await server.events("ben", friends=("ana",))
    assert (await watch(friend, STREAM))["subscribed"] == [STREAM]
    await friend.next("progress", done(0))
    stranger = await server.events("cleo")
    assert (await watch(stranger, STREAM))["denied"] == [STREAM]
    await log_set(ana)
    await friend.next("progress", done(1))
    await stranger.do("time:sync", {"t0": 0.0})
    assert came(stranger, "progress") == []


async def test_a_watcher_who_has_lost_the_right_is_told_so_and_no_more(
    server: RunningServer,
) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="public")
    ben = await server.events("ben")
    await watch(ben, STREAM)
    await ben.next("progress")
    laptop = await server.document("ana", WORKOUT)
    laptop.map("meta")["visibility"] = "private"
    await laptop.settled()
    told = await ben.next("subscription:ended")
    assert (told["stream"], told["reason"]) == (STREAM, "forbidden")
    board = await server.events("ana", "board")
    await watch(board, STREAM)
    await log_set(ana)
    await board.next("progress", done(1))
    await ben.do("time:sync", {"t0": 0.0})
    assert came(ben, "progress") == []


async def test_values_are_numbered_and_come_after_the_answer(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    for number in range(3):
        board = await server.events("ana", f"board-{number}")
        await watch(board, STREAM)
        await board.next("progress")
        for done_before in range(number * 3, number * 3 + 3):
            await log_set(ana)
            await board.next("progress", done(done_before + 1))
    board = await server.events("ana", "last")
    order: list[str] = []
    board.on_event = lambda event, _: order.append(event)
    await watch(board, STREAM)
    assert order == []
    value = await board.next("progress")
    assert order == ["subscription:confirmed", "progress"]
    await log_set(ana)
    after = await board.next("progress", lambda later: later["seq"] > value["seq"])
    assert after["seq"] == value["seq"] + 1


async def test_a_coach_who_is_put_out_is_told(server: RunningServer) -> None:
    ana, ben = await server.events("ana"), await server.events("ben")
    await make_workout(ana)
    invitation = {"workout_id": WORKOUT.id, "user_id": "ben", "role": "coach"}
    await ana.do("workout:invite", invitation)
    await watch(ben, STREAM)
    await ben.next("progress")
    await ana.do("workout:member:remove", {"workout_id": WORKOUT.id, "user_id": "ben"})
    assert (await ben.next("subscription:ended"))["reason"] == "forbidden"
    assert (await watch(ben, STREAM))["denied"] == [STREAM]


async def test_an_admin_who_is_one_no_more_is_told(server: RunningServer) -> None:
    board = await server.events("root", role="admin")
    await watch(board, "system:health", "system:alerts")
    await board.next("system:health")
    await board.do("auth:refresh", {"token": server.token("root", role="user")})
    ended = [await board.next("subscription:ended") for _ in range(2)]
    assert {told["stream"] for told in ended} == {"system:health", "system:alerts"}
    assert {told["reason"] for told in ended} == {"forbidden"}
    assert server.parts.streams.watcher_count == 0


async def test_who_watches_is_told_when_the_token_ends(server: RunningServer) -> None:
    await make_workout(await server.events("ana"))
    board = await server.events("ana", "board", ttl_s=2)
    await watch(board, STREAM)
    told = await board.next("subscription:ended")
    assert (told["stream"], told["reason"]) == (STREAM, "token_expired")
    await board.wait_until_gone()


async def test_who_watches_is_told_when_the_token_is_revoked(server: RunningServer) -> None:
    root = await server.events("root", role="admin")
    await make_workout(await server.events("ana"))
    board = await server.events("ana", "board")
    await watch(board, STREAM)
    await root.do("auth:revoke", {"user_id": "ana"})
    assert (await board.next("subscription:ended"))["reason"] == "unauthenticated"
    await board.wait_until_gone()


async def test_alerts_all_come_and_the_last_ones_first_to_who_is_new(
    server: RunningServer,
) -> None:
    streams = server.parts.streams
    streams.push("system:alerts", {"id": "one"})
    board = await server.events("root", role="admin")
    await watch(board, "system:alerts")
    for number in range(100):
        streams.push("system:alerts", {"id": str(number)})
    await board.next("system:alert", lambda alert: alert["id"] == "99")
    ids = [alert["id"] for alert in came(board, "system:alert")]
    assert ids == ["one", *map(str, range(99))][-len(ids) :]
    assert len(ids) >= ALERTS_KEPT - 1
    later = await server.events("root", "later", role="admin")
    await watch(later, "system:alerts")
    await later.next("system:alert", lambda alert: alert["id"] == "99")
    kept = [alert["seq"] for alert in came(later, "system:alert")]
    assert kept == list(range(102 - ALERTS_KEPT, 101))


# -- a user's progress ---------------------------------------------------------------------------

ANAS = "user:ana:progress"


async def test_a_users_progress_is_all_that_the_user_has_done(server: RunningServer) -> None:
    ana = await server.events("ana")
    await watch(ana, ANAS)
    empty = await ana.next("progress")
    assert (empty["workouts"], empty["records"]) == ([], {})
    assert empty["totals"] == {"workouts": 0, "sets": 0, "volume_kg": 0}
    await make_workout(ana, title="Legs")
    await log_set(ana, weight_kg=100)
    value = await ana.next("progress", lambda value: value["totals"]["sets"] == 1)
    (workout,) = value["workouts"]
    assert (workout["title"], workout["sets"], workout["volume_kg"]) == ("Legs", 1, 500)
    squat = value["records"]["name:squat"]
    assert {type_: record["value"] for type_, record in squat.items()} == {
        "weight": 100,
        "volume": 500,
        "e1rm": pytest.approx(116.667),
    }
    assert squat["weight"]["workout_id"] == WORKOUT.id
    assert value["totals"] == {"workouts": 1, "sets": 1, "volume_kg": 500}
    await ana.do("workout:start", {"workout_id": WORKOUT.id})
    await ana.next("progress", lambda value: value["workouts"][0]["status"] == "active")


async def test_others_see_of_a_user_what_the_workouts_show_them(server: RunningServer) -> None:
    ana = await server.events("ana")
    for visibility in ("private", "friends", "public"):
        await ana.do("workout:create", {"workout_id": visibility, "visibility": visibility})
    friend = await server.events("ben", friends=("ana",))
    stranger, admin = await server.events("cleo"), await server.events("root", role="admin")
    for client, seen in (
        (ana, ["public", "friends", "private"]),
        (admin, ["public", "friends", "private"]),
        (friend, ["public", "friends"]),
        (stranger, ["public"]),
    ):
        assert (await watch(client, ANAS))["subscribed"] == [ANAS]
        value = await client.next("progress")
        assert [workout["workout_id"] for workout in value["workouts"]] == seen
        assert value["totals"]["workouts"] == len(seen)
    laptop = await server.document("ana", ids.workout("public"))
    laptop.map("meta")["visibility"] = "friends"
    await laptop.settled()
    assert (await stranger.next("subscription:ended"))["reason"] == "forbidden"
    assert (await watch(stranger, ANAS))["errors"][ANAS]["code"] == "forbidden"


async def test_of_a_user_who_shows_nothing_strangers_learn_nothing(server: RunningServer) -> None:
    await make_workout(await server.events("ana"))
    ben = await server.events("ben")
    odd = [ANAS, "user:nobody:progress", "user:🏋️:progress", "user:a:b:progress"]
    answer = await watch(ben, *odd)
    assert {error["code"] for error in answer["errors"].values()} == {"forbidden"}
    messages = {error["message"] for error in answer["errors"].values()}
    assert len(messages) == 1


async def test_one_number_of_values_for_all_who_see_the_same_of_a_user(
    server: RunningServer,
) -> None:
    ana = await server.events("ana")
    await ana.do("workout:create", {"workout_id": "w", "visibility": "friends"})
    friends = [await server.events(f"f{number}", friends=("ana",)) for number in range(5)]
    for client in (ana, *friends):
        await watch(client, ANAS)
        await client.next("progress")
    assert server.parts.streams.stats.made <= 4  # everything; then twice two views


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        "workout:w:progress ",
        "WORKOUT:w:progress",
        "workout::progress",
        "workout:w:progress:progress",
        "user::progress",
        "user:" + "x" * 201 + ":progress",
        "system:health\x00",
        "system:",
        "%s%n",
        "__proto__",
        "../../etc/passwd",
        "'; DROP TABLE scores; --",
    ],
)
async def test_an_odd_name_is_a_stream_that_there_is_not(server: RunningServer, odd: str) -> None:
    ana = await server.events("ana", role="admin")
    answer = await watch(ana, odd, "system:alerts")
    assert answer["errors"].keys() == {odd}
    assert answer["errors"][odd]["code"] == "not_found"
    assert answer["subscribed"] == ["system:alerts"]


async def test_a_thousand_streams_at_once_are_refused_as_one(server: RunningServer) -> None:
    ana = await server.events("ana")
    answer = await ana.ask("subscribe", {"streams": [f"user:{n}:progress" for n in range(1_000)]})
    assert answer["error"]["code"] == "invalid"
    assert answer["error"]["details"][0]["path"] == "streams"
    assert server.parts.streams.stream_count == 0
    for odd in ("x" * 301, "user:\ud800:progress", 7, None):
        refused = await ana.ask("subscribe", {"streams": [odd]})
        assert refused["error"]["details"][0]["path"] == "streams.0"
