"""The open tasks of this process, by event id: their owner tokens, and the known state of their workers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ottoscaler.core.results import task_outcome
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.verdicts import Outcome, Verdict
from ottoscaler.core.worker_status import worker_status
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
from ottoscaler.ports import StoredWorker


class TaskTally(NamedTuple):
    """How a task ended: its outcome, and how many of its workers ended how."""

    outcome: Outcome
    succeeded: int
    failed: int
    cancelled: int


class TaskTable:
    """Any thread; no call blocks or does I/O. The second half is for the ledger, which holds `lock` meanwhile.

    The lock is the ledger's, too: what is open, what waits and how much room there is change together. A worker that
    one thread takes while another one closes its task would run without an owner.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._tasks: dict[str, OwnedTask] = {}  # guarded by lock, and so are the tasks themselves
        self._waiting: dict[str, OwnedTask] = {}  # guarded by lock: those that wait for a place of their key
        self._expiries: dict[str, float] = {}  # guarded by lock

    def owners(self) -> dict[str, str]:
        """Event id -> owner token of all open tasks."""
        with self.lock:
            return {event_id: task.owner for event_id, task in self._tasks.items()}

    def has(self, event_id: str) -> bool:
        """Is this task open here?"""
        with self.lock:
            return event_id in self._tasks

    def snapshot(self) -> list[tuple[str, int, list[WorkerRun]]]:
        """For each open task: its state, how many of its workers have not had their turn, and the others."""
        with self.lock:
            tasks = [(task, list(task.runs.values())) for task in self._tasks.values()]
        return [(_state_of(task, runs), max(0, task.open_workers - len(runs)), runs) for task, runs in tasks]

    def waiting_for_key(self) -> list[OwnedTask]:
        """The tasks that wait for a place of their concurrency key."""
        with self.lock:
            return list(self._waiting.values())

    def workers_of(self, task: OwnedTask) -> tuple[list[WorkerRun], int]:
        """Its workers that had their turn and have no result, and how many had none yet."""
        with self.lock:
            return list(task.runs.values()), max(0, task.open_workers - len(task.runs))

    def counts_by_code(self) -> dict[StatusCode, int]:
        """How many workers of our open tasks have which code. O(workers): for a look, not for each change."""
        counts: Counter[StatusCode] = Counter()
        with self.lock:
            for task in self._tasks.values():
                for run in task.runs.values():
                    counts[(run.noted or worker_status(run.life, run.obstacle)).code] += 1
                wait = task.wait.code if task.wait is not None else StatusCode.TURN
                code = StatusCode.CONCURRENCY_KEY if task.waits else wait
                counts[code] += max(0, task.open_workers - len(task.runs))
        return {code: count for code, count in counts.items() if count}

    def worked_on(self) -> set[str]:
        """The tasks of which some thread carries on a worker."""
        with self.lock:
            return {name for name, task in self._tasks.items() if any(run.on_thread for run in task.runs.values())}

    def newly_cancelled(self, cancels: Mapping[str, int]) -> list[str]:
        """Tasks that were given more cancel marks than are known here; from now on these are known."""
        with self.lock:
            changed = [
                event_id
                for event_id, count in cancels.items()
                if event_id in self._tasks and count > self._tasks[event_id].cancel_count
            ]
            for event_id in changed:
                self._tasks[event_id].cancel_count = cancels[event_id]
        return changed

    def expires(self, now: float) -> bool:
        """Is the not_after of a task over, or may it be? Only Redis knows: see `ports.Leases.renew`."""
        with self.lock:
            return any(until <= now for until in self._expiries.values())

    def set_expiries(self, asked: Iterable[str], left_s: Mapping[str, float], now: float) -> None:
        """A renewal of these tasks, sent `now` (`Clock.now`), has found how many seconds are left until the not_after
        of some; for the others there is nothing to come.
        """
        with self.lock:
            for event_id in asked:
                self._expiries.pop(event_id, None)
            for event_id in left_s.keys() & self._tasks.keys():
                self._expiries[event_id] = now + left_s[event_id]

    def store_result(self, run: WorkerRun, verdict: Verdict) -> None:
        """Its result is stored: kept here in case that Redis is wiped before the task is finished."""
        life = run.life
        reason = verdict.reason
        result = StoredWorker(life.index, life.attempt, life.infra_used, outcome=reason.outcome, reason=reason)
        with self.lock:
            run.task.results[life.index] = result

    def tally(self, task: OwnedTask) -> TaskTally:
        """How a task ended that has the results of all its workers."""
        with self.lock:
            outcomes = [result.outcome for result in task.results.values()]
        succeeded, cancelled = outcomes.count(Outcome.SUCCEEDED), outcomes.count(Outcome.CANCELLED)
        failed = len(outcomes) - succeeded - cancelled  # lost and expired ones, too, as in the task's result
        return TaskTally(task_outcome(outcomes), succeeded, failed, cancelled)

    def has_failed(self, run: WorkerRun) -> bool:
        """Is its stored result a failure?"""
        with self.lock:
            result = run.task.results.get(run.life.index)
        return result is not None and result.outcome == Outcome.FAILED

    def clear_cancel(self, run: WorkerRun) -> None:
        """It is not cancelled any more: the termination was cleared."""
        with self.lock:
            run.task.terminations.pop(run.life.index, None)

    def mark_defect(self, run: WorkerRun) -> None:
        """The program itself has failed on it: its task counts as worked on."""
        with self.lock:
            run.task.had_defect = True

    def mark_first_pod_seen(self, task: OwnedTask) -> bool:
        """True once for each task: when the first of its pods is there."""
        with self.lock:
            first, task.first_pod_seen = not task.first_pod_seen, True
            return first

    # -- under the lock

    def __iter__(self) -> Iterator[OwnedTask]:
        return iter(self._tasks.values())

    def get(self, event_id: str) -> OwnedTask | None:
        """The open task of an event."""
        return self._tasks.get(event_id)

    def put(self, task: OwnedTask) -> None:
        """This task is open from now on."""
        self._tasks[task.event.event_id] = task
        if task.waits:
            self._waiting[task.event.event_id] = task
        if task.event.overrides.not_after is not None:  # how much is left, the next renewal says: it is due at once
            self._expiries[task.event.event_id] = 0.0

    def admit(self, task: OwnedTask) -> bool:
        """It has a place of its key. Returns whether it waited for one until now."""
        if task.closed or not task.waits:
            return False
        task.waits = False
        del self._waiting[task.event.event_id]
        return True

    def count_waiting(self) -> int:
        """How many wait for a place of their key."""
        return len(self._waiting)

    def close(self, task: OwnedTask) -> None:
        """The task is finished, or another process has it."""
        task.closed = True
        self._tasks.pop(task.event.event_id, None)
        self._waiting.pop(task.event.event_id, None)
        self._expiries.pop(task.event.event_id, None)


def _state_of(task: OwnedTask, runs: Sequence[WorkerRun]) -> str:
    """Outside the lock: for a figure that is old a moment later anyway."""
    if task.waits:
        return "waiting_key"
    return "running" if task.results or any(run.state != "waiting" for run in runs) else "waiting"
