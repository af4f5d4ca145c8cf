"""How much may be sent: token buckets, for events and for bytes.

A bucket is asked for every message, so it is a few floats and no timer: what has been earned since
is added when somebody asks. Time is passed in, and is the event loop's. What was spent is not given
back, whatever became of the message.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """So much a second in the long run, and so much at once after a pause."""

    events_per_s: float
    events_burst: float
    bytes_per_s: float
    bytes_burst: float

    @property
    def patience_s(self) -> float:
        """How long a burst takes to come back: further ahead nobody is told to try again."""
        return self.events_burst / self.events_per_s


UNLIMITED = Rate(1e12, 1e12, 1e15, 1e15)


class Allowance:
    """What one connection, or all of a user's together, may still send."""

    __slots__ = ("_at", "_bytes", "_events", "_rate", "_retry_at")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._events = float(rate.events_burst)
        self._bytes = float(rate.bytes_burst)
        self._at = now
        self._retry_at = now

    def spend(self, size_bytes: int, now: float, shared: Allowance | None = None) -> float:
        """Take one event of this size out of this allowance and a shared one, or out of neither.

        Returns: 0.0 when it was taken; else in how many seconds it can be, if nothing else is sent.
        """
        wait_s = self._wait_s(size_bytes, now)
        if shared is not None:
            shared_wait_s = shared._wait_s(size_bytes, now)
            if shared_wait_s > wait_s:
                wait_s = shared_wait_s
        if wait_s > 0.0:
            return wait_s
        self._events -= 1.0
        self._bytes -= size_bytes
        if shared is not None:
            shared._events -= 1.0
            shared._bytes -= size_bytes
        return 0.0

    def charge(self, events: float) -> None:
        """Take more, for what turned out to be dear; the next message waits for it to come back."""
        self._events -= events

    def retry_after_s(self, wait_s: float, size_bytes: int, now: float) -> float | None:
        """When a message for which `spend` said `wait_s` may come again. Those who are refused one
        after the other are told one time after the other, so that each finds room when it comes.

        Returns: None for who takes no heed: more are to come again than a burst may hold.
        """
        rate = self._rate
        at = max(now + wait_s, self._retry_at)
        if at - now > wait_s + rate.patience_s:
            return None
        self._retry_at = at + max(1.0 / rate.events_per_s, size_bytes / rate.bytes_per_s)
        return at - now

    def whole_in_s(self, now: float) -> float:
        """Returns: in how many seconds it is as a new one, if nothing is sent; 0.0 if it is."""
        rate = self._rate
        self._earn(now)
        return max(
            (rate.events_burst - self._events) / rate.events_per_s,
            (rate.bytes_burst - self._bytes) / rate.bytes_per_s,
        )

    def _earn(self, now: float) -> None:
        rate = self._rate
        passed_s = now - self._at
        if passed_s > 0.0:
            self._at = now
            events = self._events + passed_s * rate.events_per_s
            self._events = events if events < rate.events_burst else rate.events_burst
            size = self._bytes + passed_s * rate.bytes_per_s
            self._bytes = size if size < rate.bytes_burst else rate.bytes_burst

    def _wait_s(self, size_bytes: int, now: float) -> float:
        rate = self._rate
        self._earn(now)
        wait_s = 0.0
        if self._events < 1.0:
            wait_s = (1.0 - self._events) / rate.events_per_s
        if self._bytes < size_bytes:
            # A message larger than the burst goes out of a full bucket, which owes the rest.
            lacking = min(size_bytes, rate.bytes_burst) - self._bytes
            if lacking > 0.0:
                wait_s = max(wait_s, lacking / rate.bytes_per_s)
        return wait_s
