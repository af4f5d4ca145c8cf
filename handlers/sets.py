"""The sets of a workout: what was lifted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crdt import ids, workout
from crdt.access import Right
from crdt.ports import Awards
from crdt.schema import Id, Measures, SetChanges, TimeMs, present
from crdt.shown import RecordWon
from handlers.context import Context
from handlers.registry import ChangePayload, ChangeReply, Registry

registry = Registry()


class LoggedMeasures(Measures):
    completed_at: TimeMs | None = None


class CompleteSet(ChangePayload):
    workout_id: Id
    exercise_id: Id
    set: LoggedMeasures
    set_id: Id | None = None


class SetScored(ChangeReply):
    """A set, and the personal records that it won."""

    set_id: str
    is_pr: bool
    records: list[RecordWon]


@registry.on("workout:set:complete", CompleteSet, SetScored)
async def complete_set(ctx: Context, msg: CompleteSet) -> Mapping[str, Any]:
    """Log a set that the caller has done; a device that was offline says when."""
    async with ctx.room(ids.workout(msg.workout_id), Right.WRITE) as live:
        set_id = msg.set_id or ctx.new_id()
        measures = present(msg.set)
        completed_at = measures.pop("completed_at", None) or ctx.now_ms()
        writes = workout.complete_set(
            live.room.head,
            set_id,
            user_id=ctx.user.id,
            exercise_id=msg.exercise_id,
            measures=measures,
            completed_at=completed_at,
            device_id=ctx.caller.device["id"],
        )
        answer = await ctx.commit(live, writes, lambda stored: _won(set_id, stored.awards))
        if not writes:
            # It was here already, or on its way: the answer is that of the first time.
            answer = ctx.changed(_won(set_id, live.room.awards))
        return answer


def _won(set_id: str, awards: Awards) -> dict[str, Any]:
    records = [award.to_wire() for award in awards.get(set_id, {}).values()]
    return {"set_id": set_id, "is_pr": bool(records), "records": records}


class UpdateSet(ChangePayload):
    workout_id: Id
    set_id: Id
    set: SetChanges


@registry.on("workout:set:update", UpdateSet, SetScored)
async def update_set(ctx: Context, msg: UpdateSet) -> Mapping[str, Any]:
    """Correct a set of the caller's own; null removes an optional field."""
    async with ctx.room(ids.workout(msg.workout_id), Right.WRITE) as live:
        writes = workout.update_set(live.room.head, msg.set_id, ctx.user.id, msg.set.changes())
        return await ctx.commit(live, writes, lambda stored: _won(msg.set_id, stored.awards))


class RemoveSet(ChangePayload):
    workout_id: Id
    set_id: Id


class SetTakenBack(ChangeReply):
    set_id: str


@registry.on("workout:set:remove", RemoveSet, SetTakenBack)
async def remove_set(ctx: Context, msg: RemoveSet) -> Mapping[str, Any]:
    """Take back a set of the caller's own."""
    async with ctx.room(ids.workout(msg.workout_id), Right.WRITE) as live:
        writes = workout.remove_set(live.room.head, msg.set_id, ctx.user.id)
        return await ctx.commit(live, writes, lambda _: {"set_id": msg.set_id})
