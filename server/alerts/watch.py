"""The alerts of a running server: looked for twice a second, told to whoever is to know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from crdt.ports import Clock
from server.alerts import conditions, sentry
from server.alerts.book import RANK, AlertBook
from server.alerts.errors import ErrorCounts, ErrorHandler
from server.alerts.webhook import Webhook
from server.health import Health
from server.metrics import Metrics
from server.settings import Settings
from server.tasks import end

log = logging.getLogger(__name__)

TICK_S = 0.5
ABOUT_THE_WEBHOOK = "dependency:webhook"

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


class Alerts:
    """What is wrong on this instance, and who is told.

    Args:
        push: gives an alert to those who watch `system:alerts`.
        webhook: where else they go.
        sentry_dsn: where errors go one by one.
        now: seconds that never go back.
    """

    def __init__(
        self,
        health: Health,
        clock: Clock,
        push: Callable[[dict[str, Any]], None],
        *,
        instance: str,
        webhook: Webhook | None = None,
        sentry_dsn: str | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._health = health
        self._clock = clock
        self._push = push
        self._webhook = webhook
        self._sentry_dsn = sentry_dsn
        self._now = now
        self._handler = ErrorHandler()
        self._counts = ErrorCounts()
        self._book = AlertBook(instance)
        if webhook is not None:
            health.add("webhook", webhook.report)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        health: Health,
        clock: Clock,
        push: Callable[[dict[str, Any]], None],
        *,
        instance: str,
    ) -> Alerts:
        webhook = None
        if settings.alert_webhook_url is not None:
            assert settings.alert_webhook_secret is not None
            webhook = Webhook(
                settings.alert_webhook_url.get_secret_value(),
                settings.alert_webhook_secret.get_secret_value().encode(),
            )
        dsn = settings.sentry_dsn.get_secret_value() if settings.sentry_dsn else None
        return cls(health, clock, push, instance=instance, webhook=webhook, sentry_dsn=dsn)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Count errors, and tell of what is wrong, as long as the block runs."""
        if self._sentry_dsn is not None:
            sentry.start(self._sentry_dsn)
        logging.getLogger().addHandler(self._handler)
        tasks = [asyncio.create_task(self._look_again_and_again(), name="alerts")]
        if self._webhook is not None:
            tasks.append(asyncio.create_task(self._webhook.run(), name="alert webhook"))
        try:
            yield
        finally:
            await end(*tasks)
            logging.getLogger().removeHandler(self._handler)
            if self._sentry_dsn is not None:
                await asyncio.to_thread(sentry.stop)

    def firing(self) -> list[dict[str, Any]]:
        """The alerts that are firing now, the worst first."""
        return self._book.firing()

    def look(self) -> None:
        """Find out what is wrong now, and tell what is to be told."""
        now_s = self._now()
        for key in self._handler.take():
            self._counts.add(key, now_s)
        found = conditions.of_report(self._health.report())
        found += conditions.of_errors(self._counts.groups(now_s))
        for alert in self._book.update(found, now_s, self._clock.now_ms()):
            self._tell(alert)

    def watch(self, metrics: Metrics) -> None:
        """Show what is counted here."""
        severities = [severity for severity in RANK if severity is not None]

        def firing(severity: str) -> int:
            return sum(1 for alert in self._book.firing() if alert["severity"] == severity)

        metrics.count(
            "repsync_errors",
            "Errors that were logged, by the severity that their group had come to",
            "severity",
            lambda: {name: self._counts.total[name] for name in ("none", *severities)},
        )
        metrics.watch(
            "repsync_error_budget_remaining",
            "How many more errors this minute may have",
            lambda: self._counts.budget_left(self._now()),
        )
        for severity in severities:
            metrics.watch(
                "repsync_alerts_firing",
                "Alerts that are firing",
                partial(firing, severity),
                {"severity": severity},
            )
        if (webhook := self._webhook) is not None:
            metrics.count(
                "repsync_alert_deliveries", "To the webhook", "outcome", webhook.sent.copy
            )

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.look()
            except Exception:
                log.exception("alerts cannot be looked for")

    def _tell(self, alert: dict[str, Any]) -> None:
        is_firing = alert["state"] == "firing"
        log.log(
            _LEVELS[alert["severity"]] if is_firing else logging.INFO,
            "an alert is firing" if is_firing else "an alert is resolved",
            extra={
                **{name: alert[name] for name in ("id", "key", "severity", "title", "count")},
                "about": alert["message"],
            },
        )
        try:
            self._push(alert)
        except Exception:
            log.exception("an alert cannot be shown")
        if self._webhook is not None and alert["key"] != ABOUT_THE_WEBHOOK:
            self._webhook.send({**alert, "server_time": self._clock.now_ms()})
