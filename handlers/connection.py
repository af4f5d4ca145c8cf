"""Events about the connection itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from crdt.errors import Forbidden, Invalid
from crdt.ports import Entry
from crdt.revocations import Revocation
from crdt.schema import TimeMs
from handlers.context import Context
from handlers.registry import ChangePayload, ChangeReply, Payload, Registry, Reply

registry = Registry()


class RefreshAuth(Payload):
    token: Annotated[str, Field(max_length=8_192)]


class AuthRefreshed(Reply):
    """`expires_at`: the end of the new token."""

    expires_at: TimeMs


@registry.on("auth:refresh", RefreshAuth, AuthRefreshed)
async def refresh_auth(ctx: Context, msg: RefreshAuth) -> Mapping[str, Any]:
    """Stay connected with a new token, here and wherever the old one is in use."""
    expires_at = await ctx.services.sessions.refresh(ctx.caller.connection_id, msg.token)
    return {"expires_at": expires_at}


class RevokeAuth(ChangePayload):
    user_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    token_id: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    until: TimeMs | None = None


class AuthRevoked(ChangeReply):
    """`disconnected`: the connections of this instance that held such a token."""

    disconnected: int


@registry.on("auth:revoke", RevokeAuth, AuthRevoked)
async def revoke_auth(ctx: Context, msg: RevokeAuth) -> Mapping[str, Any]:
    """Refuse a token before its end, or all that a user was issued up to now."""
    if ctx.user.role != "admin":
        raise Forbidden("revoking tokens is for admins")
    now_ms, sessions = ctx.now_ms(), ctx.services.sessions
    lifetime_ms = int(ctx.services.revocation_lifetime_s * 1_000)
    until_ms = now_ms + lifetime_ms if msg.until is None else msg.until
    if until_ms <= now_ms:
        raise Invalid.at("until", "must be a time to come")
    if msg.user_id is not None and msg.token_id is None:
        # The issuer's clock may be ahead of ours. What is in use has been issued, whatever it says.
        issued_ms = [t.issued_at_ms or 0 for t in sessions.tokens() if t.user_id == msg.user_id]
        revocation = Revocation("user", msg.user_id, until_ms, max([now_ms, *issued_ms]))
    elif msg.token_id is not None and msg.user_id is None:
        revocation = Revocation("token", msg.token_id, until_ms)
    else:
        raise Invalid.at("user_id", "name either a user_id or a token_id")
    count = sum(1 for token in sessions.tokens() if revocation.covers(token))
    answer = ctx.changed({"disconnected": count})
    entry = Entry(
        ctx.caller.author, now_ms, ctx.event, op_id=ctx.op_id, answer=lambda stored: answer
    )
    await ctx.store.revoke(revocation, entry)
    sessions.apply_revocation(revocation)
    return answer


class SyncTime(Payload):
    t0: Annotated[float, Field(allow_inf_nan=False)]


class TimeTold(Reply):
    """`t0` as it came, `t1` when it came and `t2` when this left, by the server's clock."""

    t0: float
    t1: TimeMs
    t2: TimeMs


@registry.on("time:sync", SyncTime, TimeTold)
async def sync_time(ctx: Context, msg: SyncTime) -> Mapping[str, Any]:
    """Tell the server's time, so that a client can tell its own clock's error (as NTP does)."""
    now_ms = ctx.now_ms()
    return {"t0": msg.t0, "t1": now_ms, "t2": ctx.now_ms()}
