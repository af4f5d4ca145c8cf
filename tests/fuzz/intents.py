"""JSON payloads to every event of the registry, from users with and without rights.

An input is a JSON list of (who, event, payload), handled in order against rooms in memory.

What must hold: every event is answered, with `ok` or with a code, in JSON that a browser can read;
nothing is answered with `internal`; what was refused changed nothing; the document can always be
shown, and read again from the log; and whoever behaves can go on.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from random import Random
from typing import Any

from crdt import ids
from crdt.ids import DocName
from crdt.room import Room
from tests.fuzz.target import (
    ACCEPTED,
    CODES,
    ODD_TEXTS,
    Target,
    copied,
    mutate_bytes,
    mutate_json,
    mutate_list,
    odd_value,
    pick,
)
from tests.helpers.rooms import NOW_MS, Bench, Desk

WHO = ("ana", "ana/watch", "ben", "cara", "eve")
"""The owner on two devices, a participant and editor, a spectator and viewer, and a stranger."""

MAX_STEPS = 12
WORKOUT, TEMPLATE = {"workout_id": "w"}, {"template_id": "t"}
OP_ID = "6f1f1c1e-0d3f-4c1e-9a43-0c7a3f6b2d11"
SET = {"kind": "normal", "weight_kg": 100, "reps": 5, "rpe": 8.5, "note": "low bar"}
EXERCISE = {"name": "Squat", "rest_s": 90, "note": "", "target": [{"kind": "normal", "reps": 5}]}

PAYLOADS: dict[str, list[dict[str, Any]]] = {
    "auth:refresh": [{"token": "x.y.z"}],
    "auth:revoke": [{"user_id": "ben"}, {"token_id": "1"}],
    "time:sync": [{"t0": 1.5}],
    "workout:create": [
        {"workout_id": "w2", "title": "Pull", "mode": "group", "visibility": "public"},
        {"template_id": "t", "op_id": OP_ID},
        {},
    ],
    "workout:join": [WORKOUT, {**WORKOUT, "role": "spectator"}],
    "workout:leave": [WORKOUT],
    "workout:sync": [WORKOUT],
    "workout:list": [{}],
    "workout:invite": [{**WORKOUT, "user_id": "eve", "role": "coach"}],
    "workout:member:remove": [{**WORKOUT, "user_id": "ben"}],
    "workout:start": [WORKOUT, {**WORKOUT, "op_id": OP_ID}],
    "workout:pause": [WORKOUT],
    "workout:resume": [WORKOUT],
    "workout:complete": [WORKOUT],
    "workout:abandon": [WORKOUT],
    "workout:exercise:add": [
        {**WORKOUT, "exercise": EXERCISE},
        {**WORKOUT, "exercise": {"name": "Row"}, "exercise_id": "row", "before": "squat"},
    ],
    "workout:exercise:update": [
        {**WORKOUT, "exercise_id": "squat", "exercise": {"name": "Front squat", "rest_s": None}}
    ],
    "workout:exercise:move": [{**WORKOUT, "exercise_id": "squat", "after": "n1"}],
    "workout:exercise:remove": [{**WORKOUT, "exercise_id": "squat"}],
    "workout:set:complete": [
        {**WORKOUT, "exercise_id": "squat", "set": SET, "set_id": "s2"},
        {**WORKOUT, "exercise_id": "squat", "set": {"reps": 5}, "op_id": OP_ID},
        {**WORKOUT, "exercise_id": "squat", "set": {"seconds": 60, "completed_at": NOW_MS}},
    ],
    "workout:set:update": [{**WORKOUT, "set_id": "s1", "set": {"reps": 6, "rpe": None}}],
    "workout:set:remove": [{**WORKOUT, "set_id": "s1"}],
    "template:create": [{"title": "Push", "template_id": "t2", "goal": "strength"}],
    "template:get": [TEMPLATE],
    "template:lock": [TEMPLATE],
    "template:unlock": [TEMPLATE],
    "template:list": [{}],
    "template:update_meta": [{**TEMPLATE, "meta": {"title": "Push", "goal": None}}],
    "template:join": [TEMPLATE],
    "template:leave": [TEMPLATE],
    "template:share": [{**TEMPLATE, "user_id": "eve", "role": "editor"}],
    "template:unshare": [{**TEMPLATE, "user_id": "ben"}],
    "subscribe": [{"streams": ["workout:w:progress", "system:health"]}],
    "unsubscribe": [{"streams": ["workout:w:progress"]}],
}
"""What a client that behaves sends, for each event of the registry."""

Step = list[Any]


class Intents(Target):
    name = "intents"

    def seeds(self) -> list[bytes]:
        calls = [(event, payload) for event, made in PAYLOADS.items() for payload in made]
        one_each = [[[who, event, payload]] for who in ("ana", "eve") for event, payload in calls]
        story = [["ana", event, PAYLOADS[event][0]] for event in PAYLOADS if "workout" in event]
        return [
            _encode(steps)
            for steps in (*one_each, *(story[at : at + MAX_STEPS] for at in range(0, 24, 6)))
        ]

    def generate(self, random: Random) -> bytes:
        return _encode([self._step(random) for _ in range(random.randrange(1, 6))])

    def mutate(self, data: bytes, random: Random) -> bytes:
        steps = _decode(data)
        if not steps or (len(steps) < MAX_STEPS and random.randrange(4) == 0):
            steps.insert(random.randrange(len(steps) + 1), self._step(random))
            return _encode(steps)
        step = random.choice(steps)
        how = random.randrange(10)
        if how <= 5:
            step[2] = mutate_json(step[2], random)
        elif how == 6:
            step[0] = random.choice(WHO)
        elif how == 7:
            mutate_list(steps, random)
        elif how == 8:
            step[1] = random.choice((*PAYLOADS, *ODD_TEXTS))
        else:
            return mutate_bytes(data, random)
        return _encode(steps)

    def _step(self, random: Random) -> Step:
        event = random.choice(list(PAYLOADS))
        payload = copied(random.choice(PAYLOADS[event]))
        if random.randrange(3) == 0:
            payload = mutate_json(payload, random)
        elif random.randrange(12) == 0:
            payload = odd_value(random)
        return [pick(random, (3, "ana"), (1, random.choice(WHO))), event, payload]

    async def play(self, data: bytes, outcomes: Counter[str]) -> None:
        scene = await Scene.open()
        try:
            for who, event, payload in _decode(data):
                outcomes[await scene.ask(who, event, payload)] += 1
            await scene.is_one()
            await scene.lets_others_go_on()
        finally:
            await scene.desk.bench.close()


def _encode(steps: list[Step]) -> bytes:
    try:
        return json.dumps(steps[:MAX_STEPS], indent=1).encode()
    except RecursionError:
        return b"[]"


def _decode(data: bytes) -> list[Step]:
    """Read any bytes at all: what is no step is left out."""
    try:
        found = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return []
    return [
        [step[0] if step[0] in WHO else "eve", step[1], step[2]]
        for step in (found if isinstance(found, list) else ())
        if isinstance(step, list) and len(step) == 3 and isinstance(step[1], str)
    ][:MAX_STEPS]


class Scene:
    """Ana's workout with an exercise and a set, her template, and who else may be there."""

    documents = (ids.workout("w"), ids.template("t"))

    def __init__(self) -> None:
        self.desk = Desk(Bench())
        counter = itertools.count(1)
        # What is made without an id gets one that a later step of the story may name.
        self.desk.services.new_id = lambda: f"n{next(counter)}"

    @classmethod
    async def open(cls) -> Scene:
        scene = cls()
        do = scene.desk.do
        await do("ana", "workout:create", workout_id="w", mode="group")
        await do("ana", "workout:invite", workout_id="w", user_id="ben", role="participant")
        await do("ana", "workout:invite", workout_id="w", user_id="cara", role="spectator")
        await do(
            "ana", "workout:exercise:add", **WORKOUT, exercise_id="squat", exercise=dict(EXERCISE)
        )
        await do(
            "ana", "workout:set:complete", **WORKOUT, exercise_id="squat", set_id="s1", set=SET
        )
        await do("ana", "template:create", template_id="t", title="Push")
        await do("ana", "template:share", template_id="t", user_id="ben", role="editor")
        await do("ana", "template:share", template_id="t", user_id="cara", role="viewer")
        return scene

    async def ask(self, who: str, event: str, payload: Any) -> str:
        before = await self._state()
        answer = await self.desk.ask(who, event, payload)
        text = json.dumps(answer, allow_nan=False)
        assert json.loads(text) == answer, "is not the same when it has been read"
        if answer["ok"]:
            return ACCEPTED
        error = answer["error"]
        assert error["code"] in CODES, f"{event}: {error}"
        assert isinstance(error["message"], str)
        assert len(text) < 20_000, "an error of many words"
        if error["code"] == "invalid" and not isinstance(error.get("details"), type(None)):
            assert all({"path", "message"} == set(found) for found in error["details"])
        assert await self._state() == before, f"{event} was refused and changed something"
        return str(error["code"])

    async def _state(self) -> Any:
        return [(doc, await self._seq(doc)) for doc in self.documents], len(self.desk.bench.hub)

    async def _seq(self, doc: DocName) -> int:
        loaded = await self.desk.store.load(doc)
        return int(loaded.seq)

    async def is_one(self) -> None:
        """Every document can be shown, and read again from the log, as it is."""
        for live in list(self.desk.bench.hub.live):
            room = live.room
            assert room.is_settled
            again = Room(room.name, await self.desk.store.load(room.name))
            assert room.head == room.view == again.view
            assert room.members == again.members
            assert room.awards == again.awards
            shown = live.snapshot(NOW_MS)
            assert json.loads(json.dumps(shown, allow_nan=False)) == shown

    async def lets_others_go_on(self) -> None:
        """Ben, whom nobody can put out of the workout, logs a set."""
        added = await self.desk.do("ana", "workout:exercise:add", **WORKOUT, exercise=EXERCISE)
        await self.desk.set("w", added["exercise_id"], who="ana", set_id="of-ana", reps=7)
        shown = await self.desk.shown("w")
        assert [item["reps"] for item in shown["sets"] if item["id"] == "of-ana"] == [7]
