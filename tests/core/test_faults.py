"""Which side is at fault for an end, by the fields of the API alone: one table of what Kubernetes can write of a pod,
each row with where Kubernetes writes it, and of what a worker can do to look like it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import pytest

from ottoscaler.core.pod_timeline import finished_pod_verdict
from ottoscaler.core.termination import Termination, final_verdict
from ottoscaler.core.verdicts import EndReason, FaultOrigin, RetryBudget
from tests.core.builders import Json, container, deleted_at, disrupted, raw_pod, seen, terminated, with_others

contract = pytest.mark.contract

KUBELET: Final = "kubernetes/pkg/kubelet/"
UNSTARTED: Final = {"startedAt": "1970-01-01T00:00:00Z", "finishedAt": "1970-01-01T00:00:00Z"}


class Row(NamedTuple):
    """What the API shows of a pod that has ended, the verdict, and the place in Kubernetes that writes it."""

    name: str
    raw: Json
    reason: EndReason
    source: str


def by_kubelet(reason: str, state: Json | None = None, conditions: tuple[Json, ...] = ()) -> Json:
    """A pod that the kubelet, or the node controller, has made Failed with a reason of its own."""
    return raw_pod("Failed", state=state, conditions=conditions, status={"reason": reason, "message": "why"})


#: Reasons in `status.reason`: only the kubelet and the controllers write it.
POD_REASONS: Final = [
    Row("Evicted", by_kubelet("Evicted"), EndReason.EVICTED, KUBELET + "eviction/helpers.go (Reason)"),
    Row("Preempting", by_kubelet("Preempting"), EndReason.PREEMPTED, KUBELET + "preemption/preemption.go"),
    Row(
        "Terminated", by_kubelet("Terminated"), EndReason.NODE_LOST,
        KUBELET + "nodeshutdown/nodeshutdown_manager.go (nodeShutdownReason)",
    ),
    Row(
        "NodeShutdown", by_kubelet("NodeShutdown"), EndReason.NODE_LOST,
        KUBELET + "nodeshutdown/nodeshutdown_manager.go (nodeShutdownNotAdmittedReason)",
    ),
    Row("Shutdown", by_kubelet("Shutdown"), EndReason.NODE_LOST, KUBELET + "nodeshutdown, before Kubernetes 1.22"),
    Row("NodeLost", by_kubelet("NodeLost"), EndReason.NODE_LOST, "kubernetes/pkg/util/node (NodeUnreachablePodReason)"),
    Row("NodeAffinity", by_kubelet("NodeAffinity"), EndReason.NODE_LOST, KUBELET + "lifecycle/predicate.go"),
    Row(
        "DeadlineExceeded", by_kubelet("DeadlineExceeded"), EndReason.DEADLINE_EXCEEDED, KUBELET + "active_deadline.go"
    ),
    *(
        Row(word, by_kubelet(word), EndReason.START_ERROR, KUBELET + "lifecycle/predicate.go (OutOf<resource>)")
        for word in ("OutOfcpu", "OutOfmemory", "OutOfpods", "OutOfephemeral-storage", "OutOfexample.com/gpu")
    ),
    *(
        Row(word, by_kubelet(word), EndReason.START_ERROR, KUBELET + where)
        for word, where in {
            "UnexpectedAdmissionError": "lifecycle/predicate.go",
            "TaintToleration": "lifecycle/predicate.go",
            "NodePorts": "lifecycle/predicate.go",
            "InvalidNodeInfo": "lifecycle/predicate.go",
            "PodOSNotSupported": "lifecycle/predicate.go",
            "PodOSSelectorNodeLabelDoesNotMatch": "lifecycle/predicate.go",
            "TopologyAffinityError": "cm/topologymanager (ErrorTopologyAffinity)",
            "AppArmor": "lifecycle/handlers.go",
            "SysctlForbidden": "sysctl/allowlist.go",
            "VolumeAttachmentLimitExceeded": "volumemanager (MutableCSINodeAllocatableCount)",
        }.items()
    ),
]  # fmt: skip
#: Reasons of the condition DisruptionTarget, without a reason of the pod's.
CONDITIONS: Final = [
    Row(
        reason, raw_pod("Failed", state=terminated(143), conditions=[disrupted(reason)], metadata=deleted_at(9)),
        verdict,
        "https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions",
    )
    for reason, verdict in {
        "PreemptionByScheduler": EndReason.PREEMPTED,
        "DeletionByTaintManager": EndReason.NODE_LOST,
        "EvictionByEvictionAPI": EndReason.EVICTED,
        "DeletionByPodGC": EndReason.NODE_LOST,
        "TerminationByKubelet": EndReason.EVICTED,
        "AReasonOfALaterKubernetes": EndReason.EVICTED,
    }.items()
]  # fmt: skip
#: Reasons of the container: the runtime's words, and the kubelet's for a container that it does not know.
CONTAINERS: Final = [
    Row(
        "OOMKilled", raw_pod("Failed", state=terminated(137, "OOMKilled")), EndReason.OOM_KILLED,
        "containerd/internal/cri/server (oomExitReason)",
    ),
    Row(
        "ContainerStatusUnknown", raw_pod("Failed", state=terminated(137, "ContainerStatusUnknown")),
        EndReason.NODE_LOST, KUBELET + "container/runtime.go (ContainerReasonStatusUnknown)",
    ),
    Row(
        "StartError", raw_pod("Failed", state=terminated(128, "StartError", message="no space left", **UNSTARTED)),
        EndReason.START_ERROR, "containerd/internal/cri/server (errorStartReason)",
    ),
    Row(
        "an init container fails",
        with_others(raw_pod("Failed"), init=[container("setup", terminated(1))]), EndReason.START_ERROR,
        KUBELET + "kubelet_pods.go (getPhase): a pod with a failed init container is Failed, with no reason",
    ),
    Row(
        "another container fails",
        with_others(raw_pod("Failed", state=terminated(0, "Completed")), container("proxy", terminated(1))),
        EndReason.COMPLETED, KUBELET + "kubelet_pods.go (getPhase): any container that failed makes the pod Failed",
    ),
]  # fmt: skip
#: What a worker can bring about, with its exit code and its termination message.
WORKERS: Final = [
    Row(
        f"exits {code}, says {said!r}", raw_pod("Failed", state=terminated(code, message=said)), EndReason.ERROR,
        KUBELET + "kuberuntime/kuberuntime_container.go (getTerminationMessage): the file, or the log's end",
    )
    for code in (1, 126, 127, 128, 137, 139, 143, 255)
    for said in ("", "Evicted", "OOMKilled", "The node was low on resource: memory.", "NodeShutdown: Terminated")
]  # fmt: skip
TABLE: Final = [*POD_REASONS, *CONDITIONS, *CONTAINERS, *WORKERS]


@contract("5.fault")
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_an_end_has_its_reason(row: Row) -> None:
    """By what Kubernetes writes, and by nothing that the worker says."""
    verdict = finished_pod_verdict(seen(row.raw))
    assert verdict is not None
    assert verdict.reason is row.reason, row.source


@contract("5.fault")
@pytest.mark.parametrize("row", [row for row in POD_REASONS if row.reason is not EndReason.DEADLINE_EXCEEDED])
@pytest.mark.parametrize("state", [terminated(143, message="SIGTERM"), terminated(137, "OOMKilled"), terminated(0)])
def test_what_the_node_did_to_the_pod_is_not_the_workers_fault(row: Row, state: Json) -> None:
    """However its container then ended."""
    verdict = finished_pod_verdict(seen(by_kubelet(row.raw["status"]["reason"], state)))
    assert verdict is not None
    assert (verdict.reason.fault, verdict.reason.retry) == (FaultOrigin.INFRA, RetryBudget.INFRA)


@contract("5.fault")
@pytest.mark.parametrize("row", WORKERS, ids=lambda row: row.name)
def test_what_a_worker_says_is_the_users_whatever_it_says(row: Row) -> None:
    """And it comes out of the budget for workers: it gets no attempts of the platform's."""
    verdict = finished_pod_verdict(seen(row.raw))
    assert verdict is not None
    assert (verdict.reason.fault, verdict.reason.retry) == (FaultOrigin.USER, RetryBudget.WORKER)
    words = row.raw["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert not words or words not in verdict.message


@contract("5.PodDeleted")
@contract("5.ScaledDown")
@pytest.mark.parametrize("code", [137, 143, 1])
def test_an_exit_after_a_deletion_is_whose_deletion_it_was(code: int) -> None:
    """Ours has its termination stored before; without one it was a person's or another program's."""
    verdict = finished_pod_verdict(seen(raw_pod("Failed", state=terminated(code), metadata=deleted_at(12))))
    assert verdict is not None
    assert verdict.reason is EndReason.POD_DELETED
    ours = Termination(EndReason.SCALED_DOWN, "ended by scale_down", by="e-2")
    assert final_verdict(verdict, ours).reason is EndReason.SCALED_DOWN


def test_each_row_has_a_source() -> None:
    """And no row is there twice."""
    names = [row.name for row in TABLE]
    assert all(row.source for row in TABLE)
    assert len(names) == len(set(names)) >= 60
