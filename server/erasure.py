"""Erasing a person: whatever is kept of them goes, everywhere, and stays away.

**What is promised.** When it has ended, nothing that the server keeps holds their id, what they did
or what they wrote; others lose nothing of theirs, and go on meanwhile. It is noted in the store
before anything else is done, so it is carried out to its end by whoever serves the store next,
whatever dies in between. Doing it again changes nothing.

**The barrier.** First their tokens are refused for good, then their documents get tombstones, then
their places in others' documents become gaps (`crdt.erasure`). So nothing can come back: not from
their devices, not from somebody else's replica, not from a snapshot that was being made.

**What fails.** An outage puts it off: what stands in the way is noted, and it is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from crdt import erasure
from crdt.errors import NotFound, RepSyncError
from crdt.hub import RoomHub
from crdt.ids import DocName, UserId
from crdt.ports import Clock
from crdt.revocations import Revocation
from server.storage.port import ErasingStore, Erasure

log = logging.getLogger(__name__)

POLL_EVERY_S = 2.0
RETRY_AFTER_S = 5.0
PASSES = 2
"""What somebody began before they were refused may land after the first."""


class Eraser:
    """Erases persons, one at a time.

    Args:
        refuse: called when a revocation is kept, for this process to heed it.
        issued_until_ms: the latest time at which a token of a user that is in use here says that
            it was issued, ms since the epoch.
        name: this process's, if others may be at it.
        poll_every_s: how often the store is asked.
    """

    def __init__(
        self,
        store: ErasingStore,
        hub: RoomHub,
        clock: Clock,
        refuse: Callable[[Revocation], None] = lambda revocation: None,
        issued_until_ms: Callable[[UserId], int] = lambda user_id: 0,
        *,
        name: str = "",
        poll_every_s: float = POLL_EVERY_S,
    ) -> None:
        self._store = store
        self._hub = hub
        self._clock = clock
        self._refuse = refuse
        self._issued_until_ms = issued_until_ms
        self.name = name
        self._poll_every_s = poll_every_s

    async def watch(self) -> None:
        """Carry out what is asked for in the store, until cancelled."""
        while True:
            delay_s = self._poll_every_s
            try:
                for found in await self._store.erasures():
                    if await self._store.take_erasure(found.id, self.name):
                        await self._carry_out_unless_ended(found)
            except RepSyncError as exc:
                log.warning("an erasure is put off", extra={"cause": str(exc)})
                delay_s = RETRY_AFTER_S
            except Exception:
                log.exception("an erasure failed")
                delay_s = RETRY_AFTER_S
            await asyncio.sleep(delay_s)

    async def _carry_out_unless_ended(self, taken: Erasure) -> None:
        try:
            await self.carry_out(taken)
        except asyncio.CancelledError:
            with contextlib.suppress(RepSyncError):  # else others have to wait for a while
                await self._store.leave_erasure(taken.id, self.name)
            raise

    async def ask(self, user_id: UserId) -> Erasure:
        """Note that somebody is to be erased. Returns: what is to be carried out."""
        await self._store.begin_erasure(user_id, self._clock.now_ms())
        found = await self._store.erasure_of(user_id)
        assert found is not None
        return found

    async def carry_out(self, asked: Erasure) -> dict[str, Any]:
        """Erase somebody, from wherever it was left.

        Returns: what was removed, as counts.
        Raises:
            RepSyncError: it cannot be done now; it is noted, and can be taken up again.
        """
        counts = Counter(asked.report)
        try:
            if asked.user_id is not None:
                await self._erase(asked.id, asked.user_id, counts)
            await self._store.end_erasure(asked, self._clock.now_ms(), dict(counts))
        except Exception as exc:
            await self._store.note_erasure(asked.id, dict(counts), str(exc) or type(exc).__name__)
            raise
        log.info("a user is erased", extra={"erasure": asked.id, **counts})
        return dict(counts)

    async def _erase(self, erasure_id: str, user_id: UserId, counts: Counter[str]) -> None:
        now_ms = self._clock.now_ms()
        # The issuer's clock may be ahead of ours. What is in use has been issued, whatever it says.
        until_ms = max(now_ms, self._issued_until_ms(user_id))
        self._refuse(await self._store.begin_erasure(user_id, until_ms))
        errors: dict[DocName, RepSyncError] = {}
        for number in range(PASSES):
            if number:
                await asyncio.sleep(self._store.settles_after_s)
            for doc in await self._store.documents_of(user_id):
                # One that cannot be read keeps nothing else from being erased.
                try:
                    counts.update(await self._erase_in(doc, user_id))
                    errors.pop(doc, None)
                except RepSyncError as exc:
                    errors[doc] = exc
                await self._store.note_erasure(erasure_id, dict(counts), None)
            counts.update(await self._store.forget(user_id))
        for error in errors.values():
            raise error
        for name, count in list(counts.items()):
            if not count:
                del counts[name]

    async def _erase_in(self, doc: DocName, user_id: UserId) -> Counter[str]:
        try:
            async with self._hub.lease(doc) as live:
                is_owned = live.room.head["meta"].get("owner_id") == user_id
                is_theirs_alone = is_owned and live.room.heir_of(user_id) is None
            if is_theirs_alone:
                await self._hub.close_for_all(doc)
                await self._store.bury(doc)
                await self._hub.discard(doc)
                return Counter(documents_deleted=1)
            sets = await self._sets_in(doc, user_id)
            part = await self._hub.erase(doc, user_id, sets)
        except NotFound:
            await self._hub.discard(doc)
            return Counter()
        counts = await self._store.forget_in(doc, user_id)
        counts.update(sets=len(part.sets), timers=len(part.timers), texts=part.typed_blocks)
        if is_owned:
            counts.update(documents_handed_over=1)
        elif counts.total():
            counts.update(documents_cleaned=1)
        return counts

    async def _sets_in(self, doc: DocName, user_id: UserId) -> set[str]:
        loaded = await self._store.stored(doc)
        if loaded is None:
            raise NotFound(f"there is no {doc}")
        return erasure.sets_in([*filter(None, (loaded.snapshot, *loaded.updates))], user_id)


async def planned(store: Any, user_id: UserId) -> dict[str, Any]:
    """What an erasure would remove, without removing it.

    Args:
        store: `PersonalRecords`.
    """
    from crdt.room import Room

    counts: Counter[str] = Counter()
    deleted, changed = [], []
    for doc in await store.documents_of(user_id):
        loaded = await store.stored(doc)
        if loaded is None:
            continue
        room = Room(doc, loaded)
        part = room.part_of(user_id)
        if room.view["meta"].get("owner_id") == user_id and room.heir_of(user_id) is None:
            deleted.append(str(doc))
            continue
        changed.append(str(doc))
        counts.update(sets=len(part.sets), timers=len(part.timers), texts=part.typed_blocks)
    async for row in store.rows_of(user_id):
        counts[row.section] += 1
    return {"documents_deleted": deleted, "documents_changed": changed, **counts}
