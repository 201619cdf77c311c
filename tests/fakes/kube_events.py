"""Kubernetes Events in memory: passes the same contract as the API server (tests/adapters/test_kube_events.py)."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

from ottoscaler.errors import ClusterRejected, ClusterUnavailable


class FakeKubeEvents:
    """`ports.KubeEvents`; any thread. A test may take the server or the right away, and forgets Events as etcd does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, str] = {}
        self.calls: list[str] = []
        self.missing: list[str] = []
        self.away = 0
        """So many calls are not answered."""
        self.lost_answers = 0
        """So many calls are carried out and not answered."""
        self.forbidden = False

    def create(self, name: str, body: bytes) -> None:
        with self._called("create"):
            self.events.setdefault(name, json.loads(body))
            self._lose()

    def patch(self, name: str, body: bytes) -> bool:
        with self._called("patch"):
            if name not in self.events:
                return False
            self.events[name] |= json.loads(body)
            self._lose()
            return True

    def pod_uid(self, name: str) -> str:
        with self._called("get"):
            return self.pods.get(name, "")

    def missing_rights(self) -> Sequence[str]:
        return self.missing

    def shown(self) -> list[tuple[str, str, int]]:
        """Pod, reason and count of each Event."""
        with self.lock:
            return [(one["involvedObject"]["name"], one["reason"], one["count"]) for one in self.events.values()]

    def _called(self, what: str) -> threading.Lock:
        with self.lock:
            self.calls.append(what)
            if self.forbidden:
                raise ClusterRejected("events is forbidden: cannot create", status=403, reason="Forbidden")
            if self.away:
                self.away -= 1
                raise ClusterUnavailable("the API server is away")
        return self.lock

    def _lose(self) -> None:
        if self.lost_answers:
            self.lost_answers -= 1
            raise ClusterUnavailable("the answer is lost")
