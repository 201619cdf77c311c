"""The container `agent` decides, and only it: by its name, whatever other containers there are, wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as with_settings
from typing import Any

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import AwaitPod, DeletePodIfUnchanged, GetPod, RecordResult, StoreAttempt, StoreTermination
from ottoscaler.core.lifecycle import resume_lifecycle
from ottoscaler.core.observations import (
    AttemptStored,
    EffectDone,
    NoResultYet,
    PodChanged,
    PodNotFound,
    PodNotListed,
    PodSeen,
    TerminationStored,
    TimedOut,
)
from ottoscaler.core.pod_timeline import finished_pod_verdict
from ottoscaler.core.pods import Phase, PodSnapshot, StartTrouble
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason, Verdict
from tests.core.builders import (
    NOW,
    RUNS,
    Json,
    container,
    deleted_at,
    deleting,
    disrupted,
    failed,
    raw_pod,
    running,
    seen,
    stamp,
    succeeded,
    terminated,
    with_others,
)
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

WAITS: Json = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
STARTED = {"status": "True", "type": "PodScheduled", "lastTransitionTime": stamp()}
CREATED = (AttemptStored(), PodSeen(running()), NoResultYet(None))
DONE = Verdict(EndReason.COMPLETED, "the worker exited with code 0")


def outlived(code: int = 0, **changes: Any) -> PodSnapshot:
    """`agent` has ended, and a sidecar runs on."""
    ended = {
        "exit_code": code,
        "agent_end_reason": "Error" if code else "Completed",
        "finished_at": NOW + 5,
        "agent_outlived": True,
    }
    return running(**(ended | changes))


def end_of(raw: Json) -> Verdict | None:
    """How the pod ended."""
    return finished_pod_verdict(seen(raw))


@contract("4.container")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", [RUNS, WAITS, terminated(0, "Completed"), terminated(143), terminated(137), {}])
@pytest.mark.parametrize(
    ("state", "started", "code"),
    [
        (RUNS, True, None),
        ({"waiting": {"reason": "ContainerCreating"}}, False, None),
        (terminated(0, "Completed"), True, 0),
        (terminated(7), True, 7),
    ],
)
def test_a_sidecar_changes_nothing_that_is_known_of_the_worker(
    first: bool, other: Json, state: Json, started: bool, code: int | None
) -> None:
    """Its start, its end and its trouble are those of `agent`, whichever container is listed first."""
    found = seen(with_others(raw_pod("Running", state=state), container("aaa-proxy", other), first=first))
    assert (found.started_at is not None, found.exit_code, found.trouble) == (started, code, StartTrouble.NONE)


@contract("4.container")
@pytest.mark.parametrize(
    ("state", "phase", "reason"),
    [
        (terminated(0, "Completed"), "Failed", EndReason.COMPLETED),
        (terminated(0, "Completed"), "Succeeded", EndReason.COMPLETED),
        (terminated(7), "Failed", EndReason.ERROR),
        (terminated(137, "OOMKilled"), "Failed", EndReason.OOM_KILLED),
    ],
)
@pytest.mark.parametrize("other", [terminated(143), terminated(137, "OOMKilled"), terminated(127), terminated(0)])
@pytest.mark.parametrize("first", [True, False])
def test_the_end_of_the_worker_wins_over_the_pods_phase(
    state: Json, phase: str, reason: EndReason, other: Json, first: bool
) -> None:
    """A pod fails because any of its containers did; the worker did not."""
    result = end_of(with_others(raw_pod(phase, state=state), container("aaa", other), first=first))
    assert result is not None
    assert result.reason is reason


@contract("4.container")
@pytest.mark.parametrize("kind", ["ephemeralContainerStatuses", "initContainerStatuses"])
def test_ephemeral_and_init_containers_never_end_a_worker(kind: str) -> None:
    """A user debugged it, or a native sidecar was stopped after it: neither is the worker's end."""
    raw = raw_pod("Failed", state=terminated(0, "Completed"), status={kind: [container("aaa", terminated(137))]})
    assert end_of(raw) == DONE


@contract("4.container")
@pytest.mark.parametrize(
    ("phase", "conditions", "metadata"),
    [
        ("Running", [], deleted_at(9)),
        ("Failed", [], deleted_at(9)),
        ("Failed", [disrupted("EvictionByEvictionAPI")], deleted_at(9)),
        ("Unknown", [disrupted("DeletionByPodGC")], {}),
    ],
)
def test_a_worker_that_did_its_work_has_done_it_whatever_became_of_its_pod(
    phase: str, conditions: Sequence[Json], metadata: Json
) -> None:
    """As it would have `Succeeded` alone in its pod."""
    raw = raw_pod(phase, state=terminated(0, "Completed"), conditions=conditions, metadata=metadata)
    assert finished_pod_verdict(seen(with_others(raw, container("aaa", terminated(143)))).as_gone()) == DONE


@contract("4.container")
@pytest.mark.parametrize("phase", ["Running", "Unknown", "Failed"])
@pytest.mark.parametrize(
    ("state", "asked_s", "reason"),
    [
        (terminated(7), None, EndReason.ERROR),
        (terminated(7), 20, EndReason.ERROR),
        (terminated(137, "OOMKilled"), 20, EndReason.OOM_KILLED),
        (terminated(143), 12, EndReason.POD_DELETED),
        (terminated(255, "Unknown"), 20, EndReason.NODE_LOST),
    ],
)
def test_a_worker_that_failed_has_failed_whatever_became_of_its_pod(
    phase: str, state: Json, asked_s: float | None, reason: EndReason
) -> None:
    """As it would be `Failed` alone in its pod: a deletion that was asked for after its end is not its end."""
    raw = raw_pod(phase, state=state, metadata={} if asked_s is None else deleted_at(asked_s))
    result = finished_pod_verdict(seen(with_others(raw, container("aaa", RUNS))).as_gone())
    assert result is not None
    assert result.reason is reason


@contract("4.container")
@pytest.mark.parametrize(("finished_s", "own"), [(4, False), (5, True), (64, True), (65, False), (90, False)])
@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("node_s", [-4200, 0, 4200])
def test_a_deadline_after_the_end_of_the_worker_is_not_its_end(
    finished_s: int, own: bool, code: int, node_s: int
) -> None:
    """The kubelet's deadline and the end of `agent` are two times of one clock, whatever that shows. An end before the
    beginning shows that the clock was set back meanwhile.
    """
    state = terminated(code, finishedAt=stamp(node_s + finished_s))
    status = {"reason": "DeadlineExceeded", "message": "too long", "startTime": stamp(node_s + 5)}
    raw = with_others(
        raw_pod("Failed", state=state, status=status), container("aaa", terminated(137)), activeDeadlineSeconds=60
    )
    reason = (EndReason.ERROR if code else EndReason.COMPLETED) if own else EndReason.DEADLINE_EXCEEDED
    result = end_of(raw)
    assert result is not None
    assert result.reason is reason


@pytest.mark.parametrize(
    ("others", "init", "spec", "expected"),
    [
        ([], [], {}, False),
        ([container("aaa", RUNS)], [], {}, True),
        ([container("aaa", WAITS)], [], {}, True),
        ([container("aaa", {})], [], {}, True),
        ([container("aaa", terminated(143))], [], {}, False),
        ([], [], {"containers": [{"name": "aaa"}, {"name": "agent"}]}, True),
        ([], [container("aaa", RUNS)], {"initContainers": [{"name": "aaa", "restartPolicy": "Always"}]}, True),
        ([], [container("aaa", terminated(0))], {"initContainers": [{"name": "aaa"}]}, False),
        ([], [container("aaa", terminated(0))], {"initContainers": [{"name": "a", "restartPolicy": "Always"}]}, False),
    ],
)
def test_a_worker_is_outlived_while_another_container_has_not_ended(
    others: Sequence[Json], init: Sequence[Json], spec: Json, expected: bool
) -> None:
    """Sidecars, native ones too, and such as are not reported yet. Where all have ended the phase follows."""
    raw = with_others(raw_pod("Running", state=terminated(1)), *others, init=init, **spec)
    assert seen(raw).agent_outlived is expected


class TestOutlived:
    """`agent` has ended, and its pod lives on."""

    @contract("4.container")
    @contract("2.TERMINATION_GRACE_S")
    @pytest.mark.parametrize(("code", "reason"), [(0, EndReason.COMPLETED), (3, EndReason.ERROR)])
    def test_the_pod_is_ended_after_the_grace_with_the_workers_own_verdict(self, code: int, reason: EndReason) -> None:
        """The intent is stored first, as for every pod that we end."""
        drive, snap = Drive(), outlived(code)
        drive.feed(*CREATED)
        drive.wait(50)
        assert drive.feed(PodSeen(snap)) == AwaitPod(NOW + 50 + LIMITS.termination_grace_s)
        assert drive.life.state == "ending"
        drive.wait(LIMITS.termination_grace_s - 1)
        assert isinstance(drive.feed(TimedOut()), AwaitPod)
        drive.wait(1)
        termination = Termination(reason, f"the worker exited with code {code}", 1)
        assert drive.feed(TimedOut()) == StoreTermination(termination)
        assert drive.feed(TerminationStored(termination)) == DeletePodIfUnchanged(snap, 1), (
            "the others have had their grace"
        )
        drive.feed(EffectDone())
        over = replace(deleting(snap), phase=Phase.FAILED, agent_outlived=False)
        assert drive.feed(PodSeen(over)) == RecordResult(1, termination.verdict, over)

    @contract("4.container")
    def test_a_pod_that_ends_within_the_grace_is_left_to_end(self) -> None:
        """The sidecar noticed by itself."""
        drive = Drive()
        drive.feed(*CREATED, PodSeen(outlived()))
        assert drive.feed(PodSeen(succeeded())) == RecordResult(1, DONE, succeeded())

    @contract("4.container")
    @pytest.mark.parametrize("code", [0, 3])
    def test_the_verdict_is_kept_over_a_take_over(self, code: int) -> None:
        """The replica that goes on reads the stored termination, and ends the pod without a second grace."""
        termination = Termination(
            EndReason.ERROR if code else EndReason.COMPLETED, f"the worker exited with code {code}", 1
        )
        drive = Drive(resume_lifecycle(1, 1, 0, termination))
        assert drive.feed(PodSeen(outlived(code)), NoResultYet(termination)) == DeletePodIfUnchanged(outlived(code), 1)
        drive.feed(PodChanged())
        end = drive.feed(PodNotFound())
        assert isinstance(end, RecordResult)
        assert end.verdict == termination.verdict

    @contract("4.container")
    def test_a_take_over_before_the_intent_begins_a_grace(self) -> None:
        """Nothing proves how long it has lasted."""
        drive = Drive(resume_lifecycle(1, 1, 0, None))
        assert drive.feed(PodSeen(outlived()), NoResultYet(None)) == AwaitPod(NOW + LIMITS.termination_grace_s)

    @contract("4.container")
    @pytest.mark.parametrize(
        "blow",
        [
            {"reason": "Evicted", "message": "low on memory"},
            {"reason": "DeadlineExceeded"},
            {"reason": "Novel"},
            {"disruption": EndReason.EVICTED},
            {"deletion_requested_at": NOW + 4, "deletion_grace_s": 30.0},
        ],
    )
    @pytest.mark.parametrize(("code", "reason"), [(0, EndReason.COMPLETED), (3, EndReason.ERROR)])
    def test_what_befalls_the_pod_later_changes_nothing(
        self, blow: dict[str, Any], code: int, reason: EndReason
    ) -> None:
        """The end of `agent` was seen first."""
        drive = Drive()
        drive.feed(*CREATED, PodSeen(outlived(code)))
        end = drive.feed(PodSeen(replace(outlived(code), phase=Phase.FAILED, agent_outlived=False, **blow)))
        assert isinstance(end, RecordResult)
        assert end.verdict.reason is reason

    @contract("4.container")
    @pytest.mark.parametrize("code", [0, 3])
    def test_a_pod_that_vanished_is_not_lost_when_its_worker_had_ended(self, code: int) -> None:
        """A user removed it by force."""
        drive = Drive()
        drive.feed(*CREATED, PodSeen(outlived(code)), PodNotListed())
        end = drive.feed(PodNotFound())
        assert isinstance(end, RecordResult)
        assert end.verdict.message == f"the worker exited with code {code}"

    @contract("4.container")
    @contract("5.DeadlineExceeded")
    def test_where_all_containers_were_ended_together_the_pod_says_why(self) -> None:
        """The kubelet reports the ends of the containers a moment before its reason: not the worker's own end."""
        drive = Drive()
        drive.feed(*CREATED, PodSeen(outlived(143, agent_outlived=False)))
        end = drive.feed(PodSeen(failed(143, reason="DeadlineExceeded", message="too long")))
        assert isinstance(end, RecordResult)
        assert end.verdict.reason is EndReason.DEADLINE_EXCEEDED

    @contract("2.WORKER_RETRIES")
    @contract("4.container")
    def test_a_failed_worker_is_tried_again_when_its_pod_is_gone(self) -> None:
        """Not while the old pod lives: two attempts never run together, and each uses room."""
        drive, snap = Drive(limits=with_settings(LIMITS, worker_retries=1)), outlived(3)
        drive.feed(*CREATED, PodSeen(snap))
        drive.wait(LIMITS.termination_grace_s)
        termination = Termination(EndReason.ERROR, "the worker exited with code 3", 1)
        drive.feed(TimedOut(), TerminationStored(termination), EffectDone(), PodSeen(deleting(snap)))
        assert snap.live
        assert drive.feed(PodSeen(deleting(snap).as_gone())) == StoreAttempt(2, 0)

    @contract("4.container")
    def test_a_termination_for_not_starting_is_withdrawn_and_the_end_counts(self) -> None:
        """It started and ended between two looks."""
        termination = Termination(EndReason.PENDING_TIMEOUT, "late", 1)
        drive = Drive(resume_lifecycle(1, 1, 0, termination))
        drive.feed(PodSeen(outlived()), NoResultYet(termination), NoResultYet(None))
        assert drive.next == AwaitPod(NOW + LIMITS.termination_grace_s)

    @contract("4.container")
    @contract("5.ScaledDown")
    @pytest.mark.parametrize(("code", "reason"), [(0, EndReason.COMPLETED), (3, EndReason.SCALED_DOWN)])
    def test_a_cancel_ends_the_pod_at_once_and_spares_only_a_success(self, code: int, reason: EndReason) -> None:
        """As for every other pod."""
        cancel, snap = Termination(EndReason.SCALED_DOWN, "cancelled", by="e-2"), outlived(code)
        drive = Drive()
        drive.feed(*CREATED, PodSeen(snap))
        assert drive.feed(TerminationStored(cancel)) == DeletePodIfUnchanged(snap)
        drive.feed(EffectDone())
        end = drive.feed(PodSeen(deleting(snap).as_gone()))
        assert isinstance(end, RecordResult)
        assert end.verdict.reason is reason

    @contract("4.container")
    def test_a_start_error_beside_a_sidecar_is_ended_too(self) -> None:
        """It never started, and its termination says so: it is not withdrawn."""
        state = terminated(128, "StartError", startedAt="1970-01-01T00:00:00Z", message="no room in the cgroup")
        snap = seen(with_others(raw_pod("Running", state=state), container("aaa", RUNS)))
        drive = Drive()
        drive.feed(
            AttemptStored(),
            PodSeen(replace(snap, exit_code=None, agent_end_reason="", agent_outlived=False)),
            NoResultYet(None),
        )
        drive.feed(PodSeen(snap))
        drive.wait(LIMITS.termination_grace_s)
        termination = Termination(EndReason.START_ERROR, "no room in the cgroup", 1)
        assert drive.feed(TimedOut()) == StoreTermination(termination)
        assert drive.feed(TerminationStored(termination)) == DeletePodIfUnchanged(snap, 1)

    def test_a_look_in_between_starts_no_second_grace(self) -> None:
        """A list without the pod, and a live look that finds it."""
        drive = Drive()
        drive.feed(*CREATED, PodSeen(outlived()))
        drive.wait(20)
        assert drive.feed(PodNotListed()) == GetPod(1)
        assert drive.feed(PodSeen(outlived()), NoResultYet(None)) == AwaitPod(NOW + LIMITS.termination_grace_s)
