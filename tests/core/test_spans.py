"""The trace of an event out of stored times: which spans there are, how long each was, and that ids repeat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core import span_names as names
from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.results import rfc3339, worker_result
from ottoscaler.core.spans import (
    ATTEMPT_FIELDS,
    SPAN_FIELDS,
    TOO_LATE_MS,
    Span,
    SpanBuilder,
    StoredTimes,
    encode_ended,
    encode_ended_before,
    entry_ms,
    milliseconds,
)
from ottoscaler.core.termination import RetryCause
from ottoscaler.core.verdicts import EndReason, Verdict
from tests.core.builders import NOW, event, failed

pytestmark = pytest.mark.contract("2.OTEL_EXPORTER_OTLP_ENDPOINT")

BUILDER = SpanBuilder("inst", "jobs", "otto:scale:events", "group")
#: When the event of these tests was sent, ms; all other times are given in seconds after that.
SENT = 1_700_000_000_000
TEN_YEARS_MS = 10 * 365 * 24 * 3600 * 1000
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = PARENT[:-2] + "00"


def at(seconds: float | None) -> str:
    """A time of a pod."""
    return "" if seconds is None else rfc3339(SENT / 1000 + seconds)


def ms(seconds: float) -> int:
    """The same as spans have it."""
    return SENT + round(seconds * 1000)


def result(*times: float | None, **fields: str) -> dict[str, str]:
    """A worker's result: when its pod was created, scheduled, started and finished."""
    given_ = (*times, None, None, None, None)
    stamps = {f"{name}_at": at(given_[n]) for n, name in enumerate(("created", "scheduled", "started", "finished"))}
    return {
        "kind": "worker", "event_id": "e-1", "task_id": "t-1", "index": "1", "attempt": "1", "outcome": "succeeded",
        "reason": "Completed", "fault": "none", "message": "", "exit_code": "0", "pod": "otto-agent-x-1",
        "pod_uid": "u-1", "node": "n-1", **stamps, **fields,
    }  # fmt: skip


def stored(*intents: float | None, received: float = 0.5, **more: Any) -> StoredTimes:
    """What the task hash says: when each attempt was stored."""
    known = {number: ms(one) for number, one in enumerate(intents, start=1) if one is not None}
    return StoredTimes("scale_up", f"{SENT}-0", ms(received), known, **more)


def lengths(spans: Iterable[Span]) -> list[tuple[str, float, float]]:
    """Name, begin and end of each, in seconds after the event."""
    return [(span.name, (span.start_ms - SENT) / 1000, (span.end_ms - SENT) / 1000) for span in spans]


TABLE: Mapping[str, tuple[dict[str, str], StoredTimes, float, list[tuple[str, float, float]]]] = {
    "succeeded": (
        result(2, 3, 5, 9), stored(1), 10,
        [("queue", 0, 1), ("create", 1, 2), ("schedule", 2, 3), ("pull", 3, 5), ("run", 5, 9), ("record", 9, 10)],
    ),
    "without the time of its intent": (
        result(2, 3, 5, 9), stored(), 10,
        [("queue", 0, 2), ("schedule", 2, 3), ("pull", 3, 5), ("run", 5, 9), ("record", 9, 10)],
    ),
    "cancelled in the queue": (
        result(None, None, None, 4, outcome="cancelled", reason="ScaledDown"), stored(), 5,
        [("queue", 0, 4), ("record", 4, 5)],
    ),
    "refused by the API server": (
        result(None, None, None, 4, outcome="failed", reason="Rejected", fault="config"), stored(1), 5,
        [("queue", 0, 1), ("create", 1, 4), ("record", 4, 5)],
    ),
    "no node": (
        result(2, None, None, 8, outcome="failed", reason="Unschedulable", fault="infra"), stored(1), 9,
        [("queue", 0, 1), ("create", 1, 2), ("schedule", 2, 8), ("record", 8, 9)],
    ),
    "image not found": (
        result(2, 3, None, 8, outcome="failed", reason="ImagePull", fault="config"), stored(1), 9,
        [("queue", 0, 1), ("create", 1, 2), ("schedule", 2, 3), ("pull", 3, 8), ("record", 8, 9)],
    ),
    "whole seconds": (
        # created in the second in which the attempt was stored, shown as its beginning
        result(1, 1, 1, 2), stored(1.4), 2.2,
        [("queue", 0, 1.4), ("create", 1.4, 1.4), ("schedule", 1.4, 1.4), ("pull", 1.4, 1.4), ("run", 1.4, 2),
         ("record", 2, 2.2)],
    ),
    "a node with a clock ahead": (
        result(2, 3, 100, 160), stored(1), 10,
        [("queue", 0, 1), ("create", 1, 2), ("schedule", 2, 3), ("pull", 3, 10), ("run", 10, 10), ("record", 10, 10)],
    ),
    "a node with a clock behind": (
        result(2, 3, -100, -96), stored(1), 10,
        [("queue", 0, 1), ("create", 1, 2), ("schedule", 2, 3), ("pull", 3, 3), ("run", 3, 3), ("record", 3, 10)],
    ),
    "an attempt that was stored again with its pod there": (
        result(2, 3, 5, 9), stored(7), 10,
        [("queue", 0, 2), ("create", 2, 2), ("schedule", 2, 3), ("pull", 3, 5), ("run", 5, 9), ("record", 9, 10)],
    ),
    "a retry": (
        result(12, 12, 13, 15, attempt="2"),
        stored(1, 11, ended={1: result(2, 3, 5, 9, outcome="failed", reason="Error", fault="user")}), 16,
        [("queue", 0, 1), ("create", 1, 2), ("schedule", 2, 3), ("pull", 3, 5), ("run", 5, 9),
         ("queue", 9, 11), ("create", 11, 12), ("schedule", 12, 12), ("pull", 12, 13), ("run", 13, 15),
         ("record", 15, 16)],
    ),
    "a retry after an attempt of which nothing is known": (
        result(12, 12, 13, 15, attempt="2"), stored(1, 11), 16,
        [("queue", 0, 1), ("create", 1, 1), ("queue", 1, 11), ("create", 11, 12), ("schedule", 12, 12),
         ("pull", 12, 13), ("run", 13, 15), ("record", 15, 16)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_the_phases_of_a_worker(case: str) -> None:
    """They follow each other without a gap, from the event's entry to the stored result."""
    fields, times, recorded_s, expected = TABLE[case]
    worker, *phases = BUILDER.worker_spans(fields, ms(recorded_s), times)
    assert lengths([worker]) == [("worker", 0, recorded_s)]
    assert lengths(phases) == expected


@pytest.mark.parametrize(
    ("entry", "received", "begin"),
    [
        (f"{SENT}-0", 5.0, 0.0),
        ("1-1", 5.0, 5.0),  # made up by its producer
        (f"{SENT + 5000 - TEN_YEARS_MS}-0", 5.0, 5.0 - TEN_YEARS_MS / 1000),
        (f"{SENT + 5000 - TEN_YEARS_MS - 1}-0", 5.0, 5.0),
        (f"{SENT + 9000}-0", 5.0, 5.0),  # its producer's clock is ahead
        ("", 5.0, 5.0),
        ("99999999999999999999-1", 5.0, 5.0),
    ],
)
def test_an_event_begins_when_it_was_sent(entry: str, received: float, begin: float) -> None:
    """By the id of its entry, where Redis has made it."""
    (root,) = BUILDER.event_spans(result(kind="task"), ms(10), StoredTimes("scale_up", entry, ms(received)))
    assert lengths([root]) == [("scale_up", begin, 10)]


def test_the_root_belongs_to_the_producers_span() -> None:
    """Of a producer that gives no trace context the event is the root of a trace of its own."""
    (root,) = BUILDER.event_spans(result(traceparent=PARENT), ms(1), stored())
    assert (root.trace_id.hex(), root.parent_id.hex()) == (PARENT[3:35], PARENT[36:52])
    (alone,) = BUILDER.event_spans(result(), ms(1), stored())
    assert (len(alone.trace_id), alone.parent_id) == (16, b"")
    worker, *phases = BUILDER.worker_spans(result(1, 1, 1, 1), ms(1), stored())
    assert worker.trace_id == alone.trace_id
    assert worker.parent_id == alone.span_id
    assert {span.parent_id for span in phases} == {worker.span_id}


def test_a_producer_that_wants_no_trace_gets_none() -> None:
    """Its flag says so. Its context goes on to the worker as it came."""
    fields = result(1, 1, 1, 1, traceparent=NOT_SAMPLED)
    assert BUILDER.worker_spans(fields, ms(1), stored()) == []
    assert BUILDER.event_spans(fields, ms(1), stored()) == []
    assert BUILDER.delete_spans(fields, ms(1), ms(2)) == []
    sent = event(traceparent=NOT_SAMPLED)
    assert BUILDER.with_run_context(sent, AttemptKey("h", 1, 1)) == sent


@pytest.mark.parametrize("parent", ["", PARENT])
def test_a_workers_own_spans_are_below_its_run(parent: str) -> None:
    """The context is known before there is a pod, and is that of the span that is sent at the end."""
    given_ = BUILDER.with_run_context(event(event_id="e-1", traceparent=parent), AttemptKey("h", 1, 2)).traceparent
    fields = result(1, 1, 1, 1, attempt="2", traceparent=parent)
    run = [span for span in BUILDER.worker_spans(fields, ms(1), stored()) if span.name == "run"][-1]
    assert given_ == f"00-{run.trace_id.hex()}-{run.span_id.hex()}-01"


def test_the_deletion_comes_after_the_result() -> None:
    """So it is the one span that ends behind its parent."""
    worker, *_ = BUILDER.worker_spans(result(2, 3, 5, 9), ms(10), stored(1))
    (deletion,) = BUILDER.delete_spans(result(2, 3, 5, 9), ms(10), ms(11.5))
    assert lengths([deletion]) == [("delete", 10, 11.5)]
    assert deletion.parent_id == worker.span_id
    (early,) = BUILDER.delete_spans(result(2, 3, 5, 9), ms(10), ms(9))
    assert lengths([early]) == [("delete", 10, 10)]


@pytest.mark.parametrize(
    ("reason", "of_worker", "of_task"),
    [
        (EndReason.COMPLETED, "success", "success"),
        (EndReason.ERROR, "failure", "failure"),
        (EndReason.OOM_KILLED, "failure", "failure"),
        (EndReason.DEADLINE_EXCEEDED, "timeout", "timeout"),
        (EndReason.IMAGE_PULL, "error", "error"),
        (EndReason.REJECTED, "error", "error"),
        (EndReason.EVICTED, "error", "error"),
        (EndReason.POD_LOST, "error", "error"),
        (EndReason.SCALED_DOWN, "cancellation", "cancellation"),
        (EndReason.NOT_AFTER, "skip", "failure"),  # the outcome of a task is never `expired`
    ],
)
def test_how_it_ended_in_the_words_of_opentelemetry(reason: EndReason, of_worker: str, of_task: str) -> None:
    """By outcome and fault; the result of a task has no fault of its own."""
    fields = worker_result(event(), 1, 1, Verdict(reason, "why"), failed(), NOW)
    worker, *_ = BUILDER.worker_spans(fields, ms(1), stored())
    outcome = "failed" if reason.outcome in ("expired", "lost") else str(reason.outcome)
    task = {"kind": "task", "event_id": "e", "task_id": "t", "outcome": outcome, "reason": str(reason)}
    (root,) = BUILDER.event_spans(task, ms(1), stored())
    assert worker.attributes[names.TASK_RESULT] == of_worker
    assert root.attributes[names.PIPELINE_RESULT] == of_task
    assert (worker.error is None) == (reason.outcome not in ("failed", "lost"))
    assert worker.attributes.get(names.ERROR) == (None if reason is EndReason.COMPLETED else str(reason))


def test_the_names_are_in_one_table() -> None:
    """Every attribute of every span, and no other; none without a value."""
    fields = result(
        2, 3, 5, 9, outcome="failed", reason="Error", fault="user", exit_code="3", repository="a/b", commit_sha="c"
    )
    spans = [
        *BUILDER.event_spans(fields, ms(10), stored(1)),
        *BUILDER.worker_spans(fields, ms(10), stored(1)),
        *BUILDER.delete_spans(fields, ms(10), ms(11)),
    ]
    assert {name for span in spans for name in span.attributes} == set(names.MEANINGS)
    assert "" not in {value for span in spans for value in span.attributes.values()}
    assert {span.name for span in spans} == {
        "scale_up", "worker", "queue", "create", "schedule", "pull", "run", "record", "delete",
    }  # fmt: skip


_COMMON = {"ottoscaler.task.id": "t-1", "ottoscaler.instance": "inst"}
_ENDING = {"ottoscaler.reason": "Error", "ottoscaler.fault": "user", "process.exit.code": 3, "error.type": "Error"}
_MESSAGE = {
    "messaging.system": "redis", "messaging.destination.name": "otto:scale:events",
    "messaging.consumer.group.name": "group", "messaging.message.id": f"{SENT}-0",
}  # fmt: skip
_OF_POD = {
    "k8s.namespace.name": "jobs", "k8s.pod.name": "otto-agent-x-1", "k8s.pod.uid": "u-1", "k8s.node.name": "n-1",
}  # fmt: skip
_OF_ATTEMPT = {"ottoscaler.worker.index": 1, "ottoscaler.attempt": 1}
_ATTRIBUTES = {
    "scale_up": {
        "cicd.pipeline.name": "scale_up", "cicd.pipeline.action.name": "RUN", "cicd.pipeline.run.id": "e-1",
        "cicd.pipeline.result": "failure", "messaging.operation.type": "process", "k8s.namespace.name": "jobs",
        "vcs.repository.name": "a/b", "vcs.ref.head.revision": "c", **_MESSAGE, **_ENDING,
    },
    "worker": {
        "cicd.pipeline.task.name": "worker", "cicd.pipeline.task.run.id": "e-1/1",
        "cicd.pipeline.task.run.result": "failure", **_OF_POD, **_OF_ATTEMPT, **_ENDING,
    },
    "queue": {"messaging.operation.type": "receive", **_MESSAGE, **_OF_ATTEMPT},
    "create": {**_OF_POD, **_OF_ATTEMPT},
    "schedule": {**_OF_POD, **_OF_ATTEMPT},
    "pull": {**_OF_POD, **_OF_ATTEMPT},
    "run": {"k8s.container.name": "agent", **_OF_POD, **_OF_ATTEMPT, **_ENDING},
    "record": {**_OF_POD, **_OF_ATTEMPT},
    "delete": {**_OF_POD, **_OF_ATTEMPT},
}  # fmt: skip


def test_each_span_has_the_attributes_of_what_it_is_about() -> None:
    """Each value under its name."""
    fields = result(
        2, 3, 5, 9, outcome="failed", reason="Error", fault="user", exit_code="3", repository="a/b", commit_sha="c"
    )
    spans = [
        *BUILDER.event_spans(fields, ms(10), stored(1)),
        *BUILDER.worker_spans(fields, ms(10), stored(1)),
        *BUILDER.delete_spans(fields, ms(10), ms(11)),
    ]
    assert {span.name: dict(span.attributes) for span in spans} == {
        name: {**own, **_COMMON} for name, own in _ATTRIBUTES.items()
    }


def test_an_attribute_that_is_not_known_is_left_out() -> None:
    """A worker that never had a pod names none."""
    fields = result(
        None, None, None, 4, outcome="cancelled", reason="ScaledDown", pod="", pod_uid="", node="", exit_code=""
    )
    spans = [*BUILDER.worker_spans(fields, ms(5), stored()), *BUILDER.delete_spans(fields, ms(5), ms(6))]
    of_pod = {names.POD, names.POD_UID, names.NODE, names.EXIT_CODE}
    assert [(span.name, sorted(of_pod & set(span.attributes))) for span in spans] == [(span.name, []) for span in spans]


def test_what_an_attempt_leaves_is_read_again() -> None:
    """The task hash keeps it as JSON."""
    fields = worker_result(event(), 1, 1, Verdict(EndReason.ERROR, "why"), failed(), NOW)
    assert json.loads(encode_ended(fields)) == {name: fields[name] for name in ATTEMPT_FIELDS}
    assert encode_ended() == "{}"
    cause = RetryCause(Verdict(EndReason.ERROR, "why"), 1, 3, failed())
    assert encode_ended_before(event(), 1, 2, cause, NOW) == encode_ended(fields)
    assert encode_ended_before(event(), 1, 2, None, NOW) == "{}"


@pytest.mark.parametrize(
    ("text", "found"),
    [("", None), ("soon", None), ("0001-01-01T00:00:00Z", 0), ("1970-01-01T00:00:01.250Z", 1250)],
)
def test_a_time_that_is_none_is_not_known(text: str, found: int | None) -> None:
    """Any client may write to the stream."""
    assert milliseconds(text) == found


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("1250-3", 1250),
        ("", None),
        ("x-1", None),
        ("9" * 14 + "-0", None),
        ("9" * 13 + "-0", None),
        (f"{TOO_LATE_MS}-0", None),
        (f"{TOO_LATE_MS - 1}-0", TOO_LATE_MS - 1),
    ],
)
def test_the_time_of_an_entry(entry: str, found: int | None) -> None:
    """By its id."""
    assert entry_ms(entry) == found


_SECONDS = st.none() | st.floats(-1e5, 1e5)
_TIMES = st.tuples(_SECONDS, _SECONDS, _SECONDS, _SECONDS)


@given(
    times=_TIMES, earlier=st.lists(_TIMES, max_size=3), intents=st.lists(_SECONDS, max_size=4),
    received=st.floats(0, 10), recorded=st.floats(0, 1e5),
)  # fmt: skip
def test_whatever_the_clocks_say(
    times: tuple[float | None, ...], earlier: list[tuple[float | None, ...]], intents: list[float | None],
    received: float, recorded: float,
) -> None:  # fmt: skip
    """One span for each id; the phases fill the worker's span, in their order, without a gap and without an overlap."""
    ended = {number: result(*each) for number, each in enumerate(earlier, start=1)}
    fields = result(*times, attempt=str(len(earlier) + 1))
    known = stored(*intents, received=received, ended=ended)
    worker, *phases = BUILDER.worker_spans(fields, ms(recorded), known)
    (root,) = BUILDER.event_spans(fields, ms(recorded), known)
    ids = [span.span_id for span in (root, worker, *phases)]
    assert len(ids) == len(set(ids))
    assert root.start_ms <= worker.start_ms <= worker.end_ms <= root.end_ms
    assert [phases[0].start_ms, *(span.end_ms for span in phases)] == [
        *(span.start_ms for span in phases), worker.end_ms,
    ]  # fmt: skip
    assert all(span.start_ms <= span.end_ms for span in phases)
    assert phases[0].start_ms == worker.start_ms
    assert BUILDER.worker_spans(fields, ms(recorded), known) == [worker, *phases]


@given(st.dictionaries(st.sampled_from(SPAN_FIELDS), st.text(max_size=60)), st.integers(0, TOO_LATE_MS - 1))
def test_what_is_no_result_is_refused_and_no_defect(fields: dict[str, str], recorded_ms: int) -> None:
    """Any client may write to the stream: it is skipped by its ValueError or KeyError."""
    for build in (BUILDER.event_spans, BUILDER.worker_spans):
        try:
            spans = build({"index": "1", "attempt": "1", **fields}, recorded_ms, stored(1))
        except (ValueError, KeyError):
            continue
        assert all(0 <= span.start_ms <= span.end_ms < TOO_LATE_MS for span in spans)
        assert {(len(span.trace_id), len(span.span_id)) for span in spans} <= {(16, 8)}
