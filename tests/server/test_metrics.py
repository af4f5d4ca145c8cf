"""What `/metrics` shows: named as Prometheus asks, described, bounded, and cheap to ask for."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pycrdt import Map

from crdt import ids
from crdt.ids import UserId
from server.metrics import RENDERS_AT_ONCE, Histogram, Metrics
from tests.helpers.exposed import ALONE, CLUSTER, families_of
from tests.helpers.servers import ROOT, RunningServer

WORKOUT = ids.workout("w")
BASE_UNITS = ("_seconds", "_bytes", "_info")
ROW = re.compile(r"^\| `((?:repsync|process)_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)


@pytest.fixture(params=[ALONE, CLUSTER])
async def families(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Metric]:
    """Each metric by its name, as the parser has it, of a server of either kind."""
    return await families_of(tmp_path, request.param)


def documented() -> dict[str, tuple[str, set[str]]]:
    """Each metric of docs/operations.md: its type and its labels."""
    text = (ROOT / "docs/operations.md").read_text()
    rows = ROW.findall(text)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


async def test_every_metric_has_a_text_and_a_type(families: dict[str, Metric]) -> None:
    for family in families.values():
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")


async def test_every_metric_is_named_as_prometheus_asks(families: dict[str, Metric]) -> None:
    for name, family in families.items():
        assert re.fullmatch(r"(repsync|process)_[a-z][a-z0-9_]*", name)
        assert name.endswith("_total") == (family.type == "counter")
        assert not re.search(r"_(count|sum|bucket|ms|milliseconds|kb|mb)$", name)
        for unit in ("seconds", "bytes"):
            assert unit not in name or name.removesuffix("_total").endswith(unit)


@pytest.mark.parametrize("kind", [ALONE, CLUSTER])
async def test_the_documentation_has_every_metric_and_no_other(tmp_path: Path, kind: str) -> None:
    shown = {name: family.type for name, family in (await families_of(tmp_path, kind)).items()}
    rows = {name: kind for name, (kind, _) in documented().items()}
    assert shown.items() <= rows.items()
    if kind == CLUSTER:
        elsewhere = {"process_resident_memory_bytes"}  # no Linux
        assert not rows.keys() - shown.keys() - elsewhere


async def test_labels_are_those_that_the_documentation_names(server: RunningServer) -> None:
    ana = await server.events("ana", role="admin")
    await ana.do("workout:create", {"workout_id": WORKOUT.id})
    laptop = await server.document("ana", WORKOUT)
    laptop.map("sets")["s1"] = Map({"user_id": "ana", "reps": 5.0})
    await laptop.settled()
    rows = documented()
    for family in text_string_to_metric_families(server.parts.metrics.render().decode()):
        for sample in family.samples:
            name = family.name + "_total" * (family.type == "counter")
            assert set(sample.labels) - {"le"} == rows[name][1]


async def test_what_goes_out_is_counted_by_name_and_in_bytes(server: RunningServer) -> None:
    ana = await server.events("ana", role="admin")
    await ana.do("workout:create", {"workout_id": WORKOUT.id})
    mine, other = await server.document("ana", WORKOUT), await server.document("ana", WORKOUT)
    mine.map("sets")["s1"] = Map({"user_id": "ana", "reps": 5.0})
    await mine.settled()
    await other.until(lambda: "s1" in other.content()["sets"])
    stats = server.parts.sockets.stats
    assert stats.sent["welcome"] == 1
    assert stats.sent["sync-update"] == 1  # not to the one who made it
    assert stats.sent["ack"] >= 2
    assert stats.sent_bytes["sync-update"] > len("sync-update")
    assert stats.sent.keys() == stats.sent_bytes.keys()
    rooms = server.parts.metrics.rooms
    assert rooms.append_seconds.count == rooms.append_changes.count == 2
    assert rooms.shown_seconds["here"].count == 2
    assert rooms.shown_seconds["here"].total >= rooms.append_seconds.total > 0
    assert server.parts.metrics.ack_seconds["document"].count == 1


async def test_names_from_elsewhere_do_not_become_metrics_without_end(
    server: RunningServer,
) -> None:
    await server.events("ana")
    for number in range(200):
        server.parts.gateway.tell_user_here(UserId("ana"), f"made-up:{number}", {})
    sent = server.parts.sockets.stats.sent
    assert len(sent) <= 101
    assert sent["other"] > 50


async def test_scrapes_without_end_get_the_last_answer_again(server: RunningServer) -> None:
    metrics = server.parts.metrics
    made = 0

    def count() -> float:
        nonlocal made
        made += 1
        return made

    metrics.watch("repsync_of_a_test", "Times that it was asked for", count)
    async with aiohttp.ClientSession(server.url) as http:
        for _ in range(200):
            async with http.get("/metrics") as response:
                assert response.status == 200
    assert RENDERS_AT_ONCE <= made < 150


def test_a_name_is_shown_once() -> None:
    metrics = Metrics()
    metrics.total("repsync_things", "Things", lambda: 1)
    with pytest.raises(ValueError, match="repsync_things"):
        metrics.count("repsync_things", "Things", "kind", dict)


def test_a_histogram_counts_into_the_bucket_that_has_room() -> None:
    sizes = Histogram((1, 2, 4))
    for size in (1, 2, 2, 3, 4, 5, 100):
        sizes.observe(size)
    assert sizes.buckets() == [("1.0", 1), ("2.0", 3), ("4.0", 5), ("+Inf", 7)]
    assert (sizes.count, sizes.total) == (7, 117)
