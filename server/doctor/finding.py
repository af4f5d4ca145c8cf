"""What a check has found, and how long it may take to find it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

CHECK_TIMEOUT_S = 3.0

Level = Literal["ok", "warning", "FAIL"]
OK: Level = "ok"
WARNING: Level = "warning"
FAIL: Level = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how bad it is, what it is about, what was found and what to do."""

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.subject:<9} {self.text}"


def ok(subject: str, text: str) -> Finding:
    return Finding(OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    return Finding(WARNING, subject, text)


def failure(subject: str, text: str) -> Finding:
    return Finding(FAIL, subject, text)


async def within(
    subject: str, what: str, check: Awaitable[Finding], timeout_s: float | None = None
) -> Finding:
    """What a check finds; that it does not end in time, or fails itself, is a finding too."""
    timeout_s = CHECK_TIMEOUT_S if timeout_s is None else timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await check
    except TimeoutError:
        return failure(subject, f"{what}: no answer within {timeout_s:g} s")
    except Exception as exc:
        return failure(subject, f"{what}: it could not be looked at ({type(exc).__name__})")


async def in_thread(work: Callable[[], T]) -> T:
    """Have a thread do what may block for ever, as on a network drive; it is left behind then, and
    does not keep the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as exc:
            error = exc
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


def address(url: str) -> str:
    """Where an address leads, without user name, password and options."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address"
    if parts.scheme == "unix":
        return parts.path
    return parts.netloc.rpartition("@")[2]
