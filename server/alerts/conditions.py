"""What is wrong, by the health report and by the errors of the last minute.

One cause makes one alert: what follows from a log or a database that is away (nobody is heard,
nothing is moved) is left out while that is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.alerts.book import Condition, Severity
from server.alerts.errors import WINDOW_S, severity_of

LASTS_S = 1.0
"""A dependency that is back sooner is worth a line in the log, no alert."""
SPOOL_WARNING, SPOOL_CRITICAL = 0.5, 7 / 8

_SEVERITY: dict[str, Severity] = {"degraded": "warning", "unhealthy": "critical"}
_CAUSES = {"bus": ("redis",), "backlog": ("redis", "store")}
"""Dependency -> those that it needs itself."""
_TITLES = {
    "store": "The database",
    "redis": "The shared log (Redis)",
    "bus": "The channels to other instances",
    "backlog": "Moving records to MongoDB",
    "disk": "The disk under DATA_DIR",
    "event_loop": "The event loop",
    "jwks": "The key set of JWT_JWKS_URL",
    "webhook": "The webhook for alerts",
}


def of_report(report: Mapping[str, Any]) -> list[Condition]:
    """What the health report says is wrong."""
    dependencies: Mapping[str, Mapping[str, Any]] = report["dependencies"]
    found = [
        _of_dependency(name, dependency)
        for name, dependency in dependencies.items()
        if dependency["state"] != "healthy" and not _follows(name, dependencies)
    ]
    bus = dependencies.get("bus", {})
    if bus.get("is_deaf") and not _follows("bus", dependencies):
        found.append(
            Condition(
                "deaf",
                "critical",
                "This instance does not hear the others",
                f"None of its own heartbeats has come back for {bus['deaf_s']:g} s. Its clients"
                " do not see what happens elsewhere; new ones are sent elsewhere.",
            )
        )
    if (redis := dependencies.get("redis")) is not None:
        found += _of_spool(redis)
    if report.get("quarantined"):
        found.append(
            Condition(
                "quarantined",
                "warning",
                "Documents or records cannot be read",
                "What is stored of them is damaged, or contradicts itself. Others are not"
                " affected. See: quarantined documents.",
                count=report["quarantined"],
            )
        )
    return found


def of_errors(groups: Mapping[str, int]) -> list[Condition]:
    """The groups of errors that are too many."""
    found = []
    for group, count in groups.items():
        severity = severity_of(count)
        if severity is not None:
            found.append(
                Condition(
                    f"errors:{group}",
                    severity,
                    "Errors",
                    f"{group}: {count} in the last {WINDOW_S:g} s. The log has them in full.",
                    count=count,
                    window_s=WINDOW_S,
                )
            )
    return found


def _follows(name: str, dependencies: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether something else explains it that is told anyway."""
    return any(
        dependencies[cause]["state"] != "healthy"
        for cause in _CAUSES.get(name, ())
        if cause in dependencies
    )


def _of_dependency(name: str, dependency: Mapping[str, Any]) -> Condition:
    title = _TITLES.get(name, name)
    state = dependency["state"]
    message = f"It is {state}" + (f": {dependency['error']}." if "error" in dependency else ".")
    return Condition(f"dependency:{name}", _SEVERITY[state], title, message, for_s=LASTS_S)


def _of_spool(redis: Mapping[str, Any]) -> list[Condition]:
    used = redis["spool_bytes"] / redis["spool_max_bytes"]
    if used < SPOOL_WARNING:
        return []
    is_critical = used >= SPOOL_CRITICAL
    after = "Changes are refused" if is_critical else "When it is full changes are refused"
    return [
        Condition(
            "spool",
            "critical" if is_critical else "warning",
            "The spool fills up",
            f"{used:.0%} of it is used by {redis['spool_records']} records that wait for Redis."
            f" {after}: bring Redis back.",
            count=redis["spool_records"],
        )
    ]
