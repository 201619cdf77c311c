"""The words of the cluster suite: what every implementation brings along, pods to create, and states to put them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ottoscaler.core import manifest
from ottoscaler.core.events import EventType, ScaleEvent
from ottoscaler.core.manifest import AttemptKey, event_hash
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.ports import Cluster, WatchEvent
from ottoscaler.settings import WorkerSettings

#: No node has it: nothing runs these pods, so that a test decides what becomes of them.
NOWHERE = {"ottoscaler.test/nowhere": "true"}
#: A node that is not there: a pod bound to it is scheduled, and no kubelet touches it.
NO_NODE = "no-such-node"
EVENT = ScaleEvent("e-1", "1-1", EventType.SCALE_UP, 3, task_id="t-1", passed_on={"reason": "ü"})

_STARTED = "2026-01-02T03:04:05Z"
_ENDED = "2026-01-02T03:05:05Z"

Status = Mapping[str, Any]


class ClusterFactory(Protocol):
    """Makes a client for one instance; all that it makes share a cluster."""

    def __call__(self, instance: str) -> Cluster: ...


class ClusterAdmin(Protocol):
    """What kubelets, users and accidents do in the same namespace."""

    namespace: str

    def set_status(self, name: str, status: Status) -> None:
        """What a kubelet reports."""
        ...

    def remove(self, name: str) -> None:
        """The pod is gone, whatever it did."""
        ...

    def add_foreign(self, name: str, labels: Mapping[str, str]) -> None:
        """A pod of another program."""
        ...

    def relabel(self, name: str, labels: Mapping[str, str | None]) -> None:
        """A user changes a pod's labels; None removes one."""
        ...

    def announce(self, name: str, reason: str, message: str, component: str) -> None:
        """A component writes an Event about a pod, again if it has written it before."""
        ...

    def forget_changes(self, version: str) -> str:
        """Make changes behind a version of now unavailable; returns a version that is too old."""
        ...


def waiting(reason: str, message: str = "") -> Status:
    """A container that does not start."""
    return {"phase": "Pending", "containerStatuses": [_container({"waiting": {"reason": reason, "message": message}})]}


def running() -> Status:
    """A container that runs."""
    return {"phase": "Running", "containerStatuses": [_container({"running": {"startedAt": _STARTED}})]}


def ended(phase: str, code: int, reason: str) -> Status:
    """A container that ended."""
    times = {"startedAt": _STARTED, "finishedAt": _ENDED}
    return {
        "phase": phase,
        "containerStatuses": [_container({"terminated": {"exitCode": code, "reason": reason, **times}})],
    }


def _container(state: Status) -> Status:
    return {
        "name": manifest.CONTAINER,
        "state": state,
        "image": "busybox",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
    }


class Pods:
    """Makes the pods of one instance in the namespace of the cluster under test."""

    def __init__(self, cluster: Cluster, admin: ClusterAdmin, instance: str) -> None:
        self.cluster = cluster
        self.instance = instance
        self.hash = event_hash(instance, EVENT.event_id)
        self._namespace = admin.namespace

    def body(
        self, index: int = 1, *, attempt: int = 1, bound: bool = False, avoided_nodes: Sequence[str] = (),
        keep_failed_s: int = 0,
    ) -> bytes:  # fmt: skip
        """A create request; `bound`: to a node that is not there."""
        key = AttemptKey(self.hash, index, attempt)
        template = WorkerSettings(node_selector=NOWHERE, keep_failed_s=keep_failed_s)
        made = manifest.build_pod(
            template, EVENT, key, event_json=EVENT.encode(), instance=self.instance, namespace=self._namespace,
            avoided_nodes=avoided_nodes,
        )  # fmt: skip
        if not bound:
            return made
        pod = msgspec.json.decode(made)
        pod["spec"]["nodeName"] = NO_NODE
        return msgspec.json.encode(pod)

    def name(self, index: int = 1) -> str:
        """The name of a worker's first attempt."""
        return f"otto-agent-{self.hash}-{index}"

    def create(self, index: int = 1, *, attempt: int = 1, bound: bool = True) -> PodSnapshot:
        """A pod that is there; bound to a node unless `bound` is False."""
        created = self.cluster.create(self.body(index, attempt=attempt, bound=bound))
        assert isinstance(created, PodSnapshot)
        return created

    def look(self, name: str) -> PodSnapshot:
        """A pod as it is now."""
        pod = self.cluster.get(name)
        assert pod is not None
        return pod

    def watch_until(self, version: str, done: Callable[[WatchEvent], bool]) -> list[WatchEvent]:
        """The events of a watch up to the one that is waited for; bookmarks are left out."""
        events = []
        changes = self.cluster.watch(version)
        for event in changes:
            if event.pod is not None or event.change.name != "BOOKMARK":
                events.append(event)
            if done(event):
                return events
        raise AssertionError(f"the watch ended with {events}")
