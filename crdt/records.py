"""Personal records: what a set is worth, and what it beats.

Per user and exercise: `volume` (weight x reps of one set, kg), `weight` (kg), `e1rm` (estimated
one-repetition maximum by Epley, "Poundage Chart", 1985: weight x (1 + reps/30); trusted up to 12
reps only; kg), `reps` for sets without weight, `seconds` for holds. Warm-ups set no records. The
first set of an exercise is its first record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crdt.ids import UserId

RecordType = Literal["volume", "weight", "e1rm", "reps", "seconds"]

E1RM_MAX_REPS = 12


def e1rm_kg(weight_kg: float, reps: float) -> float:
    """Epley's estimate of the weight that could be lifted once."""
    return weight_kg * (1 + reps / 30)


def record_values(fields: Mapping[str, Any]) -> dict[RecordType, float]:
    """The values with which one set competes."""
    if fields.get("kind") == "warmup":
        return {}
    weight_kg = positive(fields.get("weight_kg"))
    reps = positive(fields.get("reps"))
    seconds = positive(fields.get("seconds"))
    if weight_kg and reps:
        values: dict[RecordType, float] = {"weight": weight_kg, "volume": weight_kg * reps}
        if reps <= E1RM_MAX_REPS:
            values["e1rm"] = e1rm_kg(weight_kg, reps)
    elif reps:
        values = {"reps": reps}
    elif seconds and not positive(fields.get("distance_m")):
        values = {"seconds": seconds}
    else:
        values = {}
    return {type_: value for type_, value in values.items() if value > 0}


def exercise_key(exercise: Mapping[str, Any]) -> str | None:
    """What makes two exercises the same across workouts: the library's id, else the name."""
    exercise_id = exercise.get("exercise_id")
    if isinstance(exercise_id, str) and exercise_id:
        return f"id:{exercise_id}"
    name = exercise.get("name")
    if isinstance(name, str) and name.strip():
        return f"name:{' '.join(name.split()).casefold()}"
    return None


@dataclass(frozen=True, slots=True)
class Score:
    """What one set is worth now; no values when it has been removed or counts for nothing."""

    set_id: str
    user_id: UserId
    exercise: str
    values: Mapping[RecordType, float]


@dataclass(frozen=True, slots=True)
class Award:
    """A record that a set won. It is given once for each set and type, and never taken back;
    `previous` is what it beat (None for a first)."""

    set_id: str
    user_id: UserId
    exercise: str
    type: RecordType
    value: float
    previous: float | None

    def to_wire(self) -> dict[str, Any]:
        return {"type": self.type, "value": self.value, "previous": self.previous}


def positive(value: Any) -> float:
    """The number that counts: 0 for anything that is none, or beyond all reason."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9:
        return value
    return 0
