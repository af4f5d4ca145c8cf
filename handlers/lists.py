"""Lists of one's own documents, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from crdt.errors import Invalid
from crdt.ids import DocKind, DocName
from crdt.ports import Summary
from crdt.schema import Id
from handlers.context import Context
from handlers.registry import Payload


class ListPage(Payload):
    """`before` is the id of the last document of the page before."""

    limit: Annotated[int, Field(ge=1)] | None = None
    before: Id | None = None


async def page(
    ctx: Context, kind: DocKind, msg: ListPage
) -> tuple[Sequence[tuple[Summary, str]], bool]:
    """Returns: the caller's documents with the caller's role, newest first; whether there are more.

    Raises:
        Invalid: more are asked for than a page holds.
    """
    largest = ctx.services.limits.max_page_size
    limit = largest if msg.limit is None else msg.limit
    if limit > largest:
        raise Invalid.at("limit", f"a page has {largest} at most")
    before = DocName(kind, msg.before) if msg.before is not None else None
    found = await ctx.store.summaries(ctx.user.id, kind, limit=limit + 1, before=before)
    return found[:limit], len(found) > limit
