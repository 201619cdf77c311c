"""Keeps pods of failed workers for inspection, and deletes them when their time is over or there are too many.

Only pods of workers with a stored result come here, and no thread follows them. What is known of a kept pod is in the
pod itself (core/kept_pods.py), so any replica deletes it, and not only the one that recorded the result, also after a
restart. When two do it at the same time, the second finds nothing: the deletion names the UID.
"""

from __future__ import annotations

import math
import threading
from typing import Final

from ottoscaler import logs
from ottoscaler.core.kept_pods import KeptPod, age_s, kept_note, stays, surplus
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import ClusterRejected, Unavailable
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock, Cluster

#: Deletions in one step, so that its thread comes round to what workers wait for.
MAX_DELETIONS_PER_STEP: Final = 16
#: After a deletion that failed, how long none is tried, seconds.
RETRY_S: Final = 5.0
#: How the API server refuses a create where a quota counts objects (https://kubernetes.io/docs/concepts/policy/
#: resource-quotas/#quota-on-object-count): kept pods use such a quota, and no other.
COUNTS_PODS: Final = "count/pods"

_log = logs.get(__name__)


class PodKeeper:
    """The kept pods of all replicas, as far as this process knows them. Any thread."""

    def __init__(
        self, *, cluster: Cluster, registry: PodRegistry, metrics: Metrics, clock: Clock, most: int, ttl_s: float
    ) -> None:
        """`most`: as many are kept. `ttl_s`: how long Redis remembers a finished task, seconds. No pod stays for more
        than half of it: a pod that outlived its task would look like one of a task that Redis lost, and be recorded
        again.
        """
        self._cluster = cluster
        self._registry = registry
        self._metrics = metrics
        self._clock = clock
        self._most = most
        self._longest_s = ttl_s / 2
        self._lock = threading.Lock()
        # all guarded by _lock
        self._kept: dict[str, KeptPod] = {}
        self._going: set[str] = set()  # UIDs that a deletion was accepted for, or is under way
        self._retry_at = -math.inf
        self._reviewed_at: float | None = None
        metrics.kept_pods.set_function(lambda: self.count)

    @property
    def count(self) -> int:
        """How many pods stay now."""
        with self._lock:
            return len(self._staying())

    def keep(self, pod: PodSnapshot) -> None:
        """The result of this failed worker was stored just now: its pod stays. Older ones go if there are too many.

        A deletion that fails is made later, by `step`: the worker is done.
        """
        if self._most:
            _log.info(
                "worker.kept", "Keeping failed pod %s for %d s", pod.name, pod.keep_failed_s,
                pod=pod.name, attempt=pod.key.attempt, keep_s=pod.keep_failed_s,
            )  # fmt: skip
        self._add(pod, self._clock.now())
        self._delete(self._too_many())

    def note(self, pod: PodSnapshot, outcome: str, namespace: str) -> str:
        """What the result of its worker says of a pod that will be kept; empty if it will not be. `outcome`: as it is
        to be recorded.
        """
        return kept_note(pod, namespace, self._longest_s) if self._most and stays(pod, outcome) else ""

    def review(self, pods: list[PodSnapshot]) -> None:
        """These are all the pods that stay by what Redis knows, as seen in one look at all pods."""
        now = self._clock.now()
        unseen_s = math.inf if self._reviewed_at is None else now - self._reviewed_at
        wall_time = self._clock.wall_time(now)
        for pod in pods:
            self._add(pod, now - age_s(pod, wall_time, unseen_s))
        with self._lock:
            self._reviewed_at = now
            for uid, one in list(self._kept.items()):
                seen = self._registry.get(one.pod.key)
                if seen is None or seen.uid != uid:
                    del self._kept[uid]
                    self._going.discard(uid)

    def is_kept(self, pod: PodSnapshot) -> bool:
        """Is it known here that its result was stored? Then it stays even if Redis has forgotten its task."""
        with self._lock:
            return pod.uid in self._kept

    def step(self) -> None:
        """Delete those that have stayed for their time, and those that are too many. Raises nothing."""
        now = self._clock.now()
        with self._lock:
            if not self._kept or now < self._retry_at:
                return
            over = [one for one in self._staying() if now >= one.until(self._longest_s)]
        self._delete(over[:MAX_DELETIONS_PER_STEP])
        self._delete(self._too_many()[:MAX_DELETIONS_PER_STEP])

    def make_room(self, refusal: str) -> None:
        """A create was refused in these words of the API server. Where they name a quota that kept pods use, the oldest
        of them goes: work comes before inspection.
        """
        if f"{COUNTS_PODS}=" in refusal:
            with self._lock:
                there = self._staying()
            self._delete(surplus(there, len(there) - 1))

    def _add(self, pod: PodSnapshot, since: float) -> None:
        with self._lock:
            known = self._kept.get(pod.uid)
            # Since when is decided once: by a later look at other clocks it could stay for longer each time.
            self._kept[pod.uid] = KeptPod(pod, since if known is None else known.since)

    def _too_many(self) -> list[KeptPod]:
        with self._lock:
            return surplus(self._staying(), self._most)

    def _staying(self) -> list[KeptPod]:
        """Those that are still there by the watch, and not on their way out. Under the lock."""
        found = []
        for uid, one in self._kept.items():
            seen = self._registry.get(one.pod.key)
            if uid not in self._going and seen is not None and seen.uid == uid and not seen.deleting:
                found.append(one)
        return found

    def _delete(self, chosen: list[KeptPod]) -> None:
        for one in chosen:
            pod = one.pod
            with self._lock:
                if pod.uid in self._going:
                    continue
                # Before the request, and not under the lock while it is made: another thread would choose the same pod
                # as the oldest, and one pod more than KEEP_FAILED_MAX would stay.
                self._going.add(pod.uid)
            _log.info(
                "worker.deleted", "Cleaning up pod: %s", pod.name,
                pod=pod.name, attempt=pod.key.attempt, event_id=pod.event_id, worker=pod.key.index,
            )  # fmt: skip
            try:
                if self._cluster.delete(pod.name, pod.uid):
                    self._metrics.pods_deleted.inc()
            except (Unavailable, ClusterRejected) as error:
                _log.warning("pod.trouble", "Kept pod %s is not deleted", pod.name, pod=pod.name, error=str(error))
                with self._lock:
                    self._going.discard(pod.uid)
                    self._retry_at = self._clock.now() + RETRY_S
                return
