"""What is last known of each pod, and how many there are of which kind.

Data structures without a lock: they belong to the registry and are used under the registry's lock only. What a create,
a live look or the watch shows arrives in any order, so a snapshot is replaced only by a newer one, and a pod that is
gone stays gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Set

from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.ports import PodList

#: UIDs of pods that are gone, remembered so that a late answer cannot bring one back.
TOMBSTONES = 20_000


class PodCache:
    """Attempt -> latest snapshot. `counts` counts what is in it."""

    def __init__(self) -> None:
        self._pods: dict[AttemptKey, PodSnapshot] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()  # UID -> the version at which it was gone
        self._since: set[AttemptKey] | None = None  # learnt since a list was asked for; None: none is under way
        self.counts = PodCounts()

    def get(self, key: AttemptKey) -> PodSnapshot | None:
        """The latest snapshot of an attempt's pod."""
        return self._pods.get(key)

    def snapshots(self) -> list[PodSnapshot]:
        """All pods, as last seen."""
        return list(self._pods.values())

    def learn(self, pod: PodSnapshot) -> bool:
        """What a create or a live look has shown. False if something newer is known."""
        if self._is_outdated(pod):
            return False
        if self._since is not None:
            self._since.add(pod.key)
        self._store(pod)
        return True

    def observe(self, pod: PodSnapshot, *, certain: bool = False) -> bool:
        """What the watch or a list shows, also that a pod is gone. False if something newer is known; `certain`:
        whatever is known of the pod is older.
        """
        if certain:
            self._gone.pop(pod.uid, None)
        elif self._is_outdated(pod):
            return False
        if not pod.gone:
            self._store(pod)
            return True
        self.drop(pod.key)
        self._gone[pod.uid] = _version_of_pod(pod)
        if len(self._gone) > TOMBSTONES:
            self._gone.popitem(last=False)
        return True

    def drop(self, key: AttemptKey) -> bool:
        """Forget a pod. False if none is known."""
        old = self._pods.pop(key, None)
        if old is None:
            return False
        self.counts.remove(old)
        return True

    def begin_list(self) -> None:
        """A list is about to be asked for: what is learnt from now on may be newer than it."""
        self._since = set()

    def end_list(self, listed: PodList) -> tuple[list[AttemptKey], Set[AttemptKey]]:
        """The list is there. Returns the pods that are known and that it lacks, and the pods learnt since it was asked
        for. Nothing is changed yet.

        A list is the truth for all that was known before it was asked for. Versions are not compared with that: they
        belong to another history if the API server's data were restored from a backup meanwhile, and such a history
        goes back.
        """
        present = {pod.key for pod in listed.pods}
        since, self._since = self._since or set(), None
        version = _parse_version(listed.resource_version)
        return list(self._lacking(present, since, version)), since

    def _lacking(self, present: Set[AttemptKey], since: Set[AttemptKey], version: int) -> Iterator[AttemptKey]:
        for key, pod in self._pods.items():
            newer = key in since and _version_of_pod(pod) > version
            if key not in present and not pod.altered_label and not newer:
                yield key

    def _is_outdated(self, pod: PodSnapshot) -> bool:
        """Is something newer known: a later snapshot, or the end of that pod?"""
        version = _version_of_pod(pod)
        ended_at = self._gone.get(pod.uid)
        # one that comes later than its end is there: it had only lost its labels
        if ended_at is not None and (version < ended_at or (pod.gone and version == ended_at)):
            return True
        old = self._pods.get(pod.key)
        return old is not None and not (pod.gone and pod.uid == old.uid) and version <= _version_of_pod(old)

    def _store(self, pod: PodSnapshot) -> None:
        self.drop(pod.key)
        self._pods[pod.key] = pod
        self.counts.add(pod)


class PodCounts:
    """Live pods of our own tasks, of each tenant, and pods that wait for a node. All methods are O(1).

    Each figure is what a walk over the snapshots would count. Each snapshot is counted when it is stored and taken out
    when it is replaced or dropped, so a figure cannot drift.
    """

    def __init__(self) -> None:
        self._live: dict[str, int] = {}  # by the event's hash
        self._of_tenant: dict[str, int] = {}  # live pods of the instance
        self._owned: set[str] = set()
        self.owned_live_count = 0
        self.without_node = 0

    def add(self, pod: PodSnapshot) -> None:
        """It is there from now on."""
        self._count(pod, 1)

    def remove(self, pod: PodSnapshot) -> None:
        """The same snapshot is not there any more."""
        self._count(pod, -1)

    def count_as_ours(self, event_hash: str) -> None:
        """This event's pods count as ours from now on."""
        if event_hash not in self._owned:
            self._owned.add(event_hash)
            self.owned_live_count += self._live.get(event_hash, 0)

    def stop_counting(self, event_hash: str) -> None:
        """This event's pods do not count as ours any more."""
        if event_hash in self._owned:
            self._owned.discard(event_hash)
            self.owned_live_count -= self._live.get(event_hash, 0)

    def live_count_of(self, tenant: str) -> int:
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
            self.owned_live_count += change


def waits_for_node(pod: PodSnapshot) -> bool:
    """Is it there without a node? A pod behind a scheduling gate is one of these, too."""
    return pod.phase is Phase.PENDING and not pod.node and not pod.gone


def _change_count(counts: dict[str, int], name: str, change: int) -> None:
    """A name with no pod has no entry: there may be millions of events one after another."""
    if total := counts.get(name, 0) + change:
        counts[name] = total
    else:
        del counts[name]


def _version_of_pod(pod: PodSnapshot) -> int:
    return _parse_version(pod.resource_version)


def _parse_version(text: str) -> int:
    """Resource versions of pods are decimal and rise
    (https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions).
    """
    return int(text) if text.isdigit() else 0
