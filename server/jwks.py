"""The keys of `JWT_JWKS_URL`: fetched beside everything else, kept for a while, and looked for
again when a token names one that is not among them.

Keys are fetched anew well before their lifetime is over. While that fails, those at hand go on
being used for a bounded time, and the health report says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt

from crdt.errors import Unauthenticated, Unavailable
from server.breaker import Breaker, BreakerOpen
from server.keys import KeySet, KeySetError, VerifyingKey, read_key_set
from server.tasks import end

log = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 5.0
COOL_DOWN_S = 10.0
MAX_BODY_BYTES = 256 * 1024
REFRESH_AT = 0.75
"""The part of the lifetime after which keys are fetched anew."""
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0


class JwksClient:
    """The keys of one JWKS endpoint.

    Args:
        lifetime_s: how long keys are good without being fetched anew.
        stale_s: how much longer they are used while the endpoint cannot be reached.
        timeout_s: how long a fetch may take in all.
        cool_down_s: how far apart fetches are that unknown key ids ask for.
        now: seconds that never go back.
    """

    setting = "JWT_JWKS_URL"

    def __init__(
        self,
        url: str,
        *,
        lifetime_s: float,
        stale_s: float,
        timeout_s: float = FETCH_TIMEOUT_S,
        cool_down_s: float = COOL_DOWN_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._lifetime_s = lifetime_s
        self._stale_s = stale_s
        self._timeout_s = timeout_s
        self._cool_down_s = cool_down_s
        self._now = now
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._took_s: float | None = None
        # Whoever asks, the endpoint is left alone for a while after each fetch that failed.
        self.breaker = Breaker(
            "the key set",
            threshold=1,
            first_open_s=min(FIRST_RETRY_S, lifetime_s),
            longest_open_s=min(LAST_RETRY_S, lifetime_s),
            now=now,
        )
        self._error: str | None = "not fetched yet"
        self._is_failing = self._has_told_the_end = False
        self._due = self._look_again_at = now()
        self._fetching: asyncio.Task[None] | None = None
        self.fetches: Counter[str] = Counter()
        """Counted since the start, by outcome; read by the metrics."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep the keys fresh for as long as the block runs."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Nothing is unpacked, so that what comes is no larger than what was counted.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            auto_decompress=False,
        ) as self._http:
            refreshing = asyncio.create_task(self._keep_fresh(), name="jwks")
            try:
                yield
            finally:
                await end(refreshing, self._fetching)

    # -- asking -----------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether there are keys that may be used now."""
        return self._at_hand() is not None

    async def find(self, token: str) -> VerifyingKey:
        """The key that a token names, be it one that has to be fetched.

        Raises:
            Unauthenticated: there is no such key.
            Unavailable: there are no keys at all.
            jwt.PyJWTError: it is no token.
        """
        key_id = jwt.get_unverified_header(token).get("kid")
        key = self._find(key_id)
        if key is None:
            await self._look_again(key_id)
            key = self._find(key_id)
        if key is not None:
            return key
        if not self.is_ready:
            raise Unavailable("tokens cannot be checked now", retry_after_ms=1_000)
        if key_id is None:
            raise Unauthenticated("the token must name its key: there are several")
        raise Unauthenticated("the token's key is not in the key set")

    def report(self) -> dict[str, Any]:
        """How the endpoint is, for the health report."""
        keys = self._at_hand()
        report: dict[str, Any] = {
            "kind": "jwks",
            "state": "healthy" if keys is not None and self._error is None else "degraded",
            "keys": keys.count if keys is not None else 0,
            "breaker": self.breaker.state,
        }
        if self._took_s is not None:
            report["latency_ms"] = round(self._took_s * 1_000, 3)
        if self._keys is not None:
            report["age_s"] = round(self._now() - self._fetched_at, 1)
        if self._error is not None:
            report["error"] = self._error
        return report

    def _at_hand(self) -> KeySet | None:
        age_s = self._now() - self._fetched_at
        return self._keys if age_s <= self._lifetime_s + self._stale_s else None

    def _find(self, key_id: str | None) -> VerifyingKey | None:
        keys = self._at_hand()
        return keys.find(key_id) if keys is not None else None

    async def _look_again(self, key_id: str | None) -> None:
        """Fetch the keys for the sake of one that is missing, if that may help."""
        if self._fetching is not None:
            # It may have begun before the key was there, so it does not count as a look.
            await self._fetch()
            if self._error is not None or self._find(key_id) is not None:
                return
        if key_id is None and self.is_ready:
            return
        if self._now() >= self._look_again_at and not self.breaker.retry_in_s:
            self._look_again_at = self._now() + self._cool_down_s
            await self._fetch()

    async def fetch(self) -> None:
        """Fetch the keys now, whatever is at hand; `report` tells how that went."""
        await self._fetch()

    # -- fetching ---------------------------------------------------------------------------

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._due - self._now()))
            if self._now() >= self._due:
                await self._fetch()

    async def _fetch(self) -> None:
        """Fetch the keys, or wait for the fetch that is under way. Never raises."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._renew(), name="jwks fetch")
        # One who gives up waiting must not take the fetch away from the others.
        await asyncio.shield(self._fetching)

    async def _renew(self) -> None:
        try:
            with self.breaker.attempt():
                started = time.perf_counter()
                keys = read_key_set(await self._download())
                self._took_s = time.perf_counter() - started
                self._take(keys)
        except BreakerOpen:
            pass  # asked for by a token, too early; `_due` is when it is tried again
        except KeySetError as exc:
            self._fail(str(exc))
        except TimeoutError:
            self._fail(f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as exc:
            self._fail(f"it cannot be reached: {type(exc).__name__}")
        except Exception as exc:
            log.exception("the key set could not be handled")
            self._fail(type(exc).__name__)
        finally:
            self._fetching = None

    async def _download(self) -> bytes:
        """Raises KeySetError, TimeoutError, aiohttp.ClientError or OSError."""
        async with self._http.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise KeySetError(f"it answered with status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise KeySetError(f"it is larger than {MAX_BODY_BYTES} bytes")
            return bytes(body)

    def _take(self, keys: KeySet) -> None:
        self.fetches["ok"] += 1
        if self._keys is None or keys != self._keys:
            log.info(
                "the key set has changed",
                extra={"keys": list(keys.by_id) or keys.count, "left_out": list(keys.left_out)},
            )
        elif self._error is not None:
            log.info("the key set can be fetched again")
        self._keys, self._error = keys, None
        self._is_failing = self._has_told_the_end = False
        self._fetched_at = self._now()
        self._due = self._fetched_at + self._lifetime_s * REFRESH_AT

    def _fail(self, error: str) -> None:
        self.fetches["failed"] += 1
        if not self._is_failing:
            self._is_failing = True
            log.warning("the key set cannot be fetched", extra={"cause": error})
        if not self.is_ready and not self._has_told_the_end:
            self._has_told_the_end = True
            log.error("no token can be checked: there are no keys", extra={"cause": error})
        self._error = error
        self._due = self.breaker.retry_at_s
