"""The way into the shared log, and out of it: documents are opened, appended to, and let go.

**What is promised.** An append is in the shared log when it returns, or, while that is away or
slow, on this instance's disk: then it is appended later (`healing`), as the same one (`origin` and
`n`), and nothing of the document overtakes it. What others append comes to the `Inlet`
(`following`).

**Who owns what.** For each document that is in memory here there is a `Hosted` (`hosted`): where we
stand in its log, and the *tail*, the records that are not known to be in MongoDB. A Redis that has
lost them gets them from here.

**What fails.** Redis away or slow: `local` durability, for all documents, until it answers fast
again (`outage`). MongoDB away: the tail grows up to a limit, then changes are `Unavailable`. A
record that cannot be read: its document is read again, and is `Unavailable` if that does not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from crdt.errors import (
    Conflict,
    DocumentDamaged,
    Gone,
    NotFound,
    Outdated,
    Unavailable,
)
from crdt.ids import DocName
from crdt.ports import Answer, Append, Entry, Inlet, Loaded, Stored
from crdt.records import Award
from server.cluster.books import Books
from server.cluster.bus import Bus
from server.cluster.connection import AWAY
from server.cluster.envelope import Sealer
from server.cluster.following import (
    APPEND_TIMEOUT_S,
    EPOCH_STRIDE,
    DatabaseAway,
    Following,
    prizes,
    record_of,
)
from server.cluster.healing import Healing
from server.cluster.hosted import Held, Hosted, Hosts
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
from server.cluster.memory import RedisMemory
from server.cluster.mover import Mover
from server.cluster.outage import Outage
from server.cluster.record import (
    answers_in,
    foreign_of,
    open_record,
    seal_record,
    with_parts,
    with_records,
)
from server.storage import mongo_log
from server.storage.mongo import MongoStore
from server.storage.mongo_log import Damaged
from server.storage.spool import Spool, Spooled
from server.tasks import Chores, end

log = logging.getLogger(__name__)

LINGER_S = 1.0
"""How often it is tried to let go of what nobody has open, but MongoDB may not have."""
ANNOUNCE_EVERY_S = 0.2
LOAD_ATTEMPTS = 5
NOTICE_TIMEOUT_S = 1.0

MAX_TAIL_SHARE = 16
"""One document may have a sixteenth of what all together may have in the shared log alone."""

_UNDECIDED: tuple[type[Exception], ...] = (*AWAY, Unfounded, EpochChanged)


ByEntry = Sequence[Sequence[Award]]
"""The awards that each entry of an append wins."""


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
        self._hosts = Hosts(redis_log.channel)
        self.outage = outage = Outage(self._hosts)
        self._memory = memory = RedisMemory(redis_log, store.is_empty, outage.went_away)
        late = Late(redis_log, books, store, memory, sealer)
        self.following = Following(
            redis_log,
            books,
            store,
            mover,
            memory,
            late,
            sealer,
            self._hosts,
            outage,
            origin=origin,
            on_appended=self._mark_unmoved,
        )
        self.healing = Healing(
            redis_log,
            store,
            spool,
            memory,
            late,
            sealer,
            self._hosts,
            outage,
            self.following,
            subscribe=self._subscribe,
            keep=self._keep_until_it_lasts,
        )
        self._numbers = itertools.count(1)
        self._unmoved: set[DocName] = set()
        """Written to since the workers were told last."""
        self._has_unmoved = asyncio.Event()
        self._announcing: asyncio.Task[None] | None = None
        self._chores = Chores()

    def open(self, inlet: Inlet) -> None:
        """Begin: what was left in the spool by an earlier life is appended as soon as it can be."""
        self.following.inlet = inlet
        self._announcing = asyncio.create_task(self._announce(), name="announcing")
        self.healing.open()

    async def close(self) -> None:
        await self.healing.close()
        await self.following.close()
        await self._chores.end()
        await end(self._announcing)
        for hosted in self._hosts:
            self._hosts.displace(hosted)
            self._bus.unsubscribe(self._log.channel(hosted.doc))

    # -- how it is --------------------------------------------------------------------------

    @property
    def hosted_count(self) -> int:
        return len(self._hosts)

    @property
    def tails_bytes(self) -> int:
        """What is not known to be in MongoDB, of all documents here."""
        return self._hosts.tails_bytes

    @property
    def max_tails_bytes(self) -> int:
        return self._max_tails_bytes

    def document_at(self, channel: str) -> DocName | None:
        """The document that a channel is about, if it is in memory here, or still held."""
        hosted = self._hosts.at(channel)
        return None if hosted is None else hosted.doc

    def holds(self, doc: DocName) -> bool:
        """Whether some of a document may not be in MongoDB, as far as is known here."""
        hosted = self._hosts.get(doc)
        return hosted is not None and bool(hosted.tail)

    async def demand_memory(self) -> None:
        """Before something is read anew into Redis that it has not: see that it was not emptied.

        Raises: one of `AWAY`.
        """
        if not self.outage.is_away:  # else only what is held here is being given back
            await self._memory.look()

    # -- opening ----------------------------------------------------------------------------

    async def load(self, doc: DocName) -> Loaded | None:
        """The document as it is now; what comes after that goes to the inlet.

        Raises:
            Unavailable: MongoDB cannot be read, or a record is damaged.
        """
        async with self._hosts.locked(doc):
            before = self._hosts.get(doc)
            hosted = Hosted(doc, arriving=[])
            self._hosts.place(hosted)
            try:
                loaded = await self._load(hosted, before)
            except BaseException as exc:
                if before is None:
                    self._displace(hosted)
                else:  # what it holds may be nowhere else
                    before.is_given_up = True
                    self._hosts.place(before)
                    self.release(doc)  # unless somebody tries again, as who is in the room will
                if isinstance(exc, Damaged):
                    log.exception("a record is damaged", extra={"document": str(doc)})
                    raise DocumentDamaged(f"{doc} is damaged in the log") from exc
                raise
            if loaded is None:
                self._displace(hosted)
            return loaded

    def _displace(self, hosted: Hosted) -> None:
        """Have nothing of its document any more."""
        if not self._hosts.displace(hosted):
            return
        self._bus.unsubscribe(self._log.channel(hosted.doc))
        if hosted.epoch is not None and not hosted.tail and not hosted.local:
            self._chores.start(self._retire(hosted.doc, hosted.pos))

    async def _load(self, hosted: Hosted, before: Hosted | None) -> Loaded | None:
        if not self.outage.is_away:
            try:
                await self._memory.look()
                if before is not None and before.tail:
                    await self._see_to_tail(before)
                return await self._load_shared(hosted)
            except AWAY as exc:
                self.outage.went_away(exc)
        if self._memory.is_settling:
            # Others hold what is neither in Redis nor in MongoDB, and are giving it back.
            raise Unavailable("the shared log is being put together again", retry_after_ms=500)
        # What others have in Redis alone is not here; it comes when that is back.
        last = await self._store.last(hosted.doc)
        loaded = await self._store.load(hosted.doc)
        if loaded is None or last is None:
            # It may have been made a moment ago, elsewhere.
            raise Unavailable("the shared log, which may have it, is away", retry_after_ms=1_000)
        hosted.is_behind = True
        hosted.pos = last.pos
        hosted.listed_at = last.listed_at
        hosted.given = prizes(loaded.awards)
        if before is not None:
            # What we have had from there stays with us, and where we stood, if we had it all.
            if not before.is_given_up and not before.is_short:
                hosted.epoch, hosted.pos, hosted.is_unsure = before.epoch, before.pos, True
            foreign = [
                foreign_of(open_record(self._sealer, hosted.doc, Record(*held)), held.pos)
                for held in before.tail
            ]
            loaded = with_records(replace(loaded, seq=hosted.pos), foreign)
            self._hosts.inherit(hosted, before)
        spooled = await self._spool.first(hosted.doc, limit=max(1, self._spool.count))
        hosted.arriving = None
        self.outage.wake.set()
        return self._with_spooled(hosted, loaded, spooled)

    async def _see_to_tail(self, hosted: Hosted) -> None:
        """See to it that the shared log has what is held here, before that is let go."""
        head = await self._log.head(hosted.doc)
        if head is None or head.epoch != hosted.epoch:
            await self.following.enter_epoch(hosted)
        elif head.pos < hosted.pos:
            await self.following.go_on_after_loss(hosted)

    async def _load_shared(self, hosted: Hosted) -> Loaded | None:
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
            hosted.given = prizes(loaded.awards)
            foreign = [self.following.keep(hosted, record) for record in records]
            arriving, hosted.arriving = hosted.arriving or (), None
            for update in arriving:
                if update.epoch == hosted.epoch and update.pos == hosted.pos + 1:
                    foreign.append(self.following.keep(hosted, record_of(update)))
                elif update.epoch != hosted.epoch or update.pos > hosted.pos:
                    self._chores.start(self.following.fill_in(hosted))
            loaded = with_records(replace(loaded, seq=hosted.pos), foreign)
            return self._with_spooled(hosted, loaded, spooled)
        raise Unavailable(f"{doc} changes too fast to be read", retry_after_ms=500)

    async def _subscribe(self, doc: DocName) -> None:
        try:
            await self._bus.subscribe(self._log.channel(doc))
        except Unavailable as exc:
            raise TimeoutError(str(exc)) from exc

    def _with_spooled(self, hosted: Hosted, loaded: Loaded, spooled: Sequence[Spooled]) -> Loaded:
        """With what this instance has not been able to append yet."""
        drafts = [mongo_log.unpack(one.record) for one in spooled]
        hosted.local = len(drafts)
        for draft in drafts:
            hosted.answers.update(answers_in(draft))
        foreign = [foreign_of(draft, hosted.pos + at) for at, draft in enumerate(drafts, 1)]
        if spooled:
            hosted.is_behind = True  # nothing may overtake them
            self.outage.wake.set()
        return with_records(loaded, foreign)

    def release(self, doc: DocName) -> None:
        """Hand out nothing more of this document. What is not known to be in MongoDB is kept until
        it is: who opens it again while Redis is away finds it there, or here."""
        hosted = self._hosts.get(doc)
        if hosted is None:
            return
        if hosted.tail or hosted.local:
            self._keep_until_it_lasts(hosted)
        else:
            self._displace(hosted)

    def _keep_until_it_lasts(self, hosted: Hosted) -> None:
        self._chores.start(self._linger(hosted))

    async def _linger(self, hosted: Hosted) -> None:
        while self._hosts.has(hosted):  # else it has been opened again
            try:
                await self.persist(hosted.doc)
            except Unavailable:
                await asyncio.sleep(LINGER_S)
            except Gone:
                self._displace(hosted)
            else:
                self._displace(hosted)

    async def _retire(self, doc: DocName, pos: int) -> None:
        """Leave nothing behind in Redis of a document that nobody has open any more."""
        with contextlib.suppress(*AWAY):
            await asyncio.sleep(1)  # our own subscription has to end first
            if doc not in self._hosts:
                await self._log.retire(doc, pos)

    # -- appending --------------------------------------------------------------------------

    async def append(self, batch: Append) -> Stored:
        """Append to the shared log, or to the spool.

        Raises:
            Conflict, NotFound: see `crdt.ports.Store.append`.
            Unavailable: it can go to neither, or somebody else was faster; read the room again.
        """
        planned_on = self._hosts.get(batch.doc)
        async with self._hosts.locked(batch.doc):
            hosted = self._hosts.get(batch.doc)
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
            if not hosted.is_behind and not self.outage.is_away:
                stored, by_entry = await self._append_shared(hosted, batch, n)
                if stored is not None:
                    return stored
            return await self._append_local(hosted, batch, n, by_entry)

    async def _begin(self, batch: Append) -> Hosted:
        """Host a document that is about to be made."""
        doc = batch.doc
        if self.outage.is_away:
            raise Unavailable("nothing new can be made now", retry_after_ms=1_000)
        hosted = Hosted(doc)
        self._hosts.place(hosted)
        hosted.listed_at = batch.entries[0].at_ms
        try:
            await self._subscribe(doc)
            await self._memory.look()
            if await self._store.last(doc) is not None:
                raise Conflict(f"{doc} exists already")
            head = await self._log.found(doc, 0, exists=False)
        except AWAY as exc:
            self.release(doc)
            self.outage.went_away(exc)
            raise Unavailable("nothing new can be made now", retry_after_ms=1_000) from exc
        except BaseException:
            self.release(doc)
            raise
        hosted.epoch, hosted.pos = head.epoch, head.pos
        return hosted

    def demand_space(self, doc: DocName) -> None:
        """Raises Unavailable if the database is too far behind, or the spool nearly full. What is
        on its way already is taken, so neither limit is exact."""
        hosted = self._hosts.get(doc)
        if hosted is None:
            return
        most = self._max_tails_bytes
        if self._hosts.tails_bytes >= most or hosted.tail_bytes * MAX_TAIL_SHARE >= most:
            raise Unavailable("the database is too far behind", retry_after_ms=2_000)
        if (hosted.is_behind or self.outage.is_away) and self._spool.is_nearly_full:
            raise Unavailable("the shared log has been away for too long", retry_after_ms=2_000)

    async def _append_shared(
        self, hosted: Hosted, batch: Append, n: int
    ) -> tuple[Stored | None, ByEntry | None]:
        """Returns: None if Redis has not said in time whether it is done; and what was won, if it
        has said that."""
        doc = hosted.doc
        try:
            by_entry = await self._judge(hosted, batch.entries)
        except AWAY as exc:
            self.outage.went_away(exc)
            return None, None
        expected = mongo_log.stored_at(hosted.pos + 1, by_entry)
        draft = mongo_log.draft(batch, by_entry, expected, hosted.listed_at)
        data = seal_record(self._sealer, doc, self._origin, n, draft)
        guards = {} if batch.status_seen is None else {"status": batch.status_seen}
        held = Held(0, self._origin, n, data)
        answers = answers_in(draft)
        try:
            try:
                pos = await self.following.put(
                    hosted,
                    held,
                    creates=batch.creates,
                    answers=answers,
                    guards=guards,
                    is_new=True,
                )
            except (Unfounded, EpochChanged):
                await self._memory.look()
                if not await self.following.enter_epoch(hosted):
                    raise Outdated from None
                pos = await self.following.put(hosted, held, creates=batch.creates, answers=answers)
        except _UNDECIDED as exc:
            self.outage.went_away(exc)
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
        hosted.given |= prizes(stored.awards)
        return stored, by_entry

    async def _append_local(
        self, hosted: Hosted, batch: Append, n: int, by_entry: ByEntry | None
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
        hosted.given |= prizes(stored.awards)
        hosted.answers.update(answers_in(draft))
        self.outage.wake.set()
        return stored

    async def _judge(self, hosted: Hosted, entries: Sequence[Entry]) -> Sequence[Sequence[Award]]:
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

    # -- where it lasts ---------------------------------------------------------------------

    async def catch_up(self, doc: DocName) -> None:
        """Bring in what others have appended until now, if Redis can be asked."""
        hosted = self._hosts.get(doc)
        if hosted is not None and not self.outage.is_away and not hosted.is_behind:
            await self.following.fill_in(hosted)

    async def persist(self, doc: DocName) -> None:
        """See to it that all of a document that is here now is in MongoDB. What others append
        meanwhile, as they may all the time, is for them to put there.

        Raises:
            Unavailable: it cannot be done now.
            Gone: it was deleted for good.
        """
        hosted = self._hosts.get(doc)
        if hosted is None:
            return
        epoch, upto = hosted.epoch, hosted.pos
        if hosted.local or hosted.is_behind or self.outage.is_away:
            raise Unavailable("the shared log is away", retry_after_ms=1_000)
        try:
            await self._mover.move(doc)
        except AWAY as exc:
            self.outage.went_away(exc)
            raise Unavailable("the shared log is away", retry_after_ms=1_000) from exc
        deadline_s = time.monotonic() + NOTICE_TIMEOUT_S
        while self._hosts.has(hosted):  # until the channel has told us
            is_same = hosted.epoch == epoch
            if is_same and not any(held.pos <= upto for held in hosted.tail):
                return
            if not is_same or time.monotonic() > deadline_s:
                raise Unavailable("the database is behind", retry_after_ms=1_000)
            await asyncio.sleep(NOTICE_TIMEOUT_S / 50)

    # -- answers ----------------------------------------------------------------------------

    async def answer(self, doc: DocName, key: str) -> Answer | None:
        """What an operation on this document was answered, as far as that is not in MongoDB."""
        hosted = self._hosts.get(doc)
        found = hosted.answers.get(key) if hosted is not None else None
        if found is None and not self.outage.is_away:
            try:
                async with asyncio.timeout(APPEND_TIMEOUT_S):
                    found = await self._log.answer(doc, key)
            except AWAY as exc:
                self.outage.went_away(exc)
        return None if found is None else mongo_log.answer_of(found)

    # -- the workers ------------------------------------------------------------------------

    def _mark_unmoved(self, doc: DocName) -> None:
        self._unmoved.add(doc)
        self._has_unmoved.set()

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
