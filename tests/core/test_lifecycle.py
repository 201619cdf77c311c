"""A worker's life: the normal way, what a create may answer, and going on where another process stopped."""

from __future__ import annotations

from dataclasses import replace as with_settings
from typing import Any

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import (
    AwaitPod,
    ClearTermination,
    CreatePod,
    DeletePod,
    Effect,
    EndLifecycle,
    GetPod,
    MarkPodSeen,
    PauseUntil,
    RecordResult,
    StoreAttempt,
    StoreRefusal,
    StoreTermination,
)
from ottoscaler.core.lifecycle import Lifecycle, begin_lifecycle, resume_lifecycle
from ottoscaler.core.manifest import AttemptKey
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
    PodNotFound,
    PodSeen,
    RejectedPod,
)
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason, Verdict, backoff_s
from tests.core.builders import HASH, NOW, deleting, evicted, failed, pod, running, succeeded
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

TERMINATION = Termination(EndReason.PENDING_TIMEOUT, "", 1)
CREATED = (AttemptStored(), PodSeen(pod()), NoResultYet(None))
COMPLETED = Verdict(EndReason.COMPLETED, "the worker exited with code 0")


@contract("5.Completed")
def test_the_normal_way() -> None:
    """Stored before it is created, watched, recorded, and only then deleted."""
    drive = Drive()
    end = drive.feed(
        AttemptStored(),
        PodSeen(pod()),
        NoResultYet(None),
        PodSeen(running()),
        PodSeen(succeeded()),
        EffectDone(),
        EffectDone(),
    )
    assert drive.asked == [
        "StoreAttempt",
        "CreatePod",
        "MarkPodSeen",
        "AwaitPod",
        "AwaitPod",
        "RecordResult",
        "DeletePod",
    ]
    assert end == EndLifecycle("done")


def test_the_effects_of_the_normal_way_say_what_is_meant() -> None:
    """Attempt, pod and verdict, each as last seen."""
    drive = Drive()
    assert drive.next == StoreAttempt(1, 0)
    assert drive.feed(AttemptStored()) == CreatePod(1)
    assert drive.feed(PodSeen(pod())) == MarkPodSeen(1)
    assert drive.feed(NoResultYet(None)) == AwaitPod(NOW + LIMITS.pending_timeout_s)
    assert drive.feed(PodSeen(running())) == AwaitPod(NOW + LIMITS.deadline_s + 30)
    assert drive.feed(PodSeen(succeeded())) == RecordResult(1, COMPLETED, succeeded())
    assert drive.feed(EffectDone()) == DeletePod(succeeded())


def test_an_effect_that_failed_halfway_is_asked_for_again() -> None:
    """Asking is no step: the same state, the same effect."""
    drive = Drive()
    drive.feed(*CREATED)
    assert drive.next == drive.next


@contract("5.state")
def test_the_task_hash_shows_how_far_a_worker_is() -> None:
    """One word for each part of its life."""
    drive, words = Drive(), []
    for answer in (
        AttemptStored(),
        PodSeen(pod()),
        NoResultYet(None),
        PodSeen(running()),
        PodSeen(succeeded()),
        EffectDone(),
        EffectDone(),
    ):
        words.append(drive.life.state)
        drive.feed(answer)
    assert words == ["waiting", "creating", "pending", "pending", "running", "ending", "ending"]
    assert drive.life.state == "ending"


@contract("5.state")
def test_a_worker_is_ending_while_its_pod_is_deleted() -> None:
    """From the moment at which its termination is known."""
    assert (
        Lifecycle(index=1, todo=AwaitPod(None), pod=running(), termination=Termination(EndReason.SCALED_DOWN)).state
        == "ending"
    )
    assert Lifecycle(index=1, todo=StoreRefusal(1)).state == "waiting"


@contract("4.name")
def test_a_pod_that_is_there_already_is_adopted() -> None:
    """409 and ours: the create of a process that died."""
    drive = Drive()
    assert drive.feed(AttemptStored(), PodAlreadyExists()) == GetPod(1, after=PodAlreadyExists())
    assert drive.feed(PodSeen(running()), NoResultYet(None)) == AwaitPod(NOW + 3600 + 30)


@contract("4.name")
def test_a_pod_that_is_being_deleted_is_adopted_and_seen_to_its_end() -> None:
    """409 "being deleted": it still counts as the attempt."""
    drive = Drive()
    drive.feed(AttemptStored(), PodAlreadyExists(), PodSeen(deleting(running())), NoResultYet(None))
    assert drive.feed(PodSeen(deleting(running()).as_gone())) == RecordResult(
        1,
        Verdict(EndReason.POD_DELETED, "the pod was deleted from outside in phase Running"),
        deleting(running()).as_gone(),
    )


@contract("5.PodLost")
def test_a_conflict_with_a_pod_that_then_is_gone_uses_up_the_attempt() -> None:
    """Its name may have been used: never again."""
    drive = Drive()
    drive.feed(AttemptStored(), PodAlreadyExists(), PodNotFound())
    assert drive.wait(1) == StoreAttempt(2, 1)


@contract("5.NameConflict")
def test_a_strangers_pod_is_never_deleted() -> None:
    """The worker fails, and that is all."""
    drive = Drive()
    assert drive.feed(AttemptStored(), PodAlreadyExists(), ForeignPod()) == RecordResult(
        1, Verdict(EndReason.NAME_CONFLICT, "a pod of that name exists and is not ours"), None
    )
    assert drive.feed(EffectDone()) == EndLifecycle("done")


@contract("5.NameConflict")
def test_a_stranger_in_place_of_our_pod_is_never_deleted() -> None:
    """Also when ours had been seen there before."""
    drive = Drive(replace(resume_lifecycle(1, 1, 0, None), pod=running()))
    drive.feed(ForeignPod(), EffectDone())
    assert "DeletePod" not in drive.asked
    assert isinstance(drive.next, EndLifecycle)


def test_an_unclear_create_is_looked_at() -> None:
    """There: adopted, as if it had been answered."""
    drive = Drive()
    assert drive.feed(AttemptStored(), CreateUnclear()) == GetPod(1, after=CreateUnclear())
    assert drive.feed(PodSeen(pod())) == MarkPodSeen(1)


def test_an_unclear_create_that_made_nothing_is_intended_again() -> None:
    """The same attempt; it must not have been cancelled between the look and the create."""
    drive = Drive()
    assert drive.feed(AttemptStored(), CreateUnclear(), PodNotFound()) == StoreRefusal(1)
    assert drive.feed(EffectDone()) == StoreAttempt(1, 0)
    assert drive.feed(AttemptStored()) == CreatePod(1)


def test_creates_that_stay_unclear_are_asked_less_often() -> None:
    """The first at once again; a server that answers each with 500 is left in peace in between."""
    drive, pauses = Drive(), []
    drive.feed(AttemptStored(), CreateUnclear(), PodNotFound(), EffectDone())
    for _ in range(4):
        later = drive.feed(AttemptStored(), CreateUnclear(), PodNotFound(), EffectDone())
        assert isinstance(later, PauseUntil)
        pauses.append(later.until - drive.now)
        drive.wait(later.until - drive.now)
    assert pauses == [1, 2, 4, 4]


def test_after_an_unclear_create_what_the_server_asks_for_is_waited() -> None:
    """The look comes at once, the next create when the server wants it (Retry-After)."""
    drive = Drive()
    assert drive.feed(AttemptStored(), CreateUnclear(after_s=7.0)) == GetPod(1, after=CreateUnclear(7.0))
    assert drive.feed(PodNotFound(), EffectDone()) == PauseUntil(NOW + 7.0)


def test_a_refused_create_is_waiting_not_failing() -> None:
    """Noted, the thread given back, and the same attempt intended again."""
    drive = Drive()
    assert drive.feed(AttemptStored(), CreateRefused("exceeded quota")) == StoreRefusal(1)
    assert drive.feed(EffectDone()) == PauseUntil(NOW + 1.0)
    assert drive.wait(1) == StoreAttempt(1, 0)


def test_repeated_refusals_are_asked_less_often_but_soon_enough() -> None:
    """Freed quota is used within four seconds."""
    drive, pauses = Drive(), []
    for _ in range(5):
        later = drive.feed(AttemptStored(), CreateRefused("exceeded quota"), EffectDone())
        assert isinstance(later, PauseUntil)
        pauses.append(later.until - drive.now)
        drive.wait(later.until - drive.now)
    assert pauses == [1, 2, 4, 4, 4]


@pytest.mark.parametrize("after_s", [0.5, 17.0])
def test_a_server_that_says_when_is_asked_then(after_s: float) -> None:
    """Retry-After rules over our own pause, shorter or longer."""
    assert Drive().feed(AttemptStored(), CreateRefused("busy", after_s), EffectDone()) == PauseUntil(NOW + after_s)


def test_a_pod_that_came_ends_the_row_of_refusals() -> None:
    """The next refusal pauses for one second again."""
    drive = Drive()
    drive.feed(AttemptStored(), CreateRefused("quota"), EffectDone())
    drive.wait(1)
    drive.feed(AttemptStored(), PodSeen(pod()))
    assert drive.life.backoff == 0


@contract("5.Rejected")
def test_a_pod_that_the_server_rejects_is_a_result() -> None:
    """Asking again changes nothing, and there is no pod to delete."""
    drive = Drive()
    assert drive.feed(AttemptStored(), RejectedPod("no privileged pods")) == RecordResult(
        1, Verdict(EndReason.REJECTED, "no privileged pods"), None
    )
    assert drive.feed(EffectDone()) == EndLifecycle("done")


@pytest.mark.parametrize(("tries", "pause_s"), [(0, 1), (1, 2), (2, 4), (4, 16), (5, 30), (10**6, 30)])
def test_pauses_grow_up_to_half_a_minute(tries: int, pause_s: float) -> None:
    """1, 2, 4 … and no number that overflows."""
    assert backoff_s(tries) == pause_s


def test_a_result_that_is_there_before_the_create_ends_the_life() -> None:
    """There is nothing to do and nothing to delete."""
    assert Drive().feed(HasResult()) == EndLifecycle("done")


def test_a_result_that_came_during_the_create_deletes_the_pod() -> None:
    """No other process would know of it."""
    drive = Drive()
    assert drive.feed(AttemptStored(), PodSeen(pod()), HasResult()) == DeletePod(pod())
    assert drive.feed(EffectDone()) == EndLifecycle("done")


def test_a_higher_attempt_ends_the_life() -> None:
    """Another process leads the worker on."""
    assert Drive().feed(NewerAttemptStored()) == EndLifecycle("a higher attempt is stored")


BEFORE: dict[str, tuple[Observation, ...]] = {
    "StoreAttempt": (),
    "StoreRefusal": (AttemptStored(), CreateRefused("quota")),
    "MarkPodSeen": (AttemptStored(), PodSeen(pod())),
    "AwaitPod": CREATED,
    "RecordResult": (*CREATED, PodSeen(failed())),
}


@pytest.mark.parametrize("asked", BEFORE)
def test_a_task_that_is_no_longer_ours_is_left_alone(asked: str) -> None:
    """Whatever was going on: no further effect."""
    drive = Drive()
    assert type(drive.feed(*BEFORE[asked])).__name__ == asked
    assert drive.feed(OwnershipLost()) == EndLifecycle("another process owns the task")


@pytest.mark.parametrize("todo", [StoreTermination(TERMINATION), ClearTermination(TERMINATION)])
def test_a_termination_that_is_not_ours_to_store_is_left_alone(todo: Effect) -> None:
    """The new owner decides again."""
    drive = Drive(Lifecycle(index=1, todo=todo, pod=pod(), termination=TERMINATION))
    assert drive.feed(OwnershipLost()) == EndLifecycle("another process owns the task")


def test_a_life_goes_on_with_a_live_look() -> None:
    """A pod that is there is adopted."""
    drive = Drive(resume_lifecycle(4, 2, 1, None))
    assert drive.next == GetPod(2, live=False)
    assert drive.feed(PodSeen(running()), NoResultYet(None)) == AwaitPod(NOW + 3600 + 30)
    assert (drive.life.index, drive.life.attempt, drive.life.infra_used) == (4, 2, 1)


@contract("5.PodLost")
@contract("2.INFRA_RETRIES")
def test_a_life_without_its_pod_has_lost_it() -> None:
    """A pod that was seen and is not there: the next attempt, under its own name."""
    drive = Drive(resume_lifecycle(1, 2, 1, None, seen=True))
    drive.feed(PodNotFound())
    assert drive.wait(2) == StoreAttempt(3, 2)


@contract("2.INFRA_RETRIES")
def test_an_attempt_without_a_seen_pod_is_made_again() -> None:
    """Under the same name, so that a create which is still on its way makes no second pod; and no retry is used up."""
    drive = Drive(resume_lifecycle(1, 4, 3, None), limits=with_settings(LIMITS, infra_retries=3))
    assert drive.feed(PodNotFound()) == StoreAttempt(4, 3)
    assert drive.feed(AttemptStored()) == CreatePod(4)
    assert drive.feed(PodAlreadyExists(), PodSeen(running(key=AttemptKey(HASH, 1, 4))), NoResultYet(None)) == AwaitPod(
        NOW + 3630
    )


@contract("5.PodLost")
def test_a_life_without_its_pod_and_without_retries_is_lost() -> None:
    """Its result says that no reason is known."""
    drive = Drive(resume_lifecycle(1, 4, 3, None, seen=True))
    assert drive.feed(PodNotFound()) == RecordResult(
        4, Verdict(EndReason.POD_LOST, "the pod is gone, and the API server gave no reason"), None
    )


@contract("5.ScaledDown")
def test_a_terminated_life_without_its_pod_ends_as_it_was_terminated_to() -> None:
    """The process before us had killed the pod, and died before the record."""
    drive = Drive(resume_lifecycle(1, 1, 0, Termination(EndReason.SCALED_DOWN, "by e-2")))
    assert drive.feed(PodNotFound()) == RecordResult(1, Verdict(EndReason.SCALED_DOWN, "by e-2"), None)


def test_a_finished_pod_is_recorded_by_the_first_replica_that_sees_it() -> None:
    """Even if no replica watched its life."""
    drive = Drive(resume_lifecycle(1, 1, 0, None))
    assert drive.feed(PodSeen(evicted()), NoResultYet(None)) == PauseUntil(NOW + 1.0)


def test_a_worker_that_is_cancelled_before_its_next_attempt_ends_at_once() -> None:
    """This life has seen the end of the stored attempt: there is nothing to look at."""
    drive = Drive(begin_lifecycle(1, attempt=3, infra_used=2))
    assert drive.feed(Cancelled(Termination(EndReason.SCALED_DOWN), 2)) == RecordResult(
        2, Verdict(EndReason.SCALED_DOWN), None
    )


@pytest.mark.parametrize(
    ("todo", "change", "may"),
    [
        (CreatePod(1), {}, True), (GetPod(1), {}, True), (StoreAttempt(1, 0), {}, True),
        (GetPod(1), {"pod": pod()}, False), (StoreAttempt(1, 0), {"pod": pod()}, False),
        (GetPod(1), {"not_before": NOW}, False), (StoreAttempt(1, 0), {"not_before": NOW}, False),
        (GetPod(1, after=CreateUnclear()), {"pod": pod(), "not_before": NOW}, True),
        (AwaitPod(None), {}, False), (PauseUntil(NOW), {}, False), (EndLifecycle("done"), {}, False),
    ],
)  # fmt: skip
def test_room_is_kept_for_a_pod_that_may_be_there_unseen(todo: Effect, change: dict[str, Any], may: bool) -> None:
    """An attempt that was stored may have been carried on by a process that died; after a pause there is none."""
    assert replace(begin_lifecycle(1), todo=todo, **change).may_have_unseen_pod is may
