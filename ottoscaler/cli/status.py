"""`status`: what Redis says about the work, without asking Kubernetes or the controller.

`--json` prints one object, as deploy/schemas/status.schema.json says; these keys are stable, new ones may be added:

- `at`: Redis's time, seconds since the epoch
- `tasks`: the unfinished ones, oldest first: `event_id`, `task_id`, `type`, `state` (`waiting`, `running`),
  `received_at`, `age_s`, `pod_count`, `workers` (state or outcome -> how many), `succeeded`, `failed`, `cancelled`,
  `owner` (the replica that holds the lease), `why` and `next_at` (why nothing moves, when it is tried again; or empty),
  `code` (where it is: the table of codes in deploy/REFERENCE.md), `since`, `attention` (does not pass by itself)
- `finished`: the newest closing results, newest first: `event_id`, `task_id`, `kind` (`task`, `scale_down`), `outcome`,
  `reason`, `finished_at`
- `backlog`: `unread`, `unread_is_exact` (false: at least this many), `pending`
- `dead_letters`: how many there are
"""

from __future__ import annotations

import argparse
import json
import threading
from bisect import bisect_right
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
from ottoscaler.cli.explanation import Standing, standing_of
from ottoscaler.cli.table import console, duration, grid, printable, tally_text
from ottoscaler.core.wording import count_text
from ottoscaler.errors import RedisUnavailable
from ottoscaler.stored import split_owner_token

_REFRESH_S: Final = 1.0
_FINISHED: Final = 10
#: At most as many rows, and on a terminal no more than it has room for; `--json` has them all.
_ROWS: Final = 40
#: A small terminal leaves out open tasks only when as few of the finished ones are shown.
_FEWEST_FINISHED: Final = 3
_HEADINGS: Final = ("event", "task", "state", "age", "workers", "owner", "why")
_CLOSED_HEADINGS: Final = ("event", "task", "kind", "outcome", "reason", "finished")


@dataclass(frozen=True, slots=True)
class StatusReport:
    """One look at everything. Immutable: any thread."""

    at: float
    tasks: Sequence[TaskState]
    standings: Mapping[str, Standing]
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
    now, lease_ends = opened.now(), opened.lease_ends()
    tasks = opened.tasks(lease_ends)
    return StatusReport(
        at=now,
        tasks=tasks,
        standings={task.event_id: standing_of(task, lease_ends.get(task.event_id), now) for task in tasks},
        finished=opened.closing_results(_FINISHED),
        backlog=opened.backlog(),
        dead_letters=opened.count_dead_letters(),
    )


def as_json(status: StatusReport) -> dict[str, Any]:
    """The object of `--json`: see the module's docstring."""
    backlog = status.backlog
    closing = ("event_id", "task_id", "kind", "outcome", "reason", "finished_at")
    return {
        "at": status.at,
        "tasks": [_task_json(task, status) for task in status.tasks],
        "finished": [{name: result.get(name, "") for name in closing} for result in status.finished],
        "backlog": {"unread": backlog.unread, "unread_is_exact": backlog.exact, "pending": backlog.pending},
        "dead_letters": status.dead_letters,
    }


def _task_json(task: TaskState, status: StatusReport) -> dict[str, Any]:
    standing = status.standings[task.event_id]
    return {
        "event_id": task.event_id,
        "task_id": task.task_id,
        "type": task.event_type,
        "state": task.state,
        "received_at": task.received_at,
        "age_s": round(_age_s(task, status.at), 3),
        "pod_count": task.pod_count,
        "workers": task.count_workers(),
        "succeeded": task.succeeded,
        "failed": task.failed,
        "cancelled": task.cancelled,
        "owner": _owner_name(task),
        "why": task.wait_reason,
        "next_at": task.next_at,
        "code": standing.code.value,
        "since": standing.since,
        "attention": standing.code.facts.attention,
    }


def _print_status(screen: Console, status: StatusReport) -> None:
    if screen.is_terminal:
        screen.print(_fitting_table(screen, status))
    else:
        print(*_status_lines(status), sep="\n")


def _watch_on_terminal(screen: Console, opened: StatusReader, status: StatusReport) -> None:
    with Live(_fitting_table(screen, status), console=screen, auto_refresh=False) as live:
        for found in _poll(opened):
            shown = Text(str(found)) if isinstance(found, RedisUnavailable) else _fitting_table(screen, found)
            live.update(shown, refresh=True)


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


def _fitting_table(screen: Console, status: StatusReport) -> RenderableType:
    """As much as the terminal has lines for. Finished tasks give way first, then those at the end."""
    rows, finished = min(len(status.tasks), _ROWS), len(status.finished)

    def surplus(rows: int) -> int:
        lines = screen.render_lines(_status_table(status, rows, finished))
        return len(lines) - (screen.height - 1)  # one line for the prompt

    while (lines := surplus(rows)) > 0 and finished > _FEWEST_FINISHED:
        finished = max(_FEWEST_FINISHED, finished - lines)
    if lines > 0 and rows:
        # by halves: --watch draws it once a second, and each try is as dear as the drawing itself
        rows = max(1, bisect_right(range(rows), 0, key=surplus) - 1)
    return _status_table(status, rows, finished)


def _status_table(status: StatusReport, rows: int, finished: int) -> RenderableType:
    parts: list[RenderableType] = [Text(line) for line in (_summary_text(status), *_attention_lines(status))]
    if rows:
        shown = [_task_row(task, status) for task in _worst_first(status)[:rows]]
        parts += ["", grid(_HEADINGS, shown, title=count_text(len(status.tasks), "unfinished task"))]
        if len(status.tasks) > rows:
            parts.append(Text(f"and {len(status.tasks) - rows} more"))
    if finished:
        ended = [_finished_row(result) for result in status.finished[:finished]]
        parts += ["", grid(_CLOSED_HEADINGS, ended, title="last finished")]
    return Group(*parts)


def _status_lines(status: StatusReport) -> list[str]:
    lines = [_summary_text(status), *_attention_lines(status)]
    for task in _worst_first(status):
        event_id, task_id, state, age, workers, owner, why = _task_row(task, status)
        facts = [f"task {task_id}" if task_id else task.event_type, state, f"for {age}", workers]
        facts += [f"owner {owner}" if owner else "", why]
        lines.append(printable(f"{event_id}: {', '.join(filter(None, facts))}"))
    for result in status.finished:
        event_id, task_id, kind, outcome, reason, finished_at = _finished_row(result)
        lines.append(printable(f"{event_id}: {kind} {task_id or '-'} {outcome} ({reason}) at {finished_at}"))
    return lines


def _worst_first(status: StatusReport) -> list[TaskState]:
    """The tasks in the order of their codes; of two alike the older one is first."""
    return sorted(status.tasks, key=lambda task: status.standings[task.event_id].code.rank)


def _attention_lines(status: StatusReport) -> list[str]:
    """Which tasks need attention, and the command that says what to do."""
    waiting = [task for task in _worst_first(status) if status.standings[task.event_id].code.facts.attention]
    lines = []
    if waiting:
        need = f"{count_text(len(waiting), 'task')} {'needs' if len(waiting) == 1 else 'need'} attention"
        lines.append(printable(f"{need}: ottoscaler.py explain {waiting[0].event_id} says what to do"))
    if status.dead_letters:
        lines.append("dead letters are events that were refused: ottoscaler.py dead list says why")
    return lines


def _summary_text(status: StatusReport) -> str:
    unread = count_text(status.backlog.unread, "unread event")
    backlog = unread if status.backlog.exact else f"at least {unread}"
    dead = count_text(status.dead_letters, "dead letter")
    tasks = count_text(len(status.tasks), "unfinished task")
    return f"{tasks}; backlog: {backlog}, {status.backlog.pending} pending; {dead}"


def _task_row(task: TaskState, status: StatusReport) -> tuple[str, ...]:
    workers = tally_text(task.count_workers())
    if task.event_type == "scale_down":
        workers = f"ends {count_text(len(task.victims), 'worker')}" if task.victims else "scale_down"
    standing = status.standings[task.event_id]
    why = f"{standing.code.value}: {standing.why}" if standing.code.facts.attention else task.wait_reason
    if why and standing.next_at:
        facts = standing.code.facts
        why = f"{why}; {facts.next_step(standing.next_at) if facts.then_at else f'next at {standing.next_at}'}"
    age = duration(_age_s(task, status.at))
    return task.event_id, task.task_id, task.state, age, workers, _owner_name(task), why


def _finished_row(result: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(result.get(name, "") for name in ("event_id", "task_id", "kind", "outcome", "reason", "finished_at"))


def _owner_name(task: TaskState) -> str:
    return split_owner_token(task.owner)[0]  # the rest means nothing to people


def _age_s(task: TaskState, at: float) -> float:
    try:
        return max(0.0, at - datetime.fromisoformat(task.received_at).timestamp())
    except ValueError:
        return 0.0
