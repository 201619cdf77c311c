"""What keeps workers from room: it is shown for their tasks."""

from __future__ import annotations

import threading
from typing import Final

from ottoscaler.core.shares import Shares
from ottoscaler.flow.capacity import Capacity
from ottoscaler.flow.run_queues import RunQueues
from ottoscaler.flow.status_buffer import StatusBuffer

#: Of how many tasks it is noted at once why they wait.
REASONS_AT_ONCE: Final = 500


class RoomWaits:
    """Any thread; no call blocks or does I/O. `lock` is the ledger's, to which the queues and the capacity belong."""

    def __init__(
        self,
        lock: threading.Lock,
        queues: RunQueues,
        capacity: Capacity,
        status_buffer: StatusBuffer,
        *,
        has_tenants: bool,
    ) -> None:
        """`has_tenants`: is TENANT_FIELD set?"""
        self._lock = lock
        self._queues = queues
        self._capacity = capacity
        self._status_buffer = status_buffer
        self._has_tenants = has_tenants

    def set_shares(self, shares: Shares) -> None:
        """What each tenant may have from now on. No worker that runs is ended for it."""
        if self._has_tenants:
            with self._lock:
                self._capacity.set_shares(shares)

    def explain(self) -> None:
        """Note of tasks that wait for room what keeps them from it, where that has changed."""
        with self._lock:
            for task in self._queues.explain_waits(REASONS_AT_ONCE):
                self._status_buffer.mark_waiting(task)
