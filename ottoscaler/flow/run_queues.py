"""The workers that wait, sorted by what they wait for, the room for their pods, and so which worker is next.

Data structures without a lock: they belong to the ledger and are used under the ledger's lock only.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import Final

from ottoscaler.core.lifecycle import begin_lifecycle, without_pause
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.turns import Turns

_PENDING_REASON: Final = "waits until fewer than %d pods wait for a node (MAX_PENDING)"

_Worker = tuple[str, int]


class Capacity:
    """How many pods this process may still create: what is seen of its pods, plus what may be there unseen.

    A claim is room for a worker with a pod that was not seen yet: a create in flight, or an attempt stored by a process
    that is gone. Claims are by event id and index. Capacity is derived from these two each time, never from a counter
    that goes up and down. Each claim may be a pod that waits for a node, too, of which there are at most `max_pending`
    (0: no limit).
    """

    def __init__(self, registry: PodRegistry, max_workers: int, max_pending: int = 0) -> None:
        self._registry = registry
        self._max_workers = max_workers
        self.max_pending = max_pending
        self._claims: dict[_Worker, bool] = {}  # is it used, so that it cannot be taken back?

    def is_free(self) -> bool:
        """Is there room for one more pod? Never while the cluster's state is unknown."""
        return self.left() > 0

    def left(self) -> int:
        """For how many more pods there is room: 0 while the cluster's state is unknown."""
        if not self._registry.is_known:
            return 0
        return max(0, self._left())

    @property
    def pending_is_full(self) -> bool:
        """Do as many pods wait for a node as may?"""
        return self.max_pending > 0 and self._registry.without_node + len(self._claims) >= self.max_pending

    def claim(self, worker: _Worker, *, used: bool = False) -> None:
        """This worker's pod may be there from now on."""
        self._claims[worker] = used

    def use(self, worker: _Worker) -> bool:
        """May it create its pod now? From here on its claim stays until it is settled.

        Not if there is more by now than when it got its claim: a task that was taken over has brought live pods, or
        pods of other replicas were seen. Then the claim is taken back, and the worker has to wait after all.
        """
        used = self._claims.get(worker)
        if used is None or not (used or self._registry.is_known):
            return False
        if not used and self._left() < 0:
            del self._claims[worker]
            return False
        self._claims[worker] = True
        return True

    def settle(self, worker: _Worker) -> bool:
        """Its pod is seen, or there is none: its claim ends. Returns whether there was one."""
        return self._claims.pop(worker, None) is not None

    def drop(self, event_id: str, indices: Iterable[int]) -> None:
        """The task is not ours any more."""
        for index in indices:
            self._claims.pop((event_id, index), None)

    def _left(self) -> int:
        """The same as `left` with a known cluster; below 0 where there are more than there may be."""
        claims = len(self._claims)
        left = self._max_workers - self._registry.owned_live - claims
        return min(left, self.max_pending - self._registry.without_node - claims) if self.max_pending else left


class RunQueues:
    """Five queues. All methods are O(1) or O(log n), except where they say otherwise."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        # Workers with a stored attempt that may have a pod. They need no room, and they come first: their pods run
        # already.
        self._resumed: deque[WorkerRun] = deque()
        # Workers that had their turn and need room for a further create.
        self._need_room: deque[WorkerRun] = deque()
        # Tasks that have workers which never had a turn: by priority, and round robin over equals.
        self._fresh = Turns()
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
            self._fresh.append(task, since)

    def add_resumed(self, run: WorkerRun) -> None:
        """Queue a worker that may have a pod."""
        self._resumed.append(run)

    def add(self, run: WorkerRun) -> None:
        """Queue a worker that has no pod: it needs room, or it is cancelled and only its end is to be recorded."""
        (self._cancelled if run.cancelled else self._need_room).append(run)

    def pause(self, run: WorkerRun, until: float) -> bool:
        """Queue a worker until a moment of `Clock.now`. Returns whether it is the first one that will be due."""
        self._serial += 1
        run.queue_serial = self._serial
        heapq.heappush(self._paused, (until, self._serial, run))
        return self._paused[0][1] == self._serial

    def cancel(self, run: WorkerRun) -> None:
        """A queued worker is cancelled: whatever it waits for, it does no longer. O(queued workers)."""
        for runs in (self._need_room, self._resumed):
            if run in runs:
                runs.remove(run)
        run.queue_serial, run.life = 0, without_pause(run.life)
        if run not in self._cancelled:
            self._cancelled.append(run)

    def drop(self, task: OwnedTask) -> None:
        """The task is closed here. Its workers are skipped when their turn comes, and not searched for now."""
        self._fresh.remove(task)

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
        if (run := _next_waiting(self._resumed)) is not None:
            return run
        if self._capacity.is_free() and (run := self._next_in_need_of_room()) is not None:
            self._capacity.claim(run.worker_id)
            return run
        return None

    def next_cancelled(self) -> WorkerRun | None:
        """Take the next cancelled worker. It cannot be held up by a lack of room."""
        run = _next_waiting(self._cancelled)
        if run is not None:
            self._capacity.claim(run.worker_id, used=True)
        return run

    def take_resumed(self, event_hash: str, index: int) -> WorkerRun | None:
        """Take this worker out of turn; None if it does not wait for a thread. O(resumed workers)."""
        for run in self._resumed:
            if run.task.event_hash == event_hash and run.life.index == index:
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

    def ready(self, most: int) -> int:
        """How many workers `next` would give now, counted up to `most`: a long backlog is not walked through. Workers
        of dropped tasks count until their turn comes.
        """
        resumed = len(self._resumed)
        if resumed >= most:
            return most
        if not (self._need_room or self._fresh):
            return resumed
        with_room = min(most - resumed, self._capacity.left())
        found = len(self._need_room)
        for task in self._fresh:
            if found >= with_room:
                break
            found += task.count_fresh()
        return resumed + min(found, with_room)

    def fresh_tasks(self) -> int:
        """How many events have workers that never had a turn: what the reader reads ahead."""
        return len(self._fresh)

    def waiting(self) -> int:
        """How many workers wait for a thread, room, or the end of a pause."""
        fresh = sum(task.count_fresh() for task in self._fresh)
        return fresh + len(self._resumed) + len(self._need_room) + len(self._paused)

    def startable(self) -> set[str]:
        """The events of the workers that would be handed to a thread next, if one is free."""
        with_room = self._capacity.is_free()
        runs = [*self._resumed, *(self._need_room if with_room else ())]
        fresh = self._fresh if with_room else ()
        return {run.task.event.event_id for run in runs if run.is_waiting} | {task.event.event_id for task in fresh}

    def explain_waits(self, most: int) -> list[OwnedTask]:
        """Up to `most` tasks with workers that wait for room, of which `wait_reason` has changed by this. O(tasks)."""
        found: list[OwnedTask] = []
        if not self._capacity.max_pending:
            return found
        reason = _PENDING_REASON % self._capacity.max_pending if self._capacity.pending_is_full else ""
        for task in chain((run.task for run in self._need_room if run.is_waiting), self._fresh):
            if task.wait_reason != reason and len(found) < most:
                task.wait_reason = reason
                found.append(task)
        return found

    def _next_in_need_of_room(self) -> WorkerRun | None:
        """Those that had a turn come before those that never had one."""
        if (run := _next_waiting(self._need_room)) is not None:
            return run
        while (task := self._fresh.next(self._now)) is not None:
            if not task.has_fresh():  # all of its workers were cancelled meanwhile
                continue
            run = WorkerRun(task, begin_lifecycle(task.next_index))
            task.runs[task.next_index] = run
            task.next_index += 1
            if task.has_fresh():
                self._fresh.append(task, self._now)
            return run
        return None


def _next_waiting(runs: deque[WorkerRun]) -> WorkerRun | None:
    while runs:
        run = runs.popleft()
        if run.is_waiting:
            return run
    return None
