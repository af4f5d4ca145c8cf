"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time
from collections import deque

INTERVAL_S = 0.05
"""A stall shows as at least its length less this. Waking up is most of what an idle server does."""
KEPT_S = 15.0  # as long as a scraper looks away


class LoopLag:
    """Sleeps again and again, and keeps how much too long that took."""

    def __init__(self) -> None:
        self._lags: deque[tuple[float, float]] = deque()

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.monotonic() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            now = time.monotonic()
            # Kept are those that no later one exceeds: the first is the worst.
            while self._lags and self._lags[-1][1] <= now - due:
                self._lags.pop()
            self._lags.append((now, now - due))
            self._forget(now)

    def _forget(self, now: float) -> None:
        while self._lags and self._lags[0][0] < now - KEPT_S:
            self._lags.popleft()

    @property
    def worst_s(self) -> float:
        """The longest that the loop was late in the last `KEPT_S`."""
        self._forget(time.monotonic())
        return max(0.0, self._lags[0][1]) if self._lags else 0.0
