"""The trace exporter: reads the results that were stored, and sends the spans that follow from them to the collector.

It is no part of a worker's way: a result is stored first, and what is read here is the result stream. So a collector
that is slow or away delays nothing, and the stream is the queue. An entry stays pending until its spans are sent, and
that of a worker also until its pod is gone. A process that dies leaves it to another, which builds the same spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ottoscaler import logs
from ottoscaler.core.kept_pods import stays
from ottoscaler.core.manifest import AttemptKey, event_hash
from ottoscaler.core.spans import Span, SpanBuilder, entry_ms
from ottoscaler.core.verdicts import backoff_s
from ottoscaler.errors import CollectorRejected, CollectorUnavailable, Unavailable
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock
from ottoscaler.stored import WorkerAttempt
from ottoscaler.trace_ports import ResultLog, SpanSink

#: How often results are read, seconds: a few large requests cost less than many small ones.
READ_EVERY_S: Final = 1.0
#: How long Redis is left alone when it does not answer, seconds.
REDIS_PAUSE_S: Final = 5.0
#: How many are read at once: each may be as large as an event.
READ_COUNT: Final = 32
#: Results in hand; when there are as many, the others stay in the stream.
MAX_OPEN: Final = 2048
#: Spans in one request.
SEND_SPANS: Final = 512
#: How long the collector is left alone at most when it does not answer, seconds.
MAX_PAUSE_S: Final = 60.0
#: A pod that is still there so long after its worker's result gets no span of its deletion, seconds: longer than any
#: LOG_DRAIN_S.
LONGEST_DELETION_S: Final = 3700.0

_log = logs.get(__name__)


@dataclass(slots=True)
class _Result:
    """A result in hand: the spans that are to be sent, and the pod of which the end is awaited."""

    fields: Mapping[str, str]
    recorded_ms: int
    since: float
    spans: list[Span] = field(default_factory=list)
    pod: AttemptKey | None = None

    @property
    def done(self) -> bool:
        return not self.spans and self.pod is None


class TraceExporter:
    """Sends spans. `run` is the body of one thread, and all state is that thread's."""

    def __init__(
        self, *, results: ResultLog, sink: SpanSink, registry: PodRegistry, builder: SpanBuilder, stop: StopSignal,
        metrics: Metrics, clock: Clock, claim_after_s: float,
    ) -> None:  # fmt: skip
        """`claim_after_s`: a replica that has been silent for so long loses its pending results, seconds."""
        self._results = results
        self._sink = sink
        self._registry = registry
        self._builder = builder
        self._stop = stop
        self._metrics = metrics
        self._clock = clock
        self._claim_after_s = claim_after_s
        self._limited = logs.RateLimited(clock.now)
        self._open: dict[str, _Result] = {}  # by the id of the entry, oldest first
        self._began = False
        self._claim_at = self._renew_at = self._send_at = 0.0
        self._failures = 0
        self._failing_since = 0.0

    def run(self) -> None:
        """Until the stop."""
        # Begun again after a defect: what is in hand would raise it in each step. It is pending, and will be claimed.
        self._open.clear()
        while not self._stop.is_set():
            pause_s = READ_EVERY_S
            try:
                self.step()
            except Unavailable as error:
                pause_s = REDIS_PAUSE_S
                if not self._stop.is_set() and self._limited.is_due(str(error)):
                    _log.warning("traces.outage", "Traces wait for Redis", error=str(error))
            self._stop.wait(pause_s)

    def step(self) -> None:
        """Read what is new, and send what can be sent. Raises RedisUnavailable."""
        if not self._began:
            self._results.begin_results()
            self._began = True
        self._claim()
        while (room := MAX_OPEN - len(self._open)) > 0 and not self._stop.is_set():
            new = self._results.read_results(min(room, READ_COUNT))
            self._add_results(new)
            if len(new) < READ_COUNT:
                break
        self._look_at_pods()
        self._send()
        self._acknowledge()

    # -- results

    def _claim(self) -> None:
        now = self._clock.now()
        if now >= self._renew_at:
            # first: what is in our hands must not be claimed by another replica
            self._results.renew_results(list(self._open))
            self._renew_at = now + self._claim_after_s / 3
        if now >= self._claim_at:
            claimed, trimmed = self._results.claim_results(self._claim_after_s, READ_COUNT)
            self._add_results(claimed)
            if trimmed:
                self._count_dropped(trimmed, "results", "RESULT_MAXLEN has trimmed them away, unsent")
            # as long as there is more, at once again: the rest of a replica that died may be long
            self._claim_at = now if len(claimed) == READ_COUNT else now + self._claim_after_s / 3

    def _add_results(self, entries: Sequence[tuple[str, Mapping[str, str]]]) -> None:
        """Build the spans of results. One that is none of ours, or was damaged, is only acknowledged."""
        new = [(entry_id, fields) for entry_id, fields in entries if entry_id not in self._open]
        attempts = [_attempt_of(fields) for _, fields in new]
        times = iter(self._results.stored_times([one for one in attempts if one is not None]))
        for (entry_id, fields), attempt in zip(new, attempts, strict=True):
            stored = next(times) if attempt is not None else None
            one = _Result(fields, entry_ms(entry_id) or 0, self._clock.now())
            self._open[entry_id] = one
            if stored is None or attempt is None:
                continue
            build = self._builder.worker_spans if attempt.index else self._builder.event_spans
            try:
                one.spans = build(fields, one.recorded_ms, stored)
            except (ValueError, KeyError) as error:
                _log.debug("traces.unreadable", "Entry %s is no result", entry_id, error=repr(error))
                continue
            if one.spans and attempt.index and fields.get("pod_uid"):
                key = event_hash(self._builder.instance, attempt.event_id)
                one.pod = AttemptKey(key, attempt.index, attempt.attempt)

    def _look_at_pods(self) -> None:
        """What of our results' pods is gone, or stays."""
        if not self._registry.is_known:
            return
        now, gone = self._clock.now(), list[tuple[_Result, WorkerAttempt]]()
        for one in self._open.values():
            if one.pod is None:
                continue
            pod = self._registry.get(one.pod)
            if pod is None or pod.gone or pod.uid != one.fields["pod_uid"]:
                gone.append((one, WorkerAttempt(one.fields["event_id"], one.pod.index, one.pod.attempt)))
            elif stays(pod, one.fields.get("outcome", "")) or now - one.since > LONGEST_DELETION_S:
                one.pod = None
        times = self._results.store_gone_time([worker for _, worker in gone])
        for (one, _), gone_ms in zip(gone, times, strict=True):
            one.pod = None
            if gone_ms:
                one.spans += self._builder.delete_spans(one.fields, one.recorded_ms, gone_ms)

    def _acknowledge(self) -> None:
        done = [entry_id for entry_id, one in self._open.items() if one.done]
        if done:
            self._results.acknowledge_results(done)
        for entry_id in done:
            del self._open[entry_id]

    # -- the collector

    def _send(self) -> None:
        """All spans in hand, in parts. While the collector does not answer, it is asked less and less often."""
        while (part := self._next_part()) and not self._stop.is_set() and self._clock.now() >= self._send_at:
            spans = [span for one in part for span in one.spans]
            try:
                refused, why = self._sink.send(spans), "the collector has refused a part of what it got"
            except CollectorUnavailable as error:
                self._wait_for_collector(error)
                return
            except CollectorRejected as error:
                refused, why = len(spans), str(error)
            self._collector_is_back()
            self._metrics.trace_spans.child("sent").inc(len(spans) - refused)
            if refused:
                self._count_dropped(refused, "spans", why)
            for one in part:
                one.spans = []

    def _next_part(self) -> list[_Result]:
        """Results with spans to send: one request's worth, and at least one."""
        return list(_within(SEND_SPANS, (one for one in self._open.values() if one.spans)))

    def _wait_for_collector(self, error: CollectorUnavailable) -> None:
        now = self._clock.now()
        if not self._failures:
            self._failing_since = now
        pause_s = min(error.retry_after_s or backoff_s(self._failures), MAX_PAUSE_S)
        self._failures += 1
        self._send_at = now + pause_s
        # the first, the second, the fourth ...: an outage of a day must not fill the log
        if self._failures & (self._failures - 1) == 0:
            _log.warning(
                "traces.waiting", "The trace collector takes no spans; they wait, and results do not",
                error=str(error),
            )  # fmt: skip

    def _collector_is_back(self) -> None:
        if self._failures:
            away_s = round(self._clock.now() - self._failing_since, 3)
            _log.info("traces.sending", "The trace collector is back after %g s", away_s, duration_s=away_s)
        self._failures = 0

    def _count_dropped(self, count: int, what: str, why: str) -> None:
        """How many spans a result had that was trimmed away is not known: it counts as one."""
        self._metrics.trace_spans.child("dropped").inc(count)
        if self._limited.is_due(why):
            _log.warning("traces.dropped", "%d %s are lost for the trace collector", count, what, error=why)


def _attempt_of(fields: Mapping[str, str]) -> WorkerAttempt | None:
    """What a result is about; None where it is no result, since any client may write to the stream."""
    event_id, kind = fields.get("event_id", ""), fields.get("kind", "")
    if not event_id or kind not in ("worker", "task", "scale_down"):
        return None
    if kind != "worker":
        return WorkerAttempt(event_id)
    index, attempt = fields.get("index", ""), fields.get("attempt", "")
    if not (index.isdecimal() and attempt.isdecimal() and len(index) < 8 and len(attempt) < 4 and int(index)):
        return None
    return WorkerAttempt(event_id, int(index), int(attempt))


def _within(most: int, results: Iterable[_Result]) -> Iterable[_Result]:
    count = 0
    for one in results:
        count += len(one.spans)
        if count > most and count > len(one.spans):
            return
        yield one
