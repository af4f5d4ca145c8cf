"""Letting somebody in, and out again, the same for workouts and templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from crdt.access import Member
from crdt.errors import Conflict, NotFound
from crdt.ids import UserId
from crdt.live import LiveRoom
from crdt.ports import Answer
from crdt.shown import OfWorkout, TemplateRole, UserShown, WorkoutRole
from handlers.context import Context
from handlers.registry import ChangeReply

UserIdField = Annotated[str, Field(min_length=1, max_length=200)]


class LetIn(ChangeReply):
    user_id: str
    role: WorkoutRole | TemplateRole


class LetOut(ChangeReply):
    user_id: str


class WorkoutInvited(OfWorkout):
    """Somebody has let the user in, or given them another role."""

    title: str
    role: WorkoutRole
    by: UserShown


class WorkoutUninvited(OfWorkout):
    """Somebody has ended the user's membership."""

    title: str
    by: UserShown


class TemplateShared(BaseModel):
    """Somebody has let the user in, or given them another role."""

    template_id: str
    title: str
    role: TemplateRole
    by: UserShown


class TemplateUnshared(BaseModel):
    """Somebody has ended the user's membership."""

    template_id: str
    title: str
    by: UserShown


USER_EVENTS: dict[str, type[BaseModel]] = {
    "workout:invited": WorkoutInvited,
    "workout:uninvited": WorkoutUninvited,
    "template:shared": TemplateShared,
    "template:unshared": TemplateUnshared,
}
"""What a user's own devices are told, wherever they are."""


async def let_in(
    ctx: Context, live: LiveRoom, user_id: str, role: str, *, event: str, about: Mapping[str, Any]
) -> Answer:
    """Make somebody a member, or give a member another role, and tell their devices by `event`.

    Raises:
        Conflict: it is the owner.
        RoomFull: there is no place for another member.
    """
    invited = UserId(user_id)
    known = live.room.roster.get(invited)
    _spare_the_owner(known)
    member = Member(invited, role, known.name if known else user_id)
    answer = await ctx.commit(
        live, [], lambda _: {"user_id": user_id, "role": role}, members=[member]
    )
    _tell(ctx, live, invited, event, {**about, "role": role})
    return answer


async def let_out(
    ctx: Context, live: LiveRoom, user_id: str, *, event: str, about: Mapping[str, Any]
) -> Answer:
    """End a membership, and tell the devices of the one whose it was by `event`.

    Raises:
        NotFound: they are no member.
        Conflict: it is the owner.
    """
    known = live.room.roster.get(UserId(user_id))
    if known is None:
        raise NotFound(f"{user_id} is no member of {live.name}")
    _spare_the_owner(known)
    gone = Member(known.user_id, "", known.name)
    answer = await ctx.commit(live, [], lambda _: {"user_id": user_id}, members=[gone])
    _tell(ctx, live, gone.user_id, event, about)
    return answer


def _spare_the_owner(member: Member | None) -> None:
    if member is not None and member.role == "owner":
        raise Conflict("the owner stays the owner")


def _tell(
    ctx: Context, live: LiveRoom, user_id: UserId, event: str, about: Mapping[str, Any]
) -> None:
    title = live.room.view["meta"].get("title", "")
    ctx.services.sessions.tell_user(
        user_id, event, {**about, "title": title, "by": ctx.user.to_wire()}
    )
