"""What the instances tell of themselves with their heartbeats, for whoever looks at all of them.

Heartbeats carry no seal: what they say is shown, and nothing is decided by it. One of another
version may say less, or nothing, or what we do not know; what cannot be understood is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_SHOWN, MAX_NAME_CHARS = 100, 64

Count = Annotated[int, Field(ge=0, le=2**53)]


class Standing(BaseModel):
    """How an instance is. Each field may be unknown."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    status: Literal["healthy", "degraded", "unhealthy"] | None = None
    connections: Count | None = None
    rooms: Count | None = None
    uptime_s: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] | None = None
    version: Annotated[str, Field(max_length=40)] | None = None


UNKNOWN = Standing()


class Peers:
    """The other instances, as they say they are, until they are gone."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}

    def heard(self, instance: str, told: Any) -> None:
        try:
            self._standings[instance] = Standing.model_validate(told or {})
        except ValidationError:
            self._standings[instance] = UNKNOWN

    def gone(self, instance: str) -> None:
        self._standings.pop(instance, None)

    def shown(self, heard_at_s: Mapping[str, float], now_s: float) -> list[dict[str, Any]]:
        """As an admin sees them.

        Args:
            heard_at_s: those that are heard of, and when, on the clock of `now_s`.
        """
        return [
            shown(instance, self._standings.get(instance, UNKNOWN), now_s - at_s)
            for instance, at_s in sorted(heard_at_s.items())[:MAX_SHOWN]
        ]


def shown(instance: str, standing: Standing, seen_s_ago: float = 0.0) -> dict[str, Any]:
    return {
        "instance": instance[:MAX_NAME_CHARS],
        **standing.model_dump(),
        "seen_ms_ago": max(0, round(seen_s_ago * 1_000)),
    }
