"""Between the sockets and the rooms: who is connected, with which token, and the JSON door `/`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from crdt.access import Right, User
from crdt.errors import (
    Forbidden,
    Invalid,
    NotFound,
    RateLimited,
    RepSyncError,
    TokenExpired,
    Unauthenticated,
    Unavailable,
)
from crdt.hub import RoomHub
from crdt.ids import ConnectionId, DocName, UserId, is_text
from crdt.live import Connection, LiveRoom
from crdt.ports import Committed
from crdt.revocations import Revocation, RevocationList, TokenFacts
from handlers.context import Services
from handlers.registry import Registry
from server import limits, logs
from server.auth import Authenticator, Identity
from server.documents import DOCUMENT_EVENTS, DOCUMENT_PREFIX, DocumentDoor
from server.logs import Cause
from server.metrics import Metrics
from server.sessions import Session
from server.settings import Settings
from server.streams import StreamHub
from server.tasks import heed_cancellation
from server.transport.allowance import Allowance
from server.transport.server import Ack, Excess, SocketServer

if TYPE_CHECKING:
    from server.cluster.neighbours import ClusterNeighbours
    from server.sse import EventStreams

log = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
NOT_READING = ("slow_reader", "stalled")
"""Why a connection is cut whose client does not take what it is sent."""
FIRST_RELOAD_S, LAST_RELOAD_S = 0.2, 10.0


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
        self.instance = instance
        self._sessions: dict[ConnectionId, Session] = {}
        self._by_user: dict[UserId, set[ConnectionId]] = {}
        self._session_counts: Counter[UserId] = Counter()
        self._revocations = RevocationList()
        self._reloading: asyncio.Task[None] | None = None
        self._allowances: dict[UserId, Allowance] = {}
        self._user_rate = limits.of_user(settings)
        self.limits = limits.told(settings)
        self.on_committed: Callable[[Committed], None] = lambda _: None
        """Told of every change that is durable, after its room was."""
        self.on_erased: Callable[[Revocation], None] = lambda _: None
        """Told of who was erased, as often as this is heard of."""

    def open(
        self,
        sockets: SocketServer,
        hub: RoomHub,
        services: Services,
        streams: StreamHub,
        viewers: EventStreams,
        neighbours: ClusterNeighbours | None = None,
    ) -> None:
        """Tie the knot: the parts that need the gateway are there now."""
        self._viewers = viewers
        self._neighbours = neighbours
        self._sockets = sockets
        self._hub = hub
        self._services = services
        self._streams = streams
        self._documents = DocumentDoor(
            sockets,
            hub,
            self._metrics,
            self._sessions,
            max_update_bytes=self._settings.max_update_bytes,
            durability=services.store.durability,
            neighbours=neighbours,
        )

    async def load_revocations(self) -> None:
        """Learn what has been revoked so far, to begin with before anybody is let in.

        Raises:
            Unavailable: the store cannot be read.
        """
        now_ms = self._services.clock.now_ms()
        for revocation in await self._services.store.revocations(now_ms):
            self._revocations.add(revocation, now_ms)
            if revocation.kind == "erased":
                self.on_erased(revocation)

    def reload_revocations(self) -> None:
        """What another instance has said of them may have been lost: read them again."""
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload_revocations())

    async def _reload_revocations(self) -> None:
        delay_s = FIRST_RELOAD_S
        while True:
            heed_cancellation()
            try:
                await self.load_revocations()
            except Unavailable:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LAST_RELOAD_S)
                continue
            for session in list(self._sessions.values()):
                self._end_if_revoked(session)
            self._viewers.end_if(self._is_revoked)
            return

    @property
    def revocation_count(self) -> int:
        return len(self._revocations)

    @property
    def session_counts(self) -> dict[str, int]:
        documents = sum(1 for session in self._sessions.values() if session.document)
        return {"events": len(self._sessions) - documents, "document": documents}

    # -- Door -------------------------------------------------------------------------------

    async def connect(self, namespace: str, sid: str, auth: Any) -> None:
        told = {"connection": sid}
        try:
            await self._let_in(namespace, sid, auth, told)
        except RepSyncError as exc:
            # Not what the client calls things: there may be no such document, or user.
            log.info("a client is refused", extra={**told, "code": exc.code})
            raise

    async def _let_in(self, namespace: str, sid: str, auth: Any, told: dict[str, str]) -> None:
        """Raises RepSyncError. `told` gets what is known to be true until then."""
        payload = auth if isinstance(auth, dict) else {}
        document = _document_of(namespace)
        token = payload.get("token")
        identity = await self.identify(token)
        told["user"] = identity.user.id
        device = _device(payload.get("device"))
        if document is not None:
            async with self._hub.lease(document, since_s=time.monotonic()) as live:
                told["document"] = str(document)
                live.demand(identity.user, Right.READ)
                self._hub.demand_seat(live, ConnectionId(sid))
            self.demand_unrevoked(identity)  # it may have been while the room was loaded
        allowance = self.seat(identity.user)
        session = Session(
            ConnectionId(sid),
            namespace,
            identity.user,
            device,
            identity.token,
            _digest(str(token)),
            identity.expires_at_s,
            allowance,
            document,
        )
        self._sessions[session.id] = session
        self._watch_expiry(session)

    async def identify(self, token: object) -> Identity:
        """Raises Unauthenticated, TokenExpired or Unavailable."""
        identity = await self._auth.verify(token)
        self.demand_unrevoked(identity)
        return identity

    def demand_unrevoked(self, identity: Identity) -> None:
        """Raises Unauthenticated, or Forbidden where the user has been erased."""
        if (refused := self._refused(identity.token)) is not None:
            raise _revoked(refused)

    def _refused(self, token: TokenFacts) -> Revocation | None:
        return self._revocations.find(token, self._services.clock.now_ms())

    def _is_revoked(self, token: TokenFacts) -> bool:
        return self._refused(token) is not None

    def seat(self, user: User) -> Allowance:
        """Count one more session of a user's, until `unseat`.

        Returns: what all of the user's sessions may still send.
        Raises:
            RateLimited: there are as many as there may be.
        """
        if self._session_counts[user.id] >= self._settings.max_sessions_per_user:
            raise RateLimited("too many connections of one user", retry_after_ms=5_000)
        self._session_counts[user.id] += 1
        allowance = self._allowances.get(user.id)
        if allowance is None:
            now = asyncio.get_running_loop().time()
            allowance = self._allowances[user.id] = Allowance(self._user_rate, now)
        return allowance

    def unseat(self, user_id: UserId) -> None:
        self._session_counts[user_id] -= 1
        if not self._session_counts[user_id]:
            del self._session_counts[user_id]
            self._forget_allowance(user_id)

    def _forget_allowance(self, user_id: UserId) -> None:
        """Of one who is gone; not before it is whole again, or coming back would refill it."""
        allowance = self._allowances.get(user_id)
        if allowance is None or self._session_counts[user_id]:
            return
        loop = asyncio.get_running_loop()
        if whole_in_s := allowance.whole_in_s(loop.time()):
            # A second later: a clock's rounding must not leave it a hair short, again and again.
            loop.call_later(whole_in_s + 1.0, self._forget_allowance, user_id)
        else:
            del self._allowances[user_id]

    def allowance(self, sid: str) -> Allowance | None:
        session = self._sessions.get(ConnectionId(sid))
        return session.allowance if session is not None else None

    def excess(self, namespace: str, event: str) -> Excess:
        if not namespace.startswith(DOCUMENT_PREFIX) or event not in DOCUMENT_EVENTS:
            return Excess.REFUSE
        # A stock Yjs client knows no errors: what it is not to lose can only be held.
        return Excess.DROP if event == "awareness-update" else Excess.HOLD

    async def connected(self, namespace: str, sid: str) -> None:
        session = self._sessions.get(ConnectionId(sid))
        if session is None:
            return
        log.info("a client is in", extra={**session.facts, "role": session.user.role})
        if session.document is not None:
            await self._documents.enter(session, session.document)
            return
        self._by_user.setdefault(session.user.id, set()).add(session.id)
        try:
            active = await self._services.store.active_workout(session.user.id)
        except Unavailable:
            active = None  # what is open goes on, and who comes to it is let in
        welcome = {
            "user": {**session.user.to_wire(), "role": session.user.role},
            "device_id": session.device["id"],
            "server_time": self._services.clock.now_ms(),
            "protocol": PROTOCOL_VERSION,
            "instance": self.instance,
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
        if session.document is not None and event in DOCUMENT_EVENTS:
            self._documents.event(session, session.document, event, args, ack)
            return None
        return self._dispatch(session, event, args, ack)

    async def _dispatch(
        self, session: Session, event: str, args: Sequence[Any], ack: Ack | None
    ) -> None:
        started = time.perf_counter()
        name = event if event in self._registry.intents else "unknown"
        data = args[0] if args else {}
        op_id = data.get("op_id") if isinstance(data, dict) else None
        session.event_count += 1
        logs.cause.set(Cause(session.id, session.user.id, name, session.event_count, op_id))
        try:
            answer = await self._answer(session, event, args)
        finally:
            logs.cause.set(None)
        code = "ok" if answer["ok"] else answer["error"]["code"]
        self._metrics.events[name, code] += 1
        self._metrics.ack_seconds["events"].observe(time.perf_counter() - started)
        if ack is not None:
            ack(answer)
        if session.is_revoking:
            session.is_revoking = False
            self._end_if_revoked(session)
        if event == "subscribe" and answer["ok"] and session.id in self._sessions:
            confirmed = {"subscribed": answer["subscribed"]}
            self._sockets.post("/", [session.id], "subscription:confirmed", confirmed)

    async def _answer(self, session: Session, event: str, args: Sequence[Any]) -> dict[str, Any]:
        if session.document is not None and event != "auth:refresh":
            error = NotFound(f"there is no event {event[:64]!r} in a document's namespace")
            return {"ok": False, "error": error.to_wire()}
        if len(args) > 1:
            invalid = Invalid.at("", "an event carries one object")
            return {"ok": False, "error": invalid.to_wire()}
        session.is_revoking = event == "auth:revoke"
        data = args[0] if args else {}
        return await self._registry.dispatch(session.caller, self._services, event, data)

    def caught_up(self, sids: Iterable[str]) -> None:
        for sid in sids:
            session = self._sessions.get(ConnectionId(sid))
            if session is not None:
                self._documents.caught_up(session)

    def announce_end(self) -> None:
        """Tell everybody that this server goes away, and each when to come back."""
        spread_ms = self._settings.drain_spread_s * 1_000
        for session in list(self._sessions.values()):
            notice = {"reconnect_in_ms": round(random.uniform(0, spread_ms))}
            self._sockets.post(session.namespace, [session.id], "server:draining", notice)

    def disconnected(self, namespace: str, sid: str, reason: str) -> None:
        session = self._sessions.pop(ConnectionId(sid), None)
        if session is None:
            return
        told = {
            **session.facts,
            "reason": reason,
            "after_s": round(time.monotonic() - session.since_s, 1),
        }
        if reason in NOT_READING:
            log.warning("a client that does not read is cut", extra=told)
        else:
            log.info("a client is gone", extra=told)
        session.stop_timers()
        self.unseat(session.user.id)
        mine = self._by_user.get(session.user.id)
        if mine is not None:
            mine.discard(session.id)
            if not mine:
                del self._by_user[session.user.id]
        self._streams.forget(session.id)
        for name in self._hub.joined(session.id):
            self._documents.leave(name, session.id)

    # -- Outlet -----------------------------------------------------------------------------

    def committed(self, commit: Committed) -> None:
        live = self._hub.find(commit.doc)
        if live is None:
            return
        if commit.update is not None and live.readers:
            self._documents.spread(live, commit.update, commit.sender)
        if live.listeners:
            for event in commit.events:
                self._sockets.post("/", live.listeners, event.name, event.payload)
        if commit.touches_progress:
            self._streams.progress_changed(commit.doc)
        if commit.touches_access:
            self._put_out_strangers(live)
            self._streams.access_changed(commit.doc)
        self.on_committed(commit)

    def reset(self, doc: DocName, reason: str) -> None:
        live = self._hub.find(doc)
        if live is None:
            return
        self._put_out_strangers(live)  # rights may have changed while these were being moved
        self._streams.access_changed(doc)
        for sid in list(live.readers):
            session = self._sessions.get(sid)
            if session is not None:
                self._documents.ask_to_sync(session, doc, reason)

    def present(self, doc: DocName, event: str, payload: dict[str, Any]) -> None:
        live = self._hub.find(doc)
        if live is not None:
            self._sockets.post("/", live.listeners, event, payload)

    def aware(self, doc: DocName, awareness: bytes) -> None:
        live = self._hub.find(doc)
        if live is not None:
            self._documents.aware(live, awareness)

    # -- Sessions ---------------------------------------------------------------------------

    async def refresh(self, connection_id: ConnectionId, token: str) -> int:
        identity = await self.identify(token)
        asking = self._sessions.get(connection_id)
        if asking is None:
            raise Unauthenticated("the connection has ended")
        if identity.user.id != asking.user.id:
            raise Forbidden("the new token is somebody else's")
        old, new = asking.token_digest, _digest(token)
        for session in list(self._sessions.values()):
            if session.token_digest == old:
                self._renew(session, identity, new)
        return int(identity.expires_at_s * 1_000)

    def tokens(self) -> Iterable[TokenFacts]:
        return [*(session.token for session in self._sessions.values()), *self._viewers.tokens()]

    def issued_until(self, user_id: UserId) -> int:
        """When the latest of a user's tokens that are in use here says that it was issued, ms since
        the epoch; 0 if there is none."""
        return max((t.issued_at_ms or 0 for t in self.tokens() if t.user_id == user_id), default=0)

    def apply_revocation(self, revocation: Revocation) -> None:
        self._revocations.add(revocation, self._services.clock.now_ms())
        covered = [s for s in self._sessions.values() if revocation.covers(s.token)]
        for session in covered:
            if not session.is_revoking:
                self._end_if_revoked(session)
        self._viewers.end_if(revocation.covers)
        if revocation.kind == "erased":
            self.on_erased(revocation)
        told = {"kind": revocation.kind, "id": revocation.id, "connections": len(covered)}
        log.info("tokens are revoked", extra=told)

    def _end_if_revoked(self, session: Session) -> None:
        if (refused := self._refused(session.token)) is not None:
            error = _revoked(refused)
            self._streams.end(session.id, error)
            self._sockets.post(session.namespace, [session.id], "auth:revoked", error.to_wire())
            self._sockets.cut(session.namespace, session.id, "revoked")

    def is_here(self, connection_id: ConnectionId) -> bool:
        return connection_id in self._sessions

    def user_of(self, connection_id: ConnectionId) -> User | None:
        session = self._sessions.get(connection_id)
        return session.user if session else None

    def tell_user(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None:
        self.tell_user_here(user_id, event, payload)
        if self._neighbours is not None:
            self._neighbours.invited(user_id, event, payload)

    def tell_user_here(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None:
        """Tell those of a user's devices that are connected to this instance."""
        self._sockets.post("/", self._by_user.get(user_id, ()), event, dict(payload))

    def _put_out_strangers(self, live: LiveRoom) -> None:
        for connection in list(live.connections.values()):
            self._put_out_unless_allowed(live, connection)

    def _put_out_unless_allowed(self, live: LiveRoom, connection: Connection) -> None:
        if Right.READ in live.room.rights(connection.user):
            return
        if connection.document:
            self._sockets.cut(DOCUMENT_PREFIX + str(live.name), connection.id, "no_right")
        else:
            self._hub.leave(live.name, connection.id)

    def _renew(self, session: Session, identity: Identity, digest: bytes) -> None:
        session.user = identity.user
        session.token = identity.token
        session.token_digest = digest
        session.expires_at_s = identity.expires_at_s
        self._watch_expiry(session)
        self._hub.renew(session.connection)
        for name in self._hub.joined(session.id):
            if (live := self._hub.find(name)) is not None:
                self._put_out_unless_allowed(live, session.connection)
        self._streams.renewed(session.id)

    def _watch_expiry(self, session: Session) -> None:
        left_s = session.expires_at_s - time.time()
        notice_s = max(0.0, left_s - self._settings.auth_expiring_notice_s)
        session.start_timer("expiring", notice_s, partial(self._announce_expiry, session))
        session.start_timer("expired", max(0.0, left_s), partial(self._expire, session))

    def _announce_expiry(self, session: Session) -> None:
        notice = {"expires_at": int(session.expires_at_s * 1_000)}
        self._sockets.post(session.namespace, [session.id], "auth:expiring", notice)

    def _expire(self, session: Session) -> None:
        error = TokenExpired("the token has expired")
        self._streams.end(session.id, error)
        self._sockets.post(session.namespace, [session.id], "auth:expired", error.to_wire())
        self._sockets.cut(session.namespace, session.id, "token_expired")


def _revoked(why: Revocation) -> Unauthenticated | Forbidden:
    if why.kind == "erased":
        # Not for another token to be fetched: there is nobody to come back as.
        return Forbidden("this user has been erased", details={"reason": "erased"})
    return Unauthenticated("the token has been revoked")


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
        isinstance(text, str) and len(text) <= limits.MAX_DEVICE_CHARS and is_text(text)
        for text in (id_, name)
    ):
        raise Invalid.at(
            "device", f"id and name are texts of {limits.MAX_DEVICE_CHARS} characters at most"
        )
    return {"id": id_, "name": name}


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
