"""One client in one namespace, and the token that it holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from crdt.access import User
from crdt.ids import ConnectionId, DocName
from crdt.live import Connection
from crdt.revocations import TokenFacts
from handlers.context import Caller
from server.transport.allowance import Allowance


@dataclass(slots=True)
class Session:
    """Owned by the gateway, which ends its timers with it. `missed`, `is_asked` and `ask_delay_s`
    are the document door's notes."""

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
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    """What is to be called later, by what it is for; what has been called is not among them."""
    missed: tuple[bytes, bytes] | None = None
    """The first update that was left out because the client is slow, and the document's state
    vector right after it: what the two together lack is all that it has missed."""
    is_asked: bool = False
    """Whether the client's answer to our own sync-step-1 is still to come."""
    ask_delay_s: float = 0.0
    """How long it was not asked again after its last answer, which was refused; 0.0 if none was
    since the last that was taken."""
    since_s: float = field(default_factory=time.monotonic)
    """When it connected; monotonic."""
    event_count: int = 0
    """How many JSON events it has sent."""
    is_revoking: bool = False
    """Whether it waits for the ack of an `auth:revoke`, which it gets even if that ends it."""

    @property
    def connection(self) -> Connection:
        return Connection(self.id, self.user, self.device, document=self.document is not None)

    @property
    def facts(self) -> dict[str, str]:
        """What a log line says of it."""
        facts = {"connection": str(self.id), "user": str(self.user.id)}
        if self.document is not None:
            facts["document"] = str(self.document)
        return facts

    @property
    def caller(self) -> Caller:
        return Caller(self.user, self.device, self.id, self.since_s)

    def start_timer(self, name: str, delay_s: float, call: Callable[[], None]) -> None:
        """Have something called later, instead of what this timer was to call."""
        self.stop_timer(name)

        def fire() -> None:
            del self.timers[name]
            call()

        self.timers[name] = asyncio.get_running_loop().call_later(delay_s, fire)

    def stop_timer(self, name: str) -> None:
        timer = self.timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def stop_timers(self) -> None:
        for name in list(self.timers):
            self.stop_timer(name)
