"""Since when each dependency has been as it is, and what has changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

State = Literal["healthy", "degraded", "unhealthy"]
WORST_FIRST: tuple[State, ...] = ("unhealthy", "degraded", "healthy")


class Change(NamedTuple):
    """A dependency is in another state than before (None: it has just been looked at first).
    `lasted_ms`: how long the state before it lasted."""

    name: str
    before: State | None
    after: State
    lasted_ms: int
    error: str | None

    @property
    def is_recovery(self) -> bool:
        return self.after == "healthy" and self.before is not None


class Standings:
    """The states of all dependencies. No clock of its own: times are ms since the epoch."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[State, int]] = {}

    def observe(self, dependencies: Mapping[str, Mapping[str, Any]], now_ms: int) -> list[Change]:
        """Take note of how they are now. Returns: what is different from the last time."""
        changes = []
        for name, report in dependencies.items():
            state: State = report["state"]
            before, since_ms = self._known.get(name, (None, now_ms))
            if before != state:
                self._known[name] = (state, now_ms)
                lasted_ms = max(0, now_ms - since_ms)
                changes.append(Change(name, before, state, lasted_ms, report.get("error")))
        for name in self._known.keys() - dependencies.keys():
            del self._known[name]
        return changes

    def since_ms(self, name: str) -> int:
        """When this dependency came into the state in which it was observed last."""
        return self._known[name][1]


def worst(states: Iterable[str]) -> State:
    found = set(states)
    return next((state for state in WORST_FIRST if state in found), "healthy")
