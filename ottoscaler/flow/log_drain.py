"""The logs of our pods: which are followed, how far they have come, and which finished pods stay until theirs is there.

A result never waits for a log. Its pod does: when the result is stored, the pod is deleted as soon as the log handler
has acknowledged the end of its log, at most LOG_DRAIN_S later. It holds no thread of the pool and no place while it
waits, and a few threads of their own delete it.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from ottoscaler import logs
from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.log_progress import LogProgress, decode_progress, encode_progress
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.worker_state import Lifecycle
from ottoscaler.errors import ClusterRejected, Unavailable
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Attempts, Clock, Cluster, LogForwarder, StatusUpdate

#: The program that streams the logs of workers, where that is this one.
CONTROLLER: Final = "controller"
#: Threads that delete pods: a deletion takes some milliseconds, and as many pods may end in a second as are created.
THREADS: Final = 4
#: How often each looks for a pod that may go, seconds.
LOOK_EVERY_S: Final = 0.2
#: How often it is stored how far logs have come, seconds: after a crash that much is read again, and not sent again.
STORE_EVERY_S: Final = 5.0
#: After a deletion that failed, how long none of this pod is tried, seconds.
RETRY_S: Final = 5.0

_log = logs.get(__name__)


@dataclass(slots=True)
class _Followed:
    """The log of one pod. Guarded by the lock of LogDrain."""

    pod: PodSnapshot
    task_id: str
    task: OwnedTask | None  # None: the result is stored, and the process that waited for the log is gone
    ended: bool = False  # the pod
    over: bool = False  # the log: the handler has acknowledged its end, or wants none
    until: float | None = None  # the worker is done: what has not arrived by then is given up
    delete: bool = False  # then the pod goes
    progress: LogProgress | None = None  # not stored yet
    marks: tuple[int, int] = (0, 0)  # gaps and dropped lines of the last progress


class LogDrain:
    """The logs of the pods of this process's tasks. Any thread; `run` is the body of some."""

    def __init__(
        self, *, forwarder: LogForwarder, cluster: Cluster, attempts: Attempts, stop: StopSignal,
        heartbeat: Heartbeat, metrics: Metrics, clock: Clock, drain_s: float, worker_logs: str = CONTROLLER,
    ) -> None:  # fmt: skip
        """`drain_s`: how long a pod may wait for its log, seconds. `worker_logs`: which program streams the logs of
        workers of which the profile does not say it.
        """
        self._worker_logs = worker_logs
        self._forwarder = forwarder
        self._cluster = cluster
        self._attempts = attempts
        self._stop = stop
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._clock = clock
        self.drain_s = drain_s
        self._lock = threading.Lock()
        # all guarded by _lock
        self._followed: dict[str, _Followed] = {}  # by UID
        self._ready: deque[str] = deque()  # UIDs of logs that are over, of workers that are done
        self._deadlines: list[tuple[float, str]] = []  # a heap
        self._store_at = 0.0

    # -- the thread that carries a worker on

    def worker_stepped(self, run: WorkerRun, before: Lifecycle) -> None:
        """After each step of a worker. `before`: its life before that."""
        life = run.life
        if life.attempt != before.attempt:
            # The new attempt has no pod yet, and that of the old one has ended: maybe at once, so that no one saw it
            # run.
            old = life.old_pod
            ended = old if old is not None and old.key.attempt == before.attempt else None
            self.pod_seen(run, ended)
            self.worker_done(ended or before.pod)
        self.pod_seen(run, life.pod)

    def pod_seen(self, run: WorkerRun, pod: PodSnapshot | None) -> None:
        """A pod of this worker, which may have started or ended."""
        if pod is None or pod.started_at is None:  # no container of it has written anything
            return
        event = run.task.event
        if run.task.closed or not self._follows_logs_of(event):  # a closed task's logs are followed by its new owner
            return
        ended = pod.finished or pod.gone or pod.agent_ended
        with self._lock:
            known = self._followed.get(pod.uid)
            if known is None and not pod.gone:
                self._followed[pod.uid] = _Followed(pod, event.task_id, run.task, ended)
            elif known is not None:
                known.task = run.task  # it may have been taken over again
                ended, known.ended = ended and not known.ended, known.ended or ended
        # Not under the lock: the forwarder has one of its own. In this order, whatever another thread does meanwhile:
        # only the worker's own thread comes here.
        if known is None and not pod.gone:
            self._follow(pod, event.task_id, run.log_progress)
        if ended:
            self._forwarder.pod_ended(pod.uid)

    def _follows_logs_of(self, event: ScaleEvent) -> bool:
        return (event.overrides.worker_logs or self._worker_logs) == CONTROLLER

    def _follow(self, pod: PodSnapshot, task_id: str, log_progress: str) -> None:
        """From where an earlier process has come to, if that is stored."""
        stored = decode_progress(log_progress)
        progress = stored if stored is not None and stored.uid == pod.uid else LogProgress(pod.uid)
        labels = {"event_id": pod.event_id, "worker": str(pod.key.index), "attempt": str(pod.key.attempt)}
        self._forwarder.follow(progress, pod=pod.name, task_id=task_id, node=pod.node, labels=labels)

    def hold(self, pod: PodSnapshot) -> bool:
        """The result of this pod's worker is stored, and the pod is to be deleted. Returns whether it is deleted here,
        when its log has arrived; otherwise the caller deletes it at once.
        """
        with self._lock:
            known = self._followed.get(pod.uid)
            # One that is over stays known until the worker is done: at its next step the log would be followed a second
            # time, and the handler would get a gap and an end for a pod that is gone.
            if known is None or known.over:
                return False
            if pod.finished:
                known.delete = True
                self._finish(pod.uid, known)
                return True
            del self._followed[pod.uid]
        self._forwarder.give_up(pod.uid)
        return False

    def worker_done(self, pod: PodSnapshot | None, *, lost: bool = False) -> None:
        """Nothing more is to be done for the worker, or for this attempt of it. `lost`: another replica has it now,
        and follows its log.
        """
        if pod is None:
            return
        with self._lock:
            known = self._followed.get(pod.uid)
            if known is None or (known.until is not None and not lost):
                return
            if lost:
                del self._followed[pod.uid]
            else:
                self._finish(pod.uid, known)
        if lost:
            self._forwarder.give_up(pod.uid)

    def _finish(self, uid: str, known: _Followed) -> None:
        """Under the lock."""
        if known.until is None:
            known.until = self._clock.now() + self.drain_s
            heapq.heappush(self._deadlines, (known.until, uid))
        if known.over:
            self._ready.append(uid)

    # -- the reconciler

    def is_holding(self, pod: PodSnapshot, finished_s: float) -> bool:
        """Does this finished pod stay for its log? `finished_s`: for how long it has been seen as finished, seconds.
        Its owner may be another replica, which deletes it in time; later than that the owner is gone.
        """
        with self._lock:
            return pod.uid in self._followed or finished_s <= self.drain_s

    def take_over(self, pod: PodSnapshot, event: ScaleEvent, log_progress: str) -> bool:
        """The process that waited for the log of this finished pod is gone: send the rest, and delete the pod then, at
        most LOG_DRAIN_S later. `log_progress`: how far it has come, as it is stored. Returns whether that is so; a pod
        without a log, or with one that is not ours to send, may go at once.
        """
        if pod.started_at is None or not self._follows_logs_of(event):
            return False
        with self._lock:
            if pod.uid in self._followed:
                return True
            self._followed[pod.uid] = known = _Followed(pod, event.task_id, None, ended=True, delete=True)
            self._finish(pod.uid, known)
        self._follow(pod, event.task_id, log_progress)
        self._forwarder.pod_ended(pod.uid)
        return True

    # -- the forwarder's thread

    def progressed(self, progress: LogProgress) -> None:
        """The handler has acknowledged a log so far."""
        with self._lock:
            if (known := self._followed.get(progress.uid)) is None:
                return
            known.progress = progress
            if (progress.gaps, progress.dropped) != known.marks:
                # A remark that lines are missing has a number of its own. A new process that goes back before it does
                # not know that, and sends the lines behind it a second time: so it is stored at the next step.
                known.marks = (progress.gaps, progress.dropped)
                self._store_at = 0.0

    def log_ended(self, uid: str, acknowledged: bool, lines: int, dropped: int) -> None:
        """A log is over: the handler has acknowledged its end, or wants none."""
        with self._lock:
            known = self._followed.get(uid)
            if known is None:
                return
            known.over = True
            if known.until is not None:
                self._ready.append(uid)
        self._metrics.logs_ended.inc("refused" if not acknowledged else "incomplete" if dropped else "complete")
        if dropped or not acknowledged:
            _log.warning(
                "logs.incomplete", "The log of pod %s is not complete: %d of %d lines were dropped", known.pod.name,
                dropped, lines,
                pod=known.pod.name,
            )  # fmt: skip

    # -- threads of our own

    def run(self) -> None:
        """Until the stop."""
        while not self._stop.is_set():
            if not self.step():
                self._heartbeat.beat()
                self._stop.wait(LOOK_EVERY_S)

    def step(self) -> bool:
        """Let one pod go, or store how far logs have come; False if there was nothing to do. Raises nothing."""
        stored = self._store_progress()
        one = self._take_due()
        if one is None:
            return stored
        if not one.over:
            self._forwarder.give_up(one.pod.uid)
            self._metrics.logs_ended.inc("given_up")
            _log.warning(
                "logs.given_up", "The log of pod %s was not acknowledged to its end within LOG_DRAIN_S", one.pod.name,
                pod=one.pod.name,
            )  # fmt: skip
        if one.delete:
            self._delete(one)
        return True

    def _take_due(self) -> _Followed | None:
        now = self._clock.now()
        with self._lock:
            while self._ready or (self._deadlines and self._deadlines[0][0] <= now):
                uid = self._ready.popleft() if self._ready else heapq.heappop(self._deadlines)[1]
                one = self._followed.get(uid)
                if one is not None and one.until is not None and (one.over or one.until <= now):
                    del self._followed[uid]
                    return one
        return None

    def _delete(self, one: _Followed) -> None:
        pod = one.pod
        try:
            done = self._cluster.delete(pod.name, pod.uid)
        except (Unavailable, ClusterRejected) as error:
            _log.warning("pod.trouble", "Pod %s is not deleted", pod.name, pod=pod.name, error=str(error))
            with self._lock:
                one.over, one.until = True, self._clock.now() + RETRY_S
                self._followed[pod.uid] = one
                heapq.heappush(self._deadlines, (one.until, pod.uid))
            return
        _log.info(
            "worker.deleted", "Cleaning up pod: %s", pod.name,
            pod=pod.name, attempt=pod.key.attempt, event_id=pod.event_id, task_id=one.task_id,
            worker=pod.key.index,
        )  # fmt: skip
        if done:
            self._metrics.pods_deleted.inc()

    def _store_progress(self) -> bool:
        """Every few seconds; returns whether there was something to store. Logs of tasks that went to another replica
        in silence are given up.
        """
        with self._lock:
            now = self._clock.now()
            if now < self._store_at:
                return False
            self._store_at = now + STORE_EVERY_S
            lost = [uid for uid, one in self._followed.items() if one.task and one.task.closed and one.until is None]
            for uid in lost:
                del self._followed[uid]
            notes = self._progress_to_store()
        for uid in lost:
            self._forwarder.give_up(uid)
        if not notes:
            return False
        try:
            self._attempts.write_status(notes)
        except Unavailable as error:
            _log.debug("logs.not_stored", "How far logs have come is not stored", error=str(error))
        return True

    def _progress_to_store(self) -> list[StatusUpdate]:
        """What is new since the last call. Under the lock."""
        updates: dict[tuple[str, str], dict[int, str]] = {}
        for one in self._followed.values():
            if one.progress is not None and one.task is not None and not one.task.closed:
                texts = updates.setdefault((one.task.event.event_id, one.task.owner), {})
                texts[one.pod.key.index] = encode_progress(one.progress)
                one.progress = None
        return [StatusUpdate(event_id, owner, log_progress=texts) for (event_id, owner), texts in updates.items()]
