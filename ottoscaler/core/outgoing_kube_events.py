"""Kubernetes Events that the controller writes: what about, in which words, and as which object of the API.

An Event is for people at the cluster (`kubectl describe pod`, `kubectl get events`). Nothing depends on one:
the API server forgets each after an hour. What is written already by others is not repeated: the scheduler's and the
kubelet's Events say why a pod does not start, and a worker that succeeds has none.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec

from ottoscaler.core.events import BadEvent
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.results import rfc3339

#: Longest text of an Event, in bytes of UTF-8
#: (https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/, `note`).
MAX_NOTE_BYTES: Final = 1024
#: How much of an object's name goes into that of its Event: the whole is at most 253 characters.
_MAX_NAME_PART: Final = 200
#: Longest `reportingInstance`, characters.
_MAX_INSTANCE: Final = 128
#: How our Events name the program that wrote them; the admission policy lets the controller write no others.
COMPONENT: Final = "ottoscaler"


class EventReason(StrEnum):
    """Why an Event is written. A reason never changes its meaning; new ones may be added."""

    # on a worker's pod
    WORKER_FAILED = "WorkerFailed"
    WORKER_RETRIED = "WorkerRetried"
    WORKER_TERMINATING = "WorkerTerminating"
    WORKER_CANCELLED = "WorkerCancelled"
    # on the controller's pod
    DEAD_LETTER = "DeadLetter"
    LEASE_LOST = "LeaseLost"
    QUOTA_USED_UP = "QuotaUsedUp"

    @property
    def event_type(self) -> str:
        """`Warning`, or `Normal` for what was asked for."""
        return "Normal" if self is EventReason.WORKER_CANCELLED else "Warning"


class PodReference(msgspec.Struct, frozen=True):
    """The pod that an Event is about."""

    name: str
    uid: str


class KubeEvent(msgspec.Struct, frozen=True):
    """One thing that has happened; `pod` is None for the controller's own."""

    reason: EventReason
    message: str
    pod: PodReference | None = None


#: Takes an Event to be written. It never waits, and raises nothing.
RecordKubeEvent = Callable[[KubeEvent], None]


def record_nothing(event: KubeEvent) -> None:
    """The `RecordKubeEvent` where Kubernetes Events are off."""


def worker_event(reason: EventReason, message: str, pod: PodSnapshot) -> KubeEvent:
    """Something has happened to a worker."""
    return KubeEvent(reason, message, PodReference(pod.name, pod.uid))


def dead_letter_event(event_id: str, bad: BadEvent) -> KubeEvent:
    """An event became a dead letter."""
    return KubeEvent(EventReason.DEAD_LETTER, f"Dead letter {event_id}: {bad.reason} ({bad.detail})")


def lease_lost_event(event_id: str, new_owner: str) -> KubeEvent:
    """Another replica has taken over a task of ours."""
    return KubeEvent(EventReason.LEASE_LOST, f"Task {event_id} was taken over by {new_owner}")


def quota_event(workers: str, why: str) -> KubeEvent:
    """These workers are not created because a quota is used up."""
    return KubeEvent(EventReason.QUOTA_USED_UP, f"Not created: {workers}: {why}")


def note_text(text: str) -> str:
    """A text from anywhere as an Event may carry it: one line, printable, at most MAX_NOTE_BYTES of UTF-8."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    encoded = line.encode("utf-8", "replace")
    if len(encoded) <= MAX_NOTE_BYTES:
        return encoded.decode("utf-8")
    mark = "…".encode()
    return (encoded[: MAX_NOTE_BYTES - len(mark)]).decode("utf-8", "ignore") + mark.decode()


def event_name(pod: PodReference, suffix: str) -> str:
    """The name of a new Event about a pod; the suffix makes it the only one of that name."""
    return f"{pod.name[:_MAX_NAME_PART].rstrip('.-')}.{suffix}"


def new_event(
    event: KubeEvent, pod: PodReference, *, name: str, namespace: str, at: float, count: int, instance: str
) -> bytes:
    """The body of a create.

    Arguments: what has happened, the pod that it is about, the Event's name, the namespace of both, when it happened
    (seconds since the epoch) and how often, and the replica that writes it.
    """
    now = rfc3339(at)[:19] + "Z"
    about = {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "namespace": namespace, "uid": pod.uid}
    body = {
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": about,
        "type": event.reason.event_type, "reason": event.reason.value, "message": note_text(event.message),
        "count": count, "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT, "reportingInstance": note_text(instance)[:_MAX_INSTANCE],
    }  # fmt: skip
    return msgspec.json.encode(body)


def repeated_event(event: KubeEvent, *, count: int, at: float) -> bytes:
    """The body of a merge patch: it has happened again, for the `count`-th time, at `at` (seconds since the epoch)."""
    now = rfc3339(at)[:19] + "Z"
    return msgspec.json.encode({"count": count, "lastTimestamp": now, "message": note_text(event.message)})
