"""A kubelet for pods that no node has, led by the test: it says Running of each, and ends each when its time is over.

Nothing is run. How long a pod runs, in seconds, is the passed-on field `run_s` of its event; without one it runs until
`end_all`. Only the status subresource is patched.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import config

from tests.e2e.fakekubelet import pod_status

_PATCHERS = 4
_MERGE = {"Content-Type": "application/merge-patch+json", "Accept": "application/json"}
_FOR_EVER = 1e9


class PodStatusWriter:
    """Watches one namespace. `start` and `close` belong to one thread; the rest may be asked by any."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._api: Any = config.new_client_from_config(config_file=str(kubeconfig))
        self._api.rest_client.pool_manager.connection_pool_kw["maxsize"] = _PATCHERS + 2
        self._pods = f"{self._api.configuration.host}/api/v1/namespaces/{namespace}/pods"
        self._changed = threading.Condition()
        self._due: list[tuple[float, str, str, float]] = []  # guarded by _changed: when, phase, name, how long it runs
        self._live: dict[str, str] = {}  # guarded by _changed: UID -> name of pods that are there and have not ended
        self._peak = 0  # guarded by _changed
        self._ending = self._closed = False  # guarded by _changed
        self._seen: set[str] = set()  # the watch thread's own
        self._response: Any = None
        self._threads = [threading.Thread(target=self._watch, name="hands-watch", daemon=True)]
        self._threads += [threading.Thread(target=self._work, name=f"hands-{n}", daemon=True) for n in range(_PATCHERS)]

    @property
    def live(self) -> int:
        """Pods that are there and have not ended, as this watch of its own saw them."""
        with self._changed:
            return len(self._live)

    @property
    def peak(self) -> int:
        """The most of them that there ever were."""
        with self._changed:
            return self._peak

    def start(self) -> None:
        """Take up pods from now on."""
        for thread in self._threads:
            thread.start()

    def end_all(self) -> None:
        """Let all that run, and all that come, end well now."""
        with self._changed:
            self._ending = True
            self._due = [(0.0, *rest) for _, *rest in self._due]  # type: ignore[misc]
            heapq.heapify(self._due)
            self._changed.notify_all()

    def close(self) -> None:
        """Leave the pods as they are."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._response is not None:
            with suppress(OSError, ValueError, RuntimeError):
                self._response.shutdown()
        for thread in self._threads:
            thread.join(10)
        self._api.close()

    def _watch(self) -> None:
        while not self._closed:
            # a ValueError is what urllib3 makes of a chunk that `close` has cut
            with suppress(urllib3.exceptions.HTTPError, OSError, ValueError):
                url = f"{self._pods}?watch=true&timeoutSeconds=300"
                timeout = urllib3.Timeout(3, 310)
                self._response = self._request("GET", url, preload_content=False, timeout=timeout)
                self._follow(self._response)

    def _follow(self, response: Any) -> None:
        rest = b""
        for chunk in response.stream(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if answer["object"]["kind"] == "Pod":
                    self._note(answer["type"], answer["object"])

    def _note(self, kind: str, pod: dict[str, Any]) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        with self._changed:
            if kind == "DELETED" or pod["status"].get("phase") in ("Succeeded", "Failed"):
                self._live.pop(uid, None)
            else:
                self._live[uid] = name
                self._peak = max(self._peak, len(self._live))
            if uid in self._seen:
                return
            self._seen.add(uid)
            heapq.heappush(self._due, (0.0, "Running", name, _run_s(pod)))
            self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            _, phase, name, run_s = job
            body = json.dumps({"status": pod_status(phase)}).encode()
            with suppress(urllib3.exceptions.HTTPError, OSError):
                self._request("PATCH", f"{self._pods}/{name}/status", body=body, headers=_MERGE, timeout=20)
            if phase == "Running":
                self._end_later(name, run_s)

    def _end_later(self, name: str, run_s: float) -> None:
        with self._changed:
            at = 0.0 if self._ending else time.monotonic() + run_s
            heapq.heappush(self._due, (at, "Succeeded", name, run_s))
            self._changed.notify_all()

    def _next(self) -> tuple[float, str, str, float] | None:
        with self._changed:
            while not self._closed:
                wait_s = self._due[0][0] - time.monotonic() if self._due else 60.0
                if wait_s <= 0:
                    return heapq.heappop(self._due)
                self._changed.wait(min(wait_s, 60.0))
        return None

    def _request(self, method: str, url: str, **options: Any) -> Any:
        return self._api.rest_client.pool_manager.request(method, url, retries=False, **options)


def _run_s(pod: dict[str, Any]) -> float:
    variables = pod["spec"]["containers"][0].get("env", [])
    return next((float(each["value"]) for each in variables if each["name"] == "OTTO_RUN_S"), _FOR_EVER)
