"""Writes how tasks and workers stand: code, words, since when and what time comes next, into their hashes in Redis, and
a warning into the log where something does not pass by itself.

The words are made here, on one thread, at most once a second for each task, and written only where they have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ottoscaler import logs
from ottoscaler.core.effects import StoreAttempt
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, quota_event, record_nothing
from ottoscaler.core.results import rfc3339
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.worker_status import WorkerStatus, task_status, worker_status
from ottoscaler.errors import Unavailable
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
from ottoscaler.ports import Attempts, Clock, StatusUpdate
from ottoscaler.settings import WorkerSettings
from ottoscaler.stored import TaskNote, WorkerNote

_log = logs.get(__name__)
_SHOWN: Final = 300


class StatusWriter:
    """Belongs to the take-over thread."""

    def __init__(
        self, *, attempts: Attempts, ledger: Ledger, clock: Clock, worker: WorkerSettings,
        record_event: RecordKubeEvent = record_nothing,
    ) -> None:  # fmt: skip
        self._attempts = attempts
        self._ledger = ledger
        self._clock = clock
        self._worker = worker
        self._record_event = record_event

    def write(self) -> None:
        """Write what has changed. Raises Unavailable; the same is written later then."""
        taken = self._ledger.status_buffer.take(self._clock.now())
        updates = [update for task, runs in taken if (update := self._update(task, runs)) is not None]
        if not updates:
            return
        try:
            self._attempts.write_status(updates)
        except Unavailable:
            for task, _ in taken:  # none of it may be there
                self.write_again(task.event.event_id)
            raise

    def write_again(self, event_id: str) -> None:
        """What Redis has of this task's status is another process's, or nothing."""
        tasks = self._ledger.tasks
        with tasks.lock:
            if (task := tasks.get(event_id)) is not None:
                self._ledger.status_buffer.mark_all(task)

    def _update(self, task: OwnedTask, runs: Sequence[WorkerRun]) -> StatusUpdate | None:
        notes = {run.life.index: note for run in runs if (note := self._new_worker_note(run)) is not None}
        live, fresh = self._ledger.tasks.workers_of(task)
        self._warn(task, live)
        of_task = self._task_note(task, live, fresh)
        if not notes and of_task is None:
            return None
        return StatusUpdate(task.event.event_id, task.owner, notes, of_task)

    def _new_worker_note(self, run: WorkerRun) -> WorkerNote | None:
        """What is new of a worker; None if nothing is."""
        life, status, before = run.life, self._status(run), run.noted
        if status == before:
            return None
        if before is None or before.code is not status.code:
            run.noted_since = self._wall_time()
        run.noted = status
        without_pod = life.pod is None and status.code.facts.state
        state = status.code.facts.state if without_pod else life.state
        return WorkerNote(
            state, life.attempt, "" if state == "waiting" else run.pod_name,
            code=status.code, detail=status.detail, since=_since(run, status), next_at=self._next_at(status),
        )  # fmt: skip

    def _task_note(self, task: OwnedTask, live: Sequence[WorkerRun], fresh: int) -> TaskNote | None:
        """What is new of a task; None if nothing is. Of one that waits for its key another part writes that."""
        if task.waits:
            return None
        by_status = [(run.noted or self._status(run), run) for run in live]
        status = task_status([one for one, _ in by_status], fresh, task.wait, task.event.pod_count)
        if status is None or status == task.noted:
            return None
        run = next((run for one, run in by_status if one is status.worst), None)
        if run is not None and run.noted is not None:
            task.noted_since = _since(run, status.worst)
        elif task.noted is None or task.noted.worst.code is not status.worst.code:
            task.noted_since = rfc3339(self._wall_time())
        task.noted = status
        worst, since = status.worst, task.noted_since
        return TaskNote(status.why, code=worst.code, since=since, next_at=self._next_at(worst))

    def _status(self, run: WorkerRun) -> WorkerStatus:
        task, life, obstacle = run.task, run.life, run.obstacle
        if obstacle is None and not run.on_thread and isinstance(life.todo, StoreAttempt):
            obstacle = task.wait
        image = task.event.overrides.image or self._worker.image
        return worker_status(life, obstacle, image=image, infra_retries=self._worker.infra_retries)

    def _warn(self, task: OwnedTask, live: Sequence[WorkerRun]) -> None:
        """One line for each code that needs attention and that no worker of the task had before."""
        found: dict[StatusCode, list[WorkerRun]] = {}
        for run in live:
            if run.noted is not None and run.noted.code.facts.attention:
                found.setdefault(run.noted.code, []).append(run)
        event = task.event
        for code, runs in found.items():
            first, status = runs[0], runs[0].noted
            if code in task.warned or status is None:
                continue
            more = f", and {len(runs) - 1} more workers of its task" if len(runs) > 1 else ""
            if code is StatusCode.QUOTA:
                self._record_event(quota_event(first.pod_name + more, status.why))
            _log.warning(
                "worker.waiting", "%s%s: %s", first.pod_name, more, status.why[:_SHOWN],
                event_id=event.event_id, task_id=event.task_id, worker=first.life.index, pod=first.pod_name,
                attempt=first.life.attempt, code=code.value, workers=len(runs), next_at=self._next_at(status),
            )  # fmt: skip
        task.warned = frozenset(found)

    def _next_at(self, status: WorkerStatus) -> str:
        if status.next_mono is not None:
            return rfc3339(self._clock.wall_time(status.next_mono))
        return rfc3339(status.next_at)

    def _wall_time(self) -> float:
        return self._clock.wall_time(self._clock.now())


def _since(run: WorkerRun, status: WorkerStatus) -> str:
    """Since when it has its code: by the machine that wrote that, or since it was first noted."""
    return rfc3339(run.noted_since if status.since is None else status.since)
