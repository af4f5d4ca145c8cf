"""A training export played through real sockets, and whether a bad outcome is noticed."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from server.replay import play
from server.replay.check import Evidence, check_workout
from server.replay.exports import read_export
from server.replay.play import replay
from server.settings import Settings
from tests.helpers.proxies import proxied
from tests.helpers.servers import ROOT, RunningServer, clean_env

DATA = Path(__file__).parents[2] / "data"
HEVY, STRONG = DATA / "hevy.csv", DATA / "strong.csv"
REAL = os.environ.get("REPSYNC_EXPORTS_DIR")

TIMED = {"propagation p50 (ms)", "propagation p99 (ms)", "operations resent"}
"""Figures that differ from run to run: where a cut falls is a matter of milliseconds."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=0)


def figures(out: str) -> dict[str, str]:
    """The table of a printed report."""
    return dict(re.findall(r"^│ (.+?) +│ +(\S+) │$", out, flags=re.MULTILINE))


# -- a good outcome ---------------------------------------------------------------------------


async def test_a_hevy_export_ends_the_same_on_every_replica(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(settings, HEVY) == 0
    out = capsys.readouterr().out
    shown = figures(out)
    assert shown["workouts"] == "6"
    assert shown["templates"] == "3"
    assert shown["sets"] == "47"
    assert shown["volume (kg)"] == "8,477.5"
    assert shown["records"] == "22"
    assert shown["rows skipped"] == "1"
    assert shown["problems"] == "0"
    assert shown["all replicas equal"] == "yes"
    assert "line 22: set not done: no reps, seconds or distance" in out


async def test_a_strong_export_ends_the_same_on_every_replica(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(settings, STRONG) == 0
    shown = figures(capsys.readouterr().out)
    assert (shown["workouts"], shown["sets"], shown["records"]) == ("2", "10", "8")
    # 2 × 110×5 + 110×4 + 37.5×8 + 37.5×7 + 30×9
    assert shown["volume (kg)"] == "2,372.5"
    assert shown["all replicas equal"] == "yes"


async def test_connections_are_lost_and_edits_are_made_offline(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await replay(settings, HEVY)
    shown = figures(capsys.readouterr().out)
    assert int(shown["reconnects"]) > 10
    assert int(shown["edits made offline"]) > 10
    assert float(shown["propagation p50 (ms)"]) <= float(shown["propagation p99 (ms)"])


async def test_the_same_seed_has_the_same_accidents(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = []
    for seed in (7, 7, 8):
        assert await replay(settings, HEVY, seed=seed) == 0
        shown = figures(capsys.readouterr().out)
        outcomes.append({name: shown[name] for name in shown.keys() - TIMED})
    assert outcomes[0] == outcomes[1] != outcomes[2]


async def test_a_limit_plays_the_first_workouts_only(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(settings, HEVY, limit=2) == 0
    shown = figures(capsys.readouterr().out)
    assert (shown["workouts"], shown["sets"]) == ("2", "11")


async def test_a_pace_holds_for_all_devices_of_a_lifter_together(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert await replay(settings, STRONG, pace=20) == 0
    shown = figures(capsys.readouterr().out)
    assert time.monotonic() - began >= int(shown["sets"]) / 20


async def test_a_running_server_can_be_played_at_again_and_again(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path / "data", port=0)
    for _ in range(2):
        assert await replay(settings, STRONG, urls=[server.url]) == 0
    assert capsys.readouterr().out.count(" as lifter-") == 2


async def test_devices_are_spread_over_all_addresses_that_are_named(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path / "data", port=0)
    port = urlsplit(server.url).port or 0
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(proxied("127.0.0.1", port)) for _ in range(3)]
        proxies[1].latency(0.02, jitter_s=0.02)
        urls = [proxy.url(server.url) for proxy in proxies]
        assert await replay(settings, STRONG, urls=urls) == 0, capsys.readouterr().out
        assert all(proxy.accepted > 0 for proxy in proxies)


async def test_records_count_from_what_a_given_user_had_reached(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path / "data", port=0)
    for _ in range(2):
        assert await replay(settings, STRONG, urls=[server.url], user_id="ana") == 0
    assert "Records count from what this user had reached before." in capsys.readouterr().out


# -- a bad outcome ----------------------------------------------------------------------------


def lose_a_set(seen: Evidence) -> None:
    gone = seen.snapshot["sets"].pop(0)["id"]
    del seen.laptop["sets"][gone], seen.fresh["sets"][gone]


def double_a_set(seen: Evidence) -> None:
    twin = {**seen.snapshot["sets"][-1], "id": "~twin"}
    seen.snapshot["sets"].append(twin)
    for replica in (seen.laptop, seen.fresh):
        replica["sets"]["~twin"] = {key: value for key, value in twin.items() if key != "id"}


def change_a_weight(seen: Evidence) -> None:
    changed = next(item for item in seen.snapshot["sets"] if "weight_kg" in item)
    for item in (changed, seen.laptop["sets"][changed["id"]], seen.fresh["sets"][changed["id"]]):
        item["weight_kg"] += 0.5


def change_the_laptop(seen: Evidence) -> None:
    next(iter(seen.laptop["sets"].values()))["kind"] = "drop"


def change_the_newcomer(seen: Evidence) -> None:
    seen.fresh["exercises"].popitem()


def raise_a_record(seen: Evidence) -> None:
    seen.snapshot["progress"][seen.user_id]["records"][-1]["value"] *= 2


def forget_the_records(seen: Evidence) -> None:
    seen.snapshot["progress"][seen.user_id]["records"].clear()
    seen.told.records.clear()
    seen.acked.clear()


def tell_a_set_twice(seen: Evidence) -> None:
    seen.told.completed[seen.plan.sets[0].set_id] += 1


def forget_to_tell_a_set(seen: Evidence) -> None:
    del seen.told.completed[seen.plan.sets[0].set_id]


def carry_out_twice(seen: Evidence) -> None:
    logged = next(item for item in seen.plan.sets if item.device == "watch")
    seen.told.updated[logged.set_id] += 1


def reward_a_warm_up(seen: Evidence) -> None:
    warm_up = next(item for item in seen.plan.sets if item.logged.kind == "warmup")
    record = {"set_id": warm_up.set_id, "type": "weight", "value": warm_up.logged.weight_kg}
    exercise = next(
        item["exercise"] for item in seen.snapshot["sets"] if item["id"] == warm_up.set_id
    )
    seen.snapshot["progress"][seen.user_id]["records"].append({**record, "exercise": exercise})
    seen.told.records.add(warm_up.set_id)


def miscount_the_volume(seen: Evidence) -> None:
    seen.snapshot["progress"][seen.user_id]["volume_kg"] += 0.001


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lose_a_set, "lost"),
        (double_a_set, "doubled"),
        (change_a_weight, "changed"),
        (change_the_laptop, "unequal"),
        (change_the_newcomer, "unequal"),
        (raise_a_record, "records"),
        (forget_the_records, "records"),
        (tell_a_set_twice, "events"),
        (forget_to_tell_a_set, "events"),
        (carry_out_twice, "events"),
        (reward_a_warm_up, "records"),
        (miscount_the_volume, "changed"),
    ],
)
async def test_a_damaged_outcome_is_noticed(
    damage: Callable[[Evidence], None],
    kind: str,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check_damaged(seen: Evidence) -> Any:
        assert check_workout(deepcopy(seen)) == []
        damage(seen)
        return check_workout(seen)

    monkeypatch.setattr(play, "check_workout", check_damaged)
    assert await replay(settings, HEVY, limit=1) == 1
    out = capsys.readouterr().out
    assert re.search(rf"^  {kind}: ", out, flags=re.MULTILINE)
    assert figures(out)["problems"] != "0"
    assert figures(out)["all replicas equal"] == ("no" if kind == "unequal" else "yes")


async def test_a_server_that_refuses_an_intent_ends_the_replay(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path / "data", port=0)
    phone = await server.events("ana")
    made = await phone.do("workout:create", {})
    await phone.do("workout:start", {"workout_id": made["workout"]["id"]})
    assert await replay(settings, STRONG, urls=[server.url], user_id="ana") == 1
    out = capsys.readouterr().out
    assert "stopped: workout 1 (Ridge Day): workout:start: conflict" in out
    assert figures(out)["all replicas equal"] == "no"


# -- nothing to play --------------------------------------------------------------------------


async def test_a_file_that_is_no_export_is_named(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "shopping.csv"
    file.write_text("item,price\nmilk,1\n")
    assert await replay(settings, file) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "shopping.csv: not a Strong or Hevy export" in shown.err


async def test_a_missing_file_is_named(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(settings, tmp_path / "none.csv") == 2
    assert "none.csv" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://"])
async def test_a_server_out_of_reach_is_named(
    url: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(settings, STRONG, urls=[url]) == 2
    assert f"{url}: unreachable" in capsys.readouterr().err


async def test_a_server_with_another_secret_is_named(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path / "elsewhere", port=0)
    assert await replay(settings, STRONG, urls=[server.url]) == 2
    assert "unauthenticated" in capsys.readouterr().err


# -- as a command -----------------------------------------------------------------------------


@pytest.mark.system
async def test_the_command_leaves_nothing_behind_and_warns_of_nothing(tmp_path: Path) -> None:
    tmp_path.joinpath("tmp").mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-m", "server", "replay", str(STRONG)),
        cwd=ROOT,
        env={**clean_env(), "DATA_DIR": str(tmp_path / "data"), "TMPDIR": str(tmp_path / "tmp")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert err.decode() == ""
    assert process.returncode == 0
    assert figures(out.decode())["all replicas equal"] == "yes"
    assert list(tmp_path.joinpath("tmp").iterdir()) == []
    assert not tmp_path.joinpath("data").exists()


@pytest.mark.system
@pytest.mark.skipif(REAL is None, reason="REPSYNC_EXPORTS_DIR is not set")
@pytest.mark.parametrize("name", ["hevy-sample.csv", "strong-sample.csv"])
async def test_a_real_export_ends_the_same_on_every_replica(
    name: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(REAL or "") / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    assert await replay(settings, path) == 0, capsys.readouterr().out
    shown = figures(capsys.readouterr().out)
    sets = sum(len(workout.sets) for workout in read_export(path).workouts)
    assert shown["sets"] == str(sets)
    assert shown["all replicas equal"] == "yes"
