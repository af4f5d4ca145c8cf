"""One document in memory: changes in, effects out. No I/O, no clock, no sockets.

A room keeps its document twice. The *head* holds every change that was admitted; the *committed*
replica holds what the log holds, and is all that anybody outside is ever shown. Between the two
stand the batches that wait for their append:

    admit / edit ──▶ head ──▶ waiting ──take_batch──▶ in flight ──commit──▶ committed ──▶ effects

So a change is checked against everything that came before it, nothing is shown before it is
durable, and what arrives during an append is merged into the next one. A change that is refused
leaves the head as it was: where native code had to be asked first, the head is built anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pycrdt import merge_updates

from crdt import template, workout
from crdt.access import Member, Right, User, rights_of
from crdt.errors import Conflict, Forbidden, RepSyncError
from crdt.events import DomainEvent
from crdt.ids import DocKind, DocName, UserId
from crdt.ports import (
    Answer,
    Append,
    Author,
    Committed,
    Entry,
    Loaded,
    Stored,
    Summary,
)
from crdt.progress import progress
from crdt.records import Award
from crdt.replica import EMPTY_STATE_VECTOR, Delta, Replica, Transaction, View, Write, apply_delta
from crdt.schema import SERVER_OWNED_META


@dataclass(slots=True)
class Change:
    """One admitted change on its way into the log."""

    entry: Entry
    update: bytes | None
    delta: Delta
    events: list[DomainEvent]


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes into the log as one record."""

    append: Append
    changes: Sequence[Change]


class Room:
    """A document and who may use it, opened from what the store holds (None for a new one)."""

    def __init__(self, name: DocName, loaded: Loaded | None = None) -> None:
        self.name = name
        self.seq = loaded.seq if loaded else 0
        self.snapshot_seq = loaded.snapshot_seq if loaded else 0
        self.members: dict[UserId, Member] = dict(loaded.members) if loaded else {}
        self.awards: dict[str, dict[str, Award]] = (
            {set_id: dict(won) for set_id, won in loaded.awards.items()} if loaded else {}
        )
        self._exists = loaded is not None
        self._committed = Replica(name.kind)
        if loaded is not None:
            for update in (loaded.snapshot, *loaded.updates):
                if update is not None:
                    self._committed.load(update)
        self._view = self._committed.read()
        self._waiting: list[Change] = []
        self._in_flight: Batch | None = None
        self._head, self._head_view = self._build_head()

    # -- reading ----------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """The committed document as plain values; read it, do not write to it."""
        return self._view

    @property
    def head(self) -> View:
        """The document with all admitted changes: what an edit must be planned on."""
        return self._head_view

    def state_vector(self) -> bytes:
        return self._committed.state_vector()

    def diff(self, state_vector: bytes = EMPTY_STATE_VECTOR) -> bytes:
        """What a peer lacks of the committed document. Raises Invalid on a bad vector."""
        return self._committed.diff(state_vector)

    def rights(self, user: User) -> Right:
        return rights_of(user, self.name.kind, self._view["meta"], self.members)

    def snapshot(self, *, members: Iterable[dict[str, Any]], now_ms: int) -> dict[str, Any]:
        """The committed document as JSON; `members` as the wire shows them."""
        return self._shown(self._view, members, self.members.values(), now_ms)

    def preview(
        self, *, members: Iterable[dict[str, Any]], roster: Iterable[Member], now_ms: int
    ) -> dict[str, Any]:
        """The snapshot that there will be once all that was admitted is durable."""
        return self._shown(self._head_view, members, roster, now_ms)

    def progress(self) -> dict[str, dict[str, Any]]:
        """How far everybody has come, by user id."""
        return progress(self._view, self.awards, self.members.values())

    def _shown(
        self,
        view: View,
        members: Iterable[dict[str, Any]],
        roster: Iterable[Member],
        now_ms: int,
    ) -> dict[str, Any]:
        if self.name.kind is DocKind.TEMPLATE:
            return template.snapshot(self.name.id, view, version=self.seq)
        return workout.snapshot(
            self.name.id,
            view,
            members=members,
            awards=self.awards,
            now_ms=now_ms,
            version=self.seq,
            roster=roster,
        )

    @property
    def is_settled(self) -> bool:
        """Whether all that was admitted is durable."""
        return not self._waiting and self._in_flight is None

    # -- changes in -------------------------------------------------------------------------

    def admit(self, update: bytes, author: Author, at_ms: int, *, may_write: bool) -> Change | None:
        """Take in a Yjs client's update.

        Returns: the change, to be taken with the next batch; None if it brought nothing new
            (a client that may only read answers a sync with what the server has already).
        Raises:
            Invalid, Unsynced, Forbidden: the update is refused whole, the room is as before.
        """
        if not may_write and self._head.brings_news(update):
            raise Forbidden("this role can read the document only")
        try:
            transaction = self._head.apply(update)
        except RepSyncError:
            if self._head.spoiled:
                self._rebuild_head()
            raise
        if transaction is None:
            return None
        try:
            self._check(transaction.delta, may_write)
            return self._accept(Entry(author, at_ms, "sync-update"), transaction)
        except BaseException:
            self._rebuild_head()
            raise

    def _check(self, delta: Delta, may_write: bool) -> None:
        if not may_write:
            raise Forbidden("this role can read the document only")
        for root, key in delta:
            if root == "meta" and key in SERVER_OWNED_META[self.name.kind]:
                raise Forbidden(f"meta.{key} changes through intents only")

    def edit(
        self,
        writes: Sequence[Write],
        author: Author,
        at_ms: int,
        event: str,
        *,
        op_id: str | None = None,
        members: Sequence[Member] = (),
        answer: Callable[[Stored], Answer] | None = None,
    ) -> Change:
        """Carry out an intent's writes, planned on `head`, in one transaction."""
        entry = Entry(author, at_ms, event, op_id=op_id, members=tuple(members), answer=answer)
        transaction = None
        if writes:
            try:
                transaction = self._head.write(writes)
            except BaseException:
                self._rebuild_head()
                raise
        return self._accept(entry, transaction)

    def _accept(self, entry: Entry, transaction: Transaction | None) -> Change:
        delta = transaction.delta if transaction else {}
        events: list[DomainEvent] = []
        before = self._head_view
        if delta and self.name.kind is DocKind.WORKOUT:
            names = {id_: member.name for id_, member in self.members.items()}
            names[entry.author.user_id] = entry.author.name
            events = workout.project(self.name.id, before, delta, names)
            entry = replace(entry, scores=tuple(workout.scores(before, delta)))
        elif delta:
            events = template.project(self.name.id, before, delta)
        apply_delta(self._head_view, delta)
        change = Change(entry, transaction.update if transaction else None, delta, events)
        self._waiting.append(change)
        return change

    # -- into the log -----------------------------------------------------------------------

    def take_batch(self) -> Batch | None:
        """All that waits, merged into one log record; None if nothing does, or if the one before
        has not come back yet."""
        if self._in_flight is not None or not self._waiting:
            return None
        changes, self._waiting = self._waiting, []
        updates = [change.update for change in changes if change.update is not None]
        update = updates[0] if len(updates) == 1 else merge_updates(*updates) if updates else None
        append = Append(
            self.name,
            update,
            tuple(change.entry for change in changes),
            self._summary(),
            creates=not self._exists,
        )
        self._in_flight = Batch(append, changes)
        return self._in_flight

    def commit(self, batch: Batch, stored: Stored) -> Committed:
        """The batch is durable: show it.

        Returns: what the members are to be told.
        """
        if batch is not self._in_flight:
            raise Conflict("only the batch that was taken last can be committed")
        self._in_flight = None
        self._exists = True
        self.seq = stored.seq
        update = batch.append.update
        if update is not None:
            self._committed.load(update)
        events: list[DomainEvent] = []
        for set_id, won in stored.awards.items():
            self.awards.setdefault(set_id, {}).update(won)
        for change in batch.changes:
            apply_delta(self._view, change.delta)
            for member in change.entry.members:
                self._set_member(member)
            for event in change.events:
                if event.set_id is not None:
                    event.payload["is_pr"] = bool(stored.awards.get(event.set_id))
                events.append(event)
        senders = {change.entry.author.connection_id for change in batch.changes if change.update}
        return Committed(
            self.name,
            stored.seq,
            update,
            next(iter(senders)) if len(senders) == 1 else None,
            events,
            touches_progress=any(
                root in ("sets", "exercises")
                for change in batch.changes
                for root, _ in change.delta
            ),
        )

    def compacted(self, upto: int) -> None:
        """A snapshot of the first `upto` positions stands in the store now."""
        self.snapshot_seq = max(self.snapshot_seq, upto)

    def _set_member(self, member: Member) -> None:
        if member.role:
            self.members[member.user_id] = member
        else:
            self.members.pop(member.user_id, None)

    def _summary(self) -> Summary:
        meta = self._head_view["meta"]
        owner_id = meta.get("owner_id")
        times = {
            key: value if isinstance(value := meta.get(key), int) else None
            for key in ("created_at", "started_at", "ended_at")
        }
        return Summary(
            self.name,
            UserId(owner_id if isinstance(owner_id, str) else ""),
            str(meta.get("title", "")),
            str(meta["status"]) if "status" in meta else None,
            str(meta["mode"]) if "mode" in meta else None,
            str(meta.get("visibility", "private")),
            **times,
        )

    def _rebuild_head(self) -> None:
        self._head, self._head_view = self._build_head()

    def _build_head(self) -> tuple[Replica, View]:
        """The head anew: the committed document and all admitted changes that it lacks."""
        head = Replica(self.name.kind, self._committed.diff())
        changes = [*(self._in_flight.changes if self._in_flight else ()), *self._waiting]
        for change in changes:
            if change.update is not None:
                head.load(change.update)
        return head, head.read()
