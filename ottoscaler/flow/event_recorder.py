"""Writes Kubernetes Events, on a thread of its own that nothing waits for: an Event may be lost, a result may not."""

from __future__ import annotations

import threading
import uuid
from typing import Final

from ottoscaler import logs
from ottoscaler.core.event_series import EventSeries, Series
from ottoscaler.core.outgoing_kube_events import KubeEvent, PodReference, event_name, new_event, repeated_event
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, Unavailable
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import KUBE_EVENT_OUTCOMES, Metrics
from ottoscaler.ports import Clock, KubeEvents

#: Different things that may wait to be written; what happens again raises the count of what waits.
MAX_WAITING: Final = 1000
#: How often one Event is tried, and the pause in between where the API server names none, seconds.
TRIES: Final = 3
PAUSE_S: Final = 5.0

_log = logs.get(__name__)
_CREATED, _REPEATED, _LIMITED, _OVERFLOW, _FAILED = KUBE_EVENT_OUTCOMES


class EventRecorder:
    """Takes Events from any thread, and writes them on one; see deploy/REFERENCE.md for the limits."""

    def __init__(
        self, *, api: KubeEvents, stop: StopSignal, metrics: Metrics, clock: Clock, namespace: str, instance: str,
        own_pod: str = "",
    ) -> None:  # fmt: skip
        """`instance` names this replica in each Event. `own_pod`: the name of the pod that this process runs in, where
        that is in the namespace of the workers; otherwise empty, and what is about the controller has no object.
        """
        self._api = api
        self._stop = stop
        self._metrics = metrics
        self._clock = clock
        self._namespace = namespace
        self._instance = instance
        self._own_pod = own_pod
        self._own = PodReference(own_pod, "")
        self._series = EventSeries()
        self._warned = False
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], tuple[KubeEvent, int]] = {}  # guarded by _lock; the oldest first
        stop.wake_on_stop(self._wake)

    def record(self, event: KubeEvent) -> None:
        """Write this Event in a moment. Waits for nothing and raises nothing; where too many wait it is dropped."""
        if event.pod is None and not self._own_pod:
            return
        key = (event.pod.uid if event.pod else "", event.reason)
        with self._lock:
            there = self._waiting.get(key)
            fits = there is not None or len(self._waiting) < MAX_WAITING
            if fits:  # by object and reason: a flood of dead letters is one entry with a count, and pushes nothing out
                self._waiting[key] = (event, 1 if there is None else there[1] + 1)
        if not fits:
            self._count(_OVERFLOW)
        self._wake.set()

    def run(self) -> None:
        """Until the stop; what waits then is not written, for the stop must not wait for it."""
        self._check_rights()
        while not self._stop.is_set():
            self._wake.wait()  # the stop wakes it, too
            self._wake.clear()
            while not self._stop.is_set() and (taken := self._next_event()) is not None:
                self._write(*taken)

    def _next_event(self) -> tuple[KubeEvent, int] | None:
        with self._lock:
            key = next(iter(self._waiting), None)
            return None if key is None else self._waiting.pop(key)

    def _check_rights(self) -> None:
        try:
            missing = self._api.missing_rights()
        except Unavailable:
            return  # the first Event that cannot be written says so
        if missing:
            self._warn("the controller " + " and ".join(missing))

    def _write(self, event: KubeEvent, times: int) -> None:
        """Write what has happened, `times` times since the last, and count what comes of it."""
        series, error = None, ""
        for tried in range(1, TRIES + 1):
            try:
                pod = event.pod or self._controller()
                if series is None:
                    series = self._series.add(pod.uid, event.reason, times)
                    if not self._series.take(pod.uid, self._clock.now()):
                        self._count(_LIMITED, times)
                        return
                created = self._send(event, pod, series, times)
            except ClusterRejected as refused:
                error = str(refused)
                break
            except ClusterUnavailable as away:
                error = str(away)
                # a wait that the stop ends: no call is under way, so the stop loses nothing but this Event
                if tried < TRIES and self._stop.wait(away.retry_after_s or PAUSE_S):
                    return
            else:
                self._count(_CREATED, created)
                self._count(_REPEATED, times - created)
                return
        self._count(_FAILED, times)
        self._warn(error)

    def _send(self, event: KubeEvent, pod: PodReference, series: Series, times: int) -> int:
        """One write; returns how many Events it has created."""
        at = self._clock.wall_time(self._clock.now())
        shown = KubeEvent(event.reason, logs.redact(event.message), event.pod)
        if series.name:
            if self._api.patch(series.name, repeated_event(shown, count=series.count, at=at)):
                return 0
            series.count = times  # the API server forgets an Event after an hour
        # Noted before it is sent: if the answer is lost, the next try changes what is there and makes no second one.
        series.name = event_name(pod, uuid.uuid4().hex[:16])
        body = new_event(
            shown, pod, name=series.name, namespace=self._namespace, at=at, count=series.count, instance=self._instance
        )
        self._api.create(series.name, body)
        return 1

    def _controller(self) -> PodReference:
        """Our own pod. Raises ClusterUnavailable, and ClusterRejected where there is none of that name."""
        if not self._own.uid:
            self._own = PodReference(self._own_pod, self._api.pod_uid(self._own_pod))
        if not self._own.uid:
            sentence = f"there is no pod {self._own_pod} in namespace {self._namespace}"
            raise ClusterRejected(sentence, status=404, reason="NotFound")
        return self._own

    def _count(self, outcome: str, times: int = 1) -> None:
        self._metrics.kube_events.child(outcome).inc(times)

    def _warn(self, error: str) -> None:
        """Once: the metric counts the others."""
        if self._warned:
            return
        self._warned = True
        _log.warning(
            "kubernetes.events_not_written",
            "Kubernetes Events cannot be written: allow `create` and `patch` on `events` in the Role of the controller"
            " (deploy/components/kubernetes-events), or set KUBERNETES_EVENTS=false; all else goes on",
            error=error,
        )  # fmt: skip
