"""The trace of one event, built from what is stored of it when it is over: no span is ever open.

Every id follows from the event, the index and the attempt, and every time is a stored one. So the process that builds a
span does not matter, nor how often it is built: a span that is sent twice is the same span.

    scale_up                    from the event's entry to the task's result
      worker                    one for each: to its own result
        queue create schedule pull run    of each attempt, one behind the other without a gap
        record                  to the stored result
        delete                  until its pod was seen to be gone: after the result, so behind its parent's end

The times of a pod come from the clocks of other machines, which may be wrong, and have whole seconds. So each is moved
to where it can be: not before the one in front of it, and not behind the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import Final

import msgspec
from msgspec.structs import replace

from ottoscaler.core import entry_ids
from ottoscaler.core import span_names as names
from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.results import worker_result
from ottoscaler.core.termination import RetryCause
from ottoscaler.core.trace import normalize_traceparent
from ottoscaler.core.verdicts import EndReason, Outcome

#: The fields of a result that say how an attempt went.
ATTEMPT_FIELDS: Final = (
    "reason", "outcome", "fault", "message", "exit_code", "pod", "pod_uid", "node", "created_at", "scheduled_at",
    "started_at", "finished_at",
)  # fmt: skip
#: The fields of a result of which its spans are made.
SPAN_FIELDS: Final = (
    "event_id", "task_id", "traceparent", "index", "attempt", "repository", "commit_sha", *ATTEMPT_FIELDS,
)  # fmt: skip
#: Those and what else the trace exporter looks at.
RESULT_FIELDS: Final = ("kind", *SPAN_FIELDS)
#: The result of a pipeline or a task in the words of OpenTelemetry, by what has to act.
_RESULTS: Final[Mapping[str, str]] = {"user": "failure", "config": "error", "infra": "error"}
_BY_REASON: Final[Mapping[str, str]] = {EndReason.DEADLINE_EXCEEDED: "timeout", EndReason.REJECTED: "error"}
_BY_OUTCOME: Final[Mapping[str, str]] = {
    Outcome.SUCCEEDED: "success",
    Outcome.CANCELLED: "cancellation",
    Outcome.EXPIRED: "skip",
}
_REASONS: Final = frozenset(EndReason)
_SAMPLED: Final = 1
#: No span is so late, ms since the epoch: collectors count nanoseconds in 64 bits with a sign.
TOO_LATE_MS: Final = 2**63 // 10**6
#: An entry that seems to have waited for longer has an id that its producer made up: ten years, ms.
_LONGEST_WAIT_MS: Final = 10 * 365 * 86_400_000


class SpanKind(Enum):
    """What a span is to the others, by the numbers of OTLP."""

    INTERNAL = 1
    SERVER = 2
    CONSUMER = 5


class Span(msgspec.Struct, frozen=True):
    """One span. Times in milliseconds since the epoch; `parent_id` is empty for a root without a parent; `error` says
    why it failed, None where it did not.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    name: str
    kind: SpanKind
    start_ms: int
    end_ms: int
    attributes: Mapping[str, str | int]
    error: str | None = None


class TraceContext(msgspec.Struct, frozen=True):
    """Which trace an event belongs to, under which span of its producer (empty: none), and whether it is recorded."""

    trace_id: bytes
    parent_id: bytes
    sampled: bool


class StoredTimes(msgspec.Struct, frozen=True):
    """What the task hash says of an event beside its results: type, the id of its entry, when it was received, ms.

    Of one worker: when each attempt was stored before its create (attempt -> ms), how the attempts ended that were
    followed by another (attempt -> `ATTEMPT_FIELDS`), and when its pod was seen to be gone, ms.
    """

    event_type: str
    stream_id: str
    received_ms: int | None = None
    intended_ms: Mapping[int, int] = {}
    ended: Mapping[int, Mapping[str, str]] = {}
    gone_ms: int | None = None


class SpanBuilder(msgspec.Struct, frozen=True):
    """What spans say of the controller: the names in its configuration. `instance` is also part of each id."""

    instance: str
    namespace: str
    stream: str
    group: str

    # -- ids

    def context(self, event_id: str, traceparent: str) -> TraceContext:
        """The trace of an event: its producer's, where it has one. An id of another length in one span would make the
        collector refuse all that come with it.
        """
        return _context(self.instance, event_id, traceparent)

    def span_id(self, event_id: str, name: str, index: int = 0, attempt: int = 0) -> bytes:
        """The id of a span of this event; index and attempt 0 where it has none."""
        return _digest(8, f"span\0{self.instance}\0{event_id}\0{index}\0{attempt}\0{name}")

    def with_run_context(self, event: ScaleEvent, key: AttemptKey) -> ScaleEvent:
        """The event as the worker of this attempt gets it: its own spans are below the span `run` of its attempt; that
        id is known before there is a pod. A context that is not recorded is passed on as it came.
        """
        context = self.context(event.event_id, event.traceparent)
        if not context.sampled:
            return event
        run = self.span_id(event.event_id, names.RUN, key.index, key.attempt)
        return replace(event, traceparent=f"00-{context.trace_id.hex()}-{run.hex()}-01")

    # -- spans, each list empty where the producer asked for no trace

    def event_spans(self, result: Mapping[str, str], recorded_ms: int, times: StoredTimes) -> list[Span]:
        """The root, when the event has its own result: `result` is of kind `task` or `scale_down`."""
        event_id = result["event_id"]
        context = self.context(event_id, result.get("traceparent", ""))
        if not context.sampled:
            return []
        outcome = _outcome_name(result)
        name = times.event_type or "event"
        attributes = {
            names.PIPELINE_NAME: name,
            names.PIPELINE_ACTION: "RUN",
            names.PIPELINE_RUN: event_id,
            names.PIPELINE_RESULT: outcome,
            **self._message(times, "process"),
            names.NAMESPACE: self.namespace,
            names.REPOSITORY: result.get("repository", ""),
            names.REVISION: result.get("commit_sha", ""),
            **_ending(result),
        }
        root = Span(
            context.trace_id, self.root_id(event_id), context.parent_id, name, SpanKind.SERVER,
            _start_ms(times, recorded_ms), recorded_ms, self._attributes(result, attributes), _error(result),
        )  # fmt: skip
        return [root]

    def root_id(self, event_id: str) -> bytes:
        """The id of an event's root."""
        return self.span_id(event_id, "event")

    def worker_spans(self, result: Mapping[str, str], recorded_ms: int, times: StoredTimes) -> list[Span]:
        """One worker and its phases, when it has its result: `result` is of kind `worker`."""
        event_id, index, last = result["event_id"], int(result["index"]), int(result["attempt"])
        context = self.context(event_id, result.get("traceparent", ""))
        if not context.sampled:
            return []
        start_ms = at = _start_ms(times, recorded_ms)
        worker_id = self.span_id(event_id, names.WORKER, index)
        attributes = {
            names.TASK_NAME: names.WORKER,
            names.TASK_RUN: f"{event_id}/{index}",
            names.TASK_RESULT: _outcome_name(result),
            **self._pod(result),
            names.INDEX: index,
            names.ATTEMPT: last,
            **_ending(result),
        }
        spans = [
            Span(
                context.trace_id, worker_id, self.root_id(event_id), names.WORKER, SpanKind.SERVER, start_ms,
                recorded_ms, self._attributes(result, attributes), _error(result),
            )
        ]  # fmt: skip
        for attempt in range(1, last + 1):
            known = result if attempt == last else times.ended.get(attempt, {})
            phases = _phases(at, recorded_ms, times.intended_ms.get(attempt), known, final=attempt == last)
            numbers = {names.INDEX: index, names.ATTEMPT: attempt}
            at_pod = self._attributes(result, self._pod(known) | numbers)
            own = {  # what the other phases say is the same
                names.QUEUE: self._attributes(result, self._message(times, "receive") | numbers),
                names.RUN: self._attributes(result, at_pod | {names.CONTAINER: "agent"} | _ending(known)),
            }
            for name, begin, end in phases:
                error = _error(known) if name == names.RUN else None
                kind = SpanKind.CONSUMER if name == names.QUEUE else SpanKind.INTERNAL
                span_id = self.span_id(event_id, name, index, attempt)
                spans.append(
                    Span(
                        context.trace_id, span_id, worker_id, name, kind, begin, end, own.get(name, at_pod), error,
                    )
                )  # fmt: skip
                at = end
        return spans

    def delete_spans(self, result: Mapping[str, str], recorded_ms: int, gone_ms: int) -> list[Span]:
        """From a worker's result until its pod was seen to be gone."""
        event_id, index, attempt = result["event_id"], int(result["index"]), int(result["attempt"])
        context = self.context(event_id, result.get("traceparent", ""))
        if not context.sampled:
            return []
        attributes = self._pod(result) | {names.INDEX: index, names.ATTEMPT: attempt}
        return [
            Span(
                context.trace_id, self.span_id(event_id, names.DELETE, index, attempt),
                self.span_id(event_id, names.WORKER, index), names.DELETE, SpanKind.INTERNAL, recorded_ms,
                max(recorded_ms, gone_ms), self._attributes(result, attributes),
            )
        ]  # fmt: skip

    def _attributes(self, result: Mapping[str, str], own: Mapping[str, str | int]) -> dict[str, str | int]:
        """Without those that have no value."""
        found = {**own, names.TASK_ID: result["task_id"], names.INSTANCE: self.instance}
        return {name: value for name, value in found.items() if value != ""} if "" in found.values() else found

    def _message(self, times: StoredTimes, operation: str) -> dict[str, str | int]:
        return {
            names.MESSAGING_SYSTEM: "redis",
            names.MESSAGING_STREAM: self.stream,
            names.MESSAGING_GROUP: self.group,
            names.MESSAGING_MESSAGE: times.stream_id,
            names.MESSAGING_OPERATION: operation,
        }

    def _pod(self, known: Mapping[str, str]) -> dict[str, str | int]:
        name = known.get("pod", "")
        return {
            names.NAMESPACE: self.namespace,
            names.POD: name,
            names.POD_UID: known.get("pod_uid", ""),
            names.NODE: known.get("node", ""),
        }


@lru_cache(1024)
def _context(instance: str, event_id: str, traceparent: str) -> TraceContext:
    """Remembered: each of an event's results asks for it, and each of its workers."""
    if valid := normalize_traceparent(traceparent.encode()).decode():
        _, trace_id, parent_id, flags = valid.split("-")
        return TraceContext(bytes.fromhex(trace_id), bytes.fromhex(parent_id), bool(int(flags, 16) & _SAMPLED))
    return TraceContext(_digest(16, f"trace\0{instance}\0{event_id}"), b"", True)


def _digest(length: int, text: str) -> bytes:
    """An id of that many bytes. Zero, which is no id, would take a collision of SHA-256 with zeros."""
    return hashlib.sha256(text.encode()).digest()[:length]


def encode_ended(result: Mapping[str, str] | None = None) -> str:
    """How an attempt ended that another one follows, as JSON: `result` is the one that it would have had, None if it is
    not known.
    """
    fields = {} if result is None else {name: result[name] for name in ATTEMPT_FIELDS}
    return msgspec.json.encode(fields).decode()


def encode_ended_before(event: ScaleEvent, index: int, attempt: int, cause: RetryCause | None, wall_time: float) -> str:
    """The same for the attempt that this one follows, by the cause of the retry. `wall_time`: now, seconds since the
    epoch.
    """
    if cause is None:
        return encode_ended()
    return encode_ended(worker_result(event, index, attempt - 1, cause.verdict, cause.pod, wall_time))


def milliseconds(text: str) -> int | None:
    """RFC 3339 as milliseconds since the epoch; None for an empty or damaged text."""
    try:
        return max(0, round(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError):
        return None


def entry_ms(stream_id: str) -> int | None:
    """When an entry came, by its id, in milliseconds since the epoch; None where no span could have that time."""
    found = entry_ids.entry_ms(stream_id)
    return found if found is not None and found < TOO_LATE_MS else None


def _start_ms(times: StoredTimes, recorded_ms: int) -> int:
    """When the event was sent. A producer may make up the id of its entry: then when it was received counts."""
    received = recorded_ms if times.received_ms is None else min(times.received_ms, recorded_ms)
    sent = entry_ms(times.stream_id)
    return sent if sent is not None and received - _LONGEST_WAIT_MS <= sent <= received else received


def _phases(
    start_ms: int, latest_ms: int, intended_ms: int | None, known: Mapping[str, str], *, final: bool
) -> Iterator[tuple[str, int, int]]:
    """The phases of one attempt with begin and end, one behind the other: each ends where the next one begins.

    An attempt that did not come to a phase ends in the one before it. What is not known begins no phase.
    """
    created, scheduled, started, finished = (
        milliseconds(known.get(f"{what}_at", "")) for what in ("created", "scheduled", "started", "finished")
    )
    if intended_ms is not None and created is not None and intended_ms >= created + 1000:
        intended_ms = created  # stored again by a process that then found the pod
    marks: Sequence[tuple[str, int | None]] = (
        (names.CREATE, intended_ms),
        (names.SCHEDULE, created),
        (names.PULL, scheduled),
        (names.RUN, started),
        (names.RECORD if final else "", finished),
    )
    name, at = names.QUEUE, start_ms
    for following, mark in marks:
        if mark is not None:
            end = min(max(mark, at), latest_ms)
            yield name, at, end
            name, at = following, end
    if name:
        yield name, at, max(at, latest_ms) if final else at


def _outcome_name(result: Mapping[str, str]) -> str:
    reason, outcome = result.get("reason", ""), result.get("outcome", "")
    if (known := _BY_REASON.get(reason)) is not None and outcome == Outcome.FAILED:
        return known
    if outcome in _BY_OUTCOME:
        return _BY_OUTCOME[outcome]
    # the result of a task has no fault: it has the first failing worker's reason
    fault = result.get("fault", "") or (EndReason(reason).fault if reason in _REASONS else "")
    return _RESULTS.get(fault, "failure")


def _ending(known: Mapping[str, str]) -> dict[str, str | int]:
    """How it ended."""
    code, reason = known.get("exit_code", ""), known.get("reason", "")
    found: dict[str, str | int] = {names.REASON: reason, names.FAULT: known.get("fault", "")}
    if code.isdecimal() and len(code) < 10:
        found[names.EXIT_CODE] = int(code)
    if known.get("outcome", "") not in ("", Outcome.SUCCEEDED):
        found[names.ERROR] = reason
    return found


def _error(known: Mapping[str, str]) -> str | None:
    """Why it failed. A worker that was cancelled, or that came too late, has not failed."""
    if known.get("outcome", "") not in (Outcome.FAILED, Outcome.LOST):
        return None
    return known.get("message", "") or known.get("reason", "")
