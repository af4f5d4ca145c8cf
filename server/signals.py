"""How a process is asked to end, and that it does."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
from typing import Any

log = logging.getLogger("server")

ENDS_WITHIN_S = 20.0
"""What all that is waited for at the end may take together, generously."""

EXIT_STUCK = 1
"""The exit code of a process that had to be ended by `end_in_time`."""

TELL_BEFORE_S = 2.0


def until_stopped() -> asyncio.Event:
    """Set by SIGTERM and by SIGINT, for the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def end_in_time(limit_s: float = ENDS_WITHIN_S) -> None:
    """From now on the process ends within `limit_s`, whatever is still waited for: by itself, or
    with `EXIT_STUCK`, and the stacks of its tasks and threads in its log. Nothing that was acked
    is lost by it, as by no other death."""
    loop = asyncio.get_running_loop()
    loop.call_later(limit_s - TELL_BEFORE_S, _tell_tasks, loop)
    # A thread without the interpreter's lock sees to it: the loop may be what is stuck.
    faulthandler.dump_traceback_later(limit_s, exit=True)


def _tell_tasks(loop: asyncio.AbstractEventLoop) -> None:
    waiting = {task.get_name(): awaited_by(task) for task in asyncio.all_tasks(loop)}
    log.error("the end takes too long", extra={"waiting": waiting})


def awaited_by(task: asyncio.Task[Any]) -> list[str]:
    """Where a task waits, from the outside in. Its own `get_stack` knows the outermost place."""
    places: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            places.append(f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return places
