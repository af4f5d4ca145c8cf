"""What a set is worth."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.records import E1RM_MAX_REPS, e1rm_kg, exercise_key, record_values

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.none())
)


def test_a_weighted_set_competes_by_weight_volume_and_estimate() -> None:
    assert record_values({"kind": "normal", "weight_kg": 100, "reps": 6}) == {
        "weight": 100,
        "volume": 600,
        "e1rm": pytest.approx(120),
    }


def test_the_estimate_is_epleys() -> None:
    assert e1rm_kg(90, 10) == pytest.approx(120)
    assert e1rm_kg(150, 0) == 150


@pytest.mark.parametrize(("reps", "is_trusted"), [(1, True), (12, True), (13, False), (30, False)])
def test_the_estimate_is_trusted_up_to_twelve_reps(reps: int, is_trusted: bool) -> None:
    assert ("e1rm" in record_values({"weight_kg": 50, "reps": reps})) is is_trusted
    assert E1RM_MAX_REPS == 12


@pytest.mark.parametrize("weight", [{}, {"weight_kg": 0}, {"weight_kg": None}])
def test_a_bodyweight_set_competes_by_reps(weight: dict[str, Any]) -> None:
    assert record_values({"reps": 15, **weight}) == {"reps": 15}


def test_a_hold_competes_by_seconds() -> None:
    assert record_values({"seconds": 90}) == {"seconds": 90}
    assert record_values({"seconds": 90, "weight_kg": 10}) == {"seconds": 90}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "warmup", "weight_kg": 100, "reps": 5},
        {"kind": "warmup", "seconds": 60},
        {"seconds": 1_500, "distance_m": 5_000},
        {"weight_kg": 100},
        {"weight_kg": 100, "reps": 0},
        {"reps": -5},
        {"reps": True, "weight_kg": "100"},
        {},
    ],
)
def test_what_is_no_performance_sets_no_record(fields: dict[str, Any]) -> None:
    assert record_values(fields) == {}


@pytest.mark.parametrize("kind", ["normal", "drop", "failure"])
def test_every_kind_but_a_warm_up_counts(kind: str) -> None:
    assert "weight" in record_values({"kind": kind, "weight_kg": 100, "reps": 5})


@given(st.fixed_dictionaries(dict.fromkeys(("kind", "weight_kg", "reps", "seconds"), ANYTHING)))
def test_a_value_that_is_given_is_above_nothing(fields: dict[str, Any]) -> None:
    assert all(value > 0 for value in record_values(fields).values())


def test_the_librarys_id_makes_two_exercises_the_same() -> None:
    assert exercise_key({"exercise_id": "sq", "name": "Squat"}) == exercise_key(
        {"exercise_id": "sq", "name": "Kniebeuge"}
    )


def test_without_an_id_the_name_does_whatever_its_case_and_spaces() -> None:
    assert exercise_key({"name": " Back  SQUAT "}) == exercise_key({"name": "back squat"})


def test_an_id_is_never_taken_for_a_name() -> None:
    assert exercise_key({"exercise_id": "squat"}) != exercise_key({"name": "squat"})


@pytest.mark.parametrize("fields", [{}, {"name": "  "}, {"name": 5}, {"exercise_id": ""}])
def test_an_exercise_without_a_name_keeps_no_records(fields: dict[str, Any]) -> None:
    assert exercise_key(fields) is None
