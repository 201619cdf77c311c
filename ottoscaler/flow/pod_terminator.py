"""Ends the pods of cancelled workers that no thread of the pool follows, so that the lane of scale_down never waits for
the Kubernetes API or for a pod.

Two kinds come here: pods that another replica or no thread follows (one delete request, after the termination is
stored); and workers of ours that were cancelled while they held no thread, with a stored attempt that may have a pod.
One thread leads all of them: it makes the steps of each that can make one, and waits for no pod in particular.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from ottoscaler import logs
from ottoscaler.core import effects
from ottoscaler.core.kept_pods import stays
from ottoscaler.core.observations import Observation, TimedOut
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.termination import Termination
from ottoscaler.errors import ClusterRejected, Unavailable
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.pod_keeper import PodKeeper
from ottoscaler.flow.registry import PodRegistry, Waiter
from ottoscaler.flow.stop import StopSignal
from ottoscaler.flow.worker import WorkerRunner
from ottoscaler.ports import Clock, Cluster

#: How often a worker is checked while its pod does not change, seconds.
LOOK_EVERY_S: Final = 1.0

_log = logs.get(__name__)


@dataclass(slots=True)
class _Followed:
    """A cancelled worker, and its place in the registry."""

    run: WorkerRun
    waiter: Waiter


class PodTerminator:
    """Ends pods. `run` is the body of one thread; `terminate` and `finish_cancelled` are for any."""

    def __init__(
        self, *, cluster: Cluster, registry: PodRegistry, ledger: Ledger, runner: WorkerRunner, keeper: PodKeeper,
        stop: StopSignal, heartbeat: Heartbeat, clock: Clock,
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._registry = registry
        self._ledger = ledger
        self._runner = runner
        self._keeper = keeper
        self._stop = stop
        self._heartbeat = heartbeat
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._pods: dict[str, tuple[PodSnapshot, Termination]] = {}  # guarded by _lock
        self._arrived: list[WorkerRun] = []  # guarded by _lock
        self._followed: list[_Followed] = []  # the thread's
        stop.wake_on_stop(self._wake)
        registry.on_change(self._pods_changed)

    def terminate(self, pod: PodSnapshot, termination: Termination) -> None:
        """See to it that this pod is deleted, unless the termination spares it."""
        with self._lock:
            self._pods[pod.uid] = (pod, termination)
        self._wake.set()

    def finish_cancelled(self, run: WorkerRun) -> None:
        """Lead this cancelled worker to its end; it counts as running meanwhile."""
        with self._lock:
            self._arrived.append(run)
        self._wake.set()

    def _pods_changed(self) -> None:
        if self._followed:  # a wake-up for each pod that ends would cost more than the pod
            self._wake.set()

    def run(self) -> None:
        """Until the stop."""
        while not self._stop.is_set():
            self.step()
            self._heartbeat.beat()
            self._wake.wait(LOOK_EVERY_S)
            # Before the look, not after it: what comes during the look would otherwise wait for a whole second.
            self._wake.clear()
        for one in self._followed:
            self._let_go_of_worker(one)

    def step(self) -> None:
        """Delete the pods that are due, and carry on each worker that can make a step. Kept pods come last: they are in
        no worker's way. Raises nothing.
        """
        # Taken out at once, and worked on without the lock: `terminate` and `follow` must not wait for the Kubernetes
        # API.
        with self._lock:
            pods, self._pods = self._pods, {}
            arrived, self._arrived = self._arrived, []
        for pod, termination in pods.values():
            if not self._stop.is_set():
                isolated(pod, lambda: self.delete(pod, termination))  # noqa: B023
        self._followed += [_Followed(run, self._runner.subscribed(run)) for run in arrived]
        self._followed = [one for one in self._followed if self._advance_with_names(one)]
        if not self._stop.is_set():
            self._keeper.step()

    def delete(
        self,
        pod: PodSnapshot,
        termination: Termination | None = None,
        outcome: str = "",
        *,
        spares_finished: bool = False,
    ) -> None:
        """Delete a pod after a live look; with a termination only one that has not finished, and that the termination
        does not spare. `outcome`: what is recorded of its attempt; a pod that stays for inspection by it is spared,
        since the caller may have seen it last when it was still running. `spares_finished`: one that has finished, too.
        Raises Unavailable and ClusterRejected.
        """
        live = self._cluster.get(pod.name)
        if live is None or live.uid != pod.uid:
            self._registry.delete(pod.key)
            return
        spared = termination is not None and (
            live.finished or (termination.only_before_start and live.started_at is not None)
        )
        if live.deleting or spared or (spares_finished and live.finished) or stays(live, outcome):
            return
        _log.info(
            "pod.deleted", "Cleaning up pod: %s", pod.name, pod=pod.name, event_id=pod.event_id, worker=pod.key.index
        )
        version, grace_s = (None, None) if termination is None else (live.resource_version, termination.grace_s(live))
        self._cluster.delete(live.name, live.uid, version, grace_s=grace_s)

    def _advance_with_names(self, one: _Followed) -> bool:
        """The same as on a worker's own thread: each line of the log names the worker."""
        event, index = one.run.task.event, one.run.life.index
        with logs.bind(event_id=event.event_id, task_id=event.task_id, worker=index):
            return self._advance_worker(one)

    def _advance_worker(self, one: _Followed) -> bool:
        """Carry a worker on until it waits for its pod; False when it is let go of."""
        run = one.run
        while not self._stop.is_set():
            effect = run.life.todo
            if isinstance(effect, effects.AwaitPod):
                news = self._next_observation(one, effect)
                if news is None and run.life.termination is not None:
                    return True
                if news is None:
                    # Nothing ends this one: its termination was cleared, or it was only thought to be finished. It runs
                    # on, and a worker thread follows it.
                    self._ledger.pause(run, self._clock.now())
                    break
                if not self._runner.step(run, _wait_that_returns(news)):
                    break
            elif not self._runner.step(run, one.waiter.wait):
                break
        self._let_go_of_worker(one)
        return False

    def _next_observation(self, one: _Followed, awaited: effects.AwaitPod) -> Observation | None:
        """The next observation of its pod if there is one now. Raises Stopping as an observation would."""
        future: Future[Observation] = self._registry.next_observation(one.waiter, one.run.life.attempt)
        if not future.done() and self._registry.cancel_observation(one.waiter, future):
            late = awaited.until is not None and self._clock.now() >= awaited.until
            return TimedOut() if late else None
        return future.result() if future.exception() is None else TimedOut()

    def _let_go_of_worker(self, one: _Followed) -> None:
        self._registry.unsubscribe(one.waiter)
        self._ledger.let_go(one.run, thread=False)


def _wait_that_returns(news: Observation) -> Callable[[int, float | None], Observation]:
    return lambda _attempt, _until: news


def isolated(pod: PodSnapshot, act: Callable[[], None]) -> bool:
    """Do something about one pod; trouble with it is logged and is no other pod's. Returns whether it went well."""
    try:
        act()
    except (Unavailable, ClusterRejected) as error:
        _log.warning("pod.trouble", "Going on without pod %s", pod.name, pod=pod.name, error=str(error))
        return False
    return True
