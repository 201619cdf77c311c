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
from ottoscaler.core.autoscaler import NodeForecast
from ottoscaler.core.effects import AwaitPod, ListPodEvents, StoreTermination
from ottoscaler.core.pods import Phase, PodSnapshot, StartTrouble
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason, Verdict

#: The kubelet ends a pod at its deadline; this long after it we do, seconds.
DEADLINE_MARGIN_S: Final = 30.0
#: How often a pod that is being deleted, or in an unknown phase, is looked at live, seconds.
RELOOK_S: Final = 60.0
#: The same for a pod that no watch shows, since its labels were changed from outside, seconds.
RELOOK_UNWATCHED_S: Final = 2.0
#: A pod on a dead node stays "terminating" without end; this long after its grace it counts as lost with its node,
#: seconds.
NODE_LOST_AFTER_S: Final = 30.0
#: How much longer than PENDING_TIMEOUT_S, at most, a pod may be without a node while an autoscaler says that one is on
#: its way, seconds: after 15 minutes cluster-autoscaler (--max-node-provision-time) and Karpenter give a node up that
#: has not come.
MAX_NODE_WAIT_S: Final = 900.0
#: How often the Events of such a pod are listed, seconds.
EVENTS_EVERY_S: Final = 60.0

_NODE_REASONS: Final = frozenset({"NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "NodeNotReady"})
#: The kubelet or the runtime came back and does not know how the container ended.
_UNKNOWN_ENDS: Final = frozenset({"ContainerStatusUnknown", "Unknown"})
#: The node refused the pod on arrival; the message of the status says why.
_ADMISSION: Final = ("UnexpectedAdmission", "OutOf")
_TROUBLE_REASONS: Final = {
    StartTrouble.NONE: EndReason.PENDING_TIMEOUT,
    StartTrouble.GATED: EndReason.PENDING_TIMEOUT,
    StartTrouble.INVALID_IMAGE: EndReason.INVALID_IMAGE,
    StartTrouble.IMAGE_PULL: EndReason.IMAGE_PULL,
    StartTrouble.IMAGE_PULL_TRANSIENT: EndReason.IMAGE_PULL_TRANSIENT,
    StartTrouble.CONFIG: EndReason.CONFIG_ERROR,
    StartTrouble.START: EndReason.START_ERROR,
    StartTrouble.COMMAND: EndReason.COMMAND_NOT_FOUND,
    StartTrouble.SERVICE: EndReason.SERVICE_NOT_READY,
    StartTrouble.SERVICE_STARTING: EndReason.SERVICE_NOT_READY,
    StartTrouble.UNSCHEDULABLE: EndReason.UNSCHEDULABLE,
}
#: Troubles that rarely pass: they have IMAGE_PULL_GRACE_S.
_BRIEFLY_AWAITED: Final = (
    StartTrouble.IMAGE_PULL, StartTrouble.CONFIG, StartTrouble.START, StartTrouble.COMMAND, StartTrouble.SERVICE,
)  # fmt: skip


class AttemptLimits(Protocol):
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


class PodTimeline(msgspec.Struct, frozen=True):
    """When each of these was first seen, in seconds of our monotonic clock; None: not yet.

    `created`: our own create was answered. `waiting_since`: it has not started, and no gate holds it. `bound`: it has a
    node. `pull_failed`: its image could not be pulled, for the first time. `deleted_first`: its deletion was requested
    before `agent` was seen to have ended. `ended`: `agent` has ended, and `agent_verdict` is how, if another container
    outlived it and the pod had not been deleted or disrupted before. `trouble` with `trouble_since`: since when it has
    not started for which reason. `events_asked`: when its Events were asked for last, and `forecast` is what they said
    when they were last listed.
    """

    created: float | None = None
    waiting_since: float | None = None
    bound: float | None = None
    pull_failed: float | None = None
    started: float | None = None
    deleting_since: float | None = None
    deleted_first: bool = False
    ended: float | None = None
    agent_verdict: Verdict | None = None
    trouble: StartTrouble = StartTrouble.NONE
    trouble_since: float = 0.0
    events_asked: float | None = None
    forecast: NodeForecast | None = None

    @property
    def start_clock(self) -> float | None:
        """From when PENDING_TIMEOUT_S counts. The time without a node, that of the start on its node, and that of an
        image that cannot be pulled are three clocks: what one of them has used, the next one has again. None of them
        begins twice, so together they have a bound.
        """
        began = [moment for moment in (self.waiting_since, self.bound, self.pull_failed) if moment is not None]
        return max(began, default=None)

    @property
    def started_unasked(self) -> bool:
        """Had the worker started before its pod was asked to go? A termination that spares what has started deletes a
        pod only as it was seen before its start.
        """
        return self.started is not None and (self.deleting_since is None or self.started < self.deleting_since)


#: Nothing has been seen.
EMPTY_TIMELINE: Final = PodTimeline()


# -- since when, and what is overdue


def observe(timeline: PodTimeline, pod: PodSnapshot, now: float) -> PodTimeline:
    """What is known after this look at the pod: what it shows for the first time has begun now."""
    new: dict[str, Any] = {}
    if pod.trouble is StartTrouble.GATED:
        new["waiting_since"] = None
    elif timeline.waiting_since is None:
        new["waiting_since"] = now
    if timeline.bound is None and pod.node:
        new["bound"] = now
    if timeline.pull_failed is None and pod.trouble is StartTrouble.IMAGE_PULL_TRANSIENT:
        new["pull_failed"] = now
    if timeline.started is None and pod.started_at is not None:
        new["started"] = now
    if pod.deleting:
        if timeline.deleting_since is None:
            new["deleting_since"] = now
        if not pod.agent_ended:
            new["deleted_first"] = True
    if timeline.ended is None and pod.exit_code is not None:
        untouched = pod.agent_outlived and not pod.deleting and pod.disruption is None and not pod.reason
        new |= {"ended": now, "agent_verdict": agent_verdict(pod) if untouched else None}
    if pod.trouble is not timeline.trouble and not _is_vaguer(timeline, pod):
        new |= {"trouble": pod.trouble, "trouble_since": now}
    return replace(timeline, **new) if new else timeline


def relook_s(pod: PodSnapshot) -> float:
    """After how many seconds a pod is looked at live when nothing is seen of it."""
    return RELOOK_UNWATCHED_S if pod.altered_label else RELOOK_S


def with_forecast(timeline: PodTimeline, forecast: NodeForecast | None, now: float) -> PodTimeline:
    """The pod's Events were asked for, and this is what they say; None: they were not listed."""
    return replace(timeline, events_asked=now, forecast=forecast or timeline.forecast)


def due_effect(
    timeline: PodTimeline, pod: PodSnapshot, now: float, limits: AttemptLimits, attempt: int
) -> StoreTermination | ListPodEvents | AwaitPod:
    """What is due now for a pod that has not ended and is not to be ended: its termination, a look at its Events, or
    nothing before some time.
    """
    if pod.altered_label and pod.exit_code is None:
        return StoreTermination(Termination(EndReason.REJECTED, pod.altered_label, attempt))
    if pod.deleting:
        return AwaitPod(now + relook_s(pod))
    if pod.exit_code is not None:
        return _outlived(timeline, pod, now, limits, attempt)
    if pod.phase is Phase.UNKNOWN:
        return AwaitPod(now + relook_s(pod))
    if pod.started_at is None:
        return _not_started(timeline, pod, now, limits, attempt)
    if not limits.deadline_s:
        return AwaitPod(None)
    due = _first_seen(timeline.started, now) + limits.deadline_s + DEADLINE_MARGIN_S
    message = f"the worker ran longer than {limits.deadline_s} s"
    return _at(due, now, Termination(EndReason.DEADLINE_EXCEEDED, message, attempt))


def passed_limit_s(timeline: PodTimeline, pod: PodSnapshot, limits: AttemptLimits) -> int | None:
    """The limit, in seconds, for which `due_effect` ends this pod; None where it ends it whatever its time."""
    if pod.exit_code is not None:
        return limits.termination_grace_s
    if pod.altered_label:
        return None
    if pod.started_at is not None:
        return limits.deadline_s
    if timeline.trouble is StartTrouble.INVALID_IMAGE:
        return None
    brief = timeline.trouble in _BRIEFLY_AWAITED
    return min(limits.pending_timeout_s, limits.image_pull_grace_s) if brief else limits.pending_timeout_s


def _not_started(
    timeline: PodTimeline, pod: PodSnapshot, now: float, limits: AttemptLimits, attempt: int
) -> StoreTermination | ListPodEvents | AwaitPod:
    """The clock of each trouble; that of a pod without a node waits for a node that an autoscaler has announced."""
    if timeline.trouble is StartTrouble.GATED:
        return AwaitPod(None)
    due = _first_seen(timeline.start_clock, now) + limits.pending_timeout_s
    message = pod.trouble_text or f"the pod did not start within {limits.pending_timeout_s} s"
    if timeline.trouble is StartTrouble.INVALID_IMAGE:
        due = now
    elif timeline.trouble in _BRIEFLY_AWAITED:
        due = min(due, timeline.trouble_since + limits.image_pull_grace_s)
    elif timeline.trouble is StartTrouble.UNSCHEDULABLE and now >= due:
        waiting = _node_wait(timeline, pod, now, due + MAX_NODE_WAIT_S)
        if waiting is not None:
            return waiting
        said = timeline.forecast.message if timeline.forecast is not None else ""
        message += f"; {said}" if said else ""
    return _at(due, now, Termination(_TROUBLE_REASONS[timeline.trouble], message, attempt))


def _node_wait(timeline: PodTimeline, pod: PodSnapshot, now: float, latest: float) -> ListPodEvents | AwaitPod | None:
    """A pod has been without a node for its whole time: what is to be done while one may be on its way; None when it
    has waited enough.
    """
    if now >= latest:
        return None
    # Asked for only now: a pod that gets its node in time costs no request.
    again = now if timeline.events_asked is None else timeline.events_asked + EVENTS_EVERY_S
    if now >= again:
        return ListPodEvents(pod)
    # An API server that does not list them has not said that no node comes.
    return AwaitPod(min(again, latest)) if timeline.forecast is None or timeline.forecast.expected else None


def _at(due: float, now: float, termination: Termination) -> StoreTermination | AwaitPod:
    """This termination, when its time has come."""
    return StoreTermination(termination) if now >= due else AwaitPod(due)


def lost_with_node(timeline: PodTimeline, pod: PodSnapshot, now: float) -> bool:
    """The node controller asked for its deletion and the kubelet never answered: the node is dead."""
    if pod.disruption is not EndReason.NODE_LOST or timeline.deleting_since is None or pod.finished:
        return False
    return now > timeline.deleting_since + pod.deletion_grace_s + NODE_LOST_AFTER_S


def _outlived(
    timeline: PodTimeline, pod: PodSnapshot, now: float, limits: AttemptLimits, attempt: int
) -> StoreTermination | AwaitPod:
    """`agent` has ended, and other containers keep the pod alive: they have TERMINATION_GRACE_S."""
    due = _first_seen(timeline.ended, now) + limits.termination_grace_s
    end = timeline.agent_verdict or agent_verdict(pod)
    return AwaitPod(due) if end is None else _at(due, now, Termination(end.reason, end.message, attempt))


def _is_vaguer(timeline: PodTimeline, pod: PodSnapshot) -> bool:
    """Between two pulls the kubelet may say only "Back-off": the earlier, clearer text then holds."""
    vague = pod.trouble is StartTrouble.IMAGE_PULL_TRANSIENT and "ImagePullBackOff" in pod.trouble_text
    return vague and timeline.trouble is StartTrouble.IMAGE_PULL


def _first_seen(since: float | None, now: float) -> float:
    """When it was first seen: now, if not before."""
    return now if since is None else since


# -- how it ended


def pod_verdict(timeline: PodTimeline, pod: PodSnapshot, now: float) -> Verdict | None:
    """How this pod ended, by what it shows and by how long it has been seen so; None while it has not."""
    end = finished_pod_verdict(pod, deleted_first=timeline.deleted_first)
    if end is not None:
        return _before_deadline(timeline, pod, end, now)
    if lost_with_node(timeline, pod, now):
        return Verdict(EndReason.NODE_LOST, f"node {pod.node} does not answer")
    return None


def finished_pod_verdict(pod: PodSnapshot, *, deleted_first: bool = False) -> Verdict | None:
    """How this pod ended, or None while it has not (a pod that is gone has).

    Arguments: the pod, and whether a deletion request for it was seen before the end of `agent`.
    """
    if pod.phase is Phase.SUCCEEDED:
        return Verdict(EndReason.COMPLETED, "the worker exited with code 0")
    if pod.phase is not Phase.FAILED and not pod.gone:
        return None
    own, platform = agent_verdict(pod), _platform_end(pod)
    # the kubelet forces the phase Failed, with a reason, on a pod that it ends; without one another container failed
    forced = pod.phase is Phase.FAILED and pod.reason
    if own is not None and (pod.ended_before_deadline or (own.reason is EndReason.COMPLETED and not forced)):
        return own
    if platform is not None:
        return platform
    # a pod that other containers kept alive is deleted in phase Running: `agent` alone in it would have made it Failed
    if pod.phase is not Phase.FAILED and own is None:
        return Verdict(EndReason.POD_DELETED, f"the pod was deleted from outside in phase {pod.phase}")
    return _failed_pod_verdict(pod, own, deleted_first=deleted_first)


def agent_verdict(pod: PodSnapshot) -> Verdict | None:
    """How the container `agent` itself ended, whatever became of its pod; None while it has not."""
    if pod.exit_code is None:
        return None
    code = f"the worker exited with code {pod.exit_code}"
    if pod.agent_end_reason in startup.START_REASONS:
        missing = startup.cannot_execute(pod.start_error, pod.exit_code)
        return Verdict(EndReason.COMMAND_NOT_FOUND if missing else EndReason.START_ERROR, pod.start_error or code)
    if pod.agent_end_reason in _UNKNOWN_ENDS:
        return Verdict(EndReason.NODE_LOST, code)
    if pod.exit_code == 0:
        return Verdict(EndReason.COMPLETED, code)
    if pod.agent_end_reason == "OOMKilled":
        return Verdict(EndReason.OOM_KILLED, f"{code}: it used more memory than its limit")
    return Verdict(EndReason.ERROR, code)


def _before_deadline(timeline: PodTimeline, pod: PodSnapshot, end: Verdict, now: float) -> Verdict:
    """The kubelet counts a deadline on its node's clock. Where the pod is younger than its deadline, that clock was
    set: this is the platform's doing, and not the worker's.
    """
    if end.reason is not EndReason.DEADLINE_EXCEEDED or timeline.created is None:
        return end
    if now - timeline.created >= pod.deadline_s - DEADLINE_MARGIN_S:
        return end
    message = (
        f"the kubelet ended the pod (DeadlineExceeded) {now - timeline.created:.0f} s after its creation, before its "
        f"deadline of {pod.deadline_s} s: the clock of node {pod.node} was set"
    )
    return Verdict(EndReason.EVICTED, message)


def _platform_end(pod: PodSnapshot) -> Verdict | None:
    """What the platform did to the whole pod; None if it did nothing."""
    code = "" if pod.exit_code is None else f"the worker exited with code {pod.exit_code}"
    # first: the kubelet's one DisruptionTarget reason, TerminationByKubelet, covers eviction, preemption and node
    # shutdown
    if pod.reason.startswith("Preempt"):
        return Verdict(EndReason.PREEMPTED, pod.message)
    if pod.reason in _NODE_REASONS:
        return Verdict(EndReason.NODE_LOST, pod.message or code)
    if pod.disruption is not None:
        removed = f"the pod was removed in phase {pod.phase}" if pod.gone and not pod.finished else ""
        text = removed or pod.message or code
        return Verdict(pod.disruption, f"{pod.unknown_disruption}: {text}" if pod.unknown_disruption else text)
    if pod.reason == "DeadlineExceeded":
        return Verdict(EndReason.DEADLINE_EXCEEDED, pod.message)
    if pod.reason == "Evicted":
        return Verdict(EndReason.EVICTED, pod.message)
    if pod.reason.startswith(_ADMISSION):
        return Verdict(EndReason.START_ERROR, pod.message or f"the node refused the pod: {pod.reason}")
    if pod.reason:
        text = f"{pod.reason}: {pod.message}" if pod.message else pod.reason
        return Verdict(EndReason.EVICTED if pod.started_at is not None else EndReason.START_ERROR, text)
    return None


def _failed_pod_verdict(pod: PodSnapshot, own: Verdict | None, *, deleted_first: bool) -> Verdict:
    """The end of a pod that failed and of which the platform says nothing."""
    unclear = (
        own is None or own.reason is EndReason.ERROR or (own.reason is EndReason.NODE_LOST and pod.started_at is None)
    )
    if unclear and (deleted_first or _ended_by_deletion(pod)):
        code = f"; the worker exited with code {pod.exit_code}" if pod.started_at is not None and own else ""
        return Verdict(EndReason.POD_DELETED, f"the pod was deleted from outside{code}")
    if own is not None:
        return own
    if pod.started_at is not None:
        return Verdict(
            EndReason.EVICTED, pod.message or "the pod failed, and its node does not say how the worker ended"
        )
    if pod.trouble in (StartTrouble.COMMAND, StartTrouble.SERVICE):
        return Verdict(_TROUBLE_REASONS[pod.trouble], pod.trouble_text)
    return Verdict(EndReason.START_ERROR, pod.trouble_text or pod.message or "the pod failed before the worker started")


def _ended_by_deletion(pod: PodSnapshot) -> bool:
    """The API server wrote the time of the request, the node that of the end: compared after taking off what is known
    of the difference between their clocks. Whole seconds are all that Kubernetes writes: an end in the very second of
    the request counts as caused by it.
    """
    if pod.deletion_requested_at is None:
        return False
    return pod.finished_at is None or pod.finished_at - pod.node_clock_ahead_s >= int(pod.deletion_requested_at)
