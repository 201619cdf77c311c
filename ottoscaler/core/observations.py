"""Observations: what came of an effect, as the thread of a worker reports it to the state machine."""

from __future__ import annotations

import msgspec

from ottoscaler.core.pods import Snapshot
from ottoscaler.core.termination import Termination


class Done(msgspec.Struct, frozen=True):
    """It is done, or was done before."""


class Intended(msgspec.Struct, frozen=True):
    """The attempt is stored."""


class Cancelled(msgspec.Struct, frozen=True):
    """There is a termination; `attempt` is the stored attempt, 0 where none ever was."""

    termination: Termination
    attempt: int


class HasResult(msgspec.Struct, frozen=True):
    """The worker's result is stored already."""


class OldAttempt(msgspec.Struct, frozen=True):
    """A higher attempt is stored: this life is over."""


class NotOurs(msgspec.Struct, frozen=True):
    """Another process owns the task now: touch nothing more."""


class Seen(msgspec.Struct, frozen=True):
    """The pod, as it is."""

    pod: Snapshot


class AlreadyThere(msgspec.Struct, frozen=True):
    """409: a pod of that name exists, or is being deleted."""


class Refused(msgspec.Struct, frozen=True):
    """Quota or back-pressure: no pod was created. `after_s` is what the server asked for."""

    message: str
    after_s: float | None = None


class RejectedPod(msgspec.Struct, frozen=True):
    """The API server does not accept this pod, now or later."""

    message: str


class Unclear(msgspec.Struct, frozen=True):
    """No answer, or none of the API's: the pod may have been created. `after_s` is what the server asked for."""

    after_s: float | None = None


class Absent(msgspec.Struct, frozen=True):
    """A live GET found no pod of that name."""


class Foreign(msgspec.Struct, frozen=True):
    """A pod of that name is there and is not this worker's."""


class Missing(msgspec.Struct, frozen=True):
    """A list lacks the pod: to be confirmed, since a list may be older than the pod."""


class Checked(msgspec.Struct, frozen=True):
    """The termination that is stored, if any; there is no result."""

    termination: Termination | None


class TerminationStored(msgspec.Struct, frozen=True):
    """This termination is stored."""

    termination: Termination


class Changed(msgspec.Struct, frozen=True):
    """The pod is not as it was seen, or gone: look again."""


class TimedOut(msgspec.Struct, frozen=True):
    """The time of an Await or a Later is over."""


Observation = (
    Done | Intended | Cancelled | HasResult | OldAttempt | NotOurs | Seen | AlreadyThere | Refused | RejectedPod
    | Unclear | Absent | Foreign | Missing | Checked | TerminationStored | Changed | TimedOut
)  # fmt: skip
