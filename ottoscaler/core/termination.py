"""Why the controller ends a pod, as it is stored before the pod is deleted."""

from __future__ import annotations

from typing import Final

import msgspec

from ottoscaler.core.pods import Snapshot
from ottoscaler.core.verdicts import Outcome, Reason, Verdict

_BEFORE_START: Final = frozenset(
    {
        Reason.INVALID_IMAGE, Reason.IMAGE_PULL, Reason.IMAGE_PULL_TRANSIENT, Reason.CONFIG_ERROR,
        Reason.START_ERROR, Reason.COMMAND_NOT_FOUND, Reason.PENDING_TIMEOUT, Reason.UNSCHEDULABLE,
    }
)  # fmt: skip

#: What is left to containers that have had their time, seconds. Not 0, which would take the pod out of the API at once,
#: whatever still runs.
LAST_GRACE_S: Final = 1


class Termination(msgspec.Struct, frozen=True):
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
    def is_cancel(self) -> bool:
        """It ends the worker, and not only one attempt at it."""
        return self.attempt == 0

    def applies_to(self, attempt: int) -> bool:
        """It ends the pod of this attempt."""
        return self.attempt in (0, attempt)

    @property
    def verdict(self) -> Verdict:
        """What is recorded if the pod does not succeed meanwhile."""
        return Verdict(self.reason, self.message)

    def grace_s(self, pod: Snapshot) -> int | None:
        """Seconds between SIGTERM and SIGKILL for a pod that it ends; None: what the pod's spec gives. Containers that
        outlived `agent` have had TERMINATION_GRACE_S already.
        """
        return LAST_GRACE_S if not self.is_cancel and pod.exit_code is not None else None

    @property
    def only_before_start(self) -> bool:
        """It is withdrawn when the pod is seen to have started."""
        return self.drain if self.is_cancel else self.reason in _BEFORE_START


def decided(end: Verdict, termination: Termination | None) -> Verdict:
    """The verdict to record for an attempt that ended in this way: a termination wins unless the worker succeeded."""
    return end if termination is None or end.reason.outcome is Outcome.SUCCEEDED else termination.verdict
