"""The workout document: its edits, its state machine, its events, its snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pycrdt import Map

from crdt import workout
from crdt.access import Member
from crdt.errors import Conflict, Forbidden, Invalid, NotFound
from crdt.events import DomainEvent
from crdt.ids import DocKind, UserId
from crdt.records import Award, Score
from crdt.replica import Replica, View, Write
from tests.helpers.replicas import Peer, exercise_fields, set_fields
from tests.helpers.rooms import NOW_MS, new_workout

ANA, BEN = UserId("ana"), UserId("ben")
NAMES = {ANA: "Ana", BEN: "Ben"}


class Document:
    """A workout with its view, edited as the server does it or as a Yjs client does."""

    def __init__(self, *writes: Write) -> None:
        self.replica = Replica(DocKind.WORKOUT)
        self.replica.write([*new_workout(), *writes])

    @property
    def view(self) -> View:
        return self.replica.read()

    def do(self, writes: Sequence[Write]) -> list[DomainEvent]:
        before = self.view
        change = self.replica.write(writes)
        return workout.project("w", before, change.delta, NAMES) if change else []

    def hear(self, edit: Callable[[Peer], bytes]) -> list[DomainEvent]:
        """What members are told when a client makes this change."""
        before, change = self.view, self.replica.apply(edit(Peer(state=self.replica.diff())))
        return workout.project("w", before, change.delta, NAMES) if change else []

    def score(self, edit: Callable[[Peer], bytes]) -> list[Score]:
        before, change = self.view, self.replica.apply(edit(Peer(state=self.replica.diff())))
        assert change is not None
        return workout.scores(before, change.delta)


def plan(*exercise_ids: str) -> Document:
    """A workout with these exercises."""
    document = Document()
    for id_ in exercise_ids:
        document.do(workout.add_exercise(document.view, id_, {"name": id_.title()}))
    return document


def logged(set_id: str = "s", user_id: UserId = ANA, document: Document | None = None) -> Document:
    """A workout with one set in it."""
    document = document or plan("squat")
    document.do(complete(document, set_id, user_id))
    return document


def complete(
    document: Document,
    set_id: str = "s",
    user_id: UserId = ANA,
    exercise_id: str = "squat",
    **measures: Any,
) -> list[Write]:
    return workout.complete_set(
        document.view,
        set_id,
        user_id=user_id,
        exercise_id=exercise_id,
        measures=measures or {"kind": "normal", "weight_kg": 100, "reps": 5},
        completed_at=NOW_MS,
        device_id="phone",
    )


def order_of(document: Document) -> list[str]:
    return [item["id"] for item in snapshot(document)["exercises"]]


def snapshot(document: Document, **parts: Any) -> dict[str, Any]:
    given = {"members": [], "awards": {}, "now_ms": NOW_MS, "version": 1, "roster": [], **parts}
    return workout.snapshot("w", document.view, **given)


def names(events: list[DomainEvent]) -> list[str]:
    return [event.name for event in events]


# -- the state machine ------------------------------------------------------------------------


class Lifecycle(RuleBasedStateMachine):
    """Any intents in any order, on a clock that also steps back, against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.document = Document()
        self.now_ms = NOW_MS
        self.model: dict[str, Any] = {"status": "planned", "active_ms": 0}
        self.since: int | None = None

    @rule(ms=st.integers(-5_000, 60_000))
    def time_passes_or_is_set_back(self, ms: int) -> None:
        self.now_ms += ms

    @rule(action=st.sampled_from(list(workout.TRANSITIONS)))
    def act(self, action: workout.Action) -> None:
        before = self.document.view
        if not self.leads_on(action):
            with pytest.raises(Conflict) as refusal:
                workout.transition(before, action, self.now_ms)
            assert refusal.value.details == {"status": self.model["status"]}
            return
        events = self.document.do(workout.transition(before, action, self.now_ms))
        self.step(action)
        assert (
            names(events)[0]
            == {
                "start": "workout:started",
                "pause": "workout:paused",
                "resume": "workout:resumed",
                "complete": "workout:completed",
                "abandon": "workout:abandoned",
            }[action]
        )

    def leads_on(self, action: str) -> bool:
        status = self.model["status"]
        return {
            "start": status == "planned",
            "pause": status == "active",
            "resume": status == "paused",
            "complete": status in ("active", "paused"),
            "abandon": status in ("active", "paused"),
        }[action]

    def step(self, action: str) -> None:
        if self.since is not None:
            self.model["active_ms"] += max(0, self.now_ms - self.since)
            self.since = None
        if action == "start":
            self.model["started_at"] = self.now_ms
        if action in ("start", "resume"):
            self.since = self.now_ms
            self.model["status"] = "active"
        elif action == "pause":
            self.model["status"] = "paused"
        else:
            self.model["status"] = {"complete": "completed", "abandon": "abandoned"}[action]
            self.model["ended_at"] = self.now_ms

    @invariant()
    def the_document_says_what_the_model_says(self) -> None:
        meta = self.document.view["meta"]
        assert {key: meta.get(key) for key in self.model} == self.model
        assert meta.get("resumed_at") == self.since
        assert meta["active_ms"] >= 0

    @precondition(lambda self: self.model["status"] in ("completed", "abandoned"))
    @invariant()
    def nothing_leads_on_from_the_end(self) -> None:
        for action in workout.TRANSITIONS:
            with pytest.raises(Conflict):
                workout.transition(self.document.view, action, self.now_ms)


class TestLifecycle(Lifecycle.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=40, stateful_step_count=15, deadline=None)


# -- the plan ---------------------------------------------------------------------------------


def test_an_exercise_is_added_at_the_end_unless_said_where() -> None:
    document = plan("a", "b")
    document.do(workout.add_exercise(document.view, "c", {"name": "C"}, before="b"))
    assert order_of(document) == ["a", "c", "b"]
    assert document.view["exercises"]["c"].keys() == {"name", "note", "target", "order"}


def test_two_exercises_of_one_id_are_a_conflict() -> None:
    with pytest.raises(Conflict):
        workout.add_exercise(plan("a").view, "a", {"name": "A"})


def test_an_exercise_is_changed_field_by_field() -> None:
    document = plan("a")
    document.do(workout.update_exercise(document.view, "a", {"rest_s": 90, "name": "New"}))
    document.do(workout.update_exercise(document.view, "a", {"rest_s": None}))
    assert document.view["exercises"]["a"]["name"] == "New"
    assert "rest_s" not in document.view["exercises"]["a"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda view: workout.update_exercise(view, "x", {"name": "X"}),
        lambda view: workout.move_exercise(view, "x", before=None, after=None),
        lambda view: workout.move_exercise(view, "a", before="x", after=None),
        lambda view: workout.remove_exercise(view, "x", ANA),
        lambda view: workout.update_set(view, "x", ANA, {"reps": 1}),
        lambda view: workout.remove_set(view, "x", ANA),
    ],
)
def test_what_is_not_there_is_not_found(edit: Callable[[View], Any]) -> None:
    with pytest.raises(NotFound):
        edit(plan("a").view)


def test_a_change_of_nothing_is_invalid() -> None:
    with pytest.raises(Invalid):
        workout.update_exercise(plan("a").view, "a", {})


def test_a_move_keeps_every_exercise() -> None:
    document = plan("a", "b", "c")
    document.do(workout.move_exercise(document.view, "c", before="a", after=None))
    assert order_of(document) == ["c", "a", "b"]


def test_an_exercise_goes_with_the_users_own_sets() -> None:
    document = logged()
    document.do(workout.remove_exercise(document.view, "squat", ANA))
    assert (document.view["exercises"], document.view["sets"]) == ({}, {})


def test_an_exercise_of_which_others_have_sets_stays() -> None:
    document = logged(user_id=BEN)
    with pytest.raises(Conflict) as refusal:
        workout.remove_exercise(document.view, "squat", ANA)
    assert refusal.value.details == {"user_ids": ["ben"]}


# -- sets -------------------------------------------------------------------------------------


def test_a_set_carries_who_did_it_where_and_when() -> None:
    assert logged().view["sets"]["s"] == set_fields(exercise="squat", device_id="phone")


def test_sets_stand_in_the_order_in_which_they_were_done() -> None:
    document = logged("z")
    logged("a", document=document)
    assert [item["id"] for item in snapshot(document)["sets"]] == ["z", "a"]


def test_the_same_set_sent_again_writes_nothing() -> None:
    assert complete(logged()) == []


@pytest.mark.parametrize(
    "other", [{"user_id": BEN}, {"reps": 6, "weight_kg": 100}, {"weight_kg": 101, "reps": 5}]
)
def test_a_set_id_that_is_taken_is_a_conflict(other: Any) -> None:
    with pytest.raises(Conflict):
        complete(logged(), **other)


def test_a_set_of_an_unknown_exercise_is_not_found() -> None:
    with pytest.raises(NotFound):
        complete(plan("squat"), exercise_id="press")


def test_a_set_is_corrected_by_the_one_who_did_it() -> None:
    document = logged()
    document.do(workout.update_set(document.view, "s", ANA, {"reps": 6, "weight_kg": None}))
    assert document.view["sets"]["s"]["reps"] == 6
    assert "weight_kg" not in document.view["sets"]["s"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda view: workout.update_set(view, "s", BEN, {"reps": 99}),
        lambda view: workout.remove_set(view, "s", BEN),
    ],
)
def test_nobody_else_can_change_a_set(edit: Callable[[View], Any]) -> None:
    with pytest.raises(Forbidden):
        edit(logged().view)


@pytest.mark.parametrize("stray", [5, "text", [1]])
def test_a_stray_value_that_a_client_wrote_stops_nobody(stray: Any) -> None:
    document = plan("squat", "press")
    document.hear(lambda peer: peer.put("sets", "stray", stray))
    document.hear(lambda peer: peer.put("exercises", "stray", stray))
    document.do(complete(document))
    document.do(workout.add_exercise(document.view, "row", {"name": "Row"}))
    document.do(workout.remove_exercise(document.view, "press", ANA))
    assert order_of(document) == ["squat", "row"]


# -- from a template --------------------------------------------------------------------------


def template_view(**exercises: Any) -> View:
    return {"meta": {}, "exercises": exercises, "notes": {"text": ""}}


def copied(view: View) -> Document:
    ids = [f"new{i}" for i in range(len(view["exercises"]))]
    return Document(*workout.copy_template("t", 7, view, ids))


def test_a_set_of_the_template_becomes_a_target() -> None:
    sets = {"y": {"order": "a0", "kind": "warmup"}, "x": {"order": "a1", "kind": "normal"}}
    document = copied(template_view(e=exercise_fields(sets=sets, rest_s=90, note="deep")))
    [exercise] = snapshot(document)["exercises"]
    assert exercise["target"] == [{"kind": "warmup"}, {"kind": "normal"}]
    assert (exercise["id"], exercise["rest_s"], exercise["note"]) == ("new0", 90, "deep")


def test_the_plan_keeps_the_templates_order() -> None:
    view = template_view(
        a=exercise_fields(name="Last", order="a1"), b=exercise_fields(name="First", order="a0")
    )
    assert [item["name"] for item in snapshot(copied(view))["exercises"]] == ["First", "Last"]


def test_the_workout_remembers_which_template_in_which_version() -> None:
    meta = copied(template_view()).view["meta"]
    assert (meta["template_id"], meta["template_version"]) == ("t", 7)


@pytest.mark.parametrize("stray", [5, {"sets": 5}, {"sets": {"s": 5}}, {"order": 5, "note": 5}])
def test_a_stray_value_in_a_template_does_not_stop_the_copy(stray: Any) -> None:
    document = copied(template_view(e=exercise_fields(sets={}), stray=stray))
    assert "Squat" in [item.get("name") for item in snapshot(document)["exercises"]]


# -- events -----------------------------------------------------------------------------------


def test_a_set_is_told_with_its_user_whoever_wrote_it() -> None:
    document = plan("squat")
    [told] = document.do(complete(document))
    [heard] = document.hear(lambda peer: peer.set("t", user_id="ben"))
    assert told.name == heard.name == "workout:set:completed"
    assert told.payload == {
        "workout_id": "w",
        "set_id": "s",
        "set": {**set_fields(exercise="squat", device_id="phone"), "id": "s"},
        "user": {"id": "ana", "name": "Ana"},
        "is_pr": False,
    }
    assert heard.payload["user"] == {"id": "ben", "name": "Ben"}
    assert (told.set_id, heard.set_id) == ("s", "t")


def test_a_changed_set_is_told_as_updated() -> None:
    [told] = logged().hear(lambda peer: peer.patch("sets", "s", reps=6))
    assert (told.name, told.payload["set"]["reps"]) == ("workout:set:updated", 6)


def test_a_removed_set_is_told_with_whose_it_was() -> None:
    [told] = logged().hear(lambda peer: peer.remove("sets", "s"))
    assert told.name == "workout:set:removed"
    assert told.payload == {
        "workout_id": "w",
        "set_id": "s",
        "user": {"id": "ana", "name": "Ana"},
    }
    assert told.set_id is None


def test_a_user_of_whom_no_name_is_known_is_told_by_the_id() -> None:
    [told] = plan("squat").hear(lambda peer: peer.set("t", user_id="zoe"))
    assert told.payload["user"] == {"id": "zoe", "name": "zoe"}


def test_a_change_of_the_plan_is_told_with_the_exercise_as_it_is_now() -> None:
    document = plan("squat")
    [changed] = document.hear(lambda peer: peer.patch("exercises", "squat", rest_s=90))
    [removed] = document.hear(lambda peer: peer.remove("exercises", "squat"))
    assert changed.name == removed.name == "workout:exercise:changed"
    assert changed.payload["exercise"]["rest_s"] == 90
    assert changed.payload["exercise"]["id"] == changed.payload["exercise_id"] == "squat"
    assert removed.payload == {"workout_id": "w", "exercise_id": "squat", "exercise": None}


def test_a_timer_is_told_until_it_is_gone() -> None:
    document = plan()
    timer = {"kind": "rest", "duration_ms": 90_000, "started_at": NOW_MS, "by": "ana"}
    [told] = document.hear(lambda peer: peer.put("timers", "room", timer))
    [gone] = document.hear(lambda peer: peer.remove("timers", "room"))
    assert (told.name, told.payload["key"], told.payload["timer"]) == (
        "workout:timer",
        "room",
        timer,
    )
    assert gone.payload["timer"] is None


def test_a_change_of_the_title_is_told_as_a_change_of_the_workout() -> None:
    [told] = plan().hear(lambda peer: peer.put("meta", "title", "Pull day"))
    assert (told.name, told.payload["meta"]) == ("workout:changed", {"title": "Pull day"})


def test_a_step_of_the_workout_is_told_with_its_times() -> None:
    document = plan()
    started, _ = document.do(workout.transition(document.view, "start", NOW_MS + 5))
    paused, _ = document.do(workout.transition(document.view, "pause", NOW_MS + 105))
    assert started.payload == {
        "workout_id": "w",
        "status": "active",
        "started_at": NOW_MS + 5,
        "resumed_at": NOW_MS + 5,
        "ended_at": None,
        "active_ms": 0,
    }
    assert (paused.name, paused.payload["active_ms"]) == ("workout:paused", 100)
    assert paused.payload["resumed_at"] is None


def test_what_is_written_as_it_was_is_not_told() -> None:
    assert logged().hear(lambda peer: peer.patch("sets", "s", reps=5)) == []


def test_one_transaction_tells_all_that_it_changed() -> None:
    def edit(roots: dict[str, Any]) -> None:
        roots["sets"]["s"]["reps"] = 6
        del roots["exercises"]["squat"]

    told = logged().hear(lambda peer: peer.change(edit))
    assert sorted(names(told)) == ["workout:exercise:changed", "workout:set:updated"]


# -- scores -----------------------------------------------------------------------------------


def scored(scores: list[Score]) -> dict[tuple[str, str], Any]:
    return {(score.user_id, score.exercise): dict(score.values) for score in scores}


def test_a_new_set_competes_under_its_exercises_key() -> None:
    found = plan("squat").score(lambda peer: peer.set("s", exercise="squat"))
    assert scored(found)["ana", "name:squat"].keys() == {"weight", "volume", "e1rm"}


def test_a_removed_set_is_worth_nothing_any_more() -> None:
    found = logged().score(lambda peer: peer.remove("sets", "s"))
    assert scored(found) == {("ana", "name:squat"): {}}


def test_a_corrected_set_competes_with_its_new_values() -> None:
    found = logged().score(lambda peer: peer.patch("sets", "s", weight_kg=90))
    assert scored(found)["ana", "name:squat"]["weight"] == 90


def test_the_sets_of_a_renamed_exercise_count_for_the_new_name() -> None:
    found = logged().score(lambda peer: peer.patch("exercises", "squat", name="Front squat"))
    assert scored(found)["ana", "name:squat"] == {}
    assert scored(found)["ana", "name:front squat"]["weight"] == 100


def test_an_exercise_that_got_the_librarys_id_takes_its_sets_along() -> None:
    found = logged().score(lambda peer: peer.patch("exercises", "squat", exercise_id="sq"))
    assert scored(found)["ana", "name:squat"] == {}
    assert scored(found)["ana", "id:sq"]["weight"] == 100


def test_a_change_of_the_plan_that_keeps_the_name_scores_nothing() -> None:
    assert logged().score(lambda peer: peer.patch("exercises", "squat", rest_s=90)) == []


def test_a_set_keeps_its_worth_when_its_exercise_leaves_the_plan() -> None:
    assert logged().score(lambda peer: peer.remove("exercises", "squat")) == []


def test_a_set_given_to_another_exercise_counts_there_only() -> None:
    document = logged(document=plan("squat", "press"))
    found = document.score(lambda peer: peer.patch("sets", "s", exercise="press"))
    assert scored(found)["ana", "name:squat"] == {}
    assert scored(found)["ana", "name:press"]["weight"] == 100


@pytest.mark.parametrize(
    "changes", [{"exercise": "unknown"}, {"user_id": 5}, {"exercise": None}, {"user_id": None}]
)
def test_a_set_that_belongs_nowhere_scores_nothing(changes: dict[str, Any]) -> None:
    assert plan("squat").score(lambda peer: peer.set("s", **changes)) == []


def test_a_set_and_its_exercise_may_come_in_one_transaction() -> None:
    def edit(roots: dict[str, Any]) -> None:
        roots["exercises"]["squat"] = Map(exercise_fields())
        roots["sets"]["s"] = Map(set_fields(exercise="squat"))

    found = Document().score(lambda peer: peer.change(edit))
    assert ("ana", "name:squat") in scored(found)


# -- the snapshot -----------------------------------------------------------------------------


def test_a_snapshot_has_the_shape_of_the_wire_contract() -> None:
    shown = snapshot(logged())
    assert shown.keys() >= {
        *("id", "title", "status", "mode", "visibility", "owner_id", "template_id"),
        *("exercises", "sets", "timers", "members", "progress", "created_at", "started_at"),
        *("ended_at", "active_ms", "server_time", "version"),
    }
    assert (shown["id"], shown["status"], shown["title"]) == ("w", "planned", "Leg day")
    assert shown["sets"] == [{**set_fields(exercise="squat", device_id="phone"), "id": "s"}]


def test_a_snapshot_counts_progress_and_records() -> None:
    won = Award("s", ANA, "name:squat", "weight", 100, None)
    shown = snapshot(logged(), awards={"s": {"weight": won}}, roster=[Member(ANA, "owner", "Ana")])
    assert shown["progress"]["ana"]["volume_kg"] == 500
    assert [record["type"] for record in shown["progress"]["ana"]["records"]] == ["weight"]


def test_stray_values_are_left_out_of_lists() -> None:
    document = plan("squat")
    document.hear(lambda peer: peer.put("sets", "stray", 5))
    document.hear(lambda peer: peer.put("exercises", "stray", "text"))
    shown = snapshot(document)
    assert ([item["id"] for item in shown["exercises"]], shown["sets"]) == (["squat"], [])


def many_sets() -> Callable[[Peer], bytes]:
    """Ten sets in one transaction, as after a workout without a connection."""

    def edit(roots: dict[str, Any]) -> None:
        for i in reversed(range(10)):
            fields = set_fields(
                exercise="squat", order=f"a{i}", completed_at=NOW_MS + i, weight_kg=100 + i
            )
            roots["sets"][f"s{i}"] = Map(fields)

    return lambda peer: peer.change(edit)


def test_sets_of_one_transaction_compete_in_the_order_in_which_they_were_done() -> None:
    found = plan("squat").score(many_sets())
    assert [score.set_id for score in found] == [f"s{i}" for i in range(10)]


def test_sets_of_one_transaction_are_told_in_the_order_in_which_they_were_done() -> None:
    told = plan("squat").hear(many_sets())
    assert [event.set_id for event in told] == [f"s{i}" for i in range(10)]
