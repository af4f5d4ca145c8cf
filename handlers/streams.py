"""Streams for dashboards: subscribing and leaving."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field

from crdt import ids
from crdt.access import Right
from crdt.errors import Conflict, ErrorObject, Forbidden, NotFound, RepSyncError
from crdt.ids import DocKind
from handlers.context import Context
from handlers.registry import Payload, Registry, Reply

registry = Registry()

SYSTEM_HEALTH = "system:health"


class StreamList(Payload):
    streams: Annotated[
        tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=100, strict=False)
    ]


class Subscribed(Reply):
    """What is watched from now on, and why the others are not."""

    subscribed: list[str]
    denied: list[str]
    errors: Annotated[dict[str, ErrorObject], Field(description="stream -> why not")]


@registry.on("subscribe", StreamList, Subscribed)
async def subscribe(ctx: Context, msg: StreamList) -> Mapping[str, Any]:
    """Watch streams: the current value of each comes first, then its changes."""
    subscribed: list[str] = []
    errors: dict[str, Any] = {}
    watched = set(ctx.services.streams.streams_of(ctx.caller.connection_id))
    for stream in dict.fromkeys(msg.streams):
        try:
            _demand_place_for(ctx, stream, watched)
            await _allow(ctx, stream)
        except RepSyncError as exc:
            errors[stream] = exc.to_wire()
        else:
            subscribed.append(stream)
            watched.add(stream)
    ctx.services.streams.subscribe(ctx.caller.connection_id, subscribed)
    return {"subscribed": subscribed, "denied": list(errors), "errors": errors}


class Unsubscribed(Reply):
    unsubscribed: list[str]


@registry.on("unsubscribe", StreamList, Unsubscribed)
async def unsubscribe(ctx: Context, msg: StreamList) -> Mapping[str, Any]:
    """Watch these streams no more."""
    return {"unsubscribed": ctx.services.streams.unsubscribe(ctx.caller.connection_id, msg.streams)}


def _demand_place_for(ctx: Context, stream: str, watched: Collection[str]) -> None:
    """Raises Conflict when this connection watches as many streams as it may."""
    limit = ctx.services.limits.max_streams_per_connection
    if len(watched) >= limit and stream not in watched:
        raise Conflict(
            "this connection watches as many streams as it may; leave one",
            details={"limit": limit},
        )


async def _allow(ctx: Context, stream: str) -> None:
    """Raises NotFound for a stream that there is not, Forbidden for one that is not theirs."""
    if stream == SYSTEM_HEALTH:
        if ctx.user.role != "admin":
            raise Forbidden("system streams are for admins")
        return
    workout_id = progress_stream_workout(stream)
    if workout_id is None:
        raise NotFound(f"there is no stream {stream!r}")
    async with ctx.room(ids.workout(workout_id), Right.READ):
        return


def progress_stream_workout(stream: str) -> str | None:
    """The workout of a `workout:<id>:progress` stream; None for any other."""
    document, _, what = stream.rpartition(":")
    if what != "progress":
        return None
    try:
        name = ids.DocName.parse(document)
    except RepSyncError:
        return None
    return name.id if name.kind is DocKind.WORKOUT else None
