"""Plain HTTP: health, readiness, metrics, and a word for whoever opens the address."""

from __future__ import annotations

from aiohttp import web

from server.health import Health
from server.metrics import CONTENT_TYPE, Metrics

_STATUS = {"healthy": 200, "degraded": 206, "unhealthy": 503}

_GREETING = """RepSync is running.

Socket.IO v4 at /socket.io/, namespaces / and /yjs|<document>
/health  how it is      /ready  whether to send clients here      /metrics  for Prometheus
/live    that it runs
"""


def add_routes(app: web.Application, health: Health, metrics: Metrics) -> None:
    async def show_health(_: web.Request) -> web.Response:
        report = health.report()
        return web.json_response(report, status=_STATUS[report["status"]])

    async def show_ready(_: web.Request) -> web.Response:
        ready = health.is_ready
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def show_live(_: web.Request) -> web.Response:
        return web.json_response({"live": True})  # who can answer this is

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def greet(_: web.Request) -> web.Response:
        return web.Response(text=_GREETING)

    app.router.add_get("/health", show_health)
    app.router.add_get("/ready", show_ready)
    app.router.add_get("/live", show_live)
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/", greet)
