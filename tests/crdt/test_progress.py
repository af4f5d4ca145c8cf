"""How far everybody has come."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crdt.access import Member
from crdt.ids import UserId
from crdt.progress import progress
from crdt.records import Award
from tests.helpers.replicas import exercise_fields, set_fields

ANA = Member(UserId("ana"), "owner", "Ana")
NOTHING = {"sets_done": 0, "volume_kg": 0, "reps": 0, "best": {}, "records": []}


def measured(**fields: Any) -> dict[str, Any]:
    """A set of ana's with only these measures."""
    bare = {"weight_kg": None, "reps": None, "exercise": "squat", **fields}
    return {key: value for key, value in set_fields(**bare).items() if value is not None}


def shown(
    *sets: Any,
    exercises: Any = None,
    awards: Any = None,
    roster: tuple[Member, ...] = (ANA,),
) -> dict[str, dict[str, Any]]:
    view = {
        "meta": {},
        "exercises": exercises or {},
        "sets": {f"s{i}": fields for i, fields in enumerate(sets)},
        "timers": {},
    }
    return progress(view, awards or {}, roster)


def award(type_: str, value: float, previous: float | None = None) -> dict[str, Any]:
    won = Award("s0", UserId("ana"), "name:squat", type_, value, previous)  # type: ignore[arg-type]
    return {"s0": {type_: won}}


def test_who_has_done_nothing_is_shown_with_nothing() -> None:
    assert shown() == {"ana": {**NOTHING, "sets_planned": 0}}


@pytest.mark.parametrize(
    ("role", "is_shown"),
    [("owner", True), ("participant", True), ("coach", False), ("spectator", False)],
)
def test_only_those_who_train_are_shown(role: str, is_shown: bool) -> None:
    assert ("ben" in shown(roster=(Member(UserId("ben"), role, "Ben"),))) is is_shown


def test_a_coach_who_logs_a_set_trains() -> None:
    coach = Member(UserId("ben"), "coach", "Ben")
    assert (
        shown(set_fields(exercise="squat", user_id="ben"), roster=(coach,))["ben"]["sets_done"] == 1
    )


def test_planned_sets_are_counted_for_everybody() -> None:
    exercises = {
        "a": exercise_fields(target=[{"kind": "normal"}] * 3),
        "b": exercise_fields(target=[{"kind": "warmup"}]),
        "c": exercise_fields(target="three"),
        "d": 5,
    }
    assert shown(exercises=exercises)["ana"]["sets_planned"] == 4


def test_volume_and_reps_add_up_over_all_exercises() -> None:
    mine = shown(
        measured(weight_kg=100, reps=5), measured(weight_kg=20.5, reps=10, exercise="press")
    )["ana"]
    assert (mine["volume_kg"], mine["reps"], mine["sets_done"]) == (705, 15, 2)


@pytest.mark.parametrize("kind", ["normal", "drop", "failure"])
def test_every_kind_but_a_warm_up_counts_for_volume(kind: str) -> None:
    mine = shown(measured(kind=kind, weight_kg=100, reps=5), measured(kind="warmup", reps=9))["ana"]
    assert (mine["volume_kg"], mine["reps"], mine["sets_done"]) == (500, 5, 2)


def test_the_best_of_each_exercise_is_kept_apart() -> None:
    mine = shown(
        measured(weight_kg=100, reps=5),
        measured(weight_kg=90, reps=12),
        measured(seconds=60, exercise="plank"),
        measured(seconds=75, exercise="plank"),
        measured(reps=15, exercise="pull-up"),
    )["ana"]
    assert mine["best"] == {
        "squat": {"weight_kg": 100, "reps": 12, "volume_kg": 1_080, "e1rm_kg": 126},
        "plank": {"seconds": 75},
        "pull-up": {"reps": 15},
    }


def test_warm_ups_are_nobodys_best() -> None:
    assert shown(measured(kind="warmup", weight_kg=200, reps=1))["ana"]["best"] == {}


def test_numbers_are_rounded_to_a_gram_and_whole_where_they_are() -> None:
    mine = shown(measured(weight_kg=33.3333, reps=3), measured(weight_kg=0.1, reps=3))["ana"]
    assert mine["volume_kg"] == 100.3
    assert json.dumps(shown(measured(weight_kg=100.0, reps=5))["ana"]["volume_kg"]) == "500"


def test_the_records_of_a_set_are_listed_with_it() -> None:
    mine = shown(measured(weight_kg=100, reps=5), awards=award("weight", 100, 90))["ana"]
    assert mine["records"] == [
        {"set_id": "s0", "exercise": "squat", "type": "weight", "value": 100, "previous": 90}
    ]


@pytest.mark.parametrize(
    ("fields", "is_listed"),
    [
        ({"weight_kg": 95, "reps": 5}, True),
        ({"weight_kg": 90, "reps": 5}, False),
        ({"weight_kg": 100, "reps": 5, "kind": "warmup"}, False),
        ({"seconds": 60}, False),
    ],
)
def test_a_record_that_a_set_no_longer_deserves_is_not_listed(
    fields: dict[str, Any], is_listed: bool
) -> None:
    mine = shown(measured(**fields), awards=award("weight", 100, 90))["ana"]
    assert bool(mine["records"]) is is_listed


def test_a_record_of_a_removed_set_is_not_listed() -> None:
    assert shown(awards=award("weight", 100))["ana"]["records"] == []


@pytest.mark.parametrize("stray", [5, None, "text", {"user_id": 7}, {"reps": 5}])
def test_a_set_that_is_nobodys_is_passed_over(stray: Any) -> None:
    assert shown(stray) == {"ana": {**NOTHING, "sets_planned": 0}}


@pytest.mark.parametrize("value", ["5", True, None, [5], {"kg": 5}])
def test_measures_that_are_no_numbers_count_as_none(value: Any) -> None:
    mine = shown(measured() | {"weight_kg": value, "reps": value, "seconds": value})["ana"]
    assert (mine["volume_kg"], mine["reps"], mine["sets_done"]) == (0, 0, 1)


@pytest.mark.parametrize("huge", [1e308, int(1e308), 1e200], ids=["float", "int", "less"])
def test_numbers_beyond_reason_break_nothing(huge: float) -> None:
    # Any Yjs client can write them; nobody could open the workout any more.
    sets = [measured(weight_kg=huge, reps=huge), measured(weight_kg=2.5, reps=3)]
    assert json.dumps(shown(*sets), allow_nan=False)


def test_progress_does_not_depend_on_the_order_in_which_a_map_hands_out_its_sets() -> None:
    sets = {
        "b": set_fields(exercise="squat", order="a0"),
        "a": set_fields(exercise="squat", order="a1", weight_kg=120),
    }
    awards = {id_: {"weight": Award(id_, UserId("ana"), "x", "weight", 1, None)} for id_ in sets}
    views = [
        {"meta": {}, "exercises": {}, "sets": {id_: sets[id_] for id_ in ids}, "timers": {}}
        for ids in (["a", "b"], ["b", "a"])
    ]
    first, second = (progress(view, awards, [ANA]) for view in views)
    assert first == second
