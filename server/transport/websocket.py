"""The websocket end of a connection: frames in by callback, frames out by one write.

aiohttp does the handshake. Then its request handler, with the task, the request and a dozen frames
of coroutines that it would keep for as long as the socket lives, is taken off the transport and
replaced by a `WebSocketPeer`: that is what makes an idle connection small, and a message cost no
task switch. aiohttp's compiled frame reader goes on doing the reading. permessage-deflate is never
accepted: it costs 100 kB a connection, and frames that are shared cannot be compressed for one.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any, Protocol

from aiohttp import WSMsgType, web
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader

from server.transport.packets import websocket_frame

_CLOSE, _PONG = 0x88, 0x8A
_INT = struct.Struct("i")
PATIENCE_S = 10.0
NORMAL_CLOSURE, GOING_AWAY, PROTOCOL_ERROR, POLICY_VIOLATION = 1000, 1001, 1002, 1008


def unacknowledged_bytes(transport: asyncio.BaseTransport) -> int:
    """What the kernel holds because the other side's has not confirmed it yet."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return 0
    try:
        (size,) = _INT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
    except OSError:
        return 0  # the kernel cannot tell, or the socket is gone
    return int(size)


class Receiver(Protocol):
    """Who gets what a peer sends."""

    def on_message(self, data: str | bytes) -> None:
        """A whole message."""

    def on_lost(self) -> None:
        """The transport is gone; called once, whatever the reason."""


class _Push(WebSocketDataQueue):
    """Stands where aiohttp's reader has its queue, and hands messages on at once."""

    def __init__(self, peer: WebSocketPeer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(peer, 2**16, loop=loop)  # type: ignore[arg-type]  # never paused from here
        self._peer = peer

    def feed_data(self, data: Any, size: int) -> None:
        self._peer.on_frame(data)

    def set_exception(self, exc: BaseException, exc_cause: Any = None) -> None:
        self._peer.close(getattr(exc, "code", PROTOCOL_ERROR))

    def feed_eof(self) -> None:
        pass


class WebSocketPeer(asyncio.Protocol):
    """One websocket after its handshake."""

    __slots__ = ("_deadline", "_gone", "_reader", "_receiver", "is_closing", "transport")

    def __init__(
        self, receiver: Receiver, transport: asyncio.Transport, max_message_bytes: int
    ) -> None:
        self._receiver = receiver
        self.transport = transport
        self.is_closing = False
        self._deadline: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] | None = None
        queue = _Push(self, asyncio.get_running_loop())
        # One more, because the reader refuses a message of exactly as many.
        self._reader = WebSocketReader(
            queue, max_message_bytes + 1, compress=False, decode_text=True
        )

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done when the transport is."""
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        return self._gone

    @property
    def unacknowledged_bytes(self) -> int:
        """What the kernel holds because the client's has not confirmed it yet."""
        return 0 if self.is_closing else unacknowledged_bytes(self.transport)

    def write(self, frame: bytes) -> None:
        """Send frames; after a close they are dropped."""
        if not self.is_closing:
            self.transport.write(frame)

    def close(
        self, code: int = NORMAL_CLOSURE, reason: str = "", *, patience_s: float = PATIENCE_S
    ) -> None:
        """Say goodbye, send what is still buffered, close; abort if that is not taken in time."""
        if not self.is_closing:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(patience_s, self.abort)
            self.transport.write(
                websocket_frame(_CLOSE, struct.pack("!H", code) + reason.encode()[:100])
            )
            self.is_closing = True
            self.transport.close()

    def abort(self) -> None:
        """Close at once; what is buffered is dropped."""
        self.is_closing = True
        self.transport.abort()

    def on_frame(self, message: Any) -> None:
        if self.is_closing:
            return
        kind = message.type
        if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
            self._receiver.on_message(message.data)
        elif kind is WSMsgType.PING:
            # Who takes nothing gets no pongs on top of what waits.
            if not self.transport.get_write_buffer_size():
                self.write(websocket_frame(_PONG, bytes(message.data)))
        elif kind is WSMsgType.CLOSE:
            self.close()

    # -- asyncio.Protocol -------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if not self.is_closing:
            self._reader.feed_data(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closing = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._gone is not None:
            self._gone.set_result(None)
        self._receiver.on_lost()


class _Handshake(web.WebSocketResponse):
    """aiohttp's handshake and nothing after it."""

    def _post_start(self, request: Any, protocol: Any, writer: Any) -> None:
        self._writer = writer

    async def write_eof(self) -> None:  # type: ignore[override]
        self._eof_sent = True


async def take_over(
    request: web.Request, receiver: Receiver, max_message_bytes: int
) -> tuple[web.StreamResponse, WebSocketPeer]:
    """Upgrade a request to a websocket and take its transport away from aiohttp.

    Returns: the response, which is sent already and must be returned to aiohttp, and the peer.
    Raises:
        web.HTTPBadRequest: it is no websocket request.
        ConnectionResetError: the client is gone.
    """
    response = _Handshake(compress=False)
    await response.prepare(request)
    peer = WebSocketPeer(receiver, transport_of(request), max_message_bytes)
    early = hand_over(request, peer)
    if early:
        asyncio.get_running_loop().call_soon(peer.data_received, early)
    return response, peer


def transport_of(request: web.Request) -> asyncio.Transport:
    """Raises ConnectionResetError: the client is gone."""
    if request.transport is None:
        raise ConnectionResetError("gone before it was answered")
    return request.transport


def hand_over(request: web.Request, to: asyncio.BaseProtocol) -> bytes:
    """Take a request's transport away from aiohttp; the response's head has been sent.

    Returns: what has been read of it already and nobody has seen.
    """
    handler, transport = request.protocol, transport_of(request)
    early, handler._message_tail = handler._message_tail, b""
    transport.set_protocol(to)
    handler.transport = None  # it must not close what it does not own any more
    handler.connection_lost(None)
    return early
