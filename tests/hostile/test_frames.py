"""Websocket frames that no client sends, byte for byte on a bare TCP connection.

Each row: the bytes after the handshake, and the code with which the server closes; None where it
goes on, and answers what comes next.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.hostile.stage import MAX_PACKET_BYTES, WRITER, Stage, token
from tests.server.transport.support import Deaf, client_frame, deaf

PROTOCOL_ERROR, POLICY, BAD_TEXT, TOO_BIG, NORMAL = 1002, 1008, 1007, 1009, 1000
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
FIN, MASKED = 0x80, 0x80
MASK = bytes(4)


def frame(first: int, payload: bytes = b"", *, masked: bool = True) -> bytes:
    """A short frame with any first byte."""
    assert len(payload) < 126
    if not masked:
        return bytes((first, len(payload))) + payload
    return bytes((first, MASKED | len(payload))) + MASK + payload


def claiming(size: int, width: int = 8) -> bytes:
    """The head of a text frame that claims a size."""
    mark = {2: 126, 8: 127}[width]
    return bytes((FIN | TEXT, MASKED | mark)) + size.to_bytes(width, "big") + MASK


HELLO = b'42["nothing",{}]'

FRAMES: dict[str, tuple[bytes, int | None]] = {
    # -- flags
    "the first reserved bit, as for deflate": (frame(FIN | 0x40 | TEXT, HELLO), PROTOCOL_ERROR),
    "the second reserved bit": (frame(FIN | 0x20 | TEXT, HELLO), PROTOCOL_ERROR),
    "all reserved bits": (frame(FIN | 0x70 | TEXT, HELLO), PROTOCOL_ERROR),
    "a kind that is reserved": (frame(FIN | 3, HELLO), PROTOCOL_ERROR),
    "a control frame that is reserved": (frame(FIN | 0xB, HELLO), PROTOCOL_ERROR),
    # The frame reader takes it; RFC 6455 would have the server close. It harms nobody.
    "a frame without a mask": (frame(FIN | TEXT, HELLO, masked=False), None),
    # -- fragments
    "a continuation of nothing": (frame(FIN, HELLO), PROTOCOL_ERROR),
    "a message within a message": (frame(TEXT, b"42[") + frame(FIN | TEXT, HELLO), PROTOCOL_ERROR),
    "a beginning after a beginning": (frame(TEXT, b"42[") + frame(TEXT, HELLO), PROTOCOL_ERROR),
    "two halves of a message": (frame(TEXT, HELLO[:5]) + frame(FIN, HELLO[5:]), None),
    "halves of a letter": (frame(TEXT, b'42["\xc3') + frame(FIN, b'\xa9",{}]'), None),
    "ten thousand fragments of nothing": (
        frame(TEXT, HELLO) + frame(0) * 10_000 + frame(FIN),
        None,
    ),
    "a ping between two halves": (
        frame(TEXT, HELLO[:5]) + frame(FIN | PING, b"x") + frame(FIN, HELLO[5:]),
        None,
    ),
    "fragments that are too much together": (
        frame(TEXT, HELLO) + client_frame(0, bytes(60_000)).replace(b"\x80", b"\x00", 1) * 4,
        TOO_BIG,
    ),
    # -- sizes
    "a size beyond the cap": (claiming(MAX_PACKET_BYTES + 1), TOO_BIG),
    "a size of 63 bits": (claiming(2**63 - 1), TOO_BIG),
    "a size of 64 bits": (claiming(2**64 - 1), TOO_BIG),
    "a short size in the long form": (claiming(len(HELLO)) + HELLO, None),
    "a short size in the middle form": (claiming(len(HELLO), 2) + HELLO, None),
    # -- control frames
    "a ping of 126 bytes": (client_frame(PING, bytes(126)), PROTOCOL_ERROR),
    "a ping of 60,000 bytes": (client_frame(PING, bytes(60_000)), PROTOCOL_ERROR),
    "half a ping": (frame(PING, b"x"), PROTOCOL_ERROR),
    "a thousand pings": (frame(FIN | PING, b"x") * 1_000, None),
    "a thousand pongs": (frame(FIN | 0xA, b"x") * 1_000, None),
    # -- closing
    "a close with half a code": (frame(FIN | CLOSE, b"\x03"), PROTOCOL_ERROR),
    "a close with the code 0": (frame(FIN | CLOSE, b"\x00\x00"), PROTOCOL_ERROR),
    "a close with a code that is reserved": (frame(FIN | CLOSE, b"\x03\xed"), PROTOCOL_ERROR),
    "a close with a reason that is no text": (frame(FIN | CLOSE, b"\x03\xe8\xff"), BAD_TEXT),
    "a close of the client's own making": (frame(FIN | CLOSE, b"\x0f\xa0bye"), NORMAL),
    "something after a close": (frame(FIN | CLOSE) + frame(FIN | TEXT, HELLO), NORMAL),
    # -- text
    "bytes that are no UTF-8": (frame(FIN | TEXT, b"42[\xff]"), BAD_TEXT),
    "half a surrogate pair in UTF-8": (frame(FIN | TEXT, b'42["\xed\xa0\x80"]'), BAD_TEXT),
    "an overlong NUL": (frame(FIN | TEXT, b'42["\xc0\x80"]'), BAD_TEXT),
    "an empty text": (frame(FIN | TEXT), POLICY),
    "binary that is text": (frame(FIN | BINARY, HELLO), POLICY),
}


@asynccontextmanager
async def connected(stage: Stage) -> AsyncIterator[Deaf]:
    """A bare websocket whose Engine.IO session is open and in `/`."""
    async with deaf(stage.url) as client:
        assert client.head.startswith(b"HTTP/1.1 101")
        await client.send(f"40{json.dumps({'token': token(WRITER)})}")
        await heard(client, b'"welcome"')
        yield client


async def heard(client: Deaf, wanted: bytes) -> None:
    """Read until the server has said this."""
    gathered = b""
    async with asyncio.timeout(10):
        while wanted not in gathered:
            chunk = await client.read()
            assert chunk, f"closed after {gathered!r}"
            gathered += chunk


async def closing_code(client: Deaf) -> int | None:
    """Read to the end. Returns: the code of the last frame, which is a close."""
    said = await client.read_to_the_end()
    at = said.rfind(b"\x88")
    return int.from_bytes(said[at + 2 : at + 4], "big") if at >= 0 else None


@pytest.mark.parametrize(("data", "code"), FRAMES.values(), ids=FRAMES.keys())
async def test_a_frame_that_no_client_sends_hurts_nobody_else(
    stage: Stage, data: bytes, code: int | None
) -> None:
    async with stage.unharmed(), connected(stage) as client:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client.raw, data)
        if code is None:
            await client.send('427["time:sync",{"t0":1}]')
            await heard(client, b"437[")
        else:
            assert await closing_code(client) == code


async def test_a_frame_that_stops_in_the_middle_is_forgotten_with_its_connection(
    stage: Stage,
) -> None:
    async with stage.unharmed():
        for data in (b"\x81", claiming(60_000)[:5], claiming(60_000) + bytes(30_000)):
            async with connected(stage) as client:
                await asyncio.get_running_loop().sock_sendall(client.raw, data)


async def test_a_client_that_only_asks_is_not_answered_without_end(stage: Stage) -> None:
    """It never reads: what it is sent waits in the kernel, then it is read no more."""
    async with stage.unharmed(), connected(stage) as client:
        ask = client_frame(TEXT, b'427["workout:sync",{"workout_id":"w"}]')
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(2):
                for _ in range(100):
                    await loop.sock_sendall(client.raw, ask * 100)
        except (TimeoutError, ConnectionError):
            pass
        await stage.go_on()


HANDSHAKES: dict[str, dict[str, Any]] = {
    "an extension that costs memory": {
        "headers": ("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",),
        "status": b"101",
    },
    "a protocol of its own": {"headers": ("Sec-WebSocket-Protocol: evil, x",), "status": b"101"},
    "a page from elsewhere": {"headers": ("Origin: https://evil.example",), "status": b"400"},
    "a session that there is not": {"query": "&sid=none", "status": b"400"},
    "another version of Engine.IO": {"query": "&EIO=3", "status": b"400"},
}


@pytest.mark.parametrize("shake", HANDSHAKES.values(), ids=HANDSHAKES.keys())
async def test_an_odd_handshake_hurts_nobody(stage: Stage, shake: dict[str, Any]) -> None:
    async with stage.unharmed():
        headers, query = shake.get("headers", ()), shake.get("query", "")
        async with deaf(stage.url, *headers, query=query) as client:
            assert client.head.split(b" ", 2)[1] == shake["status"]
            assert b"permessage-deflate" not in client.head
