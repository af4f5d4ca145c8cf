"""Workout templates that trainers edit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from crdt import ids, template
from crdt.access import Right
from crdt.ports import Answer, Summary
from crdt.schema import Goal, Id, Label, TemplateMetaChanges, Title, Visibility
from crdt.shown import Template, TemplateMetaShown, TemplateRole
from handlers.context import Context
from handlers.lists import ListPage, page
from handlers.membership import LetIn, LetOut, UserIdField, let_in, let_out
from handlers.registry import ChangePayload, ChangeReply, Payload, Registry, Reply

registry = Registry()


class CreateTemplate(ChangePayload):
    template_id: Id | None = None
    title: Title
    visibility: Visibility = "private"
    goal: Goal | None = None
    difficulty: Label | None = None


async def _join_created(ctx: Context, answer: Answer) -> None:
    """Creating joins; sent again from a new connection, it joins that one as well."""
    if "template" not in answer:
        return  # the answer to another event, of which the client has used the op_id
    name = ids.template(answer["template"]["id"])
    ctx.demand_place_for(name)
    async with ctx.room(name, Right.READ) as live:
        ctx.join(live)


class TemplateCreated(ChangeReply):
    template: Template


@registry.on("template:create", CreateTemplate, TemplateCreated, again=_join_created)
async def create_template(ctx: Context, msg: CreateTemplate) -> Mapping[str, Any]:
    """Make an empty template, and join it."""
    name = ids.template(msg.template_id or ctx.new_id())
    ctx.demand_place_for(name)
    optional = {"goal": msg.goal, "difficulty": msg.difficulty}
    writes = template.create(
        owner_id=ctx.user.id,
        title=msg.title,
        visibility=msg.visibility,
        optional={key: value for key, value in optional.items() if value is not None},
    )
    answer = await ctx.hub.create(
        name,
        writes,
        ctx.caller.connection,
        ctx.event,
        op_id=ctx.op_id,
        answer=lambda snapshot: ctx.changed({"template": snapshot}),
    )
    await _join_created(ctx, answer)
    return answer


class TemplatePayload(Payload):
    template_id: Id


class TemplateRead(Reply):
    template: Template


@registry.on("template:get", TemplatePayload, TemplateRead)
async def get_template(ctx: Context, msg: TemplatePayload) -> Mapping[str, Any]:
    """Read the whole template, as it is now."""
    async with ctx.room(ids.template(msg.template_id), Right.READ) as live:
        return {"template": live.snapshot(ctx.now_ms())}


class TemplateListed(BaseModel):
    """A template that the caller is a member of, and their role in it."""

    id: str
    title: str
    visibility: Visibility
    owner_id: str
    role: TemplateRole


class TemplatesListed(Reply):
    """One page, newest first; `more`: there is another one."""

    templates: list[TemplateListed]
    more: bool


@registry.on("template:list", ListPage, TemplatesListed)
async def list_templates(ctx: Context, msg: ListPage) -> Mapping[str, Any]:
    """List the templates that the caller is a member of, newest first."""
    found, more = await page(ctx, ids.DocKind.TEMPLATE, msg)
    return {"templates": [_listed(summary, role) for summary, role in found], "more": more}


def _listed(summary: Summary, role: str) -> dict[str, Any]:
    return {
        "id": summary.doc.id,
        "title": summary.title,
        "visibility": summary.visibility,
        "owner_id": summary.owner_id,
        "role": role,
    }


class UpdateTemplateMeta(ChangePayload):
    template_id: Id
    meta: TemplateMetaChanges


class TemplateMetaUpdated(ChangeReply):
    template_id: str
    meta: TemplateMetaShown


@registry.on("template:update_meta", UpdateTemplateMeta, TemplateMetaUpdated)
async def update_template_meta(ctx: Context, msg: UpdateTemplateMeta) -> Mapping[str, Any]:
    """Change title, goal or difficulty; who manages the template may also change who sees it."""
    changes = msg.meta.changes()
    right = Right.MANAGE if "visibility" in changes else Right.WRITE
    async with ctx.room(ids.template(msg.template_id), right) as live:
        writes = template.update_meta(changes)
        return await ctx.commit(
            live, writes, lambda _: {"template_id": msg.template_id, "meta": changes}
        )


class TemplateJoined(Reply):
    role: TemplateRole
    template: Template


@registry.on("template:join", TemplatePayload, TemplateJoined)
async def join_template(ctx: Context, msg: TemplatePayload) -> Mapping[str, Any]:
    """Get the template's events on this socket."""
    ctx.demand_place_for(ids.template(msg.template_id))
    async with ctx.room(ids.template(msg.template_id), Right.READ) as live:
        ctx.join(live)
        member = live.room.members.get(ctx.user.id)
        return {
            "role": member.role if member else "viewer",
            "template": live.snapshot(ctx.now_ms()),
        }


@registry.on("template:leave", TemplatePayload)
async def leave_template(ctx: Context, msg: TemplatePayload) -> Mapping[str, Any]:
    """Get no more of the template's events on this socket."""
    ctx.hub.leave(ids.template(msg.template_id), ctx.caller.connection_id)
    return {}


class ShareTemplate(ChangePayload):
    template_id: Id
    user_id: UserIdField
    role: Literal["editor", "viewer"]


@registry.on("template:share", ShareTemplate, LetIn)
async def share_template(ctx: Context, msg: ShareTemplate) -> Mapping[str, Any]:
    """Let somebody in, or give a member another role."""
    async with ctx.room(ids.template(msg.template_id), Right.MANAGE) as live:
        return await let_in(
            ctx,
            live,
            msg.user_id,
            msg.role,
            event="template:shared",
            about={"template_id": msg.template_id},
        )


class UnshareTemplate(ChangePayload):
    template_id: Id
    user_id: UserIdField


@registry.on("template:unshare", UnshareTemplate, LetOut)
async def unshare_template(ctx: Context, msg: UnshareTemplate) -> Mapping[str, Any]:
    """Take somebody's right away again; their sockets leave the template at once."""
    async with ctx.room(ids.template(msg.template_id), Right.MANAGE) as live:
        return await let_out(
            ctx,
            live,
            msg.user_id,
            event="template:unshared",
            about={"template_id": msg.template_id},
        )


class TemplateChange(ChangePayload):
    template_id: Id


async def _set_lock(ctx: Context, template_id: str, is_locked: bool) -> Mapping[str, Any]:
    async with ctx.room(ids.template(template_id), Right.MANAGE) as live:
        writes = template.set_lock(live.room.head, is_locked)
        return await ctx.commit(
            live, writes, lambda _: {"template_id": template_id, "locked": is_locked}
        )


class TemplateLocked(ChangeReply):
    template_id: str
    locked: bool


@registry.on("template:lock", TemplateChange, TemplateLocked)
async def lock_template(ctx: Context, msg: TemplateChange) -> Mapping[str, Any]:
    """Hold the content fast: nobody changes it, the owner included, until it is unlocked."""
    return await _set_lock(ctx, msg.template_id, True)


@registry.on("template:unlock", TemplateChange, TemplateLocked)
async def unlock_template(ctx: Context, msg: TemplateChange) -> Mapping[str, Any]:
    """Let the content be changed again."""
    return await _set_lock(ctx, msg.template_id, False)
