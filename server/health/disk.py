"""The disk under `DATA_DIR`: whether it takes what has to be durable, how fast, and how much more.

A probe writes a page into a file that has no name, and syncs it. It runs in a thread, one at a
time: a disk that hangs holds up that thread, and this says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PROBE_EVERY_S = 5.0
PROBE_TIMEOUT_S = 2.0
SLOW_S = 1.0
PAGE = b"\x00" * 4096
NEARLY_FULL_BYTES = 1024**3
NEARLY_FULL_SHARE = 0.1
"""Nearly full is a disk that has less free than a tenth, and than 1 GiB."""


class Measured(NamedTuple):
    took_s: float
    free_bytes: int
    total_bytes: int


class Disk:
    """What the last probe found.

    Args:
        is_log: whether the log itself is on it; else it is the spool, which is needed only while
            the shared log is away.
    """

    def __init__(
        self, folder: Path, *, is_log: bool, measure: Callable[[Path], Measured] | None = None
    ) -> None:
        self._folder = folder
        self._is_log = is_log
        self._measure = measure or _measure
        self._found: Measured | None = None
        self._error: str | None = None
        self._probing: asyncio.Future[Measured] | None = None

    async def watch(self) -> None:
        """Probe until cancelled."""
        while True:
            await self.probe()
            await asyncio.sleep(PROBE_EVERY_S)

    async def probe(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.ensure_future(asyncio.to_thread(self._measure, self._folder))
            self._probing.add_done_callback(_heed)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                self._found = await asyncio.shield(self._probing)
            self._error = None
        except TimeoutError:
            self._error = f"it has not synced a page within {PROBE_TIMEOUT_S:g} s"
        except OSError as exc:
            self._error = f"it cannot be written: {exc.strerror or type(exc).__name__}"

    def report(self) -> dict[str, Any]:
        """The disk as a dependency in the health report."""
        report: dict[str, Any] = {"state": "healthy"}
        if (found := self._found) is not None:
            report["latency_ms"] = round(found.took_s * 1_000, 3)
            report["free_bytes"], report["total_bytes"] = found.free_bytes, found.total_bytes
            if found.free_bytes < min(NEARLY_FULL_BYTES, NEARLY_FULL_SHARE * found.total_bytes):
                report |= {"state": "degraded", "error": "it is nearly full"}
            elif found.took_s > SLOW_S:
                report |= {"state": "degraded", "error": "it is slow"}
        if self._error is not None:
            report |= {"state": "unhealthy" if self._is_log else "degraded", "error": self._error}
        return report


def _measure(folder: Path) -> Measured:
    started = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(PAGE)
        os.fsync(file.fileno())
    took_s = time.perf_counter() - started
    usage = shutil.disk_usage(folder)
    return Measured(took_s, usage.free, usage.total)


def _heed(probing: asyncio.Future[Measured]) -> None:
    """Nobody may be waiting any more for a probe that took too long."""
    with contextlib.suppress(asyncio.CancelledError):
        probing.exception()
