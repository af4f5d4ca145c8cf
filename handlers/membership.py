"""Letting somebody in, the same for workouts and templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crdt.access import Member
from crdt.errors import Conflict
from crdt.ids import UserId
from crdt.live import LiveRoom
from crdt.ports import Answer
from handlers.context import Context


async def let_in(
    ctx: Context, live: LiveRoom, user_id: str, role: str, *, event: str, about: Mapping[str, Any]
) -> Answer:
    """Make somebody a member, or give a member another role, and tell their devices by `event`.

    Raises:
        Conflict: it is the owner.
    """
    invited = UserId(user_id)
    known = live.room.members.get(invited)
    if known is not None and known.role == "owner":
        raise Conflict("the owner stays the owner")
    member = Member(invited, role, known.name if known else user_id)
    answer = await ctx.commit(
        live, [], lambda _: {"user_id": user_id, "role": role}, members=[member]
    )
    title = live.room.view["meta"].get("title", "")
    payload = {**about, "title": title, "role": role, "by": ctx.user.to_wire()}
    ctx.services.sessions.tell_user(invited, event, payload)
    return answer
