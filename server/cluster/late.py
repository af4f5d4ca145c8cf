"""Records that were acked while the shared log was away, and what becomes of them on their way in.

**What is promised.** What was acked goes into the log, once. Of what two instances have done that
did not know of each other, what is in the log stands: an operation that was carried out elsewhere
meanwhile, or a change of status that came too late, is taken back as its record goes in. What
somebody has left who was erased since is left out.

**Who owns what.** Nothing: the records are the spool's, the log is Redis's and MongoDB's.

**What fails.** Redis or MongoDB away: the record stays where it is, and is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from crdt.errors import Invalid, Unavailable, Unsynced
from crdt.ids import DocName
from crdt.records import Award
from crdt.revocations import Revocation
from server.cluster.books import Books
from server.cluster.envelope import Sealer
from server.cluster.erased import Erased
from server.cluster.log import Outpaced, RedisLog, Repeated
from server.cluster.memory import RedisMemory
from server.cluster.record import (
    answers_in,
    open_record,
    taken_back,
    without_answers,
    without_parts,
)
from server.storage import mongo_log
from server.storage.mongo import MongoStore
from server.storage.spool import Spooled

log = logging.getLogger(__name__)

Put = Callable[[Mapping[str, Any], Mapping[str, bytes], Mapping[str, int], bool], Awaitable[None]]
"""Appends a record in the place of one from the spool: the draft, its answers, its guards, and
whether it takes back what these guard."""


class _Shared(NamedTuple):
    """A document as all have it who are not cut off: Yjs updates, and a position up to which they
    have everything."""

    updates: Sequence[bytes]
    pos: int


class Late:
    """What is made of late records, whatever their document."""

    def __init__(
        self,
        redis_log: RedisLog,
        books: Books,
        store: MongoStore,
        memory: RedisMemory,
        sealer: Sealer,
    ) -> None:
        self._log = redis_log
        self._books = books
        self._store = store
        self._memory = memory
        self._sealer = sealer
        self._erased = Erased(store)

    async def erasures(self) -> Sequence[Revocation]:
        """Who was erased lately.

        Raises:
            Unavailable: MongoDB cannot be read.
        """
        return await self._erased.erasures()

    async def cleaned(
        self, doc: DocName, draft: Mapping[str, Any], erasures: Sequence[Revocation]
    ) -> Mapping[str, Any]:
        """A record without what somebody has left who was erased; the same object if that is all
        of it."""
        return await self._erased.cleaned(doc, draft, self._shared, erasures)

    async def answered_before(
        self, spooled: Sequence[Spooled], drafts: Iterable[Mapping[str, Any]]
    ) -> Mapping[str, tuple[str, int]]:
        """Which appends have answered operations of these records, as far as Redis may have
        forgotten that since."""
        ops = [op for draft in drafts for op in answers_in(draft)]
        if not ops or self._memory.has_kept(min(one.at_ms for one in spooled)):
            return {}
        return await self._store.appends_of(ops)

    async def judge(
        self,
        doc: DocName,
        origin: str,
        draft: Mapping[str, Any],
        given: Set[tuple[str, str]],
    ) -> Sequence[Award]:
        """The records that a record's sets win now, if it had won none before."""
        if not draft.get("scores"):
            return ()
        scored = [mongo_log.scored_by(draft)]
        (won,) = await self._books.judge(str(doc), scored, given, origin=origin)
        # What was won before it came into the spool stands; the books may have been lost since.
        return () if draft.get("awards") else won

    async def put(
        self,
        doc: DocName,
        one: Spooled,
        draft: Mapping[str, Any],
        append: Put,
        *,
        known: Mapping[str, tuple[str, int]],
        erasures: Sequence[Revocation],
    ) -> bool:
        """Append a record that was acked before.

        Args:
            known: which appends have answered operations, as far as MongoDB was asked.
            erasures: if it has something of somebody who was erased since; that is left out.

        Returns: whether it is in the log as it is. An operation of it may have been carried out
            elsewhere since, or the status have been changed, while neither knew of the other: that
            stands, and ours is taken back as it goes in.
        """
        answers = answers_in(draft)
        if any(known.get(op) == (one.origin, one.n) for op in answers):
            return True  # it had reached the log before Redis forgot of it, and MongoDB
        repeated, is_outpaced = answers.keys() & known.keys(), False
        while True:
            made: Mapping[str, Any]
            made, seen = await self._told_apart(doc, draft, repeated, is_outpaced)
            if erasures:  # only now: what cannot be told apart any more cannot be taken back
                made = await self.cleaned(doc, made, erasures)
            left = answers_in(made)
            guards = {}
            if "status_seen" in draft:
                # What is taken back is written anew: it must be what stands, and who has planned
                # on what stood before must plan again.
                guards["status"] = seen if is_outpaced else draft["status_seen"]
            try:
                await append(made, left, guards, is_outpaced)
            except Repeated as exc:
                repeated |= {exc.key, *await self._answered(doc, left)}
            except Outpaced:
                is_outpaced = True
            else:
                return not repeated and not is_outpaced

    async def _told_apart(
        self, doc: DocName, draft: Mapping[str, Any], repeated: Set[str], is_outpaced: bool
    ) -> tuple[dict[str, Any], int]:
        """A record without what some of its operations have done, and with the summary that the
        document will have; and the position up to which that is known, 0 if it was not asked."""
        if not repeated and not is_outpaced and "summary" not in draft:
            return without_parts(draft), 0
        try:
            shared = await self._read(doc)
        except Unavailable:
            if repeated or is_outpaced:
                raise
            return without_parts(draft), 0  # no reason to wait for MongoDB
        try:
            made = taken_back(
                draft, doc, shared.updates, repeated=repeated, is_outpaced=is_outpaced
            )
        except (Invalid, Unsynced):
            log.exception("what was done twice stays", extra={"document": str(doc)})
            made = without_answers(draft, repeated)
        return made, shared.pos

    async def _answered(self, doc: DocName, keys: Iterable[str]) -> list[str]:
        """Which of these operations the shared log has answered."""
        return [key for key in keys if await self._log.answer(doc, key) is not None]

    async def _shared(self, doc: DocName) -> Sequence[bytes]:
        """The updates alone; see `_read`."""
        return (await self._read(doc)).updates

    async def _read(self, doc: DocName) -> _Shared:
        """The document as the shared log has it now.

        Raises:
            Unavailable: MongoDB cannot be read.
        """
        # In this order: what is trimmed while we read is in MongoDB by then, and what is read has
        # all up to the position.
        records = [record async for record in self._log.read_on(doc, 0)]
        last = await self._store.last(doc)
        loaded = await self._store.load(doc)
        updates = [*filter(None, [loaded.snapshot]), *loaded.updates] if loaded else []
        opened = (open_record(self._sealer, doc, record) for record in records)
        pos = max(last.pos if last else 0, records[-1].pos if records else 0)
        return _Shared([*updates, *(draft["yjs"] for draft in opened if "yjs" in draft)], pos)
