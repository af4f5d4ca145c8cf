"""Sentry: errors arrive at a real address, and nothing of anybody's with them."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from server import VERSION
from server.alerts import sentry
from server.app import create_app
from server.settings import Settings, SettingsError
from tests.helpers.rooms import until
from tests.helpers.servers import running_server

DSN = SecretStr("https://key@sentry.example/1")


@dataclass
class Intake:
    """What Sentry was sent."""

    dsn: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" or body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.raw.append(body.decode())
        lines = body.split(b"\n")
        for head, item in pairwise(lines):
            if b'"type":"event"' in head.replace(b" ", b""):
                self.events.append(json.loads(item))
        return web.json_response({"id": "x"})


@asynccontextmanager
async def intake() -> AsyncIterator[Intake]:
    made = Intake()
    app = web.Application()
    app.router.add_post("/api/1/envelope/", made.take)
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.dsn = f"http://key@127.0.0.1:{runner.addresses[0][1]}/1"
    try:
        yield made
    finally:
        await runner.cleanup()


def fail_with(token: str) -> None:
    weight = f"100 kg of {token}"
    raise KeyError(f"no set s-{len(weight)} of 'wilhelmina' in workout:leg-day")


async def test_an_error_arrives_with_its_place_and_without_anything_of_anybodys(
    tmp_path: Path,
) -> None:
    async with (
        intake() as taken,
        running_server(tmp_path / "data", sentry_dsn=SecretStr(taken.dsn)) as server,
    ):
        phone = await server.events("wilhelmina")
        await phone.do("workout:create", {"workout_id": "leg-day"})
        try:
            fail_with("eyJhbGciOi.hunter2")
        except KeyError:
            logging.getLogger("server.somewhere").exception(
                "handler failed", extra={"document": "workout:leg-day", "user": "wilhelmina"}
            )
        logging.getLogger("server.somewhere").warning("this is no error")
        await until(lambda: taken.events)
    (event,) = taken.events
    assert event["logger"] == "server.somewhere"
    assert event["release"] == f"repsync@{VERSION}"
    assert event["logentry"]["message"] == "handler failed"
    (error,) = event["exception"]["values"]
    assert error["type"] == "KeyError"
    assert error["stacktrace"]["frames"][-1]["function"] == "fail_with"
    assert not event.keys() - sentry.KEPT
    sent = "".join(taken.raw)
    for secret in ("hunter2", "leg-day", "wilhelmina", "100 kg"):
        assert secret not in sent


async def test_a_server_that_has_ended_sends_nothing_any_more(tmp_path: Path) -> None:
    async with intake() as taken:
        async with running_server(tmp_path / "data", sentry_dsn=SecretStr(taken.dsn)):
            pass
        logging.getLogger("server.somewhere").error("too late")
    assert taken.events == []


def test_without_the_package_the_start_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentry, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install"):
        create_app(Settings(data_dir=tmp_path, sentry_dsn=DSN))


def test_a_dsn_that_is_none_ends_the_start_and_is_not_repeated(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, sentry_dsn=SecretStr("hunter2"))
    with pytest.raises(SettingsError) as refused:
        create_app(settings)
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(settings)
