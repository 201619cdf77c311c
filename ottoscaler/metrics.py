"""Every figure the program keeps, with its meaning; served by the web adapter, written by any thread.

One `Metrics` is made by the composition root and handed down: no global registry, so two controllers in one test
process do not add up. Labels have a closed set of values, preset to zero, so that a rate is right from the first event
on and no text from outside can grow the number of series. deploy/monitoring/metrics.txt lists them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from ottoscaler import __version__
from ottoscaler.core.events import DeadReason, EventType
from ottoscaler.core.log_figures import LineDrop, LogFigures, LogServer
from ottoscaler.core.status_codes import WORKER_CODES
from ottoscaler.core.verdicts import EndReason, Outcome, RetryBudget
from ottoscaler.metric_kinds import LabelledCounter, LabelledHistogram, Source, SourceGauges, exposition
from ottoscaler.stored import StreamLevels

RETRY_TARGETS: Final = ("redis", "kubernetes")
RETRY_REASONS: Final = ("unreachable", "throttled")
RECONNECT_CAUSES: Final = ("ended", "expired", "unreachable")
KUBE_VERBS: Final = (
    "create", "get", "list", "list_events", "create_event", "patch_event", "watch", "delete", "review", "look",
)  # fmt: skip
KUBE_EVENT_OUTCOMES: Final = ("created", "repeated", "limited", "overflow", "failed")
#: The status of an answer, or its class; `none`: there was no answer.
KUBE_CODES: Final = ("2xx", "401", "403", "404", "409", "410", "422", "429", "4xx", "5xx", "none")
REDIS_KINDS: Final = ("worker", "reader", "lease", "takeover")
THROTTLE_CAUSES: Final = ("inflight", "rate")
WORKER_STATES: Final = ("waiting", "creating", "pending", "running", "ending")
TASK_STATES: Final = ("waiting_key", "waiting", "running")
TRACE_OUTCOMES: Final = ("sent", "dropped")
EVENT_OUTCOMES: Final = ("accepted", "known", "dead")
LOG_ENDS: Final = ("complete", "incomplete", "refused", "given_up")
LOOPS: Final = (
    "watch", "dispatch", "lease", "takeover", "control", "scale-down", "ender", "reader", "reconciler",
    "logs", "log-drain-1", "log-drain-2", "log-drain-3", "log-drain-4",
)  # fmt: skip

#: Up to 12 hours: an event may wait for room for so long, and a quantile above the last bound is lost.
_CREATE_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0,
)  # fmt: skip
_START_BUCKETS: Final = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_RUN_BUCKETS: Final = (
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 43200.0, 86400.0,
)  # fmt: skip
_RECORD_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_KUBE_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
_REDIS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """All figures of one controller. Any thread: the counters lock for themselves."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._tally = partial(LabelledCounter, registry)
        self._counter = partial(Counter, registry=registry)
        self._gauge = partial(Gauge, registry=registry)
        self._histogram = partial(Histogram, registry=registry)
        self._sources = partial(SourceGauges, registry)
        self._add_events()
        self._add_workers()
        self._add_leases()
        self._add_kubernetes()
        self._add_redis()
        self._add_queue()
        self._add_logs()
        self._add_process()

    def _add_events(self) -> None:
        self.events_received = self._tally(
            "ottoscaler_events_received_total",
            "Entries read from the event stream, by type and by what became of them: accepted as a task, known already"
            " (a repetition), or a dead letter.",
            type=EventType,
            outcome=EVENT_OUTCOMES,
        )
        self.dead_letters = self._tally(
            "ottoscaler_dead_letters_total", "Entries put on the dead-letter stream, by reason.", reason=DeadReason
        )
        self.tasks = self._sources(
            "ottoscaler_tasks",
            "Open scale_up tasks of this replica: waiting for a place of their concurrency key, waiting for the first"
            " of their workers to get its turn, or running.",
            label="state",
            values=TASK_STATES,
        )

    def _add_workers(self) -> None:
        self.workers = self._sources(
            "ottoscaler_workers", "Unfinished workers of this replica, by state.", label="state", values=WORKER_STATES
        )
        self.worker_codes = self._sources(
            "ottoscaler_worker_codes",
            "Unfinished workers of this replica, by the code that says where they are.",
            label="code",
            values=WORKER_CODES,
        )
        self.live_pods = self._gauge("ottoscaler_live_pods", "Pods of this replica's tasks that have not ended.")
        self.kept_pods = self._gauge(
            "ottoscaler_kept_pods", "Pods of failed workers that stay for inspection, of all replicas."
        )
        self.ready_workers = self._gauge("ottoscaler_ready_workers", "Workers that wait for a thread.")
        self.max_workers = self._gauge("ottoscaler_max_workers", "The limit MAX_WORKERS.")
        self.pool_threads = self._sources(
            "ottoscaler_pool_threads",
            "Threads that carry a worker on: at work, or waiting for a change of their pod. At most MAX_WORKERS.",
            label="state",
            values=("working", "awaiting_pod"),
        )
        self.pods_created = self._counter("ottoscaler_pods_created_total", "Worker pods created.")
        self.pods_deleted = self._counter("ottoscaler_pods_deleted_total", "Worker pods deleted by this replica.")
        self.workers_finished = self._tally(
            "ottoscaler_workers_finished_total",
            "Workers with a recorded result, by outcome, fault and reason.",
            only=[(reason.outcome, reason.fault, reason) for reason in EndReason],
            outcome=(),
            fault=(),
            reason=(),
        )
        self.tasks_finished = self._tally(
            "ottoscaler_tasks_finished_total",
            "Scale_up tasks of which this replica recorded the last worker's result, by outcome.",
            outcome=(Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED),
        )
        self.worker_retries = self._tally(
            "ottoscaler_worker_retries_total",
            "Further attempts of workers, by the reason for which the attempt before failed.",
            reason=[reason for reason in EndReason if reason.retry is not RetryBudget.NEVER],
        )
        self._add_durations()

    def _add_durations(self) -> None:
        self.event_to_create_seconds = self._histogram(
            "ottoscaler_event_to_create_seconds",
            "From an event's arrival in the stream to each of its pods' creation: the wait for room is in it.",
            buckets=_CREATE_BUCKETS,
        )
        self.create_to_running_seconds = self._histogram(
            "ottoscaler_create_to_running_seconds",
            "From a pod's creation to the start of its worker, both by the times in the pod's status, which have whole"
            " seconds.",
            buckets=_START_BUCKETS,
        )
        self.run_seconds = self._histogram(
            "ottoscaler_run_seconds",
            "Run time of a worker's last attempt, by the times in the pod's status.",
            buckets=_RUN_BUCKETS,
        )
        self.end_to_result_seconds = self._histogram(
            "ottoscaler_end_to_result_seconds",
            "From when the end of a worker's container was seen to its recorded result.",
            buckets=_RECORD_BUCKETS,
        )

    def _add_leases(self) -> None:
        self.leases_held = self._gauge("ottoscaler_leases_held", "Tasks, scale_downs included, that this replica owns.")
        self.takeovers = self._counter(
            "ottoscaler_takeovers_total", "Tasks that this replica took over after their lease had run out."
        )
        self.lease_losses = self._counter(
            "ottoscaler_lease_losses_total", "Tasks of this replica that another one took over."
        )

    def _add_kubernetes(self) -> None:
        self.watch_reconnects = self._tally(
            "ottoscaler_watch_reconnects_total", "Restarts of the watch, by cause.", cause=RECONNECT_CAUSES
        )
        self.cluster_known = self._gauge(
            "ottoscaler_cluster_known",
            "1 while the watch shows the cluster's pods; 0: no pod is created until the next list.",
        )
        self.kube_requests = self._tally(
            "ottoscaler_kube_requests_total",
            "Requests to the Kubernetes API, retries included, by verb and status; none: there was no answer.",
            verb=KUBE_VERBS,
            code=KUBE_CODES,
        )
        self.kube_request_seconds = LabelledHistogram(
            self._registry,
            "ottoscaler_kube_request_seconds",
            "From a request to the end of the Kubernetes API's answer, by verb; a watch counts to its first byte.",
            label="verb",
            values=KUBE_VERBS,
            buckets=_KUBE_BUCKETS,
        )
        self._kube_throttled = self._tally(
            "ottoscaler_kube_throttled_seconds_total",
            "Seconds for which requests waited for their turn: for one of KUBE_INFLIGHT places, or for KUBE_QPS.",
            cause=THROTTLE_CAUSES,
        )

        self.kube_events = self._tally(
            "ottoscaler_kube_events_total",
            "What this replica had to write as Kubernetes Events, by what became of it: created, counted in one that is"
            " there (repeated), or dropped: too much about one pod (limited), too much at once (overflow), or the API"
            " server did not take it (failed).",
            outcome=KUBE_EVENT_OUTCOMES,
        )

    def _add_redis(self) -> None:
        self.redis_errors = self._counter(
            "ottoscaler_redis_errors_total", "Calls to Redis that failed, before any retry."
        )
        self.redis_request_seconds = LabelledHistogram(
            self._registry,
            "ottoscaler_redis_request_seconds",
            "Duration of a script in Redis as this replica sees it, the wait for a connection included, by what it is"
            " for.",
            label="kind",
            values=REDIS_KINDS,
            buckets=_REDIS_BUCKETS,
        )
        self.retries = self._tally(
            "ottoscaler_retries_total",
            "Calls made again, by the server they went to and why.",
            target=RETRY_TARGETS,
            reason=RETRY_REASONS,
        )
        self.servers_up = self._sources(
            "ottoscaler_server_up", "1 if the last call to this server was answered.", label="server",
            values=RETRY_TARGETS,
        )  # fmt: skip

    def _add_queue(self) -> None:
        """What Redis says of the whole queue: read by a loop, never by a scrape, which could hang on it."""
        self._levels: StreamLevels | None = None
        by_queue = "The same in each replica; not a number while Redis cannot be read."
        backlog = self._sources(
            "ottoscaler_backlog_events",
            f"Entries of the event stream that no replica has read, and those read and not accepted. {by_queue}",
            label="state",
            values=("unread", "pending"),
        )
        backlog.source = lambda: {
            "unread": self._queue_level(lambda levels: levels.unread),
            "pending": self._queue_level(lambda levels: levels.pending),
        }
        self._queue_gauge(
            "backlog_oldest_seconds", f"Age of the oldest entry in the backlog; 0: there is none. {by_queue}",
            lambda levels: levels.oldest_s,
        )  # fmt: skip
        self._queue_gauge("result_entries", f"Entries of the result stream. {by_queue}", lambda levels: levels.results)
        self._queue_gauge(
            "result_entries_unread",
            "Entries of the result stream that its slowest consumer group has not read; 0: it has no group."
            f" {by_queue}",
            lambda levels: levels.results_unread,
        )
        self._queue_gauge(
            "result_oldest_seconds", f"Age of the oldest entry of the result stream; 0: there is none. {by_queue}",
            lambda levels: levels.results_oldest_s,
        )  # fmt: skip
        self._queue_gauge(
            "dead_letter_entries", f"Entries of the dead-letter stream. {by_queue}", lambda levels: levels.dead_letters
        )
        self.result_entries_max = self._gauge("ottoscaler_result_entries_max", "The limit RESULT_MAXLEN.")

    def _queue_gauge(self, name: str, meaning: str, get: Callable[[StreamLevels], float]) -> None:
        self._gauge(f"ottoscaler_{name}", meaning).set_function(lambda: self._queue_level(get))

    def _queue_level(self, get: Callable[[StreamLevels], float]) -> float:
        levels = self._levels  # read once: another thread may take it away in between
        return math.nan if levels is None else get(levels)

    def _add_logs(self) -> None:
        """What the log forwarder says of itself, once a second."""
        self._log_lines = self._counter(
            "ottoscaler_log_lines_forwarded_total", "Lines of workers' logs that the log handler has acknowledged."
        )
        self._log_bytes = self._counter("ottoscaler_log_bytes_forwarded_total", "Bytes of text of these lines.")
        self._log_dropped = self._tally(
            "ottoscaler_log_lines_dropped_total",
            "Lines that the log handler did not get: there was no room for them any more, it answered DROP, it answered"
            " RETRY too often, or it wants no log of the worker.",
            reason=LineDrop,
        )
        self._log_gaps = self._counter(
            "ottoscaler_log_gaps_total", "Places in logs at which lines may be missing that no one can count."
        )
        self._log_reconnects = self._tally(
            "ottoscaler_log_reconnects_total",
            "Streams to the log handler, and follows of a pod's log at the Kubernetes API, that were opened again.",
            server=LogServer,
        )
        self._log_follows = self._gauge(
            "ottoscaler_log_follows", "Follows of pods' logs that are open at the Kubernetes API."
        )
        self._log_unacknowledged = self._gauge(
            "ottoscaler_log_entries_unacknowledged", "Log entries that were sent and are not acknowledged yet."
        )
        self._log_lag = self._gauge(
            "ottoscaler_log_lag_seconds",
            "Age of the oldest log line that was read and is not acknowledged; 0: there is none.",
        )
        self._log_waiting = self._gauge(
            "ottoscaler_log_workers_waiting",
            "Workers that wait for a stream to the log handler: more of them run than one connection has streams.",
        )
        self.logs_ended = self._tally(
            "ottoscaler_logs_ended_total",
            "Logs of pods that are over: complete; acknowledged to their end, with lines dropped; refused by the log"
            " handler; or given up after LOG_DRAIN_S.",
            outcome=LOG_ENDS,
        )

    def _add_process(self) -> None:
        self.loop_idle = self._sources(
            "ottoscaler_loop_idle_seconds",
            "Seconds since each loop last gave a sign of life: an iteration, an answer, or a failure that it handled;"
            " 0 for a loop that does not run, as those of logs where they are off.",
            label="loop",
            values=LOOPS,
        )
        self.trace_spans = self._tally(
            "ottoscaler_trace_spans_total",
            "Spans that the trace collector took, and those that are lost: it refused them, or their results were"
            " trimmed away before they were sent.",
            outcome=TRACE_OUTCOMES,
        )
        self._gauge("ottoscaler_build_info", "1, with the version as label.", ("version",)).labels(__version__).set(1)
        ProcessCollector(registry=self._registry)

    # -- what the adapters and the loops report

    def count_kube_request(self, verb: str, status: int, seconds: float) -> None:
        """A request has ended: with this HTTP status, 0 for none, after so long. Raises nothing."""
        self.kube_requests.inc(verb, _code_of(status))
        self.kube_request_seconds.observe(verb, seconds)

    def count_throttled(self, cause: str, seconds: float) -> None:
        """A request to the Kubernetes API has waited for its turn."""
        self._kube_throttled.child(cause).inc(seconds)

    def add_log_figures(self, figures: LogFigures) -> None:
        """What the log forwarder has counted, and how it stands."""
        self._log_lines.inc(figures.lines)
        self._log_bytes.inc(figures.bytes)
        self._log_gaps.inc(figures.gaps)
        for reason, count in figures.dropped.items():
            self._log_dropped.child(reason).inc(count)
        for server, count in figures.reconnects.items():
            self._log_reconnects.child(server).inc(count)
        self._log_follows.set(figures.follows)
        self._log_unacknowledged.set(figures.unacknowledged)
        self._log_lag.set(figures.lag_s)
        self._log_waiting.set(figures.waiting)

    def set_stream_levels(self, levels: StreamLevels | None) -> None:
        """How the queue stands; None: that could not be read."""
        self._levels = levels

    def register_gauges(self, **gauges: Callable[[], float]) -> None:
        """What is asked for at each scrape, instead of being kept here: by the gauge's name. None of them may block."""
        for name, read in gauges.items():
            getattr(self, name).set_function(read)

    def register_sources(self, **sources: Source) -> None:
        """The same for gauges with a label: returns its values with their figures."""
        for name, read in sources.items():
            getattr(self, name).source = read

    def render(self, *, openmetrics: bool = False) -> bytes:
        """All figures. OpenMetrics has exemplars, the plain format of Prometheus none."""
        return exposition(self._registry, with_exemplars=openmetrics)


def _code_of(status: int) -> str:
    """The value of the label `code` for an HTTP status."""
    if not status:
        return "none"
    code = str(status)
    return code if code in KUBE_CODES else f"{code[0]}xx"
