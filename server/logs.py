"""Logs: one line for each thing that matters, readable on a terminal, JSON elsewhere.

Modules log through the standard library with `extra=`; structlog renders. Library loggers that
print payloads or tokens stay off.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from server.settings import Settings

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}


def configure(settings: Settings) -> None:
    """Send all logs to stderr, in the configured form."""
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
        _take_extra,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        shared.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
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


def _take_extra(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    record: logging.LogRecord = event["_record"]
    event.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
    return event
