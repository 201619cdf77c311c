"""Every figure the program keeps, with its meaning; served by the web adapter, written by any thread.

One `Metrics` is made by the composition root and handed down: no global registry, so two controllers in one test
process do not add up. Labels have a closed set of values, preset to zero, so that a rate is right from the first event
on and no text from outside can grow the number of series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ottoscaler.core.events import DeadReason, EventType
from ottoscaler.core.verdicts import Outcome

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
OTHER: Final = "other"

RETRY_TARGETS: Final = ("redis", "kubernetes")
RETRY_REASONS: Final = ("unreachable", "throttled")
RECONNECT_CAUSES: Final = ("ended", "expired", "unreachable")
KUBE_VERBS: Final = ("create", "get", "list", "list_events", "watch", "delete", "review")

_CREATE_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_RECORD_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class LabelledCounter:
    """A counter with labels of closed sets of values; a value outside its set counts as `other`. Any thread."""

    def __init__(self, registry: CollectorRegistry, name: str, meaning: str, **labels: Iterable[str]) -> None:
        self._counter = Counter(name, meaning, tuple(labels), registry=registry)
        self._allowed = tuple((*values, OTHER) for values in labels.values())
        self._children = {values: self._counter.labels(*values) for values in product(*self._allowed)}

    def inc(self, *values: str) -> None:
        """Count one, with a value for each label, in their order."""
        self.child(*values).inc()

    def child(self, *values: str) -> Counter:
        """The counter of these values, for a caller that counts often."""
        known = (value if value in allowed else OTHER for value, allowed in zip(values, self._allowed, strict=True))
        return self._children[tuple(known)]


class Metrics:
    """All figures of one controller. Any thread: the counters lock for themselves."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        tally, counter = partial(LabelledCounter, self._registry), partial(Counter, registry=self._registry)
        gauge, histogram = partial(Gauge, registry=self._registry), partial(Histogram, registry=self._registry)
        self.events_received = tally(
            "ottoscaler_events_received_total", "Events accepted from the stream, by type.", type=EventType
        )
        self.dead_letters = tally(
            "ottoscaler_dead_letters_total", "Entries put on the dead-letter stream, by reason.", reason=DeadReason
        )
        self.workers_finished = tally(
            "ottoscaler_workers_finished_total", "Workers with a recorded result, by outcome.", outcome=Outcome
        )
        self.retries = tally(
            "ottoscaler_retries_total",
            "Calls made again, by the server they went to and why.",
            target=RETRY_TARGETS,
            reason=RETRY_REASONS,
        )
        self.watch_reconnects = tally(
            "ottoscaler_watch_reconnects_total", "Restarts of the watch, by cause.", cause=RECONNECT_CAUSES
        )
        self.kube_requests = tally(
            "ottoscaler_kube_requests_total", "Calls to the Kubernetes API, retries included, by verb.", verb=KUBE_VERBS
        )
        self.redis_errors = counter("ottoscaler_redis_errors_total", "Calls to Redis that failed, before any retry.")
        self.pods_created = counter("ottoscaler_pods_created_total", "Worker pods created.")
        self.pods_deleted = counter("ottoscaler_pods_deleted_total", "Worker pods deleted by us.")
        self.live_pods = gauge("ottoscaler_live_pods", "Pods of our tasks that have not ended.")
        self.kept_pods = gauge(
            "ottoscaler_kept_pods", "Pods of failed workers that stay for inspection, of all replicas."
        )
        self.ready_workers = gauge("ottoscaler_ready_workers", "Workers that wait for a thread.")
        self.event_to_create_seconds = histogram(
            "ottoscaler_event_to_create_seconds",
            "From an event's arrival in the stream to each of its pods' creation: the wait for room is in it.",
            buckets=_CREATE_BUCKETS,
        )
        self.end_to_result_seconds = histogram(
            "ottoscaler_end_to_result_seconds",
            "From when the end of a worker's container was seen to its recorded result.",
            buckets=_RECORD_BUCKETS,
        )
        ProcessCollector(registry=self._registry)

    def register_gauges(self, *, live_pods: Callable[[], float], ready_workers: Callable[[], float]) -> None:
        """What is asked for at each look, instead of being kept here."""
        self.live_pods.set_function(live_pods)
        self.ready_workers.set_function(ready_workers)

    def render(self) -> bytes:
        """All figures in the text format of Prometheus, to be sent as CONTENT_TYPE."""
        return generate_latest(self._registry)
