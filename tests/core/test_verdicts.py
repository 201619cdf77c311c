"""Verdicts: how a pod ended, by what the API server and the kubelet write, and by nothing that a worker can say."""

from __future__ import annotations

import pytest

from ottoscaler.core.pods import Phase, Snapshot
from ottoscaler.core.sight import verdict
from ottoscaler.core.verdicts import Reason, Verdict
from tests.core.builders import (
    NOW,
    Json,
    deleted_at,
    deleting,
    disrupted,
    failed,
    pod,
    raw_pod,
    running,
    seen,
    stamp,
    succeeded,
    terminated,
)

contract = pytest.mark.contract


def end(raw: Json) -> Verdict:
    """How a pod that has ended has ended."""
    result = verdict(seen(raw))
    assert result is not None
    return result


@contract("5.Completed")
@pytest.mark.parametrize(
    "raw",
    [
        raw_pod("Succeeded", state=terminated(0, "Completed")),
        raw_pod("Succeeded", state=terminated(0, "Completed"), metadata=deleted_at(5)),
        raw_pod("Succeeded", state=terminated(0, "Completed"), conditions=[disrupted("EvictionByEvictionAPI")]),
    ],
)
def test_what_succeeded_is_completed(raw: Json) -> None:
    """Any request to end it came too late."""
    assert end(raw) == Verdict(Reason.COMPLETED, "the worker exited with code 0")


@contract("5.Error")
@pytest.mark.parametrize(
    ("state", "message"),
    [
        (terminated(1), "the worker exited with code 1"),
        (terminated(137), "the worker exited with code 137"),
        (terminated(143, "Error", message="Evicted"), "the worker exited with code 143"),
        (terminated(1, "Error", message="OOMKilled: DeadlineExceeded"), "the worker exited with code 1"),
        (terminated(1, "ErrorOfALaterRuntime"), "the worker exited with code 1"),
    ],
)
def test_a_worker_that_failed_by_itself_is_an_error(state: Json | None, message: str) -> None:
    """Neither exit code nor termination message can pass for a fault of the platform."""
    assert end(raw_pod("Failed", state=state)) == Verdict(Reason.ERROR, message)


@contract("5.NodeLost")
@pytest.mark.parametrize("ended_as", ["Error", "ContainerStatusUnknown"])
def test_a_termination_message_never_gets_into_a_verdict(ended_as: str) -> None:
    """The worker may have written it: neither reason nor message come from there."""
    state = terminated(137, ended_as, message="trust me")
    assert end(raw_pod("Failed", state=state, conditions=[disrupted("DeletionByPodGC")])) == Verdict(
        Reason.NODE_LOST, "the worker exited with code 137"
    )


@contract("5.StartError")
@contract("5.Evicted")
@pytest.mark.parametrize(("ran", "reason"), [(False, Reason.START_ERROR), (True, Reason.EVICTED)])
@pytest.mark.parametrize(
    "word",
    [
        "TopologyAffinityError", "TaintToleration", "PodOSNotSupported", "VolumeAttachmentLimitExceeded",
        "PodOSSelectorNodeLabelDoesNotMatch", "InvalidNodeInfo", "AppArmor", "SysctlForbidden", "Novel",
    ],
)  # fmt: skip
def test_a_reason_that_we_do_not_know_is_the_platforms(word: str, ran: bool, reason: Reason) -> None:
    """It says so of the whole pod: refused before any container ran, or ended. Its word stays in the message."""
    state = terminated(137) if ran else None
    assert end(raw_pod("Failed", state=state, status={"reason": word, "message": "a new way"})) == Verdict(
        reason, f"{word}: a new way"
    )
    assert end(raw_pod("Failed", state=state, status={"reason": word})) == Verdict(reason, word)


@contract("5.StartError")
@contract("5.Evicted")
@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, Reason.START_ERROR),
        ({"waiting": {"reason": "ContainerCreating"}}, Reason.START_ERROR),
        ({"terminated": {"reason": "Error"}}, Reason.START_ERROR),
        ({"running": {"startedAt": stamp(1)}}, Reason.EVICTED),
    ],
)
def test_a_failure_without_an_end_of_the_worker_is_the_platforms(state: Json | None, reason: Reason) -> None:
    """No status of it, or a partial one: nothing says that its program ended."""
    assert end(raw_pod("Failed", state=state)).reason is reason


@contract("5.OOMKilled")
def test_a_worker_above_its_memory_limit_is_oom_killed() -> None:
    """The kernel's word, by the runtime, not the exit code."""
    assert end(raw_pod("Failed", state=terminated(137, "OOMKilled"))) == Verdict(
        Reason.OOM_KILLED, "the worker exited with code 137: it used more memory than its limit"
    )


@contract("5.DeadlineExceeded")
def test_a_pod_past_its_deadline_says_so() -> None:
    """In its own status; the container's exit is a consequence."""
    status = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"}
    assert end(raw_pod("Failed", state=terminated(137), status=status)) == Verdict(
        Reason.DEADLINE_EXCEEDED, status["message"]
    )


@contract("5.Evicted")
@contract("5.Preempted")
@contract("5.NodeLost")
@contract("5.StartError")
@pytest.mark.parametrize(
    ("pod_reason", "reason"),
    [
        ("Evicted", Reason.EVICTED),
        ("Preempting", Reason.PREEMPTED),
        ("NodeLost", Reason.NODE_LOST),
        ("NodeShutdown", Reason.NODE_LOST),
        ("Shutdown", Reason.NODE_LOST),
        ("Terminated", Reason.NODE_LOST),
        ("NodeAffinity", Reason.NODE_LOST),
        ("UnexpectedAdmissionError", Reason.START_ERROR),
        ("OutOfcpu", Reason.START_ERROR),
        ("OutOfmemory", Reason.START_ERROR),
    ],
)
@pytest.mark.parametrize("state", [None, terminated(137)])
def test_the_pods_own_reason_gives_the_platforms_fault(pod_reason: str, reason: Reason, state: Json | None) -> None:
    """With and without a container that ran."""
    assert end(raw_pod("Failed", state=state, status={"reason": pod_reason, "message": "why"})) == Verdict(
        reason, "why"
    )


@contract("5.Evicted")
@contract("5.Preempted")
@contract("5.NodeLost")
@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("EvictionByEvictionAPI", Reason.EVICTED),
        ("TerminationByKubelet", Reason.EVICTED),
        ("PreemptionByScheduler", Reason.PREEMPTED),
        ("DeletionByTaintManager", Reason.NODE_LOST),
        ("DeletionByPodGC", Reason.NODE_LOST),
    ],
)
@pytest.mark.parametrize("ended_as", ["Error", "OOMKilled", "ContainerStatusUnknown"])
def test_a_disruption_is_why_the_pod_failed(condition: str, reason: Reason, ended_as: str) -> None:
    """What the container's end then looks like, and that the pod was deleted, is a consequence."""
    raw = raw_pod("Failed", state=terminated(137, ended_as), conditions=[disrupted(condition)], metadata=deleted_at(9))
    assert end(raw) == Verdict(reason, "the worker exited with code 137")


@contract("5.Evicted")
@contract("5.Preempted")
@contract("5.NodeLost")
@pytest.mark.parametrize(
    ("pod_reason", "reason"),
    [("Evicted", Reason.EVICTED), ("Preempting", Reason.PREEMPTED), ("Terminated", Reason.NODE_LOST)],
)
def test_the_kubelets_one_disruption_is_distinguished_by_the_pods_reason(pod_reason: str, reason: Reason) -> None:
    """TerminationByKubelet covers eviction, preemption for a critical pod and the shutdown of the node."""
    raw = raw_pod("Failed", conditions=[disrupted("TerminationByKubelet")], status={"reason": pod_reason})
    assert end(raw).reason is reason


@contract("5.NodeLost")
def test_a_container_of_unknown_status_went_with_its_node() -> None:
    """The kubelet came back and found nothing of it."""
    assert end(raw_pod("Failed", state=terminated(137, "ContainerStatusUnknown"))).reason is Reason.NODE_LOST


@contract("5.StartError")
@pytest.mark.parametrize("reason", ["StartError", "ContainerCannotRun"])
def test_a_container_that_could_not_be_started_has_its_reason(reason: str) -> None:
    """There the message is the runtime's: no worker ran that could have written it."""
    state = terminated(128, reason, message="exec: no such file")
    assert end(raw_pod("Failed", state=state)) == Verdict(Reason.START_ERROR, "exec: no such file")


@contract("5.PodDeleted")
@pytest.mark.parametrize("asked_s", [10, 15])
def test_a_failure_after_a_deletion_request_is_pod_deleted(asked_s: int) -> None:
    """In the same second too: Kubernetes reports whole seconds only. The container ends at 15 s."""
    raw = raw_pod("Failed", state=terminated(143), metadata=deleted_at(asked_s))
    assert end(raw) == Verdict(Reason.POD_DELETED, "the pod was deleted from outside; the worker exited with code 143")


@contract("5.PodDeleted")
def test_a_deleted_pod_that_never_ran_was_deleted() -> None:
    """There is no time of an end to compare with."""
    assert end(raw_pod("Failed", metadata=deleted_at(3))) == Verdict(
        Reason.POD_DELETED, "the pod was deleted from outside"
    )


@contract("5.Error")
def test_a_failure_before_the_deletion_stays_an_error() -> None:
    """Cleaning up a failed pod does not excuse it."""
    raw = raw_pod("Failed", state=terminated(1), metadata=deleted_at(16))
    assert end(raw).reason is Reason.ERROR


@contract("5.OOMKilled")
def test_a_limit_that_was_broken_is_not_excused_by_a_deletion() -> None:
    """The kernel's word stands."""
    assert (
        end(raw_pod("Failed", state=terminated(137, "OOMKilled"), metadata=deleted_at(10))).reason is Reason.OOM_KILLED
    )


@contract("5.PodDeleted")
@pytest.mark.parametrize("last", [pod(), running(), deleting(running()), pod(Phase.UNKNOWN)])
def test_a_pod_that_went_without_an_end_was_deleted(last: Snapshot) -> None:
    """The DELETED event of a pod that had not finished."""
    assert verdict(last.as_gone()) == Verdict(
        Reason.POD_DELETED, f"the pod was deleted from outside in phase {last.phase}"
    )


@contract("5.NodeLost")
@contract("5.Preempted")
@pytest.mark.parametrize("reason", [Reason.NODE_LOST, Reason.PREEMPTED, Reason.EVICTED])
def test_a_pod_that_went_by_a_disruption_keeps_its_reason(reason: Reason) -> None:
    """PodGC and the scheduler delete pods themselves."""
    result = verdict(running(disruption=reason).as_gone())
    assert result == Verdict(reason, "the pod was removed in phase Running")


@contract("5.Completed")
def test_a_finished_pod_that_is_gone_ended_as_it_had() -> None:
    """Its last status still counts."""
    assert verdict(succeeded().as_gone()) == verdict(succeeded())
    assert verdict(failed().as_gone()) == verdict(failed())


@pytest.mark.parametrize(
    "snap", [pod(), running(), deleting(running()), pod(Phase.UNKNOWN), running(disruption=Reason.EVICTED)]
)
def test_a_pod_that_has_not_ended_has_no_verdict(snap: Snapshot) -> None:
    """However near its end it may be."""
    assert verdict(snap) is None


@contract("5.PodDeleted")
def test_a_fraction_of_a_second_does_not_turn_a_deletion_into_an_error() -> None:
    """A grace may have a finer time than the kubelet's stamp."""
    result = verdict(failed(143, finished_at=NOW + 10, deletion_requested_at=NOW + 10.9))
    assert result is not None
    assert result.reason is Reason.POD_DELETED
