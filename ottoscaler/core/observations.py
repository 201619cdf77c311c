"""Observations: what came of an effect, as the thread of a worker reports it to the state machine."""

from __future__ import annotations

import msgspec

from ottoscaler.core.autoscaler import NodeForecast
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.termination import Termination


class EffectDone(msgspec.Struct, frozen=True):
    """It is done, or was done before."""


class AttemptStored(msgspec.Struct, frozen=True):
    """The attempt is stored."""


class Cancelled(msgspec.Struct, frozen=True):
    """There is a termination; `attempt` is the stored attempt, 0 where none ever was."""

    termination: Termination
    attempt: int


class HasResult(msgspec.Struct, frozen=True):
    """The worker's result is stored already."""


class NewerAttemptStored(msgspec.Struct, frozen=True):
    """A higher attempt is stored: this life is over."""


class OwnershipLost(msgspec.Struct, frozen=True):
    """Another process owns the task now: touch nothing more."""


class PodSeen(msgspec.Struct, frozen=True):
    """The pod, as it is."""

    pod: PodSnapshot


class PodAlreadyExists(msgspec.Struct, frozen=True):
    """409: a pod of that name exists, or is being deleted."""


class CreateRefused(msgspec.Struct, frozen=True):
    """Quota or back-pressure: no pod was created. `after_s` is what the server asked for."""

    message: str
    after_s: float | None = None


class RejectedPod(msgspec.Struct, frozen=True):
    """The API server does not accept this pod, now or later."""

    message: str


class CreateUnclear(msgspec.Struct, frozen=True):
    """No answer, or none of the API's: the pod may have been created. `after_s` is what the server asked for."""

    after_s: float | None = None


class PodNotFound(msgspec.Struct, frozen=True):
    """A live GET found no pod of that name."""


class ForeignPod(msgspec.Struct, frozen=True):
    """A pod of that name is there and is not this worker's."""


class PodNotListed(msgspec.Struct, frozen=True):
    """A list lacks the pod: to be confirmed, since a list may be older than the pod."""


class PodEventsListed(msgspec.Struct, frozen=True):
    """What the pod's Events say; NO_FORECAST where our user may not list them."""

    forecast: NodeForecast


class PodEventsUnknown(msgspec.Struct, frozen=True):
    """The API server did not list them."""


class NoResultYet(msgspec.Struct, frozen=True):
    """The termination that is stored, if any; there is no result."""

    termination: Termination | None


class TerminationStored(msgspec.Struct, frozen=True):
    """This termination is stored."""

    termination: Termination


class PodChanged(msgspec.Struct, frozen=True):
    """The pod is not as it was seen, or gone: look again."""


class TimedOut(msgspec.Struct, frozen=True):
    """The time of an AwaitPod or a PauseUntil is over."""


Observation = (
    EffectDone | AttemptStored | Cancelled | HasResult | NewerAttemptStored | OwnershipLost | PodSeen
    | PodAlreadyExists | CreateRefused | RejectedPod
    | CreateUnclear | PodNotFound | ForeignPod | PodNotListed | PodEventsListed
    | PodEventsUnknown | NoResultYet | TerminationStored | PodChanged | TimedOut
)  # fmt: skip
