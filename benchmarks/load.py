"""The load generator: built from loadgen.c, run once for each measurement."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.servers import HERE, OUT, pinned, say

LOADGEN = OUT / "loadgen"
FLEET = OUT / "fleet.upd"

Result = dict[str, Any]

Y_SOCKET_IO = (
    *("--dialect", "sio"),
    *("--namespace-template", "/yjs|{room}"),
    *("--join-event", "sync-step-1", "--join-arg-template", "{bin}", "--join-wait", "ack"),
    *("--update-event", "sync-update", "--update-args-template", "{bin}"),
    *("--deliver-event", "sync-update"),
)


def build() -> bool:
    """Compile the load generator. Returns: whether there is one."""
    if sys.platform != "linux":
        say("the load generator needs Linux (epoll): nothing is measured")
        return False
    source = HERE / "loadgen.c"
    if LOADGEN.exists() and LOADGEN.stat().st_mtime > source.stat().st_mtime:
        return True
    if shutil.which("gcc") is None:
        say("gcc was not found, and there is no load without its generator: nothing is measured")
        return False
    built = subprocess.run(["gcc", "-O2", "-o", str(LOADGEN), str(source)], check=False)
    if built.returncode:
        say("loadgen.c cannot be compiled (it needs glibc 2.35 or newer): nothing is measured")
    return built.returncode == 0


def our_options(token: str) -> tuple[str, ...]:
    """How the fleet speaks with our server."""
    return (
        *Y_SOCKET_IO,
        *("--auth", json.dumps({"token": token}, separators=(",", ":"))),
        *("--room-template", "workout:room-%d"),
    )


def run_load(options: Sequence[str]) -> Result:
    """Put the load on. Returns: what the fleet saw; `error` where it saw nothing, `fault` where
    what it saw is no measurement."""
    load = [*pinned(1), str(LOADGEN), "--updates", str(FLEET), *options]
    done = subprocess.run(load, capture_output=True, text=True, timeout=300, check=False)
    if not done.stdout.startswith("{"):
        return {"error": done.stderr.strip()[-500:] or "no result"}
    result: Result = json.loads(done.stdout)
    if complaint := fault_in(result):
        result["fault"] = f"{complaint} {done.stderr.strip()[-300:]}".strip()
    return result


def fault_in(result: Result) -> str | None:
    """Why a run is no measurement: something did not arrive, or somebody was thrown out."""
    if result["ready"] < result["conns"]:
        return f"only {result['ready']} of {result['conns']} clients joined"
    if result["delivered"] != result["expected"]:
        return f"{result['delivered']} of {result['expected']} deliveries"
    for key in ("gaps", "dups", "proto_err", "closed"):
        if result[key]:
            return f"{key}: {result[key]}"
    return None
