"""What the server counts, for Prometheus. No label takes a value that a client chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Kept(Collector):
    """A counter whose values are read when somebody asks."""

    def __init__(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, count in self._read().items():
            family.add_metric([value], count)
        yield family


class Metrics:
    """One set of metrics for one server; several servers in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._gauges: dict[str, Gauge] = {}
        self._events: dict[tuple[str, str], Counter] = {}
        self.events = Counter(
            "repsync_events",
            "Events from clients, by name and outcome",
            ["event", "code"],
            registry=self.registry,
        )
        self.refused = Counter(
            "repsync_connections_refused",
            "Refused connects, by code",
            ["code"],
            registry=self.registry,
        )
        self.deliveries = Counter(
            "repsync_update_deliveries",
            "Document updates sent, one for each recipient",
            registry=self.registry,
        )
        self.resets = Counter(
            "repsync_sync_resets",
            "Clients asked to sync anew, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.ack_seconds = Histogram(
            "repsync_ack_seconds",
            "Time from an event's arrival to its ack",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def count_event(self, event: str, code: str) -> None:
        """Count an event; `event` must be one that we know, not what a client calls it."""
        counter = self._events.get((event, code))
        if counter is None:
            counter = self._events[event, code] = self.events.labels(event, code)
        counter.inc()

    @property
    def delivered(self) -> float:
        """Document updates sent since the start, one for each recipient."""
        (family,) = self.deliveries.collect()
        return next(s.value for s in family.samples if s.name.endswith("_total"))

    def watch(
        self, name: str, text: str, read: Callable[[], float], labels: dict[str, str] | None = None
    ) -> None:
        """Add a gauge that is read when somebody asks."""
        gauge = self._gauges.get(name)
        if gauge is None:
            names = list(labels or ())
            gauge = self._gauges[name] = Gauge(name, text, names, registry=self.registry)
        (gauge.labels(**labels) if labels else gauge).set_function(read)

    def count(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        """Add a counter that somebody else keeps, by the values of one label."""
        self.registry.register(_Kept(name, text, label, read))

    def render(self) -> bytes:
        return generate_latest(self.registry)
