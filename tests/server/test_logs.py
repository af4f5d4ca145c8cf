"""What is logged, and what never is."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from server import logs
from server.replay.devices import CallFailed, EventClient, Refused
from server.settings import Settings
from tests.helpers.servers import ServerProcess

SECRET = "a secret of more than thirty-two bytes"


@pytest.fixture
def _own_handlers() -> Iterator[None]:
    """What is configured here is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.usefixtures("_own_handlers")
def test_a_trace_shows_where_it_failed_and_no_values(
    log_format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(Settings(log_format=log_format))

    def check(auth: dict[str, str]) -> None:
        token = auth["token"]
        raise RuntimeError(f"failed after {len(token)} characters")

    try:
        check({"token": "eyJhbGciOi" + "hunter2"})
    except RuntimeError:
        logging.getLogger("server.gateway").exception("connecting failed")
    shown = capsys.readouterr().err
    assert "connecting failed" in shown
    assert "in check" in shown
    assert "failed after 17 characters" in shown
    assert "eyJhbGciOihunter2" not in shown


@pytest.mark.usefixtures("_own_handlers")
def test_elsewhere_each_line_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    logging.getLogger("server.of_a_test").warning("slow", extra={"seconds": 2})
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["seconds"]) == ("slow", "warning", 2)


@pytest.mark.system
@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_no_token_and_no_secret_is_ever_logged(tmp_path: Path, log_format: str) -> None:
    def token(user_id: str, **claims: Any) -> str:
        made = {"sub": user_id, "exp": int(time.time()) + 600, **claims}
        tokens.append(jwt.encode(made, SECRET))
        return tokens[-1]

    tokens: list[str] = []
    env = {"JWT_SECRET": SECRET, "LOG_LEVEL": "DEBUG", "LOG_FORMAT": log_format}
    env["PYTHONASYNCIODEBUG"] = "1"
    server = ServerProcess(tmp_path / "data", env)
    clients: list[EventClient] = []
    with open(tmp_path / "log", "wb") as log:
        server.stderr = log
        try:
            await server.start()
            for made in (
                token("ana", exp=1),
                token("ana", nbf=2**40),
                token("x" * 300),
                token("ana")[:-4],
                token("ana").replace(".", "%", 1),
                token("ana", role="king"),
            ):
                with pytest.raises(Refused):
                    await EventClient(server.url, made).connect()
            root = EventClient(server.url, token("root", role="admin"))
            ana = EventClient(server.url, token("ana", jti="t1"))
            clients += [root, ana]
            for client in clients:
                await client.connect()
            await ana.do("auth:refresh", {"token": token("ana", jti="t2")})
            for bad in (token("ben"), token("ana", exp=1), "x" * 9_000, 5):
                with pytest.raises(CallFailed):
                    await ana.do("auth:refresh", {"token": bad})
            await root.do("auth:revoke", {"token_id": "t2"})
            await ana.wait_until_gone()
            assert await server.terminate() == 0
        finally:
            for client in clients:
                await client.close()
            await server.stop()
    logged = (tmp_path / "log").read_text()
    assert "tokens are revoked" in logged
    assert SECRET not in logged
    for made in tokens:
        assert not [part for part in made.split(".")[1:] if part in logged]
    assert "eyJ" not in logged
