"""Whether what a replay left behind is what the export says, on every replica.

Everything here is a function of plain values and returns the problems it finds, none if all is
well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from server.replay.plan import MEASURES, PlannedSet, WorkoutPlan
from server.replay.truth import (
    Best,
    exercise_note,
    exercise_superset,
    exercises_of,
    figures,
    same_exercise,
    worth_of,
)

Kind = Literal["lost", "doubled", "changed", "unequal", "events", "records", "stopped"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must not happen: what, in which workout or template, in plain words."""

    kind: Kind
    where: str
    text: str


@dataclass(slots=True)
class Told:
    """What a JSON member was told by events, by set id; `records` are the sets with `is_pr`."""

    completed: Counter[str] = field(default_factory=Counter)
    updated: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    records: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Evidence:
    """What a played workout looks like from all sides.

    `laptop` and `fresh` are the contents of two Yjs replicas, one that was there all the time and
    one that joined at the end; `snapshot` is the server's JSON; `acked` holds the records of the
    acks, set id -> type -> value.
    """

    where: str
    user_id: str
    plan: WorkoutPlan
    laptop: dict[str, Any]
    fresh: dict[str, Any]
    snapshot: dict[str, Any]
    told: Told
    acked: dict[str, dict[str, float]]


def check_workout(seen: Evidence) -> list[Problem]:
    """Everything that can be said of one workout by itself."""
    found = [
        *_replicas(seen),
        *_sets(seen),
        *_exercises(seen),
        *_progress(seen),
        *_events(seen),
        *_awards(seen),
    ]
    return [Problem(kind, seen.where, text) for kind, text in found]


def workout_document(snapshot: Mapping[str, Any], meta_keys: Iterable[str]) -> dict[str, Any]:
    """A snapshot in the form of its document's content, with these keys of `meta`."""
    return {
        "meta": {key: snapshot.get(key) for key in meta_keys},
        "exercises": _by_id(snapshot["exercises"]),
        "sets": _by_id(snapshot["sets"]),
        "timers": snapshot["timers"],
    }


def template_document(snapshot: Mapping[str, Any], meta_keys: Iterable[str]) -> dict[str, Any]:
    """Likewise for a template."""
    exercises = _by_id(snapshot["exercises"])
    for exercise in exercises.values():
        exercise["sets"] = _by_id(exercise["sets"])
    return {
        "meta": {key: snapshot.get(key) for key in meta_keys},
        "exercises": exercises,
        "notes": snapshot["notes"],
    }


def check_carried_over(
    where: str, template: Mapping[str, Any], workout: Mapping[str, Any]
) -> list[Problem]:
    """Whether a workout made from a template starts as its plan."""
    kept = ("name", "order", "superset", "note")
    planned = [
        {
            **{key: exercise.get(key) for key in kept},
            "target": [
                {key: value for key, value in target.items() if key not in ("id", "order")}
                for target in exercise["sets"]
            ],
        }
        for exercise in template["exercises"]
    ]
    made = [
        {key: exercise.get(key) for key in (*kept, "target")} for exercise in workout["exercises"]
    ]
    if planned != made or workout["title"] != template["title"]:
        return [Problem("changed", where, "the new workout is not what its template says")]
    return []


def check_records(
    told: Iterable[tuple[str, str, float]], expected: Best, *, may_lack: bool
) -> list[Problem]:
    """Whether the best value of each exercise and type is what the export says.

    Args:
        told: (exercise name, type, value) of each record that the server told.
        may_lack: whether the user had trained before, and may have been better then.
    """
    best: Best = {}
    for name, type_, value in told:
        key = (same_exercise(name), type_)
        best[key] = max(best.get(key, 0.0), value)
    problems = []
    for name, type_ in sorted(best.keys() | expected.keys()):
        is_, should = best.get((name, type_)), expected.get((name, type_))
        if (is_ is None and may_lack) or _same(is_, should):
            continue
        text = f"{name}, {type_}: the server told {_shown(is_)}, the export has {_shown(should)}"
        problems.append(Problem("records", "all workouts", text))
    return problems


def told_records(seen: Evidence) -> Iterator[tuple[str, str, float]]:
    """(exercise name, type, value) of the records in a workout's snapshot."""
    names = {exercise["id"]: exercise["name"] for exercise in seen.snapshot["exercises"]}
    for record in _my_progress(seen).get("records", ()):
        yield names.get(record["exercise"], "?"), record["type"], record["value"]


# -- one workout ------------------------------------------------------------------------------

Found = Iterator[tuple[Kind, str]]


def _replicas(seen: Evidence) -> Found:
    server = workout_document(seen.snapshot, seen.laptop["meta"])
    for name, replica in (("laptop", seen.laptop), ("newly joined replica", seen.fresh)):
        for root in sorted(server.keys() | replica.keys()):
            if replica.get(root) != server.get(root):
                different = _first_difference(replica.get(root), server.get(root))
                yield "unequal", f"the {name}'s {root} is not the server's: {different}"
    for root in ("exercises", "sets"):
        listed = [(item.get("order", ""), item["id"]) for item in seen.snapshot[root]]
        if listed != sorted(listed):
            yield "changed", f"the server's {root} are not in order"


def _sets(seen: Evidence) -> Found:
    planned = {item.set_id: item for item in seen.plan.sets}
    present = Counter(item["id"] for item in seen.snapshot["sets"])
    names = {exercise["id"]: exercise["name"] for exercise in seen.snapshot["exercises"]}
    shown = {item["id"]: item for item in seen.snapshot["sets"]}
    for set_id, count in present.items():
        if count > 1 or set_id not in planned:
            yield (
                "doubled",
                f"set {set_id} is there {count} times, and the export has "
                + ("it once" if set_id in planned else "no such set"),
            )
    for set_id, item in planned.items():
        if set_id not in present:
            yield "lost", f"the set of line {item.logged.line} is not there"
            continue
        for key, value, allowed in _compared(seen, item, shown[set_id], names):
            if value not in allowed:
                expected = " or ".join(_shown(each) for each in allowed)
                yield (
                    "changed",
                    f"line {item.logged.line}: {key} is {_shown(value)}, not {expected}",
                )


def _compared(
    seen: Evidence, item: PlannedSet, shown: Mapping[str, Any], names: Mapping[str, str]
) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(field, its value, what it may be)."""
    yield "exercise", names.get(shown.get("exercise", "")), (item.logged.exercise,)
    yield "user_id", shown.get("user_id"), (seen.user_id,)
    yield "completed_at", shown.get("completed_at"), (item.completed_at,)
    yield "note", shown.get("note"), (item.logged.note or None,)
    yield "rpe", shown.get("rpe"), item.rivals or (item.logged.rpe,)
    for key in MEASURES:
        yield key, shown.get(key), (getattr(item.logged, key),)


def _exercises(seen: Evidence) -> Found:
    by_name = {exercise["name"]: exercise for exercise in seen.snapshot["exercises"]}
    if len(by_name) != len(seen.snapshot["exercises"]):
        yield "doubled", "an exercise is there twice"
    for name, sets in exercises_of(seen.plan.logged.sets).items():
        exercise = by_name.get(name)
        if exercise is None:
            yield "lost", f"the exercise {name} is not there"
            continue
        note, superset = exercise_note(sets), exercise_superset(sets)
        if exercise.get("superset") != superset:
            yield "changed", f"{name}: superset is {_shown(exercise.get('superset'))}"
        if note and exercise.get("note") != note:
            yield "changed", f"{name}: the note is {_shown(exercise.get('note'))}"


def _progress(seen: Evidence) -> Found:
    mine, expected = _my_progress(seen), figures(seen.plan.logged.sets)
    if mine.get("sets_done") != expected.sets:
        yield "changed", f"sets_done is {mine.get('sets_done')}, not {expected.sets}"
    if mine.get("reps") != expected.reps:
        yield "changed", f"reps is {mine.get('reps')}, not {expected.reps}"
    if Fraction(str(mine.get("volume_kg", -1))) != expected.volume_kg:
        volume_kg = float(expected.volume_kg)
        yield "changed", f"volume_kg is {mine.get('volume_kg')}, not {_shown(volume_kg)}"
    if seen.snapshot.get("status") != "completed":
        yield "changed", f"the status is {seen.snapshot.get('status')}"


def _events(seen: Evidence) -> Found:
    planned = {item.set_id: item for item in seen.plan.sets}
    for set_id, item in planned.items():
        told = f"the set of line {item.logged.line} was told as"
        if (count := seen.told.completed[set_id]) != 1:
            yield "events", f"{told} completed {count} times"
        if seen.told.removed[set_id]:
            yield "events", f"{told} removed"
        # Nobody changes these: an update is an operation that was carried out a second time.
        if seen.told.updated[set_id] and item.device != "laptop" and not item.slip:
            yield "events", f"{told} updated"
    for set_id in (seen.told.completed.keys() | seen.told.removed.keys()) - planned.keys():
        counts = (seen.told.completed[set_id], seen.told.removed[set_id])
        if counts != (1, 1):
            yield (
                "events",
                f"set {set_id}, taken back, was told as completed {counts[0]} times"
                f" and as removed {counts[1]} times",
            )


def _awards(seen: Evidence) -> Found:
    """Acks, events and snapshot tell of the same records, and each is what its set is worth."""
    planned = {item.set_id: item.logged for item in seen.plan.sets}
    shown: dict[str, dict[str, float]] = {}
    for record in _my_progress(seen).get("records", ()):
        if record["type"] in shown.setdefault(record["set_id"], {}):
            yield "records", f"set {record['set_id']} has its {record['type']} record twice"
        shown[record["set_id"]][record["type"]] = record["value"]
        logged = planned.get(record["set_id"])
        value = worth_of(logged).get(record["type"]) if logged else None
        if logged and not _same(record["value"], value):
            yield (
                "records",
                f"line {logged.line}: the {record['type']} record is {_shown(record['value'])},"
                f" the set is worth {_shown(value)}",
            )
    for set_id, values in seen.acked.items():
        for type_, value in values.items():
            if not _same(shown.get(set_id, {}).get(type_), value):
                yield "records", f"the ack of set {set_id} told of a {type_} record of {value} only"
    if shown.keys() != seen.told.records:
        different = shown.keys() ^ seen.told.records
        yield "records", f"events and snapshot disagree on the records of {len(different)} sets"


def _my_progress(seen: Evidence) -> Mapping[str, Any]:
    mine: Mapping[str, Any] = seen.snapshot["progress"].get(seen.user_id, {})
    return mine


# -- values -----------------------------------------------------------------------------------


def _by_id(items: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        item["id"]: {key: value for key, value in item.items() if key != "id"} for item in items
    }


def _same(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=1e-9)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _first_difference(left: Any, right: Any) -> str:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted(left.keys() | right.keys()):
            if left.get(key) != right.get(key):
                return f"{key}.{_first_difference(left.get(key), right.get(key))}"
    return f"{str(left)[:80]!r} instead of {str(right)[:80]!r}"
