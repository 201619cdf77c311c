"""The fake Kubernetes API: the emulator's store of objects without its HTTP, threads and clock, and faults to order.

What a pod's life is in the API (versions, conflicts, selectors, deletion with grace, a window of changes) is modelled
once, in ottoscaler/local/store.py, which the emulator serves over HTTP and this fake calls. The fake clients
(tests/fakes/cluster.py) share one, as replicas share a cluster; the tests play kubelet, user and bad luck through its
controls (tests/fakes/node.py). Time is the test's: nothing here happens by itself.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ottoscaler.core.autoscaler import PodEvent
from ottoscaler.core.manifest import LABEL_INSTANCE, MANAGED_BY, MANAGER
from ottoscaler.core.pods import PodSnapshot, RawPod, created_pod_snapshot, foreign_pod_snapshot, pod_snapshot
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, WatchExpired
from ottoscaler.local.objects import ApiError, timestamp
from ottoscaler.local.query import Matcher, matcher
from ottoscaler.local.store import Change as Stored
from ottoscaler.local.store import DeleteOptions, Store
from ottoscaler.local.watch import event_for_watcher
from ottoscaler.ports import Clock, CreateOutcome, PodList, WatchEvent, WatchEventType
from tests.fakes.clock import SystemClock

Pod = dict[str, Any]
FINISHED = ("Succeeded", "Failed")
FIRST_VERSION = 1000


@dataclass(slots=True)
class Watch:
    """One open watch: all up to `version` has been sent. `deadline` is real time, time.monotonic()."""

    instance: str
    version: int
    position: int
    deadline: float
    coming: deque[Stored] = field(default_factory=deque)
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
        self.calls: Counter[tuple[str, str]] = Counter()
        self.on_call: Callable[[str, str], None] = lambda _verb, _name: None
        self.on_created: Callable[[str], None] = lambda _name: None
        self.on_deletion: Callable[[str], None] = lambda _name: None
        self.admit: Callable[[Pod], None] = lambda _pod: None
        self.identity = f"default/{uuid.uuid4()}"
        # the clock is looked up at each call: tests put another in its place
        self._store = Store(window, now=lambda: self.clock.now(), version=FIRST_VERSION)
        self.changed = self._store.changed
        self._bookmarks: list[int] = []
        self._unseen: set[int] = set()
        self._watches: list[Watch] = []
        self._faults: list[_Fault] = []
        self._held: list[bytes] = []
        self._holds = 0
        self._frozen: tuple[int, dict[str, Pod]] | None = None

    @property
    def pods(self) -> dict[str, Pod]:
        """All pods by name, as they are now; none of them is to be changed."""
        _, records = self._store.select("pods", lambda _: True)
        return {record.object["metadata"]["name"]: record.object for record in records}

    def find(self, name: str) -> Pod | None:
        """The pod of this name as it is now; it is not to be changed."""
        record = self._store.find("pods", "", name)
        return None if record is None else record.object

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
        with self.changed:
            version, pods = self._frozen or (self._store.version, self.pods)
        matches = _matcher(instance)
        found = [pod_snapshot(parsed(pod), instance) for pod in pods.values() if matches(pod)]
        return PodList([pod for pod in found if pod is not None], str(version))

    def create(self, body: bytes) -> PodSnapshot | CreateOutcome:
        """Store a pod. Raises ClusterRejected for one without container, ClusterUnavailable for one that is held."""
        if self._holds:
            self._holds -= 1
            self._held.append(body)
            raise ClusterUnavailable("no answer to the create request")
        pod: Pod = msgspec.json.decode(body)
        name = pod["metadata"]["name"]
        if self.find(name) is not None:
            return CreateOutcome.ALREADY_THERE
        if not pod["spec"].get("containers"):
            raise ClusterRejected(f'Pod "{name}" is invalid: spec.containers', status=422, reason="Invalid")
        asked = parsed(pod)
        pod = msgspec.json.decode(body)
        self.admit(pod)
        created = created_pod_snapshot(parsed(self.add(pod)), asked)
        self.on_created(name)
        return created

    def add(self, pod: Pod, uid: str = "") -> Pod:
        """Store a new pod, Pending, in the one namespace that there is; returns it as stored."""
        metadata = {key: value for key, value in pod["metadata"].items() if key != "namespace"}
        with self.changed:
            made = self._store.create("pods", {**pod, "metadata": metadata, "status": {"phase": "Pending"}}, uid=uid)
            self.written(made.object)
        return made.object

    def delete(self, name: str, uid: str, version: str | None, grace_s: int | None = None) -> bool:
        """Delete under preconditions: at once if nothing runs, otherwise by request. False if they do not hold."""
        return self.request_deletion(name, DeleteOptions(grace_s, uid, version or ""))

    def request_deletion(self, name: str, options: DeleteOptions) -> bool:
        """What any DELETE does: True if it is accepted, or the pod is not there."""
        with self.changed:
            before = self.find(name)
            try:
                pod = self._store.delete("pods", ("", name), options).object
            except ApiError as refusal:
                return refusal.code == 404
            if before is not None and pod != before and self.find(name) is not None:
                self.written(pod)
                if "deletionTimestamp" not in before["metadata"]:
                    self.on_deletion(name)
            return True

    def change(self, name: str, change: Callable[[Pod], object]) -> None:
        """Store what `change` makes of a copy of the pod."""

        def changed(pod: Pod) -> Pod:
            change(pod)
            return pod

        with self.changed:
            before = self.find(name)
            after = self._store.update("pods", ("", name), changed).object
            if after is not before:
                self.written(after)

    def written(self, pod: Pod) -> None:
        """Called within the request after each state of a pod that is stored: for a subclass."""

    def remove(self, name: str, *, unseen: bool = False) -> None:
        """Remove the pod whatever holds it; `unseen`: no watch reports it, as if the change were out of the window."""
        with self.changed:
            record = self._store.remove("pods", ("", name))
            if unseen:
                self._unseen.add(record.version)

    def stamp(self, later_s: float = 0) -> str:
        """Now, or the given seconds later, as the API server writes times: whole seconds."""
        return timestamp(later_s, self.clock.now())

    def add_event(self, pod: Pod, reason: str, message: str, component: str) -> None:
        """A component writes an Event about a pod; the same one again: it is written again, and counted."""
        metadata = pod["metadata"]
        about = {"kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        name = f"{metadata['name']}.{component}.{reason}"
        with self.changed:
            if self._store.find("events", "", name) is None:
                event: Pod = {"metadata": {"name": name}, "involvedObject": about, "source": {"component": component}}
                self._store.create("events", event | {"reason": reason, "count": 0})
            self._store.update("events", ("", name), lambda old: {**old, "message": message, "count": old["count"] + 1})

    def events_of(self, uid: str) -> list[PodEvent]:
        """The Events about a pod."""
        about = matcher("events", namespace="", labels="", fields=f"involvedObject.uid={uid}")
        found = [(record.version, record.object) for record in self._store.select("events", about)[1]]
        return [PodEvent(one["reason"], one["message"], one["source"]["component"], version) for version, one in found]

    def open_watch(self, instance: str, version: str, timeout_s: float) -> Watch:
        """A watch of changes behind a version."""
        with self.changed:
            watch = Watch(instance, int(version), -1, time.monotonic() + timeout_s)
            self._watches.append(watch)
        return watch

    def next_change(self, watch: Watch, closed: Callable[[], bool]) -> WatchEvent | None:
        """The next change for a watch, None when it ended. Raises WatchExpired, and what the test broke it with."""
        with self.changed:
            while not (watch.ended or watch.error or closed()):
                self._read(watch)
                while watch.coming or self._bookmark_due(watch):
                    if (event := self._next(watch)) is not None:
                        return event
                if not self.changed.wait(watch.deadline - time.monotonic()):
                    break
            if watch.error:
                raise watch.error
            return None

    def _read(self, watch: Watch) -> None:
        """Fetch what has happened since the last look. Raises WatchExpired."""
        try:
            if watch.position < 0:
                watch.position, _ = self._store.begin_watch("pods", watch.version)
            changes, watch.position, _ = self._store.read_changes("pods", watch.position, 0)
        except ApiError as error:
            raise WatchExpired(str(error)) from error
        watch.coming.extend(changes)

    def _bookmark_due(self, watch: Watch) -> int:
        """The version of the next bookmark if it comes before the next change, otherwise 0."""
        first = next((version for version in self._bookmarks if version > watch.version), 0)
        return 0 if watch.coming and watch.coming[0].record.version < first else first

    def _next(self, watch: Watch) -> WatchEvent | None:
        """The next bookmark or change as the watch's instance sees it, None if it does not concern it."""
        if version := self._bookmark_due(watch):
            watch.version = version
            return WatchEvent(WatchEventType.BOOKMARK, str(version), None)
        stored = watch.coming.popleft()
        watch.version = stored.record.version
        kind, pod, _ = event_for_watcher(stored, _matcher(watch.instance))
        worker = pod_snapshot(parsed(pod), watch.instance) if kind else None
        if not kind or watch.version in self._unseen:
            return None
        if kind != "DELETED":
            return WatchEvent(WatchEventType.UPDATED, str(watch.version), worker)
        return WatchEvent(WatchEventType.DELETED, str(watch.version), worker and worker.as_gone())

    def close_watch(self, watch: Watch) -> None:
        """Its reader has stopped."""
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
        """Send the current version to all watches."""
        with self.changed:
            self._happen_elsewhere()
            self._bookmarks.append(self._store.version)

    def compact(self) -> None:
        """Forget all changes: a watch that begins before now is WatchExpired."""
        with self.changed:
            self._happen_elsewhere()
            self._store.compact()
            self.changed.notify_all()

    def _happen_elsewhere(self) -> None:
        """The version rises with each write in the cluster, also with one that no watch of pods reports."""
        self._store.create("events", {"metadata": {"name": f"elsewhere-{self._store.version}"}})

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
        """From now on lists show the present state, however old it gets: a stale cache."""
        with self.changed:
            self._frozen = self._store.version, self.pods

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


def seen(pod: Pod, instance: str = "") -> PodSnapshot:
    """The snapshot of any pod: one that is not a worker of that instance has an empty `event_id`."""
    raw = parsed(pod)
    return pod_snapshot(raw, instance) or foreign_pod_snapshot(raw)


def _matcher(instance: str) -> Matcher:
    """The selector of an instance's workers."""
    return matcher("pods", namespace="", labels=f"{MANAGED_BY}={MANAGER},{LABEL_INSTANCE}={instance}", fields="")
