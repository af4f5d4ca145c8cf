"""A process that is asked to end ends, whatever becomes of what it waits for."""

from __future__ import annotations

import asyncio
import sys

from server.signals import EXIT_STUCK
from tests.helpers.servers import ROOT

PROGRAM = """
import asyncio, logging, threading, uvloop
from server import logs, signals
from server.settings import Settings

async def deaf_to_cancelling():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def main():
    logs.configure(Settings(log_format="json"), is_serving=True)
    asyncio.create_task(deaf_to_cancelling())
    if {blocks}:
        asyncio.get_running_loop().call_soon(threading.Event().wait)
    signals.TELL_BEFORE_S = 1.5
    signals.end_in_time({limit_s})
    await asyncio.sleep(0)

uvloop.run(main())
"""


async def outcome(**options: object) -> tuple[int | None, str]:
    """Returns: the exit code, and what was written to stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM.format(**options), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_a_task_that_does_not_end_is_named_and_the_process_ends() -> None:
    code, said = await outcome(blocks=False, limit_s=2.0)
    assert code == EXIT_STUCK
    assert "the end takes too long" in said
    assert "deaf_to_cancelling" in said


async def test_a_loop_that_stands_still_keeps_the_process_no_longer() -> None:
    code, said = await outcome(blocks=True, limit_s=2.0)
    assert code == EXIT_STUCK
    assert "threading.py" in said
