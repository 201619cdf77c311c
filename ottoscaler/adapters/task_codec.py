"""The one codec of a task hash: how a task and its workers are written into it, and read again by the controller and by
`status`. The fields are listed at the head of common.lua, which writes them too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Any, Final, TypeVar

from ottoscaler import logs
from ottoscaler.adapters.redis_values import text_of
from ottoscaler.core.events import BadEvent, DeadReason, ScaleEvent, decode
from ottoscaler.core.results import RESULT_FIELDS, common_fields
from ottoscaler.core.status_codes import CODES, StatusCode, code_of
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.ports import OpenTask, StoredWorker, TaskView, Victim
from ottoscaler.stored import TaskNote, WorkerNote

_T = TypeVar("_T")
_log = logs.get(__name__)
_NOTED: Final = re.compile(rb'\{"state": "(?:pending|running)", "attempt": ([0-9]{1,9}),')  # what worker_json writes
#: The longest text of a worker that is remembered, characters: a result may have an output of 4 KiB.
_REMEMBERED: Final = 512
_WORKER: Final = re.compile(r"worker:([0-9]+)")
_FIELD: Final = re.compile(rb"(attempt|doom|outcome|spared|log|oom):([0-9]+)")


class RedisKeys:
    """The names of our own keys: one prefix, so that an ACL and a Redis Cluster hash tag can name them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.open = f"{prefix}open"
        self.buried = f"{prefix}buried"
        self.redriven = f"{prefix}redriven"
        self.group = f"{prefix}group"
        self.choices = f"{prefix}choices"

    def task(self, event_id: str) -> str:
        """The hash of one task."""
        return f"{self._prefix}task:{event_id}"

    def concurrency(self, key: str) -> str:
        """The sorted set of the open tasks of one concurrency key."""
        return f"{self._prefix}key:{key}"

    def consumer(self, name: str) -> str:
        """The hash that names the process that runs under a consumer's name."""
        return f"{self._prefix}consumer:{name}"


def encode_termination(termination: Termination) -> str:
    """A termination as JSON, with what the result will say, so that the record script needs no table."""
    verdict = termination.verdict
    return json.dumps(
        {
            "reason": termination.reason,
            "outcome": verdict.reason.outcome,
            "fault": verdict.reason.fault,
            "message": termination.message,
            "attempt": termination.attempt,
            "drain": termination.drain,
            "before_start": termination.only_before_start,
            "by": termination.by,
        }
    )


def decode_termination(text: bytes | None) -> Termination | None:
    """The termination of its JSON; None for none."""
    if not text:
        return None
    fields = json.loads(text)
    return Termination(EndReason(fields["reason"]), fields["message"], fields["attempt"], fields["drain"], fields["by"])


def encode_worker_note(note: WorkerNote) -> str:
    """What `worker:<index>` shows while there is no result. State and attempt come first: see `_NOTED`."""
    known = {name: text for name in ("code", "detail", "since", "next_at") if (text := getattr(note, name))}
    return json.dumps({"state": note.state, "attempt": note.attempt, "pod": note.pod} | known)


def encode_task_note(note: TaskNote) -> list[str]:
    """The fields of a task hash that say why it stands where it stands, as a flat list."""
    return ["why", note.why, "next_at", note.next_at, "code", note.code, "since", note.since]


def worker_field_names(index: int) -> list[str]:
    """The fields of a task hash that say how a worker stands."""
    names = ("attempt", "doom", "outcome", "spared", "log", "oom")
    return [f"{name}:{index}" for name in names]


def decode_worker(index: int, fields: Mapping[str, bytes | None]) -> StoredWorker:
    """How a worker stands, by its `worker_field_names`."""
    attempt, termination, outcome, spared, log, oom_kills = (fields.get(name) for name in worker_field_names(index))
    number, infra_used, *flag = (attempt or b"0:0").decode().split(":")
    return StoredWorker(
        index, int(number), int(infra_used), flag == ["r"], decode_termination(termination), (outcome or b"").decode(),
        spared_by=tuple((spared or b"").decode().split()), pod_was_seen=flag == ["s"],
        log_progress=(log or b"").decode(), oom_kills=int(oom_kills or 0),
    )  # fmt: skip


def decode_workers(fields: Mapping[bytes, bytes]) -> dict[int, StoredWorker]:
    """What a task hash knows of its workers, by index."""
    matches = {name: match for name in fields if (match := _FIELD.fullmatch(name))}
    texts = {name.decode(): fields[name] for name in matches}
    workers = {index: decode_worker(index, texts) for index in sorted({int(match[2]) for match in matches.values()})}
    return {index: _with_note(worker, fields.get(b"worker:%d" % index)) for index, worker in workers.items()}


def _with_note(worker: StoredWorker, note: bytes | None) -> StoredWorker:
    """The same; an attempt that is noted as pending or running was seen. Earlier releases noted only that."""
    match = _NOTED.match(note or b"")
    noted = match is not None and int(match[1]) == worker.attempt and not worker.outcome
    return replace(worker, pod_was_seen=True) if noted else worker


def decode_task(owner: str, fields: Mapping[bytes, bytes], *, holds: bool = True) -> OpenTask:
    """An open task from its hash. `holds`: it has no concurrency key, or a place of it."""
    victims = fields.get(b"victims")
    workers = decode_workers(fields)
    for index, worker in workers.items():
        if worker.outcome:
            workers[index] = replace(worker, reason=json.loads(fields[b"worker:%d" % index])["reason"])
    return OpenTask(
        event=decode(fields[b"event"]),
        owner=owner,
        received_at=fields[b"received_at"].decode(),
        workers=workers,
        victims=None if victims is None else [Victim(*item) for item in json.loads(victims)],
        survivors=json.loads(fields.get(b"survivors", b"[]")),
        superseded=fields.get(b"superseding") != b"todo",
        cancel_count=int(fields.get(b"cancels", b"0")),
        holds=holds,
    )


def decode_view(fields: Mapping[bytes, bytes]) -> TaskView:
    """A task from its hash, for a choice among all."""
    return TaskView(decode(fields[b"event"]), fields[b"owner"].decode(), decode_workers(fields))


def decode_or_none(decode_: Callable[[Mapping[bytes, bytes]], _T], fields: Mapping[bytes, bytes]) -> _T | None:
    """What a task hash says; None for one that was damaged: its neighbours are looked at all the same.

    It is not lost by this: each take-over of it fails and is counted, until it is a dead letter.
    """
    try:
        return decode_(fields)
    except (ValueError, KeyError, TypeError) as error:  # of JSON, msgspec and Unicode too
        _log.warning("task.unreadable", "A task cannot be read", error=repr(error))
        return None


def not_after_ms(event: ScaleEvent) -> int | str:
    """The event's not_after as the scripts take it, ms since the epoch; empty where it has none."""
    not_after = event.overrides.not_after
    return "" if not_after is None else int(not_after * 1000)


def encode_common_fields(event: ScaleEvent) -> str:
    """What every result of an event carries, as the flat list that the scripts add to it."""
    return json.dumps([*chain.from_iterable(common_fields(event, RESULT_FIELDS).items())])


def encode_task(task: OpenTask) -> dict[str, str | int]:
    """The hash of a task of which Redis knows nothing any more: the counterpart of `decode_task`.

    The digest is not known, and empty means that any entry with this event id is taken for the same event.
    """
    event = task.event
    outcomes = [worker.outcome for worker in task.workers.values() if worker.outcome]
    raw = json.dumps(event.as_sent(), ensure_ascii=False)
    fields: dict[str, str | int] = {
        "sid": event.stream_id, "type": event.type.value, "task_id": event.task_id, "pod_count": event.pod_count,
        "digest": "", "event": event.encode(), "raw": raw, "common": encode_common_fields(event), "state": "running",
        "owner": task.owner, "tenure": task.owner.rpartition("/")[2], "tries": 0, "cancels": task.cancel_count,
        "done": len(outcomes),
    }  # fmt: skip
    if task.received_at:
        fields["received_at"] = task.received_at
    if event.concurrency_key:
        fields |= {"key": event.concurrency_key, "key_limit": event.concurrency_limit}
        fields["state"] = "running" if task.holds else "waiting"
    if (not_after := not_after_ms(event)) != "":
        fields["not_after"] = not_after
    if event.supersedes and not task.superseded:
        fields["superseding"] = "todo"
    if task.victims is not None:
        fields["victims"] = json.dumps([[victim.event_id, victim.index, victim.pod] for victim in task.victims])
        fields["survivors"] = json.dumps(list(task.survivors))
    fields.update(Counter(map(_tally_field, outcomes)))
    for worker in task.workers.values():
        _encode_worker(worker, fields)
    return fields


def _encode_worker(worker: StoredWorker, fields: dict[str, str | int]) -> None:
    attempt, termination, outcome, spared, log, oom_kills = worker_field_names(worker.index)
    if worker.attempt:
        flag = ":r" if worker.create_refused else ":s" if worker.pod_was_seen else ""
        fields[attempt] = f"{worker.attempt}:{worker.infra_used}{flag}"
    if worker.oom_kills:
        fields[oom_kills] = worker.oom_kills
    if worker.termination is not None:
        fields[termination] = encode_termination(worker.termination)
    if worker.spared_by:
        fields[spared] = " ".join(worker.spared_by)
    if worker.log_progress:
        fields[log] = worker.log_progress
    if worker.outcome:
        fields[outcome] = worker.outcome
        ended = {"outcome": worker.outcome, "reason": worker.reason, "attempt": worker.attempt}
        fields[f"worker:{worker.index}"] = json.dumps(ended)
        fields.setdefault(f"first_{_tally_field(worker.outcome)}", worker.reason)


def _tally_field(outcome: str) -> str:
    return outcome if outcome in ("succeeded", "cancelled") else "failed"


def decode_dead_letter(reply: Sequence[bytes], event_id: str, task_id: str) -> BadEvent | None:
    """The dead letter that a script says it has written; None if it has written none."""
    if reply[0] != b"dead":
        return None
    return BadEvent(DeadReason(reply[1].decode()), reply[2].decode(), event_id, task_id)


# -- the task hash as `status` shows it


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker: where it is, or how it ended. `state` is `finished` exactly if `outcome` is not empty."""

    index: int
    state: str
    attempt: int = 0
    pod: str = ""
    outcome: str = ""
    reason: str = ""
    exit_code: str = ""
    message: str = ""
    finished_at: str = ""
    output: str = ""
    code: StatusCode = StatusCode.TURN
    detail: str = ""
    since: str = ""
    next_at: str = ""

    @property
    def why(self) -> str:
        """Why it is where it is, or how it ended, in one sentence."""
        if self.outcome:
            return f"{self.reason}: {self.message}" if self.message else self.reason
        return self.code.facts.why(self.detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """A task hash. `event_type` is empty for a refused event, `pod_count` 0 for a scale_down of a whole task."""

    event_id: str
    stream_id: str
    digest: str
    event_type: str
    task_id: str
    state: str
    pod_count: int
    received_at: str
    owner: str
    wait_reason: str
    code: StatusCode
    since: str
    next_at: str
    succeeded: int
    failed: int
    cancelled: int
    victims: tuple[str, ...] = ()
    workers: Mapping[int, WorkerState] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.state == "finished"

    def count_workers(self) -> dict[str, int]:
        """How many workers are in each state, or have each outcome; one of which nothing is stored is waiting."""
        count = Counter(worker.outcome or worker.state for worker in self.workers.values())
        if self.event_type == "scale_up" and (unknown := self.pod_count - len(self.workers)) > 0:
            count["waiting"] += unknown
        return dict(count)


def decode_state(event_id: str, raw: Mapping[bytes, bytes]) -> TaskState:
    """A task hash as a person is shown it, finished or not."""
    fields = {text_of(name): text_of(value) for name, value in raw.items()}
    matches = ((_WORKER.fullmatch(name), value) for name, value in fields.items())
    workers = [_worker_of(int(match[1]), value) for match, value in matches if match]
    return TaskState(
        event_id=event_id,
        stream_id=fields.get("sid", ""),
        digest=fields.get("digest", ""),
        event_type=fields.get("type", ""),
        task_id=fields.get("task_id", ""),
        state=fields.get("state", ""),
        pod_count=_int_or_zero(fields.get("pod_count")),
        received_at=fields.get("received_at", ""),
        owner=fields.get("owner", ""),
        wait_reason=fields.get("why", ""),
        code=_task_code(fields, workers),
        since=fields.get("since", ""),
        next_at=fields.get("next_at", ""),
        succeeded=_int_or_zero(fields.get("succeeded")),
        failed=_int_or_zero(fields.get("failed")),
        cancelled=_int_or_zero(fields.get("cancelled")),
        # each is event id, index, pod; the pod's name is empty where none was seen
        victims=tuple(str(pod or f"{event}/{index}") for event, index, pod in json.loads(fields.get("victims", "[]"))),
        workers={worker.index: worker for worker in sorted(workers, key=lambda worker: worker.index)},
    )


def _worker_of(index: int, text: str) -> WorkerState:
    """A worker from its field. A viewer of the page has all of them read each second, and few of them change."""
    return _remembered_worker(index, text) if len(text) <= _REMEMBERED else _worker_state(index, json.loads(text))


@lru_cache(2048)
def _remembered_worker(index: int, text: str) -> WorkerState:
    return _worker_state(index, json.loads(text))


def _worker_state(index: int, stored: Mapping[str, Any]) -> WorkerState:
    outcome = str(stored.get("outcome", ""))
    return WorkerState(
        index=index,
        state="finished" if outcome else str(stored.get("state", "")),
        attempt=_int_or_zero(stored.get("attempt")),
        pod=str(stored.get("pod", "")),
        outcome=outcome,
        reason=str(stored.get("reason", "")),
        exit_code=str(stored.get("exit_code", "")),
        message=str(stored.get("message", "")),
        finished_at=str(stored.get("finished_at", "")),
        output=str(stored.get("output", "")),
        code=code_of(str(stored.get("code", "")), str(stored.get("state", "")), outcome),
        detail=str(stored.get("detail", "")),
        since=str(stored.get("since", "")),
        next_at=str(stored.get("next_at", "")),
    )


def _task_code(fields: Mapping[str, str], workers: Sequence[WorkerState]) -> StatusCode:
    """The code that its owner has written; where there is none (yet), what follows from the other fields."""
    if fields.get("state") == "finished":
        left = {worker.outcome for worker in workers if worker.outcome != "succeeded"}
        return StatusCode.EXPIRED if left == {"expired"} else StatusCode.FINISHED
    if (code := fields.get("code", "")) in CODES:
        return StatusCode(code)
    if fields.get("type") == "scale_down":
        return StatusCode.VICTIMS if fields.get("victims") else StatusCode.TURN
    codes = [worker.code for worker in workers if not worker.outcome]
    return min(codes, key=lambda one: one.rank, default=StatusCode.TURN)


def _int_or_zero(value: Any) -> int:
    text = str(value)
    return int(text) if text.isdigit() else 0
