"""A circuit breaker: what fails again and again is left alone for a while, and then tried by one.

    closed ── `threshold` failures in a row ──▶ open ── its time is over ──▶ half_open
       ▲                                         ▲                             │ one attempt
       └────────────── it succeeded ─────────────┼─────────────────────────────┤
                                                 └── it failed: twice as long ─┘

An attempt that is cancelled, or ends with an error that says nothing of what is guarded, counts for
nothing; if it was the one of a half-open breaker, the next caller's is. What was begun before the
breaker opened or closed says nothing either. It keeps no task and asks nobody by itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType

log = logging.getLogger(__name__)


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class BreakerOpen(Exception):
    """Not tried: it has just failed. `retry_in_s`: when to ask again, at the earliest."""

    def __init__(self, name: str, retry_in_s: float) -> None:
        super().__init__(f"{name} has failed and is left alone for the moment")
        self.retry_in_s = retry_in_s


class Breaker:
    """Guards one thing that may be away.

    Args:
        name: what is guarded, for the log.
        threshold: after so many failures in a row it opens,
        least_s: if it has not succeeded for so long, from when the first of them was begun: many
            that fail at one moment, because a connection is cut, are no reason.
        first_open_s, longest_open_s: how long it is open; twice as long after each attempt that
            fails, up to the longest.
        now: seconds that never go back.
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: int,
        least_s: float = 0.0,
        first_open_s: float,
        longest_open_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.opened = 0
        """How often it has opened since the start, from closed."""
        self._threshold = threshold
        self._least_s = least_s
        self._first_open_s = first_open_s
        self._longest_open_s = longest_open_s
        self._now = now
        self._failures = 0
        self._failing_since_s = math.inf
        self._open_s = 0.0
        """How long it is open this time; 0 while it is closed."""
        self._opened_at_s = self._retry_at_s = 0.0
        self._turn = 0
        """Counts its openings and closings: an attempt of an earlier turn says nothing now."""
        self._trial: Attempt | None = None

    @property
    def state(self) -> BreakerState:
        if not self._open_s:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._now() < self._retry_at_s else BreakerState.HALF_OPEN

    @property
    def retry_at_s(self) -> float:
        """When somebody may try, on the breaker's clock; its past while it is closed."""
        return self._retry_at_s

    @property
    def retry_in_s(self) -> float:
        """How long until then; 0 if that may be now."""
        return max(0.0, self._retry_at_s - self._now()) if self._open_s else 0.0

    def attempt(self, is_failure: Callable[[Exception], bool] = lambda _: True) -> Attempt:
        """Try what is guarded, within `with`.

        Args:
            is_failure: whether an exception says that it is away.
        Raises:
            BreakerOpen: it is left alone now, or somebody else is trying.
        """
        attempt = Attempt(self, self._turn, self._now(), is_failure)
        match self.state:
            case BreakerState.OPEN:
                raise BreakerOpen(self.name, self.retry_in_s)
            case BreakerState.HALF_OPEN:
                if self._trial is not None:
                    raise BreakerOpen(self.name, self._first_open_s)
                self._trial = attempt
        return attempt

    def look(self) -> Attempt:
        """Try it whatever the state, for the sake of knowing. If it succeeds the breaker closes;
        if not nothing follows, because who only looks may be less patient than others."""
        return Attempt(self, self._turn, self._now(), lambda _: False)

    def _end(self, attempt: Attempt, has_failed: bool | None) -> None:
        if self._trial is attempt:
            self._trial = None
        if attempt.turn != self._turn or has_failed is None:
            return
        if not has_failed:
            self._failures, self._failing_since_s = 0, math.inf
            if self._open_s:
                self._close()
        elif self._open_s:
            self._open(min(2 * self._open_s, self._longest_open_s))
        else:
            self._failures += 1
            self._failing_since_s = min(self._failing_since_s, attempt.began_s)
            has_lasted = self._now() - self._failing_since_s >= self._least_s
            if self._failures >= self._threshold and has_lasted:
                self.opened += 1
                self._opened_at_s = self._now()
                log.warning("a breaker has opened", extra={"breaker": self.name})
                self._open(self._first_open_s)

    def _open(self, for_s: float) -> None:
        self._turn += 1
        self._trial = None
        self._open_s = for_s
        self._retry_at_s = self._now() + for_s

    def _close(self) -> None:
        self._turn += 1
        self._trial = None
        self._open_s = 0.0
        self._failures, self._failing_since_s = 0, math.inf
        after_s = round(self._now() - self._opened_at_s, 1)
        log.info("a breaker has closed", extra={"breaker": self.name, "after_s": after_s})


class Attempt:
    """One try; what comes of its block is told to the breaker."""

    __slots__ = ("_breaker", "_is_failure", "began_s", "turn")

    def __init__(
        self,
        breaker: Breaker,
        turn: int,
        began_s: float,
        is_failure: Callable[[Exception], bool],
    ) -> None:
        self._breaker = breaker
        self.began_s = began_s
        self._is_failure = is_failure
        self.turn = turn

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            has_failed: bool | None = False
        elif isinstance(error, Exception) and self._is_failure(error):
            has_failed = True
        else:
            has_failed = None
        self._breaker._end(self, has_failed)
