"""How a pod ended: from a snapshot to a `Verdict`.

Only fields that the API server and the kubelet write are read: a worker cannot shift the fault for its end by what it
prints or by its termination message. The reasons are those of the kubelet and the controllers
(https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ and .../disruptions/#pod-disruption-conditions).

The rule: the verdict is what it would be if `agent` were alone in the pod. What ended `agent` decides: the platform,
a deletion from outside, or `agent` itself. An unknown reason of the platform counts as the platform's fault.
"""

from __future__ import annotations

from typing import Final

from ottoscaler.core import startup
from ottoscaler.core.pods import Phase, Snapshot, Trouble
from ottoscaler.core.verdicts import Reason, Verdict

_NODE_REASONS: Final = frozenset({"NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "NodeNotReady"})
#: The kubelet or the runtime came back and does not know how the container ended.
_UNKNOWN_ENDS: Final = frozenset({"ContainerStatusUnknown", "Unknown"})
#: The node refused the pod on arrival; the message of the status says why.
_ADMISSION: Final = ("UnexpectedAdmission", "OutOf")


def verdict(pod: Snapshot, *, deleted_first: bool = False) -> Verdict | None:
    """How this pod ended, or None while it has not (a pod that is gone has).

    Arguments: the pod, and whether a deletion request for it was seen before the end of `agent`.
    """
    if pod.phase is Phase.SUCCEEDED:
        return Verdict(Reason.COMPLETED, "the worker exited with code 0")
    if pod.phase is not Phase.FAILED and not pod.gone:
        return None
    own, platform = own_end(pod), _platform_end(pod)
    # the kubelet forces the phase Failed, with a reason, on a pod that it ends; without one another container failed
    forced = pod.phase is Phase.FAILED and pod.reason
    if own is not None and (pod.ended_first or (own.reason is Reason.COMPLETED and not forced)):
        return own
    if platform is not None:
        return platform
    # a pod that other containers kept alive is deleted in phase Running: `agent` alone in it would have made it Failed
    if pod.phase is not Phase.FAILED and own is None:
        return Verdict(Reason.POD_DELETED, f"the pod was deleted from outside in phase {pod.phase}")
    return _failed(pod, own, deleted_first=deleted_first)


def own_end(pod: Snapshot) -> Verdict | None:
    """How the container `agent` itself ended, whatever became of its pod; None while it has not."""
    if pod.exit_code is None:
        return None
    code = f"the worker exited with code {pod.exit_code}"
    if pod.ended_as in startup.START_REASONS:
        missing = startup.cannot_execute(pod.start_error, pod.exit_code)
        return Verdict(Reason.COMMAND_NOT_FOUND if missing else Reason.START_ERROR, pod.start_error or code)
    if pod.ended_as in _UNKNOWN_ENDS:
        return Verdict(Reason.NODE_LOST, code)
    if pod.exit_code == 0:
        return Verdict(Reason.COMPLETED, code)
    if pod.ended_as == "OOMKilled":
        return Verdict(Reason.OOM_KILLED, f"{code}: it used more memory than its limit")
    return Verdict(Reason.ERROR, code)


def _platform_end(pod: Snapshot) -> Verdict | None:
    """What the platform did to the whole pod; None if it did nothing."""
    code = "" if pod.exit_code is None else f"the worker exited with code {pod.exit_code}"
    # first: the kubelet's one DisruptionTarget reason, TerminationByKubelet, covers eviction, preemption and node
    # shutdown
    if pod.reason.startswith("Preempt"):
        return Verdict(Reason.PREEMPTED, pod.message)
    if pod.reason in _NODE_REASONS:
        return Verdict(Reason.NODE_LOST, pod.message or code)
    if pod.disruption is not None:
        removed = f"the pod was removed in phase {pod.phase}" if pod.gone and not pod.finished else ""
        text = removed or pod.message or code
        return Verdict(pod.disruption, f"{pod.disrupted_as}: {text}" if pod.disrupted_as else text)
    if pod.reason == "DeadlineExceeded":
        return Verdict(Reason.DEADLINE_EXCEEDED, pod.message)
    if pod.reason == "Evicted":
        return Verdict(Reason.EVICTED, pod.message)
    if pod.reason.startswith(_ADMISSION):
        return Verdict(Reason.START_ERROR, pod.message or f"the node refused the pod: {pod.reason}")
    if pod.reason:
        text = f"{pod.reason}: {pod.message}" if pod.message else pod.reason
        return Verdict(Reason.EVICTED if pod.started_at is not None else Reason.START_ERROR, text)
    return None


def _failed(pod: Snapshot, own: Verdict | None, *, deleted_first: bool) -> Verdict:
    """The end of a pod that failed and of which the platform says nothing."""
    unclear = own is None or own.reason is Reason.ERROR or (own.reason is Reason.NODE_LOST and pod.started_at is None)
    if unclear and (deleted_first or _ended_by_deletion(pod)):
        code = f"; the worker exited with code {pod.exit_code}" if pod.started_at is not None and own else ""
        return Verdict(Reason.POD_DELETED, f"the pod was deleted from outside{code}")
    if own is not None:
        return own
    if pod.started_at is not None:
        return Verdict(Reason.EVICTED, pod.message or "the pod failed, and its node does not say how the worker ended")
    if pod.trouble is Trouble.COMMAND:
        return Verdict(Reason.COMMAND_NOT_FOUND, pod.trouble_text)
    return Verdict(Reason.START_ERROR, pod.trouble_text or pod.message or "the pod failed before the worker started")


def _ended_by_deletion(pod: Snapshot) -> bool:
    """The API server wrote the time of the request, the node that of the end: compared after taking off what is known
    of the difference between their clocks. Whole seconds are all that Kubernetes writes: an end in the very second of
    the request counts as caused by it.
    """
    if pod.deletion_requested_at is None:
        return False
    return pod.finished_at is None or pod.finished_at - pod.node_ahead_s >= int(pod.deletion_requested_at)
