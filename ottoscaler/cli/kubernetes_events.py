"""Puts together what writes Kubernetes Events, where that is on. Otherwise nothing of it is imported, and no thread
runs.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable
from typing import Final

from ottoscaler.cli.namespace import own_namespace
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, record_nothing
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock
from ottoscaler.settings import Settings

THREAD: Final = "events"


class KubernetesEvents:
    """The recorder of Kubernetes Events. The main thread's own."""

    def __init__(self, settings: Settings, *, stop: StopSignal, metrics: Metrics, clock: Clock) -> None:
        """Raises ConfigError if there is no way to a cluster."""
        self.record: RecordKubeEvent = record_nothing
        self._run: Callable[[], None] | None = None
        self._close: Callable[[], None] = lambda: None
        self._stop = stop
        if not settings.kube.events:
            return
        # by name, so that a controller without Events pays nothing for them
        adapter = importlib.import_module("ottoscaler.adapters.kube_events")
        flow = importlib.import_module("ottoscaler.flow.event_recorder")
        api = adapter.KubeEventsApi(settings.kube, metrics.count_kube_request)
        # An Event is in the namespace of its object, and the Role reaches no other than that of the workers. A pod's
        # host name is its name.
        own_pod = socket.gethostname() if own_namespace() == settings.kube.namespace else ""
        recorder = flow.EventRecorder(
            api=api, stop=stop, metrics=metrics, clock=clock, namespace=settings.kube.namespace,
            instance=settings.keys.consumer, own_pod=own_pod,
        )  # fmt: skip
        self.record, self._run, self._close = recorder.record, recorder.run, api.close

    def begin(self) -> None:
        """Start the thread, if there is one. It is no loop of /livez: without Events all else goes on."""
        if self._run is not None:
            self._stop.spawn(THREAD, self._run)

    def close(self) -> None:
        """From now on nothing is written."""
        self._close()
