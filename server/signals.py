"""How a process is asked to end."""

from __future__ import annotations

import asyncio
import signal


def until_stopped() -> asyncio.Event:
    """Set by SIGTERM and by SIGINT, for the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
