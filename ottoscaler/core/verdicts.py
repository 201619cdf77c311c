"""The verdicts on a worker's end: outcome, reason, fault, and within which limit it is retried."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

#: Take-overs of a task without any progress in between, and tries at an entry that was read and not accepted, after
#: which the event is a dead letter (Poison): each of them may have ended the process that made it.
MAX_TRIES: Final = 10
#: As many again for ending the workers of such a task. Then no replica is able to, and the task is closed.
LAST_TRY: Final = 2 * MAX_TRIES
#: The message of a worker that had not started in time; the place is for the time.
TOO_LATE: Final = "the worker had not started by %s (not_after)"
#: The message of a task, and of a worker, on which the controller failed; the place is for the number of tries.
POISON_EVENT: Final = "taken up %d times without any progress"
POISON_WORKER: Final = "the controller failed on this event %d times"
#: Pause before the n-th new attempt or the n-th try after back-pressure: 1, 2, 4 … seconds, at most this.
MAX_BACKOFF_S: Final = 30.0


class Outcome(StrEnum):
    """How a worker or a task ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


class FaultOrigin(StrEnum):
    """Where the cause lies, and so which side has to act: the user, the configuration or the infrastructure."""

    NONE = "none"
    USER = "user"
    CONFIG = "config"
    INFRA = "infra"


class RetryBudget(StrEnum):
    """Which budget a new attempt comes out of."""

    NEVER = "never"
    WORKER = "worker"
    INFRA = "infra"


class EndReason(StrEnum):
    """Why a worker ended as it did: a stable code, with how it ended, where the cause lies, and which budget a new
    attempt comes out of. README shows the same table.
    """

    outcome: Outcome
    fault: FaultOrigin
    retry: RetryBudget

    # the defaults are for type checkers alone, which take a look-up (`EndReason("Completed")`) for a call of this
    def __new__(
        cls,
        value: str,
        outcome: Outcome = Outcome.FAILED,
        fault: FaultOrigin = FaultOrigin.NONE,
        retry: RetryBudget = RetryBudget.NEVER,
    ) -> EndReason:
        """A member from its line of the table."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.outcome, member.fault, member.retry = outcome, fault, retry
        return member

    COMPLETED = "Completed", Outcome.SUCCEEDED, FaultOrigin.NONE, RetryBudget.NEVER
    ERROR = "Error", Outcome.FAILED, FaultOrigin.USER, RetryBudget.WORKER
    OOM_KILLED = "OOMKilled", Outcome.FAILED, FaultOrigin.USER, RetryBudget.WORKER
    DEADLINE_EXCEEDED = "DeadlineExceeded", Outcome.FAILED, FaultOrigin.USER, RetryBudget.NEVER
    INVALID_IMAGE = "InvalidImage", Outcome.FAILED, FaultOrigin.CONFIG, RetryBudget.NEVER
    IMAGE_PULL = "ImagePull", Outcome.FAILED, FaultOrigin.CONFIG, RetryBudget.NEVER
    CONFIG_ERROR = "ConfigError", Outcome.FAILED, FaultOrigin.CONFIG, RetryBudget.NEVER
    REJECTED = "Rejected", Outcome.FAILED, FaultOrigin.CONFIG, RetryBudget.NEVER
    NAME_CONFLICT = "NameConflict", Outcome.FAILED, FaultOrigin.CONFIG, RetryBudget.NEVER
    COMMAND_NOT_FOUND = "CommandNotFound", Outcome.FAILED, FaultOrigin.CONFIG, RetryBudget.NEVER
    SERVICE_NOT_READY = "ServiceNotReady", Outcome.FAILED, FaultOrigin.CONFIG, RetryBudget.NEVER
    IMAGE_PULL_TRANSIENT = "ImagePullTransient", Outcome.FAILED, FaultOrigin.INFRA, RetryBudget.INFRA
    EVICTED = "Evicted", Outcome.FAILED, FaultOrigin.INFRA, RetryBudget.INFRA
    PREEMPTED = "Preempted", Outcome.FAILED, FaultOrigin.INFRA, RetryBudget.INFRA
    NODE_LOST = "NodeLost", Outcome.FAILED, FaultOrigin.INFRA, RetryBudget.INFRA
    POD_LOST = "PodLost", Outcome.LOST, FaultOrigin.INFRA, RetryBudget.INFRA
    START_ERROR = "StartError", Outcome.FAILED, FaultOrigin.INFRA, RetryBudget.INFRA
    PENDING_TIMEOUT = "PendingTimeout", Outcome.FAILED, FaultOrigin.INFRA, RetryBudget.NEVER
    UNSCHEDULABLE = "Unschedulable", Outcome.FAILED, FaultOrigin.INFRA, RetryBudget.NEVER
    POD_DELETED = "PodDeleted", Outcome.FAILED, FaultOrigin.USER, RetryBudget.NEVER
    SCALED_DOWN = "ScaledDown", Outcome.CANCELLED, FaultOrigin.NONE, RetryBudget.NEVER
    SUPERSEDED = "Superseded", Outcome.CANCELLED, FaultOrigin.NONE, RetryBudget.NEVER
    NOT_AFTER = "NotAfter", Outcome.EXPIRED, FaultOrigin.USER, RetryBudget.NEVER
    POISON = "Poison", Outcome.FAILED, FaultOrigin.INFRA, RetryBudget.NEVER


#: Reasons for which the node itself may be at fault: short of memory or disk, dead, unable to start a container or to
#: reach the registry. Not PREEMPTED, where another pod took the place, and not POD_LOST, of which no cause is known.
_NODE_AT_FAULT: Final = frozenset(
    {EndReason.EVICTED, EndReason.NODE_LOST, EndReason.START_ERROR, EndReason.IMAGE_PULL_TRANSIENT}
)


class Verdict(msgspec.Struct, frozen=True):
    """A reason and the sentence that goes with it."""

    reason: EndReason
    message: str = ""

    @property
    def blames_node(self) -> bool:
        """Would a new attempt rather run on another node?"""
        return self.reason in _NODE_AT_FAULT


def backoff_s(tries: int) -> float:
    """Seconds to pause after the given number of tries: 1, 2, 4 … at most MAX_BACKOFF_S."""
    return float(min(2.0 ** min(tries, 10), MAX_BACKOFF_S))
