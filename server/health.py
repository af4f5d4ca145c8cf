"""How the server is: what /health, /ready and the `system:health` stream tell."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crdt.errors import RepSyncError
from server.jwks import JwksClient
from server.storage.port import ServerStore

if TYPE_CHECKING:
    from server.cluster.store import ClusterStore

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 2.0
SLOW_STORE_S = 1.0
SLOW_LOOP_S = 0.5
LAG_INTERVAL_S = 0.02
LAG_KEPT_S = 15.0  # as long as a scraper looks away


class Health:
    """Probes the store and the event loop once a second and keeps the last result.

    healthy: all is well; degraded: it works, slowly, or with keys that cannot be fetched anew;
    unhealthy: changes cannot be stored. Where a log is shared, they can be as long as the database
    is behind, or the log away: that is degraded, and an instance that does not hear the others is
    not ready.
    """

    def __init__(
        self,
        store: ServerStore,
        counts: Callable[[], dict[str, int]],
        key_set: JwksClient | None = None,
        cluster: ClusterStore | None = None,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._counts = counts
        self._key_set = key_set
        self._started = time.monotonic()
        self._store_seconds: float | None = None
        self._store_error: str | None = None
        self._lags: deque[tuple[float, float]] = deque()
        self.is_draining = False

    async def watch(self) -> None:
        """Probe until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_loop(), name="event loop lag")
            while True:
                await self.probe()
                await asyncio.sleep(PROBE_INTERVAL_S)

    async def _watch_loop(self) -> None:
        while True:
            due = time.monotonic() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            now = time.monotonic()
            # Kept are those that no later one exceeds: the first is the worst.
            while self._lags and self._lags[-1][1] <= now - due:
                self._lags.pop()
            self._lags.append((now, now - due))
            self._forget_lags(now)

    def _forget_lags(self, now: float) -> None:
        while self._lags and self._lags[0][0] < now - LAG_KEPT_S:
            self._lags.popleft()

    @property
    def loop_lag_s(self) -> float:
        """The longest that the event loop was late in the last `LAG_KEPT_S`."""
        self._forget_lags(time.monotonic())
        return max(0.0, self._lags[0][1]) if self._lags else 0.0

    async def probe(self) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                self._store_seconds = await self._store.check()
            self._store_error = None
        except TimeoutError:
            self._store_error = f"no answer within {PROBE_TIMEOUT_S:g} s"
        except RepSyncError as exc:
            self._store_error = str(exc.__cause__ or exc)
        except Exception as exc:
            log.exception("the store cannot be probed")
            self._store_error = type(exc).__name__

    @property
    def is_ready(self) -> bool:
        has_keys = self._key_set is None or self._key_set.is_ready
        if self._cluster is not None:
            stores = not self._cluster.is_deaf
        else:
            stores = self._store_error is None
        return stores and has_keys and not self.is_draining

    def report(self) -> dict[str, Any]:
        """The health object of the wire contract."""
        store: dict[str, Any] = {"kind": self._store.kind, "state": "healthy"}
        if self._store_seconds is not None:
            store["latency_ms"] = round(self._store_seconds * 1_000, 3)
            if self._store_seconds > SLOW_STORE_S:
                store["state"] = "degraded"
        if self._store_error is not None:
            store["state"] = "unhealthy" if self._cluster is None else "degraded"
            store["error"] = self._store_error
        loop = {
            "state": "degraded" if self.loop_lag_s > SLOW_LOOP_S else "healthy",
            "lag_ms": round(self.loop_lag_s * 1_000, 3),
        }
        dependencies = {"store": store, "event_loop": loop}
        if self._cluster is not None:
            dependencies["redis"] = self._cluster.report()
        if self._key_set is not None:
            dependencies["jwks"] = self._key_set.report()
        states = {dependency["state"] for dependency in dependencies.values()}
        worst = next(state for state in ("unhealthy", "degraded", "healthy") if state in states)
        return {
            "status": worst,
            "dependencies": dependencies,
            "uptime_s": round(time.monotonic() - self._started, 1),
            **self._counts(),
        }
