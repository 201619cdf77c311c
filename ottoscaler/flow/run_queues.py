"""The workers that wait, sorted by what they wait for, and the order in which they get their turn.

A data structure without a lock: it belongs to the ledger and is used under the ledger's lock only.
"""

from __future__ import annotations

import heapq
from collections import deque

from ottoscaler.core.lifecycle import begin, hurried
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun


class RunQueues:
    """Five queues. All methods are O(1) or O(log n), except where they say otherwise."""

    def __init__(self) -> None:
        # Workers with a stored attempt that may have a pod. They need no room, and they come first: their pods run
        # already.
        self._resumed: deque[WorkerRun] = deque()
        # Workers that had their turn and need room for a further create.
        self._need_room: deque[WorkerRun] = deque()
        # Tasks that have workers which never had a turn. A task with a turn goes to the end: round robin over events,
        # so that one of a thousand workers does not hold up one of a single worker.
        self._fresh: deque[OwnedTask] = deque()
        # Workers that pause, as (moment of `Clock.now`, serial, worker). An entry with another serial than the worker's
        # is out of date: a heap cannot drop an entry in the middle.
        self._paused: list[tuple[float, int, WorkerRun]] = []
        # Cancelled workers that hold no thread. They need neither room nor a thread of their own.
        self._cancelled: deque[WorkerRun] = deque()
        self._serial = 0

    # -- what comes in

    def add_fresh(self, task: OwnedTask) -> None:
        """Queue a task that has workers which never had a turn."""
        if task.has_fresh():
            self._fresh.append(task)

    def add_resumed(self, run: WorkerRun) -> None:
        """Queue a worker that may have a pod."""
        self._resumed.append(run)

    def add(self, run: WorkerRun) -> None:
        """Queue a worker that has no pod: it needs room, or it is cancelled and only its end is to be recorded."""
        (self._cancelled if run.cancelled else self._need_room).append(run)

    def pause(self, run: WorkerRun, until: float) -> bool:
        """Queue a worker until a moment of `Clock.now`. Returns whether it is the first one that will be due."""
        self._serial += 1
        run.queued = self._serial
        heapq.heappush(self._paused, (until, self._serial, run))
        return self._paused[0][1] == self._serial

    def cancel(self, run: WorkerRun) -> None:
        """A queued worker is cancelled: whatever it waits for, it does no longer. O(queued workers)."""
        for runs in (self._need_room, self._resumed):
            if run in runs:
                runs.remove(run)
        run.queued, run.life = 0, hurried(run.life)
        if run not in self._cancelled:
            self._cancelled.append(run)

    def drop(self, task: OwnedTask) -> None:
        """The task is closed here. Its workers are skipped when their turn comes, and not searched for now."""
        if task in self._fresh:
            self._fresh.remove(task)

    # -- the next worker

    def wake_due(self, now: float) -> None:
        """Queue the workers after their pause."""
        while self._paused and self._paused[0][0] <= now:
            _, serial, run = heapq.heappop(self._paused)
            if run.queued == serial and run.is_waiting:
                run.queued = 0
                if run.cancelled or run.life.needs_room:
                    self.add(run)
                else:
                    self.add_resumed(run)

    def next_resumed(self) -> WorkerRun | None:
        """Take the next worker that needs no room."""
        return _next_waiting(self._resumed)

    def next_cancelled(self) -> WorkerRun | None:
        """Take the next cancelled worker."""
        return _next_waiting(self._cancelled)

    def next_in_need_of_room(self) -> WorkerRun | None:
        """Take the next worker that needs room: those that had a turn before those that never had one."""
        if (run := _next_waiting(self._need_room)) is not None:
            return run
        while self._fresh:
            task = self._fresh.popleft()
            if not task.has_fresh():  # all of its workers were cancelled meanwhile
                continue
            run = WorkerRun(task, begin(task.next_index))
            task.runs[task.next_index] = run
            task.next_index += 1
            self.add_fresh(task)
            return run
        return None

    def take_resumed(self, event_hash: str, index: int) -> WorkerRun | None:
        """Take this worker out of turn; None if it does not wait for a thread. O(resumed workers)."""
        for run in self._resumed:
            if run.task.hash == event_hash and run.life.index == index:
                self._resumed.remove(run)
                return run
        return None

    # -- figures

    def due_at(self) -> float | None:
        """When the next pause is over, as `Clock.now`; None if no worker pauses."""
        return self._paused[0][0] if self._paused else None

    def has_cancelled(self) -> bool:
        """Does a cancelled worker wait?"""
        return bool(self._cancelled)

    def resumed(self) -> int:
        """How many workers could go on without room. Those of dropped tasks count until their turn comes."""
        return len(self._resumed)

    def in_need_of_room(self, most: int) -> int:
        """How many workers could go on with room, counted up to `most`: a long backlog is not walked through."""
        found = len(self._need_room)
        for task in self._fresh:
            if found >= most:
                break
            found += task.count_fresh()
        return min(found, most)

    def fresh_tasks(self) -> int:
        """How many events have workers that never had a turn: what the reader reads ahead."""
        return len(self._fresh)

    def waiting(self) -> int:
        """How many workers wait for a thread, room, or the end of a pause."""
        fresh = sum(task.count_fresh() for task in self._fresh)
        return fresh + len(self._resumed) + len(self._need_room) + len(self._paused)

    def startable(self, *, with_room: bool) -> set[str]:
        """The events of the workers that would be handed to a thread next, if one is free."""
        runs = [*self._resumed, *(self._need_room if with_room else ())]
        fresh = self._fresh if with_room else ()
        return {run.task.event.event_id for run in runs if run.is_waiting} | {task.event.event_id for task in fresh}


def _next_waiting(runs: deque[WorkerRun]) -> WorkerRun | None:
    while runs:
        run = runs.popleft()
        if run.is_waiting:
            return run
    return None
