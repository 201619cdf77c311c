"""One controller, put together as cli/run.py does it, with threads that the caller of `act` carries on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ottoscaler.core import effects
from ottoscaler.core.observations import Observation, TimedOut
from ottoscaler.core.policy import Rules
from ottoscaler.errors import (
    ClusterRejected,
    ClusterUnavailable,
    ConsumerReplaced,
    RedisUnavailable,
    Stopping,
    Unavailable,
)
from ottoscaler.flow.control import ScaleDownProcessor
from ottoscaler.flow.dispatch import WorkerDispatcher
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.intake import Intake, StreamReader
from ottoscaler.flow.lease import LeaseKeeper
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.log_drain import LogDrain
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
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
from ottoscaler.ports import Cluster, OpenTask, RedisPorts
from ottoscaler.retries import Retries
from ottoscaler.settings import Settings
from tests.fakes.cluster import FakeCluster
from tests.simulation.links import Crash, Defect, Link
from tests.simulation.log_drains import SimulatedForwarder
from tests.simulation.servers import AuditedStream
from tests.simulation.turns import WaitingTasks

if TYPE_CHECKING:
    from tests.simulation.world import World

#: The threads of a controller, apart from its workers'.
ROLES = ("reader", "control", "scale_down", "dispatch", "ender", "lease", "takeover", "reconciler", "watch")
#: So many steps all workers together may take in a stop.
PATIENCE = 400

_T = TypeVar("_T")


class _Instant(threading.Event):
    """No thread pauses on it: time is the world's."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


class _InstantStop(StopSignal):
    def __init__(self) -> None:
        super().__init__()
        self.event = _Instant()


class _Tries(Retries):
    """A call is tried a few times, at once."""

    def __init__(self, stopping: threading.Event, metrics: Metrics, world: World) -> None:
        super().__init__(stopping, metrics)
        self._world = world
        self._stopped = stopping

    def retry_forever(self, what: str, attempt: Callable[[], _T]) -> _T:
        """The watch is carried on again anyway; for any other thread that cannot be left, the outage ends some time."""
        while True:
            try:
                return attempt()
            except Unavailable as error:
                if what == "list pods":
                    raise
                if self._stopped.is_set():
                    raise Stopping(f"stopped while trying to {what}") from error
                self._world.pass_by()
                self._world.servers("Redis")


class _WorkerDispatcher(WorkerDispatcher):
    """Each thread that it starts is a worker of the simulation, to be carried on."""

    def __init__(self, replica: Replica, **uses: Any) -> None:
        super().__init__(**uses)
        self._replica = replica

    def _start_thread(self, run: WorkerRun) -> None:
        self._replica.workers.append(Worker(self._replica, run))

    def next_after(self, run: WorkerRun) -> WorkerRun | None:
        """What a thread does between two workers; one that finds none is started again for the next."""
        self._ledger.let_go(run)
        following = None if self._stop.is_set() else self._ledger.take()
        if following is None:
            self._size -= 1
        return following


class _Ledger(Ledger):
    """Shows the audit which workers use room, and which have a turn."""

    def __init__(self, replica: Replica, registry: PodRegistry, settings: Settings) -> None:
        flow = settings.flow
        super().__init__(
            registry,
            replica.world.clock,
            instance=settings.instance,
            max_workers=flow.max_workers,
            read_ahead=flow.read_ahead,
            admit_max=flow.admit_max,
            max_pending=flow.max_pending,
            tenant_field=flow.tenant_field,
        )
        self._replica = replica
        self._waits = WaitingTasks(replica.world.audit, replica.world.clock)
        self.room_waits.set_shares(replica.world.audit.shares)

    def add(self, opened: OpenTask) -> OwnedTask:
        task = super().add(opened)
        self._waits.begins(task)
        return task

    def admit(self, task: OwnedTask) -> bool:
        admitted = super().admit(task)
        self._waits.begins(task)
        return admitted

    def _take_next(self) -> WorkerRun | None:
        waiting = self._waits.waiting(self.tasks)
        run = super()._take_next()
        if run is not None:
            self._waits.had_turn(run, waiting)
        return run

    def may_create_pod(self, run: WorkerRun) -> bool:
        holds = super().may_create_pod(run)
        if holds and run.life.index not in run.task.terminations:  # one that is cancelled creates nothing
            self._replica.world.audit.using_room(self._replica, run)
        return holds


class Worker:
    """The thread of one worker; `step` is one turn of `WorkerRunner.run`."""

    def __init__(self, replica: Replica, run: WorkerRun) -> None:
        self.run = run
        self.busy = False
        self._replica = replica
        self._runner = replica.runner
        self._clock = replica.clock
        self._registry = replica.registry
        self._stack = ExitStack()
        self._waiter = self._stack.enter_context(self._runner.subscribed(run))
        self._future: Future[Observation] | None = None

    def blocked(self) -> bool:
        """Does it await its pod's next stage, and there is none?"""
        effect = self.run.life.todo
        if not isinstance(effect, effects.AwaitPod):
            return False
        if self._future is None:
            self._future = self._registry.next_observation(self._waiter, self.run.life.attempt)
        return not self._future.done() and (effect.until is None or self._clock.now() < effect.until)

    def step(self) -> bool:
        """One effect; False when the thread has let go of the worker."""
        self.busy = True
        life = self.run.life
        self._replica.world.note(
            f"  {self._replica.name} {self.run.task.event.event_id}/{life.index}: {type(life.todo).__name__}"
        )
        try:
            goes_on = self._runner.step(self.run, self._awaited)
        finally:
            self.busy = False
        if not goes_on:
            self._stack.close()
        return goes_on

    def _awaited(self, _attempt: int, _until: float | None) -> Observation:
        future, self._future = self._future, None
        assert future is not None, "only a worker that is not blocked is carried on"
        if not future.done() and self._registry.cancel_observation(self._waiter, future):
            return TimedOut()
        return future.result(0)


class Replica:
    """A controller: one incarnation of one consumer."""

    def __init__(self, world: World, consumer: str, incarnation: int, environ: dict[str, str]) -> None:
        self.world = world
        self.consumer = consumer
        self.name = f"{consumer}/b{incarnation}"
        self.alive = True
        self.asleep = False
        self.replaced = False
        self._busy: set[str] = set()
        self._to_release = False
        settings = Settings.load({"REDIS_CONSUMER": consumer, **environ}, consumer, None)
        flow, clock = settings.flow, world.clock
        stream = AuditedStream(world.redis, consumer, incarnation=f"b{incarnation}", lease_s=flow.lease_s, block_s=0)
        cluster = FakeCluster(world.kubernetes, watch_s=0)
        self.cluster, self.stop = cluster, _InstantStop()
        metrics, self.registry = Metrics(), PodRegistry(clock)
        self.ledger = _Ledger(self, self.registry, settings)
        self.workers: list[Worker] = []
        self.clock, self.inbox = clock, ScaleDownInbox()
        self._wire(settings, stream, _Tries(self.stop.event, metrics, world), metrics)

    def _wire(self, settings: Settings, audited: AuditedStream, retries: Retries, metrics: Metrics) -> None:
        registry, ledger, inbox = self.registry, self.ledger, self.inbox
        stream = cast(RedisPorts, Link(audited, self.world, self, RedisUnavailable))
        cluster = cast(Cluster, Link(self.cluster, self.world, self, ClusterUnavailable))
        heartbeat = Heartbeat(self.clock)
        loop: dict[str, Any] = {"stop": self.stop, "heartbeat": heartbeat, "clock": self.clock}
        lease_s, ttl_s = float(settings.flow.lease_s), settings.keys.task_ttl_s
        self.keeper = keeper = PodKeeper(
            cluster=cluster, registry=registry, metrics=metrics, clock=self.clock,
            most=settings.flow.keep_failed_max, ttl_s=ttl_s,
        )  # fmt: skip
        self.forwarder = SimulatedForwarder(self)
        self.log_drain = LogDrain(
            forwarder=self.forwarder, cluster=cluster, attempts=stream, metrics=metrics,
            drain_s=float(settings.log_handler.drain_s), **loop,
        )  # fmt: skip
        log_drain = self.log_drain if settings.forwards_logs else None
        self.roles = ROLES if log_drain is None else (*ROLES, "log_drain")
        self.runner = WorkerRunner(
            attempts=stream, cluster=cluster, registry=registry, ledger=ledger, keeper=keeper, retries=retries,
            metrics=metrics, log_drain=log_drain,
            heartbeat=heartbeat, clock=self.clock, settings=settings,
        )  # fmt: skip
        self.terminator = PodTerminator(
            cluster=cluster, registry=registry, ledger=ledger, runner=self.runner, keeper=keeper, **loop
        )
        self.dispatcher = _WorkerDispatcher(
            self, ledger=ledger, runner=self.runner, terminator=self.terminator, inbox=inbox,
            max_workers=settings.flow.max_workers, **loop,
        )  # fmt: skip
        intake = Intake(
            event_log=stream, ledger=ledger, inbox=inbox, retries=retries, metrics=metrics,
            max_pods=settings.flow.max_pods_per_event,
            rules=lambda: Rules(max_deadline_s=settings.worker.deadline_s),
        )  # fmt: skip
        scale_downs = ScaleDownSteps(
            scale_downs=stream, attempts=stream, registry=registry, ledger=ledger, terminator=self.terminator,
            clock=self.clock,
            instance=settings.instance,
        )  # fmt: skip
        self.control = ScaleDownProcessor(
            event_log=stream, registry=registry, ledger=ledger, inbox=inbox, intake=intake, scale_downs=scale_downs,
            retries=retries, lease_s=lease_s, **loop,
        )  # fmt: skip
        self.reader = StreamReader(event_log=stream, intake=intake, ledger=ledger, retries=retries, **loop)
        self.takeover = TakeOver(
            event_log=stream, leases=stream, attempts=stream, ledger=ledger, control=self.control, inbox=inbox,
            intake=intake, metrics=metrics,
            lease_s=lease_s, events_keep=settings.keys.events_keep, shares=lambda: self.world.audit.shares,
            worker=settings.worker, **loop,
        )  # fmt: skip
        self.lease = LeaseKeeper(
            event_log=stream, leases=stream, ledger=ledger, control=self.control, inbox=inbox, takeover=self.takeover,
            metrics=metrics, lease_s=lease_s,
            ttl_s=ttl_s, me=self.name, **loop,
        )  # fmt: skip
        self.reconciler = Reconciler(
            leases=stream, cluster=cluster, registry=registry, dispatcher=self.dispatcher, terminator=self.terminator,
            keeper=keeper, log_drain=log_drain,
            lease_s=lease_s, ttl_s=ttl_s, **loop,
        )  # fmt: skip
        self.watch = PodWatcher(cluster=cluster, registry=registry, retries=retries, metrics=metrics, **loop)

    @property
    def runs(self) -> bool:
        """Is it there, and not about to end?"""
        return self.alive and not self.asleep and not self.stop.is_set()

    @property
    def waits_for_log(self) -> bool:
        """Does it run, and a pod of a recorded worker waits for its log here?"""
        return self.runs and any(one.delete and not one.over for one in self.log_drain._followed.values())

    def check_alive(self) -> None:
        """A thread of a process that is gone is gone with it."""
        if not self.alive:
            raise Crash

    def crash(self) -> None:
        """kill -9, in the middle of whatever it does."""
        self.world.note(f"{self.name} dies")
        self.alive = False
        raise Crash

    def kill(self) -> None:
        """kill -9, from outside."""
        self.world.note(f"{self.name} is killed")
        self.alive = False

    def act(self, role: str) -> None:
        """Carry one of its threads on by one step."""
        if not self.runs or role in self._busy:
            return
        self._busy.add(role)
        try:
            {
                "reader": lambda: self.reader.step(0),
                "control": self.control.look_ahead,
                "scale_down": self.control.step,
                "dispatch": self.dispatcher.step,
                "ender": self.terminator.step,
                "lease": self.lease.step,
                "takeover": self.takeover.step,
                "reconciler": self.reconciler.reconcile,
                "watch": self.watch.step,
                "log_drain": self._drain_logs,
            }[role]()
        except (Unavailable, ClusterRejected, Stopping, Crash):
            pass  # its thread tries again, or there is none any more
        except (Defect, ConsumerReplaced) as error:
            self.replaced = isinstance(error, ConsumerReplaced)
            self.shut_down(error)
        finally:
            self._busy.discard(role)
            self._end()

    def _drain_logs(self) -> None:
        while self.log_drain.step():
            pass

    def work(self, which: int) -> bool:
        """Carry one of its workers on by one effect; False if none can go on."""
        acts = self.alive and not self.asleep
        able = [worker for worker in self.workers if not worker.busy and not worker.blocked()] if acts else []
        if not able:
            return False
        worker = able[which % len(able)]
        try:
            if not worker.step():
                self.workers.remove(worker)
                if (following := self.dispatcher.next_after(worker.run)) is not None:
                    self.workers.append(Worker(self, following))
        except Crash:
            pass
        self._end()
        return True

    def shut_down(self, cause: BaseException | None = None) -> None:
        """The order of the end, as in cli/run.py: what its threads are in the middle of goes on."""
        if not self.runs:
            return
        self.world.note(f"{self.name} stops ({cause!r})")
        self.stop.set(cause)
        self.registry.close()
        self.dispatcher.close()
        for _ in range(PATIENCE):
            if not self.work(0):
                break
        else:
            self.world.complain(f"{self.name} does not stop: {[worker.run.life for worker in self.workers]}")
        self._to_release = True
        self._end()

    def _end(self) -> None:
        """Its leases are given up when its lease thread has let go of them; it is gone when nothing of it goes on."""
        if self._to_release and self.alive and not self._busy & {"lease", "takeover", "reader", "control"}:
            self._to_release = False
            with suppress(Unavailable, Defect, Crash):
                self.lease.release()
            self.cluster.close()
        if (
            self.stop.is_set()
            and not self._to_release
            and not self._busy
            and not any(worker.busy for worker in self.workers)
        ):
            self.alive = False
