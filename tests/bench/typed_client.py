"""What one would write first: the Kubernetes client's own models, its own watch, and a thread for each pod.

Run by `peers.py` as a process: KUBECONFIG NAMESPACE SELECTOR BODY PREFIX PODS.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kubernetes import client, config, watch


class Naive:
    """One batch of pods. The ends are set by the watch thread, and waited for by one thread each."""

    def __init__(self, api: Any, namespace: str, selector: str, names: list[str]) -> None:
        self._api = api
        self._namespace = namespace
        self._selector = selector
        self._ends = {name: threading.Event() for name in names}

    def follow(self) -> None:
        """The shared watch."""
        listing = self._api.list_namespaced_pod(self._namespace, label_selector=self._selector, limit=1)
        threading.Thread(target=self._watch, args=(listing.metadata.resource_version,), daemon=True).start()

    def live(self, pod: Any) -> int:
        """Create a pod, wait for its end, delete it; returns how often the API server refused."""
        refusals = self._patient(lambda: self._api.create_namespaced_pod(self._namespace, pod))
        self._ends[pod.metadata.name].wait()
        return refusals + self._patient(lambda: self._api.delete_namespaced_pod(pod.metadata.name, self._namespace))

    def _watch(self, version: str) -> None:
        answer = watch.Watch().stream(
            self._api.list_namespaced_pod, self._namespace, label_selector=self._selector, resource_version=version
        )
        for event in answer:
            pod = event["object"]
            if pod.status.phase == "Succeeded" and pod.metadata.name in self._ends:
                self._ends[pod.metadata.name].set()

    def _patient(self, call: Callable[[], object]) -> int:
        refusals = 0
        while True:
            try:
                call()
                return refusals
            except client.ApiException as error:
                if error.status != 429:
                    raise
                refusals += 1
                threading.Event().wait(1)


def _typed(api: Any, body: dict[str, Any], name: str) -> Any:
    text = json.dumps({**body, "metadata": {**body["metadata"], "name": name}})
    return api.api_client.deserialize(text, "V1Pod", "application/json")


def main(kubeconfig: str, namespace: str, selector: str, body: str, prefix: str, pods: str) -> None:
    """Say `ready`, wait for a line, run the batch, report it, wait for the end of the input."""
    api: Any = client.CoreV1Api(config.new_client_from_config(config_file=kubeconfig))
    template = json.loads(Path(body).read_text(encoding="utf-8"))
    names = [f"{prefix}-{number}" for number in range(int(pods))]
    batch = [_typed(api, template, name) for name in names]
    naive = Naive(api, namespace, selector, names)
    naive.follow()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    with ThreadPoolExecutor(len(names)) as pool:
        refusals = sum(pool.map(naive.live, batch))
    fields = {"pods": len(names), "failed": 0, "refusals": refusals, "seconds": time.monotonic() - began}
    print(json.dumps(fields), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
