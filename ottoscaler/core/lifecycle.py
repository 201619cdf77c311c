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

import msgspec
from msgspec.structs import replace

from ottoscaler.core.effects import (
    Await,
    Check,
    ClearTermination,
    Create,
    Delete,
    DeleteIfUnchanged,
    DeleteOld,
    Effect,
    End,
    Intend,
    Later,
    Look,
    NoteRefused,
    Record,
    StoreTermination,
)
from ottoscaler.core.observations import (
    Absent,
    AlreadyThere,
    Cancelled,
    Changed,
    Checked,
    Done,
    Foreign,
    HasResult,
    Intended,
    Missing,
    NotOurs,
    Observation,
    OldAttempt,
    Refused,
    RejectedPod,
    Seen,
    TerminationStored,
    TimedOut,
    Unclear,
)
from ottoscaler.core.pods import Phase, Snapshot
from ottoscaler.core.sight import UNSEEN, Limits, Sight, end_of, observe, overdue, relook_s, verdict
from ottoscaler.core.termination import Retried, Termination, decided, refused
from ottoscaler.core.verdicts import Reason, Retry, Verdict

#: Pause before the n-th new attempt or the n-th try after back-pressure: 1, 2, 4 … seconds, at most this.
MAX_BACKOFF_S: Final = 30.0
#: While the API server refuses (quota), it is asked again at least this often, so that freed quota is used at once,
#: seconds.
MAX_REFUSED_S: Final = 4.0

#: Reasons of an `End`.
NOT_OURS: Final = "another process owns the task"
DONE: Final = "done"

_BEFORE_CREATE: Final = (Intend, Later, DeleteOld, Create)
_WITHOUT_POD: Final = (Intend, Later, NoteRefused)
_AFTER_END: Final = (Record, Delete, End)
#: What only the owner of the task may do.
_OF_OWNERS: Final = (Intend, NoteRefused, Check, Await, StoreTermination, ClearTermination, Record)
_NAME_TAKEN: Final = Verdict(Reason.NAME_CONFLICT, "a pod of that name exists and is not ours")


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one worker.

    `todo` is what its thread does next. `attempt` is the current one (from 1), `infra_used` how many of the earlier
    ones the platform failed, `pod` the last that was seen of the attempt's pod, `old` an earlier attempt's pod that is
    still to be deleted, `termination` why its pod is to be ended. `end` is how the attempt ended, while a termination
    that had no part in it is cleared. `not_before` is the end of the last pause, `sight` since when the pod has been
    seen in which state, `seen` that an earlier process has stored that it saw the attempt's pod, `backoff` the number
    of pauses for back-pressure in a row, `retried` why the attempt before was followed by this one.
    """

    index: int
    todo: Effect
    attempt: int = 1
    infra_used: int = 0
    pod: Snapshot | None = None
    old: Snapshot | None = None
    termination: Termination | None = None
    end: Verdict | None = None
    not_before: float = 0.0
    sight: Sight = UNSEEN
    seen: bool = False
    backoff: int = 0
    retried: Retried | None = None

    @property
    def needs_room(self) -> bool:
        """Its next steps create a pod, so it has to wait for capacity."""
        return isinstance(self.todo, _BEFORE_CREATE)

    @property
    def has_no_pod(self) -> bool:
        """No pod of its attempt is there, and none is being created."""
        return isinstance(self.todo, _WITHOUT_POD)

    @property
    def may_have_unseen_pod(self) -> bool:
        """A pod of this worker may exist that was never seen: it uses room all the same."""
        match self.todo:
            case Create() | DeleteOld():
                return True
            case Look(after=answer) if answer is not None:
                return True
            case Look() | Intend():
                return self.pod is None and self.not_before == 0.0
        return False

    @property
    def state(self) -> str:
        """The word that the task hash shows for it."""
        if isinstance(self.todo, _WITHOUT_POD):
            return "waiting"
        if self.termination is not None or isinstance(self.todo, _AFTER_END):
            return "ending"
        if self.pod is None:
            return "creating"
        if self.pod.ended:
            return "ending"
        return "running" if self.pod.started_at is not None else "pending"

    @property
    def waits_for(self) -> str:
        """Why its pod does not start, in the cluster's words; empty where nothing is wrong or its turn is over."""
        pod = self.pod
        if pod is None or pod.started_at is not None or not isinstance(self.todo, Await):
            return ""
        return pod.trouble_text


class IllegalStep(Exception):
    """An observation came that the state cannot have: a defect of this program."""


def begin(index: int, attempt: int = 1, infra_used: int = 0) -> Life:
    """The life of a worker of which no pod is there: its attempt is stored first."""
    return Life(index=index, todo=Intend(attempt, infra_used), attempt=attempt, infra_used=infra_used)


def resume(
    index: int, attempt: int, infra_used: int, termination: Termination | None = None, *, seen: bool = False
) -> Life:
    """The life of a worker with an attempt that an earlier process stored: a live look comes first. `seen`: that
    process, or one before it, has seen the attempt's pod.
    """
    # what another process left behind, the watch may show already: then the look costs no request
    look = Look(attempt, live=False)
    return Life(index=index, todo=look, attempt=attempt, infra_used=infra_used, termination=termination, seen=seen)


def hurried(life: Life) -> Life:
    """The same without its pause: a cancelled worker waits for nothing but the end of its pod."""
    if life.needs_room:
        return replace(life, todo=Intend(life.attempt, life.infra_used), not_before=0.0)
    return _look(life) if isinstance(life.todo, Await) else life


def step(life: Life, observation: Observation, now: float, limits: Limits) -> Life:
    """The life after the answer to its effect.

    Arguments: the life, what came of `life.todo`, the time now in seconds, and the limits. Raises IllegalStep if that
    effect has no such answer: a defect of this program.
    """
    match life.todo, observation:
        case Await(), Seen(pod):
            return _followed(life, pod, now, limits)
        case Intend(), Intended():
            return replace(life, todo=Create(life.attempt) if life.old is None else DeleteOld(life.old))
        case Create() | Look(), Seen(pod):
            return _found(life, pod, now, limits)
        case Check() | ClearTermination(), Checked(termination):
            return _checked(life, termination, now, limits)
        case Record(), Done():
            return _after_result(life)
        case Delete(), Done():
            return _end(life, DONE)
        case Await(), TerminationStored(termination) if termination == life.termination:  # its pod is being ended
            return life
        case Await() | StoreTermination(), TerminationStored(termination):
            return _checked(life, termination, now, limits)
        case Await(), TimedOut():
            return _timed_out(life, now, limits)
        case (Later(), TimedOut()) | (NoteRefused(), Done()):
            return _pause(life, now)
        case DeleteOld(), Done():
            return replace(life, todo=Create(life.attempt), old=None)
        case Create(), AlreadyThere() as answer:
            return replace(life, todo=Look(life.attempt, after=answer))
        case Create(), Unclear(after_s) as answer:
            return replace(life, todo=Look(life.attempt, after=answer), not_before=now + (after_s or 0.0))
        case Create(), Refused(_, after_s):
            return _refused(life, now, min(backoff_s(life.backoff), MAX_REFUSED_S) if after_s is None else after_s)
        case Create(), RejectedPod(message):
            return _record(life, Verdict(Reason.REJECTED, message))
        case Look(), Absent():
            return _absent(life, now, limits)
        case Look(), Foreign():
            return _record(replace(life, pod=None), _NAME_TAKEN)
        case DeleteIfUnchanged(pod), Done():
            return replace(life, todo=Await(now + relook_s(pod)))
        case (Await(), Missing()) | (DeleteIfUnchanged(), Changed()):
            return _look(life)
        case Intend(), Cancelled(termination, attempt):
            return _cancelled(life, termination, attempt)
        case Intend() | Check() | StoreTermination() | ClearTermination(), HasResult():
            return _after_result(life)
        case Intend() | StoreTermination() | Record(), OldAttempt():
            return _end(life, "a higher attempt is stored")
        case todo, NotOurs() if isinstance(todo, _OF_OWNERS):
            return _end(life, NOT_OURS)
    raise IllegalStep(f"{life.todo} has no answer {observation}")


def backoff_s(tries: int) -> float:
    """Seconds to pause after the given number of tries: 1, 2, 4 … at most MAX_BACKOFF_S."""
    return float(min(2.0 ** min(tries, 10), MAX_BACKOFF_S))


def _end(life: Life, reason: str) -> Life:
    return replace(life, todo=End(reason))


def _record(life: Life, end: Verdict) -> Life:
    return replace(life, todo=Record(life.attempt, end, life.pod))


def _look(life: Life) -> Life:
    """Look for the pod. If it was never seen here, the registry may show it already, which spares a GET."""
    return replace(life, todo=Look(life.attempt, live=life.pod is not None))


def _pause(life: Life, now: float) -> Life:
    """The attempt is stored (again) when its pause is over."""
    pause = life.not_before > now
    return replace(life, todo=Later(life.not_before) if pause else Intend(life.attempt, life.infra_used))


def _refused(life: Life, now: float, pause_s: float) -> Life:
    """No pod was made. That is stored, so that the next owner, too, creates it under the same attempt."""
    return replace(life, todo=NoteRefused(life.attempt), not_before=now + pause_s, backoff=life.backoff + 1)


def _again(life: Life, retried: Retried, now: float, *, infra: int) -> Life:
    old = life.pod if life.pod is not None and not life.pod.gone else life.old
    following = begin(life.index, life.attempt + 1, life.infra_used + infra)
    pause_until = now + backoff_s(life.infra_used) if infra else 0.0
    return _pause(replace(following, old=old, retried=retried, not_before=pause_until), now)


def _cancelled(life: Life, termination: Termination, attempt: int) -> Life:
    """Intend was refused: a pod of the stored attempt, if there is one, is seen to its end before anything is recorded.
    Of an earlier attempt this life has seen the end already.
    """
    cancelled = replace(life, termination=termination, attempt=attempt)
    end, last = refused(termination, life.retried)
    return _look(cancelled) if attempt >= life.attempt else _record(replace(cancelled, pod=last or life.pod), end)


def _found(life: Life, pod: Snapshot, now: float, limits: Limits) -> Life:
    """The answer to a create or a live look names the attempt's pod."""
    if _is_stranger(life, pod):
        return _absent(life, now, limits)
    sight = replace(life.sight, created=now) if isinstance(life.todo, Create) else life.sight
    return replace(life, todo=Check(life.attempt), pod=pod, backoff=0, sight=observe(sight, pod, now))


def _followed(life: Life, pod: Snapshot, now: float, limits: Limits) -> Life:
    """The watch shows a new stage of the pod."""
    if _is_stranger(life, pod):
        return _look(life)
    life = replace(life, pod=pod, backoff=0, sight=observe(life.sight, pod, now))
    if pod.gone and not (pod.deleting or pod.ended or pod.disruption or life.termination):
        # a watch also says DELETED of a pod that has lost the labels by which it is selected, and that may run on
        return _look(life)
    return _evaluate(life, pod, now, limits)


def _is_stranger(life: Life, pod: Snapshot) -> bool:
    """An attempt's name is used once: another UID under it is a foreign pod, and the attempt's own pod is gone."""
    return life.pod is not None and pod.uid != life.pod.uid


def _timed_out(life: Life, now: float, limits: Limits) -> Life:
    pod = _pod(life)
    unsure = life.termination is not None or pod.deleting or pod.phase is Phase.UNKNOWN or pod.altered
    return _look(life) if unsure else _evaluate(life, pod, now, limits)


def _absent(life: Life, now: float, limits: Limits) -> Life:
    """A live GET found nothing: what was last seen of the pod decides.

    If no process ever saw the pod, the one that stored the attempt ended before or during its create. The
    create is made again under the same name, and costs no retry: a request that is still on its way then meets the pod
    that is there, and makes no second one.
    """
    match life.todo:
        case Look(after=Unclear()):
            # one lost answer costs no time; a server that answers nothing but 500 is not to be asked without a break
            pause_s = backoff_s(life.backoff - 1) if life.backoff else 0.0
            return _refused(life, now, max(min(pause_s, MAX_REFUSED_S), life.not_before - now))
        case Look(after=None) if life.pod is None and not life.seen and life.termination is None:
            return _pause(replace(life, not_before=now), now)
    if life.pod is None:
        return _ended(life, Verdict(Reason.POD_LOST, "the pod is gone, and the API server gave no reason"), now, limits)
    seen, gone = life.pod.gone, life.pod.as_gone()
    end = verdict(gone) if seen or gone.deleting or gone.ended or gone.disruption else None
    return _ended(replace(life, pod=gone), end or Verdict(Reason.POD_LOST, "the pod vanished unseen"), now, limits)


def _checked(life: Life, termination: Termination | None, now: float, limits: Limits) -> Life:
    """This termination is stored, or none is. One of another attempt does not replace the one that holds."""
    keeps = life.termination is not None and termination is not None and not termination.is_cancel
    if not keeps or isinstance(life.todo, StoreTermination):
        life = replace(life, termination=termination)
    if life.end is not None:
        return _ended(replace(life, end=None), life.end, now, limits)
    return _evaluate(life, _pod(life), now, limits)


def _pod(life: Life) -> Snapshot:
    if life.pod is None:
        raise IllegalStep(f"{life.todo} was carried out without a pod")
    return life.pod


def _evaluate(life: Life, pod: Snapshot, now: float, limits: Limits) -> Life:
    """What follows from a pod that is as it is now."""
    if (end := end_of(life.sight, pod, now)) is not None:
        return _ended(life, end, now, limits)
    if life.termination is not None:
        return replace(life, todo=_end_by(life.termination, pod, now))
    termination, until = overdue(life.sight, pod, now, limits, life.attempt)
    if termination is not None:
        return replace(life, termination=termination, todo=StoreTermination(termination))
    return replace(life, todo=Await(until))


def _end_by(termination: Termination, pod: Snapshot, now: float) -> Effect:
    if pod.deleting:
        return Await(now + relook_s(pod))
    if termination.only_before_start and pod.started_at is not None:
        return ClearTermination(termination)
    return DeleteIfUnchanged(pod, termination.grace_s(pod))


def _ended(life: Life, end: Verdict, now: float, limits: Limits) -> Life:
    """The attempt is over: the next one follows, or the result. How `agent` was seen to end wins over what became of
    its pod later. A termination that spares what has started is cleared first: it had no part in this end.
    """
    end, termination = life.sight.own or end, life.termination
    if termination is not None:
        final = decided(end, termination)
        if final is not end and termination.only_before_start and life.sight.started_unasked:
            return replace(life, todo=ClearTermination(termination), end=end)
        end = final
    retry = end.reason.retry
    if retry is Retry.INFRA and life.infra_used < limits.infra_retries:
        return _again(life, Retried(end, life.infra_used + 1, limits.infra_retries, life.pod), now, infra=1)
    if retry is Retry.WORKER and life.attempt - 1 - life.infra_used < limits.worker_retries:
        return _again(life, Retried(end, life.attempt - life.infra_used, limits.worker_retries, life.pod), now, infra=0)
    return _record(life, end)


def _after_result(life: Life) -> Life:
    """The result is stored: the pod may go, or an earlier attempt's. One that is being deleted needs no request."""
    pod = life.pod if life.pod is not None else life.old
    kept = pod is not None and not pod.gone and not (pod.deleting and pod.finished)
    return replace(life, pod=pod, todo=Delete(pod) if kept and pod is not None else End(DONE))
