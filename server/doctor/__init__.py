"""`python -m server doctor`: is everything there that this server needs, and if not, what to do.

It reads the same settings as the server, and looks at what they name: folder, port, keys, Redis,
MongoDB. It changes nothing: no folder, no secret, no database is made. A file that proves that the
data folder can be written is there for a moment. Each check has `CHECK_TIMEOUT_S`; one that fails
takes no other with it. Nothing that it prints is a secret: of an address, user name, password and
options are left out.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator

from server.doctor import databases, keys, machine, receivers, shared_log
from server.doctor.finding import FAIL, OK, WARNING, Finding, failure
from server.settings import Settings, SettingsError

EXIT_WELL, EXIT_ILL, EXIT_UNREADABLE = 0, 1, 2


def main(token: str | None = None) -> int:
    """Examine what the environment configures, and print a line for each check.

    Args:
        token: one to be checked as well; `-` reads it from stdin.
    Returns: the exit code: 0 if nothing failed, 1 if something did, 2 if the settings cannot be
        read.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # what matters is in the findings
    try:
        settings = Settings.from_env()
    except SettingsError as exc:
        print(failure("settings", str(exc)))
        return EXIT_UNREADABLE
    if token == "-":
        token = sys.stdin.readline().strip()
    return asyncio.run(_report(settings, token))


async def _report(settings: Settings, token: str | None) -> int:
    counts = dict.fromkeys((OK, WARNING, FAIL), 0)
    async for finding in examine(settings, token):
        counts[finding.level] += 1
        print(finding, flush=True)
    print(f"{counts[FAIL]} failed, {counts[WARNING]} warnings, {counts[OK]} ok")
    return EXIT_ILL if counts[FAIL] else EXIT_WELL


async def examine(settings: Settings, token: str | None = None) -> AsyncIterator[Finding]:
    """All checks, one after the other: what the settings say, this machine, the keys, and what is
    to be reached from here."""
    async for finding in machine.examine(settings):
        yield finding
    async for finding in keys.examine(settings, token):
        yield finding
    if settings.redis_url is not None:
        async for finding in shared_log.examine(settings, settings.redis_url.get_secret_value()):
            yield finding
    if settings.mongodb_uri is not None:
        async for finding in databases.examine(settings.mongodb_uri.get_secret_value()):
            yield finding
    async for finding in receivers.examine(settings):
        yield finding
