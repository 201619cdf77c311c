"""One worker's life: a thread carries out the effects that core/lifecycle.py decides on, and reports what came of them.

Redis or the API server may be away for a while: then the worker goes back into the ledger as it stands, so that nothing
is lost and no outage holds a thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from ottoscaler import logs
from ottoscaler.core import effects, lifecycle, manifest, observations
from ottoscaler.core.effects import Effect
from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.observations import Observation
from ottoscaler.core.overrides import NOTHING
from ottoscaler.core.pods import Snapshot
from ottoscaler.core.results import worker_result
from ottoscaler.core.termination import Termination, decided
from ottoscaler.core.verdicts import Reason
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, Stopping, Unavailable
from ottoscaler.flow.dead_letters import report
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.registry import Registry, Waiter
from ottoscaler.flow.worker_log import WorkerLog
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Answer, Attempts, Clock, Cluster, Created, Status
from ottoscaler.retries import Retries
from ottoscaler.settings import Settings, WorkerSettings

#: After this many failures of the program itself on one worker, the worker ends as Poison.
MAX_FAILURES: Final = 5
#: Pause after an outage before a worker is taken up again, seconds.
OUTAGE_PAUSE_S: Final = 2.0

#: The next observation of an attempt's pod, TimedOut at the time given: `registry.Waiter.wait`.
Wait = Callable[[int, float | None], Observation]

#: Effects of one script each, or of no server at all.
_WITHOUT_CLUSTER: Final = (
    effects.Intend, effects.NoteRefused, effects.Check, effects.StoreTermination, effects.ClearTermination,
    effects.Record, effects.Later, effects.End,
)  # fmt: skip

_NOT_TERMINATED: Final = observations.Checked(None)

_log = logs.get(__name__)


class Runner:
    """Runs workers. Any thread: all state is the run's."""

    def __init__(
        self, *, attempts: Attempts, cluster: Cluster, registry: Registry, ledger: Ledger, retries: Retries,
        heartbeat: Heartbeat, metrics: Metrics, clock: Clock, settings: Settings,
    ) -> None:  # fmt: skip
        self._attempts = attempts
        self._cluster = cluster
        self._registry = registry
        self._ledger = ledger
        self._retries = retries
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._worker_log = WorkerLog(clock, ledger.tasks, ledger.notes, metrics)
        self._limited = logs.RateLimited()
        #: What carries out each effect but Await, and what the log says when it is tried again. A method that returns
        #: None has the thread let go of the worker.
        self._methods: dict[type[Effect], tuple[Callable[[WorkerRun, Any], Observation | None], str]] = {
            effects.Intend: (self._intend, "store an attempt"),
            effects.Later: (self._pause, "pause"),
            effects.Create: (self._create, "create a pod"),
            effects.NoteRefused: (self._note_refused, "store a refusal"),
            effects.Look: (self._look, "look at a pod"),
            effects.Check: (self._check, "check a worker"),
            effects.StoreTermination: (self._store_termination, "store a termination"),
            effects.ClearTermination: (self._clear_termination, "clear a termination"),
            effects.DeleteIfUnchanged: (self._delete_if_unchanged, "delete a pod"),
            effects.DeleteOld: (self._delete, "delete a pod"),
            effects.Record: (self._record, "record a result"),
            effects.Delete: (self._delete, "delete a pod"),
            effects.End: (self._end, "end"),
        }

    def run(self, run: WorkerRun) -> None:
        """Carry a worker on until it ends, pauses, or another thread or process is to go on. Raises nothing."""
        event = run.task.event
        with (
            logs.bind(event_id=event.event_id, task_id=event.task_id, worker=run.life.index),
            self.follow(run) as waiter,
        ):
            wait = waiter.wait
            while self.step(run, wait):
                pass

    def write(self, run: WorkerRun) -> bool:
        """Carry a worker on as far as writes to Redis go, on a thread that must not wait for the cluster. Returns False
        if the next step needs the cluster. Raises nothing.
        """
        event = run.task.event
        with logs.bind(event_id=event.event_id, task_id=event.task_id, worker=run.life.index):
            while isinstance(run.life.todo, _WITHOUT_CLUSTER):
                if not self.step(run, _nothing_to_await):
                    return True
        if run.life.needs_room:  # it is not cancelled any more: it waits for room and a thread as all others do
            self._ledger.pause(run, self._clock.now())
            return True
        return False

    def follow(self, run: WorkerRun) -> Waiter:
        """A worker's steps are made inside a `with` block of this: subscribed to its pod."""
        return self._registry.subscribe(run.task.hash, run.life.index, run.life.pod)

    def step(self, run: WorkerRun, wait: Wait) -> bool:
        """Carry out one effect; False when the thread is to let go of the worker. Raises nothing.

        `wait` is how it awaits its pod's next stage: the waiter's, which blocks, wherever there are threads.
        """
        effect = run.life.todo
        try:
            if isinstance(effect, effects.Await):
                observation: Observation | None = self._await(run, effect, wait)
            else:
                observation = self._carry_out(run, effect)
            if observation is None:
                return False
            self._advance(run, observation)
            return True
        except Stopping:
            return False
        except Unavailable as error:
            if self._limited.is_due(str(error)):
                _log.warning(
                    "worker.outage",
                    "No progress with %s, retrying in %g s: %s", run.pod_name, OUTAGE_PAUSE_S,
                    error, pod=run.pod_name, error=str(error),
                )  # fmt: skip
            self._ledger.notes.add(run, reason=str(error))
            self._ledger.pause(run, self._clock.now() + OUTAGE_PAUSE_S)
        except Exception as error:  # the top of a pool thread: a defect must end as a result, not in silence
            self._failed(run, error)
        return False

    def _carry_out(self, run: WorkerRun, effect: Effect) -> Observation | None:
        method, what = self._methods[type(effect)]
        try:
            return method(run, effect)
        except Unavailable as error:
            # Each may be carried out twice: scripts are idempotent, a deletion names the UID. A create raises none of
            # these: its unclear answers are observations, since a blind repetition could make a second pod.
            return self._retries.again(what, error, lambda: method(run, effect))

    def _advance(self, run: WorkerRun, observation: Observation) -> None:
        before = run.life
        run.life = life = lifecycle.step(before, observation, self._clock.now(), self._limits(run))
        self._heartbeat.progressed()
        if life.attempt != before.attempt:
            run.name_attempt()
        if isinstance(observation, observations.Intended) or observation == _NOT_TERMINATED:
            self._ledger.tasks.spared(run)
        if not life.may_have_unseen_pod:
            self._ledger.settled(run)
        self._worker_log.step(run, before)

    def _limits(self, run: WorkerRun) -> WorkerSettings:
        """The configuration, with what the event overrides."""
        configured, asked = self._settings.worker, run.task.event.overrides
        if asked == NOTHING:
            return configured
        retries = configured.worker_retries if asked.retries is None else asked.retries
        return dataclasses.replace(
            configured, deadline_s=asked.deadline_s or configured.deadline_s, worker_retries=retries
        )

    def _failed(self, run: WorkerRun, error: Exception) -> None:
        task = run.task
        run.failures += 1
        _log.exception("worker.failed", "Our own code failed on %s: %s", run.pod_name, error, pod=run.pod_name)
        self._ledger.tasks.failed(run)
        self._ledger.pause(run, self._clock.now() + lifecycle.backoff_s(run.failures))
        if run.failures < MAX_FAILURES:
            return
        life = run.life
        if life.termination is not None and life.termination.reason is Reason.POISON:
            # not even its end goes well: the lease runs out, another process takes the task up, and that is counted
            self._ledger.drop(task.event.event_id, task.owner)
            return
        message = f"the controller failed on this worker {run.failures} times: {type(error).__name__}"
        termination = Termination(Reason.POISON, message)
        try:
            self._attempts.store_termination(*run.address, termination)
        except Unavailable as outage:
            _log.warning("worker.outage", "Cannot mark %s as poison: %s", run.pod_name, outage)
            return
        run.life = lifecycle.resume(life.index, life.attempt, life.infra_used, termination)

    # -- effects without a server

    def _pause(self, run: WorkerRun, effect: effects.Later) -> Observation | None:
        if effect.until <= self._clock.now():
            return observations.TimedOut()
        self._ledger.pause(run, effect.until)
        return None

    def _await(self, run: WorkerRun, effect: effects.Await, wait: Wait) -> Observation:
        run.awaits_pod = True
        try:
            return wait(run.life.attempt, effect.until)
        finally:
            run.awaits_pod = False

    def _end(self, run: WorkerRun, effect: effects.End) -> None:
        _log.debug("worker.ended", "Nothing is left to do for %s: %s", run.pod_name, effect.reason)
        event_id, pod = run.task.event.event_id, run.life.pod
        # the first of a task's workers that finds this out drops the task: one line for all of them
        if effect.reason == lifecycle.NOT_OURS and self._ledger.drop(event_id, run.task.owner):
            _log.warning("task.lost", "Task %s was taken over by another process", event_id)
        if pod is not None and pod.altered:
            self._registry.delete(pod.key)  # no watch would ever say that it is gone
        self._ledger.ended(run)

    # -- effects on Redis, one script each

    def _intend(self, run: WorkerRun, effect: effects.Intend) -> Observation | None:
        if not self._ledger.holds_room(run):
            self._ledger.pause(run, self._clock.now())
            return None
        answer = self._attempts.intend(
            *run.address, attempt=effect.attempt, infra_used=effect.infra_used, pod=run.pod_name
        )
        return observations.Intended() if answer.status is Status.OK else _refusal(answer)

    def _note_refused(self, run: WorkerRun, effect: effects.NoteRefused) -> Observation:
        answer = self._attempts.note_refused(*run.address, effect.attempt)
        return observations.Done() if answer.status is Status.OK else _refusal(answer)

    def _check(self, run: WorkerRun, effect: effects.Check) -> Observation:
        answer = self._attempts.check(*run.address, effect.attempt)
        return observations.Checked(answer.termination) if answer.status is Status.OK else _refusal(answer)

    def _store_termination(self, run: WorkerRun, effect: effects.StoreTermination) -> Observation:
        answer = self._attempts.store_termination(*run.address, effect.termination)
        if answer.status is not Status.OK:
            return _refusal(answer)
        return observations.TerminationStored(answer.termination or effect.termination)

    def _clear_termination(self, run: WorkerRun, effect: effects.ClearTermination) -> Observation:
        answer = self._attempts.clear_termination(*run.address, effect.termination)
        return observations.Checked(answer.termination) if answer.status is Status.OK else _refusal(answer)

    def _record(self, run: WorkerRun, effect: effects.Record) -> Observation:
        event, now = run.task.event, self._clock.now()
        fields = worker_result(event, run.life.index, effect.attempt, effect.verdict, effect.pod, self._clock.wall(now))
        answer = self._attempts.record(*run.address, attempt=effect.attempt, fields=fields)
        if answer.status not in (Status.OK, Status.KNOWN):
            return _refusal(answer)
        verdict = effect.verdict if answer.termination is None else decided(effect.verdict, answer.termination)
        self._ledger.tasks.recorded(run, verdict)
        if answer.status is Status.OK:
            self._worker_log.recorded(run, verdict, effect.pod)
            if answer.dead:
                bad = BadEvent(DeadReason.POISON, answer.dead, event.event_id, event.task_id)
                report(self._metrics, bad, event.stream_id)
            if answer.finished:
                _log.info("task.finished", answer.finished, duration_s=round(now - run.task.received_mono, 3))
        return observations.Done()

    # -- effects on the cluster, one request each

    def _create(self, run: WorkerRun, _effect: effects.Create) -> Observation:
        settings = self._settings
        body = manifest.build(
            settings.worker,
            run.task.event,
            run.key,
            event_json=run.task.event_json,
            instance=settings.instance,
            namespace=settings.kube.namespace,
        )
        self._worker_log.creating(run)
        try:
            answer = self._cluster.create(body)
        except ClusterRejected as error:
            return observations.RejectedPod(str(error))
        except ClusterUnavailable as error:
            self._ledger.notes.add(run, reason=str(error))
            if not error.unclear:
                return observations.Refused(str(error), error.retry_after_s)
            sentence = "It is unclear whether %s was created: looking whether it is there"
            _log.warning("worker.unclear", sentence, run.pod_name, error=str(error))
            return observations.Unclear(error.retry_after_s)
        if answer is Created.ALREADY_THERE:
            return observations.AlreadyThere()
        self._metrics.pods_created.inc()
        self._registry.upsert(answer)
        return observations.Seen(answer)

    def _look(self, run: WorkerRun, effect: effects.Look) -> Observation:
        pod = None if effect.live else self._registry.get(run.key)
        pod = pod or self._cluster.get(run.pod_name)
        if pod is None:
            self._registry.delete(run.key)
            return observations.Absent()
        event_id, instance, known = run.task.event.event_id, self._settings.instance, run.life.pod
        if (pod.event_id, pod.instance, pod.key) != (event_id, instance, run.key):
            if known is None or known.uid != pod.uid:
                return observations.Foreign()
            # the UID says that it is ours, whatever was made of its labels and annotations from outside
            altered = known.altered or pod.altered or "the pod's labels and annotations were changed"
            pod = replace(pod, event_id=event_id, instance=instance, key=run.key, altered=altered)
        if isinstance(effect.after, observations.AlreadyThere):
            self._worker_log.adopted(run)
        self._registry.upsert(pod)
        return observations.Seen(pod)

    def _delete(self, _run: WorkerRun, effect: effects.Delete | effects.DeleteOld) -> Observation:
        self._request_deletion(effect.pod, None)
        return observations.Done()

    def _delete_if_unchanged(self, _run: WorkerRun, effect: effects.DeleteIfUnchanged) -> Observation:
        pod, version = effect.pod, effect.pod.resource_version
        latest = self._registry.get(pod.key)
        # the version rises with changes that do not matter, too: at a later one the pod is still what was decided on
        if latest is not None and latest.stage == pod.stage:
            version = latest.resource_version
        done = self._request_deletion(pod, version, effect.grace_s)
        return observations.Done() if done else observations.Changed()

    def _request_deletion(self, pod: Snapshot, resource_version: str | None, grace_s: int | None = None) -> bool:
        done = self._cluster.delete(pod.name, pod.uid, resource_version, grace_s=grace_s)
        _log.info("worker.deleted", "Cleaning up pod: %s", pod.name, pod=pod.name, attempt=pod.key.attempt)
        if done:
            self._metrics.pods_deleted.inc()
        return done


def _nothing_to_await(_attempt: int, _until: float | None) -> Observation:
    raise lifecycle.IllegalStep("only writes were to be made, and a pod is to be waited for")


def _refusal(answer: Answer) -> Observation:
    """What a script says that has not done what was asked of it."""
    match answer.status:
        case Status.NOT_OURS:
            return observations.NotOurs()
        case Status.HAS_RESULT:
            return observations.HasResult()
        case Status.OLD_ATTEMPT:
            return observations.OldAttempt()
        case Status.CANCELLED if answer.termination is not None:
            return observations.Cancelled(answer.termination, answer.attempt)
    raise lifecycle.IllegalStep(f"no script answers {answer} here")
