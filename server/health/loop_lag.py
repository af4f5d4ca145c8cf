"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time
from collections import deque

INTERVAL_S = 0.05
"""A stall shows as at least its length less this. Waking up is most of what an idle server does."""
KEPT_S = 15.0  # as long as a scraper looks away


class LoopLag:
    """Has itself called again and again, and keeps how late that was."""

    def __init__(self) -> None:
        self._lags: deque[tuple[float, float]] = deque()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        self._wait(loop)
        try:
            await loop.create_future()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.monotonic() + INTERVAL_S
        # A callback: a task that sleeps costs a quarter more, with all that an idle server does.
        self._timer = loop.call_later(INTERVAL_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        lag = now - self._due
        # Kept are those that no later one exceeds: the first is the worst.
        while self._lags and self._lags[-1][1] <= lag:
            self._lags.pop()
        self._lags.append((now, lag))
        self._forget(now)
        self._wait(loop)

    def _forget(self, now: float) -> None:
        while self._lags and self._lags[0][0] < now - KEPT_S:
            self._lags.popleft()

    @property
    def worst_s(self) -> float:
        """The longest that the loop was late in the last `KEPT_S`."""
        self._forget(time.monotonic())
        return max(0.0, self._lags[0][1]) if self._lags else 0.0
