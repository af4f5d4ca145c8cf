"""The server as `python -m server` runs it, looked at between SIGUSR1 and SIGUSR2.

The load generator sends them around the load (`--notify 1`), so connecting is left out. At the end
of the server PROFILE_OUT holds a JSON object: the CPU seconds of the event loop's thread and of
the others (the log's writer), and with PROFILE_FUNCTIONS=1 the functions by own time. cProfile sees
the event loop's thread only, and slows down Python more than C: take its shares, not its times.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from server.__main__ import main

profiler = cProfile.Profile()
functions = os.environ.get("PROFILE_FUNCTIONS") == "1"
marks: list[tuple[float, float, float]] = []
"""Wall, the event loop's thread, the whole process, at each signal; s."""


def _mark(number: int, frame: FrameType | None) -> None:
    profiler.disable()
    marks.append((time.monotonic(), time.thread_time(), time.process_time()))
    if functions and number == signal.SIGUSR1:
        profiler.enable()


def _by_own_time() -> list[dict[str, Any]]:
    stats: Any = pstats.Stats(profiler)
    rows = []
    for (file, line, name), (_, calls, own_s, total_s, _) in stats.stats.items():
        parts = Path(file).parts[-2:]
        where = f"{'/'.join(parts)}:{line} " if line else ""
        rows.append(
            {"function": f"{where}{name}", "calls": calls, "own_s": own_s, "total_s": total_s}
        )
    return sorted(rows, key=lambda row: -row["own_s"])[:60]


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _mark)
    signal.signal(signal.SIGUSR2, _mark)
    code = main(sys.argv[1:])
    if len(marks) == 2:
        wall_s, loop_s, process_s = (after - before for before, after in zip(*marks, strict=True))
        found: dict[str, Any] = {
            "wall_s": wall_s,
            "loop_cpu_s": loop_s,
            "other_threads_cpu_s": process_s - loop_s,
        }
        if functions:
            found["functions"] = _by_own_time()
        Path(os.environ["PROFILE_OUT"]).write_text(json.dumps(found))
    sys.exit(code)
