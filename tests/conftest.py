"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.helpers import mongo_servers
from tests.helpers.mongo_servers import MongoProcess
from tests.helpers.redis_servers import RedisProcess
from tests.helpers.servers import RunningServer, running_server

mongo_servers.take_from_environment()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"MongoDB: {mongo_servers.described()}")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """An embedded server in this process, with its data in a temporary folder."""
    async with running_server(tmp_path / "data") as running:
        yield running


@pytest.fixture
async def http(server: RunningServer) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that asks this server."""
    async with aiohttp.ClientSession(server.url) as session:
        yield session


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a MongoDB for all tests of this process."""
    if given := mongo_servers.given_uri():
        yield given
        return
    mongo_servers.demand_nx()
    process = MongoProcess(tmp_path_factory.mktemp("mongo")).start()
    yield process.uri
    process.kill()


@pytest.fixture
async def mongo_uri(mongo_server: str) -> AsyncIterator[str]:
    """The URI of an empty database."""
    async with mongo_servers.database_at(mongo_server) as uri:
        yield uri


@pytest.fixture
def mongo_process(tmp_path: Path) -> Iterator[MongoProcess]:
    """A MongoDB of the test's own, to be killed and started again."""
    mongo_servers.demand_nx()
    process = MongoProcess(tmp_path / "mongo").start()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis for all tests of this process: use keys of your own."""
    process = RedisProcess(tmp_path_factory.mktemp("redis")).start()
    yield process.url
    process.kill()


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis of the test's own, to be killed, stopped and started again."""
    process = RedisProcess(tmp_path / "redis").start()
    yield process
    process.kill()
