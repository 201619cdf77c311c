"""The fields of results: what the result stream and the task hash say of a worker."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.memory_sizes import memory_of
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.verdicts import EndReason, Outcome, Verdict

MAX_MESSAGE: Final = 1000
_PREFIX: Final = "event_"

#: The fields of each kind of result besides `common_fields`, in their order.
WORKER_FIELDS: Final = (
    "kind", "event_id", "task_id", "outcome", "reason", "message", "fault", "index", "attempt", "exit_code", "pod",
    "pod_uid", "node", "created_at", "scheduled_at", "started_at", "finished_at", "output",
)  # fmt: skip
TASK_FIELDS: Final = (
    "kind", "event_id", "task_id", "outcome", "reason", "message", "finished_at", "received_at", "pod_count",
    "succeeded", "failed", "cancelled",
)  # fmt: skip
SCALE_DOWN_FIELDS: Final = (
    "kind", "event_id", "task_id", "outcome", "reason", "message", "finished_at", "victims", "survivors", "pod_count",
)  # fmt: skip
#: The names that results use themselves.
RESULT_FIELDS: Final = frozenset((*WORKER_FIELDS, *TASK_FIELDS, *SCALE_DOWN_FIELDS, "traceparent"))
#: The messages of a task's result, with places for the number of workers that succeeded and that there were, and for
#: the reason of a dead letter and its detail.
ALL_COMPLETED: Final = "All %d workers completed successfully"
SOME_COMPLETED: Final = "%d of %d workers completed"
REJECTED: Final = "%s: %s"
#: Behind the name of the consumer group: the group by which results are read for traces. It is none of the readers that
#: `results_unread` counts.
TRACE_GROUP: Final = ":traces"
#: The reason of a scale_down's own result when there was no worker to end.
NOTHING_TO_END: Final = "NothingToEnd"


def rfc3339(at: float | None) -> str:
    """Seconds since the epoch as RFC 3339 in UTC with milliseconds; empty for None."""
    if at is None:
        return ""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def common_fields(event: ScaleEvent, names: frozenset[str]) -> dict[str, str]:
    """What every result of an event carries: trace context and passed-on fields.

    A passed-on field that has the name of one of the result's own (`reason` is both) goes in as `event_<name>`, and so
    does one that has such a name already behind any number of `event_`: `event_reason` as `event_event_reason`. That
    makes room for the first, so that no two fields ever get the same name.
    """
    fields = {"traceparent": event.traceparent} if event.traceparent else {}
    for name, value in event.passed_on.items():
        fields[f"{_PREFIX}{name}" if _is_reserved(name, names) else name] = value
    return fields


def _is_reserved(name: str, names: frozenset[str]) -> bool:
    while name not in names:
        if not name.startswith(_PREFIX):
            return False
        name = name.removeprefix(_PREFIX)
    return True


def worker_result(
    event: ScaleEvent,
    index: int,
    attempt: int,
    verdict: Verdict,
    pod: PodSnapshot | None,
    now: float,
    oom_kills: int = 0,
    note: str = "",
) -> dict[str, str]:
    """The fields of a worker's entry in the result stream, all of them text; what is not known is empty.

    `oom_kills`: how many earlier attempts ended as OOMKilled. Where the memory grows by that, the message names it.
    `note`: what people are to know besides, at the end of the message.
    """
    finished = pod.finished_at if pod is not None else None
    message = verdict.message[:MAX_MESSAGE]
    if event.overrides.oom_memory and pod is not None:
        size = memory_of(event.overrides.memory, event.overrides.oom_memory, oom_kills)
        message = with_note(message, f"memory: {size}")
    if note:
        message = with_note(message, note)
    return {
        "kind": "worker",
        "event_id": event.event_id,
        "task_id": event.task_id,
        "outcome": verdict.reason.outcome,
        "reason": verdict.reason,
        "message": message,
        "fault": verdict.reason.fault,
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
        "output": "" if pod is None else pod.output,
        **common_fields(event, RESULT_FIELDS),
    }


def task_outcome(outcomes: Iterable[str]) -> Outcome:
    """The outcome of a task by those of all its workers, as the scripts in Redis record it."""
    others = {outcome for outcome in outcomes if outcome != Outcome.SUCCEEDED}
    if not others:
        return Outcome.SUCCEEDED
    return Outcome.CANCELLED if others == {Outcome.CANCELLED} else Outcome.FAILED


def with_note(message: str, note: str) -> str:
    """The message with a note for people behind it, and no longer than a message may be."""
    return f"{message[: MAX_MESSAGE - len(note) - 3]} ({note})".lstrip()


def scale_down_result(
    event: ScaleEvent, victims: Sequence[str], survivors: Sequence[str], now: float
) -> dict[str, str]:
    """The fields of a scale_down's entry in the result stream, but for what all results of the event carry.

    Arguments: the event, the pods that ended and those that stay, the time in seconds since the epoch.
    """
    return {
        "kind": "scale_down",
        "event_id": event.event_id,
        "task_id": event.task_id,
        "outcome": Outcome.SUCCEEDED,
        "reason": EndReason.COMPLETED if victims else NOTHING_TO_END,
        "message": f"{len(victims)} workers ended, {len(survivors)} stay",
        "finished_at": rfc3339(now),
        "victims": json.dumps(list(victims)),
        "survivors": json.dumps(list(survivors)),
        "pod_count": str(len(victims)),
    }
