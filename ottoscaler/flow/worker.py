"""One worker's life: a thread carries out the effects that core/lifecycle.py decides on, and reports what came of them.

Redis or the API server may be away for a while: then the worker goes back into the ledger as it stands, so that nothing
is lost and no outage holds a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from ottoscaler import logs
from ottoscaler.core import effects, lifecycle, manifest, observations
from ottoscaler.core.effects import Effect
from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.observations import Observation
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, record_nothing
from ottoscaler.core.overrides import NO_OVERRIDES
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.results import worker_result
from ottoscaler.core.spans import SpanBuilder, encode_ended_before
from ottoscaler.core.termination import Termination, final_verdict
from ottoscaler.core.verdicts import EndReason, backoff_s
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, Stopping, Unavailable
from ottoscaler.flow.dead_letters import report
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.log_drain import LogDrain
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.pod_events import PodEventsReader
from ottoscaler.flow.pod_keeper import PodKeeper
from ottoscaler.flow.registry import PodRegistry, Waiter
from ottoscaler.flow.script_answers import refusal
from ottoscaler.flow.task_losses import report_loss
from ottoscaler.flow.worker_log import WorkerLog
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Attempts, Clock, Cluster, CreateOutcome, ScriptStatus
from ottoscaler.retries import Retries, server_of
from ottoscaler.settings import Settings

#: After this many failures of the program itself on one worker, the worker ends as Poison.
MAX_FAILURES: Final = 5
#: Pause after an outage before a worker is taken up again, seconds.
OUTAGE_PAUSE_S: Final = 2.0

#: The next observation of an attempt's pod, TimedOut at the time given: `registry.Waiter.wait`.
Wait = Callable[[int, float | None], Observation]

#: Effects of one script each, or of no server at all.
_WITHOUT_CLUSTER: Final = (
    effects.StoreAttempt, effects.StoreRefusal, effects.MarkPodSeen, effects.StoreTermination, effects.ClearTermination,
    effects.RecordResult, effects.PauseUntil, effects.EndLifecycle,
)  # fmt: skip

_NOT_TERMINATED: Final = observations.NoResultYet(None)

_log = logs.get(__name__)


class WorkerRunner:
    """Runs workers. Any thread: all state is the run's."""

    def __init__(
        self, *, attempts: Attempts, cluster: Cluster, registry: PodRegistry, ledger: Ledger, keeper: PodKeeper,
        retries: Retries, heartbeat: Heartbeat, metrics: Metrics, clock: Clock, settings: Settings,
        log_drain: LogDrain | None = None, record_event: RecordKubeEvent = record_nothing,
        spans: SpanBuilder | None = None,
    ) -> None:  # fmt: skip
        """`log_drain` is None where logs are off, and `spans` where traces are."""
        self._attempts = attempts
        self._cluster = cluster
        self._registry = registry
        self._ledger = ledger
        self._keeper = keeper
        self._log_drain = log_drain
        self._spans = spans
        self._retries = retries
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._record_event = record_event
        self._worker_log = WorkerLog(clock, ledger.tasks, ledger.status_buffer, metrics, record_event)
        self._limited = logs.RateLimited()
        self._pod_events = PodEventsReader(cluster)
        #: What carries out each effect but AwaitPod, and what the log says when it is tried again. A method that
        #: returns None has the thread let go of the worker.
        self._methods: dict[type[Effect], tuple[Callable[[WorkerRun, Any], Observation | None], str]] = {
            effects.StoreAttempt: (self._intend, "store an attempt"),
            effects.PauseUntil: (self._pause, "pause"),
            effects.CreatePod: (self._create, "create a pod"),
            effects.StoreRefusal: (self._store_refusal, "store a refusal"),
            effects.GetPod: (self._get_pod, "look at a pod"),
            effects.ListPodEvents: (self._pod_events.read, "list the Events of a pod"),
            effects.MarkPodSeen: (self._check, "check a worker"),
            effects.StoreTermination: (self._store_termination, "store a termination"),
            effects.ClearTermination: (self._clear_termination, "clear a termination"),
            effects.DeletePodIfUnchanged: (self._delete_if_unchanged, "delete a pod"),
            effects.DeleteOldPod: (self._delete, "delete a pod"),
            effects.RecordResult: (self._record, "record a result"),
            effects.DeletePod: (self._delete, "delete a pod"),
            effects.KeepPod: (self._keep_pod, "keep a pod"),
            effects.EndLifecycle: (self._end_lifecycle, "end"),
        }

    def run(self, run: WorkerRun) -> None:
        """Carry a worker on until it ends, pauses, or another thread or process is to go on. Raises nothing."""
        event = run.task.event
        with (
            logs.bind(event_id=event.event_id, task_id=event.task_id, worker=run.life.index),
            self.subscribed(run) as waiter,
        ):
            wait = waiter.wait
            while self.step(run, wait):
                pass

    def run_without_cluster(self, run: WorkerRun) -> bool:
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

    def subscribed(self, run: WorkerRun) -> Waiter:
        """A worker's steps are made inside a `with` block of this: subscribed to its pod."""
        return self._registry.subscribe(run.task.event_hash, run.life.index, run.life.pod)

    def step(self, run: WorkerRun, wait: Wait) -> bool:
        """Carry out one effect; False when the thread is to let go of the worker. Raises nothing.

        `wait` is how it awaits its pod's next stage: the waiter's, which blocks, wherever there are threads.
        """
        effect = run.life.todo
        try:
            if isinstance(effect, effects.AwaitPod):
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
                    "worker.outage", "No progress with %s, retrying in %g s", run.pod_name, OUTAGE_PAUSE_S,
                    pod=run.pod_name, target=server_of(error), error=str(error),
                )  # fmt: skip
            self._worker_log.held_up(run, error)
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
            return self._retries.try_again(what, error, lambda: method(run, effect))

    def _advance(self, run: WorkerRun, observation: Observation) -> None:
        before = run.life
        limits, asked = self._settings.worker, run.task.event.overrides
        if asked != NO_OVERRIDES:
            limits = limits.with_overrides(asked)
        run.life = life = lifecycle.step(before, observation, self._clock.now(), limits)
        self._heartbeat.progressed()
        if life.attempt != before.attempt:
            run.update_pod_name()
        if isinstance(observation, observations.AttemptStored) or observation == _NOT_TERMINATED:
            self._ledger.tasks.clear_cancel(run)
        if not life.may_have_unseen_pod:
            self._ledger.release_room(run)
        self._worker_log.step(run, before, limits)
        if self._log_drain is not None:
            self._log_drain.worker_stepped(run, before)

    def _failed(self, run: WorkerRun, error: Exception) -> None:
        task = run.task
        run.failures += 1
        _log.exception("worker.failed", "Our own code failed on %s", run.pod_name, pod=run.pod_name)
        self._ledger.tasks.mark_defect(run)
        until = self._clock.now() + backoff_s(run.failures)
        self._worker_log.held_up(run, error, until)
        self._ledger.pause(run, until)
        if run.failures < MAX_FAILURES:
            return
        life = run.life
        if life.termination is not None and life.termination.reason is EndReason.POISON:
            # not even its end goes well: the lease runs out, another process takes the task up, and that is counted
            self._ledger.drop(task.event.event_id, task.owner)
            return
        message = f"the controller failed on this worker {run.failures} times: {type(error).__name__}"
        termination = Termination(EndReason.POISON, message)
        try:
            self._attempts.store_termination(*run.owned_worker_id, termination)
        except Unavailable as outage:
            _log.warning(
                "worker.outage", "Cannot mark %s as poison", run.pod_name,
                pod=run.pod_name, target=server_of(outage), error=str(outage),
            )  # fmt: skip
            return
        run.life = lifecycle.resume_lifecycle(life.index, life.attempt, life.infra_used, termination)

    # -- effects without a server

    def _pause(self, run: WorkerRun, effect: effects.PauseUntil) -> Observation | None:
        if effect.until <= self._clock.now():
            return observations.TimedOut()
        self._ledger.pause(run, effect.until)
        return None

    def _await(self, run: WorkerRun, effect: effects.AwaitPod, wait: Wait) -> Observation:
        run.awaits_pod = True
        try:
            return wait(run.life.attempt, effect.until)
        finally:
            run.awaits_pod = False

    def _end_lifecycle(self, run: WorkerRun, effect: effects.EndLifecycle) -> None:
        _log.debug("worker.ended", "Nothing is left to do for %s: %s", run.pod_name, effect.reason)
        event_id, pod = run.task.event.event_id, run.life.pod
        if self._log_drain is not None:
            self._log_drain.worker_done(pod, lost=effect.reason == lifecycle.NOT_OURS)
        # the first of a task's workers that finds this out drops the task: one line for all of them
        if effect.reason == lifecycle.NOT_OURS and self._ledger.drop(event_id, run.task.owner):
            report_loss(self._metrics, event_id, "another process", self._record_event)
        if pod is not None and pod.altered_label:
            self._registry.delete(pod.key)  # no watch would ever say that it is gone
        self._ledger.worker_ended(run)

    # -- effects on Redis, one script each

    def _intend(self, run: WorkerRun, effect: effects.StoreAttempt) -> Observation | None:
        if not self._ledger.may_create_pod(run):
            self._ledger.pause(run, self._clock.now())
            return None
        answer = self._attempts.store_attempt(
            *run.owned_worker_id, attempt=effect.attempt, infra_used=effect.infra_used, pod=run.pod_name,
            oom_kills=effect.oom_kills, traced="" if self._spans is None else self._ended_before(run),
        )  # fmt: skip
        return observations.AttemptStored() if answer.status is ScriptStatus.OK else refusal(answer)

    def _ended_before(self, run: WorkerRun) -> str:
        """For the trace: how the attempt ended that this one follows."""
        now = self._clock.wall_time(self._clock.now())
        return encode_ended_before(run.task.event, run.life.index, run.life.attempt, run.life.retry_cause, now)

    def _store_refusal(self, run: WorkerRun, effect: effects.StoreRefusal) -> Observation:
        answer = self._attempts.store_refusal(*run.owned_worker_id, effect.attempt)
        return observations.EffectDone() if answer.status is ScriptStatus.OK else refusal(answer)

    def _check(self, run: WorkerRun, effect: effects.MarkPodSeen) -> Observation:
        answer = self._attempts.mark_pod_seen(*run.owned_worker_id, effect.attempt)
        return observations.NoResultYet(answer.termination) if answer.status is ScriptStatus.OK else refusal(answer)

    def _store_termination(self, run: WorkerRun, effect: effects.StoreTermination) -> Observation:
        answer = self._attempts.store_termination(*run.owned_worker_id, effect.termination)
        if answer.status is not ScriptStatus.OK:
            return refusal(answer)
        return observations.TerminationStored(answer.termination or effect.termination)

    def _clear_termination(self, run: WorkerRun, effect: effects.ClearTermination) -> Observation:
        answer = self._attempts.clear_termination(*run.owned_worker_id, effect.termination)
        return observations.NoResultYet(answer.termination) if answer.status is ScriptStatus.OK else refusal(answer)

    def _record(self, run: WorkerRun, effect: effects.RecordResult) -> Observation:
        event, now, pod = run.task.event, self._clock.now(), effect.pod
        note = ""
        if pod is not None and pod.keep_failed_s:
            # In the result, which is written anyway: where a termination wins over it, and the pod goes, the script
            # puts the termination's message in the place of this one.
            note = self._keeper.note(pod, effect.verdict.reason.outcome, self._settings.kube.namespace)
        fields = worker_result(
            event, run.life.index, effect.attempt, effect.verdict, pod, self._clock.wall_time(now),
            run.life.oom_kills, note,
        )  # fmt: skip
        answer = self._attempts.record_result(*run.owned_worker_id, attempt=effect.attempt, fields=fields)
        if answer.status not in (ScriptStatus.OK, ScriptStatus.KNOWN):
            return refusal(answer)
        verdict = effect.verdict if answer.termination is None else final_verdict(effect.verdict, answer.termination)
        self._ledger.tasks.store_result(run, verdict)
        if answer.status is ScriptStatus.OK:
            self._worker_log.recorded(run, verdict, pod)
            if answer.dead_letter_detail:
                bad = BadEvent(DeadReason.POISON, answer.dead_letter_detail, event.event_id, event.task_id)
                report(self._metrics, bad, event.stream_id, self._record_event)
            if answer.task_result_message:
                self._worker_log.task_finished(run, answer.task_result_message)
        return observations.EffectDone()

    # -- effects on the cluster, one request each

    def _create(self, run: WorkerRun, _effect: effects.CreatePod) -> Observation:
        settings, event = self._settings, run.task.event
        if self._spans is not None:
            event = self._spans.with_run_context(event, run.key)
        body = manifest.build_pod(
            settings.worker,
            event,
            run.key,
            event_json=run.task.event_json,
            instance=settings.instance,
            namespace=settings.kube.namespace,
            avoided_nodes=run.life.avoided_nodes,
            tenant=run.task.tenant,
            oom_kills=run.life.oom_kills,
        )
        asked_at = self._clock.now()
        try:
            answer = self._cluster.create(body)
        except ClusterRejected as error:
            return observations.RejectedPod(str(error))
        except ClusterUnavailable as error:
            self._worker_log.held_up(run, error)
            if not error.unclear:
                self._keeper.make_room(str(error))
                return observations.CreateRefused(str(error), error.retry_after_s)
            if self._limited.is_due(str(error)):
                sentence = "It is unclear whether %s was created: looking whether it is there"
                _log.warning("worker.unclear", sentence, run.pod_name, pod=run.pod_name, error=str(error))
            return observations.CreateUnclear(error.retry_after_s)
        if answer is CreateOutcome.ALREADY_THERE:
            return observations.PodAlreadyExists()
        self._worker_log.created(run, asked_at)
        self._registry.upsert(answer)
        return observations.PodSeen(answer)

    def _get_pod(self, run: WorkerRun, effect: effects.GetPod) -> Observation:
        pod = None if effect.live else self._registry.get(run.key)
        pod = pod or self._cluster.get(run.pod_name)
        if pod is None:
            self._registry.delete(run.key)
            return observations.PodNotFound()
        event_id, instance, known = run.task.event.event_id, self._settings.instance, run.life.pod
        if (pod.event_id, pod.instance, pod.key) != (event_id, instance, run.key):
            if known is None or known.uid != pod.uid:
                return observations.ForeignPod()
            # the UID says that it is ours, whatever was made of its labels and annotations from outside
            altered = known.altered_label or pod.altered_label or "the pod's labels and annotations were changed"
            pod = replace(pod, event_id=event_id, instance=instance, key=run.key, altered_label=altered)
        if isinstance(effect.after, observations.PodAlreadyExists):
            self._worker_log.pod_adopted(run)
        elif effect.after is not None:
            self._worker_log.created(run, self._clock.now())  # that create had no clear answer
        self._registry.upsert(pod)
        return observations.PodSeen(pod)

    def _delete(self, _run: WorkerRun, effect: effects.DeletePod | effects.DeleteOldPod) -> Observation:
        self._delete_or_hold(effect.pod)
        return observations.EffectDone()

    def _keep_pod(self, run: WorkerRun, effect: effects.KeepPod) -> Observation:
        # A cancel that reached Redis just before the result has won over it: its scale_down waits for the pod's end.
        if self._ledger.tasks.has_failed(run):
            self._keeper.keep(effect.pod)
        else:
            self._delete_or_hold(effect.pod)
        return observations.EffectDone()

    def _delete_or_hold(self, pod: PodSnapshot) -> None:
        """The result is stored: the pod goes, at once or when its log has arrived."""
        if self._log_drain is None or not self._log_drain.hold(pod):
            self._request_deletion(pod, None)

    def _delete_if_unchanged(self, _run: WorkerRun, effect: effects.DeletePodIfUnchanged) -> Observation:
        pod, version = effect.pod, effect.pod.resource_version
        latest = self._registry.get(pod.key)
        # the version rises with changes that do not matter, too: at a later one the pod is still what was decided on
        if latest is not None and latest.stage == pod.stage:
            version = latest.resource_version
        done = self._request_deletion(pod, version, effect.grace_s)
        return observations.EffectDone() if done else observations.PodChanged()

    def _request_deletion(self, pod: PodSnapshot, resource_version: str | None, grace_s: int | None = None) -> bool:
        done = self._cluster.delete(pod.name, pod.uid, resource_version, grace_s=grace_s)
        _log.info("worker.deleted", "Cleaning up pod: %s", pod.name, pod=pod.name, attempt=pod.key.attempt)
        if done:
            self._metrics.pods_deleted.inc()
        return done


def _nothing_to_await(_attempt: int, _until: float | None) -> Observation:
    raise lifecycle.IllegalStep("only writes were to be made, and a pod is to be waited for")
