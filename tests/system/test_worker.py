"""The worker as a process of its own: what it does is seen from outside."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.clusters import eventually
from tests.helpers.exposed import CLUSTER, families_of
from tests.helpers.redis_servers import RedisProcess
from tests.helpers.servers import ROOT, clean_env, running_server

pytestmark = pytest.mark.system

SECRET = "a secret of more than thirty-two bytes"
DEADLINE_S = 30.0
OF_A_WORKER = {
    "repsync_build_info",
    "repsync_moved_records_total",
    "repsync_quarantined_documents",
    "repsync_backlog_documents",
    "repsync_backlog_age_seconds",
    "repsync_worker_failures_total",
}


@dataclass
class WorkerProcess:
    process: asyncio.subprocess.Process
    url: str
    instance: str

    async def metrics(self) -> dict[str, float]:
        """Each metric without labels, by its name."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as response:
            assert response.status == 200
            text = await response.text()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


@asynccontextmanager
async def running_worker(env: dict[str, str]) -> AsyncIterator[WorkerProcess]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "worker"),
        cwd=ROOT,
        env={**clean_env(), "LOG_FORMAT": "json", **env},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        line: dict[str, Any] = {}
        async with asyncio.timeout(DEADLINE_S):
            while line.get("event") != "working":
                line = json.loads(await process.stderr.readline())
        url = f"http://127.0.0.1:{line['metrics_port']}"
        yield WorkerProcess(process, url, line["instance"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_worker_shows_what_it_has_moved(
    tmp_path: Path, redis_process: RedisProcess, mongo_uri: str
) -> None:
    prefix = f"t{uuid4().hex[:8]}"
    shared = {"redis_url": redis_process.url, "mongodb_uri": mongo_uri, "redis_prefix": prefix}
    shared["bus_secret"] = SECRET
    env = {name.upper(): value for name, value in shared.items()}
    async with (
        running_worker({**env, "WORKER_METRICS_PORT": "0"}) as worker,
        running_server(tmp_path, jwt_secret=SECRET, embedded_worker=False, **shared) as server,
    ):
        assert worker.instance.startswith("worker-")
        ana = await server.events("ana")
        await ana.do("workout:create", {"workout_id": "w"})

        async def has_moved() -> bool:
            return (await worker.metrics())["repsync_moved_records_total"] > 0

        await eventually(has_moved, timeout_s=DEADLINE_S)
        shown = await worker.metrics()
        assert shown["repsync_quarantined_documents"] == 0
        known = await families_of(tmp_path / "another", CLUSTER)
        assert shown.keys() >= OF_A_WORKER
        assert shown.keys() <= known.keys()
        async with aiohttp.ClientSession() as http:
            for path in ("/", "/health", "/socket.io/"):
                async with http.get(f"{worker.url}{path}") as response:
                    assert response.status == 404
        assert await worker.terminate() == 0
