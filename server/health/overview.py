"""What admins see of an instance: the health report, and what goes on (`system:health`).

Only the history is kept while nobody watches: a point every five seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from crdt.hub import RoomHub
from crdt.ids import DocName
from crdt.ports import Clock
from server.health.activity import WINDOW_S, Activity
from server.health.watch import Health

if TYPE_CHECKING:
    from server.cluster.store import ClusterStore

log = logging.getLogger(__name__)

MAX_POINTS = 60
MAX_QUARANTINED_SHOWN = 20


class Overview:
    """The value of the stream.

    Args:
        deliveries: how many document updates have been sent to somebody since the start.
        alerts: those that are firing.
    """

    def __init__(
        self,
        health: Health,
        hub: RoomHub,
        clock: Clock,
        activity: Activity,
        *,
        instance: str,
        deliveries: Callable[[], float],
        alerts: Callable[[], list[dict[str, Any]]],
        cluster: ClusterStore | None = None,
    ) -> None:
        self._health = health
        self._hub = hub
        self._clock = clock
        self._activity = activity
        self._instance = instance
        self._deliveries = deliveries
        self._alerts = alerts
        self._cluster = cluster
        self._history: deque[dict[str, Any]] = deque(maxlen=MAX_POINTS)
        self._last = (time.monotonic(), 0, 0.0)

    async def watch(self) -> None:
        """Keep the history until cancelled."""
        while True:
            await asyncio.sleep(WINDOW_S)
            try:
                self.note()
            except Exception:
                log.exception("a point of the history is missing")

    def note(self) -> None:
        """Add a point to the history."""
        self._activity.turn()
        now_s, updates, deliveries = time.monotonic(), self._activity.updates, self._deliveries()
        then_s, updates_then, deliveries_then = self._last
        self._last = (now_s, updates, deliveries)
        for_s = max(now_s - then_s, 0.001)
        report = self._health.report()
        self._history.append(
            {
                "t": self._clock.now_ms(),
                "status": report["status"],
                "lag_ms": report["dependencies"]["event_loop"]["lag_ms"],
                "connections": report["connections"],
                "rooms": report["rooms"],
                "updates_per_s": round((updates - updates_then) / for_s, 2),
                "deliveries_per_s": round((deliveries - deliveries_then) / for_s, 2),
            }
        )

    def value(self) -> dict[str, Any]:
        """All of it, now."""
        report = self._health.report()
        return {
            **report,
            "instances": self._instances(report),
            "busiest": self._activity.busiest(),
            "live": self._activity.live(),
            "records": self._activity.records(),
            "history": list(self._history),
            "alerts": self._alerts(),
            "quarantined_documents": self._quarantined(),
        }

    def _instances(self, report: Mapping[str, Any]) -> list[dict[str, Any]]:
        told = ("status", "connections", "rooms", "uptime_s", "version")
        here = {"instance": self._instance, **{name: report[name] for name in told}}
        others = self._cluster.peers if self._cluster is not None else []
        return [{**here, "seen_ms_ago": 0}, *others]

    def _quarantined(self) -> list[dict[str, str]]:
        found = quarantined(self._hub, self._cluster)
        shown = sorted(found.items(), key=lambda one: str(one[0]))[:MAX_QUARANTINED_SHOWN]
        return [{"doc": str(doc), "cause": cause} for doc, cause in shown]


def quarantined(hub: RoomHub, cluster: ClusterStore | None) -> dict[DocName, str]:
    """Documents of which something that is stored cannot be read, and why."""
    moved = cluster.quarantined if cluster is not None else {}
    return {**moved, **hub.damaged}
