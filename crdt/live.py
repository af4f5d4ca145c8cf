"""A room that is in memory, with the sockets in it. The hub owns and changes it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from crdt.access import Right, User
from crdt.elsewhere import Elsewhere, Guest
from crdt.errors import Forbidden
from crdt.ids import ConnectionId, DocName, UserId
from crdt.ports import Author, Foreign, Stored
from crdt.presence import Presence
from crdt.room import Room


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
class LiveRoom:
    """A room with the sockets in it. Only the hub changes it."""

    name: DocName
    room: Room
    presence: Presence = field(default_factory=Presence)
    elsewhere: Elsewhere = field(default_factory=Elsewhere)
    connections: dict[ConnectionId, Connection] = field(default_factory=dict)
    readers: dict[ConnectionId, None] = field(default_factory=dict)
    """Those of the connections that get the document's updates."""
    listeners: dict[ConnectionId, None] = field(default_factory=dict)
    """Those that get the JSON events."""
    sockets_of: Counter[UserId] = field(default_factory=Counter)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    leases: int = 0
    waiters: list[asyncio.Future[Stored]] = field(default_factory=list)
    """Who waits for the changes that were admitted, in the order of the changes."""
    append: asyncio.Future[Stored] | asyncio.Handle | None = None
    """The append under way, or the one that starts when this turn of the loop is over."""
    in_flight_since_s: float = 0.0
    """When the oldest change of the append under way came in (`perf_counter`); 0.0 without one."""
    came_in_s: float = 0.0
    """The same of those that wait for the next append."""
    incoming: list[Foreign] = field(default_factory=list)
    """What others wrote while an append of ours was under way: before it or behind it."""
    idle: asyncio.TimerHandle | None = None
    fresh_at_s: float = field(default_factory=time.monotonic)
    """Whatever was durable then is here, whoever wrote it; monotonic."""
    freshening: asyncio.Lock = field(default_factory=asyncio.Lock)
    context: Context = field(default_factory=Context)
    """In which what belongs to the room alone is done: of nobody's event, as far as logs say."""
    is_dropped: bool = False
    """Whether the room was given up after a failed append; who still holds it must ask again."""

    def enter(self, connection: Connection) -> bool:
        """Returns: whether it is the user's first socket, on whatever instance."""
        if connection.id in self.connections:
            return False
        is_first = not self.has(connection.user.id)
        self.connections[connection.id] = connection
        (self.readers if connection.document else self.listeners)[connection.id] = None
        self.sockets_of[connection.user.id] += 1
        return is_first

    def exit(self, connection: Connection) -> bool:
        """Returns: whether it was the user's last socket, on whatever instance."""
        del self.connections[connection.id]
        del (self.readers if connection.document else self.listeners)[connection.id]
        self.sockets_of[connection.user.id] -= 1
        if not self.sockets_of[connection.user.id]:
            del self.sockets_of[connection.user.id]
        return not self.has(connection.user.id)

    def has(self, user_id: UserId) -> bool:
        """Whether a user is in the room, here or on another instance."""
        return user_id in self.sockets_of or self.elsewhere.has(user_id)

    def demand(self, user: User, right: Right) -> None:
        """Raises Forbidden unless the user has this right to the document."""
        if right not in self.room.rights(user):
            raise Forbidden(f"you may not do this with {self.name}")

    def members(self) -> list[dict[str, Any]]:
        """Who belongs to the document, and with which devices they are here now."""
        devices: dict[UserId, dict[str, Mapping[str, str]]] = {}
        visitors: dict[UserId, User] = {}
        everybody: list[Guest | Connection] = [*self.elsewhere.guests, *self.connections.values()]
        for here in everybody:
            devices.setdefault(here.user.id, {})[here.device["id"]] = here.device
            if here.user.id not in self.room.members:
                visitors[here.user.id] = here.user
        shown = [
            shown_member(
                User(member.user_id, member.name), member.role, devices.get(member.user_id, {})
            )
            for member in self.room.members.values()
        ]
        shown += [shown_member(user, "spectator", devices[id_]) for id_, user in visitors.items()]
        return shown

    def snapshot(self, now_ms: int) -> dict[str, Any]:
        return self.room.snapshot(members=self.members(), now_ms=now_ms)

    @property
    def is_idle(self) -> bool:
        return not self.connections and not self.leases and not self.waiters


def shown_member(user: User, role: str, devices: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """An entry of a snapshot's `members`: somebody with at least one device here is online."""
    return {
        "user": user.to_wire(),
        "role": role,
        "devices": list(devices.values()),
        "online": bool(devices),
    }
