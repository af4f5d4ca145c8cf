"""So many in each turn of the event loop.

When a server that went away comes back, all its clients do, at once. Their handshakes are short,
but two thousand of them in one turn would hold up those who are in already for half a second.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    """Lets `per_turn` pass in one turn of the loop; the others wait, first come, first served."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        self._is_turning = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def passing(self) -> None:
        """Wait for one's turn. Who is cancelled meanwhile gives up the place."""
        loop = asyncio.get_running_loop()
        if not self._is_turning:
            self._is_turning = True
            loop.call_soon(self._turn, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        place: asyncio.Future[None] = loop.create_future()
        self._waiting.append(place)
        await place

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._per_turn
        while self._left and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                self._left -= 1
        self._is_turning = bool(self._waiting) or self._left < self._per_turn
        if self._is_turning:
            loop.call_soon(self._turn, loop)
