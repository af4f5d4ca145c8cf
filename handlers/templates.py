"""Workout templates that trainers edit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from crdt import ids, template
from crdt.access import Member, Right
from crdt.errors import Conflict, NotFound
from crdt.ids import UserId
from crdt.ports import Answer, Summary
from crdt.schema import Goal, Id, Label, TemplateMetaChanges, Title, Visibility
from handlers.context import Context
from handlers.membership import let_in
from handlers.registry import ChangePayload, Payload, Registry

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
    async with ctx.room(ids.template(answer["template"]["id"]), Right.READ) as live:
        ctx.join(live)


@registry.on("template:create", CreateTemplate, again=_join_created)
async def create_template(ctx: Context, msg: CreateTemplate) -> Mapping[str, Any]:
    """Make an empty template, and join it."""
    optional = {"goal": msg.goal, "difficulty": msg.difficulty}
    writes = template.create(
        owner_id=ctx.user.id,
        title=msg.title,
        visibility=msg.visibility,
        optional={key: value for key, value in optional.items() if value is not None},
    )
    answer = await ctx.hub.create(
        ids.template(msg.template_id or ctx.new_id()),
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


@registry.on("template:get", TemplatePayload)
async def get_template(ctx: Context, msg: TemplatePayload) -> Mapping[str, Any]:
    """Read the whole template, as it is now."""
    async with ctx.room(ids.template(msg.template_id), Right.READ) as live:
        return {"template": live.snapshot(ctx.now_ms())}


class ListTemplates(Payload):
    pass


@registry.on("template:list", ListTemplates)
async def list_templates(ctx: Context, msg: ListTemplates) -> Mapping[str, Any]:
    """List the templates that the caller is a member of, newest first."""
    found = await ctx.store.summaries(ctx.user.id, ids.DocKind.TEMPLATE)
    return {"templates": [_listed(summary, role) for summary, role in found]}


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


@registry.on("template:update_meta", UpdateTemplateMeta)
async def update_template_meta(ctx: Context, msg: UpdateTemplateMeta) -> Mapping[str, Any]:
    """Change title, goal or difficulty; who manages the template may also change who sees it."""
    changes = msg.meta.changes()
    right = Right.MANAGE if "visibility" in changes else Right.WRITE
    async with ctx.room(ids.template(msg.template_id), right) as live:
        writes = template.update_meta(changes)
        return await ctx.commit(
            live, writes, lambda _: {"template_id": msg.template_id, "meta": changes}
        )


@registry.on("template:join", TemplatePayload)
async def join_template(ctx: Context, msg: TemplatePayload) -> Mapping[str, Any]:
    """Get the template's events on this socket."""
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
    user_id: Annotated[str, Field(min_length=1, max_length=200)]
    role: Literal["editor", "viewer"]


@registry.on("template:share", ShareTemplate)
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
    user_id: Annotated[str, Field(min_length=1, max_length=200)]


@registry.on("template:unshare", UnshareTemplate)
async def unshare_template(ctx: Context, msg: UnshareTemplate) -> Mapping[str, Any]:
    """Take somebody's right away again; their sockets leave the template at once."""
    async with ctx.room(ids.template(msg.template_id), Right.MANAGE) as live:
        user_id = UserId(msg.user_id)
        known = live.room.members.get(user_id)
        if known is None:
            raise NotFound(f"{msg.user_id} is no member of this template")
        if known.role == "owner":
            raise Conflict("the owner stays the owner")
        return await ctx.commit(
            live, [], lambda _: {"user_id": user_id}, members=[Member(user_id, "", known.name)]
        )
