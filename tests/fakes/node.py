"""What a test does to the pods of the fake Kubernetes: the part of kubelet, scheduler, users and accidents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from ottoscaler.local.store import PLAIN_DELETE
from tests.fakes.kubernetes import FakeKubernetes, Pod

NODE = "node-1"
#: Exit code of a container that SIGTERM ended.
SIGTERM_CODE = 143


class NodeControls:
    """The test's hands on the pods of `server`. Any thread."""

    server: FakeKubernetes

    def schedule(self, name: str, node: str = NODE) -> None:
        """Bind the pod to a node; it has not started yet."""
        condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": self.server.stamp()}

        def bind(pod: Pod) -> None:
            pod["spec"].setdefault("nodeName", node)
            _put_condition(pod, condition)

        self._change(name, bind)

    def run(self, name: str, node: str = NODE) -> None:
        """The worker runs."""
        self.schedule(name, node)
        self._container(name, "Running", {"running": {"startedAt": self.server.stamp()}})

    def succeed(self, name: str, code: int = 0) -> None:
        """The worker ended well."""
        self._end(name, "Succeeded", code, "Completed")

    def fail(self, name: str, code: int = 1, reason: str = "Error", message: str = "") -> None:
        """The worker ended badly; `reason` and `message` are what the kubelet says of the container."""
        self._end(name, "Failed", code, reason, message)

    def end_pod(self, name: str, reason: str, message: str = "", *, phase: str = "Failed") -> None:
        """The kubelet ended the pod as such: DeadlineExceeded, Evicted, NodeShutdown … No container status shows it."""
        self._change(name, lambda pod: pod["status"].update(phase=phase, reason=reason, message=message))

    def disrupt(self, name: str, reason: str, message: str = "") -> None:
        """A controller announces the pod's end: PreemptionByScheduler, DeletionByTaintManager …"""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
        self._change(name, lambda pod: _put_condition(pod, condition))

    def trouble(self, name: str, waiting_reason: str, message: str = "") -> None:
        """The container does not start: ErrImagePull, CreateContainerConfigError …"""
        self.schedule(name)
        self._container(name, "Pending", {"waiting": {"reason": waiting_reason, "message": message}})

    def unschedulable(self, name: str, message: str = "0/1 nodes are available") -> None:
        """The scheduler finds no node."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self._change(name, lambda pod: _put_condition(pod, condition))

    def announce(self, name: str, reason: str, message: str = "", component: str = "cluster-autoscaler") -> None:
        """An autoscaler, or a scheduler, writes an Event about the pod: TriggeredScaleUp, NotTriggerScaleUp …"""
        self.server.add_event(self.server.pods[name], reason, message, component)

    def gate(self, name: str, *gates: str) -> None:
        """A user holds the pod back with scheduling gates; without any, they are lifted."""
        condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "blocked"}

        def hold(pod: Pod) -> None:
            pod["spec"]["schedulingGates"] = [{"name": gate} for gate in gates]
            _put_condition(pod, condition if gates else {**condition, "reason": "Pending"})

        self._change(name, hold)

    def outlive(self, name: str, code: int = 0, *, first: bool = True) -> None:
        """`agent` ends with a code, and an injected sidecar runs on, listed `first` or last."""
        self.run(name)
        times = {"startedAt": self.server.stamp(), "finishedAt": self.server.stamp()}
        reason = "Error" if code else "Completed"
        own = {"name": "agent", "state": {"terminated": {"exitCode": code, "reason": reason, **times}}}
        other = {"name": "aaa-proxy", "state": {"running": {"startedAt": self.server.stamp()}}}
        statuses = [other, own] if first else [own, other]
        self._change(name, lambda pod: pod["status"].update(phase="Running", containerStatuses=statuses))

    def set_status(self, name: str, status: dict[str, Any]) -> None:
        """The whole status, as the API has it."""
        self._change(name, lambda pod: pod.update(status=copy.deepcopy(status)))

    def delete_by_user(self, name: str) -> None:
        """A user deletes the pod: by request if it runs."""
        self.server.request_deletion(name, PLAIN_DELETE)

    def kill(self, name: str, code: int = SIGTERM_CODE) -> None:
        """The kubelet answers a deletion request: the container ends with a code, then the pod is gone."""
        with self.server.changed:
            if code:
                self.fail(name, code)
            else:
                self.succeed(name)
            self.server.remove(name)

    def vanish(self, name: str, *, unseen: bool = False) -> None:
        """The pod is gone at once, as by a forced deletion; `unseen`: and no watch reports it."""
        self.server.remove(name, unseen=unseen)

    def add_foreign(self, name: str, labels: dict[str, str] | None = None) -> None:
        """A pod that is not ours."""
        spec = {"containers": [{"name": "main", "image": "busybox"}]}
        self.server.add({"metadata": {"name": name, "labels": labels or {}}, "spec": spec}, uid=f"uid-{name}")

    def relabel(self, name: str, labels: Mapping[str, str | None]) -> None:
        """A user changes labels; None removes one."""

        def change(pod: Pod) -> None:
            merged = {**pod["metadata"].get("labels", {}), **labels}
            pod["metadata"]["labels"] = {label: value for label, value in merged.items() if value is not None}

        self._change(name, change)

    def hold(self, name: str, *finalizers: str) -> None:
        """A user sets these finalizers, and no others."""
        self._change(name, lambda pod: pod["metadata"].update(finalizers=list(finalizers)))

    def names(self) -> set[str]:
        """The names of all pods that are there."""
        with self.server.changed:
            return set(self.server.pods)

    def _end(self, name: str, phase: str, code: int, reason: str, message: str = "") -> None:
        with self.server.changed:
            state = _state(self.server.pods[name])
            started = state.get("running", {}).get("startedAt") or self.server.stamp()
            fields = {"exitCode": code, "reason": reason, "message": message, "startedAt": started}
            self._container(name, phase, {"terminated": {**fields, "finishedAt": self.server.stamp()}})

    def _container(self, name: str, phase: str, state: dict[str, Any]) -> None:
        statuses = [{"name": "agent", "state": state}]
        self._change(name, lambda pod: pod["status"].update(phase=phase, containerStatuses=statuses))

    def _change(self, name: str, change: Callable[[Pod], object]) -> None:
        self.server.change(name, change)


class AutoNode(NodeControls):
    """A tiny node: each pod that is created runs and ends with the code that `plan` says for its name (None: runs on).

    A pod goes at once when its deletion is requested: within the request, so that nothing has to be waited for.
    """

    def __init__(self, server: FakeKubernetes, plan: Callable[[str], int | None] = lambda _name: 0) -> None:
        self.server = server
        self._plan = plan
        server.on_created = self._created
        server.on_deletion = self.kill

    def _created(self, name: str) -> None:
        self.run(name)
        code = self._plan(name)
        if code == 0:
            self.succeed(name)
        elif code is not None:
            self.fail(name, code)


def _put_condition(pod: Pod, condition: dict[str, str]) -> None:
    others = [each for each in pod["status"].get("conditions", []) if each["type"] != condition["type"]]
    pod["status"]["conditions"] = [*others, condition]


def _state(pod: Pod) -> dict[str, Any]:
    statuses = pod["status"].get("containerStatuses")
    state: dict[str, Any] = statuses[0]["state"] if statuses else {}
    return state
