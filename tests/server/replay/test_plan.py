"""What a replay has in store, and what must come out of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from server.replay.check import check_records
from server.replay.exports import LoggedSet, LoggedWorkout, read_export
from server.replay.plan import Correct, Log, WorkoutPlan, plan_workout
from server.replay.truth import (
    best_of,
    exercise_note,
    figures,
    fitted,
    same_exercise,
    worth,
    worth_of,
)

HEVY = Path(__file__).parents[2] / "data" / "hevy.csv"


def a_set(**changes: Any) -> LoggedSet:
    made = LoggedSet(1, "Squat", 0, "normal", 100.0, 5, None, None, None, "", None)
    return replace(made, **changes)


def plans(seed: int) -> list[WorkoutPlan]:
    """The plans of the small Hevy export."""
    made, best = [], {}
    for index, workout in enumerate(read_export(HEVY).workouts):
        made.append(plan_workout(workout, best, seed=seed, index=index))
        best = best_of(workout.sets, best)
    return made


def without_ids(plan: WorkoutPlan) -> str:
    """A plan as text, its ids replaced by where they came first."""
    text = repr(plan.acts)
    ids = [item.set_id for item in plan.sets]
    ids += [act.set_id for act in plan.acts if hasattr(act, "set_id")]
    for at, set_id in enumerate(ids):
        text = text.replace(set_id, f"#{at}")
    return text


def test_the_same_seed_makes_the_same_plan() -> None:
    first, again, other = ([without_ids(plan) for plan in plans(seed)] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("seed", range(20))
def test_every_set_is_logged_once_and_every_slip_is_corrected(seed: int) -> None:
    for plan in plans(seed):
        logged = [item for act in plan.acts if isinstance(act, Log) for item in act.sets]
        assert logged == list(plan.sets)
        assert [item.logged for item in logged] == list(plan.logged.sets)
        corrected = [act.planned for act in plan.acts if isinstance(act, Correct)]
        assert corrected == [item for item in logged if item.slip]


@pytest.mark.parametrize("seed", range(20))
def test_a_slip_wins_no_record(seed: int) -> None:
    best: dict[tuple[str, str], float] = {}
    for index, workout in enumerate(read_export(HEVY).workouts):
        for item in plan_workout(workout, best, seed=seed, index=index).sets:
            if item.slip:
                slipped = worth_of(replace(item.logged, **item.slip))
                name = same_exercise(item.logged.exercise)
                assert all(value <= best[name, type_] for type_, value in slipped.items())
        best = best_of(workout.sets, best)


def test_sets_are_spread_between_start_and_end() -> None:
    workout = LoggedWorkout("Legs", 1_000, 5_000, "", (a_set(), a_set(), a_set()))
    plan = plan_workout(workout, {}, seed=1, index=0)
    assert [item.completed_at for item in plan.sets] == [2_000, 3_000, 4_000]


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        (
            ("normal", 100, 5, None, None),
            {"weight": 100, "volume": 500, "e1rm": 116.66666666666667},
        ),
        (("normal", 60, 12, None, None), {"weight": 60, "volume": 720, "e1rm": 84}),
        (("normal", 60, 13, None, None), {"weight": 60, "volume": 780}),
        (("failure", None, 9, None, None), {"reps": 9}),
        (("normal", 10, None, 60, None), {"seconds": 60}),
        (("normal", None, None, 60, None), {"seconds": 60}),
        (("normal", None, None, 60, 200), {}),
        (("warmup", 100, 5, None, None), {}),
    ],
)
def test_what_a_set_is_worth(measures: tuple[Any, ...], expected: dict[str, float]) -> None:
    assert worth(*measures) == pytest.approx(expected)


def test_warm_ups_add_no_volume() -> None:
    done = figures([a_set(weight_kg=0.1, reps=3), a_set(kind="warmup"), a_set(weight_kg=None)])
    assert (done.sets, done.volume_kg, done.reps) == (3, Fraction(3, 10), 8)


def test_spelling_makes_no_other_exercise() -> None:
    best = best_of([a_set(exercise="Bench  press"), a_set(exercise="bench Press", weight_kg=120.0)])
    assert best["bench press", "weight"] == 120
    assert {name for name, _ in best} == {"bench press"}


def test_a_note_on_all_sets_is_the_exercises() -> None:
    assert exercise_note([a_set(note="belt"), a_set(note="belt")]) == "belt"
    assert exercise_note([a_set(note="belt"), a_set()]) == ""


def test_texts_are_cut_to_what_the_server_takes() -> None:
    long = LoggedWorkout("", 0, 0, "", (a_set(exercise="x" * 300, note="y" * 5_000),))
    cut = fitted(long)
    assert (cut.title, len(cut.sets[0].exercise), len(cut.sets[0].note)) == ("Workout", 200, 4_000)


def test_a_record_that_is_missing_wrong_or_made_up_is_a_problem() -> None:
    expected = best_of([a_set(weight_kg=None, reps=8)])
    assert check_records([("Squat", "reps", 8)], expected, may_lack=False) == []
    assert len(check_records([], expected, may_lack=False)) == 1
    assert len(check_records([("squat", "reps", 9)], expected, may_lack=True)) == 1
    assert (
        len(check_records([("Squat", "reps", 8), ("Squat", "weight", 1)], expected, may_lack=False))
        == 1
    )
    assert check_records([], expected, may_lack=True) == []
