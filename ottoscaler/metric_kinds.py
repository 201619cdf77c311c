"""The kinds of figures that metrics.py is made of, with closed sets of labels, and the text in which they are served.

The hot path is one increment or one observation under a lock of its own: no look-up by label there, since callers that
count often hold the series itself. What can be read at any time is a source, which a scrape calls, and costs
nothing between two scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, openmetrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

#: The value of a label for all that is not in its set.
OTHER: Final = "other"

Source = Callable[[], Mapping[str, float]]

# Each counter and histogram would have a second series with the time of its creation, which no query uses. The switch
# is the library's own and of the whole process; it has to be set before the first scrape, and nothing sets it back.
disable_created_metrics()  # type: ignore[no-untyped-call]


class LabelledCounter:
    """A counter with labels of closed sets of values; a value outside its set counts as `other`. Any thread."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        meaning: str,
        only: Iterable[Sequence[str]] = (),
        **labels: Iterable[str],
    ) -> None:
        """`only`: the combinations of values that there are, where that is not each with each. What is none of them
        counts as `other` in all labels.
        """
        self._counter = Counter(name, meaning, tuple(labels), registry=registry)
        self._allowed = tuple((*values, OTHER) for values in labels.values())
        rows = {tuple(map(str, row)) for row in only} or set(product(*self._allowed))
        self._rest = self._counter.labels(*(OTHER for _ in labels))
        # in a fixed order, so that the text of two processes is the same
        self._children: dict[tuple[str, ...], Counter] = {row: self._counter.labels(*row) for row in sorted(rows)}

    def inc(self, *values: str) -> None:
        """Count one, with a value for each label, in their order."""
        self.child(*values).inc()

    def child(self, *values: str) -> Counter:
        """The counter of these values, for a caller that counts often."""
        found = self._children.get(values)
        if found is not None:
            return found
        known = (value if value in allowed else OTHER for value, allowed in zip(values, self._allowed, strict=True))
        return self._children.get(tuple(known), self._rest)


class LabelledHistogram:
    """A histogram with one label of a closed set of values; a value outside it counts as `other`. Any thread."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        meaning: str,
        *,
        label: str,
        values: Iterable[str],
        buckets: Sequence[float],
    ) -> None:
        histogram = Histogram(name, meaning, (label,), registry=registry, buckets=buckets)
        self._children: dict[str, Histogram] = {str(value): histogram.labels(str(value)) for value in (*values, OTHER)}

    def observe(self, value: str, amount: float) -> None:
        """Count one amount under this value of the label."""
        (self._children.get(value) or self._children[OTHER]).observe(amount)


class SourceGauges(Collector):
    """A gauge by one label, read from a source at each scrape. Until there is a source, all of it is 0."""

    def __init__(
        self, registry: CollectorRegistry, name: str, meaning: str, *, label: str, values: Iterable[str]
    ) -> None:
        self._name = name
        self._meaning = meaning
        self._label = label
        self._values = tuple(map(str, values))
        self.source: Source = dict
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """One sample for each value; those that the source does not name are 0, and it can add none."""
        found = self.source()
        family = GaugeMetricFamily(self._name, self._meaning, labels=(self._label,))
        for value in self._values:
            family.add_metric((value,), found.get(value, 0.0))
        yield family


def trace_exemplar(traceparent: str) -> dict[str, str] | None:
    """The exemplar of an event with this trace context, as `normalize_traceparent` returns it; None without one.

    The trace id alone: an exemplar of more than 128 characters raises, and does so after the amount was counted.
    """
    return {"trace_id": traceparent[3:35]} if traceparent else None


#: The content types. Not by the library's own choice, which echoes whatever version a client asks for.
PLAIN_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def exposition(registry: CollectorRegistry, *, with_exemplars: bool) -> bytes:
    """All figures: as OpenMetrics, which has exemplars, or in the plain format of Prometheus."""
    if with_exemplars:
        text: bytes = openmetrics.exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text
    return generate_latest(registry)
