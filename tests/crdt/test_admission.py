"""What a Yjs client may change: the tables at the top of crdt/admission.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pycrdt import Map, Text

from crdt import ids
from crdt.access import RIGHTS, Member
from crdt.errors import Forbidden, Invalid, RepSyncError
from crdt.ids import DocKind, UserId
from crdt.replica import Put, View
from crdt.room import Room
from tests.helpers.replicas import Peer, exercise_fields, set_fields
from tests.helpers.rooms import LEG_DAY, NOW_MS, author, make_room, settle, user

PUSH = ids.template("push")
OTHERS = {"coach": "ben", "participant": "ben", "editor": "ben", "owner": "ana"}


def prepared(room: Room, role: str) -> tuple[Room, str]:
    """A room in which somebody has this role, with a set of ana's and one of ben's."""
    writes = [Put(("exercises", "e"), exercise_fields())]
    if room.name.kind is DocKind.WORKOUT:
        writes += [Put(("sets", who), set_fields(user_id=who)) for who in ("ana", "ben")]
    member = Member(UserId("ben"), role, "Ben")
    room.edit(writes, author(), NOW_MS, "x", members=[] if role == "owner" else [member])
    settle(room)
    return room, OTHERS[role]


def outcome(room: Room, who: str, edit: Callable[[Peer], bytes]) -> type[RepSyncError] | None:
    """How a client's edit is refused; None if it is taken."""
    update = edit(Peer(room.name.kind, room.diff()))
    try:
        assert room.admit(update, author(who), NOW_MS, room.rights(user(who))) is not None
    except RepSyncError as refusal:
        assert room.head == room.view
        return type(refusal)
    return None


def workout_edit(edit: Callable[[Peer], bytes], role: str = "owner") -> type[RepSyncError] | None:
    room, who = prepared(make_room(), role)
    return outcome(room, who, edit)


def template_edit(edit: Callable[[Peer], bytes], role: str = "owner") -> type[RepSyncError] | None:
    room, who = prepared(make_room(PUSH), role)
    return outcome(room, who, edit)


def put(root: str, key: str, value: Any) -> Callable[[Peer], bytes]:
    return lambda peer: peer.put(root, key, value)


def remove(root: str, key: str) -> Callable[[Peer], bytes]:
    return lambda peer: peer.remove(root, key)


# -- meta -------------------------------------------------------------------------------------

WORKOUT_META = [
    *("owner_id", "status", "created_at", "started_at", "resumed_at", "ended_at"),
    *("active_ms", "template_id", "template_version", "unheard_of"),
]


@pytest.mark.parametrize("key", WORKOUT_META)
def test_what_is_the_servers_in_a_workouts_meta_stays_its(key: str) -> None:
    assert workout_edit(put("meta", key, "mine")) is Forbidden


@pytest.mark.parametrize("key", ["owner_id", "status", "created_at", "active_ms"])
def test_what_is_the_servers_cannot_be_deleted_either(key: str) -> None:
    assert workout_edit(remove("meta", key)) is Forbidden


@pytest.mark.parametrize("key", ["owner_id", "locked", "forked_from", "unheard_of"])
def test_what_is_the_servers_in_a_templates_meta_stays_its(key: str) -> None:
    assert template_edit(put("meta", key, "mine")) is Forbidden


@pytest.mark.parametrize("role", ["owner", "coach", "participant"])
def test_everybody_who_writes_may_change_the_title(role: str) -> None:
    assert workout_edit(put("meta", "title", "Pull day"), role) is None


@pytest.mark.parametrize(("key", "value"), [("mode", "solo"), ("visibility", "public")])
@pytest.mark.parametrize("role", ["owner", "coach", "participant"])
def test_only_who_manages_lets_others_in(role: str, key: str, value: str) -> None:
    expected = None if role == "owner" else Forbidden
    assert workout_edit(put("meta", key, value), role) is expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("title", "Push", None),
        ("goal", "strength", None),
        ("difficulty", "hard", None),
        ("visibility", "public", Forbidden),
    ],
)
def test_an_editor_changes_all_of_a_templates_meta_but_who_sees_it(
    key: str, value: str, expected: Any
) -> None:
    assert template_edit(put("meta", key, value), "editor") is expected


@pytest.mark.parametrize(
    ("key", "value"),
    [("title", ""), ("title", 5), ("title", "x" * 201), ("mode", "duo"), ("visibility", None)],
)
def test_a_field_of_the_meta_must_fit(key: str, value: Any) -> None:
    assert workout_edit(put("meta", key, value)) is Invalid


# -- sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["owner", "coach", "participant"])
def test_ones_own_set_may_be_written_changed_and_deleted(role: str) -> None:
    who = OTHERS[role]
    for edit in (
        put("sets", "new", set_fields(user_id=who)),
        lambda peer: peer.patch("sets", who, reps=6),
        remove("sets", who),
    ):
        assert workout_edit(edit, role) is None


@pytest.mark.parametrize("role", ["owner", "coach", "participant"])
def test_nobody_touches_the_set_of_another(role: str) -> None:
    who, other = (OTHERS[role], "ana" if OTHERS[role] == "ben" else "ben")
    for edit in (
        put("sets", "new", set_fields(user_id=other)),
        lambda peer: peer.patch("sets", other, reps=6),
        put("sets", other, set_fields(user_id=who)),
        remove("sets", other),
        lambda peer: peer.patch("sets", who, user_id=other),
    ):
        assert workout_edit(edit, role) is Forbidden


def test_a_set_of_nobody_is_refused() -> None:
    assert workout_edit(put("sets", "new", {"reps": 5})) is Forbidden


STRAYS = [
    ("sets", 5),
    ("sets", "text"),
    ("sets", [1]),
    ("exercises", 5),
    ("exercises", None),
]


@pytest.mark.parametrize(("root", "stray"), STRAYS)
def test_what_is_no_item_is_refused(root: str, stray: Any) -> None:
    assert workout_edit(put(root, "x", stray)) is Invalid


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_kg": 1e308},
        {"weight_kg": -1},
        {"reps": 2.5},
        {"reps": "5"},
        {"reps": True},
        {"kind": "easy"},
        {"kind": None},
        {"rpe": 11},
        {"completed_at": -1},
        {"order": 5},
        {"note": "x" * 4_001},
        {"weight_kg": {"deep": 1}},
    ],
)
def test_a_set_must_fit(fields: dict[str, Any]) -> None:
    assert workout_edit(put("sets", "new", set_fields(**fields))) is Invalid


@pytest.mark.parametrize("fields", [{"tempo": "3-1-1"}, {"note": "🏋️"}, {"weight_kg": 62.5}])
def test_fields_of_newer_clients_are_let_through(fields: dict[str, Any]) -> None:
    assert workout_edit(put("sets", "new", set_fields(**fields))) is None


def test_a_refusal_says_where() -> None:
    room, _ = prepared(make_room(), "owner")
    peer = Peer(state=room.diff())
    rights = room.rights(user("ana"))
    with pytest.raises(Invalid) as refusal:
        room.admit(peer.set("new", reps=-5), author(), NOW_MS, rights)
    assert refusal.value.details[0]["path"] == "sets.new.reps"


# -- exercises, notes, timers -----------------------------------------------------------------


@pytest.mark.parametrize("role", ["owner", "coach", "participant"])
def test_everybody_who_writes_may_change_the_plan(role: str) -> None:
    for edit in (
        put("exercises", "new", exercise_fields(target=[{"kind": "normal", "reps": 5}])),
        lambda peer: peer.patch("exercises", "e", name="Row"),
        remove("exercises", "e"),
    ):
        assert workout_edit(edit, role) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"name": 5},
        {"name": "x" * 201},
        {"target": "three"},
        {"target": [5]},
        {"target": [{"reps": -1}]},
        {"target": [{}] * 101},
        {"rest_s": -1},
        {"extra": [[[[[[[[[1]]]]]]]]]},
    ],
)
def test_an_exercise_must_fit(fields: dict[str, Any]) -> None:
    assert workout_edit(put("exercises", "new", exercise_fields(**fields))) is Invalid


def test_a_key_of_any_length_is_not_taken() -> None:
    assert workout_edit(put("exercises", "k" * 65, exercise_fields())) is Invalid


def test_timers_are_the_servers() -> None:
    assert workout_edit(put("timers", "ana", {"kind": "rest"})) is Forbidden


def test_an_editor_types_where_texts_are() -> None:
    def edit(roots: dict[str, Any]) -> None:
        roots["notes"].insert(0, "Warm up 🔥")
        roots["exercises"]["new"] = Map({"name": "Row", "note": Text("slow"), "sets": Map()})

    assert template_edit(lambda peer: peer.change(edit), "editor") is None


@pytest.mark.parametrize("sets", [5, {"s": 5}, {"s": {"reps": -1}}, {"s": {"kind": "easy"}}])
def test_the_sets_of_a_templates_exercise_must_fit(sets: Any) -> None:
    fields = {**exercise_fields(), "sets": sets}
    assert template_edit(put("exercises", "new", fields)) is Invalid


# -- whole changes ----------------------------------------------------------------------------


def test_one_part_that_is_refused_refuses_the_whole() -> None:
    def edit(roots: dict[str, Any]) -> None:
        roots["meta"]["title"] = "Fine"
        roots["sets"]["new"] = Map(set_fields(user_id="eve"))

    assert workout_edit(lambda peer: peer.change(edit)) is Forbidden


@pytest.mark.parametrize("kind", list(DocKind))
def test_who_may_only_read_changes_nothing_at_all(kind: DocKind) -> None:
    room = make_room(LEG_DAY if kind is DocKind.WORKOUT else PUSH)
    role = "spectator" if kind is DocKind.WORKOUT else "viewer"
    reads = RIGHTS[kind][role]
    for edit in (put("meta", "title", "x"), put("exercises", "new", {})):
        update = edit(Peer(kind, room.diff()))
        with pytest.raises(Forbidden):
            room.admit(update, author("ben"), NOW_MS, reads)


def test_what_the_server_wrote_may_stay_as_it_is() -> None:
    """An item that does not fit hinders nobody who changes another one."""
    room, who = prepared(make_room(), "owner")
    room.edit([Put(("exercises", "odd"), {"name": 5})], author(), NOW_MS, "x")
    settle(room)
    view: View = room.view
    assert outcome(room, who, put("exercises", "new", exercise_fields())) is None
    assert view["exercises"]["odd"] == {"name": 5}
