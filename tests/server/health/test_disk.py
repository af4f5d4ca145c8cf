"""The disk: what a probe finds, and what becomes of one that does not come back."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from server.health import disk
from server.health.disk import Disk, Measured

GIB = 1024**3


def finding(measured: Measured | OSError) -> Callable[[Path], Measured]:
    def measure(_: Path) -> Measured:
        if isinstance(measured, OSError):
            raise measured
        return measured

    return measure


async def test_a_disk_that_takes_a_page_is_well_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    one = Disk(tmp_path, is_log=True)
    assert one.report() == {"state": "healthy"}
    await one.probe()
    report = one.report()
    assert report["state"] == "healthy"
    assert report["latency_ms"] > 0
    assert 0 < report["free_bytes"] <= report["total_bytes"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("is_log", "state"), [(True, "unhealthy"), (False, "degraded")])
async def test_a_folder_that_is_gone_is_noticed_until_it_is_back(
    tmp_path: Path, is_log: bool, state: str
) -> None:
    folder = tmp_path / "data"
    one = Disk(folder, is_log=is_log)
    await one.probe()
    assert one.report() == {"state": state, "error": "it cannot be written: " + os.strerror(2)}
    folder.mkdir()
    await one.probe()
    assert one.report()["state"] == "healthy"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
async def test_a_disk_that_fails_says_why(tmp_path: Path, number: int) -> None:
    failing = finding(OSError(number, os.strerror(number), "/secret/path"))
    one = Disk(tmp_path, is_log=True, measure=failing)
    await one.probe()
    assert one.report()["state"] == "unhealthy"
    assert os.strerror(number) in one.report()["error"]
    assert "secret" not in one.report()["error"]


@pytest.mark.parametrize(
    ("measured", "state"),
    [
        (Measured(0.001, 2 * GIB, 100 * GIB), "healthy"),
        (Measured(0.001, GIB - 1, 100 * GIB), "degraded"),
        (Measured(0.001, GIB // 5, GIB), "healthy"),
        (Measured(0.001, GIB // 20, GIB), "degraded"),
        (Measured(1.5, 2 * GIB, 100 * GIB), "degraded"),
    ],
)
async def test_a_disk_that_is_slow_or_nearly_full_is_degraded(
    tmp_path: Path, measured: Measured, state: str
) -> None:
    one = Disk(tmp_path, is_log=True, measure=finding(measured))
    await one.probe()
    assert one.report()["state"] == state


async def test_a_disk_that_hangs_is_asked_once_and_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PROBE_TIMEOUT_S", 0.05)
    going_on, asked = threading.Event(), []

    def hang(folder: Path) -> Measured:
        asked.append(folder)
        going_on.wait()
        return Measured(0.001, 2 * GIB, 100 * GIB)

    one = Disk(tmp_path, is_log=True, measure=hang)
    try:
        await one.probe()
        await one.probe()
        assert one.report()["state"] == "unhealthy"
        assert "has not synced" in one.report()["error"]
        assert len(asked) == 1
    finally:
        going_on.set()
    monkeypatch.setattr(disk, "PROBE_TIMEOUT_S", 5.0)
    await one.probe()
    assert one.report()["state"] == "healthy"
