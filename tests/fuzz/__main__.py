"""`python -m tests.fuzz`: every target in turn, each in a process of its own.

A target's process prints one line at its end. One that native code has ended cannot: then this one
says so, keeps the input, and starts it again for the runs that are left.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from tests.fuzz.findings import FINDINGS, LAST, keep

TARGETS = ("packets", "intents", "awareness", "updates")
MAX_DEATHS = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="target", help="all if none")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="0 takes another one each time")
    told = parser.parse_args()
    unknown = set(told.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    codes = [fuzz(name, told.runs, told.seed) for name in told.targets]
    return max(codes)


def fuzz(name: str, runs: int, seed: int) -> int:
    """Run one target. Returns: 0 if everything held."""
    worst = 0
    for _ in range(MAX_DEATHS):
        last = FINDINGS / name / LAST
        last.parent.mkdir(parents=True, exist_ok=True)
        last.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.fuzz.engine", name, str(runs), str(seed)]
        with (FINDINGS / name / "log").open("ab") as log:  # what libFuzzer and native code say
            code = subprocess.run(command, check=False, stderr=log).returncode
        if code in (0, 1):
            return max(worst, code)
        worst = 1
        done, data = read_last(last)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        kept = keep(name, data)
        print(f"{name}: ended by {how} after {done:,} runs; the input is {kept}", flush=True)
        runs = max(1, runs - done)
    return worst


def read_last(path: Path) -> tuple[int, bytes]:
    """How many inputs there were, and the last of them."""
    if not path.exists():
        return 0, b""
    data = path.read_bytes()
    done, size = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:16], "little")
    return done, data[16 : 16 + size]


if __name__ == "__main__":
    sys.exit(main())
