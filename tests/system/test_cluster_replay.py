"""A real training export, played by devices that are spread over three instances, ends equal."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from server.replay.play import replay
from server.settings import Settings
from tests.helpers.clusters import IS_SERVED, SECRET, Cluster, running_cluster

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not IS_SERVED, reason="multi-instance mode is not there yet"),
]

HEVY = Path(__file__).parents[1] / "data" / "hevy.csv"
REAL = os.environ.get("REPSYNC_EXPORTS_DIR")


def exports() -> list[Path]:
    """The small export of the tests, and the largest one that there is."""
    found = sorted(Path(REAL).glob("*.csv"), key=lambda path: path.stat().st_size) if REAL else []
    return [HEVY, *found[-1:]]


async def play_at(cluster: Cluster, folder: Path, path: Path) -> int:
    settings = Settings(data_dir=folder, jwt_secret=SECRET)  # type: ignore[arg-type]
    return await replay(settings, path, urls=[instance.url for instance in cluster.instances])


@pytest.mark.parametrize("path", exports(), ids=lambda path: path.stem)
async def test_an_export_spread_over_three_instances_ends_the_same_on_every_replica(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_cluster(tmp_path) as cluster:
        outcome = await play_at(cluster, tmp_path / "mine", path)
        shown = capsys.readouterr().out
        print(shown)
        assert outcome == 0, shown
        await cluster.until_persisted()
        played = {instance.name: await instance.metrics() for instance in cluster.instances}
        assert all(metrics["repsync_events_total"] > 0 for metrics in played.values())
        for instance in cluster.instances:
            assert await instance.stop() == 0


async def test_an_export_ends_the_same_while_listeners_are_dropped_and_links_are_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_cluster(tmp_path) as cluster:

        async def harm() -> None:
            while True:
                for instance in cluster.instances:
                    for link in instance.links:
                        link.latency(0.02, jitter_s=0.02)
                        link.slicer(500)
                    async with cluster.redis_client() as redis:
                        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                    await asyncio.sleep(0.5)
                    for link in instance.links:
                        link.heal()

        harming = asyncio.ensure_future(harm())
        try:
            assert await play_at(cluster, tmp_path / "mine", HEVY) == 0, capsys.readouterr().out
            assert not harming.done(), harming.exception()
        finally:
            harming.cancel()
