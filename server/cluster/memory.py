"""Whether Redis still has what it was given, or was emptied: flushed, or started without its file.

**What is promised.** Whoever asks learns of it before reading or founding anything in a Redis that
was emptied, and others within `LOOK_EVERY_S`. For `SETTLE_S` from then on it counts as away: each
instance gives back what it holds, and nothing is read, judged or appended besides, because what
others hold is not there yet.

**Who owns what.** A note in Redis with a name of its own, written when there is none. This keeps
the name that was seen last.

**What fails.** Redis away: nobody learns anything, and nobody reads anything. An instance that
stands still for longer than `SETTLE_S` gives back what it holds later than others have begun to
read. In a Redis Cluster the note tells of the node that holds it, not of the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from server.cluster.connection import NotNow
from server.cluster.log import RedisLog

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
SETTLE_S = 3.0
CLOCKS_DIFFER_MS = 60_000
"""No more than so much, this instance's from what it was when something was written down."""


class Emptied(NotNow):
    """Redis was emptied a moment ago."""


class RedisMemory:
    """What is known of how long Redis has kept what it has.

    Args:
        is_new: whether the database is empty as well, so that nothing can be missing.
        on_emptied: called once each time that Redis turns out to have been emptied.
    """

    def __init__(
        self,
        redis_log: RedisLog,
        is_new: Callable[[], Awaitable[bool]],
        on_emptied: Callable[[Emptied], None],
    ) -> None:
        self._log = redis_log
        self._is_new = is_new
        self._on_emptied = on_emptied
        self._note: str | None = None
        self._since_ms = 0.0
        self._settled_at_s = 0.0

    def has_kept(self, since_ms: int) -> bool:
        """Whether Redis still has what it was given at this wall time; False if that is not known.

        Args:
            since_ms: ms since the epoch, by this instance's clock.
        """
        return self._note is not None and since_ms - CLOCKS_DIFFER_MS > self._since_ms

    @property
    def is_settling(self) -> bool:
        """Whether others may still be giving back what they hold."""
        return time.monotonic() < self._settled_at_s

    async def look(self) -> None:
        """See whether Redis was emptied.

        Raises:
            Emptied: it was, and not all is there again that others hold.
            Unavailable: the database cannot say whether it is empty; asked once only.
            One of `connection.ERRORS`.
        """
        is_new = self._note is None and await self._is_new()
        note, age_s = await self._log.since(is_new=is_new)
        if note != self._note:
            known, self._note = self._note, note
            self._since_ms = (time.time() - age_s) * 1_000
            self._settled_at_s = time.monotonic() + SETTLE_S - age_s
            if known is not None:
                log.error("Redis was emptied", extra={"ago_s": round(age_s, 3)})
                self._on_emptied(_emptied())
        if self.is_settling:
            raise _emptied()


def _emptied() -> Emptied:
    return Emptied("Redis was emptied; what instances hold is being given back")
