"""What the status page shows: bounded reads of Redis, once for all viewers. It writes nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from ottoscaler.adapters.page_reader import OpenTasks, PageReader
from ottoscaler.adapters.redis_values import entry_time_s
from ottoscaler.adapters.status_reader import DeadLetter
from ottoscaler.adapters.task_codec import TaskState, WorkerState
from ottoscaler.cli.explanation import Explanation, explain, standing_of
from ottoscaler.core.page_changes import PageState
from ottoscaler.core.plan import stream_sort_key
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.results import rfc3339
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.stored import split_owner_token

#: Rows of each kind at most. The counts are of all.
MOST_TASKS: Final = 200
MOST_WORKERS: Final = 1000
MOST_RESULTS: Final = 50
MOST_FAILURES: Final = 50
MOST_DEAD: Final = 50
#: Tasks that a search shows.
MOST_FOUND: Final = 50
#: Unread events are counted up to here.
COUNTED: Final = 1000
#: Results that a search looks at, and those that the first look does.
SEARCHED: Final = 5000
OPEN_SEARCHED: Final = 2000
#: Parts of the result stream that one look reads: the rest of a busy hour is counted by the looks behind it.
_PARTS: Final = 5
_SEARCHED_FIELDS: Final = ("task_id", "event_id", "repository", "commit_sha", "pod")
_HOUR_S: Final = 3600
_TEXT: Final = 500
_SUCCEEDED: Final = "succeeded"

_FAILURES: Final = frozenset({"failed", "lost", "expired"})

_Results = dict[str, Mapping[str, str]]
_Row = TypeVar("_Row")


class _WorkerRow(NamedTuple):
    """The row of a worker, and what it was made of: the worker, its pod, and when its task was received."""

    made_of: tuple[WorkerState, PodSnapshot | None, str]
    row: Mapping[str, Any]


class PageSource:
    """`look` belongs to one thread at a time, once a second at most; `search` to any."""

    def __init__(
        self,
        reader: PageReader,
        process: Callable[[], Mapping[str, Any]],
        pods: Callable[[], Mapping[str, PodSnapshot]],
    ) -> None:
        """`process` returns what this process knows by itself: `health` (sentences), `live`, `max`; `pods` the pods
        that it has seen, by their names.
        """
        self._reader = reader
        self._process = process
        self._pods = pods
        self._results: _Results = {}
        self._failures: _Results = {}
        self._minutes: Counter[int] = Counter()
        self._read_to = ""
        self._passed_on: dict[str, Mapping[str, str]] = {}
        self._rows: dict[str, _WorkerRow] = {}  # of the last look: most workers stand as they did a second ago
        self._search_lock = threading.Lock()

    def look(self) -> PageState:
        """How everything stands. Raises RedisUnavailable."""
        now = self._reader.now()
        self._read_results(now)
        found = self._reader.some_open_tasks(MOST_TASKS, MOST_WORKERS)
        self._read_passed_on(found.tasks)
        backlog = self._reader.backlog(COUNTED)
        minute = int(now) // 60
        summary = {
            "unread": backlog.unread, "exact": backlog.exact, "pending": backlog.pending, "open": found.count,
            "dead": self._reader.count_dead_letters(),
            "hour": [self._minutes[minute - ago] for ago in range(59, -1, -1)], **self._process(),
        }  # fmt: skip
        pods = self._pods()
        results = self._failures | self._results
        return {
            "codes": _CODES, "clock": {"": {"at": round(now)}}, "summary": {"": summary},
            "tasks": {
                task.event_id: _task_row(task, found, self._passed_on[task.event_id], now) for task in found.tasks
            },
            "workers": self._worker_rows(found.tasks, pods),
            "results": {key: _result_row(key, fields, pods) for key, fields in results.items()},
            "dead": _dead_rows(self._reader.newest_dead_letters(MOST_DEAD)),
        }  # fmt: skip

    def _worker_rows(self, tasks: Sequence[TaskState], pods: Mapping[str, PodSnapshot]) -> dict[str, Any]:
        rows: dict[str, _WorkerRow] = {}
        for task in tasks:
            for worker in task.workers.values():
                key, pod = f"{task.event_id}/{worker.index}", pods.get(worker.pod)
                last = self._rows.get(key)
                made_of = (worker, pod, task.received_at)
                if last is None or last.made_of != made_of:
                    last = _WorkerRow(made_of, _worker_row(task, worker, pod))
                rows[key] = last
        self._rows = _first_rows(rows, MOST_WORKERS)
        return {key: one.row for key, one in self._rows.items()}

    def search(self, text: str) -> PageState:
        """What has this text in task, event, repository, commit or pod, without regard to case: unfinished tasks, the
        newest results (failures first) and dead letters; and what `explain` says of exactly this id. Raises
        RedisUnavailable.
        """
        wanted = text.strip().casefold()
        if not wanted:
            return {"tasks": {}, "results": {}, "dead": {}}
        with self._search_lock:  # one after the other: each takes time from the workers of this process
            tasks = self._open_tasks_with(wanted)
            for one in explain(self._reader, text.strip()):
                tasks.setdefault(one.dead_letter or one.event_id, _explained_row(one))
            results = {
                key: _result_row(key, fields)
                for key, fields in self._reader.newest_results(SEARCHED)
                if _has(wanted, fields)
            }
            dead = self._reader.newest_dead_letters(SEARCHED)
        worst_first = dict(sorted(results.items(), key=lambda item: item[1]["outcome"] == _SUCCEEDED))
        named = {key: each for key, each in dead.items() if wanted in each.event_id.casefold()}
        return {
            "tasks": _first_rows(tasks, MOST_FOUND),
            "results": _first_rows(worst_first, MOST_RESULTS + MOST_FAILURES),
            "dead": _dead_rows(_first_rows(named, MOST_DEAD)),
        }

    def _open_tasks_with(self, wanted: str) -> dict[str, Any]:
        found = self._reader.some_open_tasks(OPEN_SEARCHED, 0)
        passed_on = self._reader.passed_on([task.event_id for task in found.tasks])
        now = self._reader.now()
        return {
            task.event_id: _task_row(task, found, passed_on[task.event_id], now)
            for task in found.tasks
            if _has(wanted, {**passed_on[task.event_id], "task_id": task.task_id, "event_id": task.event_id})
        }

    def _read_results(self, now: float) -> None:
        """What has come since the last look; at the first, the newest and the counts of the last hour."""
        if not self._read_to:
            self._read_to = f"{int((now - _HOUR_S) * 1000)}-0"
            self._keep(self._reader.newest_results(SEARCHED))
        for _ in range(_PARTS):
            found = self._reader.results_after(self._read_to)
            for entry_id, fields in found:
                self._minutes[int(entry_time_s(entry_id)) // 60] += fields.get("kind") == "worker"
            if not found:
                break
            self._read_to = found[-1][0]
            self._keep(found)
        for minute in [minute for minute in self._minutes if minute < int(now) // 60 - 60]:
            del self._minutes[minute]

    def _keep(self, found: Sequence[tuple[str, Mapping[str, str]]]) -> None:
        """The newest failures apart from the newest of all: a few among many thousand are to be seen, too."""
        self._results = _newest(self._results | dict(found), MOST_RESULTS)
        failures = {key: fields for key, fields in found if fields.get("outcome") in _FAILURES}
        self._failures = _newest(self._failures | failures, MOST_FAILURES)

    def _read_passed_on(self, tasks: Sequence[TaskState]) -> None:
        """Once for each task, since it never changes and may be large."""
        new = [task.event_id for task in tasks if task.event_id not in self._passed_on]
        read = self._reader.passed_on(new) if new else {}
        kept = {task.event_id: self._passed_on.get(task.event_id) for task in tasks}
        self._passed_on = {event_id: fields or _links(read.get(event_id, {})) for event_id, fields in kept.items()}


def _newest(results: _Results, most: int) -> _Results:
    return {key: results[key] for key in sorted(results, key=stream_sort_key, reverse=True)[:most]}


def _first_rows(rows: Mapping[str, _Row], most: int) -> dict[str, _Row]:
    return dict(islice(rows.items(), most))


def _has(wanted: str, fields: Mapping[str, str]) -> bool:
    return any(wanted in fields.get(name, "").casefold() for name in _SEARCHED_FIELDS)


# -- rows: what a viewer is sent


def _code_rows() -> dict[str, Any]:
    """Each line of the table of codes once, so that no row has to repeat it; `{at}` is the time of the next step."""
    return {
        code.value: {
            "rank": code.rank, "attention": code.facts.attention, "next": code.facts.next_step(""),
            "next_at": code.facts.next_step("{at}"), "advice": code.facts.advice, "actor": code.facts.actor.value,
        }
        for code in StatusCode
    }  # fmt: skip


_CODES: Final = _code_rows()


def _task_row(task: TaskState, found: OpenTasks, passed_on: Mapping[str, str], now: float) -> dict[str, Any]:
    standing = standing_of(task, found.lease_ends.get(task.event_id), now)
    ended = {_SUCCEEDED: task.succeeded, "failed": task.failed, "cancelled": task.cancelled}
    return {
        "task": task.task_id, "event": task.event_id, "type": task.event_type, "count": task.pod_count,
        "at": task.received_at, "owner": split_owner_token(task.owner)[0], "code": standing.code.value,
        "why": standing.why[:_TEXT], "since": standing.since, "next_at": standing.next_at,
        "workers": task.count_workers() if task.workers else {name: count for name, count in ended.items() if count},
        **_links(passed_on),
    }  # fmt: skip


def _explained_row(one: Explanation) -> dict[str, Any]:
    return {
        "task": one.task_id, "event": one.event_id, "type": one.type, "count": one.pod_count, "at": one.received_at,
        "owner": one.owner, "code": one.code.value, "why": one.why[:_TEXT], "since": one.since,
        "next_at": one.next_at, "workers": dict(one.workers), "advice": one.advice,
    }  # fmt: skip


def _links(passed_on: Mapping[str, str]) -> dict[str, str]:
    return {name: passed_on[name][:_TEXT] for name in ("repository", "commit_sha") if passed_on.get(name)}


def _worker_row(task: TaskState, worker: WorkerState, pod: PodSnapshot | None) -> dict[str, Any]:
    row = {
        "task": task.task_id, "event": task.event_id, "index": worker.index, "attempt": worker.attempt,
        "code": worker.code.value, "outcome": worker.outcome, "why": worker.why[:_TEXT], "since": worker.since,
        "next_at": worker.next_at, "pod": worker.pod, "received_at": task.received_at,
    }  # fmt: skip
    if pod is not None:
        row |= {
            "created_at": rfc3339(pod.created_at), "scheduled_at": rfc3339(pod.scheduled_at),
            "started_at": rfc3339(pod.started_at), "finished_at": rfc3339(pod.finished_at), "node": pod.node,
            "has_pod": True,
        }  # fmt: skip
    return {name: value for name, value in row.items() if value != ""}


_RESULT: Final = (
    "kind", "task_id", "event_id", "outcome", "reason", "message", "fault", "exit_code", "index", "attempt", "pod",
    "node", "repository", "commit_sha", "received_at", "created_at", "scheduled_at", "started_at", "finished_at",
)  # fmt: skip


def _result_row(
    entry_id: str, fields: Mapping[str, str], pods: Mapping[str, PodSnapshot] = MappingProxyType({})
) -> dict[str, Any]:
    """What is shown of a result; it was recorded at the time of its entry's id. A failed pod may be kept."""
    shown = {name: fields[name][:_TEXT] for name in _RESULT if fields.get(name)}
    row = {"outcome": ""} | shown | {"recorded_at": rfc3339(entry_time_s(entry_id))}
    return row | ({"has_pod": True} if fields.get("pod") in pods else {})


def _dead_rows(letters: Mapping[str, DeadLetter]) -> dict[str, Any]:
    return {
        key: {
            "reason": each.reason, "detail": each.detail[:_TEXT], "event": each.event_id,
            "at": rfc3339(entry_time_s(key)),
        }
        for key, each in letters.items()
    }  # fmt: skip
