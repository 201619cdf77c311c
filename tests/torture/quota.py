"""A quota that leaves no room for a while: the API server refuses every pod, and says so.

The controller that counts what is used is not part of this cluster, so its word is written here as well.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from kubernetes import client, config

_NAME = "none"


class Quota:
    """Exhausted now and then. One thread, and only while the API server is up."""

    def __init__(self, kubeconfig: Path, namespace: str, dice: random.Random) -> None:
        self._api: Any = client.CoreV1Api(config.new_client_from_config(config_file=str(kubeconfig)))
        self._namespace = namespace
        self._dice = dice
        self._until: float | None = None
        self.times = 0
        """How often there was no room."""

    def tick(self, wanted: float) -> None:
        """Give room again if it is time, or take it if that was done less than `wanted` times."""
        if self._until is not None:
            if time.monotonic() >= self._until:
                self.clear()
        elif self.times < int(wanted):
            self._exhaust()

    def clear(self) -> None:
        """Room for all pods; idempotent."""
        if self._until is not None:
            self._until = None
            self._api.delete_namespaced_resource_quota(_NAME, self._namespace, _preload_content=False)

    def close(self) -> None:
        """Close the connection; the quota stays as it is."""
        self._api.api_client.close()

    def _exhaust(self) -> None:
        none = {"pods": "0"}
        body = {"metadata": {"name": _NAME}, "spec": {"hard": none}}
        self._api.create_namespaced_resource_quota(self._namespace, body, _preload_content=False)
        self._until = time.monotonic() + self._dice.uniform(1, 3)
        self.times += 1
        status = {"status": {"hard": none, "used": none}}
        self._api.patch_namespaced_resource_quota_status(_NAME, self._namespace, status, _preload_content=False)
