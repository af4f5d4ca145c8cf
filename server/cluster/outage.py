"""Whether Redis is away, why, and since when.

**What is promised.** From `went_away` until `is_back` all appends go to the spool, whoever noticed;
and every document that was followed then stays behind until it is healed, which `wake` asks for.
"""

from __future__ import annotations

import asyncio
import logging
import time

from crdt.errors import Unavailable
from server.breaker import BreakerState
from server.cluster.bus import explain
from server.cluster.hosted import Hosted, Hosts

log = logging.getLogger(__name__)


class Outage:
    """The present one, if there is one."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._since_s: float | None = None
        self._why_away: str | None = None
        self.why_behind: str | None = None
        """Why some documents are not up with their logs, though Redis answers."""
        self.wake = asyncio.Event()
        """Something is to be healed."""
        self.is_healing = False
        """Redis answers, and is being given what is in the spool."""

    @property
    def is_away(self) -> bool:
        return self._since_s is not None

    @property
    def why(self) -> str | None:
        """Why appends go to the spool, or some documents are behind."""
        return self._why_away or self.why_behind

    @property
    def breaker(self) -> BreakerState:
        """The same as a breaker's state: open while appends go to the spool, half open while Redis
        answers, and is given what is in there."""
        if self._since_s is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.is_healing else BreakerState.OPEN

    def went_away(self, exc: BaseException) -> None:
        """Redis does not do what it is asked, or not soon enough."""
        self._why_away = _explain(exc)
        if self._since_s is None:
            self._since_s = time.monotonic()
            log.warning("the shared log is away", extra={"cause": self._why_away})
        for hosted in self._hosts:
            hosted.is_behind = True
        self.wake.set()

    def is_back(self) -> None:
        """Redis answers fast, and has what was in the spool."""
        if self._since_s is not None:
            for_s = round(time.monotonic() - self._since_s, 3)
            log.info("the shared log is back", extra={"away_s": for_s})
        self._since_s = self._why_away = None

    def fell_behind(self, hosted: Hosted) -> None:
        """One document is to be healed; Redis may be well."""
        hosted.is_behind = True
        self.wake.set()

    def goes_on(self, exc: BaseException) -> None:
        """It could not be healed, for this reason."""
        if self.is_away:
            self._why_away = _explain(exc)
        else:
            self.why_behind = _explain(exc)


def _explain(exc: BaseException) -> str:
    """Why, without a word of hosts and names: /health shows it to anybody."""
    return str(exc) if isinstance(exc, Unavailable) else explain(exc)
