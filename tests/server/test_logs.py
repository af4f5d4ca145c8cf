"""What is logged, and what never is."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from pycrdt import Map

from crdt import ids
from handlers import REGISTRY
from server import logs
from server.logs import Cause
from server.replay.devices import CallFailed, DocumentClient, EventClient, Refused
from server.settings import Settings
from tests.helpers.servers import RunningServer, ServerProcess
from tests.helpers.sockets import raw_socket

SECRET = "a secret of more than thirty-two bytes"
OP_ID = "0a6f2dc3-53a4-4a56-9c8f-6c0c3a3b3b3b"


@pytest.fixture
def _own_handlers() -> Iterator[None]:
    """What is configured here is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs.name_instance("")


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


@pytest.mark.usefixtures("_own_handlers")
def test_every_line_says_which_instance_and_whose_event_it_is_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(Settings(log_format="json"))
    logs.name_instance("i1")
    log = logging.getLogger("server.of_a_test")
    op_id = "0A6F2DC3-53a4-4a56-9c8f-6c0c3a3b3b3b"
    for given in (op_id, "no uuid, but maybe a secret", {"$ne": 1}, None):
        logs.cause.set(Cause("c1", "ana", "workout:create", 7, given))
        log.warning("slow")
        log.warning("slower", extra={"user": "ben"})
    logs.cause.set(None)
    log.warning("nobody's")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["instance"] for line in lines} == {"i1"}
    assert [line.get("correlation") for line in lines] == [
        *[op_id.lower()] * 2,
        *["c1-7"] * 6,
        None,
    ]
    assert [line.get("user") for line in lines] == [*["ana", "ben"] * 4, None]
    assert {line.get("intent") for line in lines} == {"workout:create", None}


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.usefixtures("_own_handlers")
def test_a_token_in_somebody_elses_words_is_blotted_out(
    log_format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(Settings(log_format=log_format))
    made = jwt.encode({"sub": "ana"}, SECRET)
    log = logging.getLogger("server.of_a_test")
    try:
        raise RuntimeError(f"cannot read {made}, nor {made[:20]}")
    except RuntimeError:
        log.exception("failed with %s", made, extra={"given": {"token": made}})
    shown = capsys.readouterr().err
    assert "[token]" in shown
    assert not [part for part in made.split(".") if part[:12] in shown]


@pytest.mark.usefixtures("_own_handlers")
def test_a_flood_of_lines_is_held_back_and_errors_are_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr("server.logs.time.monotonic", lambda: now_s)
    logs.configure(Settings(log_format="json"))
    log = logging.getLogger("server.of_a_test")

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    for _ in range(5_000):
        log.info("a client is in")
    assert len(lines()) == logs.LINES_AT_ONCE
    log.info("another kind")
    log.error("a client is in")
    assert [line["level"] for line in lines()] == ["info", "error"]
    now_s += 1.0
    log.info("a client is in")
    assert lines()[0]["left_out"] == 5_000 - logs.LINES_AT_ONCE


@pytest.mark.usefixtures("_own_handlers")
def test_a_command_that_does_not_serve_logs_what_is_wrong_unless_asked_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOG_LEVEL", raising=False)
    logs.configure(Settings(), is_serving=False)
    assert logging.getLogger().level == logging.WARNING
    logs.configure(Settings())
    assert logging.getLogger().level == logging.INFO
    monkeypatch.setenv("LOG_LEVEL", "info")
    logs.configure(Settings(), is_serving=False)
    assert logging.getLogger().level == logging.INFO


async def test_an_updates_way_through_the_server_is_not_logged(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ana = await server.events("ana")
    await ana.do("workout:create", {"workout_id": "w", "op_id": OP_ID})
    laptop = await server.document("ana", ids.workout("w"))
    made = {record.message: vars(record) for record in caplog.records}
    assert {"a client is in", "a document is made", "joined"} <= made.keys()
    assert made["joined"]["document"] == "workout:w"
    caplog.clear()
    for number in range(20):
        laptop.map("sets")[f"s{number}"] = Map({"user_id": "ana", "reps": 5.0})
        await laptop.settled()
    assert not caplog.records


async def test_who_comes_and_goes_and_why_is_logged(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ana = await server.events("ana")
    await ana.do("workout:create", {"workout_id": "w"})
    for user_id, name in (("ben", ids.workout("w")), ("ben", ids.workout("of-a-secret-name"))):
        with pytest.raises(Refused):
            await server.document(user_id, name)
    forbidden, not_found = (
        vars(record) for record in caplog.records if record.message == "a client is refused"
    )
    assert (forbidden["code"], forbidden["user"]) == ("forbidden", "ben")
    assert forbidden["document"] == "workout:w"
    assert (not_found["code"], not_found["user"]) == ("not_found", "ben")
    assert "secret-name" not in str(not_found)
    root = await server.events("root", role="admin")
    await root.do("auth:revoke", {"user_id": "ana"})
    await ana.wait_until_gone()

    def gone() -> list[dict[str, Any]]:
        return [vars(r) for r in caplog.records if r.message == "a client is gone"]

    async with asyncio.timeout(10):
        while not gone():  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.01)
    assert (gone()[0]["user"], gone()[0]["reason"]) == ("ana", "revoked")


@pytest.mark.system
@pytest.mark.parametrize("log_format", ["console", "json"])
async def test_what_is_sent_at_any_door_is_not_logged(tmp_path: Path, log_format: str) -> None:
    env = {"JWT_SECRET": SECRET, "LOG_LEVEL": "DEBUG", "LOG_FORMAT": log_format}
    server = ServerProcess(tmp_path / "data", {**env, "PYTHONASYNCIODEBUG": "1"})
    token = jwt.encode({"sub": "ana", "exp": int(time.time()) + 600}, SECRET)
    note = "my-knee-hurts-again"
    with open(tmp_path / "log", "wb") as log:
        server.stderr = log
        try:
            await server.start()
            await knock_at_every_door(server.url, token, note)
            assert await server.terminate() == 0
        finally:
            await server.stop()
    logged = (tmp_path / "log").read_text()
    assert "a document is made" in logged
    assert note not in logged
    assert base64.b64encode(note.encode()).decode()[:-4] not in logged
    for part in token.split(".")[1:]:
        assert part[:16] not in logged


async def knock_at_every_door(url: str, token: str, note: str) -> None:
    """Send a token, and somebody's own words, wherever something can be sent."""
    for word in (token, note):
        async with aiohttp.ClientSession() as http:
            for path in ("/", "/health", "/metrics", "/nowhere", "/socket.io/", f"/{word}"):
                params = {"token": word, "EIO": "4", "transport": "polling", "sid": word}
                headers = {"Authorization": f"Bearer {word}", "Cookie": f"token={word}"}
                async with http.get(f"{url}{path}", params=params, headers=headers):
                    pass
                async with http.post(f"{url}{path}", params=params, headers=headers, data=word):
                    pass
        doors: list[tuple[str, Any]] = [
            ("/", {"token": [word]}),
            ("/", word),
            (f"/{word}", {"token": token}),
            (f"/yjs|{word}", {"token": token}),
            (f"/yjs|workout:{word}", {"token": token}),
            ("/", {"token": token, "device": {"id": word * 20}}),
            ("/", {"token": token, "device": {"id": word[:50], "name": word[:50]}}),
        ]
        for namespace, auth in doors:
            async with raw_socket(url) as socket:
                await socket.enter(namespace, auth)
        for frame in (word, f"2{word}", f"4{word}", f"42{word}", f'42["{word}"', f"451-{word}"):
            async with raw_socket(url) as socket:
                await socket.enter("/", {"token": token})
                await socket.send(frame, word.encode())
                await socket.settled()
        async with raw_socket(url) as socket:
            await socket.enter("/", {"token": token})
            await socket.ask(word, {word: word})
            for event in REGISTRY.intents:
                if event != "auth:refresh":
                    await socket.ask(event, {"op_id": word, "workout_id": word, "streams": [word]})
    ana = await EventClient(url, token).connect()
    await ana.do("workout:create", {"workout_id": "w", "title": note, "op_id": OP_ID})
    exercise = {"name": note, "note": note}
    added = {"workout_id": "w", "exercise_id": "e", "exercise": exercise}
    await ana.do("workout:exercise:add", added)
    done = {"reps": 5, "weight_kg": 100, "note": note}
    await ana.do("workout:set:complete", {"workout_id": "w", "exercise_id": "e", "set": done})
    laptop = await DocumentClient(url, ids.workout("w"), token).connect()
    laptop.map("sets")["s"] = Map({"user_id": "ana", "exercise": "e", "reps": 5.0, "note": note})
    await laptop.settled()
    for refused in (token.encode(), note.encode()):
        await laptop.send(refused)
    await laptop.close()
    await ana.close()


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
