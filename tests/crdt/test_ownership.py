"""Who writes under which Yjs client ID, what a set may name, and when a document is full."""

from __future__ import annotations

from typing import Any

import pytest
from pycrdt import Doc, Map, merge_updates

from crdt import ids
from crdt.access import RIGHTS
from crdt.admission import DocumentLimits
from crdt.errors import Forbidden, Invalid, RepSyncError, TooLarge
from crdt.ids import DocKind, UserId
from crdt.ports import SERVER
from crdt.replica import Put, Remove
from crdt.room import Change, Room
from tests.helpers.replicas import Peer, exercise_fields
from tests.helpers.rooms import NOW_MS, Bench, author, connection, make_room, settle


def admit(room: Room, update: bytes, who: str = "ana") -> Change | None:
    return room.admit(update, author(who), NOW_MS, RIGHTS[room.name.kind]["owner"])


def edit(room: Room, *writes: Any) -> Change:
    return room.edit(writes, author(), NOW_MS, "test")


def peer_of(room: Room) -> Peer:
    return Peer(room.name.kind, room.diff())


def refused(room: Room, update: bytes, who: str = "ana") -> RepSyncError:
    """The error with which an update is refused, which leaves everything as it was."""
    before = room.diff(), room.head, room.is_settled
    with pytest.raises(RepSyncError) as caught:
        admit(room, update, who)
    assert (room.diff(), room.head, room.is_settled) == before
    return caught.value


def limited(**limits: int) -> Room:
    room = Room(ids.workout("small"), limits=DocumentLimits(**limits))
    edit(room, Put(("meta", "owner_id"), "ana"), Put(("meta", "title"), "Small"))
    settle(room)
    return room


@pytest.fixture
def room() -> Room:
    return make_room()


# -- client IDs -------------------------------------------------------------------------------


def test_a_client_id_belongs_to_the_user_who_wrote_under_it_first(room: Room) -> None:
    ana = peer_of(room)
    change = admit(room, ana.set("s"))
    assert change is not None
    assert list(change.entry.client_ids) == [(ana.doc.client_id, UserId("ana"))]
    again = admit(room, ana.set("t"))
    assert again is not None
    assert not again.entry.client_ids


def test_nobody_else_writes_under_it(room: Room) -> None:
    ana = peer_of(room)
    admit(room, ana.set("s"))
    error = refused(room, ana.put("meta", "title", "Stolen"), "ben")
    assert isinstance(error, Forbidden)


def test_nobody_writes_under_the_servers_id(room: Room) -> None:
    (server_id,) = room.client_ids
    assert room.client_ids[server_id] == SERVER
    forged: Doc[Any] = Doc(client_id=server_id)
    sets = forged.get("sets", type=Map)
    forged.apply_update(room.diff())
    vector = forged.get_state()
    sets["s"] = Map({"user_id": "ana"})
    assert isinstance(refused(room, forged.get_update(vector)), Forbidden)


def test_an_update_of_several_is_refused_for_one_of_them(room: Room) -> None:
    ana, ben = peer_of(room), peer_of(room)
    admit(room, ana.set("s"))
    both = merge_updates(ana.put("meta", "title", "Stolen"), ben.set("b", user_id="ben"))
    assert isinstance(refused(room, both, "ben"), Forbidden)


def test_an_update_of_several_new_ids_binds_them_all(room: Room) -> None:
    phone, watch = peer_of(room), peer_of(room)
    change = admit(room, merge_updates(phone.set("s"), watch.set("t")))
    assert change is not None
    mine = UserId("ana")
    assert dict(change.entry.client_ids) == {
        phone.doc.client_id: mine,
        watch.doc.client_id: mine,
    }


def test_what_is_here_already_may_be_sent_by_anybody(room: Room) -> None:
    ana = peer_of(room)
    admit(room, ana.set("s"))
    ben = peer_of(room)
    ben.apply(ana.lacks())
    assert admit(room, ana.lacks(), "ben") is None
    ben.put("exercises", "row", exercise_fields())
    change = admit(room, ben.lacks(), "ben")
    assert change is not None
    assert list(change.entry.client_ids) == [(ben.doc.client_id, UserId("ben"))]


def test_who_only_deletes_needs_no_id(room: Room) -> None:
    ana = peer_of(room)
    admit(room, ana.set("s"))
    tablet = Peer(state=ana.lacks())
    change = admit(room, tablet.remove("sets", "s"))
    assert change is not None
    assert not change.entry.client_ids


def test_a_refused_update_binds_nothing(room: Room) -> None:
    eve = peer_of(room)
    refused(room, eve.put("meta", "status", "completed"), "eve")
    assert eve.doc.client_id not in room.client_ids


async def test_ids_and_removed_exercises_outlive_the_room() -> None:
    bench = Bench()
    await bench.create()
    ana = Peer(state=await bench.state())
    await (await bench.submit(ana.exercise("squat"), connection("ana")))
    await (await bench.submit(ana.remove("exercises", "squat"), connection("ana")))
    await bench.hub.close()
    bench.hub = bench.another_hub()
    async with bench.room() as live:
        ben = connection("ben")
        assert isinstance(refused(live.room, ana.put("meta", "title", "x"), "ben"), Forbidden)
        watch = peer_of(live.room)
        assert admit(live.room, watch.set("s", exercise="squat")) is not None
        assert ben.user.id not in live.room.client_ids.values()


# -- references -------------------------------------------------------------------------------


def test_a_set_names_an_exercise_of_the_plan(room: Room) -> None:
    ana = peer_of(room)
    error = refused(room, ana.set("s", exercise="nowhere"))
    assert isinstance(error, Invalid)
    assert error.details[0]["path"] == "sets.s.exercise"


def test_a_set_may_come_together_with_its_exercise(room: Room) -> None:
    ana = peer_of(room)
    update = merge_updates(ana.exercise("squat"), ana.set("s", exercise="squat"))
    assert admit(room, update) is not None


def test_a_set_may_name_an_exercise_that_was_removed_meanwhile(room: Room) -> None:
    admit(room, peer_of(room).exercise("squat"))
    settle(room)
    coach, lifter = peer_of(room), peer_of(room)
    admit(room, coach.remove("exercises", "squat"), "coach")
    assert admit(room, lifter.set("s", exercise="squat")) is not None
    edit(room, Remove(("sets", "s")))
    assert admit(room, lifter.set("t", exercise="squat")) is not None


def test_a_set_of_no_exercise_is_a_set(room: Room) -> None:
    assert admit(room, peer_of(room).set("s")) is not None


# -- limits -----------------------------------------------------------------------------------


def test_a_workout_takes_so_many_sets_and_no_more() -> None:
    room = limited(max_sets=3)
    ana = peer_of(room)
    for n in range(3):
        admit(room, ana.set(f"s{n}"))
    error = refused(room, ana.set("s3"))
    assert isinstance(error, TooLarge)
    assert error.details == {"count": 4, "limit": 3}


def test_a_full_workout_can_be_corrected_and_emptied() -> None:
    room = limited(max_sets=3)
    ana = peer_of(room)
    for n in range(3):
        admit(room, ana.set(f"s{n}"))
    admit(room, ana.patch("sets", "s0", reps=8))
    swap = ana.change(lambda roots: roots["sets"].pop("s1"))
    admit(room, merge_updates(swap, ana.set("s9")))
    assert room.head["sets"].keys() == {"s0", "s2", "s9"}


def test_intents_find_the_same_limits() -> None:
    room = limited(max_exercises=1)
    edit(room, Put(("exercises", "squat"), exercise_fields()))
    with pytest.raises(TooLarge):
        edit(room, Put(("exercises", "row"), exercise_fields()))
    assert room.head["exercises"].keys() == {"squat"}
    edit(room, Put(("exercises", "squat", "name"), "Front squat"))


def test_a_document_takes_so_many_bytes_and_no_more() -> None:
    room = limited(max_bytes=20_000)
    ana = peer_of(room)
    note = "x" * 3_900
    for n in range(4):
        admit(room, ana.exercise(f"e{n}", note=note))
    held = ana.lacks()
    error = refused(room, ana.exercise("e4", note=note))
    assert isinstance(error, TooLarge)
    assert error.details["limit_bytes"] == 20_000
    edit(room, Put(("exercises", "last"), exercise_fields(note=note)))  # goes a little over
    with pytest.raises(TooLarge):
        edit(room, Put(("exercises", "one-more"), exercise_fields()))
    assert admit(room, held) is None, "what is known takes no space"


def test_what_is_deleted_makes_space() -> None:
    room = limited(max_bytes=20_000)
    ana = peer_of(room)
    note = "x" * 3_900
    for n in range(40):
        admit(room, ana.exercise(f"e{n}", note=note))
        admit(room, ana.remove("exercises", f"e{n}"))
    assert not room.head["exercises"]


def test_only_workouts_have_references() -> None:
    room = make_room(ids.template("push"))
    peer = Peer(DocKind.TEMPLATE, room.diff())
    assert admit(room, peer.exercise("e", sets={})) is not None
