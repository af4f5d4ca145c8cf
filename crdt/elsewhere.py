"""Who is in a room on other instances, as far as these have told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from crdt.access import User
from crdt.ids import ConnectionId, UserId


class Guest(NamedTuple):
    """A socket on another instance."""

    user: User
    device: Mapping[str, str]


class Elsewhere:
    """The sockets that other instances have in one room, by instance."""

    def __init__(self) -> None:
        self._instances: dict[str, dict[ConnectionId, Guest]] = {}
        self._sockets_of: Counter[UserId] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._instances.values()))

    def has(self, user_id: UserId) -> bool:
        return user_id in self._sockets_of

    @property
    def guests(self) -> Iterable[Guest]:
        return [guest for guests in self._instances.values() for guest in guests.values()]

    def enter(self, instance: str, connection_id: ConnectionId, guest: Guest) -> None:
        """Somebody is there; told twice, the later counts."""
        self.exit(instance, connection_id)
        self._instances.setdefault(instance, {})[connection_id] = guest
        self._sockets_of[guest.user.id] += 1

    def exit(self, instance: str, connection_id: ConnectionId) -> Guest | None:
        """Returns: who it was, if anybody."""
        guests = self._instances.get(instance, {})
        guest = guests.pop(connection_id, None)
        if guest is None:
            return None
        if not guests:
            del self._instances[instance]
        self._sockets_of[guest.user.id] -= 1
        if not self._sockets_of[guest.user.id]:
            del self._sockets_of[guest.user.id]
        return guest

    def sockets_on(self, instance: str) -> Iterable[ConnectionId]:
        return list(self._instances.get(instance, ()))
