"""The processes that are measured: started on free ports, pinned to a core, ended with the block.

A server that does not start raises RuntimeError; what it said is in `.bench/log.<name>`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import updates
from server.replay.devices import EventClient

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
OUT = ROOT / ".bench"

START_TIMEOUT_S = 30.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pinned(index: int) -> list[str]:
    """What keeps a process on one core: the server on the first, the load on the second."""
    cores = sorted(os.sched_getaffinity(0))
    if shutil.which("taskset") is None or len(cores) < 2:
        return []
    return ["taskset", "-c", str(cores[index])]


DATABASES = ("MONGODB_URI", "REDIS_URL")


def our_environment(data: Path, port: int) -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if key not in DATABASES},
        "DATA_DIR": str(data),
        "PORT": str(port),
        "LOG_LEVEL": "WARNING",
        # The whole fleet is one user, and one client makes all documents.
        "MAX_SESSIONS_PER_USER": "20000",
        "MAX_USER_EVENTS_PER_S": "1000000",
        "MAX_USER_EVENTS_BURST": "1000000",
        "MAX_USER_BYTES_PER_S": "1000000000",
        "MAX_USER_BYTES_BURST": "1000000000",
        "MAX_EVENTS_PER_S": "100000",
        "MAX_ROOMS_PER_CONNECTION": "20000",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    port: int | None,
    name: str,
    *,
    is_pinned: bool = True,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server on the first core, for as long as the block runs. One without a port is not waited
    for."""
    with (OUT / f"log.{name}").open("wb") as log:
        server = subprocess.Popen(
            [*(pinned(0) if is_pinned else ()), *command],
            cwd=folder,
            env=dict(environment),
            stdout=log,
            stderr=log,
        )
        try:
            if port is not None:
                _wait_until_it_listens(server, port, name)
            yield server
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_until_it_listens(server: subprocess.Popen[bytes], port: int, name: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{name} did not start; see {OUT / f'log.{name}'}")


def create_workouts(port: int, environment: Mapping[str, str], count: int) -> str:
    """Create the workouts room-0, room-1, ... with their exercises, through the server at `port`.

    Returns: a token of their owner.
    """
    signed = subprocess.run(
        [sys.executable, "-m", "server", "token", "--user", updates.USER],
        cwd=ROOT,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    token = signed.stdout.strip()
    asyncio.run(_create(f"http://127.0.0.1:{port}", token, count))
    return token


async def _create(url: str, token: str, count: int) -> None:
    client = await EventClient(url, token).connect()
    at_once = asyncio.Semaphore(50)

    async def create(number: int) -> None:
        workout_id = f"room-{number}"
        async with at_once:
            await client.do("workout:create", {"workout_id": workout_id, "mode": "group"})
            for exercise in updates.EXERCISES:
                await client.do(
                    "workout:exercise:add",
                    {
                        "workout_id": workout_id,
                        "exercise_id": exercise,
                        "exercise": {"name": exercise.replace("-", " ")},
                    },
                )

    try:
        await asyncio.gather(*(create(number) for number in range(count)))
    finally:
        await client.close()
