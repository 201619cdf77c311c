"""A pod as the API server sends it: only the fields that are used, so that decoding one event of a watch costs
microseconds, and a pod that is held a few hundred bytes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ottoscaler.core.manifest import (
    ANNOTATION_EVENT,
    ANNOTATION_EVENT_ID,
    ANNOTATION_KEEP,
    ANNOTATION_SERVICES,
    ANNOTATION_TENANT,
)


class _Annotations(msgspec.Struct, frozen=True):
    event_id: str = msgspec.field(default="", name=ANNOTATION_EVENT_ID)
    services: str = msgspec.field(default="", name=ANNOTATION_SERVICES)
    keep_failed_s: str = msgspec.field(default="", name=ANNOTATION_KEEP)
    tenant: str = msgspec.field(default="", name=ANNOTATION_TENANT)


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    uid: str = ""
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    creation_timestamp: str = msgspec.field(default="", name="creationTimestamp")
    deletion_timestamp: str = msgspec.field(default="", name="deletionTimestamp")
    deletion_grace_s: float = msgspec.field(default=0, name="deletionGracePeriodSeconds")
    finalizers: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    annotations: _Annotations = _Annotations()


class _Waiting(msgspec.Struct, frozen=True):
    reason: str = ""
    message: str = ""


class RawRunning(msgspec.Struct, frozen=True):
    """Since when a container runs."""

    started_at: str | None = msgspec.field(default=None, name="startedAt")


class RawTerminated(msgspec.Struct, frozen=True):
    """How a container ended."""

    exit_code: int | None = msgspec.field(default=None, name="exitCode")
    reason: str = ""
    message: str = ""
    started_at: str | None = msgspec.field(default=None, name="startedAt")
    finished_at: str | None = msgspec.field(default=None, name="finishedAt")


class RawState(msgspec.Struct, frozen=True):
    """What a container does now: one of the three."""

    waiting: _Waiting | None = None
    running: RawRunning | None = None
    terminated: RawTerminated | None = None


class RawContainerStatus(msgspec.Struct, frozen=True):
    """What the kubelet says of a container. `last` is how it ended before its last restart; `started`: its startup
    probe has succeeded.
    """

    name: str = ""
    image: str = ""
    state: RawState = RawState()
    last: RawState = msgspec.field(default=RawState(), name="lastState")
    started: bool | None = None
    restarts: int = msgspec.field(default=0, name="restartCount")


class RawCondition(msgspec.Struct, frozen=True):
    """One condition of a pod."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    since: str | None = msgspec.field(default=None, name="lastTransitionTime")


class _Status(msgspec.Struct, frozen=True):
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: list[RawCondition] = []
    kubelet_began: str | None = msgspec.field(default=None, name="startTime")
    containers: list[RawContainerStatus] = msgspec.field(default_factory=list, name="containerStatuses")
    init: list[RawContainerStatus] = msgspec.field(default_factory=list, name="initContainerStatuses")


class RawContainer(msgspec.Struct, frozen=True):
    """A container as the pod's spec declares it."""

    name: str = ""
    image: str = ""
    restart_policy: str = msgspec.field(default="", name="restartPolicy")


class _Gate(msgspec.Struct, frozen=True):
    name: str = ""


class _Spec(msgspec.Struct, frozen=True):
    node: str = msgspec.field(default="", name="nodeName")
    deadline_s: int = msgspec.field(default=0, name="activeDeadlineSeconds")
    gates: list[_Gate] = msgspec.field(default_factory=list, name="schedulingGates")
    containers: list[RawContainer] = []
    init: list[RawContainer] = msgspec.field(default_factory=list, name="initContainers")


class RawPod(msgspec.Struct, frozen=True):
    """A pod of the API server, cut down to what is used."""

    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()


class _EventAnnotation(msgspec.Struct, frozen=True):
    event: str = msgspec.field(default="", name=ANNOTATION_EVENT)


class _EventMetadata(msgspec.Struct, frozen=True):
    annotations: _EventAnnotation = _EventAnnotation()


class _EventPod(msgspec.Struct, frozen=True):
    metadata: _EventMetadata = _EventMetadata()


_pod: Final = msgspec.json.Decoder(_EventPod)  # at import: see core/events.py


def event_annotation(body: bytes) -> str:
    """The event that a pod's annotation carries, as JSON; empty if there is none. It is large, and only a task that
    Redis has forgotten is taken up from it. Raises msgspec.MsgspecError.
    """
    return _pod.decode(body).metadata.annotations.event
