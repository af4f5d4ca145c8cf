"""Yjs updates that no client writes, from a participant and from a spectator.

Each row: the update, made from the document as it is, and the codes with which it may be refused. A
participant is told the first; a spectator may be told `forbidden` instead, where it is an update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pycrdt import Array, Doc, Map, Text, XmlElement, XmlFragment

from crdt.wire import var_bytes, var_uint
from tests.helpers.replicas import Peer
from tests.helpers.sockets import EVENT
from tests.helpers.yjs_v1 import (
    ANY,
    DELETED,
    DOC,
    FORMAT,
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
    parse,
)
from tests.hostile.stage import DOCUMENT, MAX_UPDATE_BYTES, READER, WRITER, Stage, good_set

ONE = b"\x01\x7d\x01"
OWN_ID = 4_711
"""A Yjs client ID that nobody has used."""

Make = Callable[[bytes], bytes]
"""The document -> an update."""


def peer(state: bytes, client_id: int | None = None) -> Peer:
    return Peer(state=state, client_id=client_id)


def edit(change: Callable[[dict[str, Any]], Any]) -> Make:
    """The update of one transaction on the document."""
    return lambda state: peer(state).change(change)


def put(root: str, key: str, value: Any) -> Make:
    return lambda state: peer(state).change(lambda roots: roots[root].__setitem__(key, value()))


def item(**fields: Any) -> Make:
    """A set of one's own with odd fields."""
    return put("sets", "of-mallory", lambda: Map(good_set(**fields)))


def crafted(*structs: Struct, client: int = OWN_ID, clock: int = 0) -> Make:
    return lambda _: Update([Section(client, clock, list(structs))], []).encode()


def block(key: bytes | None = b"x", kind: int = ANY, content: bytes = ONE, **where: Any) -> Struct:
    return Struct(kind, content, **{"parent": b"sets", "key": key, **where})


def deleting(state: bytes, *, client: int | None = None, clock: int = 0, length: int = 1) -> bytes:
    """A deletion of what somebody has written; of everything, if of nobody."""
    sections = parse(state).sections
    ends = {
        section.client: section.clock + sum(struct.length for struct in section.structs)
        for section in sections
    }
    if client is None:
        return Update([], [(id_, [(0, end)]) for id_, end in ends.items()]).encode()
    return Update([], [(client, [(clock, length)])]).encode()


def gap(state: bytes) -> bytes:
    one = peer(state)
    one.set("unseen", user_id=WRITER, exercise="squat")
    return one.patch("sets", "unseen", reps=6.0)


def gap_between_two(state: bytes) -> bytes:
    one, other = peer(state), peer(state)
    other.apply(one.set("unseen", user_id=WRITER, exercise="squat"))
    return other.patch("sets", "unseen", reps=6.0)


def root_of(type_: Any, write: Callable[[Any], Any], name: str = "sets") -> Make:
    def make(_: bytes) -> bytes:
        doc: Doc[Any] = Doc()
        write(doc.get(name, type=type_))
        return doc.get_update()

    return make


def types_within_types(levels: int) -> Make:
    inner = [block(kind=TYPE, content=MAP_TYPE, parent=(OWN_ID, at)) for at in range(levels)]
    return crafted(block(kind=TYPE, content=MAP_TYPE), *inner)


def nested(levels: int) -> Any:
    value: Any = 1.0
    for _ in range(levels):
        value = {"a": value}
    return value


INVALID, FORBIDDEN, UNSYNCED = ("invalid",), ("forbidden", "invalid"), ("unsynced",)

UPDATES: dict[str, tuple[Make, tuple[str, ...]]] = {
    # -- no update
    "nothing": (lambda _: b"", INVALID),
    "a text": (lambda _: b"sync-update", INVALID),
    "noise": (lambda _: bytes(range(255, 0, -1)), INVALID),
    "a document cut in the middle": (lambda state: state[: len(state) // 2], INVALID),
    "a document without its end": (lambda state: state[:-1], INVALID),
    "a number without an end": (lambda _: b"\xff" * 100, INVALID),
    # -- something is missing
    "a missing predecessor": (gap, UNSYNCED),
    "a missing predecessor of another client": (gap_between_two, UNSYNCED),
    "a clock far ahead": (crafted(block(), clock=1_000_000), UNSYNCED),
    "a skip": (crafted(Struct(SKIP, length=5), block()), UNSYNCED),
    "a deletion of what nobody knows": (lambda s: deleting(s, client=OWN_ID), UNSYNCED),
    "a parent that nobody knows": (crafted(block(parent=(OWN_ID + 1, 5))), UNSYNCED),
    # -- what is somebody else's
    "another's set": (lambda s: peer(s).patch("sets", "of-ana", reps=99.0), FORBIDDEN),
    "another's set, replaced": (put("sets", "of-ana", lambda: Map(good_set())), FORBIDDEN),
    "another's set, removed": (lambda s: peer(s).remove("sets", "of-ana"), FORBIDDEN),
    "a set in another's name": (item(user_id="ana"), FORBIDDEN),
    "a set in nobody's name": (item(user_id=None), FORBIDDEN),
    "everything, deleted": (deleting, FORBIDDEN),
    "the status": (put("meta", "status", lambda: "completed"), FORBIDDEN),
    "the owner": (put("meta", "owner_id", lambda: WRITER), FORBIDDEN),
    "the visibility": (put("meta", "visibility", lambda: "private"), FORBIDDEN),
    "a time of the server": (put("meta", "created_at", lambda: 0.0), FORBIDDEN),
    "a timer": (put("timers", "room", lambda: Map({"kind": "rest"})), FORBIDDEN),
    "__proto__ in meta": (put("meta", "__proto__", lambda: "x"), FORBIDDEN),
    # -- what the schema does not have
    "a set that is a text": (put("sets", "x", lambda: "x"), INVALID),
    "a set that is a shared text": (put("sets", "x", lambda: Text("x")), INVALID),
    "a set that is a list": (put("sets", "x", lambda: Array([1.0])), INVALID),
    "a set that is null": (put("sets", "x", lambda: None), INVALID),
    "a set that is bytes": (put("sets", "x", lambda: b"\x00"), INVALID),
    "an id with a NUL": (put("sets", "a\0b", lambda: Map(good_set())), INVALID),
    "an id of 10,000 letters": (put("sets", "x" * 10_000, lambda: Map(good_set())), INVALID),
    "an id of nothing": (put("sets", "", lambda: Map(good_set())), INVALID),
    "reps below nothing": (item(reps=-1.0), INVALID),
    "reps that are a fraction": (item(reps=1.5), INVALID),
    "reps of 10^300": (item(reps=1e300), INVALID),
    "a weight that is a map": (item(weight_kg={"a": 1.0}), INVALID),
    "a note of 5,000 letters": (item(note="x" * 5_000), INVALID),
    "bytes in a field": (item(note=b"\x00\xff"), INVALID),
    "a kind that there is not": (item(kind="heavy"), INVALID),
    "a time beyond all": (item(completed_at=2.0**60), INVALID),
    "a title that is a number": (put("meta", "title", lambda: 5.0), INVALID),
    "a title of nothing": (put("meta", "title", lambda: ""), INVALID),
    # -- roots of another type
    "a root that there is not": (root_of(Map, lambda m: m.update({"a": 1.0}), "extras"), INVALID),
    "a root without a name": (root_of(Map, lambda m: m.update({"a": 1.0}), ""), INVALID),
    "__proto__ as a root": (root_of(Map, lambda m: m.update({"a": 1.0}), "__proto__"), INVALID),
    "a text root of another kind": (root_of(Text, lambda t: t.insert(0, "x"), "notes"), INVALID),
    "XML as a root": (
        root_of(XmlFragment, lambda x: x.children.append(XmlElement("p", {"a": "b"}))),
        INVALID,
    ),
    "XML in a set": (item(x=XmlFragment()), INVALID),
    "a document in a set": (item(x=Doc()), INVALID),
    "a document as a set": (put("sets", "x", Doc), INVALID),
    # -- nesting
    "values 20 deep": (item(x=nested(20)), INVALID),
    "values 120 deep": (item(x=nested(120)), INVALID),
    "arrays 30,000 deep": (
        crafted(block(content=b"\x01" + b"\x75\x01" * 30_000 + b"\x7e")),
        INVALID,
    ),
    "maps 15,000 deep": (
        crafted(block(content=b"\x01" + b"\x76\x01\x01a" * 15_000 + b"\x7e")),
        INVALID,
    ),
    "types 20 deep": (types_within_types(20), FORBIDDEN),
    "types 6,000 deep": (types_within_types(6_000), INVALID),
    # -- what native code would believe
    "two sections of one client": (
        lambda _: Update(
            [Section(OWN_ID, 0, [block()]), Section(OWN_ID, 0, [block(b"y")])], []
        ).encode(),
        INVALID,
    ),
    "a section without blocks": (crafted(), INVALID),
    "a garbage block of no length": (crafted(Struct(GC, length=0)), INVALID),
    "a garbage block of 32 bits": (crafted(Struct(GC, length=2**32 - 1)), INVALID),
    "a deleted block of 53 bits": (
        crafted(block(kind=DELETED, content=var_uint(2**53 - 1))),
        INVALID,
    ),
    "a clock of 32 bits": (crafted(block(), clock=2**32 - 1), INVALID),
    "a client id of 54 bits": (crafted(block(), client=2**53), INVALID),
    "a client id of 64 bits": (crafted(block(), client=2**64 - 1), INVALID),
    "a million clients in ten bytes": (lambda _: var_uint(10**6) + bytes(7), INVALID),
    "a map of 2^28 entries without one": (
        crafted(block(content=b"\x01\x76" + var_uint(2**28))),
        INVALID,
    ),
    "a text of 2^31 bytes without one": (
        crafted(block(kind=STRING, content=var_uint(2**31))),
        INVALID,
    ),
    "a text that is no UTF-8": (
        crafted(block(content=b"\x01\x77\x02\xff\xfe")),
        INVALID,
    ),
    "a format that is no JSON": (
        crafted(block(None, FORMAT, var_bytes(b"bold") + var_bytes(b"{"))),
        INVALID,
    ),
    "values of an older Yjs": (
        crafted(block(kind=JSON, content=b"\x01" + var_bytes(b"5"))),
        INVALID,
    ),
    "a move": (crafted(block(kind=MOVE, content=b"\x00\x05\x00\x05\x00")), INVALID),
    "a subdocument by hand": (
        crafted(block(kind=DOC, content=var_bytes(b"g") + b"\x76\x00")),
        INVALID,
    ),
    "a type that there is not": (crafted(block(kind=TYPE, content=b"\x63")), INVALID),
    "a kind of block that there is not": (crafted(block(kind=31)), INVALID),
    "deletions that are counted and not there": (lambda _: b"\x00" + var_uint(2**30), INVALID),
    # -- sizes
    "an update over the limit": (lambda _: bytes(MAX_UPDATE_BYTES + 1), ("too_large",)),
    "a set over the limit": (item(x="x" * MAX_UPDATE_BYTES), ("too_large",)),
}


@pytest.mark.parametrize("user_id", [WRITER, READER])
@pytest.mark.parametrize(("make", "codes"), UPDATES.values(), ids=UPDATES.keys())
async def test_an_update_that_no_client_writes_is_refused_whole(
    stage: Stage, user_id: str, make: Make, codes: tuple[str, ...]
) -> None:
    async with stage.unharmed(), stage.inside(user_id) as socket:
        state = await socket.ask("sync-step-1", b"\x00", namespace=DOCUMENT)
        answer = await socket.ask("sync-update", make(state), namespace=DOCUMENT)
        assert answer["ok"] is False
        told = answer["error"]["code"]
        assert told in codes if user_id == WRITER else told in (*codes, "forbidden")
        told_beside = "sync-reset" if told == "unsynced" else "sync-rejected"
        assert await socket.settled()
        assert len(socket.events(told_beside)) == 1
        # It has left nothing behind: the document is what it was, to the last byte that counts.
        again = await socket.ask("sync-step-1", b"\x00", namespace=DOCUMENT)
        assert {s.client for s in parse(again).sections} == {
            s.client for s in parse(state).sections
        }


UNSEEN: dict[str, Make] = {
    "text in place of a map": root_of(Text, lambda text: text.insert(0, "x")),
    "an array in place of a map": root_of(Array, lambda array: array.append("x"), "exercises"),
    "a text with a map in it": crafted(block(None, TYPE, b"\x02", parent=b"timers")),
}


@pytest.mark.parametrize("make", UNSEEN.values(), ids=UNSEEN.keys())
async def test_what_stands_in_a_map_under_no_key_is_seen_by_nobody(
    stage: Stage, make: Make
) -> None:
    async with stage.unharmed(), stage.inside() as socket:
        answer = await socket.ask("sync-update", make(b""), namespace=DOCUMENT)
        assert answer["ok"] is True
        shown = await socket.ask("workout:sync", {"workout_id": "w"})
        assert shown["workout"]["timers"] == {}
        assert {item["id"] for item in shown["workout"]["exercises"]} == {"squat"}


async def test_a_repeat_of_all_that_there_is_changes_nothing(stage: Stage) -> None:
    async with stage.unharmed(), stage.inside(READER) as socket:
        state = await socket.ask("sync-step-1", b"\x00", namespace=DOCUMENT)
        for _ in range(20):
            assert (await socket.ask("sync-update", state, namespace=DOCUMENT))["ok"] is True


async def test_a_hundred_refusals_in_a_row_leave_the_room_as_good_as_it_was(stage: Stage) -> None:
    async with stage.unharmed(), stage.inside() as socket:
        state = await socket.ask("sync-step-1", b"\x00", namespace=DOCUMENT)
        for n in range(100):
            make = (gap_between_two, UPDATES["another's set"][0])[n % 2]
            answer = await socket.ask("sync-update", make(state), namespace=DOCUMENT)
            assert answer["ok"] is False


VECTORS: dict[str, bytes] = {
    "nothing": b"",
    "a count of five and one entry": b"\x05\x01\x01",
    "2^28 entries in five bytes": var_uint(2**28),
    "2^32 entries in five bytes": var_uint(2**32 - 1),
    "a number without an end": b"\xff" * 50,
    "noise": bytes(range(255, 0, -1)),
}


@pytest.mark.parametrize("user_id", [WRITER, READER])
@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
async def test_a_state_vector_that_is_none_is_refused(
    stage: Stage, user_id: str, vector: bytes
) -> None:
    async with stage.unharmed(), stage.inside(user_id) as socket:
        answer = await socket.ask("sync-step-1", vector, namespace=DOCUMENT)
        assert answer["error"]["code"] == "invalid"
        assert await socket.settled()


async def test_a_vector_ahead_of_everybody_gets_nothing(stage: Stage) -> None:
    async with stage.unharmed(), stage.inside() as socket:
        state = await socket.ask("sync-step-1", b"\x00", namespace=DOCUMENT)
        clients = [section.client for section in parse(state).sections]
        ahead = var_uint(len(clients)) + b"".join(
            var_uint(client) + var_uint(2**31 - 1) for client in clients
        )
        answer = await socket.ask("sync-step-1", ahead, namespace=DOCUMENT)
        assert parse(answer).sections == []


async def test_an_answer_to_the_servers_question_is_an_update_like_any_other(stage: Stage) -> None:
    """A client that answers with a gap is asked again, and hurts nobody with it."""
    async with stage.unharmed(), stage.inside() as socket:
        state = await socket.ask("sync-step-1", b"\x00", namespace=DOCUMENT)
        asked = await socket.find(
            lambda packet: (
                packet.namespace == DOCUMENT
                and packet.id is not None
                and packet.data[0] == "sync-step-1"
            )
        )
        placed = '[{"_placeholder":true,"num":0}]'
        await socket.send(f"461-{DOCUMENT},{asked.id}{placed}", gap_between_two(state))
        await socket.find(lambda packet: packet.kind == EVENT and packet.data[0] == "sync-reset")
        assert await socket.settled()


async def test_the_client_id_0_is_an_id_like_any_other(stage: Stage) -> None:
    async with stage.unharmed(changes=True), stage.inside() as socket:
        state = await socket.ask("sync-step-1", b"\x00", namespace=DOCUMENT)
        fields = good_set(reps=7.0)
        update = peer(state, 0).change(lambda roots: roots["sets"].update({"zero": Map(fields)}))
        answer = await socket.ask("sync-update", update, namespace=DOCUMENT)
        assert answer["ok"] is True
        await stage.ben.until(lambda: stage.ben.content()["sets"].get("zero") == fields)
