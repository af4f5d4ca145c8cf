"""Alerts to `ALERT_WEBHOOK_URL`, one POST each, in their order.

**What is promised.** An alert that the receiver has answered with 2xx is not sent again; until then
it is tried, more and more rarely, for `MAX_AGE_S`. An answer that says that it will never be taken
(4xx but 408, 425 and 429) ends that. `MAX_WAITING` wait at most; of more the oldest are dropped.
All that is dropped is counted, and logged; none of it makes an alert of its own that would be sent.

**How it is signed.** `RepSync-Signature: sha256=<hex>` is the HMAC-SHA256 of `<timestamp>.<body>`,
where `<timestamp>` is the header `RepSync-Timestamp` (seconds since the epoch, of this attempt) and
the key is `ALERT_WEBHOOK_SECRET`. An alert's `id` and `state` are the same in every attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from server.breaker import Breaker, BreakerState

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
MAX_AGE_S = 900.0
MAX_WAITING = 100
TRIED_AGAIN = (408, 425, 429)


class Webhook:
    """One receiver.

    Args:
        now: seconds that never go back.
    """

    def __init__(
        self,
        url: str,
        secret: bytes,
        *,
        first_retry_s: float = FIRST_RETRY_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._secret = secret
        self._now = now
        self._breaker = Breaker(
            "the webhook",
            threshold=1,
            first_open_s=first_retry_s,
            longest_open_s=LAST_RETRY_S,
            now=now,
        )
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._has_some = asyncio.Event()
        self._error: str | None = None
        self.sent: Counter[str] = Counter()
        """Since the start: `delivered`, `refused`, `failed` (and tried again), `dropped`."""

    def send(self, alert: Mapping[str, Any]) -> None:
        """Have it delivered. Never blocks, never raises."""
        body = json.dumps(alert, ensure_ascii=False).encode()
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._drop("too many wait")
        self._waiting.append((self._now(), body))
        self._has_some.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), cookie_jar=aiohttp.DummyCookieJar()
        ) as http:
            while True:
                await self._has_some.wait()
                while self._waiting:
                    await asyncio.sleep(self._breaker.retry_in_s)
                    if self._breaker.state is not BreakerState.OPEN:
                        await self._deliver_next(http)
                self._has_some.clear()

    def report(self) -> dict[str, Any]:
        """The receiver as a dependency in the health report."""
        report: dict[str, Any] = {
            "state": "healthy" if self._error is None else "degraded",
            "breaker": self._breaker.state,
            "waiting": len(self._waiting),
        }
        if self._error is not None:
            report["error"] = self._error
        return report

    async def _deliver_next(self, http: aiohttp.ClientSession) -> None:
        entry = self._waiting[0]
        queued_at_s, body = entry
        if self._now() - queued_at_s > MAX_AGE_S:
            self._waiting.popleft()
            self._drop("it is too old")
            return
        try:
            with self._breaker.attempt():
                status = await self._post(http, body)
        except (aiohttp.ClientError, OSError, TimeoutError, _NotNow) as exc:
            self.sent["failed"] += 1
            self._error = str(exc) if isinstance(exc, _NotNow) else "it cannot be reached"
            return
        except Exception:
            log.exception("an alert cannot be sent")
            self.sent["failed"] += 1
            self._error = "it failed, see the log"
            return
        self._error = None
        if self._waiting and self._waiting[0] is entry:  # else it was dropped meanwhile
            self._waiting.popleft()
        if status < 300:
            self.sent["delivered"] += 1
        else:
            self.sent["refused"] += 1
            self._error = f"it answered with status {status}"
            log.warning("an alert was refused by its receiver", extra={"status": status})

    async def _post(self, http: aiohttp.ClientSession, body: bytes) -> int:
        """Returns: a status that is an answer. Raises _NotNow for one that is none."""
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "RepSync",
            "RepSync-Timestamp": timestamp,
            "RepSync-Signature": f"sha256={signature(self._secret, timestamp, body)}",
        }
        async with http.post(
            self._url, data=body, headers=headers, allow_redirects=False
        ) as response:
            status = response.status
        if status >= 500 or status in TRIED_AGAIN:
            raise _NotNow(f"it answered with status {status}")
        return status

    def _drop(self, why: str) -> None:
        self.sent["dropped"] += 1
        log.warning("an alert was dropped that could not be sent", extra={"cause": why})


class _NotNow(Exception):
    """The receiver has answered that it does not take it now."""


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """What signs a delivery, in hex."""
    return hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
