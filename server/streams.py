"""Streams for dashboards: the current value first, then changes, the latest one winning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from crdt import ids
from crdt.access import Right, User
from crdt.hub import RoomHub
from crdt.ids import ConnectionId, DocName
from crdt.ports import Clock
from handlers.streams import SYSTEM_HEALTH, progress_stream_workout

MIN_INTERVAL_S = 0.1
HEALTH_INTERVAL_S = 2.0

Post = Callable[[Iterable[ConnectionId], str, str, dict[str, Any]], None]
"""(to whom, which stream, event, value); a slow reader gets the latest value of each stream."""


class StreamHub:
    """Who watches what. A value is computed once for all who watch it, at most ten times a second,
    and not at all while nobody does."""

    def __init__(
        self,
        hub: RoomHub,
        clock: Clock,
        health: Callable[[], dict[str, Any]],
        post: Post,
        user_of: Callable[[ConnectionId], User | None],
    ) -> None:
        self._hub = hub
        self._clock = clock
        self._health = health
        self._post = post
        self._user_of = user_of
        self._watchers: dict[str, dict[ConnectionId, None]] = {}
        self._watched: dict[ConnectionId, set[str]] = {}
        self._due: dict[str, asyncio.TimerHandle] = {}
        self._chores: set[asyncio.Task[None]] = set()

    def subscribe(self, connection_id: ConnectionId, streams: Sequence[str]) -> None:
        for stream in streams:
            if stream not in self._watchers and (doc := _document_of(stream)) is not None:
                self._hub.keep(doc)
            self._watchers.setdefault(stream, {})[connection_id] = None
            self._watched.setdefault(connection_id, set()).add(stream)
            self._later(self._send(stream, [connection_id]))
            if stream == SYSTEM_HEALTH and stream not in self._due:
                self._schedule(stream, HEALTH_INTERVAL_S)

    def unsubscribe(self, connection_id: ConnectionId, streams: Sequence[str]) -> list[str]:
        mine = self._watched.get(connection_id, set())
        left = [stream for stream in dict.fromkeys(streams) if stream in mine]
        for stream in left:
            self._drop(connection_id, stream)
        return left

    def streams_of(self, connection_id: ConnectionId) -> Collection[str]:
        return self._watched.get(connection_id, ())

    def forget(self, connection_id: ConnectionId) -> None:
        """The connection is gone."""
        for stream in list(self._watched.get(connection_id, ())):
            self._drop(connection_id, stream)

    def progress_changed(self, doc: DocName) -> None:
        stream = f"{doc}:progress"
        if stream in self._watchers and stream not in self._due:
            self._schedule(stream, MIN_INTERVAL_S)

    def close(self) -> None:
        for timer in self._due.values():
            timer.cancel()
        self._due.clear()

    @property
    def watcher_count(self) -> int:
        return len(self._watched)

    def _drop(self, connection_id: ConnectionId, stream: str) -> None:
        watchers, mine = self._watchers[stream], self._watched[connection_id]
        watchers.pop(connection_id, None)
        mine.discard(stream)
        if not mine:
            del self._watched[connection_id]
        if not watchers:
            del self._watchers[stream]
            if (doc := _document_of(stream)) is not None:
                self._hub.unkeep(doc)
            if (timer := self._due.pop(stream, None)) is not None:
                timer.cancel()

    def _schedule(self, stream: str, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._due[stream] = loop.call_later(delay_s, self._on_due, stream)

    def _on_due(self, stream: str) -> None:
        self._due.pop(stream, None)
        watchers = self._watchers.get(stream)
        if not watchers:
            return
        self._later(self._send(stream, list(watchers)))
        if stream == SYSTEM_HEALTH:
            self._schedule(stream, HEALTH_INTERVAL_S)

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _send(self, stream: str, to: Sequence[ConnectionId]) -> None:
        if stream == SYSTEM_HEALTH:
            self._post(to, stream, SYSTEM_HEALTH, self._health())
            return
        doc = _document_of(stream)
        if doc is None:
            return
        async with self._hub.lease(doc) as live:
            value = {
                "stream": stream,
                "workout_id": doc.id,
                "status": live.room.view["meta"].get("status"),
                "progress": live.room.progress(),
                "version": live.room.seq,
                "server_time": self._clock.now_ms(),
            }
            allowed = [
                id_
                for id_ in to
                if (user := self._user_of(id_)) and Right.READ in live.room.rights(user)
            ]
        for id_ in set(to) - set(allowed):
            self.unsubscribe(id_, [stream])
        to = allowed
        self._post(to, stream, "progress", value)


def _document_of(stream: str) -> DocName | None:
    """Whose progress a stream shows."""
    workout_id = progress_stream_workout(stream)
    return None if workout_id is None else ids.workout(workout_id)
