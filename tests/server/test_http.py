"""Plain HTTP: how the server is, for load balancers, for Prometheus, and for the curious."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pycrdt import Map

from crdt import ids
from crdt.errors import Unavailable
from server.health import SLOW_STORE_S
from server.replay.devices import Refused
from tests.helpers.servers import RunningServer, get

DEADLINE_S = 10.0
WORKOUT = ids.workout("w")


async def until_health(http: aiohttp.ClientSession, status: int) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found, report = await get(http, "/health")
            if found == status:
                return dict(report)


async def metrics(http: aiohttp.ClientSession) -> dict[str, Any]:
    """Sample name and labels -> value; what the parser refuses is an error."""
    async with http.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    return {
        "".join(
            [sample.name, *(f"|{key}={value}" for key, value in sorted(sample.labels.items()))]
        ): (sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# -- health ---------------------------------------------------------------------------------------


async def test_a_server_that_is_well_says_so(http: aiohttp.ClientSession) -> None:
    report = await until_health(http, 200)  # a busy machine is slow for a moment
    assert report["status"] == "healthy"
    assert report["dependencies"]["store"]["state"] == "healthy"
    assert report["dependencies"]["event_loop"]["state"] == "healthy"
    assert report["connections"] == 0
    assert report["rooms"] == 0
    assert await get(http, "/ready") == (200, {"ready": True})


async def test_a_store_that_fails_makes_the_server_unhealthy_until_it_is_back(
    server: RunningServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> float:
        raise Unavailable("the store cannot be written now") from OSError("no room on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(server.parts.store, "check", fail)
        report = await until_health(http, 503)
        assert report["status"] == "unhealthy"
        assert report["dependencies"]["store"]["state"] == "unhealthy"
        assert "no room on the disk" in report["dependencies"]["store"]["error"]
        assert await get(http, "/ready") == (503, {"ready": False})
        board = await server.events("ana", role="admin")
        await board.do("subscribe", {"streams": ["system:health"]})
        assert (await board.next("system:health"))["status"] == "unhealthy"
    report = await until_health(http, 200)
    assert "error" not in report["dependencies"]["store"]
    assert await get(http, "/ready") == (200, {"ready": True})


async def test_a_slow_store_degrades_the_server(
    server: RunningServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly() -> float:
        return SLOW_STORE_S * 2

    monkeypatch.setattr(server.parts.store, "check", slowly)
    report = await until_health(http, 206)
    assert report["status"] == "degraded"
    assert report["dependencies"]["store"]["latency_ms"] == 2_000
    assert await get(http, "/ready") == (200, {"ready": True})


async def test_a_store_that_does_not_answer_is_noticed(
    server: RunningServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> float:
        await asyncio.Event().wait()
        return 0.0

    monkeypatch.setattr(server.parts.store, "check", never)
    async with asyncio.timeout(DEADLINE_S):
        while (await get(http, "/health"))[1]["dependencies"]["store"]["state"] == "healthy":
            pass


async def test_an_error_that_nobody_foresaw_does_not_end_the_probes(
    server: RunningServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = asyncio.Condition()
    count = 0

    async def fail() -> float:
        nonlocal count
        count += 1
        async with calls:
            calls.notify_all()
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(server.parts.store, "check", fail)
    async with asyncio.timeout(4), calls:
        await calls.wait_for(lambda: count >= 2)


async def test_a_server_that_is_going_away_takes_nobody_new(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    server.parts.health.is_draining = True
    assert await get(http, "/ready") == (503, {"ready": False})
    await until_health(http, 200)


# -- metrics --------------------------------------------------------------------------------------


async def test_the_metrics_tell_what_has_happened(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    ana = await server.events("ana", role="admin")
    await ana.do("workout:create", {"workout_id": WORKOUT.id})
    mine, other = await server.document("ana", WORKOUT), await server.document("ana", WORKOUT)
    mine.map("sets")["s1"] = Map({"user_id": "ana", "reps": 5.0})
    await mine.settled()
    await other.until(lambda: "s1" in other.content()["sets"])
    await ana.ask("workout:sync", {"workout_id": "none"})
    await ana.ask("workout:dance", {})
    await ana.do("subscribe", {"streams": ["system:health"]})
    with pytest.raises(Refused):
        await server.document("ben", WORKOUT)
    found = await metrics(http)
    assert found["repsync_connections"] == 3
    assert found["repsync_sessions|kind=events"] == 1
    assert found["repsync_sessions|kind=document"] == 2
    assert found["repsync_rooms"] == 1
    assert found["repsync_stream_watchers"] == 1
    assert found["repsync_event_loop_lag_seconds"] >= 0
    assert found["repsync_store_appends_total"] == 2
    assert found["repsync_store_commit_seconds_count"] >= 2
    assert found["repsync_store_commit_seconds_sum"] > 0
    assert found["repsync_store_failures_total"] == 0
    assert found["repsync_update_deliveries_total"] == 1
    assert found["repsync_connections_refused_total|code=forbidden"] == 1
    assert found["repsync_events_total|code=ok|event=workout:create"] == 1
    assert found["repsync_events_total|code=not_found|event=workout:sync"] == 1
    assert found["repsync_events_total|code=not_found|event=unknown"] == 1
    assert found["repsync_ack_seconds_count|kind=events"] >= 4


async def test_no_client_chooses_the_name_of_a_metric(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    ana = await server.events("ana")
    await ana.do("workout:create", {"workout_id": WORKOUT.id})
    laptop = await server.document("ana", WORKOUT)
    before = set(await metrics(http))
    for number in range(5):
        await ana.ask(f"strange:{number}", {"workout_id": f"strange{number}"})
        await laptop._call(f"strange:{number}", {}, timeout_s=DEADLINE_S)
    found = await metrics(http)
    assert not [name for name in found if "strange" in name]
    new = {name for name in set(found) - before if not name.startswith("repsync_ack_seconds")}
    assert {name.partition("|")[2] for name in new} == {"code=not_found|event=unknown"}


async def test_a_refused_update_is_counted_once(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    ana = await server.events("ana")
    await ana.do("workout:create", {"workout_id": WORKOUT.id})
    laptop = await server.document("ana", WORKOUT)
    before = await metrics(http)
    await laptop.send(b"\x01")
    found = await metrics(http)
    key = "repsync_events_total|code={}|event=sync-update"
    assert found[key.format("invalid")] == 1
    assert found.get(key.format("ok"), 0) == before.get(key.format("ok"), 0)


async def test_what_counts_up_is_a_counter(http: aiohttp.ClientSession) -> None:
    async with http.get("/metrics") as response:
        families = {f.name: f for f in text_string_to_metric_families(await response.text())}
    assert families["repsync_events"].type == "counter"
    assert families["repsync_ack_seconds"].type == "histogram"
    assert families["repsync_rooms"].type == "gauge"
    assert all(family.documentation for family in families.values())


# -- the rest -------------------------------------------------------------------------------------


async def test_who_opens_the_address_is_greeted(http: aiohttp.ClientSession) -> None:
    async with http.get("/") as response:
        assert response.status == 200
        assert "RepSync" in await response.text()


@pytest.mark.parametrize("path", ["/nothing", "/health/", "/metrics/x", "/../data/jwt_secret"])
async def test_what_there_is_not_is_not_found(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as response:
        assert response.status == 404


async def test_a_page_from_elsewhere_is_not_let_in(http: aiohttp.ClientSession) -> None:
    url = "/socket.io/?EIO=4&transport=polling"
    async with http.get(url, headers={"Origin": "https://elsewhere.example"}) as response:
        assert response.status == 400
        assert "Access-Control-Allow-Origin" not in response.headers
