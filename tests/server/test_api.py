"""Snapshots over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp

from tests.helpers.servers import RunningServer, running_server
from tests.server.test_streams import log_set, make_workout


async def get(
    server: RunningServer, http: aiohttp.ClientSession, path: str, user_id: str, **claims: Any
) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {server.token(user_id, **claims)}"}
    async with http.get(path, headers=headers) as response:
        return response.status, await response.json()


async def test_a_workout_is_read_as_it_is_over_a_socket(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    ana = await server.events("ana")
    await make_workout(ana)
    await log_set(ana, weight_kg=100)
    status, snapshot = await get(server, http, "/api/v1/workouts/w", "ana")
    expected = (await ana.do("workout:sync", {"workout_id": "w"}))["workout"]
    assert status == 200
    assert {**snapshot, "server_time": 0} == {**expected, "server_time": 0}
    assert snapshot["progress"]["ana"]["volume_kg"] == 500


async def test_a_template_is_read_as_it_is_over_a_socket(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    ana = await server.events("ana")
    await ana.do("template:create", {"template_id": "t", "title": "Push"})
    status, snapshot = await get(server, http, "/api/v1/templates/t", "ana")
    assert (status, snapshot) == (
        200,
        (await ana.do("template:get", {"template_id": "t"}))["template"],
    )


async def test_who_may_not_look_gets_no_snapshot(
    server: RunningServer, http: aiohttp.ClientSession
) -> None:
    ana = await server.events("ana")
    await make_workout(ana, visibility="friends")
    await ana.do("template:create", {"template_id": "t", "title": "Push"})
    for path, user_id, status, code in (
        ("workouts/w", "ben", 403, "forbidden"),
        ("workouts/none", "ben", 404, "not_found"),
        ("workouts/%20", "ben", 404, "not_found"),
        ("workouts/t", "ana", 404, "not_found"),
        ("templates/t", "ben", 403, "forbidden"),
        ("nothing/w", "ana", 404, "not_found"),
    ):
        found, answer = await get(server, http, f"/api/v1/{path}", user_id)
        assert (found, answer["error"]["code"]) == (status, code), path
    assert (await get(server, http, "/api/v1/workouts/w", "ben", friends=("ana",)))[0] == 200
    async with http.get("/api/v1/workouts/w") as response:
        assert response.status == 401
    async with http.get("/api/v1/workouts/w", params={"token": server.token("ana")}) as response:
        assert response.status == 401


async def test_a_user_reads_no_more_than_an_allowance(tmp_path: Path) -> None:
    allowance = {"max_user_events_burst": 3, "max_user_events_per_s": 1}
    async with (
        running_server(tmp_path / "data", **allowance) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        answers = [await get(server, http, "/api/v1/workouts/w", "ana") for _ in range(4)]
        assert [status for status, _ in answers] == [404, 404, 404, 429]
        assert answers[-1][1]["error"]["code"] == "rate_limited"
        assert (await get(server, http, "/api/v1/workouts/w", "ben"))[0] == 404
