"""A client that speaks Engine.IO and Socket.IO by hand, and so can say what no library would."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

DEADLINE_S = 5.0

_PACKET = re.compile(r"(?s)4(\d)(?:(\d+)-)?(?:(/[^,]*),)?(\d+)?(.*)")

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = range(7)


@dataclass
class Received:
    """One Socket.IO packet, with its attachments."""

    kind: int
    namespace: str
    id: int | None
    data: Any
    missing: int = 0


class RawSocket:
    """One websocket. It answers pings, gathers what comes in, and sends what it is told to."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.received: list[Received] = []
        self.unreadable: list[str] = []
        self.is_closed = False
        self._changed = asyncio.Condition()
        self._last_id = 100
        self._reader = asyncio.ensure_future(self._read())

    async def send(self, *frames: str | bytes) -> None:
        """Send Engine.IO packets as they are; after the end of the connection, nothing."""
        for frame in frames:
            try:
                if isinstance(frame, str):
                    await self._socket.send_str(frame)
                else:
                    await self._socket.send_bytes(frame)
            except (ConnectionError, aiohttp.ClientError):
                return

    async def enter(self, namespace: str, auth: Any) -> Any:
        """Ask to be let into a namespace. Returns: CONNECT or CONNECT_ERROR; None if the server
        closed the connection instead."""
        before = len(self.received)
        await self.send(f"40{_prefix(namespace)}{json.dumps(auth)}")
        return await self.find(
            lambda p: p.kind in (CONNECT, CONNECT_ERROR) and p.namespace == namespace,
            before,
            or_closed=True,
        )

    async def ask(self, event: Any, *args: Any, namespace: str = "/") -> Any:
        """Send an event, binary arguments included. Returns: its ack; None if the server closed
        the connection instead."""
        self._last_id += 1
        wanted = self._last_id
        before = len(self.received)
        attachments: list[bytes] = []

        def placed(value: Any) -> Any:
            if not isinstance(value, bytes):
                return value
            attachments.append(value)
            return {"_placeholder": True, "num": len(attachments) - 1}

        data = json.dumps([event, *map(placed, args)])
        kind = f"{BINARY_EVENT}{len(attachments)}-" if attachments else f"{EVENT}"
        await self.send(f"4{kind}{_prefix(namespace)}{wanted}{data}", *attachments)
        return await self.answer(wanted, namespace=namespace, since=before)

    async def answer(self, ack_id: int, *, namespace: str = "/", since: int = 0) -> Any:
        """The ack of `ack_id`; None if the server closed the connection instead."""

        def is_it(packet: Received) -> bool:
            return (
                packet.kind in (ACK, BINARY_ACK)
                and (packet.namespace, packet.id) == (namespace, ack_id)
                and not packet.missing
            )

        found = await self.find(is_it, since, or_closed=True)
        return found.data[0] if found is not None else None

    async def settled(self) -> bool:
        """Wait until the server has gone through all that was sent. Returns: whether the
        connection is still of use; False if the server has closed it."""
        return await self.ask("time:sync", {"t0": 1.0}) is not None

    async def find(
        self, wanted: Callable[[Received], bool], since: int = 0, *, or_closed: bool = False
    ) -> Any:
        """The first packet, come or to come, for which `wanted` holds. Raises TimeoutError."""

        def found() -> Received | None:
            return next((p for p in self.received[since:] if wanted(p)), None)

        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(
                lambda: found() is not None or self.unreadable or (self.is_closed and or_closed)
            )
        assert not self.unreadable, "the server sent what is no JSON"
        return found()

    def events(self, name: str) -> list[Any]:
        """The first arguments of all events of this name."""
        return [
            packet.data[1]
            for packet in self.received
            if packet.kind in (EVENT, BINARY_EVENT) and packet.data[0] == name
        ]

    async def closed(self) -> None:
        """Wait until the server has closed the connection. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(lambda: self.is_closed)

    async def close(self) -> None:
        await self._socket.close()
        await self._reader

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT and message.data == "2":
                await self.send("3")
            elif message.type is aiohttp.WSMsgType.TEXT:
                self._take(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                self._attach(message.data)
            async with self._changed:
                self._changed.notify_all()
        async with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def _take(self, frame: str) -> None:
        match = _PACKET.fullmatch(frame)
        if match is None:
            return
        kind, count, namespace, id_, text = match.groups()
        try:
            data = _loads(text) if text else None
        except ValueError:
            self.unreadable.append(frame)
            return
        self.received.append(
            Received(int(kind), namespace or "/", int(id_) if id_ else None, data, int(count or 0))
        )

    def _attach(self, data: bytes) -> None:
        packet = next(p for p in self.received if p.missing)
        number = sum(isinstance(item, bytes) for item in packet.data)
        packet.data = [
            data if isinstance(item, dict) and item.get("num") == number else item
            for item in packet.data
        ]
        packet.missing -= 1


@asynccontextmanager
async def raw_socket(url: str) -> AsyncIterator[RawSocket]:
    """An Engine.IO connection that is in no namespace yet."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"{url}/socket.io/?EIO=4&transport=websocket", max_msg_size=0, autoping=True
        ) as connection,
    ):
        assert (await connection.receive_str(timeout=DEADLINE_S)).startswith("0")
        socket = RawSocket(connection)
        try:
            yield socket
        finally:
            await socket.close()


def _prefix(namespace: str) -> str:
    return "" if namespace == "/" else f"{namespace},"


def _loads(text: str) -> Any:
    """JSON to the letter, as a browser reads it: no NaN, no Infinity."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)
