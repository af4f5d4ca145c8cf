"""What the server asks of a store besides what rooms ask of it (`crdt.ports.Store`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from crdt.ports import Store
from server.breaker import Breaker

ANSWERS_KEPT_S = 7 * 86_400


class StorageError(Exception):
    """The store cannot be used; the text says what to do about it."""


@dataclass(slots=True)
class StoreStats:
    """Counted since the start; read by the metrics."""

    appends: int = 0
    commits: int = 0
    commit_seconds: float = 0.0
    failures: int = 0


class ServerStore(Store, Protocol):
    """A store that a server opens when it starts, watches, and closes at the end."""

    @property
    def kind(self) -> str:
        """What it is, for the health report: `sqlite`, `mongodb`."""

    @property
    def stats(self) -> StoreStats:
        """What it has done so far."""

    @property
    def breaker(self) -> Breaker | None:
        """What keeps others from asking it while it does not answer; None if nothing does."""

    async def open(self) -> None:
        """Make it ready, before anything else is asked of it.

        Raises:
            StorageError: it cannot be used, or holds a newer version's data.
        """

    async def check(self) -> float:
        """Store something and come back. Returns: how long that took, in seconds.

        Raises:
            Unavailable: it cannot be done; the cause may be shown to anybody.
        """

    async def close(self) -> None:
        """Finish what was asked for, and let go. What is asked from now on is `unavailable`."""
