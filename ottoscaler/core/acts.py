"""The words between the state machine of a worker and the thread that runs it:
effects to carry out, observations that come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from ottoscaler.core.pods import Snapshot
from ottoscaler.core.verdicts import Reason, Verdict

_BEFORE_START: Final = frozenset(
    {
        Reason.INVALID_IMAGE, Reason.IMAGE_PULL, Reason.IMAGE_PULL_TRANSIENT, Reason.CONFIG_ERROR,
        Reason.START_ERROR, Reason.COMMAND_NOT_FOUND, Reason.PENDING_TIMEOUT, Reason.UNSCHEDULABLE,
    }
)  # fmt: skip

#: What is left to containers that have had their time, seconds. Not 0, which would take the pod out of the API at once,
#: whatever still runs.
LAST_GRACE_S: Final = 1


class Limits(Protocol):
    """Times in seconds and numbers of new attempts; `settings.WorkerSettings` is one."""

    @property
    def deadline_s(self) -> int: ...
    @property
    def pending_timeout_s(self) -> int: ...
    @property
    def image_pull_grace_s(self) -> int: ...
    @property
    def termination_grace_s(self) -> int: ...
    @property
    def infra_retries(self) -> int: ...
    @property
    def worker_retries(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Doom:
    """Why a pod is to be ended, as stored in the task hash before it is.

    `attempt` 0 is a cancel of the index, which stays; any other ends with that attempt. `drain` spares a worker that
    has started. `by` is the event that asked for it, empty where none did.
    """

    reason: Reason
    message: str = ""
    attempt: int = 0
    drain: bool = False
    by: str = ""

    @property
    def verdict(self) -> Verdict:
        """What is recorded if the pod does not succeed meanwhile."""
        return Verdict(self.reason, self.message)

    def grace_s(self, pod: Snapshot) -> int | None:
        """Seconds between SIGTERM and SIGKILL for a pod that it ends; None: what the pod's spec gives. Containers that
        outlived `agent` have had TERMINATION_GRACE_S already.
        """
        return LAST_GRACE_S if self.attempt and pod.exit_code is not None else None

    @property
    def only_before_start(self) -> bool:
        """It is withdrawn when the pod is seen to have started."""
        return self.drain if self.attempt == 0 else self.reason in _BEFORE_START


# -- effects: what the thread does


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
    """Wait for the pod's next stage, at most until then. Answers: Seen, Missing, Marked, TimedOut, NotOurs."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Mark:
    """Store the doom. Answers: Marked (with the doom that holds), HasResult, OldAttempt, NotOurs."""

    doom: Doom


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take the doom back. Answers: Checked (with the doom that holds now), HasResult, NotOurs."""

    doom: Doom


@dataclass(frozen=True, slots=True)
class Kill:
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


Effect = Intend | Create | NoteRefused | Look | Check | Await | Mark | Withdraw | Kill | Record | Delete | Later | End


# -- observations: what came of it


@dataclass(frozen=True, slots=True)
class Done:
    """It is done, or was done before."""


@dataclass(frozen=True, slots=True)
class Intended:
    """The attempt is stored."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """There is a doom; `attempt` is the stored attempt, 0 where none ever was."""

    doom: Doom
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
    """The doom that is stored, if any; there is no result."""

    doom: Doom | None


@dataclass(frozen=True, slots=True)
class Marked:
    """This doom is stored."""

    doom: Doom


@dataclass(frozen=True, slots=True)
class Changed:
    """The pod is not as it was seen, or gone: look again."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The time of an Await is over."""


Observation = (
    Done | Intended | Cancelled | HasResult | OldAttempt | NotOurs | Seen | AlreadyThere | Refused | RejectedPod
    | Unclear | Absent | Foreign | Missing | Checked | Marked | Changed | TimedOut
)  # fmt: skip
