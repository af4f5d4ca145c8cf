"""Documents over HTTP: `GET /api/v1/...`, a snapshot as JSON, for who reads and does not stay.

Who may read is who may `workout:sync`, and as much as over a socket: a user's requests have an
allowance of their own, of the same size.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, Protocol

from aiohttp import web

from crdt import ids
from crdt.access import Right, User
from crdt.errors import NotFound, RateLimited
from crdt.hub import RoomHub
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import Clock
from server.auth import Identity
from server.http_rules import bearer_token
from server.transport.allowance import Allowance, Rate

READ_COST_BYTES = 1_024
"""What a request counts for; snapshots are not weighed."""


class Identifying(Protocol):
    async def identify(self, token: object) -> Identity: ...


class SnapshotApi:
    """Snapshots for who has a token."""

    def __init__(self, sessions: Identifying, hub: RoomHub, clock: Clock, rate: Rate) -> None:
        self._sessions = sessions
        self._hub = hub
        self._clock = clock
        self._rate = rate
        self._allowances: dict[UserId, Allowance] = {}

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/api/v1/workouts/{id}", self._workout)
        app.router.add_get("/api/v1/templates/{id}", self._template)

    async def _workout(self, request: web.Request) -> web.Response:
        return web.json_response(await self._snapshot(request, DocKind.WORKOUT))

    async def _template(self, request: web.Request) -> web.Response:
        return web.json_response(await self._snapshot(request, DocKind.TEMPLATE))

    async def _snapshot(self, request: web.Request, kind: DocKind) -> dict[str, Any]:
        identity = await self._sessions.identify(bearer_token(request))
        self._spend(identity.user)
        id_ = request.match_info["id"]
        if not ids.is_id(id_):
            raise NotFound(f"there is no such {kind.value}")
        async with self._hub.lease(DocName(kind, id_), since_s=time.monotonic()) as live:
            live.demand(identity.user, Right.READ)
            return live.snapshot(self._clock.now_ms())

    def _spend(self, user: User) -> None:
        """Raises RateLimited."""
        loop = asyncio.get_running_loop()
        allowance = self._allowances.get(user.id)
        if allowance is None:
            allowance = self._allowances[user.id] = Allowance(self._rate, loop.time())
            # By then it is full again, if nothing has come since; else so much is given away.
            loop.call_later(self._rate.patience_s, self._allowances.pop, user.id, None)
        wait_s = allowance.spend(READ_COST_BYTES, loop.time())
        if wait_s:
            raise RateLimited(
                "more than this user may ask for", retry_after_ms=math.ceil(wait_s * 1_000)
            )
