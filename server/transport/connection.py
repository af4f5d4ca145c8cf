"""One client: its transport, its budget for what goes out, its inbox for what comes in.

Out. Everything is posted, nothing waits: on a websocket a message is one write of bytes that all
recipients share. Each connection has a budget for what the network has not taken yet. Above it,
what may be dropped is dropped (presence), what has a later value is replaced (streams), a
document's updates are noted as missing and made good when the client has caught up, and a client
that must be told of everything is cut. One that takes nothing for `stall_timeout_s` is cut as well.

In. Messages are handled in the order in which they came. What can be handled at once is, without a
task; while something has to be awaited, what follows waits in the inbox, and when that is full
the socket is not read any more. An ack that comes from the client passes the inbox by. A client
that sends more than its allowance is refused or made to wait, see `SocketServer.on_packet`.

Time is the event loop's, so a wall clock that steps disconnects nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Hashable
from enum import Enum
from typing import TYPE_CHECKING, Any

import engineio.packet
from aiohttp import web
from engineio.async_socket import AsyncSocket
from engineio.exceptions import QueueEmpty

from server.transport.allowance import Allowance
from server.transport.packets import Outgoing, Packet, PacketError
from server.transport.uptake import Uptake
from server.transport.websocket import (
    GOING_AWAY,
    NORMAL_CLOSURE,
    POLICY_VIOLATION,
    WebSocketPeer,
    take_over,
)

if TYPE_CHECKING:
    from server.transport.server import EngineServer

log = logging.getLogger(__name__)

INBOX_SIZE, INBOX_BYTES = 64, 1024 * 1024

REFUSAL = web.RequestKey("refusal", web.HTTPException)
"""Under which a request holds the answer that it is to get instead of the stock one."""

_PING = Outgoing([str(engineio.packet.PING)])
_CLOSE = Outgoing([str(engineio.packet.CLOSE)])
_PROBE_ANSWER = Outgoing([f"{engineio.packet.PONG}probe"])


class Delivery(Enum):
    """What may become of a message when its recipient cannot keep up."""

    REPLY = "reply"
    """An answer to the client's own request. Never held back: requests wait while it is slow."""
    EVENT = "event"
    """Every one counts; a client that cannot keep up is cut, and syncs when it comes back."""
    UPDATE = "update"
    """A document's update: may be left out if the document is synced later."""
    VOLATILE = "volatile"
    """Worth something now or never."""


class Connection(AsyncSocket):
    """An Engine.IO session over polling, a websocket, or the one and then the other."""

    connected: bool
    upgraded: bool
    upgrading: bool
    closing: bool
    closed: bool

    def __init__(self, server: EngineServer, sid: str, remote: str) -> None:
        super().__init__(server, sid)
        self.remote = remote
        self.namespaces: dict[str, str] = {}
        """namespace -> the client's id there."""
        self.close_reason: str | None = None
        self._loop = asyncio.get_running_loop()
        self.allowance = Allowance(server.rate, self._loop.time())
        self.peer: WebSocketPeer | None = None
        self._outbox: deque[engineio.packet.Packet] | None = None
        self._outbox_bytes = 0
        self._poller: asyncio.Future[None] | None = None
        # Counted since the network was last level with us; a reply does not count.
        self._pushed_bytes = 0
        self._written_bytes = 0
        self._uptake = Uptake(self._loop.time())
        self._latest: dict[Hashable, Outgoing] | None = None
        self._inbox: deque[Packet] | None = None
        self._inbox_bytes = 0
        self._worker: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._level: asyncio.Future[None] | None = None
        self._held: asyncio.Future[None] | None = None
        self._is_posting = False
        self._was_paused = False
        self._partial: Packet | None = None
        self._probing = False
        self._leaving = False
        self.due = 0.0
        self._ping_is_out = False

    @property
    def _facts(self) -> dict[str, str]:
        """What a log line says of it. Not our own id: who knows that can poll in its place."""
        return {"connection": next(iter(self.namespaces.values()), "")}

    # -- out --------------------------------------------------------------------------------

    @property
    def backlog_bytes(self) -> int:
        """What was posted and the network has not taken yet."""
        if self.peer is not None and not self.upgrading:
            return self.peer.transport.get_write_buffer_size()
        return self._outbox_bytes

    def post(self, message: Outgoing, delivery: Delivery) -> bool:
        """Send a message. Returns: False when it was left out because the client is too slow."""
        if self._write_at_once(message):
            self._pushed_bytes = len(message.frame) if delivery is not Delivery.REPLY else 0
            return True
        if self.closed:
            return True
        if delivery is not Delivery.REPLY and not self._has_room(delivery):
            return False
        self._write(message)
        if delivery is not Delivery.REPLY:
            self._pushed_bytes += len(message.frame)
        return True

    def _write_at_once(self, message: Outgoing) -> bool:
        """Nearly every message goes this way: a websocket with nothing waiting.

        Returns: False when it has to go another way.
        """
        peer = self.peer
        if peer is None or self.upgrading or peer.is_closing:
            return False
        transport = peer.transport
        if transport.get_write_buffer_size():
            return False
        frame = message.frame
        transport.write(frame)
        self._written_bytes += len(frame)
        return True

    def post_latest(self, key: Hashable, message: Outgoing) -> None:
        """Send a value of which only the latest matters; a slow client gets it when it can."""
        if self._latest is None and self._write_at_once(message):
            self._pushed_bytes = len(message.frame)
            return
        if self.closed:
            return
        if self._has_room(Delivery.VOLATILE):
            if self._latest is not None:
                self._latest.pop(key, None)
            self._write(message)
            self._pushed_bytes += len(message.frame)
            return
        if self._latest is None:
            self._latest = {}
        elif key in self._latest:
            self.server.stats.conflated += 1
        self._latest[key] = message

    def _has_room(self, delivery: Delivery) -> bool:
        backlog = self.backlog_bytes
        if not backlog:
            self._pushed_bytes = 0
            return True
        if min(backlog, self._pushed_bytes) <= self.server.budget_bytes:
            return True
        if delivery is Delivery.EVENT:
            self.cut("slow_reader")
        else:
            self.server.stats.dropped[delivery.value] += 1
            self.server.watch_slow(self)
        return False

    def catch_up(self) -> bool:
        """Called while the client is slow. Returns: whether it has taken everything now."""
        if self.closed:
            return True
        if self.backlog_bytes:
            return False
        self._pushed_bytes = 0
        if self._level is not None:
            self._level.set_result(None)
            self._level = None
        latest, self._latest = self._latest, None
        for message in (latest or {}).values():
            self._write(message)
        return True

    def _write(self, message: Outgoing) -> None:
        peer = self.peer
        if peer is not None and not self.upgrading:
            frame = message.frame
            self._written_bytes += len(frame)
            peer.write(frame)
            return
        if self._outbox is None:
            self._outbox = deque()
        for packet in message.for_polling():
            self._outbox.append(packet)
            size = len(packet.data) if isinstance(packet.data, str | bytes) else 1
            self._outbox_bytes += size
            self._written_bytes += size
        self._wake_poller()

    def stalled_for_s(self, now: float) -> float:
        """How long nothing of what is on its way to the client has been taken, in seconds."""
        return self._uptake.stalled_for_s(self._written_bytes, self._waiting_bytes, now)

    def _waiting_bytes(self) -> int:
        # The kernel takes megabytes for a client that has long stopped reading.
        in_kernel = self.peer.unacknowledged_bytes if self.peer is not None else 0
        return self.backlog_bytes + in_kernel

    # -- in ---------------------------------------------------------------------------------

    def on_message(self, data: str | bytes) -> None:
        """A message from the websocket."""
        try:
            if self._probing:
                self._on_probe(data)
            else:
                self._take(data)
        except PacketError as exc:
            self.server.stats.malformed += 1
            log.info("closing on a bad packet", extra={**self._facts, "cause": str(exc)})
            self.cut("bad_packet")
        except Exception:
            log.exception("a message could not be handled", extra=self._facts)
            self.cut("internal")

    def on_lost(self) -> None:
        if self._probing:
            # The websocket did not work out; polling goes on as before.
            self.peer = None
            self._probing = self.upgrading = False
        else:
            self._finish("transport_closed")

    def _take(self, data: str | bytes) -> None:
        """One Engine.IO packet. Raises PacketError."""
        if self.closed or self._leaving:
            return
        if isinstance(data, bytes):
            partial, self._partial = self._partial, None
            if partial is None:
                raise PacketError("an attachment that nothing announced")
            if partial.add_part(data, self.server.max_http_buffer_size):
                self._deliver(partial)
            else:
                self._partial = partial
            return
        kind = data[:1]
        if kind == "4":
            if self._partial is not None:
                raise PacketError("text where an attachment is due")
            packet = Packet.read(data[1:], self.server.packet_limits)
            if packet.attachment_count:
                if packet.namespace_or_root not in self.namespaces:
                    raise PacketError("an attachment for a namespace that was not joined")
                self._partial = packet
            else:
                self._deliver(packet)
        elif kind == "3" and self._ping_is_out:
            self._on_pong()
        elif kind == "1":
            if self._worker is None:
                self._leave()
            else:
                self._leaving = True  # when what it has sent before is done
        elif kind not in ("3", "6"):
            raise PacketError("not an Engine.IO packet that a client sends")
        elif self.allowance.spend(len(data), self._loop.time()):
            raise PacketError("a flood of packets that nobody asked for")

    def _leave(self) -> None:
        self._close_peer(NORMAL_CLOSURE)
        self._finish("client_disconnect")

    def _deliver(self, packet: Packet) -> None:
        if packet.is_ack and self.server.on_ack(self, packet):
            return
        if self._worker is not None:
            if self._inbox is None:
                self._inbox = deque()
            self._inbox.append(packet)
            self._inbox_bytes += packet.size_bytes
            if len(self._inbox) >= INBOX_SIZE or self._inbox_bytes >= INBOX_BYTES:
                self._pause()
        elif not self.closed:
            work = self.server.on_packet(self, packet)
            if work is not None or self.backlog_bytes > self.server.budget_bytes:
                self._worker = self._loop.create_task(self._work(work))

    async def _work(self, work: Coroutine[Any, Any, None] | None) -> None:
        """Finish what has to be awaited, then what came meanwhile, in order."""
        try:
            while True:
                if work is not None:
                    await work
                if self.closed:
                    break
                # A client that does not take its answers gets no more of them.
                if self.backlog_bytes > self.server.budget_bytes:
                    await self._until_level()
                if not self._inbox:
                    break
                packet = self._inbox.popleft()
                self._inbox_bytes -= packet.size_bytes
                work = self.server.on_packet(self, packet)
                if len(self._inbox) <= INBOX_SIZE // 2 and self._inbox_bytes <= INBOX_BYTES // 2:
                    self._resume()
        except Exception:
            log.exception("a packet could not be handled", extra=self._facts)
            self.cut("internal")
        finally:
            self._worker = None
            self._inbox, self._inbox_bytes = None, 0
            self._resume()
            if self._leaving:
                self._leave()

    async def _until_level(self) -> None:
        """Wait until the client has taken everything, or is gone."""
        if not self.closed:
            if self._level is None:
                self._level = self._loop.create_future()
            self.server.watch_slow(self)
            await asyncio.shield(self._level)

    async def hold(self, delay_s: float) -> None:
        """Let the client wait for so long, or until its connection ends."""
        self._held = held = self._loop.create_future()
        timer = self._loop.call_later(delay_s, _release, held)
        try:
            await held
        finally:
            timer.cancel()
            self._held = None

    def _pause(self) -> None:
        self._was_paused = True
        if self._drained is None:
            self._drained = self._loop.create_future()
            self.server.stats.paused += 1
            if self.peer is not None and not self.peer.is_closing:
                self.peer.transport.pause_reading()

    def _resume(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
            if self.peer is not None and not self.peer.is_closing:
                self.peer.transport.resume_reading()

    # -- heartbeat --------------------------------------------------------------------------

    def open(self) -> None:
        """Begin: the client has `connect_timeout_s` to join a namespace."""
        self.server.schedule(self, self.server.connect_timeout_s)

    def on_due(self, now: float) -> None:
        """The time that `due` names has come: ping, or give up on the client."""
        if self.closed:
            return
        if not self.namespaces:
            self.cut("connect_timeout")
        elif self._ping_is_out and not self._was_paused:
            self.cut("ping_timeout")
        else:
            # Of a socket that is not read the pong may be there already, behind all the rest.
            self._was_paused = self._drained is not None
            if not self._ping_is_out:
                self._ping_is_out = True
                self._write(_PING)
            self.server.schedule(self, self.server.ping_timeout)

    def _on_pong(self) -> None:
        self._ping_is_out = False
        self.server.schedule(self, self.server.ping_interval)

    def schedule_ping(self) -> None:
        """The wheel of the server sees to pings; the stock class would start a task."""

    async def check_ping_timeout(self) -> bool:
        return not self.closed

    # -- polling ----------------------------------------------------------------------------

    async def poll(self) -> list[engineio.packet.Packet]:
        """What there is to send; waits until there is something.

        Raises:
            QueueEmpty: nothing came for as long as a ping takes.
        """
        if not self._outbox:
            self._wake_poller()  # a client has one poll at a time; the newer one counts
            self._poller = poller = self._loop.create_future()
            try:
                async with asyncio.timeout(self.server.ping_interval + self.server.ping_timeout):
                    await poller
            except (TimeoutError, asyncio.CancelledError) as exc:
                raise QueueEmpty from exc
        packets = list(self._outbox or ()) or [engineio.packet.Packet(engineio.packet.NOOP)]
        if self._outbox:
            self._outbox.clear()
        self._outbox_bytes = 0
        return packets

    def _wake_poller(self) -> None:
        if self._poller is not None and not self._poller.done():
            self._poller.set_result(None)

    async def send(self, pkt: engineio.packet.Packet) -> None:
        """Engine.IO's own packets; everything else is posted."""
        data = pkt.encode()
        self._write(Outgoing([data]))

    async def handle_post_request(self, environ: dict[str, Any]) -> None:
        """Take in the body of a poll's POST, to its last byte, however many packets it holds.

        The stock server answers 200 whatever happens here, so a refusal is left in the request.
        """
        request: web.Request = environ["aiohttp.request"]
        if self._is_posting:
            # A client has one POST at a time; several would each hold a body in memory.
            request[REFUSAL] = web.HTTPBadRequest()
            self.cut("overlapping_posts")
            return
        self._is_posting = True
        try:
            body = await self._body_of(request)
            if body is not None:
                await self._take_all(body)
        finally:
            self._is_posting = False
        if self.close_reason == "bad_packet":
            request[REFUSAL] = web.HTTPBadRequest()
        elif self.close_reason == "internal":
            request[REFUSAL] = web.HTTPInternalServerError()

    async def _body_of(self, request: web.Request) -> bytearray | None:
        """Returns: None when it was too large or too slow, and the session is over."""
        limit = self.server.max_http_buffer_size
        body = bytearray()
        size = request.content_length or 0
        try:
            async with asyncio.timeout(self.server.body_timeout_s):
                while size <= limit and (chunk := await request.content.readany()):
                    body += chunk
                    size = max(size, len(body))
        except TimeoutError:
            request[REFUSAL] = web.HTTPRequestTimeout()
            self.cut("body_timeout")
            return None
        except web.RequestPayloadError:
            request[REFUSAL] = web.HTTPBadRequest()
            self.cut("bad_packet")
            return None
        if size > limit:
            request[REFUSAL] = web.HTTPRequestEntityTooLarge(limit, size)
            self.cut("too_large")
            return None
        return body

    async def _take_all(self, body: bytearray) -> None:
        try:
            for part in body.decode().split("\x1e"):
                packet = engineio.packet.Packet(encoded_packet=part)
                self._take(packet.data if packet.binary else part)
                if self._drained is not None:
                    await asyncio.shield(self._drained)
        except (PacketError, ValueError, IndexError, RecursionError):
            self.server.stats.malformed += 1
            self.cut("bad_packet")
        except Exception:
            log.exception("a message could not be handled", extra=self._facts)
            self.cut("internal")

    # -- upgrade ----------------------------------------------------------------------------

    async def _upgrade_websocket(self, environ: dict[str, Any]) -> Any:
        if self.upgraded or self.peer is not None:
            return self.server._bad_request("upgraded already")
        self._probing = self.connected
        try:
            response, peer = await take_over(
                environ["aiohttp.request"], self, self.server.max_http_buffer_size
            )
        except BaseException:
            self._probing = False
            raise
        self.peer = peer
        if self._probing:
            self.upgrading = True
        else:
            self.connected = self.upgraded = True
            self._flush_outbox()
        return response

    def _on_probe(self, data: str | bytes) -> None:
        """The two steps of an upgrade: `2probe` is answered, `5` makes the websocket the one."""
        assert self.peer is not None
        if data == "2probe":
            self.peer.write(_PROBE_ANSWER.frame)
            if self._outbox is None:
                self._outbox = deque()
            self._outbox.append(engineio.packet.Packet(engineio.packet.NOOP))
            self._wake_poller()  # ends the poll that hangs
        elif data == "5":
            self._probing = False
            self.upgraded, self.upgrading = True, False
            self._flush_outbox()
        else:
            raise PacketError("not a probe")

    def _flush_outbox(self) -> None:
        outbox, self._outbox, self._outbox_bytes = self._outbox, None, 0
        assert self.peer is not None
        for packet in outbox or ():
            if packet.packet_type != engineio.packet.NOOP:
                packet.encode_cache = None
                data = packet.encode()
                self.peer.write(Outgoing([data]).frame)

    # -- the end ----------------------------------------------------------------------------

    def cut(self, reason: str) -> None:
        """End it now, dropping what is buffered: for clients that misbehave or are gone."""
        if self.peer is not None:
            if reason in ("slow_reader", "stalled", "ping_timeout"):
                self.peer.abort()
            else:
                self._close_peer(POLICY_VIOLATION, reason)
        self._finish(reason)

    def say_goodbye(self) -> None:
        """End it because the server goes away; what was posted still goes out."""
        self._write(_CLOSE)
        self._close_peer(GOING_AWAY)
        self._finish("server_shutdown")

    async def close(self, wait: bool = True, abort: bool = False, reason: Any = None) -> None:
        if not self.closed:
            if not abort:
                self._write(_CLOSE)
            self._close_peer(NORMAL_CLOSURE)
            self._finish(str(reason or "server_disconnect"))

    def _close_peer(self, code: int, reason: str = "") -> None:
        if self.peer is not None:
            self.peer.close(code, reason, patience_s=self.server.stall_timeout_s)

    def _finish(self, reason: str) -> None:
        """Leave nothing behind. Called from every way out; the first one counts."""
        if self.closed:
            return
        self.closing = self.closed = True
        self.close_reason = reason
        self._latest = None
        self._partial = None
        self._resume()
        self._wake_poller()
        if self._level is not None:
            self._level.set_result(None)
            self._level = None
        if self._held is not None:
            _release(self._held)
        self.server.on_closed(self)


def _release(held: asyncio.Future[None]) -> None:
    if not held.done():
        held.set_result(None)
