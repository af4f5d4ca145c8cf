"""What leaves a document with a person: the places as well as the content, and for good."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crdt import erasure, ids
from crdt.access import Member
from crdt.errors import RepSyncError
from crdt.ids import DocKind, UserId
from crdt.ports import Stored
from crdt.replica import Put, Remove, Replica
from crdt.revocations import FOR_EVER_MS, Revocation, RevocationList, TokenFacts, hidden
from crdt.room import Room
from crdt.screen import blocks
from tests.helpers.replicas import Peer
from tests.helpers.rooms import NOW_MS, author, make_room, settle, user

ZOE = UserId("zoe-4711")
MARKS = (b"zoe", b"knee")


def marks_in(state: bytes) -> list[bytes]:
    return [mark for mark in MARKS if mark in state]


def training() -> Room:
    """A workout of ana's in which zoe takes part, by events."""
    room = make_room()
    room.edit([Put(("exercises", "squat"), {"name": "Squat"})], author(), NOW_MS, "test")
    room.edit([], author(), NOW_MS, "test", members=[Member(ZOE, "participant", "Zoe")])
    room.edit([*set_of("zoes-set", ZOE), Put(("timers", ZOE), {"x": 1})], author(ZOE), NOW_MS, "x")
    room.edit(set_of("anas-set", "ana"), author(), NOW_MS, "test")
    settle(room)
    return room


def set_of(set_id: str, user_id: str) -> list[Any]:
    fields = {"user_id": user_id, "exercise": "squat", "note": "knee", "order": "a0"}
    return [Put(("sets", set_id), fields if user_id == ZOE else {**fields, "note": ""})]


def erase(room: Room) -> bytes:
    part, _ = room.erase(ZOE, NOW_MS)
    settle(room)
    room.forget(ZOE, part.sets)
    return room.diff()


def test_a_deletion_alone_leaves_the_keys_in_the_state() -> None:
    room = training()
    room.edit([Remove(("sets", "zoes-set")), Remove(("timers", ZOE))], author(ZOE), NOW_MS, "x")
    settle(room)
    assert marks_in(room.diff()) == [b"zoe"]


def test_an_erasure_takes_sets_timers_and_membership_with_their_keys() -> None:
    room = training()
    state = erase(room)
    assert marks_in(state) == []
    assert room.view["sets"].keys() == {"anas-set"}
    assert room.view["timers"] == {}
    assert room.members.keys() == {"ana"}
    assert Replica(DocKind.WORKOUT, state).read() == room.view


def test_an_erasure_may_be_done_again() -> None:
    room = training()
    once = erase(room)
    erase(room)
    assert marks_in(room.diff()) == []
    assert Replica(DocKind.WORKOUT, once).read() == room.view


def test_the_head_goes_on_with_what_was_under_way() -> None:
    room = training()
    part, _ = room.erase(ZOE, NOW_MS)
    batch = room.take_batch()
    assert batch is not None
    room.edit(set_of("later", "ana"), author(), NOW_MS, "test")
    room.commit(batch, Stored(room.seq + 1))
    room.forget(ZOE, part.sets)
    assert room.head["sets"].keys() == {"anas-set", "later"}
    settle(room)
    assert room.view["sets"].keys() == {"anas-set", "later"}
    assert marks_in(room.diff()) == []


def test_texts_go_and_what_others_typed_among_them_stays() -> None:
    room = make_room(ids.template("t"))
    ana, zoe = Peer(DocKind.TEMPLATE, room.diff()), Peer(DocKind.TEMPLATE, room.diff())
    editor = Member(ZOE, "editor", "Zoe")
    room.edit([], author(), NOW_MS, "test", members=[editor])
    rights = room.rights(user())
    update = ana.change(lambda roots: roots["notes"].insert(0, "slow down"))
    room.admit(update, author(), NOW_MS, rights)
    settle(room)
    zoe.apply(update)
    typed = zoe.change(lambda roots: roots["notes"].insert(4, ", my knee,"))
    room.admit(typed, author(ZOE), NOW_MS, room.rights(user(ZOE)))
    settle(room)
    assert marks_in(erase(room)) == []
    assert room.view["notes"] == {"text": "slow down"}


def test_a_document_goes_on_with_who_has_the_most_rights() -> None:
    members = {
        UserId(name): Member(UserId(name), role, name)
        for name, role in (
            (ZOE, "owner"),
            ("ann", "spectator"),
            ("bea", "participant"),
            ("cid", "coach"),
        )
    }
    found = erasure.heir(DocKind.WORKOUT, {"sets": {}, "meta": {}}, members, ZOE)
    assert found == members[UserId("cid")]


def test_a_document_without_others_who_took_part_has_no_heir() -> None:
    members = {ZOE: Member(ZOE, "owner", "Z"), UserId("ann"): Member(UserId("ann"), "viewer", "A")}
    assert erasure.heir(DocKind.TEMPLATE, {"meta": {}}, members, ZOE) is None


def test_sets_that_were_removed_before_are_found_in_the_history() -> None:
    replica = Replica(DocKind.WORKOUT)
    made = replica.write(set_of("gone", ZOE) + set_of("anas", "ana"))
    assert made is not None
    removed = replica.write([Remove(("sets", "gone"))])
    assert removed is not None
    assert erasure.sets_in([made.update, removed.update], ZOE) == {"gone"}


def test_the_blocks_of_an_update_fill_it() -> None:
    state = training().diff()
    found = list(blocks(state))
    inner = found[1:]
    assert all(
        a.end == b.start for a, b in zip(found, inner, strict=False) if a.client_id == b.client_id
    )


def test_tokens_from_before_are_refused_for_ever_and_nobody_can_read_whose() -> None:
    erased = Revocation("erased", hidden("salt", ZOE), FOR_EVER_MS, 1_000)
    known = RevocationList()
    known.add(erased, 0)
    late_ms = FOR_EVER_MS - 1
    assert known.refuses(TokenFacts(ZOE, "t", 1_000), late_ms)
    assert known.refuses(TokenFacts(ZOE), late_ms)
    assert not known.refuses(TokenFacts(ZOE, "t", 1_001), late_ms)
    assert not known.refuses(TokenFacts(UserId("ana"), "t", 1), late_ms)
    assert ZOE not in repr(erased)


def test_an_answer_to_somebody_else_loses_id_and_name() -> None:
    answer = {"user_id": ZOE, "role": "coach", "workout": {"by": [{"id": ZOE, "name": "Zoe"}]}}
    assert erasure.scrubbed({**answer, "progress": {ZOE: 1}}, ZOE) == {
        "user_id": "erased",
        "role": "coach",
        "workout": {"by": [{"id": "erased", "name": "erased"}]},
        "progress": {"erased": 1},
    }


STEPS = st.lists(
    st.sampled_from(
        [
            "zoe sets",
            "zoe types",
            "ana sets",
            "ana offline",
            "ana back",
            "compact",
            "erase",
            "replay",
        ]
    ),
    min_size=3,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_in_whatever_order_things_happen_nothing_of_an_erased_person_comes_back(
    steps: list[str],
) -> None:
    room = training()
    snapshot, old = room.diff(), [room.diff()]
    ana, zoe = Peer(state=snapshot), Peer(state=snapshot)
    is_erased = is_offline = False
    anas: set[str] = {"anas-set"}

    def take(update: bytes, who: str) -> None:
        try:
            change = room.admit(update, author(who), NOW_MS, room.rights(user(who)))
        except RepSyncError:
            assert who == ZOE, "what ana does is hers"
            return
        if change is not None:
            settle(room)

    for number, step in enumerate([*steps, "ana back", "erase", "replay"]):
        if step == "zoe sets":
            fields = {"user_id": ZOE, "exercise": "squat", "note": "knee"}
            take(zoe.put("sets", f"zoe-{number}", fields), ZOE)
        elif step == "zoe types":
            take(zoe.patch("exercises", "squat", note="my knee"), ZOE)
        elif step == "ana sets":
            made = ana.set(f"ana-{number}", exercise="squat")
            anas.add(f"ana-{number}")
            if not is_offline:
                take(made, "ana")
        elif step == "ana offline":
            is_offline = True
        elif step == "ana back":
            take(ana.lacks(room.state_vector()), "ana")
            ana.apply(room.diff(ana.vector()))
            is_offline = False
        elif step == "compact":
            snapshot = room.diff()
            old.append(snapshot)
        elif step == "erase":
            erase(room)
            is_erased = True
        elif step == "replay":
            for state in old:
                take(state, "ana")
        if is_erased:
            assert marks_in(room.diff()) == []
    assert room.view["sets"].keys() == anas
    ana.apply(room.diff(ana.vector()))
    assert ana.content()["sets"].keys() == anas
