"""Ports for servers that must come back where they were."""

from __future__ import annotations

import os
import random
import socket
from collections import deque

FIRST_PORT, LAST_PORT = 12_000, 32_767
"""Below those that systems give to outgoing connections, one of which would take the port while
its server is down."""

SHARES = 8
SHARE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
"""Each process that runs tests has ports of its own: one that is given is not taken at once."""

CHANCE = random.SystemRandom()
"""Not the common one, which property tests set to the same start in every process."""

_given: deque[int] = deque(maxlen=500)


def free_port(*, also_above: int = 0) -> int:
    """A port of this machine's that nobody listens on, and that was not given to others lately.

    Args:
        also_above: the port that is so much higher is to be free as well.
    """
    while True:
        port = CHANCE.randrange(FIRST_PORT + SHARE, LAST_PORT + 1 - also_above, SHARES)
        ports = {port, port + also_above}
        if not ports & set(_given) and all(_is_free(one) for one in ports):
            _given.extend(ports)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
