"""How many pods this process may still create: what is seen of its pods, plus what may be there unseen.

A claim is room for a worker with a pod that was not seen yet: a create in flight, or an attempt stored by a process
that is gone. Capacity is derived from these two each time, never from a counter that goes up and down.
"""

from __future__ import annotations

from collections.abc import Iterable

from ottoscaler.flow.registry import Registry

_Worker = tuple[str, int]


class Capacity:
    """The claims on room, by event id and index. The ledger's, under its lock."""

    def __init__(self, registry: Registry, max_workers: int) -> None:
        self._registry = registry
        self._max_workers = max_workers
        self._claims: dict[_Worker, bool] = {}  # is it used, so that it cannot be taken back?

    def is_free(self) -> bool:
        """Is there room for one more pod? Never while the cluster's state is unknown."""
        return self.left() > 0

    def left(self) -> int:
        """For how many more pods there is room: 0 while the cluster's state is unknown."""
        if not self._registry.known:
            return 0
        return max(0, self._max_workers - self._registry.owned_live - len(self._claims))

    def claim(self, worker: _Worker, *, used: bool = False) -> None:
        """This worker's pod may be there from now on."""
        self._claims[worker] = used

    def use(self, worker: _Worker) -> bool:
        """May it create its pod now? From here on its claim stays until it is settled."""
        used = self._claims.get(worker)
        if used is None or not (used or self._registry.known):
            return False
        self._claims[worker] = True
        return True

    def settle(self, worker: _Worker) -> bool:
        """Its pod is seen, or there is none: its claim ends. Returns whether there was one."""
        return self._claims.pop(worker, None) is not None

    def take_back(self) -> None:
        """A task that was taken over has brought live pods: workers with unused room have to wait after all."""
        over = self._registry.owned_live + len(self._claims) - self._max_workers
        unused = [worker for worker, used in self._claims.items() if not used] if over > 0 else []
        for worker in unused[:over]:
            del self._claims[worker]

    def drop(self, event_id: str, indices: Iterable[int]) -> None:
        """The task is not ours any more."""
        for index in indices:
            self._claims.pop((event_id, index), None)
