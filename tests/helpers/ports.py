"""Ports for servers that must come back where they were."""

from __future__ import annotations

import random
import socket

FIRST_PORT, LAST_PORT = 12_000, 32_767
"""Below those that systems give to outgoing connections, one of which would take the port while
its server is down."""

CHANCE = random.SystemRandom()
"""Not the common one, which property tests set to the same start in every process."""


def free_port(*, also_above: int = 0) -> int:
    """A port of this machine's that nobody listens on.

    Args:
        also_above: the port that is so much higher is to be free as well.
    """
    while True:
        port = CHANCE.randint(FIRST_PORT, LAST_PORT - also_above)
        if all(_is_free(one) for one in {port, port + also_above}):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
