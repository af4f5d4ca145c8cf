"""Plain HTTP: health, readiness and metrics."""

from __future__ import annotations

from aiohttp import web

from server.health import Health
from server.metrics import CONTENT_TYPE, Metrics

_STATUS = {"healthy": 200, "degraded": 206, "unhealthy": 503}


def add_routes(app: web.Application, health: Health, metrics: Metrics) -> None:
    async def show_health(_: web.Request) -> web.Response:
        report = health.report()
        return web.json_response(report, status=_STATUS[report["status"]])

    async def show_ready(_: web.Request) -> web.Response:
        ready = health.is_ready
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def show_live(_: web.Request) -> web.Response:
        return web.json_response({"live": True})  # who can answer this is

    app.router.add_get("/health", show_health)
    app.router.add_get("/ready", show_ready)
    app.router.add_get("/live", show_live)
    add_metrics(app, metrics)


def add_metrics(app: web.Application, metrics: Metrics) -> None:
    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/metrics", show_metrics)
