"""Streams over HTTP: Server-Sent Events, for who has no Socket.IO client.

**What is promised.** What `server.streams` promises to all watchers. A viewer that cannot keep up
gets the latest value when it can, and no more than one value waits for it; of pushed items
`MAX_WAITING`, then it is cut, as is one that takes nothing for `stall_timeout_s`. A comment every
`HEARTBEAT_S` keeps proxies from closing a quiet stream. A viewer ends with its token, with its
right to watch, and with the server: by an `end` event, and the connection closes.

**Who owns what.** The viewers are here; whose they are the gateway counts, with its own sessions.

**What fails.** A viewer alone; it comes back with `Last-Event-ID` and gets what it has missed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from aiohttp import hdrs, web

from crdt.access import User
from crdt.errors import RepSyncError, TokenExpired, Unauthenticated, Unavailable
from crdt.ids import ConnectionId, UserId
from crdt.revocations import TokenFacts
from server.auth import Identity
from server.http_rules import bearer_token
from server.streams import StreamHub, Update
from server.transport.uptake import Uptake
from server.transport.websocket import hand_over, transport_of, unacknowledged_bytes

if TYPE_CHECKING:
    from server.transport.allowance import Allowance

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
RETRY_MS = 3_000
MAX_WAITING = 100
MAX_ANONYMOUS = 200
"""Viewers of `/health/live`, which asks for no token."""
LIVE_HEALTH = "health:live"

_HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # nginx would gather events before it sends them
}
_HEARTBEAT = b":\n\n"
_EVENT_ID = re.compile(r"([0-9a-f]+)-([0-9]{1,15})")
_NOBODY = User(UserId(""), "")


class Sessions(Protocol):
    """Who is let in: the gateway."""

    async def identify(self, token: object) -> Identity: ...

    def demand_unrevoked(self, identity: Identity) -> None: ...

    def seat(self, user: User) -> Allowance: ...

    def unseat(self, user_id: UserId) -> None: ...


class _Head(web.StreamResponse):
    """The head of a response whose body is written past aiohttp, until the connection closes."""

    _length_check = False

    async def write_eof(self, data: bytes = b"") -> None:
        self._eof_sent = True


@dataclass(slots=True)
class ViewerStats:
    """Counted since the start; read by the metrics."""

    opened: int = 0
    conflated: int = 0
    ended: Counter[str] = field(default_factory=Counter)


class Viewer(asyncio.Protocol):
    """One stream on its way to one client. Nothing here waits."""

    def __init__(
        self,
        owner: EventStreams,
        stream: str,
        identity: Identity | None,
        transport: asyncio.Transport,
    ) -> None:
        self.id = ConnectionId(uuid4().hex)
        self.stream = stream
        self.user = _NOBODY if identity is None else identity.user
        self.token = None if identity is None else identity.token
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.expiry: asyncio.TimerHandle | None = None
        self._owner = owner
        self._transport = transport
        self._latest: Update | None = None
        self._waiting: deque[Update] = deque()
        self._is_ending = False
        now = asyncio.get_running_loop().time()
        self._written_bytes = 0
        self._written_at_s = now
        self._uptake = Uptake(now)
        # We are told as soon as the network does not take all, and when it has.
        transport.set_write_buffer_limits(high=0)
        self._is_full = transport.get_write_buffer_size() > 0

    # -- out --------------------------------------------------------------------------------

    def show(self, update: Update) -> None:
        """A value of which only the latest matters."""
        if self._is_full:
            self._owner.stats.conflated += self._latest is not None
            self._latest = update
        else:
            self.write(update.server_sent)

    def tell(self, update: Update) -> None:
        """An item that counts."""
        if not self._is_full:
            self.write(update.server_sent)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(update)
        else:
            self.cut("slow_reader")

    def write(self, data: bytes) -> None:
        if not self._is_ending and not self._transport.is_closing():
            self._written_bytes += len(data)
            self._written_at_s = asyncio.get_running_loop().time()
            self._transport.write(data)

    def end(self, reason: str, message: str, *, retry_ms: int | None = None) -> None:
        """Say why, and close when that has been taken, or has not for too long."""
        if self._is_ending:
            return
        self._latest = None
        self._waiting.clear()
        told = json.dumps({"stream": self.stream, "reason": reason, "message": message})
        again = f"retry: {retry_ms}\n" if retry_ms is not None else ""
        self.write(f"{again}event: end\ndata: {told}\n\n".encode())
        self._is_ending = True
        self._owner.stats.ended[reason] += 1
        self._transport.close()

    def cut(self, reason: str) -> None:
        """End it now: it takes nothing."""
        if not self.gone.done():
            if not self._is_ending:
                self._owner.stats.ended[reason] += 1
            self._is_ending = True
            self._transport.abort()

    def on_tick(self, now: float, stall_timeout_s: float) -> None:
        """Once a second: is it still there, and has it heard of us lately?"""
        stalled_s = self._uptake.stalled_for_s(self._written_bytes, self._waiting_bytes, now)
        if stalled_s >= stall_timeout_s:
            self.cut("stalled")
        elif now - self._written_at_s >= HEARTBEAT_S and not self._is_full:
            self.write(_HEARTBEAT)

    def _waiting_bytes(self) -> int:
        return self._transport.get_write_buffer_size() + unacknowledged_bytes(self._transport)

    # -- asyncio.Protocol -------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        while self._waiting and not self._is_full:
            self.write(self._waiting.popleft().server_sent)
        if self._latest is not None and not self._is_full:
            update, self._latest = self._latest, None
            self.write(update.server_sent)

    def data_received(self, data: bytes) -> None:
        pass  # there is nothing for it to say

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_ending:
            self._owner.stats.ended["client_disconnect"] += 1
        self._is_ending = True
        self.gone.set_result(None)
        self._owner.forget(self)


class EventStreams:
    """All viewers of this instance; the `Audience` of theirs."""

    def __init__(
        self,
        sessions: Sessions,
        streams: StreamHub,
        instance: str,
        *,
        stall_timeout_s: float,
        drain_spread_s: float,
        max_viewers: int,
    ) -> None:
        self.stats = ViewerStats()
        self._sessions = sessions
        self._streams = streams
        self._instance = instance
        self._stall_timeout_s = stall_timeout_s
        self._drain_spread_s = drain_spread_s
        self._max_viewers = max_viewers
        self._viewers: dict[ConnectionId, Viewer] = {}
        self._anonymous = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._is_draining = False

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/streams/{stream:.+}", self._watch)
        app.router.add_get("/health/live", self._watch_health)

    def __len__(self) -> int:
        return len(self._viewers)

    # -- opening and closing ----------------------------------------------------------------

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        identity = await self._sessions.identify(bearer_token(request))
        stream = request.match_info["stream"]
        if request.method == hdrs.METH_HEAD:
            await self._streams.admit(identity.user, stream, time.monotonic())
            return web.Response(headers=_HEADERS)
        self._sessions.seat(identity.user)
        try:
            return await self._open(request, stream, identity)
        except BaseException:
            self._sessions.unseat(identity.user.id)
            raise

    async def _watch_health(self, request: web.Request) -> web.StreamResponse:
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers=_HEADERS)
        if self._anonymous >= MAX_ANONYMOUS:
            raise Unavailable("too many watch the health", retry_after_ms=5_000)
        self._anonymous += 1
        try:
            return await self._open(request, LIVE_HEALTH, None)
        except BaseException:
            self._anonymous -= 1
            raise

    async def _open(
        self, request: web.Request, stream: str, identity: Identity | None
    ) -> web.StreamResponse:
        """Let a viewer in. What this raises is answered as an error."""
        if self._is_draining:
            raise Unavailable("the server is going away", retry_after_ms=1_000)
        if len(self._viewers) >= self._max_viewers:
            raise Unavailable("no more connections now", retry_after_ms=1_000)
        user = _NOBODY if identity is None else identity.user
        view = await self._streams.admit(user, stream, time.monotonic())
        if identity is not None:
            self._sessions.demand_unrevoked(identity)  # it may have been meanwhile
        response = _Head(headers=_HEADERS)
        response.force_close()
        await response.prepare(request)
        viewer = Viewer(self, stream, identity, transport_of(request))
        hand_over(request, viewer)
        self._enter(viewer, identity)
        viewer.write(f"retry: {RETRY_MS}\n\n".encode())
        seen = self._seen(request.headers.get("Last-Event-ID", ""))
        self._streams.subscribe(viewer.id, {stream: view}, audience=self, seen=seen)
        return response

    def _enter(self, viewer: Viewer, identity: Identity | None) -> None:
        self.stats.opened += 1
        self._viewers[viewer.id] = viewer
        loop = asyncio.get_running_loop()
        if identity is not None:
            left_s = max(0.0, identity.expires_at_s - time.time())
            viewer.expiry = loop.call_later(left_s, self._expire, viewer)
        if self._ticking is None:
            self._ticking = loop.call_later(1.0, self._tick)

    def forget(self, viewer: Viewer) -> None:
        """Its connection is gone."""
        if self._viewers.pop(viewer.id, None) is None:
            return
        if viewer.expiry is not None:
            viewer.expiry.cancel()
        self._streams.forget(viewer.id)
        if viewer.token is None:
            self._anonymous -= 1
        else:
            self._sessions.unseat(viewer.user.id)

    def _seen(self, event_id: str) -> int:
        """The `seq` of the last value that a viewer says it has, if it was one of ours."""
        found = _EVENT_ID.fullmatch(event_id)
        return int(found[2]) if found is not None and found[1] == self._instance else 0

    def _expire(self, viewer: Viewer) -> None:
        self._streams.end(viewer.id, TokenExpired("the token has expired"))

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for viewer in list(self._viewers.values()):
            viewer.on_tick(now, self._stall_timeout_s)
        self._ticking = loop.call_later(1.0, self._tick) if self._viewers else None

    async def drain(self, patience_s: float = 2.0) -> None:
        """Tell all viewers that it ends here, and each when to come back; take nobody new."""
        self._is_draining = True
        viewers = list(self._viewers.values())
        for viewer in viewers:
            again_ms = round(random.uniform(0, self._drain_spread_s * 1_000))
            viewer.end("unavailable", "the server is going away", retry_ms=again_ms)
        if viewers:
            await asyncio.wait([viewer.gone for viewer in viewers], timeout=patience_s)
        for viewer in viewers:
            viewer.cut("server_shutdown")
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    # -- tokens -----------------------------------------------------------------------------

    def tokens(self) -> Iterable[TokenFacts]:
        """Those that are in use here."""
        return [viewer.token for viewer in self._viewers.values() if viewer.token is not None]

    def end_if(self, refused: Callable[[TokenFacts], bool]) -> None:
        """End whose token is good no more."""
        for viewer in list(self._viewers.values()):
            if viewer.token is not None and refused(viewer.token):
                self._streams.end(viewer.id, Unauthenticated("the token has been revoked"))

    # -- Audience ---------------------------------------------------------------------------

    def user_of(self, watcher: ConnectionId) -> User | None:
        viewer = self._viewers.get(watcher)
        return None if viewer is None else viewer.user

    def show(self, watchers: Iterable[ConnectionId], update: Update) -> None:
        for id_ in watchers:
            if (viewer := self._viewers.get(id_)) is not None:
                viewer.show(update)

    def tell(self, watchers: Iterable[ConnectionId], update: Update) -> None:
        for id_ in list(watchers):
            if (viewer := self._viewers.get(id_)) is not None:
                viewer.tell(update)

    def ended(self, watcher: ConnectionId, stream: str, error: RepSyncError) -> None:
        if (viewer := self._viewers.get(watcher)) is not None:
            viewer.end(error.code, str(error))
