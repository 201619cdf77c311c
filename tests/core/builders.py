"""Events, pods and worker settings in which only what a test is about differs from the ordinary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from ottoscaler.core.events import EventType, ScaleEvent
from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.pods import Phase, PodSnapshot, RawPod, pod_snapshot

Json = dict[str, Any]

STREAM_ID = "1714557600000-0"
#: 2024-05-01T10:00:00Z, when the pods of these tests are created.
NOW = 1714557600.0
HASH = "0123456789"
LABELS = {
    "managed-by": "ottoscaler",
    "ottoscaler.io/instance": "otto",
    "ottoscaler.io/event": HASH,
    "ottoscaler.io/worker": "2",
    "ottoscaler.io/attempt": "1",
}


def stamp(after_s: float = 0) -> str:
    """The given seconds after NOW, as the API server writes a time."""
    return datetime.fromtimestamp(NOW + after_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def event(**changes: Any) -> ScaleEvent:
    """A scale_up of three workers."""
    fields: Json = {
        "event_id": "e-1",
        "stream_id": STREAM_ID,
        "type": EventType.SCALE_UP,
        "pod_count": 3,
        "task_id": "t",
    }
    return ScaleEvent(**(fields | changes))


def raw_pod(
    phase: str = "Pending",
    *,
    state: Json | None = None,
    conditions: Sequence[Json] = (),
    metadata: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
) -> Json:
    """A pod as the API server sends it, with fields that our code does not ask for. `state` is the container's."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "otto-agent-0123456789-2",
            "namespace": "default",
            "uid": "u-1",
            "resourceVersion": "7",
            "creationTimestamp": stamp(),
            "labels": LABELS,
            "annotations": {"ottoscaler.io/event-id": "e-1", "other": "x"},
            "managedFields": [{"manager": "curl", "fieldsV1": {"f:spec": {}}}],
            **(metadata or {}),
        },
        "spec": {"nodeName": "n-1", "containers": [{"name": "agent"}]},
        "status": {
            "phase": phase,
            "qosClass": "Burstable",
            "conditions": list(conditions),
            "containerStatuses": [{"name": "agent", "ready": False, "state": state}] if state is not None else [],
            **(status or {}),
        },
    }


def decode(raw: object) -> RawPod:
    """What the watch decodes from the wire."""
    return msgspec.json.decode(msgspec.json.encode(raw), type=RawPod)


def seen(raw: Json) -> PodSnapshot:
    """The snapshot of a pod that is one of ours."""
    result = pod_snapshot(decode(raw))
    assert result is not None
    return result


RUNS: Json = {"running": {"startedAt": stamp(5)}}


def container(name: str, state: Json) -> Json:
    """One container's status."""
    return {"name": name, "image": f"registry.test/{name}:1", "ready": False, "state": state}


def with_others(raw: Json, *others: Json, first: bool = False, init: Sequence[Json] = (), **spec: Any) -> Json:
    """The same pod with the statuses of more containers, behind `agent` or before it, and of init containers. `spec`
    goes into the pod's spec.
    """
    own = raw["status"]["containerStatuses"]
    statuses = [*others, *own] if first else [*own, *others]
    names = [{"name": "agent"}, *({"name": other["name"]} for other in others)]
    status = raw["status"] | {"containerStatuses": statuses, "initContainerStatuses": list(init)}
    return raw | {"spec": raw["spec"] | {"containers": names} | spec, "status": status}


def terminated(code: int, reason: str = "Error", **more: Any) -> Json:
    """A container state: ended ten seconds after its start."""
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": stamp(5), "finishedAt": stamp(15), **more}}


def unscheduled(reason: str) -> Json:
    """The scheduler's word on a pod without a node."""
    return {"type": "PodScheduled", "status": "False", "reason": reason, "message": "0/3 nodes are available"}


def disrupted(reason: str) -> Json:
    """The condition that says that something other than the worker ended it."""
    return {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": "",
        "lastTransitionTime": stamp(9),
    }


def deleted_at(after_s: float, grace_s: int = 30) -> Json:
    """The metadata of a pod after a deletion request at that time: the API server adds the grace to the time."""
    return {"deletionTimestamp": stamp(after_s + grace_s), "deletionGracePeriodSeconds": grace_s}


def pod(phase: Phase = Phase.PENDING, **changes: Any) -> PodSnapshot:
    """The pod of worker 1, attempt 1, on its node."""
    plain = PodSnapshot(
        key=AttemptKey(HASH, 1, 1),
        name="otto-agent-0123456789-1",
        uid="u-1",
        resource_version="1",
        event_id="e-1",
        instance="otto",
        phase=phase,
        created_at=NOW,
        node="n-1",
    )
    return replace(plain, **changes)


_RAN: Json = {"started_at": NOW + 1, "node": "n-1"}


def running(**changes: Any) -> PodSnapshot:
    """It has started."""
    return pod(Phase.RUNNING, **(_RAN | changes))


def succeeded(**changes: Any) -> PodSnapshot:
    """It has ended well."""
    return pod(
        Phase.SUCCEEDED, **(_RAN | {"finished_at": NOW + 5, "exit_code": 0, "agent_end_reason": "Completed"} | changes)
    )


def failed(code: int = 1, **changes: Any) -> PodSnapshot:
    """It has ended by itself, with an exit code."""
    return pod(
        Phase.FAILED, **(_RAN | {"finished_at": NOW + 5, "exit_code": code, "agent_end_reason": "Error"} | changes)
    )


def evicted(**changes: Any) -> PodSnapshot:
    """The node ended it."""
    return failed(137, **({"reason": "Evicted", "message": "The node was low on resource: memory."} | changes))


def deleting(plain: PodSnapshot, **changes: Any) -> PodSnapshot:
    """The same pod after a request for its deletion."""
    return replace(plain, **({"deletion_requested_at": NOW + 2, "deletion_grace_s": 30.0} | changes))
