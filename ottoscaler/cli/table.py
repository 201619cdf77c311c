"""How tasks and workers are put into words and tables, the same in all commands.

What is shown comes from events, pods and servers: it is never taken for markup, and what does not print is escaped, so
that no event can move the cursor of the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from ottoscaler.adapters.task_codec import TaskState, WorkerState

#: The order in which states are shown: what is done first, then what is nearest to it.
_ORDER: Final = (
    "succeeded",
    "failed",
    "lost",
    "expired",
    "cancelled",
    "ending",
    "running",
    "pending",
    "creating",
    "waiting",
)
#: Where no terminal says how wide it is, a table is not squeezed into 80 columns.
_PLAIN_WIDTH: Final = 160


def console() -> Console:
    """Standard output, for one thread; `is_terminal` says whether anything may move."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of texts, which may have several lines; long ones are folded, never cut."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*("\n".join(map(printable, cell.split("\n"))) for cell in row))
    return table


def printable(text: str) -> str:
    """The text on one line, with what does not print as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def tally_text(tally: Mapping[str, int]) -> str:
    """Counts by state in words: `2 succeeded, 1 running`."""
    known = [state for state in _ORDER if tally.get(state)]
    others = sorted(state for state, count in tally.items() if count and state not in _ORDER)
    return ", ".join(f"{tally[state]} {state}" for state in (*known, *others))


def progress_text(task: TaskState | None) -> str:
    """Where a task stands, in one line; None: no controller has taken the event yet."""
    if task is None:
        return "not taken yet"
    details = "; ".join(filter(None, [tally_text(task.count_workers()), task.wait_reason]))
    return printable(f"{task.state} ({details})" if details else task.state)


def worker_text(worker: WorkerState) -> str:
    """How one worker ended, or where it is: `2: Error, exit code 3`."""
    code = f", exit code {worker.exit_code}" if worker.exit_code not in ("", "0") else ""
    return f"{worker.index}: {worker.reason or worker.outcome or worker.state}{code}"


def duration(seconds: float) -> str:
    """A length of time as people say it, in its two largest units: `1 h 5 min`."""
    rest = max(0, int(seconds))
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if rest >= size:
            return f"{rest // size} {unit} {rest % size // smaller_size} {smaller}"
    return f"{rest} s"
