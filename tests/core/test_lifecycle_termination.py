"""A worker's life when its pod does not start, or runs too long: when it is terminated, how it ends, when it is
spared.
"""

from __future__ import annotations

from dataclasses import replace as with_settings

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import (
    Await,
    ClearTermination,
    Delete,
    DeleteIfUnchanged,
    Effect,
    End,
    Intend,
    Look,
    Record,
    StoreTermination,
)
from ottoscaler.core.observations import (
    Absent,
    AlreadyThere,
    Changed,
    Checked,
    Done,
    HasResult,
    Intended,
    OldAttempt,
    Seen,
    TerminationStored,
    TimedOut,
    Unclear,
)
from ottoscaler.core.pods import Phase, Snapshot, Trouble
from ottoscaler.core.sight import RELOOK_UNWATCHED_S
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason, Verdict
from tests.core.builders import NOW, deleting, evicted, failed, pod, running, succeeded
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

CREATED = (Intended(), Seen(pod()), Checked(None))
TIMEOUT = Termination(Reason.PENDING_TIMEOUT, "the pod did not start within 900 s", 1)
BACK_OFF = 'ImagePullBackOff: Back-off pulling image "img:1"'


def troubled(trouble: Trouble, text: str = "the cluster's words") -> Snapshot:
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
    assert drive.feed(TimedOut()) == Await(NOW + 900)
    drive.wait(1)
    assert drive.feed(TimedOut()) == StoreTermination(TIMEOUT)


@contract("2.PENDING_TIMEOUT_S")
@pytest.mark.parametrize("off_s", [-4200, -1, 1, 4200])
def test_the_clock_of_the_api_server_gives_neither_more_time_nor_less(off_s: float) -> None:
    """Time is counted from when the pod was seen."""
    assert Drive().feed(Intended(), Seen(pod(created_at=NOW + off_s)), Checked(None)) == Await(NOW + 900)


@contract("5.InvalidImage")
def test_a_name_that_is_no_image_is_terminated_at_once() -> None:
    """It will not become one."""
    termination = stored_termination(Drive().feed(*CREATED, Seen(troubled(Trouble.INVALID_IMAGE))))
    assert termination == Termination(Reason.INVALID_IMAGE, "the cluster's words", 1)


@contract("5.ImagePull")
@contract("5.ConfigError")
@contract("5.StartError")
@contract("2.IMAGE_PULL_GRACE_S")
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Trouble.IMAGE_PULL, Reason.IMAGE_PULL),
        (Trouble.CONFIG, Reason.CONFIG_ERROR),
        (Trouble.START, Reason.START_ERROR),
    ],
)
def test_a_lasting_trouble_is_terminated_after_a_grace(trouble: Trouble, reason: Reason) -> None:
    """The kubelet may try twice: a Secret or an image may be a moment late."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(100)
    assert drive.feed(Seen(troubled(trouble))) == Await(NOW + 130)
    drive.wait(30)
    assert stored_termination(drive.feed(TimedOut())) == Termination(reason, "the cluster's words", 1)


@contract("2.IMAGE_PULL_GRACE_S")
def test_the_grace_is_never_longer_than_the_timeout() -> None:
    """A trouble that came late has less of it."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(890)
    assert drive.feed(Seen(troubled(Trouble.IMAGE_PULL))) == Await(NOW + 900)


@contract("5.ImagePullTransient")
@contract("5.Unschedulable")
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Trouble.IMAGE_PULL_TRANSIENT, Reason.IMAGE_PULL_TRANSIENT),
        (Trouble.UNSCHEDULABLE, Reason.UNSCHEDULABLE),
    ],
)
def test_a_passing_trouble_has_the_whole_time(trouble: Trouble, reason: Reason) -> None:
    """A node may be added, a registry may come back; then the trouble is the reason."""
    drive = Drive()
    assert drive.feed(*CREATED, Seen(troubled(trouble))) == Await(NOW + 900)
    drive.wait(900)
    assert stored_termination(drive.feed(TimedOut())).reason is reason


@contract("5.ImagePull")
def test_between_two_pulls_the_clearer_text_holds() -> None:
    """The kubelet says only "Back-off" then; the grace goes on."""
    drive = Drive()
    drive.feed(*CREATED, Seen(troubled(Trouble.IMAGE_PULL, "ErrImagePull: not found")))
    drive.wait(10)
    assert drive.feed(Seen(troubled(Trouble.IMAGE_PULL_TRANSIENT, BACK_OFF))) == Await(NOW + 30)
    drive.wait(20)
    assert stored_termination(drive.feed(TimedOut())).reason is Reason.IMAGE_PULL


@contract("5.ImagePullTransient")
def test_a_pull_that_fails_in_another_way_has_another_trouble() -> None:
    """Only "Back-off" is vague; a time-out is news."""
    drive = Drive()
    drive.feed(*CREATED, Seen(troubled(Trouble.IMAGE_PULL)))
    assert drive.feed(Seen(troubled(Trouble.IMAGE_PULL_TRANSIENT, "ErrImagePull: i/o timeout"))) == Await(NOW + 900)


@contract("5.ImagePullTransient")
def test_a_back_off_that_is_the_first_news_is_the_trouble() -> None:
    """There is no clearer text before it: the pod that never starts has not just been slow."""
    drive = Drive()
    drive.feed(*CREATED, Seen(troubled(Trouble.IMAGE_PULL_TRANSIENT, BACK_OFF)))
    drive.wait(900)
    assert stored_termination(drive.feed(TimedOut())).reason is Reason.IMAGE_PULL_TRANSIENT


def test_a_trouble_that_went_away_is_forgotten() -> None:
    """When it comes again, its grace starts again."""
    drive = Drive()
    drive.feed(*CREATED, Seen(troubled(Trouble.CONFIG)), Seen(pod()))
    drive.wait(25)
    assert drive.feed(Seen(troubled(Trouble.CONFIG))) == Await(NOW + 55)


@contract("5.DeadlineExceeded")
@contract("2.WORKER_DEADLINE_S")
def test_a_worker_that_the_kubelet_does_not_end_is_ended_by_us() -> None:
    """Thirty seconds after its deadline; never tried again."""
    drive = Drive(limits=with_settings(LIMITS, worker_retries=9))
    drive.feed(*CREATED, Seen(running()))
    drive.wait(3631)
    termination = stored_termination(drive.feed(TimedOut()))
    assert termination == Termination(Reason.DEADLINE_EXCEEDED, "the worker ran longer than 3600 s", 1)
    drive.feed(TerminationStored(termination), Done())
    assert drive.feed(Seen(deleting(failed(143)))) == Record(1, termination.verdict, deleting(failed(143)))


@pytest.mark.parametrize("snap", [deleting(pod()), pod(Phase.UNKNOWN)])
def test_a_pod_that_goes_or_is_unknown_is_not_terminated_as_well(snap: Snapshot) -> None:
    """The request to delete the first came first; and it is unknown whether the second runs."""
    drive = Drive()
    drive.feed(*CREATED)
    drive.wait(10_000)
    assert drive.feed(Seen(snap)) == Await(drive.now + 60)


@contract("5.PendingTimeout")
def test_a_terminated_pod_is_stored_killed_seen_gone_and_recorded() -> None:
    """In this order: a replica that takes over in between knows what was meant."""
    drive = overdue()
    assert drive.feed(TerminationStored(TIMEOUT)) == DeleteIfUnchanged(pod())
    assert drive.feed(Done()) == Await(drive.now + 60)
    assert drive.feed(Seen(deleting(pod()))) == Await(drive.now + 60)
    gone = deleting(pod()).as_gone()
    assert drive.feed(Seen(gone)) == Record(1, TIMEOUT.verdict, gone)
    assert drive.feed(Done()) == End("done")


def test_a_pod_that_changed_is_looked_at_before_it_is_killed() -> None:
    """It may have finished: the kill is for the pod as it was seen."""
    drive = overdue()
    assert drive.feed(TerminationStored(TIMEOUT), Changed()) == Look(1)
    fresh = pod(resource_version="2")
    assert drive.feed(Seen(fresh), Checked(TIMEOUT)) == DeleteIfUnchanged(fresh)


def test_a_kill_that_shows_no_effect_is_repeated() -> None:
    """A minute later, with what is known then."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), Done())
    assert drive.feed(TimedOut()) == Look(1)
    assert drive.feed(Seen(pod()), Checked(TIMEOUT)) == DeleteIfUnchanged(pod())


@contract("5.PendingTimeout")
def test_a_terminated_pod_that_is_gone_when_looked_at_ended_by_its_termination() -> None:
    """The cause of its end is unknown, but we wanted it to end."""
    drive = overdue()
    assert drive.feed(TerminationStored(TIMEOUT), Changed(), Absent()) == Record(1, TIMEOUT.verdict, pod().as_gone())


@contract("5.Completed")
def test_a_success_wins_over_any_termination() -> None:
    """The work was done; the finished pod is deleted after the record."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), Changed())
    end = drive.feed(Seen(succeeded()), Checked(TIMEOUT))
    assert end == Record(1, Verdict(Reason.COMPLETED, "the worker exited with code 0"), succeeded())
    assert drive.feed(Done()) == Delete(succeeded())


@contract("5.ImagePullTransient")
@contract("2.INFRA_RETRIES")
def test_a_termination_of_the_platforms_making_leads_to_a_next_attempt() -> None:
    """And ends with the attempt that it was meant for."""
    drive = Drive()
    drive.feed(*CREATED, Seen(troubled(Trouble.IMAGE_PULL_TRANSIENT)))
    drive.wait(900)
    termination = stored_termination(drive.feed(TimedOut()))
    drive.feed(TerminationStored(termination), Done(), Seen(deleting(pod()).as_gone()))
    assert drive.wait(1) == Intend(2, 1)
    assert drive.life.termination is None


def test_a_result_that_came_before_the_termination_deletes_the_pod() -> None:
    """Another process recorded the worker: the pod is left over."""
    assert overdue().feed(HasResult()) == Delete(pod())


def test_a_termination_for_an_attempt_that_is_over_is_not_stored() -> None:
    """A higher attempt has its own pod."""
    assert overdue().feed(OldAttempt()) == End("a higher attempt is stored")


@contract("5.PendingTimeout")
@contract("5.Completed")
def test_a_pod_that_started_meanwhile_is_spared() -> None:
    """The termination was for not starting: it is withdrawn, and the worker runs on."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), Changed())
    assert drive.feed(Seen(running()), Checked(TIMEOUT)) == ClearTermination(TIMEOUT)
    assert drive.feed(Checked(None)) == Await(drive.now + 3600 + 30)
    assert isinstance(drive.feed(Seen(succeeded())), Record)


@contract("5.ScaledDown")
def test_a_pod_that_is_cancelled_while_its_termination_is_withdrawn_is_killed() -> None:
    """The answer says what holds now."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), Changed(), Seen(running()), Checked(TIMEOUT))
    assert drive.feed(Checked(Termination(Reason.SCALED_DOWN))) == DeleteIfUnchanged(running())


def test_a_result_that_came_before_the_withdrawal_deletes_the_pod() -> None:
    """There is nothing to spare any more."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), Changed(), Seen(running()), Checked(TIMEOUT))
    assert drive.feed(HasResult()) == Delete(running())


@contract("5.DeadlineExceeded")
def test_a_deadline_is_never_withdrawn() -> None:
    """That the pod runs is what it is terminated for."""
    drive = Drive()
    drive.feed(*CREATED, Seen(running()))
    drive.wait(4000)
    termination = stored_termination(drive.feed(TimedOut()))
    assert drive.feed(TerminationStored(termination)) == DeleteIfUnchanged(running())


def test_a_termination_of_another_attempt_does_not_replace_ours() -> None:
    """What we stored holds until it is withdrawn or the attempt ends."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), Changed(), Seen(pod()), Checked(replace(TIMEOUT, message="older")))
    assert drive.life.termination == TIMEOUT


@contract("5.Evicted")
def test_a_stored_termination_that_was_cleared_no_longer_counts() -> None:
    """Then the pod's own end does."""
    drive = overdue()
    drive.feed(TerminationStored(TIMEOUT), Changed(), Seen(evicted()), Checked(None))
    assert drive.wait(1) == Intend(2, 1)


#: What is said of a pod that does not start. Once it has started after all, it is spared.
NOT_STARTED = {
    Reason.INVALID_IMAGE,
    Reason.IMAGE_PULL,
    Reason.IMAGE_PULL_TRANSIENT,
    Reason.CONFIG_ERROR,
    Reason.COMMAND_NOT_FOUND,
    Reason.START_ERROR,
    Reason.PENDING_TIMEOUT,
    Reason.UNSCHEDULABLE,
}


@pytest.mark.parametrize("reason", Reason)
def test_a_start_spares_only_what_is_ended_for_not_starting(reason: Reason) -> None:
    """Of all reasons these, and none of an attempt that was stored before (0: a cancel)."""
    assert Termination(reason, "", 1).only_before_start is (reason in NOT_STARTED)
    assert not Termination(reason).only_before_start


@pytest.mark.parametrize("reason", [Reason.SCALED_DOWN, Reason.SUPERSEDED])
def test_a_start_spares_what_is_drained(reason: Reason) -> None:
    """A drain ends only what has not started."""
    assert Termination(reason, drain=True).only_before_start


ALTERED = "the pod's label x was changed from 'a' to 'b'"
REJECTED = Termination(Reason.REJECTED, ALTERED, 1)


@contract("5.Rejected")
@contract("5.deletion")
@pytest.mark.parametrize("how", ["answered", "found after a lost answer", "found after a conflict"])
def test_a_pod_with_changed_labels_is_ended_and_rejected(how: str) -> None:
    """Intent first, by UID and version, recorded when it is gone. No watch shows it, so it is looked at often."""
    drive, there = Drive(), pod(altered=ALTERED)
    drive.feed(Intended())
    if how != "answered":
        drive.feed(Unclear() if "lost" in how else AlreadyThere())
    assert drive.feed(Seen(there), Checked(None)) == StoreTermination(REJECTED)
    assert drive.feed(TerminationStored(REJECTED)) == DeleteIfUnchanged(there)
    assert drive.feed(Done()) == Await(NOW + RELOOK_UNWATCHED_S)
    drive.wait(RELOOK_UNWATCHED_S)
    assert drive.feed(TimedOut()) == Look(1)
    gone = deleting(there)
    assert drive.feed(Seen(gone), Checked(REJECTED)) == Await(NOW + 2 * RELOOK_UNWATCHED_S)
    drive.wait(RELOOK_UNWATCHED_S)
    drive.feed(TimedOut())
    assert drive.feed(Absent()) == Record(1, Verdict(Reason.REJECTED, ALTERED), gone.as_gone())


@contract("5.Rejected")
def test_labels_that_are_changed_while_it_runs_end_it_as_well() -> None:
    """The watch says that the pod is gone: a look shows that it is not."""
    drive = Drive()
    drive.feed(*CREATED, Seen(running()))
    assert drive.feed(Seen(running().as_gone())) == Look(1)
    assert drive.feed(Seen(running(altered=ALTERED)), Checked(None)) == StoreTermination(REJECTED)


@contract("5.Completed")
def test_a_pod_with_changed_labels_that_has_succeeded_has_succeeded() -> None:
    """It was quicker than we."""
    drive = Drive()
    drive.feed(*CREATED)
    effect = drive.feed(Seen(succeeded(altered=ALTERED)))
    assert isinstance(effect, Record)
    assert effect.verdict.reason is Reason.COMPLETED


@contract("5.PodDeleted")
def test_a_pod_that_the_watch_says_is_gone_is_looked_for() -> None:
    """If its deletion was not requested and it has not ended: it may only have lost its labels."""
    drive = Drive()
    drive.feed(*CREATED)
    assert drive.feed(Seen(running().as_gone())) == Look(1)
    effect = drive.feed(Absent())
    assert isinstance(effect, Record)
    assert effect.verdict.reason is Reason.POD_DELETED


def test_a_pod_is_not_looked_up_after_its_end_was_seen() -> None:
    """It costs no request."""
    for gone in (deleting(running()), failed(), evicted()):
        drive = Drive()
        drive.feed(*CREATED)
        assert not isinstance(drive.feed(Seen(gone.as_gone())), Look)
