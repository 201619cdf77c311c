"""A kubelet for pods that no node has: it says Running of all of them, and, when so many run, Succeeded of all at once.

Nothing is run: only the status subresource is patched, so a thousand pods cost what the controller and the API server
make of them.
"""

from __future__ import annotations

import json
import queue
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import config

_PATCHERS = 8
_MERGE = {"Content-Type": "application/merge-patch+json", "Accept": "application/json"}


class FakeKubelet:
    """Watches one namespace. `start` and `close` belong to one thread; the counts may be read by any."""

    def __init__(self, kubeconfig: Path, namespace: str, release_at: int) -> None:
        self._api: Any = config.new_client_from_config(config_file=str(kubeconfig))
        self._api.rest_client.pool_manager.connection_pool_kw["maxsize"] = _PATCHERS + 2
        self._pods = f"{self._api.configuration.host}/api/v1/namespaces/{namespace}/pods"
        self._release_at = release_at
        self._todo: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: list[str] = []  # guarded by _lock
        self._ended = 0  # guarded by _lock
        self._seen: set[str] = set()  # the watch thread's own
        self._response: Any = None
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._watch, name="fake-watch", daemon=True)]
        self._threads += [threading.Thread(target=self._work, name=f"fake-{n}", daemon=True) for n in range(_PATCHERS)]

    @property
    def running(self) -> int:
        """Pods that were said to run, ever."""
        with self._lock:
            return len(self._running)

    @property
    def ended(self) -> int:
        """Pods that were said to have ended."""
        with self._lock:
            return self._ended

    def start(self) -> None:
        """Take up pods from now on."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Leave the pods as they are."""
        self._stopping.set()
        if self._response is not None:
            with suppress(OSError, ValueError, RuntimeError):
                self._response.shutdown()
        for _ in range(_PATCHERS):
            self._todo.put(None)
        for thread in self._threads:
            thread.join(10)
        self._api.close()

    def _request(self, method: str, url: str, **options: Any) -> Any:
        return self._api.rest_client.pool_manager.request(method, url, retries=False, **options)

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                url = f"{self._pods}?watch=true&timeoutSeconds=300"
                self._response = self._request("GET", url, preload_content=False, timeout=urllib3.Timeout(3, 310))
                self._follow(self._response)
            except (urllib3.exceptions.HTTPError, OSError):
                continue
            except (AttributeError, ValueError):  # what is read from a response that was shut meanwhile
                if not self._stopping.is_set():
                    raise

    def _follow(self, response: Any) -> None:
        rest = b""
        for chunk in response.stream(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                pod = json.loads(line)["object"]
                if pod["kind"] == "Pod" and pod["metadata"]["uid"] not in self._seen:
                    self._seen.add(pod["metadata"]["uid"])
                    self._todo.put((pod["metadata"]["name"], "Running"))

    def _work(self) -> None:
        while (job := self._todo.get()) is not None and not self._stopping.is_set():
            name, phase = job
            body = json.dumps({"status": pod_status(phase)}).encode()
            # longer than any test has the API server stopped
            response = self._request("PATCH", f"{self._pods}/{name}/status", body=body, headers=_MERGE, timeout=60)
            assert response.status in (200, 404), response.data
            self._note(name, phase)

    def _note(self, name: str, phase: str) -> None:
        released: list[str] = []
        with self._lock:
            if phase == "Running":
                self._running.append(name)
                if len(self._running) == self._release_at:
                    released = list(self._running)
            else:
                self._ended += 1
        for each in released:
            self._todo.put((each, "Succeeded"))


def pod_status(phase: str) -> dict[str, Any]:
    """What a kubelet writes of a pod of one container that is in this phase."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
    state = {"running": {"startedAt": now}} if phase == "Running" else {"terminated": ended}
    container = {"name": "agent", "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"phase": phase, "conditions": [scheduled], "containerStatuses": [container]}
