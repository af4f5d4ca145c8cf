#!/usr/bin/env python3
"""Measure RepSync and its peers side by side; see README.md in this folder.

Everything that is built, installed or written goes to `.bench/` in the project's folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cluster, streams, updates
from benchmarks.load import FLEET, Y_SOCKET_IO, Result, build, our_options, run_load
from benchmarks.servers import (
    HERE,
    OUT,
    ROOT,
    create_workouts,
    free_port,
    our_environment,
    pinned,
    running,
    say,
)

SEED = OUT / "seed.upd"

OURS = "repsync"
CLUSTER = "W8"
"""The workload that has rows of its own: no peer runs as several instances."""
STREAMS = "W9"
"""RepSync alone, each run beside one of W3."""
SEED_SETS = 300
MAX_P99_MS = 250.0
"""Above this, a rate is too high (W4)."""


@dataclass(frozen=True)
class Peer:
    folder: str
    script: str
    package: str
    """What its version is looked up by."""
    options: tuple[str, ...]


PEERS = {
    "hocuspocus": Peer(
        "hocuspocus", "server.mjs", "@hocuspocus/server", ("--dialect", "hocuspocus")
    ),
    "y-websocket": Peer("y-websocket", "server.mjs", "@y/websocket-server", ("--dialect", "yws")),
    "y-socket.io": Peer("socket-io", "y-socket-io.mjs", "y-socket.io", Y_SOCKET_IO),
    "socket.io+yjs": Peer("socket-io", "by-hand.mjs", "socket.io", ("--dialect", "sio")),
}


@dataclass(frozen=True)
class Target:
    """What RepSync promises: `value` of the best peer's where `of_best`, else in itself."""

    key: str
    value: float
    of_best: bool = False
    at_least: bool = False

    def limit(self, best: float | None) -> float | None:
        if not self.of_best:
            return self.value
        return None if best is None else self.value * best

    def holds(self, ours: float, best: float | None) -> bool | None:
        limit = self.limit(best)
        if limit is None:
            return None
        return ours >= limit if self.at_least else ours <= limit


@dataclass(frozen=True)
class Workload:
    title: str
    rooms: int
    members: int
    rate: int
    """Updates per second, of all rooms together."""
    duration_s: float
    quick_s: float
    targets: tuple[Target, ...]
    options: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("us_per_deliv", "p50_ms", "p99_ms")

    @property
    def is_search(self) -> bool:
        return "max_deliv_per_s" in self.columns


WORKLOADS = {
    "W1": Workload(
        "40 rooms of 25, 400 updates/s",
        *(40, 25, 400, 12, 4),
        (Target("us_per_deliv", 0.9, of_best=True), Target("p99_ms", 10)),
    ),
    "W2": Workload(
        "500 rooms of 3, 1,000 updates/s",
        *(500, 3, 1_000, 12, 4),
        (Target("us_per_deliv", 1.0, of_best=True), Target("p99_ms", 10)),
    ),
    "W3": Workload(
        "1 room of 1,000, 10 updates/s",
        *(1, 1_000, 10, 12, 4),
        (Target("us_per_deliv", 0.8, of_best=True), Target("p50_ms", 8)),
    ),
    "W4": Workload(
        "40 rooms of 25, as many as go",
        *(40, 25, 0, 8, 4),
        (Target("max_deliv_per_s", 1.2, of_best=True, at_least=True),),
        ("--drain", "4"),
        ("max_deliv_per_s", "us_per_deliv", "p99_ms"),
    ),
    "W5": Workload(
        "3,000 idle connections in 1,000 rooms",
        *(1_000, 3, 0, 3, 1),
        (Target("kb_per_conn", 20),),
        columns=("kb_per_conn", "rss_before_mb"),
    ),
    "W6": Workload(
        f"1,000 joins of a document of {SEED_SETS} sets, 100 at once",
        *(40, 25, 0, 0.1, 0.1),
        (Target("connect_cpu_s", 1.0, of_best=True),),
        ("--seed", str(SEED), "--inflight", "100"),
        ("connect_s", "connect_cpu_s", "connect_p50_ms"),
    ),
    "W7": Workload(
        "2,000 clients that come back all at once",
        *(40, 50, 0, 0.1, 0.1),
        (Target("loop_lag_ms", 100),),
        ("--inflight", "2000"),
        ("connect_s", "connect_cpu_s", "connect_p50_ms", "loop_lag_ms"),
    ),
    CLUSTER: Workload(
        "as W1, each room at one of three instances or at two",
        *(40, 25, 400, 12, 4),
        (Target("p50_ratio", 2), Target("p99_ratio", 3), Target("idle_pct", 1)),
        columns=(
            *("p50_ms", "p99_ms", "p50_ratio", "p99_ratio", "first_us_per_deliv"),
            *("second_us_per_deliv", "redis_us_per_update", "redis_bytes_per_update", "idle_pct"),
        ),
    ),
    STREAMS: Workload(
        "1,000 subscribers of one stream, 10 values/s",
        *(1, 1_000, 10, 12, 4),
        (Target("w3_ratio", 1),),
        columns=("us_per_deliv", "w3_us_per_deliv", "w3_ratio", "value_bytes"),
    ),
}

COLUMNS = {
    "us_per_deliv": "CPU µs/delivery",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "max_deliv_per_s": "deliveries/s",
    "kb_per_conn": "KB/connection",
    "rss_before_mb": "empty server MB",
    "connect_s": "wall s",
    "connect_cpu_s": "CPU s",
    "connect_p50_ms": "join p50 ms",
    "loop_lag_ms": "longest stall ms",
    "p50_ratio": "p50 × one instance",
    "p99_ratio": "p99 × one instance",
    "first_us_per_deliv": "first: CPU µs/delivery",
    "second_us_per_deliv": "second: CPU µs/delivery",
    "redis_us_per_update": "Redis CPU µs/update",
    "redis_bytes_per_update": "Redis bytes/update",
    "idle_pct": "idle instance % of a core",
    "w3_us_per_deliv": "W3's beside it",
    "w3_ratio": "× W3",
    "value_bytes": "bytes of a value",
}


# -- what must be there --------------------------------------------------------------------------


def installed(names: Sequence[str]) -> list[str]:
    """Install the peers into `.bench/peers`. Returns: those that can be run."""
    if names and (shutil.which("node") is None or shutil.which("npm") is None):
        say("Node.js with npm was not found: the peers are skipped")
        return []
    folders = {folder: _install(folder) for folder in {PEERS[name].folder for name in names}}
    return [name for name in names if folders[PEERS[name].folder]]


def _install(name: str) -> bool:
    source, folder = HERE / "peers" / name, OUT / "peers" / name
    lock, stamp = source / "package-lock.json", folder / "node_modules" / ".stamp"
    shutil.copytree(
        source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules")
    )
    if stamp.exists() and stamp.read_text() == lock.read_text():
        return True
    say(f"installing the peer {name}")
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.run(command, cwd=folder, check=False).returncode:
        say(f"npm could not install {name}: it is skipped")
        return False
    stamp.write_text(lock.read_text())
    return True


def versions(names: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version(), "kernel": platform.release()}
    if names:
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        found["node"] = node.stdout.strip().removeprefix("v")
    for name in names:
        modules = OUT / "peers" / PEERS[name].folder / "node_modules"
        for package in (PEERS[name].package, "yjs"):
            manifest = modules / package / "package.json"
            found[package] = json.loads(manifest.read_text())["version"]
    return found


# -- our documents -------------------------------------------------------------------------------


@dataclass
class Documents:
    """A data folder with the documents that the load is for, copied for each run."""

    folder: Path
    token: str = field(repr=False)


def make_documents(folder: Path, count: int) -> Documents:
    """Create the workouts room-0, room-1, ... in a data folder, through the server itself."""
    port = free_port()
    environment = our_environment(folder, port)
    with running([sys.executable, "-m", "server"], ROOT, environment, port, "documents"):
        return Documents(folder, create_workouts(port, environment, count))


# -- one run -------------------------------------------------------------------------------------


def measure(
    name: str,
    workload: Workload,
    documents: Documents,
    *,
    rate: int,
    duration_s: float,
    profile: Mapping[str, str] | None = None,
) -> Result:
    """Start a fresh server, put the load on it, and stop it. Returns: what the load saw."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        if name == OURS:
            # Beside the project, not in /tmp: that may be memory, where fsync costs nothing.
            data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=OUT)))
            shutil.copytree(documents.folder, data, dirs_exist_ok=True)
            environment = {**our_environment(data, port), **(profile or {})}
            serve = ["-m", "server"] if profile is None else [str(HERE / "profiled.py")]
            command, folder = [sys.executable, *serve], ROOT
            options = our_options(documents.token)
        else:
            peer = PEERS[name]
            folder, options = OUT / "peers" / peer.folder, peer.options
            environment = {**os.environ, "PORT": str(port), "NODE_ENV": "production"}
            command = ["node", str(folder / peer.script)]
        server = stack.enter_context(running(command, folder, environment, port, name))
        time.sleep(1)  # let it settle after its start
        if workload is WORKLOADS[STREAMS]:
            return streams.measure(
                *(port, server.pid, documents.token),
                watchers=workload.members,
                rate=rate,
                seconds=duration_s,
            )
        load = [
            *("--label", name, "--port", str(port), "--pid", str(server.pid), *options),
            *(() if profile is None else ("--notify", str(server.pid))),
            *("--rooms", str(workload.rooms), "--members", str(workload.members)),
            *("--rate", str(rate), "--duration", str(duration_s), *workload.options),
        ]
        result = run_load(load)
        stall_s = metric(port, "repsync_event_loop_lag_seconds") if name == OURS else None
        if server.poll() is not None:
            say(f"{name} ended during the run; see {OUT / f'log.{name}'}")
    if stall_s is not None and "error" not in result:
        result["loop_lag_ms"] = round(stall_s * 1_000, 1)
    return result


def metric(port: int, name: str) -> float | None:
    """A figure that our server tells of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    return None


def search(workload: Workload, first: int, run: Callable[[int], Result]) -> Result:
    """The highest rate at which everything arrives and p99 stays below the limit."""
    good, bad, rate = 0, 0, first
    best: Result = {}
    for _ in range(8):
        result = run(rate)
        per_s = rate * (workload.members - 1)
        arrived = "error" not in result and "fault" not in result
        if arrived and result["p99_ms"] < MAX_P99_MS and result["deliv_per_s"] > 0.95 * per_s:
            good, best = rate, {**result, "max_deliv_per_s": per_s}
        else:
            bad = rate
        if good and bad and bad - good < 0.08 * good:
            break
        rate = (good + bad) // 2 if good and bad else int(good * 1.5) if good else bad // 2
    return best or {"error": "no rate was low enough"}


# -- all runs ------------------------------------------------------------------------------------


class Bench:
    def __init__(self, arguments: argparse.Namespace, names: Sequence[str], data: Documents):
        self._arguments = arguments
        self._names = names
        self._documents = data
        self._versions = versions([name for name in names if name != OURS])
        self.results: dict[tuple[str, str], list[Result]] = {}

    def run_all(self) -> None:
        for code in self._arguments.workloads:
            if code == CLUSTER:
                self._run_cluster()
                continue
            if code == STREAMS:
                self._run_streams()
                continue
            if WORKLOADS[code].is_search:
                for name in self._names:
                    self._keep(code, name, self._search(code, name))
                continue
            for number in range(self._arguments.runs):
                for name in self._names:
                    self._keep(code, name, self._once(code, name), number)

    def _run_cluster(self) -> None:
        if missing := cluster.missing():
            say(f"{CLUSTER} is skipped: {missing}")
            return
        say(f"{CLUSTER}: {cluster.described()}")
        workload = WORKLOADS[CLUSTER]
        for number in range(self._arguments.runs):
            round_ = cluster.measure(
                rooms=workload.rooms,
                members=workload.members,
                rate=workload.rate,
                duration_s=duration(self._arguments, workload),
            )
            for name, result in round_.items():
                self._keep(CLUSTER, name, result, number)

    def _run_streams(self) -> None:
        for number in range(self._arguments.runs):
            beside = self._once("W3", OURS)
            result = self._once(STREAMS, OURS)
            if "us_per_deliv" in result and "us_per_deliv" in beside and "fault" not in beside:
                result["w3_us_per_deliv"] = beside["us_per_deliv"]
                result["w3_ratio"] = round(result["us_per_deliv"] / beside["us_per_deliv"], 3)
            self._keep(STREAMS, OURS, result, number)

    def _once(self, code: str, name: str, rate: int | None = None) -> Result:
        workload = WORKLOADS[code]
        return measure(
            name,
            workload,
            self._documents,
            rate=workload.rate if rate is None else rate,
            duration_s=duration(self._arguments, workload),
        )

    def _search(self, code: str, name: str) -> Result:
        known = self.median("W1", name, "us_per_deliv")
        if known is None:
            known = self._once("W1", name).get("us_per_deliv")
        if not known:
            return {"error": "W1 cannot be run, so there is no rate to begin with"}
        workload = WORKLOADS[code]
        # A delivery gets cheaper under load: begin a bit above what W1's cost allows.
        first = max(200, int(0.85e6 / known / (workload.members - 1)))

        def run(rate: int) -> Result:
            result = self._once(code, name, rate)
            say(f"  {name} at {rate} updates/s: {brief(result, ('deliv_per_s', 'p99_ms'))}")
            return result

        return search(workload, first, run)

    def _keep(self, code: str, name: str, result: Result, number: int = 0) -> None:
        say(f"{code} {name}: {brief(result, WORKLOADS[code].columns)}")
        line = {
            "workload": code,
            "server": name,
            "run": number,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "load": os.getloadavg()[0],
            "versions": self._versions,
            **result,
        }
        with (OUT / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.results.setdefault((code, name), []).append(result)

    def median(self, code: str, name: str, key: str) -> float | None:
        values = self._values(code, name, key)
        return statistics.median(values) if values else None

    def _values(self, code: str, name: str, key: str) -> list[float]:
        results = self.results.get((code, name), ())
        return [result[key] for result in results if "fault" not in result and key in result]

    def table(self) -> str:
        """The medians and the targets, as Markdown."""
        lines = []
        for code in self._arguments.workloads:
            workload = WORKLOADS[code]
            keys = workload.columns
            lines += ["", f"**{code}**: {workload.title}", ""]
            lines.append("| | " + " | ".join(COLUMNS[key] for key in keys) + " |")
            lines.append("|---|" + "---|" * len(keys))
            for name in self._rows(code):
                cells = [self._cell(code, name, key) for key in keys]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
            lines.append("")
            lines += [self._verdict(code, target) for target in workload.targets]
        return "\n".join(lines).strip()

    def _rows(self, code: str) -> Sequence[str]:
        if code == CLUSTER:
            return cluster.ROWS
        return [OURS] if code == STREAMS else self._names

    def _cell(self, code: str, name: str, key: str) -> str:
        values = self._values(code, name, key)
        if not values:
            return "–"
        text = number_text(statistics.median(values))
        if len(values) > 1:
            text += f" ({number_text(min(values))} to {number_text(max(values))})"
        return text

    def _verdict(self, code: str, target: Target) -> str:
        what = COLUMNS[target.key]
        ours = self.median(code, cluster.SPREAD if code == CLUSTER else OURS, target.key)
        peers = {
            name: value
            for name in self._names
            if name != OURS and (value := self.median(code, name, target.key)) is not None
        }
        choose = max if target.at_least else min
        best_name = choose(peers, key=lambda name: peers[name]) if peers else None
        best = peers[best_name] if best_name else None
        sign = "≥" if target.at_least else "≤"
        promise = f"{sign} {target.value:g}" + (" × best peer" if target.of_best else "")
        ratio = f", {ours / best:.2f} × {best_name}" if ours and best else ""
        if ours is None:
            return f"- {what} {promise}: not measured"
        holds = target.holds(ours, best)
        verdict = "no peer to compare with" if holds is None else "held" if holds else "MISSED"
        return f"- {what} {promise}: {verdict} ({number_text(ours)}{ratio})"

    def profile(self) -> None:
        """Where our CPU time goes, by thread and by function, in runs of their own."""
        for code in self._arguments.workloads:
            workload = WORKLOADS[code]
            if not workload.rate or code in (CLUSTER, STREAMS):
                continue
            path = OUT / f"profile.{code}.json"
            for functions in ("0", "1"):
                path.unlink(missing_ok=True)
                result = measure(
                    OURS,
                    workload,
                    self._documents,
                    rate=workload.rate,
                    duration_s=duration(self._arguments, workload),
                    profile={"PROFILE_OUT": str(path), "PROFILE_FUNCTIONS": functions},
                )
                if "error" in result or not path.exists():
                    print(f"\n{code}: no profile ({result.get('error', 'the server left none')})")
                    break
                print("\n" + profile_text(code, result, json.loads(path.read_text())))


def admission_table() -> str:
    """What checking an update costs, measured in a process of its own on the server's core."""
    command = [*pinned(0), sys.executable, str(HERE / "admission.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout.strip() or f"Admission: not measured\n{done.stderr[-500:]}"


def profile_text(code: str, result: Result, found: dict[str, Any]) -> str:
    count, sent = result["delivered"] or 1, result["sent"] or 1
    functions = found.get("functions")
    if functions is None:
        loop, others = found["loop_cpu_s"] * 1e6, found["other_threads_cpu_s"] * 1e6
        system = result["sys_s"] * 1e6
        return (
            f"{code} CPU by thread: event loop {loop / count:.1f} µs/delivery"
            f" ({loop / sent:.0f} µs/update), log's writer {others / count:.1f}"
            f" ({others / sent:.0f}); in the kernel {system / count:.1f} of both"
        )
    lines = [f"{code} event loop by own time, µs per update (inflated by cProfile)", ""]
    lines += ["| own | with callees | calls per update | function |", "|---|---|---|---|"]
    lines += [
        f"| {row['own_s'] * 1e6 / sent:.1f} | {row['total_s'] * 1e6 / sent:.1f}"
        f" | {row['calls'] / sent:.2f} | `{row['function'].replace('|', '¦')}` |"
        for row in functions[:30]
    ]
    return "\n".join(lines)


def duration(arguments: argparse.Namespace, workload: Workload) -> float:
    if arguments.duration is not None and workload.duration_s > 1:
        return float(arguments.duration)
    return workload.quick_s if arguments.quick else workload.duration_s


def brief(result: Result, keys: Sequence[str]) -> str:
    if "error" in result:
        return f"failed: {result['error']}"
    known = [key for key in keys if key in result]
    text = ", ".join(f"{COLUMNS.get(key, key)} {number_text(result[key])}" for key in known)
    return f"{text}  NOT COUNTED: {result['fault']}" if "fault" in result else text


def number_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _chosen(known: Mapping[str, Any]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name}: choose from {', '.join(known)}")
        return names

    return parse


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.py")
    parser.add_argument(
        "--workloads",
        type=_chosen(WORKLOADS),
        default=list(WORKLOADS),
        metavar="W1,W2",
        help="; ".join(f"{code}: {workload.title}" for code, workload in WORKLOADS.items()),
    )
    parser.add_argument(
        "--peers",
        type=_chosen(PEERS),
        default=list(PEERS),
        metavar="A,B",
        help=f"from {', '.join(PEERS)}; empty for none",
    )
    parser.add_argument("--runs", type=int, help="how often, side by side (default: 3)")
    parser.add_argument("--duration", type=float, metavar="S", help="of the load of each run")
    parser.add_argument("--quick", action="store_true", help="one short run of each: a smoke test")
    parser.add_argument("--profile", action="store_true", help="also profile RepSync (W1 to W3)")
    arguments = parser.parse_args(argv)
    if arguments.runs is None:
        arguments.runs = 1 if arguments.quick else 3
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    OUT.mkdir(exist_ok=True)
    if not build():
        return 1
    if not pinned(0):
        say("taskset or a second core is missing: server and load share what there is")
    names = [OURS, *installed(arguments.peers)]
    longest_s = max(duration(arguments, WORKLOADS[code]) for code in arguments.workloads)
    updates.write(FLEET, writers=25, each=max(200, int(40 * longest_s)))
    updates.write_seed(SEED, sets=SEED_SETS)
    say(f"load average {os.getloadavg()[0]:.2f} of {os.cpu_count()} cores before the first run")
    with tempfile.TemporaryDirectory(prefix="documents-", dir=OUT) as folder:
        most = max(WORKLOADS[code].rooms for code in arguments.workloads)
        bench = Bench(arguments, names, make_documents(Path(folder), most))
        bench.run_all()
        print("\n" + bench.table())
        print("\n" + admission_table(), flush=True)
        if arguments.profile:
            bench.profile()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
