"""The owner of all live rooms: it loads them once, writes them one append at a time, and lets them
go when nobody is there.

An append that fails leaves its outcome unknown, so the room is dropped and read again from the
log; whoever waited for it is told `unavailable`, and its document members are told to sync anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from crdt.access import Member, Right, User
from crdt.errors import Conflict, Forbidden, NotFound, Unavailable
from crdt.ids import ConnectionId, DocName, UserId
from crdt.ports import Answer, Author, Clock, Outlet, Store, Stored
from crdt.presence import Presence
from crdt.replica import Write
from crdt.room import Change, Room

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Connection:
    """A socket that joined a room: as a Yjs client (`document`) or for the JSON events."""

    id: ConnectionId
    user: User
    device: dict[str, str]
    document: bool

    def author(self) -> Author:
        return Author(self.user.id, self.user.name, self.device["id"], self.id)


@dataclass(slots=True)
class _Waiter:
    change: Change
    stored: asyncio.Future[Stored]


@dataclass(slots=True)
class LiveRoom:
    """A room with the sockets in it. Only the hub changes it."""

    name: DocName
    room: Room
    presence: Presence = field(default_factory=Presence)
    connections: dict[ConnectionId, Connection] = field(default_factory=dict)
    leases: int = 0
    waiters: list[_Waiter] = field(default_factory=list)
    writer: asyncio.Task[None] | None = None
    idle: asyncio.TimerHandle | None = None

    def demand(self, user: User, right: Right) -> None:
        """Raises Forbidden unless the user has this right to the document."""
        if right not in self.room.rights(user):
            raise Forbidden(f"you may not do this with {self.name}")

    def members(self) -> list[dict[str, Any]]:
        """Who belongs to the document, and with which devices they are here now."""
        devices: dict[UserId, dict[str, dict[str, str]]] = {}
        for connection in self.connections.values():
            devices.setdefault(connection.user.id, {})[connection.device["id"]] = connection.device
        shown = [
            {
                "user": {"id": member.user_id, "name": member.name},
                "role": member.role,
                "devices": list(devices.get(member.user_id, {}).values()),
                "online": member.user_id in devices,
            }
            for member in self.room.members.values()
        ]
        visitors = {
            connection.user.id: connection.user
            for connection in self.connections.values()
            if connection.user.id not in self.room.members
        }
        shown += [
            {
                "user": user.to_wire(),
                "role": "spectator",
                "devices": list(devices[id_].values()),
                "online": True,
            }
            for id_, user in visitors.items()
        ]
        return shown

    def snapshot(self, now_ms: int) -> dict[str, Any]:
        return self.room.snapshot(members=self.members(), now_ms=now_ms)

    @property
    def is_idle(self) -> bool:
        return not self.connections and not self.leases and not self.waiters


class RoomHub:
    """Every live room of this process, by name.

    Args:
        idle_timeout_s: how long a room stays in memory after its last member left.
        compact_after: how many log records are gathered before they become a snapshot.
    """

    def __init__(
        self,
        store: Store,
        outlet: Outlet,
        clock: Clock,
        *,
        idle_timeout_s: float = 60.0,
        compact_after: int = 500,
    ) -> None:
        self._store = store
        self._outlet = outlet
        self._clock = clock
        self._idle_timeout_s = idle_timeout_s
        self._compact_after = compact_after
        self._rooms: dict[DocName, LiveRoom] = {}
        self._loading: dict[DocName, asyncio.Task[LiveRoom]] = {}
        self._orphans: dict[DocName, LiveRoom] = {}
        self._joined: dict[ConnectionId, set[DocName]] = {}
        self._chores: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._rooms)

    @property
    def live(self) -> Iterable[LiveRoom]:
        return self._rooms.values()

    # -- opening and leaving ----------------------------------------------------------------

    @asynccontextmanager
    async def lease(self, name: DocName) -> AsyncIterator[LiveRoom]:
        """The room, kept in memory for as long as the block runs.

        Raises:
            NotFound: there is no such document.
            Unavailable: the store cannot be read.
        """
        live = await self._open(name)
        live.leases += 1
        try:
            yield live
        finally:
            live.leases -= 1
            self._watch_idle(live)

    async def create(
        self,
        name: DocName,
        writes: Sequence[Write],
        owner: Connection,
        event: str,
        *,
        op_id: str | None,
        answer: Callable[[dict[str, Any]], Answer],
    ) -> Answer:
        """Make a document, once and durably, with its owner as first member, who joins it.

        Args:
            answer: makes the ack of the new document's snapshot.
        Raises:
            Conflict: there is one of this name.
        """
        exists = await self._store.summary(name) is not None
        if exists or name in self._rooms or name in self._loading:
            raise Conflict(f"{name} exists already")
        live = self._rooms[name] = LiveRoom(name, Room(name))
        member = Member(owner.user.id, "owner", owner.user.name)
        shown = {
            "user": owner.user.to_wire(),
            "role": "owner",
            "devices": [owner.device],
            "online": True,
        }
        # What the snapshot will be is known before the append; only its position is not.
        preview: dict[str, Any] = {}

        def answer_with_preview(stored: Stored) -> Answer:
            return answer({**preview, "version": stored.seq})

        live.leases += 1
        try:
            change = live.room.edit(
                writes,
                owner.author(),
                self._clock.now_ms(),
                event,
                op_id=op_id,
                members=[member],
                answer=answer_with_preview,
            )
            preview.update(
                live.room.preview(members=[shown], roster=[member], now_ms=self._clock.now_ms())
            )
            reply = await self._outcome(live, change)
            self.join(live, owner)
            return reply
        except BaseException:
            if live.room.seq == 0 and self._rooms.get(name) is live:
                del self._rooms[name]
            raise
        finally:
            live.leases -= 1
            self._watch_idle(live)

    def join(self, live: LiveRoom, connection: Connection) -> None:
        """Put a socket into a room; `live` must be leased. Joining twice changes nothing."""
        if connection.id in live.connections:
            return
        is_first = not self._is_here(live, connection.user.id)
        live.connections[connection.id] = connection
        self._joined.setdefault(connection.id, set()).add(live.name)
        self._announce(live, connection.user, "workout:member:joined", changed=is_first)

    def leave(self, name: DocName, connection_id: ConnectionId) -> bytes:
        """Take a socket out of a room.

        Returns: the awareness update that tells the others, maybe empty.
        """
        joined = self._joined.get(connection_id)
        if joined is not None:
            joined.discard(name)
            if not joined:
                del self._joined[connection_id]
        live = self._orphans.get(name) or self._rooms.get(name)
        connection = live.connections.pop(connection_id, None) if live else None
        if live is None or connection is None:
            return b""
        is_last = not self._is_here(live, connection.user.id)
        self._announce(live, connection.user, "workout:member:left", changed=is_last)
        self._watch_idle(live)
        return live.presence.leave(connection_id)

    def joined(self, connection_id: ConnectionId) -> frozenset[DocName]:
        """The rooms that a socket is in."""
        return frozenset(self._joined.get(connection_id, ()))

    def renew(self, connection: Connection) -> None:
        """The user behind a socket has a new token: other friends, another role or name."""
        for name in self.joined(connection.id):
            live = self._orphans.get(name) or self._rooms.get(name)
            if live is not None and connection.id in live.connections:
                live.connections[connection.id] = connection

    def find(self, name: DocName) -> LiveRoom | None:
        """The room, if it is in memory."""
        return self._rooms.get(name)

    async def _open(self, name: DocName) -> LiveRoom:
        live = self._rooms.get(name)
        if live is not None:
            return live
        loading = self._loading.get(name)
        if loading is None:
            loading = asyncio.create_task(self._load(name), name=f"load {name}")
            self._loading[name] = loading
            loading.add_done_callback(lambda _: self._loading.pop(name, None))
        # One who gives up waiting must not take the load away from the others.
        return await asyncio.shield(loading)

    async def _load(self, name: DocName) -> LiveRoom:
        loaded = await self._store.load(name)
        if loaded is None:
            raise NotFound(f"there is no {name}")
        live = self._rooms[name] = LiveRoom(name, Room(name, loaded))
        self._watch_idle(live)
        return live

    def _is_here(self, live: LiveRoom, user_id: UserId) -> bool:
        return any(connection.user.id == user_id for connection in live.connections.values())

    def _announce(self, live: LiveRoom, user: User, event: str, *, changed: bool) -> None:
        if not changed or live.name.kind != "workout":
            return
        member = live.room.members.get(user.id)
        payload = {
            "workout_id": live.name.id,
            "user": user.to_wire(),
            "role": member.role if member else "spectator",
        }
        self._outlet.present(live.name, event, payload)

    # -- changes ----------------------------------------------------------------------------

    def submit(
        self, live: LiveRoom, update: bytes, connection: Connection
    ) -> asyncio.Future[Stored]:
        """Admit a Yjs client's update, in the order of the calls.

        Returns: a future that is done when the update is durable and has been shown.
        Raises:
            Invalid, Unsynced, Forbidden: refused whole.
        """
        may_write = Right.WRITE in live.room.rights(connection.user)
        change = live.room.admit(
            update, connection.author(), self._clock.now_ms(), may_write=may_write
        )
        if change is None:
            known: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
            known.set_result(Stored(live.room.seq))
            return known
        return self._enqueue(live, change)

    async def edit(
        self,
        live: LiveRoom,
        writes: Sequence[Write],
        author: Author,
        event: str,
        *,
        op_id: str | None = None,
        members: Sequence[Member] = (),
        answer: Callable[[Stored], Answer],
    ) -> Answer:
        """Carry out an intent planned on the room's head in the same step, without an await
        between planning and this call.

        Args:
            answer: makes the ack of the outcome; a pure function, see `Entry`.
        Returns: the ack, once the change is durable and has been shown.
        """
        change = live.room.edit(
            writes,
            author,
            self._clock.now_ms(),
            event,
            op_id=op_id,
            members=members,
            answer=answer,
        )
        return await self._outcome(live, change)

    async def _outcome(self, live: LiveRoom, change: Change) -> Answer:
        stored = await asyncio.shield(self._enqueue(live, change))
        return change.entry.answer(stored) if change.entry.answer else {}

    def _enqueue(self, live: LiveRoom, change: Change) -> asyncio.Future[Stored]:
        waiter = _Waiter(change, asyncio.get_running_loop().create_future())
        live.waiters.append(waiter)
        if live.writer is None:
            live.writer = asyncio.create_task(self._write(live), name=f"write {live.name}")
        return waiter.stored

    async def _write(self, live: LiveRoom) -> None:
        """Append what waits, batch by batch, until nothing does."""
        try:
            while (batch := live.room.take_batch()) is not None:
                stored = await self._store.append(batch.append)
                commit = live.room.commit(batch, stored)
                done, live.waiters = (
                    live.waiters[: len(batch.changes)],
                    live.waiters[len(batch.changes) :],
                )
                self._outlet.committed(commit)
                for waiter in done:
                    if not waiter.stored.done():
                        waiter.stored.set_result(stored)
        except Exception as exc:
            self._drop(live, exc)
        else:
            live.writer = None
            self._watch_idle(live)
            if live.room.seq - live.room.snapshot_seq >= self._compact_after:
                self._chore(self._compact(live.room))

    def _drop(self, live: LiveRoom, cause: Exception) -> None:
        """Forget a room whose append failed. Those who are in it join the one read anew."""
        if not isinstance(cause, Conflict | Unavailable):
            log.exception("append failed", extra={"document": str(live.name)})
        live.writer = None
        waiters, live.waiters = live.waiters, []
        if self._rooms.get(live.name) is live:
            del self._rooms[live.name]
        error = (
            cause
            if isinstance(cause, Conflict | Unavailable)
            else Unavailable("the change could not be stored", retry_after_ms=1_000)
        )
        for waiter in waiters:
            if not waiter.stored.done():
                waiter.stored.set_exception(error)
                # A Yjs client that asked for no ack has nobody waiting here.
                waiter.stored.exception()
        if live.connections:
            self._orphans[live.name] = live
            self._chore(self._rejoin(live))

    async def _rejoin(self, dropped: LiveRoom) -> None:
        """Move the sockets of a dropped room into the one read anew, however long that takes."""
        delay_s = 0.05
        try:
            while dropped.connections:
                try:
                    async with self.lease(dropped.name) as fresh:
                        fresh.connections.update(dropped.connections)
                        fresh.presence = dropped.presence
                    self._outlet.reset(dropped.name, "append_failed")
                    return
                except NotFound:
                    return  # it was never created
                except Unavailable:
                    await asyncio.sleep(delay_s)
                    delay_s = min(delay_s * 2, 5.0)
        finally:
            del self._orphans[dropped.name]

    # -- letting go -------------------------------------------------------------------------

    def _watch_idle(self, live: LiveRoom) -> None:
        if live.idle is not None:
            live.idle.cancel()
            live.idle = None
        if live.is_idle and self._rooms.get(live.name) is live:
            loop = asyncio.get_running_loop()
            live.idle = loop.call_later(self._idle_timeout_s, self._unload, live)

    def _unload(self, live: LiveRoom) -> None:
        if not live.is_idle or not live.room.is_settled:
            return
        if self._rooms.get(live.name) is live:
            del self._rooms[live.name]
        if live.room.seq > live.room.snapshot_seq:
            self._chore(self._compact(live.room))

    async def _compact(self, room: Room) -> None:
        upto, base = room.seq, room.snapshot_seq
        try:
            if await self._store.compact(room.name, room.diff(), upto, base):
                room.compacted(upto)
        except Unavailable:
            # The log stays as long as it is; the next compaction takes it along.
            log.warning("compaction put off", extra={"document": str(room.name)})

    def _chore(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def close(self) -> None:
        """Let every append that is under way finish, and forget all rooms."""
        while writers := [live.writer for live in self._rooms.values() if live.writer]:
            await asyncio.wait(writers)
        if self._chores:
            await asyncio.wait(self._chores, timeout=5)
        for live in self._rooms.values():
            if live.idle is not None:
                live.idle.cancel()
        self._rooms.clear()
