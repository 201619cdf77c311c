"""Effects: what the state machine of a worker asks its thread to do next.

Each docstring names the observations that answer the effect.
"""

from __future__ import annotations

from dataclasses import dataclass

from ottoscaler.core.pods import Snapshot
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Intend:
    """Store the attempt. Answers: Intended, Cancelled, HasResult, OldAttempt, NotOurs."""

    attempt: int
    infra_used: int


@dataclass(frozen=True, slots=True)
class Create:
    """Create the attempt's pod. Answers: Seen, AlreadyThere, Refused, RejectedPod, Unclear."""

    attempt: int


@dataclass(frozen=True, slots=True)
class NoteRefused:
    """Store that the intended pod was refused and is not there. Answers: Done, NotOurs."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Look:
    """Live GET of the attempt's pod; not `live`: only if the watch does not show it. Answers: Seen, Absent, Foreign."""

    attempt: int
    live: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """Was it cancelled or recorded meanwhile? Answers: Checked, HasResult, NotOurs."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for the pod's next stage, at most until then. Answers: Seen, Missing, TerminationStored, TimedOut,
    NotOurs.
    """

    until: float | None


@dataclass(frozen=True, slots=True)
class StoreTermination:
    """Store the termination. Answers: TerminationStored (with the termination that holds), HasResult, OldAttempt,
    NotOurs.
    """

    termination: Termination


@dataclass(frozen=True, slots=True)
class ClearTermination:
    """Take the termination back. Answers: Checked (with the termination that holds now), HasResult, NotOurs."""

    termination: Termination


@dataclass(frozen=True, slots=True)
class DeleteIfUnchanged:
    """Delete the pod as it was seen, by UID and resourceVersion. Answers: Done, Changed.

    Its containers have `grace_s` seconds between SIGTERM and SIGKILL, None: what the pod's spec gives them.
    """

    pod: Snapshot
    grace_s: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """Store the result, once. Answers: Done, OldAttempt, NotOurs."""

    attempt: int
    verdict: Verdict
    pod: Snapshot | None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the pod by UID. Answers: Done."""

    pod: Snapshot


@dataclass(frozen=True, slots=True)
class Later:
    """Give the thread back and go on after so many seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class End:
    """Nothing is left to do."""

    why: str


Effect = (
    Intend
    | Create
    | NoteRefused
    | Look
    | Check
    | Await
    | StoreTermination
    | ClearTermination
    | DeleteIfUnchanged
    | Record
    | Delete
    | Later
    | End
)
