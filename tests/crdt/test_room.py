"""One document in memory: what it admits, what it shows, and what a refusal leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from pycrdt import merge_updates

from crdt import ids
from crdt.access import RIGHTS, Member, Right
from crdt.errors import Conflict, Forbidden, Invalid, RepSyncError, Unsynced
from crdt.ids import DocKind, UserId
from crdt.ports import Loaded, Stored
from crdt.records import Award
from crdt.replica import EMPTY_UPDATE, Put, Remove, Replica
from crdt.room import Change, Room
from tests.helpers.replicas import Peer, exercise_fields, set_fields
from tests.helpers.rooms import LEG_DAY, NOW_MS, author, make_room, settle, user

PUSH = ids.template("push")

SERVERS_OWN = {
    DocKind.WORKOUT: [
        "owner_id",
        "status",
        "created_at",
        "started_at",
        "resumed_at",
        "ended_at",
        "active_ms",
        "template_id",
        "template_version",
        "anything",
    ],
    DocKind.TEMPLATE: ["owner_id", "locked", "forked_from", "anything"],
}


def admit(room: Room, update: bytes, who: str = "ana", *, may_write: bool = True) -> Change | None:
    rights = Right.READ | Right.WRITE | Right.MANAGE if may_write else Right.READ
    return room.admit(update, author(who), NOW_MS, rights)


def edit(room: Room, *writes: Any, who: str = "ana") -> Change:
    return room.edit(writes, author(who), NOW_MS, "test")


def peer_of(room: Room) -> Peer:
    """A client that is synced with the room."""
    return Peer(room.name.kind, room.diff())


def reopened(room: Room, *records: bytes) -> Room:
    """The room as it is read from a log of these records."""
    loaded = Loaded(None, records, room.seq, 0, room.members, room.awards)
    return Room(room.name, loaded)


def snapshot(room: Room) -> dict[str, Any]:
    return room.snapshot(members=[], now_ms=NOW_MS)


@pytest.fixture
def room() -> Room:
    return make_room()


@pytest.fixture
def ana(room: Room) -> Peer:
    return peer_of(room)


# -- head and committed -----------------------------------------------------------------------


def test_what_is_admitted_is_shown_once_it_is_durable(room: Room, ana: Peer) -> None:
    before = room.diff()
    admit(room, ana.set("s"))
    assert room.diff() == before
    assert "s" in room.head["sets"]
    assert "s" not in room.view["sets"]
    settle(room)
    assert room.view == room.head == ana.content()


def test_a_room_with_nothing_under_way_is_settled(room: Room, ana: Peer) -> None:
    assert room.is_settled
    assert room.take_batch() is None
    admit(room, ana.set("s"))
    assert not room.is_settled
    batch = room.take_batch()
    assert not room.is_settled
    assert batch is not None
    room.commit(batch, Stored(2))
    assert room.is_settled


def test_an_edit_is_planned_on_what_was_admitted_before(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    edit(room, Put(("sets", "s", "reps"), 6))
    settle(room)
    assert room.view["sets"]["s"]["reps"] == 6


def test_changes_that_wait_become_one_record(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    edit(room, Put(("meta", "title"), "Pull day"), who="ben")
    batch = room.take_batch()
    assert batch is not None
    assert [entry.author.user_id for entry in batch.append.entries] == ["ana", "ben"]
    assert batch.append.update is not None
    ben = Peer(state=room.diff())
    ben.apply(batch.append.update)
    assert ben.content() == room.head


def test_the_next_batch_waits_for_the_one_in_flight(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    first = room.take_batch()
    admit(room, ana.set("t"))
    assert first is not None
    assert room.take_batch() is None
    room.commit(first, Stored(2))
    assert "t" not in room.view["sets"]
    settle(room)
    assert room.view["sets"].keys() == {"s", "t"}


def test_batches_are_committed_in_the_order_in_which_they_were_taken(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    first = room.take_batch()
    assert first is not None
    room.commit(first, Stored(2))
    with pytest.raises(Conflict):
        room.commit(first, Stored(3))


def test_an_edit_without_writes_needs_no_update(room: Room) -> None:
    room.edit([], author(), NOW_MS, "invite", members=[Member(UserId("ben"), "coach", "Ben")])
    batch = room.take_batch()
    assert batch is not None
    assert batch.append.update is None
    commit = room.commit(batch, Stored(1))
    assert (commit.update, room.seq) == (None, 1)
    assert [event.name for event in commit.events] == ["workout:member:changed"]
    assert room.members[UserId("ben")].role == "coach"


def test_a_role_of_nothing_ends_a_membership(room: Room) -> None:
    for role in ("coach", ""):
        room.edit([], author(), NOW_MS, "x", members=[Member(UserId("ben"), role, "Ben")])
        settle(room)
    assert room.members.keys() == {"ana"}


def test_the_first_batch_of_a_new_room_creates_the_document() -> None:
    room = Room(LEG_DAY)
    for creates in (True, False):
        edit(room, Put(("meta", "title"), str(creates)))
        batch = room.take_batch()
        assert batch is not None
        assert batch.append.creates is creates
        room.commit(batch, Stored(1))


def test_the_summary_tells_what_lists_show(room: Room) -> None:
    edit(room, Put(("meta", "title"), "Pull day"), Put(("meta", "started_at"), NOW_MS))
    batch = room.take_batch()
    assert batch is not None
    summary = batch.append.summary
    assert (summary.title, summary.owner_id, summary.status) == ("Pull day", "ana", "planned")
    assert (summary.created_at, summary.started_at, summary.ended_at) == (NOW_MS, NOW_MS, None)


# -- who is told what -------------------------------------------------------------------------


def test_the_sender_of_a_batch_of_its_own_needs_no_copy(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    admit(room, ana.set("t"))
    assert settle(room).sender == "ana-1"


def test_everybody_needs_a_copy_of_what_was_merged_from_two(room: Room, ana: Peer) -> None:
    ben = peer_of(room)
    admit(room, ana.set("s"))
    admit(room, ben.set("t", user_id="ben"), "ben")
    assert settle(room).sender is None


def test_a_client_that_gets_every_commit_has_the_document(room: Room, ana: Peer) -> None:
    ben = peer_of(room)
    for update in (ana.set("s"), ana.patch("sets", "s", reps=6), ana.remove("sets", "s")):
        admit(room, update)
        commit = settle(room)
        assert commit.update is not None
        ben.apply(commit.update)
        assert (ben.content(), ben.vector()) == (room.view, room.state_vector())


def test_the_events_of_a_batch_come_in_the_order_of_its_changes(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    admit(room, ana.patch("sets", "s", reps=6))
    admit(room, ana.remove("sets", "s"))
    events = [event.name.rpartition(":")[2] for event in settle(room).events if event.set_id]
    assert events == ["completed", "updated"]


def test_a_record_is_told_with_the_set_that_won_it(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    admit(room, ana.set("t"))
    won = Award("s", UserId("ana"), "name:squat", "weight", 100, None)
    told = {e.payload["set_id"]: e.payload["is_pr"] for e in settle(room, won_by(won)).events}
    assert told == {"s": True, "t": False}
    assert room.awards == {"s": {"weight": won}}


def test_a_record_is_announced_once_however_often_its_set_changed(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    admit(room, ana.patch("sets", "s", note="easy"))
    won = Award("s", UserId("ana"), "name:squat", "weight", 100, None)
    assert [event.payload["is_pr"] for event in settle(room, won_by(won)).events].count(True) == 1


def won_by(award: Award) -> dict[str, dict[str, Award]]:
    return {award.set_id: {award.type: award}}


@pytest.mark.parametrize(
    ("change", "touches"),
    [
        (lambda peer: peer.set("s"), True),
        (lambda peer: peer.exercise("e"), True),
        (lambda peer: peer.put("meta", "title", "x"), False),
    ],
)
def test_progress_changes_with_sets_and_plans_only(
    room: Room, ana: Peer, change: Callable[[Peer], bytes], touches: bool
) -> None:
    admit(room, change(ana))
    assert settle(room).touches_progress is touches


def test_a_members_name_stands_in_events(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    edit(room, Put(("sets", "t"), set_fields(user_id="zoe")), who="ben")
    told = [event.payload["user"]["name"] for event in settle(room).events]
    assert told == ["Ana", "zoe"]


def test_a_template_tells_its_own_event() -> None:
    room = make_room(PUSH)
    admit(room, peer_of(room).put("meta", "title", "Push"))
    assert [event.name for event in settle(room).events] == ["template:changed"]


# -- what is refused leaves nothing behind ----------------------------------------------------


def garbage(room: Room) -> bytes:
    return b"\x01\x01\x01\x00"


def gap_of_one_client(room: Room) -> bytes:
    peer = peer_of(room)
    peer.set("unseen")
    return peer.set("s")


def gap_between_clients(room: Room) -> bytes:
    other, peer = peer_of(room), peer_of(room)
    peer.apply(other.set("unseen"))
    return peer.patch("sets", "unseen", reps=6)


def gap_with_good_news(room: Room) -> bytes:
    other, peer = peer_of(room), peer_of(room)
    other.set("unseen")
    return merge_updates(peer.set("good"), other.set("later"))


def unknown_deletion(room: Room) -> bytes:
    peer = peer_of(room)
    peer.set("unseen")
    return peer.remove("sets", "unseen")


def bytes_as_a_value(room: Room) -> bytes:
    return peer_of(room).put("meta", "x", b"raw")


def stolen_workout(room: Room) -> bytes:
    def steal(roots: dict[str, Any]) -> None:
        roots["meta"]["title"] = "mine"
        roots["meta"]["owner_id"] = "eve"

    return peer_of(room).change(steal)


def deleted_owner(room: Room) -> bytes:
    return peer_of(room).remove("meta", "owner_id")


REFUSALS = [
    (garbage, Invalid),
    (gap_of_one_client, Unsynced),
    (gap_between_clients, Unsynced),
    (gap_with_good_news, Unsynced),
    (unknown_deletion, Unsynced),
    (bytes_as_a_value, Invalid),
    (stolen_workout, Forbidden),
    (deleted_owner, Forbidden),
]


@pytest.mark.parametrize(("make", "error"), REFUSALS)
@pytest.mark.parametrize("stage", ["settled", "waiting", "in flight"])
def test_a_refused_update_leaves_the_room_as_it_was(
    make: Callable[[Room], bytes], error: type[RepSyncError], stage: str
) -> None:
    room = make_room()
    update = make(room)
    if stage != "settled":
        admit(room, peer_of(room).set("good"))
    batch = room.take_batch() if stage == "in flight" else None
    if batch is not None:
        admit(room, peer_of(room).exercise("waiting"))
    head = deepcopy(room.head)
    vector, content, seq = room.state_vector(), room.diff(), room.seq
    with pytest.raises(error):
        admit(room, update)
    assert room.head == head
    assert (room.state_vector(), room.diff(), room.seq) == (vector, content, seq)
    if batch is not None:
        room.commit(batch, Stored(2))
    if stage != "settled":
        settle(room)
    assert room.view == head


@pytest.mark.parametrize(("make", "error"), REFUSALS)
def test_a_refused_update_is_not_in_the_next_record(
    make: Callable[[Room], bytes], error: type[RepSyncError]
) -> None:
    room = make_room()
    before = room.diff()
    with pytest.raises(error):
        admit(room, make(room))
    admit(room, peer_of(room).set("good"))
    batch = room.take_batch()
    assert batch is not None
    assert batch.append.update is not None
    log = Replica(DocKind.WORKOUT, before)
    assert log.apply(batch.append.update) is not None
    assert log.read() == room.head


def test_an_edit_that_cannot_be_written_leaves_the_room_as_it_was(room: Room) -> None:
    head = deepcopy(room.head)
    with pytest.raises((TypeError, ValueError)):
        edit(room, Put(("meta", "title"), "x"), Put(("meta", "bad"), object()))
    assert room.head == head
    assert room.take_batch() is None


def test_a_client_that_was_refused_may_go_on_after_a_sync(room: Room) -> None:
    ana = peer_of(room)
    ana.set("unsent")
    with pytest.raises(Unsynced):
        admit(room, ana.set("s"))
    admit(room, ana.lacks(room.state_vector()))
    settle(room)
    assert room.view == ana.content()


# -- those who may only read ------------------------------------------------------------------


def test_a_reader_may_answer_a_sync_with_what_is_known(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    admit(room, ana.remove("sets", "s"))
    settle(room)
    reader = peer_of(room)
    assert admit(room, reader.lacks(room.state_vector()), may_write=False) is None
    assert admit(room, reader.lacks(), may_write=False) is None
    assert admit(room, EMPTY_UPDATE, may_write=False) is None
    assert room.is_settled


@pytest.mark.parametrize(
    "change",
    [
        lambda peer: peer.set("t"),
        lambda peer: peer.patch("sets", "s", reps=6),
        lambda peer: peer.remove("sets", "s"),
    ],
)
def test_a_reader_can_neither_write_nor_delete(
    room: Room, ana: Peer, change: Callable[[Peer], bytes]
) -> None:
    admit(room, ana.set("s"))
    settle(room)
    head = deepcopy(room.head)
    with pytest.raises(Forbidden):
        admit(room, change(peer_of(room)), may_write=False)
    assert (room.head, room.is_settled) == (head, True)


def test_a_readers_garbage_is_invalid(room: Room) -> None:
    with pytest.raises(Invalid):
        admit(room, b"\x01\x01\x01\x00", may_write=False)


# -- duplicates, reloads, snapshots -----------------------------------------------------------


def test_a_duplicate_is_no_change(room: Room, ana: Peer) -> None:
    update = ana.set("s")
    assert admit(room, update) is not None
    assert admit(room, update) is None
    settle(room)
    assert admit(room, update) is None
    assert room.take_batch() is None


def test_a_room_read_from_its_log_is_the_same(room: Room) -> None:
    records = [room.diff()]
    ana = peer_of(room)
    for update in (ana.exercise("e"), ana.set("s"), ana.remove("exercises", "e")):
        admit(room, update)
        commit = settle(room)
        assert commit.update is not None
        records.append(commit.update)
    again = reopened(room, *records)
    assert (again.view, again.head) == (room.view, room.view)
    assert (again.state_vector(), again.diff()) == (room.state_vector(), room.diff())
    assert snapshot(again) == snapshot(room)


def test_a_room_read_from_a_snapshot_is_the_same(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    settle(room)
    later = ana.patch("sets", "s", reps=6)
    loaded = Loaded(room.diff(), [later], 3, 2, room.members, {})
    again = Room(room.name, loaded)
    assert again.view == ana.content()
    assert (again.seq, again.snapshot_seq) == (3, 2)


def test_a_compaction_is_remembered_and_never_goes_back(room: Room) -> None:
    room.compacted(5)
    room.compacted(3)
    assert room.snapshot_seq == 5


def test_a_snapshot_shows_the_document(room: Room, ana: Peer) -> None:
    admit(room, ana.exercise("squat"))
    admit(room, ana.set("s"))
    settle(room)
    shown = snapshot(room)
    assert shown["exercises"] == [{**exercise_fields(), "id": "squat"}]
    assert shown["sets"] == [{**set_fields(), "id": "s"}]
    assert shown["version"] == room.seq == 2
    assert room.progress() == shown["progress"]


def test_a_snapshot_shows_nothing_that_is_not_durable(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    assert snapshot(room)["sets"] == []
    preview = room.preview(members=[], roster=[], now_ms=NOW_MS)
    assert [item["id"] for item in preview["sets"]] == ["s"]


def test_rights_follow_the_committed_document(room: Room) -> None:
    edit(room, Put(("meta", "visibility"), "public"))
    assert room.rights(user("ben")) == Right.NONE
    settle(room)
    assert room.rights(user("ben")) == Right.READ


BEN = UserId("ben")


def give(room: Room, role: str) -> Change:
    return room.edit([], author(), NOW_MS, "share", members=[Member(BEN, role, "Ben")])


def test_a_right_counts_once_it_is_durable_and_is_gone_at_once(room: Room) -> None:
    give(room, "coach")
    assert room.rights(user("ben")) == Right.NONE
    settle(room)
    assert room.rights(user("ben")) == RIGHTS[DocKind.WORKOUT]["coach"]
    give(room, "spectator")
    assert room.rights(user("ben")) == Right.READ
    settle(room)
    assert room.rights(user("ben")) == Right.READ
    give(room, "")
    assert room.rights(user("ben")) == Right.NONE


def test_who_sees_a_document_that_is_being_hidden_sees_it_no_more(room: Room) -> None:
    edit(room, Put(("meta", "visibility"), "public"))
    settle(room)
    edit(room, Put(("meta", "visibility"), "private"))
    assert room.rights(user("ben")) == Right.NONE


def test_rights_are_looked_up_once_while_nobodys_change(
    room: Room, ana: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(room, "coach")
    settle(room)
    admit(room, ana.set("s"))
    lookups: list[Any] = []
    monkeypatch.setattr("crdt.room.rights_of", lambda *args: lookups.append(args) or Right.READ)
    room.rights(user("ben"))
    assert len(lookups) == 1


def test_the_roster_is_who_the_members_will_be(room: Room) -> None:
    give(room, "coach")
    assert room.roster[BEN].role == "coach"
    assert BEN not in room.members
    give(room, "")
    assert BEN not in room.roster
    settle(room)
    assert room.members == room.roster


def test_an_intent_that_is_refused_leaves_the_room_as_it_was(room: Room, ana: Peer) -> None:
    admit(room, ana.set("s"))
    head, state = deepcopy(room.head), room.diff()
    writes = [Put(("meta", "title"), "x"), Put(("meta", "status"), "active")]
    rights = RIGHTS[DocKind.WORKOUT]["participant"]
    with pytest.raises(Forbidden):
        room.edit(writes, author("ben"), NOW_MS, "test", rights=rights)
    assert (room.head, room.diff()) == (head, state)
    settle(room)
    assert room.view == ana.content()


def test_removing_and_writing_again_leaves_the_last_word(room: Room) -> None:
    edit(room, Put(("sets", "s"), set_fields()), Remove(("sets", "s")))
    edit(room, Put(("sets", "s"), set_fields(reps=9)))
    settle(room)
    assert room.view["sets"]["s"]["reps"] == 9
