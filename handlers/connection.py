"""Events about the connection itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from handlers.context import Context
from handlers.registry import Payload, Registry

registry = Registry()


class RefreshAuth(Payload):
    token: Annotated[str, Field(max_length=8_192)]


@registry.on("auth:refresh", RefreshAuth)
async def refresh_auth(ctx: Context, msg: RefreshAuth) -> Mapping[str, Any]:
    """Stay connected with a new token, here and wherever the old one is in use."""
    expires_at = ctx.services.sessions.refresh(ctx.caller.connection_id, msg.token)
    return {"expires_at": expires_at}


class SyncTime(Payload):
    t0: Annotated[float, Field(allow_inf_nan=False)]


@registry.on("time:sync", SyncTime)
async def sync_time(ctx: Context, msg: SyncTime) -> Mapping[str, Any]:
    """Tell the server's time, so that a client can tell its own clock's error (as NTP does)."""
    now_ms = ctx.now_ms()
    return {"t0": msg.t0, "t1": now_ms, "t2": ctx.now_ms()}
