"""The cluster suite's admin over the plain Kubernetes client: what kubelets and users do, in a namespace of its own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from tests.adapters.clusters import NOWHERE, Status
from tests.fakes.wait import eventually

#: Patches are sent as these, so that lists are replaced and not merged by name.
_MERGE = "application/merge-patch+json"


class KubeAdmin:
    """One namespace of a cluster; `open` makes it, `close` takes it away with all that is in it."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = f"otto-test-{uuid.uuid4().hex[:10]}"
        self.api: Any = client.CoreV1Api(config.new_client_from_config(config_file=str(kubeconfig)))

    def open(self) -> None:
        """Make the namespace, and wait for its ServiceAccount: without one no pod is admitted."""
        self.api.create_namespace({"metadata": {"name": self.namespace}}, _preload_content=False)
        eventually(self._has_account, 20, "the namespace's ServiceAccount")

    def _has_account(self) -> bool:
        with suppress(client.ApiException):
            self.api.read_namespaced_service_account("default", self.namespace, _preload_content=False)
            return True
        return False

    def clear(self) -> None:
        """Remove all pods, those that are bound to no node at all included."""
        now = {"gracePeriodSeconds": 0}
        self.api.delete_collection_namespaced_pod(self.namespace, body=now, _preload_content=False)

    def close(self) -> None:
        """Take the namespace away."""
        for name in self._names():
            self.remove(name)
        self.api.delete_namespace(self.namespace, _preload_content=False)
        self.api.api_client.close()

    def _names(self) -> list[str]:
        return [pod.metadata.name for pod in self.api.list_namespaced_pod(self.namespace).items]

    def set_status(self, name: str, status: Status) -> None:
        self.api.patch_namespaced_pod_status(
            name, self.namespace, {"status": dict(status)}, _content_type=_MERGE, _preload_content=False
        )

    def remove(self, name: str) -> None:
        with suppress(client.exceptions.NotFoundException):
            self.api.delete_namespaced_pod(name, self.namespace, body={"gracePeriodSeconds": 0}, _preload_content=False)

    def add_foreign(self, name: str, labels: Mapping[str, str]) -> None:
        spec = {"nodeSelector": NOWHERE, "containers": [{"name": "main", "image": "busybox"}]}
        body = {"metadata": {"name": name, "labels": dict(labels)}, "spec": spec}
        self.api.create_namespaced_pod(self.namespace, body, _preload_content=False)

    def relabel(self, name: str, labels: Mapping[str, str | None]) -> None:
        body = {"metadata": {"labels": dict(labels)}}
        self.api.patch_namespaced_pod(name, self.namespace, body, _content_type=_MERGE, _preload_content=False)

    def announce(self, name: str, reason: str, message: str, component: str) -> None:
        pod = self.api.read_namespaced_pod(name, self.namespace)
        about = {"kind": "Pod", "namespace": self.namespace, "name": name, "uid": pod.metadata.uid}
        named = f"{name}.{component}.{reason}".lower()
        event = {
            "metadata": {"name": named},
            "involvedObject": about,
            "source": {"component": component},
            "type": "Normal",
            "reason": reason,
            "message": message,
            "count": 1,
        }
        try:
            self.api.create_namespaced_event(self.namespace, event, _preload_content=False)
        except client.ApiException as error:
            if error.status != 409:
                raise
            again = {"count": int(self.api.read_namespaced_event(named, self.namespace).count) + 1, "message": message}
            self.api.patch_namespaced_event(named, self.namespace, again, _content_type=_MERGE, _preload_content=False)

    def forget_changes(self, version: str) -> str:
        """An API server keeps changes for minutes; the very first version is older than anything it keeps.

        But for one that has only just been started: it may still know everything, which is its right.
        """
        options = {"watch": True, "resource_version": "1", "timeout_seconds": 1, "_preload_content": False}
        if b'"code":410' not in self.api.list_namespaced_pod(self.namespace, **options).read():
            pytest.skip("allowed, not required: this server has not forgotten anything yet")
        return "1"
