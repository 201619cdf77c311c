"""`demo`: the local system, nine events, the workers' lines, and a table with the expected and the real end of each.

The controller gets a fixed configuration, not the person's own, so that the demo ends the same way everywhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.cli.demo_logs import DemoLogs
from ottoscaler.cli.follow import EventProgress, Follower
from ottoscaler.cli.system import ROOT, LocalSystem
from ottoscaler.cli.table import console, grid, printable, progress_text, worker_text
from ottoscaler.core.wording import count_text
from ottoscaler.errors import OttoscalerError
from ottoscaler.local.redis import find_binary

DEADLINE_S: Final = 60.0
_LOOK_S: Final = 0.1
#: What the workers run: it finds the event's field `demo` in its environment, as every worker finds passed-on fields.
_WORKER: Final = """\
echo "worker $OTTO_WORKER_INDEX of $OTTO_WORKER_COUNT of $OTTO_TASK_ID"
case "$OTTO_DEMO" in
  fail) sleep 0.5; if [ "$OTTO_WORKER_INDEX" = 2 ]; then exit 3; fi ;;
  long) trap 'exit 143' TERM; sleep 120 & wait ;;
  *) sleep 1 ;;
esac
"""
_LONG: Final = "demo-long"
#: The rest of a person's environment could make the demo end in another way.
_KEPT: Final = ("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
_KEPT_PREFIXES: Final = ("LC_", "PYTHON", "COVERAGE")


@dataclass(frozen=True, slots=True)
class DemoCase:
    """One event and how it should end, in the words of `describe_outcome`. Immutable: any thread."""

    title: str
    expected: str
    fields: Mapping[str, str]
    send_after_task: str = ""
    """Send it only when all workers of that task run."""


CASES: Final = (
    DemoCase(
        "task of 3 workers",
        "3 Completed",
        {"type": "scale_up", "pod_count": "3", "task_id": "demo-three"},
    ),
    DemoCase(
        "task with a failing worker",
        "2 Completed, 1 Error",
        {"type": "scale_up", "pod_count": "3", "task_id": "demo-failing", "demo": "fail"},
    ),
    DemoCase(
        "bad event: pod_count=lots",
        "dead letter: Invalid",
        {"type": "scale_up", "pod_count": "lots", "task_id": "demo-bad"},
    ),
    DemoCase(
        "task with a concurrency_key",
        "1 Completed",
        {"type": "scale_up", "task_id": "demo-first", "concurrency_key": "demo"},
    ),
    DemoCase(
        "next of its key: waits for it",
        "1 Completed",
        {"type": "scale_up", "task_id": "demo-second", "concurrency_key": "demo"},
    ),
    DemoCase(
        "override: a command",
        "1 Completed",
        {"type": "scale_up", "task_id": "demo-command", "command": '["/bin/sh", "-c", "echo mine"]'},
    ),
    DemoCase(
        "refused override: LD_PRELOAD",
        "dead letter: NotAllowed",
        {"type": "scale_up", "task_id": "demo-hostile", "env": '{"LD_PRELOAD": "x.so"}'},
    ),
    DemoCase(
        "long task, scaled down",
        "2 ScaledDown",
        {"type": "scale_up", "pod_count": "2", "task_id": _LONG, "demo": "long"},
    ),
    DemoCase(
        "scale_down of the long task",
        "2 workers ended",
        {"type": "scale_down", "task_id": _LONG},
        send_after_task=_LONG,
    ),
)


@dataclass(slots=True)
class _Run:
    """One event on its way. Used by the main thread only."""

    case: DemoCase
    follower: Follower
    sent_at: float | None = None
    took_s: float | None = None
    progress: EventProgress = field(default_factory=EventProgress)

    def send(self) -> None:
        self.sent_at = time.monotonic()
        self.follower.send()

    def step(self) -> None:
        if self.sent_at is None or self.progress.done:
            return
        self.progress = self.follower.poll(0)
        if self.progress.done:
            self.took_s = time.monotonic() - self.sent_at

    @property
    def running(self) -> bool:
        """Whether all of its workers run."""
        task = self.progress.task
        return task is not None and task.count_workers() == {"running": task.pod_count}

    @property
    def as_expected(self) -> bool:
        return describe_outcome(self.progress) == self.case.expected


def main(arguments: Sequence[str]) -> int:
    """Run the demo. Returns 0 if every event ended as it should, 1 if not; 2 for arguments, for it takes none.

    Raises ConfigError when the embedded Redis is not installed.
    """
    if arguments:
        print("usage: ottoscaler.py demo (it takes no arguments)", file=sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    find_binary()  # before anything is said or made
    # Ended from outside it cleans up all the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = console()
    log = _log_file()
    try:
        failures = _run_demo(screen, log)
    except KeyboardInterrupt:
        log.unlink()
        raise
    except OttoscalerError as error:
        failures = (str(error),)
    if failures:
        print("The demo failed:", *failures, f"The controller's log: {log}", sep="\n  ", file=sys.stderr)
        return 1
    log.unlink()
    return 0


def _run_demo(screen: Console, log: Path) -> Sequence[str]:
    """Everything, with clean-up. Returns what went wrong."""
    started = time.monotonic()
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ottoscaler-", ignore_cleanup_errors=True))
        screen.print("Starting Redis, a Kubernetes API, a log handler and the controller on this machine ...")
        lines = stack.enter_context(DemoLogs(Path(directory)))
        if lines.advice:
            screen.print(lines.advice)
        system = stack.enter_context(LocalSystem(Path(directory), {**_demo_environment(), **lines.environ}))
        settings = system.settings
        reader = StatusReader(settings.redis, settings.keys)
        stack.callback(reader.close)
        system.start_controller(log)
        runs = [_Run(case, Follower(reader, case.fields)) for case in CASES]
        failure = _follow_runs(screen, system, runs, lines, deadline=started + DEADLINE_S)
        _await_lines(screen, lines, _pods_that_ended(runs), deadline=started + DEADLINE_S)
    screen.print(_summary_table(runs))
    good = sum(run.as_expected for run in runs)
    took_s = time.monotonic() - started
    screen.print(f"{good} of {len(runs)} events ended as they should; the whole demo took {took_s:.1f} s.")
    wrong = [
        f"{run.case.title}: expected {run.case.expected!r}, saw {_state_text(run)!r}"
        for run in runs
        if not run.as_expected
    ]
    return [*([failure] if failure else []), *wrong]


def _follow_runs(
    screen: Console, system: LocalSystem, runs: Sequence[_Run], lines: DemoLogs, *, deadline: float
) -> str:
    """Send the events and look at them until all have ended. Returns why it was given up, empty if it was not."""
    pause, said = threading.Event(), [""] * len(runs)
    live = Live(console=screen, auto_refresh=False, transient=True) if screen.is_terminal else None
    with live or ExitStack():
        while not all(run.progress.done for run in runs):
            _send_due(runs)
            for run in runs:
                run.step()
            _print_lines(screen, lines)
            if live is not None:
                live.update(_progress_table(runs), refresh=True)
            else:
                said = _print_changes(runs, said)
            if system.exit_code is not None:
                return f"the controller ended with exit code {system.exit_code}"
            if time.monotonic() >= deadline:
                return f"not all events had ended {DEADLINE_S:g} s after the start"
            pause.wait(_LOOK_S)
    return ""


def _print_lines(screen: Console, lines: DemoLogs) -> None:
    """Above the table, where there is one."""
    for line in lines.new_lines():
        screen.print(printable(line))


def _pods_that_ended(runs: Sequence[_Run]) -> set[str]:
    """Those of workers that ended by themselves: a pod that is ended by us does not stay for its log."""
    tasks = [run.progress.task for run in runs if run.progress.task is not None]
    return {each.pod for task in tasks for each in task.workers.values() if each.reason in ("Completed", "Error")}


def _await_lines(screen: Console, lines: DemoLogs, pods: Set[str], *, deadline: float) -> None:
    """Print the last lines: a result does not wait for its log."""
    pause = threading.Event()
    while lines.is_on and not pods <= lines.ended and time.monotonic() < deadline:
        pause.wait(_LOOK_S)
        _print_lines(screen, lines)


def _send_due(runs: Sequence[_Run]) -> None:
    running = {run.case.fields["task_id"] for run in runs if run.running}
    for run in runs:
        if run.sent_at is None and (not run.case.send_after_task or run.case.send_after_task in running):
            run.send()


def describe_outcome(progress: EventProgress) -> str:
    """How an event ended, in the words of `DemoCase.expected`: reasons and how many workers each has."""
    task = progress.task
    if progress.dead_letter is not None:
        return f"dead letter: {progress.dead_letter.reason}"
    if task is None or not task.finished:
        return ""
    if task.event_type == "scale_down":
        return f"{count_text(len(task.victims), 'worker')} ended" if progress.succeeded else "failed"
    reasons = [worker.reason for worker in task.workers.values()]
    return ", ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons)))


def _state_text(run: _Run) -> str:
    if run.sent_at is None:
        return "not sent"
    return describe_outcome(run.progress) or progress_text(run.progress.task)


def _details_text(run: _Run) -> str:
    if run.progress.dead_letter is not None:
        return run.progress.dead_letter.detail
    task = run.progress.task
    if task is None:
        return ""
    return (
        "\n".join(task.victims)
        if task.event_type == "scale_down"
        else "\n".join(map(worker_text, task.workers.values()))
    )


def _duration_text(run: _Run) -> str:
    return "" if run.took_s is None else f"{run.took_s:.1f} s"


def _progress_table(runs: Sequence[_Run]) -> Table:
    return grid(("event", "state", "time"), [(run.case.title, _state_text(run), _duration_text(run)) for run in runs])


def _summary_table(runs: Sequence[_Run]) -> Table:
    headings = ("", "event", "expected", "seen", "workers", "time")
    rows = [
        (
            "ok" if run.as_expected else "NO",
            run.case.title,
            run.case.expected,
            _state_text(run),
            _details_text(run),
            _duration_text(run),
        )
        for run in runs
    ]
    return grid(headings, rows)


def _print_changes(runs: Sequence[_Run], said: list[str]) -> list[str]:
    texts = [_state_text(run) for run in runs]
    for run, text, before in zip(runs, texts, said, strict=True):
        if text != before:
            print(f"{run.case.title}: {text}", flush=True)
    return texts


def _demo_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    return {
        **kept,
        "OTTO_AGENT_COMMAND": json.dumps(["/bin/sh", "-c", _WORKER]),
        "REDIS_BLOCK_MS": "500",  # a reader that blocks is waited for at the end
        "LOG_FORMAT": "text",
        "POLICY_FILE": str(ROOT / "deploy" / "policy.yaml"),
        "TERMINATION_GRACE_S": "10",
        "LOG_DRAIN_S": str(int(DEADLINE_S)),  # the lines are shown, however slow the machine is
    }


def _log_file() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="ottoscaler-demo-", suffix=".log")
    os.close(descriptor)
    return Path(name)
