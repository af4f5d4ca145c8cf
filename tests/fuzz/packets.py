"""Bytes from the network: websocket frames, Engine.IO and Socket.IO packets, attachments.

An input's first byte says what the rest is: `f`, a stream of websocket frames as it stands on the
wire; anything else, a polling body, packets parted by U+001E with binary ones as `b` and base64.
The frames are read twice, whole and in small pieces; the body is posted, and its packets are sent
over a websocket as well.

What must hold: a client that breaks a rule is cut, and nothing else happens; the same packets mean
the same however they come; nothing of a client stays behind; and whoever behaves is heard.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import aiohttp
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from crdt.errors import NotFound
from server.transport.connection import Connection
from server.transport.packets import MAX_ACK_ID, Packet, PacketError
from server.transport.server import Ack
from server.transport.websocket import WebSocketPeer
from tests.fuzz.target import (
    ACCEPTED,
    ODD_TEXTS,
    Target,
    mutate_bytes,
    mutate_json,
    mutate_list,
    odd_value,
)
from tests.server.transport.support import FakeTransport, OpenDoor, alone, client_frame, offline

FRAMES, BODY = b"f", b"p"
PART = "\x1e"
LIMIT_BYTES = 64 * 1024
DOCUMENT = "/yjs|workout:w"
PIECE_BYTES = 7
MAX_ATTACHMENTS = 10
CUT = frozenset({None, "bad_packet", "too_large", "client_disconnect", "transport_closed"})
"""How a client's connection may end; None if it goes on."""

WELL_BEHAVED = (
    "40{}",
    f"40{DOCUMENT},{{}}",
    '42["time:sync",{"t0":1}]',
    '427["workout:sync",{"workout_id":"w"}]',
    f'451-{DOCUMENT},["sync-update",{{"_placeholder":true,"num":0}}]',
    "bAAEC",
    f'452-{DOCUMENT},3["x",{{"_placeholder":true,"num":1}},{{"_placeholder":true,"num":0}}]',
    "bAA==",
    "b/w==",
    '42["later",1]',
    '431["answer"]',
    "461-1[{}]",
    "3",
    "41",
    f"41{DOCUMENT},",
    "1",
)


class Packets(Target):
    name = "packets"

    def __init__(self) -> None:
        super().__init__()
        self._site = Site()

    def seeds(self) -> list[bytes]:
        bodies = [
            *([packet] for packet in WELL_BEHAVED),
            list(WELL_BEHAVED),
            list(WELL_BEHAVED[:9]),
            list(WELL_BEHAVED[4:6]),
            list(WELL_BEHAVED[6:9]),
        ]
        streams = [frames(body) for body in bodies]
        streams.append(client_frame(9, b"ping") + client_frame(8, b"\x03\xe8bye"))
        streams.append(
            b"\x01\x84\0\0\0\x0042[" + b'"x"' + b"\x80\x84\0\0\0\x00" + b'"x"]'  # two fragments
        )
        return [_body(body) for body in bodies] + [FRAMES + stream for stream in streams]

    def generate(self, random: Random) -> bytes:
        parts = [odd_packet(random) for _ in range(random.randrange(1, 8))]
        return _body(parts) if random.randrange(2) else FRAMES + odd_frames(parts, random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        if data[:1] == FRAMES:
            return self._other_frames(data[1:], random)
        parts = _text(data[1:]).split(PART)
        how = random.randrange(8)
        if how == 0:
            return BODY + mutate_bytes(data[1:], random)
        if how == 1:
            parts.insert(random.randrange(len(parts) + 1), odd_packet(random))
        elif how == 2:
            mutate_list(parts, random)
        elif how == 3 and random.randrange(4) == 0:
            return FRAMES + odd_frames(parts, random)
        else:
            at = random.randrange(len(parts))
            parts[at] = changed(parts[at], random)
        return _body(parts[:40])

    def _other_frames(self, stream: bytes, random: Random) -> bytes:
        how = random.randrange(4)
        if how == 0:
            return FRAMES + mutate_bytes(stream, random)
        if how == 1:
            return FRAMES + stream + odd_frames([odd_packet(random)], random)
        if how == 2:
            return FRAMES + odd_frames([odd_packet(random)], random) + stream
        # The head of the first frame: its flags, its kind, its length.
        head = bytearray(stream[:2].ljust(2, b"\0"))
        head[random.randrange(2)] ^= 1 << random.randrange(8)
        return FRAMES + bytes(head) + stream[2:]

    async def play(self, data: bytes, outcomes: Counter[str]) -> None:
        if data[:1] == FRAMES:
            whole = await self._site.over_websocket([data[1:]])
            pieces = [
                data[at : at + PIECE_BYTES] for at in range(1, min(len(data), 4_000), PIECE_BYTES)
            ]
            if len(data) <= 4_000:
                assert await self._site.over_websocket(pieces) == whole, "pieces mean another thing"
        else:
            text = _text(data[1:])
            for part in text.split(PART):
                read_packet(part)
            whole = await self._site.over_websocket([frames(text.split(PART))])
            polled = await self._site.over_polling(text.encode())
            self._mean_the_same(whole, polled)
        _, end = whole
        outcomes[end or ACCEPTED] += 1
        await self._site.hears_others()

    def _mean_the_same(self, one: Heard, other: Heard) -> None:
        (events, end), (polled, polled_end) = one, other
        if end == polled_end:
            assert events == polled
        else:
            # A body is limited as a whole, and what Engine.IO's own packets carry is read although
            # it means nothing.
            shorter, longer = sorted((events, polled), key=len)
            assert polled_end in ("bad_packet", "too_large"), (end, polled_end)
            assert longer[: len(shorter)] == shorter


Heard = tuple[list[Any], str | None]
"""The events that reached the door, and how the connection ended."""


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _body(parts: Sequence[str]) -> bytes:
    return BODY + PART.join(parts).encode(errors="replace")


def frames(parts: Sequence[str]) -> bytes:
    """The same packets as websocket frames, as far as they can be said in any."""
    found = []
    for part in parts:
        if part[:1] != "b":
            found.append(client_frame(1, part.encode(errors="surrogatepass")))
            continue
        try:
            found.append(client_frame(2, base64.b64decode(part[1:])))
        except ValueError:
            found.append(client_frame(1, b"b"))
    return b"".join(found)


def odd_frames(parts: Sequence[str], random: Random) -> bytes:
    """The packets as frames, one of them not as it should be."""
    stream = frames(parts)
    return random.choice(
        (
            stream,
            stream + client_frame(random.randrange(16), random.choice((b"", b"x", b"\x03\xe8"))),
            stream + client_frame(9, bytes(random.choice((0, 125, 126, 300)))),
            stream + b"\x81" + random.choice((b"\x7f", b"\xff")) + b"\xff" * 8 + b"\0" * 4,
            stream + b"\x81\xfe\x00\x01\0\0\0\x004",
            stream + b"\x80\x81\0\0\0\x004" + stream,
            b"\x01\x81\0\0\0\x004" + stream,
            b"".join(bytes((byte,)) + stream[1:40] for byte in (0x01, 0x80)),
            stream.replace(b"\x81\x82", b"\xc1\x82"),
            b"\x81\x0242" + stream,
        )
    )


def odd_packet(random: Random) -> str:
    """A packet as a client sends it, or nearly."""
    how = random.randrange(12)
    if how <= 6:
        return random.choice(WELL_BEHAVED)
    if how == 7:
        return random.choice(("b", "b!", "bAAEC", "b" + "AAAA" * 400, "2probe", "5", "6", "0{}"))
    if how == 8:
        return random.choice(ODD_TEXTS).replace(PART, "")
    kind = random.choice(("2", "2", "2", "5", "5", "3", "6", "0", "1", "4", "7", "²", "٣", ""))
    count = random.choice(("", "", "0-", "1-", "1-", "2-", "10-", "11-", "9999999999-", "²-"))
    namespace = random.choice(
        ("", "", f"{DOCUMENT},", DOCUMENT, "/other,", "/yjs|workout:a,b,", "/x?y=1,", "/..,")
    )
    ack_id = random.choice(("", "", "0", "7", str(MAX_ACK_ID), "9" * 20, "9" * 120, "٣", "-1"))
    data = random.choice(
        (
            ["time:sync", {"t0": 1}],
            ["later", 1],
            [odd_value(random), odd_value(random)],
            ["x", *(placeholder(random) for _ in range(random.randrange(1, 4)))],
            [placeholder(random)],
            odd_value(random),
        )
    )
    return f"4{kind}{count}{namespace}{ack_id}{_json(data)}"


def placeholder(random: Random) -> dict[str, Any]:
    num = random.choice((0, 0, 1, 2, -1, 10, 2**64, 0.0, True, None, "0", [], {}))
    return {"_placeholder": random.choice((True, True, 1, "x", False, None)), "num": num}


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 3_000


def changed(part: str, random: Random) -> str:
    """A packet with something in it changed: its JSON, its head, or a letter."""
    at = next((at for at, letter in enumerate(part) if letter in '[{"'), len(part))
    head, text = part[:at], part[at:]
    how = random.randrange(4)
    if how == 0 and text:
        try:
            return head + _json(mutate_json(json.loads(text), random))
        except (ValueError, RecursionError):
            return head
    if how == 1:
        spot = random.randrange(len(head) + 1)
        extra = random.choice(("0", "1", "9", "-", ",", "/", "?", "4", "5", "²", "1-", "/x,"))
        return head[:spot] + extra + head[spot + random.randrange(2) :] + text
    if how == 2:
        return random.choice(("4", "42", "451-", "452-", "461-", "43", "b")) + part[1:]
    return (
        mutate_bytes(part.encode(errors="replace"), random)
        .decode(errors="replace")
        .replace(PART, "")
    )


def read_packet(part: str) -> None:
    """What is read of a packet keeps within its limits, or is a PacketError and no other."""
    if part[:1] != "4":
        return
    try:
        packet = Packet.read(part[1:])
        assert 0 <= packet.attachment_count <= MAX_ATTACHMENTS
        assert packet.id is None or 0 <= packet.id < MAX_ACK_ID
        for _ in range(packet.attachment_count):
            if packet.add_part(b"\x00", LIMIT_BYTES):
                break
        else:
            assert not packet.attachment_count, "waits for more than it has announced"
    except PacketError:
        return


class Site:
    """A server of sockets without an address, with one client that behaves."""

    def __init__(self) -> None:
        self.door = OpenDoor(admit=self._admit, handle=self._handle)
        self.sockets: Any = None
        self.friend: Any = None

    async def _admit(self, namespace: str, sid: str, auth: Any) -> None:
        await asyncio.sleep(0)
        if namespace not in ("/", DOCUMENT):
            raise NotFound("there is no such namespace")

    def _handle(self, event: str, args: Sequence[Any], ack: Ack | None) -> Any:
        if event == "later":
            return self._handle_later(ack)
        if ack is not None:
            ack({"ok": True})
        return None

    async def _handle_later(self, ack: Ack | None) -> None:
        await asyncio.sleep(0)
        if ack is not None:
            ack({"ok": True})

    async def _open(self) -> None:
        if self.sockets is None:
            self.sockets = alone(self.door, max_packet_bytes=LIMIT_BYTES)
            self.friend, _ = offline(self.sockets, "friend")

    def _enter(self, *, polls: bool) -> tuple[Connection, FakeTransport]:
        connection, transport = offline(self.sockets, "guest")
        connection.namespaces[DOCUMENT] = "guest-document"
        self.sockets.manager.add("guest-document", connection)
        self.door.inside.update({"guest": "/", "guest-document": DOCUMENT})
        if polls:
            connection.peer, connection.upgraded = None, False
        else:
            # The one of `offline` takes longer messages.
            connection.peer = WebSocketPeer(connection, transport, LIMIT_BYTES)
        return connection, transport

    async def over_websocket(self, chunks: Sequence[bytes]) -> Heard:
        await self._open()
        connection, transport = self._enter(polls=False)
        for chunk in chunks:
            connection.peer.data_received(chunk)
            transport.take()
        return await self._heard(connection, transport)

    async def over_polling(self, body: bytes) -> Heard:
        await self._open()
        connection, _ = self._enter(polls=True)

        loop = asyncio.get_running_loop()
        content = aiohttp.StreamReader(BaseProtocol(loop), 2**16, loop=loop)
        content.feed_data(body)
        content.feed_eof()
        headers = {"Content-Length": str(len(body))}
        request = make_mocked_request("POST", "/socket.io/", headers=headers, payload=content)
        await connection.handle_post_request({"aiohttp.request": request})
        return await self._heard(connection, None)

    async def _heard(self, connection: Connection, transport: FakeTransport | None) -> Heard:
        while (worker := connection._worker) is not None:
            await asyncio.wait([worker])
        end = connection.close_reason
        if transport is not None and transport.is_closed:
            end = end or "transport_closed"
        assert end in CUT, end
        if transport is not None and (peer := connection.peer) is not None:
            peer.connection_lost(None)
        connection.cut("transport_closed")
        events, self.door.events = self.door.events, []
        assert list(self.sockets.eio.sockets) == [self.friend.sid], "left a connection behind"
        assert set(self.sockets.manager.clients) == {"friend"}, "left a client behind"
        assert not self.door.inside, "the door was not told that a client is gone"
        self.door.gone.clear()
        return events, end

    async def hears_others(self) -> None:
        self.friend.on_message('427["hello",1]')
        assert self.door.events == [("hello", [1])]
        self.door.events.clear()
        self.friend.peer.transport.take()
        self.friend.peer.transport.taken.clear()
