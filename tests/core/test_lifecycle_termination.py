"""A worker's life when its pod does not start, or runs too long: when it is terminated, how it ends, when it is
spared.
"""

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
    RecordResult,
    StoreAttempt,
    StoreTermination,
)
from ottoscaler.core.observations import (
    AttemptStored,
    CreateUnclear,
    EffectDone,
    HasResult,
    NewerAttemptStored,
    NoResultYet,
    PodAlreadyExists,
    PodChanged,
    PodNotFound,
    PodSeen,
    TerminationStored,
    TimedOut,
)
from ottoscaler.core.pod_timeline import RELOOK_UNWATCHED_S
from ottoscaler.core.pods import Phase, PodSnapshot, StartTrouble
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason, Verdict
from tests.core.builders import NOW, deleting, evicted, failed, pod, running, succeeded
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

CREATED = (AttemptStored(), PodSeen(pod()), NoResultYet(None))
TIMEOUT = Termination(EndReason.PENDING_TIMEOUT, "the pod did not start within 900 s", 1)
BACK_OFF = 'ImagePullBackOff: Back-off pulling image "img:1"'


def troubled(trouble: StartTrouble, text: str = "the cluster's words") -> PodSnapshot:
    """A pod that has not started."""
    return pod(trouble=trouble, trouble_text=text)


def stored_termination(effect: Effect) -> Termination:
    """The termination of a StoreTermination."""
    assert isinstance(effect, StoreTermination), effect
    return effect.termination


def overdue() -> Drive:
    """A life with a pod that did not start in time: the termination is due to be stored."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(900)
    drive.feed(TimedOut())
    return drive


@contract("5.PendingTimeout")
@contract("2.PENDING_TIMEOUT_S")
def test_a_pod_that_does_not_start_is_terminated_in_time() -> None:
    """Not a second before."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(899)
    assert drive.feed(TimedOut()) == AwaitPod(NOW + 900)
    drive.wait(1)
    assert drive.feed(TimedOut()) == StoreTermination(TIMEOUT)


@contract("2.PENDING_TIMEOUT_S")
@pytest.mark.parametrize("off_s", [-4200, -1, 1, 4200])
def test_the_clock_of_the_api_server_gives_neither_more_time_nor_less(off_s: float) -> None:
    """Time is counted from when the pod was seen."""
    assert Drive().feed(AttemptStored(), PodSeen(pod(created_at=NOW + off_s)), NoResultYet(None)) == AwaitPod(NOW + 900)


@contract("5.InvalidImage")
def test_a_name_that_is_no_image_is_terminated_at_once() -> None:
    """It will not become one."""
    termination = stored_termination(Drive().feed(*CREATED, PodSeen(troubled(StartTrouble.INVALID_IMAGE))))
    assert termination == Termination(EndReason.INVALID_IMAGE, "the cluster's words", 1)


@contract("5.ImagePull")
@contract("5.ConfigError")
@contract("5.StartError")
@contract("2.IMAGE_PULL_GRACE_S")
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (StartTrouble.IMAGE_PULL, EndReason.IMAGE_PULL),
        (StartTrouble.CONFIG, EndReason.CONFIG_ERROR),
        (StartTrouble.START, EndReason.START_ERROR),
    ],
)
def test_a_lasting_trouble_is_terminated_after_a_grace(trouble: StartTrouble, reason: EndReason) -> None:
    """The kubelet may try twice: a Secret or an image may be a moment late."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(100)
    assert drive.feed(PodSeen(troubled(trouble))) == AwaitPod(NOW + 130)
    drive.wait(30)
    assert stored_termination(drive.feed(TimedOut())) == Termination(reason, "the cluster's words", 1)


@contract("2.IMAGE_PULL_GRACE_S")
def test_the_grace_is_never_longer_than_the_timeout() -> None:
    """A trouble that came late has less of it."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(890)
    assert drive.feed(PodSeen(troubled(StartTrouble.IMAGE_PULL))) == AwaitPod(NOW + 900)


@contract("5.ImagePullTransient")
@contract("5.Unschedulable")
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (StartTrouble.IMAGE_PULL_TRANSIENT, EndReason.IMAGE_PULL_TRANSIENT),
        (StartTrouble.NONE, EndReason.PENDING_TIMEOUT),
    ],
)
def test_a_passing_trouble_has_the_whole_time(trouble: StartTrouble, reason: EndReason) -> None:
    """A node may be added, a registry may come back; then the trouble is the reason."""
    drive = Drive()
    assert drive.feed(*CREATED, PodSeen(troubled(trouble))) == AwaitPod(NOW + 900)
    drive.wait(900)
    assert stored_termination(drive.feed(TimedOut())).reason is reason


@contract("5.ImagePull")
def test_between_two_pulls_the_clearer_text_holds() -> None:
    """The kubelet says only "Back-off" then; the grace goes on."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(troubled(StartTrouble.IMAGE_PULL, "ErrImagePull: not found")))
    drive.wait(10)
    assert drive.feed(PodSeen(troubled(StartTrouble.IMAGE_PULL_TRANSIENT, BACK_OFF))) == AwaitPod(NOW + 30)
    drive.wait(20)
    assert stored_termination(drive.feed(TimedOut())).reason is EndReason.IMAGE_PULL


@contract("5.ImagePullTransient")
def test_a_pull_that_fails_in_another_way_has_another_trouble() -> None:
    """Only "Back-off" is vague; a time-out is news."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(troubled(StartTrouble.IMAGE_PULL)))
    assert drive.feed(PodSeen(troubled(StartTrouble.IMAGE_PULL_TRANSIENT, "ErrImagePull: i/o timeout"))) == AwaitPod(
        NOW + 900
    )


@contract("5.ImagePullTransient")
def test_a_back_off_that_is_the_first_news_is_the_trouble() -> None:
    """There is no clearer text before it: the pod that never starts has not just been slow."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(troubled(StartTrouble.IMAGE_PULL_TRANSIENT, BACK_OFF)))
    drive.wait(900)
    assert stored_termination(drive.feed(TimedOut())).reason is EndReason.IMAGE_PULL_TRANSIENT


def test_a_trouble_that_went_away_is_forgotten() -> None:
    """When it comes again, its grace starts again."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(troubled(StartTrouble.CONFIG)), PodSeen(pod()))
    drive.wait(25)
    assert drive.feed(PodSeen(troubled(StartTrouble.CONFIG))) == AwaitPod(NOW + 55)


@contract("5.DeadlineExceeded")
@contract("2.WORKER_DEADLINE_S")
def test_a_worker_that_the_kubelet_does_not_end_is_ended_by_us() -> None:
    """Thirty seconds after its deadline; never tried again."""
    drive = Drive(limits=with_settings(LIMITS, worker_retries=9))
    drive.feed(*CREATED, PodSeen(running()))
    drive.wait(3631)
    termination = stored_termination(drive.feed(TimedOut()))
    assert termination == Termination(EndReason.DEADLINE_EXCEEDED, "the worker ran longer than 3600 s", 1)
    drive.feed(TerminationStored(termination), EffectDone())
    assert drive.feed(PodSeen(deleting(failed(143)))) == RecordResult(1, termination.verdict, deleting(failed(143)))


@pytest.mark.parametrize("snap", [deleting(pod()), pod(Phase.UNKNOWN)])
def test_a_pod_that_goes_or_is_unknown_is_not_terminated_as_well(snap: PodSnapshot) -> None:
    """The request to delete the first came first; and it is unknown whether the second runs."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(10_000)
    assert drive.feed(PodSeen(snap)) == AwaitPod(drive.now + 60)


@contract("5.PendingTimeout")
def test_a_terminated_pod_is_stored_killed_seen_gone_and_recorded() -> None:
    """In this order: a replica that takes over in between knows what was meant."""
    drive = overdue()
    assert drive.feed(TerminationStored(TIMEOUT)) == DeletePodIfUnchanged(pod())
    assert drive.feed(EffectDone()) == AwaitPod(drive.now + 60)
    assert drive.feed(PodSeen(deleting(pod()))) == AwaitPod(drive.now + 60)
    gone = deleting(pod()).as_gone()
    assert drive.feed(PodSeen(gone)) == RecordResult(1, TIMEOUT.verdict, gone)
    assert drive.feed(EffectDone()) == EndLifecycle("done")


def test_a_pod_that_changed_is_looked_at_before_it_is_killed() -> None:
    """It may have finished: the kill is for the pod as it was seen."""
    drive = overdue()
    assert drive.feed(TerminationStored(TIMEOUT), PodChanged()) == GetPod(1)
    fresh = pod(resource_version="2")
    assert drive.feed(PodSeen(fresh), NoResultYet(TIMEOUT)) == DeletePodIfUnchanged(fresh)


def test_a_kill_that_shows_no_effect_is_repeated() -> None:
    """A minute later, with what is known then."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), EffectDone())
    assert drive.feed(TimedOut()) == GetPod(1)
    assert drive.feed(PodSeen(pod()), NoResultYet(TIMEOUT)) == DeletePodIfUnchanged(pod())


@contract("5.PendingTimeout")
def test_a_terminated_pod_that_is_gone_when_looked_at_ended_by_its_termination() -> None:
    """The cause of its end is unknown, but we wanted it to end."""
    drive = overdue()
    assert drive.feed(TerminationStored(TIMEOUT), PodChanged(), PodNotFound()) == RecordResult(
        1, TIMEOUT.verdict, pod().as_gone()
    )


@contract("5.Completed")
def test_a_success_wins_over_any_termination() -> None:
    """The work was done; the finished pod is deleted after the record."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), PodChanged())
    end = drive.feed(PodSeen(succeeded()), NoResultYet(TIMEOUT))
    assert end == RecordResult(1, Verdict(EndReason.COMPLETED, "the worker exited with code 0"), succeeded())
    assert drive.feed(EffectDone()) == DeletePod(succeeded())


@contract("5.ImagePullTransient")
@contract("2.INFRA_RETRIES")
def test_a_termination_of_the_platforms_making_leads_to_a_next_attempt() -> None:
    """And ends with the attempt that it was meant for."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(troubled(StartTrouble.IMAGE_PULL_TRANSIENT)))
    drive.wait(900)
    termination = stored_termination(drive.feed(TimedOut()))
    drive.feed(TerminationStored(termination), EffectDone(), PodSeen(deleting(pod()).as_gone()))
    assert drive.wait(1) == StoreAttempt(2, 1)
    assert drive.life.termination is None


def test_a_result_that_came_before_the_termination_deletes_the_pod() -> None:
    """Another process recorded the worker: the pod is left over."""
    assert overdue().feed(HasResult()) == DeletePod(pod())


def test_a_termination_for_an_attempt_that_is_over_is_not_stored() -> None:
    """A higher attempt has its own pod."""
    assert overdue().feed(NewerAttemptStored()) == EndLifecycle("a higher attempt is stored")


@contract("5.PendingTimeout")
@contract("5.Completed")
def test_a_pod_that_started_meanwhile_is_spared() -> None:
    """The termination was for not starting: it is withdrawn, and the worker runs on."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), PodChanged())
    assert drive.feed(PodSeen(running()), NoResultYet(TIMEOUT)) == ClearTermination(TIMEOUT)
    assert drive.feed(NoResultYet(None)) == AwaitPod(drive.now + 3600 + 30)
    assert isinstance(drive.feed(PodSeen(succeeded())), RecordResult)


@contract("5.ScaledDown")
def test_a_pod_that_is_cancelled_while_its_termination_is_withdrawn_is_killed() -> None:
    """The answer says what holds now."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), PodChanged(), PodSeen(running()), NoResultYet(TIMEOUT))
    assert drive.feed(NoResultYet(Termination(EndReason.SCALED_DOWN))) == DeletePodIfUnchanged(running())


def test_a_result_that_came_before_the_withdrawal_deletes_the_pod() -> None:
    """There is nothing to spare any more."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), PodChanged(), PodSeen(running()), NoResultYet(TIMEOUT))
    assert drive.feed(HasResult()) == DeletePod(running())


@contract("5.DeadlineExceeded")
def test_a_deadline_is_never_withdrawn() -> None:
    """That the pod runs is what it is terminated for."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(running()))
    drive.wait(4000)
    termination = stored_termination(drive.feed(TimedOut()))
    assert drive.feed(TerminationStored(termination)) == DeletePodIfUnchanged(running())


def test_a_termination_of_another_attempt_does_not_replace_ours() -> None:
    """What we stored holds until it is withdrawn or the attempt ends."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), PodChanged(), PodSeen(pod()), NoResultYet(replace(TIMEOUT, message="older")))
    assert drive.life.termination == TIMEOUT


@contract("5.Evicted")
def test_a_stored_termination_that_was_cleared_no_longer_counts() -> None:
    """Then the pod's own end does."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), PodChanged(), PodSeen(evicted()), NoResultYet(None))
    assert drive.wait(1) == StoreAttempt(2, 1)


#: What is said of a pod that does not start. Once it has started after all, it is spared.
NOT_STARTED = {
    EndReason.INVALID_IMAGE,
    EndReason.IMAGE_PULL,
    EndReason.IMAGE_PULL_TRANSIENT,
    EndReason.CONFIG_ERROR,
    EndReason.COMMAND_NOT_FOUND,
    EndReason.SERVICE_NOT_READY,
    EndReason.START_ERROR,
    EndReason.PENDING_TIMEOUT,
    EndReason.UNSCHEDULABLE,
}


@pytest.mark.parametrize("reason", EndReason)
def test_a_start_spares_only_what_is_ended_for_not_starting(reason: EndReason) -> None:
    """Of all reasons these, and none of an attempt that was stored before (0: a cancel)."""
    assert Termination(reason, "", 1).only_before_start is (reason in NOT_STARTED)
    assert not Termination(reason).only_before_start


@pytest.mark.parametrize("reason", [EndReason.SCALED_DOWN, EndReason.SUPERSEDED])
def test_a_start_spares_what_is_drained(reason: EndReason) -> None:
    """A drain ends only what has not started."""
    assert Termination(reason, drain=True).only_before_start


ALTERED = "the pod's label x was changed from 'a' to 'b'"
REJECTED = Termination(EndReason.REJECTED, ALTERED, 1)


@contract("5.Rejected")
@contract("5.deletion")
@pytest.mark.parametrize("how", ["answered", "found after a lost answer", "found after a conflict"])
def test_a_pod_with_changed_labels_is_ended_and_rejected(how: str) -> None:
    """Intent first, by UID and version, recorded when it is gone. No watch shows it, so it is looked at often."""
    drive, there = Drive(), pod(altered_label=ALTERED)
    drive.feed(AttemptStored())
    if how != "answered":
        drive.feed(CreateUnclear() if "lost" in how else PodAlreadyExists())
    assert drive.feed(PodSeen(there), NoResultYet(None)) == StoreTermination(REJECTED)
    assert drive.feed(TerminationStored(REJECTED)) == DeletePodIfUnchanged(there)
    assert drive.feed(EffectDone()) == AwaitPod(NOW + RELOOK_UNWATCHED_S)
    drive.wait(RELOOK_UNWATCHED_S)
    assert drive.feed(TimedOut()) == GetPod(1)
    gone = deleting(there)
    assert drive.feed(PodSeen(gone), NoResultYet(REJECTED)) == AwaitPod(NOW + 2 * RELOOK_UNWATCHED_S)
    drive.wait(RELOOK_UNWATCHED_S)
    drive.feed(TimedOut())
    assert drive.feed(PodNotFound()) == RecordResult(1, Verdict(EndReason.REJECTED, ALTERED), gone.as_gone())


@contract("5.Rejected")
def test_labels_that_are_changed_while_it_runs_end_it_as_well() -> None:
    """The watch says that the pod is gone: a look shows that it is not."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(running()))
    assert drive.feed(PodSeen(running().as_gone())) == GetPod(1)
    assert drive.feed(PodSeen(running(altered_label=ALTERED)), NoResultYet(None)) == StoreTermination(REJECTED)


@contract("5.Completed")
def test_a_pod_with_changed_labels_that_has_succeeded_has_succeeded() -> None:
    """It was quicker than we."""
    drive = Drive()
    drive.feed(*CREATED)
    effect = drive.feed(PodSeen(succeeded(altered_label=ALTERED)))
    assert isinstance(effect, RecordResult)
    assert effect.verdict.reason is EndReason.COMPLETED


@contract("5.PodDeleted")
def test_a_pod_that_the_watch_says_is_gone_is_looked_for() -> None:
    """If its deletion was not requested and it has not ended: it may only have lost its labels."""
    drive = Drive()
    drive.feed(*CREATED)
    assert drive.feed(PodSeen(running().as_gone())) == GetPod(1)
    effect = drive.feed(PodNotFound())
    assert isinstance(effect, RecordResult)
    assert effect.verdict.reason is EndReason.POD_DELETED


def test_a_pod_is_not_looked_up_after_its_end_was_seen() -> None:
    """It costs no request."""
    for gone in (deleting(running()), failed(), evicted()):
        drive = Drive()
        drive.feed(*CREATED)
        assert not isinstance(drive.feed(PodSeen(gone.as_gone())), GetPod)
