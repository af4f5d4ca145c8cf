"""The only place where the parts meet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from aiohttp import web

from crdt.errors import Unavailable
from crdt.hub import RoomHub
from handlers import REGISTRY
from handlers.context import Services
from handlers.streams import Sources
from server import apidocs, dashboard, http, http_rules, instruments, limits
from server.alerts import sentry
from server.api import SnapshotApi
from server.auth import Authenticator
from server.erasure import Eraser
from server.gateway import Gateway
from server.health import Health
from server.metrics import Metrics
from server.settings import Settings
from server.sse import EventStreams
from server.storage.port import ErasingStore, StorageError
from server.storage.sqlite import SqliteStore
from server.streams import SocketAudience, StreamHub
from server.tasks import end
from server.transport.server import SocketServer
from server.watch import Watch

if TYPE_CHECKING:
    from server.cluster.store import ClusterStore


class WallClock:
    """The system's clock. Only stamps come from it; intervals are measured elsewhere."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Parts:
    """What a running server is made of."""

    instance: str
    """Names this life of this process."""
    auth: Authenticator
    store: ErasingStore
    hub: RoomHub
    gateway: Gateway
    sockets: SocketServer
    streams: StreamHub
    viewers: EventStreams
    health: Health
    metrics: Metrics
    watch: Watch
    cluster: ClusterStore | None = None
    """The store, if it is shared with other instances."""


PARTS = web.AppKey("parts", Parts)


def create_app(settings: Settings) -> web.Application:
    """Put a server together. Nothing is started before the application is.

    Raises:
        SettingsError, StorageError: it cannot be started like this.
    """
    sentry.check(settings.sentry_dsn)
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
        observer=metrics.rooms,
    )
    watch = Watch.over(
        settings,
        instance,
        store,
        hub,
        sockets,
        gateway,
        metrics,
        clock,
        auth.key_set,
        cluster,
        push=lambda alert: streams.push("system:alerts", alert),
    )
    health = watch.health
    sources = Sources(hub, store, health=watch.overview.value, public_health=health.report)
    streams = StreamHub(sources, clock, SocketAudience(sockets, gateway.user_of), instance)
    viewers = EventStreams(
        gateway,
        streams,
        instance,
        stall_timeout_s=settings.stall_timeout_s,
        drain_spread_s=settings.drain_spread_s,
        max_viewers=settings.max_connections,
    )

    def show_health(_: object) -> None:
        for stream in ("system:health", "health:live"):
            streams.changed(stream)

    health.on_change(show_health)
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
    gateway.open(sockets, hub, services, streams, viewers, neighbours)
    parts = Parts(
        instance,
        auth,
        store,
        hub,
        gateway,
        sockets,
        streams,
        viewers,
        health,
        metrics,
        watch,
        cluster,
    )
    instruments.show(parts)

    app = web.Application(client_max_size=http_rules.MAX_BODY_BYTES)
    http_rules.apply(app, settings)
    app[PARTS] = parts
    sockets.mount(app)
    http.add_routes(app, health, metrics)
    apidocs.add_routes(app)
    dashboard.add_routes(app)
    viewers.add_routes(app)
    SnapshotApi(gateway, hub, clock, limits.of_user(settings)).add_routes(app)
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
    async with app[PARTS].watch.watching():
        yield


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
    await asyncio.gather(parts.viewers.drain(), parts.hub.quiesce())
    # Before the rooms are put away, which may take a while: nobody can edit here any more.
    await parts.sockets.close_all()
    await parts.hub.close()


async def _close(app: web.Application) -> None:
    parts = app[PARTS]
    await parts.store.close()
