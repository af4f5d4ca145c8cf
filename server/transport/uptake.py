"""Whether a client takes anything of what is on its way to it."""

from __future__ import annotations

from collections.abc import Callable


class Uptake:
    """How far a client had come when it was last looked at. Times are the event loop's."""

    __slots__ = ("_progress", "_settled_bytes")

    def __init__(self, now: float) -> None:
        self._settled_bytes = 0  # of those written: when last looked, the client had them all
        self._progress = (0, now)

    def stalled_for_s(
        self, written_bytes: int, waiting_bytes: Callable[[], int], now: float
    ) -> float:
        """How long nothing of what is on its way to the client has been taken, in seconds.

        Args:
            written_bytes: since the start.
            waiting_bytes: what of it the client has not; asked only if it may be some.
        """
        if written_bytes == self._settled_bytes:
            return 0.0
        waiting = waiting_bytes()
        if not waiting:
            self._settled_bytes = written_bytes
        taken = written_bytes - waiting
        if taken != self._progress[0] or not waiting:
            self._progress = (taken, now)
        return now - self._progress[1]
