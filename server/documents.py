"""The Yjs door, `/yjs|<doc>`: y-socket.io's protocol, unchanged, and what RepSync adds to it.

Added are the ack of a `sync-update` once it is durable, `sync-rejected`, and `sync-reset`. Stock
clients know none of them: they are asked by a `sync-step-1` of ours, which they answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pycrdt import merge_updates

from crdt.access import Right
from crdt.errors import INTERNAL, Invalid, RepSyncError, TooLarge, Unavailable, Unsynced
from crdt.hub import RoomHub
from crdt.ids import ConnectionId, DocName
from crdt.live import LiveRoom
from crdt.ports import Durability, Neighbours, Stored
from server.metrics import Metrics
from server.sessions import Session
from server.transport.server import Ack, SocketServer

log = logging.getLogger(__name__)

DOCUMENT_PREFIX = "/yjs|"
REFUSAL_COST = 20
"""Events that a refused update counts for, beside itself: the room's head may have to be built
anew, which takes as long as the document is large."""
FIRST_ASK_DELAY_S, LAST_ASK_DELAY_S = 1.0, 30.0
"""How long a client whose answer to our sync-step-1 leaves a gap is not asked again: twice as long
each time, until one is taken."""
ASK = "ask"
"""The session's timer for that."""
FIRST_WORD_S = 0.25
"""How long a client that has come in may take to ask for what it lacks, before it is asked."""
FIRST_WORD = "first word"
"""The session's timer for that."""

DOCUMENT_EVENTS = frozenset({"sync-step-1", "sync-update", "awareness-update"})


class DocumentDoor:
    """What Yjs clients say and are told. Nothing here waits: an update is admitted in the order in
    which it came, and acked later."""

    def __init__(
        self,
        sockets: SocketServer,
        hub: RoomHub,
        metrics: Metrics,
        sessions: Mapping[ConnectionId, Session],
        *,
        max_update_bytes: int,
        durability: Durability,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._sockets = sockets
        self._hub = hub
        self._metrics = metrics
        self._ack_seconds = metrics.ack_seconds["document"]
        self._sessions = sessions
        self._max_update_bytes = max_update_bytes
        self._durability = durability
        self._neighbours = neighbours

    def event(
        self, session: Session, name: DocName, event: str, args: Sequence[Any], ack: Ack | None
    ) -> None:
        """One of `DOCUMENT_EVENTS`."""
        if event == "sync-update":
            self._on_sync_update(session, name, args, ack)
        elif event == "awareness-update":
            self._on_awareness(session, name, args, ack)
        else:
            self._on_sync_step_1(session, name, args, ack)

    def spread(self, live: LiveRoom, update: bytes, sender: ConnectionId | None) -> None:
        """Send a durable update to everybody but the one who made it."""
        missed_by = self._sockets.post_update(
            DOCUMENT_PREFIX + str(live.name), live.readers, update, skip=sender
        )
        self._metrics.delivered += len(live.readers) - len(missed_by) - (sender in live.readers)
        for sid in missed_by:
            session = self._sessions.get(ConnectionId(sid))
            if session is not None and session.missed is None:
                session.missed = (update, live.room.state_vector())

    def caught_up(self, session: Session) -> None:
        """Give a slow client what was left out: one reset, and one update with all of it."""
        if session.missed is None or session.document is None:
            return
        first, vector = session.missed
        session.missed = None
        live = self._hub.find(session.document)
        if live is None:
            return
        self._metrics.resets["slow_reader"] += 1
        self._sockets.reply(session.namespace, session.id, "sync-reset", {"reason": "slow_reader"})
        everything = merge_updates(first, live.room.diff(vector))
        self._sockets.reply(session.namespace, session.id, "sync-update", everything)

    async def enter(self, session: Session, name: DocName) -> None:
        """A client knows that it is in: let it join, and ask it for what we lack.

        Raises:
            Forbidden, RoomFull: what was so when it was let in is so no more.
        """
        async with self._hub.lease(name, since_s=session.since_s) as live:
            if session.id not in self._sessions:
                return  # gone while the room was loaded
            live.demand(session.user, Right.READ)
            self._hub.join(live, session.connection)
            # Once it has got what it lacks: when it is asked, y-socket.io says that it is synced.
            session.start_timer(FIRST_WORD, FIRST_WORD_S, partial(self._ask_again, session, name))
            everybody = live.presence.everybody()
            if everybody:
                self._sockets.reply(session.namespace, session.id, "awareness-update", everybody)

    def _ask(self, session: Session, live: LiveRoom) -> None:
        """Send our own sync-step-1; a stock client answers with what we lack."""
        session.is_asked = True
        session.stop_timer(ASK)
        self._sockets.ask(
            session.namespace,
            session.id,
            "sync-step-1",
            live.room.state_vector(),
            answer=partial(self._on_missing, session, live.name),
        )

    def ask_to_sync(self, session: Session, name: DocName, reason: str) -> None:
        """Tell a client that it has to sync again, and why."""
        self._tell_to_sync(session, reason)
        self._ask_again(session, name)

    def _tell_to_sync(self, session: Session, reason: str) -> None:
        self._sockets.post(session.namespace, [session.id], "sync-reset", {"reason": reason})
        self._metrics.resets[reason] += 1

    def _ask_again(self, session: Session, name: DocName) -> None:
        """Stock clients do not know sync-reset, but answer a sync-step-1."""
        live = self._hub.find(name)
        if live is not None and not session.is_asked:
            self._ask(session, live)

    def _ask_later(self, session: Session, name: DocName) -> None:
        """Asked at once, a client that lacks a part itself would answer the same, and so for ever.
        What it lacks may come to it; else it is asked more and more rarely."""
        delay_s = min(max(FIRST_ASK_DELAY_S, 2 * session.ask_delay_s), LAST_ASK_DELAY_S)
        session.ask_delay_s = delay_s
        session.start_timer(ASK, delay_s, partial(self._ask_again, session, name))

    def _on_missing(self, session: Session, name: DocName, *answer: Any) -> None:
        session.is_asked = False
        if session.id in self._sessions and answer and isinstance(answer[0], bytes):
            self._on_sync_update(session, name, answer, None, is_answer=True)

    def _on_sync_step_1(
        self, session: Session, name: DocName, args: Sequence[Any], ack: Ack | None
    ) -> None:
        try:
            vector = _bytes(args, "state_vector", self._max_update_bytes)
            answer: Any = self._room_of(session, name).room.diff(vector)
            self._metrics.events["sync-step-1", "ok"] += 1
        except RepSyncError as exc:
            self._metrics.events["sync-step-1", exc.code] += 1
            answer = {"ok": False, "error": exc.to_wire()}
        self._answer(ack, answer)
        if FIRST_WORD in session.timers:
            session.stop_timer(FIRST_WORD)
            self._ask_again(session, name)

    def _room_of(self, session: Session, name: DocName) -> LiveRoom:
        live = self._hub.find(name)
        if live is None or session.id not in live.connections:
            raise Unavailable("the document is being read again", retry_after_ms=100)
        return live

    def _on_sync_update(
        self,
        session: Session,
        name: DocName,
        args: Sequence[Any],
        ack: Ack | None,
        *,
        is_answer: bool = False,
    ) -> None:
        """Admit an update now, in order; the ack follows when it is durable.

        Args:
            is_answer: whether the client was asked for it.
        """
        came_in_s = time.perf_counter()
        try:
            update = _bytes(args, "update", self._max_update_bytes)
            live = self._room_of(session, name)
            stored = self._hub.submit(live, update, live.connections[session.id])
        except RepSyncError as exc:
            self._refuse(session, name, exc, ack, is_answer=is_answer)
            return
        except Exception:
            log.exception("an update could not be handled", extra=session.facts)
            self._metrics.events["sync-update", "internal"] += 1
            self._answer(ack, {"ok": False, "error": INTERNAL})
            return
        self._metrics.events["sync-update", "ok"] += 1
        if is_answer:
            session.ask_delay_s = 0.0
        if ack is None:
            return  # should it fail, the room's sync-reset tells
        if stored.done():
            self._on_stored(ack, came_in_s, stored)
        else:
            stored.add_done_callback(partial(self._on_stored, ack, came_in_s))

    def _on_stored(self, ack: Ack, came_in_s: float, stored: asyncio.Future[Stored]) -> None:
        error = stored.exception()
        if isinstance(error, RepSyncError):
            self._answer(ack, {"ok": False, "error": error.to_wire()})
        elif error is not None:
            self._answer(ack, {"ok": False, "error": INTERNAL})
        else:
            outcome = stored.result()
            durability = outcome.durability or self._durability
            self._answer(ack, {"ok": True, "seq": outcome.seq, "durability": durability})
        self._ack_seconds.observe(time.perf_counter() - came_in_s)

    def _refuse(
        self,
        session: Session,
        name: DocName,
        exc: RepSyncError,
        ack: Ack | None,
        *,
        is_answer: bool,
    ) -> None:
        self._metrics.events["sync-update", exc.code] += 1
        session.allowance.charge(REFUSAL_COST)
        self._answer(ack, {"ok": False, "error": exc.to_wire()})
        if isinstance(exc, Unsynced | Unavailable):
            # Its replica is good, we lack a part: dropping it would lose the client's edits.
            self._tell_to_sync(session, exc.code)
            if is_answer:
                self._ask_later(session, name)
            elif ASK not in session.timers:
                self._ask_again(session, name)
            return
        rejection: dict[str, Any] = {"code": exc.code, "message": str(exc)}
        if exc.path is not None:
            rejection["path"] = exc.path
        elif isinstance(exc.details, list) and exc.details:
            rejection["path"] = exc.details[0]["path"]
        self._sockets.post(session.namespace, [session.id], "sync-rejected", rejection)

    def _on_awareness(
        self, session: Session, name: DocName, args: Sequence[Any], ack: Ack | None
    ) -> None:
        live = self._hub.find(name)
        if live is None:
            return
        try:
            update = _bytes(args, "awareness", self._max_update_bytes)
            change = live.presence.receive(session.id, session.user, update)
        except RepSyncError as exc:
            self._metrics.events["awareness-update", exc.code] += 1
            self._answer(ack, {"ok": False, "error": exc.to_wire()})
            return
        self._metrics.events["awareness-update", "ok"] += 1
        self._answer(ack, {"ok": True})
        if change.relay:
            self._sockets.post_volatile(
                session.namespace, live.readers, "awareness-update", change.relay, skip=session.id
            )
            if self._neighbours is not None:
                self._neighbours.aware(name, change.relay)
        for owner, nudge in change.nudges:
            self._sockets.post_volatile(session.namespace, [owner], "awareness-update", nudge)
        if change.reply:
            self._sockets.post_volatile(
                session.namespace, [session.id], "awareness-update", change.reply
            )

    def aware(self, live: LiveRoom, awareness: bytes) -> None:
        """Somebody on another instance shows something else."""
        namespace = DOCUMENT_PREFIX + str(live.name)
        self._sockets.post_volatile(namespace, live.readers, "awareness-update", awareness)

    def leave(self, name: DocName, connection_id: ConnectionId) -> None:
        """A connection has left a room; its presence goes with it."""
        gone = self._hub.leave(name, connection_id)
        live = self._hub.find(name)
        if gone and live is not None:
            namespace = DOCUMENT_PREFIX + str(name)
            self._sockets.post_volatile(namespace, live.readers, "awareness-update", gone)

    @staticmethod
    def _answer(ack: Ack | None, answer: Any) -> None:
        if ack is not None:
            ack(answer)


def _bytes(args: Sequence[Any], what: str, limit_bytes: int) -> bytes:
    if len(args) != 1 or not isinstance(args[0], bytes | bytearray):
        raise Invalid.at(what, "must be binary")
    if len(args[0]) > limit_bytes:
        raise TooLarge(f"the {what}", len(args[0]), limit_bytes)
    return bytes(args[0])
