"""Snapshots as the watch reports them, for tests that publish by hand."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from ottoscaler.core.manifest import AttemptKey, event_hash, pod_name
from ottoscaler.core.pods import Phase, PodSnapshot
from tests.fakes.clock import START

HASH: Final = "0123456789"
INSTANCE: Final = "ottoscaler"


def pod(
    version: int, phase: Phase = Phase.PENDING, *, index: int = 1, attempt: int = 1, hash_: str = HASH, **changes: Any
) -> PodSnapshot:
    """The pod of a worker at a resource version; each worker's has a UID of its own."""
    key = AttemptKey(hash_, index, attempt)
    plain = PodSnapshot(
        key=key,
        name=pod_name(key),
        uid=f"uid-{index}-{attempt}",
        resource_version=str(version),
        event_id="e-1",
        instance=INSTANCE,
        phase=phase,
        created_at=START,
        started_at=None if phase is Phase.PENDING else START + 1,
    )
    return replace(plain, **changes)


def of(event_id: str, version: int, phase: Phase = Phase.PENDING, **changes: Any) -> PodSnapshot:
    """The pod of a worker of this event."""
    return pod(version, phase, hash_=event_hash(INSTANCE, event_id), event_id=event_id, **changes)
