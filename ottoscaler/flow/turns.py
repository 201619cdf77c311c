"""The order of tasks that wait for a turn: priority, ageing, and round robin over equals.

A data structure without a lock: it belongs to the run queues and is used under the ledger's lock only.
"""

from __future__ import annotations

from collections import OrderedDict
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
    All methods are O(1), but for the iteration and the count.
    """

    def __init__(self) -> None:
        # By the priority of the event, none of them empty. Each is in the order of waiting, so only the heads are to be
        # compared; and by event id, so that a task is taken out of the middle without a search.
        self._queues: dict[int, OrderedDict[str, OwnedTask]] = {}

    def append(self, task: OwnedTask, since: float) -> None:
        """The task waits for a turn, since that moment of `Clock.now`."""
        task.waits_since = since
        priority = task.event.overrides.priority
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = OrderedDict()
        queue[task.event.event_id] = task

    def next(self, now: float) -> OwnedTask | None:
        """Take the task with the next turn; None if there is none."""
        if not self._queues:
            return None
        priority = next(iter(self._queues))
        if len(self._queues) > 1:
            heads = {each: next(iter(queue.values())) for each, queue in self._queues.items()}
            priority = min(heads, key=lambda each: (-urgency(heads[each], now), heads[each].waits_since))
        queue = self._queues[priority]
        _, task = queue.popitem(last=False)
        if not queue:
            del self._queues[priority]
        return task

    def remove(self, task: OwnedTask) -> None:
        """It waits no longer, if it did."""
        priority, event_id = task.event.overrides.priority, task.event.event_id
        queue = self._queues.get(priority)
        if queue is None or queue.get(event_id) is not task:
            return
        del queue[event_id]
        if not queue:
            del self._queues[priority]

    def count(self, most: int) -> int:
        """How many workers never had a turn, counted up to `most`."""
        found = 0
        for queue in self._queues.values():
            for task in queue.values():
                if found >= most:
                    return most
                found += task.count_fresh()
        return min(found, most)

    def __iter__(self) -> Iterator[OwnedTask]:
        for priority in sorted(self._queues, reverse=True):
            yield from self._queues[priority].values()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)


def urgency(task: OwnedTask, now: float) -> int:
    """Its priority, one more for each AGEING_S that it has waited for its turn; at most 9."""
    waited = int(max(0.0, now - task.waits_since) / AGEING_S)
    return min(MAX_PRIORITY, task.event.overrides.priority + waited)
