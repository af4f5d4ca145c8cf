"""Probing what the server depends on, and the health report.

**What is promised.** The report is made of what the last probes found: to ask for it costs nothing
that waits. A probe that fails, whatever it is, is an answer. Whoever wants to know of a change is
told within `OBSERVE_EVERY_S`, and each change is logged, recoveries too.

**Who owns what.** The store and the disk are probed here, and the loop's lag is measured here.
Everything else that can be away keeps its own state, and is asked for it (`add`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from crdt.errors import RepSyncError
from server import VERSION
from server.health.disk import Disk
from server.health.loop_lag import LoopLag
from server.health.standings import Change, Standings, worst
from server.jwks import JwksClient
from server.storage.port import ServerStore

if TYPE_CHECKING:
    from server.cluster.store import ClusterStore

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 2.0
OBSERVE_EVERY_S = 0.5
SLOW_STORE_S = 1.0
SLOW_LOOP_S = 0.5

Report = Callable[[], dict[str, Any]]
"""How a dependency is: `{state, ...}`, maybe with `latency_ms`, `breaker`, `error`. It may be shown
to anybody: no names of hosts, no ids."""


class Health:
    """How the server is.

    healthy: all is well; degraded: it works, slowly, or with keys that cannot be fetched anew;
    unhealthy: changes cannot be stored. Where a log is shared, they can be as long as the database
    is behind, or the log away: that is degraded, and an instance that does not hear the others is
    not ready.
    """

    def __init__(
        self,
        store: ServerStore,
        counts: Callable[[], Mapping[str, int]],
        key_set: JwksClient | None = None,
        cluster: ClusterStore | None = None,
        *,
        instance: str = "",
        disk: Disk | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """
        Args:
            counts: what stands in the report beside the dependencies.
            disk: the one under the log or the spool, if there is either.
        """
        self._cluster = cluster
        self._store = store
        self._counts = counts
        self._key_set = key_set
        self._instance = instance
        self._disk = disk
        self._now_ms = now_ms
        self._started = time.monotonic()
        self._store_seconds: float | None = None
        self._store_error: str | None = None
        self._lag = LoopLag()
        self._others: dict[str, Report] = {}
        self._standings = Standings()
        self._listeners: list[Callable[[Change], None]] = []
        self.is_draining = False
        if key_set is not None:
            self.add("jwks", key_set.report)

    def add(self, name: str, report: Report) -> None:
        """Have another dependency in the report."""
        self._others[name] = report

    def on_change(self, tell: Callable[[Change], None]) -> None:
        """Have `tell` called with every change of a dependency's state. It must not block."""
        self._listeners.append(tell)

    async def watch(self) -> None:
        """Probe until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lag.watch(), name="event loop lag")
            group.create_task(self._observe_again_and_again(), name="health observer")
            if self._disk is not None:
                group.create_task(self._disk.watch(), name="disk probe")
            while True:
                await self.probe()
                await asyncio.sleep(PROBE_INTERVAL_S)

    async def _observe_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(OBSERVE_EVERY_S)
            try:
                self.dependencies()
            except Exception:
                log.exception("the dependencies cannot be looked at")

    @property
    def loop_lag_s(self) -> float:
        """The longest that the event loop was late lately."""
        return self._lag.worst_s

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
        """Whether clients should be sent here."""
        has_keys = self._key_set is None or self._key_set.is_ready
        if self._cluster is not None:
            stores = not self._cluster.is_deaf
        else:
            stores = self._store_error is None
        return stores and has_keys and not self.is_draining

    # -- the report -------------------------------------------------------------------------

    def dependencies(self) -> dict[str, dict[str, Any]]:
        """Each with its state and since when, ms since the epoch. Who waits for changes is told."""
        found = {"store": self._report_store(), "event_loop": self._report_loop()}
        if self._disk is not None:
            found["disk"] = self._disk.report()
        if self._cluster is not None:
            found |= self._cluster.report()
        found |= {name: report() for name, report in self._others.items()}
        for change in self._standings.observe(found, self._now_ms()):
            self._announce(change)
        return {
            name: {**report, "since": self._standings.since_ms(name)}
            for name, report in found.items()
        }

    def report(self) -> dict[str, Any]:
        """The health object of the wire contract, as anybody may see it."""
        dependencies = self.dependencies()
        return {
            "status": worst(report["state"] for report in dependencies.values()),
            "instance": self._instance,
            "version": VERSION,
            "uptime_s": round(time.monotonic() - self._started, 1),
            **self._counts(),
            "spool_bytes": self._cluster.spool_bytes if self._cluster else 0,
            "deaf_s": round(self._cluster.deaf_s, 1) if self._cluster else 0.0,
            "dependencies": dependencies,
        }

    def summary(self) -> dict[str, Any]:
        """What the other instances are told of this one."""
        report = self.report()
        told = ("status", "connections", "rooms", "uptime_s", "version")
        return {name: report[name] for name in told}

    def _announce(self, change: Change) -> None:
        if change.before is None and change.after == "healthy":
            return  # nothing was known of it before
        told = {
            "dependency": change.name,
            "state": change.after,
            "after_s": round(change.lasted_ms / 1_000, 1),
        }
        if change.is_recovery:
            log.info("a dependency has recovered", extra=told)
        else:
            told["cause"] = change.error
            log.warning("a dependency is not well", extra=told)
        for tell in self._listeners:
            try:
                tell(change)
            except Exception:
                log.exception("a change of health could not be told")

    def _report_store(self) -> dict[str, Any]:
        report: dict[str, Any] = {"kind": self._store.kind, "state": "healthy"}
        if self._store.breaker is not None:
            report["breaker"] = self._store.breaker.state
        if self._store_seconds is not None:
            report["latency_ms"] = round(self._store_seconds * 1_000, 3)
            if self._store_seconds > SLOW_STORE_S:
                report["state"] = "degraded"
        if self._store_error is not None:
            report["state"] = "unhealthy" if self._cluster is None else "degraded"
            report["error"] = self._store_error
        return report

    def _report_loop(self) -> dict[str, Any]:
        lag_s = self.loop_lag_s
        return {
            "state": "degraded" if lag_s > SLOW_LOOP_S else "healthy",
            "lag_ms": round(lag_s * 1_000, 3),
        }
