"""Pods of failed workers that stay for inspection: which, since when, and which of them go."""

from __future__ import annotations

from dataclasses import replace as with_settings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ottoscaler.core.effects import DeleteOldPod, DeletePod, EndLifecycle, KeepPod, RecordResult
from ottoscaler.core.kept_pods import KeptPod, age_s, ended_at, may_stay, stays, surplus
from ottoscaler.core.lifecycle import resume_lifecycle
from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.observations import (
    AttemptStored,
    EffectDone,
    HasResult,
    NoResultYet,
    PodNotListed,
    PodSeen,
    TerminationStored,
    TimedOut,
)
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason, Outcome
from tests.core.builders import HASH, NOW, decode, deleting, evicted, failed, pod, raw_pod, running, seen, succeeded
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

KEPT = {"keep_failed_s": 600}
CREATED = (AttemptStored(), PodSeen(pod(**KEPT)), NoResultYet(None), PodSeen(running(**KEPT)))
CANCEL = Termination(EndReason.SCALED_DOWN, "", by="e-2")


@contract("2.KEEP_FAILED_S")
@pytest.mark.parametrize(
    ("ended", "wanted"),
    [
        (failed(7, **KEPT), True),
        (failed(137, agent_end_reason="OOMKilled", **KEPT), True),
        (evicted(**KEPT), True),
        (failed(7), False),
        (succeeded(**KEPT), False),
        (running(**KEPT), False),
        (running(exit_code=7, agent_outlived=True, **KEPT), False),
        (pod(**KEPT), False),
        (deleting(failed(143, **KEPT)), False),
        (failed(7, gone=True, **KEPT), False),
    ],
)
def test_only_a_pod_that_failed_by_itself_may_stay(ended: PodSnapshot, wanted: bool) -> None:
    """Neither a success, nor what still runs, nor what is being deleted or gone."""
    assert may_stay(ended) is wanted


@contract("2.KEEP_FAILED_S")
@pytest.mark.parametrize("outcome", [*Outcome, ""])
def test_only_a_recorded_failure_keeps_a_pod(outcome: str) -> None:
    """Without a result nothing is decided; a cancelled, expired or lost worker leaves no pod."""
    assert stays(failed(7, **KEPT), outcome) is (outcome == "failed")


@contract("2.KEEP_FAILED_S")
@pytest.mark.parametrize(
    ("annotation", "seconds"), [("600", 600), ("0", 0), ("", 0), ("-5", 0), ("1e3", 0), ("9" * 12, 0), ("٣", 0)]
)
def test_the_annotation_says_for_how_long(annotation: str, seconds: int) -> None:
    """A person may have changed it to anything: it is no reason to fail."""
    annotations = {"ottoscaler.io/event-id": "e-1", "ottoscaler.io/keep-failed-s": annotation}
    assert seen(raw_pod(metadata={"annotations": annotations})).keep_failed_s == seconds
    assert decode(raw_pod()).metadata.annotations.keep_failed_s == ""


# -- since when


def test_its_end_is_by_the_api_servers_clock() -> None:
    """As far as two of its times show how wrong the node's clock is."""
    assert ended_at(failed(1, finished_at=NOW + 5)) == NOW + 5
    assert ended_at(failed(1, finished_at=NOW + 3605, node_clock_ahead_s=3600.0)) == NOW + 5
    assert ended_at(failed(1, finished_at=NOW - 3595, node_clock_ahead_s=-3600.0)) == NOW + 5
    assert ended_at(failed(1, finished_at=None)) == NOW
    assert ended_at(failed(1, finished_at=None, created_at=None)) == 0  # without any time it counts as the oldest


@pytest.mark.parametrize(
    ("wall_time", "longest_s", "age"),
    [(NOW + 65, 1e9, 60), (NOW + 65, 15.0, 15), (NOW - 9000, 1e9, 0), (NOW + 9000, 15.0, 15)],
)
def test_clocks_that_disagree_cost_no_more_than_what_was_unseen(wall_time: float, longest_s: float, age: float) -> None:
    """A pod that was not there at the last look cannot be older than that."""
    assert age_s(failed(1, **KEPT), wall_time, longest_s) == age


@pytest.mark.parametrize(("most_s", "until"), [(1e9, 600), (300, 300)])
def test_no_pod_stays_for_longer_than_its_task_is_remembered(most_s: float, until: float) -> None:
    """It would look like a pod of a task that Redis lost."""
    assert KeptPod(failed(1, **KEPT), 100.0).until(most_s) == 100 + until


# -- how many

_ends = st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=30)


def _kept(ends: list[tuple[int, bool]]) -> list[KeptPod]:
    changes: list[dict[str, Any]] = [
        {"name": f"p-{number:02}", "uid": f"u-{number}", "finished_at": NOW + at} for number, (at, _) in enumerate(ends)
    ]
    return [KeptPod(failed(1, **KEPT, **change), float(number)) for number, change in enumerate(changes)]


@contract("2.KEEP_FAILED_MAX")
@given(_ends, st.integers(0, 10))
def test_the_oldest_go_first(ends: list[tuple[int, bool]], most: int) -> None:
    """As many as there are too many."""
    kept = _kept(ends)
    gone = surplus(kept, most)
    left = [one for one in kept if one not in gone]
    assert len(left) == min(len(kept), most)
    assert not gone or not left or max(map(_end, gone)) <= min(map(_end, left))


@contract("2.KEEP_FAILED_MAX")
@given(_ends, st.integers(0, 10))
def test_a_replica_that_sees_less_deletes_none_that_is_to_stay(ends: list[tuple[int, bool]], most: int) -> None:
    """Each replica decides by itself: what one deletes is surplus for the one that sees all."""
    kept = _kept(ends)
    part = [one for one, (_, visible) in zip(kept, ends, strict=True) if visible]
    assert all(one in surplus(kept, most) for one in surplus(part, most))


def _end(one: KeptPod) -> tuple[float, str]:
    return ended_at(one.pod), one.pod.name


# -- the worker's life


@contract("2.KEEP_FAILED_S")
def test_a_failed_worker_is_recorded_at_once_and_its_pod_stays() -> None:
    """The record comes first, as always; then nothing is left to do."""
    drive = Drive()
    recorded = drive.feed(*CREATED, PodSeen(failed(7, **KEPT)))
    assert isinstance(recorded, RecordResult)
    assert drive.feed(EffectDone()) == KeepPod(failed(7, **KEPT))
    assert drive.life.state == "ending"
    assert drive.feed(EffectDone()) == EndLifecycle("done")


@pytest.mark.parametrize("end", [succeeded(**KEPT), failed(7)])
def test_any_other_pod_is_deleted(end: PodSnapshot) -> None:
    """A success, and a failure that nobody wants to look at."""
    drive = Drive()
    drive.feed(*CREATED, PodSeen(end))
    assert drive.feed(EffectDone()) == DeletePod(end)


def test_a_cancelled_worker_leaves_no_pod() -> None:
    """Its scale_down waits for its end."""
    drive = Drive()
    drive.feed(*CREATED, TerminationStored(CANCEL), EffectDone())
    end = deleting(failed(143, **KEPT))
    drive.feed(PodSeen(end))
    assert isinstance(drive.next, RecordResult)
    assert drive.next.verdict.reason is EndReason.SCALED_DOWN
    assert drive.feed(EffectDone()) == EndLifecycle("done")


def test_a_pod_that_failed_before_the_cancel_reached_it_is_deleted_with_the_cancel() -> None:
    """The result is a cancel, whatever the pod did."""
    drive = Drive()
    drive.feed(*CREATED, TerminationStored(CANCEL))
    drive.now += 1
    end = failed(7, **KEPT)
    resumed = Drive(resume_lifecycle(1, 1, 0, CANCEL))
    resumed.feed(PodSeen(end), NoResultYet(CANCEL))
    assert isinstance(resumed.next, RecordResult)
    assert resumed.feed(EffectDone()) == DeletePod(end)


def test_the_pod_of_an_earlier_attempt_goes_before_the_next() -> None:
    """Only the last failed attempt is kept."""
    drive = Drive(limits=with_settings(LIMITS, worker_retries=1))
    first = failed(7, **KEPT)
    drive.feed(*CREATED, PodSeen(first), AttemptStored())
    assert drive.next == DeleteOldPod(first)
    second = replace(failed(8, **KEPT), key=AttemptKey(HASH, 1, 2), uid="u-2")
    drive.feed(EffectDone(), PodSeen(replace(second, phase=running().phase, exit_code=None)), NoResultYet(None))
    drive.feed(PodSeen(second))
    assert drive.feed(EffectDone()) == KeepPod(second)


def test_a_pod_that_never_finished_does_not_stay() -> None:
    """It was ended by us, and is gone."""
    drive = Drive()
    drive.feed(AttemptStored(), PodSeen(pod(**KEPT)), NoResultYet(None))
    drive.now += LIMITS.pending_timeout_s
    drive.feed(TimedOut(), TerminationStored(Termination(EndReason.PENDING_TIMEOUT, "", 1)), EffectDone())
    drive.feed(PodNotListed())
    assert not isinstance(drive.next, KeepPod)


@pytest.mark.parametrize("end", [failed(7, **KEPT), succeeded(**KEPT)])
def test_where_another_process_stored_the_result_the_reconciler_decides(end: PodSnapshot) -> None:
    """Only the result says whether it was a failure or a cancel; a success never stays."""
    drive = Drive(resume_lifecycle(1, 1, 0))
    drive.feed(PodSeen(end), HasResult())
    if may_stay(end):
        assert drive.next == EndLifecycle("the reconciler knows whether the pod stays")
    else:
        assert drive.next == DeletePod(end)
