"""Headless Chromium, driven by Playwright, and what it does that nobody sees on the page.

Playwright brings a driver and no browser: the machine's own `chromium` is used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_S = 45.0  # a browser gets little of a machine that is busy with other tests


def demand_chromium() -> str:
    """The path of a Chromium. Skip where there is none; fail in CI, which must run all."""
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    reason = "Chromium was not found (Debian: apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Watcher:
    """Somebody who has the page open, and what their browser complains of and asks for."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    async def give(self, token: str) -> None:
        """Fill in the form."""
        await self.page.get_by_label("Token", exact=True).fill(token)
        await self.page.get_by_role("button", name="Watch").click()

    async def says(self, selector: str, text: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until an element that is shown has this text in it. Raises TimeoutError."""
        found = self.page.locator(selector, has_text=text).first
        await found.wait_for(timeout=timeout_s * 1_000)

    async def until(self, condition: str, *, timeout_s: float = TIMEOUT_S) -> Any:
        """Wait until a JavaScript expression is truthy. Returns: what it is then. Raises
        TimeoutError."""
        found = await self.page.wait_for_function(f"() => {condition}", timeout=timeout_s * 1_000)
        return await found.json_value()

    async def text(self, selector: str) -> str:
        return await self.page.locator(selector).first.inner_text()

    async def fits(self) -> bool:
        """Whether nothing reaches beyond the screen's right edge."""
        wide: bool = await self.page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
        return wide


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    path = demand_chromium()
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield chromium
        finally:
            await chromium.close()


@asynccontextmanager
async def watcher(
    chromium: Browser,
    url: str,
    *,
    size: dict[str, int] = DESKTOP,
    scheme: str = "light",
    may_fail: bool = False,
) -> AsyncIterator[Watcher]:
    """The page at `url`, open. At the end nothing may have gone wrong unseen, nor have left the
    host; `may_fail` lets the browser complain of a server that cannot be reached."""
    context = await chromium.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page = await context.new_page()
    who = Watcher(page, url)
    host = urlsplit(url).netloc
    page.on("pageerror", lambda error: who.complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            who.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("request", lambda request: who.hosts.add(urlsplit(request.url).netloc))
    page.on("websocket", lambda socket: who.hosts.add(urlsplit(socket.url).netloc))
    try:
        await page.goto(url + "/")
        yield who
        unexpected = [
            text for text in who.complaints if not (may_fail and "WebSocket connection" in text)
        ]
        assert not unexpected
        assert who.hosts == {host}
    finally:
        await context.close()


async def photograph(who: Watcher, folder: Path, name: str) -> None:
    await who.page.screenshot(path=folder / f"{name}.png", full_page=True)
