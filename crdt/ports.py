"""What the rooms need from outside: something durable, somebody to tell, and the time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from crdt.access import Member, User
from crdt.events import DomainEvent
from crdt.ids import ConnectionId, DocKind, DocName, UserId
from crdt.records import Award, RecordType, Score
from crdt.revocations import Revocation

Durability = Literal["disk", "cluster", "local", "memory"]

Awards = Mapping[str, Mapping[str, Award]]
"""set id -> record type -> the award."""

NO_AWARDS: Awards = MappingProxyType({})

Answer = dict[str, Any]

SERVER = UserId("")
"""Who writes what an intent asks for."""


class Author(NamedTuple):
    """Who made a change, with which device, through which connection."""

    user_id: UserId
    name: str
    device_id: str
    connection_id: ConnectionId


@dataclass(frozen=True, slots=True)
class Summary:
    """What lists show of a document without opening it."""

    doc: DocName
    owner_id: UserId
    title: str
    status: str | None
    mode: str | None
    visibility: str
    created_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None


class Trained(NamedTuple):
    """What one user has done in one workout: sets that count for records, and their volume."""

    summary: Summary
    sets: int
    volume_kg: float


class Best(NamedTuple):
    """The set with the largest value of a type that a user has reached in an exercise; of several
    with the same value, the first by document and set id."""

    exercise: str
    type: RecordType
    value: float
    doc: DocName
    set_id: str


@dataclass(frozen=True, slots=True)
class Training:
    """What one user has done in all workouts, or in those that somebody else may see.

    `workouts` are those that they own or take part in, newest first, no more than were asked for;
    `workout_count` tells of how many. `sets` and `volume_kg` are of all sets that count for
    records. `circles` are the owners of those workouts that are shown to friends, and `is_public`
    whether any is shown to everybody: both of all workouts, whoever asks.
    """

    workouts: Sequence[Trained]
    bests: Sequence[Best]
    workout_count: int
    sets: int
    volume_kg: float
    circles: frozenset[UserId]
    is_public: bool


TRAINING_ROLES = ("owner", "participant")
"""Whose workouts are theirs: a coach and a spectator look on."""


class Stored(NamedTuple):
    """How an append was stored: its position in the document's log, and the records it won, in
    all and by each of its entries. `durability` is None where it is the store's usual one."""

    seq: int
    awards: Awards = NO_AWARDS
    by_entry: Sequence[Awards] = ()
    durability: Durability | None = None

    def of(self, index: int) -> Stored:
        """The same for one entry alone."""
        awards = self.by_entry[index] if self.by_entry else NO_AWARDS
        return Stored(self.seq, awards, durability=self.durability)


class Entry(NamedTuple):
    """One change within an append: who made it, and what must become durable together with it.

    `answer` makes the ack from the outcome; what it returns is kept for `op_id`. It is called
    where the store works, maybe in another thread: a pure function.
    """

    author: Author
    at_ms: int
    event: str
    op_id: str | None = None
    scores: Sequence[Score] = ()
    members: Sequence[Member] = ()
    answer: Callable[[Stored], Answer] | None = None
    client_ids: Sequence[tuple[int, UserId]] = ()
    """Yjs client IDs that write in this document for the first time, and whose they are from now
    on; `SERVER` for the server's own."""
    removed_exercises: Sequence[str] = ()
    """Taken out of the plan; sets that were logged elsewhere meanwhile may still name them."""


class Part(NamedTuple):
    """What one entry has brought to the update of its append."""

    update: bytes | None
    changes_status: bool


class Append(NamedTuple):
    """One log record: the merged update of all its entries (None if only members changed).

    `summary` is the document's summary if it is another one than before. `status_seen` is set by a
    change of the document's status: the last position that was known when it was planned. If
    somebody else's change of the status stands behind that, a store that several share refuses.
    `parts` are what `update` was merged of, one for each entry.
    """

    doc: DocName
    update: bytes | None
    entries: Sequence[Entry]
    summary: Summary | None = None
    creates: bool = False
    status_seen: int | None = None
    parts: Sequence[Part] = ()


class Foreign(NamedTuple):
    """A log record that another instance wrote."""

    seq: int
    update: bytes | None
    names: Mapping[UserId, str] = MappingProxyType({})
    """What those who wrote it are called."""
    members: Sequence[Member] = ()
    client_ids: Sequence[tuple[int, UserId]] = ()
    removed_exercises: Sequence[str] = ()
    awards: Awards = NO_AWARDS
    at_ms: int = 0
    """When the oldest of its changes came in, by the other's clock; 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A document as stored: a snapshot (None if there is none yet), what came after it, oldest
    first, and what is kept beside the log. `seq` is the last position, `snapshot_seq` the
    snapshot's."""

    snapshot: bytes | None
    updates: Sequence[bytes]
    seq: int
    snapshot_seq: int
    members: Mapping[UserId, Member]
    awards: Awards
    client_ids: Mapping[int, UserId] = field(default_factory=dict)
    removed_exercises: Collection[str] = ()


class Store(Protocol):
    """The durable log and what is kept with it.

    An append is atomic and durable when it returns: after a crash all of it is there, or none,
    and never a part. Everything beside the log (lists, members, records, answers) is written in
    the same step as the update that caused it.

    Every method raises `Unavailable` when the store cannot do it now; the outcome of an append
    that raised is unknown, and its room must be read again.
    """

    @property
    def durability(self) -> Durability:
        """What an ack may promise after an append."""

    async def load(self, doc: DocName) -> Loaded | None:
        """The document, or None if there has never been one."""

    def append(self, batch: Append) -> Awaitable[Stored]:
        """Append one record.

        A score wins a record when no other set of the user and exercise has reached its value;
        a set wins each type at most once, however often it comes.

        Raises:
            Conflict: `creates` is set and the document exists.
            TooLarge: it is more than the store can keep as one.
        """

    async def compact(self, doc: DocName, snapshot: bytes, upto: int, base: int) -> bool:
        """Replace positions up to `upto` by a snapshot, if the present one still is at `base`.

        Returns: False when somebody else was faster, which is normal.
        """

    async def answer(
        self, user_id: UserId, op_id: str, doc: DocName | None = None
    ) -> Answer | None:
        """What this user's `op_id` was answered with in the last 24 hours or longer.

        Args:
            doc: the document that it is about, if any: where it is looked for first.
        """

    async def summaries(
        self, user_id: UserId, kind: DocKind, *, limit: int, before: DocName | None = None
    ) -> Sequence[tuple[Summary, str]]:
        """The documents that this user is a member of, newest first, with the user's role.

        Args:
            limit: no more than so many.
            before: only those that come after this one in the list; none if it is unknown.
        """

    async def summary(self, doc: DocName) -> Summary | None:
        """One document's summary."""

    async def training(
        self, user_id: UserId, *, limit: int, circles: Collection[UserId] | None = None
    ) -> Training:
        """What a user has done, as far as has been appended.

        Args:
            limit: of the workouts that are listed.
            circles: only what is in public workouts, and in those that these owners show to their
                friends; None for everything.
        """

    async def active_workout(self, owner_id: UserId) -> str | None:
        """The id of the workout that holds the owner's claim, if any."""

    async def claim_active(
        self, owner_id: UserId, workout_id: str, instead_of: str | None = None
    ) -> str:
        """Make this the owner's one active workout, unless another one is.

        The claim ends with the append that ends the workout. `instead_of` takes it over from a
        workout that is known not to be live.

        Returns: the id of the workout that holds the claim now.
        """

    async def revoke(self, revocation: Revocation, entry: Entry) -> None:
        """Keep a revocation, and in the same step the answer of its operation.

        Of several of the same user or token, the latest `issued_until_ms` and the latest
        `until_ms` count. It is kept until then at least.
        """

    async def revocations(self, now_ms: int) -> Sequence[Revocation]:
        """All that have not ended at `now_ms`."""


class SharedLog(Protocol):
    """A store that other instances write to as well. What they write it hands to its `Inlet`, for
    each document from `load` until `release`, in the order of the log and without a gap."""

    async def persist(self, doc: DocName) -> None:
        """See to it that the document's log is where it lasts.

        Raises:
            Unavailable: it cannot be done now, the document must stay in memory.
            Gone: it was deleted for good.
        """

    async def stored(self, doc: DocName) -> Loaded | None:
        """The document as it is where it lasts, without opening it.

        Raises:
            Unavailable: it cannot be read now.
        """

    def demand_space(self, doc: DocName) -> None:
        """Raises Unavailable if nothing more of the document can be stored now."""

    async def catch_up(self, doc: DocName) -> None:
        """Bring in what others have appended until now, as far as the shared log can be asked."""

    def release(self, doc: DocName) -> None:
        """Nobody needs the document here any more: hand out nothing more of it."""


class Inlet(Protocol):
    """Where a shared log brings what others wrote. Never blocks, never raises."""

    def foreign(self, doc: DocName, records: Sequence[Foreign]) -> None:
        """What comes next in the document's log."""

    def renumbered(self, doc: DocName, seq: int) -> None:
        """What the document holds ends at this position now."""

    def awarded(self, doc: DocName, awards: Awards) -> None:
        """What was stored without them has won these records since."""

    def outdated(self, doc: DocName, reason: str) -> None:
        """There is a gap that cannot be filled: the document must be read again."""


class Committed(NamedTuple):
    """What a room tells its members after an append.

    `update` is None when only members changed. `sender` is the one connection that needs no copy
    of it; None when changes of several were merged.
    """

    doc: DocName
    seq: int
    update: bytes | None
    sender: ConnectionId | None
    events: Sequence[DomainEvent]
    touches_progress: bool
    touches_access: bool
    """Whether somebody who was allowed in may be so no longer."""


class Neighbours(Protocol):
    """The other instances, as far as who is here concerns them. Never blocks, never raises."""

    def joined(
        self, doc: DocName, connection_id: ConnectionId, user: User, device: Mapping[str, str]
    ) -> None:
        """A socket is in a room here."""

    def left(self, doc: DocName, connection_id: ConnectionId, awareness: bytes) -> None:
        """It is no more; `awareness` takes its state away, empty if it had none."""

    def aware(self, doc: DocName, awareness: bytes) -> None:
        """Somebody here shows something else."""


class Outlet(Protocol):
    """Where rooms speak to the sockets joined to them. Never blocks, never raises."""

    def committed(self, commit: Committed) -> None:
        """A change is durable: document members get the update, JSON members the events."""

    def reset(self, doc: DocName, reason: str) -> None:
        """What document members hold may be ahead of the log: they must sync again."""

    def present(self, doc: DocName, event: str, payload: dict[str, Any]) -> None:
        """Somebody came or went."""

    def aware(self, doc: DocName, awareness: bytes) -> None:
        """Somebody on another instance shows something else to document members."""


class Observer(Protocol):
    """Who is told how long things took. Never blocks, never raises."""

    def appended(self, changes: int, append_s: float, shown_s: float) -> None:
        """So many changes, appended as one record, are durable and have been shown.

        Args:
            append_s: how long the store took.
            shown_s: from when the oldest of them came in until the last socket was given it.
        """

    def heard(self, age_s: float) -> None:
        """A change of another instance was shown so long after it came in there, by two clocks."""


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall time for stamps, in milliseconds since the epoch."""
