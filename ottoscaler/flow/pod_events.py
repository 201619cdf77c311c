"""What the cluster says of a pod that no node takes: its Events, where the Role of the controller lets it list them."""

from __future__ import annotations

import threading

from ottoscaler import logs
from ottoscaler.core import observations
from ottoscaler.core.autoscaler import NO_FORECAST, node_forecast
from ottoscaler.core.effects import ListPodEvents
from ottoscaler.core.observations import Observation
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.ports import Cluster

_log = logs.get(__name__)


class PodEventsReader:
    """Carries out `ListPodEvents`. Any thread. Once the API server has refused it, this process does not ask again."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._may_list_events = True  # guarded by _lock

    def read(self, _run: WorkerRun, effect: ListPodEvents) -> Observation:
        """List the Events of the effect's pod."""
        if not self._may_list_events:
            return observations.PodEventsListed(NO_FORECAST)
        try:
            events = self._cluster.pod_events(effect.pod.uid)
        except ClusterRejected as error:
            # looked at and set in one step: several threads may have asked at once, and one line says all
            with self._lock:
                first, self._may_list_events = self._may_list_events, False
            if first:
                _log.warning(
                    "kubernetes.events_forbidden",
                    "May not list Events: a worker that no node takes ends after PENDING_TIMEOUT_S, also while an "
                    "autoscaler adds a node for it; allow `list` on `events` in the Role of the controller",
                    error=str(error),
                )  # fmt: skip
            return observations.PodEventsListed(NO_FORECAST)
        except ClusterUnavailable as error:
            # not tried again at once: a worker that waits for a node has time, and is asked about in a minute
            _log.debug("worker.events_unknown", "The Events of %s are not listed", effect.pod.name, error=str(error))
            return observations.PodEventsUnknown()
        return observations.PodEventsListed(node_forecast(events))
