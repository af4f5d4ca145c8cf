"""Who looks after a running server: its health, what goes on in it, and the alerts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crdt.hub import RoomHub
from crdt.ports import Clock
from server.alerts.watch import Alerts
from server.gateway import Gateway
from server.health import Health
from server.health.activity import Activity
from server.health.disk import Disk
from server.health.overview import Overview, quarantined
from server.jwks import JwksClient
from server.metrics import Metrics
from server.settings import Settings
from server.storage.port import ServerStore
from server.tasks import end
from server.transport.server import SocketServer

if TYPE_CHECKING:
    from server.cluster.store import ClusterStore


@dataclass(slots=True)
class Watch:
    """What knows how the server is."""

    health: Health
    overview: Overview
    alerts: Alerts

    @classmethod
    def over(
        cls,
        settings: Settings,
        instance: str,
        store: ServerStore,
        hub: RoomHub,
        sockets: SocketServer,
        gateway: Gateway,
        metrics: Metrics,
        clock: Clock,
        key_set: JwksClient | None,
        cluster: ClusterStore | None,
        *,
        push: Callable[[dict[str, Any]], None],
    ) -> Watch:
        """Put it together.

        Args:
            push: gives an alert to those who watch `system:alerts`.
        """

        def counts() -> dict[str, int]:
            waiting_ms = round(hub.oldest_waiting_s * 1_000)
            damaged = len(quarantined(hub, cluster))
            if cluster is not None:
                damaged += cluster.spool_quarantined
                if (spooled_at_ms := cluster.oldest_spooled_ms) is not None:
                    waiting_ms = max(waiting_ms, clock.now_ms() - spooled_at_ms)
            return {
                "connections": sockets.connection_count,
                "rooms": len(hub),
                "send_queue_bytes": sockets.stats.deepest_queue_bytes,
                "oldest_unflushed_ms": waiting_ms,
                "quarantined": damaged,
            }

        is_log = settings.mongodb_uri is None
        health = Health(
            store,
            counts,
            key_set,
            cluster,
            instance=instance,
            # MongoDB alone needs no folder here.
            disk=Disk(settings.data_dir, is_log=is_log) if is_log or cluster else None,
        )
        activity = Activity(hub, clock)
        gateway.on_committed = activity.committed
        gateway.on_erased = activity.forget
        alerts = Alerts.from_settings(settings, health, clock, push, instance=instance)
        alerts.watch(metrics)
        overview = Overview(
            health,
            hub,
            clock,
            activity,
            instance=instance,
            deliveries=lambda: metrics.delivered,
            alerts=alerts.firing,
            cluster=cluster,
        )
        if cluster is not None:
            cluster.describe = health.summary
        return cls(health, overview, alerts)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look after the server as long as the block runs."""
        async with self.alerts.watching():
            tasks = [
                asyncio.create_task(self.health.watch(), name="health"),
                asyncio.create_task(self.overview.watch(), name="history"),
            ]
            try:
                yield
            finally:
                await end(*tasks)
