"""How many pods there are of which kind: each figure is what a walk over the registry's snapshots would count.

A data structure without a lock: it belongs to the registry and is used under the registry's lock only. Each snapshot is
counted when it is stored and taken out when it is replaced or dropped, so a figure cannot drift.
"""

from __future__ import annotations

from ottoscaler.core.pods import Phase, PodSnapshot


class PodCounts:
    """Live pods of our own tasks, of each tenant, and pods that wait for a node. All methods are O(1)."""

    def __init__(self) -> None:
        self._live: dict[str, int] = {}  # by the event's hash
        self._of_tenant: dict[str, int] = {}  # live pods of the instance
        self._owned: set[str] = set()
        self.owned_live = 0
        self.without_node = 0

    def add(self, pod: PodSnapshot) -> None:
        """It is there from now on."""
        self._count(pod, 1)

    def remove(self, pod: PodSnapshot) -> None:
        """The same snapshot is not there any more."""
        self._count(pod, -1)

    def track(self, event_hash: str) -> None:
        """This event's pods count as ours from now on."""
        if event_hash not in self._owned:
            self._owned.add(event_hash)
            self.owned_live += self._live.get(event_hash, 0)

    def untrack(self, event_hash: str) -> None:
        """This event's pods do not count as ours any more."""
        if event_hash in self._owned:
            self._owned.discard(event_hash)
            self.owned_live -= self._live.get(event_hash, 0)

    def live_of(self, tenant: str) -> int:
        """Live pods of this tenant, whichever replica owns their tasks."""
        return self._of_tenant.get(tenant, 0)

    def _count(self, pod: PodSnapshot, change: int) -> None:
        if not pod.live:
            return
        self.without_node += change * waits_for_node(pod)
        event_hash = pod.key.event_hash
        _change_count(self._live, event_hash, change)
        _change_count(self._of_tenant, pod.tenant, change)
        if event_hash in self._owned:
            self.owned_live += change


def waits_for_node(pod: PodSnapshot) -> bool:
    """Is it there without a node? A pod behind a scheduling gate is one of these, too."""
    return pod.phase is Phase.PENDING and not pod.node and not pod.gone


def _change_count(counts: dict[str, int], name: str, change: int) -> None:
    """A name with no pod has no entry: there may be millions of events one after another."""
    if total := counts.get(name, 0) + change:
        counts[name] = total
    else:
        del counts[name]
