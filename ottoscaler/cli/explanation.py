"""Why an event is where it is, put together from what Redis holds: for `explain`, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ottoscaler.adapters.explain_reader import ExplainReader, QueuedEvent
from ottoscaler.adapters.task_codec import TaskState, WorkerState
from ottoscaler.core.entry_ids import entry_ms
from ottoscaler.core.results import rfc3339
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.stored import split_owner_token

#: Workers that are named of each group.
NAMED: Final = 10

#: An id that a producer made up may be later than any time that is worth showing, ms.
_TOO_LATE_MS: Final = 10**14


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroup:
    """Workers with the same code and the same reason. `first` stands for all."""

    code: StatusCode
    first: WorkerState
    indices: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where one event is. Times are RFC 3339, empty where they are not known; `workers` is how many are in which state;
    `groups` are its workers that did not succeed, the worst first; `dead_letter` is the id of its dead letter.
    """

    event_id: str
    task_id: str
    code: StatusCode
    why: str
    type: str = ""
    state: str = ""
    owner: str = ""
    pod_count: int = 0
    received_at: str = ""
    since: str = ""
    next_at: str = ""
    advice: str = ""
    outcome: str = ""
    dead_letter: str = ""
    workers: Mapping[str, int] = field(default_factory=dict)
    groups: Sequence[WorkerGroup] = ()


def explain(reader: ExplainReader, name: str) -> list[Explanation]:
    """Where the events of this event id, task id or dead-letter id are; the worst is the first. None for an id that
    Redis does not know (any more). Raises RedisUnavailable.
    """
    found = [_of_task(reader, task) for task in reader.tasks_of(name) if task.event_type]
    if not found and (queued := reader.queued(name)) is not None:
        found.append(_of_queued(queued, name))
    known = {one.dead_letter for one in found}
    letters = [] if any(one.state not in ("", "finished") for one in found) else reader.dead_letters_of(name)
    found += [_of_dead_letter(letter) for letter in letters if letter["id"] not in known]
    return sorted(found, key=lambda one: one.code.rank)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an unfinished task is. Times are RFC 3339, empty where they are not known."""

    code: StatusCode
    why: str
    since: str
    next_at: str


def standing_of(task: TaskState, lease_end: float | None, now: float) -> Standing:
    """Where an unfinished task is. `lease_end` is until when its owner holds it, None where it is not open; `now` is
    the time of Redis; both are seconds since the epoch.
    """
    why = task.wait_reason or task.code.facts.text
    if lease_end is None or lease_end >= now:
        return Standing(task.code, why, task.since or task.received_at, task.next_at)
    code = StatusCode.LEASE_EXPIRED
    owner = split_owner_token(task.owner)[0]
    return Standing(code, code.facts.why(f"its owner was {owner}; before that: {why}"), rfc3339(lease_end), "")


def as_json(one: Explanation) -> dict[str, Any]:
    """The object that `--json` prints of it: see deploy/schemas/explain.schema.json."""
    facts = one.code.facts
    names = ("event_id", "task_id", "type", "state", "code", "why", "since", "next_at")
    return {name: getattr(one, name) for name in names} | {
        "next": facts.next_step(one.next_at),
        "attention": facts.attention,
        "actor": facts.actor.value,
        "advice": one.advice or facts.advice,
        "owner": one.owner,
        "pod_count": one.pod_count,
        "received_at": one.received_at,
        "outcome": one.outcome,
        "dead_letter": one.dead_letter,
        "workers": dict(one.workers),
        "groups": [_group_json(group) for group in one.groups],
    }


def _group_json(group: WorkerGroup) -> dict[str, Any]:
    first, facts = group.first, group.code.facts
    return {
        "code": group.code.value,
        "why": first.why,
        "count": len(group.indices),
        "workers": list(group.indices[:NAMED]),
        "outcome": first.outcome,
        "pod": first.pod,
        "attempt": first.attempt,
        "since": first.since,
        "next_at": first.next_at,
        "next": "" if first.outcome else facts.next_step(first.next_at),
        "attention": facts.attention,
        "actor": facts.actor.value,
        "advice": facts.advice,
    }


def _of_task(reader: ExplainReader, task: TaskState) -> Explanation:
    outcome = ""
    if task.finished:
        result = reader.result(task.event_id, task.stream_id) or {}
        outcome = result.get("outcome", "")
        trimmed = f"{task.wait_reason or task.code.facts.text}; its result was trimmed away"
        why = f"{outcome}: {result.get('message', '')}" if outcome else trimmed
        standing = Standing(task.code, why, result.get("finished_at") or task.received_at, task.next_at)
    else:
        standing = standing_of(task, reader.lease_end(task.event_id), reader.now())
    return Explanation(
        event_id=task.event_id, task_id=task.task_id, code=standing.code, why=standing.why, type=task.event_type,
        state=task.state, owner=split_owner_token(task.owner)[0], pod_count=task.pod_count,
        received_at=task.received_at, since=standing.since, next_at=standing.next_at, outcome=outcome,
        workers=task.count_workers(), groups=_groups(task.workers.values()),
    )  # fmt: skip


def _groups(workers: Iterable[WorkerState]) -> list[WorkerGroup]:
    """The workers that did not succeed, by what there is to say of them; the worst first, then the largest group."""
    alike: dict[tuple[Any, ...], list[WorkerState]] = {}
    for worker in workers:
        if worker.outcome != "succeeded":
            alike.setdefault((worker.code, worker.outcome, worker.reason, worker.detail[:40]), []).append(worker)
    groups = [
        WorkerGroup(code=some[0].code, first=some[0], indices=[one.index for one in some]) for some in alike.values()
    ]
    return sorted(groups, key=lambda group: (group.code.rank, -len(group.indices), group.indices[0]))


def _of_queued(queued: QueuedEvent, name: str) -> Explanation:
    fields = queued.fields
    event_id = fields.get("event_id") or queued.stream_id
    code = StatusCode.UNREAD if queued.before is not None else StatusCode.UNACCEPTED
    detail = (
        f"{queued.before} events come before it" if queued.before is not None
        else f"{queued.consumer} read it {queued.idle_s:.0f} s ago"
    )  # fmt: skip
    sent_ms = entry_ms(queued.stream_id)
    sent_at = rfc3339(sent_ms / 1000) if sent_ms is not None and sent_ms < _TOO_LATE_MS else ""
    return Explanation(
        event_id=event_id, task_id=fields.get("task_id") or queued.stream_id, code=code, why=code.facts.why(detail),
        type=fields.get("type", ""), since=sent_at,
    )  # fmt: skip


def _of_dead_letter(letter: Mapping[str, str]) -> Explanation:
    code = StatusCode.DEAD_LETTER
    reason, dead_id = letter.get("dead_reason", ""), letter["id"]
    return Explanation(
        event_id=letter.get("event_id") or letter.get("stream_id", ""), task_id="", code=code,
        why=code.facts.why(f"{reason}: {letter.get('dead_detail', '')}"), since=letter.get("at", ""),
        advice=code.facts.advice.replace("ID", dead_id, 1), dead_letter=dead_id,
    )  # fmt: skip
