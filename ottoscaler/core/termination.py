"""Why the controller ends a pod, as it is stored before the pod is deleted."""

from __future__ import annotations

from typing import Final

import msgspec

from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.verdicts import EndReason, Outcome, Verdict

_BEFORE_START: Final = frozenset(
    {
        EndReason.INVALID_IMAGE, EndReason.IMAGE_PULL, EndReason.IMAGE_PULL_TRANSIENT, EndReason.CONFIG_ERROR,
        EndReason.START_ERROR, EndReason.COMMAND_NOT_FOUND, EndReason.SERVICE_NOT_READY,
        EndReason.PENDING_TIMEOUT, EndReason.UNSCHEDULABLE,
    }
)  # fmt: skip

#: What is left to containers that have had their time, seconds. Not 0, which would take the pod out of the API at once,
#: whatever still runs.
LAST_GRACE_S: Final = 1


#: Stands for the event that asked for a termination where the event's own not_after did. No event has such an id.
NOT_AFTER: Final = ":not_after"


class Termination(msgspec.Struct, frozen=True):
    """Why a pod is to be ended, as stored in the task hash before it is.

    `attempt` 0 is a cancel of the index, which stays; any other ends with that attempt. `drain` spares a worker that
    has started. `by` is the event that asked for it, NOT_AFTER for that rule, empty where nothing did.
    """

    reason: EndReason
    message: str = ""
    attempt: int = 0
    drain: bool = False
    by: str = ""

    @property
    def is_cancel(self) -> bool:
        """It ends the worker, and not only one attempt at it."""
        return self.attempt == 0

    @property
    def claims(self) -> bool:
        """A scale_down, or a newer event, has this worker already: no other one counts it as its victim. The event's
        own not_after does not, since a worker that it finds running is left alone.
        """
        return self.is_cancel and self.by != NOT_AFTER

    def applies_to(self, attempt: int) -> bool:
        """It ends the pod of this attempt."""
        return self.attempt in (0, attempt)

    @property
    def verdict(self) -> Verdict:
        """What is recorded if the pod does not succeed meanwhile."""
        return Verdict(self.reason, self.message)

    def grace_s(self, pod: PodSnapshot) -> int | None:
        """Seconds between SIGTERM and SIGKILL for a pod that it ends; None: what the pod's spec gives. Containers that
        outlived `agent` have had TERMINATION_GRACE_S already.
        """
        return LAST_GRACE_S if not self.is_cancel and pod.exit_code is not None else None

    @property
    def only_before_start(self) -> bool:
        """It is withdrawn when the pod is seen to have started."""
        return self.drain if self.is_cancel else self.reason in _BEFORE_START


class RetryCause(msgspec.Struct, frozen=True):
    """Why an attempt is followed by another: how it ended, which retry of at most how many follows, and its pod as it
    was last seen.
    """

    verdict: Verdict
    retry_number: int
    max_retries: int
    pod: PodSnapshot | None = None


def final_verdict(end: Verdict, termination: Termination | None) -> Verdict:
    """The verdict to record for an attempt that ended in this way: a termination wins unless the worker succeeded."""
    return end if termination is None or end.reason.outcome is Outcome.SUCCEEDED else termination.verdict


def refused(termination: Termination, before: RetryCause | None) -> tuple[Verdict, PodSnapshot | None]:
    """The verdict on a worker of which no further attempt may start, and the pod that it is about, if any. `before` is
    the attempt before it: where that started before the event's not_after, how it ended says more.
    """
    pod = before.pod if before is not None else None
    if (
        termination.reason is EndReason.NOT_AFTER
        and before is not None
        and pod is not None
        and pod.started_at is not None
    ):
        return before.verdict, pod
    return termination.verdict, None
