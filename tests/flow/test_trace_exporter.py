"""The trace exporter on a real Redis: a backend has each span once, whatever dies, and nothing waits for it."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Phase_
from hypothesis import strategies as st

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.core.manifest import AttemptKey, event_hash
from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.core.results import worker_result
from ottoscaler.core.spans import Span, SpanBuilder, encode_ended
from ottoscaler.core.verdicts import EndReason, Verdict
from ottoscaler.errors import CollectorRejected, CollectorUnavailable
from ottoscaler.flow import stop as stop_module
from ottoscaler.flow import trace_exporter
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.stop import StopSignal
from ottoscaler.flow.trace_exporter import TraceExporter
from ottoscaler.metrics import Metrics
from ottoscaler.ports import OpenTask, PodList
from tests.adapters.redis_admin import RedisAdmin, Server, local_server, open_stream
from tests.adapters.streams import opened
from tests.core.builders import NOW
from tests.core.builders import pod as builders_pod
from tests.fakes.clock import ManualClock
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines

pytestmark = [pytest.mark.contract("2.OTEL_EXPORTER_OTLP_ENDPOINT"), pytest.mark.timeout(180)]
BUILDER = SpanBuilder("inst", "jobs", "events", "group")
CLAIM_AFTER_S = 30.0
PHASES = ("queue", "create", "schedule", "pull", "run", "record")


class Died(BaseException):
    """The process ends here."""


class Backend:
    """A collector with the store behind it: a span that comes again is the same span. `before` is called first."""

    def __init__(self) -> None:
        self.got: list[Span] = []
        self.requests: list[int] = []
        self.errors: Iterator[Exception | None] = itertools.repeat(None)
        self.refuses = 0

    def send(self, spans: Sequence[Span]) -> int:
        """`trace_ports.SpanSink`."""
        self.requests.append(len(spans))
        if (error := next(self.errors)) is not None:
            raise error
        self.got += spans
        return self.refuses

    @property
    def kept(self) -> dict[bytes, Span]:
        """By id. What is sent again has to be equal."""
        found: dict[bytes, Span] = {}
        for span in self.got:
            assert found.setdefault(span.span_id, span) == span
        return found

    def names(self) -> list[str]:
        """Of all spans that came, in their order."""
        return [span.name for span in self.got]


class World:
    """One Redis prefix, the pods that all replicas see, one backend."""

    def __init__(self, server: Server, admin: RedisAdmin) -> None:
        self.server, self.admin = server, admin
        self.backend, self.clock, self.metrics = Backend(), ManualClock(), Metrics()
        self.registry = PodRegistry(self.clock)
        self.registry.replace(PodList([], "1"))
        self._numbers = itertools.count(1)
        self._open: list[RedisBackend] = []
        self.log = self.replica("owner")
        self.log.ensure_group()

    def replica(self, consumer: str = "") -> RedisBackend:
        """A further process."""
        self._open.append(
            open_stream(self.server, self.admin, consumer or f"c{next(self._numbers)}", incarnation="boot-1")
        )
        return self._open[-1]

    def exporter(self, results: Any = None, claim_after_s: float = CLAIM_AFTER_S) -> TraceExporter:
        """The exporter of a further process, that has begun."""
        made = TraceExporter(
            results=results or self.replica(), sink=self.backend, registry=self.registry, builder=BUILDER,
            stop=StopSignal(), metrics=self.metrics, clock=self.clock,
            claim_after_s=claim_after_s,
        )  # fmt: skip
        made.step()
        return made

    def task(self, **fields: str) -> OpenTask:
        """An accepted event."""
        return opened(self.log, self.admin, **fields)

    def pod(self, task: OpenTask, index: int = 1, attempt: int = 1, **changes: Any) -> PodSnapshot:
        """The pod of an attempt, shown to all replicas."""
        event_id = task.event.event_id
        key = AttemptKey(event_hash(BUILDER.instance, event_id), index, attempt)
        times = {"scheduled_at": NOW, "started_at": NOW + 1, "finished_at": NOW + 2}
        shown = builders_pod(
            changes.pop("phase", Phase.SUCCEEDED), key=key, uid=f"u-{event_id}-{index}-{attempt}", event_id=event_id,
            resource_version=str(next(self._numbers)), name=f"pod-{index}-{attempt}", **(times | changes),
        )  # fmt: skip
        self.registry.upsert(shown)
        return shown

    def intend(self, task: OpenTask, index: int = 1, attempt: int = 1, traced: str = encode_ended()) -> None:
        """Store an attempt."""
        self.log.store_attempt(
            task.event.event_id, task.owner, index, attempt=attempt, infra_used=0, pod="p", traced=traced
        )

    def record(
        self, task: OpenTask, index: int = 1, attempt: int = 1, reason: EndReason = EndReason.COMPLETED,
        pod: PodSnapshot | None = None,
    ) -> None:  # fmt: skip
        """Store a worker's result."""
        fields = worker_result(task.event, index, attempt, Verdict(reason), pod, 1_700_000_000.0)
        self.log.record_result(task.event.event_id, task.owner, index, attempt=attempt, fields=fields)

    def count(self, outcome: str) -> float:
        """The figure of the spans."""
        line = next(
            each
            for each in self.metrics.render().decode().splitlines()
            if f'outcome="{outcome}"' in each and "trace_spans" in each
        )
        return float(line.rpartition(" ")[2])

    def pending(self) -> int:
        """Results that were read and not acknowledged."""
        with self.server.client() as client:
            found: Any = client.xpending(f"{self.admin.prefix}results", "group:traces")
        return int(found["pending"])

    def close(self) -> None:
        """Close all connections, and remove the keys."""
        for one in self._open:
            one.close()
        self.admin.flush()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded Redis."""
    with local_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    """A world of this test's own."""
    with server.client() as client:
        made = World(server, RedisAdmin(client))
        yield made
        made.close()


def test_one_trace_for_each_event(world: World) -> None:
    """One root, one span for each worker, its phases below it, and the deletion when the pod is gone."""
    exporter = world.exporter()
    task = world.task(event_id="e-1", pod_count="2")
    for index in (1, 2):
        world.intend(task, index)
        world.record(task, index, pod=world.pod(task, index))
    exporter.step()
    spans = world.backend.kept.values()
    assert sorted(world.backend.names()) == sorted([*PHASES, "worker"] * 2 + ["scale_up"])
    assert len({span.trace_id for span in spans}) == 1
    (root,) = [span for span in spans if not span.parent_id]
    workers = [span for span in spans if span.name == "worker"]
    assert {span.parent_id for span in workers} == {root.span_id}
    assert root.name == "scale_up"
    assert (world.pending(), world.count("sent")) == (2, 15)

    world.registry.delete(AttemptKey(event_hash(BUILDER.instance, "e-1"), 1, 1))
    exporter.step()
    world.registry.delete(AttemptKey(event_hash(BUILDER.instance, "e-1"), 2, 1))
    exporter.step()
    assert world.backend.names()[15:] == ["delete", "delete"]
    assert world.pending() == 0
    exporter.step()
    assert len(world.backend.got) == 17


def test_a_pod_that_was_never_there_is_not_waited_for(world: World) -> None:
    """A worker that was cancelled in the queue has no deletion."""
    exporter = world.exporter()
    world.record(world.task(), reason=EndReason.SCALED_DOWN)
    exporter.step()
    assert world.backend.names() == ["worker", "queue", "record", "scale_up"]
    assert world.pending() == 0


def test_a_pod_that_stays_for_inspection_is_not_waited_for(world: World) -> None:
    """KEEP_FAILED_S may be long."""
    exporter, task = world.exporter(), world.task()
    kept = world.pod(task, keep_failed_s=600, phase=Phase.FAILED)
    world.record(task, reason=EndReason.ERROR, pod=kept)
    exporter.step()
    assert world.pending() == 0
    assert "delete" not in world.backend.names()


def test_a_pod_that_never_goes_is_given_up(world: World) -> None:
    """A finalizer may hold it without end."""
    exporter, task = world.exporter(), world.task()
    world.record(task, pod=world.pod(task))
    exporter.step()
    assert world.pending() == 1
    world.clock.advance(trace_exporter.LONGEST_DELETION_S + 1)
    exporter.step()
    exporter.step()
    assert world.pending() == 0


def test_while_the_cluster_is_unknown_no_pod_counts_as_gone(world: World) -> None:
    """The watch is away: it says nothing of pods."""
    exporter, task = world.exporter(), world.task()
    pod = world.pod(task)
    world.record(task, pod=pod)
    world.registry.delete(pod.key)
    world.registry.mark_unknown()
    exporter.step()
    assert "delete" not in world.backend.names()
    world.registry.replace(PodList([], "2"))
    exporter.step()
    assert world.backend.names()[-1] == "delete"


def test_another_pod_of_that_name_is_another_pod(world: World) -> None:
    """By its UID."""
    exporter, task = world.exporter(), world.task()
    pod = world.pod(task)
    world.record(task, pod=pod)
    world.registry.replace(PodList([builders_pod(key=pod.key, uid="another", resource_version="99")], "100"))
    exporter.step()
    assert world.backend.names().count("delete") == 1


def test_a_retry_has_the_spans_of_both_attempts(world: World) -> None:
    """How the first one ended is stored with the second."""
    exporter, task = world.exporter(), world.task(event_id="e-1")
    first = world.pod(task)
    world.intend(task)
    before = worker_result(task.event, 1, 1, Verdict(EndReason.ERROR, "exit code 3"), first, 1_700_000_000.0)
    world.intend(task, attempt=2, traced=encode_ended(before))
    world.record(task, attempt=2)
    exporter.step()
    failed = [span for span in world.backend.got if span.attributes.get("ottoscaler.attempt") == 1]
    assert {span.name for span in failed} >= {"queue", "create"}
    assert {"e-1/1"} == {
        span.attributes.get("cicd.pipeline.task.run.id") for span in world.backend.got if span.name == "worker"
    }


def test_a_collector_that_is_away_delays_nothing_and_loses_nothing(world: World, log: Lines) -> None:
    """One line, growing pauses, and all spans when it is back, also of results that did not fit into the hands."""
    exporter = world.exporter()
    away = CollectorUnavailable("http://c: refused")
    world.backend.errors = itertools.chain(itertools.repeat(away, 7), itertools.repeat(None))
    tasks = [world.task(event_id=f"e-{n}") for n in range(3)]
    for task in tasks:
        world.record(task, reason=EndReason.SCALED_DOWN)
    asked = []
    for second in range(600):
        before = len(world.backend.requests)
        exporter.step()
        if len(world.backend.requests) > before:
            asked.append(second)
        world.clock.advance(1)
        if world.backend.got:
            break
    assert asked == [0, 1, 3, 7, 15, 31, 61, 91]
    assert len(world.backend.kept) == 3 * 4
    assert log.of("traces.waiting")[0] == "The trace collector takes no spans; they wait, and results do not"
    assert len(log.of("traces.waiting")) == 3  # the first, the second, the fourth of seven
    assert log.of("traces.sending") == ["The trace collector is back after 91 s"]
    assert (world.count("dropped"), world.pending()) == (0, 0)


def test_a_collector_that_names_a_time_is_asked_then(world: World) -> None:
    """At most a minute later."""
    exporter = world.exporter()
    world.backend.errors = iter(
        [CollectorUnavailable("busy", retry_after_s=7), CollectorUnavailable("busy", retry_after_s=9000), None]
    )
    world.record(world.task(), reason=EndReason.SCALED_DOWN)
    for wait_s, requests in ((0, 1), (6.9, 1), (0.2, 2), (59.8, 2), (0.3, 3)):
        world.clock.advance(wait_s)
        exporter.step()
        assert len(world.backend.requests) == requests
    assert len(world.backend.got) == 4


def test_spans_that_the_collector_refuses_are_lost_and_counted(world: World, log: Lines) -> None:
    """They are not sent again, and hold up no others."""
    exporter = world.exporter()
    world.backend.errors = iter([CollectorRejected("http://c answers 400"), None])
    world.record(world.task(), reason=EndReason.SCALED_DOWN)
    exporter.step()
    assert (world.count("sent"), world.count("dropped"), world.pending()) == (0, 4, 0)
    assert log.of("traces.dropped") == ["4 spans are lost for the trace collector"]
    world.backend.refuses = 1
    world.record(world.task(), reason=EndReason.SCALED_DOWN)
    exporter.step()
    assert (world.count("sent"), world.count("dropped")) == (3, 5)


def test_what_is_in_hand_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest stays in the stream, which RESULT_MAXLEN bounds."""
    monkeypatch.setattr(trace_exporter, "MAX_OPEN", 6)
    exporter = world.exporter()
    world.backend.errors = itertools.chain([CollectorUnavailable("away")], itertools.repeat(None))
    for _ in range(8):
        world.record(world.task(), reason=EndReason.SCALED_DOWN)
    exporter.step()
    exporter.step()
    assert (world.pending(), world.backend.got) == (6, [])
    world.clock.advance(60)
    for _ in range(3):
        exporter.step()
    assert (world.pending(), len(world.backend.kept)) == (0, 32)


def test_results_that_were_trimmed_away_are_counted(world: World, log: Lines) -> None:
    """A replica died while the collector was away, and RESULT_MAXLEN was reached."""
    world.backend.errors = itertools.repeat(CollectorUnavailable("away"))
    dead = world.exporter()
    world.record(world.task(), reason=EndReason.SCALED_DOWN)
    dead.step()
    with world.server.client() as client:
        client.xtrim(f"{world.admin.prefix}results", maxlen=0, approximate=False)
    world.backend.errors = itertools.repeat(None)
    world.exporter(claim_after_s=0.0)
    assert world.count("dropped") == 2
    assert log.of("traces.dropped") == ["2 results are lost for the trace collector"]


def test_requests_have_a_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole results, in parts; one that is larger alone goes alone."""
    monkeypatch.setattr(trace_exporter, "SEND_SPANS", 7)
    exporter = world.exporter()
    for _ in range(3):
        world.record(world.task(), reason=EndReason.SCALED_DOWN)
    exporter.step()
    assert world.backend.requests == [7, 5]
    monkeypatch.setattr(trace_exporter, "SEND_SPANS", 1)
    world.record(world.task(), reason=EndReason.SCALED_DOWN)
    exporter.step()
    assert world.backend.requests[2:] == [3, 1]


def test_what_is_no_result_is_skipped(world: World) -> None:
    """Any client may write to the stream, and other groups may share it."""
    exporter = world.exporter()
    with world.server.client() as client:
        for fields in (
            {"kind": "worker", "event_id": "e-9", "index": "1", "attempt": "1"},
            {"kind": "worker", "event_id": "e-9", "index": "x", "attempt": "1"},
            {"kind": "worker", "event_id": "e-9", "index": "9" * 30, "attempt": "1"},
            {"kind": "story", "event_id": "e-9"},
            {"text": "hello"},
        ):
            client.xadd(f"{world.admin.prefix}results", fields)  # type: ignore[arg-type]
        task = world.task(event_id="e-1")
        client.xadd(f"{world.admin.prefix}results", {"kind": "task", "event_id": task.event.event_id})
    exporter.step()
    assert (world.backend.got, world.pending()) == ([], 0)


def test_a_result_of_which_fields_are_missing_ends_nothing(world: World) -> None:
    """It gets the spans that it has the times for."""
    exporter, task = world.exporter(), world.task(event_id="e-1")
    pod = world.pod(task, keep_failed_s=600, phase=Phase.FAILED)
    fields = {"kind": "worker", "event_id": "e-1", "index": "1", "attempt": "1", "task_id": "t", "pod_uid": pod.uid}
    with world.server.client() as client:
        client.xadd(f"{world.admin.prefix}results", fields)  # type: ignore[arg-type]
    exporter.step()
    world.registry.delete(pod.key)
    exporter.step()
    assert world.backend.names() == ["worker", "queue", "delete"]
    assert world.pending() == 0


def test_after_a_defect_the_exporter_begins_again(world: World, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the workers goes on. What was in hand is pending: it holds up nothing, and comes back later."""
    monkeypatch.setattr(stop_module, "RESTART_S", 0.01)
    monkeypatch.setattr(trace_exporter, "READ_EVERY_S", 0.01)
    world.log.begin_results()
    world.backend.errors = itertools.chain([AttributeError("a defect")], itertools.repeat(None))
    world.record(world.task(), reason=EndReason.SCALED_DOWN)
    stop = StopSignal()
    exporter = TraceExporter(
        results=world.replica(), sink=world.backend, registry=world.registry, builder=BUILDER, stop=stop,
        metrics=world.metrics, clock=world.clock, claim_after_s=CLAIM_AFTER_S,
    )  # fmt: skip
    stop.spawn("traces", exporter.run, vital=False)
    eventually(lambda: log.of("thread.died") == ["Thread traces died"])
    world.record(world.task(), reason=EndReason.SCALED_DOWN)
    eventually(lambda: len(world.backend.got) == 4 and world.pending() == 2)
    assert not stop.is_set()
    stop.set()
    eventually(lambda: not [one for one in threading.enumerate() if one.name == "traces"])


def test_the_loop_goes_on_when_redis_is_away(world: World, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line."""
    with world.server.client() as client:
        client.set(f"{world.admin.prefix}results", "a text")
    monkeypatch.setattr(trace_exporter, "REDIS_PAUSE_S", 0.05)
    stop = StopSignal()
    exporter = TraceExporter(
        results=world.replica(), sink=world.backend, registry=world.registry, builder=BUILDER, stop=stop,
        metrics=world.metrics, clock=world.clock, claim_after_s=CLAIM_AFTER_S,
    )  # fmt: skip
    stop.spawn("traces", exporter.run)
    eventually(lambda: log.of("traces.outage"))
    with world.server.client() as client:
        client.delete(f"{world.admin.prefix}results")
        eventually(lambda: client.exists(f"{world.admin.prefix}results"))
    stop.set()
    assert stop.cause is None


class Mortal:
    """A replica's port to the results that dies before or after its n-th call."""

    def __init__(self, inner: Any, calls: int, *, after: bool) -> None:
        self._inner, self._left, self._after = inner, calls, after

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Died
            answer = getattr(self._inner, name)(*arguments, **options)
            if self._left < 0:
                raise Died
            return answer

        return call


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase_.explicit, Phase_.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    deaths=st.lists(st.tuples(st.integers(0, 14), st.booleans()), max_size=4),
    failures=st.lists(st.booleans(), max_size=6),
    cut=st.lists(st.integers(1, 3), max_size=5),
)
def test_whatever_dies_the_trace_is_the_same(
    server: Server, deaths: list[tuple[int, bool]], failures: list[bool], cut: list[int]
) -> None:
    """Any interleaving of restarts and outages gives one root, no gap and no duplicate: the same spans as without."""
    with server.client() as client:
        world = World(server, RedisAdmin(client))
        try:
            _play(world, deaths, failures, cut)
        finally:
            world.close()


def _play(world: World, deaths: list[tuple[int, bool]], failures: list[bool], cut: list[int]) -> None:
    away = CollectorUnavailable("away")
    world.backend.errors = itertools.chain((away if one else None for one in failures), itertools.repeat(None))
    world.log.begin_results()
    task = world.task(event_id=f"e-{uuid.uuid4().hex}", pod_count="3")
    pods = []
    for index in (1, 2, 3):
        world.intend(task, index)
        pods.append(world.pod(task, index))
    events = [lambda i=i: world.record(task, i, pod=pods[i - 1]) for i in (1, 2, 3)]  # type: ignore[misc]
    events += [lambda i=i: world.registry.delete(pods[i - 1].key) for i in (1, 2, 3)]  # type: ignore[misc]
    steps = iter([*cut, *itertools.repeat(1, 6)])
    while events:
        for _ in range(min(next(steps), len(events))):
            events.pop(0)()
        _carry_on(world, deaths)
    last = world.exporter(claim_after_s=0.0)
    for _ in range(12):
        world.clock.advance(140)
        last.step()
    spans = list(world.backend.kept.values())
    assert sorted(span.name for span in spans) == sorted([*PHASES, "worker", "delete"] * 3 + ["scale_up"])
    (root,) = [span for span in spans if not span.parent_id]
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        if span is root:
            continue
        parent = by_id[span.parent_id]
        assert parent.start_ms <= span.start_ms
        assert span.end_ms <= parent.end_ms or span.name == "delete"
    assert (world.pending(), world.count("dropped")) == (0, 0)


def _carry_on(world: World, deaths: list[tuple[int, bool]]) -> None:
    """A process takes one step or dies in the middle of it; then another one takes its place."""
    calls, after = deaths.pop(0) if deaths else (1000, False)
    world.clock.advance(70)
    try:
        exporter = world.exporter(Mortal(world.replica(), calls, after=after), claim_after_s=0.0)
        exporter.step()
    except Died:
        return
