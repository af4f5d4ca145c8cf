"""The checker finds what it is there for: each kind of loss, doubling and difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crdt import ids
from crdt.ids import DocName
from server.auth import Authenticator
from server.keys import GivenKey
from tests.chaos import checker
from tests.chaos.checker import Agreed, Cast
from tests.chaos.clients import (
    Device,
    Edit,
    LoggedSet,
    Op,
    Organiser,
    Phone,
    Racer,
    Register,
    TemplateLaptop,
    Trainer,
    Watcher,
    Watching,
    World,
)
from tests.helpers.clusters import SECRET
from tests.helpers.servers import running_server

WORKOUT, TEMPLATE = ids.workout("group"), ids.template("plan")


class Nowhere(World):
    def token(self, user_id: str) -> str:
        return Authenticator(GivenKey.secret(SECRET)).sign(user_id)

    async def somewhere(self, device: Device) -> str:
        raise NotImplementedError


def logged_set(**changes: Any) -> dict[str, Any]:
    shown = {"id": "s1", "user_id": "ana", "exercise": "x1"}
    return {**shown, "weight_kg": 100, "reps": 5, "note": "phone-1", **changes}


def acked(client: Any, event: str, mark: str, answer: dict[str, Any], **data: Any) -> Op:
    op = Op(event, {"workout_id": "group", **data}, mark, answer={"ok": True, **answer})
    client.ops.append(op)
    return op


class Story:
    """Everybody did one thing, and all of it is there. Tests spoil a part."""

    def __init__(self) -> None:
        world = Nowhere(1)
        self.phone = phone = Phone(world, "phone", "ana")
        acked(phone, "workout:exercise:add", "phone-0", {"exercise_id": "x1"})
        self.completed = acked(phone, "workout:set:complete", "phone-1", {"set_id": "s1"})
        measures = {"weight_kg": 100, "reps": 5, "note": "phone-1"}
        self.logged = LoggedSet([(measures, 1)], set_id="s1", workout_id="group", exercise_id="x1")
        phone.sets["s1"] = self.logged
        self.racers = [Racer(world, f"lane-{n}", "rae", "group") for n in range(2)]
        record = {"type": "weight", "value": 50.0, "previous": None}
        for number, racer in enumerate(self.racers):
            won = [record] if number == 0 else []
            set_id, mark = f"r{number}", f"lane-{number}"
            acked(racer, "workout:set:complete", mark, {"set_id": set_id, "records": won})
        self.organiser = Organiser(world, "olga", "olga", "group")
        self.organiser.status = Register([("paused", 1)])
        self.organiser.guests["gus"] = Register([("coach", 1)])
        self.trainer = Trainer(world, "tablet", "ben", "plan")
        self.trainer.goal = Register([("strong", 1)])
        self.laptop = TemplateLaptop(world, "laptop", "ana", TEMPLATE)
        self.laptop.edits = [Edit("laptop-0", is_acked=True)]
        self.watcher = Watcher(world, "screen", "wes", "group")
        told = {"workout_id": "group", "set_id": "s1", "set": logged_set()}
        paused = {"workout_id": "group", "status": "paused", "active_ms": 5}
        base = {"status": "active", "sets": [], "exercises": []}
        self.events: list[tuple[str, dict[str, Any]]] = [
            ("workout:set:completed", told),
            ("workout:paused", paused),
        ]
        self.watcher.watchings = [Watching(base, self.events)]
        self.workout: dict[str, Any] = {
            "id": "group",
            "status": "paused",
            "exercises": [{"id": "x1", "name": "phone-0"}],
            "sets": [logged_set(), *(logged_set(id=f"r{n}", note=f"lane-{n}") for n in range(2))],
            "members": [
                {"user": {"id": "gus"}, "role": "coach", "devices": []},
                {"user": {"id": "wes"}, "role": "spectator", "devices": [{"id": "screen"}]},
            ],
            "progress": {"rae": {"records": [{"set_id": "r0", **record}]}},
        }
        self.template: dict[str, Any] = {"id": "plan", "goal": "strong"}
        self.content: dict[str, Any] = {
            "notes": "[laptop-0]",
            "exercises": {"laptop-0": {"name": "laptop-0"}},
        }

    def check(self) -> None:
        cast = Cast(
            {WORKOUT: "ana", TEMPLATE: "ana"},
            phones=[self.phone],
            racers=self.racers,
            organisers=[self.organiser],
            trainers=[self.trainer],
            laptops=[self.laptop],
            watchers=[self.watcher],
        )
        snapshots: dict[DocName, dict[str, Any]] = {WORKOUT: self.workout, TEMPLATE: self.template}
        checker.check_logs(cast, Agreed(snapshots, {TEMPLATE: self.content}))

    # -- what may go wrong ------------------------------------------------------------------

    def an_acked_set_is_lost(self) -> None:
        del self.workout["sets"][0]

    def an_acked_set_is_there_twice(self) -> None:
        self.workout["sets"].append(logged_set(id="s2"))

    def a_set_has_what_nobody_wrote(self) -> None:
        self.workout["sets"][0]["reps"] = 6

    def a_set_has_a_value_that_was_corrected(self) -> None:
        self.logged.begin(self.completed, {"weight_kg": 100, "reps": 8, "note": "phone-1"})
        self.logged.settle(2, is_one_server=True)

    def a_set_is_somebody_elses(self) -> None:
        self.workout["sets"][0]["user_id"] = "ben"

    def a_removed_set_is_there(self) -> None:
        self.logged.begin(self.completed, None)
        self.logged.settle(1, is_one_server=False)

    def an_acked_exercise_is_lost(self) -> None:
        self.workout["exercises"].clear()

    def a_refused_op_was_carried_out(self) -> None:
        self.completed.answer, self.completed.is_refused = None, True

    def an_op_was_never_answered(self) -> None:
        self.completed.answer = None

    def an_abandoned_op_was_carried_out_twice(self) -> None:
        self.completed.answer, self.completed.is_abandoned = None, True
        self.an_acked_set_is_there_twice()

    def a_record_was_won_by_two(self) -> None:
        answer = self.racers[1].ops[0].answer
        assert answer is not None
        answer["records"] = [{"type": "weight", "value": 50.0, "previous": None}]

    def a_snapshot_shows_a_record_that_another_has_won(self) -> None:
        self.workout["progress"]["rae"]["records"][0]["set_id"] = "r1"

    def a_set_has_a_record_twice(self) -> None:
        self.workout["progress"]["rae"]["records"] *= 2

    def the_status_is_another(self) -> None:
        self.workout["status"] = "active"

    def a_guest_was_forgotten(self) -> None:
        del self.workout["members"][0]

    def a_guest_has_another_role(self) -> None:
        self.workout["members"][0]["role"] = "spectator"

    def a_goal_is_an_old_one(self) -> None:
        self.template["goal"] = "weak"

    def an_acked_edit_is_lost(self) -> None:
        self.content.update(notes="", exercises={})

    def an_edit_was_applied_twice(self) -> None:
        self.content["notes"] *= 2

    def an_edit_was_applied_by_half(self) -> None:
        self.content["exercises"].clear()

    def a_set_was_told_twice(self) -> None:
        self.events.append(self.events[0])

    def a_transition_was_told_twice(self) -> None:
        self.events.append(self.events[1])

    def somebody_who_left_is_shown(self) -> None:
        self.workout["members"][0]["devices"] = [{"id": "phone"}]

    def somebody_who_is_there_is_not_shown(self) -> None:
        self.workout["members"][1]["devices"] = []


FAULTS = {
    name: fault
    for name, fault in vars(Story).items()
    if not name.startswith("_") and name != "check"
}


async def test_a_story_without_a_fault_passes() -> None:
    Story().check()


@pytest.mark.parametrize("spoil", FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_is_found(spoil: Callable[[Story], None]) -> None:
    story = Story()
    spoil(story)
    with pytest.raises(AssertionError):
        story.check()


async def test_an_op_that_was_given_up_may_be_there_or_not() -> None:
    story = Story()
    story.completed.answer, story.completed.is_abandoned = None, True
    story.phone.sets.clear()
    story.check()
    story.an_acked_set_is_lost()
    story.check()


async def test_a_watcher_keeps_up_by_events_alone() -> None:
    story = Story()
    (watching,) = story.watcher.watchings
    assert checker.kept_up(watching) == {
        "status": "paused",
        "sets": {"s1": logged_set()},
        "exercises": {},
    }
    story.events.append(("workout:set:removed", {"workout_id": "group", "set_id": "s1"}))
    assert checker.kept_up(watching)["sets"] == {}


def test_a_value_takes_the_place_of_those_that_its_server_had_seen() -> None:
    register = Register([("old", 1)])
    register.begin(Op("e", {}, "m"), "new")
    assert register.allows("old")
    assert register.allows("new")
    register.settle(1, is_one_server=False)
    assert not register.allows("old")
    register.begin(Op("e", {}, "m"), "elsewhere")
    register.settle(2, is_one_server=False)
    assert register.allows("new")  # the other server may not have seen it
    assert register.allows("elsewhere")


def test_what_a_server_shows_it_has_seen() -> None:
    register = Register([("old", 1)])
    register.saw("old", 2)
    register.begin(Op("e", {}, "m"), "new")
    register.settle(2, is_one_server=False)
    assert not register.allows("old")


def test_a_server_that_shows_nothing_may_have_heard_of_nothing() -> None:
    register = Register([("there", 1)])
    register.begin(Op("e", {}, "m"), None)
    register.settle(1, is_one_server=False)
    assert register.is_known_at(1)
    register.saw(None, 2)
    assert not register.is_known_at(2)


def test_a_server_that_shows_what_was_written_twice_may_have_heard_of_the_first_alone() -> None:
    register = Register([("coach", 1)])
    for value in ("spectator", "coach"):
        register.begin(Op("e", {}, "m"), value)
        register.settle(1, is_one_server=False)
    register.saw("coach", 2)
    register.begin(Op("e", {}, "m"), "participant")
    register.settle(2, is_one_server=False)
    assert register.allows("coach")


def test_what_was_refused_is_not_possible() -> None:
    register = Register([("old", 1)])
    register.begin(Op("e", {}, "m"), "new")
    register.give_up()
    assert not register.allows("new")
    assert register.is_known_at(1)


async def test_servers_that_show_different_things_are_found(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path / "one", jwt_secret=SECRET) as one,
        running_server(tmp_path / "two", jwt_secret=SECRET) as two,
    ):
        for server, title in ((one, "Leg day"), (two, "Pull day")):
            phone = await server.events("ana")
            await phone.do("workout:create", {"workout_id": "group", "title": title})
            await phone.do("workout:leave", {"workout_id": "group"})
        world, cast = Nowhere(1), Cast({WORKOUT: "ana"})
        assert await checker.agreement(world, cast, [one.url])
        with pytest.raises(AssertionError, match="not equal"):
            await checker.agreement(world, cast, [one.url, two.url], timeout_s=0.5)
