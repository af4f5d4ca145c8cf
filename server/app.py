"""The only place where the parts meet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import web

from crdt.errors import Unavailable
from crdt.hub import RoomHub
from handlers import REGISTRY
from handlers.context import Services
from server import http, http_rules, limits
from server.auth import Authenticator
from server.cluster.tasks import end
from server.erasure import Eraser
from server.gateway import Gateway
from server.health import Health
from server.metrics import Metrics
from server.settings import Settings
from server.storage.port import ErasingStore, StorageError
from server.storage.sqlite import SqliteStore
from server.streams import StreamHub
from server.transport.server import SocketServer

if TYPE_CHECKING:
    from server.cluster.store import ClusterStore


class WallClock:
    """The system's clock. Only stamps come from it; intervals are measured elsewhere."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Parts:
    """What a running server is made of."""

    auth: Authenticator
    store: ErasingStore
    hub: RoomHub
    gateway: Gateway
    sockets: SocketServer
    streams: StreamHub
    health: Health
    cluster: ClusterStore | None = None
    """The store, if it is shared with other instances."""


PARTS = web.AppKey("parts", Parts)


def create_app(settings: Settings) -> web.Application:
    """Put a server together. Nothing is started before the application is.

    Raises:
        SettingsError, StorageError: it cannot be started like this.
    """
    auth = Authenticator.from_settings(settings)
    instance = uuid4().hex[:12]
    store, cluster = make_stores(settings, instance)
    clock, metrics = WallClock(), Metrics()
    gateway = Gateway(settings, auth, REGISTRY, metrics, instance)
    sockets = SocketServer(
        gateway,
        cors_origins=settings.cors_origins,
        limits=limits.of_transport(settings),
    )
    hub = RoomHub(
        store,
        gateway,
        clock,
        idle_timeout_s=settings.room_idle_timeout_s,
        compact_after=settings.compact_after,
        limits=limits.of_documents(settings),
        max_room_members=settings.max_room_members,
        max_room_connections=settings.max_room_connections,
        shared=cluster,
        neighbours=None if cluster is None else cluster.neighbours,
    )
    health = Health(
        store,
        lambda: {"connections": sockets.connection_count, "rooms": len(hub)},
        auth.key_set,
        cluster,
    )
    streams = StreamHub(hub, clock, health.report, sockets.post_latest, gateway.user_of)
    services = Services(
        hub,
        store,
        clock,
        gateway,
        streams,
        revocation_lifetime_s=settings.revocation_lifetime_s,
        limits=limits.of_handlers(settings),
    )
    neighbours = None if cluster is None else cluster.neighbours
    gateway.open(sockets, hub, services, streams, neighbours)
    _watch(metrics, sockets, gateway, hub, store, streams, health)
    if cluster is not None:
        cluster.watch(metrics)
    if auth.key_set is not None:
        metrics.count(
            "repsync_jwks_fetches", "Fetches of the key set", "outcome", auth.key_set.fetches.copy
        )

    app = web.Application(client_max_size=http_rules.MAX_BODY_BYTES)
    http_rules.apply(app, settings)
    app[PARTS] = Parts(auth, store, hub, gateway, sockets, streams, health, cluster)
    sockets.mount(app)
    http.add_routes(app, health, metrics)
    app.cleanup_ctx.extend((_storing, _authenticating, _sharing, _probing, _erasing))
    app.on_shutdown.append(_drain)
    app.on_cleanup.append(_close)
    return app


def make_stores(settings: Settings, instance: str) -> tuple[ErasingStore, ClusterStore | None]:
    """The store, once more if it is shared with other instances. Nothing is opened but SQLite.

    Raises:
        StorageError: there can be none like this.
    """
    if settings.mongodb_uri is None:
        return SqliteStore(settings.data_dir), None
    if settings.redis_url is None:
        from server.storage.mongo import MongoStore  # an embedded server does without the driver

        return MongoStore(settings.mongodb_uri.get_secret_value()), None
    from server.cluster.store import ClusterStore

    shared = ClusterStore.from_settings(settings, instance)
    return shared, shared


async def _storing(app: web.Application) -> AsyncIterator[None]:
    store = app[PARTS].store
    try:
        await store.open()
    except BaseException:
        await store.close()
        raise
    yield


async def _authenticating(app: web.Application) -> AsyncIterator[None]:
    parts = app[PARTS]
    try:
        await parts.gateway.load_revocations()
    except Unavailable as exc:
        await parts.store.close()
        raise StorageError(f"what was revoked cannot be read: {exc.__cause__}") from exc
    async with parts.auth.open():
        yield


async def _sharing(app: web.Application) -> AsyncIterator[None]:
    parts = app[PARTS]
    if parts.cluster is not None:
        await parts.cluster.begin(parts.hub, parts.gateway)
    yield


async def _probing(app: web.Application) -> AsyncIterator[None]:
    watching = asyncio.create_task(app[PARTS].health.watch(), name="health")
    yield
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def _erasing(app: web.Application) -> AsyncIterator[None]:
    parts = app[PARTS]
    gateway = parts.gateway
    eraser = Eraser(
        parts.store,
        parts.hub,
        WallClock(),
        gateway.apply_revocation,
        gateway.issued_until,
        name=gateway.instance,
    )
    watching = asyncio.create_task(eraser.watch(), name="erasures")
    yield
    await end(watching)


async def _drain(app: web.Application) -> None:
    """Take nobody new, tell the clients, let what is under way become durable and be acked."""
    parts = app[PARTS]
    parts.health.is_draining = True
    parts.sockets.drain()
    parts.gateway.announce_end()
    parts.streams.close()
    await parts.hub.close()
    await parts.sockets.close_all()


async def _close(app: web.Application) -> None:
    parts = app[PARTS]
    await parts.hub.close()
    await parts.store.close()


def _watch(
    metrics: Metrics,
    sockets: SocketServer,
    gateway: Gateway,
    hub: RoomHub,
    store: ErasingStore,
    streams: StreamHub,
    health: Health,
) -> None:
    def counted(name: str, text: str, read: Any, **labels: str) -> None:
        metrics.watch(f"repsync_{name}", text, read, labels or None)

    counted("connections", "Open Engine.IO connections", lambda: sockets.connection_count)
    for kind in ("events", "document"):
        counted(
            "sessions",
            "Clients in namespaces, by kind",
            lambda kind=kind: gateway.session_counts[kind],
            kind=kind,
        )
    counted("rooms", "Documents in memory", lambda: len(hub))
    counted("revocations", "Revocations that have not ended", lambda: gateway.revocation_count)
    counted("stream_watchers", "Connections that watch streams", lambda: streams.watcher_count)
    counted(
        "event_loop_lag_seconds",
        "The longest that the loop was late in the last 15 s",
        lambda: health.loop_lag_s,
    )
    transport = sockets.stats
    for what, text, label, read in (
        ("messages_dropped", "Left out because a client was slow", "kind", transport.dropped),
        ("connections_closed", "Ended connections", "reason", transport.closed),
        ("connects_refused", "Connects refused with 503", "reason", transport.refused),
        ("messages_limited", "Above a client's or user's allowance", "kind", transport.limited),
    ):
        metrics.count(f"repsync_{what}", text, label, read.copy)
    counted("slow_readers", "Clients over their budget now", lambda: sockets.slow_count)
    counted(
        "values_conflated", "Stream values that a later one replaced", lambda: transport.conflated
    )
    counted("packets_malformed", "Packets that ended their connection", lambda: transport.malformed)
    counted("reads_paused", "Times that a full inbox paused a socket", lambda: transport.paused)
    stats = store.stats
    counted("store_appends", "Log records written since the start", lambda: stats.appends)
    counted("store_commits", "Commits, each with one sync", lambda: stats.commits)
    counted("store_commit_seconds", "Time spent in commits", lambda: stats.commit_seconds)
    counted("store_failures", "Commits and reads that failed", lambda: stats.failures)
