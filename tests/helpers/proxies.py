"""A TCP proxy that spoils what passes through it, with toxiproxy's verbs, each way by itself.

It stands between a client and a server: `Proxy(host, port)` listens on a port of its own and is
healthy until told otherwise. A verb holds for connections that are open and for those to come,
until `heal()`. Chance (jitter, slices) comes from the seed. Bytes are never lost, doubled or
reordered within a connection: TCP would not do that either.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

Towards = Literal["server", "client"]
UnderWay = asyncio.Queue[tuple[float, bytes | None]]
"""(when it is due, the bytes or None for the end)."""

CHUNK_BYTES = 65_536
MOST_CHUNKS_UNDER_WAY = 64
NO_LINGER = struct.pack("ii", 1, 0)
"""With this, closing a socket resets its connection instead of ending it."""


@dataclass(frozen=True)
class Toxics:
    """What is wrong with one direction."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    slow_close_s: float = 0.0
    slice_bytes: int | None = None
    slice_delay_s: float = 0.0
    limit_bytes: int | None = None
    is_black_hole: bool = False


@dataclass(eq=False)
class _Link:
    """A client's connection and the one to the server that was made for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def end(self, *, reset: bool) -> None:
        """End both connections: at once by RST, else after what has been written."""
        for writer in (self.client, self.server):
            if reset:
                _reset(writer)
            else:
                writer.close()


class Proxy:
    """A proxy in front of `host:port`. Its own port is `port`, once it has been started."""

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self.port = 0
        self.accepted = 0
        """How many connections there have been."""
        self._target = (host, port)
        self._random = random.Random(seed)
        self._toxics: dict[Towards, Toxics] = {"server": Toxics(), "client": Toxics()}
        self._is_down = False
        self._changed = asyncio.Event()
        """Set, and replaced by a new one, at every verb: whoever waits looks again."""
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self.down()
        if self._server is not None:
            self._server.close()
        tasks = [task for link in self._links for task in link.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def connection_count(self) -> int:
        return len(self._links)

    def url(self, url: str) -> str:
        """The same URL, but through this proxy."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    # -- verbs ------------------------------------------------------------------------------

    def latency(
        self, latency_s: float, *, jitter_s: float = 0.0, towards: Towards | None = None
    ) -> None:
        """Everything comes so much later, give or take the jitter, in the order it was sent."""
        self._set(towards, latency_s=latency_s, jitter_s=jitter_s)

    def bandwidth(self, bytes_per_s: float, *, towards: Towards | None = None) -> None:
        self._set(towards, bytes_per_s=bytes_per_s)

    def slow_close(self, delay_s: float, *, towards: Towards | None = None) -> None:
        """The end of a connection is told so much later."""
        self._set(towards, slow_close_s=delay_s)

    def slicer(
        self, slice_bytes: int, *, delay_s: float = 0.0, towards: Towards | None = None
    ) -> None:
        """What is sent comes in pieces of half to one and a half times `slice_bytes`."""
        self._set(towards, slice_bytes=slice_bytes, slice_delay_s=delay_s)

    def limit_data(self, limit_bytes: int, *, towards: Towards | None = None) -> None:
        """Connections end once so many bytes have passed, from their start. 0: with the first."""
        self._set(towards, limit_bytes=limit_bytes)

    def black_hole(self, *, towards: Towards | None = None) -> None:
        """Nothing passes any more, not even an end, and nobody is told: a partition. What was on
        its way arrives after `heal()`, as TCP sends it again."""
        self._set(towards, is_black_hole=True)

    def reset_peer(self) -> None:
        """RST for every connection there is. New ones are served."""
        for link in list(self._links):
            link.end(reset=True)

    def down(self) -> None:
        """RST for every connection there is, and for every new one."""
        self._is_down = True
        self.reset_peer()
        self._wake()

    def heal(self) -> None:
        """Take everything back."""
        self._is_down = False
        self._toxics = {"server": Toxics(), "client": Toxics()}
        self._wake()

    def _set(self, towards: Towards | None, **toxics: Any) -> None:
        for direction, known in self._toxics.items():
            if towards in (None, direction):
                self._toxics[direction] = replace(known, **toxics)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- connections ------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._is_down:
            _reset(writer)
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        if self._is_down:
            _reset(writer)
            _reset(to_server)
            return
        link = _Link(writer, to_server)
        self._links.add(link)
        ways: tuple[tuple[Towards, asyncio.StreamReader, asyncio.StreamWriter], ...] = (
            ("server", reader, to_server),
            ("client", from_server, writer),
        )
        for towards, source, sink in ways:
            under_way: UnderWay = asyncio.Queue(MOST_CHUNKS_UNDER_WAY)
            reading = asyncio.create_task(self._read(towards, source, under_way))
            writing = asyncio.create_task(self._write(towards, under_way, sink, link))
            writing.add_done_callback(lambda _, reading=reading: reading.cancel())
            link.tasks += [reading, writing]
        for task in link.tasks:
            task.add_done_callback(lambda _: self._forget(link))

    def _forget(self, link: _Link) -> None:
        if all(task.done() for task in link.tasks) and link in self._links:
            self._links.remove(link)
            link.end(reset=False)

    async def _read(
        self, towards: Towards, source: asyncio.StreamReader, under_way: UnderWay
    ) -> None:
        loop = asyncio.get_running_loop()
        last_due = 0.0
        data: bytes | None = b" "
        while data is not None:
            try:
                data = await source.read(CHUNK_BYTES) or None
            except OSError:
                data = None
            toxics = self._toxics[towards]
            delay_s = toxics.latency_s + self._random.uniform(-1, 1) * toxics.jitter_s
            last_due = max(last_due, loop.time() + delay_s)
            await under_way.put((last_due, data))

    async def _write(
        self, towards: Towards, under_way: UnderWay, sink: asyncio.StreamWriter, link: _Link
    ) -> None:
        loop = asyncio.get_running_loop()
        passed = 0
        try:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - loop.time())
                if data is None:
                    await asyncio.sleep(self._toxics[towards].slow_close_s)
                    await self._until_open(towards)
                    sink.write_eof()
                    return
                while data:
                    await self._until_open(towards)
                    toxics = self._toxics[towards]
                    piece, data = self._cut(data, toxics, passed)
                    sink.write(piece)
                    await sink.drain()
                    passed += len(piece)
                    if toxics.limit_bytes is not None and passed >= toxics.limit_bytes:
                        link.end(reset=False)
                        return
                    if toxics.slice_bytes is not None:
                        await asyncio.sleep(toxics.slice_delay_s)
                    if toxics.bytes_per_s is not None:
                        await asyncio.sleep(len(piece) / toxics.bytes_per_s)
        except (OSError, RuntimeError):
            link.end(reset=True)  # RuntimeError: its connection is being closed already

    async def _until_open(self, towards: Towards) -> None:
        while self._toxics[towards].is_black_hole:
            await self._changed.wait()

    def _cut(self, data: bytes, toxics: Toxics, passed: int) -> tuple[bytes, bytes]:
        """What is to be written next, and what is left."""
        size = len(data)
        if toxics.limit_bytes is not None:
            size = min(size, max(0, toxics.limit_bytes - passed))
        if toxics.slice_bytes is not None:
            size = min(size, max(1, round(toxics.slice_bytes * self._random.uniform(0.5, 1.5))))
        if toxics.bytes_per_s is not None:
            size = min(size, max(1, int(toxics.bytes_per_s / 20)))  # twenty pieces a second
        return data[:size], data[size:]


@asynccontextmanager
async def proxied(host: str, port: int, *, seed: int = 0) -> AsyncIterator[Proxy]:
    """A running proxy in front of a server."""
    proxy = await Proxy(host, port, seed=seed).start()
    try:
        yield proxy
    finally:
        await proxy.stop()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()
