"""The verdicts on a worker's end: outcome, reason, fault, and within which limit it is retried."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

#: Take-overs of a task without any progress in between, and tries at an entry that was read and not accepted, after
#: which the event is a dead letter (Poison): each of them may have ended the process that made it.
MAX_TRIES: Final = 10
#: As many again for ending the workers of such a task. Then no replica is able to, and the task is closed.
LAST_TRY: Final = 2 * MAX_TRIES
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


class Reason(StrEnum):
    """Why a worker ended as it did: a stable code."""

    COMPLETED = "Completed"
    ERROR = "Error"
    OOM_KILLED = "OOMKilled"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    INVALID_IMAGE = "InvalidImage"
    IMAGE_PULL = "ImagePull"
    CONFIG_ERROR = "ConfigError"
    REJECTED = "Rejected"
    NAME_CONFLICT = "NameConflict"
    COMMAND_NOT_FOUND = "CommandNotFound"
    IMAGE_PULL_TRANSIENT = "ImagePullTransient"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    POD_LOST = "PodLost"
    START_ERROR = "StartError"
    PENDING_TIMEOUT = "PendingTimeout"
    UNSCHEDULABLE = "Unschedulable"
    POD_DELETED = "PodDeleted"
    SCALED_DOWN = "ScaledDown"
    SUPERSEDED = "Superseded"
    POISON = "Poison"


class Retry(StrEnum):
    """Which budget a new attempt comes out of."""

    NEVER = "never"
    WORKER = "worker"
    INFRA = "infra"


#: The table of reasons: deploy/REFERENCE.md shows the same one.
TABLE: Final[Mapping[Reason, tuple[Outcome, Fault, Retry]]] = {
    Reason.COMPLETED: (Outcome.SUCCEEDED, Fault.NONE, Retry.NEVER),
    Reason.ERROR: (Outcome.FAILED, Fault.USER, Retry.WORKER),
    Reason.OOM_KILLED: (Outcome.FAILED, Fault.USER, Retry.WORKER),
    Reason.DEADLINE_EXCEEDED: (Outcome.FAILED, Fault.USER, Retry.NEVER),
    Reason.INVALID_IMAGE: (Outcome.FAILED, Fault.CONFIG, Retry.NEVER),
    Reason.IMAGE_PULL: (Outcome.FAILED, Fault.CONFIG, Retry.NEVER),
    Reason.CONFIG_ERROR: (Outcome.FAILED, Fault.CONFIG, Retry.NEVER),
    Reason.REJECTED: (Outcome.FAILED, Fault.CONFIG, Retry.NEVER),
    Reason.NAME_CONFLICT: (Outcome.FAILED, Fault.CONFIG, Retry.NEVER),
    Reason.COMMAND_NOT_FOUND: (Outcome.FAILED, Fault.CONFIG, Retry.NEVER),
    Reason.IMAGE_PULL_TRANSIENT: (Outcome.FAILED, Fault.INFRA, Retry.INFRA),
    Reason.EVICTED: (Outcome.FAILED, Fault.INFRA, Retry.INFRA),
    Reason.PREEMPTED: (Outcome.FAILED, Fault.INFRA, Retry.INFRA),
    Reason.NODE_LOST: (Outcome.FAILED, Fault.INFRA, Retry.INFRA),
    Reason.POD_LOST: (Outcome.LOST, Fault.INFRA, Retry.INFRA),
    Reason.START_ERROR: (Outcome.FAILED, Fault.INFRA, Retry.INFRA),
    Reason.PENDING_TIMEOUT: (Outcome.FAILED, Fault.INFRA, Retry.NEVER),
    Reason.UNSCHEDULABLE: (Outcome.FAILED, Fault.INFRA, Retry.NEVER),
    Reason.POD_DELETED: (Outcome.FAILED, Fault.USER, Retry.NEVER),
    Reason.SCALED_DOWN: (Outcome.CANCELLED, Fault.NONE, Retry.NEVER),
    Reason.SUPERSEDED: (Outcome.CANCELLED, Fault.NONE, Retry.NEVER),
    Reason.POISON: (Outcome.FAILED, Fault.INFRA, Retry.NEVER),
}


class Verdict(msgspec.Struct, frozen=True):
    """A reason and the sentence that goes with it."""

    reason: Reason
    message: str = ""

    @property
    def outcome(self) -> Outcome:
        """How the worker ended, by the table."""
        return TABLE[self.reason][0]

    @property
    def fault(self) -> Fault:
        """Where the cause lies, by the table."""
        return TABLE[self.reason][1]

    @property
    def retry(self) -> Retry:
        """Which budget a new attempt comes out of, by the table."""
        return TABLE[self.reason][2]
