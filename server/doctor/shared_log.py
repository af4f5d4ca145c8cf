"""Redis: whether it can be reached, keeps what it is told to keep, and is ours."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import RedisCluster
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from server.cluster.connection import REDIS_PORT, SENTINEL_PORT, Connection, connect
from server.cluster.envelope import Sealer
from server.cluster.log import RedisLog
from server.cluster.record import open_record
from server.doctor import network
from server.doctor.finding import Finding, address, failure, ok, warning, within
from server.settings import Settings
from server.storage.mongo_log import Damaged
from server.storage.port import StorageError

COMMAND_TIMEOUT_S = 1.5
OLDEST = (6, 2)
MAX_SKEW_S = 1.0
RECORDS_LOOKED_AT = 20

NowMs = Callable[[], int]


async def examine(settings: Settings, url: str) -> AsyncIterator[Finding]:
    where = f"Redis at {address(url)}"
    try:
        redis = connect(url, timeout_s=COMMAND_TIMEOUT_S)
    except StorageError as exc:
        yield failure("redis", str(exc))
        return
    try:
        reached = await within("redis", where, reach(url, where))
        if reached.level == "ok":
            reached = await within("redis", where, greet(redis, url, where))
        yield reached
        if reached.level == "ok":
            for what, check in (
                ("its version", version(redis)),
                ("its memory policy", eviction(redis)),
                ("its append-only file", persistence(redis)),
                ("its clock", clock(redis)),
                ("BUS_SECRET", secret(redis, settings)),
            ):
                yield await within("redis", what, check)
    finally:
        with suppress(RedisError, OSError):
            await redis.aclose()


async def reach(url: str, where: str) -> Finding:
    """Whether it takes connections."""
    try:
        tls = network.any_tls() if url.startswith("rediss") else None
        await network.demand_reachable(_places(url), tls)
    except network.Unreachable as exc:
        return failure("redis", f"{where}: {exc} (REDIS_URL)")
    return ok("redis", f"{where} takes connections")


def _places(url: str) -> list[network.Where]:
    return network.places(url, SENTINEL_PORT if "+sentinel" in url else REDIS_PORT)


async def greet(redis: Connection, url: str, where: str) -> Finding:
    """Whether it answers, to us."""
    started_s = time.monotonic()
    try:
        await redis.ping()
    except (AuthenticationError, AuthorizationError) as exc:
        return failure("redis", f"{where} {_login(exc)}")
    except MasterNotFoundError:
        service = urlsplit(url).path.split("/")[1]
        return failure("redis", f"{where}: no Sentinel knows a master of {service!r}: correct it")
    except NoPermissionError:
        return failure("redis", f"{where} does not let this user do PING: look at its ACL")
    except BusyLoadingError:
        return failure("redis", f"{where} is loading its data: wait")
    except ResponseError as exc:
        if str(exc).startswith("NOAUTH"):
            return failure("redis", f"{where} {_login(exc)}")
        return failure("redis", f"{where} refuses to answer ({str(exc)[:100]}): look at its log")
    except (RedisError, OSError, RuntimeError) as exc:
        reason = await network.why_silent(_places(url), url.startswith("rediss"), exc)
        return failure("redis", f"{where}: {reason} (REDIS_URL)")
    return ok("redis", f"{where} answers, {(time.monotonic() - started_s) * 1_000:.1f} ms")


def _login(exc: Exception) -> str:
    if "required" in str(exc).lower() or "NOAUTH" in str(exc):
        return "wants a password: write it into REDIS_URL, redis://:password@host"
    return "refuses user name or password: correct them in REDIS_URL, percent-encoded"


async def version(redis: Connection) -> Finding:
    return judge_version([str(info.get("redis_version", "")) for info in await _infos(redis)])


def judge_version(found: list[str]) -> Finding:
    """Whether these are new enough."""
    for text in found:
        parts = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
        if parts < OLDEST:
            return warning("redis", f"it is version {text or '?'}: take 6.2 or newer")
    return ok("redis", f"version {', '.join(sorted(set(found)))}")


async def eviction(redis: Connection) -> Finding:
    """Whether it drops what it has acknowledged when memory is short."""
    for info in await _infos(redis, "memory"):
        policy = info.get("maxmemory_policy", "?")
        if policy != "noeviction":
            return warning(
                "redis",
                f"its maxmemory-policy is {policy}, it drops changes that were acknowledged when"
                " memory is short: set maxmemory-policy noeviction",
            )
    return ok("redis", "maxmemory-policy noeviction")


async def persistence(redis: Connection) -> Finding:
    """Whether what it has acknowledged outlasts its restart."""
    for info in await _infos(redis, "persistence"):
        if not int(info.get("aof_enabled", 0)):
            return warning(
                "redis",
                "its appendonly is off, a restart loses what is not in MongoDB yet:"
                " set appendonly yes",
            )
        if info.get("aof_last_write_status", "ok") != "ok":
            return failure("redis", "it cannot write its append-only file: look at its disk")
    return ok("redis", "appendonly yes")


async def clock(redis: Connection, now_ms: NowMs = lambda: time.time_ns() // 10**6) -> Finding:
    """Whether its clock and ours agree."""
    before_ms = now_ms()
    seconds, micros = await redis.time()
    after_ms = now_ms()
    theirs_ms = int(seconds) * 1_000 + int(micros) // 1_000
    return judge_clock("redis", theirs_ms, before_ms, after_ms)


def judge_clock(subject: str, theirs_ms: int, before_ms: int, after_ms: int) -> Finding:
    """Args: the time that was told, and ours before asking and after the answer."""
    skew_ms = max(before_ms - theirs_ms, theirs_ms - after_ms, 0)
    if skew_ms > MAX_SKEW_S * 1_000:
        side = "behind" if theirs_ms < before_ms else "ahead of"
        return warning(
            subject,
            f"its clock is {skew_ms / 1_000:,.1f} s {side} this machine's: run NTP on both",
        )
    return ok(subject, "its clock agrees with this machine's")


async def secret(redis: Connection, settings: Settings) -> Finding:
    """Whether the records of the instances that run were sealed as ours would be."""
    sealer, log = Sealer.configured(settings.bus_secret), RedisLog(redis, settings.redis_prefix)
    is_set = "set" if settings.bus_secret else "not set"
    looked_at = 0
    async for doc in log.heads():
        head = await log.head(doc)
        for record in await log.read(doc, head.pos - 1, limit=1) if head is not None else ():
            try:
                open_record(sealer, doc, record)
            except Damaged as exc:
                return failure(
                    "redis",
                    f"BUS_SECRET is {is_set}, and records in Redis were made with another one"
                    f" ({exc}): set the same for all instances and workers",
                )
            looked_at += 1
        if looked_at >= RECORDS_LOOKED_AT:
            break
    if not looked_at:
        return ok("redis", f"BUS_SECRET is {is_set}; there are no records to hold it against")
    return ok("redis", f"BUS_SECRET is {is_set}, and opens the records in Redis")


async def _infos(redis: Connection, section: str = "server") -> list[Mapping[str, Any]]:
    """`INFO` of each server that holds something."""
    if not isinstance(redis, RedisCluster):
        return [await redis.info(section)]
    await redis.initialize()
    found = []
    for node in redis.get_primaries():
        answer = await redis.execute_command("INFO", section, target_nodes=node)
        found.append(next(iter(answer.values())) if node.name in answer else answer)
    return found
