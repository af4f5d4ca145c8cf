"""A Redis and a Redis Cluster for the tests of this folder; each test has a prefix of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from server.cluster.connection import Connection, connect
from server.cluster.log import RedisLog
from tests.helpers.redis_servers import ClusterProcesses


@pytest.fixture(scope="session")
def redis_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    """A Redis Cluster."""
    processes = ClusterProcesses(tmp_path_factory.mktemp("redis-cluster")).start()
    yield processes
    processes.kill()


@pytest.fixture
def redis_cluster(redis_nodes: ClusterProcesses) -> str:
    """The URL of a Redis Cluster."""
    return redis_nodes.url


@pytest.fixture(params=["redis_server", "redis_cluster"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Connection]:
    """A client of a single Redis, then of a cluster."""
    # A slow machine is no outage.
    client = connect(request.getfixturevalue(request.param), timeout_s=10)
    yield client
    await client.aclose()


@pytest.fixture
def prefix() -> str:
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def log(redis: Connection, prefix: str) -> RedisLog:
    return RedisLog(redis, prefix)
