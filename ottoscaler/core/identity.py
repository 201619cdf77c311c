"""Which worker a pod belongs to: the name says it, the labels repeat it for the watch, and the annotation proves it.

An admission webhook, or a person, may change labels. A pod without the labels that we need is still ours (the name, and
the event id in its annotation, which has the hash in the name), but no watch shows it any more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ottoscaler.core.names import (
    ANNOTATION_EVENT_ID,
    HASH_DIGITS,
    LABEL_ATTEMPT,
    LABEL_EVENT,
    LABEL_INSTANCE,
    LABEL_WORKER,
    MANAGED_BY,
    MANAGER,
    WorkerKey,
    event_hash,
    pod_name,
)

_DIGITS: Final = re.compile(r"[0-9]{1,9}")
_NAME: Final = re.compile(rf"otto-agent-([0-9a-f]{{{HASH_DIGITS}}})-([0-9]{{1,9}})(?:-r([0-9]{{1,9}}))?")


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
