"""Streams for dashboards: which there are, who may watch them, subscribing and leaving.

A kind of stream is one registration in `STREAMS`. Its function looks at what the stream shows now
(`Look`): what a user gets to see of it, and the value. Who asks, how often, and how it is sent is
`server.streams`' business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field

from crdt import ids
from crdt.access import Right, User
from crdt.errors import Conflict, ErrorObject, Forbidden, NotFound, RepSyncError
from crdt.hub import RoomHub
from crdt.ids import DocKind, DocName, UserId, is_text
from crdt.live import LiveRoom
from crdt.ports import Store, Training
from crdt.progress import user_progress
from crdt.records import RecordType
from crdt.schema import TimeMs
from crdt.shown import Count, Progress, Status
from handlers.context import Context
from handlers.health import Alert, HealthForAdmins, HealthReport
from handlers.registry import Payload, Registry, Reply

registry = Registry()

MAX_USER_CHARS = 200
MAX_STREAM_CHARS = MAX_USER_CHARS + 100
MIN_INTERVAL_S = 0.1
HEALTH_INTERVAL_S = 2.0
USER_INTERVAL_S = 1.0
ELSEWHERE_INTERVAL_S = 5.0
"""How often a user's progress is looked at for what was done on other instances."""
WORKOUTS_SHOWN = 20
ALERTS_KEPT = 50

Value = Mapping[str, Any]
View = Hashable
"""Those who see the same of a stream have equal ones."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What streams are made of."""

    hub: RoomHub
    store: Store
    health: Callable[[], Value]
    """The object of `/health`, and what admins see besides."""
    public_health: Callable[[], Value]


class Look(Protocol):
    """A stream at one moment."""

    def view(self, user: User) -> View:
        """What a user gets to see of it. Raises Forbidden."""

    async def show(self, view: View) -> Value:
        """The value, as those with this view see it, without `stream`, `seq`, `server_time`."""


Looking = Callable[[Sources, str, float], Awaitable[Look]]
"""(sources, the stream's id, since when what was durable must be seen: monotonic, 0.0 for what is
at hand) -> Look. Raises NotFound, Unavailable."""


@dataclass(frozen=True, slots=True)
class StreamKind:
    """Streams that differ by an id alone, or one of its own.

    `pattern` is the name, with `<id>` where the id stands. `value` is the model of what the event
    carries. Values are made `interval_s` apart at least, when something has changed, and once
    in `every_s` anyway. With `kept`, there is no value: items are pushed, each of which counts, and
    who comes gets so many of the last ones first. `of_room` tells which ids a room's document
    concerns, among those watched; `document` is the one that must stay in memory meanwhile. With
    `is_personal` views are asked for anew with each value: more decides them than rights to one
    document.
    """

    pattern: str
    event: str
    value: type[BaseModel]
    look: Looking
    interval_s: float = MIN_INTERVAL_S
    every_s: float | None = None
    kept: int = 0
    of_room: Callable[[LiveRoom, Collection[str]], Collection[str]] | None = None
    document: Callable[[str], DocName] | None = None
    is_personal: bool = False

    def id_of(self, stream: str) -> str | None:
        """The id in a stream's name, empty where the kind has none; None for another kind's."""
        head, mark, tail = self.pattern.partition("<id>")
        if not mark:
            return "" if stream == self.pattern else None
        id_ = stream[len(head) : len(stream) - len(tail)]
        return id_ if id_ and stream == f"{head}{id_}{tail}" else None

    def name(self, id_: str) -> str:
        return self.pattern.replace("<id>", id_)


@dataclass(slots=True)
class StreamRegistry:
    """All kinds of streams, by their pattern."""

    kinds: dict[str, StreamKind] = field(default_factory=dict)

    def on(
        self, pattern: str, event: str, value: type[BaseModel], **options: Any
    ) -> Callable[[Looking], Looking]:
        """Register a kind that is looked at by the decorated function; options are `StreamKind`'s.
        A pattern that is taken stops the start."""

        def register(look: Looking) -> Looking:
            if pattern in self.kinds:
                raise ValueError(f"{pattern} is registered twice")
            self.kinds[pattern] = StreamKind(pattern, event, value, look, **options)
            return look

        return register

    def find(self, stream: str) -> tuple[StreamKind, str]:
        """The kind of a stream, and the id in its name. Raises NotFound."""
        for kind in self.kinds.values():
            id_ = kind.id_of(stream)
            if id_ is not None:
                return kind, id_
        raise NotFound(f"there is no stream {stream[:MAX_STREAM_CHARS]!r}")

    async def admit(self, sources: Sources, user: User, stream: str, since_s: float = 0.0) -> View:
        """What a user gets to see of a stream. Raises NotFound, Forbidden, Unavailable."""
        kind, id_ = self.find(stream)
        look = await kind.look(sources, id_, since_s)
        return look.view(user)


STREAMS = StreamRegistry()


# -- the kinds -----------------------------------------------------------------------------------


class StreamValue(BaseModel):
    """What every event of a stream carries. `seq` is one more with each value that was made of the
    stream on this instance: a gap is what a reader has skipped."""

    stream: str
    seq: Count
    server_time: TimeMs


class HealthValue(StreamValue, HealthReport):
    """The object of `/health`."""


class HealthForAdminsValue(StreamValue, HealthForAdmins):
    """The object of `/health`, and more for admins."""


class AlertValue(StreamValue, Alert):
    """One alert that fires, or is over."""


class WorkoutProgressValue(StreamValue):
    """How far everybody has come in one workout."""

    workout_id: str
    status: Status | None
    progress: Annotated[dict[str, Progress], Field(description="user id -> progress")]
    version: Count


@dataclass(frozen=True, slots=True)
class _System:
    """For admins alone, or for everybody."""

    read: Callable[[], Value]
    is_public: bool = False

    def view(self, user: User) -> View:
        if not self.is_public and user.role != "admin":
            raise Forbidden("system streams are for admins")
        return ""

    async def show(self, view: View) -> Value:
        return self.read()


@STREAMS.on("system:health", "system:health", HealthForAdminsValue, every_s=HEALTH_INTERVAL_S)
async def look_at_health(sources: Sources, id_: str, since_s: float) -> Look:
    return _System(sources.health)


@STREAMS.on("health:live", "health", HealthValue, every_s=HEALTH_INTERVAL_S)
async def look_at_public_health(sources: Sources, id_: str, since_s: float) -> Look:
    return _System(sources.public_health, is_public=True)


@STREAMS.on("system:alerts", "system:alert", AlertValue, kept=ALERTS_KEPT)
async def look_at_alerts(sources: Sources, id_: str, since_s: float) -> Look:
    return _System(dict)


@dataclass(frozen=True, slots=True)
class _WorkoutProgress:
    live: LiveRoom

    def view(self, user: User) -> View:
        self.live.demand(user, Right.READ)
        return ""

    async def show(self, view: View) -> Value:
        room = self.live.room
        return {
            "workout_id": self.live.name.id,
            "status": room.view["meta"].get("status"),
            "progress": room.progress(),
            "version": room.seq,
        }


def _this_workout(live: LiveRoom, watched: Collection[str]) -> Collection[str]:
    return [live.name.id] if live.name.kind is DocKind.WORKOUT else []


@STREAMS.on(
    "workout:<id>:progress",
    "progress",
    WorkoutProgressValue,
    of_room=_this_workout,
    document=ids.workout,
)
async def look_at_workout(sources: Sources, id_: str, since_s: float) -> Look:
    if not ids.is_id(id_):
        raise NotFound("there is no such workout")
    async with sources.hub.lease(ids.workout(id_), since_s=since_s) as live:
        return _WorkoutProgress(live)


class WorkoutDone(BaseModel):
    workout_id: str
    title: str
    status: str | None
    started_at: int | None
    ended_at: int | None
    sets: int
    volume_kg: float


class StandingRecord(BaseModel):
    value: float
    workout_id: str
    set_id: str


class ProgressTotals(BaseModel):
    workouts: int
    sets: int
    volume_kg: float


class UserProgressValue(StreamValue):
    """What one user has done, as far as the watcher may see it: the newest workouts, and by
    exercise and type what the best set was. Counted are sets that can be a record."""

    user_id: str
    workouts: list[WorkoutDone]
    records: dict[str, dict[RecordType, StandingRecord]]
    totals: ProgressTotals


@dataclass(frozen=True, slots=True)
class _UserProgress:
    """All of it is for the user and for admins, and what is in a workout that others may see for
    those who may see it. A membership shows the workout, and not who did what elsewhere."""

    store: Store
    user_id: UserId
    everything: Training

    def view(self, user: User) -> View:
        if user.id == self.user_id or user.role == "admin":
            return None
        circles = self.everything.circles & user.friends
        if not circles and not self.everything.is_public:
            raise Forbidden("there is nothing of theirs that you may see")
        return circles

    async def show(self, view: View) -> Value:
        done = self.everything
        if isinstance(view, frozenset):
            done = await self.store.training(self.user_id, limit=WORKOUTS_SHOWN, circles=view)
        return user_progress(self.user_id, done)


def _these_users(live: LiveRoom, watched: Collection[str]) -> Collection[str]:
    if live.name.kind is not DocKind.WORKOUT:
        return []
    return [id_ for id_ in watched if id_ in live.room.members]


@STREAMS.on(
    "user:<id>:progress",
    "progress",
    UserProgressValue,
    interval_s=USER_INTERVAL_S,
    every_s=ELSEWHERE_INTERVAL_S,
    of_room=_these_users,
    is_personal=True,
)
async def look_at_user(sources: Sources, id_: str, since_s: float) -> Look:
    user_id = UserId(id_)
    if not 0 < len(id_) <= MAX_USER_CHARS or not is_text(id_):
        raise NotFound("there is no such user")
    everything = await sources.store.training(user_id, limit=WORKOUTS_SHOWN)
    return _UserProgress(sources.store, user_id, everything)


# -- intents -------------------------------------------------------------------------------------


class StreamList(Payload):
    streams: Annotated[
        tuple[Annotated[str, Field(max_length=MAX_STREAM_CHARS)], ...],
        Field(max_length=100, strict=False),
    ]


class Subscribed(Reply):
    """What is watched from now on, and why the others are not."""

    subscribed: list[str]
    denied: list[str]
    errors: Annotated[dict[str, ErrorObject], Field(description="stream -> why not")]


@registry.on("subscribe", StreamList, Subscribed)
async def subscribe(ctx: Context, msg: StreamList) -> Mapping[str, Any]:
    """Watch streams: the current value of each comes first, then its changes."""
    watcher, streams = ctx.caller.connection_id, ctx.services.streams
    granted: dict[str, View] = {}
    errors: dict[str, Any] = {}
    watched = set(streams.streams_of(watcher))
    for stream in dict.fromkeys(msg.streams):
        try:
            _demand_place_for(ctx, stream, watched)
            granted[stream] = await streams.admit(ctx.user, stream, ctx.caller.since_s)
        except RepSyncError as exc:
            errors[stream] = exc.to_wire()
        else:
            watched.add(stream)
    if ctx.services.sessions.is_here(watcher):
        streams.subscribe(watcher, granted)
    return {"subscribed": list(granted), "denied": list(errors), "errors": errors}


class Unsubscribed(Reply):
    unsubscribed: list[str]


@registry.on("unsubscribe", StreamList, Unsubscribed)
async def unsubscribe(ctx: Context, msg: StreamList) -> Mapping[str, Any]:
    """Watch these streams no more."""
    return {"unsubscribed": ctx.services.streams.unsubscribe(ctx.caller.connection_id, msg.streams)}


def _demand_place_for(ctx: Context, stream: str, watched: Collection[str]) -> None:
    """Raises Conflict when this connection watches as many streams as it may."""
    limit = ctx.services.limits.max_streams_per_connection
    if len(watched) >= limit and stream not in watched:
        raise Conflict(
            "this connection watches as many streams as it may; leave one",
            details={"limit": limit},
        )
