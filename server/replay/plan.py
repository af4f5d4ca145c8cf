"""What will happen in one replayed workout, decided beforehand: which device logs which set, who
drops off when, and where the lifter slips. A function of the export and the seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from server.replay.exports import LoggedSet, LoggedWorkout
from server.replay.truth import same_exercise, worth

Device = Literal["phone", "watch", "laptop"]
WatchLink = Literal["online", "cut", "offline"]

MEASURES = ("kind", "weight_kg", "reps", "seconds", "distance_m")
"""The fields of a set that must end exactly as the export has them."""

_DEVICES: tuple[Device, ...] = ("phone", "watch", "laptop")
_DEVICE_SHARES = (35, 40, 25)
_WATCH_LINKS: tuple[WatchLink, ...] = ("online", "cut", "offline")
_WATCH_LINK_SHARES = (40, 25, 35)
_LAPTOP_OFFLINE = 0.35
_SLIP = 0.2
_MISHAP = 0.15
_MOVE = 0.2
_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class PlannedSet:
    """One set of the export, and how it gets into the document.

    `slip` holds the fields that are logged wrong at first, to be corrected by two devices at
    once, which then write one of the `rivals` each as RPE: either may stay.
    """

    set_id: str
    logged: LoggedSet
    device: Device
    completed_at: int
    slip: Mapping[str, Any]
    rivals: tuple[float, float] | None

    def measures(self) -> dict[str, Any]:
        """What the export has, without what is not there."""
        values = {key: getattr(self.logged, key) for key in MEASURES}
        return {key: value for key, value in values.items() if value is not None}

    def remarks(self) -> dict[str, Any]:
        """RPE and note, where there are any."""
        found: dict[str, Any] = {}
        if self.logged.rpe is not None:
            found["rpe"] = self.logged.rpe
        if self.logged.note:
            found["note"] = self.logged.note
        return found


@dataclass(frozen=True, slots=True)
class Log:
    """Sets logged by all three devices at the same time, each as well connected as said.

    A watch that is `cut` loses its connection while its sets are on their way.
    """

    sets: tuple[PlannedSet, ...]
    watch: WatchLink
    cut_after_ms: float
    laptop_online: bool


@dataclass(frozen=True, slots=True)
class Correct:
    """A slip is put right on the phone and on the laptop, neither knowing of the other."""

    planned: PlannedSet
    laptop_online: bool


@dataclass(frozen=True, slots=True)
class Mishap:
    """A set that was not done: the phone takes it back while the laptop, offline, edits it."""

    set_id: str
    exercise: str


@dataclass(frozen=True, slots=True)
class Move:
    """The phone and the laptop, offline, put the same exercise in different places."""

    exercise: str


@dataclass(frozen=True, slots=True)
class Pause:
    """The workout is paused and goes on."""


Act = Log | Correct | Mishap | Move | Pause


@dataclass(frozen=True, slots=True)
class WorkoutPlan:
    """A workout of the export, its sets in their order, and the acts in which they are played."""

    logged: LoggedWorkout
    sets: tuple[PlannedSet, ...]
    acts: tuple[Act, ...]


def plan_workout(
    logged: LoggedWorkout, best_before: Mapping[tuple[str, str], float], *, seed: int, index: int
) -> WorkoutPlan:
    """Plan the workout at `index` of an export.

    Args:
        best_before: the best values of all earlier workouts.
    Returns: the same plan for the same arguments, but for the ids.
    """
    chance = random.Random(f"{seed}/{index}")
    span_ms = logged.ended_at_ms - logged.started_at_ms
    sets = tuple(
        _plan_set(
            row,
            logged.started_at_ms + span_ms * (at + 1) // (len(logged.sets) + 1),
            best_before,
            chance,
        )
        for at, row in enumerate(logged.sets)
    )
    return WorkoutPlan(logged, sets, tuple(_plan_acts(sets, chance)))


def _plan_set(
    logged: LoggedSet,
    completed_at: int,
    best_before: Mapping[tuple[str, str], float],
    chance: random.Random,
) -> PlannedSet:
    device = chance.choices(_DEVICES, _DEVICE_SHARES)[0]
    slip: dict[str, Any] = {}
    rivals = None
    if device == "phone" and chance.random() < _SLIP:
        slip = _slip(logged, best_before, chance)
    if slip:
        rpe = logged.rpe or 7.0
        rivals = (rpe, rpe - 0.5 if rpe > 5 else rpe + 0.5)
    return PlannedSet(str(uuid4()), logged, device, completed_at, slip, rivals)


def _slip(
    logged: LoggedSet, best_before: Mapping[tuple[str, str], float], chance: random.Random
) -> dict[str, Any]:
    """Wrong values that win no record: a record is announced once and for all, so one that a slip
    had won would stay."""
    wrong: dict[str, Any] = {}
    if logged.weight_kg:
        wrong["weight_kg"] = round(logged.weight_kg * chance.choice((0.5, 0.8, 0.9)), 2) or 0.01
    elif logged.reps:
        wrong["reps"] = max(1, logged.reps - chance.randint(1, 3))
    elif logged.seconds:
        wrong["seconds"] = max(1, logged.seconds // 2)
    values = worth(
        logged.kind,
        wrong.get("weight_kg", logged.weight_kg),
        wrong.get("reps", logged.reps),
        wrong.get("seconds", logged.seconds),
        logged.distance_m,
    )
    name = same_exercise(logged.exercise)
    if any(value > best_before.get((name, type_), 0.0) for type_, value in values.items()):
        wrong["kind"] = "warmup"
    return wrong


def _plan_acts(sets: tuple[PlannedSet, ...], chance: random.Random) -> list[Act]:
    acts: list[Act] = []
    at = 0
    slipped: list[PlannedSet] = []
    while at < len(sets):
        group = sets[at : at + chance.randint(2, 6)]
        at += len(group)
        acts.append(
            Log(
                group,
                chance.choices(_WATCH_LINKS, _WATCH_LINK_SHARES)[0],
                chance.uniform(0, 6),
                laptop_online=chance.random() >= _LAPTOP_OFFLINE,
            )
        )
        slipped += [planned for planned in group if planned.slip]
        if slipped and (chance.random() < 0.5 or at >= len(sets)):
            acts += [Correct(planned, chance.random() < 0.4) for planned in slipped]
            slipped = []
        exercise = group[-1].logged.exercise
        if chance.random() < _MISHAP:
            acts.append(Mishap(str(uuid4()), exercise))
        if chance.random() < _MOVE:
            acts.append(Move(exercise))
        if chance.random() < _PAUSE:
            acts.append(Pause())
    return acts
