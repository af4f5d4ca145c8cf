"""One document open on several instances: whatever the order in which their changes reach the log,
and however far each has read, all show the same, and what they show is what the log makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crdt.access import Member, Right
from crdt.errors import Conflict, RepSyncError
from crdt.events import DomainEvent
from crdt.ids import UserId
from crdt.ports import Foreign, Loaded, Stored
from crdt.records import Award
from crdt.replica import Put, Remove
from crdt.room import Batch, Room
from tests.helpers.replicas import Peer, exercise_fields, set_fields
from tests.helpers.rooms import LEG_DAY, NOW_MS, author, make_room

ALL = Right.READ | Right.WRITE | Right.MANAGE | Right.RUN
EXERCISES, SETS, USERS = ("squat", "row"), ("s1", "s2", "s3"), ("ana", "ben")


@dataclass
class Instance:
    """A room, and how far it has read the log."""

    room: Room
    read: int = 0
    batch: Batch | None = None
    peer: Peer = field(default_factory=Peer)
    told: list[DomainEvent] = field(default_factory=list)


class World:
    """Instances around one log, which are moved on step by step."""

    def __init__(self, count: int) -> None:
        first = make_room()
        base = first.diff()
        loaded = Loaded(base, [], 0, 0, first.members, {}, dict(first.client_ids))
        self.loaded = loaded
        self.log: list[tuple[Instance, Batch]] = []
        self.instances = []
        for _ in range(count):
            one = Instance(Room(LEG_DAY, loaded, is_shared=True))
            one.peer.apply(base)
            self.instances.append(one)

    def edit(self, at: Instance, who: str, what: tuple[Any, ...]) -> None:
        try:
            if what[0] == "intent":
                at.room.edit([what[1]], author(who), NOW_MS, "test")
            elif what[0] == "member":
                at.room.edit([], author(who), NOW_MS, "test", members=[what[1]])
            else:
                at.peer.apply(at.room.diff())
                at.room.admit(what[1](at.peer), author(who), NOW_MS, ALL)
        except RepSyncError:
            pass  # refused: it is as before

    def append(self, at: Instance) -> None:
        if at.batch is None and (batch := at.room.take_batch()) is not None:
            at.batch = batch
            self.log.append((at, batch))

    def read(self, at: Instance) -> None:
        """Take in the next record: our own, or somebody else's."""
        if at.read == len(self.log):
            return
        writer, batch = self.log[at.read]
        at.read += 1
        if writer is at:
            assert batch is at.batch
            at.batch = None
            commit = at.room.commit(batch, Stored(at.read))
        else:
            entries = batch.append.entries
            commit = at.room.receive(
                Foreign(
                    at.read,
                    batch.append.update,
                    {entry.author.user_id: entry.author.name for entry in entries},
                    [member for entry in entries for member in entry.members],
                    [bound for entry in entries for bound in entry.client_ids],
                    [id_ for entry in entries for id_ in entry.removed_exercises],
                )
            )
        at.told += commit.events

    def settle(self) -> None:
        for _ in range(2):
            for at in self.instances:
                while at.read < len(self.log) or at.batch is not None:
                    self.read(at)
                self.append(at)
        for at in self.instances:
            while at.read < len(self.log):
                self.read(at)


def _patch(set_id: str, **fields: Any) -> Any:
    def change(peer: Peer) -> bytes:
        if set_id not in peer.roots["sets"]:
            return b"\x00\x00"
        return peer.patch("sets", set_id, **fields)

    return change


CHANGES = st.one_of(
    st.builds(
        lambda set_id, reps, who: (
            "intent",
            Put(("sets", set_id), set_fields(user_id=who, exercise="squat", reps=reps)),
        ),
        st.sampled_from(SETS),
        st.integers(1, 20),
        st.sampled_from(USERS),
    ),
    st.builds(
        lambda set_id, reps: ("intent", Put(("sets", set_id, "reps"), reps)),
        st.sampled_from(SETS),
        st.integers(1, 20),
    ),
    st.builds(lambda set_id: ("intent", Remove(("sets", set_id))), st.sampled_from(SETS)),
    st.builds(
        lambda id_, name: ("intent", Put(("exercises", id_), exercise_fields(name=name))),
        st.sampled_from(EXERCISES),
        st.sampled_from(["Row", "Squat", "Press"]),
    ),
    st.builds(
        lambda status: ("intent", Put(("meta", "status"), status)),
        st.sampled_from(["active", "paused", "completed"]),
    ),
    st.builds(
        lambda who, role: ("member", Member(UserId(who), role, who)),
        st.sampled_from(USERS),
        st.sampled_from(["coach", "participant", ""]),
    ),
    st.builds(
        lambda title: ("client", lambda peer: peer.put("meta", "title", title)),
        st.sampled_from(["A", "B", "C"]),
    ),
    st.builds(
        lambda set_id, reps: ("client", _patch(set_id, reps=reps)),
        st.sampled_from(SETS),
        st.integers(21, 40),
    ),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), st.integers(0, 2), st.sampled_from(USERS), CHANGES),
        st.tuples(st.sampled_from(["append", "read", "read"]), st.integers(0, 2)),
    ),
    max_size=60,
)


@given(STEPS)
def test_all_instances_show_what_the_log_makes(steps: list[tuple[Any, ...]]) -> None:
    world = World(3)
    for step in steps:
        at = world.instances[step[1]]
        if step[0] == "edit":
            world.edit(at, step[2], step[3])
        elif step[0] == "append":
            world.append(at)
        else:
            world.read(at)
    world.settle()
    records = [batch.append.update for _, batch in world.log if batch.append.update is not None]
    truth = Room(
        LEG_DAY,
        Loaded(world.loaded.snapshot, records, len(world.log), 0, world.loaded.members, {}),
    )
    for at in world.instances:
        assert at.room.is_settled
        assert at.room.view == truth.view
        assert at.room.head == truth.view
        assert at.room.state_vector() == truth.state_vector()
        assert at.room.seq == len(world.log)
        assert at.room.members == at.room.roster == world.instances[0].room.members
        assert at.room.client_ids == world.instances[0].room.client_ids


def two() -> tuple[World, Instance, Instance]:
    world = World(2)
    return world, *world.instances


def test_an_event_is_told_on_both_instances_once() -> None:
    world, here, there = two()
    world.edit(here, "ana", ("intent", Put(("sets", "s9"), set_fields(exercise="squat"))))
    world.append(here)
    world.settle()
    for at in (here, there):
        assert [event.name for event in at.told] == ["workout:set:completed"]
        assert at.told[0].payload["user"] == {"id": "ana", "name": "Ana"}


def test_what_was_overtaken_is_shown_as_it_is_in_the_end() -> None:
    world, here, there = two()
    for at, title in ((here, "Mine"), (there, "Theirs")):
        world.edit(at, "ana", ("intent", Put(("meta", "title"), title)))
        world.append(at)
    world.settle()
    assert here.room.view["meta"]["title"] == there.room.view["meta"]["title"]


def test_a_record_says_on_every_instance_that_it_was_won() -> None:
    _, _, there = two()
    peer = Peer(state=there.room.diff())
    update = peer.put("sets", "s9", set_fields(exercise="squat"))
    award = Award("s9", UserId("ana"), "name:squat", "weight", 100, None)
    commit = there.room.receive(
        Foreign(1, update, {UserId("ana"): "Ana"}, awards={"s9": {"weight": award}})
    )
    assert [event.payload["is_pr"] for event in commit.events] == [True]
    assert there.room.awards["s9"] == {"weight": award}


def test_who_was_put_out_elsewhere_is_out_here() -> None:
    _, _, there = two()
    commit = there.room.receive(Foreign(1, None, members=[Member(UserId("ana"), "", "Ana")]))
    assert commit.touches_access
    assert "ana" not in there.room.members
    assert "ana" not in there.room.roster


def test_what_was_missed_is_told_as_if_it_happened_now() -> None:
    world, here, there = two()
    client = Peer(state=there.room.diff())
    done = Put(("sets", "s9"), set_fields(exercise="squat"))
    world.edit(here, "ana", ("intent", done))
    world.append(here)
    world.read(here)
    missed = here.room.since(there.room)
    assert [event.name for event in missed.events] == ["workout:set:completed"]
    assert missed.update is not None
    client.apply(missed.update)  # who does not know that they have to sync again
    assert "s9" in client.roots["sets"]
    nothing = here.room.since(here.room)
    assert (nothing.events, nothing.update) == ([], None)


def test_a_change_of_the_status_names_the_last_position_that_was_seen() -> None:
    _, here, _ = two()
    here.room.receive(Foreign(7, None))
    here.room.edit([Put(("meta", "status"), "paused")], author(), NOW_MS, "test")
    here.room.receive(Foreign(8, None))
    batch = here.room.take_batch()
    assert batch is not None
    assert batch.append.status_seen == 7


def test_only_the_batch_that_was_taken_can_be_committed() -> None:
    _, here, there = two()
    here.room.edit([Put(("meta", "title"), "x")], author(), NOW_MS, "test")
    batch = here.room.take_batch()
    assert batch is not None
    try:
        there.room.commit(batch, Stored(1))
    except Conflict:
        return
    raise AssertionError("somebody else's batch was committed")
