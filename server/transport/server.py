"""The Socket.IO server of RepSync: every namespace leads to one door.

- A client is let in only when `Door.connect` has returned: a refusal, an exception, a time-out or a
  cancellation is a connect error, and leaves nothing of the client behind.
- Events are handed over in order (see `connection`), and may be answered later than that.
- Posts are encoded once (see `packets`) and never wait.
- One wheel of buckets a second apart keeps all heartbeats and deadlines; nobody has a timer task.

It overrides underscore methods of python-socketio and python-engineio, which are pinned for that
reason; `tests/server/transport/test_canaries.py` shows for each what the stock class does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Protocol

import engineio
import engineio.packet
import socketio
from aiohttp import web
from socketio import packet

from crdt.errors import (
    INTERNAL,
    Conflict,
    Invalid,
    RateLimited,
    RepSyncError,
    Unavailable,
)
from server.transport.allowance import UNLIMITED, Allowance, Rate
from server.transport.connection import REFUSAL, Connection, Delivery
from server.transport.namespaces import Namespaces
from server.transport.packets import Outgoing, Packet, PacketLimits, outgoing, update_event
from server.transport.turnstile import Turnstile

log = logging.getLogger(__name__)

Ack = Callable[[Any], None]

CATCH_UP_INTERVAL_S = 0.05
HANDSHAKES_PER_TURN = 32
SHORTEST_HOLD_S = 0.001
MAX_EVENT_NAMES = 100
SOCKET_METHODS = ("GET", "POST", "OPTIONS")


class Excess(Enum):
    """What becomes of an event above its sender's allowance."""

    HOLD = "held"
    """It waits, and what its sender sends after it as well."""
    REFUSE = "refused"
    """Answered with `rate_limited`; held if it asks for no answer, or its sender takes no heed."""
    DROP = "dropped"
    """Left out; held if its sender takes no heed."""


class Door(Protocol):
    """What stands behind the sockets. `sid` is one client in one namespace."""

    async def connect(self, namespace: str, sid: str, auth: Any) -> None:
        """Let a client in, or raise a RepSyncError."""

    async def connected(self, namespace: str, sid: str) -> None:
        """The client knows that it is in, and nothing that it sent since has been looked at."""

    def event(
        self, namespace: str, sid: str, event: str, args: Sequence[Any], ack: Ack | None
    ) -> Coroutine[Any, Any, None] | None:
        """Something came in; `ack` answers it, at most once, if the client asked for that.

        Returns: what is still to be awaited before the client's next event, if anything.
        """

    def allowance(self, sid: str) -> Allowance | None:
        """What the client may send together with others, if there is such a bound."""

    def excess(self, namespace: str, event: str) -> Excess:
        """What becomes of such an event above the allowance."""

    def caught_up(self, sids: Iterable[str]) -> None:
        """A slow client has taken all that was posted; what was left out can be made good."""

    def disconnected(self, namespace: str, sid: str, reason: str) -> None:
        """The client is gone. `reason`: why its connection ended; if that goes on, `left`, or
        what `cut` was told."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What one client, and all of them together, may take up."""

    max_packet_bytes: int = 8 * 1024 * 1024
    send_budget_bytes: int = 1024 * 1024
    stall_timeout_s: float = 10.0
    connect_timeout_s: float = 10.0
    ping_interval_s: float = 25.0
    ping_timeout_s: float = 20.0
    max_connections: int = 20_000
    max_connections_per_address: int = 20_000
    max_connects_per_s: float = 2_000.0
    max_namespaces: int = 64
    rate: Rate = UNLIMITED
    packet: PacketLimits = field(default_factory=PacketLimits)
    body_timeout_s: float = 60.0


@dataclass(slots=True)
class TransportStats:
    """Counted since the start; read by the metrics."""

    dropped: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    """Connect errors, by code."""
    sent: Counter[str] = field(default_factory=Counter)
    """Messages that were handed to transports, one for each recipient, by the event's name."""
    sent_bytes: Counter[str] = field(default_factory=Counter)
    limited: Counter[str] = field(default_factory=Counter)
    conflated: int = 0
    malformed: int = 0
    paused: int = 0
    deepest_queue_bytes: int = 0
    """What the client that is furthest behind has not taken yet; looked at once a second."""

    def count_sent(self, event: str, recipients: int, size_bytes: int) -> None:
        """Count a message once for all who were sent it."""
        if event not in self.sent and len(self.sent) >= MAX_EVENT_NAMES:
            event = "other"  # of the bus's messages others may be the authors
        self.sent[event] += recipients
        self.sent_bytes[event] += recipients * size_bytes


class EngineServer(engineio.AsyncServer):
    """Engine.IO with `Connection`s."""

    sockets: dict[str, Connection]

    def __init__(self, *, front: SocketServer, limits: TransportLimits, **options: Any) -> None:
        super().__init__(**options)
        self.start_service_task = False  # the wheel does its work
        self.stats = TransportStats()
        self.budget_bytes = limits.send_budget_bytes
        self.connect_timeout_s = limits.connect_timeout_s
        self.stall_timeout_s = limits.stall_timeout_s
        self.body_timeout_s = limits.body_timeout_s
        self.packet_limits = limits.packet
        self.rate = limits.rate
        self._limits = limits
        self._front = front
        self._by_address: Counter[str] = Counter()
        self._connects = limits.max_connects_per_s
        self._connects_at = 0.0
        self._wheel: dict[int, dict[Connection, None]] = {}
        self._slow: dict[Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._catching_up: asyncio.TimerHandle | None = None
        self._turned_to = 0
        self.turnstile = Turnstile(HANDSHAKES_PER_TURN)
        self.is_draining = False

    def create_queue(self, *args: Any, **kwargs: Any) -> None:
        """A connection has an outbox of its own, and only while it polls."""

    # -- requests ---------------------------------------------------------------------------

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """One request to `/socket.io/`. Raises web.HTTPException where it is refused."""
        if request.method == "HEAD":
            raise web.HTTPMethodNotAllowed("HEAD", SOCKET_METHODS)
        response: web.StreamResponse = await super().handle_request(request)
        if (refusal := request.get(REFUSAL)) is not None:
            raise refusal
        return response

    def _bad_request(self, message: str | None = None) -> dict[str, Any]:
        error = Invalid(message or "not a request of Engine.IO 4")
        return _json_response("400 BAD REQUEST", error)

    def _log_error_once(self, message: str, message_key: str) -> None:
        """The stock lines repeat session ids, and whatever was sent in their place."""

    def _cors_headers(self, environ: dict[str, Any]) -> list[tuple[str, str]]:
        """The application sets them, for all its routes alike."""
        return []

    # -- connections ------------------------------------------------------------------------

    async def _handle_connect(
        self, environ: dict[str, Any], transport: str, jsonp_index: int | None = None
    ) -> Any:
        request: web.Request = environ["aiohttp.request"]
        remote = request.remote or ""
        await self.turnstile.passing()
        refused = self._refusal(remote)
        if refused is not None:
            self.stats.refused[refused] += 1
            error = Unavailable("no more connections now", retry_after_ms=1_000)
            return _json_response("503 SERVICE UNAVAILABLE", error, ("Retry-After", "1"))
        sid = self.generate_id()
        connection = Connection(self, sid, remote)
        self.sockets[sid] = connection
        self._by_address[remote] += 1
        opening = {
            "sid": sid,
            "upgrades": self._upgrades(sid, transport),
            "pingTimeout": int(self.ping_timeout * 1000),
            "pingInterval": int(self.ping_interval * 1000),
            "maxPayload": self.max_http_buffer_size,
        }
        await connection.send(engineio.packet.Packet(engineio.packet.OPEN, opening))
        connection.open()
        self._start_wheel()
        if transport == "websocket":
            try:
                return await connection.handle_get_request(environ)
            except BaseException:
                connection.cut("handshake_failed")
                raise
        connection.connected = True
        return self._ok(await connection.poll(), jsonp_index=jsonp_index)

    def _refusal(self, remote: str) -> str | None:
        now = time.monotonic()
        limits = self._limits
        rate = limits.max_connects_per_s
        self._connects = min(max(1.0, rate), self._connects + (now - self._connects_at) * rate)
        self._connects_at = now
        if self.is_draining:
            return "draining"
        if len(self.sockets) >= limits.max_connections:
            return "connections"
        if self._by_address[remote] >= limits.max_connections_per_address:
            return "connections_per_address"
        if self._connects < 1:
            return "connects_per_s"
        self._connects -= 1
        return None

    def on_closed(self, connection: Connection) -> None:
        """A connection has ended, for whatever reason."""
        if self.sockets.pop(connection.sid, None) is None:
            return
        self.stats.closed[connection.close_reason or "unknown"] += 1
        self._by_address[connection.remote] -= 1
        if not self._by_address[connection.remote]:
            del self._by_address[connection.remote]
        self._slow.pop(connection, None)
        self._forget_due(connection)
        self._front.on_closed(connection)

    def on_packet(
        self, connection: Connection, incoming: Packet
    ) -> Coroutine[Any, Any, None] | None:
        return self._front.on_packet(connection, incoming)

    def on_ack(self, connection: Connection, incoming: Packet) -> bool:
        return self._front.on_ack(connection, incoming)

    # -- time -------------------------------------------------------------------------------

    def schedule(self, connection: Connection, delay_s: float) -> None:
        """Have `connection.on_due` called about then; only its latest appointment counts."""
        self._forget_due(connection)
        connection.due = asyncio.get_running_loop().time() + delay_s
        self._wheel.setdefault(math.ceil(connection.due), {})[connection] = None

    def _forget_due(self, connection: Connection) -> None:
        bucket = self._wheel.get(math.ceil(connection.due))
        if bucket is not None:
            bucket.pop(connection, None)
            if not bucket:
                del self._wheel[math.ceil(connection.due)]

    def watch_slow(self, connection: Connection) -> None:
        """Look after a client that has more to take than its budget."""
        self._slow[connection] = None
        if self._catching_up is None:
            loop = asyncio.get_running_loop()
            self._catching_up = loop.call_later(CATCH_UP_INTERVAL_S, self._catch_up)

    def _catch_up(self) -> None:
        self._catching_up = None
        for connection in list(self._slow):
            if connection.catch_up():
                self._slow.pop(connection, None)
                self._front.on_caught_up(connection)
        if self._slow and self._catching_up is None:
            loop = asyncio.get_running_loop()
            self._catching_up = loop.call_later(CATCH_UP_INTERVAL_S, self._catch_up)

    @property
    def slow_count(self) -> int:
        return len(self._slow)

    def _start_wheel(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._turned_to = math.floor(loop.time())
            self._timer = loop.call_later(1.0, self._turn)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for second in range(self._turned_to + 1, math.floor(now) + 1):
            for connection in self._wheel.pop(second, ()):
                connection.on_due(now)
        self._turned_to = math.floor(now)
        deepest_bytes = 0
        for connection in list(self.sockets.values()):
            deepest_bytes = max(deepest_bytes, connection.backlog_bytes)
            if connection.stalled_for_s(now) >= self._limits.stall_timeout_s:
                connection.cut("stalled")
        self.stats.deepest_queue_bytes = deepest_bytes
        self._timer = loop.call_later(1.0, self._turn) if self.sockets else None

    def stop(self) -> None:
        for timer in (self._timer, self._catching_up):
            if timer is not None:
                timer.cancel()
        self._timer = self._catching_up = None


class SocketServer(socketio.AsyncServer):
    """Engine.IO 4 and Socket.IO 4 at `/socket.io/` of an aiohttp application."""

    eio: EngineServer
    manager: Namespaces

    def __init__(self, door: Door, *, cors_origins: Sequence[str], limits: TransportLimits) -> None:
        self._door = door
        self._limits = limits
        super().__init__(
            client_manager=Namespaces(),
            async_mode="aiohttp",
            namespaces="*",  # documents come and go; the door refuses what it does not know
            async_handlers=False,
            cors_allowed_origins=_cors(cors_origins),
            max_http_buffer_size=limits.max_packet_bytes,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_timeout_s,
            http_compression=False,
        )

    def _engineio_server_class(self) -> Callable[..., EngineServer]:
        return partial(EngineServer, front=self, limits=self._limits)

    def mount(self, app: web.Application) -> None:
        self.attach(app)

    @property
    def stats(self) -> TransportStats:
        return self.eio.stats

    @property
    def connection_count(self) -> int:
        return len(self.eio.sockets)

    # -- out --------------------------------------------------------------------------------

    def post(self, namespace: str, sids: Iterable[str], event: str, *args: Any) -> None:
        """Send an event of which every one counts; those who are gone are passed over."""
        recipients = list(sids)
        if recipients:
            self._post_all(event, recipients, outgoing(packet.EVENT, namespace, [event, *args]))

    def post_update(
        self, namespace: str, sids: Collection[str], update: bytes, *, skip: str | None = None
    ) -> list[str]:
        """Send a document's update. Returns: the clients that were too slow for it."""
        message = update_event(namespace, "sync-update", update)
        return self._post_all("sync-update", sids, message, Delivery.UPDATE, skip)

    def post_volatile(
        self,
        namespace: str,
        sids: Collection[str],
        event: str,
        data: bytes,
        *,
        skip: str | None = None,
    ) -> None:
        """Send something that a slow client may miss."""
        message = update_event(namespace, event, data)
        self._post_all(event, sids, message, Delivery.VOLATILE, skip)

    def post_latest(self, sids: Iterable[str], key: Hashable, event: str, value: Any) -> None:
        """Send a value of which only the latest matters, to clients of `/`."""
        self.send_latest(sids, key, event, outgoing(packet.EVENT, "/", [event, value]))

    def send_latest(
        self, sids: Iterable[str], key: Hashable, event: str, message: Outgoing
    ) -> None:
        """The same, encoded already."""
        clients = self.manager.clients
        count = 0
        for sid in sids:
            if (connection := clients.get(sid)) is not None:
                connection.post_latest(key, message)
                count += 1
        self.stats.count_sent(event, count, len(message.frame))

    def send(self, sids: Iterable[str], event: str, message: Outgoing) -> None:
        """Send an event that is encoded already, and of which every one counts."""
        self._post_all(event, list(sids), message)

    def ask(
        self, namespace: str, sid: str, event: str, *args: Any, answer: Callable[..., None]
    ) -> None:
        """Send an event to one client and have `answer` called with what it acks, if it does."""
        ack_id = self.manager.expect(sid, answer)
        message = outgoing(packet.EVENT, namespace, [event, *args], ack_id)
        self._post_all(event, [sid], message, Delivery.REPLY)

    def reply(self, namespace: str, sid: str, event: str, *args: Any) -> None:
        """Send one client what it has asked for."""
        message = outgoing(packet.EVENT, namespace, [event, *args])
        self._post_all(event, [sid], message, Delivery.REPLY)

    def cut(self, namespace: str, sid: str, reason: str = "put_out") -> None:
        """Put one client out of a namespace."""
        connection = self.manager.clients.get(sid)
        if connection is not None:
            connection.post(outgoing(packet.DISCONNECT, namespace, None), Delivery.REPLY)
            self._remove(connection, namespace, reason)

    @property
    def slow_count(self) -> int:
        return self.eio.slow_count

    def drain(self) -> None:
        """Take nobody new; those who ask get 503."""
        self.eio.is_draining = True

    async def close_all(self, patience_s: float = 2.0) -> None:
        """Tell every client that the connection ends here; cut those who do not take it."""
        peers = [
            connection.peer
            for connection in self.eio.sockets.values()
            if connection.peer is not None
        ]
        for connection in list(self.eio.sockets.values()):
            connection.say_goodbye()
        self.eio.stop()
        gone = [peer.gone for peer in peers if not peer.gone.done()]
        if gone:
            await asyncio.wait(gone, timeout=patience_s)
        for peer in peers:
            if not peer.gone.done():
                peer.abort()

    def _post_all(
        self,
        event: str,
        sids: Collection[str],
        message: Outgoing,
        delivery: Delivery = Delivery.EVENT,
        skip: str | None = None,
    ) -> list[str]:
        clients = self.manager.clients
        count = len(sids) - (skip is not None and skip in sids)
        missed = [
            sid
            for sid in list(sids)  # posting may cut a client, who leaves the room then
            if sid != skip
            and (connection := clients.get(sid)) is not None
            and not connection.post(message, delivery)
        ]
        if count:
            self.stats.count_sent(event, count - len(missed), len(message.frame))
        return missed

    # -- in ---------------------------------------------------------------------------------

    def on_packet(
        self, connection: Connection, incoming: Packet
    ) -> Coroutine[Any, Any, None] | None:
        """One packet, in its turn. Returns: what is to be awaited before the next one."""
        now = asyncio.get_running_loop().time()
        sid = connection.namespaces.get(incoming.namespace or "/")
        shared = self._door.allowance(sid) if sid is not None else None
        wait_s = connection.allowance.spend(incoming.size_bytes, now, shared)
        if not wait_s:
            return self._handle(connection, incoming)
        if sid is not None and self._is_put_off(connection, incoming, wait_s, now):
            return None
        self.stats.limited[Excess.HOLD.value] += 1
        return self._handle_later(connection, incoming, wait_s, shared)

    def _is_put_off(
        self, connection: Connection, incoming: Packet, wait_s: float, now: float
    ) -> bool:
        """Refuse or drop what is above the allowance. Returns: False for what has to wait."""
        event = incoming.event_name
        if event is None:
            return False
        namespace = incoming.namespace or "/"
        excess = self._door.excess(namespace, event)
        ack = self._ack_of(connection, incoming)
        if excess is Excess.HOLD or (excess is Excess.REFUSE and ack is None):
            return False
        retry_after_s = connection.allowance.retry_after_s(wait_s, incoming.size_bytes, now)
        if retry_after_s is None:
            return False
        self.stats.limited[excess.value] += 1
        if ack is not None:
            error = RateLimited(
                "more than this connection, or this user, may send",
                retry_after_ms=math.ceil(retry_after_s * 1_000),
            )
            ack({"ok": False, "error": error.to_wire()})
        return True

    async def _handle_later(
        self, connection: Connection, incoming: Packet, wait_s: float, shared: Allowance | None
    ) -> None:
        loop = asyncio.get_running_loop()
        while wait_s:
            await connection.hold(max(wait_s, SHORTEST_HOLD_S))
            if connection.closed:
                return
            wait_s = connection.allowance.spend(incoming.size_bytes, loop.time(), shared)
        work = self._handle(connection, incoming)
        if work is not None:
            await work

    def _handle(self, connection: Connection, incoming: Packet) -> Coroutine[Any, Any, None] | None:
        namespace = incoming.namespace or "/"
        kind = incoming.packet_type
        if kind in (packet.EVENT, packet.BINARY_EVENT):
            sid = connection.namespaces.get(namespace)
            event = incoming.event_name
            if sid is None:
                return None
            ack = self._ack_of(connection, incoming)
            if incoming.refusal is not None:
                if ack is not None:
                    ack({"ok": False, "error": incoming.refusal.to_wire()})
                return None
            if event is None:
                return None
            return self._door.event(namespace, sid, event, incoming.data[1:], ack)
        if kind == packet.CONNECT:
            return self._let_in(connection, namespace, incoming)
        if kind == packet.DISCONNECT:
            self._remove(connection, namespace)
        elif incoming.is_ack:
            self._take_ack(connection, incoming)
        return None

    def _ack_of(self, connection: Connection, incoming: Packet) -> Ack | None:
        if incoming.id is None:
            return None
        return partial(self._post_ack, connection, incoming.namespace or "/", incoming.id)

    def on_ack(self, connection: Connection, incoming: Packet) -> bool:
        """An ack that came. Returns: False when it is above the allowance, and has to wait."""
        sid = connection.namespaces.get(incoming.namespace or "/")
        shared = self._door.allowance(sid) if sid is not None else None
        now = asyncio.get_running_loop().time()
        if connection.allowance.spend(incoming.size_bytes, now, shared):
            return False
        self._take_ack(connection, incoming)
        return True

    def _take_ack(self, connection: Connection, incoming: Packet) -> None:
        sid = connection.namespaces.get(incoming.namespace or "/")
        if sid is None or incoming.id is None:
            return
        answer = self.manager.answered(sid, incoming.id)
        if answer is not None and isinstance(incoming.data, list):
            answer(*incoming.data)

    def on_caught_up(self, connection: Connection) -> None:
        self._door.caught_up(list(connection.namespaces.values()))

    def on_closed(self, connection: Connection) -> None:
        for namespace in list(connection.namespaces):
            self._remove(connection, namespace)

    async def _let_in(self, connection: Connection, namespace: str, incoming: Packet) -> None:
        """Let a client into a namespace, or leave nothing of it behind."""
        if namespace in connection.namespaces:
            return
        refusal: dict[str, Any] | None = INTERNAL
        sid = self.eio.generate_id()
        try:
            refusal = await self._ask_door(connection, namespace, sid, incoming)
        finally:
            # Nothing but an answer of the door lets anybody in, a cancellation least of all.
            if refusal is not None or connection.closed:
                reason = connection.close_reason or "refused"
                self._door.disconnected(namespace, sid, reason)
        if refusal is not None:
            self.stats.rejected[refusal["code"]] += 1
            error = {"message": refusal["code"], "data": refusal}
            connection.post(outgoing(packet.CONNECT_ERROR, namespace, error), Delivery.REPLY)
        elif not connection.closed:
            await self._enter(connection, namespace, sid)

    async def _ask_door(
        self, connection: Connection, namespace: str, sid: str, incoming: Packet
    ) -> dict[str, Any] | None:
        """Returns: the error with which the client is refused; None lets it in."""
        try:
            if incoming.refusal is not None:
                raise incoming.refusal
            limit = self._limits.max_namespaces
            if len(connection.namespaces) >= limit:
                raise Conflict(
                    "this connection is in as many namespaces as it may be; leave one",
                    details={"limit": limit},
                )
            async with asyncio.timeout(self._limits.connect_timeout_s):
                await self.eio.turnstile.passing()
                await self._door.connect(namespace, sid, incoming.data)
        except RepSyncError as exc:
            return exc.to_wire()
        except TimeoutError:
            return Unavailable("the server is too busy", retry_after_ms=1_000).to_wire()
        except Exception:
            log.exception("connecting failed", extra={"connection": sid})
            return INTERNAL
        return None

    async def _enter(self, connection: Connection, namespace: str, sid: str) -> None:
        if not connection.namespaces:
            self.eio.schedule(connection, self._limits.ping_interval_s)
        connection.namespaces[namespace] = sid
        self.manager.add(sid, connection)
        connection.post(outgoing(packet.CONNECT, namespace, {"sid": sid}), Delivery.REPLY)
        try:
            await self._door.connected(namespace, sid)
        except RepSyncError as exc:
            told = {"connection": sid, "code": exc.code}
            log.warning("a client was let in and lost again", extra=told)
            self.cut(namespace, sid, exc.code)

    def _remove(self, connection: Connection, namespace: str, reason: str = "left") -> None:
        sid = connection.namespaces.pop(namespace, None)
        if sid is None:
            return
        self.manager.remove(sid)
        if not connection.namespaces and not connection.closed:
            # It may join another namespace, but not sit there for ever.
            self.eio.schedule(connection, self._limits.connect_timeout_s)
        try:
            self._door.disconnected(namespace, sid, connection.close_reason or reason)
        except Exception:
            log.exception("a client's end was not handled", extra={"connection": sid})

    def _post_ack(self, connection: Connection, namespace: str, ack_id: int, answer: Any) -> None:
        if namespace in connection.namespaces:
            message = outgoing(packet.ACK, namespace, [answer], ack_id)
            connection.post(message, Delivery.REPLY)
            self.stats.count_sent("ack", 1, len(message.frame))


def _json_response(status: str, error: RepSyncError, *headers: tuple[str, str]) -> dict[str, Any]:
    """A response as Engine.IO's driver takes it."""
    return {
        "status": status,
        "headers": [("Content-Type", "application/json"), *headers],
        "response": json.dumps({"ok": False, "error": error.to_wire()}).encode(),
    }


def _cors(origins: Sequence[str]) -> Any:
    """None lets in the server's own origin only; a browser page from elsewhere must be named."""
    if not origins:
        return None
    return "*" if "*" in origins else list(origins)
