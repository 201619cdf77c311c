"""Effects: what the state machine of a worker asks its thread to do next.

Each docstring names the observations that answer the effect; any other is a defect (`lifecycle.IllegalStep`).
"""

from __future__ import annotations

import msgspec

from ottoscaler.core.observations import AlreadyThere, Unclear
from ottoscaler.core.pods import Snapshot
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Verdict


class Intend(msgspec.Struct, frozen=True):
    """Store the attempt. Answers: Intended, Cancelled, HasResult, OldAttempt, NotOurs."""

    attempt: int
    infra_used: int


class Later(msgspec.Struct, frozen=True):
    """Give the thread back, and intend at that time (monotonic seconds). Answers: TimedOut."""

    until: float


class DeleteOld(msgspec.Struct, frozen=True):
    """Delete an earlier attempt's pod by UID, before the next one is created. Answers: Done."""

    pod: Snapshot


class Create(msgspec.Struct, frozen=True):
    """Create the attempt's pod. Answers: Seen, AlreadyThere, Refused, RejectedPod, Unclear."""

    attempt: int


class NoteRefused(msgspec.Struct, frozen=True):
    """Store that the intended pod was refused and is not there. Answers: Done, NotOurs."""

    attempt: int


class Look(msgspec.Struct, frozen=True):
    """Live GET of the attempt's pod; not `live`: only if the watch does not show it. `after` is the answer to a create
    that does not say whether its pod is there. Answers: Seen, Absent, Foreign.
    """

    attempt: int
    live: bool = True
    after: AlreadyThere | Unclear | None = None


class Check(msgspec.Struct, frozen=True):
    """Was it cancelled or recorded meanwhile? Answers: Checked, HasResult, NotOurs."""

    attempt: int


class Await(msgspec.Struct, frozen=True):
    """Wait for the pod's next stage, at most until then (monotonic seconds; None: without end). Answers: Seen, Missing,
    TerminationStored, TimedOut, NotOurs.
    """

    until: float | None


class StoreTermination(msgspec.Struct, frozen=True):
    """Store the termination. Answers: TerminationStored (with the termination that holds), HasResult, OldAttempt,
    NotOurs.
    """

    termination: Termination


class ClearTermination(msgspec.Struct, frozen=True):
    """Take the termination back. Answers: Checked (with the termination that holds now), HasResult, NotOurs."""

    termination: Termination


class DeleteIfUnchanged(msgspec.Struct, frozen=True):
    """Delete the pod as it was seen, by UID and resourceVersion. Answers: Done, Changed.

    Its containers have `grace_s` seconds between SIGTERM and SIGKILL, None: what the pod's spec gives them.
    """

    pod: Snapshot
    grace_s: int | None = None


class Record(msgspec.Struct, frozen=True):
    """Store the result, once. Answers: Done, OldAttempt, NotOurs."""

    attempt: int
    verdict: Verdict
    pod: Snapshot | None


class Delete(msgspec.Struct, frozen=True):
    """Delete the pod by UID. Answers: Done."""

    pod: Snapshot


class End(msgspec.Struct, frozen=True):
    """Nothing is left to do; `reason` says why."""

    reason: str


Effect = (
    Intend | Later | DeleteOld | Create | NoteRefused | Look | Check | Await | StoreTermination | ClearTermination
    | DeleteIfUnchanged | Record | Delete | End
)  # fmt: skip
