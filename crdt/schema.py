"""The shapes of workout and template documents: root names, shared types, and item models.

Numbers are SI (kg, m, s); times are integer milliseconds since the epoch. The models here are the
single statement of what a field may hold: intents, typed views and the wire's error details are
made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pycrdt import Map, Text
from pydantic import BaseModel, ConfigDict, Field

from crdt.ids import ID_PATTERN, DocKind

ROOTS: dict[DocKind, dict[str, type[Map[Any]] | type[Text]]] = {
    DocKind.WORKOUT: {"meta": Map, "exercises": Map, "sets": Map, "timers": Map},
    DocKind.TEMPLATE: {"meta": Map, "exercises": Map, "notes": Text},
}
"""Root name -> its shared type, for each kind of document."""

ROOT_TEXT = "text"
"""The key under which a view holds the content of a root that is a text."""

_SHARED: dict[DocKind, dict[tuple[str, ...], type[Map[Any]] | type[Text]]] = {
    DocKind.WORKOUT: {("exercises", "*"): Map, ("sets", "*"): Map, ("timers", "*"): Map},
    DocKind.TEMPLATE: {
        ("exercises", "*"): Map,
        ("exercises", "*", "note"): Text,
        ("exercises", "*", "sets"): Map,
        ("exercises", "*", "sets", "*"): Map,
    },
}
"""Which places below a root hold a shared type of their own, so that edits inside them merge field
by field; everything else is a plain value that the last writer replaces whole."""


SERVER_OWNED_META: dict[DocKind, frozenset[str]] = {
    DocKind.WORKOUT: frozenset(
        {
            "owner_id",
            "status",
            "created_at",
            "started_at",
            "resumed_at",
            "ended_at",
            "active_ms",
            "template_id",
            "template_version",
        }
    ),
    DocKind.TEMPLATE: frozenset({"owner_id", "locked", "forked_from"}),
}
"""Keys of `meta` that change through intents only, because more than the document hangs on them."""


def shared_type(kind: DocKind, path: tuple[str, ...]) -> type[Map[Any]] | type[Text] | None:
    """The shared type that stands at `path`, or None for a plain value."""
    shapes = _SHARED[kind]
    pattern = tuple(part if i in (0, 2) else "*" for i, part in enumerate(path))
    return shapes.get(pattern)


Visibility = Literal["private", "friends", "public"]
Mode = Literal["solo", "group"]
Status = Literal["planned", "active", "paused", "completed", "abandoned"]
SetKind = Literal["warmup", "normal", "drop", "failure"]

Title = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Note = Annotated[str, Field(max_length=4_000)]
Id = Annotated[str, Field(pattern=ID_PATTERN)]
TimeMs = Annotated[int, Field(ge=0, lt=2**53)]
WeightKg = Annotated[float, Field(ge=0, le=2_000, allow_inf_nan=False)]
Reps = Annotated[int, Field(ge=0, le=10_000)]
Seconds = Annotated[float, Field(ge=0, le=7 * 86_400, allow_inf_nan=False)]
DistanceM = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Rpe = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


class Strict(BaseModel):
    """Checked to the letter: no coercion, no unknown field that would be lost in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Target(Strict):
    """One planned set, as it stands in a workout exercise's `target` list."""

    kind: SetKind = "normal"
    reps: Reps | None = None
    weight_kg: WeightKg | None = None
    seconds: Seconds | None = None
    distance_m: DistanceM | None = None
    rpe: Rpe | None = None


class Measures(Strict):
    """What was done in one set."""

    kind: SetKind = "normal"
    weight_kg: WeightKg | None = None
    reps: Reps | None = None
    seconds: Seconds | None = None
    distance_m: DistanceM | None = None
    rpe: Rpe | None = None
    note: Note | None = None


class ExerciseFields(Strict):
    """An exercise as an intent gives it; `order` is the server's to choose."""

    name: Name
    exercise_id: Id | None = None
    superset: Annotated[str, Field(max_length=64)] | None = None
    rest_s: Seconds | None = None
    note: Note = ""


class WorkoutExerciseFields(ExerciseFields):
    target: Annotated[tuple[Target, ...], Field(max_length=100, strict=False)] = ()


class Changes(Strict):
    """Some fields of an item: what is left out stays, null removes what is optional."""

    def changes(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)


class ExerciseChanges(Changes):
    name: Name = ""
    exercise_id: Id | None = None
    superset: Annotated[str, Field(max_length=64)] | None = None
    rest_s: Seconds | None = None
    note: Note = ""
    target: Annotated[tuple[Target, ...], Field(max_length=100, strict=False)] = ()

    def changes(self) -> dict[str, Any]:
        changed = super().changes()
        if "target" in changed:
            changed["target"] = [present(target) for target in self.target]
        return changed


class SetChanges(Changes):
    kind: SetKind = "normal"
    weight_kg: WeightKg | None = None
    reps: Reps | None = None
    seconds: Seconds | None = None
    distance_m: DistanceM | None = None
    rpe: Rpe | None = None
    note: Note | None = None


class TemplateMetaChanges(Changes):
    title: Title = ""
    goal: Annotated[str, Field(max_length=500)] | None = None
    difficulty: Annotated[str, Field(max_length=64)] | None = None
    visibility: Visibility = "private"


def present(model: BaseModel) -> dict[str, Any]:
    """The fields of a model that carry something, as plain values for a document."""
    return model.model_dump(mode="json", exclude_none=True)
