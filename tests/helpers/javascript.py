"""Node, and the packages of `tests/js/`, for the tests that need them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

JS = Path(__file__).parents[1] / "js"
TIMEOUT_S = 60


def demand_javascript() -> None:
    """Skip where the packages are not installed; in CI they have to be."""
    missing = None
    if shutil.which("node") is None:
        missing = "Node.js was not found"
    elif not (JS / "node_modules" / ".stamp").exists():
        missing = "the JavaScript clients are not installed, run `make test`"
    if missing and os.environ.get("CI"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


async def run_script(script: str, given: str) -> Any:
    """Run a script of `tests/js/` to its end. Returns: what it printed, which is JSON."""
    node = await asyncio.create_subprocess_exec(
        "node", script, cwd=JS, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await node.communicate(given.encode())
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    assert node.returncode == 0, err.decode()
    return json.loads(out)
