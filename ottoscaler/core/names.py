"""Names are a function of the event, so that the API server itself is the lock: a second create of the same worker is
a 409.

A pod's name says which worker it is, its labels repeat it for the watch, and its annotation proves it. An admission
webhook, or a person, may change labels. A pod without the labels that we need is still ours (the name, and the event id
in its annotation, which has the hash in the name), but no watch shows it any more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

import msgspec

MANAGED_BY = "managed-by"
MANAGER = "ottoscaler"
LABEL_INSTANCE = "ottoscaler.io/instance"
LABEL_EVENT = "ottoscaler.io/event"
LABEL_WORKER = "ottoscaler.io/worker"
LABEL_ATTEMPT = "ottoscaler.io/attempt"
ANNOTATION_EVENT_ID = "ottoscaler.io/event-id"
ANNOTATION_TASK_ID = "ottoscaler.io/task-id"
ANNOTATION_DIGEST = "ottoscaler.io/spec-digest"
ANNOTATION_EVENT = "ottoscaler.io/event"

HASH_DIGITS = 10

_DIGITS: Final = re.compile(r"[0-9]{1,9}")
_NAME: Final = re.compile(rf"otto-agent-([0-9a-f]{{{HASH_DIGITS}}})-([0-9]{{1,9}})(?:-r([0-9]{{1,9}}))?")


class WorkerKey(msgspec.Struct, frozen=True):
    """One attempt of one worker, as in its pod's labels: the key of the registry."""

    event_hash: str
    index: int
    attempt: int

    @property
    def worker(self) -> tuple[str, int]:
        """Which worker, whatever the attempt."""
        return self.event_hash, self.index


def event_hash(instance: str, event_id: str) -> str:
    """The 10 hexadecimal digits that stand for an event in names and labels."""
    return hashlib.sha256(f"{instance}\0{event_id}".encode()).hexdigest()[:HASH_DIGITS]


def pod_name(key: WorkerKey) -> str:
    """The name of an attempt's pod: the same event gives the same names, always;
    from the second attempt on with a suffix.
    """
    suffix = f"-r{key.attempt}" if key.attempt > 1 else ""
    return f"otto-agent-{key.event_hash}-{key.index}{suffix}"


def selector(instance: str) -> str:
    """The label selector of all pods of one Ottoscaler."""
    return f"{MANAGED_BY}={MANAGER},{LABEL_INSTANCE}={instance}"


def process_of(owner: str) -> tuple[str, str]:
    """Consumer and incarnation of an owner token `<consumer>/<incarnation>/<epoch>`; two empty texts if it is none.

    It is cut from the right: a consumer's name may contain slashes, and names are compared whole (`x` is not `x/y`).
    """
    parts = owner.rsplit("/", 2)
    return (parts[0], parts[1]) if len(parts) == 3 else ("", "")


def labels_of(key: WorkerKey, instance: str) -> dict[str, str]:
    """The labels that a worker's pod must have: by the first two the watch selects it."""
    return {
        MANAGED_BY: MANAGER,
        LABEL_INSTANCE: instance,
        LABEL_EVENT: key.event_hash,
        LABEL_WORKER: str(key.index),
        LABEL_ATTEMPT: str(key.attempt),
    }


def by_labels(name: str, labels: Mapping[str, str]) -> WorkerKey | None:
    """The attempt that the labels speak of; None if they are not a worker's, or are those of a pod of another name."""
    event, index, attempt = labels.get(LABEL_EVENT), labels.get(LABEL_WORKER, ""), labels.get(LABEL_ATTEMPT, "")
    if event is None or not (_DIGITS.fullmatch(index) and _DIGITS.fullmatch(attempt)):
        return None
    key = WorkerKey(event, int(index), int(attempt))
    return key if pod_name(key) == name else None


def by_annotation(name: str, event_id: str, instance: str) -> WorkerKey | None:
    """The attempt in the name, if the annotated event has that hash in this instance; otherwise None."""
    parts = _NAME.fullmatch(name) if event_id else None
    if parts is None or parts[1] != event_hash(instance, event_id):
        return None
    key = WorkerKey(parts[1], int(parts[2]), int(parts[3] or 1))
    return key if pod_name(key) == name else None


def altered(asked: Mapping[str, str], found: Mapping[str, str], event_ids: tuple[str, str] = ("", "")) -> str:
    """One sentence on the first label that is not as it was asked for, or on the event id in the annotation (as asked
    for, as found); empty if all that we need is there. Other labels may be added, changed and removed.
    """
    wanted, there = event_ids
    if asked.items() <= found.items() and wanted == there:  # as good as always, and for each change of a pod
        return ""
    for name, value in asked.items():
        if found.get(name) != value:
            return _changed(f"label {name}", value, found.get(name))
    return _changed(f"annotation {ANNOTATION_EVENT_ID}", wanted, there or None)


def _changed(what: str, before: str, after: str | None) -> str:
    became = "was removed" if after is None else f"was changed from {before!r} to {after[:100]!r}"
    return f"the pod's {what} {became}, perhaps by an admission webhook; without it the pod cannot be watched"
