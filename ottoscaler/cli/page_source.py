"""What the status page shows: bounded reads of Redis, once for all viewers. It writes nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from ottoscaler.adapters.page_reader import RESULT_FIELDS, OpenTasks, PageReader
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
_T = TypeVar("_T")


class _Row(NamedTuple):
    """A row, and all that it was made of: where that is the same in the next look, the row is, too."""

    made_of: tuple[Any, ...]
    row: Mapping[str, Any]


class _Rows:
    """The rows of one kind, by their keys, as the last look made them: most stand as they did a second ago."""

    def __init__(self) -> None:
        self._last: dict[str, _Row] = {}
        self._now: dict[str, _Row] = {}

    def add(self, key: str, made_of: tuple[Any, ...], make: Callable[[], Mapping[str, Any]]) -> None:
        """A row of this look; `make` is asked for it where it was made of something else, or was not there."""
        last = self._last.get(key)
        self._now[key] = last if last is not None and last.made_of == made_of else _Row(made_of, make())

    def take(self) -> dict[str, Mapping[str, Any]]:
        """The rows of this look, by their keys; the next look begins."""
        self._last, self._now = self._now, {}
        return {key: one.row for key, one in self._last.items()}


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
        self._task_rows, self._worker_rows, self._result_rows = _Rows(), _Rows(), _Rows()
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
        self._make_rows(found, pods, now)
        return {
            "codes": _CODES, "clock": {"": {"at": round(now)}}, "summary": {"": summary},
            "tasks": self._task_rows.take(), "workers": self._worker_rows.take(), "results": self._result_rows.take(),
            "dead": _dead_rows(self._reader.newest_dead_letters(MOST_DEAD)),
        }  # fmt: skip

    def _make_rows(self, found: OpenTasks, pods: Mapping[str, PodSnapshot], now: float) -> None:
        workers_left = MOST_WORKERS
        for task in found.tasks:
            passed_on = self._passed_on[task.event_id]
            lease_end = found.lease_ends.get(task.event_id)
            # as long as the lease runs, the row does not say until when
            ended = lease_end if lease_end is not None and lease_end < now else None
            self._task_rows.add(
                task.event_id, (task, ended, passed_on), partial(_task_row, task, ended, passed_on, now)
            )
            for worker in islice(task.workers.values(), workers_left):
                pod = pods.get(worker.pod)
                make = partial(_worker_row, task, worker, pod)
                self._worker_rows.add(f"{task.event_id}/{worker.index}", (worker, pod, task.received_at), make)
            workers_left -= min(len(task.workers), workers_left)
        for key, fields in (self._failures | self._results).items():
            has_pod = fields.get("pod") in pods
            self._result_rows.add(key, (has_pod,), partial(_result_row, key, fields, has_pod=has_pod))

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
            task.event_id: _task_row(task, found.lease_ends.get(task.event_id), passed_on[task.event_id], now)
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


def _first_rows(rows: Mapping[str, _T], most: int) -> dict[str, _T]:
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


def _task_row(task: TaskState, lease_end: float | None, passed_on: Mapping[str, str], now: float) -> dict[str, Any]:
    standing = standing_of(task, lease_end, now)
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


def _result_row(entry_id: str, fields: Mapping[str, str], *, has_pod: bool = False) -> dict[str, Any]:
    """What is shown of a result; it was recorded at the time of its entry's id. A failed pod may be kept."""
    shown = {name: fields[name][:_TEXT] for name in RESULT_FIELDS if fields.get(name)}
    row = {"outcome": ""} | shown | {"recorded_at": rfc3339(entry_time_s(entry_id))}
    return row | ({"has_pod": True} if has_pod else {})


def _dead_rows(letters: Mapping[str, DeadLetter]) -> dict[str, Any]:
    return {
        key: {
            "reason": each.reason, "detail": each.detail[:_TEXT], "event": each.event_id,
            "at": rfc3339(entry_time_s(key)),
        }
        for key, each in letters.items()
    }  # fmt: skip
