"""A worker's life when it is cancelled: in every stage it ends, once, and a success still wins."""

from __future__ import annotations

from dataclasses import replace as with_settings

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import (
    AwaitPod,
    ClearTermination,
    DeletePod,
    DeletePodIfUnchanged,
    Effect,
    EndLifecycle,
    GetPod,
    PauseUntil,
    RecordResult,
)
from ottoscaler.core.lifecycle import begin_lifecycle, without_pause
from ottoscaler.core.observations import (
    AttemptStored,
    Cancelled,
    CreateRefused,
    CreateUnclear,
    EffectDone,
    NoResultYet,
    Observation,
    PodAlreadyExists,
    PodChanged,
    PodNotFound,
    PodNotListed,
    PodSeen,
    TerminationStored,
    TimedOut,
)
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import MAX_BACKOFF_S, EndReason, Verdict
from tests.core.builders import NOW, deleting, evicted, failed, pod, running, succeeded
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

CREATED = (AttemptStored(), PodSeen(pod()), NoResultYet(None))
KILL = Termination(EndReason.SCALED_DOWN, "by e-2", by="e-2")
DRAIN = replace(KILL, drain=True)
GONE = deleting(running()).as_gone()


@contract("5.ScaledDown")
@contract("5.Superseded")
@pytest.mark.parametrize("reason", [EndReason.SCALED_DOWN, EndReason.SUPERSEDED])
def test_a_worker_that_never_had_an_attempt_is_cancelled_at_once(reason: EndReason) -> None:
    """Attempt 0: there was none, and there is no pod to look for."""
    drive = Drive()
    assert drive.feed(Cancelled(Termination(reason), 0)) == RecordResult(0, Verdict(reason), None)
    assert drive.feed(EffectDone()) == EndLifecycle("done")


@contract("5.ScaledDown")
def test_a_worker_with_an_attempt_is_looked_for_before_it_is_cancelled() -> None:
    """Its pod may be there, created by a process that died: it is seen to its end."""
    drive = Drive(begin_lifecycle(1, attempt=2, infra_used=1))
    assert drive.feed(Cancelled(KILL, 2)) == GetPod(2, live=False)
    assert drive.feed(PodSeen(running()), NoResultYet(KILL)) == DeletePodIfUnchanged(running())
    assert drive.feed(EffectDone()) == AwaitPod(NOW + 60)
    assert drive.feed(PodSeen(GONE)) == RecordResult(2, KILL.verdict, GONE)


@contract("5.ScaledDown")
def test_a_cancelled_attempt_without_a_pod_is_recorded() -> None:
    """There is nothing to wait for."""
    assert Drive().feed(Cancelled(KILL, 1), PodNotFound()) == RecordResult(1, KILL.verdict, None)


@contract("5.ScaledDown")
@pytest.mark.parametrize("termination", [KILL, DRAIN])
def test_a_cancel_between_two_attempts_is_recorded_at_once(termination: Termination) -> None:
    """The stored attempt is over, and how it ended is not how the worker does; its pod goes after the record."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(evicted()))
    drive.life = without_pause(drive.life)
    assert drive.feed(Cancelled(termination, 1)) == RecordResult(1, termination.verdict, None)
    assert drive.feed(EffectDone()) == DeletePod(evicted())


@contract("5.ScaledDown")
def test_a_cancel_during_the_pause_for_quota_ends_the_waiting() -> None:
    """The next intend is refused; the refused pod is not there."""
    drive = Drive()
    drive.feed(AttemptStored(), CreateRefused("quota"), EffectDone())
    drive.wait(1)
    assert drive.feed(Cancelled(KILL, 1), PodNotFound()) == RecordResult(1, KILL.verdict, None)


BEFORE: dict[str, tuple[Observation, ...]] = {
    "created": (AttemptStored(), PodSeen(running())),
    "adopted": (AttemptStored(), PodAlreadyExists(), PodSeen(running())),
    "unclear": (AttemptStored(), CreateUnclear(), PodSeen(running())),
    "looked at": (*CREATED, PodNotListed(), PodSeen(running())),
}


@contract("5.ScaledDown")
@pytest.mark.parametrize("way", BEFORE)
def test_a_cancel_that_crossed_the_create_is_found_by_the_check(way: str) -> None:
    """However the pod came to be known, it is ended."""
    drive = Drive()
    drive.feed(*BEFORE[way])
    assert drive.feed(NoResultYet(KILL)) == DeletePodIfUnchanged(running())


@contract("5.ScaledDown")
@pytest.mark.parametrize("snap", [pod(), running()])
def test_a_cancel_of_a_waiting_or_running_worker_kills_it(snap: PodSnapshot) -> None:
    """TerminationStored, killed, seen gone, recorded; nothing more to delete."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(snap), TerminationStored(KILL), EffectDone())
    assert drive.feed(PodSeen(GONE), EffectDone()) == EndLifecycle("done")
    assert drive.asked[-4:] == ["AwaitPod", "DeletePodIfUnchanged", "AwaitPod", "RecordResult"]


@contract("5.ScaledDown")
def test_a_killed_worker_that_ends_with_an_error_is_cancelled() -> None:
    """We ended it: that it did not like it is not its fault."""
    drive = Drive(limits=with_settings(LIMITS, worker_retries=9, infra_retries=9))
    last = deleting(failed(143))
    assert drive.feed(
        *CREATED, PodSeen(running()), TerminationStored(KILL), EffectDone(), PodSeen(last)
    ) == RecordResult(1, KILL.verdict, last)


@contract("5.Completed")
def test_a_worker_that_succeeds_before_it_is_killed_has_succeeded() -> None:
    """The kill's precondition fails, and the look shows why."""
    drive = Drive()
    end = drive.feed(
        *CREATED, PodSeen(running()), TerminationStored(KILL), PodChanged(), PodSeen(succeeded()), NoResultYet(KILL)
    )
    assert isinstance(end, RecordResult)
    assert end.verdict.reason is EndReason.COMPLETED


@contract("5.Completed")
def test_a_worker_that_succeeds_in_its_grace_has_succeeded() -> None:
    """It finished what it was doing; the pod goes by itself."""
    drive = Drive()
    end = drive.feed(
        *CREATED, PodSeen(running()), TerminationStored(KILL), EffectDone(), PodSeen(deleting(succeeded()))
    )
    assert isinstance(end, RecordResult)
    assert end.verdict.reason is EndReason.COMPLETED
    assert drive.feed(EffectDone()) == EndLifecycle("done")


@contract("5.ScaledDown")
def test_a_worker_that_is_both_deleted_and_cancelled_is_cancelled() -> None:
    """Our reason wins over a deletion from outside; there is nothing to kill any more."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(deleting(running())))
    assert drive.feed(TerminationStored(KILL)) == AwaitPod(NOW + 60)
    assert drive.feed(PodSeen(GONE)) == RecordResult(1, KILL.verdict, GONE)


@contract("5.ScaledDown")
def test_a_killed_worker_on_a_dead_node_is_cancelled_all_the_same() -> None:
    """The look after a minute finds it stuck; it is given up and its pod deleted."""
    stuck = deleting(running(disruption=EndReason.NODE_LOST))
    drive = Drive()
    drive.feed(*CREATED, PodSeen(running()), TerminationStored(KILL), EffectDone(), PodSeen(stuck), TimedOut())
    drive.wait(63)
    assert drive.feed(PodSeen(stuck), NoResultYet(KILL)) == RecordResult(1, KILL.verdict, stuck)
    assert drive.feed(EffectDone()) == DeletePod(stuck)


@contract("5.ScaledDown")
def test_a_deleted_pod_without_any_change_is_looked_up() -> None:
    """It may be gone already, and a pod that is not there can be killed without end."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(running()), TerminationStored(KILL), EffectDone())
    drive.wait(60)
    assert drive.feed(TimedOut()) == GetPod(1)
    assert drive.feed(PodNotFound()) == RecordResult(1, KILL.verdict, running().as_gone())


@contract("5.ScaledDown")
def test_a_cancel_wins_over_a_termination_of_the_attempt() -> None:
    """Or a retry would start what was cancelled."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(900)
    drive.feed(TimedOut())
    assert drive.feed(TerminationStored(KILL)) == DeletePodIfUnchanged(pod())
    assert drive.feed(EffectDone(), PodSeen(GONE)) == RecordResult(1, KILL.verdict, GONE)


@contract("3.mode")
def test_a_drain_ends_a_worker_that_has_not_started() -> None:
    """Like a kill."""
    drive = Drive()
    drive.feed(*CREATED)
    assert drive.feed(TerminationStored(DRAIN)) == DeletePodIfUnchanged(pod())


@contract("3.mode")
def test_a_drain_spares_a_worker_that_has_started() -> None:
    """It is taken back, and the worker runs to its end."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(running()))
    assert drive.feed(TerminationStored(DRAIN)) == ClearTermination(DRAIN)
    assert drive.feed(NoResultYet(None)) == AwaitPod(NOW + 3600 + 30)
    end = drive.feed(PodSeen(failed()))
    assert isinstance(end, RecordResult)
    assert end.verdict.reason is EndReason.ERROR


@contract("3.mode")
def test_a_drain_spares_a_worker_that_started_before_the_kill() -> None:
    """The kill's precondition fails, and the look shows the start."""
    drive = Drive()
    drive.feed(*CREATED, TerminationStored(DRAIN), PodChanged(), PodSeen(running()))
    assert drive.feed(NoResultYet(DRAIN)) == ClearTermination(DRAIN)


@contract("3.mode")
def test_a_kill_after_a_drain_ends_the_worker() -> None:
    """The later, harder word holds."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(running()), TerminationStored(DRAIN))
    assert drive.feed(NoResultYet(KILL)) == DeletePodIfUnchanged(running())


BY_ITSELF: dict[str, tuple[PodSnapshot, EndReason]] = {
    "failed": (failed(), EndReason.ERROR),
    "evicted": (evicted(started_at=NOW), EndReason.EVICTED),
}


@contract("3.mode")
@pytest.mark.parametrize("termination", [DRAIN, replace(DRAIN, reason=EndReason.SUPERSEDED)])
@pytest.mark.parametrize(("last", "reason"), BY_ITSELF.values(), ids=BY_ITSELF)
def test_a_drained_worker_that_had_started_all_the_same_ends_as_it_does(
    termination: Termination, last: PodSnapshot, reason: EndReason
) -> None:
    """The mark and the start have crossed: the mark is withdrawn, and the end is the worker's own."""
    drive = Drive(limits=with_settings(LIMITS, infra_retries=0))
    drive.feed(*CREATED, TerminationStored(termination), PodChanged())
    assert drive.feed(PodSeen(last), NoResultYet(termination)) == ClearTermination(termination)
    assert recorded(drive.feed(NoResultYet(None))) is reason


@contract("3.mode")
def test_a_drained_worker_that_is_to_be_tried_again_is() -> None:
    """Its own end decides, with its retries."""
    drive = Drive()
    drive.feed(*CREATED, TerminationStored(DRAIN), PodChanged(), PodSeen(evicted(started_at=NOW)), NoResultYet(DRAIN))
    assert drive.feed(NoResultYet(None)) == PauseUntil(NOW + 1.0)


@contract("3.mode")
def test_a_drained_worker_that_ends_in_our_deletion_is_cancelled() -> None:
    """It was deleted before its start was seen: that it started all the same, and was ended, is our doing."""
    drive = Drive()
    drive.feed(*CREATED, TerminationStored(DRAIN), EffectDone())
    assert recorded(drive.feed(PodSeen(deleting(failed(143))))) is EndReason.SCALED_DOWN


@contract("3.mode")
def test_a_kill_that_comes_while_a_drain_is_withdrawn_holds() -> None:
    """What is stored decides."""
    drive = Drive()
    drive.feed(*CREATED, TerminationStored(DRAIN), PodChanged(), PodSeen(failed()), NoResultYet(DRAIN))
    assert recorded(drive.feed(NoResultYet(KILL))) is EndReason.SCALED_DOWN


NOT_STARTED = Termination(EndReason.NOT_AFTER, "too late", drain=True)


@contract("3.not_after")
@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (evicted(started_at=NOW), EndReason.EVICTED),
        (evicted(started_at=None, exit_code=None, finished_at=None), EndReason.NOT_AFTER),
    ],
    ids=["started", "never started"],
)
def test_a_further_attempt_that_comes_too_late_leaves_the_end_of_the_one_before(
    last: PodSnapshot, reason: EndReason
) -> None:
    """Where that had started in time: how it ended says more."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(last))
    drive.wait(MAX_BACKOFF_S)
    asked = drive.feed(Cancelled(NOT_STARTED, 1))
    assert recorded(asked) is reason
    assert isinstance(asked, RecordResult)
    assert (asked.attempt, asked.pod) == (1, last if reason is EndReason.EVICTED else None)
    assert drive.feed(EffectDone()) == DeletePod(last)


@contract("3.not_after")
def test_a_pod_that_has_not_started_in_time_is_ended_and_one_that_has_runs_on() -> None:
    """As in a drain."""
    drive = Drive()
    assert drive.feed(*CREATED, TerminationStored(NOT_STARTED)) == DeletePodIfUnchanged(pod())
    drive = Drive()
    drive.feed(*CREATED, PodSeen(running()))
    assert drive.feed(TerminationStored(NOT_STARTED)) == ClearTermination(NOT_STARTED)


def recorded(asked: Effect) -> EndReason:
    """The reason of a Record."""
    assert isinstance(asked, RecordResult), asked
    return asked.verdict.reason
