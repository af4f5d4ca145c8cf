"""What must come out of a replay, worked out from the rows of the export alone.

Nothing here asks the server or borrows its code, so that the two can disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from server.replay.exports import LoggedSet, LoggedWorkout

Best = dict[tuple[str, str], float]
"""(exercise, type of record) -> the best value; exercises as `same_exercise` names them."""

E1RM_UP_TO_REPS = 12

_LONGEST = {"title": 200, "exercise": 200, "note": 4_000, "superset": 64}


@dataclass(frozen=True, slots=True)
class Figures:
    """What was done. Warm-ups count as sets, but add no volume and no repetitions."""

    sets: int
    volume_kg: Fraction
    reps: int


def fitted(workout: LoggedWorkout) -> LoggedWorkout:
    """The workout with its texts no longer than the server takes them."""
    sets = tuple(
        replace(
            logged,
            exercise=logged.exercise[: _LONGEST["exercise"]],
            note=logged.note[: _LONGEST["note"]],
            superset=logged.superset and logged.superset[: _LONGEST["superset"]],
        )
        for logged in workout.sets
    )
    title = workout.title[: _LONGEST["title"]] or "Workout"
    return replace(workout, title=title, note=workout.note[: _LONGEST["note"]], sets=sets)


def figures(sets: Iterable[LoggedSet]) -> Figures:
    count, volume_kg, reps = 0, Fraction(0), 0
    for logged in sets:
        count += 1
        if logged.kind != "warmup":
            reps += logged.reps or 0
            volume_kg += Fraction(str(logged.weight_kg or 0)) * (logged.reps or 0)
    return Figures(count, volume_kg, reps)


def same_exercise(name: str) -> str:
    """Two exercises are the same if only case and spacing tell their names apart."""
    return " ".join(name.split()).casefold()


def worth(
    kind: str,
    weight_kg: float | None,
    reps: int | None,
    seconds: float | None,
    distance_m: float | None,
) -> dict[str, float]:
    """With which values a set competes for records.

    With weight: the weight, the volume of the set and, up to 12 repetitions, Epley's estimate of
    the weight that could be lifted once. Without: repetitions, else the time of a hold; a time
    over a distance is no hold. A warm-up competes for nothing.
    """
    if kind == "warmup":
        return {}
    if reps and weight_kg:
        values = {"weight": weight_kg, "volume": weight_kg * reps}
        if reps <= E1RM_UP_TO_REPS:
            values["e1rm"] = weight_kg + weight_kg * reps / 30
        return values
    if reps:
        return {"reps": float(reps)}
    return {"seconds": float(seconds)} if seconds and not distance_m else {}


def worth_of(logged: LoggedSet) -> dict[str, float]:
    return worth(logged.kind, logged.weight_kg, logged.reps, logged.seconds, logged.distance_m)


def best_of(
    sets: Iterable[LoggedSet], before: Mapping[tuple[str, str], float] | None = None
) -> Best:
    """The best value of each exercise and type, over these sets and what there was before."""
    best = dict(before or {})
    for logged in sets:
        for type_, value in worth_of(logged).items():
            key = (same_exercise(logged.exercise), type_)
            best[key] = max(best.get(key, 0.0), value)
    return best


def exercises_of(sets: Iterable[LoggedSet]) -> dict[str, list[LoggedSet]]:
    """Exercise name -> its sets, both in the order in which they came."""
    found: dict[str, list[LoggedSet]] = {}
    for logged in sets:
        found.setdefault(logged.exercise, []).append(logged)
    return found


def exercise_note(sets: Iterable[LoggedSet]) -> str:
    """The note of an exercise: what is noted with all of its sets."""
    notes = {logged.note for logged in sets}
    return notes.pop() if len(notes) == 1 else ""


def exercise_superset(sets: Iterable[LoggedSet]) -> str | None:
    return next((logged.superset for logged in sets if logged.superset), None)
