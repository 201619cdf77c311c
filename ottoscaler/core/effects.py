"""Effects: what the state machine of a worker asks its thread to do next.

Each docstring names the observations that answer the effect; any other is a defect (`lifecycle.IllegalStep`).
"""

from __future__ import annotations

import msgspec

from ottoscaler.core.observations import CreateUnclear, PodAlreadyExists
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Verdict


class StoreAttempt(msgspec.Struct, frozen=True):
    """Store the attempt. Answers: AttemptStored, Cancelled, HasResult, NewerAttemptStored, OwnershipLost."""

    attempt: int
    infra_used: int
    oom_kills: int = 0


class PauseUntil(msgspec.Struct, frozen=True):
    """Give the thread back, and store the attempt at that time (monotonic seconds). Answers: TimedOut."""

    until: float


class DeleteOldPod(msgspec.Struct, frozen=True):
    """Delete an earlier attempt's pod by UID, before the next one is created. Answers: EffectDone."""

    pod: PodSnapshot


class CreatePod(msgspec.Struct, frozen=True):
    """Create the attempt's pod. Answers: PodSeen, PodAlreadyExists, CreateRefused, RejectedPod, CreateUnclear."""

    attempt: int


class StoreRefusal(msgspec.Struct, frozen=True):
    """Store that the intended pod was refused and is not there. Answers: EffectDone, OwnershipLost."""

    attempt: int


class GetPod(msgspec.Struct, frozen=True):
    """Live GET of the attempt's pod; not `live`: only if the watch does not show it. `after` is the answer to a create
    that does not say whether its pod is there. Answers: PodSeen, PodNotFound, ForeignPod.
    """

    attempt: int
    live: bool = True
    after: PodAlreadyExists | CreateUnclear | None = None


class MarkPodSeen(msgspec.Struct, frozen=True):
    """Was it cancelled or recorded meanwhile? Answers: NoResultYet, HasResult, OwnershipLost."""

    attempt: int


class AwaitPod(msgspec.Struct, frozen=True):
    """Wait for the pod's next stage, at most until then (monotonic seconds; None: without end). Answers: PodSeen,
    PodNotListed, TerminationStored, TimedOut, OwnershipLost.
    """

    until: float | None


class ListPodEvents(msgspec.Struct, frozen=True):
    """List the Events of a pod that no node takes: is one on its way? Answers: PodEventsListed, PodEventsUnknown."""

    pod: PodSnapshot


class StoreTermination(msgspec.Struct, frozen=True):
    """Store the termination. Answers: TerminationStored (with the termination that holds), HasResult,
    NewerAttemptStored, OwnershipLost.
    """

    termination: Termination


class ClearTermination(msgspec.Struct, frozen=True):
    """Take the termination back. Answers: NoResultYet (with the one that holds now), HasResult, OwnershipLost."""

    termination: Termination


class DeletePodIfUnchanged(msgspec.Struct, frozen=True):
    """Delete the pod as it was seen, by UID and resourceVersion. Answers: EffectDone, PodChanged.

    Its containers have `grace_s` seconds between SIGTERM and SIGKILL, None: what the pod's spec gives them.
    """

    pod: PodSnapshot
    grace_s: int | None = None


class RecordResult(msgspec.Struct, frozen=True):
    """Store the result, once. Answers: EffectDone, NewerAttemptStored, OwnershipLost."""

    attempt: int
    verdict: Verdict
    pod: PodSnapshot | None


class DeletePod(msgspec.Struct, frozen=True):
    """Delete the pod by UID. Answers: EffectDone."""

    pod: PodSnapshot


class KeepPod(msgspec.Struct, frozen=True):
    """Leave the pod of the failed worker there for inspection. Answers: EffectDone."""

    pod: PodSnapshot


class EndLifecycle(msgspec.Struct, frozen=True):
    """Nothing is left to do; `reason` says why."""

    reason: str


Effect = (
    StoreAttempt | PauseUntil | DeleteOldPod | CreatePod | StoreRefusal | GetPod | MarkPodSeen | AwaitPod
    | ListPodEvents | StoreTermination | ClearTermination
    | DeletePodIfUnchanged | RecordResult | DeletePod | KeepPod | EndLifecycle
)  # fmt: skip
