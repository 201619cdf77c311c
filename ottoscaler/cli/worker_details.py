"""What the status page shows of one worker when a viewer asks for it: when its image was pulled, and its last lines,
where logs are on. It reads the Kubernetes API; the log forwarder has no part in it.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from ottoscaler.adapters.worker_details import READ_BYTES, PodDetails
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from ottoscaler.settings import Settings

#: Lines that are shown, and bytes of each.
LINES: Final = 20
LINE_BYTES: Final = 500
#: How long a viewer waits while others are answered, seconds.
WAIT_S: Final = 3.0
_TEXT: Final = 500
LOGS_OFF: Final = "The page shows no log: the controller reads logs only where LOG_HANDLER_ADDRESS is set"


class WorkerDetails:
    """Any thread. One viewer is answered at a time: all of them together cost no more than one does."""

    def __init__(
        self,
        settings: Settings,
        pods: Callable[[], Mapping[str, PodSnapshot]],
        masks: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`pods` returns the pods that this process knows, by their names: no other is looked at. `masks`: the patterns
        of the policy in force.
        """
        self._settings = settings
        self._pods = pods
        self._masks = masks
        self._lock = threading.Lock()
        self._source: PodDetails | None = None  # guarded by _lock; opened for the first viewer

    def look(self, name: str) -> Mapping[str, Any] | None:
        """Of this pod: `pulled_at`, `pulled` (the kubelet's words), `lines` of its log, the newest last, and `note`,
        why there are none. None if this process knows no such pod. Raises ClusterUnavailable, ConfigError.
        """
        pod = self._pods().get(name)
        if pod is None:
            return None
        if not self._lock.acquire(timeout=WAIT_S):
            raise ClusterUnavailable("other viewers are being answered: ask again", unclear=False)
        try:
            source = self._source = self._source or PodDetails(self._settings.kube)
            return {**_pulled(source, pod), **self._log(source, name)}
        finally:
            self._lock.release()

    def _log(self, source: PodDetails, name: str) -> Mapping[str, Any]:
        if not self._settings.forwards_logs:
            return {"lines": [], "note": LOGS_OFF}
        try:
            return _last_lines(source, name, self._masks())
        except ClusterRejected as error:
            return {"lines": [], "note": str(error)[:_TEXT]}


def _pulled(source: PodDetails, pod: PodSnapshot) -> Mapping[str, str]:
    with suppress(ClusterRejected):  # a Role without Events: the step is left out
        if (pull := source.pull(pod.uid)) is not None:
            return {"pulled_at": pull.at, "pulled": pull.message[:_TEXT]}
    return {}


def _last_lines(source: PodDetails, name: str, masks: Sequence[str]) -> Mapping[str, Any]:
    # only now: where no one looks at a log, the controller imports nothing of the log forwarder
    last = importlib.import_module("ottoscaler.cli.last_lines").LastLines(masks, lines=LINES, line_bytes=LINE_BYTES)
    size = 0
    for chunk in source.log_end(name):
        size += len(chunk)
        last.feed(chunk)
    if size >= READ_BYTES:
        return {"lines": [], "note": f"The lines are too long to show: `logs` shows them (above {READ_BYTES} bytes)"}
    lines = last.finish()
    return {"lines": lines, "note": "" if lines else last.error or "The worker has written nothing yet"}
