"""What the edge itself tells clients, as models: about the connection, and on a document's socket.

The events of rooms are in `crdt/shown.py`, those for a user's own devices in
`handlers/membership.py`. As there, the server makes plain values, and tests hold one against the
other.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model

from crdt.errors import Code, ErrorObject
from crdt.schema import TimeMs
from crdt.shown import Count, DurabilityShown, UserShown
from server import limits
from server.auth import ROLES
from server.settings import Settings

Role = Literal["user", "premium", "trainer", "admin"]
assert Role.__args__ == ROLES  # type: ignore[attr-defined]


class Device(BaseModel):
    """What the client calls itself; an id is made up where there is none."""

    id: Annotated[str, Field(max_length=limits.MAX_DEVICE_CHARS)] | None = None
    name: Annotated[str, Field(max_length=limits.MAX_DEVICE_CHARS)] = ""


class ConnectAuth(BaseModel):
    """Socket.IO's auth payload, with which a client asks to be let into a namespace."""

    token: Annotated[str, Field(description="a JWT")]
    device: Device | None = None


class Caller(UserShown):
    role: Role


Limits: Any = create_model(
    "Limits",
    __doc__="What a well-meant client might run into; more may come.",
    **dict.fromkeys(limits.told(Settings.model_construct()), (int, ...)),  # type: ignore[call-overload]
)


class Welcome(BaseModel):
    """Comes after connecting to `/`. `instance` is another one after each start of the server."""

    user: Caller
    device_id: str
    server_time: TimeMs
    protocol: Literal[1]
    instance: str
    active_workout: str | None
    limits: Limits


class AuthExpiring(BaseModel):
    """The token ends soon: send `auth:refresh`."""

    expires_at: TimeMs


class Draining(BaseModel):
    """This server goes away: come back then. Each client is told another time."""

    reconnect_in_ms: Annotated[int, Field(ge=0)]


class SubscriptionConfirmed(BaseModel):
    """What a `subscribe` has begun to watch."""

    subscribed: list[str]


CONNECTION_EVENTS: dict[str, type[BaseModel]] = {
    "auth:expiring": AuthExpiring,
    "auth:expired": ErrorObject,
    "auth:revoked": ErrorObject,
    "server:draining": Draining,
}
"""Both kinds of namespace have these."""


class SubscriptionEnded(BaseModel):
    """A stream may be watched no more, or what it shows is gone."""

    stream: str
    reason: Code
    message: str


EVENTS: dict[str, type[BaseModel]] = {
    "welcome": Welcome,
    "subscription:confirmed": SubscriptionConfirmed,
    "subscription:ended": SubscriptionEnded,
}
"""Those of `/` alone."""


# -- documents --------------------------------------------------------------------------------


class UpdateStored(BaseModel):
    """The answer to a `sync-update` that is durable: its position in the document's log."""

    ok: Literal[True]
    seq: Count
    durability: DurabilityShown


class AwarenessTaken(BaseModel):
    ok: Literal[True]


class SyncRejected(BaseModel):
    """An update was refused whole: drop the replica, and sync again."""

    code: Code
    message: str
    path: str | None = None


class SyncReset(BaseModel):
    """Run `sync-step-1` again; the replica is good. More reasons may come."""

    reason: Annotated[str, Field(examples=["unsynced", "slow_reader", "failover"])]


DOCUMENT_EVENTS: dict[str, type[BaseModel]] = {
    "sync-rejected": SyncRejected,
    "sync-reset": SyncReset,
}
"""Those of a document's namespace that are JSON."""


class Liveness(BaseModel):
    """That the process runs: who can answer this does."""

    live: Literal[True]


class Readiness(BaseModel):
    """Whether clients may be sent here."""

    ready: bool
