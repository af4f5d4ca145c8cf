"""The main job as a lifter sees it: one live workout, the same on every device."""

from __future__ import annotations

from uuid import uuid4

from pycrdt import Map

from crdt import ids
from tests.helpers.servers import RunningServer


async def test_a_set_logged_on_the_phone_appears_in_the_laptops_document(
    server: RunningServer,
) -> None:
    phone = await server.events("ana")
    made = await phone.do("workout:create", {"title": "Leg day"})
    workout_id = made["workout"]["id"]
    laptop = await server.document("ana", ids.workout(workout_id))
    added = await phone.do(
        "workout:exercise:add", {"workout_id": workout_id, "exercise": {"name": "Squat"}}
    )
    done = await phone.do(
        "workout:set:complete",
        {
            "workout_id": workout_id,
            "exercise_id": added["exercise_id"],
            "set": {"weight_kg": 100, "reps": 5},
        },
    )
    await laptop.until(lambda: done["set_id"] in laptop.content()["sets"])
    assert laptop.content()["sets"][done["set_id"]]["weight_kg"] == 100


async def test_a_set_written_on_the_laptop_is_told_to_the_watch(server: RunningServer) -> None:
    watch = await server.events("ana", "watch")
    made = await watch.do("workout:create", {})
    workout_id = made["workout"]["id"]
    added = await watch.do(
        "workout:exercise:add", {"workout_id": workout_id, "exercise": {"name": "Squat"}}
    )
    laptop = await server.document("ana", ids.workout(workout_id))
    laptop.map("sets")["s1"] = Map(
        {
            "user_id": "ana",
            "exercise": added["exercise_id"],
            "order": "a0",
            "kind": "normal",
            "weight_kg": 60.0,
            "reps": 8,
            "completed_at": 1_700_000_000_000,
        }
    )
    told = await watch.next("workout:set:completed")
    assert told["set_id"] == "s1"
    assert told["set"]["reps"] == 8
    assert told["is_pr"] is True


async def test_an_operation_sent_twice_is_carried_out_once(server: RunningServer) -> None:
    phone = await server.events("ana")
    operation = {"title": "Leg day", "op_id": str(uuid4())}
    first = await phone.do("workout:create", operation)
    await phone.drop()
    again = await (await server.events("ana")).do("workout:create", operation)
    assert again == first
