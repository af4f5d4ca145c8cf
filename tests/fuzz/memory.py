"""How much memory is in use, and how much of it is kept of each input.

What is in use says little about a leak: native code, the allocator and libFuzzer fill tables once
and keep them. A leak is what grows again each time the same inputs are played.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_KEPT_BYTES = 256
"""Of one input. An empty document in memory takes some thousand."""

ROUNDS = 5


def kept_bytes(play: Callable[[bytes], object], inputs: Sequence[bytes]) -> float:
    """Play the same inputs several times.

    Returns: by how many bytes the memory in use grew for each input played, once what is made at
        first use had been made. Where there is no /proc, what is freed in between hides a leak
        until it exceeds that.
    """

    def play_all() -> int:
        for data in inputs:
            play(data)
        return memory_bytes()

    play_all()
    before = play_all()
    for _ in range(ROUNDS):
        after = play_all()
    return max(0, after - before) / (ROUNDS * len(inputs))


def memory_bytes() -> int:
    """The memory of this process, when all that is free has been given back."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the most that it ever was
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")
