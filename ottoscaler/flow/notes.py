"""What is to be shown of workers and tasks: collected here, and written to Redis with others, now and then."""

from __future__ import annotations

from collections.abc import Mapping

from ottoscaler.flow.owned_tasks import WorkerRun

States = Mapping[int, tuple[str, int, str]]


class Notes:
    """By event id: the state, attempt and pod of workers by index, and why a task waits. One thread at a time."""

    def __init__(self) -> None:
        self._states: dict[str, dict[int, tuple[str, int, str]]] = {}
        self._reasons: dict[str, str] = {}

    def add(self, run: WorkerRun, reason: str | None = None) -> None:
        """How a worker stands now; with `why`, why its task does."""
        life, event_id = run.life, run.task.event.event_id
        pod = "" if life.state == "waiting" else run.pod_name
        self._states.setdefault(event_id, {})[life.index] = (life.state, life.attempt, pod)
        if reason is not None:
            self._reasons[event_id] = reason

    def take(self) -> list[tuple[str, States, str | None]]:
        """All since the last call."""
        states, whys = self._states, self._reasons
        self._states, self._reasons = {}, {}
        return [(event_id, seen, whys.get(event_id)) for event_id, seen in states.items()]

    def drop(self, event_id: str) -> None:
        """Nothing more is to be shown of a task."""
        self._states.pop(event_id, None)
