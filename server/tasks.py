"""Ending tasks that talk to databases.

A driver may lose a cancellation: before Python 3.12 `asyncio.wait_for`, by which they write and
read, returns as if nothing were when it is cancelled just as it is done. A loop that only waits for
its `CancelledError` then goes on for ever, and whoever waits for its end does too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

AGAIN_AFTER_S = 0.5
ATTEMPTS = 6


async def end(*tasks: asyncio.Task[Any] | None, patience_s: float = 0.0) -> None:
    """Cancel tasks, and wait until they have ended. One that has not heard of it, because a library
    has swallowed it, is told again; not for ever: a process that ends takes it along.

    Args:
        patience_s: how long they may take to end by themselves before they are cancelled.
    """
    running = {task for task in tasks if task is not None and not task.done()}
    if patience_s and running:
        _, running = await asyncio.wait(running, timeout=patience_s)
    for _ in range(ATTEMPTS):
        for task in running:
            task.cancel()
        if running:
            _, running = await asyncio.wait(running, timeout=AGAIN_AFTER_S)
    for known in tasks:
        if known is not None and known.done() and not known.cancelled():
            known.exception()  # what it failed with has been told, or does not matter any more


def heed_cancellation() -> None:
    """At the top of a loop of calls that is cancelled once, as a task of a `TaskGroup` is, and not
    by `end`: stop if a driver has lost that.

    Raises:
        asyncio.CancelledError: the task is to end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Chores:
    """Tasks that nobody waits for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cancel those that run; see `end`."""
        await end(*self._tasks)
