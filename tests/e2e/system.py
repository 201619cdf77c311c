"""All that a test has: a Redis database and a Kubernetes namespace of its own, controllers, and plain clients."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from kubernetes import client

from tests.adapters.kube_admin import KubeAdmin
from tests.e2e.controller import Controller
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for

#: The worker's program is what the event says: a passed-on field of the name `script`.
SCRIPTED = json.dumps(["/bin/sh", "-c", 'eval "$OTTO_SCRIPT"'])
#: A program that ends at SIGTERM, after so many seconds at the latest.
RUNS = "trap 'exit 143' TERM; sleep {} & wait $!"
LONG_RUN = RUNS.format(600)

Fields = dict[str, str]
Pod = dict[str, Any]


class Namespace(KubeAdmin):
    """A namespace of a test's own. One thread."""

    def pods(self) -> list[Pod]:
        """All pods, as the API server returns them."""
        return list(json.loads(self.api.list_namespaced_pod(self.namespace, _preload_content=False).data)["items"])

    def pod(self, name: str) -> Pod | None:
        """One of them, None if it is not there."""
        return next((pod for pod in self.pods() if pod["metadata"]["name"] == name), None)

    def enforce(self, profile: str) -> None:
        """Let the API server refuse pods that do not meet this Pod Security profile."""
        labels = {"pod-security.kubernetes.io/enforce": profile, "pod-security.kubernetes.io/enforce-version": "latest"}
        self.api.patch_namespace(self.namespace, {"metadata": {"labels": labels}}, _preload_content=False)

    def delete(self, name: str) -> None:
        """What `kubectl delete pod` does."""
        with suppress(client.exceptions.NotFoundException):
            self.api.delete_namespaced_pod(name, self.namespace, _preload_content=False)

    def evict(self, name: str) -> None:
        """What `kubectl drain` does."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        self.api.create_namespaced_pod_eviction(name, self.namespace, eviction, _preload_content=False)

    def node(self) -> tuple[str, int]:
        """Name and millicores of a node."""
        node = json.loads(self.api.list_node(_preload_content=False).data)["items"][0]
        cores = node["status"]["allocatable"]["cpu"]
        millicores = int(cores[:-1]) if cores.endswith("m") else int(cores) * 1000
        return node["metadata"]["labels"]["kubernetes.io/hostname"], millicores

    def add_important(self, name: str, node: str, cpu: str) -> None:
        """A pod before which ours have to give way."""
        container = {
            "name": "main",
            "image": "busybox:latest",
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "600"],
            "resources": {"requests": {"cpu": cpu}},
        }
        spec = {"priorityClassName": "system-cluster-critical", "nodeSelector": {"kubernetes.io/hostname": node}}
        body = {"metadata": {"name": name}, "spec": {**spec, "containers": [container]}}
        self.api.create_namespaced_pod(self.namespace, body, _preload_content=False)

    def limit_pods(self, count: int) -> None:
        """A quota."""
        quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": str(count)}}}
        self.api.create_namespaced_resource_quota(self.namespace, quota, _preload_content=False)

        def enforced() -> bool:
            answer = self.api.read_namespaced_resource_quota("few", self.namespace, _preload_content=False)
            return bool(json.loads(answer.data).get("status", {}).get("hard"))

        wait_for(enforced, "the quota to hold", 20)

    def token(self) -> str:
        """A token of the namespace's default ServiceAccount, which has no rights."""
        request = {"spec": {"expirationSeconds": 600}}
        return str(self.api.create_namespaced_service_account_token("default", self.namespace, request).status.token)

    def grant(self) -> None:
        """Bind that ServiceAccount to a Role with the verbs on pods that we name as needed."""
        rights: Any = client.RbacAuthorizationV1Api(self.api.api_client)
        rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "watch", "delete"]}
        role = {"metadata": {"name": "otto"}, "rules": [rule]}
        subject = {"kind": "ServiceAccount", "name": "default", "namespace": self.namespace}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "otto"}
        binding = {"metadata": {"name": "otto"}, "roleRef": reference, "subjects": [subject]}
        rights.create_namespaced_role(self.namespace, role, _preload_content=False)
        rights.create_namespaced_role_binding(self.namespace, binding, _preload_content=False)


class System:
    """One Redis database, one namespace, any number of controllers. One thread."""

    def __init__(self, server: RedisServer, db: int, namespace: Namespace, directory: Path) -> None:
        self.server = server
        self.kube = namespace
        self.redis = server.client(db)
        self._directory = directory
        self._controllers: list[Controller] = []
        self.environ = {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "REDIS_DB": str(db),
            "REDIS_CONSUMER": "otto-0",
            "NAMESPACE": namespace.namespace,
            "KUBECONFIG": str(namespace.kubeconfig),
            "OTTO_AGENT_COMMAND": SCRIPTED,
            # small, for many share a small node
            "WORKER_CPU_REQUEST": "10m",
            "WORKER_MEMORY_REQUEST": "8Mi",
            "TERMINATION_GRACE_S": "2",
        }

    def launch(self, **environ: str) -> Controller:
        """Start a controller, and do not wait. Arguments: what its environment has besides the usual."""
        controller = Controller(self._directory, {**self.environ, **environ})
        self._controllers.append(controller)
        return controller

    def start(self, **environ: str) -> Controller:
        """Start a controller, and wait until it takes events."""
        return self.launch(**environ).ready()

    def close(self) -> None:
        """End all controllers and take the namespace away."""
        for controller in self._controllers:
            controller.close()
        self.redis.close()
        self.kube.close()

    # -- Redis

    def send(self, **fields: object) -> str:
        """XADD otto:scale:events '*' field value …; returns the entry's id."""
        return str(self.redis.xadd("otto:scale:events", {name: str(value) for name, value in fields.items()}))

    def results(self, event_id: str, kind: str = "worker") -> list[Fields]:
        """The results of an event, in the order in which they came."""
        found = [fields for _, fields in self.redis.xrange("otto:scale:results")]
        return [fields for fields in found if fields["event_id"] == event_id and fields["kind"] == kind]

    def finished(self, event_id: str, kind: str = "task", timeout_s: float = 40) -> Fields:
        """Wait for the one result that ends an event."""
        found = wait_for(lambda: self.results(event_id, kind), f"the {kind} result of {event_id}", timeout_s)
        assert len(found) == 1, found
        return found[0]

    def verdict(self, event_id: str, timeout_s: float = 40) -> Fields:
        """Wait for the end of an event of one worker, and return the worker's result; the task's must agree."""
        task = self.finished(event_id, timeout_s=timeout_s)
        (worker,) = self.results(event_id)
        assert task["reason"] == worker["reason"]
        return worker

    def dead_letters(self, stream_id: str) -> list[Fields]:
        """The dead letters of one entry."""
        return [fields for _, fields in self.redis.xrange("otto:scale:dead") if fields["stream_id"] == stream_id]

    def open_ids(self) -> list[str]:
        """Unfinished events."""
        return list(self.redis.zrange("otto:scale:open", 0, -1))

    def pending_count(self) -> int:
        """What the group has read and not acknowledged."""
        return int(self.redis.xpending("otto:scale:events", "ottoscaler")["pending"])

    # -- Kubernetes

    def pods_of(self, event_id: str) -> list[Pod]:
        """The pods of an event."""
        mine = [
            pod
            for pod in self.kube.pods()
            if pod["metadata"].get("annotations", {}).get("ottoscaler.io/event-id") == event_id
        ]
        return sorted(mine, key=lambda pod: str(pod["metadata"]["name"]))

    def running(self, event_id: str, count: int = 1) -> list[Pod]:
        """Wait until so many pods of an event run, and return them by name."""

        def look() -> list[Pod]:
            pods = [pod for pod in self.pods_of(event_id) if pod["status"]["phase"] == "Running"]
            return pods if len(pods) == count else []

        return wait_for(look, f"{count} running pods of {event_id}")

    def no_pods(self, event_id: str) -> None:
        """Wait until no pod of an event is left."""
        wait_for(lambda: not self.pods_of(event_id), f"the pods of {event_id} to go")


def names(pods: list[Pod]) -> list[str]:
    """Their names."""
    return [pod["metadata"]["name"] for pod in pods]


def uids(pods: list[Pod]) -> set[str]:
    """Their UIDs: the same name with another UID is another pod."""
    return {pod["metadata"]["uid"] for pod in pods}


def sent_at(stream_id: str) -> float:
    """When an entry was added, seconds since the epoch."""
    return int(stream_id.partition("-")[0]) / 1000


def logged_at(line: dict[str, Any]) -> float:
    """When a line of the log was written, seconds since the epoch."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()
