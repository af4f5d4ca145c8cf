"""The template document: its events and its snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from crdt import template
from crdt.errors import Invalid
from crdt.events import DomainEvent
from crdt.ids import DocKind, UserId
from crdt.replica import Put, Replica
from tests.helpers.replicas import Peer, exercise_fields


def made(**optional: Any) -> Replica:
    replica = Replica(DocKind.TEMPLATE)
    owner = UserId("ana")
    writes = template.create(owner_id=owner, title="Push", visibility="private", optional=optional)
    replica.write([*writes, Put(("exercises", "e"), exercise_fields(sets={}))])
    return replica


def told(replica: Replica, edit: Callable[[dict[str, Any]], Any]) -> list[DomainEvent]:
    """The events of a change that a client makes."""
    before, peer = replica.read(), Peer(DocKind.TEMPLATE, replica.diff())
    change = replica.apply(peer.change(edit))
    assert change is not None
    return template.project("t", before, change.delta)


def test_a_snapshot_has_the_shape_of_the_wire_contract() -> None:
    shown = template.snapshot("t", made(goal="strength").read(), version=3)
    assert shown == {
        "id": "t",
        "title": "Push",
        "owner_id": "ana",
        "goal": "strength",
        "difficulty": None,
        "visibility": "private",
        "locked": False,
        "forked_from": None,
        "notes": "",
        "exercises": [{**exercise_fields(), "id": "e", "sets": []}],
        "version": 3,
    }


def test_sets_are_listed_in_order_with_their_ids() -> None:
    replica = made()
    for id_, key in (("x", "a1"), ("y", "a0")):
        replica.write([Put(("exercises", "e", "sets", id_), {"order": key})])
    [exercise] = template.snapshot("t", replica.read(), version=1)["exercises"]
    assert exercise["sets"] == [{"id": "y", "order": "a0"}, {"id": "x", "order": "a1"}]


@pytest.mark.parametrize("stray", [5, {"sets": 5}, {"sets": {"s": 5}}])
def test_stray_values_are_left_out(stray: Any) -> None:
    view = made().read()
    view["exercises"]["stray"] = stray
    shown = template.snapshot("t", view, version=1)["exercises"]
    assert all(item["sets"] == [] for item in shown)


def test_a_change_of_the_meta_is_told() -> None:
    [event] = told(made(), lambda roots: roots["meta"].__setitem__("title", "Pull"))
    assert event.name == "template:changed"
    assert event.payload == {"template_id": "t", "meta": {"title": "Pull"}}


def test_a_removed_field_is_told_as_null() -> None:
    [event] = told(made(goal="strength"), lambda roots: roots["meta"].pop("goal"))
    assert event.payload["meta"] == {"goal": None}


def test_typing_in_the_notes_is_told_as_the_whole_text() -> None:
    [event] = told(made(), lambda roots: roots["notes"].insert(0, "Warm up 🔥"))
    assert event.payload == {"template_id": "t", "notes": "Warm up 🔥"}


def test_typing_in_an_exercise_is_told_with_the_exercise() -> None:
    [event] = told(made(), lambda roots: roots["exercises"]["e"]["note"].insert(0, "slow"))
    assert event.payload["exercises"]["e"] == {
        **exercise_fields(note="slow"),
        "id": "e",
        "sets": [],
    }


def test_a_removed_exercise_is_told_as_null() -> None:
    [event] = told(made(), lambda roots: roots["exercises"].pop("e"))
    assert event.payload["exercises"] == {"e": None}


def test_what_is_written_as_it_was_is_not_told() -> None:
    again = made()
    assert told(again, lambda roots: roots["exercises"]["e"].__setitem__("order", "a0")) == []


def test_one_transaction_is_one_event() -> None:
    def edit(roots: dict[str, Any]) -> None:
        roots["meta"]["title"] = "Pull"
        del roots["exercises"]["e"]
        roots["notes"].insert(0, "x")

    [event] = told(made(), edit)
    assert event.payload.keys() == {"template_id", "meta", "exercises", "notes"}


def test_a_change_of_nothing_is_invalid() -> None:
    with pytest.raises(Invalid):
        template.update_meta({})


def test_null_removes_an_optional_field() -> None:
    replica = made(goal="strength")
    replica.write(template.update_meta({"goal": None, "title": "Pull"}))
    assert "goal" not in replica.read()["meta"]
    assert replica.read()["meta"]["title"] == "Pull"
