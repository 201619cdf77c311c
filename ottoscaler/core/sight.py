"""Since when a pod has been seen in which state, on our own monotonic clock, and what is overdue by it.

The pod's own times are those of other machines (the API server, the node), and their clocks may be wrong or be set at
any moment. So how long something has lasted is counted from when we saw it. A process that takes a worker over begins
to count again. What bounds that: the kubelet keeps a pod's deadline by itself, whatever becomes of us.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import replace

from ottoscaler.core.endings import own_end
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


def end_before_deadline(sight: Sight, pod: Snapshot, end: Verdict, now: float) -> Verdict:
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
