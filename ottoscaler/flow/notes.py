"""States of workers and tasks to show: collected here, and written to Redis in batches."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun

States = Mapping[int, tuple[str, int, str]]


class Notes:
    """By task: the state, attempt and pod of workers by index, and why the task waits. Any thread."""

    def __init__(self) -> None:
        # A lock of its own, which is never held while another one is taken: worker threads note what they do while the
        # ledger's lock is busy with handing out work.
        self._lock = threading.Lock()
        self._tasks: dict[str, OwnedTask] = {}
        self._states: dict[str, dict[int, tuple[str, int, str]]] = {}
        self._reasons: dict[str, str] = {}

    def add(self, run: WorkerRun, reason: str | None = None) -> None:
        """How a worker stands now; with a `reason`, why its task waits."""
        if run.task.closed:  # a worker of an earlier epoch must not report on a task that was taken over again
            return
        life, event_id = run.life, run.task.event.event_id
        state = life.state
        pod = "" if state == "waiting" else run.pod_name
        with self._lock:
            self._tasks[event_id] = run.task
            self._states.setdefault(event_id, {})[life.index] = (state, life.attempt, pod)
            if reason is not None:
                self._reasons[event_id] = reason

    def take(self) -> list[tuple[OwnedTask, States, str | None]]:
        """All since the last call, but for tasks that are closed."""
        with self._lock:
            tasks, states, reasons = self._tasks, self._states, self._reasons
            self._tasks, self._states, self._reasons = {}, {}, {}
        found = [(tasks[event_id], seen, reasons.get(event_id)) for event_id, seen in states.items()]
        return [one for one in found if not one[0].closed]
