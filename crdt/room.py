"""One document in memory: changes in, effects out. No I/O, no clock, no sockets.

A room keeps its document twice. The *head* holds every change that was admitted; the *committed*
replica holds what the log holds, and is all that anybody outside is ever shown. Between the two
stand the batches that wait for their append:

    admit / edit ──▶ head ──▶ waiting ──take_batch──▶ in flight ──commit──▶ committed ──▶ effects

So a change is checked against everything that came before it, nothing is shown before it is
durable, and what arrives during an append is merged into the next one. A change that is refused
leaves the head as it was: where native code had to be asked first, the head is built anew.

What another instance wrote (`receive`) goes into both. A change of ours that is on its way then
leaves something else behind than it did on the head; what that is shows when it is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pycrdt import merge_updates

from crdt import admission, erasure, template, workout
from crdt.access import Member, Right, User, rights_of
from crdt.errors import Conflict, Forbidden, RepSyncError, TooLarge
from crdt.events import DomainEvent
from crdt.ids import ConnectionId, DocKind, DocName, UserId
from crdt.ports import (
    SERVER,
    Answer,
    Append,
    Author,
    Awards,
    Committed,
    Entry,
    Foreign,
    Loaded,
    Part,
    Stored,
    Summary,
)
from crdt.progress import progress
from crdt.records import Award, Score
from crdt.replica import (
    EMPTY_STATE_VECTOR,
    EMPTY_UPDATE,
    GONE,
    Delta,
    Put,
    Remove,
    Replica,
    Transaction,
    View,
    Write,
    apply_delta,
)

MAX_UNAPPLIED = 64

BY_CLIENT = "sync-update"
"""What the log calls a change that a Yjs client made; others are called by their intent."""


ERASE = "user:erase"
"""The same of what the server takes out when somebody is erased."""

NOWHERE = ConnectionId("")


@dataclass(slots=True)
class Change:
    """One admitted change on its way into the log."""

    entry: Entry
    update: bytes | None
    delta: Delta
    events: list[DomainEvent]
    touches_access: bool
    """Whether it changes who may do what."""
    planned_at: int
    """The last position that was here when it was admitted."""
    is_overtaken: bool = False
    """Whether somebody else's record has come before it since."""

    @property
    def changes_status(self) -> bool:
        return ("meta", "status") in self.delta


class Batch(NamedTuple):
    """What goes into the log as one record."""

    append: Append
    changes: Sequence[Change]


class Room:
    """A document and who may use it, opened from what the store holds (None for a new one).

    Args:
        is_shared: whether other instances write to its log, too.
    """

    def __init__(
        self,
        name: DocName,
        loaded: Loaded | None = None,
        limits: admission.DocumentLimits = admission.DocumentLimits(),  # noqa: B008 - immutable
        *,
        is_shared: bool = False,
    ) -> None:
        self.name = name
        self._is_shared = is_shared
        self._limits = limits
        self.seq = loaded.seq if loaded else 0
        self.snapshot_seq = loaded.snapshot_seq if loaded else 0
        self.members: dict[UserId, Member] = dict(loaded.members) if loaded else {}
        self.roster: dict[UserId, Member] = dict(self.members)
        """Who the members will be once all that was admitted is durable: what a change of the
        membership must be planned on, as an edit on `head`."""
        self._access_changes = 0
        """How many of the changes on their way into the log change who may do what."""
        self._names = {id_: member.name for id_, member in self.members.items()}
        self.awards: dict[str, dict[str, Award]] = (
            {set_id: dict(won) for set_id, won in loaded.awards.items()} if loaded else {}
        )
        self.client_ids = dict(loaded.client_ids) if loaded else {}
        self._removed_exercises = set(loaded.removed_exercises) if loaded else set()
        # What the document takes at most: its size when last measured, and all that came since.
        self._size_bytes = 0
        self._measured_bytes = 0
        self._exists = loaded is not None
        self._has_gap = False
        self._replica = Replica(name.kind, is_watched=is_shared)
        self._unapplied: list[bytes] = []
        if loaded is not None:
            if loaded.snapshot is not None:
                self._replica.load(loaded.snapshot)
            self._replica.load(*loaded.updates)
            self._size_bytes = len(loaded.snapshot or b"") + sum(map(len, loaded.updates))
        self._view = self._replica.read()
        self._listed_as = summary_of(self.name, self._view) if self._exists else None
        self._waiting: list[Change] = []
        self._in_flight: Batch | None = None
        self._built: tuple[Replica, View] | None = None

    # -- reading ----------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """The committed document as plain values; read it, do not write to it."""
        return self._view

    @property
    def head(self) -> View:
        """The document with all admitted changes: what an edit must be planned on."""
        return self._head_view

    @property
    def _head(self) -> Replica:
        return self._built_head()[0]

    @property
    def _head_view(self) -> View:
        return self._built_head()[1]

    def _built_head(self) -> tuple[Replica, View]:
        if self._built is None:  # as long as nobody changes anything, which is most rooms
            self._built = self._build_head()
        return self._built

    def state_vector(self) -> bytes:
        return self._committed().state_vector()

    def diff(self, state_vector: bytes = EMPTY_STATE_VECTOR) -> bytes:
        """What a peer lacks of the committed document. Raises Invalid on a bad vector."""
        return self._committed().diff(state_vector)

    def rights(self, user: User) -> Right:
        """What a user may do now. What is being given counts once it is durable; what is being
        taken is gone at once, so that nothing by that right stands in the log behind the taking.
        """
        rights = rights_of(user, self.name.kind, self._view["meta"], self.members)
        if self._access_changes:
            rights &= rights_of(user, self.name.kind, self._head_view["meta"], self.roster)
        return rights

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

    @property
    def is_spoiled(self) -> bool:
        """Whether something could not be applied, so that the room must be read again."""
        return self._replica.spoiled

    @property
    def in_flight(self) -> int:
        """How many changes are on their way into the log."""
        return len(self._in_flight.changes) if self._in_flight is not None else 0

    # -- changes in -------------------------------------------------------------------------

    def admit(self, update: bytes, author: Author, at_ms: int, rights: Right) -> Change | None:
        """Take in a Yjs client's update.

        Returns: the change, to be taken with the next batch; None if it brought nothing new
            (a client that may only read answers a sync with what the server has already).
        Raises:
            Invalid, Unsynced, Forbidden: the update is refused whole, the room is as before.
        """
        if update == EMPTY_UPDATE:
            return None  # what most clients answer to a sync-step-1
        if Right.WRITE not in rights and self._head.brings_news(update):
            raise Forbidden("this role can read the document only")
        self._demand_space(update)
        try:
            transaction = self._head.apply(update)
        except RepSyncError:
            if self._head.spoiled:
                self._rebuild_head()
            raise
        if transaction is None:
            return None
        try:
            before = self._head_view
            self._demand_own(transaction.writers, author.user_id)
            admission.check(self.name.kind, author.user_id, rights, before, transaction.delta)
            if self.name.kind is DocKind.WORKOUT:
                admission.check_references(before, transaction.delta, self._removed_exercises)
            return self._accept(transaction, author, at_ms, BY_CLIENT)
        except BaseException:
            self._rebuild_head()
            raise

    def _demand_own(self, client_ids: Iterable[int], user_id: UserId) -> None:
        """Raises Forbidden if one of these Yjs client IDs belongs to somebody else."""
        for client_id in client_ids:
            if self.client_ids.get(client_id, user_id) != user_id:
                raise Forbidden(f"the Yjs client ID {client_id} is somebody else's")

    def _demand_space(self, update: bytes = b"") -> None:
        """Raises TooLarge if the document is full; what only deletes is let through."""
        most = self._limits.max_bytes
        if self._size_bytes + len(update) <= most or update.startswith(b"\x00"):
            return
        # What was replaced and deleted takes no space any more. Looked up for every sixteenth that
        # comes, not for every update that a full document is sent.
        if self._size_bytes - self._measured_bytes > most // 16:
            self._size_bytes = self._measured_bytes = len(self._head.diff())
        # A client may well send what is here already, which takes none either.
        news = self._head.lacking(update) if update else b""
        size_bytes = self._size_bytes + len(news)
        if size_bytes > most and not news.startswith(b"\x00"):
            raise TooLarge("the document", size_bytes, most)

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
        rights: Right | None = None,
    ) -> Change:
        """Carry out an intent's writes, planned on `head` and `roster`, in one transaction.

        Args:
            rights: the author's; None for what the server does of its own accord.
        Raises:
            Forbidden, Locked, Conflict: the author may not do this; the room is as before.
        """
        kind, transaction = self.name.kind, None
        if rights is not None and members:
            meta = self._head_view["meta"]
            admission.check_members(kind, author.user_id, rights, meta, self.roster, members)
        if writes and not all(isinstance(write, Remove) for write in writes):
            self._demand_space()
        try:
            if writes:
                before = self._head_view
                transaction = self._head.write(writes)
                if rights is not None and transaction is not None:
                    delta = transaction.delta
                    admission.check_intent(kind, author.user_id, rights, before, delta)
            return self._accept(transaction, author, at_ms, event, op_id, tuple(members), answer)
        except BaseException:
            self._rebuild_head()
            raise

    def _accept(
        self,
        transaction: Transaction | None,
        author: Author,
        at_ms: int,
        event: str,
        op_id: str | None = None,
        members: tuple[Member, ...] = (),
        answer: Callable[[Stored], Answer] | None = None,
    ) -> Change:
        update, delta, writers = transaction or (None, {}, ())
        events: list[DomainEvent] = []
        scores: list[Score] = []
        before = self._head_view
        admission.check_counts(self._limits, before, delta)
        if delta:
            self._names[author.user_id] = author.name
            events = self._project(before, delta)
            if self.name.kind is DocKind.WORKOUT:
                scores = workout.scores(before, delta)
        removed = [
            key for (root, key), value in delta.items() if root == "exercises" and value is GONE
        ]
        entry = Entry(
            author,
            at_ms,
            event,
            op_id,
            scores,
            members,
            answer,
            self._bind(writers, author.user_id if event == BY_CLIENT else SERVER),
            removed,
        )
        apply_delta(before, delta)
        self._removed_exercises.update(removed)
        self._size_bytes += len(update or b"")
        touches_access = bool(members) or ("meta", "visibility") in delta
        change = Change(entry, update, delta, events, touches_access, self.seq)
        self._waiting.append(change)
        for member in members:
            _set_member(self.roster, member)
        self._access_changes += touches_access
        return change

    def _bind(self, client_ids: Iterable[int], user_id: UserId) -> Sequence[tuple[int, UserId]]:
        """Make new Yjs client IDs this user's. Returns: those that were."""
        bound = [(id_, user_id) for id_ in client_ids if id_ not in self.client_ids]
        self.client_ids.update(bound)
        return bound

    # -- taking a person out ----------------------------------------------------------------

    def part_of(self, user_id: UserId) -> erasure.Part:
        """What the document has of a person, with all that was admitted."""
        ids = self._client_ids_of(user_id)
        return erasure.part_of(self.name.kind, self.head, self._head.diff(), user_id, ids)

    def heir_of(self, user_id: UserId) -> Member | None:
        """Who goes on with the document if this person owns it; None if it is theirs alone."""
        return erasure.heir(self.name.kind, self.head, self.roster, user_id)

    def erase(self, user_id: UserId, at_ms: int) -> tuple[erasure.Part, list[Change]]:
        """Take out what the document has of a person; one that they own goes on with the heir.

        Their place in it is forgotten when this is durable, by `forget`.

        Returns: what there was, and the changes, one at least: what comes after stands behind it.
        Raises:
            Conflict: it is theirs alone.
        """
        part, meta, author = (
            self.part_of(user_id),
            self.head["meta"],
            Author(SERVER, "", "", NOWHERE),
        )
        known = self.roster.get(user_id)
        members = [] if known is None else [Member(user_id, "", known.name)]
        writes: list[Write] = [Remove(("sets", id_)) for id_ in part.sets]
        writes += [Remove(("timers", key)) for key in part.timers]
        owner_id = meta.get("owner_id", "")
        if owner_id == user_id:
            heir = self.heir_of(user_id)
            if heir is None:
                raise Conflict("the document is theirs alone")
            owner_id = heir.user_id
            members.append(Member(heir.user_id, "owner", heir.name))
            named = {user_id, known.name if known else user_id}
            title = str(meta.get("title", ""))
            if any(name.casefold() in title.casefold() for name in named):
                writes.append(Put(("meta", "title"), self.name.kind.value.title()))
        # Written in any case, so that there is a record for a snapshot to stand behind.
        writes.append(Put(("meta", "owner_id"), owner_id))
        changes = []
        try:
            written = self._head.write(writes)
            changes.append(self._accept(written, author, at_ms, ERASE, members=tuple(members)))
            if part.typed != EMPTY_UPDATE and (typed := self._head.apply(part.typed)) is not None:
                changes.append(self._accept(typed, author, at_ms, ERASE))
        except BaseException:
            self._rebuild_head()
            raise
        return part, changes

    def forget(self, user_id: UserId, sets: Iterable[str]) -> None:
        """Let nothing of a person be left of what was deleted: not in the committed document, nor
        beside it. Nobody can write under their Yjs client IDs from now on.

        Args:
            sets: the keys of all sets that were theirs.
        """
        ids = self._client_ids_of(user_id)
        keys: dict[str, set[str]] = {"sets": set(sets), "timers": {user_id}}
        # What the server wrote for somebody and has deleted since, it cannot tell whose it was.
        written = [*ids, *self._client_ids_of(SERVER)]
        state = erasure.forget_keys(self._committed().diff(), keys, written)
        self._replica = Replica(self.name.kind, state, is_watched=self._is_shared)
        self._rebuild_head()
        self._size_bytes = self._measured_bytes = len(state)
        self.client_ids.update(dict.fromkeys(ids, SERVER))
        self._names.pop(user_id, None)
        for set_id, won in list(self.awards.items()):
            if any(award.user_id == user_id for award in won.values()):
                del self.awards[set_id]

    def _client_ids_of(self, user_id: UserId) -> list[int]:
        return [id_ for id_, whose in self.client_ids.items() if whose == user_id]

    # -- into the log -----------------------------------------------------------------------

    def take_batch(self) -> Batch | None:
        """All that waits, merged into one log record; None if nothing does, or if the one before
        has not come back yet."""
        if self._in_flight is not None or not self._waiting:
            return None
        summary = self._new_summary(self._waiting)
        changes, self._waiting = self._waiting, []
        updates = [change.update for change in changes if change.update is not None]
        update = updates[0] if len(updates) == 1 else merge_updates(*updates) if updates else None
        append = Append(
            self.name,
            update,
            tuple(change.entry for change in changes),
            summary,
            creates=not self._exists,
            status_seen=min(
                (change.planned_at for change in changes if change.changes_status), default=None
            ),
            parts=tuple(Part(change.update, change.changes_status) for change in changes),
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
        is_new, self._exists = not self._exists, True
        update = batch.append.update
        if not self._is_shared and stored.seq != self.seq + (update is not None):
            self._has_gap = True
        self.seq = max(stored.seq, self.seq)
        self.award(stored.awards)
        # What it left behind on the head is not what it leaves behind here, if others came first.
        overtaken: Delta | None = None
        if update is not None and any(change.is_overtaken for change in batch.changes):
            overtaken = self._committed().follow(update)
        elif update is not None:
            self._unapplied.append(update)
            if len(self._unapplied) >= MAX_UNAPPLIED:
                self._committed()
        events: list[DomainEvent] = []
        if overtaken is not None:
            events += self._show(overtaken, stored.awards)
        for index, change in enumerate(batch.changes):
            won_by_change = stored.of(index).awards
            if overtaken is None:
                apply_delta(self._view, change.delta)
            if change.touches_access:
                self._access_changes -= 1
                told = self._set_members(change.entry.members)
                events.extend(() if is_new else told)
            if overtaken is None:
                events += _with_awards(change.events, won_by_change)
        senders = {change.entry.author.connection_id for change in batch.changes if change.update}
        return Committed(
            self.name,
            stored.seq,
            update,
            next(iter(senders)) if len(senders) == 1 else None,
            events,
            touches_progress=any(_is_of_progress(change.delta) for change in batch.changes),
            touches_access=any(
                ("meta", "visibility") in change.delta
                or not all(member.role for member in change.entry.members)  # every role reads
                for change in batch.changes
                if change.touches_access
            ),
        )

    def receive(self, record: Foreign) -> Committed:
        """Take in a log record that another instance wrote: it was admitted there.

        Returns: what the members are to be told.
        Raises:
            Invalid, Unsynced: it cannot be applied; the room must be read again.
        """
        self.seq = max(record.seq, self.seq)
        self._names.update(record.names)
        self.client_ids.update(record.client_ids)
        self._removed_exercises.update(record.removed_exercises)
        self.award(record.awards)
        on_their_way = self._on_their_way()
        events: list[DomainEvent] = []
        delta: Delta = {}
        if record.update is not None:
            self._size_bytes += len(record.update)
            for change in on_their_way:
                change.is_overtaken = True
            delta = self._committed().follow(record.update)
            if self._built is not None:
                head, head_view = self._built
                apply_delta(head_view, head.follow(record.update))
            events = self._show(delta, record.awards)
        events += self._set_members(record.members)
        for member in (*record.members, *(m for c in on_their_way for m in c.entry.members)):
            _set_member(self.roster, member)
        touches_access = ("meta", "visibility") in delta or not all(
            member.role for member in record.members
        )
        return Committed(
            self.name,
            record.seq,
            record.update,
            None,
            events,
            touches_progress=_is_of_progress(delta),
            touches_access=touches_access,
        )

    def since(self, other: Room) -> Committed:
        """What members of another room of the same document are to be told, who have seen it like
        that last: not all Yjs clients know that they have to sync again. The awards of what was
        missed are known here.
        """
        before = other.view
        delta: Delta = {
            (root, key): self._view[root].get(key, GONE)
            for root, items in self._view.items()
            for key in items.keys() | before[root].keys()
            if items.get(key, GONE) != before[root].get(key, GONE)
        }
        events = self._told(before, delta, self.awards)
        # What an unreadable record has left behind may be anything.
        missed = self.diff(EMPTY_STATE_VECTOR if other.is_spoiled else other.state_vector())
        update = None if missed == EMPTY_UPDATE else missed
        return Committed(self.name, self.seq, update, None, events, True, False)

    def award(self, awards: Awards) -> None:
        """Sets have won these records; what they had won before stands."""
        for set_id, won in awards.items():
            self.awards[set_id] = {**won, **self.awards.get(set_id, {})}

    def _project(self, before: View, delta: Delta) -> list[DomainEvent]:
        """The events that a change of `before` causes, without what they won."""
        if self.name.kind is DocKind.WORKOUT:
            return workout.project(self.name.id, before, delta, self._names)
        return template.project(self.name.id, before, delta)

    def _told(self, before: View, delta: Delta, awards: Awards) -> list[DomainEvent]:
        return _with_awards(self._project(before, delta), awards)

    def _show(self, delta: Delta, awards: Awards) -> list[DomainEvent]:
        """Change the view. Returns: what there is to tell of that."""
        if not delta:
            return []
        events = self._told(self._view, delta, awards)
        apply_delta(self._view, delta)
        if self._listed_as is not None and any(root == "meta" for root, _ in delta):
            self._listed_as = summary_of(self.name, self._view)
        return events

    @property
    def compactable(self) -> int:
        """How many log records this room could make a snapshot of: none, if somebody else wrote
        some that it has not seen, or may have."""
        return 0 if self._has_gap or self._is_shared else self.seq - self.snapshot_seq

    def compacted(self, upto: int) -> None:
        """A snapshot of the first `upto` positions stands in the store now."""
        self.snapshot_seq = max(self.snapshot_seq, upto)

    def _set_members(self, members: Iterable[Member]) -> list[DomainEvent]:
        """Returns: what there is to tell of that."""
        kind = self.name.kind.value
        told = []
        for member in members:
            self._names[member.user_id] = member.name
            if _set_member(self.members, member):
                payload = {
                    f"{kind}_id": self.name.id,
                    "user": {"id": member.user_id, "name": member.name},
                    "role": member.role or None,
                }
                told.append(DomainEvent(f"{kind}:member:changed", payload))
        return told

    def _new_summary(self, changes: Sequence[Change]) -> Summary | None:
        """The document's summary, if these changes make it another one."""
        if self._exists and not any(
            root == "meta" for change in changes for root, _ in change.delta
        ):
            return None
        summary = summary_of(self.name, self._head_view)
        if summary == self._listed_as:
            return None
        self._listed_as = summary
        return summary

    def _committed(self) -> Replica:
        """The committed replica. Updates are applied to it when somebody asks for it, several in
        one transaction: members who are in the room have got them already."""
        if self._unapplied:
            self._replica.load(*self._unapplied)
            self._unapplied.clear()
        return self._replica

    def _on_their_way(self) -> Sequence[Change]:
        """What was admitted and is not durable yet, in turn."""
        return [*(self._in_flight.changes if self._in_flight else ()), *self._waiting]

    def _rebuild_head(self) -> None:
        self._built = None

    def _build_head(self) -> tuple[Replica, View]:
        """The head anew: the committed document and all admitted changes that it lacks."""
        head = Replica(self.name.kind, self._committed().diff())
        for change in self._on_their_way():
            if change.update is not None:
                head.load(change.update)
        return head, head.read()


def summary_of(doc: DocName, view: View) -> Summary:
    """What lists show of a document that looks like this."""
    meta = view["meta"]
    owner_id = meta.get("owner_id")
    times = {
        key: value if isinstance(value := meta.get(key), int) else None
        for key in ("created_at", "started_at", "ended_at")
    }
    return Summary(
        doc,
        UserId(owner_id if isinstance(owner_id, str) else ""),
        str(meta.get("title", "")),
        str(meta["status"]) if "status" in meta else None,
        str(meta["mode"]) if "mode" in meta else None,
        str(meta.get("visibility", "private")),
        **times,
    )


def _with_awards(events: list[DomainEvent], awards: Awards) -> list[DomainEvent]:
    """The same events, which say of each set whether it won a record."""
    for event in events:
        if event.set_id is not None:
            event.payload["is_pr"] = bool(awards.get(event.set_id))
    return events


def _is_of_progress(delta: Delta) -> bool:
    """Whether it changes how far somebody has come."""
    return any(
        root in ("sets", "exercises") or (root, key) == ("meta", "status") for root, key in delta
    )


def _set_member(members: dict[UserId, Member], member: Member) -> bool:
    """Returns: whether that changed something."""
    known = members.get(member.user_id)
    if member.role:
        members[member.user_id] = member
        return known != member
    members.pop(member.user_id, None)
    return known is not None
