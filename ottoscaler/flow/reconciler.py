"""The reconciler: every half minute, all pods of our instance are held against what Redis knows, and what fell between
two steps is put right.

Every action comes after a live look at the pod and carries its UID. A pod that runs is never deleted because Redis does
not know it: Redis may have been wiped, and the pod's annotations are then all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ottoscaler import logs
from ottoscaler.core.kept_pods import stays
from ottoscaler.core.manifest import pod_name
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import Unavailable
from ottoscaler.flow.dispatch import WorkerDispatcher
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.log_drain import LogDrain
from ottoscaler.flow.pod_keeper import PodKeeper
from ottoscaler.flow.pod_terminator import PodTerminator, isolated
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.stop import StopSignal
from ottoscaler.ports import Clock, Cluster, Leases, StoredWorker

RECONCILE_EVERY_S: Final = 30.0
_Known = Mapping[str, tuple[str, Mapping[int, StoredWorker]]]

_log = logs.get(__name__)


class Reconciler:
    """Puts right what fell between two steps. `run` is the body of one thread."""

    def __init__(
        self, *, leases: Leases, cluster: Cluster, registry: PodRegistry, dispatcher: WorkerDispatcher,
        terminator: PodTerminator, keeper: PodKeeper, stop: StopSignal, heartbeat: Heartbeat,
        clock: Clock, lease_s: float, ttl_s: float, log_drain: LogDrain | None = None,
    ) -> None:  # fmt: skip
        """`ttl_s`: how long Redis remembers a task that is finished. `log_drain`: None where logs are off."""
        self._leases = leases
        self._cluster = cluster
        self._registry = registry
        self._dispatcher = dispatcher
        self._terminator = terminator
        self._keeper = keeper
        self._stop = stop
        self._heartbeat = heartbeat
        self._clock = clock
        self._lease_s = lease_s
        self._ttl_s = ttl_s
        self._log_drain = log_drain
        self._unknown_since: dict[str, float] = {}
        self._left: set[str] = set()  # UIDs of pods for which the last pass had no time
        self._drained: set[str] = set()  # UIDs of pods: their logs were taken over here
        self._finished_since: dict[str, float] = {}  # UID of a pod that no thread follows -> when we saw that

    def run(self) -> None:
        """Until the stop."""
        while not self._stop.wait(min(RECONCILE_EVERY_S, self._lease_s)):
            try:
                self.reconcile()
                self._heartbeat.beat()
            except Unavailable as error:
                _log.warning("reconciler.outage", "The reconciler was cut short", error=str(error))
                self._heartbeat.report_failure(f"the reconciler was cut short: {error}")

    def reconcile(self) -> None:
        """One look at all pods. Each pod's trouble is its own. Raises Unavailable if Redis is away."""
        if not self._registry.is_known:
            return
        pods = [
            pod for pod in self._registry.snapshots() if pod.event_id and not self._registry.followed(*pod.key.worker)
        ]
        now = self._clock.now()
        finished = [pod.uid for pod in pods if pod.finished]
        self._finished_since = {uid: self._finished_since.get(uid, now) for uid in finished}
        self._drained &= set(finished)
        known = self._leases.known_tasks(sorted({pod.event_id for pod in pods}))
        self._adopt_unknown_pods([pod for pod in pods if pod.event_id not in known])
        self._keeper.review([pod for pod in pods if pod.event_id in known and self._stays(pod, known)])
        # where the API server answers nothing, each pod costs a time-out: those that were left come first the next time
        until, left = now + RECONCILE_EVERY_S, set()
        for pod in sorted(pods, key=lambda pod: pod.uid in self._left, reverse=True):
            if pod.event_id not in known or self._stop.is_set():
                continue
            if self._clock.now() >= until:
                left.add(pod.uid)
            else:
                isolated(pod, lambda: self._reconcile_pod(pod, known))  # noqa: B023
        self._left = left

    @staticmethod
    def _stays(pod: PodSnapshot, known: _Known) -> bool:
        worker = known[pod.event_id][1].get(pod.key.index)
        return worker is not None and pod.key.attempt == worker.attempt and stays(pod, worker.outcome)

    def _reconcile_pod(self, pod: PodSnapshot, known: _Known) -> None:
        if self._stays(pod, known):
            return
        state, workers = known[pod.event_id]
        worker = workers.get(pod.key.index, StoredWorker(pod.key.index))
        if worker.outcome or pod.key.attempt < worker.attempt or (state == "finished" and not pod.live):
            if not self._waits_for_log(pod, worker.log_progress):
                outcome = worker.outcome if pod.key.attempt == worker.attempt else ""
                # One that has finished since we saw it waits for its log; the next pass sees it so.
                spares_finished = self._log_drain is not None and not pod.finished
                self._terminator.delete(pod, outcome=outcome, spares_finished=spares_finished)
        elif worker.termination is not None and pod.live and worker.termination.applies_to(pod.key.attempt):
            self._terminator.delete(pod, worker.termination)
        elif not pod.live:
            self._dispatcher.advance_resumed(pod.key.event_hash, pod.key.index)

    def _waits_for_log(self, pod: PodSnapshot, log_progress: str) -> bool:
        """Once the process that waited for it must have deleted the pod, that is done here: otherwise the lines between
        its death and the end of the log would be lost, and the handler would never get the end.
        """
        if self._log_drain is None or not pod.finished:
            return False
        now = self._clock.now()
        if self._log_drain.is_holding(pod, now - self._finished_since.get(pod.uid, now)):
            return True
        if pod.uid in self._drained:
            return False
        event = self._cluster.annotated_event(pod.name)
        self._drained.add(pod.uid)  # once: what is not acknowledged by then is given up
        return event is not None and self._log_drain.take_over(pod, event, log_progress)

    def _adopt_unknown_pods(self, unknown: Iterable[PodSnapshot]) -> None:
        """Pods of events that Redis does not know: it was wiped.
        Their owner, if it lives, has one LEASE_S to store them again.
        """
        now = self._clock.now()
        events: dict[str, list[PodSnapshot]] = {}
        for pod in unknown:
            events.setdefault(pod.event_id, []).append(pod)
        self._unknown_since = {event_id: self._unknown_since.get(event_id, now) for event_id in events}
        for event_id, pods in events.items():
            if now - self._unknown_since[event_id] < self._lease_s:
                continue
            # Their results were stored, and only kept pods are left: taken up again, the task would get its results a
            # second time, and each worker without a pod would be PodLost.
            if all(self._keeper.is_kept(pod) for pod in pods):
                continue
            # by our own clock: a node's may be days behind, and the result of a pod that has just finished is wanted
            if all(now - self._finished_since.get(pod.uid, now) > self._ttl_s for pod in pods):
                for pod in pods:
                    isolated(pod, lambda: self._terminator.delete(pod))  # noqa: B023
                continue
            isolated(pods[0], lambda: self._adopt_event(event_id, pods))  # noqa: B023

    def _adopt_event(self, event_id: str, pods: list[PodSnapshot]) -> None:
        attempts: dict[int, int] = {}
        for pod in pods:
            attempts[pod.key.index] = max(pod.key.attempt, attempts.get(pod.key.index, 0))
        event = self._cluster.annotated_event(pod_name(pods[0].key))
        if event is None or event.event_id != event_id:
            _log.warning(
                "reconciler.unreadable",
                "Pod %s carries no readable event; it is left alone",
                pods[0].name,
                pod=pods[0].name,
            )
            return
        _log.warning(
            "task.restored", "Redis does not know event %s: taking it up from its pods", event_id, event_id=event_id
        )
        self._leases.rebuild_from_pods(event, attempts)
