"""The fake of `ports.Cluster`: one client of the fake Kubernetes, for one instance of Ottoscaler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from ottoscaler.core.autoscaler import PodEvent
from ottoscaler.core.events import ScaleEvent, decode
from ottoscaler.core.manifest import ANNOTATION_EVENT
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.ports import CreateOutcome, PodList, WatchEvent
from tests.fakes.kubernetes import FakeKubernetes, Watch, seen
from tests.fakes.node import AutoNode, NodeControls

__all__ = ["FakeCluster", "FakeKubernetes"]


class FakeCluster(NodeControls):
    """`ports.Cluster` on a FakeKubernetes, together with the test's controls of its pods. Any thread.

    Without a `server` it gets one of its own. `auto` runs the pods: True for all to succeed, or a function from a pod's
    name to its exit code (None: runs on). A watch ends after `watch_s` real seconds. `rights` is what `missing_rights`
    says.
    """

    def __init__(
        self,
        server: FakeKubernetes | None = None,
        *,
        instance: str = "ottoscaler",
        auto: bool | Callable[[str], int | None] = False,
        watch_s: float = 30.0,
    ) -> None:
        self.server = server or FakeKubernetes()
        self.rights: Sequence[str] = ()
        self.version = (1, 34)
        self._instance = instance
        self._watch_s = watch_s
        self._closed = False
        if callable(auto):
            AutoNode(self.server, auto)
        elif auto:
            AutoNode(self.server)

    def list(self) -> PodList:
        self._check_open()
        with self.server.call("list"):
            return self.server.select(self._instance)

    def watch(self, resource_version: str) -> Iterator[WatchEvent]:
        with self.server.call("watch"):
            watch = self.server.open_watch(self._instance, resource_version, self._watch_s)
        try:
            yield from self._changes(watch)
        finally:
            self.server.close_watch(watch)

    def _changes(self, watch: Watch) -> Iterator[WatchEvent]:
        while (event := self.server.next_change(watch, lambda: self._closed)) is not None:
            yield event

    def create(self, body: bytes) -> PodSnapshot | CreateOutcome:
        self._check_open()
        name = msgspec.json.decode(body)["metadata"]["name"]
        with self.server.call("create", name):
            return self.server.create(body)

    def get(self, name: str) -> PodSnapshot | None:
        self._check_open()
        with self.server.call("get", name):
            pod = self.server.find(name)
            return None if pod is None else seen(pod, self._instance)

    def annotated_event(self, name: str) -> ScaleEvent | None:
        self._check_open()
        with self.server.call("annotated_event", name):
            pod = self.server.find(name) or {"metadata": {}}
        try:
            return decode(pod["metadata"].get("annotations", {}).get(ANNOTATION_EVENT, ""))
        except msgspec.MsgspecError:
            return None

    def delete(self, name: str, uid: str, resource_version: str | None = None, *, grace_s: int | None = None) -> bool:
        self._check_open()
        with self.server.call("delete", name):
            return self.server.delete(name, uid, resource_version, grace_s)

    def pod_events(self, uid: str) -> Sequence[PodEvent]:
        self._check_open()
        with self.server.call("pod_events", uid):
            return self.server.events_of(uid)

    def cluster_id(self) -> str:
        self._check_open()
        with self.server.call("cluster_id"):
            return self.server.identity

    def server_version(self) -> tuple[int, int]:
        self._check_open()
        return self.version

    def missing_rights(self) -> Sequence[str]:
        self._check_open()
        return self.rights

    def close(self) -> None:
        with self.server.changed:
            self._closed = True
            self.server.changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ClusterUnavailable("the client is closed", unclear=False)
