"""Connections to Redis: one address for a single server, Sentinel or a Redis Cluster.

A client that `connect` returns tries each command once: whether it may be repeated is known to the
caller alone. When Redis cannot do it now, it raises one of `ERRORS`; that Redis is away is not
noticed before the first command. The client owns its connections; `aclose` ends them.
"""

from __future__ import annotations

import asyncio
import builtins
import re
from collections.abc import Awaitable
from typing import Any, TypeAlias, TypeVar
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection as Socket
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    ClusterError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from server.storage.port import StorageError

T = TypeVar("T")

Connection: TypeAlias = Redis | RedisCluster

DEFAULT_TIMEOUT_S = 1.0
MAX_CONNECTIONS = 64
"""For each server. A command holds one until it is answered; who finds none waits."""
SENTINEL_PORT = 26379
REDIS_PORT = 6379


class RedisUrlError(StorageError, ValueError):
    """The address of Redis cannot be read. The text does not repeat it: it may hold a password."""


class NotNow(ResponseError):
    """Redis answers, and does not do it now: its memory or disk is full, it is a replica now, it
    is busy with a script or was told to stop ours."""


ERRORS: tuple[type[Exception], ...] = (
    ConnectionError,  # BusyLoadingError as well, and a password that is wrong
    TimeoutError,
    NotNow,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
    ClusterDownError,
    ClusterError,
    RedisClusterException,
)
"""Redis cannot do it now. What was asked may have been done all the same, after the connection
broke or the time was over."""

AWAY: tuple[type[Exception], ...] = (*ERRORS, builtins.TimeoutError)
"""The same, or it took longer than the caller would wait."""

# Redis 6 tells a script's errors inside a text of its own: `ERR Error running script (call to ...):
# @user_script:12: ... -OOM command not allowed ...`. Codes that redis-py has no class for are here
# as well.
_NOT_NOW = re.compile(
    r"(?:^|-|: )(?:OOM|READONLY|MISCONF|NOREPLICAS|LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN)\b"
    r"|Script killed by user"
)


def unavailable(exc: BaseException) -> bool:
    """Whether it says that Redis cannot do it now, and not that we asked for nonsense."""
    if isinstance(exc, ERRORS):
        return True
    return isinstance(exc, ResponseError) and _NOT_NOW.search(str(exc)) is not None


def connect(url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Connection:
    """A client for the Redis at `url`. Nothing is connected yet. `initialize` it before `pubsub`: a
    cluster's client must know the nodes.

    Args:
        url: `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS, `unix://path`;
            `redis+sentinel://[user:password@]host:port,.../service[/db]`;
            `redis+cluster://[user:password@]host:port,...`; `rediss+...` of both. What comes after
            a `?` are options of redis-py, such as `ssl_ca_certs=path`.
        timeout_s: for connecting, and for the answer to each command.

    Raises:
        RedisUrlError: it is none of these.
    """
    try:
        parts = urlsplit(url)
        match parts.scheme:
            case "redis" | "rediss" | "unix":
                return _single(url, timeout_s)
            case "redis+sentinel" | "rediss+sentinel":
                return _by_sentinel(parts, timeout_s)
            case "redis+cluster" | "rediss+cluster":
                return _cluster(parts, timeout_s)
        raise ValueError("unknown scheme")
    except (ValueError, TypeError, RedisError, OSError):
        # Without the cause: its text may quote the address.
        raise RedisUrlError(
            "REDIS_URL is no address of a Redis: redis://[user:password@]host[:port][/db],"
            " rediss://... (TLS), unix://path, redis+sentinel://host:port,.../service[/db] or"
            " redis+cluster://host:port,..., with reserved characters in the user name and the"
            " password percent-encoded"
        ) from None


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "health_check_interval": 0,
        "protocol": 2,  # what every server since 6.2 speaks, one step of greeting less
        "retry": Retry(NoBackoff(), 0),
    }


def _single(url: str, timeout_s: float) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url, max_connections=MAX_CONNECTIONS, timeout=timeout_s, **_options(timeout_s)
    )
    # Made to find options that are none, which would else be found by the first command.
    pool.connection_class(**pool.connection_kwargs)
    return _Single.from_pool(pool)


def _by_sentinel(parts: SplitResult, timeout_s: float) -> Redis:
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service or "/" in database or (database and not database.isdecimal()):
        raise ValueError("no service, or no such database")
    options = _options(timeout_s) | _given(parts)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        _hosts(parts, SENTINEL_PORT), sentinel_kwargs=_options(timeout_s)
    )
    client: Redis = sentinel.master_for(
        service,
        redis_class=_Single,
        connection_pool_class=_SentinelPool,
        max_connections=MAX_CONNECTIONS,
        timeout=timeout_s,
        db=int(database or 0),
        **options,
    )
    return client


def _cluster(parts: SplitResult, timeout_s: float) -> RedisCluster:
    if parts.path not in ("", "/"):
        raise ValueError("a cluster has no databases")
    return _Cluster(
        startup_nodes=[ClusterNode(host, port) for host, port in _hosts(parts, REDIS_PORT)],
        max_connections=MAX_CONNECTIONS,
        **_options(timeout_s) | _given(parts),
    )


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    hosts = []
    for one in parts.netloc.rpartition("@")[2].split(","):
        at = urlsplit(f"//{one}")
        if not at.hostname:
            raise ValueError("no host")
        hosts.append((at.hostname, at.port or default_port))
    return hosts


def _given(parts: SplitResult) -> dict[str, Any]:
    """User name, password and options, as redis-py reads them."""
    credentials, at, _ = parts.netloc.rpartition("@")
    scheme = parts.scheme.partition("+")[0]
    given: dict[str, Any] = {**parse_url(f"{scheme}://{credentials}{at}host?{parts.query}")}
    del given["host"]
    if given.pop("connection_class", None) is not None:
        given["ssl"] = True
    # As in `_single`.
    options = {name: value for name, value in given.items() if name != "ssl"}
    (SSLConnection if "ssl" in given else Socket)(**options)
    return given


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Who finds no free connection waits for one; closing it closes those to Sentinel as well."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await asyncio.gather(*(one.aclose() for one in self.sentinel_manager.sentinels))


class _Single(Redis):
    """One server, or the one that Sentinel names."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await _outcome(
            super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        )


class _Cluster(RedisCluster):
    """Who finds no free connection waits for one: the client's own answer is an error, which would
    look like an outage under load."""

    def __init__(self, *, max_connections: int, **options: Any) -> None:
        super().__init__(
            # Some more than are waited for: the client asks for the cluster's layout by itself.
            max_connections=2 * max_connections,
            # A slot that has moved is noted. To read the whole layout instead, the client closes
            # all connections, on which others wait for answers.
            reinitialize_steps=0,
            **options,
        )
        self._free = asyncio.Semaphore(max_connections)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with self._free:
            return await _outcome(self._execute_knowing_the_layout(*args, **options))

    async def _execute_knowing_the_layout(self, *args: Any, **options: Any) -> Any:
        # By itself the client chooses the node of its first command, then reads the layout.
        await self.initialize()
        return await super().execute_command(*args, **options)


async def _outcome(command: Awaitable[T]) -> T:
    """What redis-py makes of a command, with three things put right.

    Before Python 3.12 `asyncio.wait_for`, by which it sends, forgets that its task is to end if it
    hears of it just when it is done, well or not. Who cancelled a loop of commands would wait for
    ever. What it has no class for becomes `NotNow`, if that is what it says. And uvloop's word for
    a connection that has been lost is no error of a connection's.
    """
    task = asyncio.current_task()
    assert task is not None
    asked = task.cancelling()
    try:
        answer = await command
    except asyncio.CancelledError:
        raise
    except Exception as exc:
        if task.cancelling() > asked:
            raise asyncio.CancelledError from exc
        if isinstance(exc, ResponseError) and not isinstance(exc, ERRORS) and unavailable(exc):
            raise NotNow(str(exc)) from exc
        if isinstance(exc, RuntimeError) and "handler is closed" in str(exc):
            raise ConnectionError("the connection is closed") from exc
        raise
    if task.cancelling() > asked:
        raise asyncio.CancelledError
    return answer
