"""A worker's life: the normal way, what a create may answer, and going on where another process stopped."""

from __future__ import annotations

from dataclasses import replace as with_settings

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import (
    Await,
    Check,
    ClearTermination,
    Create,
    Delete,
    Effect,
    End,
    Intend,
    Later,
    Look,
    NoteRefused,
    Record,
    StoreTermination,
)
from ottoscaler.core.lifecycle import Life, backoff_s, begin, resume
from ottoscaler.core.manifest import WorkerKey
from ottoscaler.core.observations import (
    Absent,
    AlreadyThere,
    Cancelled,
    Checked,
    Done,
    Foreign,
    HasResult,
    Intended,
    NotOurs,
    Observation,
    OldAttempt,
    Refused,
    RejectedPod,
    Seen,
    Unclear,
)
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason, Verdict
from tests.core.builders import HASH, NOW, deleting, evicted, failed, pod, running, succeeded
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

TERMINATION = Termination(Reason.PENDING_TIMEOUT, "", 1)
CREATED = (Intended(), Seen(pod()), Checked(None))
COMPLETED = Verdict(Reason.COMPLETED, "the worker exited with code 0")


@contract("5.Completed")
def test_the_normal_way() -> None:
    """Stored before it is created, watched, recorded, and only then deleted."""
    drive = Drive()
    end = drive.feed(Intended(), Seen(pod()), Checked(None), Seen(running()), Seen(succeeded()), Done(), Done())
    assert drive.asked == ["Intend", "Create", "Check", "Await", "Await", "Record", "Delete"]
    assert end == End("done")


def test_the_effects_of_the_normal_way_say_what_is_meant() -> None:
    """Attempt, pod and verdict, each as last seen."""
    drive = Drive()
    assert drive.next == Intend(1, 0)
    assert drive.feed(Intended()) == Create(1)
    assert drive.feed(Seen(pod())) == Check(1)
    assert drive.feed(Checked(None)) == Await(NOW + LIMITS.pending_timeout_s)
    assert drive.feed(Seen(running())) == Await(NOW + LIMITS.deadline_s + 30)
    assert drive.feed(Seen(succeeded())) == Record(1, COMPLETED, succeeded())
    assert drive.feed(Done()) == Delete(succeeded())


def test_an_effect_that_failed_halfway_is_asked_for_again() -> None:
    """Asking is no step: the same state, the same effect."""
    drive = Drive()
    drive.feed(*CREATED)
    assert drive.next == drive.next


@contract("5.state")
def test_the_task_hash_shows_how_far_a_worker_is() -> None:
    """One word for each part of its life."""
    drive, words = Drive(), []
    for answer in (Intended(), Seen(pod()), Checked(None), Seen(running()), Seen(succeeded()), Done(), Done()):
        words.append(drive.life.state)
        drive.feed(answer)
    assert words == ["waiting", "creating", "pending", "pending", "running", "ending", "ending"]
    assert drive.life.state == "ending"


@contract("5.state")
def test_a_worker_is_ending_while_its_pod_is_deleted() -> None:
    """From the moment at which its termination is known."""
    assert Life(index=1, todo=Await(None), pod=running(), termination=Termination(Reason.SCALED_DOWN)).state == "ending"
    assert Life(index=1, todo=NoteRefused(1)).state == "waiting"


@contract("4.name")
def test_a_pod_that_is_there_already_is_adopted() -> None:
    """409 and ours: the create of a process that died."""
    drive = Drive()
    assert drive.feed(Intended(), AlreadyThere()) == Look(1, after=AlreadyThere())
    assert drive.feed(Seen(running()), Checked(None)) == Await(NOW + 3600 + 30)


@contract("4.name")
def test_a_pod_that_is_being_deleted_is_adopted_and_seen_to_its_end() -> None:
    """409 "being deleted": it still counts as the attempt."""
    drive = Drive()
    drive.feed(Intended(), AlreadyThere(), Seen(deleting(running())), Checked(None))
    assert drive.feed(Seen(deleting(running()).as_gone())) == Record(
        1,
        Verdict(Reason.POD_DELETED, "the pod was deleted from outside in phase Running"),
        deleting(running()).as_gone(),
    )


@contract("5.PodLost")
def test_a_conflict_with_a_pod_that_then_is_gone_uses_up_the_attempt() -> None:
    """Its name may have been used: never again."""
    drive = Drive()
    drive.feed(Intended(), AlreadyThere(), Absent())
    assert drive.wait(1) == Intend(2, 1)


@contract("5.NameConflict")
def test_a_strangers_pod_is_never_deleted() -> None:
    """The worker fails, and that is all."""
    drive = Drive()
    assert drive.feed(Intended(), AlreadyThere(), Foreign()) == Record(
        1, Verdict(Reason.NAME_CONFLICT, "a pod of that name exists and is not ours"), None
    )
    assert drive.feed(Done()) == End("done")


@contract("5.NameConflict")
def test_a_stranger_in_place_of_our_pod_is_never_deleted() -> None:
    """Also when ours had been seen there before."""
    drive = Drive(replace(resume(1, 1, 0, None), pod=running()))
    drive.feed(Foreign(), Done())
    assert "Delete" not in drive.asked
    assert isinstance(drive.next, End)


def test_an_unclear_create_is_looked_at() -> None:
    """There: adopted, as if it had been answered."""
    drive = Drive()
    assert drive.feed(Intended(), Unclear()) == Look(1, after=Unclear())
    assert drive.feed(Seen(pod())) == Check(1)


def test_an_unclear_create_that_made_nothing_is_intended_again() -> None:
    """The same attempt; it must not have been cancelled between the look and the create."""
    drive = Drive()
    assert drive.feed(Intended(), Unclear(), Absent()) == NoteRefused(1)
    assert drive.feed(Done()) == Intend(1, 0)
    assert drive.feed(Intended()) == Create(1)


def test_creates_that_stay_unclear_are_asked_less_often() -> None:
    """The first at once again; a server that answers each with 500 is left in peace in between."""
    drive, pauses = Drive(), []
    drive.feed(Intended(), Unclear(), Absent(), Done())
    for _ in range(4):
        later = drive.feed(Intended(), Unclear(), Absent(), Done())
        assert isinstance(later, Later)
        pauses.append(later.until - drive.now)
        drive.wait(later.until - drive.now)
    assert pauses == [1, 2, 4, 4]


def test_after_an_unclear_create_what_the_server_asks_for_is_waited() -> None:
    """The look comes at once, the next create when the server wants it (Retry-After)."""
    drive = Drive()
    assert drive.feed(Intended(), Unclear(after_s=7.0)) == Look(1, after=Unclear(7.0))
    assert drive.feed(Absent(), Done()) == Later(NOW + 7.0)


def test_a_refused_create_is_waiting_not_failing() -> None:
    """Noted, the thread given back, and the same attempt intended again."""
    drive = Drive()
    assert drive.feed(Intended(), Refused("exceeded quota")) == NoteRefused(1)
    assert drive.feed(Done()) == Later(NOW + 1.0)
    assert drive.wait(1) == Intend(1, 0)


def test_repeated_refusals_are_asked_less_often_but_soon_enough() -> None:
    """Freed quota is used within four seconds."""
    drive, pauses = Drive(), []
    for _ in range(5):
        later = drive.feed(Intended(), Refused("exceeded quota"), Done())
        assert isinstance(later, Later)
        pauses.append(later.until - drive.now)
        drive.wait(later.until - drive.now)
    assert pauses == [1, 2, 4, 4, 4]


@pytest.mark.parametrize("after_s", [0.5, 17.0])
def test_a_server_that_says_when_is_asked_then(after_s: float) -> None:
    """Retry-After rules over our own pause, shorter or longer."""
    assert Drive().feed(Intended(), Refused("busy", after_s), Done()) == Later(NOW + after_s)


def test_a_pod_that_came_ends_the_row_of_refusals() -> None:
    """The next refusal pauses for one second again."""
    drive = Drive()
    drive.feed(Intended(), Refused("quota"), Done())
    drive.wait(1)
    drive.feed(Intended(), Seen(pod()))
    assert drive.life.backoff == 0


@contract("5.Rejected")
def test_a_pod_that_the_server_rejects_is_a_result() -> None:
    """Asking again changes nothing, and there is no pod to delete."""
    drive = Drive()
    assert drive.feed(Intended(), RejectedPod("no privileged pods")) == Record(
        1, Verdict(Reason.REJECTED, "no privileged pods"), None
    )
    assert drive.feed(Done()) == End("done")


@pytest.mark.parametrize(("tries", "pause_s"), [(0, 1), (1, 2), (2, 4), (4, 16), (5, 30), (10**6, 30)])
def test_pauses_grow_up_to_half_a_minute(tries: int, pause_s: float) -> None:
    """1, 2, 4 … and no number that overflows."""
    assert backoff_s(tries) == pause_s


def test_a_result_that_is_there_before_the_create_ends_the_life() -> None:
    """There is nothing to do and nothing to delete."""
    assert Drive().feed(HasResult()) == End("done")


def test_a_result_that_came_during_the_create_deletes_the_pod() -> None:
    """No other process would know of it."""
    drive = Drive()
    assert drive.feed(Intended(), Seen(pod()), HasResult()) == Delete(pod())
    assert drive.feed(Done()) == End("done")


def test_a_higher_attempt_ends_the_life() -> None:
    """Another process leads the worker on."""
    assert Drive().feed(OldAttempt()) == End("a higher attempt is stored")


BEFORE: dict[str, tuple[Observation, ...]] = {
    "Intend": (),
    "NoteRefused": (Intended(), Refused("quota")),
    "Check": (Intended(), Seen(pod())),
    "Await": CREATED,
    "Record": (*CREATED, Seen(failed())),
}


@pytest.mark.parametrize("asked", BEFORE)
def test_a_task_that_is_no_longer_ours_is_left_alone(asked: str) -> None:
    """Whatever was going on: no further effect."""
    drive = Drive()
    assert type(drive.feed(*BEFORE[asked])).__name__ == asked
    assert drive.feed(NotOurs()) == End("another process owns the task")


@pytest.mark.parametrize("todo", [StoreTermination(TERMINATION), ClearTermination(TERMINATION)])
def test_a_termination_that_is_not_ours_to_store_is_left_alone(todo: Effect) -> None:
    """The new owner decides again."""
    drive = Drive(Life(index=1, todo=todo, pod=pod(), termination=TERMINATION))
    assert drive.feed(NotOurs()) == End("another process owns the task")


def test_a_life_goes_on_with_a_live_look() -> None:
    """A pod that is there is adopted."""
    drive = Drive(resume(4, 2, 1, None))
    assert drive.next == Look(2, live=False)
    assert drive.feed(Seen(running()), Checked(None)) == Await(NOW + 3600 + 30)
    assert (drive.life.index, drive.life.attempt, drive.life.infra_used) == (4, 2, 1)


@contract("5.PodLost")
@contract("2.INFRA_RETRIES")
def test_a_life_without_its_pod_has_lost_it() -> None:
    """A pod that was seen and is not there: the next attempt, under its own name."""
    drive = Drive(resume(1, 2, 1, None, seen=True))
    drive.feed(Absent())
    assert drive.wait(2) == Intend(3, 2)


@contract("2.INFRA_RETRIES")
def test_an_attempt_without_a_seen_pod_is_made_again() -> None:
    """Under the same name, so that a create which is still on its way makes no second pod; and no retry is used up."""
    drive = Drive(resume(1, 4, 3, None), limits=with_settings(LIMITS, infra_retries=3))
    assert drive.feed(Absent()) == Intend(4, 3)
    assert drive.feed(Intended()) == Create(4)
    assert drive.feed(AlreadyThere(), Seen(running(key=WorkerKey(HASH, 1, 4))), Checked(None)) == Await(NOW + 3630)


@contract("5.PodLost")
def test_a_life_without_its_pod_and_without_retries_is_lost() -> None:
    """Its result says that no reason is known."""
    drive = Drive(resume(1, 4, 3, None, seen=True))
    assert drive.feed(Absent()) == Record(
        4, Verdict(Reason.POD_LOST, "the pod is gone, and the API server gave no reason"), None
    )


@contract("5.ScaledDown")
def test_a_terminated_life_without_its_pod_ends_as_it_was_terminated_to() -> None:
    """The process before us had killed the pod, and died before the record."""
    drive = Drive(resume(1, 1, 0, Termination(Reason.SCALED_DOWN, "by e-2")))
    assert drive.feed(Absent()) == Record(1, Verdict(Reason.SCALED_DOWN, "by e-2"), None)


def test_a_finished_pod_is_recorded_by_the_first_replica_that_sees_it() -> None:
    """Even if no replica watched its life."""
    drive = Drive(resume(1, 1, 0, None))
    assert drive.feed(Seen(evicted()), Checked(None)) == Later(NOW + 1.0)


def test_a_worker_that_is_cancelled_before_its_next_attempt_ends_at_once() -> None:
    """This life has seen the end of the stored attempt: there is nothing to look at."""
    drive = Drive(begin(1, attempt=3, infra_used=2))
    assert drive.feed(Cancelled(Termination(Reason.SCALED_DOWN), 2)) == Record(2, Verdict(Reason.SCALED_DOWN), None)
