"""The page at `/` in a real browser, against real servers: what somebody who watches sees."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser

from server import dashboard
from server.replay.devices import EventClient
from server.replay.exports import read_export
from server.replay.lifter import Lifter
from server.replay.play import Playback
from server.replay.report import Report
from tests.helpers import browsers
from tests.helpers.browsers import Watcher, watcher
from tests.helpers.clusters import running_cluster
from tests.helpers.servers import ROOT, RunningServer, ServerProcess, running_server

pytestmark = pytest.mark.system

LogASet = Callable[..., Awaitable[None]]

TITLE = "Leg day <img src=x onerror=alert(1)>"


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    async with browsers.browser() as started:
        yield started


def operator(server: RunningServer, **claims: Any) -> str:
    return server.token("operator", name="Operator", role="admin", **claims)


# -- tokens ---------------------------------------------------------------------------------------


async def test_a_token_that_is_not_taken_is_asked_for_again_with_the_reason(
    server: RunningServer, chromium: Browser
) -> None:
    async with watcher(chromium, server.url) as ana:
        for token, reason in (
            ("nonsense", "unauthenticated"),
            (operator(server, ttl_s=-60), "token_expired"),
        ):
            await ana.give(token)
            await ana.says("#reason", reason)
            assert await ana.page.input_value("#token") == ""
        await ana.give(operator(server))
        await ana.says("#link", "Live")
        assert await ana.page.locator("#ask").is_hidden()
        assert await ana.page.evaluate("localStorage.length") == 0
        await ana.page.reload()  # the tab keeps it
        await ana.says("#link", "Live")


async def test_a_token_that_expires_while_watching_leaves_what_was_shown_marked_as_old(
    server: RunningServer, chromium: Browser
) -> None:
    async with watcher(chromium, server.url) as ana:
        await ana.give(operator(server, ttl_s=3))
        await ana.says("#dependencies", "store")
        await ana.says("#reason", "token_expired")
        await ana.says("#link", "No data for")
        assert await ana.page.locator("body.old #dependencies").is_visible()
        await ana.give(operator(server))
        await ana.until("!document.body.classList.contains('old')")


# -- servers that come and go ---------------------------------------------------------------------


async def test_a_server_that_dies_is_said_to_be_away_and_is_found_again(
    tmp_path: Path, chromium: Browser
) -> None:
    server = ServerProcess(tmp_path)
    try:
        await server.start()
        assert server.process is not None
        assert server.process.stdout is not None
        greeting = (await server.process.stdout.read(4_096)).decode()
        found = re.search(r"token for the dashboard +(\S+)", greeting)
        assert found is not None
        async with watcher(chromium, server.url, may_fail=True) as ana:
            await ana.give(found[1])
            await ana.says("#link", "Live")
            await ana.says("#dependencies", "store")
            server.pause()  # nothing ends, nothing comes
            await ana.says("#link", "No data for 7 s")
            server.resume()
            await ana.until("!document.body.classList.contains('old')")
            await server.kill()
            await ana.says("#link", "trying again")
            assert await ana.page.locator("body.old").count() == 1
            await server.start()
            await ana.says("#link", "Live", timeout_s=20)
    finally:
        await server.stop()


# -- what is shown --------------------------------------------------------------------------------


async def test_the_page_moves_while_people_train(
    server: RunningServer, chromium: Browser, tmp_path: Path
) -> None:
    demand_charts()
    phone = await server.events("cleo", name="Cleo")
    await begin_workout(phone)  # a private one, of a title that looks like markup
    _, log_a_set = await begin_workout(await server.events("dee", name="Dee"), visibility="public")
    async with (
        training(server),
        raising_the_bar(log_a_set),
        watcher(chromium, server.url) as desk,
        watcher(chromium, server.url, size=browsers.PHONE, scheme="dark") as mobile,
    ):
        await asyncio.gather(*(see_it_move(who, operator(server)) for who in (desk, mobile)))
        await browsers.photograph(desk, tmp_path, "desktop")
        await browsers.photograph(mobile, tmp_path, "phone")


@pytest.mark.timeout(180)  # the cluster's start takes a while where much else goes on
async def test_a_redis_that_is_killed_shows_within_three_seconds_and_so_does_its_return(
    tmp_path: Path, chromium: Browser
) -> None:
    async with (
        running_cluster(tmp_path, size=1) as cluster,
        watcher(chromium, cluster.instances[0].url) as ana,
    ):
        assert cluster.redis is not None
        await ana.give(cluster.token("operator", role="admin"))
        redis = '#dependencies tr:has-text("redis")'
        await ana.says(f"{redis} .healthy", "healthy")
        assert "redis" not in await ana.text("#alerts")
        cluster.redis.kill()
        await ana.says(f"{redis} .degraded", "degraded", timeout_s=3)
        await ana.says("#status.degraded", "Degraded")
        await ana.says("#alerts .firing", "redis")
        await browsers.photograph(ana, tmp_path, "redis-away")
        await asyncio.to_thread(cluster.redis.start)
        await ana.says(f"{redis} .healthy", "healthy")
        await ana.says("#alerts .resolved", "redis")


async def test_without_the_chart_library_the_page_draws_by_itself(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dashboard.FOLDER / "src", tmp_path / "dashboard" / "src")
    monkeypatch.setattr(dashboard, "FOLDER", tmp_path / "dashboard")
    async with running_server(tmp_path / "data") as server:
        _, log_a_set = await begin_workout(await server.events("ana"), visibility="public")
        async with watcher(chromium, server.url) as ana:
            await ana.give(operator(server))
            line = "document.querySelector('#live polyline')?.getAttribute('points')"
            await ana.until(line)
            before = await ana.page.evaluate(line)
            await log_a_set(weight_kg=100)
            await ana.until(f"{line} !== {before!r}")


async def test_somebody_who_is_no_admin_sees_their_own_training_and_is_told_why(
    server: RunningServer, chromium: Browser, tmp_path: Path
) -> None:
    phone = await server.events("ana", name="Ana")
    workout_id, log_a_set = await begin_workout(phone)
    await log_a_set(weight_kg=100)
    async with watcher(chromium, server.url, size=browsers.PHONE, scheme="dark") as ana:
        await ana.give(server.token("ana", name="Ana"))
        await ana.says("#own-note", "system streams are for admins")
        await ana.says("#own-workouts", TITLE)
        await ana.says("#own-records", "heaviest: 100 kg")
        await ana.says("#own-live table", "500 kg")
        await log_a_set(weight_kg=120)
        await ana.says("#own-live table", "1,100 kg")
        await ana.says("#own-records", "heaviest: 120 kg")
        assert await ana.page.locator("#system").is_hidden()
        assert await ana.fits()
        await browsers.photograph(ana, tmp_path, "own")
        await phone.do("workout:complete", {"workout_id": workout_id})
        await ana.says("#own-live", "You are not training")


def demand_charts() -> None:
    """Skip where npm has not brought the chart library; in CI it has to."""
    if (dashboard.FOLDER / "dist" / "uPlot.js").exists():
        return
    reason = "the chart library is not installed, run `make charts`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


async def see_it_move(watching: Watcher, token: str) -> None:
    await watching.give(token)
    await watching.says("#dependencies", "store")
    await watching.says("#live .workout", "Harbour")
    await watching.says("#live .workout", TITLE)
    await watching.says("#live .workout", "for those who may see this workout")
    await watching.says("#busiest", "Harbour")
    await watching.says("#instances", "healthy")
    await watching.says("#records li", "Ana")
    await changes(watching, "#records")
    await changes(watching, "#live .workout:has(canvas) table")
    await watching.until("document.querySelectorAll('#tiles canvas').length === 3")
    await changes(watching, "#tiles .tile:nth-child(2) .value")
    for canvas in ("#live canvas", "#tiles canvas"):
        await draws(watching, canvas)
    assert await watching.fits()


@asynccontextmanager
async def training(server: RunningServer) -> AsyncIterator[None]:
    """Ana replays an export, four sets a second, as long as the block runs."""
    export = read_export(ROOT / "tests" / "data" / "hevy.csv")

    def sign(user_id: str, role: str) -> str:
        return server.token(user_id, name=user_id.title(), role=role)

    async with Lifter([server.url], sign, "ana", pace=4) as ana:
        report = Report("ana", (), ana.tally)
        playback = Playback(ana, report, seed=1, may_have_trained=True, visibility="public")
        playing = asyncio.create_task(playback.play(itertools.cycle(export.workouts)))
        try:
            yield
        finally:
            playing.cancel()
            await asyncio.wait([playing])
    assert not report.problems


@asynccontextmanager
async def raising_the_bar(log_a_set: LogASet) -> AsyncIterator[None]:
    """A heavier set, and so a record, twice a second as long as the block runs. In the export they
    become rare."""

    async def lift() -> None:
        for weight_kg in itertools.count(100):
            await log_a_set(weight_kg=weight_kg)
            await asyncio.sleep(0.5)

    lifting = asyncio.create_task(lift())
    try:
        yield
    finally:
        lifting.cancel()
        await asyncio.wait([lifting])
    assert lifting.cancelled()


async def changes(watching: Watcher, selector: str) -> None:
    """Wait until an element has another text. Raises TimeoutError."""
    text = json.dumps(await watching.text(selector))
    await watching.until(f"document.querySelector('{selector}')?.innerText !== {text}")


async def draws(watching: Watcher, selector: str) -> None:
    """Wait until a canvas has another picture. There is none between two workouts.
    Raises TimeoutError."""
    picture = f"document.querySelector('{selector}')?.toDataURL()"
    drawn = json.dumps(await watching.until(picture))
    await watching.until(f"![undefined, {drawn}].includes({picture})")


async def begin_workout(phone: EventClient, **options: Any) -> tuple[str, LogASet]:
    """A workout that is under way. Returns: its id, and what logs a set of five squats in it."""
    made = await phone.do("workout:create", {"title": TITLE, **options})
    workout_id: str = made["workout"]["id"]
    await phone.do("workout:start", {"workout_id": workout_id})
    added = await phone.do(
        "workout:exercise:add", {"workout_id": workout_id, "exercise": {"name": "Squat"}}
    )

    async def log_a_set(**fields: Any) -> None:
        await phone.do(
            "workout:set:complete",
            {
                "workout_id": workout_id,
                "exercise_id": added["exercise_id"],
                "set": {"reps": 5, **fields},
            },
        )

    return workout_id, log_a_set
