"""The plan of a workout, changed by intents."""

from __future__ import annotations

import pytest

from tests.helpers.rooms import Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def names(desk: Desk, workout_id: str) -> list[str]:
    return [exercise["name"] for exercise in (await desk.shown(workout_id))["exercises"]]


async def test_an_exercise_is_added_with_all_its_fields(desk: Desk) -> None:
    workout_id = await desk.workout()
    fields = {
        "name": "Squat",
        "exercise_id": "sq",
        "superset": "A",
        "rest_s": 90.5,
        "note": "deep 🏋️",
        "target": [{"reps": 5, "weight_kg": 100}, {"kind": "warmup", "seconds": 30.0}],
    }
    added = await desk.do("ana", "workout:exercise:add", workout_id=workout_id, exercise=fields)
    [exercise] = (await desk.shown(workout_id))["exercises"]
    assert exercise["id"] == added["exercise_id"]
    targets = [{"kind": "normal", "reps": 5, "weight_kg": 100}, {"kind": "warmup", "seconds": 30}]
    assert {key: exercise[key] for key in fields} == {**fields, "target": targets}


async def test_an_exercise_can_be_added_anywhere(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    for name, where in (("First", {"before": squat}), ("Last", {}), ("Mid", {"after": squat})):
        data = {"workout_id": workout_id, "exercise": {"name": name}}
        await desk.do("ana", "workout:exercise:add", **data, **where)
    assert await names(desk, workout_id) == ["First", "Squat", "Mid", "Last"]


async def test_an_exercise_id_that_is_taken_is_a_conflict(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    data = {"workout_id": workout_id, "exercise_id": squat, "exercise": {"name": "Row"}}
    assert (await desk.refused("ana", "workout:exercise:add", **data))["code"] == "conflict"


async def test_an_exercise_is_moved(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    row = await desk.exercise(workout_id, name="Row")
    where = {"workout_id": workout_id, "exercise_id": row, "before": squat}
    await desk.do("ana", "workout:exercise:move", **where)
    assert await names(desk, workout_id) == ["Row", "Squat"]
    await desk.do("ana", "workout:exercise:move", workout_id=workout_id, exercise_id=row)
    assert await names(desk, workout_id) == ["Squat", "Row"]


async def test_two_neighbours_are_invalid(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    data = {"workout_id": workout_id, "exercise_id": squat, "before": "a", "after": "b"}
    error = await desk.refused("ana", "workout:exercise:move", **data)
    assert (error["code"], error["details"][0]["path"]) == ("invalid", "before")


async def test_an_exercise_is_changed_and_an_optional_field_removed(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    where = {"workout_id": workout_id, "exercise_id": squat}
    change = {"rest_s": 90, "target": [{"reps": 3}]}
    await desk.do("ana", "workout:exercise:update", **where, exercise=change)
    await desk.do("ana", "workout:exercise:update", **where, exercise={"rest_s": None})
    [exercise] = (await desk.shown(workout_id))["exercises"]
    assert "rest_s" not in exercise
    assert (exercise["name"], exercise["target"]) == ("Squat", [{"kind": "normal", "reps": 3}])


async def test_a_name_cannot_be_removed(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    data = {"workout_id": workout_id, "exercise_id": squat, "exercise": {"name": None}}
    error = await desk.refused("ana", "workout:exercise:update", **data)
    assert error["details"][0]["path"] == "exercise.name"


async def test_an_exercise_goes_with_the_callers_sets(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    await desk.set(workout_id, squat)
    await desk.do("ana", "workout:exercise:remove", workout_id=workout_id, exercise_id=squat)
    shown = await desk.shown(workout_id)
    assert (shown["exercises"], shown["sets"]) == ([], [])


async def test_an_exercise_with_sets_of_others_stays(desk: Desk) -> None:
    workout_id, squat = await desk.training(visibility="public", mode="group")
    await desk.do("ben", "workout:join", workout_id=workout_id)
    await desk.set(workout_id, squat, "ben", reps=5)
    data = {"workout_id": workout_id, "exercise_id": squat}
    error = await desk.refused("ana", "workout:exercise:remove", **data)
    assert (error["code"], error["details"]) == ("conflict", {"user_ids": ["ben"]})


async def test_every_change_of_the_plan_is_told(desk: Desk) -> None:
    workout_id, squat = await desk.training()
    where = {"workout_id": workout_id, "exercise_id": squat}
    await desk.do("ana", "workout:exercise:update", **where, exercise={"name": "Front squat"})
    await desk.do("ana", "workout:exercise:remove", **where)
    told = [event["exercise"] for event in desk.outlet.named("workout:exercise:changed")]
    assert [shown and shown["name"] for shown in told] == ["Squat", "Front squat", None]
