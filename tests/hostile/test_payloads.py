"""Payloads that no client sends, to every event that there is.

Each row of `SHAPES`: what is sent as an event's payload. Every event refuses every one of them with
`invalid`: their fields are named one by one.
"""

from __future__ import annotations

from typing import Any

import pytest

from handlers import REGISTRY
from tests.hostile.stage import READER, WORKOUT, WRITER, Stage

LONG = "x" * 50_000

SHAPES: dict[str, tuple[Any, ...]] = {
    "null": (None,),
    "a list": ([],),
    "a list of payloads": ([{"workout_id": "w"}],),
    "a text": ("w",),
    "a number": (5,),
    "true": (True,),
    "binary": (b"\x00\xff",),
    "two payloads": ({}, {}),
    "a payload and binary": ({}, b"\x00"),
    "__proto__": ({"__proto__": {"role": "admin"}},),
    "constructor": ({"constructor": {"prototype": {"role": "admin"}}},),
    "__class__": ({"__class__": "User"},),
    "a query": ({"workout_id": {"$gt": ""}, "template_id": {"$ne": None}},),
    "a list for an id": ({"workout_id": ["w"], "template_id": ["w"]},),
    "a path for an id": ({"workout_id": "../w", "template_id": "../w"},),
    "SQL for an id": ({"workout_id": "w'--", "template_id": "w'--"},),
    "NUL in an id": ({"workout_id": "w\0", "template_id": "w\0"},),
    "half a letter for an id": ({"workout_id": "\ud800", "template_id": "\ud800"},),
    "an operation of another kind": ({"op_id": ["x"], "workout_id": "w", "template_id": "w"},),
    "a huge field": ({"x": LONG},),
    "a huge name of a field": ({LONG: 1},),
    "a thousand fields": ({f"field {n}": n for n in range(1_000)},),
    "an empty name of a field": ({"": 1},),
}


@pytest.mark.parametrize("event", REGISTRY.intents)
async def test_no_event_takes_a_payload_of_another_shape(stage: Stage, event: str) -> None:
    async with stage.unharmed(), stage.inside() as socket:
        for name, args in SHAPES.items():
            answer = await socket.ask(event, *args)
            assert answer is not None, name
            assert answer["ok"] is False, name
            assert answer["error"]["code"] == "invalid", (name, answer)
            assert len(str(answer)) < 10_000, name
        assert await socket.settled()


SET = {"reps": 5}
FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "reps below nothing": ("workout:set:complete", {"exercise_id": "squat", "set": {"reps": -1}}),
    "reps of 10^30": ("workout:set:complete", {"exercise_id": "squat", "set": {"reps": 10**30}}),
    "reps that are a text": (
        "workout:set:complete",
        {"exercise_id": "squat", "set": {"reps": "5"}},
    ),
    "reps that are true": ("workout:set:complete", {"exercise_id": "squat", "set": {"reps": True}}),
    "a weight of 10^308": (
        "workout:set:complete",
        {"exercise_id": "squat", "set": {"weight_kg": 1e308}},
    ),
    "a set in another's name": (
        "workout:set:complete",
        {"exercise_id": "squat", "set": {**SET, "user_id": "ana"}},
    ),
    "a set of a time beyond all": (
        "workout:set:complete",
        {"exercise_id": "squat", "set": {**SET, "completed_at": 2**60}},
    ),
    "a note of 50,000 letters": (
        "workout:set:complete",
        {"exercise_id": "squat", "set": {**SET, "note": LONG}},
    ),
    "a name of 50,000 letters": ("workout:exercise:add", {"exercise": {"name": LONG}}),
    "a name of none": ("workout:exercise:add", {"exercise": {"name": ""}}),
    "a plan of a thousand sets": (
        "workout:exercise:add",
        {"exercise": {"name": "x", "target": [SET] * 1_000}},
    ),
    "an order of one's own": ("workout:exercise:add", {"exercise": {"name": "x", "order": "a0"}}),
    "before and after": (
        "workout:exercise:add",
        {"exercise": {"name": "x"}, "before": "squat", "after": "squat"},
    ),
    "a role that there is not": ("workout:invite", {"user_id": "eve", "role": "owner"}),
    "a member of 50,000 letters": ("workout:invite", {"user_id": LONG, "role": "coach"}),
    "nothing to change": ("workout:set:update", {"set_id": "of-ana", "set": {}}),
}


@pytest.mark.parametrize(("event", "data"), FIELDS.values(), ids=FIELDS.keys())
async def test_a_field_beyond_its_range_is_invalid(
    stage: Stage, event: str, data: dict[str, Any]
) -> None:
    async with stage.unharmed(), stage.inside("ana" if "invite" in event else WRITER) as socket:
        answer = await socket.ask(event, {"workout_id": WORKOUT.id, **data})
        # Somebody else's set is not looked into.
        assert answer["error"]["code"] in ("invalid", "forbidden")
        assert await socket.settled()


RIGHTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a participant starts": (WRITER, "workout:start", {}),
    "a participant invites": (WRITER, "workout:invite", {"user_id": "eve", "role": "coach"}),
    "a participant corrects another's set": (
        WRITER,
        "workout:set:update",
        {"set_id": "of-ana", "set": {"reps": 99}},
    ),
    "a participant removes another's set": (WRITER, "workout:set:remove", {"set_id": "of-ana"}),
    "a participant becomes a coach": (WRITER, "workout:join", {"role": "coach"}),
    "a spectator logs a set": (
        READER,
        "workout:set:complete",
        {"exercise_id": "squat", "set": SET},
    ),
    "a spectator adds an exercise": (READER, "workout:exercise:add", {"exercise": {"name": "x"}}),
    "a spectator ends the workout": (READER, "workout:complete", {}),
}


@pytest.mark.parametrize(("user_id", "event", "data"), RIGHTS.values(), ids=RIGHTS.keys())
async def test_what_a_role_may_not_do_is_forbidden(
    stage: Stage, user_id: str, event: str, data: dict[str, Any]
) -> None:
    async with stage.unharmed(), stage.inside(user_id) as socket:
        answer = await socket.ask(event, {"workout_id": WORKOUT.id, **data})
        assert answer["error"]["code"] == "forbidden"
        assert await socket.settled()


async def test_an_op_id_is_no_way_to_anothers_answer(stage: Stage) -> None:
    op_id = "0b0e3c5e-3b6e-4f0c-8a55-7c1f7a9d0a11"
    async with stage.unharmed(), stage.inside("ana") as ana, stage.inside() as socket:
        made = await ana.ask("workout:create", {"title": "Secret", "op_id": op_id})
        assert made["ok"]
        own = await socket.ask("workout:create", {"op_id": op_id})
        assert own["workout"]["owner_id"] == WRITER
        assert own["workout"]["id"] != made["workout"]["id"]
