"""One workout of an export, played live by the devices of its lifter."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from crdt import ids, order
from crdt.schema import Visibility
from server.replay.check import Evidence, Problem, Told, check_carried_over, workout_document
from server.replay.lifter import SETTLING_S, Laptop, Lifter, Stopwatch, becomes, read_until
from server.replay.plan import Correct, Log, Mishap, Move, Pause, PlannedSet, WorkoutPlan
from server.replay.truth import exercise_note, exercise_superset, exercises_of


class Session:
    """Plays one planned workout, made from a template (its snapshot)."""

    def __init__(
        self,
        lifter: Lifter,
        plan: WorkoutPlan,
        template: Mapping[str, Any],
        where: str,
        *,
        visibility: Visibility = "private",
    ) -> None:
        self.problems: list[Problem] = []
        self._lifter = lifter
        self._phone, self._watch = lifter.phone, lifter.watch
        self._plan = plan
        self._template = template
        self._where = where
        self._visibility = visibility
        self._workout_id = str(uuid4())
        self._laptop: Laptop = lifter.laptop(ids.workout(self._workout_id))
        self._to_laptop, self._to_phone = Stopwatch(lifter.tally), Stopwatch(lifter.tally)
        self._told = Told()
        self._acked: dict[str, dict[str, float]] = {}
        self._exercise_ids: dict[str, str] = {}
        self._rows = exercises_of(plan.logged.sets)

    async def play(self) -> Evidence:
        """Play it to its end.

        Raises:
            CallFailed, Lost, Refused, TimeoutError: the server did not do its part, alone or in a
                group.
        """
        self._phone.on_event = self._on_phone_event
        self._laptop.client.on_remote = self._on_laptop_update
        self._watch.answers.clear()
        try:
            await self._begin()
            for act in self._plan.acts:
                match act:
                    case Log():
                        await self._log(act)
                    case Correct():
                        await self._correct(act)
                    case Mishap():
                        await self._mishap(act)
                    case Move():
                        await self._move(act)
                    case Pause():
                        await self._do("workout:pause")
                        await self._do("workout:resume")
            return await self._end()
        finally:
            self._phone.on_event = None
            await self._laptop.client.close()

    # -- begin and end ----------------------------------------------------------------------

    async def _begin(self) -> None:
        made = await self._do(
            "workout:create", template_id=self._template["id"], visibility=self._visibility
        )
        workout = made["workout"]
        self.problems += check_carried_over(self._where, self._template, workout)
        self._exercise_ids = {item["name"]: item["id"] for item in workout["exercises"]}
        await self._laptop.connect()
        await self._do("workout:start")
        if self._watch.client.is_connected:
            await self._watch.client.do("workout:join", {"workout_id": self._workout_id})
        for exercise in workout["exercises"]:
            await self._fit_exercise(exercise)

    async def _fit_exercise(self, exercise: Mapping[str, Any]) -> None:
        """What this workout's rows say otherwise than the template."""
        rows = self._rows.get(exercise["name"])
        if rows is None:
            return
        wanted = {"superset": exercise_superset(rows)}
        if note := exercise_note(rows):
            wanted["note"] = note
        changes = {key: value for key, value in wanted.items() if exercise.get(key) != value}
        if changes:
            await self._do("workout:exercise:update", exercise_id=exercise["id"], exercise=changes)

    async def _end(self) -> Evidence:
        await self._watch.flush(self._workout_id)
        await self._laptop.come_back()
        for answer in self._watch.answers:
            self._note_records(answer)
        await self._do("workout:complete")
        snapshot = await self._settle()
        fresh = self._lifter.laptop(ids.workout(self._workout_id))
        try:
            await fresh.connect()
            await becomes(fresh.client, lambda content: content == _document(snapshot, content))
            joined = fresh.client.content()
        finally:
            await fresh.client.close()
        for client in (self._phone, self._watch.client):
            await client.do("workout:leave", {"workout_id": self._workout_id})
        return Evidence(
            self._where,
            self._lifter.user_id,
            self._plan,
            self._laptop.client.content(),
            joined,
            snapshot,
            self._told,
            self._acked,
        )

    async def _settle(self) -> dict[str, Any]:
        """Wait until the server's workout and the laptop's are equal, and the phone has been told
        of every set. What does not arrive in time is for the check to find.

        Returns: the server's snapshot.
        """

        def is_equal(snapshot: Mapping[str, Any]) -> bool:
            content = self._laptop.client.content()
            return content == _document(snapshot, content)

        def is_told() -> bool:
            return all(self._told.completed[planned.set_id] for planned in self._plan.sets)

        snapshot = await read_until(self._snapshot, is_equal)
        with contextlib.suppress(TimeoutError):
            await self._phone.until(is_told, timeout_s=SETTLING_S)
        return snapshot

    async def _snapshot(self) -> dict[str, Any]:
        synced = await self._phone.do("workout:sync", {"workout_id": self._workout_id})
        workout: dict[str, Any] = synced["workout"]
        return workout

    # -- acts -------------------------------------------------------------------------------

    async def _log(self, act: Log) -> None:
        await self._set_links(act)
        for planned in act.sets:
            await self._ensure_exercise(planned.logged.exercise)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._log_on_phone(_of(act, "phone")))
            group.create_task(self._log_on_watch(_of(act, "watch"), act))
            group.create_task(self._log_on_laptop(_of(act, "laptop")))
        await self._laptop.client.until(lambda: not self._to_laptop.running)
        await self._phone.until(lambda: not self._to_phone.running)

    async def _set_links(self, act: Log) -> None:
        if act.watch == "offline":
            await self._watch.lose_connection()
        elif act.watch == "online":
            await self._watch.flush(self._workout_id)
        if act.laptop_online:
            await self._laptop.come_back()
        else:
            await self._laptop.lose_connection()

    async def _ensure_exercise(self, name: str) -> None:
        if name in self._exercise_ids:
            return
        rows = self._rows[name]
        exercise: dict[str, Any] = {"name": name, "note": exercise_note(rows)}
        if (superset := exercise_superset(rows)) is not None:
            exercise["superset"] = superset
        answer = await self._do("workout:exercise:add", exercise=exercise)
        self._exercise_ids[name] = answer["exercise_id"]

    async def _log_on_phone(self, sets: Iterable[PlannedSet]) -> None:
        for planned in sets:
            await self._lifter.rest()
            self._time_to_laptop(planned)
            await self._do("workout:set:complete", **self._completed(planned))

    async def _log_on_watch(self, sets: Sequence[PlannedSet], act: Log) -> None:
        for _ in sets:
            await self._lifter.rest()
        for planned in sets:
            if act.watch == "online":
                self._time_to_laptop(planned)
            data = {"workout_id": self._workout_id, **self._completed(planned)}
            self._watch.queue("workout:set:complete", data)
        if act.watch == "online":
            await self._watch.flush(self._workout_id)
        elif act.watch == "cut":
            await self._watch.flush(self._workout_id, cut_after_ms=act.cut_after_ms)

    async def _log_on_laptop(self, sets: Iterable[PlannedSet]) -> None:
        for planned in sets:
            await self._lifter.rest()
            exercise_id = self._exercise_ids[planned.logged.exercise]
            if self._laptop.client.is_connected:
                # Nobody logs a set of what their screen does not show yet.
                exercises = self._laptop.client.map("exercises")
                await self._laptop.client.until(partial(exercises.__contains__, exercise_id))
                self._to_phone.start(planned.set_id)
            self._laptop.log(planned, exercise_id)
            if remarks := planned.remarks():
                self._laptop.patch(planned.set_id, remarks)
            await self._laptop.client.settled()

    async def _correct(self, act: Correct) -> None:
        planned = act.planned
        assert planned.rivals is not None
        await self._show_laptop_set(planned.set_id)
        if not act.laptop_online:
            await self._laptop.lose_connection()
        truth = {key: getattr(planned.logged, key) for key in planned.slip}
        on_phone, on_laptop = ({**truth, "rpe": rpe} for rpe in planned.rivals)
        sending = asyncio.create_task(
            self._do("workout:set:update", set_id=planned.set_id, set=on_phone)
        )
        self._laptop.patch(planned.set_id, on_laptop)
        await sending
        await self._laptop.come_back()

    async def _mishap(self, act: Mishap) -> None:
        exercise_id = self._exercise_ids[act.exercise]
        done = {"kind": "warmup", "reps": 1}
        await self._do("workout:set:complete", set_id=act.set_id, exercise_id=exercise_id, set=done)
        await self._show_laptop_set(act.set_id)
        await self._laptop.lose_connection()
        self._laptop.patch(act.set_id, {"note": "not sure about this one"})
        await self._do("workout:set:remove", set_id=act.set_id)
        await self._laptop.come_back()

    async def _move(self, act: Move) -> None:
        exercise_id = self._exercise_ids[act.exercise]
        others = [id_ for id_ in self._exercise_ids.values() if id_ != exercise_id]
        if not others:
            return
        await self._laptop.come_back()
        exercises = self._laptop.client.map("exercises")
        await self._laptop.client.until(lambda: exercise_id in exercises)
        await self._laptop.lose_connection()
        last = order.append_key(self._laptop.client.content()["exercises"])
        self._laptop.edit(lambda: exercises[exercise_id].update({"order": last}))
        await self._do("workout:exercise:move", exercise_id=exercise_id, before=others[0])
        await self._laptop.come_back()

    # -- devices ----------------------------------------------------------------------------

    async def _do(self, event: str, **data: Any) -> dict[str, Any]:
        """An intent of the phone, with an `op_id` of its own."""
        answer = await self._phone.do(
            event, {"workout_id": self._workout_id, "op_id": str(uuid4()), **data}
        )
        self._note_records(answer)
        return answer

    def _completed(self, planned: PlannedSet) -> dict[str, Any]:
        fields = {**planned.measures(), **planned.remarks(), **planned.slip}
        return {
            "set_id": planned.set_id,
            "exercise_id": self._exercise_ids[planned.logged.exercise],
            "set": {**fields, "completed_at": planned.completed_at},
        }

    async def _show_laptop_set(self, set_id: str) -> None:
        """Have the laptop connected, and the set on it."""
        await self._laptop.come_back()
        sets = self._laptop.sets
        await self._laptop.client.until(lambda: set_id in sets)

    def _time_to_laptop(self, planned: PlannedSet) -> None:
        if self._laptop.client.is_connected:
            self._to_laptop.start(planned.set_id)

    def _on_laptop_update(self, _: bytes) -> None:
        sets = self._laptop.sets
        for set_id in [id_ for id_ in self._to_laptop.running if id_ in sets]:
            self._to_laptop.stop(set_id)

    def _on_phone_event(self, event: str, payload: Mapping[str, Any]) -> None:
        if payload.get("workout_id") != self._workout_id:
            return
        set_id = payload.get("set_id", "")
        if event == "workout:set:completed":
            self._told.completed[set_id] += 1
            self._to_phone.stop(set_id)
        elif event == "workout:set:updated":
            self._told.updated[set_id] += 1
        elif event == "workout:set:removed":
            self._told.removed[set_id] += 1
        if payload.get("is_pr"):
            self._told.records.add(set_id)

    def _note_records(self, answer: Mapping[str, Any]) -> None:
        for record in answer.get("records", ()):
            self._acked.setdefault(answer["set_id"], {})[record["type"]] = record["value"]


def _document(snapshot: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    return workout_document(snapshot, content["meta"])


def _of(act: Log, device: str) -> list[PlannedSet]:
    return [planned for planned in act.sets if planned.device == device]
