"""What this instance has of the shared log: the documents that it hosts, and the way in and out.

**What is promised.** What others append comes to the `Inlet` in the order of the log, without a gap
and once; what cannot be filled in is said (`outdated`), and the room is read again. An append is in
the shared log when it returns, or, while that is away or slow, on this instance's disk: then it is
appended later, as the same one (`origin` and `n`), and nothing of the document overtakes it.

**Who owns what.** For each hosted document this owns where we stand in its log, and the *tail*: the
records that are not known to be in MongoDB. A Redis that has lost them gets them from here. A lock
for each document orders appending, reading on and healing; what the channel brings comes between.

**What fails.** Redis away or slow: `local` durability, for all documents, until it answers fast
again. MongoDB away: the tail grows up to a limit, then changes are `Unavailable`. A record
that cannot be read: its document is read again, and is `Unavailable` if that does not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from crdt.errors import (
    Conflict,
    DocumentDamaged,
    Gone,
    NotFound,
    Outdated,
    Unavailable,
)
from crdt.ids import DocName
from crdt.ports import Answer, Append, Awards, Entry, Foreign, Inlet, Loaded, Stored
from crdt.records import Award
from crdt.revocations import Revocation
from server.breaker import BreakerState
from server.cluster.books import Books
from server.cluster.bus import Bus, explain
from server.cluster.connection import AWAY
from server.cluster.envelope import Sealer, Update
from server.cluster.late import Late
from server.cluster.log import (
    EpochChanged,
    Exists,
    Missing,
    Outpaced,
    Record,
    RedisLog,
    Repeated,
    Unfounded,
)
from server.cluster.memory import LOOK_EVERY_S, Emptied, RedisMemory
from server.cluster.mover import Mover
from server.cluster.record import (
    answers_in,
    foreign_of,
    open_record,
    seal_record,
    with_parts,
    with_records,
)
from server.storage import mongo_log
from server.storage.mongo import Last, MongoStore
from server.storage.mongo_log import Damaged
from server.storage.spool import Spool, Spooled
from server.tasks import end

log = logging.getLogger(__name__)

EPOCH_STRIDE = 100_000
"""How far a new epoch's positions are from MongoDB's last: more than may be on their way there, so
that who writes there late, from an old epoch, meets none of the new one's."""

APPEND_TIMEOUT_S = 0.25
"""Longer than this no caller waits for Redis."""
SLOW_S = 0.1
"""Redis is back when it answers faster than this."""
HEAL_TIMEOUT_S = 5.0
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 1.0
ANNOUNCE_EVERY_S = 0.2
LOAD_ATTEMPTS = 5
NOTICE_TIMEOUT_S = 1.0
HEALED_AT_ONCE = 16

MAX_TAIL_SHARE = 16
"""One document may have a sixteenth of what all together may have in the shared log alone."""


_NOT_NOW: tuple[type[Exception], ...] = (*AWAY, Unavailable)
_UNDECIDED: tuple[type[Exception], ...] = (*AWAY, Unfounded, EpochChanged)


ByEntry = Sequence[Sequence[Award]]
"""The awards that each entry of an append wins."""


class DatabaseAway(Unavailable):
    """MongoDB cannot say where a log goes on."""


@contextmanager
def _asking_the_database() -> Iterator[None]:
    """Raises DatabaseAway where the block would raise Unavailable."""
    try:
        yield
    except Unavailable as exc:
        raise DatabaseAway("the database is away", retry_after_ms=1_000) from exc


class _Held(NamedTuple):
    """A record that is not known to be in MongoDB."""

    pos: int
    origin: str
    n: int
    data: bytes


@dataclass(slots=True)
class _Hosted:
    """Where we stand in one document's log."""

    doc: DocName
    epoch: str | None = None
    """None as long as Redis has not told."""
    pos: int = 0
    """The last position that the room has got, or that is our own."""
    persisted: int = 0
    """Up to where it is known to be in MongoDB, in this epoch."""
    listed_at: int = 0
    local: int = 0
    """How many of its records are in the spool."""
    given: set[tuple[str, str]] = field(default_factory=set)
    """(set id, type) of the records that sets have won here."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """Those of the records in the spool."""
    tail: deque[_Held] = field(default_factory=deque)
    tail_bytes: int = 0
    is_unsure: bool = False
    """The channel may have left something out: until it is read, what is said of our positions
    may be of others' records."""
    is_behind: bool = False
    """Redis was away: what is appended goes to the spool until this is healed."""
    is_short: bool = False
    """The room lacks something of what stands before `pos`: it hears of nothing more, and is to be
    read again as soon as the spool is empty, and all others have given back what they hold."""
    is_given_up: bool = False
    """The room lacks something of what stands before `pos`, and is being read again."""
    arriving: list[Update] | None = None
    """What the channel brings while the document is being read."""


class Replicator:
    """The log of all documents that are in memory here.

    Args:
        origin: names this life of this process.
        max_tails_bytes: what may be in the shared log alone, and in memory here.
    """

    def __init__(
        self,
        redis_log: RedisLog,
        books: Books,
        bus: Bus,
        store: MongoStore,
        spool: Spool,
        mover: Mover,
        sealer: Sealer,
        *,
        origin: str,
        max_tails_bytes: int,
    ) -> None:
        self._log = redis_log
        self._books = books
        self._bus = bus
        self._store = store
        self._spool = spool
        self._mover = mover
        self._sealer = sealer
        self._origin = origin
        self._max_tails_bytes = max_tails_bytes
        self._memory = RedisMemory(redis_log, store.is_empty, self.went_away)
        self._late = Late(redis_log, books, store, self._memory, sealer)
        self._inlet: Inlet | None = None
        self._hosted: dict[DocName, _Hosted] = {}
        self._channels: dict[str, _Hosted] = {}
        self._locks: WeakValueDictionary[DocName, asyncio.Lock] = WeakValueDictionary()
        self._numbers = itertools.count(1)
        self._tails_bytes = 0
        self._away_since: float | None = None
        self._why_away: str | None = None
        self._why_behind: str | None = None
        """Why some documents are not up with their logs, though Redis answers."""
        self._is_healing = False
        self._unmoved: set[DocName] = set()
        """Written to since the workers were told last."""
        self._has_unmoved = asyncio.Event()
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._healing: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[Any]] = set()

    def open(self, inlet: Inlet) -> None:
        """Begin: what was left in the spool by an earlier life is appended as soon as it can be."""
        self._inlet = inlet
        self._healing = asyncio.create_task(self._heal(), name="shared log")
        self._announcing = asyncio.create_task(self._announce(), name="announcing")
        self._watching = asyncio.create_task(self._watch(), name="emptying")
        if self._spool.count:
            self._wake.set()

    async def close(self) -> None:
        await end(*self._chores, self._healing, self._announcing, self._watching)
        for hosted in list(self._hosted.values()):
            self._displace(hosted)

    # -- how it is --------------------------------------------------------------------------

    @property
    def is_away(self) -> bool:
        """Whether appends go to the spool."""
        return self._away_since is not None

    @property
    def why_away(self) -> str | None:
        return self._why_away or self._why_behind

    @property
    def breaker(self) -> BreakerState:
        """The same as a breaker's state: open while appends go to the spool, half open while Redis
        answers, and is given what is in there."""
        if self._away_since is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._is_healing else BreakerState.OPEN

    @property
    def hosted_count(self) -> int:
        return len(self._hosted)

    @property
    def tails_bytes(self) -> int:
        """What is not known to be in MongoDB, of all documents here."""
        return self._tails_bytes

    @property
    def max_tails_bytes(self) -> int:
        return self._max_tails_bytes

    async def demand_memory(self) -> None:
        """Before something is read anew into Redis that it has not: see that it was not emptied.

        Raises: one of `AWAY`.
        """
        if not self.is_away:  # else only what is held here is being given back
            await self._memory.look()

    def went_away(self, exc: BaseException) -> None:
        """Redis does not do what it is asked, or not soon enough."""
        self._why_away = _explain(exc)
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("the shared log is away", extra={"cause": self._why_away})
        for hosted in self._hosted.values():
            hosted.is_behind = True
        self._wake.set()

    # -- opening ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _locked(self, doc: DocName) -> AsyncIterator[None]:
        async with self._locks.setdefault(doc, asyncio.Lock()):
            yield

    async def load(self, doc: DocName) -> Loaded | None:
        """The document as it is now; what comes after that goes to the inlet.

        Raises:
            Unavailable: MongoDB cannot be read, or a record is damaged.
        """
        async with self._locked(doc):
            before = self._hosted.get(doc)
            hosted = _Hosted(doc, arriving=[])
            self._place(hosted)
            try:
                loaded = await self._load(hosted, before)
            except BaseException as exc:
                if before is None:
                    self._displace(hosted)
                else:  # what it holds may be nowhere else
                    before.is_given_up = True
                    self._place(before)
                    self.release(doc)  # unless somebody tries again, as who is in the room will
                if isinstance(exc, Damaged):
                    log.exception("a record is damaged", extra={"document": str(doc)})
                    raise DocumentDamaged(f"{doc} is damaged in the log") from exc
                raise
            if loaded is None:
                self._displace(hosted)
            return loaded

    def _place(self, hosted: _Hosted) -> None:
        """Make this what we have of its document."""
        before = self._hosted.get(hosted.doc)
        self._tails_bytes += hosted.tail_bytes - (before.tail_bytes if before else 0)
        self._hosted[hosted.doc] = self._channels[self._log.channel(hosted.doc)] = hosted

    def _displace(self, hosted: _Hosted) -> None:
        """Have nothing of its document any more."""
        if self._hosted.get(hosted.doc) is not hosted:
            return
        channel = self._log.channel(hosted.doc)
        del self._hosted[hosted.doc], self._channels[channel]
        self._bus.unsubscribe(channel)
        self._tails_bytes -= hosted.tail_bytes
        if hosted.epoch is not None and not hosted.tail and not hosted.local:
            self._chore(self._retire(hosted.doc, hosted.pos))

    async def _load(self, hosted: _Hosted, before: _Hosted | None) -> Loaded | None:
        if not self.is_away:
            try:
                await self._memory.look()
                if before is not None and before.tail:
                    await self._see_to_tail(before)
                return await self._load_shared(hosted)
            except AWAY as exc:
                self.went_away(exc)
        if self._memory.is_settling:
            # Others hold what is neither in Redis nor in MongoDB, and are giving it back.
            raise Unavailable("the shared log is being put together again", retry_after_ms=500)
        # What others have in Redis alone is not here; it comes when that is back.
        last = await self._store.last(hosted.doc)
        loaded = await self._store.load(hosted.doc)
        if loaded is None or last is None:
            return None
        hosted.is_behind = True
        hosted.pos = last.pos
        hosted.listed_at = last.listed_at
        hosted.given = _prizes(loaded.awards)
        if before is not None:
            # What we have had from there stays with us, and where we stood, if we had it all.
            if not before.is_given_up and not before.is_short:
                hosted.epoch, hosted.pos, hosted.is_unsure = before.epoch, before.pos, True
            foreign = [
                foreign_of(open_record(self._sealer, hosted.doc, Record(*held)), held.pos)
                for held in before.tail
            ]
            loaded = with_records(replace(loaded, seq=hosted.pos), foreign)
            hosted.tail, hosted.tail_bytes = before.tail, before.tail_bytes
            self._tails_bytes += hosted.tail_bytes
        spooled = await self._spool.first(hosted.doc, limit=max(1, self._spool.count))
        hosted.arriving = None
        self._wake.set()
        return self._with_spooled(hosted, loaded, spooled)

    async def _see_to_tail(self, hosted: _Hosted) -> None:
        """See to it that the shared log has what is held here, before that is let go."""
        head = await self._log.head(hosted.doc)
        if head is None or head.epoch != hosted.epoch:
            await self._enter_epoch(hosted)
        elif head.pos < hosted.pos:
            await self._go_on_after_loss(hosted)

    async def _load_shared(self, hosted: _Hosted) -> Loaded | None:
        doc = hosted.doc
        await self._subscribe(doc)
        for _ in range(LOAD_ATTEMPTS):
            head = await self._log.head(doc)
            if head is not None:
                await self._mover.move(doc)
            last = await self._store.last(doc)
            loaded = await self._store.load(doc)
            if loaded is None or last is None:
                return None
            if head is None:
                head = await self._log.found(doc, last.pos + EPOCH_STRIDE, exists=True)
            records = [record async for record in self._log.read_on(doc, last.pos)]
            spooled = await self._spool.first(doc, limit=max(1, self._spool.count))
            if last != await self._store.last(doc):
                continue  # moved on meanwhile, and maybe trimmed
            hosted.epoch = head.epoch
            hosted.listed_at = last.listed_at
            hosted.pos = max(head.pos, last.pos)
            hosted.given = _prizes(loaded.awards)
            foreign = [self._keep(hosted, record) for record in records]
            arriving, hosted.arriving = hosted.arriving or (), None
            for update in arriving:
                if update.epoch == hosted.epoch and update.pos == hosted.pos + 1:
                    foreign.append(self._keep(hosted, _record(update)))
                elif update.epoch != hosted.epoch or update.pos > hosted.pos:
                    self._chore(self._fill_in(hosted))
            loaded = with_records(replace(loaded, seq=hosted.pos), foreign)
            return self._with_spooled(hosted, loaded, spooled)
        raise Unavailable(f"{doc} changes too fast to be read", retry_after_ms=500)

    async def _subscribe(self, doc: DocName) -> None:
        try:
            await self._bus.subscribe(self._log.channel(doc))
        except Unavailable as exc:
            raise TimeoutError(str(exc)) from exc

    def _with_spooled(self, hosted: _Hosted, loaded: Loaded, spooled: Sequence[Spooled]) -> Loaded:
        """With what this instance has not been able to append yet."""
        drafts = [mongo_log.unpack(one.record) for one in spooled]
        hosted.local = len(drafts)
        for draft in drafts:
            hosted.answers.update(answers_in(draft))
        foreign = [foreign_of(draft, hosted.pos + at) for at, draft in enumerate(drafts, 1)]
        if spooled:
            hosted.is_behind = True  # nothing may overtake them
            self._wake.set()
        return with_records(loaded, foreign)

    def release(self, doc: DocName) -> None:
        """Hand out nothing more of this document. What is not known to be in MongoDB is kept until
        it is: who opens it again while Redis is away finds it there, or here."""
        hosted = self._hosted.get(doc)
        if hosted is None:
            return
        if hosted.tail or hosted.local:
            self._chore(self._linger(hosted))
        else:
            self._displace(hosted)

    async def _linger(self, hosted: _Hosted) -> None:
        while self._hosted.get(hosted.doc) is hosted:  # else it has been opened again
            try:
                await self.persist(hosted.doc)
            except Unavailable:
                await asyncio.sleep(LAST_RETRY_S)
            except Gone:
                self._displace(hosted)
            else:
                self._displace(hosted)

    async def _retire(self, doc: DocName, pos: int) -> None:
        """Leave nothing behind in Redis of a document that nobody has open any more."""
        with contextlib.suppress(*AWAY):
            await asyncio.sleep(1)  # our own subscription has to end first
            if doc not in self._hosted:
                await self._log.retire(doc, pos)

    # -- appending --------------------------------------------------------------------------

    async def append(self, batch: Append) -> Stored:
        """Append to the shared log, or to the spool.

        Raises:
            Conflict, NotFound: see `crdt.ports.Store.append`.
            Unavailable: it can go to neither, or somebody else was faster; read the room again.
        """
        planned_on = self._hosted.get(batch.doc)
        async with self._locked(batch.doc):
            hosted = self._hosted.get(batch.doc)
            if hosted is not None and batch.creates:
                raise Conflict(f"{batch.doc} exists already")
            if hosted is not planned_on or (hosted is None and not batch.creates):
                # Read again meanwhile: the room that this comes from is given up, and the one that
                # there is would not get it, because it is our own.
                raise Outdated
            if hosted is None:
                hosted = await self._begin(batch)
            n = next(self._numbers)
            by_entry: ByEntry | None = None
            if not hosted.is_behind and not self.is_away:
                stored, by_entry = await self._append_shared(hosted, batch, n)
                if stored is not None:
                    return stored
            return await self._append_local(hosted, batch, n, by_entry)

    async def _begin(self, batch: Append) -> _Hosted:
        """Host a document that is about to be made."""
        doc = batch.doc
        if self.is_away:
            raise Unavailable("nothing new can be made now", retry_after_ms=1_000)
        hosted = _Hosted(doc)
        self._place(hosted)
        hosted.listed_at = batch.entries[0].at_ms
        try:
            await self._subscribe(doc)
            await self._memory.look()
            if await self._store.last(doc) is not None:
                raise Conflict(f"{doc} exists already")
            head = await self._log.found(doc, 0, exists=False)
        except AWAY as exc:
            self.release(doc)
            self.went_away(exc)
            raise Unavailable("nothing new can be made now", retry_after_ms=1_000) from exc
        except BaseException:
            self.release(doc)
            raise
        hosted.epoch, hosted.pos = head.epoch, head.pos
        return hosted

    def demand_space(self, doc: DocName) -> None:
        """Raises Unavailable if the database is too far behind, or the spool nearly full. What is
        on its way already is taken, so neither limit is exact."""
        hosted = self._hosted.get(doc)
        if hosted is None:
            return
        most = self._max_tails_bytes
        if self._tails_bytes >= most or hosted.tail_bytes * MAX_TAIL_SHARE >= most:
            raise Unavailable("the database is too far behind", retry_after_ms=2_000)
        if (hosted.is_behind or self.is_away) and self._spool.is_nearly_full:
            raise Unavailable("the shared log has been away for too long", retry_after_ms=2_000)

    async def _append_shared(
        self, hosted: _Hosted, batch: Append, n: int
    ) -> tuple[Stored | None, ByEntry | None]:
        """Returns: None if Redis has not said in time whether it is done; and what was won, if it
        has said that."""
        doc = hosted.doc
        try:
            by_entry = await self._judge(hosted, batch.entries)
        except AWAY as exc:
            self.went_away(exc)
            return None, None
        expected = mongo_log.stored_at(hosted.pos + 1, by_entry)
        draft = mongo_log.draft(batch, by_entry, expected, hosted.listed_at)
        data = seal_record(self._sealer, doc, self._origin, n, draft)
        guards = {} if batch.status_seen is None else {"status": batch.status_seen}
        held = _Held(0, self._origin, n, data)
        answers = answers_in(draft)
        try:
            try:
                pos = await self._put(
                    hosted,
                    held,
                    creates=batch.creates,
                    answers=answers,
                    guards=guards,
                    is_new=True,
                )
            except (Unfounded, EpochChanged):
                await self._memory.look()
                if not await self._enter_epoch(hosted):
                    raise Outdated from None
                pos = await self._put(hosted, held, creates=batch.creates, answers=answers)
        except _UNDECIDED as exc:
            self.went_away(exc)
            return None, by_entry
        except DatabaseAway:
            hosted.is_behind = True
            return None, by_entry
        except Exists as exc:
            self.release(doc)
            raise Conflict(f"{doc} exists already") from exc
        except Missing as exc:
            raise NotFound(f"there is no {doc}") from exc
        except (Repeated, Outpaced) as exc:
            raise Outdated("another instance was faster") from exc
        stored = mongo_log.stored_at(pos, by_entry)
        hosted.given |= _prizes(stored.awards)
        return stored, by_entry

    async def _put(
        self,
        hosted: _Hosted,
        held: _Held,
        *,
        creates: bool = False,
        answers: Mapping[str, bytes] | None = None,
        guards: Mapping[str, int] | None = None,
        is_new: bool = False,
    ) -> int:
        """Append a record in the present epoch, with all that stands before it taken in.

        Args:
            is_new: it has not been tried before, so its position must be a new one.
        """
        assert hosted.epoch is not None
        async with asyncio.timeout(APPEND_TIMEOUT_S):
            pos = await self._log.append(
                hosted.doc,
                held.data,
                epoch=hosted.epoch,
                origin=held.origin,
                n=held.n,
                creates=creates,
                answers=answers or {},
                guards=guards or {},
            )
        if hosted.persisted < pos <= hosted.pos and is_new and not _has(hosted.tail, held):
            self._hold(hosted, held)
            if not await self._go_on_after_loss(hosted):
                raise Outdated
            return hosted.pos
        if pos > hosted.pos + 1:
            async for record in self._log.read_on(hosted.doc, hosted.pos):
                if record.pos >= pos or record.pos > hosted.pos + 1:
                    break
                self._take(hosted, record)
            if hosted.pos + 1 < pos:
                self._give_up(hosted, "gap")  # trimmed: what is between is in MongoDB alone
        hosted.pos = max(hosted.pos, pos)
        self._hold(hosted, held._replace(pos=pos))
        self._unmoved.add(hosted.doc)
        self._has_unmoved.set()
        return pos

    async def _append_local(
        self, hosted: _Hosted, batch: Append, n: int, by_entry: ByEntry | None
    ) -> Stored:
        """
        Args:
            by_entry: what was won, if that was judged: the record may have reached the shared log,
                and must say the same.
        """
        if batch.creates:
            self.release(hosted.doc)
            raise Unavailable("nothing new can be made now", retry_after_ms=1_000)
        is_judged = by_entry is not None
        by_entry = by_entry or [() for _ in batch.entries]
        stored = mongo_log.stored_at(hosted.pos + hosted.local + 1, by_entry)._replace(
            durability="local"
        )
        draft = mongo_log.draft(batch, by_entry, stored, hosted.listed_at)
        if is_judged:
            draft = {**draft, "is_judged": True}
        record = mongo_log.pack(with_parts(draft, batch, hosted.pos))
        await self._spool.append(hosted.doc, self._origin, n, record)
        hosted.local += 1
        hosted.is_behind = True
        hosted.given |= _prizes(stored.awards)
        hosted.answers.update(answers_in(draft))
        self._wake.set()
        return stored

    async def _judge(self, hosted: _Hosted, entries: Sequence[Entry]) -> Sequence[Sequence[Award]]:
        """Which records the entries win; none if the database would have to be asked, and cannot.

        Raises: one of `AWAY`.
        """
        if not any(entry.scores for entry in entries):
            return [() for _ in entries]
        try:
            return await self._books.judge(
                str(hosted.doc), entries, hosted.given, origin=self._origin
            )
        except Unavailable:
            # Neither the set nor its ack can wait for that. Who reads the books has told.
            return [() for _ in entries]

    # -- what others append -----------------------------------------------------------------

    def heard(self, channel: str, update: Update) -> None:
        """A room's channel brings a record."""
        hosted = self._channels.get(channel)
        if hosted is None:
            return
        if hosted.is_given_up:
            return  # who reads it again reads this as well
        if hosted.arriving is not None:
            hosted.arriving.append(update)
        elif update.epoch == hosted.epoch and update.pos <= hosted.pos:
            return  # our own, or read already
        elif update.epoch == hosted.epoch and update.pos == hosted.pos + 1:
            try:
                self._take(hosted, _record(update))
            except Damaged:
                log.exception("a record is damaged", extra={"document": str(hosted.doc)})
                self._give_up(hosted, "damaged_record")
        elif not self.is_away:
            self._chore(self._fill_in(hosted))

    def _take(self, hosted: _Hosted, record: Record) -> None:
        """Hand on what comes next, unless it is ours: then the room has it.

        Raises:
            Damaged: it cannot be read.
        """
        if record.pos <= hosted.pos:
            return
        foreign = self._keep(hosted, record)
        if self._inlet is None:
            return
        if record.origin != self._origin:
            if not hosted.is_short:
                self._inlet.foreign(hosted.doc, [foreign])
        elif hosted.local and foreign.awards:
            # It was judged on its way in. Who put it there may not have heard that it arrived, and
            # will not have it judged again.
            self._inlet.awarded(hosted.doc, foreign.awards)

    def _keep(self, hosted: _Hosted, record: Record) -> Foreign:
        foreign = foreign_of(open_record(self._sealer, hosted.doc, record), record.pos)
        hosted.given |= _prizes(foreign.awards)
        hosted.pos = max(hosted.pos, record.pos)
        self._hold(hosted, _Held(*record))
        return foreign

    async def _fill_in(self, hosted: _Hosted) -> None:
        """Read on from where we are: the channel has left something out."""
        async with self._locked(hosted.doc):
            is_here = self._hosted.get(hosted.doc) is hosted and not hosted.is_given_up
            if not is_here or hosted.epoch is None:
                return
            try:
                await self._catch_up(hosted)
            except AWAY as exc:
                self.went_away(exc)
            except Unavailable:
                self._wake_later(hosted)
            except Gone:
                self._give_up(hosted, "deleted")

    async def _catch_up(self, hosted: _Hosted) -> bool:
        """Returns: whether the room is up with its log; if not, it is being read again."""
        pos = hosted.pos
        head = await self._log.head(hosted.doc)
        if head is None or head.epoch != hosted.epoch:
            await self._memory.look()
            return await self._enter_epoch(hosted)
        if head.pos < pos:
            return await self._go_on_after_loss(hosted)
        hosted.is_unsure = False
        try:
            async for record in self._log.read_on(hosted.doc, hosted.pos):
                if record.pos > hosted.pos + 1:
                    return self._give_up(hosted, "gap")
                self._take(hosted, record)
        except Damaged:
            log.exception("a record is damaged", extra={"document": str(hosted.doc)})
            return self._give_up(hosted, "damaged_record")
        return True if hosted.pos >= head.pos else self._give_up(hosted, "gap")

    async def _enter_epoch(self, hosted: _Hosted) -> bool:
        """Redis has lost the document, or has it anew: give it what we have that MongoDB may not.

        Returns: whether we stand at the end of the new log; if not, the room is being read again.
        """
        last = await self._last(hosted.doc)
        with _asking_the_database():
            erasures = await self._late.erasures() if hosted.tail else ()
        tail = await self._unmoved_tail(hosted)
        base = max(last.pos if last is not None else 0, hosted.pos) + EPOCH_STRIDE
        # Others may have written, moved that to MongoDB and left, while we heard nothing.
        has_missed = last is not None and last.pos > hosted.pos
        head = await self._log.found(hosted.doc, base, exists=True)
        log.warning("a log is founded anew", extra={"document": str(hosted.doc)})
        given_up = hosted.epoch
        hosted.epoch, hosted.pos, hosted.is_unsure = head.epoch, head.pos, False
        hosted.persisted = 0
        self._let_go(hosted, len(hosted.tail))
        done = 0
        try:
            for held in tail:
                await self._put_again(hosted, held, erasures)
                done += 1
        finally:
            if done < len(tail):  # to be done again, all of it
                hosted.epoch = given_up
                for held in tail[done:]:
                    self._hold(hosted, held)
        # Others were first, and may have more.
        if head.pos != base or has_missed or hosted.is_short:
            if self._memory.is_settling:
                hosted.is_short = True
                return False
            return self._give_up(hosted, "failover")
        if self._inlet is not None:
            self._inlet.renumbered(hosted.doc, hosted.pos)
        return True

    async def _put_again(
        self, hosted: _Hosted, held: _Held, erasures: Sequence[Revocation]
    ) -> None:
        """Append a record of another epoch. It goes in even if its operation was carried out
        elsewhere since, while neither knew of the other; what that was answered stands."""
        found = open_record(self._sealer, hosted.doc, Record(*held))
        draft = await self._late.cleaned(hosted.doc, found, erasures)
        if draft is not found:
            data = seal_record(self._sealer, hosted.doc, held.origin, held.n, draft)
            held = held._replace(data=data)
        try:
            await self._put(hosted, held, answers=answers_in(draft))
        except Repeated:
            await self._put(hosted, held)
        if draft.get("scores"):  # the books are gone as well; what was won is in the record
            scored = [mongo_log.scored_by(draft)]
            await self._books.judge(str(hosted.doc), scored, origin=held.origin)

    async def _go_on_after_loss(self, hosted: _Hosted) -> bool:
        """Redis has gone back behind what it had told us: begin an epoch with what we have.

        Returns: see `_enter_epoch`.
        """
        assert hosted.epoch is not None
        log.error("Redis has lost what it had acknowledged", extra={"document": str(hosted.doc)})
        await self._mover.move(hosted.doc)  # what it still has, and we may not
        last = await self._last(hosted.doc)
        head = await self._log.head(hosted.doc)
        known = (last.pos if last else 0, hosted.pos, head.pos if head else 0)
        await self._log.refound(hosted.doc, hosted.epoch, max(known) + EPOCH_STRIDE)
        return await self._enter_epoch(hosted)

    async def _last(self, doc: DocName) -> Last | None:
        with _asking_the_database():
            return await self._store.last(doc)

    async def _unmoved_tail(self, hosted: _Hosted) -> list[_Held]:
        """The records of the tail that MongoDB has not. We may not have heard that it has others,
        and what came after them: given back, they would count as the later ones."""
        if not hosted.tail:
            return []
        with _asking_the_database():
            places = [held.pos for held in hosted.tail]
            known = await self._store.appends_at(hosted.doc, places)
        return [held for held in hosted.tail if known.get(held.pos) != (held.origin, held.n)]

    def _give_up(self, hosted: _Hosted, reason: str) -> bool:
        hosted.is_given_up = True  # until it is read again, which makes another of it
        if self._inlet is not None:
            self._inlet.outdated(hosted.doc, reason)
        return False

    # -- the tail ---------------------------------------------------------------------------

    def _hold(self, hosted: _Hosted, held: _Held) -> None:
        hosted.tail.append(held)
        hosted.tail_bytes += len(held.data)
        if self._hosted.get(hosted.doc) is hosted:
            self._tails_bytes += len(held.data)

    def _let_go(self, hosted: _Hosted, count: int) -> None:
        for _ in range(count):
            size_bytes = len(hosted.tail.popleft().data)
            hosted.tail_bytes -= size_bytes
            if self._hosted.get(hosted.doc) is hosted:
                self._tails_bytes -= size_bytes

    def persisted(self, channel: str, epoch: str, upto: int) -> None:
        """What this epoch has up to here is in MongoDB."""
        hosted = self._channels.get(channel)
        if hosted is not None and hosted.epoch == epoch and not hosted.is_unsure:
            hosted.persisted = upto
            self._let_go(hosted, sum(1 for held in hosted.tail if held.pos <= upto))

    def document_at(self, channel: str) -> DocName | None:
        """The document that a channel is about, if it is in memory here, or still held."""
        hosted = self._channels.get(channel)
        return None if hosted is None else hosted.doc

    def holds(self, doc: DocName) -> bool:
        """Whether some of a document may not be in MongoDB, as far as is known here."""
        hosted = self._hosted.get(doc)
        return hosted is not None and bool(hosted.tail)

    async def catch_up(self, doc: DocName) -> None:
        """Bring in what others have appended until now, if Redis can be asked."""
        hosted = self._hosted.get(doc)
        if hosted is not None and not self.is_away and not hosted.is_behind:
            await self._fill_in(hosted)

    async def persist(self, doc: DocName) -> None:
        """See to it that all of a document that is here now is in MongoDB. What others append
        meanwhile, as they may all the time, is for them to put there.

        Raises:
            Unavailable: it cannot be done now.
            Gone: it was deleted for good.
        """
        hosted = self._hosted.get(doc)
        if hosted is None:
            return
        epoch, upto = hosted.epoch, hosted.pos
        if hosted.local or hosted.is_behind or self.is_away:
            raise Unavailable("the shared log is away", retry_after_ms=1_000)
        try:
            await self._mover.move(doc)
        except AWAY as exc:
            self.went_away(exc)
            raise Unavailable("the shared log is away", retry_after_ms=1_000) from exc
        deadline_s = time.monotonic() + NOTICE_TIMEOUT_S
        while self._hosted.get(doc) is hosted:  # until the channel has told us
            is_same = hosted.epoch == epoch
            if is_same and not any(held.pos <= upto for held in hosted.tail):
                return
            if not is_same or time.monotonic() > deadline_s:
                raise Unavailable("the database is behind", retry_after_ms=1_000)
            await asyncio.sleep(NOTICE_TIMEOUT_S / 50)

    # -- answers ----------------------------------------------------------------------------

    async def answer(self, doc: DocName, key: str) -> Answer | None:
        """What an operation on this document was answered, as far as that is not in MongoDB."""
        hosted = self._hosted.get(doc)
        found = hosted.answers.get(key) if hosted is not None else None
        if found is None and not self.is_away:
            try:
                async with asyncio.timeout(APPEND_TIMEOUT_S):
                    found = await self._log.answer(doc, key)
            except AWAY as exc:
                self.went_away(exc)
        return None if found is None else mongo_log.answer_of(found)

    # -- healing ----------------------------------------------------------------------------

    def missed(self) -> None:
        """The channels may have left something out, in every room."""
        for hosted in list(self._hosted.values()):
            hosted.is_unsure = True
            if not self.is_away and hosted.arriving is None and not hosted.is_given_up:
                self._chore(self._fill_in(hosted))

    def _wake_later(self, hosted: _Hosted) -> None:
        hosted.is_behind = True
        self._wake.set()

    async def _heal(self) -> None:
        """Bring what is behind up to date, whenever Redis answers."""
        delay_s = FIRST_RETRY_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                answered_s = await self._ping()
                self._is_healing = True
                with contextlib.suppress(Emptied):  # what is held here is to be given back
                    await self._memory.look()
                behind = [hosted.doc for hosted in self._hosted.values() if hosted.is_behind]
                await self._heal_all({*behind, *self._spool.docs})
            except _NOT_NOW as exc:
                if self.is_away:
                    self._why_away = _explain(exc)
                else:
                    self._why_behind = _explain(exc)
            except Exception:
                log.exception("the shared log cannot be caught up with")
            else:
                if answered_s < SLOW_S and not self._memory.is_settling:
                    self._is_back()
            finally:
                self._is_healing = False
            if self.is_away or self._spool.count or any(h.is_behind for h in self._hosted.values()):
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 1.5, LAST_RETRY_S)
                self._wake.set()
            else:
                delay_s, self._why_behind = FIRST_RETRY_S, None

    async def _watch(self) -> None:
        """Notice within `LOOK_EVERY_S` that Redis was emptied: somebody else may need what is held
        here, of documents in which nobody writes."""
        while True:
            if not self.is_away:
                with contextlib.suppress(*_NOT_NOW):
                    await self._memory.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def _is_back(self) -> None:
        if self._away_since is not None:
            for_s = round(time.monotonic() - self._away_since, 3)
            log.info("the shared log is back", extra={"away_s": for_s})
        self._away_since = self._why_away = None

    async def _ping(self) -> float:
        started = time.perf_counter()
        async with asyncio.timeout(HEAL_TIMEOUT_S):
            await self._log.ping()
        return time.perf_counter() - started

    async def _heal_all(self, docs: Iterable[DocName]) -> None:
        slots = asyncio.Semaphore(HEALED_AT_ONCE)

        async def one(doc: DocName) -> None:
            async with slots, self._locked(doc):
                try:
                    await self._heal_one(doc)
                except Gone:
                    await self._drop(doc)

        outcomes = await asyncio.gather(*map(one, docs), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if not isinstance(failure, Unavailable):
                raise failure
        # These wait for MongoDB: they stay behind, and nothing else does.
        self._why_behind = str(failures[0]) if failures else None

    async def _heal_one(self, doc: DocName) -> None:
        """Append what is in the spool, and read what others have appended."""
        hosted = self._hosted.get(doc)
        if hosted is None:  # nobody has it open; it is held until it is in MongoDB all the same
            hosted = _Hosted(doc, is_behind=True, is_given_up=True)
            self._place(hosted)
            self._chore(self._linger(hosted))
        if hosted.arriving is not None:
            return  # it is being read
        await self._subscribe(doc)
        is_up = await self._find_place(hosted)
        if self._memory.is_settling:
            raise Emptied("what others hold is still to come")
        await self._flush(hosted)
        if hosted.is_given_up:
            hosted.is_behind = False
            await self._log.announce([doc])
            return
        if not is_up:
            self._give_up(hosted, "failover")
            return
        if await self._catch_up(hosted):
            hosted.is_behind = hosted.local > 0
            if self._inlet is not None:
                self._inlet.renumbered(doc, hosted.pos + hosted.local)

    async def _drop(self, doc: DocName) -> None:
        """The document was deleted for good: what we hold of it is to go nowhere."""
        while spooled := await self._spool.first(doc):
            await self._spool.remove([one.id for one in spooled])
        if (hosted := self._hosted.get(doc)) is not None:
            hosted.local, hosted.is_behind = 0, False
            self._let_go(hosted, len(hosted.tail))
            self._give_up(hosted, "deleted")

    async def _find_place(self, hosted: _Hosted) -> bool:
        """See to it that the document has a head that we can append to.

        Returns: whether the room has all that is before it.
        """
        head = await self._log.head(hosted.doc)
        if head is not None and head.epoch == hosted.epoch:
            return not hosted.is_short
        if hosted.epoch is not None or hosted.tail:
            return await self._enter_epoch(hosted)
        last = await self._store.last(hosted.doc)
        if last is None:
            raise Unavailable(f"there is no {hosted.doc} to append to")
        founded = head is None
        if head is None:
            head = await self._log.found(hosted.doc, last.pos + EPOCH_STRIDE, exists=True)
        # Said where it lasts: if Redis is lost on the way, this is not looked into again.
        hosted.is_short = not founded or hosted.pos != last.pos
        hosted.epoch, hosted.pos = head.epoch, head.pos
        return not hosted.is_short

    async def _flush(self, hosted: _Hosted) -> None:
        """Append what is in the spool of this document, oldest first."""
        while spooled := await self._spool.first(hosted.doc):
            drafts = [mongo_log.unpack(one.record) for one in spooled]
            known = await self._late.answered_before(spooled, drafts)
            erasures = await self._late.erasures()
            for one, found in zip(spooled, drafts, strict=True):
                cleaned = await self._late.cleaned(hosted.doc, found, erasures)
                has_erased = cleaned is not found
                draft = dict(found)
                awards: Sequence[Award] = ()
                if "is_judged" not in found:
                    awards = await self._late.judge(hosted.doc, one.origin, cleaned, hosted.given)
                if awards:
                    draft["awards"] = [mongo_log.of_award(award) for award in awards]
                is_whole = await self._late.put(
                    hosted.doc,
                    one,
                    draft,
                    partial(self._put_late, hosted, one),
                    known=known,
                    erasures=erasures if has_erased else (),
                )
                await self._spool.remove([one.id])
                hosted.local = max(0, hosted.local - 1)
                if awards and self._inlet is not None:
                    self._inlet.awarded(hosted.doc, mongo_log.by_set(awards))
                for key in answers_in(draft):
                    hosted.answers.pop(key, None)
                if not is_whole or has_erased:
                    # The room has what the log has not.
                    self._give_up(hosted, "erased" if has_erased else "repeated")

    async def _put_late(
        self,
        hosted: _Hosted,
        one: Spooled,
        made: Mapping[str, Any],
        answers: Mapping[str, bytes],
        guards: Mapping[str, int],
    ) -> None:
        data = seal_record(self._sealer, hosted.doc, one.origin, one.n, made)
        held = _Held(0, one.origin, one.n, data)
        await self._put(hosted, held, answers=answers, guards=guards)

    async def _announce(self) -> None:
        """Tell the workers what there is to be moved to MongoDB."""
        while True:
            await self._has_unmoved.wait()
            await asyncio.sleep(ANNOUNCE_EVERY_S)
            docs, self._unmoved = self._unmoved, set()
            try:
                await self._log.announce(docs)
            except AWAY:
                self._unmoved |= docs
            if not self._unmoved:
                self._has_unmoved.clear()

    def forget(self, doc: DocName) -> None:
        """The document was deleted for good: nothing of it is to be moved."""
        self._unmoved.discard(doc)

    def _chore(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def _has(tail: Iterable[_Held], held: _Held) -> bool:
    """Whether the channel has brought this record of ours already."""
    return any((one.origin, one.n) == (held.origin, held.n) for one in tail)


def _record(update: Update) -> Record:
    return Record(update.pos, update.origin, update.n, update.record)


def _prizes(awards: Awards) -> set[tuple[str, str]]:
    return {(set_id, type_) for set_id, won in awards.items() for type_ in won}


def _explain(exc: BaseException) -> str:
    """Why, without a word of hosts and names: /health shows it to anybody."""
    return str(exc) if isinstance(exc, Unavailable) else explain(exc)
