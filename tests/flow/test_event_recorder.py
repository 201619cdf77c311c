"""The recorder of Kubernetes Events: nothing waits for it, what happens again is one Event, and no refusal ends it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ottoscaler.core.event_series import BURST
from ottoscaler.core.outgoing_kube_events import EventReason, KubeEvent, PodReference
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.flow import event_recorder
from ottoscaler.flow.event_recorder import MAX_WAITING, EventRecorder
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from tests.fakes.clock import ManualClock
from tests.fakes.kube_events import FakeKubeEvents
from tests.fakes.wait import PATIENCE_S, eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController
from tests.flow.test_status_writer import QUOTA, write

pytestmark = pytest.mark.contract("2.KUBERNETES_EVENTS")
_COUNT = re.compile(r'^ottoscaler_kube_events_total\{outcome="(\w+)"\} (\S+)$', re.MULTILINE)


class Recording:
    """One recorder over a fake server."""

    def __init__(self, own_pod: str = "otto-0") -> None:
        self.api, self.stop, self.metrics = FakeKubeEvents(), StopSignal(), Metrics()
        self.api.pods["otto-0"] = "uid-0"
        self.recorder = EventRecorder(
            api=self.api, stop=self.stop, metrics=self.metrics, clock=ManualClock(), namespace="ns", instance="c1",
            own_pod=own_pod,
        )  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[None]:
        """Its thread runs; afterwards it has ended, and of nothing but the stop."""
        self.stop.spawn("events", self.recorder.run)
        try:
            yield
        finally:
            self.stop.set()
            eventually(lambda: not [one for one in threading.enumerate() if one.name == "events"], what="its end")
        assert self.stop.cause is None

    def _counts(self) -> dict[str, float]:
        """The metric by outcome."""
        text = self.metrics.render().decode()
        return {name: float(value) for name, value in _COUNT.findall(text)}

    def count(self, outcome: str) -> float:
        """The metric."""
        return self._counts()[outcome]

    def ended(self) -> float:
        """Of how many something has come."""
        counts = self._counts()
        return sum(counts[outcome] for outcome in ("created", "repeated", "limited", "overflow", "failed"))


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_recorder, "PAUSE_S", 0.001)


def about(number: int, reason: EventReason = EventReason.WORKER_FAILED) -> KubeEvent:
    """Something has happened to a worker."""
    return KubeEvent(reason, f"message {number}", PodReference(f"otto-agent-{number}", f"uid-{number}"))


DEAD = KubeEvent(EventReason.DEAD_LETTER, "Dead letter")


def test_what_happens_again_is_the_same_event() -> None:
    """With a count; another reason, or another object, is another one."""
    recording = Recording()
    with recording.running():
        for number, event in enumerate([DEAD, DEAD, about(1), about(1, EventReason.WORKER_RETRIED), DEAD], 1):
            recording.recorder.record(event)
            eventually(lambda done=number: recording.ended() == done, PATIENCE_S, "the Event")
    worker = "otto-agent-1"
    expected = [("otto-0", "DeadLetter", 3), (worker, "WorkerFailed", 1), (worker, "WorkerRetried", 1)]
    assert recording.api.shown() == expected
    assert (recording.count("created"), recording.count("repeated")) == (3, 2)


def test_a_flood_of_one_kind_is_one_write_and_pushes_nothing_out() -> None:
    """It is counted while it waits."""
    recording = Recording()
    for _ in range(3 * MAX_WAITING):
        recording.recorder.record(DEAD)
    recording.recorder.record(about(1))
    with recording.running():
        eventually(lambda: recording.ended() == 3 * MAX_WAITING + 1, PATIENCE_S, "all of them")
    assert recording.api.shown() == [("otto-0", "DeadLetter", 3 * MAX_WAITING), ("otto-agent-1", "WorkerFailed", 1)]
    assert recording.api.calls == ["get", "create", "create"]


def test_beyond_the_bound_they_are_dropped_and_counted() -> None:
    """The queue does not grow while the API server is away."""
    recording = Recording()
    for number in range(MAX_WAITING + 5):
        recording.recorder.record(about(number))
    assert recording.count("overflow") == 5


def test_beyond_an_objects_budget_they_are_counted_and_not_written() -> None:
    """The API server sees no more of it; the next that is written has the whole count."""
    recording = Recording()
    with recording.running():
        for number in range(1, BURST + 4):
            recording.recorder.record(DEAD)
            eventually(lambda done=number: recording.ended() == done, PATIENCE_S, "the Event")
    assert recording.count("limited") == 3
    assert recording.api.shown() == [("otto-0", "DeadLetter", BURST)]


def test_an_event_that_the_server_has_forgotten_is_written_anew() -> None:
    """After an hour."""
    recording = Recording()
    with recording.running():
        recording.recorder.record(DEAD)
        eventually(lambda: recording.ended() == 1, PATIENCE_S, "the first")
        with recording.api.lock:
            recording.api.events.clear()
        recording.recorder.record(DEAD)
        eventually(lambda: recording.ended() == 2, PATIENCE_S, "the second")
    assert recording.api.shown() == [("otto-0", "DeadLetter", 1)]
    assert recording.count("created") == 2


def test_a_lost_answer_makes_no_second_event() -> None:
    """The next try changes what is there."""
    recording = Recording()
    recording.api.lost_answers = 1
    with recording.running():
        recording.recorder.record(about(1))
        eventually(lambda: recording.ended() == 1, PATIENCE_S, "the Event")
    assert recording.api.shown() == [("otto-agent-1", "WorkerFailed", 1)]


@pytest.mark.parametrize("trouble", ["forbidden", "away", "missing", "no pod"])
def test_trouble_is_logged_once_with_what_to_do(log: Lines, trouble: str) -> None:
    """A missing right is named before the first Event. What comes of each is counted, and the thread goes on."""
    recording = Recording(own_pod="gone" if trouble == "no pod" else "otto-0")
    recording.api.forbidden = trouble == "forbidden"
    recording.api.away = 1000 if trouble == "away" else 0
    recording.api.missing = ["may not create Events in namespace ns"] if trouble == "missing" else []
    with recording.running():
        for number in range(1, 4):
            recording.recorder.record(DEAD)
            eventually(lambda done=number: recording.ended() == done, PATIENCE_S, "what becomes of it")
    (line,) = [line for line in log.all() if line["event"] == "kubernetes.events_not_written"]
    assert line["level"] == "WARNING"
    assert "KUBERNETES_EVENTS=false" in str(line["message"])
    assert recording.count("failed") == (0 if trouble == "missing" else 3)


def test_the_stop_ends_the_pause_of_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for no Event."""
    monkeypatch.setattr(event_recorder, "PAUSE_S", 10 * PATIENCE_S)
    recording = Recording()
    recording.api.away = 1000
    with recording.running():
        recording.recorder.record(DEAD)
        eventually(lambda: recording.api.calls, what="the first try")
    assert recording.ended() == 0


def test_outside_a_cluster_the_controller_has_no_pod() -> None:
    """Then only workers have Events."""
    recording = Recording(own_pod="")
    recording.recorder.record(DEAD)
    recording.recorder.record(about(1))
    with recording.running():
        eventually(lambda: recording.ended() == 1, PATIENCE_S, "the Event")
    assert recording.api.calls == ["create"]


def test_a_secret_is_in_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in no line of the log."""
    recording = Recording()
    monkeypatch.setattr(event_recorder.logs, "redact", lambda text: text.replace("s3cret", "***"))
    with recording.running():
        recording.recorder.record(KubeEvent(EventReason.DEAD_LETTER, "x=s3cret"))
        eventually(lambda: recording.ended() == 1, PATIENCE_S, "the Event")
    assert [one["message"] for one in recording.api.events.values()] == ["x=***"]


# -- what is recorded, of what the controller does


def test_a_worker_that_fails_and_its_attempts() -> None:
    """Each on the pod that it is about."""
    found: list[KubeEvent] = []
    with SimulatedController(threads=["watch"], record_event=found.append) as controller:
        event_id = controller.accept(pod_count=1, retries=1)
        first = controller.pod(event_id)
        controller.cluster.run(first)
        controller.cluster.fail(first, 7)
        eventually(lambda: found, what="the first attempt's end")
        controller.pass_time(60)
        second = controller.pod(event_id, attempt=2)
        controller.cluster.run(second)
        controller.cluster.fail(second, 8)
        assert controller.result()["outcome"] == "failed"
        controller.idle()
    assert [(event.reason, event.pod and event.pod.name) for event in found] == [
        (EventReason.WORKER_RETRIED, first),
        (EventReason.WORKER_FAILED, second),
    ]
    assert f"retry 1 of 1 as {second}" in found[0].message
    assert all(event.pod and event.pod.uid for event in found)


def test_a_worker_that_succeeds_has_none() -> None:
    """Its pod says so itself."""
    found: list[KubeEvent] = []
    with SimulatedController(threads=["watch"], record_event=found.append) as controller:
        pod = controller.pod(controller.accept(pod_count=1))
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        assert controller.result()["outcome"] == "succeeded"
        controller.idle()
    assert found == []


def test_a_worker_that_a_scale_down_ends_says_so() -> None:
    """As was asked: it is no warning."""
    found: list[KubeEvent] = []
    with SimulatedController(threads=["watch", "control"], record_event=found.append) as controller:
        event_id = controller.accept(pod_count=1)
        pod = controller.pod(event_id)
        controller.cluster.run(pod)
        controller.sees(pod, lambda seen: seen.started_at is not None)
        controller.send(type="scale_down", task_id=event_id)
        controller.sees(pod, lambda seen: seen.deleting)
        controller.cluster.kill(pod)
        eventually(lambda: found, what="an Event")
    assert [(event.reason, event.pod and event.pod.name) for event in found] == [(EventReason.WORKER_CANCELLED, pod)]
    assert "ScaledDown" in found[0].message
    assert found[0].reason.event_type == "Normal"


def test_a_pod_that_the_controller_ends_says_why() -> None:
    """Before it goes."""
    found: list[KubeEvent] = []
    with SimulatedController(threads=["watch"], record_event=found.append, PENDING_TIMEOUT_S=60) as controller:
        pod = controller.pod(controller.accept(pod_count=1))
        controller.pass_time(61)
        eventually(lambda: found, what="an Event")
    assert (found[0].reason, found[0].pod and found[0].pod.name) == (EventReason.WORKER_TERMINATING, pod)
    assert "PendingTimeout" in found[0].message


def test_a_dead_letter_a_lost_lease_and_a_quota_are_about_the_controller() -> None:
    """Whatever finds them out: the reader, the lease thread, the writer of statuses."""
    servers, found = FakeServers(), list[KubeEvent]()
    one = SimulatedController(servers, threads=["watch"], record_event=found.append)
    with one as controller, SimulatedController(servers, consumer="c2") as heir:
        controller.accept(type="nonsense")
        event_id = controller.accept(pod_count=1)
        controller.pod(event_id)
        servers.redis.expire_lease(event_id)
        assert heir.stream.take_over(event_id, same_consumer=False) is not None
        controller.start("lease")
        eventually(lambda: len(found) == 2, what="two Events")
        servers.kubernetes.refuse_next("create", ClusterUnavailable(QUOTA, unclear=False))
        controller.accept(pod_count=1)
        eventually(lambda: controller.calls("create") == 2)
        controller.idle()
        write(controller)
        eventually(lambda: len(found) == 3, what="the quota's Event")
    reasons = [EventReason.DEAD_LETTER, EventReason.LEASE_LOST, EventReason.QUOTA_USED_UP]
    assert [(event.reason, event.pod) for event in found] == [(reason, None) for reason in reasons]
    assert f"Task {event_id} was taken over by c2/" in found[1].message
    assert QUOTA in found[2].message
