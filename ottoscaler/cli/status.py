"""`status`: what Redis says about the work, without asking Kubernetes or the controller.

`--json` prints one object, as deploy/schemas/status.schema.json says; these keys are stable, new ones may be added:

- `at`: Redis's time, seconds since the epoch
- `tasks`: the unfinished ones, oldest first: `event_id`, `task_id`, `type`, `state` (`waiting`, `running`),
  `received_at`, `age_s`, `pod_count`, `workers` (state or outcome -> how many), `succeeded`, `failed`, `cancelled`,
  `owner` (the replica that holds the lease), `why` and `next_at` (why nothing moves, when it is tried again; or empty)
- `finished`: the newest closing results, newest first: `event_id`, `task_id`, `kind` (`task`, `scale_down`), `outcome`,
  `reason`, `finished_at`
- `backlog`: `unread`, `unread_is_exact` (false: at least this many), `pending`
- `dead_letters`: how many there are
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ottoscaler.adapters.status_reader import Backlog, StatusReader
from ottoscaler.adapters.task_codec import TaskState
from ottoscaler.cli.connection import open_reader
from ottoscaler.cli.table import console, duration, grid, printable, tally_text
from ottoscaler.core.wording import count_text
from ottoscaler.errors import RedisUnavailable
from ottoscaler.stored import split_owner_token

_REFRESH_S: Final = 1.0
_FINISHED: Final = 10
#: At most a screen of rows; `--json` has them all.
_ROWS: Final = 40
_HEADINGS: Final = ("event", "task", "state", "age", "workers", "owner", "why")
_CLOSED_HEADINGS: Final = ("event", "task", "kind", "outcome", "reason", "finished")


@dataclass(frozen=True, slots=True)
class StatusReport:
    """One look at everything. Immutable: any thread."""

    at: float
    tasks: Sequence[TaskState]
    finished: Sequence[Mapping[str, str]]
    backlog: Backlog
    dead_letters: int


def main(arguments: Sequence[str]) -> int:
    """Print the status, once or until Ctrl-C. Returns 0; raises ConfigError, RedisUnavailable."""
    parser = argparse.ArgumentParser(
        prog="ottoscaler.py status", description="Tasks, workers, backlog and dead letters."
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="go on until Ctrl-C, once a second")
    how.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    screen = console()
    with open_reader() as opened:
        status = read(opened)
        if options.json:
            print(json.dumps(as_json(status)))
        elif not options.watch:
            _print_status(screen, status)
        elif screen.is_terminal:
            _watch_on_terminal(screen, opened, status)
        else:
            _watch_in_lines(opened, status)
    return 0


def read(opened: StatusReader) -> StatusReport:
    """One look. Raises RedisUnavailable."""
    return StatusReport(
        at=opened.now(),
        tasks=opened.open_tasks(),
        finished=opened.closing_results(_FINISHED),
        backlog=opened.backlog(),
        dead_letters=opened.dead_letters(),
    )


def as_json(status: StatusReport) -> dict[str, Any]:
    """The object of `--json`: see the module's docstring."""
    backlog = status.backlog
    closing = ("event_id", "task_id", "kind", "outcome", "reason", "finished_at")
    return {
        "at": status.at,
        "tasks": [_task_json(task, status.at) for task in status.tasks],
        "finished": [{name: result.get(name, "") for name in closing} for result in status.finished],
        "backlog": {"unread": backlog.unread, "unread_is_exact": backlog.exact, "pending": backlog.pending},
        "dead_letters": status.dead_letters,
    }


def _task_json(task: TaskState, at: float) -> dict[str, Any]:
    return {
        "event_id": task.event_id,
        "task_id": task.task_id,
        "type": task.event_type,
        "state": task.state,
        "received_at": task.received_at,
        "age_s": round(_age_s(task, at), 3),
        "pod_count": task.pod_count,
        "workers": task.count_workers(),
        "succeeded": task.succeeded,
        "failed": task.failed,
        "cancelled": task.cancelled,
        "owner": _owner_name(task),
        "why": task.wait_reason,
        "next_at": task.next_at,
    }


def _print_status(screen: Console, status: StatusReport) -> None:
    if screen.is_terminal:
        screen.print(_status_table(status))
    else:
        print(*_status_lines(status), sep="\n")


def _watch_on_terminal(screen: Console, opened: StatusReader, status: StatusReport) -> None:
    with Live(_status_table(status), console=screen, auto_refresh=False) as live:
        for found in _poll(opened):
            live.update(Text(str(found)) if isinstance(found, RedisUnavailable) else _status_table(found), refresh=True)


def _watch_in_lines(opened: StatusReader, status: StatusReport) -> None:
    """A block of lines at the start and for each change; ages alone are no change."""
    print(*_status_lines(status), sep="\n", flush=True)
    said = _content_without_ages(status)
    for found in _poll(opened):
        text = str(found) if isinstance(found, RedisUnavailable) else _content_without_ages(found)
        if text != said:
            print("", *([text] if isinstance(found, RedisUnavailable) else _status_lines(found)), sep="\n", flush=True)
            said = text


def _poll(opened: StatusReader) -> Iterator[StatusReport | RedisUnavailable]:
    """Yield the status once a second, without end. While Redis is away the error is yielded, so that its return is
    seen.
    """
    pause = threading.Event()
    while not pause.wait(_REFRESH_S):
        try:
            yield read(opened)
        except RedisUnavailable as error:
            yield error


def _content_without_ages(status: StatusReport) -> str:
    found = as_json(status)
    del found["at"]
    for task in found["tasks"]:
        del task["age_s"]
    return json.dumps(found)


def _status_table(status: StatusReport) -> RenderableType:
    parts: list[RenderableType] = [Text(_summary_text(status))]
    if status.tasks:
        rows = [_task_row(task, status.at) for task in status.tasks[:_ROWS]]
        parts += ["", grid(_HEADINGS, rows, title=count_text(len(status.tasks), "unfinished task"))]
        if len(status.tasks) > _ROWS:
            parts.append(Text(f"and {len(status.tasks) - _ROWS} more"))
    if status.finished:
        parts += [
            "",
            grid(_CLOSED_HEADINGS, [_finished_row(result) for result in status.finished], title="last finished"),
        ]
    return Group(*parts)


def _status_lines(status: StatusReport) -> list[str]:
    lines = [_summary_text(status)]
    for task in status.tasks:
        event_id, task_id, state, age, workers, owner, why = _task_row(task, status.at)
        facts = [f"task {task_id}" if task_id else task.event_type, state, f"for {age}", workers]
        facts += [f"owner {owner}" if owner else "", why]
        lines.append(printable(f"{event_id}: {', '.join(filter(None, facts))}"))
    for result in status.finished:
        event_id, task_id, kind, outcome, reason, finished_at = _finished_row(result)
        lines.append(printable(f"{event_id}: {kind} {task_id or '-'} {outcome} ({reason}) at {finished_at}"))
    return lines


def _summary_text(status: StatusReport) -> str:
    unread = count_text(status.backlog.unread, "unread event")
    backlog = unread if status.backlog.exact else f"at least {unread}"
    dead = count_text(status.dead_letters, "dead letter")
    tasks = count_text(len(status.tasks), "unfinished task")
    return f"{tasks}; backlog: {backlog}, {status.backlog.pending} pending; {dead}"


def _task_row(task: TaskState, at: float) -> tuple[str, ...]:
    workers = tally_text(task.count_workers())
    if task.event_type == "scale_down":
        workers = f"ends {count_text(len(task.victims), 'worker')}" if task.victims else "scale_down"
    why = f"{task.wait_reason}, again at {task.next_at}" if task.wait_reason and task.next_at else task.wait_reason
    return task.event_id, task.task_id, task.state, duration(_age_s(task, at)), workers, _owner_name(task), why


def _finished_row(result: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(result.get(name, "") for name in ("event_id", "task_id", "kind", "outcome", "reason", "finished_at"))


def _owner_name(task: TaskState) -> str:
    return split_owner_token(task.owner)[0]  # the rest means nothing to people


def _age_s(task: TaskState, at: float) -> float:
    try:
        return max(0.0, at - datetime.fromisoformat(task.received_at).timestamp())
    except ValueError:
        return 0.0
