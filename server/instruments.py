"""What of a server is shown in `/metrics`, and under which names.

The names and what they mean are in docs/operations.md; a test compares the two. Nothing is owned
here: each number is its part's own, and read when Prometheus asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from server import VERSION
from server.metrics import Metrics

if TYPE_CHECKING:
    from server.app import Parts

_STATES = ("healthy", "degraded", "unhealthy")
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = 4096


def show(parts: Parts) -> None:
    """Show all of a server. Called once, when its parts are there."""
    metrics = parts.metrics
    show_process(metrics)
    _show_clients(metrics, parts)
    _show_events(metrics, parts)
    _show_documents(metrics, parts)
    _show_store(metrics, parts)
    _show_dependencies(metrics, parts)
    if parts.cluster is not None:
        parts.cluster.watch(metrics)


def show_process(metrics: Metrics) -> None:
    """What every process has, a worker too."""
    started_s = time.time()
    metrics.watch("repsync_build_info", "Always 1", lambda: 1, {"version": VERSION})
    metrics.total("process_cpu_seconds", "CPU time of the process", time.process_time)
    metrics.watch(
        "process_start_time_seconds", "When it started, since the epoch", lambda: started_s
    )
    if _STATM.exists():  # Linux
        metrics.watch("process_resident_memory_bytes", "Memory that it has", _resident_bytes)


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES


def _show_clients(metrics: Metrics, parts: Parts) -> None:
    sockets, gateway, stats = parts.sockets, parts.gateway, parts.sockets.stats
    metrics.watch(
        "repsync_connections", "Open Engine.IO connections", lambda: sockets.connection_count
    )
    metrics.watch_by(
        "repsync_sessions",
        "Clients in namespaces, by kind",
        "kind",
        lambda: gateway.session_counts,
    )
    for name, text, label, counter in (
        ("connects_refused", "Handshakes refused with 503", "reason", stats.refused),
        ("connections_refused", "Connect errors, by code", "code", stats.rejected),
        ("connections_closed", "Ended connections", "reason", stats.closed),
        ("messages_dropped", "Left out because a client was slow", "kind", stats.dropped),
        ("messages_limited", "Above a client's or user's allowance", "kind", stats.limited),
    ):
        metrics.count(f"repsync_{name}", text, label, counter.copy)
    metrics.watch(
        "repsync_slow_readers", "Clients over their budget now", lambda: sockets.slow_count
    )
    for name, text, read in (
        ("values_conflated", "Stream values that a later one replaced", lambda: stats.conflated),
        ("packets_malformed", "Packets that ended their connection", lambda: stats.malformed),
        ("reads_paused", "Times that a full inbox paused a socket", lambda: stats.paused),
    ):
        metrics.total(f"repsync_{name}", text, read)
    metrics.watch(
        "repsync_revocations", "Revocations that have not ended", lambda: gateway.revocation_count
    )
    metrics.watch(
        "repsync_stream_watchers",
        "Connections that watch streams",
        lambda: parts.streams.watcher_count,
    )


def _show_events(metrics: Metrics, parts: Parts) -> None:
    stats = parts.sockets.stats
    metrics.count(
        "repsync_events",
        "Events from clients, by name and outcome",
        ("event", "code"),
        metrics.events.copy,
    )
    metrics.measure_by(
        "repsync_ack_seconds", "From an event's arrival to its ack", "kind", metrics.ack_seconds
    )
    metrics.count(
        "repsync_messages_sent",
        "Messages handed to transports, one for each recipient",
        "event",
        stats.sent.copy,
    )
    metrics.count(
        "repsync_sent_bytes",
        "What these take as websocket frames",
        "event",
        stats.sent_bytes.copy,
    )
    metrics.total(
        "repsync_update_deliveries",
        "Document updates sent, one for each recipient",
        lambda: metrics.delivered,
    )
    metrics.count(
        "repsync_sync_resets",
        "Clients asked to sync anew, by reason",
        "reason",
        metrics.resets.copy,
    )


def _show_documents(metrics: Metrics, parts: Parts) -> None:
    hub = parts.hub
    metrics.watch("repsync_rooms", "Documents in memory", lambda: len(hub))
    metrics.watch_by(
        "repsync_documents",
        "Documents in memory, by kind",
        "kind",
        lambda: Counter(live.name.kind.value for live in hub.live),
    )
    metrics.watch(
        "repsync_uncompacted_records",
        "Log records of documents in memory that no snapshot has yet",
        lambda: sum(live.room.compactable for live in hub.live),
    )
    rooms = metrics.rooms
    for name, text, histogram in (
        ("append_seconds", "From an append's start until it is durable", rooms.append_seconds),
        ("append_changes", "Changes that went into one append", rooms.append_changes),
    ):
        metrics.measure(f"repsync_{name}", text, histogram)
    metrics.measure_by(
        "repsync_propagation_seconds",
        "From a change's arrival, by where it came in, until sockets here were given it",
        "origin",
        rooms.shown_seconds,
    )


def _show_store(metrics: Metrics, parts: Parts) -> None:
    stats = parts.store.stats
    metrics.total(
        "repsync_store_appends", "Log records written since the start", lambda: stats.appends
    )
    metrics.total("repsync_store_failures", "Commits and reads that failed", lambda: stats.failures)
    metrics.measure(
        "repsync_store_commit_seconds", "Commits, each with one sync", stats.commit_seconds
    )
    metrics.measure("repsync_store_commit_records", "Writes in one commit", stats.commit_records)


def _show_dependencies(metrics: Metrics, parts: Parts) -> None:
    health, key_set = parts.health, parts.auth.key_set
    metrics.watch(
        "repsync_event_loop_lag_seconds",
        "The longest that the loop was late in the last 15 s",
        lambda: health.loop_lag_s,
    )

    def states() -> Mapping[tuple[str, ...], float]:
        return {
            (name, state): float(about["state"] == state)
            for name, about in health.report()["dependencies"].items()
            for state in _STATES
        }

    def latencies() -> Mapping[str, float]:
        return {
            name: about["latency_ms"] / 1_000
            for name, about in health.report()["dependencies"].items()
            if "latency_ms" in about
        }

    metrics.watch_by(
        "repsync_dependency_state",
        "1 for the state that a dependency is in",
        ("dependency", "state"),
        states,
    )
    metrics.watch_by(
        "repsync_dependency_latency_seconds",
        "How long the last probe of a dependency took",
        "dependency",
        latencies,
    )
    if key_set is not None:
        metrics.count(
            "repsync_jwks_fetches", "Fetches of the key set", "outcome", key_set.fetches.copy
        )
