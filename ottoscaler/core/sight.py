"""What a pod's snapshots mean: how the pod ended, since when it has been seen in which state, and what is overdue.

How it ended: only fields that the API server and the kubelet write are read. A worker cannot shift the fault for its
end by what it prints or by its termination message. The reasons are those of the kubelet and the controllers
(https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ and .../disruptions/#pod-disruption-conditions). The
rule: the verdict is what it would be if `agent` were alone in the pod. What ended `agent` decides: the platform, a
deletion from outside, or `agent` itself. An unknown reason of the platform counts as the platform's fault.

Since when: counted on our own monotonic clock. The pod's own times are those of other machines (the API server, the
node), and their clocks may be wrong or be set at any moment. So how long something has lasted is counted from when we
saw it. A process that takes a worker over begins to count again. What bounds that: the kubelet keeps a pod's deadline
by itself, whatever becomes of us.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import replace

from ottoscaler.core import startup
from ottoscaler.core.pods import Phase, Snapshot, Trouble
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason, Verdict

#: The kubelet ends a pod at its deadline; this long after it we do, seconds.
DEADLINE_MARGIN_S: Final = 30.0
#: How often a pod that is being deleted, or in an unknown phase, is looked at live, seconds.
RELOOK_S: Final = 60.0
#: The same for a pod that no watch shows, since its labels were changed from outside, seconds.
RELOOK_UNWATCHED_S: Final = 2.0
#: A pod on a dead node stays "terminating" without end; this long after its grace it counts as lost with its node,
#: seconds.
NODE_LOST_AFTER_S: Final = 30.0

_NODE_REASONS: Final = frozenset({"NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "NodeNotReady"})
#: The kubelet or the runtime came back and does not know how the container ended.
_UNKNOWN_ENDS: Final = frozenset({"ContainerStatusUnknown", "Unknown"})
#: The node refused the pod on arrival; the message of the status says why.
_ADMISSION: Final = ("UnexpectedAdmission", "OutOf")
_TROUBLE_REASONS: Final = {
    Trouble.NONE: Reason.PENDING_TIMEOUT,
    Trouble.GATED: Reason.PENDING_TIMEOUT,
    Trouble.INVALID_IMAGE: Reason.INVALID_IMAGE,
    Trouble.IMAGE_PULL: Reason.IMAGE_PULL,
    Trouble.IMAGE_PULL_TRANSIENT: Reason.IMAGE_PULL_TRANSIENT,
    Trouble.CONFIG: Reason.CONFIG_ERROR,
    Trouble.START: Reason.START_ERROR,
    Trouble.COMMAND: Reason.COMMAND_NOT_FOUND,
    Trouble.UNSCHEDULABLE: Reason.UNSCHEDULABLE,
}


class Limits(Protocol):
    """Times in seconds and numbers of new attempts; `settings.WorkerSettings` is one."""

    @property
    def deadline_s(self) -> int: ...
    @property
    def pending_timeout_s(self) -> int: ...
    @property
    def image_pull_grace_s(self) -> int: ...
    @property
    def termination_grace_s(self) -> int: ...
    @property
    def infra_retries(self) -> int: ...
    @property
    def worker_retries(self) -> int: ...


class Sight(msgspec.Struct, frozen=True):
    """When each of these was first seen, in seconds of our monotonic clock; None: not yet.

    `created`: our own create was answered. `waiting`: it has not started, and no gate holds it. `deleted_first`: its
    deletion was requested before `agent` was seen to have ended. `ended`: `agent` has ended, and `own` is how, if
    another container outlived it and the pod had not been deleted or disrupted before. `trouble` with `trouble_at`:
    since when it has not started for which reason.
    """

    created: float | None = None
    waiting: float | None = None
    started: float | None = None
    deleting: float | None = None
    deleted_first: bool = False
    ended: float | None = None
    own: Verdict | None = None
    trouble: Trouble = Trouble.NONE
    trouble_at: float = 0.0

    @property
    def started_unasked(self) -> bool:
        """Had the worker started before its pod was asked to go? A termination that spares what has started deletes a
        pod only as it was seen before its start.
        """
        return self.started is not None and (self.deleting is None or self.started < self.deleting)


#: Nothing has been seen.
UNSEEN: Final = Sight()


# -- since when, and what is overdue


def observe(sight: Sight, pod: Snapshot, now: float) -> Sight:
    """What is known after this look at the pod: what it shows for the first time has begun now."""
    new: dict[str, Any] = {}
    if pod.trouble is Trouble.GATED:
        new["waiting"] = None
    elif sight.waiting is None:
        new["waiting"] = now
    if sight.started is None and pod.started_at is not None:
        new["started"] = now
    if pod.deleting:
        if sight.deleting is None:
            new["deleting"] = now
        if not pod.ended:
            new["deleted_first"] = True
    if sight.ended is None and pod.exit_code is not None:
        untouched = pod.outlived and not pod.deleting and pod.disruption is None and not pod.reason
        new |= {"ended": now, "own": own_end(pod) if untouched else None}
    if pod.trouble is not sight.trouble and not _is_vaguer(sight, pod):
        new |= {"trouble": pod.trouble, "trouble_at": now}
    return replace(sight, **new) if new else sight


def relook_s(pod: Snapshot) -> float:
    """After how many seconds a pod is looked at live when nothing is seen of it."""
    return RELOOK_UNWATCHED_S if pod.altered else RELOOK_S


def overdue(
    sight: Sight, pod: Snapshot, now: float, limits: Limits, attempt: int
) -> tuple[Termination | None, float | None]:
    """The termination that is due now, or when to look at the clock again (None: never), for a pod that has not
    ended.
    """
    if pod.altered and pod.exit_code is None:
        return Termination(Reason.REJECTED, pod.altered, attempt), None
    if pod.deleting:
        return None, now + relook_s(pod)
    if pod.exit_code is not None:
        return _outlived(sight, pod, now, limits, attempt)
    if pod.phase is Phase.UNKNOWN:
        return None, now + relook_s(pod)
    if pod.started_at is not None:
        if not limits.deadline_s:
            return None, None
        due = _first(sight.started, now) + limits.deadline_s + DEADLINE_MARGIN_S
        message = f"the worker ran longer than {limits.deadline_s} s"
        return (Termination(Reason.DEADLINE_EXCEEDED, message, attempt), None) if now >= due else (None, due)
    if sight.trouble is Trouble.GATED:
        return None, None
    due = _first(sight.waiting, now) + limits.pending_timeout_s
    if sight.trouble is Trouble.INVALID_IMAGE:
        due = now
    elif sight.trouble in (Trouble.IMAGE_PULL, Trouble.CONFIG, Trouble.START, Trouble.COMMAND):
        due = min(due, sight.trouble_at + limits.image_pull_grace_s)
    if now < due:
        return None, due
    message = pod.trouble_text or f"the pod did not start within {limits.pending_timeout_s} s"
    return Termination(_TROUBLE_REASONS[sight.trouble], message, attempt), None


def lost_with_node(sight: Sight, pod: Snapshot, now: float) -> bool:
    """The node controller asked for its deletion and the kubelet never answered: the node is dead."""
    if pod.disruption is not Reason.NODE_LOST or sight.deleting is None or pod.finished:
        return False
    return now > sight.deleting + pod.deletion_grace_s + NODE_LOST_AFTER_S


def _outlived(
    sight: Sight, pod: Snapshot, now: float, limits: Limits, attempt: int
) -> tuple[Termination | None, float | None]:
    """`agent` has ended, and other containers keep the pod alive: they have TERMINATION_GRACE_S."""
    due = _first(sight.ended, now) + limits.termination_grace_s
    end = sight.own or own_end(pod)
    if now < due or end is None:
        return None, due
    return Termination(end.reason, end.message, attempt), None


def _is_vaguer(sight: Sight, pod: Snapshot) -> bool:
    """Between two pulls the kubelet may say only "Back-off": the earlier, clearer text then holds."""
    vague = pod.trouble is Trouble.IMAGE_PULL_TRANSIENT and "ImagePullBackOff" in pod.trouble_text
    return vague and sight.trouble is Trouble.IMAGE_PULL


def _first(since: float | None, now: float) -> float:
    """When it was first seen: now, if not before."""
    return now if since is None else since


# -- how it ended


def end_of(sight: Sight, pod: Snapshot, now: float) -> Verdict | None:
    """How this pod ended, by what it shows and by how long it has been seen so; None while it has not."""
    end = verdict(pod, deleted_first=sight.deleted_first)
    if end is not None:
        return _before_deadline(sight, pod, end, now)
    if lost_with_node(sight, pod, now):
        return Verdict(Reason.NODE_LOST, f"node {pod.node} does not answer")
    return None


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


def _before_deadline(sight: Sight, pod: Snapshot, end: Verdict, now: float) -> Verdict:
    """The kubelet counts a deadline on its node's clock. Where the pod is younger than its deadline, that clock was
    set: this is the platform's doing, and not the worker's.
    """
    if end.reason is not Reason.DEADLINE_EXCEEDED or sight.created is None:
        return end
    if now - sight.created >= pod.deadline_s - DEADLINE_MARGIN_S:
        return end
    message = (
        f"the kubelet ended the pod (DeadlineExceeded) {now - sight.created:.0f} s after its creation, before its "
        f"deadline of {pod.deadline_s} s: the clock of node {pod.node} was set"
    )
    return Verdict(Reason.EVICTED, message)


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
