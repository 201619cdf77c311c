"""One node, "local-node": schedules pods onto itself and runs their containers as processes of this machine.

Images are not run: a container is its command. restartPolicy is always taken as Never, which is what Ottoscaler's
workers have; init containers, probes and every volume but an empty directory are ignored. One loop follows the pods'
changes, but decides on the **current** object only: an event says where to look, not what is true. (Acting on events,
which may be late, would run finished pods again.)
"""

from __future__ import annotations

import heapq
import itertools
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ottoscaler.local import kubelet, pods
from ottoscaler.local.events import EventRecorder
from ottoscaler.local.logfile import LogOptions
from ottoscaler.local.objects import ApiError, Object
from ottoscaler.local.podrun import PodRun
from ottoscaler.local.store import Key, Store, StoredObject

_CPUS, _MEMORY, _PODS = 64, "256Gi", 1000
_TICK_S = 0.5  # longest sleep of the loop
_PULL_BACK_OFF_S = 0.5
_FINISHED = ("Succeeded", "Failed")


class LocalNode:
    """start and close belong to one thread; logs may be called by any."""

    def __init__(self, store: Store, directory: Path) -> None:
        """Store where the pods' files go; what an earlier run left there is removed at the start."""
        self._store = store
        self._directory = directory
        self._events = EventRecorder(store)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="node", daemon=True)
        self._runs: dict[str, PodRun] = {}  # by uid, until the object is gone
        # Used by the loop only:
        self._claims: dict[str, tuple[float, float]] = {}  # cores and bytes of the pods that are not finished
        self._unschedulable: set[Key] = set()
        self._timers: list[tuple[float, int, str, Callable[[PodRun], None]]] = []
        self._timer_ids = itertools.count()

    def start(self) -> None:
        """Register the node and begin to run pods."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        self._store.create("nodes", kubelet.node_object(_CPUS, _MEMORY, _PODS))
        self._thread.start()

    def close(self) -> None:
        """Kill every container. Idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for run in list(self._runs.values()):
            run.discard()

    def logs(self, pod: Object, container: str, options: LogOptions) -> Iterator[bytes]:
        """A container's log in chunks. Raises ApiError 400 while there is none."""
        run = self._runs.get(pod["metadata"]["uid"])
        if run is None:
            what = f'container "{container}" in pod "{pod["metadata"]["name"]}" is waiting to start: ContainerCreating'
            raise ApiError(400, what)
        return run.logs(container, options)

    def _loop(self) -> None:
        position, _ = self._store.begin_watch("pods", None)
        while not self._stop.is_set():
            try:
                changes, position, _ = self._store.read_changes("pods", position, self._loop_wait_s())
            except ApiError:
                # Fallen behind the window: nothing is known but what is there now.
                position, _ = self._store.begin_watch("pods", None)
                self._sync_all_pods()
                continue
            for change in changes:
                self._sync_pod(change.record)
            self._fire_timers()

    def _loop_wait_s(self) -> float:
        due = self._timers[0][0] - time.monotonic() if self._timers else _TICK_S
        return min(max(due, 0.0), _TICK_S)

    def _sync_all_pods(self) -> None:
        _, records = self._store.select("pods", lambda _: True)
        present = {record.object["metadata"]["uid"] for record in records}
        for uid in set(self._runs) - present:
            self._forget_pod(uid)
        for record in records:
            self._sync_pod(record)

    def _sync_pod(self, seen: StoredObject) -> None:
        """Do what the pod needs now. ``seen`` only says which pod."""
        metadata = seen.object["metadata"]
        key, uid = (metadata["namespace"], metadata["name"]), metadata["uid"]
        record = self._store.find("pods", *key)
        if record is None or record.object["metadata"]["uid"] != uid:
            self._unschedulable.discard(key)
            self._forget_pod(uid)
            return
        pod = record.object
        if pod["status"]["phase"] in _FINISHED:
            self._release_claim(uid)
        elif "deletionTimestamp" in pod["metadata"]:
            self._end_pod(pod)
        elif not pod["spec"].get("nodeName"):
            # Another scheduler's pods wait for a binding, as in any cluster.
            if pod["spec"]["schedulerName"] == "default-scheduler":
                self._schedule(key, pod)
        elif pod["spec"]["nodeName"] == kubelet.NODE_NAME and uid not in self._runs:
            self._start_pod(pod)

    def _schedule(self, key: Key, pod: Object) -> None:
        """Bind the pod to this node, or say why that cannot be."""
        message = self._unschedulable_message(pod)
        reason = {"reason": "Unschedulable", "message": message} if message else {}

        def change(current: Object) -> Object:
            status = current["status"]
            status["conditions"] = kubelet.with_condition(status, "PodScheduled", true=not message, reason=reason)
            if not message:
                current["spec"]["nodeName"] = kubelet.NODE_NAME
            return current

        try:
            record = self._store.update("pods", key, change)
        except ApiError:  # deleted this moment: its change comes next
            return
        if not message:
            self._unschedulable.discard(key)
            self._events.add(
                pod, "Normal", "Scheduled", f"Successfully assigned {'/'.join(key)} to {kubelet.NODE_NAME}"
            )
            self._start_pod(record.object)
        elif key not in self._unschedulable:
            self._unschedulable.add(key)
            self._events.add(pod, "Warning", "FailedScheduling", message)

    def _unschedulable_message(self, pod: Object) -> str:
        """The scheduler's sentence about a pod that does not fit, "" when it does."""
        labels = kubelet.node_object(_CPUS, _MEMORY, _PODS)["metadata"]["labels"]
        cores, memory = pods.resource_requests(pod)
        reasons = []
        if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
            reasons.append("1 node(s) didn't match Pod's node affinity/selector")
        if len(self._claims) >= _PODS:
            reasons.append("1 Too many pods")
        if cores and sum(claim[0] for claim in self._claims.values()) + cores > _CPUS:
            reasons.append("1 Insufficient cpu")
        if memory and sum(claim[1] for claim in self._claims.values()) + memory > pods.quantity(_MEMORY):
            reasons.append("1 Insufficient memory")
        return f"0/1 nodes are available: {', '.join(reasons)}." if reasons else ""

    def _start_pod(self, pod: Object) -> None:
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        run = PodRun(self._store, self._events, pod, self._directory / uid)
        self._claims[uid] = pods.resource_requests(pod)
        self._runs[uid] = run
        run.start()
        self._schedule_action(_PULL_BACK_OFF_S, uid, PodRun.back_off)
        if spec.get("activeDeadlineSeconds"):
            self._schedule_action(spec["activeDeadlineSeconds"], uid, PodRun.expire)
            self._schedule_action(spec["activeDeadlineSeconds"] + spec["terminationGracePeriodSeconds"], uid, _kill_pod)

    def _end_pod(self, pod: Object) -> None:
        """Begin, or hasten, the graceful end of a pod that is to be deleted."""
        uid = pod["metadata"]["uid"]
        run = self._runs.get(uid)
        if run is None:
            return
        self._events.add(pod, "Normal", "Killing", f"Stopping container {pod['spec']['containers'][0]['name']}")
        run.stop(signal.SIGTERM)
        self._schedule_action(pod["metadata"]["deletionGracePeriodSeconds"], uid, _kill_pod)

    def _forget_pod(self, uid: str) -> None:
        run = self._runs.pop(uid, None)
        if run is not None:
            run.discard()
        self._release_claim(uid)

    def _release_claim(self, uid: str) -> None:
        """Give back what a pod claimed, and try again what did not fit."""
        if self._claims.pop(uid, None) is None:
            return
        for key in list(self._unschedulable):
            record = self._store.find("pods", *key)
            if record is not None:
                self._sync_pod(record)

    def _schedule_action(self, delay_s: float, uid: str, action: Callable[[PodRun], None]) -> None:
        """Do something to a pod later, if it is still there: a timer must not keep what is gone in memory."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_ids), uid, action))

    def _fire_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            _, _, uid, action = heapq.heappop(self._timers)
            if uid in self._runs:
                action(self._runs[uid])


def _kill_pod(run: PodRun) -> None:
    run.stop(signal.SIGKILL)
