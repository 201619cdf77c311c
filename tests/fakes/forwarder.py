"""A log forwarder without a process: it notes what it is asked for, and tests say what the handler acknowledges."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ottoscaler.core.log_progress import LogProgress


class FakeForwarder:
    """`ports.LogForwarder`. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.followed: dict[str, LogProgress] = {}
        """UID -> the place from which on it was to be followed."""
        self.ended: list[str] = []
        self.given_up: list[str] = []
        self.asked: list[str] = []
        """All calls in their order, with the pod's UID."""

    def follow(self, progress: LogProgress, *, pod: str, task_id: str, node: str, labels: Mapping[str, str]) -> None:
        with self._lock:
            self.followed[progress.uid] = progress
            self.asked.append(f"follow {progress.uid}")

    def pod_ended(self, uid: str) -> None:
        with self._lock:
            self.ended.append(uid)
            self.asked.append(f"ended {uid}")

    def give_up(self, uid: str) -> None:
        with self._lock:
            self.given_up.append(uid)
            self.asked.append(f"give up {uid}")
