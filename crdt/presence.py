"""Who is here and what they are doing: the awareness states of one document.

Awareness is never stored. Its wire form (y-protocols) is a list of (client ID, clock, JSON state or
`null`); a peer takes an entry with a higher clock, or with the same clock if it says `null`. Stock
clients echo each other's states, and after a reconnect tell the server that everybody else has
gone. So each connection owns one client ID, the first that it announces alone, and is listened to
about that one only.

What is here on other instances comes from these, stamped there already, and goes with them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from crdt.access import User
from crdt.errors import TooLarge
from crdt.ids import ConnectionId
from crdt.wire import AwarenessEntry, decode_awareness, encode_awareness

MAX_NUDGED = 32
MAX_ROOM_BYTES = 4 * 1024 * 1024
"""What the states of one room may take together, as JSON."""
_REMEMBERED_GONE = 256


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """`relay` goes to everybody but the sender, `reply` to the sender, `nudges` to one each."""

    relay: bytes = b""
    reply: bytes = b""
    nudges: tuple[tuple[ConnectionId, bytes], ...] = ()


@dataclass(slots=True)
class _Present:
    clock: int
    state: dict[str, Any]
    size_bytes: int
    owner: ConnectionId | None
    """Whose state it is; None for somebody on another instance."""
    instance: str = ""
    is_nudged: bool = False


class Presence:
    """The states of one room. Time plays no part: a state lives as long as its connection."""

    def __init__(self) -> None:
        self._present: dict[int, _Present] = {}
        self._owned: dict[ConnectionId, int] = {}
        self._owners: dict[int, ConnectionId] = {}
        self._gone: OrderedDict[int, int] = OrderedDict()
        self._size_bytes = 0

    def receive(self, connection: ConnectionId, user: User, update: bytes) -> PresenceChange:
        """Take in an awareness update from a client.

        The `user` field of its own state is completed from the token: `id` and `name` are not for
        the client to choose, a colour is.

        Raises:
            Invalid: the bytes are no awareness update.
            TooLarge: a state is over the limit, or the room's states together.
        """
        entries = decode_awareness(update)
        own = self._owned.get(connection)
        if own is None and len(entries) == 1 and entries[0].state is not None:
            own = self._claim(connection, user, entries[0].client_id)
        for entry in entries:
            if entry.client_id == own:
                return self._take(connection, user, entry)
        return PresenceChange(nudges=self._nudge(entries))

    def leave(self, connection: ConnectionId) -> bytes:
        """A connection has ended. Returns: what the others must be told, maybe nothing."""
        client_id = self._owned.pop(connection, None)
        if client_id is None:
            return b""
        del self._owners[client_id]
        return self._remove(client_id)

    def hear(self, instance: str, update: bytes, *, is_all: bool = False) -> bytes:
        """Take in what another instance says of those who are there; of all of them, if `is_all`.

        Returns: what clients here must be told, maybe nothing.
        Raises:
            Invalid, TooLarge: see `receive`.
        """
        news = []
        entries = decode_awareness(update)
        for entry in entries:
            present = self._present.get(entry.client_id)
            if present is not None and (
                present.owner is not None  # it has come over to us meanwhile
                or entry.clock < present.clock
                or (entry.clock == present.clock and entry.state is not None)
            ):
                continue
            if entry.state is not None:
                self._put(entry, entry.state, None, instance)
                news.append(entry)
            elif present is not None and present.instance == instance:
                self._drop(entry.client_id)
                news.append(entry)
        if is_all:
            news += self._gone_from(instance, {entry.client_id for entry in entries})
        return encode_awareness(news) if news else b""

    def forget(self, instance: str) -> bytes:
        """Another instance is gone. Returns: what clients here must be told, maybe nothing."""
        gone = self._gone_from(instance, ())
        return encode_awareness(gone) if gone else b""

    def _gone_from(self, instance: str, still_there: Container[int]) -> list[AwarenessEntry]:
        gone = [
            id_
            for id_, present in self._present.items()
            if present.instance == instance and id_ not in still_there
        ]
        return [AwarenessEntry(id_, self._drop(id_).clock, None) for id_ in gone]

    def everybody(self, *, here: bool = False) -> bytes:
        """All states, for a client that has just connected; only those of this instance if `here`
        is set. Empty if there are none."""
        entries = [
            AwarenessEntry(client_id, present.clock, present.state)
            for client_id, present in self._present.items()
            if not here or present.owner is not None
        ]
        return encode_awareness(entries) if entries else b""

    def __len__(self) -> int:
        return len(self._present)

    def _nudge(self, entries: list[AwarenessEntry]) -> tuple[tuple[ConnectionId, bytes], ...]:
        """Somebody who comes back says that the others are gone, and would not see them until
        their next beat. Told the same, the others raise their clocks and announce themselves.

        Once for each clock, and not in a crowd, where it would be a storm.
        """
        if len(self._present) > MAX_NUDGED:
            return ()
        nudges = []
        for entry in entries:
            present = self._present.get(entry.client_id)
            if present is None or present.owner is None or present.is_nudged:
                continue  # on another instance, it announces itself there
            if entry.state is None:
                present.is_nudged = True
                null = encode_awareness([AwarenessEntry(entry.client_id, present.clock, None)])
                nudges.append((present.owner, null))
        return tuple(nudges)

    def _claim(self, connection: ConnectionId, user: User, client_id: int) -> int | None:
        if client_id in self._owners:
            return None  # another live connection's, even if it shows nothing now
        present = self._present.get(client_id)
        if present is not None and not _is_of(present.state, user):
            return None  # the same, on another instance
        self._owned[connection] = client_id
        self._owners[client_id] = connection
        return client_id

    def _take(self, connection: ConnectionId, user: User, entry: AwarenessEntry) -> PresenceChange:
        present = self._present.get(entry.client_id)
        if entry.state is None:
            if present is None or entry.clock < present.clock:
                return PresenceChange()
            return PresenceChange(relay=self._remove(entry.client_id, entry.clock))
        if present is not None and entry.clock <= present.clock:
            return PresenceChange()
        removed_at = self._gone.get(entry.client_id)
        if removed_at is not None and entry.clock <= removed_at:
            # Others would ignore a clock that they saw removed. Told that it is gone, the client
            # raises its clock and announces itself again.
            nudge = encode_awareness([AwarenessEntry(entry.client_id, removed_at, None)])
            return PresenceChange(reply=nudge)
        claimed = entry.state.get("user")
        state = {
            **entry.state,
            "user": {**(claimed if isinstance(claimed, dict) else {}), **user.to_wire()},
        }
        self._gone.pop(entry.client_id, None)
        return PresenceChange(relay=self._put(entry, state, connection))

    def _remove(self, client_id: int, clock: int | None = None) -> bytes:
        if client_id not in self._present:
            return b""
        present = self._drop(client_id)
        clock = present.clock if clock is None else clock
        self._gone[client_id] = clock
        if len(self._gone) > _REMEMBERED_GONE:
            self._gone.popitem(last=False)
        return encode_awareness([AwarenessEntry(client_id, clock, None)])

    def _put(
        self,
        entry: AwarenessEntry,
        state: dict[str, Any],
        owner: ConnectionId | None,
        instance: str = "",
    ) -> bytes:
        """Keep a state. Returns: it, for the others."""
        known = self._present.get(entry.client_id)
        shown = encode_awareness([AwarenessEntry(entry.client_id, entry.clock, state)])
        size_bytes = len(shown)
        total_bytes = self._size_bytes + size_bytes - (known.size_bytes if known else 0)
        if total_bytes > MAX_ROOM_BYTES:
            raise TooLarge("the room's awareness", total_bytes, MAX_ROOM_BYTES)
        self._size_bytes = total_bytes
        self._present[entry.client_id] = _Present(entry.clock, state, size_bytes, owner, instance)
        return shown

    def _drop(self, client_id: int) -> _Present:
        present = self._present.pop(client_id)
        self._size_bytes -= present.size_bytes
        return present


def _is_of(state: dict[str, Any], user: User) -> bool:
    shown = state.get("user")
    return isinstance(shown, dict) and shown.get("id") == user.id
