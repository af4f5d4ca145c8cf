"""Logs: one line for each thing that matters, readable on a terminal, JSON elsewhere.

Modules log through the standard library with `extra=`; structlog renders. What is known of why
something happens (`Cause`) is added to every line: set where a client's event comes in, and looked
at only when there is something to log.

**What is never logged**: tokens, payloads, updates, what a refused client called things. Library
loggers that print them stay off, and whatever looks like a token is blotted out of the finished
line, should it stand in somebody's exception.

**What fails.** Too many lines of one kind would take the loop from those who are served: above
`LINES_PER_S` those below ERROR are left out, and the next one says how many.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from server.settings import Settings
from server.transport.allowance import Allowance, Rate

LINES_PER_S, LINES_AT_ONCE = 200.0, 2_000.0
"""Of one kind."""
_LINES = Rate(LINES_PER_S, LINES_AT_ONCE, 1.0, 1.0)
_MAX_KINDS = 1_000

_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){0,4}")
"""A JWT, or the beginning of one: all begin with `{"` in base64."""
_BLOT = "[token]"

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    *("message", "asctime", "taskName")
}


class Cause(NamedTuple):
    """Why something is done: an event of a client's."""

    connection: str
    user: str
    event: str
    """One that there is."""
    number: int
    """Which of its connection's events it is."""
    op_id: object
    """What the client calls the operation; anything at all."""

    def facts(self) -> dict[str, str]:
        """What a line says of it."""
        return {
            "correlation": self._correlation(),
            "connection": self.connection,
            "user": self.user,
            "intent": self.event,
        }

    def _correlation(self) -> str:
        """The same on all lines of one event: its `op_id`, which is the same when the event is sent
        again, to whichever instance; else one of our own."""
        if isinstance(self.op_id, str):
            try:
                return str(UUID(self.op_id))
            except ValueError:
                pass
        return f"{self.connection}-{self.number}"


cause: ContextVar[Cause | None] = ContextVar("cause", default=None)
"""Set while an event is handled, and in the tasks that this starts."""

_of_all_lines: dict[str, str] = {}


def name_instance(instance: str) -> None:
    """Have every line of this process say which instance it is of."""
    _of_all_lines["instance"] = instance


def configure(settings: Settings, *, is_serving: bool = True) -> None:
    """Send all logs to stderr, in the configured form.

    Args:
        is_serving: False for a command that has something else to say: then only what is wrong is
            logged, unless LOG_LEVEL is set.
    """
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        # The default shows the local variables of every frame, and tokens are among them.
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _add_facts,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        shared.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
                _blot,
            ],
        )
    )
    handler.addFilter(_Flood())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    is_quiet = not is_serving and "log_level" not in settings.model_fields_set
    root.setLevel(logging.WARNING if is_quiet else settings.log_level)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


_NOISY = (
    # These would get a level, and a handler that writes plain text, if they had no level yet.
    *("engineio.server", "socketio.server"),
    *("engineio", "socketio", "aiohttp.access", "pymongo"),
)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a failure may be one of ours. A request that cannot be read is its client's, who is
    told so; aiohttp logs it with a trace all the same."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | RequestPayloadError)


def _add_facts(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add what is known of the line; what was said with it (`extra`) counts most."""
    record: logging.LogRecord = event["_record"]
    event.update(_of_all_lines)
    if (why := cause.get()) is not None:
        event.update(why.facts())
    event.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
    return event


def _blot(_: Any, __: str, line: Any) -> str:
    text = str(line)
    return _TOKEN.sub(_BLOT, text) if "eyJ" in text else text


class _Flood(logging.Filter):
    """Lets so many lines of a kind through: of a logger that says the same, whatever `extra` is."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, str], tuple[Allowance, list[int]]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        now = time.monotonic()
        kind = (record.name, str(record.msg))
        if kind not in self._kinds:
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            self._kinds[kind] = (Allowance(_LINES, now), [0])
        allowance, left_out = self._kinds[kind]
        if allowance.spend(0, now):
            left_out[0] += 1
            return False
        if left_out[0]:
            record.left_out, left_out[0] = left_out[0], 0
        return True
