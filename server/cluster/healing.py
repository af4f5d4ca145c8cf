"""After an outage: what is in the spool goes into the shared log, and every room comes up with it.

**What is promised.** Whatever is behind is brought up to date as soon as Redis answers, oldest
first, and what is in the spool goes in once (`late`). The outage is over when all of that is done
and Redis answers fast. **Who owns what.** The spool's rows are removed here alone, each when its
record is in the log. **What fails.** Anything: it is tried again, slower and slower, and `/health`
says why. Documents that wait for MongoDB hold up nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from crdt.errors import Gone, Unavailable
from crdt.ids import DocName
from crdt.records import Award
from server.cluster.connection import AWAY
from server.cluster.envelope import Sealer
from server.cluster.following import EPOCH_STRIDE, Following
from server.cluster.hosted import Held, Hosted, Hosts
from server.cluster.late import Late
from server.cluster.log import RedisLog
from server.cluster.memory import LOOK_EVERY_S, Emptied, RedisMemory
from server.cluster.outage import Outage
from server.cluster.record import answers_in, seal_record
from server.storage import mongo_log
from server.storage.mongo import MongoStore
from server.storage.spool import Spool, Spooled
from server.tasks import end

log = logging.getLogger(__name__)

SLOW_S = 0.1
"""Redis is back when it answers faster than this."""
HEAL_TIMEOUT_S = 5.0
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 1.0
HEALED_AT_ONCE = 16
"""Documents; fewer as long as MongoDB cannot keep up, for what it does not answer in time it has
to do again."""

_NOT_NOW: tuple[type[Exception], ...] = (*AWAY, Unavailable)


class Healing:
    """What is done, for all documents, whenever something is behind.

    Args:
        subscribe: hears a document's channel. Raises one of `AWAY`.
        keep: holds what has been placed, until it is in MongoDB.
    """

    def __init__(
        self,
        redis_log: RedisLog,
        store: MongoStore,
        spool: Spool,
        memory: RedisMemory,
        late: Late,
        sealer: Sealer,
        hosts: Hosts,
        outage: Outage,
        following: Following,
        *,
        subscribe: Callable[[DocName], Awaitable[None]],
        keep: Callable[[Hosted], None],
    ) -> None:
        self._log = redis_log
        self._store = store
        self._spool = spool
        self._memory = memory
        self._late = late
        self._sealer = sealer
        self._hosts = hosts
        self._outage = outage
        self._following = following
        self._subscribe = subscribe
        self._keep = keep
        self._at_once = HEALED_AT_ONCE
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begin with what an earlier life has left in the spool."""
        self._tasks = [
            asyncio.create_task(self._run(), name="shared log"),
            asyncio.create_task(self._watch(), name="emptying"),
        ]
        if self._spool.count:
            self._outage.wake.set()

    async def close(self) -> None:
        await end(*self._tasks)

    async def _run(self) -> None:
        """Bring what is behind up to date, whenever Redis answers."""
        delay_s = FIRST_RETRY_S
        while True:
            await self._outage.wake.wait()
            self._outage.wake.clear()
            try:
                answered_s = await self._ping()
                self._outage.is_healing = True
                with contextlib.suppress(Emptied):  # what is held here is to be given back
                    await self._memory.look()
                behind = [hosted.doc for hosted in self._hosts if hosted.is_behind]
                await self._heal_all({*behind, *self._spool.docs})
            except _NOT_NOW as exc:
                self._outage.goes_on(exc)
            except Exception:
                log.exception("the shared log cannot be caught up with")
            else:
                if answered_s < SLOW_S and not self._memory.is_settling:
                    self._outage.is_back()
            finally:
                self._outage.is_healing = False
            if self._outage.is_away or self._spool.count or any(h.is_behind for h in self._hosts):
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 1.5, LAST_RETRY_S)
                self._outage.wake.set()
            else:
                delay_s, self._outage.why_behind = FIRST_RETRY_S, None

    async def _watch(self) -> None:
        """Notice within `LOOK_EVERY_S` that Redis was emptied: somebody else may need what is held
        here, of documents in which nobody writes."""
        while True:
            if not self._outage.is_away:
                with contextlib.suppress(*_NOT_NOW):
                    await self._memory.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _ping(self) -> float:
        started = time.perf_counter()
        async with asyncio.timeout(HEAL_TIMEOUT_S):
            await self._log.ping()
        return time.perf_counter() - started

    async def _heal_all(self, docs: Iterable[DocName]) -> None:
        slots = asyncio.Semaphore(self._at_once)

        async def one(doc: DocName) -> None:
            async with slots, self._hosts.locked(doc):
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
        is_too_much = 2 * len(failures) > len(outcomes)
        self._at_once = max(1, self._at_once // 2) if is_too_much else HEALED_AT_ONCE
        self._outage.why_behind = str(failures[0]) if failures else None

    async def _heal_one(self, doc: DocName) -> None:
        """Append what is in the spool, and read what others have appended."""
        hosted = self._hosts.get(doc)
        if hosted is None:  # nobody has it open; it is held until it is in MongoDB all the same
            hosted = Hosted(doc, is_behind=True, is_given_up=True)
            self._hosts.place(hosted)
            self._keep(hosted)
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
            self._following.give_up(hosted, "failover")
            return
        if await self._following.catch_up(hosted):
            hosted.is_behind = hosted.local > 0
            if self._following.inlet is not None:
                self._following.inlet.renumbered(doc, hosted.pos + hosted.local)

    async def _drop(self, doc: DocName) -> None:
        """The document was deleted for good: what we hold of it is to go nowhere."""
        while spooled := await self._spool.first(doc):
            await self._spool.remove([one.id for one in spooled])
        if (hosted := self._hosts.get(doc)) is not None:
            hosted.local, hosted.is_behind = 0, False
            self._hosts.let_go(hosted, len(hosted.tail))
            self._following.give_up(hosted, "deleted")

    async def _find_place(self, hosted: Hosted) -> bool:
        """See to it that the document has a head that we can append to.

        Returns: whether the room has all that is before it.
        """
        head = await self._log.head(hosted.doc)
        if head is not None and head.epoch == hosted.epoch:
            return not hosted.is_short
        if hosted.epoch is not None or hosted.tail:
            return await self._following.enter_epoch(hosted)
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

    async def _flush(self, hosted: Hosted) -> None:
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
                if awards and self._following.inlet is not None:
                    self._following.inlet.awarded(hosted.doc, mongo_log.by_set(awards))
                for key in answers_in(draft):
                    hosted.answers.pop(key, None)
                if not is_whole or has_erased:
                    # The room has what the log has not.
                    self._following.give_up(hosted, "erased" if has_erased else "repeated")

    async def _put_late(
        self,
        hosted: Hosted,
        one: Spooled,
        made: Mapping[str, Any],
        answers: Mapping[str, bytes],
        guards: Mapping[str, int],
        takes_back: bool,
    ) -> None:
        data = seal_record(self._sealer, hosted.doc, one.origin, one.n, made)
        held = Held(0, one.origin, one.n, data)
        await self._following.put(
            hosted, held, answers=answers, guards=guards, takes_back=takes_back
        )
