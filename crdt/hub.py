"""The owner of all live rooms: it loads them once, writes them one append at a time, and lets them
go when nobody is there.

An append that fails leaves its outcome unknown, so the room is dropped and read again from the
log; whoever waited for it is told `unavailable`, and its document members are told to sync anew.

Where other instances write to the same log, what they write comes in (`Inlet`), and who is here is
told to them, and they tell who is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence, Set
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from crdt.access import Member, User
from crdt.admission import DocumentLimits
from crdt.elsewhere import Guest
from crdt.erasure import Part
from crdt.errors import (
    Conflict,
    DocumentDamaged,
    Gone,
    NotFound,
    Outdated,
    RoomFull,
    TooLarge,
    Unavailable,
)
from crdt.ids import ConnectionId, DocName, UserId
from crdt.live import Connection, LiveRoom, shown_member
from crdt.ports import (
    SERVER,
    Answer,
    Author,
    Awards,
    Clock,
    Committed,
    Foreign,
    Loaded,
    Neighbours,
    Observer,
    Outlet,
    SharedLog,
    Store,
    Stored,
)
from crdt.replica import Put, Write
from crdt.room import ERASE, NOWHERE, Batch, Change, Room

log = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.05, 5.0
QUIESCE_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 3.0
COMPACTION_ATTEMPTS = 10
MAX_DAMAGED = 1_000

_TOLD = (Conflict, Gone, TooLarge, Unavailable)
"""What a store may answer to an append; anything else is a fault."""


class RoomHub:
    """Every live room of this process, by name.

    Args:
        idle_timeout_s: how long a room stays in memory after its last member left.
        compact_after: how many log records are gathered before they become a snapshot.
        limits: how large a document may become.
        max_room_members: how many may belong to a document, its owner included.
        max_room_connections: how many sockets may be in a document's room, of whatever kind.
        shared: the store, if other instances write to it too.
        neighbours: those instances.
        observer: is told how long appends take, and how long it is until others see a change.
    """

    def __init__(
        self,
        store: Store,
        outlet: Outlet,
        clock: Clock,
        *,
        idle_timeout_s: float = 60.0,
        compact_after: int = 500,
        limits: DocumentLimits = DocumentLimits(),  # noqa: B008 - immutable
        max_room_members: int = 500,
        max_room_connections: int = 2_000,
        shared: SharedLog | None = None,
        neighbours: Neighbours | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._store = store
        self._observer = observer
        self._shared = shared
        self._neighbours = neighbours
        self._outlet = outlet
        self._clock = clock
        self._idle_timeout_s = idle_timeout_s
        self._compact_after = compact_after
        self._limits = limits
        self._max_room_members = max_room_members
        self._max_room_connections = max_room_connections
        self._rooms: dict[DocName, LiveRoom] = {}
        self._loading: dict[DocName, asyncio.Task[LiveRoom]] = {}
        self._is_closing = False
        self._failures: dict[DocName, int] = {}
        self._orphans: dict[DocName, LiveRoom] = {}
        self._joined: dict[ConnectionId, set[DocName]] = {}
        self._chores: set[asyncio.Task[Any]] = set()
        self._kept: Counter[DocName] = Counter()
        self._opening: Counter[DocName] = Counter()
        """How many wait for a document to be read."""
        self.damaged: dict[DocName, str] = {}
        """Documents that could not be read when they were opened last, and why: the last
        `MAX_DAMAGED` of them."""

    def __len__(self) -> int:
        return len(self._rooms)

    @property
    def live(self) -> Iterable[LiveRoom]:
        return self._rooms.values()

    @property
    def oldest_waiting_s(self) -> float:
        """How long the change has waited that has waited longest for its append; 0 if none does."""
        stamps = (
            s for live in self._rooms.values() for s in (live.in_flight_since_s, live.came_in_s)
        )
        oldest_s = min((stamp for stamp in stamps if stamp), default=0.0)
        return time.perf_counter() - oldest_s if oldest_s else 0.0

    # -- opening and leaving ----------------------------------------------------------------

    @asynccontextmanager
    async def lease(self, name: DocName, *, since_s: float = 0.0) -> AsyncIterator[LiveRoom]:
        """The room, kept in memory for as long as the block runs.

        Args:
            since_s: monotonic; what was durable then must be here. Who comes from another instance
                may have seen there what has not reached this one.
        Raises:
            NotFound: there is no such document.
            Unavailable: the store cannot be read.
        """
        live = await self._open(name)
        if self._shared is not None and live.fresh_at_s < since_s:
            await self._freshen(live, since_s)
            live = await self._open(name)  # it may have been read again
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
        """Make a document, once and durably, with its owner as first member, who will join it.

        Args:
            answer: makes the ack of the new document's snapshot.
        Raises:
            Conflict: there is one of this name.
        """
        if self._is_closing:
            raise Unavailable("the server is going away", retry_after_ms=1_000)
        exists = await self._store.summary(name) is not None
        while (loading := self._loading.get(name)) is not None:
            await asyncio.wait([loading])  # somebody asked for it too early
        if exists or name in self._rooms:
            raise Conflict(f"{name} exists already")
        live = self._rooms[name] = LiveRoom(name, self._room(name))
        member = Member(owner.user.id, "owner", owner.user.name)
        shown = shown_member(owner.user, "owner", {owner.device["id"]: owner.device})
        # What the snapshot will be is known before the append; only its position is not.
        preview: dict[str, Any] = {}

        def answer_with_preview(stored: Stored) -> Answer:
            return answer({**preview, "version": stored.seq})

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
        except BaseException:
            del self._rooms[name]
            raise
        preview.update(
            live.room.preview(members=[shown], roster=[member], now_ms=self._clock.now_ms())
        )
        live.leases += 1
        try:
            made = await self._outcome(live, change)
        finally:
            live.leases -= 1
            self._watch_idle(live)
        log.info("a document is made", extra={"document": str(name), "user": owner.user.id})
        return made

    def join(self, live: LiveRoom, connection: Connection) -> None:
        """Put a socket into a room; `live` must be leased. Joining twice changes nothing.

        Raises:
            RoomFull: there is no seat for it.
            Outdated: the room has been given up meanwhile.
        """
        if connection.id in live.connections:
            return
        if live.is_dropped:
            raise Outdated
        self.demand_seat(live, connection.id)
        is_first = live.enter(connection)
        self._joined.setdefault(connection.id, set()).add(live.name)
        if not connection.document:  # for a Yjs client its connecting says the same
            log.info("joined", extra=_facts(live, connection))
        if self._neighbours is not None:
            self._neighbours.joined(live.name, connection.id, connection.user, connection.device)
        self._announce(live, connection.user, "workout:member:joined", changed=is_first)

    def demand_seat(self, live: LiveRoom, connection_id: ConnectionId) -> None:
        """Raises RoomFull unless the socket is in the room or may join it."""
        seated: Set[ConnectionId] = live.connections.keys()
        orphan = self._orphans.get(live.name)
        if orphan is not None and orphan is not live:
            seated = seated | orphan.connections.keys()  # they are being moved in here
        if connection_id not in seated and len(seated) >= self._max_room_connections:
            raise RoomFull("connections in one room", self._max_room_connections)

    def _demand_places(self, live: LiveRoom, members: Iterable[Member]) -> None:
        """Raises RoomFull unless these may all be members."""
        roster = live.room.roster
        newcomers = {member.user_id for member in members if member.role} - roster.keys()
        if newcomers and len(roster) + len(newcomers) > self._max_room_members:
            raise RoomFull("members of one document", self._max_room_members)

    def leave(self, name: DocName, connection_id: ConnectionId) -> bytes:
        """Take a socket out of a room.

        Returns: the awareness update that tells the others, maybe empty.
        """
        joined = self._joined.get(connection_id)
        if joined is not None:
            joined.discard(name)
            if not joined:
                del self._joined[connection_id]
        live = self._where(name, connection_id)
        if live is None:
            return b""
        connection = live.connections[connection_id]
        if not connection.document:
            log.info("left", extra=_facts(live, connection))
        is_last = live.exit(connection)
        self._announce(live, connection.user, "workout:member:left", changed=is_last)
        self._watch_idle(live)
        awareness = live.presence.leave(connection_id)
        if self._neighbours is not None:
            self._neighbours.left(name, connection_id, awareness)
        return awareness

    def joined(self, connection_id: ConnectionId) -> frozenset[DocName]:
        """The rooms that a socket is in."""
        return frozenset(self._joined.get(connection_id, ()))

    def renew(self, connection: Connection) -> None:
        """The user behind a socket has a new token: other friends, another role or name."""
        for name in self.joined(connection.id):
            live = self._where(name, connection.id)
            if live is not None:
                live.connections[connection.id] = connection

    def _where(self, name: DocName, connection_id: ConnectionId) -> LiveRoom | None:
        """The room that a socket is in, be it one whose sockets are being moved."""
        for live in (self._rooms.get(name), self._orphans.get(name)):
            if live is not None and connection_id in live.connections:
                return live
        return None

    def find(self, name: DocName) -> LiveRoom | None:
        """The room, if it is in memory."""
        return self._rooms.get(name)

    def keep(self, name: DocName) -> None:
        """See to it that the room stays in memory once it is there, until `unkeep`: somebody
        watches it from outside. What other instances write is not heard of without it."""
        self._kept[name] += 1

    def unkeep(self, name: DocName) -> None:
        self._kept[name] -= 1
        if not self._kept[name]:
            del self._kept[name]
        if (live := self._rooms.get(name)) is not None:
            self._watch_idle(live)

    def _is_idle(self, live: LiveRoom) -> bool:
        return live.is_idle and live.name not in self._kept and live.name not in self._opening

    async def _open(self, name: DocName) -> LiveRoom:
        if (live := self._rooms.get(name)) is not None:
            return live
        # Nobody is in it yet, but it is not idle: were it let go before we go on, it would have to
        # be read for ever.
        self._opening[name] += 1
        try:
            while (live := self._rooms.get(name)) is None:
                loading = self._loading.get(name)
                if loading is None or loading.done():
                    loading = asyncio.create_task(self._load(name), name=f"load {name}")
                    self._loading[name] = loading
                    loading.add_done_callback(partial(self._on_loaded, name))
                # One who gives up waiting must not take the load away from the others. And what has
                # been loaded may have been dropped before we go on.
                await asyncio.shield(loading)
        finally:
            self._opening[name] -= 1
            if not self._opening[name]:
                del self._opening[name]
            if (opened := self._rooms.get(name)) is not None:
                self._watch_idle(opened)
        return live

    def _on_loaded(self, name: DocName, loading: asyncio.Task[LiveRoom]) -> None:
        if self._loading.get(name) is loading:
            del self._loading[name]
        if not loading.cancelled():
            loading.exception()  # those who wait are told

    async def freshen(self, name: DocName) -> bool:
        """Bring in what others have written until now.

        Returns: whether there was something.
        """
        live = self._rooms.get(name)
        if self._shared is None or live is None:
            return False
        known = live.room.seq
        await self._freshen(live, time.monotonic())
        return live.is_dropped or live.room.seq != known

    async def _freshen(self, live: LiveRoom, since_s: float) -> None:
        assert self._shared is not None
        async with live.freshening:
            if live.fresh_at_s < since_s:
                now_s = time.monotonic()
                await self._shared.catch_up(live.name)
                live.fresh_at_s = now_s

    async def _load(self, name: DocName) -> LiveRoom:
        now_s = time.monotonic()
        try:
            loaded = await self._store.load(name)
        except DocumentDamaged as exc:
            self._note_damage(name, str(exc))
            raise
        if loaded is None:
            self.damaged.pop(name, None)
            raise NotFound(f"there is no {name}")
        try:
            live = self._rooms[name] = LiveRoom(name, self._room(name, loaded))
        except Exception as exc:
            # Whatever it is, it must not take anything with it: this document cannot be opened.
            log.exception("a document cannot be read", extra={"document": str(name)})
            if self._shared is not None:
                self._shared.release(name)
            self._note_damage(name, f"it cannot be read: {type(exc).__name__}")
            raise DocumentDamaged(f"{name} is damaged") from exc
        self.damaged.pop(name, None)
        live.fresh_at_s = now_s
        took_ms = round((time.monotonic() - now_s) * 1_000, 1)
        told = {"document": str(name), "records": len(loaded.updates), "took_ms": took_ms}
        log.info("a document is loaded", extra=told)
        if (orphan := self._orphans.get(name)) is not None:
            live.presence, live.elsewhere = orphan.presence, orphan.elsewhere
        self._watch_idle(live)
        return live

    def _note_damage(self, name: DocName, why: str) -> None:
        self.damaged.pop(name, None)
        self.damaged[name] = why
        if len(self.damaged) > MAX_DAMAGED:
            del self.damaged[next(iter(self.damaged))]

    def _room(self, name: DocName, loaded: Loaded | None = None) -> Room:
        return Room(name, loaded, self._limits, is_shared=self._shared is not None)

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
        came_in_s = time.perf_counter()
        self._demand_open(live)
        rights = live.room.rights(connection.user)
        change = live.room.admit(update, connection.author(), self._clock.now_ms(), rights)
        if change is None:
            return self._known(live)
        return self._enqueue(live, came_in_s)

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
        by: User | None = None,
    ) -> Answer:
        """Carry out an intent planned on the room's head and roster in the same step, without an
        await between planning and this call.

        Args:
            answer: makes the ack of the outcome; a pure function, see `Entry`.
            by: whose rights are to be checked; None for what the server does of its own accord.
        Returns: the ack, once the change is durable and has been shown.
        Raises:
            Forbidden, Locked, Conflict: the user may not do this.
            RoomFull: there is no place for another member.
        """
        self._demand_open(live)
        self._demand_places(live, members)
        change = live.room.edit(
            writes,
            author,
            self._clock.now_ms(),
            event,
            op_id=op_id,
            members=members,
            answer=answer,
            rights=None if by is None else live.room.rights(by),
        )
        return await self._outcome(live, change)

    # -- taking a person out ----------------------------------------------------------------

    async def erase(self, name: DocName, user_id: UserId, sets: Iterable[str] = ()) -> Part:
        """Take out of a document what it has of a person. Who is there sees it as ordinary
        changes. It may be done again, as often as it takes.

        Args:
            sets: keys of sets of theirs that may have been deleted before.
        Returns: what there was.
        Raises:
            NotFound: there is no such document.
            Conflict: it is theirs alone: bury it.
            Unavailable: it was not done, or not to its end.
        """
        async with self.lease(name) as live:
            part: Part | None = None
            keys = set(sets)
            for attempt in range(COMPACTION_ATTEMPTS):
                # A snapshot that somebody else has made since may hold the keys. Ours takes its
                # place only from further on, so there has to be something new.
                if part is None or live.room.snapshot_seq >= live.room.seq:
                    found = await self._take_out(live, user_id)
                    part = part or found
                    keys.update(found.sets)
                live.room.forget(user_id, keys)
                if await self._compacted(live.room):
                    return part
                await asyncio.sleep(attempt * FIRST_RETRY_S)
        raise Unavailable(f"{name} changes too fast to be rewritten", retry_after_ms=500)

    async def _take_out(self, live: LiveRoom, user_id: UserId) -> Part:
        came_in_s = time.perf_counter()
        self._demand_open(live)
        part, changes = live.room.erase(user_id, self._clock.now_ms())
        await asyncio.gather(*[self._enqueue(live, came_in_s) for _ in changes])
        if live.is_dropped:
            raise Outdated
        return part

    async def close_for_all(self, name: DocName) -> None:
        """Put everybody out of a document, for good. Who is there sees it as ordinary changes.

        Raises:
            NotFound: there is no such document.
            Unavailable: it cannot be done now.
        """
        async with self.lease(name) as live:
            self._demand_open(live)
            gone = [Member(id_, "", member.name) for id_, member in live.room.roster.items()]
            author = Author(SERVER, "", "", NOWHERE)
            private = [Put(("meta", "visibility"), "private")]
            change = live.room.edit(private, author, self._clock.now_ms(), ERASE, members=gone)
            await self._outcome(live, change)

    async def discard(self, name: DocName) -> None:
        """Let go of a document that is no more in the store."""
        if (loading := self._loading.get(name)) is not None:
            await asyncio.wait([loading])
        if (live := self._rooms.get(name)) is not None:
            self._drop(live, Gone(name))

    async def _outcome(self, live: LiveRoom, change: Change) -> Answer:
        stored = await asyncio.shield(self._enqueue(live, time.perf_counter()))
        return change.entry.answer(stored) if change.entry.answer else {}

    def _demand_open(self, live: LiveRoom) -> None:
        if live.is_dropped:
            raise Outdated
        if self._is_closing:
            raise Unavailable("the server is going away", retry_after_ms=1_000)
        if self._shared is not None:
            self._shared.demand_space(live.name)

    def _known(self, live: LiveRoom) -> asyncio.Future[Stored]:
        """For an update that brought nothing new: done when all that it repeats is durable."""
        if live.waiters:
            return live.waiters[-1]
        known: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        known.set_result(Stored(live.room.seq))
        return known

    def _enqueue(self, live: LiveRoom, came_in_s: float) -> asyncio.Future[Stored]:
        """Returns: a future for the change that the room has just admitted, which goes into the
        next append."""
        loop = live.loop
        if not live.came_in_s:
            live.came_in_s = came_in_s
        stored: asyncio.Future[Stored] = loop.create_future()
        live.waiters.append(stored)
        if live.append is None:
            # Not at once: what else arrives in this turn of the loop goes into the same append.
            live.append = loop.call_soon(self._append, live, context=live.context)
        return stored

    def _append(self, live: LiveRoom) -> None:
        """Append what waits as one record; what arrives meanwhile waits for the next one."""
        live.append = None
        batch = live.room.take_batch()
        if batch is None:
            self._watch_idle(live)
            if live.room.compactable >= self._compact_after:
                self._chore(self._compact(live.room))
            return
        live.in_flight_since_s, live.came_in_s = live.came_in_s, 0.0
        started_s = time.perf_counter()
        live.append = asyncio.ensure_future(self._store.append(batch.append))
        live.append.add_done_callback(partial(self._on_appended, live, batch, started_s))

    def _on_appended(
        self,
        live: LiveRoom,
        batch: Batch,
        started_s: float,
        append: asyncio.Future[Stored],
    ) -> None:
        append_s = time.perf_counter() - started_s
        came_in_s, live.in_flight_since_s = live.in_flight_since_s, 0.0
        try:
            stored = append.result()
        except (Exception, asyncio.CancelledError) as exc:
            live.append = None
            if live.is_dropped:
                self._refuse(live, exc)
            else:
                self._drop(live, exc)
            return
        count = len(batch.changes)
        try:
            if live.incoming:
                self._take_in_until(live, stored.seq)
            if live.is_dropped:  # what is read anew has it
                self._acknowledge(live, count, stored)
                return
            commit = live.room.commit(batch, stored)
        except Exception as exc:
            self._acknowledge(live, count, stored)  # it is durable, whatever becomes of the room
            live.append = None
            self._drop(live, exc)
            return
        self._failures.pop(live.name, None)
        self._show(commit)
        if self._observer is not None:
            self._observer.appended(count, append_s, time.perf_counter() - came_in_s)
        self._acknowledge(live, count, stored)
        if live.incoming:
            behind, live.incoming = live.incoming, []
            self._take_in(live, behind)
        if not live.is_dropped:
            self._append(live)

    @staticmethod
    def _acknowledge(live: LiveRoom, count: int, stored: Stored) -> None:
        """Tell the first of those who wait that their changes are durable."""
        done, live.waiters = live.waiters[:count], live.waiters[count:]
        for index, waiter in enumerate(done):
            if not waiter.done():
                waiter.set_result(stored.of(index))

    @staticmethod
    def _refuse(live: LiveRoom, cause: BaseException, after: int = 0) -> None:
        """Tell those who wait, but for the first so many, that their changes are not stored, or
        that nobody knows."""
        error = (
            cause
            if isinstance(cause, _TOLD)
            else Unavailable("the change could not be stored", retry_after_ms=1_000)
        )
        waiters, live.waiters = live.waiters[after:], live.waiters[:after]
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # a Yjs client that asked for no ack has nobody waiting here

    def _show(self, commit: Committed) -> None:
        try:
            self._outlet.committed(commit)
        except Exception:
            log.exception("a change was not shown", extra={"document": str(commit.doc)})

    def _drop(self, live: LiveRoom, cause: BaseException, reason: str = "append_failed") -> None:
        """Forget a room whose append failed, or that has lost touch with its log. Those who are in
        it join the one read anew.

        Args:
            reason: what document members are told.
        """
        if live.is_dropped:
            return
        live.is_dropped = True
        if not isinstance(cause, _TOLD):
            log.error("append failed", exc_info=cause, extra={"document": str(live.name)})
        # What is being stored is answered when that is known.
        in_flight = live.room.in_flight if isinstance(live.append, asyncio.Future) else 0
        if isinstance(live.append, asyncio.Handle):
            live.append.cancel()
        live.append = None
        live.incoming.clear()
        if self._rooms.get(live.name) is live:
            del self._rooms[live.name]
        self._refuse(live, cause, after=in_flight)
        orphan = self._orphans.get(live.name)
        if orphan is not None:  # it is still being moved, and takes these along
            for connection in live.connections.values():
                orphan.enter(connection)
        elif live.connections or live.name in self._kept:
            self._orphans[live.name] = live
            told = {"document": str(live.name), "reason": reason}
            log.warning("a document is read again", extra=told)
            self._chore(self._rejoin(live, reason))
        elif self._shared is not None:
            self._shared.release(live.name)

    async def _rejoin(self, dropped: LiveRoom, reason: str) -> None:
        """Move the sockets of a dropped room into the one read anew, however long that takes."""
        # Members send again what was refused. Were it refused at once for ever, so would this be.
        failures = self._failures[dropped.name] = self._failures.get(dropped.name, 0) + 1
        delay_s = min(FIRST_RETRY_S * 2 ** (failures - 1), LAST_RETRY_S)
        try:
            if failures > 1:
                await asyncio.sleep(delay_s)
            while dropped.connections or dropped.name in self._kept:
                try:
                    async with self.lease(dropped.name) as fresh:
                        for connection in list(dropped.connections.values()):
                            dropped.exit(connection)
                            fresh.enter(connection)
                        self._outlet.reset(dropped.name, reason)
                        self._show(fresh.room.since(dropped.room))
                    return
                except NotFound:
                    return  # it was never created
                except Unavailable:
                    await asyncio.sleep(delay_s)
                    delay_s = min(delay_s * 2, LAST_RETRY_S)
        finally:
            self._orphans.pop(dropped.name, None)
            if dropped.name not in self._rooms:
                self._failures.pop(dropped.name, None)

    # -- what comes from other instances -----------------------------------------------------

    def foreign(self, doc: DocName, records: Sequence[Foreign]) -> None:
        live = self._rooms.get(doc)
        if live is None:
            return
        if isinstance(live.append, asyncio.Future):
            live.incoming.extend(records)  # before our record or behind it: its position will tell
        else:
            self._take_in(live, records)

    def _take_in(self, live: LiveRoom, records: Iterable[Foreign]) -> None:
        for record in records:
            try:
                commit = live.room.receive(record)
            except Exception as exc:
                self._drop(live, exc, reason="unreadable_record")
                return
            self._show(commit)
            if self._observer is not None and record.at_ms:
                self._observer.heard((self._clock.now_ms() - record.at_ms) / 1_000)

    def _take_in_until(self, live: LiveRoom, seq: int) -> None:
        """What came in while an append was under way, up to the position that ours was given, or
        was promised: none of it is ours."""
        before = [record for record in live.incoming if record.seq <= seq]
        live.incoming = [record for record in live.incoming if record.seq > seq]
        self._take_in(live, before)

    def renumbered(self, doc: DocName, seq: int) -> None:
        live = self._rooms.get(doc)
        if live is not None:
            live.room.seq = seq

    def awarded(self, doc: DocName, awards: Awards) -> None:
        live = self._rooms.get(doc)
        if live is not None:
            live.room.award(awards)
            self._show(Committed(doc, live.room.seq, None, None, (), True, False))

    def outdated(self, doc: DocName, reason: str) -> None:
        live = self._rooms.get(doc)
        if live is not None:
            self._drop(live, Outdated(), reason=reason)

    def guest_came(
        self, doc: DocName, instance: str, connection_id: ConnectionId, guest: Guest
    ) -> None:
        """Somebody is in a room on another instance."""
        live = self._rooms.get(doc)
        if live is None or connection_id in live.connections:
            return
        is_first = not live.has(guest.user.id)
        live.elsewhere.enter(instance, connection_id, guest)
        self._announce(live, guest.user, "workout:member:joined", changed=is_first)

    def guest_left(self, doc: DocName, instance: str, connection_id: ConnectionId) -> None:
        """Somebody has left a room on another instance."""
        live = self._rooms.get(doc)
        guest = live.elsewhere.exit(instance, connection_id) if live is not None else None
        if live is not None and guest is not None:
            is_last = not live.has(guest.user.id)
            self._announce(live, guest.user, "workout:member:left", changed=is_last)

    def guest_aware(
        self, doc: DocName, instance: str, awareness: bytes, *, is_all: bool = False
    ) -> None:
        """Somebody on another instance shows something else; with `is_all`, nobody else does.

        Raises:
            Invalid, TooLarge: it is no awareness update, or too much.
        """
        live = self._rooms.get(doc)
        if live is None:
            return
        if told := live.presence.hear(instance, awareness, is_all=is_all):
            self._outlet.aware(doc, told)

    def guests_of(self, doc: DocName, instance: str) -> Iterable[ConnectionId]:
        """Who is known to be in a room on another instance."""
        live = self._rooms.get(doc)
        return live.elsewhere.sockets_on(instance) if live is not None else ()

    def instance_left(self, instance: str) -> None:
        """Another instance is gone, and all who were there."""
        for live in list(self._rooms.values()):
            for connection_id in live.elsewhere.sockets_on(instance):
                self.guest_left(live.name, instance, connection_id)
            if told := live.presence.forget(instance):
                self._outlet.aware(live.name, told)

    # -- letting go -------------------------------------------------------------------------

    def _watch_idle(self, live: LiveRoom) -> None:
        if live.idle is not None:
            live.idle.cancel()
            live.idle = None
        if self._is_idle(live) and self._rooms.get(live.name) is live:
            loop = asyncio.get_running_loop()
            live.idle = loop.call_later(
                self._idle_timeout_s, self._unload, live, context=live.context
            )

    def _unload(self, live: LiveRoom) -> None:
        if not self._is_idle(live) or not live.room.is_settled:
            return
        if self._shared is not None:
            self._chore(self._let_go(live))
            return
        if self._rooms.get(live.name) is live:
            del self._rooms[live.name]
            log.info("a document is unloaded", extra={"document": str(live.name)})
        if live.room.compactable:
            self._chore(self._compact(live.room))

    async def _let_go(self, live: LiveRoom) -> None:
        """Unload a room whose log is shared, once all of it is where it lasts."""
        assert self._shared is not None
        if not await self._persist(live.name):
            self._watch_idle(live)
            return
        is_still_here = self._rooms.get(live.name) is live
        if is_still_here and self._is_idle(live) and live.room.is_settled:
            del self._rooms[live.name]
            self._shared.release(live.name)
            log.info("a document is unloaded", extra={"document": str(live.name)})

    async def _persist(self, name: DocName) -> bool:
        """Returns: whether all of a shared log is where it lasts."""
        if self._shared is not None:
            try:
                await self._shared.persist(name)
            except Unavailable:
                return False
            except Gone:
                return True  # deleted for good, so there is nothing to keep
        return True

    async def _compacted(self, room: Room) -> bool:
        """Returns: whether the room's present state is the snapshot; if not, somebody was faster.

        Raises:
            Unavailable: it cannot be done now.
        """
        upto, base = room.seq, room.snapshot_seq
        if await self._store.compact(room.name, room.diff(), upto, base):
            room.compacted(upto)
            return True
        # To load it from a shared log would be to open it once more.
        store = self._store.load if self._shared is None else self._shared.stored
        if (loaded := await store(room.name)) is not None:
            room.compacted(loaded.snapshot_seq)
        return False

    async def _compact(self, room: Room) -> None:
        try:
            await self._compacted(room)
        except Unavailable:
            # The log stays as long as it is; the next compaction takes it along.
            log.warning("compaction put off", extra={"document": str(room.name)})

    def _chore(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def quiesce(self, timeout_s: float = QUIESCE_TIMEOUT_S) -> None:
        """Let every append that is under way finish and be answered; members stay.

        Changes that come from now on are refused with `unavailable`. What the store has not said
        in time is not waited for: it was not acked.
        """
        self._is_closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._answer_all()

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Let every append that is under way finish, put away what only a shared log has, and
        forget all rooms.

        What is not put away in time is in the shared log still, for the other instances and the
        workers.
        """
        if self._is_closing and not self._rooms:
            return
        self._is_closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._answer_all()
                await self._persist_all()
        for chore in self._chores:
            chore.cancel()
        for live in self._rooms.values():
            if live.idle is not None:
                live.idle.cancel()
        self._rooms.clear()

    async def _answer_all(self) -> None:
        while appends := [live.append for live in self._rooms.values() if live.append]:
            futures = [append for append in appends if isinstance(append, asyncio.Future)]
            if futures:
                await asyncio.wait(futures)
            await asyncio.sleep(0)  # they start, or their outcomes are dealt with

    async def _persist_all(self) -> None:
        for name in self._rooms:
            self._chore(self._persist(name))
        if self._chores:
            await asyncio.wait(self._chores)


def _facts(live: LiveRoom, connection: Connection) -> dict[str, str]:
    """What a log line says of a socket in a room."""
    return {
        "document": str(live.name),
        "connection": connection.id,
        "user": connection.user.id,
    }
