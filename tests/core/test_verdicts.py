"""Verdicts: how a pod ended, by what the API server and the kubelet write, and by nothing that a worker can say."""

from __future__ import annotations

import pytest

from ottoscaler.core.pod_timeline import finished_pod_verdict
from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.core.verdicts import EndReason, Verdict
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
    result = finished_pod_verdict(seen(raw))
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
    assert end(raw) == Verdict(EndReason.COMPLETED, "the worker exited with code 0")


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
    assert end(raw_pod("Failed", state=state)) == Verdict(EndReason.ERROR, message)


@contract("5.NodeLost")
@pytest.mark.parametrize("ended_as", ["Error", "ContainerStatusUnknown"])
def test_a_termination_message_never_gets_into_a_verdict(ended_as: str) -> None:
    """The worker may have written it: neither reason nor message come from there."""
    state = terminated(137, ended_as, message="trust me")
    assert end(raw_pod("Failed", state=state, conditions=[disrupted("DeletionByPodGC")])) == Verdict(
        EndReason.NODE_LOST, "the worker exited with code 137"
    )


@contract("5.StartError")
@contract("5.Evicted")
@pytest.mark.parametrize(("ran", "reason"), [(False, EndReason.START_ERROR), (True, EndReason.EVICTED)])
@pytest.mark.parametrize(
    "word",
    [
        "TopologyAffinityError", "TaintToleration", "PodOSNotSupported", "VolumeAttachmentLimitExceeded",
        "PodOSSelectorNodeLabelDoesNotMatch", "InvalidNodeInfo", "AppArmor", "SysctlForbidden", "Novel",
    ],
)  # fmt: skip
def test_a_reason_that_we_do_not_know_is_the_platforms(word: str, ran: bool, reason: EndReason) -> None:
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
        (None, EndReason.START_ERROR),
        ({"waiting": {"reason": "ContainerCreating"}}, EndReason.START_ERROR),
        ({"terminated": {"reason": "Error"}}, EndReason.START_ERROR),
        ({"running": {"startedAt": stamp(1)}}, EndReason.EVICTED),
    ],
)
def test_a_failure_without_an_end_of_the_worker_is_the_platforms(state: Json | None, reason: EndReason) -> None:
    """No status of it, or a partial one: nothing says that its program ended."""
    assert end(raw_pod("Failed", state=state)).reason is reason


@contract("5.StartError")
@contract("5.Evicted")
@contract("5.NodeLost")
@pytest.mark.parametrize(
    ("state", "status", "message"),
    [
        (None, {}, "the pod failed before the worker started"),
        (None, {"message": "why"}, "why"),
        ({"waiting": {"reason": "CreateContainerError", "message": "no cgroup"}}, {"message": "why"}, "no cgroup"),
        ({"running": {"startedAt": stamp(1)}}, {}, "the pod failed, and its node does not say how the worker ended"),
        ({"running": {"startedAt": stamp(1)}}, {"message": "why"}, "why"),
        (terminated(128, "StartError"), {}, "the worker exited with code 128"),
        (None, {"reason": "OutOfcpu"}, "the node refused the pod: OutOfcpu"),
        (terminated(137), {"reason": "NodeLost"}, "the worker exited with code 137"),
        (None, {"reason": "NodeLost"}, ""),
        (terminated(137), {"conditions": [disrupted("EvictionByEvictionAPI")]}, "the worker exited with code 137"),
        (terminated(137), {"conditions": [disrupted("EvictionByEvictionAPI")], "message": "why"}, "why"),
    ],
)
def test_where_no_message_is_given_there_is_one_of_ours(state: Json | None, status: Json, message: str) -> None:
    """The platform's own words where it has some, and the next best otherwise."""
    assert message in end(raw_pod("Failed", state=state, status=status)).message


@contract("5.OOMKilled")
def test_a_worker_above_its_memory_limit_is_oom_killed() -> None:
    """The kernel's word, by the runtime, not the exit code."""
    assert end(raw_pod("Failed", state=terminated(137, "OOMKilled"))) == Verdict(
        EndReason.OOM_KILLED, "the worker exited with code 137: it used more memory than its limit"
    )


@contract("5.DeadlineExceeded")
def test_a_pod_past_its_deadline_says_so() -> None:
    """In its own status; the container's exit is a consequence."""
    status = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"}
    assert end(raw_pod("Failed", state=terminated(137), status=status)) == Verdict(
        EndReason.DEADLINE_EXCEEDED, status["message"]
    )


@contract("5.Evicted")
@contract("5.Preempted")
@contract("5.NodeLost")
@contract("5.StartError")
@pytest.mark.parametrize(
    ("pod_reason", "reason"),
    [
        ("Evicted", EndReason.EVICTED),
        ("Preempting", EndReason.PREEMPTED),
        ("NodeLost", EndReason.NODE_LOST),
        ("NodeShutdown", EndReason.NODE_LOST),
        ("Shutdown", EndReason.NODE_LOST),
        ("Terminated", EndReason.NODE_LOST),
        ("NodeAffinity", EndReason.NODE_LOST),
        ("UnexpectedAdmissionError", EndReason.START_ERROR),
        ("OutOfcpu", EndReason.START_ERROR),
        ("OutOfmemory", EndReason.START_ERROR),
    ],
)
@pytest.mark.parametrize("state", [None, terminated(137)])
def test_the_pods_own_reason_gives_the_platforms_fault(pod_reason: str, reason: EndReason, state: Json | None) -> None:
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
        ("EvictionByEvictionAPI", EndReason.EVICTED),
        ("TerminationByKubelet", EndReason.EVICTED),
        ("PreemptionByScheduler", EndReason.PREEMPTED),
        ("DeletionByTaintManager", EndReason.NODE_LOST),
        ("DeletionByPodGC", EndReason.NODE_LOST),
    ],
)
@pytest.mark.parametrize("ended_as", ["Error", "OOMKilled", "ContainerStatusUnknown"])
def test_a_disruption_is_why_the_pod_failed(condition: str, reason: EndReason, ended_as: str) -> None:
    """What the container's end then looks like, and that the pod was deleted, is a consequence."""
    raw = raw_pod("Failed", state=terminated(137, ended_as), conditions=[disrupted(condition)], metadata=deleted_at(9))
    assert end(raw) == Verdict(reason, "the worker exited with code 137")


@contract("5.Evicted")
@contract("5.Preempted")
@contract("5.NodeLost")
@pytest.mark.parametrize(
    ("pod_reason", "reason"),
    [("Evicted", EndReason.EVICTED), ("Preempting", EndReason.PREEMPTED), ("Terminated", EndReason.NODE_LOST)],
)
def test_the_kubelets_one_disruption_is_distinguished_by_the_pods_reason(pod_reason: str, reason: EndReason) -> None:
    """TerminationByKubelet covers eviction, preemption for a critical pod and the shutdown of the node."""
    raw = raw_pod("Failed", conditions=[disrupted("TerminationByKubelet")], status={"reason": pod_reason})
    assert end(raw).reason is reason


@contract("5.NodeLost")
def test_a_container_of_unknown_status_went_with_its_node() -> None:
    """The kubelet came back and found nothing of it."""
    assert end(raw_pod("Failed", state=terminated(137, "ContainerStatusUnknown"))).reason is EndReason.NODE_LOST


@contract("5.StartError")
@pytest.mark.parametrize("reason", ["StartError", "ContainerCannotRun"])
def test_a_container_that_could_not_be_started_has_its_reason(reason: str) -> None:
    """There the message is the runtime's: no worker ran that could have written it."""
    state = terminated(128, reason, message="exec: no such file")
    assert end(raw_pod("Failed", state=state)) == Verdict(EndReason.START_ERROR, "exec: no such file")


@contract("5.PodDeleted")
@pytest.mark.parametrize("asked_s", [10, 15])
def test_a_failure_after_a_deletion_request_is_pod_deleted(asked_s: int) -> None:
    """In the same second too: Kubernetes reports whole seconds only. The container ends at 15 s."""
    raw = raw_pod("Failed", state=terminated(143), metadata=deleted_at(asked_s))
    assert end(raw) == Verdict(
        EndReason.POD_DELETED, "the pod was deleted from outside; the worker exited with code 143"
    )


@contract("5.PodDeleted")
def test_a_deleted_pod_that_never_ran_was_deleted() -> None:
    """There is no time of an end to compare with."""
    assert end(raw_pod("Failed", metadata=deleted_at(3))) == Verdict(
        EndReason.POD_DELETED, "the pod was deleted from outside"
    )


@contract("5.Error")
def test_a_failure_before_the_deletion_stays_an_error() -> None:
    """Cleaning up a failed pod does not excuse it."""
    raw = raw_pod("Failed", state=terminated(1), metadata=deleted_at(16))
    assert end(raw).reason is EndReason.ERROR


@contract("5.OOMKilled")
def test_a_limit_that_was_broken_is_not_excused_by_a_deletion() -> None:
    """The kernel's word stands."""
    assert (
        end(raw_pod("Failed", state=terminated(137, "OOMKilled"), metadata=deleted_at(10))).reason
        is EndReason.OOM_KILLED
    )


@contract("5.PodDeleted")
@pytest.mark.parametrize("last", [pod(), running(), deleting(running()), pod(Phase.UNKNOWN)])
def test_a_pod_that_went_without_an_end_was_deleted(last: PodSnapshot) -> None:
    """The DELETED event of a pod that had not finished."""
    assert finished_pod_verdict(last.as_gone()) == Verdict(
        EndReason.POD_DELETED, f"the pod was deleted from outside in phase {last.phase}"
    )


@contract("5.NodeLost")
@contract("5.Preempted")
@pytest.mark.parametrize("reason", [EndReason.NODE_LOST, EndReason.PREEMPTED, EndReason.EVICTED])
def test_a_pod_that_went_by_a_disruption_keeps_its_reason(reason: EndReason) -> None:
    """PodGC and the scheduler delete pods themselves."""
    result = finished_pod_verdict(running(disruption=reason).as_gone())
    assert result == Verdict(reason, "the pod was removed in phase Running")


@contract("5.Completed")
def test_a_finished_pod_that_is_gone_ended_as_it_had() -> None:
    """Its last status still counts."""
    assert finished_pod_verdict(succeeded().as_gone()) == finished_pod_verdict(succeeded())
    assert finished_pod_verdict(failed().as_gone()) == finished_pod_verdict(failed())


@pytest.mark.parametrize(
    "snap", [pod(), running(), deleting(running()), pod(Phase.UNKNOWN), running(disruption=EndReason.EVICTED)]
)
def test_a_pod_that_has_not_ended_has_no_verdict(snap: PodSnapshot) -> None:
    """However near its end it may be."""
    assert finished_pod_verdict(snap) is None


@contract("5.PodDeleted")
def test_a_fraction_of_a_second_does_not_turn_a_deletion_into_an_error() -> None:
    """A grace may have a finer time than the kubelet's stamp."""
    result = finished_pod_verdict(failed(143, finished_at=NOW + 10, deletion_requested_at=NOW + 10.9))
    assert result is not None
    assert result.reason is EndReason.POD_DELETED
