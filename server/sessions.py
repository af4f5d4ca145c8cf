"""One client in one namespace, and the token that it holds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from crdt.access import User
from crdt.ids import ConnectionId, DocName
from crdt.live import Connection
from crdt.revocations import TokenFacts
from handlers.context import Caller
from server.transport.allowance import Allowance


@dataclass(slots=True)
class Session:
    """Owned by the gateway. `missed` and `is_asked` are the document door's notes."""

    id: ConnectionId
    namespace: str
    user: User
    device: dict[str, str]
    token: TokenFacts
    token_digest: bytes
    expires_at_s: float
    allowance: Allowance
    """What the user may still send; all of the user's sessions share it."""
    document: DocName | None = None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    missed: tuple[bytes, bytes] | None = None
    """The first update that was left out because the client is slow, and the document's state
    vector right after it: what the two together lack is all that it has missed."""
    is_asked: bool = False
    """Whether the client's answer to our own sync-step-1 is still to come."""
    is_revoking: bool = False
    """Whether it waits for the ack of an `auth:revoke`, which it gets even if that ends it."""

    @property
    def connection(self) -> Connection:
        return Connection(self.id, self.user, self.device, document=self.document is not None)

    @property
    def caller(self) -> Caller:
        return Caller(self.user, self.device, self.id)
