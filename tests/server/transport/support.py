"""Servers without an application, and clients without manners."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import socketio
from aiohttp import web

from server.transport.allowance import Allowance
from server.transport.connection import Connection
from server.transport.server import Ack, Excess, SocketServer, TransportLimits
from server.transport.websocket import WebSocketPeer

DEADLINE_S = 10.0


async def until(condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
    """Wait until `condition` holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event to wait on
            await asyncio.sleep(0.005)


@dataclass
class OpenDoor:
    """A door that lets everybody in, unless `admit` says otherwise, and notes what it is told."""

    admit: Callable[[str, str, Any], Any] | None = None
    handle: Callable[[str, Sequence[Any], Ack | None], Any] | None = None
    farewell: Callable[[str, str], None] | None = None
    shared: Allowance | None = None
    above: dict[str, Excess] = field(default_factory=dict)
    """What becomes of an event above the allowance, by its name; the others wait."""
    inside: dict[str, str] = field(default_factory=dict)
    events: list[tuple[str, list[Any]]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    level: list[str] = field(default_factory=list)

    async def connect(self, namespace: str, sid: str, auth: Any) -> None:
        if self.admit is not None:
            await self.admit(namespace, sid, auth)
        self.inside[sid] = namespace

    async def connected(self, namespace: str, sid: str) -> None:
        pass

    def event(
        self, namespace: str, sid: str, event: str, args: Sequence[Any], ack: Ack | None
    ) -> Any:
        self.events.append((event, list(args)))
        return self.handle(event, args, ack) if self.handle is not None else None

    def allowance(self, sid: str) -> Allowance | None:
        return self.shared

    def excess(self, namespace: str, event: str) -> Excess:
        return self.above.get(event, Excess.HOLD)

    def caught_up(self, sids: Iterable[str]) -> None:
        self.level.extend(sids)

    def disconnected(self, namespace: str, sid: str, reason: str) -> None:
        self.gone.append(sid)
        self.inside.pop(sid, None)
        if self.farewell is not None:
            self.farewell(namespace, sid)


@dataclass
class Ours:
    """A running `SocketServer` and its door."""

    url: str
    door: OpenDoor
    sockets: SocketServer

    @property
    def connections(self) -> list[Connection]:
        return list(self.sockets.eio.sockets.values())


@dataclass
class Stock:
    """A running `socketio.AsyncServer` as it comes."""

    url: str
    sio: socketio.AsyncServer


@asynccontextmanager
async def ours(door: OpenDoor | None = None, **limits: Any) -> AsyncIterator[Ours]:
    door = door or OpenDoor()
    sockets = SocketServer(door, cors_origins=(), limits=TransportLimits(**limits))
    async with _serving(sockets.mount) as url:
        try:
            yield Ours(url, door, sockets)
        finally:
            for connection in list(sockets.eio.sockets.values()):
                connection.cut("stalled")
            await sockets.close_all(0.2)


@asynccontextmanager
async def stock(**options: Any) -> AsyncIterator[Stock]:
    """The stock server; its tasks are ended with it, as it does not do that itself."""
    before = asyncio.all_tasks()
    sio = socketio.AsyncServer(async_mode="aiohttp", **options)
    async with _serving(sio.attach) as url:
        try:
            yield Stock(url, sio)
        finally:
            if sio.eio.service_task_handle is not None:
                await sio.shutdown()
            for connection in list(sio.eio.sockets.values()):
                connection.closed = True
            left = asyncio.all_tasks() - before
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=1)


@asynccontextmanager
async def _serving(mount: Callable[[web.Application], Any]) -> AsyncIterator[str]:
    app = web.Application()
    mount(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# -- polling --------------------------------------------------------------------------------------


class Poller:
    """An Engine.IO session over polling, one request at a time as told."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = f"{url}/socket.io/?EIO=4&transport=polling"
        self.session = session
        self.sid = ""

    async def open(self) -> dict[str, Any]:
        async with self.session.get(self._url) as response:
            text = await response.text()
        assert text[0] == "0", text
        opening: dict[str, Any] = json.loads(text[1:])
        self.sid = opening["sid"]
        return opening

    async def post(self, *packets: str) -> tuple[int, str]:
        async with self.session.post(
            f"{self._url}&sid={self.sid}", data=io.BytesIO("\x1e".join(packets).encode())
        ) as response:
            return response.status, await response.text()

    async def poll(self) -> tuple[int, list[str]]:
        async with self.session.get(f"{self._url}&sid={self.sid}") as response:
            return response.status, (await response.text()).split("\x1e")

    async def join(self, namespace: str = "/", auth: str = "{}") -> None:
        prefix = "" if namespace == "/" else f"{namespace},"
        await self.post(f"40{prefix}{auth}")
        while True:
            status, packets = await self.poll()
            assert status == 200
            if any(packet.startswith(f"40{prefix}{{") for packet in packets):
                return


@asynccontextmanager
async def polling(url: str) -> AsyncIterator[Poller]:
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        poller = Poller(url, session)
        await poller.open()
        yield poller


# -- a websocket that reads nothing unless told to ------------------------------------------------


class Deaf:
    """A websocket over a bare TCP socket with a small receive buffer."""

    def __init__(self, raw: socket.socket, head: bytes) -> None:
        self.raw = raw
        self.head = head
        self._loop = asyncio.get_running_loop()

    async def send(self, *messages: str | bytes, opcode: int | None = None) -> None:
        """Send messages in one piece; `opcode` for those that are neither text nor binary."""
        data = b"".join(
            client_frame(
                opcode or (1 if isinstance(message, str) else 2),
                message.encode() if isinstance(message, str) else message,
            )
            for message in messages
        )
        await self._loop.sock_sendall(self.raw, data)

    async def read(self, size: int = 65_536) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self._loop.sock_recv(self.raw, size)

    async def read_to_the_end(self) -> bytes:
        """All that still comes, until the server closes. Raises TimeoutError."""
        gathered = bytearray()
        try:
            while chunk := await self.read():
                gathered += chunk
        except ConnectionResetError:
            pass
        return bytes(gathered)


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame, its mask all zeros."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65_536:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


@asynccontextmanager
async def deaf(url: str, *headers: str, query: str = "") -> AsyncIterator[Deaf]:
    """A client that has done its handshake, and reads nothing after it."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    with socket.socket() as raw:
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        await loop.sock_connect(raw, (address.hostname, address.port))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET /socket.io/?EIO=4&transport=websocket{query} HTTP/1.1",
            f"Host: {address.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
            *headers,
        )
        await loop.sock_sendall(raw, ("\r\n".join(lines) + "\r\n\r\n").encode())
        head = b""
        async with asyncio.timeout(DEADLINE_S):
            while b"\r\n\r\n" not in head:
                head += await loop.sock_recv(raw, 1)
        yield Deaf(raw, head)


def shrink(connection: Connection) -> None:
    """Have the kernel buffer next to nothing of what goes to this client."""
    transport = peer_of(connection).transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)


def peer_of(connection: Connection) -> WebSocketPeer:
    peer = connection.peer
    assert peer is not None
    return peer


# -- a connection without a network ---------------------------------------------------------------


class FakeTransport:
    """A transport that takes only what `take` says."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.taken: list[bytes] = []
        self.is_aborted = self.is_closed = False

    def write(self, data: bytes) -> None:
        self.waiting.append(data)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.waiting))

    def take(self) -> None:
        self.taken += self.waiting
        self.waiting = []

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def offline(sockets: SocketServer, sid: str, namespace: str = "/") -> tuple[Connection, Any]:
    """A connection of `sockets` that is in a namespace, over a fake transport."""
    transport = FakeTransport()
    connection = Connection(sockets.eio, f"eio-{sid}", "127.0.0.1")
    connection.connected = connection.upgraded = True
    connection.peer = WebSocketPeer(connection, transport, 100_000)  # type: ignore[arg-type]
    connection.namespaces[namespace] = sid
    sockets.eio.sockets[connection.sid] = connection
    sockets.eio._by_address["127.0.0.1"] += 1
    sockets.manager.add(sid, connection)
    return connection, transport


def alone(door: OpenDoor | None = None, **limits: Any) -> SocketServer:
    """A `SocketServer` that serves no address."""
    return SocketServer(door or OpenDoor(), cors_origins=(), limits=TransportLimits(**limits))
