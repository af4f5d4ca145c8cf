"""Time for what asks for seconds."""

from __future__ import annotations


class Ticker:
    """A clock that goes forward only when it is told to."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self._now_s = now_s

    def __call__(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
