"""One worker's life as a pure state machine: `life.todo` is the effect that comes next, `step(life, observation)` is
the life after the answer to it.

The thread that runs a worker only carries out effects and reports what came of them. All rules by which nothing is
lost or done twice are here:

- an attempt is stored before its pod is created, and the name of an attempt is created once;
- an unclear answer is followed by a live look, never by a blind repetition;
- absence in a list counts only after a live look;
- a result is recorded before its finished pod is deleted;
- a pod that the controller ends has its termination stored first, is deleted by UID and resourceVersion, and is
  recorded when it is seen finished or gone; a success wins over any termination;
- a pod that other containers keep alive when `agent` has ended is ended in the same way: the stored termination is the
  verdict on `agent`.

Times are seconds of the process's own monotonic clock.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from ottoscaler.core.effects import (
    AwaitPod,
    ClearTermination,
    CreatePod,
    DeleteOldPod,
    DeletePod,
    DeletePodIfUnchanged,
    Effect,
    EndLifecycle,
    GetPod,
    KeepPod,
    ListPodEvents,
    MarkPodSeen,
    PauseUntil,
    RecordResult,
    StoreAttempt,
    StoreRefusal,
    StoreTermination,
)
from ottoscaler.core.kept_pods import may_stay, stays
from ottoscaler.core.observations import (
    AttemptStored,
    Cancelled,
    CreateRefused,
    CreateUnclear,
    EffectDone,
    ForeignPod,
    HasResult,
    NewerAttemptStored,
    NoResultYet,
    Observation,
    OwnershipLost,
    PodAlreadyExists,
    PodChanged,
    PodEventsListed,
    PodEventsUnknown,
    PodNotFound,
    PodNotListed,
    PodSeen,
    RejectedPod,
    TerminationStored,
    TimedOut,
)
from ottoscaler.core.pod_timeline import (
    AttemptLimits,
    due_effect,
    finished_pod_verdict,
    observe,
    pod_verdict,
    relook_s,
    with_forecast,
)
from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.core.termination import RetryCause, Termination, final_verdict, refused
from ottoscaler.core.verdicts import EndReason, RetryBudget, Verdict, backoff_s
from ottoscaler.core.worker_state import Lifecycle as Lifecycle

#: While the API server refuses (quota), it is asked again at least this often, so that freed quota is used at once,
#: seconds.
MAX_REFUSED_S: Final = 4.0

#: Reasons of an `EndLifecycle`.
NOT_OURS: Final = "another process owns the task"
DONE: Final = "done"

#: What only the owner of the task may do.
_BY_OWNER: Final = (StoreAttempt, StoreRefusal, MarkPodSeen, AwaitPod, StoreTermination, ClearTermination, RecordResult)
_NAME_TAKEN: Final = Verdict(EndReason.NAME_CONFLICT, "a pod of that name exists and is not ours")


class IllegalStep(Exception):
    """An observation came that the state cannot have: a defect of this program."""


def begin_lifecycle(index: int, attempt: int = 1, infra_used: int = 0, oom_kills: int = 0) -> Lifecycle:
    """The life of a worker of which no pod is there: its attempt is stored first."""
    todo = StoreAttempt(attempt, infra_used, oom_kills)
    return Lifecycle(index=index, todo=todo, attempt=attempt, infra_used=infra_used, oom_kills=oom_kills)


def resume_lifecycle(
    index: int, attempt: int, infra_used: int, termination: Termination | None = None, *, seen: bool = False,
    oom_kills: int = 0,
) -> Lifecycle:  # fmt: skip
    """The life of a worker with an attempt that an earlier process stored: a live look comes first. `seen`: that
    process, or one before it, has seen the attempt's pod.
    """
    # what another process left behind, the watch may show already: then the look costs no request
    look = GetPod(attempt, live=False)
    return Lifecycle(
        index=index, todo=look, attempt=attempt, infra_used=infra_used, oom_kills=oom_kills, termination=termination,
        pod_was_seen=seen,
    )  # fmt: skip


def without_pause(life: Lifecycle) -> Lifecycle:
    """The same without its pause: a cancelled worker waits for nothing but the end of its pod."""
    if life.needs_room:
        return replace(life, todo=life.store_attempt, not_before=0.0)
    return _get_pod(life) if isinstance(life.todo, (AwaitPod, ListPodEvents)) else life


def step(life: Lifecycle, observation: Observation, now: float, limits: AttemptLimits) -> Lifecycle:
    """The life after the answer to its effect.

    Arguments: the life, what came of `life.todo`, the time now in seconds, and the limits. Raises IllegalStep if that
    effect has no such answer: a defect of this program.
    """
    match life.todo, observation:
        case AwaitPod(), PodSeen(pod):
            return _on_pod_change(life, pod, now, limits)
        case StoreAttempt(), AttemptStored():
            return replace(life, todo=CreatePod(life.attempt) if life.old_pod is None else DeleteOldPod(life.old_pod))
        case CreatePod() | GetPod(), PodSeen(pod):
            return _on_pod_found(life, pod, now, limits)
        case MarkPodSeen() | ClearTermination(), NoResultYet(termination):
            return _on_termination(life, termination, now, limits)
        case RecordResult(verdict=end), EffectDone():
            return _after_result(life, end)
        case DeletePod() | KeepPod(), EffectDone():
            return _end(life, DONE)
        case AwaitPod(), TerminationStored(termination) if termination == life.termination:  # its pod is being ended
            return life
        case AwaitPod() | StoreTermination(), TerminationStored(termination):
            return _on_termination(life, termination, now, limits)
        case AwaitPod(), TimedOut():
            return _timed_out(life, now, limits)
        case ListPodEvents(), PodEventsListed() | PodEventsUnknown():
            return _on_events(life, observation, now, limits)
        case (PauseUntil(), TimedOut()) | (StoreRefusal(), EffectDone()):
            return _pause(life, now)
        case DeleteOldPod(), EffectDone():
            return replace(life, todo=CreatePod(life.attempt), old_pod=None)
        case CreatePod(), (PodAlreadyExists() | CreateUnclear()) as answer:
            return _perhaps_created(life, answer, now)
        case CreatePod(), CreateRefused(_, after_s):
            return _refused(life, now, min(backoff_s(life.backoff), MAX_REFUSED_S) if after_s is None else after_s)
        case CreatePod(), RejectedPod(message):
            return _record(life, Verdict(EndReason.REJECTED, message))
        case GetPod(), PodNotFound():
            return _absent(life, now, limits)
        case GetPod(), ForeignPod():
            return _record(replace(life, pod=None), _NAME_TAKEN)
        case DeletePodIfUnchanged(pod), EffectDone():
            return replace(life, todo=AwaitPod(now + relook_s(pod)))
        case (AwaitPod(), PodNotListed()) | (DeletePodIfUnchanged(), PodChanged()):
            return _get_pod(life)
        case StoreAttempt(), Cancelled(termination, attempt):
            return _cancelled(life, termination, attempt)
        case StoreAttempt() | MarkPodSeen() | StoreTermination() | ClearTermination(), HasResult():
            return _after_result(life)
        case StoreAttempt() | StoreTermination() | RecordResult(), NewerAttemptStored():
            return _end(life, "a higher attempt is stored")
        case todo, OwnershipLost() if isinstance(todo, _BY_OWNER):
            return _end(life, NOT_OURS)
    raise IllegalStep(f"{life.todo} has no answer {observation}")


def _end(life: Lifecycle, reason: str) -> Lifecycle:
    return replace(life, todo=EndLifecycle(reason))


def _record(life: Lifecycle, end: Verdict) -> Lifecycle:
    return replace(life, todo=RecordResult(life.attempt, end, life.pod))


def _get_pod(life: Lifecycle) -> Lifecycle:
    """Look for the pod. If it was never seen here, the registry may show it already, which spares a GET."""
    return replace(life, todo=GetPod(life.attempt, live=life.pod is not None))


def _pause(life: Lifecycle, now: float) -> Lifecycle:
    """The attempt is stored (again) when its pause is over."""
    pause = life.not_before > now
    return replace(life, todo=PauseUntil(life.not_before) if pause else life.store_attempt)


def _perhaps_created(life: Lifecycle, answer: PodAlreadyExists | CreateUnclear, now: float) -> Lifecycle:
    """The answer to a create does not say whether its pod is there: a live look does."""
    if isinstance(answer, CreateUnclear):
        life = replace(life, not_before=now + (answer.after_s or 0.0))
    return replace(life, todo=GetPod(life.attempt, after=answer))


def _refused(life: Lifecycle, now: float, pause_s: float) -> Lifecycle:
    """No pod was made. That is stored, so that the next owner, too, creates it under the same attempt."""
    return replace(life, todo=StoreRefusal(life.attempt), not_before=now + pause_s, backoff=life.backoff + 1)


def _again(life: Lifecycle, retried: RetryCause, now: float, *, infra: int) -> Lifecycle:
    old = life.pod if life.pod is not None and not life.pod.gone else life.old_pod
    oom_kills = life.oom_kills + (retried.verdict.reason is EndReason.OOM_KILLED)
    following = begin_lifecycle(life.index, life.attempt + 1, life.infra_used + infra, oom_kills)
    pause_until = now + backoff_s(life.infra_used) if infra else 0.0
    avoided = life.nodes_to_avoid(retried.verdict)
    following = replace(following, old_pod=old, retry_cause=retried, not_before=pause_until, avoided_nodes=avoided)
    return _pause(following, now)


def _cancelled(life: Lifecycle, termination: Termination, attempt: int) -> Lifecycle:
    """Intend was refused: a pod of the stored attempt, if there is one, is seen to its end before anything is recorded.
    Of an earlier attempt this life has seen the end already.
    """
    cancelled = replace(life, termination=termination, attempt=attempt)
    end, last = refused(termination, life.retry_cause)
    return _get_pod(cancelled) if attempt >= life.attempt else _record(replace(cancelled, pod=last or life.pod), end)


def _on_pod_found(life: Lifecycle, pod: PodSnapshot, now: float, limits: AttemptLimits) -> Lifecycle:
    """The answer to a create or a live look names the attempt's pod."""
    if _is_stranger(life, pod):
        return _absent(life, now, limits)
    timeline = replace(life.timeline, created=now) if isinstance(life.todo, CreatePod) else life.timeline
    return replace(life, todo=MarkPodSeen(life.attempt), pod=pod, backoff=0, timeline=observe(timeline, pod, now))


def _on_pod_change(life: Lifecycle, pod: PodSnapshot, now: float, limits: AttemptLimits) -> Lifecycle:
    """The watch shows a new stage of the pod."""
    if _is_stranger(life, pod):
        return _get_pod(life)
    life = replace(life, pod=pod, backoff=0, timeline=observe(life.timeline, pod, now))
    if pod.gone and not (pod.deleting or pod.agent_ended or pod.disruption or life.termination):
        # a watch also says DELETED of a pod that has lost the labels by which it is selected, and that may run on
        return _get_pod(life)
    return _evaluate(life, pod, now, limits)


def _is_stranger(life: Lifecycle, pod: PodSnapshot) -> bool:
    """An attempt's name is used once: another UID under it is a foreign pod, and the attempt's own pod is gone."""
    return life.pod is not None and pod.uid != life.pod.uid


def _timed_out(life: Lifecycle, now: float, limits: AttemptLimits) -> Lifecycle:
    pod = _pod(life)
    if life.termination is not None or pod.deleting or pod.phase is Phase.UNKNOWN or pod.altered_label:
        return _get_pod(life)
    evaluated = _evaluate(life, pod, now, limits)
    # That a pod has got a node is no stage of its own, so it may have one by now: its start has a clock of its own
    # then. Only a clock that has run out is worth the request.
    unseen = pod.started_at is None and not pod.node and not pod.trouble
    return _get_pod(life) if unseen and not isinstance(evaluated.todo, AwaitPod) else evaluated


def _on_events(
    life: Lifecycle, answer: PodEventsListed | PodEventsUnknown, now: float, limits: AttemptLimits
) -> Lifecycle:
    """What an autoscaler says of a pod that no node takes."""
    forecast = answer.forecast if isinstance(answer, PodEventsListed) else None
    return _evaluate(replace(life, timeline=with_forecast(life.timeline, forecast, now)), _pod(life), now, limits)


def _absent(life: Lifecycle, now: float, limits: AttemptLimits) -> Lifecycle:
    """A live GET found nothing: what was last seen of the pod decides.

    If no process ever saw the pod, the one that stored the attempt ended before or during its create. The
    create is made again under the same name, and costs no retry: a request that is still on its way then meets the pod
    that is there, and makes no second one.
    """
    match life.todo:
        case GetPod(after=CreateUnclear()):
            # one lost answer costs no time; a server that answers nothing but 500 is not to be asked without a break
            pause_s = backoff_s(life.backoff - 1) if life.backoff else 0.0
            return _refused(life, now, max(min(pause_s, MAX_REFUSED_S), life.not_before - now))
        case GetPod(after=None) if life.pod is None and not life.pod_was_seen and life.termination is None:
            return _pause(replace(life, not_before=now), now)
    if life.pod is None:
        lost = Verdict(EndReason.POD_LOST, "the pod is gone, and the API server gave no reason")
        return _ended(life, lost, now, limits)
    seen, gone = life.pod.gone, life.pod.as_gone()
    end = finished_pod_verdict(gone) if seen or gone.deleting or gone.agent_ended or gone.disruption else None
    return _ended(replace(life, pod=gone), end or Verdict(EndReason.POD_LOST, "the pod vanished unseen"), now, limits)


def _on_termination(life: Lifecycle, termination: Termination | None, now: float, limits: AttemptLimits) -> Lifecycle:
    """This termination is stored, or none is. One of another attempt does not replace the one that holds."""
    keeps = life.termination is not None and termination is not None and not termination.is_cancel
    if not keeps or isinstance(life.todo, StoreTermination):
        life = replace(life, termination=termination)
    if life.pending_verdict is not None:
        return _ended(replace(life, pending_verdict=None), life.pending_verdict, now, limits)
    return _evaluate(life, _pod(life), now, limits)


def _pod(life: Lifecycle) -> PodSnapshot:
    if life.pod is None:
        raise IllegalStep(f"{life.todo} was carried out without a pod")
    return life.pod


def _evaluate(life: Lifecycle, pod: PodSnapshot, now: float, limits: AttemptLimits) -> Lifecycle:
    """What follows from a pod that is as it is now."""
    if (end := pod_verdict(life.timeline, pod, now)) is not None:
        return _ended(life, end, now, limits)
    if life.termination is not None:
        return replace(life, todo=_end_by(life.termination, pod, now))
    todo = due_effect(life.timeline, pod, now, limits, life.attempt)
    termination = todo.termination if isinstance(todo, StoreTermination) else None
    return replace(life, termination=termination, todo=todo)


def _end_by(termination: Termination, pod: PodSnapshot, now: float) -> Effect:
    if pod.deleting:
        return AwaitPod(now + relook_s(pod))
    if termination.only_before_start and pod.started_at is not None:
        return ClearTermination(termination)
    return DeletePodIfUnchanged(pod, termination.grace_s(pod))


def _ended(life: Lifecycle, end: Verdict, now: float, limits: AttemptLimits) -> Lifecycle:
    """The attempt is over: the next one follows, or the result. How `agent` was seen to end wins over what became of
    its pod later. A termination that spares what has started is cleared first: it had no part in this end.
    """
    end, termination = life.timeline.agent_verdict or end, life.termination
    if termination is not None:
        final = final_verdict(end, termination)
        if final is not end and termination.only_before_start and life.timeline.started_unasked:
            return replace(life, todo=ClearTermination(termination), pending_verdict=end)
        end = final
    retry = end.reason.retry
    if retry is RetryBudget.INFRA and life.infra_used < limits.infra_retries:
        return _again(life, RetryCause(end, life.infra_used + 1, limits.infra_retries, life.pod), now, infra=1)
    if retry is RetryBudget.WORKER and life.attempt - 1 - life.infra_used < limits.worker_retries:
        return _again(
            life, RetryCause(end, life.attempt - life.infra_used, limits.worker_retries, life.pod), now, infra=0
        )
    return _record(life, end)


def _after_result(life: Lifecycle, end: Verdict | None = None) -> Lifecycle:
    """The result is stored: the pod may go, or an earlier attempt's, or it stays for inspection. One that is being
    deleted needs no request. Without an `end`, another process has stored the result, and the reconciler reads it.
    """
    pod = life.pod if life.pod is not None else life.old_pod
    life = replace(life, pod=pod)
    if pod is None or pod.gone or (pod.deleting and pod.finished):
        return _end(life, DONE)
    if end is None and may_stay(pod):
        return _end(life, "the reconciler knows whether the pod stays")
    kept = end is not None and pod.keep_failed_s > 0 and stays(pod, end.reason.outcome)
    return replace(life, todo=KeepPod(pod) if kept else DeletePod(pod))
