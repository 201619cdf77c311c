"""The label-indexed registry: what the watch last saw of each worker's pod, and which thread waits for its next change.

The watch thread publishes, worker threads wait; a change of one pod costs the same however many pods there are. The
cache holds what is known (pod_cache.py), the waiters which threads are to be woken; one lock guards both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.observations import Observation, OwnershipLost, PodNotListed, PodSeen, TimedOut
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import Stopping
from ottoscaler.flow.pod_cache import PodCache
from ottoscaler.ports import Clock, PodList

_WorkerId = tuple[str, int]


class Waiter:
    """One worker's place in the registry, until the end of the `with` block that it is for. `wait` and the block belong
    to its thread; the rest is the registry's, under its lock.
    """

    __slots__ = ("_clock", "_registry", "future", "latest", "pending", "stage", "worker")

    def __init__(self, registry: PodRegistry, clock: Clock, worker: _WorkerId) -> None:
        self._registry = registry
        self._clock = clock
        self.worker = worker
        self.pending: list[Observation] = []
        self.latest: PodSnapshot | None = None
        self.stage: tuple[object, ...] | None = None
        self.future: Future[Observation] | None = None

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *error: object) -> None:
        self._registry.unsubscribe(self)

    def wait(self, attempt: int, until: float | None) -> Observation:
        """The next observation of that attempt's pod: Seen, Missing, TerminationStored, OwnershipLost, or TimedOut at
        `until` (`Clock.now`).

        Raises Stopping when the registry is closed.
        """
        future = self._registry.next_observation(self, attempt)
        try:
            return future.result(None if until is None else max(0.0, until - self._clock.now()))
        except FutureTimeout:
            # a publisher that has taken the future is just about to answer it
            return TimedOut() if self._registry.cancel_observation(self, future) else future.result()


class PodRegistry:
    """Worker label -> latest snapshot and waiter. Any thread; no call blocks or does I/O."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # all guarded by _lock
        self._cache = PodCache()
        self._waiters: dict[_WorkerId, Waiter] = {}
        self._closed = False
        self._known = threading.Event()
        # complete before the first thread starts
        self._listeners: list[Callable[[], None]] = []
        self._node_listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call this when a pod has ended or is found gone, and after each list: there may be room, and a wait may be
        over. It is called on the publishing thread, outside the lock, so it may call the registry; it must not block.
        """
        self._listeners.append(listener)

    def on_node(self, listener: Callable[[], None]) -> None:
        """The same, when a pod has got its node: one fewer waits for one."""
        self._node_listeners.append(listener)

    # -- worker threads

    def subscribe(self, event_hash: str, index: int, last: PodSnapshot | None = None) -> Waiter:
        """Subscribe before acting, so that no change is missed; one waiter for each worker.

        A worker that gave its thread back goes on from the pod that it saw `last`: a change in the meantime is
        delivered now.

        A thread that had the place before gets OwnershipLost: its task was taken over again, and without this no event
        would ever wake it.
        """
        worker = (event_hash, index)
        waiter = Waiter(self, self._clock, worker)
        with self._lock:
            ousted = self._notify(worker, OwnershipLost())
            if last is not None:
                waiter.latest, waiter.stage = self._cache.get(last.key), last.stage
                waiter.pending += [PodNotListed()] if waiter.latest is None else []
            self._waiters[worker] = waiter
        _resolve_futures(ousted)
        return waiter

    def unsubscribe(self, waiter: Waiter) -> None:
        """Give the place up, unless another waiter has it by now."""
        with self._lock:
            if self._waiters.get(waiter.worker) is not waiter:
                return
            del self._waiters[waiter.worker]
            gone = waiter.latest is not None and any(isinstance(each, PodNotListed) for each in waiter.pending)
            if waiter.latest is not None and gone:
                self._cache.drop(waiter.latest.key)  # no worker will look for it any more
        if gone:
            self._call_listeners()

    def next_observation(self, waiter: Waiter, attempt: int) -> Future[Observation]:
        """A future for the waiter's next observation; already done if there is one that it has not seen."""
        future: Future[Observation] = Future()
        with self._lock:
            observation = self._next_known(waiter, attempt)
            # Looked at and put in place in one step: an event in between would find no future, and the worker would
            # wait for the next one, which may never come.
            if observation is None and not self._closed:
                waiter.future = future
                return future
        if observation is None:
            future.set_exception(Stopping("the registry is closed"))
        else:
            future.set_result(observation)
        return future

    def cancel_observation(self, waiter: Waiter, future: Future[Observation]) -> bool:
        """The waiter does not wait any longer; False if its future was taken already, and so will be answered."""
        with self._lock:
            if waiter.future is not future:
                return False
            waiter.future = None
            return True

    def upsert(self, pod: PodSnapshot) -> None:
        """What a create or a live look has shown: as good as the watch, and earlier. The waiter knows it already."""
        with self._lock:
            if not self._cache.learn(pod):
                return
            waiter = self._waiters.get(pod.key.worker)
            if waiter is not None:
                waiter.latest, waiter.stage = pod, pod.stage

    def delete(self, key: AttemptKey) -> None:
        """A live look has found no such pod."""
        with self._lock:
            known = self._cache.drop(key)
        if known:
            self._call_listeners()

    # -- the watch thread

    def begin_list(self) -> None:
        """A list is about to be asked for: what is learnt from now on may be newer than it."""
        with self._lock:
            self._cache.begin_list()

    def replace(self, listed: PodList) -> None:
        """A new list: publish what is in it, and notify the workers with pods that it lacks."""
        woken: list[tuple[Future[Observation], Observation]] = []
        with self._lock:
            lacking, since = self._cache.end_list(listed)
            for key in lacking:
                # It uses room until the worker's live look confirms that it is gone: the list may have been older.
                if not self._is_followed(key):
                    self._cache.drop(key)
                woken += self._notify(key.worker, PodNotListed(), attempt=key.attempt)
            for pod in listed.pods:
                woken += self._publish(pod, certain=pod.key not in since)
            self._known.set()
        _resolve_futures(woken)
        self._call_listeners()

    def publish(self, pod: PodSnapshot) -> None:
        """One change. A pod that is gone is published once, and removed."""
        with self._lock:
            without_node = self._cache.counts.without_node
            woken = self._publish(pod)
            got_node = self._cache.counts.without_node < without_node
        # Outside the lock: what a future wakes may ask the registry at once, and would wait for this thread.
        _resolve_futures(woken)
        if pod.gone or not pod.live:
            self._call_listeners()
        elif got_node:
            self._call_node_listeners()

    def mark_unknown(self) -> None:
        """The watch is broken: what is here may be old, so nothing is created on it."""
        with self._lock:
            self._known.clear()

    # -- any other thread

    def notify(self, event_hash: str, index: int, observation: Observation) -> bool:
        """Deliver an observation to a worker's thread; False if no thread follows the worker."""
        with self._lock:
            there = (event_hash, index) in self._waiters
            woken = self._notify((event_hash, index), observation)
        _resolve_futures(woken)
        return there

    def get(self, key: AttemptKey) -> PodSnapshot | None:
        """The latest snapshot of an attempt's pod."""
        with self._lock:
            return self._cache.get(key)

    def snapshots(self) -> Sequence[PodSnapshot]:
        """All pods of the instance, as last seen."""
        with self._lock:
            return self._cache.snapshots()

    def followed(self, event_hash: str, index: int) -> bool:
        """Does a thread follow this worker?"""
        with self._lock:
            return (event_hash, index) in self._waiters

    @property
    def is_known(self) -> bool:
        """Is the cluster's state known? While it is not, nothing may be created."""
        return self._known.is_set()

    def wait_known(self, timeout_s: float) -> None:
        """Wait until it is, at most so long."""
        self._known.wait(timeout_s)

    @property
    def owned_live_count(self) -> int:
        """Live pods of the tasks that are ours."""
        return self._cache.counts.owned_live_count

    @property
    def without_node(self) -> int:
        """Pods of the instance that wait for a node, of any replica."""
        return self._cache.counts.without_node

    def live_count_of(self, tenant: str) -> int:
        """Live pods of the instance that are this tenant's, of any replica."""
        return self._cache.counts.live_count_of(tenant)

    @property
    def awaiting_count(self) -> int:
        """The number of threads that wait for the next change of their pod."""
        with self._lock:
            return sum(waiter.future is not None for waiter in self._waiters.values())

    def count_as_ours(self, event_hash: str) -> None:
        """This event's pods count as ours from now on."""
        with self._lock:
            self._cache.counts.count_as_ours(event_hash)

    def stop_counting(self, event_hash: str) -> None:
        """This event's pods do not count as ours any more."""
        with self._lock:
            self._cache.counts.stop_counting(event_hash)

    def close(self) -> None:
        """Fail every waiter with Stopping; idempotent."""
        with self._lock:
            self._closed = True
            futures = [waiter.future for waiter in self._waiters.values() if waiter.future is not None]
            for waiter in self._waiters.values():
                waiter.future = None
        for future in futures:
            future.set_exception(Stopping("the registry is closed"))

    def _call_listeners(self) -> None:
        """Outside the lock: the listeners take locks of their own, under which others ask the registry."""
        for listener in self._listeners:
            listener()

    def _call_node_listeners(self) -> None:
        """Outside the lock, as above."""
        for listener in self._node_listeners:
            listener()

    # -- under the lock

    def _next_known(self, waiter: Waiter, attempt: int) -> Observation | None:
        waiter.future = None
        if waiter.pending:
            return waiter.pending.pop(0)
        pod = waiter.latest
        if pod is not None and pod.key.attempt == attempt and pod.stage != waiter.stage:
            waiter.stage = pod.stage
            return PodSeen(pod)
        return None

    def _publish(self, pod: PodSnapshot, *, certain: bool = False) -> list[tuple[Future[Observation], Observation]]:
        """`certain`: whatever is known of it is older."""
        if not self._cache.observe(pod, certain=certain):
            return []
        waiter = self._waiters.get(pod.key.worker)
        if waiter is None or (waiter.latest is not None and waiter.latest.key.attempt > pod.key.attempt):
            return []
        waiter.latest = pod
        future = waiter.future
        if future is None or pod.stage == waiter.stage:
            return []
        observation = self._next_known(waiter, pod.key.attempt)
        return [(future, observation)] if observation is not None else []

    def _notify(
        self, worker: _WorkerId, observation: Observation, attempt: int = 0
    ) -> list[tuple[Future[Observation], Observation]]:
        waiter = self._waiters.get(worker)
        if waiter is None or (attempt and waiter.latest is not None and waiter.latest.key.attempt != attempt):
            return []
        future = waiter.future
        if future is None:
            waiter.pending.append(observation)
            return []
        waiter.future = None
        return [(future, observation)]

    def _is_followed(self, key: AttemptKey) -> bool:
        waiter = self._waiters.get(key.worker)
        return waiter is not None and waiter.latest is not None and waiter.latest.key == key


def _resolve_futures(woken: list[tuple[Future[Observation], Observation]]) -> None:
    """Outside the lock: each future was taken out of its waiter under it, so it is answered once."""
    for future, observation in woken:
        future.set_result(observation)
