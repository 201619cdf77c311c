"""Names are a function of the event, so that the API server itself is the lock:
a second create of the same worker is a 409.
"""

from __future__ import annotations

import hashlib

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
    """The consumer and the boot in an owner token `<consumer>/<boot>/<tenure>`; two empty texts if it is none.

    It is cut from the right: a consumer's name may contain slashes, and names are compared whole (`x` is not `x/y`).
    """
    parts = owner.rsplit("/", 2)
    return (parts[0], parts[1]) if len(parts) == 3 else ("", "")
