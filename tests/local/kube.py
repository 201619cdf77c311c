"""Raw HTTP to a Kubernetes API server, for the contract tests:
the emulator's or a real one; only the kubeconfig differs.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3
from kubernetes import config

Object = dict[str, Any]
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"


T = TypeVar("T")


def eventually(look: Callable[[], T], timeout_s: float = 15.0) -> T:
    """What ``look`` returns once that is true; an assertion error when it is not in time."""
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not (found := look()):
        assert time.monotonic() < deadline, f"still {found!r} after {timeout_s} s"
        pause.wait(0.02)
    return found


def pod(name: str, command: list[str] | None = None, **spec: Any) -> Object:
    """A pod of one container that does ``command``; without one no scheduler takes it.
    ``metadata`` in ``spec`` is merged.
    """
    metadata = {"name": name, **spec.pop("metadata", {})}
    container = {"name": "main", "image": "busybox", "command": command or ["true"], **spec.pop("container", {})}
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [container], **spec}
    spec |= {} if command else {"schedulerName": "nobody"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@dataclass(frozen=True)
class Answer:
    """An HTTP reply; body is the decoded JSON, or {} where it is none."""

    status: int
    body: Object
    headers: Mapping[str, str]
    text: str


class Kube:
    """One API server."""

    def __init__(self, kubeconfig: Path) -> None:
        client = config.new_client_from_config(str(kubeconfig))
        settings = client.configuration
        self.url: str = settings.host
        self._headers = {"Accept": "application/json"}
        if token := settings.get_api_key_with_prefix("authorization") or settings.get_api_key_with_prefix(
            "BearerToken"
        ):
            self._headers["Authorization"] = token
        tls = {"ca_certs": settings.ssl_ca_cert, "cert_file": settings.cert_file, "key_file": settings.key_file}
        self._http = urllib3.PoolManager(
            retries=False, timeout=15, maxsize=40, **(tls if self.url.startswith("https") else {})
        )
        client.close()

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json", **query: Any) -> Answer:
        """One request."""
        headers = self._headers | ({} if body is None else {"Content-Type": kind})
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        target = f"{self.url}{path}?{urlencode(query)}"
        reply = self._http.request(method, target, body=data, headers=headers)
        text = reply.data.decode()
        is_json = "json" in reply.headers.get("Content-Type", "") and "watch" not in query
        return Answer(reply.status, json.loads(text) if is_json else {}, dict(reply.headers), text)

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()


class Space:
    """The pods of one namespace."""

    def __init__(self, kube: Kube, name: str) -> None:
        self.kube, self.name = kube, name

    def path(self, *parts: str, resource: str = "pods") -> str:
        """The path of the pods, of one, or of one's subresource."""
        return "/".join([f"/api/v1/namespaces/{self.name}/{resource}", *parts])

    def make(self, name: str = "", command: list[str] | None = None, **spec: Any) -> Object:
        """Create a pod."""
        answer = self.kube.call("POST", self.path(), pod(name or f"p-{uuid.uuid4().hex[:8]}", command, **spec))
        assert answer.status == 201, answer.text
        return answer.body

    def read(self, name: str) -> Answer:
        """Get a pod."""
        return self.kube.call("GET", self.path(name))

    def names(self, **query: Any) -> list[str]:
        """The names in a list."""
        answer = self.kube.call("GET", self.path(), **query)
        assert answer.status == 200, answer.text
        return [each["metadata"]["name"] for each in answer.body["items"]]

    def version(self) -> str:
        """The list's resourceVersion."""
        version: str = self.kube.call("GET", self.path()).body["metadata"]["resourceVersion"]
        return version

    def patch(self, name: str, body: Object, kind: str = STRATEGIC) -> Answer:
        """Patch a pod, or with "name/status" its status."""
        return self.kube.call("PATCH", self.path(name), body, kind=kind)

    def delete(self, name: str, **options: Any) -> Answer:
        """Delete a pod with DeleteOptions."""
        return self.kube.call("DELETE", self.path(name), options or None)

    def watch(self, seconds: int = 1, **query: Any) -> list[tuple[str, Object]]:
        """All events of a watch that lasts so long, bookmarks left out."""
        answer = self.kube.call("GET", self.path(), watch=1, timeoutSeconds=seconds, **query)
        assert answer.status == 200, answer.text
        events = [json.loads(line) for line in answer.text.splitlines()]
        return [(event["type"], event["object"]) for event in events if event["type"] != "BOOKMARK"]

    def wait_phase(self, name: str, *phases: str) -> Object:
        """The pod, once it is in one of the phases."""

        def look() -> Object:
            found = self.read(name).body
            return found if found["status"]["phase"] in phases else {}

        return eventually(look)

    def wait_gone(self, name: str) -> None:
        """Return once there is no such pod."""
        eventually(lambda: self.read(name).status == 404)

    def log(self, name: str, **query: Any) -> Answer:
        """A pod's log."""
        return self.kube.call("GET", self.path(name, "log"), **query)
