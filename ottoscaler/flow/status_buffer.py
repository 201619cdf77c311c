"""What has changed of tasks and workers since their status was last written to Redis."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun

#: The status of one task is written at most this often, seconds.
WRITE_EVERY_S: Final = 1.0


class StatusBuffer:
    """Marks of change, by task; what the status is then, the writer finds out. Any thread.

    A mark is all that a worker's thread pays for: the words are made by one thread, once for many changes.
    """

    def __init__(self) -> None:
        # A lock of its own, which is never held while another one is taken: worker threads mark what they do while the
        # ledger's lock is busy with handing out work.
        self._lock = threading.Lock()
        self._tasks: dict[str, OwnedTask] = {}  # guarded by _lock, as the others
        self._runs: dict[str, dict[int, WorkerRun]] = {}
        self._written_at: dict[str, float] = {}

    def mark(self, run: WorkerRun) -> None:
        """This worker's status may have changed."""
        if run.task.closed:  # a worker of an earlier epoch must not report on a task that was taken over again
            return
        event_id = run.task.event.event_id
        with self._lock:
            self._tasks[event_id] = run.task
            self._runs.setdefault(event_id, {})[run.life.index] = run

    def mark_task(self, task: OwnedTask) -> None:
        """What the task waits for may have changed."""
        with self._lock:
            self._tasks[task.event.event_id] = task

    def mark_waiting(self, task: OwnedTask) -> None:
        """What its workers wait for that hold no thread may have changed. Under the ledger's lock."""
        self.mark_task(task)
        for run in task.runs.values():
            if not run.on_thread:
                self.mark(run)

    def mark_all(self, task: OwnedTask) -> None:
        """Redis has nothing of its status, or another process's: all is written again. Under the ledger's lock."""
        task.noted = None
        self.mark_task(task)
        for run in task.runs.values():
            run.noted = None
            self.mark(run)

    def take(self, now: float) -> Sequence[tuple[OwnedTask, Sequence[WorkerRun]]]:
        """The tasks to be written now (`Clock.now`), with their changed workers. One that was written a moment ago
        stays marked. Closed ones are forgotten.
        """
        with self._lock:
            self._written_at = {name: at for name, at in self._written_at.items() if now - at < WRITE_EVERY_S}
            due = [name for name in self._tasks if name not in self._written_at]
            found = [(self._tasks.pop(name), list(self._runs.pop(name, {}).values())) for name in due]
            taken = [one for one in found if not one[0].closed]
            self._written_at.update((task.event.event_id, now) for task, _ in taken)
        return taken
