"""MongoDB for tests: the one that `MONGODB_URI` names, else `nx-27017`, a MongoDB wire server on
SQLite, as a process in a temporary folder. Every test gets a database of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
from pymongo import AsyncMongoClient

from server.storage.mongo import MongoStore
from tests.helpers.ports import free_port

START_TIMEOUT_S = 30.0
GIVEN = "REPSYNC_TEST_MONGODB_URI"


def take_from_environment() -> None:
    """Keep `MONGODB_URI` for the tests that want it: it must not configure every server here."""
    if uri := os.environ.pop("MONGODB_URI", None):
        os.environ[GIVEN] = uri


def given_uri() -> str | None:
    return os.environ.get(GIVEN)


def described() -> str:
    """Which MongoDB the tests use, without its credentials."""
    if uri := given_uri():
        return f"the server at {urlsplit(uri).netloc.rpartition('@')[2]}"
    try:
        return f"nx-27017 {version('nx-27017')}, a wire server on SQLite"
    except PackageNotFoundError:
        return "none, tests that need it are skipped"


def demand_nx() -> None:
    """Skip where nx-27017 is not installed; fail in CI, which must run everything."""
    if find_spec("nx_27017") is None:
        reason = "nx-27017 is not installed (`make setup`), and MONGODB_URI is not set"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass
class MongoProcess:
    """nx-27017 as a process that can be killed and started again on the same data and port."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}"

    def start(self) -> MongoProcess:
        """Start it, and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "output", "ab") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "nx_27017.nx_27017"),
                    *("--data-dir", str(self.folder / "data"), "--port", str(self.port)),
                    *("--log-file", str(self.folder / "log")),
                    *("--pid-file", str(self.folder / "pid")),
                ],
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._listens():
            assert self.process.poll() is None, (self.folder / "output").read_text()
            assert time.monotonic() < deadline, "nx-27017 does not listen"
            time.sleep(0.02)
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@asynccontextmanager
async def database_at(uri: str) -> AsyncIterator[str]:
    """A database of one's own on a server. Yields the URI that names it."""
    name = f"repsync-test-{uuid4().hex}"
    yield urlunsplit(urlsplit(uri)._replace(path=f"/{name}"))
    client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(uri, timeoutMS=10_000)
    await client.drop_database(name)
    await client.close()


@asynccontextmanager
async def opening(uri: str) -> AsyncIterator[MongoStore]:
    """A store that is open as long as the block runs."""
    store = MongoStore(uri)
    try:
        await store.open()
        yield store
    finally:
        await store.close()
