"""The order of tasks that wait for a turn: priority, ageing, and round robin over equals.

A data structure without a lock: it belongs to the run queues and is used under the ledger's lock only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from ottoscaler.core.overrides import MAX_PRIORITY
from ottoscaler.flow.owned_tasks import OwnedTask

#: After each such time of waiting a task counts as one priority higher, seconds.
AGEING_S: Final = 600.0


class Turns:
    """Which task is next among those with workers that never had a turn: the most urgent one, and of equals the one
    that has waited longest for its turn.

    A task that waits becomes more urgent, so that nothing waits without end behind newcomers. After a turn it begins to
    wait again and goes behind its equals: one event of a thousand workers does not hold up one of a single worker.
    O(1), except where it says otherwise.
    """

    def __init__(self) -> None:
        # By the priority of the event. Each is in the order of waiting, so only the heads are to be compared.
        self._queues: tuple[deque[OwnedTask], ...] = tuple(deque() for _ in range(MAX_PRIORITY + 1))

    def append(self, task: OwnedTask, since: float) -> None:
        """The task waits for a turn, since that moment of `Clock.now`."""
        task.waits_since = since
        self._queues[task.event.overrides.priority].append(task)

    def next(self, now: float) -> OwnedTask | None:
        """Take the task with the next turn; None if there is none."""
        heads = [queue for queue in self._queues if queue]
        if not heads:
            return None
        return min(heads, key=lambda queue: (-urgency(queue[0], now), queue[0].waits_since)).popleft()

    def remove(self, task: OwnedTask) -> None:
        """It waits no longer, if it did. O(tasks)."""
        queue = self._queues[task.event.overrides.priority]
        if task in queue:
            queue.remove(task)

    def __iter__(self) -> Iterator[OwnedTask]:
        for queue in reversed(self._queues):
            yield from queue

    def __len__(self) -> int:
        return sum(map(len, self._queues))


def urgency(task: OwnedTask, now: float) -> int:
    """Its priority, one more for each AGEING_S that it has waited for its turn; at most 9."""
    waited = int(max(0.0, now - task.waits_since) / AGEING_S)
    return min(MAX_PRIORITY, task.event.overrides.priority + waited)
