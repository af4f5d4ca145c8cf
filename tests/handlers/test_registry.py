"""One place answers every event: exactly one ack, and one effect for each operation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest

from crdt.errors import Unavailable
from handlers import REGISTRY
from handlers.context import Context
from handlers.registry import ChangePayload, Payload, Registry
from tests.helpers.rooms import Desk, idle


@pytest.fixture
def desk() -> Desk:
    return Desk()


def op_id() -> str:
    return str(uuid4())


# -- what is not understood -------------------------------------------------------------------


async def test_an_unknown_event_is_not_found(desk: Desk) -> None:
    answer = await desk.ask("ana", "workout:fly", {})
    assert answer["ok"] is False
    assert answer["error"]["code"] == "not_found"


async def test_an_error_does_not_send_back_all_that_a_client_made_up(desk: Desk) -> None:
    for data in ({"x" * 100_000: 1}, {f"field {n}": n for n in range(10_000)}):
        error = await desk.refused("ana", "workout:list", **data)
        assert error["code"] == "invalid"
        assert 0 < len(error["details"]) <= 20
        assert len(str(error)) < 5_000


@pytest.mark.parametrize("data", [None, 5, "text", [], [{}], b"bytes", True])
async def test_a_payload_that_is_no_object_is_invalid(desk: Desk, data: Any) -> None:
    answer = await desk.ask("ana", "workout:create", data)
    assert answer["error"]["code"] == "invalid"
    assert answer["error"]["details"] == [{"path": "", "message": "the payload must be one object"}]


@pytest.mark.parametrize(
    ("event", "data", "path"),
    [
        ("workout:create", {"titel": "x"}, "titel"),
        ("workout:create", {"title": ""}, "title"),
        ("workout:create", {"title": 5}, "title"),
        ("workout:create", {"title": "half \ud800 character"}, "title"),
        ("workout:create", {"workout_id": "a,b"}, "workout_id"),
        ("workout:create", {"workout_id": "a\n"}, "workout_id"),
        ("workout:create", {"workout_id": ""}, "workout_id"),
        ("workout:create", {"workout_id": "x" * 65}, "workout_id"),
        ("workout:create", {"op_id": "first"}, "op_id"),
        ("workout:create", {"mode": "duo"}, "mode"),
        ("workout:sync", {}, "workout_id"),
        ("workout:set:complete", {"set": {"reps": "5"}}, "set.reps"),
        ("workout:set:complete", {"set": {"reps": 5.5}}, "set.reps"),
        ("workout:set:complete", {"set": {"weight_kg": -1}}, "set.weight_kg"),
        ("workout:set:complete", {"set": {"weight_kg": float("nan")}}, "set.weight_kg"),
        ("workout:set:complete", {"set": {"weight_kg": float("inf")}}, "set.weight_kg"),
        ("workout:set:complete", {"set": {"rpe": 11}}, "set.rpe"),
        ("workout:set:complete", {"set": {"kind": "easy"}}, "set.kind"),
        ("workout:set:complete", {"set": {"completed_at": -1}}, "set.completed_at"),
        ("workout:exercise:add", {"exercise": {"name": "x", "target": [{}, {"reps": -1}]}}, "."),
        ("template:share", {"template_id": "t", "user_id": "b", "role": "owner"}, "role"),
        ("time:sync", {"t0": "now"}, "t0"),
    ],
)
async def test_what_is_wrong_is_told_by_its_path(
    desk: Desk, event: str, data: dict[str, Any], path: str
) -> None:
    answer = await desk.ask("ana", event, data)
    assert answer["error"]["code"] == "invalid"
    paths = [detail["path"] for detail in answer["error"]["details"]]
    assert path in paths or (path == "." and "exercise.target.1.reps" in paths)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("workout:exercise:update", {"exercise": {}}),
        ("workout:set:update", {"set": {}}),
        ("template:update_meta", {"meta": {}}),
    ],
)
async def test_a_change_of_nothing_is_told_with_its_path(
    desk: Desk, event: str, data: dict[str, Any]
) -> None:
    workout_id, exercise_id = await desk.training()
    await desk.set(workout_id, exercise_id, set_id="s")
    made = await desk.do("ana", "template:create", title="Push")
    names = {
        "workout:exercise:update": {"workout_id": workout_id, "exercise_id": exercise_id},
        "workout:set:update": {"workout_id": workout_id, "set_id": "s"},
        "template:update_meta": {"template_id": made["template"]["id"]},
    }
    error = await desk.refused("ana", event, **names[event], **data)
    assert error["code"] == "invalid"
    assert error.get("details")


# -- operations -------------------------------------------------------------------------------


async def test_an_operation_sent_again_gets_the_first_answer_and_changes_nothing(
    desk: Desk,
) -> None:
    workout_id = await desk.workout()
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}, "op_id": op_id()}
    first = await desk.do("ana", "workout:exercise:add", **add)
    assert await desk.do("ana/watch", "workout:exercise:add", **add) == first
    assert len((await desk.shown(workout_id))["exercises"]) == 1


async def test_an_operation_is_the_same_however_its_id_is_written(desk: Desk) -> None:
    workout_id, op = await desk.workout(), op_id()
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}}
    first = await desk.do("ana", "workout:exercise:add", **add, op_id=op)
    assert await desk.do("ana", "workout:exercise:add", **add, op_id=op.upper()) == first


async def test_an_operation_sent_many_times_at_once_is_carried_out_once(desk: Desk) -> None:
    workout_id = await desk.workout()
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}, "op_id": op_id()}
    gate = desk.store.hold("append")
    asked = [asyncio.ensure_future(desk.do("ana", "workout:exercise:add", **add)) for _ in "12345"]
    await idle()
    gate.set()
    answers = await asyncio.gather(*asked)
    assert all(answer == answers[0] for answer in answers)
    assert len((await desk.shown(workout_id))["exercises"]) == 1


async def test_an_operation_that_failed_may_be_sent_again(desk: Desk) -> None:
    workout_id = await desk.workout()
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}, "op_id": op_id()}
    desk.store.fail("append", Unavailable("full"))
    error = await desk.refused("ana", "workout:exercise:add", **add)
    assert (error["code"], error["retryable"]) == ("unavailable", True)
    await desk.do("ana", "workout:exercise:add", **add)
    assert len((await desk.shown(workout_id))["exercises"]) == 1


async def test_a_refused_operation_is_tried_again_and_not_remembered(desk: Desk) -> None:
    workout_id, op = await desk.workout(), op_id()
    move = {"workout_id": workout_id, "exercise_id": "e", "op_id": op}
    assert (await desk.refused("ana", "workout:exercise:move", **move))["code"] == "not_found"
    add = {"workout_id": workout_id, "exercise_id": "e", "exercise": {"name": "Squat"}}
    await desk.do("ana", "workout:exercise:add", **add)
    await desk.do("ana", "workout:exercise:move", **move)


async def test_repeats_of_an_operation_that_is_failing_fail_with_it(desk: Desk) -> None:
    workout_id = await desk.workout()
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}, "op_id": op_id()}
    gate = desk.store.hold("append")
    desk.store.fail("append", Unavailable("full"))
    asked = [asyncio.ensure_future(desk.ask("ana", "workout:exercise:add", add)) for _ in "12"]
    await idle()
    gate.set()
    codes = [answer["error"]["code"] for answer in await asyncio.gather(*asked)]
    assert codes == ["unavailable", "unavailable"]


@pytest.mark.parametrize(
    ("event", "data"), [("workout:create", {}), ("template:create", {"title": "Push"})]
)
async def test_an_op_id_that_was_used_for_another_event_gets_that_answer(
    desk: Desk, event: str, data: dict[str, Any]
) -> None:
    workout_id, op = await desk.workout(), op_id()
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}, "op_id": op}
    first = await desk.do("ana", "workout:exercise:add", **add)
    assert await desk.do("ana", event, op_id=op, **data) == first


async def test_an_operation_belongs_to_the_user_who_sent_it(desk: Desk) -> None:
    op = op_id()
    mine = await desk.do("ana", "workout:create", op_id=op)
    yours = await desk.do("ben", "workout:create", op_id=op)
    assert mine["workout"]["id"] != yours["workout"]["id"]


async def test_a_repeat_is_answered_although_the_first_connection_was_cut(desk: Desk) -> None:
    workout_id = await desk.workout()
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}, "op_id": op_id()}
    gate = desk.store.hold("append")
    first = asyncio.ensure_future(desk.ask("ana", "workout:exercise:add", add))
    await idle()
    again = asyncio.ensure_future(desk.ask("ana/watch", "workout:exercise:add", add))
    await idle()
    first.cancel()
    await idle()
    gate.set()
    [answer] = await asyncio.gather(again, return_exceptions=True)
    assert isinstance(answer, dict)
    assert len((await desk.shown(workout_id))["exercises"]) == 1


async def test_a_repeat_that_comes_after_the_cut_changes_nothing_more(desk: Desk) -> None:
    workout_id = await desk.workout()
    add = {"workout_id": workout_id, "exercise": {"name": "Squat"}, "op_id": op_id()}
    gate = desk.store.hold("append")
    first = asyncio.ensure_future(desk.ask("ana", "workout:exercise:add", add))
    await idle()
    first.cancel()
    await idle()
    again = asyncio.ensure_future(desk.ask("ana/watch", "workout:exercise:add", add))
    await idle()
    gate.set()
    await again
    assert len((await desk.shown(workout_id))["exercises"]) == 1


@pytest.mark.parametrize("event", ["workout:join", "workout:start"])
async def test_an_answer_from_memory_is_the_first_one_to_the_letter(desk: Desk, event: str) -> None:
    workout_id = await desk.workout(mode="group", visibility="public")
    who = "ben" if event == "workout:join" else "ana"
    data = {"workout_id": workout_id, "op_id": op_id()}
    first = await desk.do(who, event, **data)
    assert await desk.do(who, event, **data) == first


async def test_a_creation_sent_again_from_a_new_connection_joins_that_one_too(desk: Desk) -> None:
    op = op_id()
    made = await desk.do("ana/old", "workout:create", op_id=op)
    assert await desk.do("ana/new", "workout:create", op_id=op) == made
    new = desk.caller("ana/new").connection_id
    assert len(desk.bench.hub.joined(new)) == 1


# -- failures nobody foresaw ------------------------------------------------------------------


class Nothing(ChangePayload):
    pass


def broken_registry() -> Registry:
    registry = Registry()

    @registry.on("break", Nothing)
    async def break_something(ctx: Context, msg: Nothing) -> Mapping[str, Any]:
        """Fail as nobody foresaw."""
        raise ZeroDivisionError

    return registry


@pytest.mark.parametrize("data", [{}, {"op_id": op_id()}])
async def test_a_failure_that_nobody_foresaw_is_answered_and_logged(
    desk: Desk, data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    registry = broken_registry()
    answer = await registry.dispatch(desk.caller("ana"), desk.services, "break", data)
    assert answer == {
        "ok": False,
        "error": {"code": "internal", "message": "internal error", "retryable": True},
    }
    assert "ZeroDivisionError" in caplog.text


# -- registering ------------------------------------------------------------------------------


def test_a_name_that_is_taken_stops_the_start() -> None:
    registry = broken_registry()
    with pytest.raises(ValueError, match="break"):
        Registry.merge(registry, broken_registry())
    with pytest.raises(ValueError, match="twice"):
        registry.on("break", Payload)(broken_registry().intents["break"].handler)


def test_a_merged_registry_knows_the_events_of_all() -> None:
    merged = Registry.merge(broken_registry(), Registry())
    assert merged.intents.keys() == {"break"}
    assert merged.intents["break"].summary == "Fail as nobody foresaw."


@pytest.mark.parametrize("event", list(REGISTRY.intents))
def test_every_event_says_what_it_does(event: str) -> None:
    intent = REGISTRY.intents[event]
    assert intent.event == event
    assert intent.summary.endswith(".")
    assert intent.payload.model_config["extra"] == "forbid"
