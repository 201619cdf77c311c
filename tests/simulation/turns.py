"""What must hold of the order of work at every turn in the simulation: priority, with ageing, within a tenant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
from ottoscaler.ports import Clock

if TYPE_CHECKING:
    from tests.simulation.audit import Audit

#: As the documents promise it: each ten minutes of waiting count for one priority more, up to the highest.
AGES_S: Final = 600.0
HIGHEST: Final = 9
#: After so long nothing that came later is first, whatever its priority, seconds.
BOUND_S: Final = HIGHEST * AGES_S


class WaitingTasks:
    """Since when the tasks of one replica wait for their next turn, counted apart from the ledger."""

    def __init__(self, audit: Audit, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._since: dict[int, tuple[OwnedTask, float]] = {}  # with the task, so that no other has its id

    def begins(self, task: OwnedTask) -> None:
        """It waits from now on, unless it waits already, or for its concurrency key."""
        if not task.waits:
            self._since.setdefault(id(task), (task, self._clock.now()))

    def waiting(self, tasks: Iterable[OwnedTask]) -> list[tuple[OwnedTask, int]]:
        """Those with workers that never had a turn, each with the first index that may be one of them."""
        return [(task, task.next_index) for task in tasks if id(task) in self._since and _has_fresh(task)]

    def had_turn(self, run: WorkerRun, waiting: Sequence[tuple[OwnedTask, int]]) -> None:
        """A worker got a thread. If that was its first turn, no other of these tasks was before its own."""
        task, now = run.task, self._clock.now()
        if not any(other is task and run.life.index >= index for other, index in waiting):
            return  # it had its turn before, and waited for room, or for this process
        for other, _ in waiting:
            if other.tenant != task.tenant or self._rank(other) <= self._rank(task):
                continue
            waited_s = now - self._since[id(other)][1]
            late = f", longer than {BOUND_S:.0f} s" if waited_s > BOUND_S else ""
            self._audit.complain(
                f"{task.event.event_id} has a turn before {other.event.event_id} of priority"
                f" {other.event.overrides.priority}, which waits for {waited_s:.0f} s{late}"
            )
        self._since[id(task)] = (task, now)

    def _rank(self, task: OwnedTask) -> tuple[int, float]:
        waited_s = self._clock.now() - self._since[id(task)][1]
        return min(HIGHEST, task.event.overrides.priority + int(waited_s // AGES_S)), waited_s


def _has_fresh(task: OwnedTask) -> bool:
    return any(index not in task.cancelled_indices for index in range(task.next_index, task.event.pod_count + 1))
