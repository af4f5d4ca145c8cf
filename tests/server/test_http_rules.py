"""What every HTTP request has to keep to, and what every response carries, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from crdt.errors import Forbidden, RateLimited, Unauthenticated
from server.http_rules import DEFAULT_HEADERS, HEADERS, MAX_BODY_BYTES
from tests.helpers.servers import RunningServer, running_server
from tests.helpers.sockets import CONNECT, CONNECT_ERROR, raw_socket
from tests.server.transport.support import polling, until

DEADLINE_S = 10.0
POLL = "/socket.io/?EIO=4&transport=polling"
PAGE = "https://app.example"


@dataclass
class Answer:
    """A response as it came, byte for byte."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes

    @property
    def error(self) -> dict[str, Any]:
        assert self.headers["content-type"].startswith("application/json")
        answer = json.loads(self.body)
        assert list(answer) == ["ok", "error"]
        assert answer["ok"] is False
        assert {"code", "message", "retryable"} <= set(answer["error"])
        error: dict[str, Any] = answer["error"]
        return error


class Wire:
    """A TCP connection on which anything can be said."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, *, has_body: bool = True) -> Answer:
        async with asyncio.timeout(DEADLINE_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in lines[1:] if line)
            }
            size = int(headers.get("content-length", "0"))
            body = await self._reader.readexactly(size) if has_body else b""
        return Answer(int(lines[0].split()[1]), headers, body, head + body)

    async def closed(self) -> bytes:
        """Wait until the server has closed. Returns: what it said before. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def wire(server: RunningServer) -> AsyncIterator[Wire]:
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


async def ask(
    server: RunningServer, method: str, path: str, *headers: str, body: bytes = b""
) -> Answer:
    """One request on a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    async with wire(server) as connection:
        await connection.send("\r\n".join([*lines, "", ""]).encode() + body)
        return await connection.answer(has_body=method != "HEAD")


def cors(answer: Answer) -> dict[str, str]:
    start = "access-control-"
    return {
        name.removeprefix(start): value
        for name, value in answer.headers.items()
        if name.startswith(start)
    }


# -- headers --------------------------------------------------------------------------------------

UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)

REQUESTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "a greeting": (200, ("GET", "/")),
    "health": (200, ("GET", "/live")),
    "readiness": (200, ("GET", "/ready")),
    "metrics": (200, ("GET", "/metrics")),
    "a head": (200, ("HEAD", "/live")),
    "options": (204, ("OPTIONS", "/health")),
    "a page that there is not": (404, ("GET", "/nothing")),
    "a method that there is not": (405, ("POST", "/health")),
    "a body that is too large": (413, ("GET", "/health", f"Content-Length: {MAX_BODY_BYTES + 1}")),
    "no HTTP": (400, ("G@T", "/health")),
    "a head that is too long": (400, ("GET", "/health", "X: " + "x" * 9_000)),
    "a first poll": (200, ("GET", POLL)),
    "a websocket": (101, ("GET", "/socket.io/?EIO=4&transport=websocket", *UPGRADE)),
    "no Engine.IO": (400, ("GET", "/socket.io/?EIO=3&transport=polling")),
    "a session that there is not": (400, ("GET", f"{POLL}&sid=nobody")),
    "a head of Socket.IO": (405, ("HEAD", POLL)),
    "another method of Socket.IO": (405, ("PUT", POLL)),
}


@pytest.mark.parametrize(("status", "request_"), REQUESTS.values(), ids=REQUESTS.keys())
async def test_every_response_carries_the_headers_that_keep_browsers_from_harm(
    server: RunningServer, status: int, request_: tuple[str, ...]
) -> None:
    answer = await ask(server, *request_)
    assert answer.status == status
    for name, value in {**HEADERS, **DEFAULT_HEADERS}.items():
        assert answer.headers[name.lower()] == value, name
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["vary"] == "Origin"
    lower = answer.raw.lower()
    assert b"python" not in lower
    assert b"aiohttp" not in lower


async def test_a_server_that_takes_nobody_new_says_so_in_the_same_form(tmp_path: Path) -> None:
    async with running_server(tmp_path, max_connections=1) as server, raw_socket(server.url):
        answer = await ask(server, "GET", POLL)
        assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-content-type-options"] == "nosniff"


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "request_"),
    [
        ("not_found", REQUESTS["a page that there is not"][1]),
        ("not_found", ("OPTIONS", "/nothing")),
        ("invalid", REQUESTS["a method that there is not"][1]),
        ("too_large", REQUESTS["a body that is too large"][1]),
        ("invalid", REQUESTS["no HTTP"][1]),
        ("invalid", REQUESTS["a head that is too long"][1]),
        ("invalid", REQUESTS["no Engine.IO"][1]),
        ("invalid", REQUESTS["a session that there is not"][1]),
        ("invalid", REQUESTS["another method of Socket.IO"][1]),
    ],
)
async def test_an_error_is_told_as_an_ack_would_and_without_details(
    server: RunningServer, code: str, request_: tuple[str, ...]
) -> None:
    answer = await ask(server, *request_)
    assert answer.error["code"] == code
    assert not answer.error["retryable"]
    for secret in (b"Traceback", b"File ", b"Error", b"G@T", b"xxxx"):
        assert secret not in answer.body


@pytest.mark.parametrize("accept", ["text/html", "*/*"])
async def test_what_nobody_foresaw_is_internal_and_the_log_says_what_it_was(
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    accept: str,
) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(server.parts.health, "report", fail)
    answer = await ask(server, "GET", "/health?token=hunter2", f"Accept: {accept}")
    assert answer.status == 500
    assert answer.error == {"code": "internal", "message": "internal error", "retryable": True}
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "server.http_rules"
    assert vars(record)["path"] == "/health"
    assert record.exc_info is not None
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (Forbidden("no"), 403, None),
        (Unauthenticated("who?"), 401, ("www-authenticate", "Bearer")),
        (RateLimited("later", retry_after_ms=1_500), 429, ("retry-after", "2")),
    ],
)
async def test_a_refusal_in_a_route_keeps_its_code(
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    header: tuple[str, str] | None,
) -> None:
    def refuse() -> dict[str, Any]:
        raise error

    monkeypatch.setattr(server.parts.health, "report", refuse)
    answer = await ask(server, "GET", "/health")
    assert answer.status == status
    assert answer.error == error.to_wire()  # type: ignore[attr-defined]
    if header is not None:
        assert answer.headers[header[0]] == header[1]


async def test_a_malformed_request_leaves_none_of_it_in_the_log(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with wire(server) as connection:
        await connection.send(b"GET / HTTP/1.1\r\nAuthorization : Bearer hunter2\r\n\r\n")
        assert (await connection.answer()).status == 400
        await connection.closed()
    assert "malformed request" in caplog.text
    assert "hunter2" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# -- methods --------------------------------------------------------------------------------------


async def test_a_head_is_a_get_without_its_body(server: RunningServer) -> None:
    full, head = await ask(server, "GET", "/ready"), await ask(server, "HEAD", "/ready")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == full.headers["content-length"]


@pytest.mark.parametrize(
    ("path", "methods"), [("/health", "GET, HEAD, OPTIONS"), (POLL, "GET, OPTIONS, POST")]
)
async def test_options_tell_what_a_route_can_do(
    server: RunningServer, path: str, methods: str
) -> None:
    answer = await ask(server, "OPTIONS", path)
    assert (answer.status, answer.headers["allow"], cors(answer)) == (204, methods, {})


async def test_a_method_that_there_is_not_tells_those_that_there_are(
    server: RunningServer,
) -> None:
    assert (await ask(server, "DELETE", "/health")).headers["allow"] == "GET,HEAD"
    assert (await ask(server, "HEAD", POLL)).headers["allow"] == "GET,OPTIONS,POST"


# -- CORS -----------------------------------------------------------------------------------------


@pytest.fixture
async def named(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server that one page from elsewhere may use."""
    async with running_server(tmp_path, cors_origins=(PAGE,)) as server:
        yield server


@pytest.mark.parametrize("path", ["/health", "/nothing", POLL])
async def test_a_named_page_may_read_what_is_answered(named: RunningServer, path: str) -> None:
    answer = await ask(named, "GET", path, f"Origin: {PAGE}")
    assert cors(answer) == {"allow-origin": PAGE, "allow-credentials": "true"}
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://elsewhere.example",
        f"{PAGE}.evil.example",
        f"{PAGE}:8443",
        "http://app.example",
        "null",
        "",
    ],
)
async def test_no_other_page_may(named: RunningServer, origin: str) -> None:
    answer = await ask(named, "GET", "/live", f"Origin: {origin}")
    assert (answer.status, cors(answer), answer.headers["vary"]) == (200, {}, "Origin")
    preflight = await ask(
        named, "OPTIONS", "/live", f"Origin: {origin}", "Access-Control-Request-Method: GET"
    )
    assert cors(preflight) == {}
    if origin:
        for transport in ("polling", "websocket"):
            path = f"/socket.io/?EIO=4&transport={transport}"
            refused = await ask(named, "GET", path, f"Origin: {origin}", *UPGRADE)
            assert (refused.status, cors(refused)) == (400, {})
            assert refused.error["code"] == "invalid"
        assert not named.parts.sockets.connection_count


async def test_a_page_that_is_asked_first_is_told_what_it_may_send(named: RunningServer) -> None:
    for path, methods in (("/health", "GET, HEAD, OPTIONS"), (POLL, "GET, OPTIONS, POST")):
        answer = await ask(
            named,
            "OPTIONS",
            path,
            f"Origin: {PAGE}",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization, x-app",
        )
        assert (answer.status, answer.body) == (204, b"")
        assert cors(answer) == {
            "allow-origin": PAGE,
            "allow-credentials": "true",
            "allow-methods": methods,
            "allow-headers": "authorization, x-app",
            "max-age": "600",
        }


async def test_everybody_may_read_but_nobody_with_credentials(tmp_path: Path) -> None:
    async with running_server(tmp_path, cors_origins=("*",)) as server:
        for path in ("/live", POLL):
            answer = await ask(server, "GET", path, f"Origin: {PAGE}")
            assert (answer.status, cors(answer)) == (200, {"allow-origin": "*"})


async def test_a_named_page_can_connect(named: RunningServer) -> None:
    answer = await ask(
        named, "GET", "/socket.io/?EIO=4&transport=websocket", f"Origin: {PAGE}", *UPGRADE
    )
    assert answer.status == 101


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/metrics"])
async def test_a_route_takes_a_small_body_and_no_larger_one(
    server: RunningServer, path: str
) -> None:
    assert (await ask(server, "GET", path, body=b"x" * MAX_BODY_BYTES)).status == 200
    answer = await ask(server, "GET", path, body=b"x" * (MAX_BODY_BYTES + 1))
    assert (answer.status, answer.error["code"]) == (413, "too_large")


async def test_a_body_of_unknown_length_is_not_gathered(server: RunningServer) -> None:
    """It may come for a while, so that the answer is read, and then the connection ends."""
    async with wire(server) as connection:
        await connection.send(
            b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert (await connection.answer()).status == 200
        await connection.closed()


@pytest.mark.parametrize(
    "line", ["GET /" + "x" * 9_000, "GET / HTTP/1.1\r\nHost: x\r\n" + "X: y\r\n" * 200]
)
async def test_a_head_is_limited_in_every_direction(server: RunningServer, line: str) -> None:
    async with wire(server) as connection:
        await connection.send(f"{line} HTTP/1.1\r\n\r\n".encode())
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid")
        await connection.closed()


async def test_a_poll_that_is_announced_as_too_large_is_not_waited_for(
    server: RunningServer,
) -> None:
    limit = (await server.events("ana")).welcome["limits"]["max_packet_bytes"]
    async with polling(server.url) as poller, wire(server) as connection:
        head = f"POST {POLL}&sid={poller.sid} HTTP/1.1\r\nHost: x\r\nContent-Length: {limit + 1}"
        await connection.send(f"{head}\r\n\r\n".encode())
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (413, "too_large")
        assert poller.sid not in server.parts.sockets.eio.sockets


async def test_a_compressed_body_is_not_unpacked(server: RunningServer) -> None:
    """What is small on the wire may be huge unpacked."""
    async with polling(server.url) as poller:
        body = zlib.compress(b"40{}")
        path = f"{POLL}&sid={poller.sid}"
        answer = await ask(server, "POST", path, "Content-Encoding: deflate", body=body)
        assert (answer.status, answer.error["code"]) == (400, "invalid")


async def test_a_client_has_one_post_at_a_time(server: RunningServer) -> None:
    async with polling(server.url) as poller, wire(server) as connection:
        head = f"POST {POLL}&sid={poller.sid} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n40"
        await connection.send(head.encode())
        (session,) = server.parts.sockets.eio.sockets.values()
        await until(lambda: session._is_posting)
        status, text = await poller.post("40{}")
        assert (status, json.loads(text)["error"]["code"]) == (400, "invalid")
        assert dict(server.parts.sockets.stats.closed) == {"overlapping_posts": 1}


async def test_a_post_that_fails_as_nobody_foresaw_is_logged_and_ends_the_session(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with polling(server.url) as poller:

        def fail(*_: Any) -> None:
            raise RuntimeError("nobody foresaw this")

        monkeypatch.setattr(server.parts.sockets, "on_packet", fail)
        status, text = await poller.post("40{}")
        assert (status, json.loads(text)["error"]["code"]) == (500, "internal")
        assert "nobody foresaw this" in caplog.text
        assert dict(server.parts.sockets.stats.closed) == {"internal": 1}


# -- deadlines ------------------------------------------------------------------------------------


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server with short deadlines."""
    async with running_server(
        tmp_path, http_head_timeout_s=0.3, http_body_timeout_s=0.3, http_idle_timeout_s=2.0
    ) as server:
        yield server


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server that proxies may keep connections to, but that waits for no first head."""
    async with running_server(tmp_path, http_head_timeout_s=0.3) as server:
        yield server


@pytest.mark.parametrize("first", [b"", b"GET /health HT"], ids=["nothing", "a part"])
async def test_a_head_that_does_not_come_ends_the_connection(
    patient: RunningServer, first: bytes
) -> None:
    async with wire(patient) as connection:
        await connection.send(first)
        assert await connection.closed() == b""


async def test_a_head_that_comes_byte_by_byte_ends_the_connection(patient: RunningServer) -> None:
    async with wire(patient) as connection:
        await connection.send(b"GET /health HTTP/1.1\r\n")

        async def drip() -> None:
            while True:
                await connection.send(b"X: y\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await connection.closed() == b""
        dripping.cancel()


async def test_a_connection_that_asks_for_nothing_more_is_closed(hasty: RunningServer) -> None:
    async with wire(hasty) as connection:
        for _ in range(2):
            await connection.send(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await connection.answer()).status == 200
            await asyncio.sleep(0.4)  # longer than a head may take, shorter than idle is
        await connection.send(b"GET /ready HT")
        assert await connection.closed() == b""


async def test_a_body_that_does_not_come_ends_the_session(hasty: RunningServer) -> None:
    async with polling(hasty.url) as poller, wire(hasty) as connection:
        head = f"POST {POLL}&sid={poller.sid} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n40"
        await connection.send(head.encode())
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (408, "unavailable")
        assert dict(hasty.parts.sockets.stats.closed) == {"body_timeout": 1}
        await connection.closed()


async def test_deadlines_of_requests_do_not_end_sockets(tmp_path: Path) -> None:
    deadlines = {"http_head_timeout_s": 0.2, "http_idle_timeout_s": 0.4}
    async with running_server(tmp_path, **deadlines) as server, raw_socket(server.url) as silent:
        await silent.enter("/", {"token": server.token("ana")})
        await asyncio.sleep(0.8)
        assert await silent.settled()


# -- tokens ---------------------------------------------------------------------------------------


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    loud = [logging.getLogger(name) for name in ("engineio", "socketio", "aiohttp", "server")]
    before = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG):
        yield caplog
    for logger, level in zip(loud, before, strict=True):
        logger.setLevel(level)


async def test_a_token_counts_in_the_auth_payload_only(server: RunningServer) -> None:
    token = server.token("ana")
    path = f"/socket.io/?EIO=4&transport=polling&token={token}"
    headers = (f"Authorization: Bearer {token}", f"Cookie: token={token}")
    opening = await ask(server, "GET", path, *headers)
    sid = json.loads(opening.body[1:])["sid"]
    await ask(server, "POST", f"{path}&sid={sid}", *headers, body=b'40{"device":null}')
    answer = await ask(server, "GET", f"{path}&sid={sid}", *headers)
    assert answer.body.startswith(b"44")
    assert json.loads(answer.body[2:])["message"] == "unauthenticated"


async def test_no_token_is_ever_logged(
    server: RunningServer, everything_logged: pytest.LogCaptureFixture
) -> None:
    good, bad = server.token("ana"), "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.hunter2"
    for token in (good, bad):
        async with raw_socket(server.url) as socket:
            kind = CONNECT if token == good else CONNECT_ERROR
            assert (await socket.enter("/", {"token": token})).kind == kind
            if token == good:
                for other in (good, bad):
                    await socket.ask("auth:refresh", {"token": other})
                    await socket.ask("auth:refresh", {"token": other, "extra": 1})
            await socket.send(f'4["{token}')
            await socket.closed()
        await ask(server, "GET", f"/health?token={token}", f"Authorization: Bearer {token}")
        await ask(server, "GET", f"/nothing/{token}?token={token}")
        await ask(server, "GET", f"/health?{token}", f"Authorization : {token}")
        await ask(server, "GET", f"{POLL}&sid={token}")
        await ask(server, "GET", f"/socket.io/?EIO=4&transport={token}")
    logged = everything_logged.text + "".join(
        str(vars(record)) for record in everything_logged.records if record.name[:6] == "server"
    )
    assert "malformed request" in logged
    for token in (good, bad):
        assert token not in logged
        assert token.rpartition(".")[2] not in logged
