"""One template for each kind of workout: made by its lifter, edited together with a trainer."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any
from uuid import uuid4

from pycrdt import Map, Text

from crdt import ids, order
from server.replay.check import Problem, template_document
from server.replay.exports import LoggedSet, LoggedWorkout
from server.replay.lifter import Laptop, Lifter, becomes, read_until
from server.replay.truth import exercise_note, exercise_superset, exercises_of

LIFTER_TYPES = "Warm up first. "
TRAINER_TYPES = " Elbows in – slow on the way down."

_PLANNED = ("kind", "weight_kg", "reps", "seconds", "distance_m", "rpe")


class TemplateRoom:
    """Two people at one template, each with a replica of their own."""

    def __init__(self, lifter: Lifter, first: LoggedWorkout, chance: random.Random) -> None:
        self.problems: list[Problem] = []
        self._lifter = lifter
        self._phone = lifter.phone
        self._first = first
        self._chance = chance
        self._where = f"template {first.title}"
        self._template_id = str(uuid4())
        name = ids.template(self._template_id)
        self._laptop, self._trainer = lifter.laptop(name), lifter.trainer(name)
        self._names: dict[str, str] = {}

    async def make(self) -> dict[str, Any]:
        """Make it from the first workout of its title.

        Returns: the server's snapshot of the outcome.
        Raises:
            CallFailed, Lost, Refused, TimeoutError: the server did not do its part.
        """
        try:
            await self._do("template:create", title=self._first.title)
            await self._laptop.connect()
            await self._fill()
            await self._do("template:share", user_id=self._lifter.trainer_id, role="editor")
            await self._trainer.connect()
            await self._edit_together()
            await self._settle()
            return await self._compare()
        finally:
            await self._laptop.client.close()
            await self._trainer.client.close()

    async def _fill(self) -> None:
        rows = exercises_of(self._first.sets)
        keys = order.append_keys(len(rows))
        exercises = self._laptop.client.map("exercises")
        for (name, sets), key in zip(rows.items(), keys, strict=True):
            exercise_id = str(uuid4())
            self._names[exercise_id] = name
            made = _exercise(name, key, sets)
            self._laptop.edit(partial(exercises.update, {exercise_id: made}))
        if self._first.note:
            self._laptop.edit(lambda: _type(self._notes(self._laptop), self._first.note))
        await self._laptop.client.confirm()

    async def _edit_together(self) -> None:
        """Both change the same exercise at the same time, the trainer offline now and then."""
        target = self._chance.choice(list(self._names))
        if self._chance.random() < 0.5:
            await self._trainer.lose_connection()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._edit_as_lifter(target))
            group.create_task(self._edit_as_trainer(target))
        await self._laptop.come_back()
        await self._trainer.come_back()
        # Now that both have told the server, both get the whole.
        await self._laptop.client.sync()
        await self._trainer.client.sync()
        lifters, trainers = self._laptop.client, self._trainer.client
        if not (
            await becomes(lifters, lambda content: content == trainers.content())
            or await becomes(trainers, lambda content: content == lifters.content())
        ):
            self._note("unequal", "the two replicas differ")

    async def _edit_as_lifter(self, target: str) -> None:
        exercise = self._exercise(self._laptop, target)
        self._laptop.edit(lambda: exercise.update({"name": f"{self._names[target]} (mine)"}))
        self._laptop.edit(lambda: exercise["note"].insert(0, LIFTER_TYPES))
        await asyncio.sleep(0)
        self._laptop.edit(lambda: _first_set(exercise).update({"reps": 8}))
        last = order.append_key(self._laptop.client.content()["exercises"])
        self._laptop.edit(lambda: exercise.update({"order": last}))

    async def _edit_as_trainer(self, target: str) -> None:
        exercise = self._exercise(self._trainer, target)
        self._trainer.edit(lambda: exercise.update({"name": f"{self._names[target]} (tempo)"}))
        note: Text = exercise["note"]
        self._trainer.edit(partial(_type, note, TRAINER_TYPES[0]))
        for typed in range(1, len(TRAINER_TYPES)):
            # As an editor does: right behind what was typed before, wherever that is by now.
            before, found, _ = str(note).rpartition(TRAINER_TYPES[:typed])
            at = len((before + found).encode())
            self._trainer.edit(partial(note.insert, at, TRAINER_TYPES[typed]))
            await asyncio.sleep(0)
        self._trainer.edit(lambda: _first_set(exercise).update({"reps": 10}))
        self._trainer.edit(lambda: _type(self._notes(self._trainer), TRAINER_TYPES))

    async def _settle(self) -> None:
        """The lifter gives the exercises the names of the export again."""
        for exercise_id, name in self._names.items():
            exercise = self._exercise(self._laptop, exercise_id)
            if exercise["name"] != name:
                self._laptop.edit(partial(exercise.update, {"name": name}))
        await self._laptop.client.confirm()

    async def _compare(self) -> dict[str, Any]:
        confirmed = self._laptop.client.content()
        snapshot = await read_until(
            self._snapshot, lambda read: template_document(read, confirmed["meta"]) == confirmed
        )
        for owner, replica in (("lifter", self._laptop), ("trainer", self._trainer)):
            if not await becomes(
                replica.client,
                lambda content: content == template_document(snapshot, content["meta"]),
            ):
                self._note("unequal", f"the {owner}'s replica is not the server's template")
        notes = [exercise["note"] for exercise in snapshot["exercises"]]
        for typed in (LIFTER_TYPES, TRAINER_TYPES):
            if sum(typed in note for note in notes) != 1:
                self._note("lost", f"{typed!r} was typed into one note, and is not there")
        if sorted(item["name"] for item in snapshot["exercises"]) != sorted(self._names.values()):
            self._note("changed", "the exercises are not those of the export")
        await self._phone.do("template:leave", {"template_id": self._template_id})
        return snapshot

    async def _snapshot(self) -> dict[str, Any]:
        answer = await self._phone.do("template:get", {"template_id": self._template_id})
        template: dict[str, Any] = answer["template"]
        return template

    async def _do(self, event: str, **data: Any) -> dict[str, Any]:
        payload = {"template_id": self._template_id, "op_id": str(uuid4()), **data}
        return await self._phone.do(event, payload)

    def _note(self, kind: Any, text: str) -> None:
        self.problems.append(Problem(kind, self._where, text))

    def _exercise(self, replica: Laptop, exercise_id: str) -> Map[Any]:
        found: Map[Any] = replica.client.map("exercises")[exercise_id]
        return found

    def _notes(self, replica: Laptop) -> Text:
        found: Text = replica.client.roots["notes"]
        return found


def _exercise(name: str, key: str, sets: list[LoggedSet]) -> Map[Any]:
    planned = {}
    for set_key, logged in zip(order.append_keys(len(sets)), sets, strict=True):
        values = {field: getattr(logged, field) for field in _PLANNED}
        fields = {field: value for field, value in values.items() if value is not None}
        planned[str(uuid4())] = Map({"order": set_key, **fields})
    fields = {"name": name, "order": key, "note": Text(exercise_note(sets)), "sets": Map(planned)}
    if (superset := exercise_superset(sets)) is not None:
        fields["superset"] = superset
    return Map(fields)


def _first_set(exercise: Map[Any]) -> Map[Any]:
    sets: Map[Any] = exercise["sets"]
    found: Map[Any] = sets[min(sets.keys())]
    return found


def _type(text: Text, typed: str) -> None:
    text += typed
