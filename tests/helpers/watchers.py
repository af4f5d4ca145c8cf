"""Watchers by the thousand: websockets that keep the events of streams, and nothing else.

A `socketio.AsyncClient` has three tasks and a parser of its own; a thousand of them in the server's
loop would be what is measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

DEADLINE_S = 30.0


class Watcher(asyncio.Protocol):
    """One client of `/`. It counts values, keeps the last one, and can stop reading."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.values = 0
        self.last_seq = 0
        self.seqs_go_up = True
        self.ready = asyncio.get_running_loop().create_future()
        self.is_closed = False
        self._on_news = on_news
        self._last = b""
        self._buffer = bytearray()
        self._is_open = False

    def start(self, host: str, token: str, streams: Sequence[str]) -> None:
        """Ask for a websocket, to be let in, and for the streams, all in one go."""
        assert self.transport is not None
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self._hello = [
            "40" + json.dumps({"token": token}),
            "420" + json.dumps(["subscribe", {"streams": list(streams)}]),
        ]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError("the server has closed"))
        self._on_news()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_open:
            head, mark, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not mark:
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self._is_open = True
            self._buffer = bytearray(rest)
            self._say(self._hello[0])
        while (message := self._take()) is not None:
            self._on_message(message)

    @property
    def last(self) -> dict[str, Any]:
        """The last value."""
        value: dict[str, Any] = json.loads(self._last[2:])[1]
        return value

    def _take(self) -> bytes | None:
        """The next whole frame; the server's are not masked."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1], 2
        if size == 126:
            start, form = 4, "!H"
        elif size == 127:
            start, form = 10, "!Q"
        if size > 125:
            if len(buffer) < start:
                return None
            (size,) = struct.unpack(form, buffer[2:start])
        if len(buffer) < start + size:
            return None
        message = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return message

    def _on_message(self, message: bytes) -> None:
        if message.startswith(b"40"):
            self._say(self._hello[1])
        elif message == b"2":
            self._say("3")
        elif message.startswith(b'42["progress",'):
            # Where it stands: to read all of a thousand values would take longer than to send them.
            seq = int(message[message.rindex(b'"seq":') + 6 : message.rindex(b",")])
            self.seqs_go_up &= seq > self.last_seq
            self.values += 1
            self.last_seq = seq
            self._last = message
            self._on_news()
        elif message.startswith(b"430"):
            self.ready.set_result(json.loads(message[3:])[0])

    def _say(self, text: str) -> None:
        assert self.transport is not None
        payload = text.encode()
        head = bytes((0x81, 0x80 | len(payload))) if len(payload) < 126 else b""
        head = head or struct.pack("!BBH", 0x81, 0x80 | 126, len(payload))
        self.transport.write(head + b"\0\0\0\0" + payload)  # a mask of nothing


class Crowd:
    """Watchers of the same streams, all of one user."""

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []
        self._news = asyncio.Event()

    async def come(self, url: str, token: str, streams: Sequence[str], count: int) -> None:
        """Let so many more in, and see that they were granted what they ask for."""
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        for start in range(0, count, 50):
            some = []
            for _ in range(min(50, count - start)):
                _, watcher = await loop.create_connection(
                    lambda: Watcher(self._news.set), parts.hostname, parts.port
                )
                watcher.start(parts.netloc, token, streams)
                some.append(watcher)
            async with asyncio.timeout(DEADLINE_S):
                answers = await asyncio.gather(*(watcher.ready for watcher in some))
            assert all(answer["subscribed"] == list(streams) for answer in answers), answers[0]
            self.watchers += some

    async def until(self, condition: Callable[[Watcher], bool]) -> None:
        """Wait until it holds for all that have not been closed. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while not all(condition(one) for one in self.watchers if not one.is_closed):
                self._news.clear()
                await self._news.wait()

    async def go(self) -> None:
        for watcher in self.watchers:
            if watcher.transport is not None:
                watcher.transport.abort()
        async with asyncio.timeout(DEADLINE_S):
            while not all(watcher.is_closed for watcher in self.watchers):
                self._news.clear()
                await self._news.wait()
