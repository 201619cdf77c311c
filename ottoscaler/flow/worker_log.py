"""What is shown of workers, apart from the code that carries them on: the lines of the log, the figures, Kubernetes
Events on their pods, and the marks of what has changed, by which their status is written to Redis.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ottoscaler import logs
from ottoscaler.core import effects
from ottoscaler.core.lifecycle import Lifecycle
from ottoscaler.core.manifest import pod_name
from ottoscaler.core.outgoing_kube_events import EventReason, RecordKubeEvent, worker_event
from ottoscaler.core.pod_timeline import AttemptLimits, passed_limit_s
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.verdicts import EndReason, Outcome, Verdict
from ottoscaler.core.worker_status import Obstacle, refusal_code
from ottoscaler.errors import RedisUnavailable, Unavailable
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.status_buffer import StatusBuffer
from ottoscaler.flow.task_table import TaskTable
from ottoscaler.metric_kinds import trace_exemplar
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock

_log = logs.get(__name__)
#: Obstacles that are over when any step was made.
_OUR_SIDE: Final = (StatusCode.REDIS, StatusCode.DEFECT)


class WorkerLog:
    """What the log says of a worker's life, and the figures that go with it. Any thread."""

    def __init__(
        self, clock: Clock, tasks: TaskTable, status_buffer: StatusBuffer, metrics: Metrics,
        record_event: RecordKubeEvent,
    ) -> None:  # fmt: skip
        self._record_event = record_event
        self._clock = clock
        self._tasks = tasks
        self._status_buffer = status_buffer
        self._metrics = metrics
        self._finished = {
            reason: metrics.workers_finished.child(reason.outcome, reason.fault, reason) for reason in EndReason
        }

    def created(self, run: WorkerRun, asked_at: float) -> None:
        """Its pod was created: once for each pod, however often that was tried. `asked_at` (`Clock.now`): when it was
        asked for. The line says how long the event took up to then, the figure includes the API server's time.
        """
        self._metrics.pods_created.inc()
        sent_at = run.task.received_mono - run.task.stream_wait_s
        since_event_s = asked_at - sent_at
        self._metrics.event_to_create_seconds.observe(
            self._clock.now() - sent_at, trace_exemplar(run.task.event.traceparent)
        )
        _log.info(
            "worker.created", "Creating worker pod: %s", run.pod_name,
            pod=run.pod_name, attempt=run.life.attempt, since_event_s=round(since_event_s, 6),
        )  # fmt: skip

    def pod_adopted(self, run: WorkerRun) -> None:
        """The pod that a create met is the worker's own."""
        _log.info("worker.adopted", "Adopting worker pod: %s", run.pod_name, pod=run.pod_name, attempt=run.life.attempt)

    def step(self, run: WorkerRun, before: Lifecycle, limits: AttemptLimits) -> None:
        """After each step: another state, the first pod of a task, a new attempt, a pod that is to be ended. `limits`:
        by which the step was made.
        """
        life, name = run.life, run.pod_name
        self._mark_changes(run, before)
        if run.state == "running":
            self._observe_start(run, before)
        if isinstance(life.todo, effects.AwaitPod) and self._tasks.mark_first_pod_seen(run.task):
            _log.info("task.monitoring", "Monitoring pod completion")
        if life.retry_cause is not None and life.attempt > before.attempt:
            self._metrics.worker_retries.inc(life.retry_cause.verdict.reason)
            old = pod_name(replace(run.key, attempt=before.attempt))
            end = life.retry_cause.verdict
            _log.warning(
                "worker.retried", "Worker pod %s ended: %s (%s); retry %d of %d as %s", old, end.reason,
                end.message or "no message", life.retry_cause.retry_number, life.retry_cause.max_retries, name,
                pod=name, attempt=life.attempt, reason=end.reason.value,
                retry=life.retry_cause.retry_number, limit=life.retry_cause.max_retries,
            )  # fmt: skip
            if before.pod is not None:
                text = f"{end.reason} ({end.message or 'no message'}): retry {life.retry_cause.retry_number} of"
                text += f" {life.retry_cause.max_retries} as {name}"
                self._record_event(worker_event(EventReason.WORKER_RETRIED, text, before.pod))
        if isinstance(life.todo, effects.StoreTermination):
            reason, message = life.todo.termination.reason, life.todo.termination.message
            if life.pod is not None and life.pod.agent_ended:
                message += "; other containers outlived it by TERMINATION_GRACE_S"
            limit_s = None if life.pod is None else passed_limit_s(life.timeline, life.pod, limits)
            _log.warning(
                "worker.terminating", "Ending %s: %s (%s)", name, reason, message,
                pod=name, attempt=life.attempt, reason=reason.value, limit_s=limit_s,
            )  # fmt: skip
            if life.pod is not None:
                text = f"Ending this pod: {reason} ({message})"
                self._record_event(worker_event(EventReason.WORKER_TERMINATING, text, life.pod))

    def _observe_start(self, run: WorkerRun, before: Lifecycle) -> None:
        """Its pod has just started. Of a pod that was taken over it is not known whether the start was counted before,
        so it is not counted.
        """
        pod, earlier = run.life.pod, before.pod
        if pod is None or earlier is None or earlier.started_at is not None or pod.key != earlier.key:
            return
        if pod.created_at is not None and pod.started_at is not None:
            waited_s = max(0.0, pod.started_at - pod.created_at)
            exemplar = trace_exemplar(run.task.event.traceparent)
            self._metrics.create_to_running_seconds.observe(waited_s, exemplar)

    def held_up(self, run: WorkerRun, error: Exception, until: float | None = None) -> None:
        """This error keeps it from its next step: a server's, or a defect of our own code, after which it pauses until
        `until` (`Clock.now`). A server is asked again so soon that a new time is not written for each pause.
        """
        code = StatusCode.DEFECT
        if isinstance(error, Unavailable):
            code = StatusCode.REDIS if isinstance(error, RedisUnavailable) else refusal_code(str(error))
        run.obstacle = Obstacle(code, str(error) or type(error).__name__, until)
        self._status_buffer.mark(run)

    def _mark_changes(self, run: WorkerRun, before: Lifecycle) -> None:
        life, state, trouble = run.life, run.life.state, run.life.start_trouble_text
        went_on = run.obstacle is not None and (life.pod is not None or run.obstacle.code in _OUR_SIDE)
        if went_on:
            run.obstacle = None
        if isinstance(before.todo, effects.StoreAttempt) and not life.backoff:
            run.noted = None  # the script that stores an attempt has written over it
        other = (state, trouble, life.attempt) != (run.state, run.start_trouble_text, before.attempt)
        if went_on or other or _pod_changed(before.pod, life.pod):
            self._status_buffer.mark(run)
        run.state, run.start_trouble_text = state, trouble

    def recorded(self, run: WorkerRun, verdict: Verdict, pod: PodSnapshot | None) -> None:
        """After a result was stored for the first time: this one. The line has both durations: from the pod's creation
        to its start (or to its end, where it never started), and from its start to its end.
        """
        life, now = run.life, self._clock.now()
        outcome = verdict.reason.outcome
        exemplar = trace_exemplar(run.task.event.traceparent)
        self._finished[verdict.reason].inc(1, exemplar)
        if life.timeline.ended is not None:
            self._metrics.end_to_result_seconds.observe(now - life.timeline.ended, exemplar)
        started, ended = (pod.started_at, pod.finished_at) if pod else (None, None)
        duration_s = round(ended - started, 3) if started is not None and ended is not None else None
        if duration_s is not None:
            self._metrics.run_seconds.observe(max(0.0, duration_s), exemplar)
        pending_s, exit_code = None, None
        if pod is not None:
            exit_code = pod.exit_code
            if pod.created_at is not None:
                until = started or ended or self._clock.wall_time(now)
                pending_s = round(max(0.0, until - pod.created_at), 3)
        say = _log.info if verdict.reason is EndReason.COMPLETED else _log.warning
        say(
            "worker.finished", "Worker pod %s %s: %s", run.pod_name, outcome, verdict.reason,
            pod=run.pod_name, attempt=life.attempt, pending_s=pending_s, duration_s=duration_s, outcome=outcome.value,
            reason=verdict.reason.value, fault=verdict.reason.fault.value, exit_code=exit_code, detail=verdict.message,
        )  # fmt: skip
        if pod is not None and outcome is not Outcome.SUCCEEDED:
            cancelled = outcome is Outcome.CANCELLED
            text = f"{outcome}: {verdict.reason} ({verdict.message or 'no message'}), fault: {verdict.reason.fault}"
            reason = EventReason.WORKER_CANCELLED if cancelled else EventReason.WORKER_FAILED
            self._record_event(worker_event(reason, text, pod))

    def task_finished(self, run: WorkerRun, message: str) -> None:
        """This worker's result was the last of its task; the message is that of the task's result."""
        tally = self._tasks.tally(run.task)
        self._metrics.tasks_finished.inc(tally.outcome)
        say = _log.warning if tally.outcome is Outcome.FAILED else _log.info
        say(
            "task.finished", message, duration_s=round(self._clock.now() - run.task.received_mono, 3),
            outcome=tally.outcome.value, pod_count=run.task.event.pod_count, succeeded=tally.succeeded,
            failed=tally.failed, cancelled=tally.cancelled,
        )  # fmt: skip


def _pod_changed(before: PodSnapshot | None, after: PodSnapshot | None) -> bool:
    """Has it another phase, or was its deletion requested? That has a code of its own, also where the state stays."""
    if before is None or after is None or before is after:
        return False
    return (before.phase, before.deletion_requested_at) != (after.phase, after.deletion_requested_at)
