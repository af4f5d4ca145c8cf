"""What instances tell each other at once: one pub/sub connection to Redis, kept alive.

**Promise.** What is published on a channel after `subscribe` has returned is handed over once, in
order, until the connection is lost. Redis keeps nothing for those who are not there, so after every
loss `on_gap` is called, as soon as all channels are listened to again: what was missed has to be
read from the log, and from then on nothing is.

**Deafness.** A connection can be open at one end only. So each instance publishes a heartbeat, the
way everything else is published, and waits for it to come back. One that does not hear its own
throws the connection away and makes a new one. Heartbeats of others tell who is there.

**State.** Which channels this instance wants, and who else is there: in memory, and nobody else's.
Only `subscribe` ever waits for Redis.

redis-py's own `PubSub` is not used: it connects and subscribes anew without telling.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgpack
from redis import exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from crdt.errors import Unavailable
from server.tasks import end, heed_cancellation

log = logging.getLogger(__name__)

VERSION = 1
HEARTBEAT, GOODBYE = "h", "b"

SUBSCRIBE_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 2.0
PUBLISH_TIMEOUT_S = 2.0
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0
CHANNELS_IN_COMMAND = 500

ALL_OURS: dict[str, Any] = {
    "retry": Retry(NoBackoff(), 0),
    "health_check_interval": 0,
    "socket_timeout": None,
}
"""What redis-py leaves to us: to try again, to find out that nobody is at the other end, and to
wait no longer than we want to."""


class _Deaf(Exception):
    """The connection looks well, and none of our heartbeats came by it."""


class Bus:
    """The pub/sub connection of one instance."""

    def __init__(
        self,
        redis: Redis | RedisCluster,
        on_message: Callable[[str, bytes], None],
        on_gap: Callable[[], None],
        *,
        heartbeat_channel: str,
        instance: str,
        deaf_after_s: float = 5.0,
        heartbeat_every_s: float = 0.5,
        peer_timeout_s: float = 4.5,
        state: Callable[[], Any] | None = None,
        on_peer: Callable[[str, Any], None] | None = None,
        on_peer_lost: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is connected before `open`. A callback that raises is logged, and stops nothing.

        Args:
            redis: publishes the heartbeats, and says where Redis is. It stays the caller's.
            on_message: is given the channel and the data.
            on_gap: messages may have been lost, on any channel; all are confirmed again. Called
                as well when a channel is confirmed whose `subscribe` had given up.
            heartbeat_channel: the same for all. What else comes on it goes to `on_message`.
            instance: unique among those that run.
            deaf_after_s: without a heartbeat of our own for so long, the connection is made anew.
            peer_timeout_s: without one of another instance for so long, it is gone. Only time
                counts in which we heard our own.
            state: what others shall know, of msgpack's types; asked for each heartbeat.
            on_peer: is given another instance and its state, at each of its heartbeats.
            on_peer_lost: it said goodbye, or was not heard for too long.
        """
        self._redis = redis
        self._on_message = on_message
        self._on_gap = on_gap
        self._heartbeat_channel = heartbeat_channel
        self._instance = instance
        self._deaf_after_s = deaf_after_s
        self._heartbeat_every_s = heartbeat_every_s
        self._peer_timeout_s = peer_timeout_s
        self._state = state
        self._on_peer = on_peer
        self._on_peer_lost = on_peer_lost

        self._wanted: dict[str, None] = {heartbeat_channel: None}  # in order: heartbeats first
        self._confirmed: set[str] = set()
        self._overdue: set[str] = set()
        """Channels that were confirmed once, or whose `subscribe` gave up: `on_gap` is due when
        Redis has confirmed them all."""
        self._waiting: dict[str, asyncio.Future[None]] = {}

        self._is_connected = False
        self._orders: deque[tuple[str, str]] = deque()
        self._has_orders = asyncio.Event()
        self._unanswered: Counter[str] = Counter()
        """SUBSCRIBEs of a channel under way. The last one's answer counts: after an earlier one
        there is an UNSUBSCRIBE to come."""
        self._patience = asyncio.timeout(None)  # of the connection there is
        self._failures = 0  # since we heard last

        self._heard_at_s = self._hearing_since_s = time.monotonic()
        self._peers: dict[str, float] = {}
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

        self.publish_latency_s: float | None = None
        """How long Redis took to confirm the last heartbeat that it confirmed."""
        self.lag_s = 0.0
        """How long the last heartbeat of our own was under way, from us to us."""
        self._published_at_s = 0.0
        self.last_error: str | None = None
        """Why nothing is heard or published now. It may be shown to anybody."""
        self.publish_error: str | None = None
        """Why the last heartbeat could not be published, likewise. It went the way of everything
        that Redis is asked for."""

    async def open(self) -> None:
        """Start. Redis may be away."""
        self._heard_at_s = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._keep_listening(), name="bus listener"),
            asyncio.create_task(self._beat(), name="bus heartbeat"),
        ]

    async def close(self) -> None:
        """Say goodbye, and stop: nothing is handed over any more. Redis may be away."""
        self._closing.set()
        for channel in list(self._waiting):
            self._wake(channel)
        if not self._tasks:
            return
        listening, beating = self._tasks
        await end(listening)
        await end(beating, patience_s=2 * PUBLISH_TIMEOUT_S)  # it says goodbye

    # -- channels ---------------------------------------------------------------------------

    async def subscribe(self, channel: str, *, timeout_s: float = SUBSCRIBE_TIMEOUT_S) -> None:
        """Have everything handed over that is published on `channel` from now on.

        Raises:
            Unavailable: Redis has not confirmed it in time. The wish stays, until `unsubscribe`;
                `on_gap` is called when it has come true.
        """
        if channel not in self._wanted:
            self._wanted[channel] = None
            self._order("SUBSCRIBE", channel)
        try:
            async with asyncio.timeout(timeout_s):
                while channel not in self._confirmed:
                    if self._closing.is_set() or channel not in self._wanted:
                        raise Unavailable("nobody listens to live updates any more")
                    if (waiting := self._waiting.get(channel)) is None:
                        waiting = self._waiting[channel] = asyncio.Future()
                    await asyncio.shield(waiting)  # others may wait for it as well
        except TimeoutError:
            if channel in self._wanted:
                self._overdue.add(channel)
            raise Unavailable("live updates cannot be had now", retry_after_ms=1_000) from None

    def unsubscribe(self, channel: str) -> None:
        """Hand over nothing of `channel` any more."""
        if channel not in self._wanted or channel == self._heartbeat_channel:
            return
        del self._wanted[channel]
        self._confirmed.discard(channel)
        self._wake(channel)
        self._order("UNSUBSCRIBE", channel)

    def _wake(self, channel: str) -> None:
        """Have those look again who wait for a channel."""
        if (waiting := self._waiting.pop(channel, None)) is not None:
            waiting.set_result(None)

    def _order(self, command: str, channel: str) -> None:
        if not self._is_connected:
            return  # a new connection begins with everything that is wanted
        if command == "SUBSCRIBE":
            self._unanswered[channel] += 1
        self._orders.append((command, channel))
        self._has_orders.set()

    # -- health -----------------------------------------------------------------------------

    @property
    def deaf_s(self) -> float:
        """Seconds since a heartbeat of our own came back, or else since `open`."""
        return time.monotonic() - self._heard_at_s

    @property
    def is_deaf(self) -> bool:
        return self.deaf_s > self._deaf_after_s

    def hear_of(self, instance: str) -> None:
        """Another instance has said something on some channel. Who does so is there, and will be
        missed, even if none of its heartbeats has come yet."""
        self._peers[instance] = time.monotonic()

    @property
    def peers(self) -> Mapping[str, float]:
        """The other instances, and when they were heard last (`time.monotonic`)."""
        return MappingProxyType(self._peers)

    # -- listening --------------------------------------------------------------------------

    async def _keep_listening(self) -> None:
        while not self._closing.is_set():
            try:
                connection = await self._connect()
                try:
                    await self._listen(connection)
                finally:
                    await connection.disconnect(nowait=True)
            except* Exception as group:
                self._note_loss(group)
            bound_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._failures, 10))
            await asyncio.sleep(random.uniform(FIRST_RETRY_S, bound_s))

    async def _connect(self) -> AbstractConnection:
        """A connection of our own, which the client's pool does not know."""
        make: Callable[..., AbstractConnection]
        if isinstance(self._redis, RedisCluster):
            node = await self._any_node(self._redis)
            make, options = node.connection_class, node.connection_kwargs
        else:
            pool = self._redis.connection_pool
            make, options = pool.connection_class, pool.connection_kwargs
        connection = make(**{**options, **ALL_OURS})
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    @staticmethod
    async def _any_node(cluster: RedisCluster) -> ClusterNode:
        """Nodes pass on to each other what is published. This one may be dead, the next not."""
        await cluster.initialize()
        return random.choice(cluster.get_primaries())

    async def _listen(self, connection: AbstractConnection) -> None:
        """Hand over what comes, until the connection breaks or nothing of our own comes back."""
        self._orders.clear()
        self._unanswered.clear()
        self._overdue &= self._wanted.keys()
        self._is_connected = True
        self._hearing_since_s = time.monotonic()
        for channel in self._wanted:
            self._order("SUBSCRIBE", channel)
        try:
            async with asyncio.timeout(self._deaf_after_s) as self._patience:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._send_orders(connection))
                    tasks.create_task(self._read(connection))
        except TimeoutError:
            raise _Deaf from None
        finally:
            self._is_connected = False
            self._overdue |= self._confirmed
            self._confirmed.clear()

    async def _send_orders(self, connection: AbstractConnection) -> None:
        while True:
            heed_cancellation()
            await self._has_orders.wait()
            self._has_orders.clear()
            while self._orders:
                command = self._orders[0][0]
                channels: list[str] = []
                while (
                    self._orders
                    and self._orders[0][0] == command
                    and len(channels) < CHANNELS_IN_COMMAND
                ):
                    channels.append(self._orders.popleft()[1])
                await connection.send_command(command, *channels, check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            heed_cancellation()
            reply = await connection.read_response(
                disable_decoding=True,
                timeout=math.inf,
                disconnect_on_error=False,
                push_request=True,
            )
            match reply:
                case [b"message", bytes(channel), bytes(data)]:
                    self._take(channel.decode(), data)
                case [b"subscribe", bytes(channel), _]:
                    self._confirm(channel.decode())

    def _confirm(self, channel: str) -> None:
        self._unanswered[channel] -= 1
        if self._unanswered[channel]:
            return
        del self._unanswered[channel]
        if channel in self._wanted:
            self._confirmed.add(channel)
            self._wake(channel)
        if channel in self._overdue:
            self._overdue.discard(channel)
            if not self._overdue:
                self._call("after a gap", self._on_gap)

    def _take(self, channel: str, data: bytes) -> None:
        if channel == self._heartbeat_channel and self._take_heartbeat(data):
            return
        if channel in self._confirmed:
            self._call(f"with a message on {channel}", self._on_message, channel, data)

    def _note_loss(self, group: ExceptionGroup) -> None:
        cause: Exception = group
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        self.last_error = explain(cause)
        if not self._failures:
            is_foreseen = isinstance(cause, _Deaf | exceptions.RedisError | OSError)
            log.warning(
                "the bus does not hear Redis",
                extra={"cause": f"{self.last_error}: {cause}"},
                exc_info=None if is_foreseen else cause,
            )
        self._failures += 1

    # -- heartbeats -------------------------------------------------------------------------

    async def _beat(self) -> None:
        while not self._closing.is_set():
            await self._publish(HEARTBEAT, self._call("about its state", self._state))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_every_s):
                    await self._closing.wait()
        await self._publish(GOODBYE)

    async def _publish(self, kind: str, *more: Any) -> None:
        started_s = self._published_at_s = time.monotonic()
        try:
            data = msgpack.packb([VERSION, kind, self._instance, *more])
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                if isinstance(self._redis, RedisCluster):
                    # Left to itself, the client may ask the same dead node again and again.
                    node = await self._any_node(self._redis)
                    await self._redis.execute_command(
                        "PUBLISH", self._heartbeat_channel, data, target_nodes=node
                    )
                else:
                    await self._redis.publish(self._heartbeat_channel, data)
            self.publish_latency_s = time.monotonic() - started_s
            self.publish_error = None
        except (exceptions.RedisError, OSError) as exc:
            self.last_error = self.publish_error = explain(exc)
        except Exception:
            self.last_error = self.publish_error = explain(None)
            log.exception("a heartbeat could not be made")

    def _take_heartbeat(self, data: bytes) -> bool:
        """Returns: whether it is one."""
        try:
            message = msgpack.unpackb(data)
        except (ValueError, TypeError, msgpack.UnpackException):
            return False
        match message:
            case [1, "h", str(instance), state]:
                if instance == self._instance:
                    self._hear_our_own()
                else:
                    self.hear_of(instance)
                    self._call("about a peer", self._on_peer, instance, state)
            case [1, "b", str(instance)]:
                self._lose(instance)
            case _:
                return False
        return True

    def _hear_our_own(self) -> None:
        now_s = time.monotonic()
        silent_s, self._heard_at_s = now_s - self._heard_at_s, now_s
        self.lag_s = now_s - self._published_at_s
        if not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + self._deaf_after_s)
        if self._failures:
            log.info("the bus hears Redis again", extra={"after_s": round(silent_s, 1)})
        self._failures = 0
        self.last_error = None
        if silent_s > self._peer_timeout_s / 2:
            # Redis, this process or the network stood still. Others get their time from now.
            self._hearing_since_s = now_s
        since_s = now_s - self._peer_timeout_s
        for instance, heard_at_s in list(self._peers.items()):
            if max(heard_at_s, self._hearing_since_s) < since_s:
                self._lose(instance)

    def _lose(self, instance: str) -> None:
        if self._peers.pop(instance, None) is not None:
            self._call("about a peer that is gone", self._on_peer_lost, instance)

    def _call(self, what: str, callback: Callable[..., Any] | None, *args: Any) -> Any:
        """Call somebody whose failure must not make us deaf."""
        if callback is None:
            return None
        try:
            return callback(*args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of native code is no Exception
            log.exception("the bus was failed by who was called %s", what)


def explain(exc: BaseException | None) -> str:
    """What is wrong with Redis, in words that name no host."""
    match exc:
        case _Deaf():
            return "what is published does not come back from Redis"
        case exceptions.BusyLoadingError():
            return "Redis is loading its data"
        case exceptions.AuthenticationError() | exceptions.NoPermissionError():
            return "Redis refuses our credentials"
        case exceptions.TimeoutError() | TimeoutError():
            return "Redis does not answer"
        case exceptions.ConnectionError() | OSError():
            return "Redis cannot be reached"
        case exceptions.RedisError():
            return "Redis refuses what is asked of it"
    return "it failed, see the log"
