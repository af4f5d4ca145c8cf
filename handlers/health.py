"""How a server is, as it is told: the object of `/health`, what admins see besides, alerts.

A dependency's fields depend on its kind; those with a default may be missing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from crdt.records import RecordType
from crdt.schema import Mode, TimeMs
from crdt.shown import Count, Status, UserShown

State = Literal["healthy", "degraded", "unhealthy"]


class Dependency(BaseModel):
    """One part, and how it is."""

    state: State
    since: TimeMs
    kind: str | None = None
    error: str | None = None
    latency_ms: float | None = None
    breaker: Literal["closed", "open", "half_open"] | None = None
    lag_ms: Annotated[float | None, Field(description="event_loop: how late it was lately")] = None
    keys: Annotated[Count | None, Field(description="jwks: how many can be used")] = None
    age_s: float | None = None
    deaf_s: Annotated[
        float | None, Field(description="since when none of our heartbeats has come back")
    ] = None
    is_deaf: bool | None = None
    instances: Annotated[Count | None, Field(description="redis: how many are heard of")] = None
    spool_records: Count | None = None
    spool_bytes: Count | None = None
    spool_max_bytes: Count | None = None
    bytes: Annotated[Count | None, Field(description="backlog: not in MongoDB yet")] = None
    max_bytes: Count | None = None
    quarantined: Count | None = None
    waiting: Count | None = None
    oldest_s: float | None = None
    failures: Count | None = None
    free_bytes: Count | None = None
    total_bytes: Count | None = None


class HealthReport(BaseModel):
    """How the server is: as the worst of its dependencies."""

    status: State
    dependencies: dict[str, Dependency]
    uptime_s: float
    connections: Count
    rooms: Count
    instance: str
    version: str
    send_queue_bytes: Annotated[Count, Field(description="what the slowest client has to read")]
    oldest_unflushed_ms: float
    quarantined: Annotated[Count, Field(description="documents that cannot be read")]
    spool_bytes: Count
    deaf_s: float


class Alert(BaseModel):
    """Something that is wrong, or was: `count` of it in `window_s`, if it is about that."""

    id: str
    key: str
    severity: Literal["info", "warning", "critical"]
    state: Literal["firing", "resolved"]
    title: str
    message: str
    count: int
    window_s: float
    first_at: TimeMs
    last_at: TimeMs
    instance: str


class InstanceShown(BaseModel):
    instance: str
    status: State | None
    connections: Count | None
    rooms: Count | None
    uptime_s: float | None
    version: str | None
    seen_ms_ago: float


class BusyRoom(BaseModel):
    doc: str
    title: str
    members: Count
    updates_per_s: float


class LiveWorkout(BaseModel):
    workout_id: str
    title: str
    status: Status | None
    participants: Count
    sets: Count
    mode: Mode | None


class RecordOfLate(BaseModel):
    at_ms: TimeMs
    workout_id: str
    user: UserShown
    exercise: str
    type: RecordType
    value: float


class HistoryPoint(BaseModel):
    t: TimeMs
    status: State
    lag_ms: float
    connections: Count
    rooms: Count
    updates_per_s: float
    deliveries_per_s: float


class QuarantinedDocument(BaseModel):
    doc: str
    cause: str


class HealthForAdmins(HealthReport):
    """What goes on here besides, and with the other instances."""

    instances: list[InstanceShown]
    busiest: list[BusyRoom]
    live: list[LiveWorkout]
    records: list[RecordOfLate]
    history: list[HistoryPoint]
    alerts: list[Alert]
    quarantined_documents: list[QuarantinedDocument]
