"""Workouts: making, joining, inviting, and the state machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from crdt import ids, workout
from crdt.access import Member, Right, visitor_roles
from crdt.errors import Conflict, Forbidden
from crdt.ids import UserId
from crdt.live import LiveRoom
from crdt.ports import Answer, Summary
from crdt.replica import Put, Write
from crdt.schema import Id, Mode, TimeMs, Title, Visibility
from crdt.shown import MemberShown, Status, Workout, WorkoutRole
from handlers.context import Context
from handlers.lists import ListPage, page
from handlers.membership import LetIn, LetOut, UserIdField, let_in, let_out
from handlers.registry import ChangePayload, ChangeReply, Payload, Registry, Reply

registry = Registry()

Role = Literal["participant", "coach", "spectator"]


class CreateWorkout(ChangePayload):
    workout_id: Id | None = None
    title: Title = "Workout"
    template_id: Id | None = None
    mode: Mode = "solo"
    visibility: Visibility = "private"


async def _join_created(ctx: Context, answer: Answer) -> None:
    """Creating joins; sent again from a new connection, it joins that one as well."""
    if "workout" not in answer:
        return  # the answer to another event, of which the client has used the op_id
    name = ids.workout(answer["workout"]["id"])
    ctx.demand_place_for(name)
    async with ctx.room(name, Right.READ) as live:
        ctx.join(live)


class WorkoutCreated(ChangeReply):
    workout: Workout


@registry.on("workout:create", CreateWorkout, WorkoutCreated, again=_join_created)
async def create_workout(ctx: Context, msg: CreateWorkout) -> Mapping[str, Any]:
    """Plan a workout, empty or from a template, and join it."""
    name = ids.workout(msg.workout_id or ctx.new_id())
    ctx.demand_place_for(name)
    title = msg.title
    writes: list[Write] = []
    if msg.template_id is not None:
        async with ctx.room(ids.template(msg.template_id), Right.READ) as source:
            view, version = source.room.view, source.room.seq
            if "title" not in msg.model_fields_set:
                title = str(view["meta"].get("title") or title)
            new_ids = [ctx.new_id() for _ in view["exercises"]]
            writes = workout.copy_template(msg.template_id, version, view, new_ids)
    made = workout.create(
        owner_id=ctx.user.id,
        title=title,
        mode=msg.mode,
        visibility=msg.visibility,
        now_ms=ctx.now_ms(),
    )

    answer = await ctx.hub.create(
        name,
        [*made, *writes],
        ctx.caller.connection,
        ctx.event,
        op_id=ctx.op_id,
        answer=lambda snapshot: ctx.changed({"workout": snapshot}),
    )
    await _join_created(ctx, answer)
    return answer


class WorkoutPayload(Payload):
    workout_id: Id


class WorkoutChange(ChangePayload):
    workout_id: Id


class JoinWorkout(WorkoutChange):
    role: Role | None = None


class WorkoutJoined(Reply):
    role: WorkoutRole
    workout: Workout
    members: list[MemberShown]


@registry.on("workout:join", JoinWorkout, WorkoutJoined)
async def join_workout(ctx: Context, msg: JoinWorkout) -> Mapping[str, Any]:
    """Get the room's events on this socket.

    Who is no member becomes one, if the workout is visible: a participant of a group, a spectator
    of a solo workout; coaches are invited.
    """
    name = ids.workout(msg.workout_id)
    ctx.demand_place_for(name)
    async with ctx.room(name, Right.READ) as live:
        ctx.hub.demand_seat(live, ctx.caller.connection_id)  # or they would be a member in vain
        known = live.room.roster.get(ctx.user.id)
        if known is None:
            role = _visitor_role(live, msg.role)
        elif msg.role in (None, known.role):
            role = known.role
        else:
            raise Forbidden(f"you are {known.role} here", details={"role": known.role})
        member = Member(ctx.user.id, role, ctx.user.name)
        if live.room.members.get(ctx.user.id) != member:
            await ctx.commit(live, [], lambda _: {}, members=[member], once=False)
        ctx.join(live)
        return {
            "role": role,
            "workout": live.snapshot(ctx.now_ms()),
            "members": live.members(),
        }


def _visitor_role(live: LiveRoom, wanted: str | None) -> str:
    offered = visitor_roles(live.name.kind, live.room.head["meta"])
    if wanted is not None and wanted not in offered:
        raise Forbidden(f"you may join as {' or '.join(offered)}", details={"roles": offered})
    return wanted or offered[0]


@registry.on("workout:leave", WorkoutPayload)
async def leave_workout(ctx: Context, msg: WorkoutPayload) -> Mapping[str, Any]:
    """Get no more of the room's events on this socket; the membership stays."""
    ctx.hub.leave(ids.workout(msg.workout_id), ctx.caller.connection_id)
    return {}


class WorkoutRead(Reply):
    workout: Workout
    server_time: TimeMs


@registry.on("workout:sync", WorkoutPayload, WorkoutRead)
async def sync_workout(ctx: Context, msg: WorkoutPayload) -> Mapping[str, Any]:
    """Read the whole workout, as it is now."""
    async with ctx.room(ids.workout(msg.workout_id), Right.READ) as live:
        now_ms = ctx.now_ms()
        return {"workout": live.snapshot(now_ms), "server_time": now_ms}


class WorkoutListed(BaseModel):
    """A workout of the caller's, and their role in it."""

    id: str
    title: str
    status: Status
    mode: Mode
    visibility: Visibility
    owner_id: str
    role: WorkoutRole
    created_at: TimeMs | None
    started_at: TimeMs | None
    ended_at: TimeMs | None


class WorkoutsListed(Reply):
    """One page, newest first; `more`: there is another one."""

    workouts: list[WorkoutListed]
    more: bool


@registry.on("workout:list", ListPage, WorkoutsListed)
async def list_workouts(ctx: Context, msg: ListPage) -> Mapping[str, Any]:
    """List the workouts that the caller is a member of, newest first."""
    found, more = await page(ctx, ids.DocKind.WORKOUT, msg)
    return {"workouts": [_listed(summary, role) for summary, role in found], "more": more}


def _listed(summary: Summary, role: str) -> dict[str, Any]:
    return {
        "id": summary.doc.id,
        "title": summary.title,
        "status": summary.status,
        "mode": summary.mode,
        "visibility": summary.visibility,
        "owner_id": summary.owner_id,
        "role": role,
        "created_at": summary.created_at,
        "started_at": summary.started_at,
        "ended_at": summary.ended_at,
    }


class InviteToWorkout(WorkoutChange):
    user_id: UserIdField
    role: Role


@registry.on("workout:invite", InviteToWorkout, LetIn)
async def invite_to_workout(ctx: Context, msg: InviteToWorkout) -> Mapping[str, Any]:
    """Let somebody in, or give a member another role."""
    async with ctx.room(ids.workout(msg.workout_id), Right.MANAGE) as live:
        return await let_in(
            ctx,
            live,
            msg.user_id,
            msg.role,
            event="workout:invited",
            about={"workout_id": msg.workout_id},
        )


class RemoveMember(WorkoutChange):
    user_id: UserIdField


@registry.on("workout:member:remove", RemoveMember, LetOut)
async def remove_member(ctx: Context, msg: RemoveMember) -> Mapping[str, Any]:
    """Take a member out again; who may not look in now leaves the room at once."""
    async with ctx.room(ids.workout(msg.workout_id), Right.MANAGE) as live:
        return await let_out(
            ctx,
            live,
            msg.user_id,
            event="workout:uninvited",
            about={"workout_id": msg.workout_id},
        )


async def _transition(
    ctx: Context, msg: WorkoutChange, action: workout.Action
) -> Mapping[str, Any]:
    async with ctx.room(ids.workout(msg.workout_id), Right.RUN) as live:
        if action == "start":
            owner_id = UserId(str(live.room.head["meta"].get("owner_id")))
            async with ctx.services.starting(owner_id):
                # Asked before the claim, so that a workout that cannot start claims nothing.
                workout.transition(live.room.head, action, ctx.now_ms())
                await _claim(ctx, live, owner_id)
                return await _move_on(ctx, live, action)
        return await _move_on(ctx, live, action)


async def _move_on(ctx: Context, live: LiveRoom, action: workout.Action) -> Mapping[str, Any]:
    writes = workout.transition(live.room.head, action, ctx.now_ms())
    meta = {write.path[1]: write.value for write in writes if isinstance(write, Put)}
    return await ctx.commit(live, writes, lambda _: {"workout_id": live.name.id, **meta})


async def _claim(ctx: Context, live: LiveRoom, owner_id: UserId) -> None:
    """Make this the owner's one live workout.

    A claim outlives a crash between itself and the start that it was made for, so one that stands
    in the way counts only as long as its workout is live.
    """
    holder = await ctx.store.claim_active(owner_id, live.name.id)
    if holder != live.name.id:
        summary = await ctx.store.summary(ids.workout(holder))
        if summary is None or summary.status not in workout.LIVE:
            holder = await ctx.store.claim_active(owner_id, live.name.id, instead_of=holder)
    if holder != live.name.id:
        raise Conflict(
            "another workout of the owner is under way", details={"active_workout": holder}
        )


class WorkoutMovedOn(ChangeReply):
    """The new status, and the times that it has changed."""

    workout_id: str
    status: Status
    started_at: TimeMs | None = None
    resumed_at: TimeMs | None = None
    ended_at: TimeMs | None = None
    active_ms: int | None = None


@registry.on("workout:start", WorkoutChange, WorkoutMovedOn)
async def start_workout(ctx: Context, msg: WorkoutChange) -> Mapping[str, Any]:
    """Begin a planned workout; its owner may have one active or paused at a time."""
    return await _transition(ctx, msg, "start")


@registry.on("workout:pause", WorkoutChange, WorkoutMovedOn)
async def pause_workout(ctx: Context, msg: WorkoutChange) -> Mapping[str, Any]:
    """Stop the workout's clock."""
    return await _transition(ctx, msg, "pause")


@registry.on("workout:resume", WorkoutChange, WorkoutMovedOn)
async def resume_workout(ctx: Context, msg: WorkoutChange) -> Mapping[str, Any]:
    """Let the workout's clock run on."""
    return await _transition(ctx, msg, "resume")


@registry.on("workout:complete", WorkoutChange, WorkoutMovedOn)
async def complete_workout(ctx: Context, msg: WorkoutChange) -> Mapping[str, Any]:
    """End a workout that was done."""
    return await _transition(ctx, msg, "complete")


@registry.on("workout:abandon", WorkoutChange, WorkoutMovedOn)
async def abandon_workout(ctx: Context, msg: WorkoutChange) -> Mapping[str, Any]:
    """End a workout that was given up."""
    return await _transition(ctx, msg, "abandon")
