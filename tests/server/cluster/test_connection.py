"""Addresses of Redis, and what counts as Redis being away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection
from redis.exceptions import AuthenticationError, ResponseError

from crdt import ids
from server.cluster.connection import (
    ERRORS,
    MAX_CONNECTIONS,
    Connection,
    NotNow,
    RedisUrlError,
    connect,
    unavailable,
)
from server.cluster.log import Head, Missing, RedisLog
from tests.helpers.redis_servers import RedisProcess, SentinelProcess
from tests.helpers.rooms import DEADLINE_S, idle

DOC = ids.workout("leg-day")


@asynccontextmanager
async def connected(url: str, timeout_s: float = 10) -> AsyncIterator[Connection]:
    client = connect(url, timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.aclose()


# -- addresses ------------------------------------------------------------------------------------


def options(url: str) -> dict[str, Any]:
    """What connections of a client are made with."""
    found: dict[str, Any] = connect(url, timeout_s=2.5).get_connection_kwargs()
    return found


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:1",
        "rediss://h:1",
        "unix:///run/redis.sock",
        "redis+sentinel://h:1,g:2/service",
        "rediss+sentinel://h/service",
        "redis+cluster://h:1,g:2",
        "rediss+cluster://h",
    ],
)
def test_no_client_repeats_a_command_or_waits_without_end(url: str) -> None:
    client, found = connect(url, timeout_s=2.5), options(url)
    retry = client.retry if isinstance(client, RedisCluster) else found["retry"]
    assert retry.get_retries() == 0
    assert (found["socket_timeout"], found["socket_connect_timeout"]) == (2.5, 2.5)
    assert found["health_check_interval"] == 0


def test_a_single_server_may_have_everything() -> None:
    found = options("redis://ana:p%40ss@h:7/3?socket_keepalive=no")
    assert (found["host"], found["port"], found["db"]) == ("h", 7, 3)
    assert (found["username"], found["password"]) == ("ana", "p@ss")


def test_tls_and_sockets_are_told_by_the_scheme() -> None:
    client = connect("rediss://h?ssl_ca_certs=/ca.pem")
    assert isinstance(client, Redis)
    assert client.connection_pool.connection_class is SSLConnection
    assert client.get_connection_kwargs()["ssl_ca_certs"] == "/ca.pem"
    client = connect("unix:///run/redis.sock")
    assert client.connection_pool.connection_class is UnixDomainSocketConnection
    assert client.get_connection_kwargs()["path"] == "/run/redis.sock"
    client = connect("rediss+sentinel://h/service?ssl_ca_certs=/ca.pem")
    assert client.connection_pool.connection_class is SentinelManagedSSLConnection


def test_sentinels_are_named_with_their_service() -> None:
    client = connect("redis+sentinel://ana:p%2Cass@h,[::1]:7,g:8/my-service/3")
    assert isinstance(client, Redis)
    pool = client.connection_pool
    assert pool.service_name == "my-service"
    at = [one.get_connection_kwargs() for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in at] == [("h", 26379), ("::1", 7), ("g", 8)]
    found = client.get_connection_kwargs()
    assert (found["username"], found["password"], found["db"]) == ("ana", "p,ass", 3)


def test_nodes_of_a_cluster_are_named() -> None:
    client = connect("rediss+cluster://ana:pass@h,g:8")
    assert isinstance(client, RedisCluster)
    assert [node.name for node in client.nodes_manager.startup_nodes.values()] == ["h:6379", "g:8"]
    found = client.get_connection_kwargs()
    assert (found["username"], found["password"]) == ("ana", "pass")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "secret",
        "http://ana:secret@h",
        "redis://ana:secret@h:port",
        "redis://ana:secret@h:99999",
        "redis://ana:secret@h?nonsense=1",
        "redis://ana:secret@h?socket_timeout=soon",
        "redis://[ana:secret@h",
        "redis+sentinel://ana:secret@h:1",
        "redis+sentinel://ana:secret@h:1/",
        "redis+sentinel://ana:secret@h:1/service/x",
        "redis+sentinel://ana:secret@h:1/service/1/2",
        "redis+sentinel://ana:secret@/service",
        "redis+sentinel://ana:secret@h,,g/service",
        "redis+sentinel://ana:secret@h:x/service",
        "redis+sentinel://ana:secret@h/service?nonsense=1",
        "redis+cluster://",
        "redis+cluster://ana:secret@h/3",
        "redis+cluster://ana:secret@h?nonsense=1",
        "valkey+cluster://ana:secret@h",
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RedisUrlError) as refused:
        connect(url)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


# -- real servers ---------------------------------------------------------------------------------


@pytest.fixture(params=["redis_server", "redis_cluster"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


async def test_more_commands_than_connections_wait_for_each_other(url: str, prefix: str) -> None:
    async with connected(url) as client:
        log = RedisLog(client, prefix)
        await log.found(DOC, 0, exists=True)
        heads = await asyncio.gather(*(log.head(DOC) for _ in range(5 * MAX_CONNECTIONS)))
        assert len(set(heads)) == 1
        assert int((await client.info("clients"))["connected_clients"]) <= MAX_CONNECTIONS + 20


async def test_a_command_ends_when_its_task_is_cancelled(url: str, prefix: str) -> None:
    async with connected(url) as client:

        async def forever() -> None:
            while True:
                await RedisLog(client, prefix).length(DOC)

        for rounds in range(40):
            task = asyncio.create_task(forever())
            await idle(20 + rounds)
            task.cancel()
            await asyncio.wait({task}, timeout=DEADLINE_S)
            assert task.cancelled()


@pytest.fixture
def sentinel(redis_process: RedisProcess, tmp_path: Path) -> Iterator[RedisProcess]:
    """A Sentinel that watches `redis_process`, by the name of `gym`."""
    process = SentinelProcess(tmp_path / "sentinel", watches=redis_process, service="gym").start()
    yield process
    process.kill()


async def test_a_server_is_found_by_its_sentinel(sentinel: RedisProcess, prefix: str) -> None:
    url = sentinel.url.replace("redis://", "redis+sentinel://127.0.0.1:1,") + "/gym"
    async with connected(url) as client:
        log = RedisLog(client, prefix)
        head = await log.found(DOC, 4, exists=True)
        appends = [
            log.append(DOC, b"x", epoch=head.epoch, origin=f"o{i}", n=1)
            for i in range(2 * MAX_CONNECTIONS)
        ]
        assert len(set(await asyncio.gather(*appends))) == 2 * MAX_CONNECTIONS


async def test_a_service_that_no_sentinel_knows_is_away(sentinel: RedisProcess) -> None:
    url = sentinel.url.replace("redis://", "redis+sentinel://") + "/another"
    async with connected(url) as client:
        with pytest.raises(ERRORS):
            await client.ping()


# -- away -----------------------------------------------------------------------------------------


async def founded(log: RedisLog) -> Head:
    return await log.found(DOC, 0, exists=True)


async def first_error(call: Callable[[], Awaitable[Any]]) -> ResponseError:
    """What a call raises that succeeds for a while."""
    async with asyncio.timeout(10):
        while True:
            try:
                await call()
            except ResponseError as exc:
                return exc


async def append(log: RedisLog, head: Head, *, creates: bool = False) -> int:
    return await log.append(DOC, b"x", epoch=head.epoch, origin="a", n=1, creates=creates)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
async def test_nobody_there_is_away(scheme: str) -> None:
    service = "/service" if scheme == "redis+sentinel" else ""
    async with connected(f"{scheme}://127.0.0.1:1{service}") as client:
        with pytest.raises(ERRORS) as failed:
            await founded(RedisLog(client))
        assert unavailable(failed.value)


async def test_what_was_appended_outlives_redis_and_is_not_appended_again(
    redis_process: RedisProcess,
) -> None:
    async with connected(redis_process.url) as client:
        log = RedisLog(client)
        head = await founded(log)
        assert await append(log, head) == 1
        redis_process.kill()
        with pytest.raises(ERRORS):
            await append(log, head)
        redis_process.start()
        assert await append(log, head) == 1
        assert await log.length(DOC) == 1


async def test_a_redis_that_hangs_is_away_and_what_it_was_asked_is_done_once(
    redis_process: RedisProcess,
) -> None:
    async with (
        connected(redis_process.url) as patient,
        connected(redis_process.url, timeout_s=1) as client,
    ):
        log = RedisLog(patient)
        head = await log.found(DOC, 0, exists=False)
        with pytest.raises(Missing):  # from now on Redis has the script
            await append(log, head)
        assert await RedisLog(client).head(DOC) == head
        redis_process.pause()
        with pytest.raises(ERRORS):
            await append(RedisLog(client), head, creates=True)
        redis_process.resume()
        async with asyncio.timeout(DEADLINE_S):
            while await log.length(DOC) == 0:
                pass
        assert await append(log, head, creates=True) == 1
        assert await log.length(DOC) == 1


async def test_a_redis_that_has_lost_everything_says_so(redis_process: RedisProcess) -> None:
    async with connected(redis_process.url) as client:
        log = RedisLog(client)
        head = await founded(log)
        redis_process.kill()
        await idle()  # connections end
        redis_process.lose_everything()
        redis_process.start()
        assert await log.head(DOC) is None
        assert (await founded(log)).epoch != head.epoch


async def test_a_redis_without_memory_is_away_and_has_written_nothing(
    redis_process: RedisProcess,
) -> None:
    async with connected(redis_process.url) as client:
        log = RedisLog(client)
        head = await founded(log)
        await client.config_set("maxmemory", 1)
        with pytest.raises(ERRORS) as failed:
            await append(log, head)
        assert unavailable(failed.value)
        with pytest.raises(ERRORS):
            await log.announce([DOC])
        await client.config_set("maxmemory", 0)
        assert await log.head(DOC) == head
        assert await append(log, head) == 1


async def test_a_replica_is_away(redis_process: RedisProcess) -> None:
    async with connected(redis_process.url) as client:
        log = RedisLog(client)
        head = await founded(log)
        await client.replicaof("127.0.0.1", 1)
        with pytest.raises(ERRORS):
            await append(log, head)
        with pytest.raises(Exception) as failed:
            await log.trim(DOC, upto=1_000)
        assert unavailable(failed.value)


async def test_a_redis_that_is_busy_with_a_script_is_away(redis_process: RedisProcess) -> None:
    async with connected(redis_process.url) as client, connected(redis_process.url) as other:
        log = RedisLog(client)
        head = await founded(log)
        await client.config_set("lua-time-limit", 1)
        forever = asyncio.create_task(other.eval("while true do end", 0))
        assert isinstance(await first_error(lambda: client.get("x")), NotNow)
        with pytest.raises(NotNow):
            await append(log, head)
        await client.script_kill()
        with pytest.raises(ResponseError) as failed:
            await forever
        assert unavailable(failed.value)
        assert await append(log, head) == 1


async def test_a_wrong_password_is_away(redis_process: RedisProcess) -> None:
    async with connected(redis_process.url) as client:
        await client.config_set("requirepass", "right")
    async with connected(redis_process.url.replace("//", "//:wrong@")) as client:
        with pytest.raises(AuthenticationError) as failed:
            await client.ping()
        assert unavailable(failed.value)
    async with connected(redis_process.url.replace("//", "//:right@")) as client:
        assert await client.ping()


async def test_nonsense_is_our_fault(redis_process: RedisProcess) -> None:
    async with connected(redis_process.url) as client:
        await client.set("x", "OOM")
        with pytest.raises(ResponseError) as failed:
            await client.xlen("x")
        assert not unavailable(failed.value)
        assert not unavailable(ValueError("OOM command not allowed"))
