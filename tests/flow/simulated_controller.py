"""One controller over the fakes, put together as cli/run.py does it, with the threads that a test asks for.

Leaving the `with` block stops it in the order of the real one and fails the test if a thread died or is left: every
test of the flow is a test of its end, too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from ottoscaler.core.manifest import AttemptKey, event_hash, pod_name
from ottoscaler.core.observations import TimedOut
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, record_nothing
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.policy import Policy, Rules
from ottoscaler.core.shares import EQUAL_SHARES, Shares
from ottoscaler.flow.control import ScaleDownProcessor
from ottoscaler.flow.dispatch import WorkerDispatcher
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.intake import Intake, StreamReader
from ottoscaler.flow.lease import LeaseKeeper
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.log_drain import LogDrain
from ottoscaler.flow.pod_keeper import PodKeeper
from ottoscaler.flow.pod_terminator import PodTerminator
from ottoscaler.flow.reconciler import Reconciler
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.scale_down import ScaleDownSteps
from ottoscaler.flow.stop import StopSignal
from ottoscaler.flow.takeover import TakeOver
from ottoscaler.flow.watch import PodWatcher
from ottoscaler.flow.worker import WorkerRunner
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock, Cluster, OpenTask, RedisPorts
from ottoscaler.retries import Retries
from ottoscaler.settings import Settings
from tests.fakes.clock import ManualClock, SystemClock
from tests.fakes.cluster import FakeCluster, FakeKubernetes
from tests.fakes.forwarder import FakeForwarder
from tests.fakes.stream import FakeRedis, FakeStream
from tests.fakes.wait import PATIENCE_S, eventually

ALL = ("watch", "lease", "control", "reader", "reconciler")
#: Longest pause between two tries in these tests, real seconds.
_PAUSE_S = 0.002


class ImpatientEvent(threading.Event):
    """A stop event on which no thread pauses for long, so that an outage costs a test milliseconds."""

    def __init__(self, stopping: threading.Event) -> None:
        super().__init__()
        self._stopping = stopping

    def is_set(self) -> bool:
        return self._stopping.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._stopping.wait(_PAUSE_S if timeout is None else min(timeout, _PAUSE_S))


class ImpatientStop(StopSignal):
    """A stop that shortens short pauses (the ticks of a thread); long ones are as they are."""

    def wait(self, timeout_s: float | None = None) -> bool:
        return super().wait(0.02 if timeout_s is not None and timeout_s <= 1 else timeout_s)


class FakeServers:
    """What several controllers share: time, Redis, Kubernetes. It stands still unless the test moves it."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or ManualClock()
        self.redis = FakeRedis(self.clock)
        self.kubernetes = FakeKubernetes(self.clock)
        self.before = set(threading.enumerate())
        self.open_controllers = 0


class SimulatedController:
    """A controller. The main thread's own; `threads` are spawned on entry, `settings` are environment variables.

    `auto` runs the pods, as in FakeCluster. Without a `servers` it gets one of its own, with a clock that stands still.
    A `stream` on a real Redis, and a `cluster` on a real API server, take the place of the fake ones.
    """

    def __init__(
        self,
        servers: FakeServers | None = None,
        *,
        consumer: str = "c1",
        incarnation: str = "b1",
        threads: Sequence[str] = (),
        auto: bool | Callable[[str], int | None] = False,
        stop: StopSignal | None = None,
        stream: RedisPorts | None = None,
        shares: Shares = EQUAL_SHARES,
        policy: Policy | None = None,
        cluster: Cluster | None = None,
        record_event: RecordKubeEvent = record_nothing,
        **settings: object,
    ) -> None:
        self.servers = servers or FakeServers()
        self.servers.open_controllers += 1
        self.redis, self.clock = self.servers.redis, self.servers.clock
        environ = {name: str(value) for name, value in settings.items()}
        self.settings = Settings.load({"REDIS_CONSUMER": consumer, **environ}, consumer, None)
        flow, instance = self.settings.flow, self.settings.instance
        self.stream: Any = stream or FakeStream(self.redis, consumer, incarnation=incarnation, lease_s=flow.lease_s)
        self.cluster: Any = cluster or FakeCluster(self.servers.kubernetes, instance=instance, auto=auto)
        self.stop, self.metrics, self.record_event = stop or ImpatientStop(), Metrics(), record_event
        self.registry, self.shares, self.policy = PodRegistry(self.clock), shares, policy
        self.ledger = Ledger(
            self.registry, self.clock, instance=instance, max_workers=flow.max_workers, read_ahead=flow.read_ahead,
            admit_max=flow.admit_max, max_pending=flow.max_pending, tenant_field=flow.tenant_field,
        )  # fmt: skip
        self.ledger.room_waits.set_shares(self.shares)
        self.heartbeat = Heartbeat(self.clock)
        self.lease_s = float(flow.lease_s)
        self.retries = Retries(ImpatientEvent(self.stop.event), self.metrics, self.heartbeat.report_failure)
        self._wire(consumer, incarnation)
        self.stream.ensure_group()
        self._threads = threads
        self._closed = False
        self.dies_of: type[BaseException] | None = None
        """What the test expects a thread to die of; its end is then not a failure."""

    def _wire(self, consumer: str, incarnation: str) -> None:
        settings, stream, cluster, registry = self.settings, self.stream, self.cluster, self.registry
        ledger, inbox, retries, metrics = self.ledger, ScaleDownInbox(), self.retries, self.metrics
        loop: dict[str, Any] = {"stop": self.stop, "heartbeat": self.heartbeat, "clock": self.clock}
        lease_s, ttl_s = self.lease_s, settings.keys.task_ttl_s
        self.inbox = inbox
        self.keeper = keeper = PodKeeper(
            cluster=cluster, registry=registry, metrics=metrics, clock=self.clock,
            most=settings.flow.keep_failed_max, ttl_s=ttl_s,
        )  # fmt: skip
        self.forwarder = FakeForwarder()
        self.log_drain = LogDrain(
            forwarder=self.forwarder, cluster=cluster, attempts=stream, metrics=metrics,
            drain_s=float(settings.log_handler.drain_s), worker_logs=settings.worker_logs, **loop,
        )  # fmt: skip
        streams = settings.log_handler.address is not None and self.policy is not None
        log_drain = self.log_drain if settings.forwards_logs or streams else None
        self.runner = WorkerRunner(
            attempts=stream, cluster=cluster, registry=registry, ledger=ledger, keeper=keeper, retries=retries,
            metrics=metrics, log_drain=log_drain, record_event=self.record_event,
            heartbeat=self.heartbeat, clock=self.clock, settings=settings,
        )  # fmt: skip
        self.terminator = PodTerminator(
            cluster=cluster, registry=registry, ledger=ledger, runner=self.runner, keeper=keeper, **loop
        )
        self.dispatcher = WorkerDispatcher(
            ledger=ledger, runner=self.runner, terminator=self.terminator, inbox=inbox,
            max_workers=settings.flow.max_workers,
            **loop,
        )  # fmt: skip
        self.intake = Intake(
            event_log=stream, ledger=ledger, inbox=inbox, retries=retries, metrics=metrics,
            max_pods=settings.flow.max_pods_per_event,
            rules=lambda: Rules(max_deadline_s=settings.worker.deadline_s, policy=self.policy),
            record_event=self.record_event,
        )  # fmt: skip
        self.scale_downs = ScaleDownSteps(
            scale_downs=stream, attempts=stream, registry=registry, ledger=ledger, terminator=self.terminator,
            clock=self.clock,
            instance=settings.instance,
        )  # fmt: skip
        self.control = ScaleDownProcessor(
            event_log=stream, registry=registry, ledger=ledger, inbox=inbox, intake=self.intake,
            scale_downs=self.scale_downs, retries=retries, lease_s=lease_s, **loop,
        )  # fmt: skip
        self.reader = StreamReader(event_log=stream, intake=self.intake, ledger=ledger, retries=retries, **loop)
        self.takeover = TakeOver(
            event_log=stream, leases=stream, attempts=stream, ledger=ledger, control=self.control, inbox=inbox,
            intake=self.intake, metrics=metrics,
            lease_s=lease_s, events_keep=settings.keys.events_keep, shares=lambda: self.shares, worker=settings.worker,
            record_event=self.record_event, **loop,
        )  # fmt: skip
        self.lease = LeaseKeeper(
            event_log=stream, leases=stream, ledger=ledger, control=self.control, inbox=inbox, takeover=self.takeover,
            metrics=metrics, lease_s=lease_s,
            ttl_s=ttl_s, me=f"{consumer}/{incarnation}", record_event=self.record_event, **loop,
        )  # fmt: skip
        self.reconciler = Reconciler(
            leases=stream, cluster=cluster, registry=registry, dispatcher=self.dispatcher, terminator=self.terminator,
            keeper=keeper, log_drain=log_drain,
            lease_s=lease_s, ttl_s=ttl_s, **loop,
        )  # fmt: skip
        self.watch = PodWatcher(cluster=cluster, registry=registry, retries=retries, metrics=metrics, **loop)

    def __enter__(self) -> Self:
        self.start(*self._threads)
        return self

    def start(self, *names: str) -> None:
        """Spawn these threads; returns when the cluster's state is known, where a watch is among them."""
        bodies = {name: getattr(self, name).run for name in names}
        if "watch" in names:  # no worker begins before all pods are known
            bodies["dispatch"] = self.dispatcher.run
        if "lease" in names:  # what the one finds out, the other has to do
            bodies["takeover"] = self.takeover.run
        if "control" in names:  # one lane, of several threads
            bodies |= {"scale-down": self.control.carry_out, "ender": self.terminator.run}
        for name, run in bodies.items():
            self.heartbeat.add_loop(name)
            self.stop.spawn(name, run)
        if "watch" in names:
            eventually(lambda: self.registry.is_known, what="the first list of pods")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.servers.open_controllers -= 1
        if kind is not None:
            return
        assert isinstance(self.stop.cause, self.dies_of or type(None)), f"a thread died of {self.stop.cause!r}"
        left = self.left() if not self.servers.open_controllers else []
        assert not left, f"threads are left: {left}"

    def close(self, *, release: bool = True) -> None:
        """Stop as the controller does; without `release` as if the process had died. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.stop.set()
        self.registry.close()
        self.dispatcher.close()
        eventually(lambda: not self.ledger.wait_idle(self.clock.now()), PATIENCE_S, "the workers to let go")
        if release and not self.redis.down:
            self.lease.release()
        self.cluster.close()
        real = SystemClock()
        hung = self.stop.join(real, real.now() + PATIENCE_S)
        assert not hung, f"threads hang: {hung}"

    def left(self) -> list[str]:
        """The names of threads that were started since this controller was made and do not end."""

        def running() -> list[str]:
            return [thread.name for thread in threading.enumerate() if thread not in self.servers.before]

        try:
            eventually(lambda: not running())
        except AssertionError:
            return running()
        return []

    @contextmanager
    def without_dispatch(self) -> Iterator[None]:
        """Nothing is handed to a thread, and no cancelled worker is carried on, until the end of the block."""
        self.dispatcher.step = lambda: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.dispatcher.step
            self.ledger.wake_for_room()

    # -- what a test does

    def send(self, **fields: object) -> str:
        """Add an event (scale_up unless it says otherwise) to the stream; returns its event id."""
        answer = {"type": "scale_up", **fields}
        stream_id = self.redis.add({name: str(value) for name, value in answer.items()})
        return str(fields.get("event_id") or stream_id)

    def accept(self, **fields: object) -> str:
        """The same, taken in on this thread: accepted, opened, and its workers given threads. Returns the event id."""
        event_id = self.send(**fields)
        self.intake.accept_entries(self.stream.read_now(100))
        return event_id

    def pass_time(self, seconds: float) -> None:
        """Move the clock; a thread that waits with a deadline looks at it, and a worker that is due gets a thread."""
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(seconds)
        for key in {pod.key for pod in self.registry.snapshots()}:
            if self.registry.followed(*key.worker):
                self.registry.notify(*key.worker, TimedOut())
        self.ledger.wake_for_room()

    def wait_and_look(self, seconds: float) -> None:
        """Move the clock in steps that the lease thread keeps up with: a jump would look like an outage to it.

        Each step is over when the leases are renewed, if that was due, and what the dead have left was looked for.
        After what does look like an outage nothing is looked for until the calm is over.
        """
        for _ in range(math.ceil(seconds / 2)):
            self.pass_time(2.0)
            eventually(self._renewed_and_looked, what="a renewal of the leases and a look at those of others")

    def _renewed_and_looked(self) -> bool:
        now, takeover = self.clock.now(), self.takeover
        return self.lease._renew_at > now and (takeover._take_at > now or takeover._calm_at > now)

    def live(self, seconds: int) -> None:
        """Let the given seconds pass, in steps that the lease thread keeps up with: at LEASE_S=3 it renews each."""
        for _ in range(seconds):
            renewals = self.redis.calls["renew"]
            self.pass_time(1)
            eventually(lambda: self.redis.calls["renew"] > renewals, what="a renewal")  # noqa: B023

    # -- what a test sees

    def key(self, event_id: str, index: int = 1, attempt: int = 1) -> AttemptKey:
        """What the labels of a worker's pod say."""
        return AttemptKey(event_hash(self.settings.instance, event_id), index, attempt)

    def name(self, event_id: str, index: int = 1, attempt: int = 1) -> str:
        """The name of a worker's pod."""
        return pod_name(self.key(event_id, index, attempt))

    def pod(self, event_id: str, index: int = 1, attempt: int = 1) -> str:
        """The name of a worker's pod, as soon as its thread has seen it and waits for what comes next."""
        name, key = self.name(event_id, index, attempt), self.key(event_id, index, attempt)
        eventually(lambda: name in self.cluster.names() and self._waits(key), what=f"{name} to be followed")
        return name

    def _waits(self, key: AttemptKey) -> bool:
        waiter, pod = self.registry._waiters.get(key.worker), self.registry.get(key)
        if waiter is None or waiter.future is None or pod is None:
            return False
        return waiter.stage == pod.stage or waiter.latest is None  # or it has just looked, and the watch was first

    def wait_seen(self, name: str, what: Callable[[PodSnapshot], object]) -> None:
        """Wait until the thread of a pod has seen it as described, and waits for what comes next."""
        self.sees(name, what)
        (key,) = [pod.key for pod in self.registry.snapshots() if pod.name == name]
        eventually(lambda: self._waits(key), what=f"the thread of {name}")

    def sees(self, name: str, what: Callable[[PodSnapshot], object]) -> None:
        """Wait until the registry shows a pod as described."""
        eventually(lambda: any(pod.name == name and what(pod) for pod in self.registry.snapshots()), what=name)

    def break_watch(self, error: Exception) -> None:
        """End the watch with this error, once there is one: its thread may have just begun."""
        eventually(self.servers.kubernetes.watching, what="the watch")
        self.servers.kubernetes.end_watches(error)

    def results(self, count: int, kind: str = "worker") -> list[dict[str, str]]:
        """The results of a kind, when there are at least `count`."""
        eventually(lambda: len(self.redis.results(kind)) >= count, PATIENCE_S, f"{count} results of {kind}")
        return self.redis.results(kind)

    def result(self, kind: str = "worker") -> dict[str, str]:
        """The only result of a kind, when it is there."""
        (only,) = self.results(1, kind)
        return only

    def steps(self) -> list[str]:
        """From now on: what workers' threads do to Redis and to pods, in the order in which it begins."""
        order: list[str] = []

        def note(step: str, _name: str = "") -> None:
            if step in ("store_attempt", "mark_pod_seen", "record_result", "create", "get", "delete"):
                order.append(step)

        self.redis.on_call, self.servers.kubernetes.on_call = note, note
        return order

    def idle(self) -> None:
        """Wait until no worker holds a thread, and none is about to get one."""
        eventually(self._is_idle, what="all threads to be free")

    def _is_idle(self) -> bool:
        # In this order: what is not takeable any more may be held by a thread.
        return (self.stop.is_set() or not self.ledger.takeable()) and self.ledger.thread_counts()[0] == 0

    def taken(self, event_id: str) -> OpenTask:
        """The task as it is stored."""
        task = self.stream.reload_task(event_id)
        assert task is not None
        return task

    def calls(self, verb: str, name: str | None = None) -> int:
        """How many requests of a verb the API server had."""
        return self.servers.kubernetes.count(verb, name)
