"""How many events the reader may take from the stream.

A rule without a lock: it belongs to the ledger and is asked under the ledger's lock only.
"""

from __future__ import annotations

from ottoscaler.flow.run_queues import RunQueues
from ottoscaler.flow.task_table import TaskTable


class ReadLimits:
    """READ_AHEAD bounds the events that could start now, ADMIT_MAX those that wait for their key or their share."""

    def __init__(
        self, queues: RunQueues, tasks: TaskTable, *, read_ahead: int, admit_max: int, has_tenants: bool
    ) -> None:
        """`has_tenants`: is TENANT_FIELD set? If not, no event waits for a share."""
        self._queues = queues
        self._tasks = tasks
        self._read_ahead = read_ahead
        self._admit_max = admit_max
        self._has_tenants = has_tenants

    def left(self) -> int:
        """How many more events may be read now."""
        startable, for_share = self._queues.fresh_tasks()
        if not self._has_tenants:
            startable, for_share = startable + for_share, 0
        # What waits for its tenant's share is read beyond READ_AHEAD: one tenant's events must not hide all others'.
        return max(0, min(self._read_ahead - startable, self._admit_max - self._tasks.count_waiting() - for_share))
