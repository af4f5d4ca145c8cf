"""Packets that no client sends, from somebody who is in.

Each row: what is sent, and what becomes of it. `CUT`: the connection ends. `STAYS`: nothing, it is
as if it had not been sent. `WAITS`: the server waits for what is missing. Otherwise the code with
which the ack 7 answers.
"""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest

from tests.helpers.sockets import ACK, CONNECT, CONNECT_ERROR, RawSocket
from tests.hostile.stage import DOCUMENT, MAX_PACKET_BYTES, READER, WRITER, Stage, token

CUT, STAYS, WAITS = "cut", "stays", "waits"

Frames = tuple[str | bytes, ...]


def event(name: Any, *args: Any, ack: str = "7", namespace: str = "") -> str:
    return f"42{namespace}{ack}{json.dumps([name, *args])}"


def attached(count: str, *nums: Any, name: str = "sync-update", ack: str = "7") -> str:
    """The text of an event with `count` attachments and these placeholders."""
    places = [{"_placeholder": True, "num": num} for num in nums]
    return f"45{count}{DOCUMENT},{ack}{json.dumps([name, *places])}"


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


PACKETS: dict[str, tuple[Frames, str]] = {
    # -- Engine.IO
    "a packet type that is no digit": (("x",), CUT),
    "a packet type that there is not": (("7",), CUT),
    "a packet type of another script": (("٤2[]",), CUT),
    "an empty packet": (("",), CUT),
    "an open from a client": (("0{}",), CUT),
    "a ping from a client": (("2",), CUT),
    "an upgrade of what is a websocket": (("5",), CUT),
    "pongs that nobody asked for": (("3", "3probe", "3", "6"), STAYS),
    # -- Socket.IO
    "a message without a packet": (("4",), STAYS),
    "a type that is no digit": (("4x[]",), CUT),
    "a type that there is not": (("49[]",), STAYS),
    "a type of another script": (('4²["time:sync",{"t0":1}]',), CUT),
    "a connect error from a client": (('44{"message":"no"}',), STAYS),
    "an event that is no list": (('42{"0":"time:sync"}',), STAYS),
    "an event without a name": (("42[]",), STAYS),
    "a name that is no text": (('427[{"name":"time:sync"},{}]',), STAYS),
    "JSON that is cut short": (('427["time:sync",{"t0":1}',), CUT),
    "JSON with more behind it": (('427["time:sync",{"t0":1}]x',), CUT),
    "no JSON": (("427time:sync",), CUT),
    # -- names and values of JSON
    "an unknown event": ((event("admin:shutdown", {}),), "not_found"),
    "a name from Python": ((event("__class__", {}),), "not_found"),
    "a name of 100,000 letters": ((event("x" * 100_000, {}),), "not_found"),
    "half a letter": ((event("\ud800", {}),), "not_found"),
    "half a letter as a value": ((event("workout:sync", {"workout_id": "\udfff"}),), "invalid"),
    "NUL in a value": ((event("workout:sync", {"workout_id": "w\0"}),), "invalid"),
    "NaN": (('427["time:sync",{"t0":NaN}]',), "invalid"),
    "infinity": (('427["time:sync",{"t0":-Infinity}]',), "invalid"),
    "a number beyond all": (('427["time:sync",{"t0":1e999}]',), "invalid"),
    "a number of 5,000 digits": (('427["time:sync",{"t0":' + "9" * 5_000 + "}]",), CUT),
    "__proto__": ((event("workout:sync", {"__proto__": {"workout_id": "w"}}),), "invalid"),
    "constructor": ((event("workout:sync", {"constructor": {"prototype": {}}}),), "invalid"),
    "a key a hundred times": (('427["time:sync",{' + '"t0":"x",' * 99 + '"t0":"x"}]',), "invalid"),
    "a text of 100,000 letters": ((event("auth:refresh", {"token": "x" * 100_000}),), "invalid"),
    "values nested 100 deep": ((f'427["time:sync",{{"t0":{deep(100)}}}]',), "invalid"),
    "values nested 50,000 deep": ((f'427["time:sync",{deep(50_000)}]',), CUT),
    "a packet nested 50,000 deep": ((f"42{deep(50_000)}",), CUT),
    "a packet over the transport's cap": ((event("x" * MAX_PACKET_BYTES),), CUT),
    # -- acks
    "an ack that nobody asked for": (('4399["x"]', f'43{DOCUMENT},99["x"]'), STAYS),
    "an ack of the server's question that is no binary": ((f'43{DOCUMENT},1["x"]',), STAYS),
    "an ack that is no list": (('431{"a":1}', "431", "43", f"43{DOCUMENT},1null"), STAYS),
    "an ack id of 16 digits": ((event("time:sync", {"t0": 1}, ack="9" * 16),), CUT),
    "an ack id of 99 digits": ((event("time:sync", {"t0": 1}, ack="9" * 99),), CUT),
    "an ack id of 200 digits": ((event("time:sync", {"t0": 1}, ack="9" * 200),), CUT),
    "an ack id of another script": ((event("time:sync", {"t0": 1}, ack="٧"),), STAYS),
    "an ack with an attachment that nobody asked for": ((f'461-{DOCUMENT},9["x"]', b"x"), STAYS),
    # -- attachments
    "an attachment out of the blue": ((b"\x00\x01",), CUT),
    "more attachments than were announced": ((attached("1-", 0), b"\x00\x00", b"\x00"), CUT),
    "text where an attachment is due": ((attached("1-", 0), event("time:sync", {"t0": 1})), CUT),
    "a number of attachments that is none": ((attached("x-", 0), b""), CUT),
    "no attachments in a binary packet": ((attached("0-"),), CUT),
    "a binary packet without their number": ((attached("", 0),), CUT),
    "eleven attachments": ((attached("11-", 0),), CUT),
    "ten digits of attachments": ((attached("9999999999-", 0),), CUT),
    "attachments in a packet of text": (('421-7["time:sync",{"t0":1}]',), CUT),
    "a placeholder that is out of range": ((attached("1-", 1), b"\x00"), CUT),
    "a placeholder below zero": ((attached("1-", -2), b"\x00"), CUT),
    "a placeholder of a huge number": ((attached("1-", 2**70), b"\x00"), CUT),
    "a placeholder that is a text": ((attached("1-", "0"), b"\x00"), CUT),
    "a placeholder that is a list": ((attached("1-", []), b"\x00"), CUT),
    "a placeholder in a placeholder": (
        (attached("1-", {"_placeholder": True, "num": 0}), b"\x00"),
        CUT,
    ),
    "one attachment in two places": ((attached("1-", 0, 0), b"\x00\x00"), "invalid"),
    "an attachment in no place": ((attached("1-"), b"\x00"), "invalid"),
    "attachments larger than the cap together": (
        (attached("3-", 0, 1, 2), *(bytes(MAX_PACKET_BYTES // 2) for _ in range(3))),
        CUT,
    ),
    "an attachment for a namespace that was not joined": (
        (f'451-/yjs|workout:no,["sync-update",{json.dumps({"_placeholder": True, "num": 0})}]',),
        CUT,
    ),
    "an attachment that never comes": ((attached("2-", 0, 1), b"\x00"), WAITS),
    # -- namespaces
    "an event to a namespace that was not joined": (
        (event("sync-update", 1, namespace="/yjs|workout:no,"),),
        STAYS,
    ),
    "an event to a namespace that there is not": (
        (event("time:sync", {"t0": 1}, namespace="/admin,"),),
        STAYS,
    ),
    "a namespace without an end": ((f"42{DOCUMENT}",), STAYS),
    "an intent in the document": (
        (event("workout:sync", {"workout_id": "w"}, namespace=f"{DOCUMENT},"),),
        "not_found",
    ),
    "text where the document wants binary": (
        (event("sync-update", "AAA=", namespace=f"{DOCUMENT},"),),
        "invalid",
    ),
    "a namespace with a comma, which ends it": (("40/yjs|workout:a,b,{}",), CUT),
    "the same namespaces again": (("40{}", f"40{DOCUMENT},{{}}", "40null", "40[]"), STAYS),
    "leaving where one is not": (("41/nowhere,", "41/yjs|workout:no,"), STAYS),
}


@pytest.mark.parametrize("user_id", [WRITER, READER])
@pytest.mark.parametrize(("frames", "outcome"), PACKETS.values(), ids=PACKETS.keys())
async def test_a_packet_that_no_client_sends_hurts_nobody_else(
    stage: Stage, user_id: str, frames: Frames, outcome: str
) -> None:
    async with stage.unharmed(), stage.inside(user_id) as socket:
        await socket.send(*frames)
        await becomes(socket, outcome)


async def becomes(socket: RawSocket, outcome: str) -> None:
    if outcome == CUT:
        await socket.closed()
    elif outcome == STAYS:
        assert await socket.settled()
    elif outcome != WAITS:
        answered = await socket.find(lambda packet: packet.kind == ACK and packet.id == 7)
        [answer] = answered.data
        assert answer["ok"] is False
        assert answer["error"]["code"] == outcome
        assert await socket.settled()


# -- connecting -----------------------------------------------------------------------------------

NAMESPACES = {
    "one that there is not": ("/admin", "not_found"),
    "one that starts like the document's": ("/yjs", "not_found"),
    "no document": ("/yjs|", "invalid"),
    "a kind that there is not": ("/yjs|user:ana", "invalid"),
    "a query, which is cut off": ("/yjs|workout:none?x=1", "not_found"),
    "a path": ("/yjs|workout:../w", "invalid"),
    "two dots": ("/yjs|workout:..", "invalid"),
    "a slash": ("/yjs|workout:w/", "invalid"),
    "a percent": ("/yjs|workout:%77", "invalid"),
    "NUL": ("/yjs|workout:w\0", "invalid"),
    "a line break": ("/yjs|workout:w\r\n", "invalid"),
    "another script": ("/yjs|workout:ｗ", "invalid"),
    "an id of 65 letters": ("/yjs|workout:" + "x" * 65, "invalid"),
    "an id of 100,000 letters": ("/yjs|workout:" + "x" * 100_000, "invalid"),
    "a document that there is not": ("/yjs|workout:none", "not_found"),
    "a pattern": ("/yjs|workout:*", "invalid"),
}


@pytest.mark.parametrize(("namespace", "code"), NAMESPACES.values(), ids=NAMESPACES.keys())
async def test_a_namespace_that_is_none_is_a_connect_error(
    stage: Stage, namespace: str, code: str
) -> None:
    async with stage.unharmed(), stage.inside() as socket:
        before = len(socket.received)
        await socket.send(f"40{namespace},{json.dumps({'token': token(WRITER)})}")
        refused = await socket.find(lambda packet: packet.kind == CONNECT_ERROR, before)
        assert refused.data["message"] == refused.data["data"]["code"] == code
        assert await socket.settled()


UNSIGNED = jwt.encode({"sub": "ana", "exp": 2**33}, None, "none")

TOKENS: dict[str, Any] = {
    "no auth": None,
    "a list": [],
    "a token that is a list": {"token": ["x"]},
    "no token at all": {"token": "x"},
    "a signature of nobody": {"token": token("ana")[:-4] + "AAAA"},
    "an algorithm of its own": {"token": UNSIGNED},
    "a token of 100,000 letters": {"token": "x" * 100_000},
    "a user that is no text": {"token": token("ana", sub=["ana"])},
    "a role that there is not": {"token": token("ana", role="root")},
}


@pytest.mark.parametrize("auth", TOKENS.values(), ids=TOKENS.keys())
async def test_who_cannot_say_who_they_are_stays_outside(stage: Stage, auth: Any) -> None:
    async with stage.unharmed(), stage.outside() as socket:
        for namespace in ("/", DOCUMENT):
            refused = await socket.enter(namespace, auth)
            assert refused.kind == CONNECT_ERROR
            assert refused.data["message"] == "unauthenticated"


BEFORE_CONNECTING: dict[str, Frames] = {
    "an event": (event("workout:sync", {"workout_id": "w"}),),
    "an event of the document": (event("sync-update", 1, namespace=f"{DOCUMENT},"),),
    "a disconnect": ("41", f"41{DOCUMENT},"),
    "an ack": ('431["x"]',),
    "a connect error": ('44{"message":"x"}',),
    "a pong": ("3",),
}


@pytest.mark.parametrize("frames", BEFORE_CONNECTING.values(), ids=BEFORE_CONNECTING.keys())
async def test_what_comes_before_the_connect_is_not_heard(stage: Stage, frames: Frames) -> None:
    async with stage.unharmed(), stage.outside() as socket:
        await socket.send(*frames)
        entered = await socket.enter("/", {"token": token(WRITER)})
        assert entered.kind == CONNECT
        assert not any(packet.id is not None for packet in socket.received)


async def test_hundreds_of_namespaces_are_refused_one_by_one(stage: Stage) -> None:
    async with stage.unharmed(), stage.inside() as socket:
        before = len(socket.received)
        auth = json.dumps({"token": token(WRITER)})
        await socket.send(*(f"40/yjs|workout:none-{n},{auth}" for n in range(300)))
        await socket.find(lambda packet: packet.namespace == "/yjs|workout:none-299", before)
        refused = [p for p in socket.received[before:] if "none" in p.namespace]
        assert {packet.kind for packet in refused} == {CONNECT_ERROR}
        assert len(refused) == 300
        assert await socket.settled()


async def test_one_connection_cannot_be_in_a_hundred_documents(stage: Stage) -> None:
    async with stage.unharmed(), stage.inside() as socket:
        kinds = []
        for n in range(100):
            name = f"of-mallory-{n}"
            await socket.ask("workout:create", {"workout_id": name})
            entered = await socket.enter(f"/yjs|workout:{name}", {"token": token(WRITER)})
            kinds.append(entered.kind)
        assert CONNECT in kinds
        assert CONNECT_ERROR in kinds
        assert await socket.settled()


async def test_two_thousand_events_at_once_are_answered_in_order(stage: Stage) -> None:
    async with stage.unharmed(), stage.inside() as socket:
        before = len(socket.received)
        await socket.send(*(event("nothing", {}, ack=str(n)) for n in range(1_000, 3_000)))
        await socket.answer(2_999, since=before)
        asked = [packet.id for packet in socket.received[before:] if packet.kind == ACK]
        assert asked == list(range(1_000, 3_000))
