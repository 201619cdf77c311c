"""The fake Kubernetes API: pods as JSON, one rising version, a window of changes, preconditions, and faults to order.

The fake clients (tests/fakes/cluster.py) share it, as replicas share a cluster; the tests play kubelet, user and bad
luck through its controls (tests/fakes/node.py).
"""

from __future__ import annotations

import copy
import threading
import time
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from ottoscaler.core.names import LABEL_INSTANCE, MANAGED_BY, MANAGER
from ottoscaler.core.pods import RawPod, Snapshot, as_asked, foreign, snapshot
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, Expired
from ottoscaler.ports import Change, Clock, Created, PodList, WatchEvent
from tests.fakes.clock import SystemClock

Pod = dict[str, Any]
FINISHED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class _Changed:
    version: int
    change: Change
    instance: str
    pod: Snapshot | None


@dataclass(slots=True)
class Watch:
    """One open watch: all up to `position` has been told. `deadline` is real time, time.monotonic()."""

    instance: str
    position: int
    deadline: float
    ended: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class _Fault:
    verb: str
    error: Exception
    times: int
    after: bool


class FakeKubernetes:
    """The API server. Any thread; `changed` guards all of its state and wakes blocked watches.

    `calls` counts requests by verb and pod name; `on_call` gets both before each, and may raise or block; `on_created`
    and `on_deletion` get the name of a pod within the request; `admit` may change a pod before it is stored. `window`:
    how many changes a watch can begin behind.
    """

    def __init__(self, clock: Clock | None = None, *, window: int = 100_000) -> None:
        self.clock = clock or SystemClock()
        self.changed = threading.Condition(threading.RLock())
        self.calls: Counter[tuple[str, str]] = Counter()
        self.on_call: Callable[[str, str], None] = lambda _verb, _name: None
        self.on_created: Callable[[str], None] = lambda _name: None
        self.on_deletion: Callable[[str], None] = lambda _name: None
        self.admit: Callable[[Pod], None] = lambda _pod: None
        self.pods: dict[str, Pod] = {}
        self.identity = f"default/{uuid.uuid4()}"
        self._window = window
        self._version = 1000
        self._oldest = 1000
        self._history: list[_Changed] = []
        self._watches: list[Watch] = []
        self._faults: list[_Fault] = []
        self._held: list[bytes] = []
        self._holds = 0
        self._frozen: tuple[int, list[Pod]] | None = None

    @contextmanager
    def call(self, verb: str, name: str = "") -> Iterator[None]:
        """One request, with the fault that was ordered for it."""
        self.on_call(verb, name)
        with self.changed:
            self.calls[verb, name] += 1
            due = (each for each in self._faults if each.verb in (verb, "*") and each.times > 0)
            fault = next(due, None)
            if fault is not None:
                fault.times -= 1
                if not fault.after:
                    raise fault.error
            yield
            if fault is not None:
                raise fault.error

    def select(self, instance: str) -> PodList:
        """The worker pods of an instance; those of an earlier time while lists are frozen."""
        version, pods = self._frozen or (self._version, list(self.pods.values()))
        found = [snapshot(parsed(pod), instance) for pod in pods if _instance(pod) == instance]
        return PodList([pod for pod in found if pod is not None], str(version))

    def create(self, body: bytes) -> Snapshot | Created:
        """Store a pod. Raises ClusterRejected for one without container, ClusterUnavailable for one that is held."""
        if self._holds:
            self._holds -= 1
            self._held.append(body)
            raise ClusterUnavailable("no answer to the create request")
        pod: Pod = msgspec.json.decode(body)
        name = pod["metadata"]["name"]
        if name in self.pods:
            return Created.ALREADY_THERE
        if not pod["spec"].get("containers"):
            raise ClusterRejected(f'Pod "{name}" is invalid: spec.containers', status=422, reason="Invalid")
        asked = parsed(pod)
        pod = copy.deepcopy(pod)
        self.admit(pod)
        pod["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": self.stamp()}
        pod["status"] = {"phase": "Pending"}
        self.store(pod)
        created = as_asked(parsed(pod), asked)
        self.on_created(name)
        return created

    def delete(self, name: str, uid: str, version: str | None, grace_s: int | None = None) -> bool:
        """Delete under preconditions: at once if nothing runs, else by request. False if they do not hold."""
        pod = self.pods.get(name)
        if pod is None:
            return True
        metadata = pod["metadata"]
        if uid != metadata["uid"] or version not in (None, metadata["resourceVersion"]):
            return False
        self.request_deletion(name, grace_s)
        return True

    def request_deletion(self, name: str, grace_s: int | None = None) -> None:
        """What any accepted DELETE does."""
        pod = self.pods[name]
        if not pod["spec"].get("nodeName") or pod["status"].get("phase") in FINISHED:
            self.remove(name)
        elif "deletionTimestamp" not in pod["metadata"]:
            grace = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
            mark = {"deletionTimestamp": self.stamp(grace), "deletionGracePeriodSeconds": grace}
            self.store({**pod, "metadata": {**pod["metadata"], **mark}})
            self.on_deletion(name)

    def store(self, pod: Pod) -> None:
        """Put a state of a pod in place of the one before; the dict is not to be changed afterwards."""
        with self.changed:
            self._version += 1
            pod["metadata"]["resourceVersion"] = str(self._version)
            before = self.pods.get(pod["metadata"]["name"])
            self.pods[pod["metadata"]["name"]] = pod
            if before is not None and _instance(before) != _instance(pod):
                # it left the selection of whoever watches by the old labels
                self._tell(
                    Change.DELETED,
                    {**before, "metadata": {**before["metadata"], "resourceVersion": str(self._version)}},
                )
            self._tell(Change.UPDATED, pod)

    def remove(self, name: str, *, unseen: bool = False) -> None:
        """The pod is gone; `unseen`: and no watch tells, as if the change had fallen out of the window."""
        with self.changed:
            self._version += 1
            pod = self.pods.pop(name)
            if not unseen:
                self._tell(
                    Change.DELETED, {**pod, "metadata": {**pod["metadata"], "resourceVersion": str(self._version)}}
                )

    def stamp(self, later_s: float = 0) -> str:
        """Now, or so many seconds later, as the API server writes times: whole seconds."""
        return datetime.fromtimestamp(self.clock.now() + later_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _tell(self, change: Change, pod: Pod) -> None:
        worker = snapshot(parsed(pod), _instance(pod))
        if worker is not None and change is Change.DELETED:
            worker = worker.as_gone()
        self._history.append(_Changed(self._version, change, _instance(pod), worker))
        if len(self._history) > self._window:
            self._oldest = self._history.pop(0).version
        self.changed.notify_all()

    def open_watch(self, instance: str, version: str, timeout_s: float) -> Watch:
        """A watch of changes behind a version."""
        watch = Watch(instance, int(version), time.monotonic() + timeout_s)
        with self.changed:
            self._watches.append(watch)
        return watch

    def next_change(self, watch: Watch, closed: Callable[[], bool]) -> WatchEvent | None:
        """The next change for a watch, None when it ended. Raises Expired, and what the test broke the watch with."""
        with self.changed:
            while not (watch.ended or watch.error or closed()):
                if watch.position < self._oldest:
                    raise Expired(f"too old resource version: {watch.position} ({self._oldest})")
                start = bisect_right(self._history, watch.position, key=lambda changed: changed.version)
                for changed in self._history[start:]:
                    watch.position = changed.version
                    if changed.instance == watch.instance or changed.change is Change.BOOKMARK:
                        return WatchEvent(changed.change, str(changed.version), changed.pod)
                watch.position = max(watch.position, self._version)
                if not self.changed.wait(watch.deadline - time.monotonic()):
                    break
            if watch.error:
                raise watch.error
            return None

    def close_watch(self, watch: Watch) -> None:
        """Nobody reads it any more."""
        with self.changed:
            self._watches.remove(watch)

    def watching(self) -> int:
        """How many watches are open."""
        with self.changed:
            return len(self._watches)

    def end_watches(self, error: Exception | None = None) -> None:
        """Let all open watches end, as after the server's time, or with an error."""
        with self.changed:
            for watch in self._watches:
                watch.ended, watch.error = True, error
            self.changed.notify_all()

    def bookmark(self) -> None:
        """Tell all watches the current version."""
        with self.changed:
            self._version += 1
            self._history.append(_Changed(self._version, Change.BOOKMARK, "", None))
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget all changes: a watch that begins before now is Expired."""
        with self.changed:
            self._version += 1
            self._oldest = self._version
            self._history.clear()
            self.changed.notify_all()

    def refuse_next(self, verb: str, error: Exception, times: int = 1) -> None:
        """Raise an error instead of carrying out a request (the port's method name as verb, or `*`)."""
        with self.changed:
            self._faults.append(_Fault(verb, error, times, after=False))

    def drop_replies(self, verb: str, times: int = 1) -> None:
        """Carry a request out and lose the answer."""
        with self.changed:
            lost = ClusterUnavailable(f"no answer to {verb}", unclear=True)
            self._faults.append(_Fault(verb, lost, times, after=True))

    def hold_next_create(self) -> None:
        """Keep the next create request in the network: no answer comes, and it arrives with `deliver_held`."""
        with self.changed:
            self._holds += 1

    def deliver_held(self) -> None:
        """Let the create requests arrive that were kept."""
        with self.changed:
            held, self._held = self._held, []
            for body in held:
                self.create(body)

    def freeze_lists(self) -> None:
        """From now on lists tell the present state, however old it gets: a stale cache."""
        with self.changed:
            self._frozen = self._version, list(self.pods.values())

    def thaw_lists(self) -> None:
        """Lists are as of now again."""
        with self.changed:
            self._frozen = None

    def count(self, verb: str, name: str | None = None) -> int:
        """How many requests of a verb there were, of one pod or of all."""
        with self.changed:
            return sum(times for (each, of), times in self.calls.items() if each == verb and name in (None, of))


def parsed(pod: Pod) -> RawPod:
    """The pod as the adapter reads it from the wire."""
    return msgspec.convert(pod, RawPod)


def seen(pod: Pod, instance: str = "") -> Snapshot:
    """The snapshot of any pod: one that is not a worker of that instance has an empty `event_id`."""
    raw = parsed(pod)
    return snapshot(raw, instance) or foreign(raw)


def _instance(pod: Pod) -> str:
    labels = pod["metadata"].get("labels", {})
    return labels.get(LABEL_INSTANCE, "") if labels.get(MANAGED_BY) == MANAGER else ""
