"""What the server counts, for Prometheus. No label takes a value that a client chooses.

**Promise.** To count costs next to nothing: a plain int goes up where something happens, or a
bucket of a `Histogram`, and all of it is read and written out when Prometheus asks. To ask too
often does no harm: after `RENDERS_AT_ONCE` answers there are `RENDERS_PER_S` new ones a second, and
in between the last one is given again. (A cache by age alone would show somebody who looks, acts
and looks again what was before.)

**Who owns what.** Each part owns its own numbers; `server/instruments.py` says which of them are
shown. Here are those of the doors, which have no other place.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from server.transport.allowance import Allowance, Rate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

RENDERS_PER_S, RENDERS_AT_ONCE = 4.0, 20.0
"""A scrape every 15 s, and some more by hand, are always answered anew."""
_RENDERS = Rate(RENDERS_PER_S, RENDERS_AT_ONCE, 1.0, 1.0)

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

Label = str | tuple[str, ...]
"""A label's value, or those of several labels in their order."""
Numbers = Mapping[str, float] | Mapping[tuple[str, ...], float] | Mapping[tuple[str, str], float]


class Histogram:
    """How often something took how long, or was how large. One thread at a time may add to it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """
        Args:
            bounds: the largest value of each bucket, rising; what is larger goes into one more.
        """
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each with all that is smaller."""
        so_far = 0
        shown: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            so_far += count
            shown.append((floatToGoString(bound), so_far))  # type: ignore[no-untyped-call]
        return shown


class RoomTimes:
    """What the rooms tell (`crdt.ports.Observer`)."""

    def __init__(self) -> None:
        self.append_seconds = Histogram()
        self.append_changes = Histogram(COUNTS)
        self.shown_seconds = {"here": Histogram(), "elsewhere": Histogram()}

    def appended(self, changes: int, append_s: float, shown_s: float) -> None:
        self.append_changes.observe(changes)
        self.append_seconds.observe(append_s)
        self.shown_seconds["here"].observe(shown_s)

    def heard(self, age_s: float) -> None:
        # Clocks differ: what seems to come from the future was fast.
        self.shown_seconds["elsewhere"].observe(max(0.0, age_s))


class Metrics(Collector):
    """One set of metrics for one server; several servers in a process do not mix."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        """Events from clients, by name and code. Names are those that we know, not what a client
        calls them."""
        self.ack_seconds = {"events": Histogram(), "document": Histogram()}
        self.resets: Counter[str] = Counter()
        self.delivered = 0
        """Document updates sent, one for each recipient."""
        self.rooms = RoomTimes()
        self._families: dict[str, Callable[[], Metric]] = {}
        self._gauges: dict[str, tuple[list[str], dict[tuple[str, ...], Callable[[], float]]]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._renders = Allowance(_RENDERS, time.monotonic())
        self._rendered = b""

    def watch(
        self, name: str, text: str, read: Callable[[], float], labels: dict[str, str] | None = None
    ) -> None:
        """Add a gauge, or one more value of its labels, that is read when somebody asks."""
        given = labels or {}
        if name not in self._gauges:
            names, reads = self._gauges[name] = (list(given), {})

            def family() -> Metric:
                gauge = GaugeMetricFamily(name, text, labels=names)
                for values, value in reads.items():
                    gauge.add_metric(values, float(value()))
                return gauge

            self._add(name, family)
        self._gauges[name][1][tuple(given.values())] = read

    def watch_by(self, name: str, text: str, label: Label, read: Callable[[], Numbers]) -> None:
        """Add a gauge that somebody else keeps, by the values of its labels."""
        self._add(name, lambda: _by(GaugeMetricFamily(name, text, labels=_names(label)), read()))

    def total(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a counter that somebody else keeps. `name` goes without `_total`."""
        self._add(name, lambda: CounterMetricFamily(name, text, value=read()))

    def count(self, name: str, text: str, label: Label, read: Callable[[], Numbers]) -> None:
        """The same, by the values of its labels."""
        self._add(name, lambda: _by(CounterMetricFamily(name, text, labels=_names(label)), read()))

    def measure(self, name: str, text: str, histogram: Histogram) -> None:
        """Add a histogram that somebody else keeps."""

        def family() -> Metric:
            metric = HistogramMetricFamily(name, text)
            metric.add_metric([], histogram.buckets(), histogram.total)
            return metric

        self._add(name, family)

    def measure_by(
        self, name: str, text: str, label: str, histograms: Mapping[str, Histogram]
    ) -> None:
        """The same, by the values of a label."""

        def family() -> Metric:
            metric = HistogramMetricFamily(name, text, labels=[label])
            for value, histogram in histograms.items():
                metric.add_metric([value], histogram.buckets(), histogram.total)
            return metric

        self._add(name, family)

    def _add(self, name: str, family: Callable[[], Metric]) -> None:
        if name in self._families:
            raise ValueError(f"{name} is shown already")
        self._families[name] = family

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return [family() for family in self._families.values()]

    def render(self) -> bytes:
        """All of it in Prometheus's text format, at most a quarter of a second old."""
        if not self._renders.spend(0, time.monotonic()):
            self._rendered = generate_latest(self._registry)
        return self._rendered


def _names(label: Label) -> list[str]:
    return [label] if isinstance(label, str) else list(label)


def _by(family: CounterMetricFamily | GaugeMetricFamily, numbers: Numbers) -> Metric:
    for label, number in numbers.items():
        family.add_metric([label] if isinstance(label, str) else label, number)
    return family
