"""The bus between instances, on a real Redis: what it hands over, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from crdt.errors import Unavailable
from server.cluster.bus import Bus
from tests.helpers.ports import free_port
from tests.helpers.proxies import Proxy, proxied
from tests.helpers.redis_servers import RedisProcess
from tests.helpers.rooms import DEADLINE_S, until

ROOM, OTHER = (f"test-{secrets.token_hex(6)}:{name}" for name in ("room", "other"))
HASTY: dict[str, Any] = {"deaf_after_s": 0.5, "peer_timeout_s": 0.6}
"""Where it is a test's point that an instance gives up, it gives up early."""
PATIENCE_S = 20.0


def client_of(url: str, **options: Any) -> Redis:
    return Redis.from_url(
        url, **{"socket_timeout": 1.0, "retry": Retry(NoBackoff(), 0), "protocol": 2, **options}
    )


@dataclass
class Instance:
    """A bus, and what it has told."""

    redis: Any
    channel: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, bytes]] = field(default_factory=list)
    gaps: int = 0
    states: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bus = Bus(
            self.redis,
            lambda channel, data: self.on_message(channel, data),
            lambda: self.on_gap(),
            heartbeat_channel=self.channel,
            instance=self.name,
            on_peer=self.states.__setitem__,
            on_peer_lost=self.lost.append,
            **{"heartbeat_every_s": 0.02, **self.options},
        )

    def on_message(self, channel: str, data: bytes) -> None:
        self.messages.append((channel, data))

    def on_gap(self) -> None:
        self.gaps += 1

    def of(self, channel: str) -> list[bytes]:
        return [data for where, data in self.messages if where == channel]

    async def hears(self) -> None:
        """Wait until a heartbeat of its own comes back."""
        now_s = time.monotonic()
        await until(lambda: time.monotonic() - self.bus.deaf_s > now_s, PATIENCE_S)

    async def takes(self, redis: Redis, data: bytes = b"again", channel: str = ROOM) -> None:
        """Have it handed over what is published now, by one who gets it to Redis."""
        assert await redis.publish(channel, data)
        await until(lambda: data in self.of(channel))


Gym = Callable[..., Awaitable[Instance]]
"""Opens instances that belong together: `await gym("one")`."""


@asynccontextmanager
async def opened(url: str, **client_options: Any) -> AsyncIterator[Gym]:
    channel = f"test-{secrets.token_hex(6)}:all"
    async with AsyncExitStack() as stack:

        async def open_(name: str, at: str = url, **options: Any) -> Instance:
            redis = client_of(at, **client_options)
            stack.push_async_callback(redis.aclose)
            instance = Instance(redis, channel, name, options)
            await instance.bus.open()
            stack.push_async_callback(instance.bus.close)
            return instance

        yield open_


@pytest.fixture
async def gym(redis_server: str) -> AsyncIterator[Gym]:
    async with opened(redis_server) as gym:
        yield gym


@pytest.fixture
async def own_gym(redis_process: RedisProcess) -> AsyncIterator[Gym]:
    """On a Redis of the test's own."""
    async with opened(redis_process.url) as gym:
        yield gym


@pytest.fixture
async def proxy(redis_process: RedisProcess) -> AsyncIterator[Proxy]:
    """Stands before the Redis of the test's own."""
    async with proxied("127.0.0.1", redis_process.port) as proxy:
        yield proxy


@pytest.fixture
async def redis(redis_process: RedisProcess) -> AsyncIterator[Redis]:
    """A client of the Redis of the test's own, for what the test does there."""
    async with client_of(redis_process.url) as client:
        yield client


# -- messages ---------------------------------------------------------------------------------


async def test_what_is_published_is_handed_over_in_order(gym: Gym) -> None:
    one = await gym("one")
    await one.bus.subscribe(ROOM)
    sent = [str(number).encode() for number in range(500)]
    for data in sent:
        await one.redis.publish(ROOM, data)
    await until(lambda: len(one.messages) == 500)
    assert one.of(ROOM) == sent


async def test_nothing_is_missed_once_a_subscribe_has_returned(gym: Gym) -> None:
    one, two = await gym("one"), await gym("two")
    for number in range(100):
        await one.bus.subscribe(f"{ROOM}:{number}")
        assert await two.redis.publish(f"{ROOM}:{number}", b"hello") == 1
    await until(lambda: len(one.messages) == 100)


async def test_many_may_wait_for_the_same_channel(gym: Gym) -> None:
    one = await gym("one")
    await asyncio.gather(*(one.bus.subscribe(ROOM) for _ in range(10)))
    await one.takes(one.redis)
    assert len(one.messages) == 1


async def test_an_instance_hears_only_what_it_asked_for(gym: Gym) -> None:
    one, two = await gym("one"), await gym("two")
    await one.bus.subscribe(ROOM)
    await two.bus.subscribe(OTHER)
    await one.takes(one.redis, b"for one", ROOM)
    await two.takes(one.redis, b"for two", OTHER)
    assert (one.messages, two.messages) == ([(ROOM, b"for one")], [(OTHER, b"for two")])


async def test_nothing_is_handed_over_after_an_unsubscribe(gym: Gym) -> None:
    one = await gym("one")
    await one.bus.subscribe(ROOM)
    await one.bus.subscribe(OTHER)
    unread = asyncio.ensure_future(one.redis.publish(ROOM, b"late"))
    await asyncio.sleep(0)
    one.bus.unsubscribe(ROOM)
    await unread
    await one.takes(one.redis, b"after it", OTHER)
    assert one.of(ROOM) == []

    async def is_forgotten() -> bool:
        return dict(await one.redis.pubsub_numsub(ROOM)) == {ROOM.encode(): 0}

    await until_so(is_forgotten)


async def test_a_channel_that_is_left_and_joined_again_at_once_is_confirmed_by_the_last_answer(
    redis_process: RedisProcess, proxy: Proxy, redis: Redis, own_gym: Gym
) -> None:
    """The answer to the first SUBSCRIBE comes while the UNSUBSCRIBE is still on its way."""
    one = await own_gym("one", proxy.url(redis_process.url))
    await one.hears()
    proxy.latency(0.3, towards="server")
    proxy.latency(0.1, towards="client")
    first = asyncio.ensure_future(one.bus.subscribe(ROOM))

    async def is_asked_for() -> bool:
        return dict(await redis.pubsub_numsub(ROOM)) == {ROOM.encode(): 1}

    await until_so(is_asked_for)
    one.bus.unsubscribe(ROOM)
    await one.bus.subscribe(ROOM)
    assert (await redis.info("commandstats"))["cmdstat_unsubscribe"]["calls"] == 1
    await one.takes(redis)
    with contextlib.suppress(Unavailable):
        await first


async def test_who_waits_for_a_channel_that_another_leaves_is_told(
    redis_process: RedisProcess, proxy: Proxy, own_gym: Gym
) -> None:
    one = await own_gym("one", proxy.url(redis_process.url))
    await one.hears()
    proxy.black_hole(towards="client")
    waiting = asyncio.ensure_future(one.bus.subscribe(ROOM, timeout_s=60))
    await asyncio.sleep(0)
    one.bus.unsubscribe(ROOM)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Unavailable):
            await waiting


class Panic(BaseException):
    """What native code raises when it panics."""


@pytest.mark.parametrize("failure", [ValueError("poison"), Panic("poison")])
async def test_a_message_that_cannot_be_taken_stops_no_other(
    gym: Gym, failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    one = await gym("one")
    take = one.on_message

    def choke(channel: str, data: bytes) -> None:
        if data == b"poison":
            raise failure
        take(channel, data)

    one.on_message = choke  # type: ignore[method-assign]
    await one.bus.subscribe(ROOM)
    for data in (b"before", b"poison", b"after"):
        await one.redis.publish(ROOM, data)
    await until(lambda: b"after" in one.of(ROOM))
    assert one.of(ROOM) == [b"before", b"after"]
    [logged] = [entry for entry in caplog.records if entry.levelno >= logging.ERROR]
    assert ROOM in logged.getMessage()
    assert one.gaps == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xff" * 1_000,
        msgpack.packb([1, "h"]),
        msgpack.packb([1, "h", 5, None]),
        msgpack.packb([1, b"h", b"\xff", None]),
        msgpack.packb([2, "h", "two", None]),
        msgpack.packb([1, "u", 7]),
        msgpack.packb({"h": 1}),
    ],
)
async def test_what_is_no_heartbeat_among_the_heartbeats_is_handed_over(
    gym: Gym, data: bytes
) -> None:
    one = await gym("one")
    await one.hears()
    await one.takes(one.redis, data, one.channel)
    assert one.bus.peers == {}


# -- a Redis that is not there ----------------------------------------------------------------


async def test_it_opens_without_redis_and_keeps_what_was_wished_for(
    redis_process: RedisProcess, own_gym: Gym, redis: Redis
) -> None:
    redis_process.kill()
    one = await own_gym("one", **HASTY)
    with pytest.raises(Unavailable) as refused:
        await one.bus.subscribe(ROOM, timeout_s=0.05)
    assert refused.value.retry_after_ms
    await until(lambda: one.bus.is_deaf)
    assert one.bus.last_error == "Redis cannot be reached"
    assert one.bus.publish_latency_s is None
    redis_process.start()
    await until(lambda: one.gaps == 1, PATIENCE_S)
    await one.takes(redis)
    await one.hears()
    assert not one.bus.is_deaf
    assert one.bus.last_error is None
    assert one.bus.publish_latency_s is not None


async def test_a_first_connection_is_no_gap(gym: Gym) -> None:
    one = await gym("one")
    await one.bus.subscribe(ROOM)
    await one.hears()
    assert one.gaps == 0


async def test_a_redis_that_is_killed_and_comes_back_leaves_a_gap_and_nothing_else(
    redis_process: RedisProcess, own_gym: Gym, redis: Redis
) -> None:
    one = await own_gym("one")
    await one.bus.subscribe(ROOM)
    for gaps in (1, 2):
        redis_process.kill()
        await until(lambda: one.bus.last_error is not None)
        redis_process.start()
        await until(lambda gaps=gaps: one.gaps == gaps, PATIENCE_S)
        await one.takes(redis, f"after {gaps}".encode())
        assert one.gaps == gaps


async def test_a_channel_that_is_wished_for_meanwhile_is_had_afterwards(
    redis_process: RedisProcess, own_gym: Gym, redis: Redis
) -> None:
    one = await own_gym("one")
    await one.bus.subscribe(ROOM)
    redis_process.kill()
    await until(lambda: one.bus.last_error is not None)
    patient = asyncio.ensure_future(one.bus.subscribe(OTHER, timeout_s=PATIENCE_S))
    one.bus.unsubscribe(ROOM)
    redis_process.start()
    await patient
    await one.takes(redis, channel=OTHER)
    assert await redis.publish(ROOM, b"nobody") == 0


async def test_a_gap_is_told_when_everything_is_confirmed_again(
    redis_process: RedisProcess, own_gym: Gym, redis: Redis
) -> None:
    one = await own_gym("one")
    channels = [f"{ROOM}:{number}" for number in range(2_000)]
    await asyncio.gather(
        *(one.bus.subscribe(channel, timeout_s=PATIENCE_S) for channel in channels)
    )
    confirmed: list[int] = []
    one.on_gap = lambda: confirmed.append(len(one.bus._confirmed))  # type: ignore[method-assign]
    before = (await redis.info("commandstats"))["cmdstat_subscribe"]["calls"]
    await redis.client_kill_filter(_type="pubsub")
    await until(lambda: confirmed != [], PATIENCE_S)
    assert confirmed == [2_001]
    assert (await redis.info("commandstats"))["cmdstat_subscribe"]["calls"] - before <= 10
    for channel in channels[::100]:
        await one.takes(redis, channel=channel)


async def test_a_listener_that_is_killed_is_back_by_itself(
    own_gym: Gym, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one = await own_gym("one")
    await one.bus.subscribe(ROOM)
    await one.hears()
    for gaps in (1, 2, 3):
        await redis.client_kill_filter(_type="pubsub")
        await until(lambda gaps=gaps: one.gaps == gaps, PATIENCE_S)
        await one.takes(redis, f"after {gaps}".encode())


async def test_who_fails_to_deal_with_a_gap_is_told_of_the_next(own_gym: Gym, redis: Redis) -> None:
    one = await own_gym("one")
    told: list[int] = []

    def fail() -> None:
        told.append(1)
        raise ValueError("no way")

    one.on_gap = fail  # type: ignore[method-assign]
    await one.bus.subscribe(ROOM)
    for gaps in (1, 2):
        await redis.client_kill_filter(_type="pubsub")
        await until(lambda gaps=gaps: len(told) == gaps, PATIENCE_S)
    await one.takes(redis)


# -- a Redis that says nothing ----------------------------------------------------------------


async def test_a_redis_that_stands_still_makes_deaf_and_then_a_gap(
    redis_process: RedisProcess, own_gym: Gym, redis: Redis
) -> None:
    one = await own_gym("one", **HASTY)
    await one.bus.subscribe(ROOM)
    redis_process.pause()
    with pytest.raises(Unavailable):
        await one.bus.subscribe(OTHER, timeout_s=0.05)  # it is asked, and does not answer
    await until(lambda: one.bus.is_deaf)
    assert one.bus.deaf_s > 0.5
    await until(lambda: one.bus.last_error == "Redis does not answer", PATIENCE_S)
    redis_process.resume()
    await until(lambda: one.gaps >= 1, PATIENCE_S)
    await one.hears()
    await one.takes(redis)
    await one.takes(redis, channel=OTHER)


async def test_a_redis_that_pauses_its_clients_makes_deaf_and_then_a_gap(
    own_gym: Gym, redis: Redis
) -> None:
    one = await own_gym("one", **HASTY)
    await one.bus.subscribe(ROOM)
    await redis.client_pause(1_500)
    await until(lambda: one.bus.is_deaf)
    await until(lambda: one.gaps >= 1, PATIENCE_S)
    await one.hears()
    await one.takes(redis)


@pytest.mark.parametrize("towards", ["server", "client", None])
async def test_a_network_that_loses_everything_makes_deaf_and_then_a_gap(
    redis_process: RedisProcess, own_gym: Gym, redis: Redis, proxy: Proxy, towards: Any
) -> None:
    one = await own_gym("one", proxy.url(redis_process.url), **HASTY)
    await one.bus.subscribe(ROOM)
    await one.hears()
    proxy.black_hole(towards=towards)
    await until(lambda: one.bus.is_deaf)
    await until(lambda: one.bus.last_error is not None, PATIENCE_S)
    assert one.gaps == 0
    proxy.heal()
    await until(lambda: one.gaps >= 1, PATIENCE_S)
    await one.hears()
    await one.takes(redis)


async def test_a_connection_that_is_open_at_one_end_only_is_made_anew(
    redis_process: RedisProcess, redis: Redis, own_gym: Gym, proxy: Proxy
) -> None:
    """Publishing works, new connections work, and the old one never brings anything again."""
    one = await own_gym("one", proxy.url(redis_process.url), **HASTY)
    await one.bus.subscribe(ROOM)
    await one.hears()
    one.bus._redis = redis  # what it does from now on goes past the proxy
    proxy.black_hole()
    assert await redis.publish(ROOM, b"into the void") == 1
    await until(lambda: one.gaps >= 1, PATIENCE_S)
    assert one.of(ROOM) == []
    await one.takes(redis)


async def test_one_that_may_not_publish_takes_itself_for_deaf(own_gym: Gym, redis: Redis) -> None:
    await redis.execute_command("ACL SETUSER default -publish")
    one = await own_gym("one", **HASTY)
    await one.bus.subscribe(ROOM)
    await until(lambda: one.bus.is_deaf)
    assert one.bus.last_error == "Redis refuses our credentials"
    await until(lambda: one.gaps >= 2, PATIENCE_S)  # it connects again and again
    await redis.execute_command("ACL SETUSER default +publish")
    await one.hears()
    assert one.bus.last_error is None


async def test_a_listener_that_redis_cut_for_being_slow_is_back_with_a_gap(
    redis_process: RedisProcess, own_gym: Gym, redis: Redis, proxy: Proxy
) -> None:
    await redis.config_set("client-output-buffer-limit", "pubsub 1mb 512kb 5")
    one = await own_gym("one", proxy.url(redis_process.url), deaf_after_s=60)
    await one.bus.subscribe(ROOM)
    await one.hears()
    proxy.black_hole(towards="client")
    sent = 0
    # As much as the networks on the way hold, and then as much as Redis does.
    while await redis.publish(ROOM, sent.to_bytes(4) + bytes(500_000)):
        sent += 1
        assert sent < 1_000
    proxy.heal()
    await until(lambda: one.gaps == 1, PATIENCE_S)
    got = [int.from_bytes(data[:4]) for data in one.of(ROOM)]
    assert got == list(range(len(got)))
    assert len(got) < sent
    await one.takes(redis)


async def test_nothing_is_lost_while_it_is_only_slow(
    redis_process: RedisProcess, own_gym: Gym, redis: Redis, proxy: Proxy
) -> None:
    one = await own_gym("one", proxy.url(redis_process.url))
    await one.bus.subscribe(ROOM)
    proxy.latency(0.1, jitter_s=0.05)
    proxy.slicer(7)
    sent = [secrets.token_bytes(50) for _ in range(20)]
    for data in sent:
        await redis.publish(ROOM, data)
    await until(lambda: len(one.messages) == 20, PATIENCE_S)
    assert one.of(ROOM) == sent
    assert one.gaps == 0
    await until(lambda: (one.bus.publish_latency_s or 0) > 0.1, PATIENCE_S)


async def test_a_connection_that_hears_is_kept(gym: Gym, caplog: pytest.LogCaptureFixture) -> None:
    one = await gym("one", heartbeat_every_s=0.01)
    await one.hears()
    patience = one.bus._patience
    for _ in range(50):
        await one.hears()
    assert one.bus._patience is patience
    assert caplog.records == []


# -- who else is there ------------------------------------------------------------------------


async def test_instances_see_each_other_and_what_they_tell(gym: Gym) -> None:
    one = await gym("one", state=lambda: {"rooms": 3})
    two = await gym("two", state=lambda: ["ready"])
    await until(lambda: one.states == {"two": ["ready"]} and two.states == {"one": {"rooms": 3}})
    assert one.bus.peers.keys() == {"two"}
    assert one.bus.peers["two"] <= time.monotonic()


async def test_how_long_a_heartbeat_is_under_way_is_known(gym: Gym) -> None:
    before_s = time.monotonic()
    one = await gym("one")
    await until(lambda: one.bus.lag_s > 0)
    assert one.bus.lag_s <= time.monotonic() - before_s


async def test_a_state_that_cannot_be_told_costs_no_heartbeat(gym: Gym) -> None:
    def state() -> Any:
        raise ValueError("not now")

    one, two = await gym("one", state=state), await gym("two")
    await until(lambda: two.states == {"one": None})
    await one.hears()


async def test_who_closes_says_goodbye(gym: Gym) -> None:
    one, two = await gym("one"), await gym("two")
    await until(lambda: "two" in one.states)
    await two.bus.close()
    await until(lambda: one.lost == ["two"])
    assert one.bus.peers == {}


async def test_who_is_cut_off_is_lost_by_the_others_and_loses_nobody(
    redis_process: RedisProcess, own_gym: Gym, proxy: Proxy
) -> None:
    one = await own_gym("one", **HASTY)
    two = await own_gym("two", proxy.url(redis_process.url), **HASTY)
    await until(lambda: "two" in one.states and "one" in two.states)
    proxy.black_hole()
    await until(lambda: one.lost == ["two"])
    await until(lambda: two.bus.deaf_s > 1.2)
    proxy.heal()
    await two.hears()
    await until(lambda: "two" in one.bus.peers)
    assert two.lost == []
    assert one.lost == ["two"]


async def test_while_redis_stands_still_nobody_is_lost(
    redis_process: RedisProcess, own_gym: Gym
) -> None:
    one, two = [await own_gym(name, peer_timeout_s=0.3) for name in ("one", "two")]
    await until(lambda: "two" in one.states and "one" in two.states)
    redis_process.pause()
    await until(lambda: one.bus.deaf_s > 0.6 and two.bus.deaf_s > 0.6)
    redis_process.resume()
    await one.hears()
    await two.hears()
    await until(lambda: "two" in one.bus.peers and "one" in two.bus.peers)
    assert (one.lost, two.lost) == ([], [])


# -- a Redis Cluster --------------------------------------------------------------------------


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[RedisProcess]]:
    """A Redis Cluster of two nodes, each with half of the slots."""
    ports = [free_port(also_above=10_000) for _ in range(2)]
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
    nodes = [RedisProcess(tmp_path / str(port), port, options).start() for port in ports]
    async with client_of(nodes[0].url) as one, client_of(nodes[1].url) as two:
        await one.execute_command("CLUSTER ADDSLOTS", *range(8_192))
        await two.execute_command("CLUSTER ADDSLOTS", *range(8_192, 16_384))
        await one.execute_command("CLUSTER MEET", "127.0.0.1", ports[1])

        async def is_whole() -> bool:
            told = [await node.execute_command("CLUSTER INFO") for node in (one, two)]
            return all(each["cluster_state"] == "ok" for each in told)

        await until_so(is_whole)
    yield nodes
    for node in nodes:
        node.kill()


async def test_in_a_cluster_every_node_is_heard(nodes: list[RedisProcess]) -> None:
    async with AsyncExitStack() as stack:
        cluster = RedisCluster("127.0.0.1", nodes[0].port, socket_timeout=1.0, protocol=2)
        stack.push_async_callback(cluster.aclose)
        one = Instance(cluster, f"{ROOM}:all", "one", HASTY)
        await one.bus.open()
        stack.push_async_callback(one.bus.close)
        await one.bus.subscribe(ROOM, timeout_s=PATIENCE_S)
        clients = [await stack.enter_async_context(client_of(node.url)) for node in nodes]
        for number, client in enumerate(clients):
            await client.publish(ROOM, str(number).encode())
            await until(lambda number=number: len(one.messages) == number + 1)
        assert one.of(ROOM) == [b"0", b"1"]
        await one.hears()

        listened_to = [await client.client_list(_type="pubsub") != [] for client in clients]
        assert sorted(listened_to) == [False, True]
        killed = nodes[listened_to.index(True)]
        killed.kill()
        await until(lambda: one.gaps >= 1, PATIENCE_S)
        survivor = clients[listened_to.index(False)]
        await survivor.publish(ROOM, b"after it")
        await until(lambda: b"after it" in one.of(ROOM))
        await one.hears()
        assert not one.bus.is_deaf

        killed.start()  # the client ends in order with all of its nodes only

        async def is_whole() -> bool:
            return bool(await cluster.set("a", 1) and await cluster.set("b", 1))

        await until_so(is_whole)
        await one.hears()


# -- the end ----------------------------------------------------------------------------------


async def test_after_its_end_nothing_is_handed_over_or_promised(gym: Gym) -> None:
    one = await gym("one")
    await one.bus.subscribe(ROOM)
    await one.bus.close()
    await one.bus.close()

    async def is_forgotten() -> bool:
        return dict(await one.redis.pubsub_numsub(ROOM)) == {ROOM.encode(): 0}

    await until_so(is_forgotten)
    await one.redis.publish(ROOM, b"late")
    assert one.messages == []
    with pytest.raises(Unavailable):
        await one.bus.subscribe(OTHER)


async def test_it_ends_while_redis_is_away_or_says_nothing(
    redis_process: RedisProcess, own_gym: Gym
) -> None:
    still, away = await own_gym("still"), await own_gym("away")
    await still.hears()
    waiting = asyncio.ensure_future(away.bus.subscribe(ROOM))
    redis_process.pause()
    async with asyncio.timeout(DEADLINE_S):
        await still.bus.close()
        redis_process.kill()
        await away.bus.close()
    with contextlib.suppress(Unavailable):
        await waiting


async def test_one_that_was_never_opened_can_be_closed(redis_server: str) -> None:
    async with client_of(redis_server) as redis:
        await Instance(redis, ROOM, "one").bus.close()


# -- what is told of it -----------------------------------------------------------------------


async def test_what_is_wrong_is_told_without_names_of_hosts(
    redis_process: RedisProcess, redis: Redis, own_gym: Gym, caplog: pytest.LogCaptureFixture
) -> None:
    one = await own_gym("one")
    await one.hears()
    await redis.config_set("requirepass", "geheim")
    await redis.client_kill_filter(_type="pubsub", skipme=True)
    await redis.client_kill_filter(_type="normal", skipme=True)
    await until(lambda: one.bus.last_error == "Redis refuses our credentials")
    await redis.config_set("requirepass", "")
    await one.hears()
    assert one.bus.last_error is None
    redis_process.kill()
    await until(lambda: one.bus.last_error == "Redis cannot be reached")
    assert len([entry for entry in caplog.records if entry.levelno >= logging.WARNING]) == 2


async def test_a_redis_of_the_newer_protocol_is_understood_as_well(redis_server: str) -> None:
    async with opened(redis_server, protocol=3, decode_responses=True) as gym:
        one = await gym("one")
        await one.bus.subscribe(ROOM)
        await one.takes(one.redis, b"\xff")
        await one.hears()


async def until_so(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until Redis says that it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(RedisError):
                if await condition():
                    return
            await asyncio.sleep(0.005)
