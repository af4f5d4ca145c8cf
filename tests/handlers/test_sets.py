"""Sets: logged, corrected, taken back, and the records they win."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.helpers.replicas import Peer
from tests.helpers.rooms import NOW_MS, Desk, connection, idle


@pytest.fixture
def desk() -> Desk:
    return Desk()


def won(answer: dict[str, Any]) -> list[str]:
    return sorted(record["type"] for record in answer["records"])


async def test_a_set_is_logged_with_who_when_and_on_which_device(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    done = await desk.set(workout_id, squat, "ana/watch", weight_kg=100, reps=5, note="easy")
    [logged] = (await desk.shown(workout_id))["sets"]
    assert (logged["id"], logged["user_id"], logged["exercise"]) == (done["set_id"], "ana", squat)
    assert (logged["weight_kg"], logged["reps"], logged["note"]) == (100, 5, "easy")
    assert (logged["completed_at"], logged["device_id"]) == (NOW_MS, "watch")


async def test_a_device_that_was_offline_says_when(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    await desk.set(workout_id, squat, reps=5, completed_at=NOW_MS - 60_000)
    assert (await desk.shown(workout_id))["sets"][0]["completed_at"] == NOW_MS - 60_000


async def test_a_set_is_told_to_the_room_with_its_user(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    done = await desk.set(workout_id, squat, set_id="s")
    [told] = desk.outlet.named("workout:set:completed")
    assert told == {
        "workout_id": workout_id,
        "set_id": "s",
        "set": (await desk.shown(workout_id))["sets"][0],
        "user": {"id": "ana", "name": "Ana"},
        "is_pr": done["is_pr"],
    }


async def test_the_first_set_of_an_exercise_is_a_record(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    done = await desk.set(workout_id, squat, weight_kg=100, reps=6)
    assert done["is_pr"] is True
    values = {record["type"]: (record["value"], record["previous"]) for record in done["records"]}
    assert values == {"weight": (100, None), "volume": (600, None), "e1rm": (120, None)}


async def test_a_set_that_beats_nothing_is_no_record(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    await desk.set(workout_id, squat)
    done = await desk.set(workout_id, squat)
    assert (done["is_pr"], done["records"]) == (False, [])


async def test_a_warm_up_is_no_record(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    done = await desk.set(workout_id, squat, weight_kg=200, reps=5, kind="warmup")
    assert done["is_pr"] is False


async def test_records_of_one_exercise_count_in_every_workout(desk: Desk) -> None:
    for i, expected in enumerate(["e1rm volume weight", "", "weight"]):
        workout_id, squat = await desk.training()
        weight, reps = [(100, 5), (90, 5), (110, 1)][i]
        done = await desk.set(workout_id, squat, weight_kg=weight, reps=reps)
        assert won(done) == expected.split()


async def test_the_records_of_two_users_do_not_mix(desk: Desk) -> None:
    workout_id, squat = await desk.training(visibility="public", mode="group")
    await desk.do("ben", "workout:join", workout_id=workout_id)
    await desk.set(workout_id, squat, weight_kg=200, reps=5)
    assert (await desk.set(workout_id, squat, "ben", weight_kg=60, reps=5))["is_pr"]
    progress = (await desk.shown(workout_id))["progress"]
    assert progress["ben"]["volume_kg"] == 300
    assert len(progress["ben"]["records"]) == 3


async def test_a_set_of_a_yjs_client_wins_records_too(desk: Desk) -> None:
    workout_id, squat = await desk.training(workout_id="leg-day")
    client = Peer(state=await desk.bench.state())
    await desk.bench.store_update(client.set("s", exercise=squat), connection("ana"))
    assert desk.outlet.named("workout:set:completed")[0]["is_pr"] is True
    assert (await desk.set(workout_id, squat, weight_kg=90, reps=5))["is_pr"] is False


# -- sent again -------------------------------------------------------------------------------


async def test_the_same_set_sent_again_is_answered_alike_and_told_once(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    first = await desk.set(workout_id, squat, set_id="s")
    desk.bench.clock.advance(1_000)
    assert await desk.set(workout_id, squat, set_id="s") == first
    assert len((await desk.shown(workout_id))["sets"]) == 1
    assert len(desk.outlet.named("workout:set:completed")) == 1


async def test_the_same_set_sent_again_before_it_is_durable_is_answered_alike(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    gate = desk.store.hold("append")
    first = asyncio.ensure_future(desk.set(workout_id, squat, set_id="s"))
    await idle()
    again = asyncio.ensure_future(desk.set(workout_id, squat, set_id="s"))
    await idle()
    gate.set()
    assert await again == await first


async def test_a_set_id_that_is_taken_is_a_conflict(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    await desk.set(workout_id, squat, set_id="s")
    data = {"workout_id": workout_id, "exercise_id": squat, "set_id": "s", "set": {"reps": 6}}
    assert (await desk.refused("ana", "workout:set:complete", **data))["code"] == "conflict"


# -- corrected and taken back -----------------------------------------------------------------


async def test_a_set_is_corrected(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    await desk.set(workout_id, squat, set_id="s", weight_kg=100, reps=5, note="typo")
    change = {"workout_id": workout_id, "set_id": "s", "set": {"reps": 6, "note": None}}
    answer = await desk.do("ana", "workout:set:update", **change)
    assert won(answer) == []
    [logged] = (await desk.shown(workout_id))["sets"]
    assert (logged["reps"], logged["weight_kg"], "note" in logged) == (6, 100, False)
    assert desk.outlet.named("workout:set:updated")[0]["set"]["reps"] == 6


async def test_a_correction_may_win_what_the_set_had_not_won(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    await desk.set(workout_id, squat, set_id="s", reps=5)
    change = {"workout_id": workout_id, "set_id": "s", "set": {"weight_kg": 100}}
    assert won(await desk.do("ana", "workout:set:update", **change)) == ["e1rm", "volume", "weight"]


async def test_a_correction_in_one_record_with_its_set_announces_nothing_twice(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    gate = desk.store.hold("append")
    blocker = asyncio.ensure_future(desk.exercise(workout_id, name="Row"))
    await idle()
    logged = asyncio.ensure_future(desk.set(workout_id, squat, set_id="s"))
    await idle()
    change = {"workout_id": workout_id, "set_id": "s", "set": {"note": "easy"}}
    corrected = asyncio.ensure_future(desk.do("ana", "workout:set:update", **change))
    await idle()
    gate.set()
    await blocker
    assert [(await logged)["is_pr"], (await corrected)["is_pr"]] == [True, False]


async def test_a_set_is_taken_back(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    await desk.set(workout_id, squat, set_id="s")
    await desk.do("ana", "workout:set:remove", workout_id=workout_id, set_id="s")
    assert (await desk.shown(workout_id))["sets"] == []
    assert desk.outlet.named("workout:set:removed")[0]["user"] == {"id": "ana", "name": "Ana"}
    assert (await desk.set(workout_id, squat, weight_kg=50, reps=5))["is_pr"]


@pytest.mark.parametrize("event", ["workout:set:update", "workout:set:remove"])
async def test_nobody_else_can_touch_a_set_not_even_the_owner(desk: Desk, event: str) -> None:
    workout_id, squat = await desk.training(visibility="public", mode="group")
    await desk.do("ben", "workout:join", workout_id=workout_id)
    await desk.set(workout_id, squat, "ben", set_id="s", reps=5)
    data = {"set": {"reps": 99}} if event.endswith("update") else {}
    error = await desk.refused("ana", event, workout_id=workout_id, set_id="s", **data)
    assert error["code"] == "forbidden"


@pytest.mark.parametrize("event", ["workout:set:update", "workout:set:remove"])
async def test_a_set_that_is_not_there_is_not_found(desk: Desk, event: str) -> None:
    data = {"set": {"reps": 9}} if event.endswith("update") else {}
    workout_id = await desk.workout()
    error = await desk.refused("ana", event, workout_id=workout_id, set_id="nothing", **data)
    assert error["code"] == "not_found"


async def test_a_set_of_an_unknown_exercise_is_not_found(desk: Desk) -> None:
    data = {"workout_id": await desk.workout(), "exercise_id": "nothing", "set": {"reps": 5}}
    assert (await desk.refused("ana", "workout:set:complete", **data))["code"] == "not_found"
