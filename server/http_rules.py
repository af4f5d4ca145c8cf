"""What holds for every HTTP request and response: headers, CORS, errors, sizes, deadlines.

Requests. A connection's first head has `http_head_timeout_s`, a head 8 kB for each line, the body
of a poll `http_body_timeout_s` and `max_packet_bytes`; the other routes take no body. A connection
that asks for nothing is closed after `http_idle_timeout_s`. Compressed bodies are not unpacked.

Responses. An error is the JSON object that an ack would be; what caused it stays in the log, where
no query, header or body is ever written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from aiohttp import hdrs, web

from crdt.errors import INTERNAL, RepSyncError, Unauthenticated
from server.settings import Settings
from server.transport.server import SOCKET_METHODS

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
LINGER_S = 2.0
PREFLIGHT_LIFETIME_S = 600

HEADERS = {
    "Server": "RepSync",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
DEFAULT_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
"""For whatever does not set its own: a page needs more than nothing, an asset may be kept."""

_STATUS = {
    "unauthenticated": 401,
    "token_expired": 401,
    "forbidden": 403,
    "not_found": 404,
    "invalid": 400,
    "conflict": 409,
    "locked": 423,
    "room_full": 409,
    "too_large": 413,
    "rate_limited": 429,
    "unsynced": 409,
    "unavailable": 503,
    "internal": 500,
}
"""The wire contract's codes -> HTTP status."""

_CODES = {
    **{status: code for code, status in reversed(_STATUS.items())},
    405: "invalid",
    408: "unavailable",
    504: "unavailable",
}
"""HTTP status -> code, for what aiohttp refuses."""

_RETRYABLE = ("internal", "rate_limited", "unavailable")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def apply(app: web.Application, settings: Settings) -> None:
    """Have the rules hold for all routes of an application."""
    cors = Cors(settings.cors_origins)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)
        for name, value in DEFAULT_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.update(cors.headers(request))

    @web.middleware
    async def rules(request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            if request.method == hdrs.METH_OPTIONS:
                return _options(request, cors)
            if not _is_poll(request) and (request.content_length or 0) > MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)
            return await handler(request)
        except web.HTTPException as exc:
            if exc.status < 400:
                raise
            return _refusal(exc)
        except RepSyncError as exc:
            return error_response(_STATUS.get(exc.code, 500), exc.to_wire())
        except ConnectionError:
            raise  # the client is gone
        except Exception:
            log.exception(
                "a request failed", extra={"method": request.method, "path": request.path}
            )
            if request.writer.output_size > 0:
                raise ConnectionResetError("the response had begun") from None
            return error_response(500, INTERNAL)

    app.middlewares.append(rules)
    app.on_response_prepare.append(add_headers)


class Cors:
    """Which pages from elsewhere may read what is answered.

    Named origins may send credentials, for load balancers that keep clients apart by a cookie; when
    it is everybody nobody may. The server's own pages need no leave.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)

    def headers(self, request: web.Request) -> dict[str, str]:
        # Always there: a cache must not serve what one origin was answered to another.
        headers: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}
        origin = request.headers.get(hdrs.ORIGIN)
        if "*" in self._origins:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        elif origin in self._origins:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = str(origin)
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        return headers

    def allows(self, origin: str | None) -> bool:
        return origin is not None and ("*" in self._origins or origin in self._origins)


def bearer_token(request: web.Request) -> str:
    """The token of a request: in its header, never in its address, which ends up in logs.

    Raises:
        Unauthenticated: there is none.
    """
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("a token is needed: Authorization: Bearer <token>")
    return token.strip()


def error_response(
    status: int, error: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> web.Response:
    """The ack of a failure, as a response."""
    all_headers = dict(headers or {})
    if status == 401:
        all_headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    if "retry_after_ms" in error:
        all_headers[hdrs.RETRY_AFTER] = str(-(-int(error["retry_after_ms"]) // 1_000))
    return web.json_response({"ok": False, "error": error}, status=status, headers=all_headers)


def _refusal(exc: web.HTTPException) -> web.Response:
    headers: dict[str, str] = {}
    if hdrs.ALLOW in exc.headers:
        headers[hdrs.ALLOW] = exc.headers[hdrs.ALLOW]
    return error_response(exc.status, _error_of(exc.status, exc.reason), headers)


def _error_of(status: int, message: str) -> dict[str, Any]:
    code = _CODES.get(status, "internal" if status >= 500 else "invalid")
    return {"code": code, "message": message.lower(), "retryable": code in _RETRYABLE}


def _is_poll(request: web.Request) -> bool:
    return request.path == "/socket.io/"


def _options(request: web.Request, cors: Cors) -> web.Response:
    """What a route can do, and the answer to a browser that asks before it sends."""
    refused = request.match_info.http_exception
    if refused is None:
        allowed = set(SOCKET_METHODS)
    elif isinstance(refused, web.HTTPMethodNotAllowed):
        allowed = {*refused.allowed_methods, hdrs.METH_OPTIONS}
    else:
        raise refused
    methods = ", ".join(sorted(allowed))
    response = web.Response(status=204, headers={hdrs.ALLOW: methods})
    asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
    if asked and cors.allows(request.headers.get(hdrs.ORIGIN)):
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = methods
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(PREFLIGHT_LIFETIME_S)
        # Whatever it wants to send: there is no header here that gives more than it should.
        if wanted := request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    return response


# -- connections -----------------------------------------------------------------------------------


def make_runner(
    app: web.Application, settings: Settings, *, shutdown_timeout_s: float
) -> web.AppRunner:
    """aiohttp's runner, with our deadlines and without its texts."""
    return _Runner(
        app,
        head_timeout_s=settings.http_head_timeout_s,
        access_log=None,  # its lines would have the queries
        keepalive_timeout=settings.http_idle_timeout_s,
        lingering_time=LINGER_S,
        auto_decompress=False,
        shutdown_timeout=shutdown_timeout_s,
    )


class _Runner(web.AppRunner):
    __slots__ = ("_head_timeout_s",)

    def __init__(self, app: web.Application, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(app, **options)
        self._head_timeout_s = head_timeout_s

    async def _make_server(self) -> web.Server:
        stock = await super()._make_server()
        return _Server(
            stock.request_handler,
            request_factory=stock.request_factory,
            head_timeout_s=self._head_timeout_s,
            **stock._kwargs,
        )


class _Server(web.Server):
    """Makes a `_Protocol` for each connection."""

    def __init__(self, handler: Any, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(handler, **options)
        self.head_timeout_s = head_timeout_s

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    """One connection that speaks HTTP."""

    __slots__ = ("_head_timer",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(self._manager, _Server)
        # aiohttp's own timer is that of idle connections, which proxies want to be long.
        self._head_timer = self._loop.call_later(
            self._manager.head_timeout_s, self._end_unless_asked
        )

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _end_unless_asked(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP. The stock method repeats it, to the client and in the log."""
        log.info("a malformed request", extra={"status": status, "cause": type(exc).__name__})
        if request.writer.output_size > 0:
            raise ConnectionResetError("the response had begun")
        text = "malformed request" if status == 400 else "the request failed"
        response = error_response(
            status, _error_of(status, text), {**HEADERS, **DEFAULT_HEADERS, hdrs.VARY: hdrs.ORIGIN}
        )
        response.force_close()
        return response
