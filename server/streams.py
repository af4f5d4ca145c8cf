"""Streams for dashboards: the current value first, then changes, the latest one winning.

**What is promised.** A value is made once for all who see the same of it, encoded once, at most ten
times a second, and not at all while nobody watches. Who subscribes gets the current value, and
from then on every value that is made, in order; a slow reader the latest one. `seq` rises by one
with each value of a stream, and no number comes twice on one instance. Pushed items (alerts) are
not conflated, and the last ones are kept for who comes later.

**Who owns what.** `StreamHub` who watches what, and the values; an `Audience` the connections.

**What fails.** A value that cannot be made now is tried again; watchers keep what they have. Who
may watch no more, or watches what is there no more, is told by `subscription:ended`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from crdt.access import User
from crdt.errors import Forbidden, NotFound, RepSyncError
from crdt.ids import ConnectionId, DocName
from crdt.ports import Clock
from handlers.streams import (
    MIN_INTERVAL_S,
    STREAMS,
    Look,
    Sources,
    StreamKind,
    StreamRegistry,
    Value,
    View,
)
from server.transport.packets import Outgoing, json_event
from server.transport.server import SocketServer

log = logging.getLogger(__name__)

RETRY_S = 1.0
TIMER_STEP_S = 0.001
"""So much may a timer be early."""
LINGER_S = 10.0
"""How long a stream stays as it is after its last watcher: who comes back goes on where it was."""


class Update:
    """One value on its way to any number of watchers: encoded once."""

    def __init__(
        self, stream: str, event: str, instance: str, seq: int, body: str, now_ms: int
    ) -> None:
        self.stream = stream
        self.event = event
        self.instance = instance
        self.seq = seq
        self.text = f'{body[:-1]},"seq":{seq},"server_time":{now_ms}}}'

    @cached_property
    def message(self) -> Outgoing:
        """For clients of `/`."""
        return json_event(self.event, self.text)

    @cached_property
    def server_sent(self) -> bytes:
        """For those that watch over HTTP."""
        head = f"id: {self.instance}-{self.seq}\nevent: {self.event}\n"
        return f"{head}data: {self.text}\n\n".encode()


class Audience(Protocol):
    """Where watchers of one sort are reached. Never blocks, never raises."""

    def user_of(self, watcher: ConnectionId) -> User | None:
        """Who watches; None when the connection is gone."""

    def show(self, watchers: Iterable[ConnectionId], update: Update) -> None:
        """A value of which only the latest matters."""

    def tell(self, watchers: Iterable[ConnectionId], update: Update) -> None:
        """An item that counts."""

    def ended(self, watcher: ConnectionId, stream: str, error: RepSyncError) -> None:
        """It watches this no more."""


class SocketAudience:
    """Clients of the namespace `/`."""

    def __init__(
        self, sockets: SocketServer, user_of: Callable[[ConnectionId], User | None]
    ) -> None:
        self._sockets = sockets
        self.user_of = user_of

    def show(self, watchers: Iterable[ConnectionId], update: Update) -> None:
        self._sockets.send_latest(watchers, update.stream, update.event, update.message)

    def tell(self, watchers: Iterable[ConnectionId], update: Update) -> None:
        self._sockets.send(watchers, update.event, update.message)

    def ended(self, watcher: ConnectionId, stream: str, error: RepSyncError) -> None:
        told = {"stream": stream, "reason": error.code, "message": str(error)}
        self._sockets.post("/", [watcher], "subscription:ended", told)


@dataclass(slots=True, eq=False)
class _Stream:
    """One stream that is watched, or was a moment ago, or that keeps items."""

    name: str
    kind: StreamKind
    id: str
    seq: int
    is_stale: bool
    """Whether the value may be another one by now."""
    watchers: dict[ConnectionId, tuple[Audience, View]] = field(default_factory=dict)
    groups: dict[tuple[Audience, View], dict[ConnectionId, None]] = field(default_factory=dict)
    """The same, by what they see."""
    newcomers: dict[ConnectionId, int] = field(default_factory=dict)
    """Those who have not had the current value; the `seq` that they say they have, or 0."""
    bodies: dict[View, str] = field(default_factory=dict)
    updates: dict[View, Update] = field(default_factory=dict)
    """The current value, as each view shows it."""
    items: deque[Update] = field(default_factory=deque)
    must_check: bool = False
    """Whether somebody who was let in may be allowed to watch no more."""
    made_at_s: float = 0.0
    retry_at_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    next: Callable[[_Stream], None] | None = None
    """What the timer calls."""
    making: asyncio.Task[None] | None = None

    def put(self, watcher: ConnectionId, audience: Audience, view: View) -> None:
        self.take_out(watcher)
        self.watchers[watcher] = audience, view
        self.groups.setdefault((audience, view), {})[watcher] = None

    def take_out(self, watcher: ConnectionId) -> None:
        group = self.watchers.pop(watcher, None)
        if group is not None:
            members = self.groups[group]
            del members[watcher]
            if not members:
                del self.groups[group]

    def call_at(self, at_s: float, call: Callable[[_Stream], None]) -> None:
        """Have something called then, instead of what was to be. What is due already stays so: who
        asks for it in every turn of the loop must not put it off for ever."""
        if self.timer is not None and self.next == call and self.timer.when() <= at_s:
            return
        self.stop()
        self.next = call
        self.timer = asyncio.get_running_loop().call_at(at_s, self._fire)

    def _fire(self) -> None:
        self.timer = None
        assert self.next is not None
        self.next(self)

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True)
class StreamStats:
    """Counted since the start; read by the metrics."""

    made: int = 0
    """Values that were made and encoded, once for each view of a stream."""
    ended: int = 0
    failures: int = 0


class StreamHub:
    """Who watches what, and what they are shown."""

    def __init__(
        self,
        sources: Sources,
        clock: Clock,
        sockets: Audience,
        instance: str,
        kinds: StreamRegistry = STREAMS,
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._sockets = sockets
        self._instance = instance
        self._kinds = kinds
        self._streams: dict[str, _Stream] = {}
        self._watched: dict[ConnectionId, dict[str, None]] = {}
        self._ids: dict[str, dict[str, str]] = {}
        """pattern of a kind that rooms concern -> id -> the name of a stream that is open."""
        self._last_seq = 0
        """No stream that was let go had a later one."""
        self._is_closed = False
        self.stats = StreamStats()

    # -- watching ---------------------------------------------------------------------------

    async def admit(self, user: User, stream: str, since_s: float = 0.0) -> View:
        return await self._kinds.admit(self._sources, user, stream, since_s)

    def subscribe(
        self,
        connection_id: ConnectionId,
        streams: Mapping[str, View],
        *,
        audience: Audience | None = None,
        seen: int = 0,
    ) -> None:
        """Show the current values once this turn of the loop is over, then those to come.

        Args:
            seen: the `seq` that the watcher has already.
        """
        for name, view in streams.items():
            stream = self._open(name)
            if not stream.watchers:
                stream.is_stale |= self._is_old(stream)
            stream.put(connection_id, audience or self._sockets, view)
            stream.newcomers[connection_id] = seen
            self._watched.setdefault(connection_id, {})[name] = None
            self._go_on(stream)

    def unsubscribe(self, connection_id: ConnectionId, streams: Iterable[str]) -> list[str]:
        mine = self._watched.get(connection_id, {})
        left = [name for name in dict.fromkeys(streams) if name in mine]
        for name in left:
            self._drop(connection_id, self._streams[name])
        return left

    def streams_of(self, connection_id: ConnectionId) -> Collection[str]:
        return self._watched.get(connection_id, ())

    def forget(self, connection_id: ConnectionId) -> None:
        """The connection is gone."""
        self.unsubscribe(connection_id, list(self._watched.get(connection_id, ())))

    def end(self, connection_id: ConnectionId, error: RepSyncError) -> None:
        """It may watch nothing any more; tell it."""
        for name in list(self._watched.get(connection_id, ())):
            self._end(self._streams[name], connection_id, error)

    def renewed(self, connection_id: ConnectionId) -> None:
        """The user behind a connection has other rights now."""
        for name in self._watched.get(connection_id, ()):
            self._check(self._streams[name])

    @property
    def watcher_count(self) -> int:
        return len(self._watched)

    @property
    def stream_count(self) -> int:
        """Streams that are watched, were so a moment ago, or keep items."""
        return len(self._streams)

    # -- news -------------------------------------------------------------------------------

    def changed(self, stream: str) -> None:
        """What a stream shows may be different now."""
        found = self._streams.get(stream)
        if found is not None and not found.kind.kept:
            found.is_stale = True
            self._go_on(found)

    def push(self, stream: str, item: Value) -> None:
        """Tell all watchers of a stream, and keep it for those who come later."""
        found = self._open(stream)
        found.seq += 1
        update = self._update(found, _body(found, item))
        found.items.append(update)
        if len(found.items) > found.kind.kept:
            found.items.popleft()
        for (audience, _), watchers in list(found.groups.items()):
            # Newcomers get it with those that were before.
            audience.tell([id_ for id_ in watchers if id_ not in found.newcomers], update)

    def progress_changed(self, doc: DocName) -> None:
        """A document has changed in what streams may show."""
        for stream in self._of_room(doc):
            stream.is_stale = True
            self._go_on(stream)

    def access_changed(self, doc: DocName) -> None:
        """Somebody who was allowed to see a document may be so no longer."""
        for stream in self._of_room(doc):
            stream.is_stale |= stream.kind.is_personal
            self._check(stream)

    def _of_room(self, doc: DocName) -> list[_Stream]:
        live = self._sources.hub.find(doc) if self._ids else None
        if live is None:
            return []
        found = []
        for pattern, names in self._ids.items():
            of_room = self._kinds.kinds[pattern].of_room
            assert of_room is not None
            found += [
                self._streams[names[id_]] for id_ in of_room(live, names.keys()) if id_ in names
            ]
        return found

    def close(self) -> None:
        """Make no more values."""
        self._is_closed = True
        for stream in self._streams.values():
            stream.stop()
            if stream.making is not None:
                stream.making.cancel()

    # -- streams ----------------------------------------------------------------------------

    def _open(self, name: str) -> _Stream:
        """Raises NotFound: there is no such kind."""
        stream = self._streams.get(name)
        if stream is None:
            kind, id_ = self._kinds.find(name)
            stream = self._streams[name] = _Stream(
                name, kind, id_, self._last_seq, is_stale=not kind.kept
            )
            if kind.document is not None:
                self._sources.hub.keep(kind.document(id_))
            if kind.of_room is not None:
                self._ids.setdefault(kind.pattern, {})[id_] = name
        return stream

    def _let_go(self, stream: _Stream) -> None:
        """Nobody has come back."""
        kind = stream.kind
        if stream.watchers or kind.kept:
            return
        if stream.making is not None:
            stream.making.cancel()
        del self._streams[stream.name]
        self._last_seq = max(self._last_seq, stream.seq)
        if kind.document is not None:
            self._sources.hub.unkeep(kind.document(stream.id))
        if kind.of_room is not None:
            names = self._ids[kind.pattern]
            del names[stream.id]
            if not names:
                del self._ids[kind.pattern]

    def _drop(self, watcher: ConnectionId, stream: _Stream) -> None:
        stream.take_out(watcher)
        stream.newcomers.pop(watcher, None)
        mine = self._watched[watcher]
        del mine[stream.name]
        if not mine:
            del self._watched[watcher]
        self._go_on(stream)

    def _end(self, stream: _Stream, watcher: ConnectionId, error: RepSyncError) -> None:
        audience, _ = stream.watchers[watcher]
        self._drop(watcher, stream)
        self.stats.ended += 1
        audience.ended(watcher, stream.name, error)

    def _check(self, stream: _Stream) -> None:
        stream.must_check = True
        self._go_on(stream)

    # -- values -----------------------------------------------------------------------------

    def _go_on(self, stream: _Stream) -> None:
        """See to it that what is to be done for a stream next is done when it is due."""
        if stream.making is not None or self._is_closed:
            return  # it goes on after that
        kind = stream.kind
        if not stream.watchers:
            now_s = asyncio.get_running_loop().time()
            stream.call_at(now_s + LINGER_S, self._let_go)
        elif stream.must_check:
            stream.call_at(stream.retry_at_s, self._start)
        elif stream.newcomers and self._is_current(stream):
            stream.call_at(0.0, self._go_further)
        elif stream.is_stale or stream.newcomers:
            stream.call_at(max(stream.made_at_s + kind.interval_s, stream.retry_at_s), self._start)
        elif kind.every_s is not None:
            stream.call_at(stream.made_at_s + kind.every_s, self._renew)
        else:
            stream.stop()

    @staticmethod
    def _is_old(stream: _Stream) -> bool:
        """Whether the value should have been made anew by now, had anybody watched."""
        every_s, now = stream.kind.every_s, asyncio.get_running_loop().time()
        return every_s is not None and stream.made_at_s + every_s <= now

    @staticmethod
    def _is_current(stream: _Stream) -> bool:
        """Whether what newcomers are to see has been made already."""
        if stream.kind.kept:
            return True
        return not stream.is_stale and all(
            stream.watchers[id_][1] in stream.updates for id_ in stream.newcomers
        )

    def _renew(self, stream: _Stream) -> None:
        stream.is_stale = True
        self._go_on(stream)

    def _go_further(self, stream: _Stream) -> None:
        self._welcome(stream)
        self._go_on(stream)

    def _start(self, stream: _Stream) -> None:
        stream.making = asyncio.ensure_future(self._make(stream))

    async def _make(self, stream: _Stream) -> None:
        """Make the value, and show it if it is another one than before."""
        kind, loop = stream.kind, asyncio.get_running_loop()
        must_check, stream.must_check = stream.must_check or kind.is_personal, False
        due_s = stream.made_at_s + kind.interval_s - TIMER_STEP_S
        is_due = not self._is_current(stream) and loop.time() >= due_s
        if is_due:
            stream.is_stale = False  # what changes from here on is another value's
        try:
            look = await kind.look(self._sources, stream.id, 0.0)
            if must_check:
                self._check_all(stream, look)
            if is_due:
                stream.made_at_s = loop.time()
                views = {view for _, view in stream.groups}
                bodies = {view: _body(stream, await look.show(view)) for view in views}
                if bodies:
                    self._show(stream, bodies)
            self._welcome(stream)
        except (NotFound, Forbidden) as exc:
            stream.is_stale = not kind.kept
            for watcher in list(stream.watchers):
                self._end(stream, watcher, exc)
        except Exception as exc:
            self.stats.failures += 1
            if not isinstance(exc, RepSyncError):
                log.exception("a stream has no value", extra={"stream": kind.pattern})
            stream.is_stale, stream.must_check = not kind.kept, must_check
            stream.retry_at_s = loop.time() + RETRY_S
        finally:
            stream.making = None
        self._go_on(stream)

    def _check_all(self, stream: _Stream, look: Look) -> None:
        """Let everybody see what they may see now, and nobody else anything."""
        for watcher, (audience, view) in list(stream.watchers.items()):
            user = audience.user_of(watcher)
            if user is None:
                self._drop(watcher, stream)
                continue
            try:
                seen = look.view(user)
            except RepSyncError as exc:
                self._end(stream, watcher, exc)
                continue
            if seen != view:
                stream.put(watcher, audience, seen)
                stream.newcomers.setdefault(watcher, 0)

    def _show(self, stream: _Stream, bodies: dict[View, str]) -> None:
        """Send what is another value than before to all; one that is not, to nobody."""
        self.stats.made += len(bodies)
        before, stream.bodies = stream.bodies, bodies
        is_new = not before or any(before.get(view, body) != body for view, body in bodies.items())
        if is_new:
            stream.seq += 1
            stream.updates.clear()
        for view, body in bodies.items():
            if view not in stream.updates:
                stream.updates[view] = self._update(stream, body)
        if not is_new:
            return
        for (audience, view), watchers in list(stream.groups.items()):
            update = stream.updates.get(view)
            if update is not None:  # else they came while it was made
                for watcher in stream.newcomers.keys() & watchers.keys():
                    del stream.newcomers[watcher]
                audience.show(watchers, update)

    def _update(self, stream: _Stream, body: str) -> Update:
        name, event, now_ms = stream.name, stream.kind.event, self._clock.now_ms()
        return Update(name, event, self._instance, stream.seq, body, now_ms)

    def _welcome(self, stream: _Stream) -> None:
        """Give newcomers what there is; those whose view has not been made yet wait for it."""
        for watcher, seen in list(stream.newcomers.items()):
            audience, view = stream.watchers[watcher]
            if stream.kind.kept:
                for item in stream.items:
                    if item.seq > seen:
                        audience.tell([watcher], item)
            elif (update := stream.updates.get(view)) is None:
                continue
            elif update.seq != seen:
                audience.show([watcher], update)
            stream.newcomers.pop(watcher, None)


def _body(stream: _Stream, value: Value) -> str:
    fields: dict[str, Any] = {"stream": stream.name, **value}
    return json.dumps(fields, separators=(",", ":"))


__all__ = ["MIN_INTERVAL_S", "Audience", "SocketAudience", "StreamHub", "Update"]
