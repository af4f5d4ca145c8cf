"""Which alerts are firing, and what is told of them.

An alert fires when its condition has lasted as long as that asks for, once; again only when it has
become worse. It is resolved when the condition is over, which is told if the firing was. One that
fires, resolves and fires again is told again no sooner than its severity's cool-down allows: until
then it is held, and shown as firing all the same. So what was told last is what is so, but for a
cool-down's time at most.

State in memory, no clock, no I/O: what to tell is returned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

Severity = Literal["info", "warning", "critical"]

RANK: dict[Severity | None, int] = {None: 0, "info": 1, "warning": 2, "critical": 3}
COOL_DOWN_S: dict[Severity, float] = {"info": 600.0, "warning": 300.0, "critical": 60.0}


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now.

    `key` names it, the same each time. `count` of how many things in `window_s` seconds, if it is
    about that. It becomes an alert when it has lasted `for_s`.
    """

    key: str
    severity: Severity
    title: str
    message: str
    count: int = 1
    window_s: float = 0.0
    for_s: float = 0.0


@dataclass(slots=True)
class _Alert:
    id: str
    condition: Condition
    began_s: float
    first_at_ms: int
    last_at_ms: int
    is_due: bool = False
    """Whether it has lasted long enough."""
    told: Severity | None = None
    """The worst that was told of it."""


class AlertBook:
    """The alerts of one instance."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._alerts: dict[str, _Alert] = {}
        self._told_at_s: dict[tuple[str, Severity], float] = {}
        self._made = 0

    def update(
        self, conditions: Iterable[Condition], now_s: float, now_ms: int
    ) -> list[dict[str, Any]]:
        """Take note of all that is wrong now.

        Args:
            now_s: on a clock that never goes back; now_ms: ms since the epoch.
        Returns: what is to be told, alert objects of the wire contract.
        """
        self._forget(now_s)
        told: list[dict[str, Any]] = []
        present = {condition.key: condition for condition in conditions}
        for key in self._alerts.keys() - present.keys():
            alert = self._alerts.pop(key)
            if alert.told is not None:
                alert.last_at_ms = now_ms
                worst = replace(alert.condition, severity=alert.told)
                told.append(self._shown(alert, worst, "resolved"))
        for key, condition in present.items():
            if (known := self._alerts.get(key)) is None:
                self._made += 1
                known = self._alerts[key] = _Alert(
                    f"{self._instance}-{self._made}", condition, now_s, now_ms, now_ms
                )
            known.condition, known.last_at_ms = condition, now_ms
            known.is_due = known.is_due or now_s - known.began_s >= condition.for_s
            if known.is_due and self._may_tell(known, now_s):
                known.told = condition.severity
                self._told_at_s[key, condition.severity] = now_s
                told.append(self._shown(known, condition, "firing"))
        return told

    def firing(self) -> list[dict[str, Any]]:
        """All that are firing, the worst first, whether or not they have been told."""
        due = [alert for alert in self._alerts.values() if alert.is_due]
        due.sort(key=lambda alert: (-RANK[alert.condition.severity], alert.first_at_ms))
        return [self._shown(alert, alert.condition, "firing") for alert in due]

    def _may_tell(self, alert: _Alert, now_s: float) -> bool:
        severity = alert.condition.severity
        if RANK[severity] <= RANK[alert.told]:
            return False
        told_at_s = self._told_at_s.get((alert.condition.key, severity))
        return told_at_s is None or now_s - told_at_s >= COOL_DOWN_S[severity]

    def _forget(self, now_s: float) -> None:
        self._told_at_s = {
            (key, severity): told_at_s
            for (key, severity), told_at_s in self._told_at_s.items()
            if now_s - told_at_s < COOL_DOWN_S[severity]
        }

    def _shown(self, alert: _Alert, condition: Condition, state: str) -> dict[str, Any]:
        return {
            "id": alert.id,
            "key": condition.key,
            "severity": condition.severity,
            "state": state,
            "title": condition.title,
            "message": condition.message,
            "count": condition.count,
            "window_s": condition.window_s,
            "first_at": alert.first_at_ms,
            "last_at": alert.last_at_ms,
            "instance": self._instance,
        }
