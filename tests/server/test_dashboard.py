"""The page at `/` as it is served: what a browser gets, and what it may do with it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import aiohttp
import pytest

from server import dashboard
from tests.helpers.servers import running_server

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_a_browser_gets_the_page_and_all_that_it_names(http: aiohttp.ClientSession) -> None:
    async with http.get("/", headers=BROWSER) as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        page = await response.text()
    named = set(re.findall(r'(?:src|href)="(/dashboard/[^"]+)"', page))
    assert len(named) == 3
    while named:
        path = named.pop()
        async with http.get(path) as response:
            assert response.status == 200, path
            text = await response.text()
        if path.endswith(".js"):
            named |= {f"/dashboard/{name}" for name in re.findall(r"from '\./([\w.-]+)'", text)}


async def test_the_page_is_given_no_right_but_to_its_own_server(
    http: aiohttp.ClientSession,
) -> None:
    for path in ("/", "/dashboard/main.js"):
        async with http.get(path, headers=BROWSER) as response:
            policy = response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert set(re.findall(r"(?:script|style|connect|img)-src ([^;]+)", policy)) == {"'self'"}


async def test_what_a_browser_has_already_is_not_sent_again(http: aiohttp.ClientSession) -> None:
    async with http.get("/", headers=BROWSER) as response:
        tag = response.headers["ETag"]
        assert response.headers["Cache-Control"] == "no-cache"
    async with http.get("/", headers={**BROWSER, "If-None-Match": tag}) as response:
        assert response.status == 304
        assert await response.read() == b""
    async with http.get("/", headers={**BROWSER, "If-None-Match": '"another"'}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "name", ["nothing.js", "index.html", "..%2fpackage.json", "%2e%2e/%2e%2e/README.md", ""]
)
async def test_nothing_else_of_the_disk_is_served(http: aiohttp.ClientSession, name: str) -> None:
    async with http.get(f"/dashboard/{name}", headers=BROWSER) as response:
        assert response.status == 404


async def test_who_wants_no_html_gets_a_line_of_text(http: aiohttp.ClientSession) -> None:
    async with http.get("/") as response:
        assert response.content_type == "text/plain"
        assert "/health" in await response.text()


async def test_a_server_without_the_files_of_the_page_serves_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "FOLDER", tmp_path / "nowhere")
    async with running_server(tmp_path) as server, aiohttp.ClientSession(server.url) as http:
        async with http.get("/", headers=BROWSER) as response:
            assert response.status == 200
            assert response.content_type == "text/plain"
        async with http.get("/health") as response:
            assert response.status in (200, 206)


async def test_where_npm_has_brought_nothing_the_page_draws_its_charts_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "dashboard"
    shutil.copytree(dashboard.FOLDER / "src", bare / "src")
    monkeypatch.setattr(dashboard, "FOLDER", bare)
    async with running_server(tmp_path) as server, aiohttp.ClientSession(server.url) as http:
        async with http.get("/dashboard/charts.js") as response:
            assert "uPlot from" not in await response.text()
        async with http.get("/dashboard/uPlot.js") as response:
            assert response.status == 404
