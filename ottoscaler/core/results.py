"""What a worker's end is called, whose fault it was, who tries again, and the fields of its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ottoscaler.core.events import ScaleEvent
    from ottoscaler.core.pods import Snapshot

MAX_MESSAGE: Final = 1000


class Outcome(StrEnum):
    """How a worker or a task ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


class Fault(StrEnum):
    """Whose it is, so who has to act."""

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


#: The table of contract section 5.
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reason and the sentence that goes with it."""

    reason: Reason
    message: str = ""

    @property
    def outcome(self) -> Outcome:
        """How the worker ended, by the table."""
        return TABLE[self.reason][0]

    @property
    def fault(self) -> Fault:
        """Whose fault it was, by the table."""
        return TABLE[self.reason][1]

    @property
    def retry(self) -> Retry:
        """Which budget a new attempt comes out of, by the table."""
        return TABLE[self.reason][2]


def rfc3339(at: float | None) -> str:
    """Seconds since the epoch as RFC 3339 in UTC with milliseconds; empty for None."""
    if at is None:
        return ""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def common_fields(event: ScaleEvent, names: frozenset[str]) -> dict[str, str]:
    """What every result of an event carries: trace context and passed-on fields.

    A passed-on field that has the name of one of the result's own (`reason` is both) goes in as `event_<name>`.
    """
    fields = {"traceparent": event.traceparent} if event.traceparent else {}
    for name, value in event.passed_on.items():
        fields[f"event_{name}" if name in names else name] = value
    return fields


#: The names that results use themselves.
RESULT_FIELDS: Final = frozenset(
    (
        "kind",
        "event_id",
        "task_id",
        "outcome",
        "reason",
        "message",
        "finished_at",
        "traceparent",
        "fault",
        "exit_code",
        "pod",
        "pod_uid",
        "node",
        "attempt",
        "index",
        "created_at",
        "scheduled_at",
        "started_at",
        "pod_count",
        "succeeded",
        "failed",
        "cancelled",
        "received_at",
        "victims",
        "survivors",
    )
)


def worker_result(
    event: ScaleEvent, index: int, attempt: int, verdict: Verdict, pod: Snapshot | None, now: float
) -> dict[str, str]:
    """The fields of a worker's entry in the result stream, all of them text; what is not known is empty."""
    finished = pod.finished_at if pod is not None else None
    return {
        "kind": "worker",
        "event_id": event.event_id,
        "task_id": event.task_id,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "message": verdict.message[:MAX_MESSAGE],
        "fault": verdict.fault,
        "index": str(index),
        "attempt": str(attempt),
        "exit_code": "" if pod is None or pod.exit_code is None else str(pod.exit_code),
        "pod": "" if pod is None else pod.name,
        "pod_uid": "" if pod is None else pod.uid,
        "node": "" if pod is None else pod.node,
        "created_at": rfc3339(pod.created_at if pod else None),
        "scheduled_at": rfc3339(pod.scheduled_at if pod else None),
        "started_at": rfc3339(pod.started_at if pod else None),
        "finished_at": rfc3339(finished if finished is not None else now),
        **common_fields(event, RESULT_FIELDS),
    }
