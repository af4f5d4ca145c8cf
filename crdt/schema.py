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


def shared_type(kind: DocKind, path: tuple[str, ...]) -> type[Map[Any]] | type[Text] | None:
    """The shared type that stands at `path`, or None for a plain value."""
    shapes = _SHARED[kind]
    pattern = tuple(part if i in (0, 2) else "*" for i, part in enumerate(path))
    return shapes.get(pattern)


Visibility = Literal["private", "friends", "public"]
Mode = Literal["solo", "group"]
SetKind = Literal["warmup", "normal", "drop", "failure"]

Title = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Goal = Annotated[str, Field(max_length=500)]
Label = Annotated[str, Field(max_length=64)]
Note = Annotated[str, Field(max_length=4_000)]
Id = Annotated[str, Field(pattern=ID_PATTERN)]
TimeMs = Annotated[int, Field(ge=0, lt=2**53)]
WeightKg = Annotated[float, Field(ge=0, le=2_000, allow_inf_nan=False)]
Reps = Annotated[int, Field(ge=0, le=10_000)]
Seconds = Annotated[float, Field(ge=0, le=7 * 86_400, allow_inf_nan=False)]
DistanceM = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Order = Annotated[str, Field(max_length=512)]
Rpe = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


class Strict(BaseModel):
    """Checked to the letter: no coercion, no unknown field that would be lost in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Measured(BaseModel):
    """What one set is about, planned or done."""

    kind: SetKind = "normal"
    weight_kg: WeightKg | None = None
    reps: Reps | None = None
    seconds: Seconds | None = None
    distance_m: DistanceM | None = None
    rpe: Rpe | None = None


class Target(Strict, Measured):
    """One planned set, as it stands in a workout exercise's `target` list."""


class Measures(Strict, Measured):
    """What was done in one set."""

    note: Note | None = None


class ExerciseFields(Strict):
    """An exercise as an intent gives it; `order` is the server's to choose."""

    name: Name
    exercise_id: Id | None = None
    superset: Label | None = None
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
    superset: Label | None = None
    rest_s: Seconds | None = None
    note: Note = ""
    target: Annotated[tuple[Target, ...], Field(max_length=100, strict=False)] = ()

    def changes(self) -> dict[str, Any]:
        changed = super().changes()
        if "target" in changed:
            changed["target"] = [present(target) for target in self.target]
        return changed


class SetChanges(Changes, Measured):
    note: Note | None = None


class TemplateMetaChanges(Changes):
    title: Title = ""
    goal: Goal | None = None
    difficulty: Label | None = None
    visibility: Visibility = "private"


class Item(BaseModel):
    """What an item of a document may hold, whoever wrote it. Every field may be missing, and
    unknown ones are let through: another version's clients may know more than we do."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class SetItem(Item, Measured):
    user_id: str | None = None
    exercise: Label | None = None
    order: Order = ""
    note: Note | None = None
    completed_at: TimeMs | None = None
    device_id: Annotated[str, Field(max_length=100)] | None = None


class TargetItem(Item, Measured):
    """A target as some client wrote it."""


class ExerciseItem(Item):
    name: Annotated[str, Field(max_length=200)] = ""
    exercise_id: Label | None = None
    order: Order = ""
    superset: Label | None = None
    rest_s: Seconds | None = None
    note: Note = ""


class WorkoutExerciseItem(ExerciseItem):
    target: Annotated[list[TargetItem], Field(max_length=100)] = []


class TemplateSetItem(TargetItem):
    order: Order = ""


class TemplateExerciseItem(ExerciseItem):
    sets: Annotated[dict[Id, TemplateSetItem], Field(max_length=100)] = {}


def present(model: BaseModel) -> dict[str, Any]:
    """The fields of a model that carry something, as plain values for a document."""
    return model.model_dump(mode="json", exclude_none=True)
