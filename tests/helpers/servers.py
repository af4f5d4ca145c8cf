"""Servers for tests: one inside the test's own loop, one as a real process that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import aiohttp
from aiohttp import web

from crdt.ids import DocName
from server.app import PARTS, Parts, create_app
from server.http_rules import make_runner
from server.replay.devices import DocumentClient, EventClient
from server.settings import Settings
from tests.helpers.ports import free_port

ROOT = Path(__file__).parents[2]


@dataclass
class RunningServer:
    """A server in this process, on a free port, and the clients that were made for it."""

    url: str
    parts: Parts
    folder: Path
    app: web.Application
    clients: list[Any] = field(default_factory=list)

    def token(self, user_id: str, **claims: Any) -> str:
        return self.parts.auth.sign(user_id, **claims)

    async def events(self, user_id: str, device: str = "phone", **claims: Any) -> EventClient:
        """A connected JSON client."""
        client = EventClient(
            self.url, self.token(user_id, **claims), {"id": device, "name": device.title()}
        )
        self.clients.append(client)
        return await client.connect()

    async def document(self, user_id: str, name: DocName, **claims: Any) -> DocumentClient:
        """A connected and synced Yjs client."""
        client = DocumentClient(
            self.url, name, self.token(user_id, **claims), {"id": "laptop", "name": "Laptop"}
        )
        self.clients.append(client)
        return await client.connect()


@asynccontextmanager
async def running_server(folder: Path, **settings: Any) -> AsyncIterator[RunningServer]:
    configured = Settings(data_dir=folder, port=0, **settings)
    app = create_app(configured)
    runner = make_runner(app, configured, shutdown_timeout_s=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    server = RunningServer(url, app[PARTS], folder, app)
    try:
        yield server
    finally:
        for client in server.clients:
            await client.close()
        await runner.cleanup()


@dataclass
class ServerProcess:
    """`python -m server` as a process of its own. It can be started again on the same data."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None
    greeting: list[str] = field(default_factory=list)
    stderr: IO[bytes] | None = None
    """Where its log goes; None for where ours goes."""
    program: Sequence[str] = ("-m", "server")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> ServerProcess:
        """Start it and wait until it serves, on the same port each time."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self.program,
            cwd=ROOT,
            env={
                **clean_env(),
                "DATA_DIR": str(self.folder),
                "PORT": str(self.port),
                "LOG_LEVEL": "WARNING",
                **self.env,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=self.stderr,
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            line = (await self.process.stdout.readline()).decode()
        if "serves http://" not in line:
            raise RuntimeError(f"the server did not start: exit {await self.process.wait()}")
        self.port = int(line.rsplit(":", 1)[1])
        return self

    async def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def terminate(self, timeout_s: float = 15.0) -> int:
        """SIGTERM. Returns: the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            await self.kill()


def clean_env() -> dict[str, str]:
    """The environment without anything that would configure a server."""
    ours = ("HOST", "PORT", "DATA_DIR", "CORS_ORIGINS", "MONGODB_URI")
    ours += ("BUS_SECRET", "EMBEDDED_WORKER", "SPOOL_MAX_BYTES", "WORKER_METRICS_PORT")
    ours += ("SENTRY_DSN",)
    return {
        key: value
        for key, value in os.environ.items()
        if key not in ours and not key.startswith(("ALERT_", "JWT_", "LOG_", "REDIS_"))
    }


async def get(http: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    """Returns: the status, and the JSON that comes with it."""
    async with http.get(path) as response:
        return response.status, await response.json()
