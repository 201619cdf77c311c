"""From a pod as the API server sends it to a `Snapshot`, and from a snapshot to a `Verdict`.

Only fields that the API server and the kubelet write are read: a worker cannot forge whose fault its end was by what it
prints, by its exit code or by its termination message. The reasons are those of the kubelet and the controllers
(https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ and .../disruptions/#pod-disruption-conditions).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from ottoscaler.core.names import (
    ANNOTATION_EVENT,
    ANNOTATION_EVENT_ID,
    LABEL_ATTEMPT,
    LABEL_EVENT,
    LABEL_INSTANCE,
    LABEL_WORKER,
    WorkerKey,
)
from ottoscaler.core.verdicts import Reason, Verdict

#: A pod on a dead node stays "terminating" for ever; this long after its grace it counts as lost with its node,
#: seconds.
NODE_LOST_AFTER_S: Final = 30.0

_DIGITS = re.compile(r"[0-9]{1,9}")
#: What registries say when asking again changes nothing; every other text is a passing fault.
_PULL_PERMANENT = re.compile(
    r"not found|manifest unknown|does not exist|unauthorized|authorization failed|denied|forbidden|no basic auth"
    r"|invalid reference|ErrImageNeverPull|no match for platform",
    re.IGNORECASE,
)
_PULL_TRANSIENT = re.compile(
    # a number behind one of :./- is part of an image's name, not a status
    r"toomanyrequests|too many requests|QPS exceeded|timeout|timed out|(?<![:./-])\b(?:429|50[0234])\b",
    re.IGNORECASE,
)
_PULL_REASONS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ImageInspectError",
        "RegistryUnavailable",
        "ErrImageNeverPull",
        "SignatureValidationFailed",
    }
)
_CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "PreStartHookError", "InvalidMountPropagation"})
_START_REASONS: Final = frozenset(
    {"StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError", "PostStartHookError"}
)
_NODE_REASONS: Final = frozenset({"NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "NodeNotReady"})
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": Reason.PREEMPTED,
    "EvictionByEvictionAPI": Reason.EVICTED,
    "TerminationByKubelet": Reason.EVICTED,
    "DeletionByTaintManager": Reason.NODE_LOST,
    "DeletionByPodGC": Reason.NODE_LOST,
}


class Phase(StrEnum):
    """status.phase of a pod."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


_PHASES: Final = {phase.value: phase for phase in Phase}


class Trouble(StrEnum):
    """Why a pod has not started yet, as far as it is a fault."""

    NONE = ""
    INVALID_IMAGE = "InvalidImage"
    IMAGE_PULL = "ImagePull"
    IMAGE_PULL_TRANSIENT = "ImagePullTransient"
    CONFIG = "ConfigError"
    START = "StartError"
    UNSCHEDULABLE = "Unschedulable"


# -- the wire: only the fields that are used, so that decoding one event costs microseconds and a held pod a few hundred
# bytes ------


class _Annotations(msgspec.Struct, frozen=True):
    event_id: str = msgspec.field(default="", name=ANNOTATION_EVENT_ID)


class _FullAnnotations(msgspec.Struct, frozen=True):
    event: str = msgspec.field(default="", name=ANNOTATION_EVENT)


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    uid: str = ""
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    creation_timestamp: str = msgspec.field(default="", name="creationTimestamp")
    deletion_timestamp: str = msgspec.field(default="", name="deletionTimestamp")
    deletion_grace_s: float = msgspec.field(default=0, name="deletionGracePeriodSeconds")
    labels: dict[str, str] = {}
    annotations: _Annotations = _Annotations()


class _Waiting(msgspec.Struct, frozen=True):
    reason: str = ""
    message: str = ""


class _Running(msgspec.Struct, frozen=True):
    started_at: str | None = msgspec.field(default=None, name="startedAt")


class _Terminated(msgspec.Struct, frozen=True):
    exit_code: int = msgspec.field(default=0, name="exitCode")
    reason: str = ""
    message: str = ""
    started_at: str | None = msgspec.field(default=None, name="startedAt")
    finished_at: str | None = msgspec.field(default=None, name="finishedAt")


class _State(msgspec.Struct, frozen=True):
    waiting: _Waiting | None = None
    running: _Running | None = None
    terminated: _Terminated | None = None


class _ContainerStatus(msgspec.Struct, frozen=True):
    state: _State = _State()


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    since: str | None = msgspec.field(default=None, name="lastTransitionTime")


class _Status(msgspec.Struct, frozen=True):
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: list[_Condition] = []
    containers: list[_ContainerStatus] = msgspec.field(default_factory=list, name="containerStatuses")


class _Spec(msgspec.Struct, frozen=True):
    node: str = msgspec.field(default="", name="nodeName")


class RawPod(msgspec.Struct, frozen=True):
    """A pod of the API server, cut down to what is used."""

    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _EventPod(msgspec.Struct, frozen=True):
    class _Meta(msgspec.Struct, frozen=True):
        annotations: _FullAnnotations = _FullAnnotations()

    metadata: _Meta = _Meta()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a pod at one resource version. Times are seconds since the epoch, None where not yet."""

    key: WorkerKey
    name: str
    uid: str
    resource_version: str
    event_id: str
    instance: str
    phase: Phase
    created_at: float | None
    scheduled_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    deletion_requested_at: float | None = None
    deletion_grace_s: float = 0.0
    exit_code: int | None = None
    ended_as: str = ""
    message: str = ""
    node: str = ""
    trouble: Trouble = Trouble.NONE
    trouble_text: str = ""
    disruption: Reason | None = None
    gone: bool = False

    @property
    def finished(self) -> bool:
        """Its program has ended and its phase says how."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)

    @property
    def live(self) -> bool:
        """It uses capacity: there, and not finished."""
        return not self.gone and not self.finished

    @property
    def deleting(self) -> bool:
        """Somebody, perhaps we, asked for its deletion."""
        return self.deletion_requested_at is not None

    @property
    def stage(self) -> tuple[object, ...]:
        """What a waiter cares about: it is woken only when this changes."""
        return (self.phase, self.trouble, self.started_at is not None, self.deleting, self.gone, self.uid)

    def as_gone(self) -> Snapshot:
        """The same pod, deleted: the last status stays, as in a DELETED event."""
        return replace(self, gone=True)


def epoch(stamp: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time of the API server; None for none.

    The kubelet writes 1970-01-01 as the start of a container that never started: that is none, too.
    """
    seconds = datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
    return seconds if seconds > 0 else None


def snapshot(raw: RawPod) -> Snapshot | None:
    """The snapshot of a pod, or None if its labels are not those of one of our workers."""
    labels = raw.metadata.labels
    numbers = labels.get(LABEL_WORKER, ""), labels.get(LABEL_ATTEMPT, "")
    if LABEL_EVENT not in labels or not all(_DIGITS.fullmatch(number) for number in numbers):
        return None
    meta, status = raw.metadata, raw.status
    state = status.containers[0].state if status.containers else _State()
    ended, conditions = state.terminated, {condition.type: condition for condition in status.conditions}
    scheduled = conditions.get("PodScheduled")
    disruption = conditions.get("DisruptionTarget")
    trouble, text = _trouble(state.waiting, scheduled)
    asked = epoch(meta.deletion_timestamp)
    started = ended.started_at if ended else state.running.started_at if state.running else None
    return Snapshot(
        key=WorkerKey(labels[LABEL_EVENT], int(numbers[0]), int(numbers[1])),
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
        event_id=meta.annotations.event_id,
        instance=labels.get(LABEL_INSTANCE, ""),
        phase=_PHASES.get(status.phase, Phase.UNKNOWN),
        created_at=epoch(meta.creation_timestamp),
        scheduled_at=epoch(scheduled.since) if scheduled and scheduled.status == "True" else None,
        started_at=epoch(started),
        finished_at=epoch(ended.finished_at) if ended else None,
        deletion_requested_at=None if asked is None else asked - (meta.deletion_grace_s or 0),
        deletion_grace_s=meta.deletion_grace_s or 0,
        exit_code=ended.exit_code if ended else None,
        ended_as=status.reason or (ended.reason if ended else ""),
        message=status.message or (ended.message if ended and ended.reason in _START_REASONS else ""),
        node=raw.spec.node,
        trouble=trouble,
        trouble_text=text,
        disruption=_DISRUPTIONS.get(disruption.reason) if disruption and disruption.status == "True" else None,
    )


def foreign(raw: RawPod) -> Snapshot:
    """What is known of a pod that is not a worker of ours: that it is there, under which name and UID."""
    return Snapshot(
        key=WorkerKey("", 0, 0),
        name=raw.metadata.name,
        uid=raw.metadata.uid,
        resource_version=raw.metadata.resource_version,
        event_id="",
        instance="",
        phase=Phase.UNKNOWN,
        created_at=None,
    )


def event_annotation(body: bytes) -> str:
    """The event that a pod's annotation carries, as JSON; empty if there is none."""
    return msgspec.json.decode(body, type=_EventPod).metadata.annotations.event


def verdict(pod: Snapshot) -> Verdict | None:
    """How this pod ended, or None while it has not (a pod that is gone has)."""
    if pod.phase is Phase.SUCCEEDED:
        return Verdict(Reason.COMPLETED, "the worker exited with code 0")
    if pod.phase is Phase.FAILED:
        return _failed(pod)
    if not pod.gone:
        return None
    if pod.disruption is not None:
        return Verdict(pod.disruption, f"the pod was removed in phase {pod.phase}")
    return Verdict(Reason.POD_DELETED, f"somebody deleted the pod in phase {pod.phase}")


def lost_with_node(pod: Snapshot, now: float) -> bool:
    """The node controller asked for its deletion and the kubelet never answered: the node is dead."""
    if pod.disruption is not Reason.NODE_LOST or pod.deletion_requested_at is None or pod.finished:
        return False
    return now > pod.deletion_requested_at + pod.deletion_grace_s + NODE_LOST_AFTER_S


def _failed(pod: Snapshot) -> Verdict:
    code = "" if pod.exit_code is None else f"the worker exited with code {pod.exit_code}"
    # first: the kubelet's one DisruptionTarget reason, TerminationByKubelet, covers eviction, preemption and node
    # shutdown
    if pod.ended_as.startswith("Preempt"):
        return Verdict(Reason.PREEMPTED, pod.message)
    if pod.ended_as in _NODE_REASONS:
        return Verdict(Reason.NODE_LOST, pod.message or code)
    if pod.disruption is not None:
        return Verdict(pod.disruption, pod.message or code)
    if pod.ended_as == "DeadlineExceeded":
        return Verdict(Reason.DEADLINE_EXCEEDED, pod.message)
    if pod.ended_as == "Evicted":
        return Verdict(Reason.EVICTED, pod.message)
    if pod.ended_as == "ContainerStatusUnknown":
        return Verdict(Reason.NODE_LOST, pod.message or code)
    if pod.ended_as in _START_REASONS:
        return Verdict(Reason.START_ERROR, pod.message or code)
    if pod.ended_as == "OOMKilled":
        return Verdict(Reason.OOM_KILLED, f"{code}: it used more memory than its limit")
    if pod.ended_as.startswith("UnexpectedAdmission") or pod.ended_as.startswith("OutOf"):
        return Verdict(Reason.START_ERROR, pod.message or f"the node refused the pod: {pod.ended_as}")
    if _ended_by_deletion(pod):
        return Verdict(Reason.POD_DELETED, f"somebody deleted the pod; {code}" if code else "somebody deleted the pod")
    return Verdict(Reason.ERROR, code or pod.message or "the pod failed")


def _ended_by_deletion(pod: Snapshot) -> bool:
    """Whole seconds are all that Kubernetes tells: an end in the very second of the request counts as caused by it."""
    if pod.deletion_requested_at is None:
        return False
    return pod.finished_at is None or pod.finished_at >= int(pod.deletion_requested_at)


def _trouble(waiting: _Waiting | None, scheduled: _Condition | None) -> tuple[Trouble, str]:
    if scheduled is not None and scheduled.status == "False" and scheduled.reason == "Unschedulable":
        return Trouble.UNSCHEDULABLE, scheduled.message
    if waiting is None:
        return Trouble.NONE, ""
    text = f"{waiting.reason}: {waiting.message}" if waiting.message else waiting.reason
    if waiting.reason == "InvalidImageName":
        return Trouble.INVALID_IMAGE, text
    if waiting.reason in _PULL_REASONS:
        permanent = _PULL_PERMANENT.search(text) and not _PULL_TRANSIENT.search(text)
        return (Trouble.IMAGE_PULL if permanent else Trouble.IMAGE_PULL_TRANSIENT), text
    if waiting.reason in _CONFIG_REASONS:
        return Trouble.CONFIG, text
    if waiting.reason in _START_REASONS:
        return Trouble.START, text
    return Trouble.NONE, ""
