"""Following the logs: what others append comes in, what is appended here goes to its place.

**What is promised.** What others append comes to the `Inlet` in the order of the log, without a gap
and once; what cannot be filled in is said (`outdated`), and the room is read again. When Redis has
lost a log, or has it anew, it is given what is held here before anything else goes in.

**Who owns what.** Nothing but its tasks: where we stand is in `Hosted`; it is set when a document
is opened, and when a place is found for it after an outage, and is moved on here.

**What fails.** A record that cannot be read: the document is read again. Redis or MongoDB away:
told to the caller, or to the `Outage`, if what a channel brought made us ask them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from crdt.errors import Gone, Outdated, Unavailable
from crdt.ids import DocName
from crdt.ports import Awards, Foreign, Inlet
from crdt.revocations import Revocation
from server.cluster.books import Books
from server.cluster.connection import AWAY
from server.cluster.envelope import Sealer, Update
from server.cluster.hosted import Held, Hosted, Hosts
from server.cluster.late import Late
from server.cluster.log import Record, RedisLog, Repeated
from server.cluster.memory import RedisMemory
from server.cluster.mover import Mover
from server.cluster.outage import Outage
from server.cluster.record import answers_in, foreign_of, open_record, seal_record
from server.storage import mongo_log
from server.storage.mongo import Last, MongoStore
from server.storage.mongo_log import Damaged
from server.tasks import Chores

log = logging.getLogger(__name__)

EPOCH_STRIDE = 100_000
"""How far a new epoch's positions are from MongoDB's last: more than may be on their way there, so
that who writes there late, from an old epoch, meets none of the new one's."""

APPEND_TIMEOUT_S = 0.25
"""Longer than this no caller waits for Redis."""


class DatabaseAway(Unavailable):
    """MongoDB cannot say where a log goes on."""


@contextmanager
def asking_the_database() -> Iterator[None]:
    """Raises DatabaseAway where the block would raise Unavailable."""
    try:
        yield
    except Unavailable as exc:
        raise DatabaseAway("the database is away", retry_after_ms=1_000) from exc


class Following:
    """The logs of all documents that are in memory here.

    Args:
        origin: names this life of this process.
        on_appended: told of each document in which something was appended.
    """

    def __init__(
        self,
        redis_log: RedisLog,
        books: Books,
        store: MongoStore,
        mover: Mover,
        memory: RedisMemory,
        late: Late,
        sealer: Sealer,
        hosts: Hosts,
        outage: Outage,
        *,
        origin: str,
        on_appended: Callable[[DocName], None],
    ) -> None:
        self._log = redis_log
        self._books = books
        self._store = store
        self._mover = mover
        self._memory = memory
        self._late = late
        self._sealer = sealer
        self._hosts = hosts
        self._outage = outage
        self._origin = origin
        self._on_appended = on_appended
        self._chores = Chores()
        self.inlet: Inlet | None = None

    async def close(self) -> None:
        await self._chores.end()

    # -- what others append -----------------------------------------------------------------

    def heard(self, channel: str, update: Update) -> None:
        """A room's channel brings a record."""
        hosted = self._hosts.at(channel)
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
                self._take(hosted, record_of(update))
            except Damaged:
                log.exception("a record is damaged", extra={"document": str(hosted.doc)})
                self.give_up(hosted, "damaged_record")
        elif not self._outage.is_away:
            self._chores.start(self.fill_in(hosted))

    def _take(self, hosted: Hosted, record: Record) -> None:
        """Hand on what comes next, unless it is ours: then the room has it.

        Raises:
            Damaged: it cannot be read.
        """
        if record.pos <= hosted.pos:
            return
        foreign = self.keep(hosted, record)
        if self.inlet is None:
            return
        if record.origin != self._origin:
            if not hosted.is_short:
                self.inlet.foreign(hosted.doc, [foreign])
        elif hosted.local and foreign.awards:
            # It was judged on its way in. Who put it there may not have heard that it arrived, and
            # will not have it judged again.
            self.inlet.awarded(hosted.doc, foreign.awards)

    def keep(self, hosted: Hosted, record: Record) -> Foreign:
        """Move on to this record, and hold it. Returns: what a room takes in of it."""
        foreign = foreign_of(open_record(self._sealer, hosted.doc, record), record.pos)
        hosted.given |= prizes(foreign.awards)
        hosted.pos = max(hosted.pos, record.pos)
        self._hosts.hold(hosted, Held(*record))
        return foreign

    def missed(self) -> None:
        """The channels may have left something out, in every room."""
        for hosted in self._hosts:
            hosted.is_unsure = True
            if not self._outage.is_away and hosted.arriving is None and not hosted.is_given_up:
                self._chores.start(self.fill_in(hosted))

    async def fill_in(self, hosted: Hosted) -> None:
        """Read on from where we are: the channel has left something out."""
        async with self._hosts.locked(hosted.doc):
            is_here = self._hosts.has(hosted) and not hosted.is_given_up
            if not is_here or hosted.epoch is None:
                return
            try:
                await self.catch_up(hosted)
            except AWAY as exc:
                self._outage.went_away(exc)
            except Unavailable:
                self._outage.fell_behind(hosted)
            except Gone:
                self.give_up(hosted, "deleted")

    async def catch_up(self, hosted: Hosted) -> bool:
        """Returns: whether the room is up with its log; if not, it is being read again."""
        pos = hosted.pos
        head = await self._log.head(hosted.doc)
        if head is None or head.epoch != hosted.epoch:
            await self._memory.look()
            return await self.enter_epoch(hosted)
        if head.pos < pos:
            return await self.go_on_after_loss(hosted)
        hosted.is_unsure = False
        try:
            async for record in self._log.read_on(hosted.doc, hosted.pos):
                if record.pos > hosted.pos + 1:
                    return self.give_up(hosted, "gap")
                self._take(hosted, record)
        except Damaged:
            log.exception("a record is damaged", extra={"document": str(hosted.doc)})
            return self.give_up(hosted, "damaged_record")
        return True if hosted.pos >= head.pos else self.give_up(hosted, "gap")

    # -- appending --------------------------------------------------------------------------

    async def put(
        self,
        hosted: Hosted,
        held: Held,
        *,
        creates: bool = False,
        answers: Mapping[str, bytes] | None = None,
        guards: Mapping[str, int] | None = None,
        takes_back: bool = False,
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
                takes_back=takes_back,
            )
        if hosted.persisted < pos <= hosted.pos and is_new and not hosted.has(held):
            self._hosts.hold(hosted, held)
            if not await self.go_on_after_loss(hosted):
                raise Outdated
            return hosted.pos
        if pos > hosted.pos + 1:
            async for record in self._log.read_on(hosted.doc, hosted.pos):
                if record.pos >= pos or record.pos > hosted.pos + 1:
                    break
                self._take(hosted, record)
            if hosted.pos + 1 < pos:
                self.give_up(hosted, "gap")  # trimmed: what is between is in MongoDB alone
        hosted.pos = max(hosted.pos, pos)
        self._hosts.hold(hosted, held._replace(pos=pos))
        self._on_appended(hosted.doc)
        return pos

    # -- epochs -----------------------------------------------------------------------------

    async def enter_epoch(self, hosted: Hosted) -> bool:
        """Redis has lost the document, or has it anew: give it what we have that MongoDB may not.

        Returns: whether we stand at the end of the new log; if not, the room is being read again.
        """
        last = await self._last(hosted.doc)
        with asking_the_database():
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
        self._hosts.let_go(hosted, len(hosted.tail))
        done = 0
        try:
            for held in tail:
                await self._put_again(hosted, held, erasures)
                done += 1
        finally:
            if done < len(tail):  # to be done again, all of it
                hosted.epoch = given_up
                for held in tail[done:]:
                    self._hosts.hold(hosted, held)
        # Others were first, and may have more.
        if head.pos != base or has_missed or hosted.is_short:
            if self._memory.is_settling:
                hosted.is_short = True
                return False
            return self.give_up(hosted, "failover")
        if self.inlet is not None:
            self.inlet.renumbered(hosted.doc, hosted.pos)
        return True

    async def _put_again(self, hosted: Hosted, held: Held, erasures: Sequence[Revocation]) -> None:
        """Append a record of another epoch. It goes in even if its operation was carried out
        elsewhere since, while neither knew of the other; what that was answered stands."""
        found = open_record(self._sealer, hosted.doc, Record(*held))
        draft = await self._late.cleaned(hosted.doc, found, erasures)
        if draft is not found:
            data = seal_record(self._sealer, hosted.doc, held.origin, held.n, draft)
            held = held._replace(data=data)
        try:
            await self.put(hosted, held, answers=answers_in(draft))
        except Repeated:
            await self.put(hosted, held)
        if draft.get("scores"):  # the books are gone as well; what was won is in the record
            scored = [mongo_log.scored_by(draft)]
            await self._books.judge(str(hosted.doc), scored, origin=held.origin)

    async def go_on_after_loss(self, hosted: Hosted) -> bool:
        """Redis has gone back behind what it had told us: begin an epoch with what we have.

        Returns: see `enter_epoch`.
        """
        assert hosted.epoch is not None
        log.error("Redis has lost what it had acknowledged", extra={"document": str(hosted.doc)})
        await self._mover.move(hosted.doc)  # what it still has, and we may not
        last = await self._last(hosted.doc)
        head = await self._log.head(hosted.doc)
        known = (last.pos if last else 0, hosted.pos, head.pos if head else 0)
        await self._log.refound(hosted.doc, hosted.epoch, max(known) + EPOCH_STRIDE)
        return await self.enter_epoch(hosted)

    async def _last(self, doc: DocName) -> Last | None:
        with asking_the_database():
            return await self._store.last(doc)

    async def _unmoved_tail(self, hosted: Hosted) -> list[Held]:
        """The records of the tail that MongoDB has not. We may not have heard that it has others,
        and what came after them: given back, they would count as the later ones."""
        if not hosted.tail:
            return []
        with asking_the_database():
            places = [held.pos for held in hosted.tail]
            known = await self._store.appends_at(hosted.doc, places)
        return [held for held in hosted.tail if known.get(held.pos) != (held.origin, held.n)]

    def give_up(self, hosted: Hosted, reason: str) -> bool:
        """Have the room read again. Returns: False, as those do that say whether it is up."""
        hosted.is_given_up = True  # until it is read again, which makes another of it
        if self.inlet is not None:
            self.inlet.outdated(hosted.doc, reason)
        return False

    # -- the tail ---------------------------------------------------------------------------

    def persisted(self, channel: str, epoch: str, upto: int) -> None:
        """What this epoch has up to here is in MongoDB."""
        hosted = self._hosts.at(channel)
        if hosted is not None and hosted.epoch == epoch and not hosted.is_unsure:
            hosted.persisted = upto
            self._hosts.let_go(hosted, sum(1 for held in hosted.tail if held.pos <= upto))


def record_of(update: Update) -> Record:
    return Record(update.pos, update.origin, update.n, update.record)


def prizes(awards: Awards) -> set[tuple[str, str]]:
    """(set id, type) of each."""
    return {(set_id, type_) for set_id, won in awards.items() for type_ in won}
