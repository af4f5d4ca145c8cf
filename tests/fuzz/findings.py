"""Where the fuzzer keeps what it has found: beside the code, and out of the repository."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / ".fuzz"
REGRESSIONS = Path(__file__).parent / "regressions"
LAST = "last"


def keep(target: str, data: bytes) -> Path:
    """Write an input that broke something. Returns: where it is, to be moved to `REGRESSIONS`."""
    name = hashlib.sha256(data).hexdigest()[:12]
    path = FINDINGS / target / "crashes" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.relative_to(ROOT)
