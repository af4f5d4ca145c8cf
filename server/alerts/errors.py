"""Errors in groups, counted over the last minute.

Errors that differ only in ids and numbers are one group. There are `MAX_GROUPS` at most; what comes
beyond that is counted as one more, so that nothing that a client sends makes this grow.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Mapping

from server.alerts.book import Severity

WINDOW_S = 60.0
BUCKET_S = 5.0
MAX_GROUPS = 200
MAX_KEY_CHARS = 160
MAX_WAITING = 10_000
OTHERS = "others"

THRESHOLDS: tuple[tuple[int, Severity], ...] = ((50, "critical"), (25, "warning"), (10, "info"))
"""(errors of a group in a minute, how bad that is), the worst first."""
BUDGET = 50
"""Errors of all groups that a minute may have."""

_IDS = (
    (re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+"), "#"),
    (re.compile(r"""'[^']*'|"[^"]*"|“[^”]*”"""), "#"),
    (re.compile(r"\b(workout|template|user|challenge):[\w-]+"), r"\1:#"),
    (re.compile(r"[\w.@+-]*\d[\w.@+-]*"), "#"),  # any word with a digit in it
    (re.compile(r"\s+"), " "),
)


def normalised(text: str) -> str:
    """A text without what is another one each time: ids, numbers, addresses, what is quoted."""
    text = text[:1_000]
    for pattern, replacement in _IDS:
        text = pattern.sub(replacement, text)
    return text.strip()[:MAX_KEY_CHARS]


class ErrorHandler(logging.Handler):
    """Keeps what was logged as an error until somebody takes it. Called in whatever thread."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._waiting: deque[tuple[str, str, str, str]] = deque(maxlen=MAX_WAITING)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith((__package__, "sentry_sdk")):
            return  # what tells of errors must not make some of its own
        kind = record.exc_info[0] if record.exc_info else None
        event = vars(record).get("intent")
        self._waiting.append(
            (
                record.name,
                event if isinstance(event, str) else "",
                kind.__name__ if kind is not None else "",
                str(record.msg),
            )
        )

    def take(self) -> list[str]:
        """The groups of what has come since the last call, one entry for each error."""
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        return [_key(*one) for one in taken]


def _key(logger: str, event: str, kind: str, message: str) -> str:
    about = " ".join(filter(None, (normalised(message), event, kind)))
    return f"{logger}: {about}"[:MAX_KEY_CHARS]


class ErrorCounts:
    """How many errors each group had in the last `WINDOW_S`, give or take a bucket."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        """All since the start, by the severity that their group had come to."""
        self._buckets: deque[tuple[int, Counter[str]]] = deque()
        self._sums: Counter[str] = Counter()

    def add(self, key: str, now_s: float) -> None:
        self._forget(now_s)
        if key not in self._sums and len(self._sums) >= MAX_GROUPS:
            key = OTHERS
        number = int(now_s // BUCKET_S)
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append((number, Counter()))
        self._buckets[-1][1][key] += 1
        self._sums[key] += 1
        self.total[severity_of(self._sums[key]) or "none"] += 1

    def groups(self, now_s: float) -> Mapping[str, int]:
        """Errors in the window, by group."""
        self._forget(now_s)
        return self._sums

    def budget_left(self, now_s: float) -> int:
        """How many more errors this minute may have."""
        self._forget(now_s)
        return max(0, BUDGET - self._sums.total())

    def _forget(self, now_s: float) -> None:
        oldest = int(now_s // BUCKET_S) - round(WINDOW_S / BUCKET_S)
        while self._buckets and self._buckets[0][0] <= oldest:
            _, counts = self._buckets.popleft()
            self._sums -= counts  # and forget those of which none is left


def severity_of(count: int) -> Severity | None:
    """How bad so many errors of one group in a minute are; None if that is not worth a word."""
    return next((severity for least, severity in THRESHOLDS if count >= least), None)
