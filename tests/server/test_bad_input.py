"""Whatever a client sends: it alone bears the consequences.

Each case is sent to a server on which somebody else is at work. Afterwards the connection that
sent it has been answered or closed, the document is as it was before, the other client works, and
nothing has failed that nobody foresaw.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from pycrdt import Array, Doc, Map, Text

from crdt import ids
from crdt.replica import EMPTY_UPDATE
from crdt.wire import AwarenessEntry, encode_awareness, state_clocks, var_bytes, var_uint
from server.replay.devices import DocumentClient, EventClient
from tests.helpers.servers import RunningServer, running_server
from tests.helpers.sockets import CONNECT, CONNECT_ERROR, RawSocket, raw_socket

NAME = ids.workout("w")
DOCUMENT = f"/yjs|{NAME}"
MAX_UPDATE_BYTES = 64 * 1024
TRANSPORT_CAP_BYTES = 2 * MAX_UPDATE_BYTES + 64 * 1024

OURS = ("server", "handlers", "crdt", "asyncio", "aiohttp")
"""Loggers in which an error is one of ours. Engine.IO's own complains about bad packets."""


def cases(table: Mapping[str, Any]) -> list[Any]:
    """Parameters from a table of cases."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), id=name)
        for name, value in table.items()
    ]


@dataclass
class Scene:
    """Ana's workout with one exercise, her phone and her laptop in it."""

    server: RunningServer
    phone: EventClient
    laptop: DocumentClient
    caplog: pytest.LogCaptureFixture

    async def state(self) -> tuple[dict[int, int], int, int]:
        live = self.server.parts.hub.find(NAME)
        assert live is not None
        loaded = await self.server.parts.store.load(NAME)
        assert loaded is not None
        return state_clocks(live.room.state_vector()), live.room.seq, loaded.seq

    @asynccontextmanager
    async def unharmed(self) -> AsyncIterator[None]:
        """What happens in the block changes nothing, and leaves the others working."""
        before = await self.state()
        yield
        assert await self.state() == before
        added = await self.phone.do(
            "workout:exercise:add", {"workout_id": NAME.id, "exercise": {"name": "Row"}}
        )
        await self.laptop.until(lambda: added["exercise_id"] in self.laptop.content()["exercises"])
        set_id = f"s{len(self.laptop.content()['sets'])}"
        self.laptop.map("sets")[set_id] = Map(good_set())
        await self.laptop.settled()
        await self.phone.next("workout:set:completed", lambda told: told["set_id"] == set_id)
        assert self.errors() == []

    def errors(self) -> list[str]:
        return [
            f"{record.name}: {record.getMessage()}"
            for record in self.caplog.records
            if record.levelno >= logging.ERROR and record.name.partition(".")[0] in OURS
        ]

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[RawSocket]:
        async with raw_socket(self.server.url) as socket:
            yield socket

    @asynccontextmanager
    async def inside(self, user_id: str = "ana", **device: str) -> AsyncIterator[RawSocket]:
        """A raw socket in `/` and in the document."""
        async with self.raw() as socket:
            auth = {"token": self.server.token(user_id), "device": device or None}
            assert (await socket.enter("/", auth)).kind == CONNECT
            assert (await socket.enter(DOCUMENT, auth)).kind == CONNECT
            yield socket


@pytest.fixture
async def scene(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Scene]:
    async with running_server(tmp_path, max_update_bytes=MAX_UPDATE_BYTES) as server:
        phone = await server.events("ana")
        await phone.do("workout:create", {"workout_id": NAME.id})
        await phone.do(
            "workout:exercise:add",
            {"workout_id": NAME.id, "exercise_id": "squat", "exercise": {"name": "Squat"}},
        )
        laptop = await server.document("ana", NAME)
        yield Scene(server, phone, laptop, caplog)


def good_set(**fields: Any) -> dict[str, Any]:
    return {
        "user_id": "ana",
        "exercise": "squat",
        "order": "a0",
        "kind": "normal",
        "weight_kg": 60.0,
        "reps": 8.0,
        "completed_at": 1_700_000_000_000.0,
        **fields,
    }


def written(write: Callable[[Doc[Any]], None], **roots: Any) -> bytes:
    """The update of a client that starts from nothing and writes something."""
    # Of two values that were written at the same time, that of the higher client ID stays.
    doc: Doc[Any] = Doc(roots, client_id=2**53 - 1)
    with doc.transaction():
        write(doc)
    return doc.get_update()


# -- frames ---------------------------------------------------------------------------------------

FRAMES: dict[str, tuple[str | bytes, ...]] = {
    "an event to a namespace that was not joined": ('42/yjs|workout:other,7["sync-update",1]',),
    "an event to a namespace that there is not": ('42/admin,7["x"]',),
    "an event that is an object": ('42{"event":"time:sync"}',),
    "an event that is a number": ("42",),
    "an event that is a text": ('42"time:sync"',),
    "an event that is null": ("42null",),
    "an empty event": ("42[]",),
    "an event whose name is a number": ("42[1,{}]",),
    "an event whose name is an object": ('42[{"a":1},{}]',),
    "an event whose name is null": ("42[null]",),
    "an event without data": ("42",),
    "JSON that is cut short": ('42["time:sync",{"t0":',),
    "JSON that is too deep": ("42" + "[" * 50_000 + "]" * 50_000,),
    "a payload that is too deep": ('42["time:sync",' + "[" * 40_000 + "]" * 40_000 + "]",),
    "an ack that nobody asked for": ("439[1]",),
    "an ack with the id 0": ("430[1]",),
    "an ack with a huge id": ("43" + "9" * 90 + "[1]",),
    "an ack that is no list": ('431{"a":1}', "431", "431null"),
    "an ack in the document that is no list": (f'43{DOCUMENT},1{{"a":1}}',),
    "an event with a huge ack id": ("42" + "9" * 150 + '["time:sync",{"t0":1}]',),
    "a connect error from a client": ("44",),
    "an unknown packet type": ("49[1]",),
    "a packet type that is no digit": ("4x[1]",),
    "an empty message": ("4",),
    "a number of 10,000 digits": ('42["time:sync",{"t0":' + "9" * 10_000 + "}]",),
    "a number of 400 digits": ('42["time:sync",{"t0":' + "9" * 400 + "}]",),
    "an Engine.IO open": ("0{}",),
    "an Engine.IO upgrade": ("5",),
    "an Engine.IO no-operation": ("6",),
    "a pong that nobody asked for": ("3", "3", "3"),
    "a ping from the client": ("2",),
    "a binary message out of the blue": (b"\x00\x01\x02",),
    "a base64 message": ("bAAEC",),
    "NUL bytes": ('42["\x00\x00",{"\x00":"\x00"}]', '42["time:sync",{"t0":"\x00"}]'),
    "the same namespace again": (f"40{DOCUMENT},{{}}", "40{}"),
    "leaving a namespace that was not joined": ("41/yjs|workout:other,", "41/nothing,"),
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES.keys())
async def test_a_bad_frame_hurts_only_its_sender(
    scene: Scene, frames: tuple[str | bytes, ...]
) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        await socket.send(*frames)
        await socket.settled()


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES.keys())
async def test_a_bad_frame_of_somebody_who_is_not_in_hurts_nobody(
    scene: Scene, frames: tuple[str | bytes, ...]
) -> None:
    async with scene.unharmed(), scene.raw() as socket:
        await socket.send(*frames)
        await socket.enter("/", {"token": scene.server.token("ana")})


ENDS: dict[str, str | bytes] = {
    "a packet type that is no digit": "x",
    "a packet type beyond all": "9",
    "an empty packet": "",
    "JSON that is too deep": "2" + "[" * 100_000,
    "base64 that is none": "b!",
    "letters beyond ASCII": "\N{SUPERSCRIPT TWO}",
}


@pytest.mark.parametrize("frame", cases(ENDS))
async def test_a_packet_that_is_no_engine_io_leaves_no_ghost_behind(
    scene: Scene, frame: str | bytes
) -> None:
    async with scene.unharmed():
        async with scene.inside("ana") as socket:
            assert len(scene.server.parts.gateway._sessions) == 4
            await socket.send(frame)
            await socket.settled()
        await only_the_two_are_left(scene)


async def only_the_two_are_left(scene: Scene) -> None:
    """Wait until the server knows of no other connection."""
    for _ in range(200):
        if len(scene.server.parts.gateway._sessions) == 2:
            return
        await scene.phone.do("time:sync", {"t0": 1.0})
    raise AssertionError("a connection that has ended is still in its rooms")


async def test_bytes_that_are_no_utf_8_close_the_connection(scene: Scene) -> None:
    async with scene.unharmed():
        async with scene.inside() as socket:
            writer = socket._socket._writer
            await writer.send_frame(b"42\xff\xfe[", 1)
            await socket.closed()
        await only_the_two_are_left(scene)


async def test_a_packet_over_the_transport_cap_closes_the_connection(scene: Scene) -> None:
    async with scene.unharmed():
        async with scene.inside() as socket:
            await socket.send('42["' + "x" * TRANSPORT_CAP_BYTES + '"]')
            await socket.closed()
        await only_the_two_are_left(scene)


async def test_an_update_over_the_limit_is_answered(scene: Scene) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask("sync-update", bytes(MAX_UPDATE_BYTES + 1), namespace=DOCUMENT)
        assert answer["error"]["code"] == "too_large"
        assert await socket.settled()


async def test_attachments_that_never_come_hold_up_only_their_sender(scene: Scene) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        await socket.send(f'452-{DOCUMENT},7["sync-update",{{"_placeholder":true,"num":0}}]')
        await socket.send(b"\x00")


# -- connecting -----------------------------------------------------------------------------------

NAMESPACES = {
    "an unknown namespace": ("/admin", "not_found"),
    "no document": ("/yjs|", "invalid"),
    "a kind that there is not": ("/yjs|race:x", "invalid"),
    "an id that is missing": ("/yjs|workout:", "invalid"),
    "an id with a dot": ("/yjs|workout:a.b", "invalid"),
    "an id with a slash": ("/yjs|workout:../w", "invalid"),
    "an id with a space": ("/yjs|workout:a b", "invalid"),
    "an id with a NUL byte": ("/yjs|workout:w\x00", "invalid"),
    "an id with a line break": ("/yjs|workout:w\n", "invalid"),
    "an id beyond ASCII": ("/yjs|workout:\N{ARABIC-INDIC DIGIT ONE}", "invalid"),
    "an id that is too long": ("/yjs|workout:" + "x" * 65, "invalid"),
    "a document that there is not": ("/yjs|workout:none", "not_found"),
}


@pytest.mark.parametrize(("namespace", "code"), NAMESPACES.values(), ids=NAMESPACES.keys())
async def test_a_namespace_that_cannot_be_entered_is_a_connect_error(
    scene: Scene, namespace: str, code: str
) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        refused = await socket.enter(namespace, {"token": scene.server.token("ana")})
        assert refused.kind == CONNECT_ERROR
        assert refused.data["message"] == code
        assert refused.data["data"]["code"] == code
        assert await socket.settled()


AUTHS = {
    "nothing": None,
    "a list": [],
    "a text": "token",
    "a number": 1,
    "an empty object": {},
    "a token that is a number": {"token": 1},
    "a token that is an object": {"token": {}},
    "a token that is no token": {"token": "x.y.z"},
    "a token with a NUL byte": {"token": "a.b.c\x00"},
    "a token beyond ASCII": {"token": "\N{SNOWMAN}.\N{SNOWMAN}.\N{SNOWMAN}"},
    "a token with half a letter": {"token": "\ud800"},
    "a token that is too long": {"token": "x" * 10_000},
}


@pytest.mark.parametrize("auth", cases(AUTHS))
async def test_an_auth_that_is_none_is_refused(scene: Scene, auth: Any) -> None:
    async with scene.unharmed(), scene.raw() as socket:
        for namespace in ("/", DOCUMENT):
            refused = await socket.enter(namespace, auth)
            assert refused.kind == CONNECT_ERROR
            assert refused.data["message"] == "unauthenticated"


CLAIMS: dict[str, dict[str, Any]] = {
    "an end that is a text of digits": {"exp": "9999999999"},
    "an end that is no float": {"exp": 10**400},
    "an end that is NaN": {"exp": float("nan")},
    "a beginning that is true": {"nbf": True},
    "an id that is a list": {"jti": ["1"]},
    "a user that is a map": {"sub": {"id": "ana"}},
    "a role that is a list": {"role": ["admin"]},
}


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS.keys())
async def test_odd_claims_are_refused_even_when_they_are_signed(
    scene: Scene, claims: dict[str, Any]
) -> None:
    secret = (scene.server.folder / "jwt_secret").read_text()
    # Without the library's own checks, which a signer elsewhere need not have.
    payload = json.dumps({"sub": "ana", "exp": 2**33, **claims}).encode()
    token = jwt.api_jws.encode(payload, secret, "HS256")
    async with scene.unharmed(), scene.inside() as socket, scene.raw() as stranger:
        for namespace in ("/", DOCUMENT):
            refused = await stranger.enter(namespace, {"token": token})
            assert refused.data["message"] == "unauthenticated"
        answer = await socket.ask("auth:refresh", {"token": token})
        assert answer["error"]["code"] == "unauthenticated"


DEVICES = {
    "a text": "phone",
    "a list": [],
    "an id that is a number": {"id": 1},
    "an id that is too long": {"id": "x" * 101},
    "a name that is null": {"name": None},
}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())
async def test_a_device_that_is_none_is_refused(scene: Scene, device: Any) -> None:
    async with scene.unharmed(), scene.raw() as socket:
        refused = await socket.enter("/", {"token": scene.server.token("ana"), "device": device})
        assert refused.data["message"] == "invalid"


async def test_half_a_letter_in_a_devices_name_hurts_nobody(scene: Scene) -> None:
    async with scene.unharmed(), scene.raw() as socket:
        auth = {
            "token": scene.server.token("ana"),
            "device": {"id": "\ud800", "name": "\udfff"},
        }
        if (await socket.enter("/", auth)).kind == CONNECT:
            answer = await socket.ask(
                "workout:set:complete",
                {"workout_id": NAME.id, "exercise_id": "none", "set": {"reps": 5}},
            )
            assert answer["error"]["code"] == "not_found"
            assert (await socket.ask("workout:join", {"workout_id": NAME.id}))["ok"]


async def test_a_set_of_a_device_with_half_a_letter_is_no_internal_error(scene: Scene) -> None:
    async with scene.raw() as socket:
        auth = {"token": scene.server.token("ana"), "device": {"id": "\ud800"}}
        entered = await socket.enter("/", auth)
        if entered.kind == CONNECT:
            answer = await socket.ask(
                "workout:set:complete",
                {"workout_id": NAME.id, "exercise_id": "squat", "set": {"reps": 5}},
            )
            assert answer["ok"] or answer["error"]["code"] == "invalid"
        else:
            assert entered.data["message"] == "invalid"
    assert scene.errors() == []


# -- events ---------------------------------------------------------------------------------------

HALF_A_LETTER = "\ud800"

PAYLOADS: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "no payload": ("workout:sync", (), "invalid"),
    "null": ("workout:sync", (None,), "invalid"),
    "a list": ("workout:sync", ([],), "invalid"),
    "a text": ("workout:sync", ("w",), "invalid"),
    "binary": ("workout:sync", (b"\x00",), "invalid"),
    "binary in a field": ("workout:sync", ({"workout_id": "w"}, b"x"), "invalid"),
    "two payloads": ("workout:sync", ({"workout_id": "w"}, {}), "invalid"),
    "an unknown event": ("workout:dance", ({},), "not_found"),
    "an event that starts like one of Python's": ("__init__", ({},), "not_found"),
    "the name of a Socket.IO event": ("disconnect", ({},), "not_found"),
    "the name of another one": ("connect", ({},), "not_found"),
    "a huge name": ("x" * 10_000, ({},), "not_found"),
    "half a letter as a name": (HALF_A_LETTER, ({},), "not_found"),
    "an event of the document": ("sync-update", ({},), "not_found"),
    "an unknown field": ("workout:sync", ({"workout_id": "w", "x": 1},), "invalid"),
    "half a letter as a field": ("workout:sync", ({HALF_A_LETTER: 1},), "invalid"),
    "half a letter as an id": ("workout:sync", ({"workout_id": HALF_A_LETTER},), "invalid"),
    "an id that is a number": ("workout:sync", ({"workout_id": 1},), "invalid"),
    "an id with a line break": ("workout:sync", ({"workout_id": "w\n"},), "invalid"),
    "an id with a NUL byte": ("workout:sync", ({"workout_id": "w\x00"},), "invalid"),
    "an id with a quote": ("workout:sync", ({"workout_id": "w' OR 1=1 --"},), "invalid"),
    "an id that is a path": ("workout:sync", ({"workout_id": "../../w"},), "invalid"),
    "an id that is too long": ("workout:sync", ({"workout_id": "x" * 65},), "invalid"),
    "half a letter as a title": ("workout:create", ({"title": HALF_A_LETTER},), "invalid"),
    "an operation id that is none": ("workout:create", ({"op_id": "1"},), "invalid"),
    "an operation id that is a number": ("workout:create", ({"op_id": 1},), "invalid"),
    "streams that are a text": ("subscribe", ({"streams": "x"},), "invalid"),
    "too many streams": ("subscribe", ({"streams": ["x"] * 1_000},), "invalid"),
    "a time that is true": ("time:sync", ({"t0": True},), "invalid"),
    "a time that is a text": ("time:sync", ({"t0": "1"},), "invalid"),
    "a new token that is none": ("auth:refresh", ({"token": "x.y.z"},), "unauthenticated"),
    "a new token that is a number": ("auth:refresh", ({"token": 1},), "invalid"),
    "a new token that is too long": ("auth:refresh", ({"token": "x" * 9_000},), "invalid"),
    "half a letter as a token": ("auth:refresh", ({"token": HALF_A_LETTER},), "invalid"),
    "a revocation by nobody": ("auth:revoke", ({"user_id": "ana"},), "forbidden"),
    "a revocation of nothing": ("auth:revoke", ({},), "forbidden"),
    "a revocation of half a letter": ("auth:revoke", ({"user_id": HALF_A_LETTER},), "invalid"),
}

SETS: dict[str, dict[str, Any]] = {
    "reps below none": {"reps": -1},
    "reps that are a fraction": {"reps": 1.5},
    "reps that are true": {"reps": True},
    "reps that are a text": {"reps": "5"},
    "reps beyond all": {"reps": 10**30},
    "a weight beyond all": {"weight_kg": 1e300},
    "a weight that is NaN": {"weight_kg": float("nan")},
    "a weight that is infinite": {"weight_kg": float("inf")},
    "a kind that there is not": {"kind": "heavy"},
    "a note that is too long": {"note": "x" * 4_001},
    "half a letter in the note": {"note": HALF_A_LETTER},
    "a time before 1970": {"completed_at": -1},
    "a time beyond all": {"completed_at": 2**53},
    "an order of its own": {"order": "a0"},
    "a user of its own": {"user_id": "ben"},
}
PAYLOADS |= {
    name: (
        "workout:set:complete",
        ({"workout_id": "w", "exercise_id": "squat", "set": measures},),
        "invalid",
    )
    for name, measures in SETS.items()
}


@pytest.mark.parametrize(("event", "args", "code"), PAYLOADS.values(), ids=PAYLOADS.keys())
async def test_a_bad_payload_is_answered_with_a_code(
    scene: Scene, event: str, args: tuple[Any, ...], code: str
) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask(event, *args)
        assert answer["ok"] is False
        assert answer["error"]["code"] == code
        if code == "invalid":
            assert all({"path", "message"} <= set(found) for found in answer["error"]["details"])
        assert await socket.settled()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_number_that_json_does_not_have_is_never_sent_back(
    scene: Scene, number: str
) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        await socket.send(f'427["time:sync",{{"t0":{number}}}]')
        answer = await socket.answer(7)
        assert answer["ok"] is False
        assert answer["error"]["code"] == "invalid"


@pytest.mark.parametrize("args", [(), ("AAA=",), (None,), ([0],), ({},), (b"\x00\x00", 1)])
@pytest.mark.parametrize("event", ["sync-step-1", "sync-update", "awareness-update"])
async def test_what_is_no_binary_is_refused_in_a_documents_namespace(
    scene: Scene, event: str, args: tuple[Any, ...]
) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask(event, *args, namespace=DOCUMENT)
        assert answer["error"]["code"] == "invalid"
        assert await socket.settled()


@pytest.mark.parametrize("event", ["workout:sync", "subscribe", "auth:revoke", "nothing"])
async def test_an_intent_in_a_documents_namespace_is_not_found(scene: Scene, event: str) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask(event, {"workout_id": "w"}, namespace=DOCUMENT)
        assert answer["error"]["code"] == "not_found"


# -- Yjs ------------------------------------------------------------------------------------------

HUGE = b"\xff" * 9 + b"\x01"

VECTORS = {
    "nothing": b"",
    "cut short": b"\x05\x01",
    "a count beyond all": HUGE,
    "a count without an end": b"\xff" * 100,
    "noise": bytes(range(255, 0, -1)),
}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())
async def test_a_state_vector_that_is_none_is_refused(scene: Scene, vector: bytes) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask("sync-step-1", vector, namespace=DOCUMENT)
        assert answer["error"]["code"] == "invalid"
        assert await socket.settled()


def nested(depth: int) -> bytes:
    value: Any = "end"
    for _ in range(depth):
        value = {"a": value}

    def write(doc: Doc[Any]) -> None:
        doc["sets"]["s"] = value

    return written(write, sets=Map())


def nested_maps(depth: int) -> bytes:
    def write(doc: Doc[Any]) -> None:
        parent = doc["sets"]
        for _ in range(depth):
            parent["a"] = Map({})
            parent = parent["a"]

    return written(write, sets=Map())


def gap() -> bytes:
    doc: Doc[Any] = Doc()
    sets = doc.get("sets", type=Map)
    sets["a"] = "first"
    missed = doc.get_state()
    sets["b"] = "second"
    return doc.get_update(missed)


def whole() -> bytes:
    return written(lambda doc: doc["sets"].update({"x": good_set()}), sets=Map())


GARBAGE = {
    "nothing": b"",
    "one byte": b"\x01",
    "a count beyond all": HUGE,
    "ones": b"\xff" * 1_000,
    "one client with no blocks that end": b"\x01" + HUGE,
    "a struct of no kind": b"\x01\x01\x01\x00\x1f\x00\x00",
    "a delete set that is cut short": b"\x00\x01",
    "text": b"sync-update",
    **{f"cut after {n} bytes": whole()[:n] for n in (1, 5, 10, 20, 40)},
    "cut before the end": whole()[:-1],
}


@pytest.mark.parametrize("update", GARBAGE.values(), ids=GARBAGE.keys())
async def test_an_update_that_is_none_is_refused(scene: Scene, update: bytes) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask("sync-update", update, namespace=DOCUMENT)
        assert answer["error"]["code"] == "invalid"
        assert await socket.settled()
        assert [told["code"] for told in socket.events("sync-rejected")] == ["invalid"]


async def test_an_update_with_a_gap_is_unsynced_and_its_client_is_asked_to_sync(
    scene: Scene,
) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask("sync-update", gap(), namespace=DOCUMENT)
        assert answer["error"]["code"] == "unsynced"
        assert answer["error"]["retryable"] is True
        assert await socket.settled()
        assert socket.events("sync-reset") == [{"reason": "unsynced"}]
        assert socket.events("sync-rejected") == []


async def test_deletions_of_what_nobody_knows_are_unsynced(scene: Scene) -> None:
    update = b"\x00" + b"\x01" + var_uint(4711) + b"\x01\x00\x05"
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask("sync-update", update, namespace=DOCUMENT)
        assert answer["error"]["code"] == "unsynced"


async def test_an_empty_update_is_fine_and_changes_nothing(scene: Scene) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        assert (await socket.ask("sync-update", EMPTY_UPDATE, namespace=DOCUMENT))["ok"] is True


def plain_set(**fields: Any) -> bytes:
    """A set under a random id, as one plain value or as a shared map."""

    def write(doc: Doc[Any]) -> None:
        doc["sets"][f"p-{uuid4()}"] = Map(good_set(**fields))

    return written(write, sets=Map())


def put(root: str, key: str, value: Any) -> bytes:
    def write(doc: Doc[Any]) -> None:
        doc[root][key] = value

    return written(write, **{root: Map()})


POISON: dict[str, Callable[[], bytes]] = {
    "values nested 50 deep": lambda: nested(50),
    "values nested 5,000 deep": lambda: nested(5_000),
    "maps nested 50 deep": lambda: nested_maps(50),
    "maps nested 1,000 deep": lambda: nested_maps(1_000),
    "a text where a map is due": lambda: written(
        lambda doc: doc["sets"].insert(0, "x"), sets=Text()
    ),
    "an array where a map is due": lambda: written(
        lambda doc: doc["exercises"].append("x"), exercises=Array()
    ),
    "a map where a text is due, in another document": lambda: put("notes", "a", "b"),
    "a root that there is not": lambda: put("extras", "a", "b"),
    "a set that is a text": lambda: put("sets", "p", "x"),
    "a set that is a shared text": lambda: put("sets", "p", Text("x")),
    "a set that is a list": lambda: put("sets", "p", [1, 2]),
    "a set that is null": lambda: put("sets", "p", None),
    "an exercise that is a number": lambda: put("exercises", "p", 1.0),
    "an exercise whose sets are none": lambda: put("exercises", "p", Map({"target": "x"})),
    "an exercise whose name is a number": lambda: put("exercises", "p", Map({"name": 1.0})),
    "a timer that is a text": lambda: put("timers", "ana", "x"),
    "a title that is a number": lambda: put("meta", "title", 1.0),
    "a visibility that there is not": lambda: put("meta", "visibility", "everybody"),
    "a document in a document": lambda: put("sets", "p", Doc()),
    "bytes in a set": lambda: plain_set(note=b"\x00\x01"),
    "an id with a NUL byte": lambda: put("sets", "a\x00b", Map(good_set())),
    "an id that is empty": lambda: put("sets", "", Map(good_set())),
    "an id that is too long": lambda: put("sets", "x" * 10_000, Map(good_set())),
    "a weight that is NaN": lambda: plain_set(weight_kg=float("nan")),
    "a weight that is infinite": lambda: plain_set(weight_kg=float("inf")),
    "a weight beyond all": lambda: plain_set(weight_kg=1e308, reps=1e308),
    "reps beyond all": lambda: plain_set(weight_kg=None, reps=1e300),
    "reps beyond 64 bits": lambda: plain_set(weight_kg=None, reps=2.0**63),
    "a weight below none": lambda: plain_set(weight_kg=-5.0),
    "seconds beyond all": lambda: plain_set(weight_kg=None, reps=None, seconds=1e308),
    "a user who is somebody else": lambda: plain_set(user_id="ben"),
    "a user who is a number": lambda: plain_set(user_id=1.0),
    "an exercise that is a map": lambda: plain_set(exercise={"a": 1}),
    "an order that is a number": lambda: plain_set(order=1.0),
    "a field that there is not": lambda: plain_set(extra="x"),
}


MAY_STAY = {
    # Of another version, or of a client's own: nobody reads them, so they do no harm.
    "a field that there is not",
    # What stands in a root but under no key: no reader of maps sees it.
    "a text where a map is due",
    "an array where a map is due",
    # Numbers that JSON does not know are shown as null, and count as nothing.
    "a weight that is NaN",
    "a weight that is infinite",
}


@pytest.mark.parametrize(
    "make", cases({name: make for name, make in POISON.items() if name not in MAY_STAY})
)
async def test_a_value_that_the_schema_does_not_have_is_refused(
    scene: Scene, make: Callable[[], bytes]
) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask("sync-update", make(), namespace=DOCUMENT)
        assert answer["ok"] is False
        assert answer["error"]["code"] in ("invalid", "forbidden")
        assert await socket.settled()


@pytest.mark.parametrize("make", cases(POISON))
async def test_a_value_that_the_schema_does_not_have_breaks_nothing(
    scene: Scene, make: Callable[[], bytes]
) -> None:
    """Whether it is taken in or not: everybody else can go on."""
    async with scene.inside() as socket:
        await socket.ask("sync-update", make(), namespace=DOCUMENT)
        assert await socket.settled()
    assert scene.errors() == []
    synced = await scene.phone.ask("workout:sync", {"workout_id": NAME.id}, timeout_s=5)
    assert synced["ok"]
    json.dumps(synced, allow_nan=False)
    async with scene.unharmed():
        pass
    for event, data in (
        ("workout:exercise:add", {"exercise": {"name": "Plank"}}),
        ("workout:exercise:move", {"exercise_id": "squat"}),
        ("workout:set:complete", {"exercise_id": "squat", "set": {"reps": 5}}),
        ("workout:exercise:update", {"exercise_id": "squat", "exercise": {"note": "low bar"}}),
        ("workout:start", {}),
    ):
        await scene.phone.do(event, {"workout_id": NAME.id, **data})
    assert scene.errors() == []


# -- awareness ------------------------------------------------------------------------------------


def awareness(client_id: int, text: str, clock: int = 1) -> bytes:
    return var_uint(1) + var_uint(client_id) + var_uint(clock) + var_bytes(text.encode())


AWARENESS = {
    "nothing": b"",
    "cut short": b"\x01\x05\x01\x20{",
    "a count beyond all": b"\xff\xff\xff\x7f",
    "noise": bytes(range(1, 256)),
    "a state that is no JSON": awareness(5, "{"),
    "a state that is a list": awareness(5, "[]"),
    "a state that is no UTF-8": b"\x01\x05\x01\x04\xff\xfe\xff\xfe",
    "a state that is too deep": awareness(5, "[" * 10_000),
    "NaN": awareness(5, '{"x":NaN}'),
    "infinity": awareness(5, '{"x":-Infinity}'),
    "a number beyond all": awareness(5, '{"x":1e999}'),
    "a number of many digits": awareness(5, '{"x":' + "9" * 5_000 + "}"),
    "a client id that JavaScript cannot read": awareness(2**54, "{}"),
    "a clock that JavaScript cannot read": awareness(5, "{}", 2**54),
}


@pytest.mark.parametrize("update", cases(AWARENESS))
async def test_a_presence_that_is_none_is_refused(scene: Scene, update: bytes) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask("awareness-update", update, namespace=DOCUMENT)
        assert answer["ok"] is False
        assert answer["error"]["code"] == "invalid"
        assert await socket.settled()
        newcomer = await scene.server.document("ana", NAME)
        assert newcomer.awareness == []


async def test_a_presence_that_is_too_large_is_refused(scene: Scene) -> None:
    update = encode_awareness([AwarenessEntry(5, 1, {"x": "y" * 20_000})])
    async with scene.unharmed(), scene.inside() as socket:
        answer = await socket.ask("awareness-update", update, namespace=DOCUMENT)
        assert answer["error"]["code"] == "too_large"


async def test_an_engine_io_close_ends_the_session_at_once(scene: Scene) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        await socket.send("1")
        await only_the_two_are_left(scene)


async def test_half_a_letter_in_a_presence_hurts_nobody(scene: Scene) -> None:
    async with scene.unharmed(), scene.inside() as socket:
        update = awareness(5, '{"x":"\\ud800"}')
        assert await socket.ask("awareness-update", update, namespace=DOCUMENT) is not None
        assert await socket.settled()
        newcomer = await scene.server.document("ana", NAME)
        assert newcomer.content() == scene.laptop.content()
