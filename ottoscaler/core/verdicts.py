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


class Outcome(StrEnum):
    """How a worker or a task ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


class Fault(StrEnum):
    """Where the cause lies, and so which side has to act: the user, the configuration or the infrastructure."""

    NONE = "none"
    USER = "user"
    CONFIG = "config"
    INFRA = "infra"


class Retry(StrEnum):
    """Which budget a new attempt comes out of."""

    NEVER = "never"
    WORKER = "worker"
    INFRA = "infra"


class Reason(StrEnum):
    """Why a worker ended as it did: a stable code, with how it ended, where the cause lies, and which budget a new
    attempt comes out of. README shows the same table.
    """

    outcome: Outcome
    fault: Fault
    retry: Retry

    # the defaults are for type checkers alone, which take a look-up (`Reason("Completed")`) for a call of this
    def __new__(
        cls, value: str, outcome: Outcome = Outcome.FAILED, fault: Fault = Fault.NONE, retry: Retry = Retry.NEVER
    ) -> Reason:
        """A member from its line of the table."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.outcome, member.fault, member.retry = outcome, fault, retry
        return member

    COMPLETED = "Completed", Outcome.SUCCEEDED, Fault.NONE, Retry.NEVER
    ERROR = "Error", Outcome.FAILED, Fault.USER, Retry.WORKER
    OOM_KILLED = "OOMKilled", Outcome.FAILED, Fault.USER, Retry.WORKER
    DEADLINE_EXCEEDED = "DeadlineExceeded", Outcome.FAILED, Fault.USER, Retry.NEVER
    INVALID_IMAGE = "InvalidImage", Outcome.FAILED, Fault.CONFIG, Retry.NEVER
    IMAGE_PULL = "ImagePull", Outcome.FAILED, Fault.CONFIG, Retry.NEVER
    CONFIG_ERROR = "ConfigError", Outcome.FAILED, Fault.CONFIG, Retry.NEVER
    REJECTED = "Rejected", Outcome.FAILED, Fault.CONFIG, Retry.NEVER
    NAME_CONFLICT = "NameConflict", Outcome.FAILED, Fault.CONFIG, Retry.NEVER
    COMMAND_NOT_FOUND = "CommandNotFound", Outcome.FAILED, Fault.CONFIG, Retry.NEVER
    IMAGE_PULL_TRANSIENT = "ImagePullTransient", Outcome.FAILED, Fault.INFRA, Retry.INFRA
    EVICTED = "Evicted", Outcome.FAILED, Fault.INFRA, Retry.INFRA
    PREEMPTED = "Preempted", Outcome.FAILED, Fault.INFRA, Retry.INFRA
    NODE_LOST = "NodeLost", Outcome.FAILED, Fault.INFRA, Retry.INFRA
    POD_LOST = "PodLost", Outcome.LOST, Fault.INFRA, Retry.INFRA
    START_ERROR = "StartError", Outcome.FAILED, Fault.INFRA, Retry.INFRA
    PENDING_TIMEOUT = "PendingTimeout", Outcome.FAILED, Fault.INFRA, Retry.NEVER
    UNSCHEDULABLE = "Unschedulable", Outcome.FAILED, Fault.INFRA, Retry.NEVER
    POD_DELETED = "PodDeleted", Outcome.FAILED, Fault.USER, Retry.NEVER
    SCALED_DOWN = "ScaledDown", Outcome.CANCELLED, Fault.NONE, Retry.NEVER
    SUPERSEDED = "Superseded", Outcome.CANCELLED, Fault.NONE, Retry.NEVER
    NOT_AFTER = "NotAfter", Outcome.EXPIRED, Fault.USER, Retry.NEVER
    POISON = "Poison", Outcome.FAILED, Fault.INFRA, Retry.NEVER


class Verdict(msgspec.Struct, frozen=True):
    """A reason and the sentence that goes with it."""

    reason: Reason
    message: str = ""
