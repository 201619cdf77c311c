"""One worker's life: the pool thread carries out the effects that core/lifecycle.py decides on, and tells it what came
of them.

What the thread needs of the world goes through three ports; what fails for now (Redis or the API server away) puts the
worker back into the ledger as it stands, so nothing is lost and no thread is held by an outage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from ottoscaler import logs
from ottoscaler.core import effects, lifecycle, manifest, observations
from ottoscaler.core.effects import Effect
from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.lifecycle import Life
from ottoscaler.core.names import pod_name
from ottoscaler.core.observations import Observation
from ottoscaler.core.pods import Snapshot
from ottoscaler.core.results import worker_result
from ottoscaler.core.termination import Termination, decided
from ottoscaler.core.verdicts import Reason, Verdict
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, Stopping, Unavailable
from ottoscaler.flow.dead_letters import report
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.parts import Parts
from ottoscaler.flow.registry import Waiter
from ottoscaler.ports import Answer, Created, Status

#: After our own code has failed on a worker so often, it is ended as Poison.
MAX_FAILURES: Final = 5
#: Pause after an outage before a worker is taken up again, seconds.
OUTAGE_PAUSE_S: Final = 2.0

#: The next observation of an attempt's pod, TimedOut at the time given: `registry.Waiter.wait`.
Wait = Callable[[int, float | None], Observation]

#: What is done by one script each, or without any server.
_WRITES: Final = (
    effects.Intend, effects.NoteRefused, effects.Check, effects.StoreTermination, effects.ClearTermination,
    effects.Record, effects.Later, effects.End,
)  # fmt: skip

_log = logs.get(__name__)


class Runner:
    """Runs workers. Any thread: all state is the run's."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._worker_log = WorkerLog(parts)
        self._limited = logs.RateLimited()
        self._pump: Callable[[], None] = lambda: None

    def connect(self, pump: Callable[[], None]) -> None:
        """`pump` gives threads to others when a worker has made room."""
        self._pump = pump

    def run(self, run: WorkerRun) -> None:
        """Carry a worker on until it ends, pauses, or is to be left for whoever comes next. Raises nothing."""
        event = run.task.event
        with (
            logs.bind(event_id=event.event_id, task_id=event.task_id, worker=run.life.index),
            self.follow(run) as waiter,
        ):
            while self.step(run, waiter.wait):
                pass

    def write(self, run: WorkerRun) -> bool:
        """Carry a worker on as far as writes to Redis go, on a thread that must not wait for the cluster. Returns False
        if the next step needs the cluster. Raises nothing.
        """
        parts, event = self._parts, run.task.event
        with logs.bind(event_id=event.event_id, task_id=event.task_id, worker=run.life.index):
            while isinstance(run.life.todo, _WRITES):
                if not self.step(run, _nothing_to_await):
                    return True
        if run.life.needs_room:  # it is not cancelled any more: it waits for room and a thread as all others do
            parts.ledger.pause(run, parts.clock.now())
            return True
        return False

    def follow(self, run: WorkerRun) -> Waiter:
        """A worker's steps are made inside a `with` block of this: subscribed to its pod."""
        return self._parts.registry.subscribe(run.task.hash, run.life.index, run.life.pod)

    def step(self, run: WorkerRun, wait: Wait) -> bool:
        """Carry out one effect; False when the thread is to let go of the worker. Raises nothing.

        `wait` is how it awaits its pod's next stage: the waiter's, which blocks, wherever there are threads.
        """
        parts = self._parts
        try:
            return self._step(run, wait)
        except Stopping:
            return False
        except Unavailable as error:
            name = pod_name(run.key)
            if self._limited.is_due(str(error)):
                _log.warning("worker.outage", "Waiting with %s: %s", name, error, pod=name, error=str(error))
            parts.ledger.note(run, reason=str(error))
            parts.ledger.pause(run, parts.clock.now() + OUTAGE_PAUSE_S)
        except Exception as error:  # the top of a pool thread: a defect of ours must end as a result, not in silence
            self._failed(run, error)
        return False

    def _step(self, run: WorkerRun, wait: Wait) -> bool:
        ledger, now = self._parts.ledger, self._parts.clock.now()
        match run.life.todo:
            case effects.Later(until) if until > now:
                ledger.pause(run, until)
                return False
            case effects.Later():
                self._advance(run, observations.TimedOut())
            case effects.Intend() if not ledger.holds_room(run):
                ledger.pause(run, now)
                return False
            case effects.End(reason):
                _log.debug("worker.ended", "Nothing is left to do for %s: %s", pod_name(run.key), reason)
                self._end(run, reason)
                return False
            case effects.Await(until):
                run.awaits_pod = True
                try:
                    seen = wait(run.life.attempt, until)
                finally:
                    run.awaits_pod = False
                self._advance(run, seen)
            case effect:
                self._advance(run, self._perform(run, effect))
        return True

    def _advance(self, run: WorkerRun, observation: Observation) -> None:
        parts, before = self._parts, run.life
        parts.heartbeat.progressed()
        run.life = lifecycle.step(before, observation, parts.clock.now(), parts.settings.worker)
        if isinstance(observation, observations.Intended) or observation == observations.Checked(None):
            parts.ledger.spared(run)
        if not run.life.may_have_unseen_pod and parts.ledger.settled(run):
            self._pump()
        reason = run.life.waits_for
        if reason != before.waits_for:
            parts.ledger.note(run, reason=reason)
        elif run.life.state != before.state or run.life.attempt != before.attempt:
            parts.ledger.note(run)
        self._worker_log.step(run, before, observation)

    def _end(self, run: WorkerRun, reason: str) -> None:
        ledger, event_id, owner = self._parts.ledger, run.task.event.event_id, run.task.owner
        # where another worker of the task was first, that one has logged it
        if reason == lifecycle.NOT_OURS and ledger.drop(event_id, owner):
            _log.warning("task.lost", "Task %s was taken over by another process", event_id)
        if run.life.pod is not None and run.life.pod.altered:
            self._parts.registry.delete(run.life.pod.key)  # no watch would ever say that it is gone
        ledger.ended(run)

    def _failed(self, run: WorkerRun, error: Exception) -> None:
        parts, task = self._parts, run.task
        run.failures += 1
        task.failed_on = True
        _log.exception(
            "worker.failed", "Our own code failed on %s: %s", pod_name(run.key), error, pod=pod_name(run.key)
        )
        parts.ledger.pause(run, parts.clock.now() + lifecycle.backoff_s(run.failures))
        if run.failures < MAX_FAILURES:
            return
        if run.life.termination is not None and run.life.termination.reason is Reason.POISON:
            # not even its end goes well: the lease runs out, whoever takes the task up tries, and that is counted
            parts.ledger.drop(task.event.event_id, task.owner)
            return
        termination = Termination(
            Reason.POISON, f"the controller failed on this worker {run.failures} times: {type(error).__name__}"
        )
        try:
            parts.stream.store_termination(task.event.event_id, task.owner, run.life.index, termination)
        except Unavailable as outage:
            _log.warning("worker.outage", "Cannot mark %s as poison: %s", pod_name(run.key), outage)
            return
        run.life = lifecycle.resume(run.life.index, run.life.attempt, run.life.infra_used, termination)

    # -- effects

    def _perform(self, run: WorkerRun, effect: Effect) -> Observation:
        match effect:
            case effects.Create():
                return self._create(run)
            case effects.Look(_, live):
                return self._look(run, live=live)
            case effects.DeleteIfUnchanged(pod, grace_s):
                return observations.Done() if self._delete(pod, self._version(pod), grace_s) else observations.Changed()
            case effects.Delete(pod) | effects.DeleteOld(pod):
                self._delete(pod, None)
                return observations.Done()
        return self._write(run, effect)

    def _write(self, run: WorkerRun, effect: Effect) -> Observation:
        """The effects that are one script each."""
        stream, index = self._parts.stream, run.life.index
        event_id, owner = run.task.event.event_id, run.task.owner
        match effect:
            case effects.Intend(attempt, infra_used):
                name = pod_name(run.key)
                answer = self._script(
                    "store an attempt",
                    lambda: stream.intend(event_id, owner, index, attempt=attempt, infra_used=infra_used, pod=name),
                )
                return _observation(answer) or observations.Intended()
            case effects.Check(attempt):
                answer = self._script("check a worker", lambda: stream.check(event_id, owner, index, attempt))
                return _observation(answer) or observations.Checked(answer.termination)
            case effects.StoreTermination(termination):
                answer = self._script(
                    "store a termination", lambda: stream.store_termination(event_id, owner, index, termination)
                )
                return _observation(answer) or observations.TerminationStored(answer.termination or termination)
            case effects.ClearTermination(termination):
                answer = self._script(
                    "clear a termination", lambda: stream.clear_termination(event_id, owner, index, termination)
                )
                return _observation(answer) or observations.Checked(answer.termination)
            case effects.NoteRefused(attempt):
                answer = self._script("store a refusal", lambda: stream.note_refused(event_id, owner, index, attempt))
                return _observation(answer) or observations.Done()
            case effects.Record():
                return self._record(run, effect)
        raise lifecycle.IllegalStep(f"no way to carry out {effect}")

    def _script(self, what: str, call: Callable[[], Answer]) -> Answer:
        return self._parts.retries.call(what, call)

    def _create(self, run: WorkerRun) -> Observation:
        """One request, never repeated blindly: what its answer means is the state machine's to say."""
        parts = self._parts
        body = manifest.build(
            parts.settings.worker,
            run.task.event,
            run.key,
            instance=parts.settings.instance,
            namespace=parts.settings.kube.namespace,
        )
        self._worker_log.creating(run)
        try:
            answer = parts.cluster.create(body)
        except ClusterRejected as error:
            return observations.RejectedPod(str(error))
        except ClusterUnavailable as error:
            parts.ledger.note(run, reason=str(error))
            if error.unclear:
                _log.warning(
                    "worker.unclear",
                    "It is unclear whether %s was created: looking whether it is there",
                    pod_name(run.key),
                    error=str(error),
                )
                return observations.Unclear(error.retry_after_s)
            return observations.Refused(str(error), error.retry_after_s)
        if answer is Created.ALREADY_THERE:
            return observations.AlreadyThere()
        parts.metrics.pods_created.inc()
        parts.registry.upsert(answer)
        return observations.Seen(answer)

    def _look(self, run: WorkerRun, *, live: bool) -> Observation:
        parts = self._parts
        pod = None if live else parts.registry.get(run.key)
        pod = pod or parts.retries.call("look at a pod", lambda: parts.cluster.get(pod_name(run.key)))
        if pod is None:
            parts.registry.delete(run.key)
            return observations.Absent()
        event_id, instance, known = run.task.event.event_id, parts.settings.instance, run.life.pod
        if (pod.event_id, pod.instance, pod.key) != (event_id, instance, run.key):
            if known is None or known.uid != pod.uid:
                return observations.Foreign()
            # the UID says that it is ours, whatever somebody has made of its labels and annotations
            altered = known.altered or pod.altered or "the pod's labels and annotations were changed"
            pod = replace(pod, event_id=event_id, instance=instance, key=run.key, altered=altered)
        parts.registry.upsert(pod)
        return observations.Seen(pod)

    def _delete(self, pod: Snapshot, resource_version: str | None, grace_s: int | None = None) -> bool:
        cluster, parts = self._parts.cluster, self._parts
        _log.info("worker.deleted", "Cleaning up pod: %s", pod.name, pod=pod.name, attempt=pod.key.attempt)
        done = parts.retries.call(
            "delete a pod", lambda: cluster.delete(pod.name, pod.uid, resource_version, grace_s=grace_s)
        )
        if done:
            parts.metrics.pods_deleted.inc()
        return done

    def _version(self, pod: Snapshot) -> str:
        """The version at which the pod is still what was decided on: it rises with changes that do not matter too."""
        latest = self._parts.registry.get(pod.key)
        same = latest is not None and latest.stage == pod.stage
        return latest.resource_version if latest is not None and same else pod.resource_version

    def _record(self, run: WorkerRun, effect: effects.Record) -> Observation:
        parts, task, index = self._parts, run.task, run.life.index
        now = parts.clock.now()
        fields = worker_result(task.event, index, effect.attempt, effect.verdict, effect.pod, parts.clock.wall(now))
        answer = self._script(
            "record a result",
            lambda: parts.stream.record(task.event.event_id, task.owner, index, attempt=effect.attempt, fields=fields),
        )
        if answer.status in (Status.OK, Status.KNOWN):
            verdict = decided(effect.verdict, answer.termination)
            parts.ledger.recorded(run, verdict)
        if answer.status is Status.OK:
            self._worker_log.recorded(run, verdict, effect.pod, parts.clock.now())
            if answer.dead:
                event = task.event
                bad = BadEvent(DeadReason.POISON, answer.dead, event.event_id, event.task_id)
                report(parts.metrics, bad, event.stream_id)
            if answer.finished:
                _log.info("task.finished", answer.finished, duration_s=round(now - task.received_mono, 3))
        if answer.status is Status.KNOWN:
            return observations.Done()
        return _observation(answer) or observations.Done()


class WorkerLog:
    """What the log says of a worker's life, and the figures that go with it. Any thread."""

    def __init__(self, parts: Parts) -> None:
        self._clock = parts.clock
        self._ledger = parts.ledger
        self._metrics = parts.metrics

    def creating(self, run: WorkerRun) -> None:
        """Just before the create request."""
        name, now = pod_name(run.key), self._clock.now()
        since_event_s = run.task.queued_s + now - run.task.received_mono
        self._metrics.event_to_create_seconds.observe(since_event_s)
        _log.info(
            "worker.created",
            "Creating worker pod: %s",
            name,
            pod=name,
            attempt=run.life.attempt,
            since_event_s=round(since_event_s, 6),
        )

    def step(self, run: WorkerRun, before: Life, observation: Observation) -> None:
        """After each step: the few that operators want to see."""
        life, name = run.life, pod_name(run.key)
        after = before.todo.after if isinstance(before.todo, effects.Look) else None
        if isinstance(after, observations.AlreadyThere) and isinstance(observation, observations.Seen):
            _log.info("worker.adopted", "Adopting worker pod: %s", name, pod=name, attempt=life.attempt)
        if isinstance(life.todo, effects.Await) and self._ledger.first_look(run.task):
            _log.info("task.monitoring", "Monitoring pod completion")
        if life.attempt > before.attempt:
            old = pod_name(replace(run.key, attempt=before.attempt))
            _log.warning("worker.retried", "%s ended; trying again as %s", old, name, pod=name, attempt=life.attempt)
        if isinstance(life.todo, effects.StoreTermination):
            reason, detail = life.todo.termination.reason, life.todo.termination.message
            if life.pod is not None and life.pod.ended:
                detail += "; other containers outlived it by TERMINATION_GRACE_S"
            _log.warning(
                "worker.terminating", "Ending %s: %s (%s)", name, reason, detail, pod=name, attempt=life.attempt
            )

    def recorded(self, run: WorkerRun, verdict: Verdict, pod: Snapshot | None, now: float) -> None:
        """After a result was stored for the first time: this one."""
        name = pod_name(run.key)
        self._metrics.workers_finished.inc(verdict.outcome)
        started, ended = (pod.started_at, pod.finished_at) if pod else (None, None)
        if run.life.sight.ended is not None:
            self._metrics.end_to_result_seconds.observe(now - run.life.sight.ended)
        duration_s = round(ended - started, 3) if started is not None and ended is not None else None
        say = _log.info if verdict.reason is Reason.COMPLETED else _log.warning
        say(
            "worker.finished", "Worker pod %s %s: %s", name, verdict.outcome, verdict.reason,
            pod=name, attempt=run.life.attempt, duration_s=duration_s, reason=verdict.reason.value,
            detail=verdict.message,
        )  # fmt: skip


def _nothing_to_await(_attempt: int, _until: float | None) -> Observation:
    raise lifecycle.IllegalStep("only writes were to be made, and a pod is to be waited for")


def _observation(answer: Answer) -> Observation | None:
    """What an answer says beyond "done"; None if it is just that."""
    match answer.status:
        case Status.NOT_OURS:
            return observations.NotOurs()
        case Status.HAS_RESULT:
            return observations.HasResult()
        case Status.OLD_ATTEMPT:
            return observations.OldAttempt()
        case Status.CANCELLED if answer.termination is not None:
            return observations.Cancelled(answer.termination, answer.attempt)
    return None
