"""Events by name: each a payload model and a handler, and one place that answers the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, Field, ValidationError

from crdt.errors import (
    INTERNAL,
    Conflict,
    ErrorObject,
    Forbidden,
    Invalid,
    NotFound,
    Outdated,
    RepSyncError,
    Unavailable,
)
from crdt.ids import UserId
from crdt.ports import Answer
from crdt.schema import Strict
from crdt.shown import DurabilityShown
from handlers.context import Caller, Context, Services

log = logging.getLogger(__name__)

OUTDATED_ATTEMPTS, OUTDATED_PAUSE_S, LONGEST_PAUSE_S = 14, 0.05, 0.4
"""A document that is being read again is there again soon."""


class Payload(Strict):
    """What an event carries."""


class ChangePayload(Payload):
    """What an event that changes something carries. The same `op_id` sent again, by the same user
    on whatever connection, gets the first answer again and changes nothing."""

    op_id: Annotated[UUID, Field(strict=False)] | None = None


class Reply(BaseModel):
    """All went well."""

    # Handlers give the fields of a reply as plain values, all but `ok`; tests hold one against the
    # other.

    ok: Literal[True]


class ChangeReply(Reply):
    """The answer to a change, once it is durable, and where: `disk` (embedded), `cluster` (in the
    shared log), `local` (the shared log is away: on this instance's disk, published later)."""

    durability: DurabilityShown


class Failure(BaseModel):
    """It was refused, and nothing was changed, unless the error leaves that open."""

    ok: Literal[False]
    error: ErrorObject


P = TypeVar("P", bound=Payload)
Handler = Callable[[Context, P], Awaitable[Mapping[str, Any]]]
Again = Callable[[Context, Answer], Awaitable[None]]
"""What is still to be done for a caller whose operation had been carried out before."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One event: what it is called, what it carries, what it does."""

    event: str
    payload: type[Payload]
    handler: Handler[Any]
    reply: type[Reply] = Reply
    again: Again | None = None

    @property
    def summary(self) -> str:
        return (self.handler.__doc__ or "").strip().partition("\n")[0]


@dataclass(slots=True)
class Registry:
    """The events of one noun, or, merged, of the whole API."""

    intents: dict[str, Intent] = field(default_factory=dict)
    _under_way: dict[tuple[UserId, str], asyncio.Task[Answer]] = field(default_factory=dict)

    def on(
        self,
        event: str,
        payload: type[P],
        reply: type[Reply] = Reply,
        *,
        again: Again | None = None,
    ) -> Callable[[Handler[P]], Handler[P]]:
        """Register the decorated handler, which answers with the fields of `reply`. A name that is
        taken stops the start."""

        def register(handler: Handler[P]) -> Handler[P]:
            if event in self.intents:
                raise ValueError(f"{event} is registered twice")
            self.intents[event] = Intent(event, payload, handler, reply, again)
            return handler

        return register

    @classmethod
    def merge(cls, *registries: Registry) -> Registry:
        merged = cls()
        for registry in registries:
            for event, intent in registry.intents.items():
                merged.on(event, intent.payload, intent.reply, again=intent.again)(intent.handler)
        return merged

    async def dispatch(self, caller: Caller, services: Services, event: str, data: Any) -> Answer:
        """Answer one event from a client: exactly one ack, whatever happens."""
        try:
            intent = self.intents.get(event)
            if intent is None:
                raise NotFound(f"there is no event {event[:64]!r}")
            payload = _parse(intent.payload, data)
            op_id = payload.op_id if isinstance(payload, ChangePayload) else None
            ctx = Context(caller, services, event, str(op_id) if op_id else None)
            if ctx.op_id is None:
                return await self._handle(ctx, intent, payload)
            return await self._once(ctx, intent, payload)
        except RepSyncError as exc:
            return {"ok": False, "error": exc.to_wire()}
        except Exception:
            log.exception("handler failed", extra={"intent": event, "user": caller.user.id})
            return {"ok": False, "error": INTERNAL}

    @staticmethod
    async def _handle(ctx: Context, intent: Intent, payload: Payload) -> Answer:
        """Call the handler; again, if what it planned was outdated before it was stored, or if it
        refused for want of what another instance has written."""
        is_fresh = False
        for attempt in range(OUTDATED_ATTEMPTS):
            try:
                return _ack(await intent.handler(ctx, payload))
            except (NotFound, Conflict, Forbidden, Invalid):
                doc = ctx.document_of(payload)
                if is_fresh or doc is None or not await ctx.hub.freshen(doc):
                    raise
                is_fresh = True
                ctx.start_again()
            except Outdated:
                if attempt + 1 == OUTDATED_ATTEMPTS:
                    raise
                await asyncio.sleep(min(OUTDATED_PAUSE_S * (attempt + 1), LONGEST_PAUSE_S))
                ctx.start_again()
        raise AssertionError("unreachable")

    async def _once(self, ctx: Context, intent: Intent, payload: Payload) -> Answer:
        """Carry out an operation, unless it was, or is being, carried out already.

        It runs to its end in a task of its own: the caller may be gone by then, and ask again.
        """
        key = (ctx.user.id, cast(str, ctx.op_id))
        running = self._under_way.get(key)
        if running is None:
            running = asyncio.create_task(self._carry_out(key, ctx, intent, payload))
            self._under_way[key] = running
            running.add_done_callback(lambda task: self._finished(key, task))
        return await asyncio.shield(running)

    async def _carry_out(
        self, key: tuple[UserId, str], ctx: Context, intent: Intent, payload: Payload
    ) -> Answer:
        doc = ctx.document_of(payload)
        kept = await ctx.store.answer(*key, doc)
        if kept is None:
            try:
                return await self._handle(ctx, intent, payload)
            except (Conflict, Unavailable):
                # Maybe it came to two instances in the same moment, and the other was faster.
                kept = await ctx.store.answer(*key, doc)
                if kept is None:
                    raise
        if intent.again is not None:
            await intent.again(ctx, kept)
        return kept

    def _finished(self, key: tuple[UserId, str], task: asyncio.Task[Answer]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # whoever still waits gets it; maybe nobody does


def _parse(model: type[Payload], data: Any) -> Payload:
    if not isinstance(data, dict):
        raise Invalid.at("", "the payload must be one object")
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        # A path may be made of the client's own words, and so may all of many.
        details = [
            {"path": ".".join(str(part) for part in error["loc"])[:200], "message": error["msg"]}
            for error in errors[:20]
        ]
        first = details[0]
        raise Invalid(f"{first['path']}: {first['message']}", details=details) from exc


def _ack(reply: Mapping[str, Any]) -> Answer:
    return {"ok": True, **reply}
