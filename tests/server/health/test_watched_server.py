"""A server that is looked after: its health, what admins see, and the alerts, as they come out."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

import server as package
from crdt import ids
from crdt.errors import Unavailable
from handlers.context import Context
from server.alerts.errors import THRESHOLDS
from server.health.activity import MAX_RECORDS
from server.replay.devices import EventClient
from tests.helpers.receivers import receiving
from tests.helpers.rooms import until
from tests.helpers.servers import ROOT, RunningServer, get, running_server
from tests.server.transport.support import deaf, shrink

WORKOUT = ids.workout("w")
HERE = {"workout_id": WORKOUT.id}
PATIENCE_S = 30.0


async def train(client: EventClient, **fields: Any) -> None:
    await client.do("workout:create", {**HERE, "title": "Leg day", **fields})
    squat = {"exercise_id": "squat", "exercise": {"name": "Squat"}}
    await client.do("workout:exercise:add", {**HERE, **squat})
    await client.do("workout:start", HERE)


async def lift(client: EventClient, weight_kg: float) -> dict[str, Any]:
    done = {"weight_kg": weight_kg, "reps": 5}
    return await client.do("workout:set:complete", {**HERE, "exercise_id": "squat", "set": done})


def fail_with(error: Exception) -> Any:
    async def fail() -> float:
        raise error

    return fail


def alerts(server: RunningServer) -> dict[str, dict[str, Any]]:
    return {alert["key"]: alert for alert in server.parts.watch.alerts.firing()}


# -- the report -----------------------------------------------------------------------------------


async def test_each_dependency_says_how_it_is_and_since_when(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    await until(lambda: "latency_ms" in server.parts.health.report()["dependencies"]["disk"])
    await until(lambda: "latency_ms" in server.parts.health.report()["dependencies"]["store"])
    await until(lambda: server.parts.health.report()["status"] == "healthy")  # a slow start
    _, report = await get(http, "/health")
    assert report["dependencies"].keys() == {"store", "event_loop", "disk"}
    now_ms = server.parts.hub._clock.now_ms()
    for dependency in report["dependencies"].values():
        assert dependency["state"] == "healthy"
        assert now_ms - 60_000 < dependency["since"] <= now_ms
    told = ("send_queue_bytes", "oldest_unflushed_ms", "spool_bytes", "deaf_s", "quarantined")
    assert [report[name] for name in told] == [0, 0, 0, 0, 0]
    assert len(report["instance"]) == 12


def test_the_version_is_that_of_the_project() -> None:
    assert f'\nversion = "{package.VERSION}"\n' in (ROOT / "pyproject.toml").read_text()


async def test_who_runs_is_live_even_if_it_is_not_ready(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    server.parts.health.is_draining = True
    assert await get(http, "/live") == (200, {"live": True})
    assert (await get(http, "/ready"))[0] == 503


async def test_a_change_is_told_and_logged_and_so_is_the_recovery(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.health")
    changes: list[tuple[str, str]] = []
    server.parts.health.on_change(lambda change: changes.append((change.name, change.after)))
    with monkeypatch.context() as patch:
        failing = fail_with(Unavailable("not now"))
        patch.setattr(server.parts.store, "check", failing)
        await until(lambda: ("store", "unhealthy") in changes)
        since = server.parts.health.report()["dependencies"]["store"]["since"]
    await until(lambda: ("store", "healthy") in changes)
    assert server.parts.health.report()["dependencies"]["store"]["since"] >= since
    said = [(record.getMessage(), vars(record).get("dependency")) for record in caplog.records]
    assert ("a dependency is not well", "store") in said
    assert ("a dependency has recovered", "store") in said


async def test_a_data_folder_that_is_gone_makes_an_embedded_server_unhealthy(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    disk = server.parts.health._disk
    assert disk is not None
    await disk.probe()  # so that none is under way
    disk._folder = server.folder / "gone"
    await disk.probe()
    status, report = await get(http, "/health")
    assert (status, report["dependencies"]["disk"]["state"]) == (503, "unhealthy")


async def test_an_edit_that_waits_for_its_append_is_seen_to_wait(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await server.events("ana")
    await train(phone)
    going_on, stock = asyncio.Event(), server.parts.store.append

    async def slowly(batch: Any) -> Any:
        await going_on.wait()
        return await stock(batch)

    monkeypatch.setattr(server.parts.store, "append", slowly)
    waiting = asyncio.ensure_future(lift(phone, 100))
    await until(lambda: server.parts.health.report()["oldest_unflushed_ms"] > 50)
    going_on.set()
    await waiting
    assert server.parts.health.report()["oldest_unflushed_ms"] == 0


async def test_the_deepest_send_queue_is_that_of_the_client_that_reads_least(
    server: RunningServer,
) -> None:
    async with deaf(server.url) as client:
        (connection,) = server.parts.sockets.eio.sockets.values()
        shrink(connection)
        await client.send(f'40{{"token":"{server.token("ana")}"}}')
        await until(lambda: server.parts.gateway.session_counts["events"] == 1)
        (sid,) = server.parts.gateway._sessions
        for _ in range(40):
            server.parts.sockets.post("/", [sid], "chat:message", "x" * 10_000)
        await until(lambda: server.parts.health.report()["send_queue_bytes"] > 50_000)
    await until(lambda: server.parts.health.report()["send_queue_bytes"] == 0)


async def test_a_document_that_cannot_be_read_is_counted_and_named_until_it_can(
    tmp_path: Path,
) -> None:
    async with running_server(tmp_path, room_idle_timeout_s=0.01) as server:
        phone = await server.events("ana")
        await train(phone)
        await phone.close()

        def database(statement: str) -> list[Any]:
            with sqlite3.connect(tmp_path / "repsync.db") as db:
                found = db.execute(statement).fetchall()
            db.close()
            return found

        await until(lambda: database("SELECT 1 FROM documents WHERE snapshot IS NOT NULL"))
        database("UPDATE documents SET snapshot_crc = snapshot_crc + 1")
        phone = await server.events("ana")
        answer = await phone.ask("workout:sync", HERE)
        assert answer["error"]["code"] == "unavailable"
        overview = server.parts.watch.overview.value()
        assert overview["quarantined"] == 1
        (shown,) = overview["quarantined_documents"]
        assert shown["doc"] == "workout:w"
        assert "damaged" in shown["cause"]
        assert overview["status"] == "healthy"
        await until(lambda: "quarantined" in alerts(server))
        assert "workout:w" not in str(server.parts.health.report())
        database("UPDATE documents SET snapshot_crc = snapshot_crc - 1")
        await phone.do("workout:sync", HERE)
        assert server.parts.health.report()["quarantined"] == 0
        await until(lambda: "quarantined" not in alerts(server))


# -- what admins see besides ----------------------------------------------------------------------


async def test_workouts_that_go_on_are_shown_and_those_that_are_over_are_not(
    server: RunningServer,
) -> None:
    phone = await server.events("ana")
    await train(phone, mode="group")
    await lift(phone, 100)
    await phone.do("workout:create", {"workout_id": "planned"})
    overview = server.parts.watch.overview.value()
    assert overview["live"] == [
        {
            "workout_id": "w",
            "title": "Leg day",
            "status": "active",
            "participants": 1,
            "sets": 1,
            "mode": "group",
        }
    ]
    await phone.do("workout:complete", HERE)
    assert server.parts.watch.overview.value()["live"] == []


async def test_the_busiest_rooms_are_those_that_change_most(server: RunningServer) -> None:
    phone = await server.events("ana")
    await train(phone)
    await phone.do("workout:create", {"workout_id": "quiet"})
    for weight in range(5):
        await lift(phone, 100 + weight)
    overview = server.parts.watch.overview
    busiest, quiet = overview.value()["busiest"]
    assert (busiest["doc"], busiest["title"], busiest["members"]) == ("workout:w", "Leg day", 1)
    assert quiet["doc"] == "workout:quiet"
    assert busiest["updates_per_s"] > quiet["updates_per_s"] > 0
    overview.note()
    assert overview.value()["busiest"]
    overview.note()
    assert overview.value()["busiest"] == []


async def test_records_are_shown_as_they_are_won_the_newest_first(server: RunningServer) -> None:
    phone = await server.events("ana", name="Ana")
    await train(phone)
    await lift(phone, 100)
    before = server.parts.watch.overview.value()["records"]
    assert {record["type"] for record in before} == {"weight", "volume", "e1rm"}
    await lift(phone, 50)
    assert server.parts.watch.overview.value()["records"] == before
    await lift(phone, 110)
    newest = server.parts.watch.overview.value()["records"][:3]
    (weight,) = [record for record in newest if record["type"] == "weight"]
    assert weight["value"] == 110
    assert weight["user"] == {"id": "ana", "name": "Ana"}
    assert (weight["workout_id"], weight["exercise"]) == ("w", "Squat")
    for more in range(10):
        await lift(phone, 120 + more)
    assert len(server.parts.watch.overview.value()["records"]) == MAX_RECORDS


async def test_the_history_tells_how_much_there_was_since_the_point_before(
    server: RunningServer,
) -> None:
    phone = await server.events("ana")
    await train(phone)
    overview = server.parts.watch.overview
    overview.note()
    laptop = await server.document("ana", WORKOUT)
    for weight in range(3):
        await lift(phone, 100 + weight)
    await laptop.until(lambda: len(laptop.content()["sets"]) == 3)
    overview.note()
    overview.note()
    *_, busy, still = overview.value()["history"]
    assert busy["t"] <= still["t"]
    assert (busy["status"], busy["rooms"], busy["connections"]) == ("healthy", 1, 2)
    assert busy["updates_per_s"] > 0
    assert busy["deliveries_per_s"] > 0
    assert still["updates_per_s"] == still["deliveries_per_s"] == 0
    assert still["lag_ms"] >= 0


async def test_a_server_alone_is_its_only_instance(server: RunningServer) -> None:
    overview = server.parts.watch.overview.value()
    (here,) = overview["instances"]
    assert here["instance"] == overview["instance"]
    assert (here["status"], here["seen_ms_ago"]) == ("healthy", 0)
    assert overview["alerts"] == []


# -- alerts ---------------------------------------------------------------------------------------


async def test_a_store_that_fails_is_an_alert_until_it_is_back(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.alerts")
    with monkeypatch.context() as patch:
        patch.setattr(server.parts.store, "check", fail_with(Unavailable("not now")))
        await until(lambda: "dependency:store" in alerts(server))
        assert alerts(server)["dependency:store"]["severity"] == "critical"
        assert server.parts.watch.overview.value()["alerts"] == list(alerts(server).values())
    await until(lambda: not alerts(server))
    said = [record for record in caplog.records if record.name == "server.alerts.watch"]
    assert [record.getMessage() for record in said] == [
        "an alert is firing",
        "an alert is resolved",
    ]
    assert {vars(record)["key"] for record in said} == {"dependency:store"}


async def test_admins_watch_a_dependency_fail_and_come_back(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = await server.events("ana", role="admin")
    answer = await board.do("subscribe", {"streams": ["system:health", "system:alerts"]})
    assert answer["denied"] == []
    with monkeypatch.context() as patch:
        patch.setattr(server.parts.store, "check", fail_with(Unavailable("not now")))
        shown = await board.next("system:health", lambda value: value["status"] == "unhealthy")
        assert shown["dependencies"]["store"]["error"] == "not now"
        fired = await board.next("system:alert")
        assert (fired["stream"], fired["key"]) == ("system:alerts", "dependency:store")
        assert (fired["severity"], fired["state"]) == ("critical", "firing")
        shown = await board.next("system:health", lambda value: value["alerts"])
        assert shown["alerts"][0]["id"] == fired["id"]
    resolved = await board.next("system:alert")
    assert (resolved["id"], resolved["state"]) == (fired["id"], "resolved")
    assert resolved["seq"] == fired["seq"] + 1
    shown = await board.next("system:health", lambda value: value["status"] == "healthy")
    assert {"instances", "busiest", "live", "records", "history"} <= shown.keys()


async def test_who_is_no_admin_sees_no_more_than_anybody(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    _, report = await get(http, "/health")
    hidden = server.parts.watch.overview.value().keys() - report.keys()
    assert hidden == {
        *("instances", "busiest", "live", "records", "history", "alerts"),
        "quarantined_documents",
    }


async def test_alerts_reach_the_webhook_and_what_is_wrong_with_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as receiver:
        receiver.statuses = [503, 503]
        secret = SecretStr("a secret of more than thirty-two bytes")
        async with running_server(
            tmp_path, alert_webhook_url=SecretStr(receiver.url), alert_webhook_secret=secret
        ) as server:
            with monkeypatch.context() as patch:
                patch.setattr(server.parts.store, "check", fail_with(Unavailable("not now")))
                await until(lambda: "dependency:webhook" in alerts(server), PATIENCE_S)
                await until(lambda: receiver.got, PATIENCE_S)
            await until(lambda: len(receiver.got) == 2 and not alerts(server), PATIENCE_S)
            report = server.parts.health.report()["dependencies"]["webhook"]
            assert (report["state"], report["waiting"]) == ("healthy", 0)
            async with aiohttp.ClientSession(server.url) as http, http.get("/metrics") as response:
                text = await response.text()
    assert 'repsync_alert_deliveries_total{outcome="delivered"} 2.0' in text
    assert 'repsync_alert_deliveries_total{outcome="failed"} 2.0' in text
    fired, resolved = receiver.got
    assert (fired["key"], fired["state"]) == ("dependency:store", "firing")
    assert (resolved["key"], resolved["state"]) == ("dependency:store", "resolved")
    assert fired["id"] == resolved["id"]
    assert fired["server_time"] <= resolved["server_time"]


async def test_handlers_that_fail_again_and_again_are_an_alert(
    server: RunningServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(Context, "room", fail)
    phone = await server.events("ana")
    least = min(count for count, _ in THRESHOLDS)
    for number in range(least):
        answer = await phone.ask("workout:sync", {"workout_id": f"w{number}"})
        assert answer["error"]["code"] == "internal"
    (key,) = await _some(server)
    assert key == "errors:handlers.registry: handler failed workout:sync RuntimeError"
    alert = alerts(server)[key]
    assert (alert["severity"], alert["count"], alert["window_s"]) == ("info", least, 60)
    async with http.get("/metrics") as response:
        text = await response.text()
    assert 'repsync_errors_total{severity="none"} 9.0' in text
    assert 'repsync_errors_total{severity="info"} 1.0' in text
    assert "repsync_error_budget_remaining 40.0" in text
    assert 'repsync_alerts_firing{severity="info"} 1.0' in text


async def _some(server: RunningServer) -> dict[str, dict[str, Any]]:
    await until(lambda: alerts(server))
    return alerts(server)
