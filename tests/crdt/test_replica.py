"""One copy of a document: what it takes in, what it refuses, what it tells of a change."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycrdt import Array, Map, Text, merge_updates

from crdt.errors import Invalid, Unsynced
from crdt.ids import DocKind
from crdt.replica import EMPTY_UPDATE, GONE, Put, Remove, Replica, apply_delta
from crdt.wire import var_uint
from tests.helpers.replicas import Peer, set_fields
from tests.helpers.yjs_v1 import DELETED, Section, Struct, Update, parse

EMOJI = "héy 🏋️ žluť"


def workout_replica(*updates: bytes) -> Replica:
    replica = Replica(DocKind.WORKOUT)
    for update in updates:
        replica.load(update)
    return replica


def template_replica(note: str = "") -> Replica:
    replica = Replica(DocKind.TEMPLATE)
    replica.write([Put(("exercises", "e"), {"name": "Squat", "note": note, "sets": {}})])
    return replica


def note_of(replica: Replica) -> str:
    return str(replica.read()["exercises"]["e"]["note"])


# -- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [5, 5.5, 0, -3, 2**53 - 1, True, None, "", EMOJI, [1, {"a": 2}]])
def test_a_value_comes_back_as_json_shows_it(value: Any) -> None:
    replica = workout_replica()
    replica.write([Put(("meta", "x"), value), Put(("sets", "s"), {"x": value})])
    view = replica.read()
    assert (view["meta"]["x"], view["sets"]["s"]["x"]) == (value, value)
    assert type(view["sets"]["s"]["x"]) is type(value)


def test_a_whole_number_is_an_int_wherever_it_stands() -> None:
    replica = workout_replica(Peer().set("s", weight_kg=100.0, target=[{"reps": 5.0}]))
    fields = replica.read()["sets"]["s"]
    assert repr((fields["weight_kg"], fields["target"])) == "(100, [{'reps': 5}])"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_does_not_know_is_shown_as_nothing(value: float) -> None:
    ana = Peer()
    replica = workout_replica(ana.put("meta", "x", value), ana.put("sets", "s", {"x": value}))
    assert replica.read()["meta"]["x"] is replica.read()["sets"]["s"]["x"] is None


def test_a_value_that_json_does_not_know_is_invalid() -> None:
    with pytest.raises(Invalid):
        workout_replica().apply(Peer().put("meta", "x", b"raw"))


def test_an_item_is_a_map_whose_fields_merge() -> None:
    replica = workout_replica()
    replica.write([Put(("sets", "s"), {"reps": 5, "weight_kg": 100})])
    ana, ben = Peer(state=replica.diff()), Peer(state=replica.diff())
    replica.apply(ana.patch("sets", "s", reps=6))
    replica.apply(ben.patch("sets", "s", weight_kg=105))
    assert replica.read()["sets"]["s"] == {"reps": 6, "weight_kg": 105}


def test_the_maps_of_a_template_nest() -> None:
    replica = template_replica("deep")
    replica.write([Put(("exercises", "e", "sets", "s"), {"reps": 5})])
    ana = Peer(DocKind.TEMPLATE, replica.diff())
    exercise = ana.roots["exercises"]["e"]
    assert isinstance(exercise["note"], Text)
    assert isinstance(exercise["sets"]["s"], Map)
    assert ana.content()["exercises"]["e"]["sets"] == {"s": {"reps": 5}}


def test_an_item_that_a_client_wrote_as_a_plain_value_becomes_a_map_when_edited() -> None:
    ana = Peer()
    update = ana.change(lambda roots: roots["sets"].__setitem__("s", [1]))
    replica = workout_replica(update)
    replica.write([Put(("sets", "s", "reps"), 5)])
    assert replica.read()["sets"]["s"] == {"reps": 5}


def test_removing_what_is_not_there_changes_nothing() -> None:
    replica = workout_replica()
    gone = [Remove(("sets", "s")), Remove(("sets", "s", "reps")), Remove(("meta", "title"))]
    assert replica.write(gone) is None
    assert replica.diff() == EMPTY_UPDATE


def test_a_failed_write_spoils_the_replica() -> None:
    replica = workout_replica()
    with pytest.raises((TypeError, ValueError)):
        replica.write([Put(("meta", "title"), object())])
    assert replica.spoiled


# -- texts ------------------------------------------------------------------------------------


@given(st.text("aé🏋️ž", max_size=6), st.text("aé🏋️ž", max_size=6))
def test_a_text_can_be_retyped_into_any_other(before: str, after: str) -> None:
    replica = template_replica(before)
    replica.write([Put(("exercises", "e", "note"), after), Put(("notes",), after)])
    assert note_of(replica) == replica.read()["notes"]["text"] == after


def test_a_text_edited_in_place_keeps_what_another_types_meanwhile() -> None:
    replica = template_replica("keep 🏋️ going")
    ben = Peer(DocKind.TEMPLATE, replica.diff())
    typed = ben.change(lambda roots: roots["exercises"]["e"]["note"].insert(0, "Ben: "))
    replica.write([Put(("exercises", "e", "note"), "keep 🏋️ going, slowly")])
    replica.apply(typed)
    assert note_of(replica) == "Ben: keep 🏋️ going, slowly"


def test_a_text_written_as_it_is_changes_nothing() -> None:
    assert template_replica(EMOJI).write([Put(("exercises", "e", "note"), EMOJI)]) is None


def test_a_root_text_is_told_under_one_key() -> None:
    change = Replica(DocKind.TEMPLATE).write([Put(("notes",), EMOJI)])
    assert change is not None
    assert change.delta == {("notes", "text"): EMOJI}


# -- memory -----------------------------------------------------------------------------------


def test_a_replica_that_nobody_needs_is_gone() -> None:
    """A room makes a new one after each update that it refuses, and whenever it is loaded."""
    replica = workout_replica(Peer().set("s"))
    replica.apply(Peer().set("t"))
    replica.write([Put(("meta", "title"), "Leg day")])
    gone = weakref.ref(replica)
    del replica
    gc.collect()
    assert gone() is None


# -- updates that are refused -----------------------------------------------------------------


def gap_of_one_client() -> tuple[Replica, bytes]:
    ana = Peer()
    ana.set("first")
    return workout_replica(), ana.set("second")


def gap_between_clients() -> tuple[Replica, bytes]:
    ana, ben = Peer(), Peer()
    ben.apply(ana.set("s"))
    return workout_replica(), ben.patch("sets", "s", reps=6)


def gap_behind_another_client() -> tuple[Replica, bytes]:
    ana, ben = Peer(), Peer()
    ben.set("unseen")
    return workout_replica(), merge_updates(ana.set("s"), ben.set("later"))


def unknown_deletion() -> tuple[Replica, bytes]:
    ana = Peer()
    ana.set("s")
    return workout_replica(), ana.remove("sets", "s")


def partly_unknown_deletion() -> tuple[Replica, bytes]:
    ana = Peer()
    first = ana.set("s")
    ana.patch("sets", "s", reps=6)
    return workout_replica(first), ana.remove("sets", "s")


GAPS = [
    gap_of_one_client,
    gap_between_clients,
    gap_behind_another_client,
    unknown_deletion,
    partly_unknown_deletion,
]


@pytest.mark.parametrize("gap", GAPS)
def test_an_update_that_builds_on_missing_changes_is_unsynced(gap: Any) -> None:
    replica, update = gap()
    with pytest.raises(Unsynced):
        replica.apply(update)


def test_a_gap_of_one_client_is_seen_before_it_does_harm() -> None:
    replica, update = gap_of_one_client()
    with pytest.raises(Unsynced):
        replica.apply(update)
    assert not replica.spoiled
    assert replica.diff() == EMPTY_UPDATE


def test_a_gap_that_was_seen_too_late_spoils_the_replica() -> None:
    replica, update = gap_between_clients()
    with pytest.raises(Unsynced):
        replica.apply(update)
    assert replica.spoiled


@pytest.mark.parametrize("garbage", [b"", b"\x01", b"\xff" * 20, b"garbage", b"\x01\x01\x01\x00"])
def test_garbage_is_invalid(garbage: bytes) -> None:
    with pytest.raises(Invalid):
        workout_replica().apply(garbage)
    with pytest.raises(Invalid):
        workout_replica().brings_news(garbage)


@given(st.binary(max_size=40), st.integers(0, 60), st.integers(0, 255))
def test_hostile_updates_are_invalid_or_unsynced_or_harmless(
    tail: bytes, at: int, byte: int
) -> None:
    good = bytearray(workout_replica().diff() + tail)
    update = bytearray(Peer().set("s"))
    update[at % len(update)] = byte
    for hostile in (bytes(good), bytes(update), bytes(update[: at % len(update)])):
        try:
            workout_replica().apply(hostile)
        except (Invalid, Unsynced):
            continue


@pytest.mark.parametrize("vector", [b"\xff" * 12, b"\x05", b""])
def test_a_vector_that_cannot_be_read_is_invalid(vector: bytes) -> None:
    with pytest.raises(Invalid):
        workout_replica(Peer().set("s")).diff(vector)


def test_who_writes_again_at_known_clocks_does_not_part_the_replicas() -> None:
    """The document knows the client's first blocks; here the client says that they are others."""
    ana = Peer(DocKind.TEMPLATE, client_id=5)
    ana.put("exercises", "e", {"note": "slow"})
    ana.change(lambda roots: roots["notes"].insert(0, "Week 1"))
    known = parse(ana.lacks()).sections[0].structs
    length = 10 + sum(struct.length for struct in known)
    again = Struct(DELETED, var_uint(length), parent=(5, 0), key=b"note")
    head, other = (Replica(DocKind.TEMPLATE, ana.lacks()) for _ in range(2))
    change = head.apply(Update([Section(5, 0, [again])], []).encode())
    assert change is not None
    other.load(change.update)
    assert head.read() == other.read() == ana.content()


# -- updates that bring nothing, or something -------------------------------------------------


def test_a_duplicate_changes_nothing() -> None:
    ana = Peer()
    update = ana.set("s")
    replica = workout_replica()
    assert replica.apply(update) is not None
    assert replica.apply(update) is None
    assert replica.apply(ana.lacks()) is None
    assert replica.apply(EMPTY_UPDATE) is None


def test_a_deletion_is_news_although_the_state_vector_stays() -> None:
    ana = Peer()
    replica = workout_replica(ana.set("s"))
    before = replica.state_vector()
    change = replica.apply(ana.remove("sets", "s"))
    assert change is not None
    assert change.delta == {("sets", "s"): GONE}
    assert replica.state_vector() == before


def test_only_insertions_count_as_news_to_a_reader() -> None:
    ana = Peer()
    replica = workout_replica(ana.set("s"))
    assert replica.brings_news(ana.set("t"))
    replica.load(ana.lacks())
    assert not replica.brings_news(ana.lacks())
    assert not replica.brings_news(ana.remove("sets", "s"))


def test_a_part_that_is_new_is_all_that_a_change_carries() -> None:
    ana = Peer()
    first = ana.set("s")
    replica = workout_replica(first)
    second = ana.set("t")
    change = replica.apply(merge_updates(first, second))
    assert change is not None
    assert change.delta == {("sets", "t"): set_fields()}
    assert len(change.update) <= len(second)


def test_a_peer_gets_exactly_what_it_lacks() -> None:
    ana = Peer()
    replica = workout_replica(ana.set("s"))
    ben = Peer(state=replica.diff())
    replica.apply(ana.set("t"))
    ben.apply(replica.diff(ben.vector()))
    assert ben.content() == replica.read()
    assert replica.diff(ben.vector()) == EMPTY_UPDATE


def test_a_change_says_what_its_transaction_left_behind() -> None:
    ana = Peer()
    replica = workout_replica(ana.set("s"), ana.set("t"))

    def edit(roots: dict[str, Any]) -> None:
        roots["sets"]["s"]["reps"] = 6
        del roots["sets"]["t"]
        roots["meta"]["title"] = "Leg day"

    change = replica.apply(ana.change(edit))
    assert change is not None
    assert change.delta == {
        ("sets", "s"): set_fields(reps=6),
        ("sets", "t"): GONE,
        ("meta", "title"): "Leg day",
    }


def test_roots_that_the_schema_does_not_know_are_invalid() -> None:
    ana = Peer()
    ana.doc.get("other", type=Map)["x"] = 1
    with pytest.raises(Invalid):
        workout_replica().apply(ana.lacks())


@pytest.mark.parametrize(("other_type", "content"), [(Array, ["x"]), (Text, "x")])
def test_a_root_used_as_another_type_harms_nobody(other_type: Any, content: Any) -> None:
    ana = Peer()
    root = ana.doc.get("sets", type=other_type)
    root += content
    replica = workout_replica()
    replica.apply(ana.lacks())
    assert replica.read()["sets"] == {}


# -- a view and its deltas --------------------------------------------------------------------

PATHS = st.sampled_from(
    [
        ("meta", "title"),
        ("exercises", "e"),
        ("exercises", "f"),
        ("exercises", "e", "note"),
        ("exercises", "e", "name"),
        ("exercises", "e", "sets"),
        ("exercises", "e", "sets", "s"),
        ("exercises", "e", "sets", "s", "reps"),
        ("exercises", "f", "sets", "t", "reps"),
        ("notes",),
    ]
)


@st.composite
def writes(draw: st.DrawFn) -> Put | Remove:
    path = draw(PATHS)
    if path != ("notes",) and draw(st.integers(0, 3)) == 0:
        return Remove(path)
    text = draw(st.text("aé🏋️", max_size=4))
    if path[-1] == "reps":
        return Put(path, draw(st.integers(0, 20) | st.just(2.5)))
    if path[-1] in ("s", "t"):
        return Put(path, {"reps": draw(st.integers(0, 9))})
    if path[-1] == "sets":
        return Put(path, {"s": {"reps": 1}})
    if path[0] == "exercises" and len(path) == 2:
        return Put(path, {"name": text, "note": text, "sets": {"s": {"reps": 3}}})
    return Put(path, text)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(writes(), min_size=1, max_size=4), st.booleans()),
        max_size=8,
    )
)
def test_a_view_kept_by_deltas_is_the_document(steps: list[Any]) -> None:
    replica = Replica(DocKind.TEMPLATE)
    view = replica.read()
    others = [Replica(DocKind.TEMPLATE), Replica(DocKind.TEMPLATE)]  # both edit; one lags behind
    for who, made, syncs in steps:
        others[who].write(made)
        change = replica.apply(others[who].diff())
        if change is not None:
            apply_delta(view, change.delta)
        if syncs:
            others[1 - who].load(replica.diff())
        assert view == replica.read()
    assert view == Peer(DocKind.TEMPLATE, replica.diff()).content()
