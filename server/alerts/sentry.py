"""Errors to Sentry, when `SENTRY_DSN` is set: what failed and where, of whom and with what not.

An event has the logger, the level, the kinds of exceptions and their frames. It has no local
variables, requests, users, host names, breadcrumbs or log fields; ids and numbers are taken out of
its texts.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from server import VERSION
from server.alerts.errors import normalised
from server.settings import SettingsError

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

KEPT = frozenset(
    (
        *("event_id", "timestamp", "level", "logger", "platform", "release", "environment"),
        *("exception", "logentry", "sdk"),
    )
)
KEPT_OF_FRAME = frozenset(["filename", "abs_path", "function", "module", "lineno", "in_app"])


def check(dsn: SecretStr | None) -> None:
    """Look whether errors can be sent, if that is asked for.

    Raises:
        SettingsError: the package is missing, or the DSN is none. The text does not repeat it.
    """
    if dsn is None:
        return
    if find_spec("sentry_sdk") is None:
        raise SettingsError(
            "SENTRY_DSN is set and sentry-sdk is not installed: pip install 'sentry-sdk>=2.75,<3',"
            " or unset it"
        )
    from sentry_sdk.utils import BadDsn, Dsn

    try:
        Dsn(dsn.get_secret_value())
    except BadDsn:
        raise SettingsError("SENTRY_DSN is no DSN of Sentry's") from None


def start(dsn: str) -> None:
    """Have every error sent that is logged from now on."""
    import sentry_sdk
    from sentry_sdk.integrations.logging import LoggingIntegration

    sentry_sdk.init(
        dsn=dsn,
        release=f"repsync@{VERSION}",
        # Those of the SDK would send requests, arguments and what was said before.
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[LoggingIntegration(level=None, event_level=logging.ERROR)],
        before_send=scrubbed,
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        server_name="",
    )


def stop(timeout_s: float = 2.0) -> None:
    """Send what waits, for a moment, and send nothing any more."""
    import sentry_sdk

    sentry_sdk.get_client().close(timeout=timeout_s)
    sentry_sdk.get_global_scope().set_client(None)


def scrubbed(event: Event, _: Hint) -> Event | None:
    """The event without anything that could be somebody's."""
    if str(event.get("logger", "")).startswith(__package__):
        return None
    kept: dict[str, Any] = {name: value for name, value in event.items() if name in KEPT}
    if isinstance(entry := kept.get("logentry"), dict):
        kept["logentry"] = {"message": normalised(str(entry.get("message", "")))}
    for error in (kept.get("exception") or {}).get("values", ()):
        error["value"] = normalised(str(error.get("value") or ""))
        error.pop("mechanism", None)
        for frame in (error.get("stacktrace") or {}).get("frames", ()):
            for name in frame.keys() - KEPT_OF_FRAME:
                del frame[name]
    return kept  # type: ignore[return-value]
