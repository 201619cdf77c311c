"""The node's Kubernetes Events: what ``kubectl describe pod`` shows.
Only the newest are kept; a real cluster drops them after an hour.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque

from ottoscaler.local.objects import ApiError, Object, timestamp
from ottoscaler.local.store import Store

_KEPT = 2000


class EventRecorder:
    """Writes Events about pods. Every method may be called by any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._keys: deque[tuple[str, str]] = deque()

    def add(self, pod: Object, kind: str, reason: str, message: str) -> None:
        """Record that something happened to a pod; kind is Normal or Warning."""
        metadata, now = pod["metadata"], timestamp()
        name = f"{metadata['name'][:200]}.{uuid.uuid4().hex[:16]}"
        about = {
            "kind": "Pod",
            "apiVersion": "v1",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        event: Object = {"metadata": {"name": name, "namespace": metadata["namespace"]}, "involvedObject": about}
        event |= {
            "type": kind,
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
        }
        event["source"] = {
            "component": "default-scheduler" if reason.endswith(("Scheduled", "Scheduling")) else "kubelet"
        }
        try:
            self._store.create("events", event)
        except ApiError:  # the namespace is gone
            return
        with self._lock:
            self._keys.append((metadata["namespace"], name))
            oldest = self._keys.popleft() if len(self._keys) > _KEPT else None
        if oldest is not None and self._store.find("events", *oldest):
            self._store.delete("events", oldest)
