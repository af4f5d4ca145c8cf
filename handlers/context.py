"""What a handler may touch: the caller, the rooms, the store, the time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID, uuid4, uuid5
from weakref import WeakValueDictionary

from crdt.access import Member, Right, User
from crdt.errors import Conflict
from crdt.hub import RoomHub
from crdt.ids import ConnectionId, DocKind, DocName, UserId
from crdt.live import Connection, LiveRoom
from crdt.ports import Answer, Author, Clock, Store, Stored
from crdt.replica import Write
from crdt.revocations import Revocation, TokenFacts

_IDS = UUID("6f6b3a52-2f0d-4a86-9b6c-4b3a1d1f5e0c")
"""The namespace of the ids that follow from an operation."""


class Sessions(Protocol):
    """The sockets and their tokens, as far as handlers may ask for something to be done."""

    def is_here(self, connection_id: ConnectionId) -> bool:
        """Whether the connection still is."""

    async def refresh(self, connection_id: ConnectionId, token: str) -> int:
        """Extend all connections that were opened with the token that this one holds.

        Returns: the new end, in ms since the epoch.
        Raises:
            Unauthenticated: the token is no good.
            Forbidden: it is somebody else's.
            Unavailable: it cannot be checked now.
        """

    def tokens(self) -> Iterable[TokenFacts]:
        """The token of every connection of this instance."""

    def apply_revocation(self, revocation: Revocation) -> None:
        """Refuse what it covers from now on, and end the connections that hold such a token.

        It is for revocations that are kept already, be it by this instance or another one.
        """

    def tell_user(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None:
        """Send an event to all of a user's devices."""


class Streams(Protocol):
    """The dashboards' streams."""

    async def admit(self, user: User, stream: str, since_s: float) -> Hashable:
        """What a user gets to see of a stream.

        Args:
            since_s: monotonic; what was durable then is taken into account.
        Raises:
            NotFound: there is no such stream.
            Forbidden: it is not theirs.
        """

    def subscribe(self, connection_id: ConnectionId, streams: Mapping[str, Hashable]) -> None:
        """Send the current value of each, as `admit` has let them see it, then changes."""

    def unsubscribe(self, connection_id: ConnectionId, streams: Sequence[str]) -> list[str]:
        """Returns: those that were subscribed."""

    def streams_of(self, connection_id: ConnectionId) -> Collection[str]:
        """What a connection watches now."""


@dataclass(slots=True)
class Caller:
    """One connection to `/`, and who is behind it."""

    user: User
    device: dict[str, str]
    connection_id: ConnectionId
    since_s: float = 0.0
    """When it connected; monotonic."""

    @property
    def author(self) -> Author:
        return Author(self.user.id, self.user.name, self.device["id"], self.connection_id)

    @property
    def connection(self) -> Connection:
        return Connection(self.connection_id, self.user, self.device, document=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one connection may hold, and one answer list."""

    max_rooms_per_connection: int = 200
    max_streams_per_connection: int = 200
    max_page_size: int = 500


@dataclass(slots=True)
class Services:
    """What all calls share; put together once, at the start.

    `revocation_lifetime_s` is how long a revocation lasts unless said otherwise: as long as the
    longest-lived token.
    """

    hub: RoomHub
    store: Store
    clock: Clock
    sessions: Sessions
    streams: Streams
    limits: Limits = field(default_factory=Limits)
    new_id: Callable[[], str] = field(default=lambda: str(uuid4()))
    revocation_lifetime_s: float = 30 * 86_400
    _starting: WeakValueDictionary[UserId, asyncio.Lock] = field(
        default_factory=WeakValueDictionary
    )

    def starting(self, owner_id: UserId) -> asyncio.Lock:
        """Held from the claim of an owner's workout to its start, so that nobody takes the claim
        for one that a crash has left behind."""
        lock = self._starting.get(owner_id)
        if lock is None:
            lock = self._starting[owner_id] = asyncio.Lock()
        return lock


@dataclass(slots=True)
class Context:
    """One call: who calls, what it is called, and the operation that it may be a repeat of."""

    caller: Caller
    services: Services
    event: str
    op_id: str | None = None
    _made_ids: int = 0

    @property
    def user(self) -> User:
        return self.caller.user

    @property
    def hub(self) -> RoomHub:
        return self.services.hub

    @property
    def store(self) -> Store:
        return self.services.store

    def now_ms(self) -> int:
        return self.services.clock.now_ms()

    def new_id(self) -> str:
        """An id for something new: for a repeat of the operation the same one again, so that even
        two instances which carry it out in the same moment make it once."""
        self._made_ids += 1
        return self._id(self._made_ids)

    def _id(self, number: int) -> str:
        if self.op_id is None:
            return self.services.new_id()
        return str(uuid5(_IDS, json.dumps([self.user.id, self.op_id, number])))

    def start_again(self) -> None:
        """The handler is called once more: what it makes has the same ids as before."""
        self._made_ids = 0

    def document_of(self, payload: object) -> DocName | None:
        """The document that an operation is about: one that it names, or the one that it makes."""
        kind = self.event.partition(":")[0]
        if kind not in DocKind._value2member_map_:
            return None
        return DocName(DocKind(kind), getattr(payload, f"{kind}_id", None) or self._id(1))

    @asynccontextmanager
    async def room(self, name: DocName, right: Right) -> AsyncIterator[LiveRoom]:
        """The room of a document in which the caller has `right`.

        Raises:
            NotFound: there is no such document.
            Forbidden: the caller may not.
        """
        async with self.hub.lease(name, since_s=self.caller.since_s) as live:
            live.demand(self.user, right)
            yield live

    def demand_place_for(self, name: DocName) -> None:
        """Asked before anything is changed for the sake of joining.

        Raises:
            Conflict: this connection is in as many rooms as it may be.
        """
        joined = self.hub.joined(self.caller.connection_id)
        limit = self.services.limits.max_rooms_per_connection
        if len(joined) >= limit and name not in joined:
            raise Conflict(
                "this connection is in as many rooms as it may be; leave one",
                details={"limit": limit},
            )

    def join(self, live: LiveRoom) -> None:
        """Put the caller into a room, unless it has gone while its event was handled.

        Raises:
            Forbidden: the caller may not read it any more.
            RoomFull: there is no seat.
        """
        live.demand(self.user, Right.READ)
        if self.services.sessions.is_here(self.caller.connection_id):
            self.hub.join(live, self.caller.connection)

    async def commit(
        self,
        live: LiveRoom,
        writes: Sequence[Write],
        reply: Callable[[Stored], Mapping[str, Any]],
        *,
        members: Iterable[Member] = (),
        once: bool = True,
    ) -> Answer:
        """Carry out writes and new memberships that were planned on `live.room.head` and `roster`,
        with no await in between. The rules are asked once more, of what the writes do.

        Args:
            reply: the ack's fields, made of the outcome by a pure function.
            once: keep the ack for the operation's repeats. An event that may be repeated anyway,
                and answers with the present state, keeps none.
        Returns: the ack, once the change is durable.
        """
        return await self.hub.edit(
            live,
            writes,
            self.caller.author,
            self.event,
            op_id=self.op_id if once else None,
            members=tuple(members),
            answer=lambda stored: self.changed(reply(stored), stored),
            by=self.user,
        )

    def changed(self, reply: Mapping[str, Any], stored: Stored | None = None) -> Answer:
        """The ack of a change."""
        durability = (stored and stored.durability) or self.store.durability
        return {"ok": True, "durability": durability, **reply}
