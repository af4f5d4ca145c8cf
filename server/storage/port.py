"""What the server asks of a store besides what rooms ask of it (`crdt.ports.Store`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from crdt.ids import DocName, UserId
from crdt.ports import Loaded, Store
from crdt.revocations import Revocation
from server.breaker import Breaker
from server.metrics import COUNTS, Histogram

ANSWERS_KEPT_S = 7 * 86_400


class StorageError(Exception):
    """The store cannot be used; the text says what to do about it."""


class InUse(StorageError):
    """Another process has it."""


@dataclass(slots=True)
class StoreStats:
    """Counted since the start; read by the metrics."""

    appends: int = 0
    failures: int = 0
    commit_seconds: Histogram = field(default_factory=Histogram)
    commit_records: Histogram = field(default_factory=lambda: Histogram(COUNTS))
    """How many writes shared a commit."""

    @property
    def commits(self) -> int:
        return self.commit_seconds.count

    def committed(self, records: int, seconds: float) -> None:
        """One commit with one sync. Called by one thread, whichever that is."""
        self.commit_seconds.observe(seconds)
        self.commit_records.observe(records)


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


class PersonalRow(NamedTuple):
    """Something that is kept of a person beside the documents, as JSON. `section`: which kind of
    thing, see `SECTIONS`."""

    section: str
    fields: dict[str, Any]


SECTIONS = (
    "log",
    "answers",
    "scores",
    "records",
    "client_ids",
    "revocations",
    "claims",
    "memberships",
)
"""Log entries of whom they are the author, kept answers, what each set is worth, records that were
won, Yjs client IDs, revocations of and by them, the claim of an active workout, and who they are in
which document."""


class PersonalRecords(Protocol):
    """What a store knows of one person. Only read."""

    async def documents_of(self, user_id: UserId) -> Sequence[DocName]:
        """Every document that may have something of this person, be it in its history: all bytes
        are searched for the id. Others may be among them, which have the same text elsewhere."""

    def rows_of(self, user_id: UserId) -> AsyncIterator[PersonalRow]:
        """All that is kept beside the documents, section after section."""

    async def stored(self, doc: DocName) -> Loaded | None:
        """The document as it is where it lasts, with all that was appended until now."""


class Erasure(NamedTuple):
    """Somebody is to be erased, or has been. `user_id` is None from when it stands nowhere else."""

    id: str
    user_id: UserId | None
    done_at_ms: int | None
    report: dict[str, Any]
    error: str | None = None
    by: str | None = None
    """Who carries it out, if several might."""


class ErasingStore(ServerStore, PersonalRecords, Protocol):
    """A store from which a person can be erased. Each step may be done again, and is durable and
    complete when it returns."""

    @property
    def settles_after_s(self) -> float:
        """For how long another process may go on writing what follows from what it had read."""

    async def begin_erasure(self, user_id: UserId, issued_until_ms: int) -> Revocation:
        """Note that somebody is to be erased, and refuse their tokens issued up to then, for good.

        Returns: the revocation, which `revocations` tells from now on.
        """

    async def erasures(self) -> Sequence[Erasure]:
        """Those that have been begun, and not ended."""

    async def erasure_of(self, user_id: UserId) -> Erasure | None:
        """How far this person's has come."""

    async def take_erasure(self, erasure_id: str, by: str) -> bool:
        """Make it this process's to carry out, for half a minute from now and from each note.

        Returns: whether it is; if not, another process is at it, which does no harm but is no use.
        """

    async def leave_erasure(self, erasure_id: str, by: str) -> None:
        """Let another process take it at once: this one ends."""

    async def note_erasure(
        self, erasure_id: str, report: dict[str, Any], error: str | None
    ) -> None:
        """Keep what was done so far, and what stands in the way."""

    async def bury(self, doc: DocName) -> None:
        """Delete a document with all that is of it. There will be none of this name again: who
        makes it or writes to it is told `Gone`."""

    async def forget_in(self, doc: DocName, user_id: UserId) -> Counter[str]:
        """Delete what is kept of a person beside a document that goes on, after they were taken
        out of it. Their Yjs client IDs are nobody's from now on. Returns: how many of what."""

    async def forget(self, user_id: UserId) -> Counter[str]:
        """Delete what is kept of a person beside documents. Returns: how many of what."""

    async def end_erasure(self, erasure: Erasure, now_ms: int, report: dict[str, Any]) -> None:
        """Forget who it was, see that nothing of what was deleted stays on the disk, and note that
        it is done."""
