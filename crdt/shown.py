"""What clients are shown of documents, as models: snapshots, and the events of rooms.

They are the single statement of these shapes. The server makes plain values, for speed, and the API
documents are made from here; tests hold one against the other. A field with a default may be
missing. Fields that are not here may come with a later version: clients leave them aside.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from crdt.records import RecordType
from crdt.schema import (
    Item,
    Mode,
    SetItem,
    TemplateExerciseItem,
    TemplateSetItem,
    TimeMs,
    Visibility,
    WorkoutExerciseItem,
)

Status = Literal["planned", "active", "paused", "completed", "abandoned"]
WorkoutRole = Literal["owner", "coach", "participant", "spectator"]
TemplateRole = Literal["owner", "editor", "viewer"]
DurabilityShown = Literal["disk", "cluster", "local"]
"""Where a change is: on this server's disk, in the shared log, or (while that is away) on this
instance's disk, to be published later."""
DocumentId = Annotated[str, Field(examples=["leg-day"])]
Count = Annotated[int, Field(ge=0)]


class UserShown(BaseModel):
    """Somebody, by the name that their token last gave."""

    id: str
    name: str


class DeviceShown(BaseModel):
    id: str
    name: str


class MemberShown(BaseModel):
    """Who belongs to a workout, or looks in, and with which devices they are here now."""

    user: UserShown
    role: WorkoutRole
    devices: list[DeviceShown]
    online: bool


class RecordWon(BaseModel):
    """A personal record that a set won, and what it beat; null for a first one."""

    type: RecordType
    value: float
    previous: float | None


class RecordHeld(RecordWon):
    """A record in somebody's progress, with the set that won it."""

    set_id: str
    exercise: str | None


class Best(BaseModel):
    """The heaviest, longest, most of one exercise, each where it applies."""

    weight_kg: float = 0
    reps: float = 0
    volume_kg: float = 0
    e1rm_kg: float = 0
    seconds: float = 0


class Progress(BaseModel):
    """How far somebody has come in one workout. Volume and reps leave out warm-ups."""

    sets_done: Count
    sets_planned: Count
    volume_kg: float
    reps: Count
    best: Annotated[dict[str, Best], Field(description="exercise id -> what was best")]
    records: list[RecordHeld]


class SetShown(SetItem):
    """A set as it stands in the document, with its id."""

    id: str


class ExerciseShown(WorkoutExerciseItem):
    """An exercise of a workout as it stands in the document, with its id."""

    id: str


class TimerShown(Item):
    """A timer that runs, or pauses, by the server's clock."""

    kind: Literal["rest", "exercise"]
    duration_ms: Count
    started_at: TimeMs
    paused_at: TimeMs | None = None
    by: str


class WorkoutTimes(BaseModel):
    """`active_ms` is what was trained until the last pause: while active, add the time since
    `resumed_at`."""

    started_at: TimeMs | None
    resumed_at: TimeMs | None
    ended_at: TimeMs | None
    active_ms: Count


class Workout(WorkoutTimes):
    """A snapshot: the whole workout. `version` is the document's position in its log."""

    id: DocumentId
    title: str
    status: Status
    mode: Mode
    visibility: Visibility
    owner_id: str | None
    template_id: str | None
    template_version: int | None
    created_at: TimeMs | None
    exercises: list[ExerciseShown]
    sets: list[SetShown]
    timers: Annotated[dict[str, TimerShown], Field(description="a user's id, or `room` -> timer")]
    members: list[MemberShown]
    progress: Annotated[dict[str, Progress], Field(description="user id -> progress")]
    server_time: TimeMs
    version: Count


class PlannedSetShown(TemplateSetItem):
    id: str


class TemplateExerciseShown(TemplateExerciseItem):
    """An exercise of a template, with its planned sets in order."""

    id: str
    sets: list[PlannedSetShown]  # type: ignore[assignment]  # a map in the document


class TemplateMeta(BaseModel):
    title: str
    owner_id: str | None
    goal: str | None
    difficulty: str | None
    visibility: Visibility
    locked: bool
    forked_from: Any


class Template(TemplateMeta):
    """A snapshot: the whole template."""

    id: DocumentId
    notes: str
    exercises: list[TemplateExerciseShown]
    version: Count


# -- events of rooms --------------------------------------------------------------------------


class OfWorkout(BaseModel):
    workout_id: DocumentId


class StatusChanged(OfWorkout, WorkoutTimes):
    """The workout has gone on to another status."""

    status: Status


class WorkoutMetaChanges(BaseModel):
    """What has changed, as it is now; null for what is gone."""

    title: str | None = None
    owner_id: str | None = None
    mode: Mode | None = None
    visibility: Visibility | None = None
    status: Status | None = None
    template_id: str | None = None
    template_version: int | None = None
    created_at: TimeMs | None = None
    started_at: TimeMs | None = None
    resumed_at: TimeMs | None = None
    ended_at: TimeMs | None = None
    active_ms: Count | None = None


class WorkoutChanged(OfWorkout):
    """Something has changed in `meta`."""

    meta: WorkoutMetaChanges


class SetLogged(OfWorkout):
    """A set was done, or corrected. `is_pr`: it won a personal record."""

    set_id: str
    set: SetShown
    user: UserShown
    is_pr: bool


class SetRemoved(OfWorkout):
    """A set was taken back."""

    set_id: str
    user: UserShown


class ExerciseChanged(OfWorkout):
    """An exercise came into the plan, was changed, or was taken out: null."""

    exercise_id: str
    exercise: ExerciseShown | None


class TimerChanged(OfWorkout):
    """A timer was started, paused, or stopped: null."""

    key: str
    timer: TimerShown | None


class PresenceChanged(OfWorkout):
    """Somebody's first device came, or their last one went."""

    user: UserShown
    role: WorkoutRole


class WorkoutMemberChanged(OfWorkout):
    """Somebody became a member, has another role or name, or is a member no more: null."""

    user: UserShown
    role: WorkoutRole | None


class TemplateMetaShown(BaseModel):
    """What has changed, as it is now; null for what is gone."""

    title: str | None = None
    owner_id: str | None = None
    goal: str | None = None
    difficulty: str | None = None
    visibility: Visibility | None = None
    locked: bool | None = None
    forked_from: Any = None


class TemplateChanged(BaseModel):
    """What one transaction touched, as it is now; an exercise that was taken out is null."""

    template_id: DocumentId
    meta: TemplateMetaShown | None = None
    exercises: dict[str, TemplateExerciseShown | None] | None = None
    notes: str | None = None


class TemplateMemberChanged(BaseModel):
    """Somebody became a member, has another role or name, or is a member no more: null."""

    template_id: DocumentId
    user: UserShown
    role: TemplateRole | None


ROOM_EVENTS: dict[str, type[BaseModel]] = {
    "workout:started": StatusChanged,
    "workout:paused": StatusChanged,
    "workout:resumed": StatusChanged,
    "workout:completed": StatusChanged,
    "workout:abandoned": StatusChanged,
    "workout:changed": WorkoutChanged,
    "workout:set:completed": SetLogged,
    "workout:set:updated": SetLogged,
    "workout:set:removed": SetRemoved,
    "workout:exercise:changed": ExerciseChanged,
    "workout:timer": TimerChanged,
    "workout:member:joined": PresenceChanged,
    "workout:member:left": PresenceChanged,
    "workout:member:changed": WorkoutMemberChanged,
    "template:changed": TemplateChanged,
    "template:member:changed": TemplateMemberChanged,
}
"""What members of a room are told, whoever made the change and with whatever client."""
