"""Who is told of what goes wrong: the receiver of alerts, and Sentry. A server does without either,
so that one cannot be reached is a warning."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from server.alerts import sentry
from server.doctor import network
from server.doctor.finding import Finding, failure, ok, warning, within
from server.settings import Settings, SettingsError

HTTP_PORT, HTTPS_PORT = 80, 443


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    if settings.alert_webhook_url is not None:
        url = settings.alert_webhook_url.get_secret_value()
        yield await within("alerts", "ALERT_WEBHOOK_URL", webhook(url))
    if settings.sentry_dsn is not None:
        yield errors(settings)


async def webhook(url: str) -> Finding:
    """Whether it takes connections. Nothing is sent; only its host is shown: with some receivers
    the rest is all that one needs to know."""
    is_https = url.startswith("https:")
    host = urlsplit(url).hostname
    try:
        await network.demand_reachable(network.places(url, HTTPS_PORT if is_https else HTTP_PORT))
    except network.Unreachable as exc:
        return warning("alerts", f"the receiver at {host}: {exc} (ALERT_WEBHOOK_URL)")
    return ok("alerts", f"the receiver at {host} takes connections")


def errors(settings: Settings) -> Finding:
    """Whether errors can be sent at all: a server that cannot does not start."""
    try:
        sentry.check(settings.sentry_dsn)
    except SettingsError as exc:
        return failure("errors", str(exc))
    return ok("errors", "errors go to Sentry")
