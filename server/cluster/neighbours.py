"""What instances tell each other beside the log: who is in a room, what they show, who is invited,
who is put out, and how far a log is in MongoDB.

**What is promised.** What is told reaches the others at once, or is lost: nothing here lasts. So
all that a room shows is told again when somebody asks, when a channel may have left something out,
and every `REPEAT_EVERY_S`; and an instance that is not heard of takes along all who were there.

**Who owns what.** What is here is the hub's; this owns only the queue of what goes out. It is
bounded: what is left out of it is made up for by the next repetition.

A message is `[1, "n", sealed]`; sealed, for its channel, is `[instance, what, ...]`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgpack

from crdt.access import User
from crdt.elsewhere import Guest
from crdt.errors import RepSyncError
from crdt.hub import RoomHub
from crdt.ids import ConnectionId, DocName, UserId
from crdt.revocations import Revocation
from server.cluster.connection import AWAY
from server.cluster.envelope import Malformed, Sealer
from server.cluster.log import RedisLog
from server.tasks import end

log = logging.getLogger(__name__)

MAX_QUEUE = 10_000
MAX_REVOKED = 100
REPEAT_EVERY_S = 10.0
ROOMS_AT_ONCE = 200
AT_ONCE = 64
NOBODY = b"\x00"
"""An awareness update without a state."""


def pack_message(sealer: Sealer, channel: str, message: list[Any]) -> bytes:
    """`[instance, what, ...]` as it is sent."""
    packed: bytes = msgpack.packb(message)
    told: bytes = msgpack.packb([1, "n", sealer.seal(packed, channel.encode())])
    return told


class Here(Protocol):
    """What an instance does for its own clients because another says so."""

    def apply_revocation(self, revocation: Revocation) -> None: ...

    def reload_revocations(self) -> None: ...

    def tell_user_here(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None: ...


class ClusterNeighbours:
    """The other instances, over Redis's channels.

    Args:
        instance: what this one is called.
        persisted: called with (channel, epoch, position) when a log is known to be in MongoDB.
        hear_of: called with another instance whenever it says something.
    """

    def __init__(
        self,
        redis_log: RedisLog,
        sealer: Sealer,
        instance: str,
        persisted: Callable[[str, str, int], None],
        hear_of: Callable[[str], None],
    ) -> None:
        self._log = redis_log
        self._sealer = sealer
        self._instance = instance
        self._persisted = persisted
        self._hear_of = hear_of
        self._queue: deque[tuple[DocName | None, list[Any]]] = deque(maxlen=MAX_QUEUE)
        self._revoked: deque[Revocation] = deque(maxlen=MAX_REVOKED)
        """The last ones that were made here, in case the others have not heard."""
        self._filled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, hub: RoomHub, here: Here) -> None:
        self._hub = hub
        self._here = here
        self._tasks = [
            asyncio.create_task(self._send(), name="neighbours"),
            asyncio.create_task(self._repeat(), name="presence"),
        ]

    async def close(self) -> None:
        await end(*self._tasks)

    # -- telling ----------------------------------------------------------------------------

    def joined(
        self, doc: DocName, connection_id: ConnectionId, user: User, device: Mapping[str, str]
    ) -> None:
        self._tell(doc, "+", connection_id, user.id, user.name, dict(device))

    def left(self, doc: DocName, connection_id: ConnectionId, awareness: bytes) -> None:
        self._tell(doc, "-", connection_id, awareness)

    def aware(self, doc: DocName, awareness: bytes) -> None:
        self._tell(doc, "a", awareness)

    def opened(self, doc: DocName) -> None:
        """A room is in memory here now: who is there?"""
        self._tell(doc, "?")

    def invited(self, user_id: UserId, event: str, payload: Mapping[str, Any]) -> None:
        """Something for a user's own devices, wherever they are."""
        self._tell(None, "t", user_id, event, dict(payload))

    def revoked(self, revocation: Revocation) -> None:
        self._revoked.append(revocation)
        self._tell_revoked(revocation)

    def _tell_revoked(self, revocation: Revocation) -> None:
        self._tell(
            None,
            "r",
            revocation.kind,
            revocation.id,
            revocation.until_ms,
            revocation.issued_until_ms,
        )

    def moved(self, doc: DocName, epoch: str, upto: int) -> None:
        """A log is in MongoDB up to this position."""
        self._tell(doc, "m", epoch, upto)

    def missed(self) -> None:
        """The channels may have left something out."""
        for revocation in self._revoked:
            self._tell_revoked(revocation)
        for live in list(self._hub.live):
            self._show(live.name)
            self._tell(live.name, "?")

    def gone(self, instance: str) -> None:
        """An instance has not been heard of for too long, or has said goodbye."""
        self._hub.instance_left(instance)

    def _show(self, doc: DocName) -> None:
        """Tell all that a room has here."""
        live = self._hub.find(doc)
        if live is None:
            return
        sockets = [
            [id_, here.user.id, here.user.name, dict(here.device)]
            for id_, here in live.connections.items()
        ]
        self._tell(doc, "=", sockets, live.presence.everybody(here=True))

    def _tell(self, doc: DocName | None, *what: Any) -> None:
        self._queue.append((doc, [self._instance, *what]))
        self._filled.set()

    async def _send(self) -> None:
        while True:
            await self._filled.wait()
            batch = [self._queue.popleft() for _ in range(min(AT_ONCE, len(self._queue)))]
            if not self._queue:
                self._filled.clear()
            for doc, message in batch:
                try:
                    channel = self._log.channel(doc)
                    await self._log.publish(doc, pack_message(self._sealer, channel, message))
                except AWAY:
                    break  # told again when it is back

    async def _repeat(self) -> None:
        """Tell again who is here, room by room, for those who have missed it."""
        while True:
            await asyncio.sleep(REPEAT_EVERY_S)
            names = [live.name for live in self._hub.live if live.connections]
            for start in range(0, len(names), ROOMS_AT_ONCE):
                for name in names[start : start + ROOMS_AT_ONCE]:
                    self._show(name)
                await asyncio.sleep(0.1)

    # -- being told -------------------------------------------------------------------------

    def heard(self, channel: str, doc: DocName | None, sealed: bytes) -> None:
        """A message from another instance, or our own.

        Raises:
            Malformed: it is none.
        """
        try:
            message = msgpack.unpackb(self._sealer.open(sealed, channel.encode()))
            instance, what, *rest = message
        except (ValueError, TypeError, msgpack.UnpackException) as exc:
            raise exc if isinstance(exc, Malformed) else Malformed("not a message") from exc
        if what == "m":
            self._persisted(channel, *rest)
            return
        if instance == self._instance:
            return
        self._hear_of(str(instance))
        try:
            if doc is not None:
                self._heard_of_room(instance, doc, what, rest)
            elif what == "t":
                self._here.tell_user_here(*rest)
            elif what == "r":
                self._here.apply_revocation(Revocation(*rest))
        except (TypeError, ValueError, RepSyncError) as exc:
            raise Malformed(f"{what!r} says nothing: {exc}") from exc

    def _heard_of_room(self, instance: str, doc: DocName, what: str, rest: list[Any]) -> None:
        hub = self._hub
        match what:
            case "+":
                id_, user_id, name, device = rest
                hub.guest_came(doc, instance, id_, Guest(User(user_id, name), device))
            case "-":
                id_, awareness = rest
                hub.guest_left(doc, instance, id_)
                if awareness:
                    hub.guest_aware(doc, instance, awareness)
            case "a":
                hub.guest_aware(doc, instance, *rest)
            case "?":
                live = hub.find(doc)
                if live is not None and live.connections:
                    self._show(doc)
            case "=":
                sockets, awareness = rest
                there = {id_ for id_, *_ in sockets}
                for id_ in hub.guests_of(doc, instance):
                    if id_ not in there:
                        hub.guest_left(doc, instance, id_)
                known = set(hub.guests_of(doc, instance))
                for id_, user_id, name, device in sockets:
                    if id_ not in known:
                        hub.guest_came(doc, instance, id_, Guest(User(user_id, name), device))
                hub.guest_aware(doc, instance, awareness or NOBODY, is_all=True)
