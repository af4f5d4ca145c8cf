"""The exercises of a workout: its plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crdt import ids, workout
from crdt.access import Right
from crdt.schema import (
    ExerciseChanges,
    Id,
    WorkoutExerciseFields,
    present,
)
from handlers.context import Context
from handlers.registry import ChangePayload, ChangeReply, Registry

registry = Registry()


class ExerciseMeant(ChangeReply):
    """Which exercise was added, changed, moved or removed."""

    exercise_id: str


class AddExercise(ChangePayload):
    workout_id: Id
    exercise: WorkoutExerciseFields
    exercise_id: Id | None = None
    before: Id | None = None
    after: Id | None = None


@registry.on("workout:exercise:add", AddExercise, ExerciseMeant)
async def add_exercise(ctx: Context, msg: AddExercise) -> Mapping[str, Any]:
    """Put an exercise into the plan, at the end unless said where."""
    async with ctx.room(ids.workout(msg.workout_id), Right.WRITE) as live:
        exercise_id = msg.exercise_id or ctx.new_id()
        writes = workout.add_exercise(
            live.room.head,
            exercise_id,
            present(msg.exercise),
            before=msg.before,
            after=msg.after,
        )
        return await ctx.commit(live, writes, lambda _: {"exercise_id": exercise_id})


class UpdateExercise(ChangePayload):
    workout_id: Id
    exercise_id: Id
    exercise: ExerciseChanges


@registry.on("workout:exercise:update", UpdateExercise, ExerciseMeant)
async def update_exercise(ctx: Context, msg: UpdateExercise) -> Mapping[str, Any]:
    """Change some fields of an exercise; null removes an optional one."""
    async with ctx.room(ids.workout(msg.workout_id), Right.WRITE) as live:
        changes = msg.exercise.changes()
        writes = workout.update_exercise(live.room.head, msg.exercise_id, changes)
        return await ctx.commit(live, writes, lambda _: {"exercise_id": msg.exercise_id})


class MoveExercise(ChangePayload):
    workout_id: Id
    exercise_id: Id
    before: Id | None = None
    after: Id | None = None


@registry.on("workout:exercise:move", MoveExercise, ExerciseMeant)
async def move_exercise(ctx: Context, msg: MoveExercise) -> Mapping[str, Any]:
    """Put an exercise before or after another, or at the end."""
    async with ctx.room(ids.workout(msg.workout_id), Right.WRITE) as live:
        writes = workout.move_exercise(
            live.room.head, msg.exercise_id, before=msg.before, after=msg.after
        )
        return await ctx.commit(live, writes, lambda _: {"exercise_id": msg.exercise_id})


class RemoveExercise(ChangePayload):
    workout_id: Id
    exercise_id: Id


@registry.on("workout:exercise:remove", RemoveExercise, ExerciseMeant)
async def remove_exercise(ctx: Context, msg: RemoveExercise) -> Mapping[str, Any]:
    """Take an exercise out of the plan, with the caller's own sets of it."""
    async with ctx.room(ids.workout(msg.workout_id), Right.WRITE) as live:
        writes = workout.remove_exercise(live.room.head, msg.exercise_id, ctx.user.id)
        return await ctx.commit(live, writes, lambda _: {"exercise_id": msg.exercise_id})
