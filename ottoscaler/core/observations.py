"""Observations: what came of an effect, as the thread of a worker reports it to the state machine."""

from __future__ import annotations

from dataclasses import dataclass

from ottoscaler.core.pods import Snapshot
from ottoscaler.core.termination import Termination


@dataclass(frozen=True, slots=True)
class Done:
    """It is done, or was done before."""


@dataclass(frozen=True, slots=True)
class Intended:
    """The attempt is stored."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """There is a termination; `attempt` is the stored attempt, 0 where none ever was."""

    termination: Termination
    attempt: int


@dataclass(frozen=True, slots=True)
class HasResult:
    """The worker's result is stored already."""


@dataclass(frozen=True, slots=True)
class OldAttempt:
    """A higher attempt is stored: this life is over."""


@dataclass(frozen=True, slots=True)
class NotOurs:
    """Another process owns the task now: touch nothing more."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The pod, as it is."""

    pod: Snapshot


@dataclass(frozen=True, slots=True)
class AlreadyThere:
    """409: a pod of that name exists, or is being deleted."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Quota or back-pressure: no pod was created. `after_s` is what the server asked for."""

    message: str
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class RejectedPod:
    """The API server does not accept this pod, now or later."""

    message: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """No answer, or none of the API's: the pod may have been created. `after_s` is what the server asked for."""

    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """A live GET found no pod of that name."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A pod of that name is there and is not this worker's."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A list lacks the pod: to be confirmed, since a list may be older than the pod."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The termination that is stored, if any; there is no result."""

    termination: Termination | None


@dataclass(frozen=True, slots=True)
class TerminationStored:
    """This termination is stored."""

    termination: Termination


@dataclass(frozen=True, slots=True)
class Changed:
    """The pod is not as it was seen, or gone: look again."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The time of an Await is over."""


Observation = (
    Done | Intended | Cancelled | HasResult | OldAttempt | NotOurs | Seen | AlreadyThere | Refused | RejectedPod
    | Unclear | Absent | Foreign | Missing | Checked | TerminationStored | Changed | TimedOut
)  # fmt: skip
