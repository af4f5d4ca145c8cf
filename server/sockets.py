"""Socket.IO as RepSync uses it: one door for every namespace, ordered events, no waiting posts.

The stock server looks handlers up by name, runs a task for each recipient, and lets a client in
when its connect handler is cancelled. This subclass hands everything to one `Door` instead:

- a client is let in only when `Door.connect` has returned; a refusal, an exception, a time-out or
  a cancellation is a connect error, with the error's code as its message;
- the events of one client are handled one after the other, and an ack may come later than that;
- `post` encodes once and puts the packets into each recipient's queue in the same step, so what
  is posted first arrives first.

It overrides underscore methods of python-socketio; the versions are pinned for that reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import engineio.packet
import socketio
from aiohttp import web
from socketio import packet

from crdt.errors import INTERNAL, RepSyncError, Unavailable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0

Ack = Callable[[Any], None]


class Door(Protocol):
    """What stands behind the sockets. `sid` is one client in one namespace."""

    async def connect(self, namespace: str, sid: str, auth: Any) -> None:
        """Let a client in, or raise a RepSyncError."""

    async def connected(self, namespace: str, sid: str) -> None:
        """The client knows that it is in, and has sent nothing since."""

    async def event(
        self, namespace: str, sid: str, event: str, args: Sequence[Any], ack: Ack | None
    ) -> None:
        """Something came in; `ack` answers it, at most once, if the client asked for that."""

    def disconnected(self, namespace: str, sid: str) -> None:
        """The client is gone."""


class SocketServer(socketio.AsyncServer):
    """Engine.IO 4 and Socket.IO 4 at `/socket.io/` of an aiohttp application."""

    def __init__(
        self, door: Door, *, cors_origins: Sequence[str], max_packet_bytes: int, **options: Any
    ) -> None:
        super().__init__(
            async_mode="aiohttp",
            namespaces="*",  # documents come and go; the door refuses what it does not know
            async_handlers=False,
            cors_allowed_origins=_cors(cors_origins),
            max_http_buffer_size=max_packet_bytes,
            **options,
        )
        self._door = door

    def mount(self, app: web.Application) -> None:
        self.attach(app)

    # -- out --------------------------------------------------------------------------------

    def post(self, namespace: str, sids: Iterable[str], event: str, *args: Any) -> None:
        """Send an event to clients of a namespace; those who are gone are passed over."""
        frames = self._encode(packet.EVENT, namespace, [event, *args])
        for sid in sids:
            self._put(self.manager.eio_sid_from_sid(sid, namespace), frames)

    def ask(
        self,
        namespace: str,
        sid: str,
        event: str,
        *args: Any,
        answer: Callable[..., Awaitable[None]],
    ) -> None:
        """Send an event to one client and have `answer` called with what it acks, if it does."""
        ack_id = self.manager._generate_ack_id(sid, answer)
        frames = self._encode(packet.EVENT, namespace, [event, *args], ack_id)
        self._put(self.manager.eio_sid_from_sid(sid, namespace), frames)

    async def close_all(self) -> None:
        """Tell every client that the connection ends here."""
        for socket in list(self.eio.sockets.values()):
            await socket.close(wait=False)

    @property
    def connection_count(self) -> int:
        return len(self.eio.sockets)

    def _encode(
        self, kind: int, namespace: str, data: Any, ack_id: int | None = None
    ) -> list[engineio.packet.Packet]:
        encoded = self.packet_class(kind, namespace=namespace, data=data, id=ack_id).encode()
        parts = encoded if isinstance(encoded, list) else [encoded]
        return [engineio.packet.Packet(engineio.packet.MESSAGE, part) for part in parts]

    def _put(self, eio_sid: str | None, frames: Sequence[engineio.packet.Packet]) -> None:
        socket = self.eio.sockets.get(eio_sid)
        if socket is None or socket.closed:
            return
        for frame in frames:
            # A packet keeps its first encoding, and polling needs another one than websockets.
            own = (
                frame if socket.upgraded else engineio.packet.Packet(frame.packet_type, frame.data)
            )
            socket.queue.put_nowait(own)

    def _post_ack(self, eio_sid: str, namespace: str, ack_id: int, answer: Any) -> None:
        self._put(eio_sid, self._encode(packet.ACK, namespace, [answer], ack_id))

    # -- in ---------------------------------------------------------------------------------

    async def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        """Let a client into a namespace, or leave nothing of it behind."""
        namespace = namespace or "/"
        sid = await self.manager.pre_connect(eio_sid, namespace)
        if sid is None:
            return  # it is in already, or on its way in
        refusal: dict[str, Any] | None = INTERNAL
        try:
            refusal = await self._ask_door(namespace, sid, data)
        finally:
            # Nothing but an answer of the door lets anybody in, a cancellation least of all.
            socket = self.eio.sockets.get(eio_sid)
            is_gone = socket is None or socket.closed
            if refusal is not None or is_gone:
                self._door.disconnected(namespace, sid)
                await self.manager.disconnect(sid, namespace, ignore_queue=True)
        if refusal is not None:
            error = {"message": refusal["code"], "data": refusal}
            self._put(eio_sid, self._encode(packet.CONNECT_ERROR, namespace, error))
        elif not is_gone:
            self._put(eio_sid, self._encode(packet.CONNECT, namespace, {"sid": sid}))
            await self.manager.connect(sid, namespace)
            await self._enter(namespace, sid)

    async def _ask_door(self, namespace: str, sid: str, auth: Any) -> dict[str, Any] | None:
        """Returns: the error with which the client is refused; None lets it in."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._door.connect(namespace, sid, auth)
        except RepSyncError as exc:
            return exc.to_wire()
        except TimeoutError:
            return Unavailable("the server is too busy", retry_after_ms=1_000).to_wire()
        except Exception:
            log.exception("connecting failed", extra={"namespace": namespace})
            return INTERNAL
        return None

    async def _enter(self, namespace: str, sid: str) -> None:
        try:
            await self._door.connected(namespace, sid)
        except RepSyncError as exc:
            log.warning("a client was let in and lost again", extra={"cause": str(exc)})
            await self.disconnect(sid, namespace=namespace)

    async def _trigger_event(self, event: str, namespace: str, *args: Any) -> None:
        if event == "disconnect":
            self._door.disconnected(namespace, args[0])

    async def _handle_event(
        self, eio_sid: str, namespace: str | None, id: int | None, data: Any
    ) -> None:
        namespace = namespace or "/"
        sid = self.manager.sid_from_eio_sid(eio_sid, namespace)
        if sid is None or not self.manager.is_connected(sid, namespace):
            return
        if not isinstance(data, list) or not data or not isinstance(data[0], str):
            return
        ack = None if id is None else partial(self._post_ack, eio_sid, namespace, id)
        await self._door.event(namespace, sid, data[0], data[1:], ack)


def _cors(origins: Sequence[str]) -> Any:
    """None lets in the server's own origin only; a browser page from elsewhere must be named."""
    if not origins:
        return None
    return "*" if "*" in origins else list(origins)
