"""Between the sockets and the rooms: sessions, the JSON door `/`, the Yjs door `/yjs|<doc>`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

from prometheus_client import Counter as EventCounter
from pycrdt import merge_updates

from crdt.access import Right, User
from crdt.errors import (
    INTERNAL,
    Forbidden,
    Invalid,
    NotFound,
    RateLimited,
    RepSyncError,
    TokenExpired,
    TooLarge,
    Unavailable,
    Unsynced,
)
from crdt.hub import RoomHub
from crdt.ids import ConnectionId, DocName, UserId
from crdt.live import Connection, LiveRoom
from crdt.ports import Committed, Durability, Stored
from crdt.wire import MAX_STATE_BYTES
from handlers.context import Caller, Services
from handlers.registry import Registry
from server.auth import Authenticator, Identity, is_text
from server.metrics import Metrics
from server.settings import Settings
from server.streams import StreamHub
from server.transport.server import Ack, SocketServer

log = logging.getLogger(__name__)

DOCUMENT_PREFIX = "/yjs|"
PROTOCOL_VERSION = 1


@dataclass(slots=True)
class Session:
    """One client in one namespace, and the token that it holds."""

    id: ConnectionId
    namespace: str
    user: User
    device: dict[str, str]
    token_digest: bytes
    expires_at_s: float
    document: DocName | None = None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    missed: tuple[bytes, bytes] | None = None
    """The first update that was left out because the client is slow, and the document's state
    vector right after it: what the two together lack is all that it has missed."""
    is_asked: bool = False
    """Whether the client's answer to our own sync-step-1 is still to come."""

    @property
    def connection(self) -> Connection:
        return Connection(self.id, self.user, self.device, document=self.document is not None)

    @property
    def caller(self) -> Caller:
        return Caller(self.user, self.device, self.id)


class Gateway:
    """The `Door` of the sockets, the `Outlet` of the rooms, and the `Sessions` of the handlers.

    It owns the sessions. What it sends to a room goes to the connections that the hub lists.
    """

    def __init__(
        self,
        settings: Settings,
        auth: Authenticator,
        registry: Registry,
        metrics: Metrics,
        instance: str,
    ) -> None:
        self._settings = settings
        self._auth = auth
        self._registry = registry
        self._metrics = metrics
        self._instance = instance
        self._sessions: dict[ConnectionId, Session] = {}
        self._by_user: dict[UserId, set[ConnectionId]] = {}
        self._session_counts: Counter[UserId] = Counter()
        self._counters: dict[tuple[str, str], EventCounter] = {}
        self.limits = {
            "max_update_bytes": settings.max_update_bytes,
            "max_packet_bytes": max_packet_bytes(settings),
            "max_awareness_state_bytes": MAX_STATE_BYTES,
        }

    def open(
        self, sockets: SocketServer, hub: RoomHub, services: Services, streams: StreamHub
    ) -> None:
        """Tie the knot: the parts that need the gateway are there now."""
        self._sockets = sockets
        self._hub = hub
        self._services = services
        self._streams = streams

    @property
    def session_counts(self) -> dict[str, int]:
        documents = sum(1 for session in self._sessions.values() if session.document)
        return {"events": len(self._sessions) - documents, "document": documents}

    # -- Door -------------------------------------------------------------------------------

    async def connect(self, namespace: str, sid: str, auth: Any) -> None:
        payload = auth if isinstance(auth, dict) else {}
        try:
            document = _document_of(namespace)
            token = payload.get("token")
            identity = self._auth.verify(token)
            device = _device(payload.get("device"))
            if document is not None:
                async with self._hub.lease(document) as live:
                    live.demand(identity.user, Right.READ)
        except RepSyncError as exc:
            self._metrics.refused.labels(exc.code).inc()
            raise
        self._demand_room_for(identity.user)
        session = Session(
            ConnectionId(sid),
            namespace,
            identity.user,
            device,
            _digest(str(token)),
            identity.expires_at_s,
            document,
        )
        self._sessions[session.id] = session
        self._session_counts[session.user.id] += 1
        self._watch_expiry(session)

    def _demand_room_for(self, user: User) -> None:
        if self._session_counts[user.id] >= self._settings.max_sessions_per_user:
            self._metrics.refused.labels(RateLimited.code).inc()
            raise RateLimited("too many connections of one user", retry_after_ms=5_000)

    async def connected(self, namespace: str, sid: str) -> None:
        session = self._sessions.get(ConnectionId(sid))
        if session is None:
            return
        if session.document is not None:
            await self._open_document(session, session.document)
            return
        self._by_user.setdefault(session.user.id, set()).add(session.id)
        active = await self._services.store.active_workout(session.user.id)
        welcome = {
            "user": {**session.user.to_wire(), "role": session.user.role},
            "device_id": session.device["id"],
            "server_time": self._services.clock.now_ms(),
            "protocol": PROTOCOL_VERSION,
            "instance": self._instance,
            "active_workout": active,
            "limits": self.limits,
        }
        self._sockets.post("/", [session.id], "welcome", welcome)

    def event(
        self, namespace: str, sid: str, event: str, args: Sequence[Any], ack: Ack | None
    ) -> Coroutine[Any, Any, None] | None:
        session = self._sessions.get(ConnectionId(sid))
        if session is None:
            return None
        if session.document is not None and event in _DOCUMENT_EVENTS:
            return _DOCUMENT_EVENTS[event](self, session, session.document, args, ack)
        return self._dispatch(session, event, args, ack)

    async def _dispatch(
        self, session: Session, event: str, args: Sequence[Any], ack: Ack | None
    ) -> None:
        started = time.perf_counter()
        if session.document is not None and event != "auth:refresh":
            error = NotFound(f"there is no event {event[:64]!r} in a document's namespace")
            answer: dict[str, Any] = {"ok": False, "error": error.to_wire()}
        elif len(args) > 1:
            invalid = Invalid.at("", "an event carries one object")
            answer = {"ok": False, "error": invalid.to_wire()}
        else:
            data = args[0] if args else {}
            answer = await self._registry.dispatch(session.caller, self._services, event, data)
        name = event if event in self._registry.intents else "unknown"
        self._count(name, "ok" if answer["ok"] else answer["error"]["code"])
        self._metrics.ack_seconds.observe(time.perf_counter() - started)
        if ack is not None:
            ack(answer)
        if event == "subscribe" and answer["ok"] and session.id in self._sessions:
            confirmed = {"subscribed": answer["subscribed"]}
            self._sockets.post("/", [session.id], "subscription:confirmed", confirmed)

    def _count(self, event: str, code: str) -> None:
        counter = self._counters.get((event, code))
        if counter is None:
            counter = self._counters[event, code] = self._metrics.events.labels(event, code)
        counter.inc()

    def caught_up(self, sids: Iterable[str]) -> None:
        """Give slow clients what was left out: one reset, and one update with all of it."""
        for sid in sids:
            session = self._sessions.get(ConnectionId(sid))
            if session is None or session.missed is None or session.document is None:
                continue
            first, vector = session.missed
            session.missed = None
            live = self._hub.find(session.document)
            if live is None:
                continue
            self._metrics.resets.labels("slow_reader").inc()
            self._sockets.reply(session.namespace, sid, "sync-reset", {"reason": "slow_reader"})
            everything = merge_updates(first, live.room.diff(vector))
            self._sockets.reply(session.namespace, sid, "sync-update", everything)

    def announce_end(self) -> None:
        """Tell everybody that this server goes away, and each when to come back."""
        spread_ms = self._settings.drain_spread_s * 1_000
        for session in list(self._sessions.values()):
            notice = {"reconnect_in_ms": round(random.uniform(0, spread_ms))}
            self._sockets.post(session.namespace, [session.id], "server:draining", notice)

    def disconnected(self, namespace: str, sid: str) -> None:
        session = self._sessions.pop(ConnectionId(sid), None)
        if session is None:
            return
        for timer in session.timers:
            timer.cancel()
        self._session_counts[session.user.id] -= 1
        if not self._session_counts[session.user.id]:
            del self._session_counts[session.user.id]
        mine = self._by_user.get(session.user.id)
        if mine is not None:
            mine.discard(session.id)
            if not mine:
                del self._by_user[session.user.id]
        self._streams.forget(session.id)
        for name in self._hub.joined(session.id):
            self._leave(name, session.id)

    # -- Outlet -----------------------------------------------------------------------------

    def committed(self, commit: Committed) -> None:
        live = self._hub.find(commit.doc)
        if live is None:
            return
        if commit.update is not None and live.readers:
            self._spread(live, commit.update, commit.sender)
        if live.listeners:
            for event in commit.events:
                self._sockets.post("/", live.listeners, event.name, event.payload)
        if commit.touches_progress:
            self._streams.progress_changed(commit.doc)
        if commit.touches_access:
            for connection in list(live.connections.values()):
                self._put_out_unless_allowed(live, connection)

    def _spread(self, live: LiveRoom, update: bytes, sender: ConnectionId | None) -> None:
        missed_by = self._sockets.post_update(
            DOCUMENT_PREFIX + str(live.name), live.readers, update, skip=sender
        )
        self._metrics.deliveries.inc(len(live.readers) - len(missed_by) - (sender in live.readers))
        for sid in missed_by:
            session = self._sessions.get(ConnectionId(sid))
            if session is not None and session.missed is None:
                session.missed = (update, live.room.state_vector())

    def reset(self, doc: DocName, reason: str) -> None:
        live = self._hub.find(doc)
        for sid in live.readers if live else ():
            session = self._sessions.get(sid)
            if session is not None:
                self._ask_to_sync(session, doc, reason)

    def present(self, doc: DocName, event: str, payload: dict[str, Any]) -> None:
        live = self._hub.find(doc)
        if live is not None:
            self._sockets.post("/", live.listeners, event, payload)

    # -- Sessions ---------------------------------------------------------------------------

    def refresh(self, connection_id: ConnectionId, token: str) -> int:
        asking = self._sessions[connection_id]
        identity = self._auth.verify(token)
        if identity.user.id != asking.user.id:
            raise Forbidden("the new token is somebody else's")
        old, new = asking.token_digest, _digest(token)
        for session in list(self._sessions.values()):
            if session.token_digest == old:
                self._renew(session, identity, new)
        return int(identity.expires_at_s * 1_000)

    def is_here(self, connection_id: ConnectionId) -> bool:
        return connection_id in self._sessions

    def user_of(self, connection_id: ConnectionId) -> User | None:
        session = self._sessions.get(connection_id)
        return session.user if session else None

    def tell_user(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None:
        self._sockets.post("/", self._by_user.get(user_id, ()), event, dict(payload))

    def _put_out_unless_allowed(self, live: LiveRoom, connection: Connection) -> None:
        if Right.READ in live.room.rights(connection.user):
            return
        if connection.document:
            self._sockets.cut(DOCUMENT_PREFIX + str(live.name), connection.id)
        else:
            self._hub.leave(live.name, connection.id)

    def _renew(self, session: Session, identity: Identity, digest: bytes) -> None:
        session.user = identity.user
        session.token_digest = digest
        session.expires_at_s = identity.expires_at_s
        self._watch_expiry(session)
        self._hub.renew(session.connection)
        for name in self._hub.joined(session.id):
            if (live := self._hub.find(name)) is not None:
                self._put_out_unless_allowed(live, session.connection)

    def _watch_expiry(self, session: Session) -> None:
        for timer in session.timers:
            timer.cancel()
        left_s = session.expires_at_s - time.time()
        loop = asyncio.get_running_loop()
        notice_s = max(0.0, left_s - self._settings.auth_expiring_notice_s)
        session.timers = [
            loop.call_later(notice_s, self._announce_expiry, session),
            loop.call_later(max(0.0, left_s), self._expire, session),
        ]

    def _announce_expiry(self, session: Session) -> None:
        notice = {"expires_at": int(session.expires_at_s * 1_000)}
        self._sockets.post(session.namespace, [session.id], "auth:expiring", notice)

    def _expire(self, session: Session) -> None:
        error = TokenExpired("the token has expired").to_wire()
        self._sockets.post(session.namespace, [session.id], "auth:expired", error)
        self._sockets.cut(session.namespace, session.id)

    # -- documents --------------------------------------------------------------------------

    async def _open_document(self, session: Session, name: DocName) -> None:
        async with self._hub.lease(name) as live:
            if session.id not in self._sessions:
                return  # gone while the room was loaded
            self._hub.join(live, session.connection)
            self._ask(session, live)
            everybody = live.presence.everybody()
            if everybody:
                self._sockets.reply(session.namespace, session.id, "awareness-update", everybody)

    def _ask(self, session: Session, live: LiveRoom) -> None:
        """Send our own sync-step-1; a stock client answers with what we lack."""
        session.is_asked = True
        self._sockets.ask(
            session.namespace,
            session.id,
            "sync-step-1",
            live.room.state_vector(),
            answer=partial(self._on_missing, session, live.name),
        )

    def _ask_to_sync(self, session: Session, name: DocName, reason: str) -> None:
        self._sockets.post(session.namespace, [session.id], "sync-reset", {"reason": reason})
        self._metrics.resets.labels(reason).inc()
        live = self._hub.find(name)
        # Stock clients do not know sync-reset, but answer a sync-step-1.
        if live is not None and not session.is_asked:
            self._ask(session, live)

    def _on_missing(self, session: Session, name: DocName, *answer: Any) -> None:
        session.is_asked = False
        if session.id in self._sessions and answer and isinstance(answer[0], bytes):
            self._on_sync_update(session, name, answer, None)

    def _on_sync_step_1(
        self, session: Session, name: DocName, args: Sequence[Any], ack: Ack | None
    ) -> None:
        try:
            vector = _bytes(args, "state_vector", self._settings.max_update_bytes)
            answer: Any = self._room_of(session, name).room.diff(vector)
            self._count("sync-step-1", "ok")
        except RepSyncError as exc:
            self._count("sync-step-1", exc.code)
            answer = {"ok": False, "error": exc.to_wire()}
        self._answer(ack, answer)

    def _room_of(self, session: Session, name: DocName) -> LiveRoom:
        live = self._hub.find(name)
        if live is None or session.id not in live.connections:
            raise Unavailable("the document is being read again", retry_after_ms=100)
        return live

    def _on_sync_update(
        self, session: Session, name: DocName, args: Sequence[Any], ack: Ack | None
    ) -> None:
        """Admit an update now, in order; the ack follows when it is durable."""
        try:
            update = _bytes(args, "update", self._settings.max_update_bytes)
            live = self._room_of(session, name)
            stored = self._hub.submit(live, update, live.connections[session.id])
        except RepSyncError as exc:
            self._refuse(session, name, exc, ack)
            return
        except Exception:
            log.exception("an update could not be handled", extra={"document": str(name)})
            self._count("sync-update", "internal")
            self._answer(ack, {"ok": False, "error": INTERNAL})
            return
        self._count("sync-update", "ok")
        if ack is None:
            return  # should it fail, the room's sync-reset tells
        if stored.done():
            self._on_stored(session, name, ack, stored)
        else:
            stored.add_done_callback(partial(self._on_stored, session, name, ack))

    def _on_stored(
        self, session: Session, name: DocName, ack: Ack, stored: asyncio.Future[Stored]
    ) -> None:
        error = stored.exception()
        if isinstance(error, RepSyncError):
            self._answer(ack, {"ok": False, "error": error.to_wire()})
        elif error is not None:
            self._answer(ack, {"ok": False, "error": INTERNAL})
        else:
            durability: Durability = self._services.store.durability
            self._answer(ack, {"ok": True, "seq": stored.result().seq, "durability": durability})

    def _refuse(self, session: Session, name: DocName, exc: RepSyncError, ack: Ack | None) -> None:
        self._count("sync-update", exc.code)
        self._answer(ack, {"ok": False, "error": exc.to_wire()})
        if isinstance(exc, Unsynced | Unavailable):
            # Its replica is good, we lack a part: dropping it would lose the client's edits.
            self._ask_to_sync(session, name, exc.code)
            return
        rejection: dict[str, Any] = {"code": exc.code, "message": str(exc)}
        if isinstance(exc.details, list) and exc.details:
            rejection["path"] = exc.details[0]["path"]
        self._sockets.post(session.namespace, [session.id], "sync-rejected", rejection)

    def _on_awareness(
        self, session: Session, name: DocName, args: Sequence[Any], ack: Ack | None
    ) -> None:
        live = self._hub.find(name)
        if live is None:
            return
        try:
            update = _bytes(args, "awareness", self._settings.max_update_bytes)
            change = live.presence.receive(session.id, session.user, update)
        except RepSyncError as exc:
            self._count("awareness-update", exc.code)
            self._answer(ack, {"ok": False, "error": exc.to_wire()})
            return
        self._count("awareness-update", "ok")
        self._answer(ack, {"ok": True})
        if change.relay:
            self._sockets.post_volatile(
                session.namespace, live.readers, "awareness-update", change.relay, skip=session.id
            )
        for owner, nudge in change.nudges:
            self._sockets.post_volatile(session.namespace, [owner], "awareness-update", nudge)
        if change.reply:
            self._sockets.post_volatile(
                session.namespace, [session.id], "awareness-update", change.reply
            )

    def _leave(self, name: DocName, connection_id: ConnectionId) -> None:
        gone = self._hub.leave(name, connection_id)
        live = self._hub.find(name)
        if gone and live is not None:
            namespace = DOCUMENT_PREFIX + str(name)
            self._sockets.post_volatile(namespace, live.readers, "awareness-update", gone)

    @staticmethod
    def _answer(ack: Ack | None, answer: Any) -> None:
        if ack is not None:
            ack(answer)


_DOCUMENT_EVENTS = {
    "sync-step-1": Gateway._on_sync_step_1,
    "sync-update": Gateway._on_sync_update,
    "awareness-update": Gateway._on_awareness,
}


def max_packet_bytes(settings: Settings) -> int:
    """What the transport takes: more than an update may have, so that one that is too large can
    still be answered. A larger packet closes the socket, and its client would send it again."""
    return 2 * settings.max_update_bytes + 64 * 1024


def _document_of(namespace: str) -> DocName | None:
    if namespace == "/":
        return None
    if not namespace.startswith(DOCUMENT_PREFIX):
        raise NotFound("there is no such namespace; connect to / or to /yjs|<doc>")
    return DocName.parse(namespace.removeprefix(DOCUMENT_PREFIX))


def _device(given: Any) -> dict[str, str]:
    if given is None:
        return {"id": str(uuid4()), "name": ""}
    if not isinstance(given, dict):
        raise Invalid.at("device", "must be an object {id, name}")
    id_, name = given.get("id") or str(uuid4()), given.get("name", "")
    if not all(
        isinstance(text, str) and len(text) <= 100 and is_text(text) for text in (id_, name)
    ):
        raise Invalid.at("device", "id and name are texts of 100 characters at most")
    return {"id": id_, "name": name}


def _bytes(args: Sequence[Any], what: str, limit_bytes: int) -> bytes:
    if len(args) != 1 or not isinstance(args[0], bytes | bytearray):
        raise Invalid.at(what, "must be binary")
    if len(args[0]) > limit_bytes:
        raise TooLarge(f"the {what}", len(args[0]), limit_bytes)
    return bytes(args[0])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
