"""A worker's life when its pod is lost or fails: what is looked up, which retry is used, what happens to the pod."""

from __future__ import annotations

from dataclasses import replace as with_settings

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import (
    AwaitPod,
    CreatePod,
    DeleteOldPod,
    DeletePod,
    Effect,
    EndLifecycle,
    GetPod,
    MarkPodSeen,
    PauseUntil,
    RecordResult,
    StoreAttempt,
)
from ottoscaler.core.lifecycle import begin_lifecycle, resume_lifecycle
from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.observations import (
    AttemptStored,
    EffectDone,
    HasResult,
    NoResultYet,
    Observation,
    PodNotFound,
    PodNotListed,
    PodSeen,
    TimedOut,
)
from ottoscaler.core.pod_timeline import PodTimeline
from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.core.termination import RetryCause
from ottoscaler.core.verdicts import EndReason, Verdict
from tests.core.builders import HASH, NOW, deleting, evicted, failed, pod, running, succeeded
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

CREATED = (AttemptStored(), PodSeen(pod()), NoResultYet(None))
RUNNING = (*CREATED, PodSeen(running()))


def recorded(effect: Effect) -> Verdict:
    """The verdict of a Record."""
    assert isinstance(effect, RecordResult), effect
    return effect.verdict


def test_absence_in_a_list_is_looked_at_live() -> None:
    """A list may be older than the pod."""
    drive = Drive()
    assert drive.feed(*RUNNING, PodNotListed()) == GetPod(1)
    assert drive.feed(PodSeen(running()), NoResultYet(None)) == AwaitPod(NOW + 3600 + 30)


@contract("5.PodLost")
def test_a_pod_that_vanished_unseen_is_lost() -> None:
    """The platform's fault, so there is a next attempt; nothing is left to be cleaned up."""
    drive = Drive()
    assert drive.feed(*RUNNING, PodNotListed(), PodNotFound()) == PauseUntil(NOW + 1.0)
    assert drive.wait(1) == StoreAttempt(2, 1)
    assert drive.feed(AttemptStored()) == CreatePod(2)


@contract("5.PodLost")
def test_a_pod_that_vanished_without_retries_is_lost_for_good() -> None:
    """Its last status goes into the result; there is nothing to delete."""
    drive = Drive(limits=with_settings(LIMITS, infra_retries=0))
    assert drive.feed(*RUNNING, PodNotListed(), PodNotFound()) == RecordResult(
        1, Verdict(EndReason.POD_LOST, "the pod vanished unseen"), running().as_gone()
    )
    assert drive.feed(EffectDone()) == EndLifecycle("done")


@contract("5.PodDeleted")
def test_a_pod_that_was_being_deleted_when_last_seen_was_deleted() -> None:
    """The DELETED event was missed; the request had been seen."""
    drive = Drive()
    end = drive.feed(*RUNNING, PodSeen(deleting(running())), PodNotListed(), PodNotFound())
    assert recorded(end).reason is EndReason.POD_DELETED


@contract("5.Error")
@contract("5.Completed")
@pytest.mark.parametrize(("last", "reason"), [(succeeded(), EndReason.COMPLETED), (failed(), EndReason.ERROR)])
def test_a_finished_pod_that_vanished_before_it_was_recorded_ended_as_it_had(
    last: PodSnapshot, reason: EndReason
) -> None:
    """Its last status is enough for the result."""
    drive = Drive(replace(resume_lifecycle(1, 1, 0, None), pod=last))
    assert recorded(drive.feed(PodNotFound())).reason is reason


@contract("5.Preempted")
def test_a_disrupted_pod_that_vanished_is_not_merely_lost() -> None:
    """Why it went had been seen."""
    drive = Drive(limits=with_settings(LIMITS, infra_retries=0))
    end = drive.feed(*CREATED, PodSeen(running(disruption=EndReason.PREEMPTED)), PodNotListed(), PodNotFound())
    assert recorded(end).reason is EndReason.PREEMPTED


def test_another_uid_under_the_name_is_confirmed_by_a_live_look() -> None:
    """Our own pod may still be there: the watch and the list may disagree."""
    drive = Drive()
    assert drive.feed(*RUNNING, PodSeen(running(uid="u-2"))) == GetPod(1)
    assert drive.feed(PodSeen(running())) == MarkPodSeen(1)


@contract("5.PodLost")
def test_another_uid_under_the_name_means_that_ours_is_gone() -> None:
    """A name is used once: the pod that has it now is not the attempt's, and is not touched."""
    drive = Drive()
    drive.feed(*RUNNING, PodSeen(running(uid="u-2")), PodSeen(running(uid="u-2")))
    assert drive.wait(1) == StoreAttempt(2, 1)
    assert drive.feed(AttemptStored()) == CreatePod(2)


@pytest.mark.parametrize("snap", [deleting(running()), pod(Phase.UNKNOWN, started_at=NOW), deleting(pod())])
def test_a_pod_without_any_change_is_looked_up_every_minute(snap: PodSnapshot) -> None:
    """Its node may be dead: then no event will ever come."""
    drive = Drive()
    assert drive.feed(*CREATED, PodSeen(snap)) == AwaitPod(NOW + 60)
    assert drive.feed(TimedOut()) == GetPod(1)


@contract("5.NodeLost")
def test_a_pod_on_a_dead_node_is_given_up() -> None:
    """Found by the minutely look, long after its grace; the stuck pod is deleted when the next attempt is stored."""
    stuck = deleting(running(disruption=EndReason.NODE_LOST))
    drive = Drive()
    drive.feed(*CREATED, PodSeen(stuck), TimedOut())
    drive.wait(63)
    assert drive.feed(PodSeen(stuck), NoResultYet(None)) == PauseUntil(drive.now + 1.0)
    drive.wait(1)
    assert drive.feed(AttemptStored()) == DeleteOldPod(stuck)


@contract("2.WORKER_DEADLINE_S")
def test_without_a_deadline_a_running_pod_is_waited_for_without_limit() -> None:
    """A long-running job needs no look at the clock."""
    assert Drive(limits=with_settings(LIMITS, deadline_s=0)).feed(*RUNNING) == AwaitPod(None)


def test_a_wait_that_ended_too_early_goes_on() -> None:
    """The same end of time as before."""
    drive = Drive()
    before = drive.feed(*RUNNING)
    assert drive.feed(TimedOut()) == before


@contract("5.Evicted")
@contract("2.INFRA_RETRIES")
def test_after_the_platforms_failure_the_old_pod_goes_before_the_new_one_comes() -> None:
    """Stored first: then no replica can take the old pod's end for the worker's."""
    drive = Drive()
    drive.feed(*RUNNING, PodSeen(evicted()))
    assert drive.wait(1) == StoreAttempt(2, 1)
    assert drive.feed(AttemptStored()) == DeleteOldPod(evicted())
    assert drive.feed(EffectDone()) == CreatePod(2)


def test_a_result_that_came_before_the_next_attempt_deletes_the_old_pod() -> None:
    """There will be no next attempt that would."""
    drive = Drive()
    drive.feed(*RUNNING, PodSeen(evicted()))
    drive.wait(1)
    assert drive.feed(HasResult()) == DeletePod(evicted())


INFRA = [
    failed(137, reason="Evicted"),
    failed(137, reason="Preempting"),
    failed(137, disruption=EndReason.NODE_LOST),
    failed(128, agent_end_reason="StartError"),
]


@contract("2.INFRA_RETRIES")
@contract("5.Evicted")
@contract("5.Preempted")
@contract("5.NodeLost")
@contract("5.StartError")
@pytest.mark.parametrize("last", INFRA)
def test_the_platforms_failures_have_a_budget(last: PodSnapshot) -> None:
    """Three further attempts, with growing pauses; the fourth failure is the result."""
    drive, pauses = Drive(), []
    for attempt in (1, 2, 3):
        later = drive.feed(PodSeen(last), NoResultYet(None)) if attempt > 1 else drive.feed(*CREATED, PodSeen(last))
        assert isinstance(later, PauseUntil)
        pauses.append(later.until - drive.now)
        drive.wait(later.until - drive.now)
        drive.feed(AttemptStored(), EffectDone())
    assert pauses == [1, 2, 4]
    assert drive.feed(PodSeen(last), NoResultYet(None)) == RecordResult(4, recorded(drive.next), last)


@contract("2.WORKER_RETRIES")
@contract("5.Error")
@contract("5.OOMKilled")
@pytest.mark.parametrize("ended_as", ["Error", "OOMKilled"])
def test_the_workers_own_failures_have_another_budget(ended_as: str) -> None:
    """None by default; where there is one, the next attempt follows at once."""
    last = failed(1, agent_end_reason=ended_as)
    assert isinstance(Drive().feed(*CREATED, PodSeen(last)), RecordResult)
    following = StoreAttempt(2, 0, oom_kills=int(ended_as == "OOMKilled"))
    assert Drive(limits=with_settings(LIMITS, worker_retries=1)).feed(*CREATED, PodSeen(last)) == following


@contract("2.WORKER_RETRIES")
@contract("2.INFRA_RETRIES")
@pytest.mark.parametrize(
    ("last", "attempt", "infra_used", "number", "most"),
    [
        (failed(), 1, 0, 1, 5), (failed(), 2, 0, 2, 5), (failed(), 4, 2, 2, 5),
        (evicted(), 1, 0, 1, 4), (evicted(), 3, 0, 1, 4), (evicted(), 4, 2, 3, 4),
    ],
)  # fmt: skip
def test_a_retry_knows_its_number_and_the_limit(
    last: PodSnapshot, attempt: int, infra_used: int, number: int, most: int
) -> None:
    """Of its own kind: neither counts the other's."""
    drive = Drive(
        begin_lifecycle(1, attempt, infra_used), limits=with_settings(LIMITS, worker_retries=5, infra_retries=4)
    )
    last = replace(last, key=replace(last.key, attempt=attempt))
    drive.feed(AttemptStored(), PodSeen(replace(pod(), key=last.key)), NoResultYet(None), PodSeen(last))
    cause = drive.life.retry_cause
    assert cause is not None
    assert (cause.retry_number, cause.max_retries, cause.verdict.reason.outcome) == (number, most, "failed")


@contract("2.WORKER_RETRIES")
@contract("2.INFRA_RETRIES")
def test_the_two_budgets_are_counted_apart() -> None:
    """An eviction does not use up what the worker's own failures have, nor the other way round."""
    drive = Drive(
        begin_lifecycle(1, attempt=3, infra_used=1), limits=with_settings(LIMITS, worker_retries=2, infra_retries=2)
    )
    assert drive.feed(*CREATED, PodSeen(failed())) == StoreAttempt(4, 1)
    drive.feed(AttemptStored(), EffectDone(), PodSeen(evicted()), NoResultYet(None))
    assert drive.wait(60) == StoreAttempt(5, 2)
    assert isinstance(drive.feed(AttemptStored(), EffectDone(), PodSeen(failed()), NoResultYet(None)), RecordResult)


NEVER: list[tuple[str, tuple[Observation, ...]]] = [
    ("DeadlineExceeded", (PodSeen(failed(137, reason="DeadlineExceeded")),)),
    ("PodDeleted", (PodSeen(deleting(failed(143))),)),
    ("PodDeleted", (PodSeen(running().as_gone()), PodNotFound())),
]


@contract("5.DeadlineExceeded")
@contract("5.PodDeleted")
@pytest.mark.parametrize(("reason", "seen"), NEVER)
def test_what_was_meant_to_end_is_not_tried_again(reason: str, seen: tuple[Observation, ...]) -> None:
    """Whatever the budgets are."""
    drive = Drive(limits=with_settings(LIMITS, worker_retries=9, infra_retries=9))
    assert recorded(drive.feed(*RUNNING, *seen)).reason == reason


def test_a_new_attempt_starts_with_a_clean_slate() -> None:
    """No trouble, termination or pause of the attempt before it."""
    drive = Drive(replace(begin_lifecycle(7), timeline=PodTimeline(trouble_since=NOW), backoff=3))
    drive.feed(*CREATED, PodSeen(evicted()))
    end = Verdict(EndReason.EVICTED, "The node was low on resource: memory.")
    retried = RetryCause(end, 1, LIMITS.infra_retries, evicted())
    pause = {"todo": PauseUntil(NOW + 1), "not_before": NOW + 1, "avoided_nodes": ("n-1",)}
    assert drive.life == replace(begin_lifecycle(7, 2, 1), old_pod=evicted(), retry_cause=retried, **pause)


@pytest.mark.parametrize(
    ("last", "effect"),
    [
        (succeeded(), DeletePod(succeeded())),
        (failed(), DeletePod(failed())),
        (deleting(succeeded()), EndLifecycle("done")),
        (failed().as_gone(), EndLifecycle("done")),
    ],
)
def test_a_recorded_pod_is_deleted_unless_it_goes_anyway(last: PodSnapshot, effect: Effect) -> None:
    """A finished pod that is being deleted needs no second request."""
    assert Drive().feed(*RUNNING, PodSeen(last), EffectDone()) == effect


def test_the_life_ends_when_the_pod_is_deleted() -> None:
    """Nothing is left to do."""
    drive = Drive()
    drive.feed(*RUNNING, PodSeen(succeeded()), EffectDone(), EffectDone())
    assert drive.next == EndLifecycle("done")


@contract("2.INFRA_RETRIES")
@pytest.mark.parametrize(
    ("ended", "node"),
    [
        (evicted(), "n-1"),
        (failed(137, reason="NodeLost"), "n-1"),
        (failed(137, agent_end_reason="ContainerStatusUnknown"), "n-1"),
        (failed(137, reason="OutOfcpu", started_at=None, exit_code=None), "n-1"),
        (failed(128, agent_end_reason="StartError", started_at=None, start_error="no space left"), "n-1"),
        # another pod took its place there, a pod that is gone without a cause, and a worker's own end blame no node
        (failed(137, reason="Preempting"), None),
        (failed(1), None),
        (failed(137, agent_end_reason="OOMKilled"), None),
    ],
)
def test_a_new_attempt_avoids_a_node_that_was_at_fault(ended: PodSnapshot, node: str | None) -> None:
    """By a table over reasons."""
    drive = Drive(limits=with_settings(LIMITS, worker_retries=1))
    drive.feed(*RUNNING, PodSeen(ended))
    assert drive.life.attempt == 2
    assert drive.life.avoided_nodes == ((node,) if node else ())


@contract("2.INFRA_RETRIES")
def test_a_new_attempt_avoids_the_nodes_of_all_earlier_ones() -> None:
    """Each once, the latest last, and no more than ten."""
    drive, nodes = Drive(limits=with_settings(LIMITS, infra_retries=20)), [*range(1, 13), 5]
    for attempt, node in enumerate(nodes, start=1):
        drive.wait(60)
        there = {"key": AttemptKey(HASH, 1, attempt), "uid": f"u-{attempt}", "node": f"n-{node}"}
        if isinstance(drive.feed(AttemptStored()), DeleteOldPod):
            drive.feed(EffectDone())
        drive.feed(PodSeen(running(**there)), NoResultYet(None), PodSeen(evicted(**there)))
    assert drive.life.avoided_nodes == tuple(f"n-{node}" for node in (3, 4, 6, 7, 8, 9, 10, 11, 12, 5))


def test_an_attempt_that_another_process_stored_avoids_no_node() -> None:
    """It does not know them; its pod is the same one by its name."""
    assert resume_lifecycle(1, 2, 1).avoided_nodes == ()
