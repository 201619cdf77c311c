"""The workers that wait, sorted by what they wait for, and so which worker is next.

A data structure without a lock: it belongs to the ledger and is used under the ledger's lock only.
"""

from __future__ import annotations

import heapq
from collections import deque

from ottoscaler.core.lifecycle import without_pause
from ottoscaler.flow.capacity import Capacity
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
from ottoscaler.flow.tenant_queues import TenantQueues, next_waiting


class RunQueues:
    """Four queues. All methods are O(1) or O(log n), except where they say otherwise."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        # Workers with a stored attempt that may have a pod. They need no room, and they come first: their pods run
        # already.
        self._resumed: deque[WorkerRun] = deque()
        # Workers that need room: those that had their turn, and those of tasks that wait for one.
        self._tenants = TenantQueues(capacity)
        self._now = 0.0  # of the last `wake_due`, which comes before each turn
        # Workers that pause, as (moment of `Clock.now`, serial, worker). An entry with another serial than the worker's
        # is out of date: a heap cannot drop an entry in the middle.
        self._paused: list[tuple[float, int, WorkerRun]] = []
        # Cancelled workers that hold no thread. They need neither room nor a thread of their own.
        self._cancelled: deque[WorkerRun] = deque()
        self._serial = 0

    # -- what comes in

    def add_fresh(self, task: OwnedTask, since: float) -> None:
        """Queue a task that has workers which never had a turn. It waits for one since that moment of `Clock.now`."""
        if task.has_fresh():
            self._tenants.add_fresh(task, since)

    def add_resumed(self, run: WorkerRun) -> None:
        """Queue a worker that may have a pod."""
        self._resumed.append(run)

    def add(self, run: WorkerRun) -> None:
        """Queue a worker that has no pod: it needs room, or it is cancelled and only its end is to be recorded."""
        if run.cancelled:
            self._cancelled.append(run)
        else:
            self._tenants.add(run)

    def pause(self, run: WorkerRun, until: float) -> bool:
        """Queue a worker until a moment of `Clock.now`. Returns whether it is the first one that will be due."""
        self._serial += 1
        run.queue_serial = self._serial
        heapq.heappush(self._paused, (until, self._serial, run))
        return self._paused[0][1] == self._serial

    def cancel(self, run: WorkerRun) -> None:
        """A queued worker is cancelled: whatever it waits for, it does no longer. O(queued workers)."""
        self._tenants.discard(run)
        if run in self._resumed:
            self._resumed.remove(run)
        run.queue_serial, run.life = 0, without_pause(run.life)
        if run not in self._cancelled:
            self._cancelled.append(run)

    def drop(self, task: OwnedTask) -> None:
        """The task is closed here. Its workers are skipped when their turn comes, and not searched for now."""
        self._tenants.remove(task)

    # -- the next worker

    def wake_due(self, now: float) -> None:
        """Queue the workers after their pause."""
        self._now = now
        while self._paused and self._paused[0][0] <= now:
            _, serial, run = heapq.heappop(self._paused)
            if run.queue_serial == serial and run.is_waiting:
                run.queue_serial = 0
                if run.cancelled or run.life.needs_room:
                    self.add(run)
                else:
                    self.add_resumed(run)

    def next(self) -> WorkerRun | None:
        """Take the worker that is next. One that needs room gets it: while there is none, only those that need none
        are taken.
        """
        if (run := next_waiting(self._resumed)) is not None:
            return run
        if self._capacity.is_free() and (run := self._tenants.next(self._now)) is not None:
            self._capacity.claim(run.worker_id, run.task.tenant)
            return run
        return None

    def next_cancelled(self) -> WorkerRun | None:
        """Take the next cancelled worker. It cannot be held up by a lack of room."""
        run = next_waiting(self._cancelled)
        if run is not None:
            self._capacity.claim(run.worker_id, run.task.tenant, used=True)
        return run

    def take_resumed(self, event_hash: str, index: int) -> WorkerRun | None:
        """Take this worker out of turn; None if it does not wait for a thread. O(resumed workers)."""
        for run in self._resumed:
            if run.task.event_hash == event_hash and run.life.index == index:
                self._resumed.remove(run)
                return run
        return None

    # -- figures

    def next_pause_end(self) -> float | None:
        """When the next pause is over, as `Clock.now`; None if no worker pauses."""
        return self._paused[0][0] if self._paused else None

    def has_cancelled(self) -> bool:
        """Does a cancelled worker wait?"""
        return bool(self._cancelled)

    def count_ready(self, most: int) -> int:
        """How many workers `next` would give now, counted up to `most`: a long backlog is not walked through. Workers
        of dropped tasks count until their turn comes.
        """
        resumed = len(self._resumed)
        if resumed >= most:
            return most
        if not self._tenants:
            return resumed
        return resumed + self._tenants.count_ready(min(most - resumed, self._capacity.left()))

    def fresh_tasks(self) -> tuple[int, int]:
        """How many events have workers that never had a turn: those that could start now, and those that wait for their
        tenant's share. O(tenants).
        """
        return self._tenants.count_fresh()

    def count_waiting(self) -> int:
        """How many workers wait for a thread, room, or the end of a pause."""
        need_room = sum(
            len(queue.need_room) + sum(task.count_fresh() for task in queue.fresh) for queue in self._tenants
        )
        return need_room + len(self._resumed) + len(self._paused)

    def startable(self) -> set[str]:
        """The events of the workers that would be handed to a thread next, if one is free."""
        found = {run.task.event.event_id for run in self._resumed if run.is_waiting}
        if self._capacity.is_free():
            found |= {task.event.event_id for task in self._tenants.startable()}
        return found

    def explain_waits(self, most: int) -> list[OwnedTask]:
        """Up to `most` tasks with workers that wait for room, of which `wait` has changed by this. O(tasks)."""
        found: list[OwnedTask] = []
        alone = sum(map(bool, self._tenants)) == 1
        for queue in self._tenants:
            wait = self._capacity.obstacle(queue.name, alone=alone)
            for task in queue.tasks():
                if task.wait != wait and len(found) < most:
                    task.wait = wait
                    found.append(task)
        return found
