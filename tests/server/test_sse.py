"""Streams over HTTP: the same as over a socket, for who has nothing but HTTP."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from crdt import ids
from server import sse
from server.streams import Update
from tests.helpers.event_streams import EventStream, event_stream
from tests.helpers.rooms import until
from tests.helpers.servers import RunningServer, ServerProcess, running_server
from tests.server.test_streams import done, log_set, make_workout

WORKOUT = ids.workout("w")
STREAM = f"{WORKOUT}:progress"


def watching(
    server: RunningServer, user_id: str, stream: str = STREAM, **claims: Any
) -> AbstractAsyncContextManager[EventStream]:
    last_event_id = claims.pop("last_event_id", None)
    url = f"{server.url}/streams/{stream}"
    return event_stream(url, server.token(user_id, **claims), last_event_id=last_event_id)


def bearer(server: RunningServer, user_id: str, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.token(user_id, **claims)}"}


# -- values --------------------------------------------------------------------------------------


async def test_the_present_comes_first_and_then_changes(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    async with watching(server, "ana") as board:
        first = await board.next("progress", done(0))
        assert first.data["stream"] == STREAM
        assert first.id == f"{ana.welcome['instance']}-{first.data['seq']}"
        await log_set(ana)
        second = await board.next("progress", done(1))
        assert second.data["seq"] == first.data["seq"] + 1
        assert board.retry_ms == sse.RETRY_MS
        assert board.response.headers["Cache-Control"] == "no-store"


async def test_a_value_is_the_same_over_both_ways(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    await ana.do("subscribe", {"streams": [STREAM]})
    async with watching(server, "ana") as board:
        assert (await board.next("progress")).data == await ana.next("progress")
        await log_set(ana)
        assert (await board.next("progress")).data == await ana.next("progress")
    assert server.parts.streams.stats.made == 2


async def test_who_comes_back_is_told_nothing_twice(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    async with watching(server, "ana") as board:
        seen = await board.next("progress")
    async with watching(server, "ana", last_event_id=seen.id) as board:
        await log_set(ana)
        change = await board.next("progress")
        assert change.data["seq"] == seen.data["seq"] + 1
        assert change.data["progress"]["ana"]["sets_done"] == 1
    await log_set(ana)
    async with watching(server, "ana", last_event_id=change.id) as board:
        await board.next("progress", done(2))


@pytest.mark.parametrize("odd", ["", "1", "abc-", "abcdef012345-1", "-1", "x" * 500, "0-٣"])
async def test_an_id_that_we_did_not_give_is_no_reason_to_leave_something_out(
    server: RunningServer, odd: str
) -> None:
    await make_workout(await server.events("ana"))
    async with watching(server, "ana", last_event_id=odd) as board:
        await board.next("progress", done(0))


async def test_alerts_that_were_missed_come_again(server: RunningServer) -> None:
    def push(number: int) -> None:
        server.parts.streams.push("system:alerts", {"id": str(number)})

    push(1)
    async with watching(server, "root", "system:alerts", role="admin") as board:
        await board.next("system:alert", lambda alert: alert["id"] == "1")
        push(2)
        seen = await board.next("system:alert", lambda alert: alert["id"] == "2")
    push(3)
    push(4)
    async with watching(
        server, "root", "system:alerts", role="admin", last_event_id=seen.id
    ) as board:
        await board.next("system:alert", lambda alert: alert["id"] == "4")
        assert [alert.data["id"] for alert in board.events] == ["3"]


async def test_a_quiet_stream_has_a_heartbeat(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.5)
    await make_workout(await server.events("ana"))
    async with watching(server, "ana") as board:
        await board.until(lambda: board.comments >= 2)


async def test_the_health_of_the_server_can_be_watched_by_anybody(server: RunningServer) -> None:
    async with event_stream(f"{server.url}/health/live", None) as board:
        first = await board.next("health")
        assert first.data["status"] == "healthy"
        again = await board.next("health")
        assert again.data["seq"] == first.data["seq"] + 1


# -- who -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer a.b.c",
        "Bearer " + "x" * 8_000,
        "bearer",
    ],
)
async def test_without_a_good_token_nothing_is_shown(
    http: aiohttp.ClientSession, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with http.get("/streams/system:health", headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert (await response.json())["error"]["code"] == "unauthenticated"


async def test_a_token_in_the_address_is_none(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    token = server.token("root", role="admin")
    for name in ("token", "access_token", "authorization"):
        async with http.get("/streams/system:health", params={name: token}) as response:
            assert response.status == 401


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        ("system:health", 403),
        ("system:alerts", 403),
        ("workout:w:progress", 403),
        ("workout:none:progress", 404),
        ("user:ana:progress", 403),
        ("template:w:progress", 404),
        ("nothing", 404),
        ("workout:%20:progress", 404),
        ("%00%ff%2F..%2F", 404),
        ("user:%F0%9F%8F%8B%2F:progress", 403),
        ("x" * 5_000, 404),
    ],
)
async def test_what_is_not_theirs_and_what_is_not_there_is_refused(
    server: RunningServer, http: aiohttp.ClientSession, stream: str, status: int
) -> None:
    await make_workout(await server.events("ana"))
    async with http.get(f"/streams/{stream}", headers=bearer(server, "ben")) as response:
        assert response.status == status
        answer = await response.json()
        assert answer["ok"] is False
        assert answer["error"]["code"] == {403: "forbidden", 404: "not_found"}[status]
    assert len(server.parts.viewers) == 0
    assert server.parts.gateway.session_counts["events"] == 1


async def test_asking_for_the_head_alone_opens_nothing(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    async with http.head("/streams/system:health", headers=bearer(server, "ben")) as response:
        assert response.status == 403
    admin = bearer(server, "root", role="admin")
    for path in ("/streams/system:health", "/health/live"):
        async with http.head(path, headers=admin) as response:
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
    assert len(server.parts.viewers) == 0


async def test_a_token_that_ends_ends_the_stream(server: RunningServer) -> None:
    await make_workout(await server.events("ana"))
    started = time.time()
    async with watching(server, "ana", ttl_s=2) as board:
        await board.next("progress")
        end = await board.next("end")
        assert time.time() - started >= 1.9
        assert (end.data["stream"], end.data["reason"]) == (STREAM, "token_expired")
        await board.over()
    await until(lambda: server.parts.streams.watcher_count == 0)


async def test_a_token_that_is_revoked_ends_the_stream(server: RunningServer) -> None:
    ana, root = await server.events("ana"), await server.events("root", role="admin")
    await make_workout(ana, visibility="public")
    async with watching(server, "ben") as bens, watching(server, "ana") as anas:
        await bens.next("progress")
        await anas.next("progress")
        answer = await root.do("auth:revoke", {"user_id": "ben"})
        assert answer["disconnected"] == 1
        assert (await bens.next("end")).data["reason"] == "unauthenticated"
        await bens.over()
        await log_set(ana)
        await anas.next("progress", done(1))


async def test_a_workout_that_becomes_private_is_shown_no_more(server: RunningServer) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="public")
    async with watching(server, "ben") as bens:
        await bens.next("progress")
        laptop = await server.document("ana", WORKOUT)
        laptop.map("meta")["visibility"] = "private"
        await laptop.settled()
        end = await bens.next("end")
        assert (end.data["stream"], end.data["reason"]) == (STREAM, "forbidden")
        await bens.over()


# -- limits --------------------------------------------------------------------------------------


async def test_a_user_has_no_more_streams_than_sessions(tmp_path: Path) -> None:
    async with running_server(tmp_path / "data", max_sessions_per_user=3) as server:
        ana = await server.events("ana")
        await make_workout(ana)
        async with watching(server, "ana") as one, watching(server, "ana") as two:
            await one.next("progress")
            await two.next("progress")
            with pytest.raises(aiohttp.ClientResponseError) as refused:
                async with watching(server, "ana"):
                    pass
            assert refused.value.status == 429
            assert refused.value.headers is not None
            assert "Retry-After" in refused.value.headers
        await until(lambda: len(server.parts.viewers) == 0)
        async with watching(server, "ana") as three:
            await three.next("progress")


async def test_the_health_has_no_more_viewers_than_it_may(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_ANONYMOUS", 1)
    url = f"{server.url}/health/live"
    async with event_stream(url, None) as first:
        await first.next("health")
        with pytest.raises(aiohttp.ClientResponseError) as refused:
            async with event_stream(url, None):
                pass
        assert refused.value.status == 503
    await until(lambda: len(server.parts.viewers) == 0)
    async with event_stream(url, None) as again:
        await again.next("health")


async def test_a_viewer_that_goes_is_forgotten(server: RunningServer) -> None:
    await make_workout(await server.events("ana"))
    async with watching(server, "ana") as board:
        await board.next("progress")
        assert (len(server.parts.viewers), server.parts.streams.watcher_count) == (1, 1)
    await until(lambda: len(server.parts.viewers) == 0)
    assert server.parts.streams.watcher_count == 0
    assert server.parts.viewers.stats.ended == {"client_disconnect": 1}


def flood(server: RunningServer, number: int) -> None:
    """One more value, too large for a socket's buffers to hold many of."""
    hub = server.parts.streams
    hub.push("system:alerts", {"number": number, "text": "x" * 500_000})


async def test_a_viewer_that_takes_nothing_of_what_counts_is_cut(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path / "data", stall_timeout_s=60.0) as server,
        watching(server, "root", "system:alerts", role="admin") as stalled,
        watching(server, "root", "system:alerts", role="admin") as other,
    ):
        stalled.pause()
        for number in range(sse.MAX_WAITING + 40):
            flood(server, number)
            await other.next("system:alert", lambda item, number=number: item["number"] == number)
        await until(lambda: len(server.parts.viewers) == 1)
        assert server.parts.viewers.stats.ended == {"slow_reader": 1}


async def test_a_viewer_that_has_stalled_is_cut(tmp_path: Path) -> None:
    async with (
        running_server(tmp_path / "data", stall_timeout_s=1.0) as server,
        watching(server, "root", "system:alerts", role="admin") as stalled,
    ):
        stalled.pause()
        for number in range(30):
            flood(server, number)
        await until(lambda: len(server.parts.viewers) == 0, timeout_s=10.0)
        assert server.parts.viewers.stats.ended == {"stalled": 1}


async def test_a_slow_viewer_gets_the_latest_value(server: RunningServer) -> None:
    async with watching(server, "root", "system:health", role="admin") as slow:
        await slow.next("system:health")
        (viewer,) = server.parts.viewers._viewers.values()
        slow.pause()
        numbers = iter(range(1_000))
        sent = 0
        while server.parts.viewers.stats.conflated < 5:
            sent = next(numbers)
            body = f'{{"number":{sent},"text":"{"x" * 500_000}"}}'
            viewer.show(Update("s", "value", "abc", sent, body, 0))
            await asyncio.sleep(0)
        assert viewer._transport.get_write_buffer_size() <= 600_000
        slow.resume()
        await slow.next("value", lambda value: value["number"] == sent)
        came = [event for event in slow.events if event.event == "value"]
        assert len(came) + 1 == sent + 1 - server.parts.viewers.stats.conflated


async def test_a_server_that_goes_away_ends_its_streams(tmp_path: Path) -> None:
    async with running_server(tmp_path / "data", drain_spread_s=4.0) as server:
        async with event_stream(f"{server.url}/health/live", None) as board:
            await board.next("health")
            await server.parts.viewers.drain()
            assert (await board.next("end")).data["reason"] == "unavailable"
            await board.over()
            assert board.retry_ms is not None
            assert 0 <= board.retry_ms <= 4_000
        with pytest.raises(aiohttp.ClientResponseError) as refused:
            async with event_stream(f"{server.url}/health/live", None):
                pass
        assert refused.value.status == 503


async def test_sigterm_ends_streams_and_the_server(tmp_path: Path) -> None:
    process = await ServerProcess(tmp_path).start()
    async with event_stream(f"{process.url}/health/live", None) as board:
        await board.next("health")
        assert await process.terminate() == 0
        assert (await board.next("end")).data["reason"] == "unavailable"
        await board.over()
