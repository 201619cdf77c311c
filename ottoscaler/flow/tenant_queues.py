"""The workers that wait for room, by tenant: which tenant has the next turn, and which of its workers.

Data structures without a lock: they belong to the run queues and are used under the ledger's lock only. Without
TENANT_FIELD there is one tenant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from ottoscaler.core.lifecycle import begin_lifecycle
from ottoscaler.flow.capacity import Capacity
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
from ottoscaler.flow.turns import Turns


class TenantQueue:
    """What waits of one tenant: `need_room`, workers that had their turn and need room for a further create, and
    `fresh`, tasks that have workers which never had one.
    """

    __slots__ = ("fresh", "name", "need_room")

    def __init__(self, name: str) -> None:
        self.name = name
        self.need_room: deque[WorkerRun] = deque()
        self.fresh = Turns()

    def next(self, now: float) -> WorkerRun | None:
        """Take its next worker. Those that had a turn come before those that never had one."""
        if (run := next_waiting(self.need_room)) is not None:
            return run
        while (task := self.fresh.next(now)) is not None:
            if not task.has_fresh():  # all of its workers were cancelled meanwhile
                continue
            run = WorkerRun(task, begin_lifecycle(task.next_index))
            task.runs[task.next_index] = run
            task.next_index += 1
            if task.has_fresh():
                self.fresh.append(task, now)
            return run
        return None

    def count(self, most: int) -> int:
        """How many workers wait, counted up to `most`. Workers of dropped tasks count until their turn comes."""
        found = len(self.need_room)
        return most if found >= most else found + self.fresh.count(most - found)

    def tasks(self) -> Iterator[OwnedTask]:
        """The tasks of its workers. One with several workers may come several times."""
        yield from (run.task for run in self.need_room if run.is_waiting)
        yield from self.fresh

    def __bool__(self) -> bool:
        return bool(self.need_room or self.fresh)


class TenantQueues:
    """Deficit round robin over the tenants with workers that wait for room, where each worker costs one: in each round
    a tenant has as many turns as its weight.

    One that has as many live pods as it may is passed over. One that begins to wait goes behind the tenants that wait
    already, and before the next round of the one that has just had its turns. O(tenants that are passed over), except
    where it says otherwise.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._queues: dict[str, TenantQueue] = {}
        self._round: deque[TenantQueue] = deque()  # the same queues; the first one has the turn
        self._turns_left: int | None = None  # of the first one; None: its turn has not begun

    def add(self, run: WorkerRun) -> None:
        """A worker that had its turn needs room again."""
        self._queue(run.task.tenant).need_room.append(run)

    def add_fresh(self, task: OwnedTask, since: float) -> None:
        """A task has workers that never had a turn, and waits for one since that moment of `Clock.now`."""
        self._queue(task.tenant).fresh.append(task, since)

    def remove(self, task: OwnedTask) -> None:
        """It has no turn any more, if it waited for one."""
        if (queue := self._queues.get(task.tenant)) is not None:
            queue.fresh.remove(task)

    def discard(self, run: WorkerRun) -> None:
        """It needs no room any more, if it did. O(workers of the tenant)."""
        queue = self._queues.get(run.task.tenant)
        if queue is not None and run in queue.need_room:
            queue.need_room.remove(run)

    def next(self, now: float) -> WorkerRun | None:
        """Take the worker with the next turn; None while each tenant with waiting workers has as many as it may."""
        passed = 0
        # One more than there are: the one with the turn may be passed over at its end, and have the next one.
        while self._round and passed <= len(self._round):
            queue = self._round[0]
            if self._turns_left is None:
                self._turns_left = self._capacity.shares.of(queue.name).weight
            if not queue:
                self._drop_first()
            elif self._turns_left <= 0 or self._capacity.left_of(queue.name) <= 0:
                self._round.rotate(-1)
                self._turns_left = None
                passed += 1
            elif (run := queue.next(now)) is not None:
                self._turns_left -= 1
                return run
        return None

    def count_ready(self, most: int) -> int:
        """How many workers `next` would give now, counted up to `most`. O(tenants, tasks up to `most`)."""
        if not self._capacity.limits_tenants and sum(map(bool, islice(self._round, most))) == most:
            return most  # at least one of each: their events need not be looked at
        found = 0
        for queue in self._round:
            if found >= most:
                break
            found += queue.count(max(0, min(most - found, self._capacity.left_of(queue.name))))
        return found

    def startable(self) -> Iterator[OwnedTask]:
        """The tasks of the workers that could have the next turns. O(tasks)."""
        for queue in self._round:
            if self._capacity.left_of(queue.name) > 0:
                yield from queue.tasks()

    def count_fresh(self) -> tuple[int, int]:
        """How many tasks have workers that never had a turn: those that could start now, one of each tenant that has
        not as many workers as it may; and those that wait for their tenant's share. O(tenants).
        """
        first = waiting = 0
        for queue in self._round:
            tasks = len(queue.fresh)
            starts = min(tasks, 1) if self._capacity.left_of(queue.name) > 0 else 0
            first, waiting = first + starts, waiting + tasks - starts
        return first, waiting

    def __iter__(self) -> Iterator[TenantQueue]:
        return iter(self._round)

    def __bool__(self) -> bool:
        # no generator: this is asked several times in the life of each worker
        for queue in self._round:  # noqa: SIM110
            if queue.need_room or queue.fresh:
                return True
        return False

    def _queue(self, tenant: str) -> TenantQueue:
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = TenantQueue(tenant)
            self._round.append(queue)
        return queue

    def _drop_first(self) -> None:
        del self._queues[self._round.popleft().name]
        self._turns_left = None


def next_waiting(runs: deque[WorkerRun]) -> WorkerRun | None:
    """Take the first of these that no thread has and that is not dropped."""
    while runs:
        run = runs.popleft()
        if run.is_waiting:
            return run
    return None
