"""One worker's life as a pure state machine: `effect(life)` says what to do next, `step(life, observation)` what
follows from its answer.

The thread that runs a worker only carries out effects and feeds back what it saw; every rule by which nothing is lost
or done twice is here:

- an attempt is stored before its pod is created, and the name of an attempt is created once;
- an unclear answer is followed by a live look, never by a blind repetition;
- absence in a list counts only after a live look;
- a result is recorded before its finished pod is deleted; a pod that we end is terminated (stored), killed by UID and
  resourceVersion, and recorded when it is seen finished or gone; `Succeeded` wins over any termination;
- a pod that other containers keep alive when `agent` has ended is ended in the same way: the stored termination is the
  verdict on `agent`.

Times are seconds of our own monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from ottoscaler.core import effects
from ottoscaler.core.effects import Effect
from ottoscaler.core.endings import verdict
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
from ottoscaler.core.sight import UNSEEN, Limits, Sight, end_before_deadline, lost_with_node, observe, overdue, relook_s
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Outcome, Reason, Retry, Verdict

#: Pause before the n-th new attempt or the n-th try after back-pressure: 1, 2, 4 … seconds, at most this.
MAX_BACKOFF_S: Final = 30.0
#: While the API server refuses (quota), it is asked again at least this often, so that freed quota is used at once,
#: seconds.
MAX_REFUSED_S: Final = 4.0

#: Why a life ended, where somebody has to know it.
NOT_OURS: Final = "another process owns the task"


class Stage(Enum):
    """Where a life stands: the stage decides the next effect."""

    INTEND = auto()
    CLEAN = auto()
    CREATE = auto()
    REFUSED = auto()
    LOOK_AFTER_CONFLICT = auto()
    LOOK_AFTER_UNCLEAR = auto()
    LOOK = auto()
    CHECK = auto()
    AWAIT = auto()
    STORE_TERMINATION = auto()
    CLEAR_TERMINATION = auto()
    DELETE_IF_UNCHANGED = auto()
    RECORD = auto()
    DELETE = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Life:
    """The state of one worker.

    `attempt` is the current one (from 1), `infra_used` how many of the earlier ones the platform failed, `pod` the last
    that was seen of the attempt's pod, `old` an earlier attempt's pod that is still to be deleted, `not_before` the end
    of a pause, `until` the next deadline, `sight` since when the pod has been seen in which state, `seen` that an
    earlier process has stored that it saw the attempt's pod, `backoff` the number of pauses for back-pressure in a row.
    """

    index: int
    attempt: int = 1
    infra_used: int = 0
    stage: Stage = Stage.INTEND
    pod: Snapshot | None = None
    old: Snapshot | None = None
    termination: Termination | None = None
    verdict: Verdict | None = None
    not_before: float = 0.0
    until: float | None = None
    sight: Sight = UNSEEN
    seen: bool = False
    backoff: int = 0
    why: str = ""

    @property
    def needs_room(self) -> bool:
        """Its next steps create a pod, so it has to wait for capacity."""
        return self.stage in (Stage.INTEND, Stage.CLEAN, Stage.CREATE)

    @property
    def state(self) -> str:
        """The word that the task hash shows for it."""
        if self.stage in (Stage.INTEND, Stage.REFUSED):
            return "waiting"
        if self.termination is not None or self.stage in (
            Stage.STORE_TERMINATION,
            Stage.DELETE_IF_UNCHANGED,
            Stage.RECORD,
            Stage.DELETE,
            Stage.END,
        ):
            return "ending"
        if self.pod is None:
            return "creating"
        if self.pod.ended:
            return "ending"
        return "running" if self.pod.started_at is not None else "pending"

    @property
    def waits_for(self) -> str:
        """Why its pod does not start, in the cluster's words; empty where nothing is wrong or its turn is over."""
        if self.stage is not Stage.AWAIT or self.pod is None or self.pod.started_at is not None:
            return ""
        return self.pod.trouble_text


class IllegalStep(Exception):
    """An observation came that the stage has no rule for: a defect of ours."""


def resume(index: int, attempt: int, infra_used: int, termination: Termination | None, *, seen: bool = False) -> Life:
    """The life of a worker whose attempt was stored by a process that is gone: a live look comes first. `seen`: that
    process, or one before it, has seen the attempt's pod.
    """
    return Life(index, attempt, infra_used, Stage.LOOK, termination=termination, seen=seen)


def hurried(life: Life) -> Life:
    """The same without its pause: it was cancelled, so nothing is left to wait for but the end of its pod."""
    if life.needs_room:
        return replace(life, stage=Stage.INTEND, not_before=0.0)
    return replace(life, stage=Stage.LOOK) if life.stage is Stage.AWAIT else life


def effect(life: Life, now: float) -> Effect:
    """What is to be done next. A pure function of the state,
    so that an effect that failed halfway is simply asked for again.
    """
    match life.stage:
        case Stage.INTEND:
            wait_s = life.not_before - now
            return effects.Later(wait_s) if wait_s > 0 else effects.Intend(life.attempt, life.infra_used)
        case Stage.CREATE:
            return effects.Create(life.attempt)
        case Stage.REFUSED:
            return effects.NoteRefused(life.attempt)
        case Stage.LOOK | Stage.LOOK_AFTER_CONFLICT | Stage.LOOK_AFTER_UNCLEAR:
            # what another process left behind, the watch may show already
            return effects.Look(life.attempt, live=life.stage is not Stage.LOOK or life.pod is not None)
        case Stage.CHECK:
            return effects.Check(life.attempt)
        case Stage.AWAIT:
            return effects.Await(life.until)
        case Stage.END:
            return effects.End(life.why)
    return _effect_on_pod(life)


def _effect_on_pod(life: Life) -> Effect:
    if life.stage is Stage.RECORD and life.verdict is not None:
        return effects.Record(life.attempt, life.verdict, life.pod)
    if life.stage is Stage.STORE_TERMINATION and life.termination is not None:
        return effects.StoreTermination(life.termination)
    if life.stage is Stage.CLEAR_TERMINATION and life.termination is not None:
        return effects.ClearTermination(life.termination)
    if life.stage is Stage.CLEAN and life.old is not None:
        return effects.Delete(life.old)
    if life.stage is Stage.DELETE_IF_UNCHANGED and life.pod is not None:
        grace_s = life.termination.grace_s(life.pod) if life.termination is not None else None
        return effects.DeleteIfUnchanged(life.pod, grace_s)
    if life.stage is Stage.DELETE and life.pod is not None:
        return effects.Delete(life.pod)
    raise IllegalStep(f"{life.stage.name} lacks what it needs: {life}")


def step(life: Life, observation: Observation, now: float, limits: Limits) -> Life:
    """The state after an observation. Arguments: the time now, and the limits.
    Raises IllegalStep for a defect of ours.
    """
    match observation:
        case NotOurs():
            return _end(life, NOT_OURS)
        case OldAttempt():
            return _end(life, "a higher attempt is stored")
        case HasResult():
            return _after_result(life)
        case Cancelled(termination, attempt):
            return _cancelled(life, termination, attempt)
        case RejectedPod(message):
            return _record(life, Verdict(Reason.REJECTED, message))
        case Foreign():
            taken = Verdict(Reason.NAME_CONFLICT, "a pod of that name exists and is not ours")
            return _record(replace(life, pod=None), taken)
        case Refused(_, after_s):
            return _refused(life, now, min(backoff_s(life.backoff), MAX_REFUSED_S) if after_s is None else after_s)
        case Seen(pod):
            return _seen(life, pod, now, limits)
        case Absent():
            return _absent(life, now, limits)
        case TerminationStored(termination) if life.stage is Stage.AWAIT and termination == life.termination:
            return life  # told twice: its pod is being ended already
        case Checked(termination) | TerminationStored(termination):
            return _terminated(life, termination, now, limits)
        case _:
            return _moved(life, observation, now, limits)


def _moved(life: Life, observation: Observation, now: float, limits: Limits) -> Life:
    """The plain moves: one stage to the next."""
    match life.stage, observation:
        case Stage.INTEND, Intended():
            return replace(life, stage=Stage.CREATE if life.old is None else Stage.CLEAN)
        case Stage.CLEAN, Done():
            return replace(life, stage=Stage.CREATE, old=None)
        case Stage.CREATE, AlreadyThere():
            return replace(life, stage=Stage.LOOK_AFTER_CONFLICT)
        case Stage.CREATE, Unclear(after_s):
            return replace(life, stage=Stage.LOOK_AFTER_UNCLEAR, not_before=now + (after_s or 0.0))
        case Stage.REFUSED, Done():
            return replace(life, stage=Stage.INTEND)
        case Stage.AWAIT, Missing():
            return replace(life, stage=Stage.LOOK)
        case Stage.AWAIT, TimedOut() if life.pod is not None:
            pod, ends = life.pod, life.termination is not None
            relook = ends or pod.deleting or pod.phase is Phase.UNKNOWN or pod.altered
            return replace(life, stage=Stage.LOOK) if relook else _evaluate(life, pod, now, limits)
        case Stage.DELETE_IF_UNCHANGED, Done() if life.pod is not None:
            return replace(life, stage=Stage.AWAIT, until=now + relook_s(life.pod))
        case Stage.DELETE_IF_UNCHANGED, Changed():
            return replace(life, stage=Stage.LOOK)
        case Stage.RECORD, Done():
            return _after_result(life)
        case Stage.DELETE, Done():
            return _end(life, "done")
    raise IllegalStep(f"{life.stage.name} has no rule for {observation}")


def backoff_s(tries: int) -> float:
    """Seconds to pause after so many tries: 1, 2, 4 … up to MAX_BACKOFF_S."""
    return float(min(2.0 ** min(tries, 10), MAX_BACKOFF_S))


def _end(life: Life, why: str) -> Life:
    return replace(life, stage=Stage.END, why=why)


def _record(life: Life, verdict: Verdict) -> Life:
    return replace(life, stage=Stage.RECORD, verdict=verdict)


def _after_result(life: Life) -> Life:
    """The result is stored: the pod may go, or an earlier attempt's. One that is being deleted needs no request."""
    life = life if life.pod is not None else replace(life, pod=life.old)
    if life.pod is None or life.pod.gone or (life.pod.deleting and life.pod.finished):
        return _end(life, "done")
    return replace(life, stage=Stage.DELETE)


def _cancelled(life: Life, termination: Termination, attempt: int) -> Life:
    """intend was refused: a pod of the stored attempt, if there is one,
    is seen to its end before anything is recorded. Of an earlier attempt this life has seen the end already.
    """
    if 0 < attempt < life.attempt:
        return _record(replace(life, termination=termination, attempt=attempt), termination.verdict)
    if attempt:
        return replace(life, termination=termination, attempt=attempt, stage=Stage.LOOK)
    return _record(replace(life, termination=termination, attempt=0), termination.verdict)


def _seen(life: Life, pod: Snapshot, now: float, limits: Limits) -> Life:
    if life.pod is not None and pod.uid != life.pod.uid:
        # an attempt's name is used once: another UID under it is somebody else's doing, and ours is gone
        if life.stage is Stage.AWAIT:
            return replace(life, stage=Stage.LOOK)
        return _absent(life, now, limits)
    sight = replace(life.sight, created=now) if life.stage is Stage.CREATE else life.sight
    life = replace(life, pod=pod, backoff=0, sight=observe(sight, pod, now))
    if life.stage is not Stage.AWAIT:
        return replace(life, stage=Stage.CHECK)
    if pod.gone and not (pod.deleting or pod.ended or pod.disruption or life.termination):
        # a watch also says DELETED of a pod that has lost the labels by which it is selected, and that may run on
        return replace(life, stage=Stage.LOOK)
    return _evaluate(life, pod, now, limits)


def _refused(life: Life, now: float, pause_s: float) -> Life:
    """No pod was made, which is noted: whoever goes on from here makes it, under the same attempt."""
    return replace(life, stage=Stage.REFUSED, not_before=now + pause_s, backoff=life.backoff + 1)


def _absent(life: Life, now: float, limits: Limits) -> Life:
    """A live GET found nothing: what was last seen of the pod decides.

    Where nobody ever saw one, the process that stored the attempt ended before its create or in the middle of it. The
    create is made again under the same name, and costs no retry: a request that is still on its way then meets the pod
    that is there, and makes no second one.
    """
    if life.stage is Stage.LOOK_AFTER_UNCLEAR:
        # one lost answer costs no time; a server that answers nothing but 500 is not to be asked without a break
        pause_s = backoff_s(life.backoff - 1) if life.backoff else 0.0
        return _refused(life, now, max(min(pause_s, MAX_REFUSED_S), life.not_before - now))
    if life.pod is None and life.stage is Stage.LOOK and not life.seen and life.termination is None:
        return replace(life, stage=Stage.INTEND, not_before=now)
    if life.pod is None:
        return _ended(life, Verdict(Reason.POD_LOST, "the pod is gone, and nobody knows why"), now, limits)
    seen, gone = life.pod.gone, life.pod.as_gone()
    life = replace(life, pod=gone)
    end = verdict(gone) if seen or gone.deleting or gone.ended or gone.disruption else None
    return _ended(life, end or Verdict(Reason.POD_LOST, "the pod vanished unseen"), now, limits)


def _terminated(life: Life, termination: Termination | None, now: float, limits: Limits) -> Life:
    if (
        termination is None
        or life.termination is None
        or termination.attempt == 0
        or life.stage is Stage.STORE_TERMINATION
    ):
        life = replace(life, termination=termination)
    if life.pod is None:
        raise IllegalStep(f"{life.stage.name} was asked about a termination without a pod")
    if life.verdict is not None:
        return _ended(replace(life, verdict=None), life.verdict, now, limits)
    return _evaluate(life, life.pod, now, limits)


def _evaluate(life: Life, pod: Snapshot, now: float, limits: Limits) -> Life:
    """What follows from a pod that is as it is now."""
    sight = life.sight
    end = verdict(pod, deleted_first=sight.deleted_first)
    if end is None and lost_with_node(sight, pod, now):
        end = Verdict(Reason.NODE_LOST, f"node {pod.node} does not answer")
    if end is not None:
        return _ended(life, end_before_deadline(sight, pod, end, now), now, limits)
    if life.termination is not None:
        return _end_by_termination(life, life.termination, pod, now)
    termination, until = overdue(sight, pod, now, limits, life.attempt)
    if termination is not None:
        return replace(life, termination=termination, stage=Stage.STORE_TERMINATION)
    return replace(life, stage=Stage.AWAIT, until=until)


def _end_by_termination(life: Life, termination: Termination, pod: Snapshot, now: float) -> Life:
    if pod.deleting:
        return replace(life, stage=Stage.AWAIT, until=now + relook_s(pod))
    if termination.only_before_start and pod.started_at is not None:
        return replace(life, stage=Stage.CLEAR_TERMINATION)
    return replace(life, stage=Stage.DELETE_IF_UNCHANGED)


def _ended(life: Life, end: Verdict, now: float, limits: Limits) -> Life:
    """The attempt is over: a new one, or the result. How `agent` was seen to end wins over what became of its pod
    later; a termination wins over every end but success, as in the record script. One that spares what has started is
    withdrawn first: it had no part in this end.
    """
    end = life.sight.own or end
    if end.outcome is not Outcome.SUCCEEDED and life.termination is not None:
        if life.termination.only_before_start and life.sight.started_unasked:
            return replace(life, stage=Stage.CLEAR_TERMINATION, verdict=end)
        end = life.termination.verdict
    if end.retry is Retry.INFRA and life.infra_used < limits.infra_retries:
        return _again(life, now, infra=1)
    if end.retry is Retry.WORKER and life.attempt - 1 - life.infra_used < limits.worker_retries:
        return _again(life, now, infra=0)
    return _record(life, end)


def _again(life: Life, now: float, *, infra: int) -> Life:
    old = life.pod if life.pod is not None and not life.pod.gone else life.old
    return Life(
        index=life.index,
        attempt=life.attempt + 1,
        infra_used=life.infra_used + infra,
        old=old,
        not_before=now + (backoff_s(life.infra_used) if infra else 0.0),
    )
