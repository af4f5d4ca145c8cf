"""What an update must not say. Without its screen, most of these end the process."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycrdt import Array, Doc, Map, Text, XmlFragment, merge_updates

from crdt.errors import Invalid, RepSyncError, Unsynced
from crdt.ids import DocKind
from crdt.replica import EMPTY_UPDATE, Replica
from crdt.screen import MAX_CLOCK, MAX_NESTED_TYPES, screen_update
from crdt.wire import var_bytes, var_uint
from tests.helpers.replicas import Peer, exercise_fields
from tests.helpers.yjs_v1 import (
    ANY,
    DELETED,
    DOC,
    EMBED,
    GC,
    JSON,
    MAP_TYPE,
    MOVE,
    SKIP,
    STRING,
    TYPE,
    Section,
    Struct,
    Update,
)

ROOTS = (b"meta", b"exercises", b"sets", b"notes")
ONE = b"\x01\x7d\x01"
"""The content of a block that holds the number 1."""

HUGE = var_uint(2**28)


def block(key: bytes = b"a", kind: int = ANY, content: bytes = ONE, **changes: Any) -> Struct:
    return Struct(kind, content, **{"parent": b"sets", "key": key, **changes})


def update(*structs: Struct, client: int = 5, clock: int = 0) -> bytes:
    return Update([Section(client, clock, list(structs))], []).encode()


def nested_values(levels: int, mark: bytes = b"\x75\x01") -> bytes:
    return update(block(content=b"\x01" + mark * levels + b"\x7e"))


def nested_types(levels: int) -> bytes:
    inner = [block(kind=TYPE, content=MAP_TYPE, parent=(5, clock)) for clock in range(levels)]
    return update(block(kind=TYPE, content=MAP_TYPE), *inner)


REFUSED = {
    "two sections of one client": Update(
        [Section(5, 0, [block()]), Section(5, 0, [block(b"b")])], []
    ).encode(),
    "a section that goes on with another one": Update(
        [Section(5, 0, [block()]), Section(5, 1, [block(b"b")])], []
    ).encode(),
    "a section without blocks": Update([Section(5, 0, [])], []).encode(),
    "arrays in arrays": nested_values(50_000),
    "maps in maps": nested_values(50_000, b"\x76\x01\x01a"),
    "types in types": nested_types(50_000),
    "a client too many": b"\x02" + update(block())[1:],
    "clients without sections": var_uint(2**29 - 1) + b"\x01\x01\x00",
    "a map without entries": update(block(content=b"\x01\x76" + HUGE)),
    "an array without entries": update(block(content=b"\x01\x75" + HUGE)),
    "values that are not there": update(block(content=HUGE)),
    "blocks that are not there": b"\x01" + HUGE + b"\x05\x00" + block().encode() + b"\x00",
    "deletions that are not there": b"\x00" + HUGE + b"\x05\x01\x00\x01",
    "ranges that are not there": b"\x00\x01\x05" + HUGE + b"\x00\x01",
    "a garbage block of no length": update(Struct(GC, length=0)),
    "a deleted block of no length": update(block(kind=DELETED, content=b"\x00")),
    "no values": update(block(content=b"\x00")),
    "no text": update(block(kind=STRING, content=b"\x00")),
    "a block beyond 31 bits": update(Struct(GC, length=2**31)),
    "a block of 33 bits": update(Struct(GC, length=2**32 + 1)),
    "blocks that add up to too much": update(
        *(Struct(GC, length=2**31 - 1) for _ in range(3)), block()
    ),
    "a block that starts too late": update(block(), clock=MAX_CLOCK),
    "a deletion beyond 31 bits": b"\x00\x01\x05\x01" + var_uint(2**32 - 1) + b"\x02",
    "a client id of 54 bits": update(block(), client=2**53),
    "a client id of 64 bits": update(block(), client=2**64 - 1),
    "garbage with a parent": b"\x01\x01\x05\x00\x20\x01\x04sets\x01a\x00",
    "values of an older Yjs": update(block(kind=JSON, content=b"\x01" + var_bytes(b"5"))),
    "a move": update(block(kind=MOVE, content=b"\x00\x05\x00\x05\x00")),
    "a document": update(block(kind=DOC, content=var_bytes(b"guid") + b"\x76\x00")),
    "a content that there is not": update(block(kind=20, content=b"\x00")),
    "a type that there is not": update(block(kind=TYPE, content=b"\x14")),
    "a link": update(block(kind=TYPE, content=b"\x07")),
    "a value that there is not": update(block(content=b"\x01\x70")),
    "a root that there is not": update(block(parent=b"extras")),
    "a root of another kind of document": update(block(parent=b"notes")),
    "a root without a name": update(block(parent=b"")),
    "a key that is cut short": b"\x01\x01\x05\x00\x28\x01\x04sets\x7fa\x01\x7d\x01\x00",
    "a number without an end": b"\x01" + b"\xff" * 20,
}


@pytest.mark.parametrize("hostile", REFUSED.values(), ids=REFUSED.keys())
def test_an_update_that_native_code_must_not_see_is_refused(hostile: bytes) -> None:
    replica = Replica(DocKind.WORKOUT)
    with pytest.raises(Invalid):
        replica.apply(hostile)
    assert not replica.spoiled
    with pytest.raises(Invalid):
        replica.brings_news(hostile)
    assert replica.apply(Peer().set("s")) is not None


def test_an_update_that_leaves_something_out_is_unsynced() -> None:
    with pytest.raises(Unsynced):
        Replica(DocKind.WORKOUT).apply(update(Struct(SKIP, length=1), block()))


@pytest.mark.parametrize("entries", [2, 1_000, 2**28, 2**32 - 1])
def test_a_vector_without_its_entries_is_refused(entries: int) -> None:
    with pytest.raises(Invalid):
        Replica(DocKind.WORKOUT).diff(var_uint(entries) + b"\x05\x01")


PLACES = {
    "in a map": (DocKind.WORKOUT, block(kind=TYPE, content=MAP_TYPE)),
    "in a map but under no key": (
        DocKind.WORKOUT,
        block(None, kind=TYPE, content=MAP_TYPE),
    ),
    "in a text": (
        DocKind.TEMPLATE,
        block(None, kind=TYPE, content=MAP_TYPE, parent=b"notes"),
    ),
    "at a text, as its attribute": (
        DocKind.TEMPLATE,
        block(kind=TYPE, content=MAP_TYPE, parent=b"notes"),
    ),
    "in a text within an item": (
        DocKind.WORKOUT,
        block(kind=TYPE, content=b"\x02", parent=b"exercises"),
    ),
}


@pytest.mark.parametrize(("kind", "first"), PLACES.values(), ids=PLACES.keys())
def test_a_nesting_cannot_grow_from_update_to_update(kind: DocKind, first: Struct) -> None:
    """Where nobody sees it, it would wait for the deletion that takes the process along."""
    replica = Replica(kind)
    replica.apply(update(first))

    def nest() -> None:
        for clock in range(1, 20):
            inner = block(kind=TYPE, content=MAP_TYPE, parent=(5, clock - 1))
            replica.apply(update(inner, clock=clock))

    with pytest.raises(Invalid):
        nest()
    assert replica.spoiled


@pytest.mark.parametrize("make", [XmlFragment, Doc])
def test_what_no_document_holds_is_refused_wherever_it_stands(make: Any) -> None:
    peer = Peer()
    hostile = peer.put("sets", "s", {"x": Map({"y": Array([make()])})})
    with pytest.raises(Invalid):
        Replica(DocKind.WORKOUT).apply(hostile)


def test_a_few_thousand_types_in_one_update_are_fine() -> None:
    inner = [block(f"{n}".encode(), TYPE, MAP_TYPE, parent=(5, 0)) for n in range(MAX_NESTED_TYPES)]
    whole = update(block(kind=TYPE, content=MAP_TYPE), *inner)
    replica = Replica(DocKind.WORKOUT)
    assert replica.apply(whole) is not None
    assert len(replica.read()["sets"]["a"]) == MAX_NESTED_TYPES


def everything() -> list[bytes]:
    """Updates of every kind that clients send."""
    ana, ben = Peer(DocKind.TEMPLATE), Peer(DocKind.TEMPLATE)
    values = [None, True, False, 1, -5, 1.5, 2.0**40, 2**60, "", "é🏋️", [], {}, [{"a": [1]}]]
    made = ana.exercise("e", **exercise_fields(x=values, sets={"s": {"reps": 5}}))
    updates = [
        made,
        ana.change(lambda roots: roots["exercises"]["e"].__setitem__("note", Text(""))),
        ana.change(lambda roots: roots["exercises"]["e"]["note"].insert(0, "é🏋️ text")),
        ana.change(lambda roots: roots["exercises"]["e"]["note"].format(0, 2, {"bold": True})),
        ana.change(lambda roots: roots["exercises"]["e"]["note"].insert_embed(0, {"a": 1})),
        ana.change(lambda roots: roots["exercises"]["e"].__setitem__("raw", b"\x00\xff")),
        ana.change(lambda roots: roots["exercises"]["e"].__setitem__("l", Array([1, Map()]))),
        ana.change(lambda roots: roots["exercises"]["e"]["l"].insert(1, "x")),
        ana.change(lambda roots: roots["notes"].insert(0, "Week 1")),
        ana.change(lambda roots: roots["notes"].__delitem__(slice(1, 3))),
        ana.patch("exercises", "e", name="Press"),
        ana.remove("exercises", "e"),
        EMPTY_UPDATE,
    ]
    for one in updates:
        ben.apply(one)
    return [*updates, ben.put("meta", "title", "x"), ben.lacks(), merge_updates(*updates)]


def test_everything_that_clients_send_passes() -> None:
    for whole in everything():
        screen_update(whole, ROOTS)


@given(st.sampled_from(everything()), st.data())
def test_an_update_that_is_cut_short_is_refused(whole: bytes, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Invalid):
        screen_update(whole[:size], ROOTS)


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda tail: b"\x01\x02\x05" + tail))
def test_bytes_are_screened_without_another_error(noise: bytes) -> None:
    try:
        screen_update(noise, ROOTS)
    except RepSyncError:
        return


def test_an_embedded_value_is_left_to_the_native_code() -> None:
    """Its own decoder of JSON has a limit of nesting."""
    deep = b"[" * 100_000
    with pytest.raises(Invalid):
        Replica(DocKind.WORKOUT).apply(update(block(kind=EMBED, content=var_bytes(deep))))
