"""What is logged of a failure, on a terminal and elsewhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest

from server import logs
from server.settings import Settings

log = logging.getLogger("server.of_a_test")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Afterwards the root logger is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def fail_with(token: str) -> None:
    """A local variable holds the token."""
    try:
        raise RuntimeError(f"no good: {len(token)}")
    except RuntimeError:
        log.exception("it failed", extra={"document": "workout:w"})


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_local_variables(
    capsys: pytest.CaptureFixture[str], form: Literal["console", "json"]
) -> None:
    logs.configure(Settings(log_format=form))
    fail_with("hunter2")
    text = capsys.readouterr().err
    assert "RuntimeError: no good: 7" in text
    assert "workout:w" in text
    assert "hunter2" not in text


def test_elsewhere_each_line_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    log.warning("slow", extra={"seconds": 2})
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["seconds"]) == ("slow", "warning", 2)
