"""The one watch thread: list, then watch from the list's version, publish every change, and begin again whenever the
link breaks.

It does no other I/O, runs no foreign callback and never waits for the pool. After a clean end it goes on from the last
version; after any error it lists again, since only a list shows what was missed.
"""

from __future__ import annotations

from typing import Final

from ottoscaler import logs
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, Unavailable, WatchExpired
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock, Cluster, PodList
from ottoscaler.retries import FIRST_PAUSE_S, MAX_PAUSE_S, Retries

#: A watch that ends sooner than this, seconds, for the second time in a row is followed by a pause, each longer than
#: the one before: otherwise a server that refuses the watch would get requests without a break.
SHORT_S: Final = 1.0

_log = logs.get(__name__)


class PodWatcher:
    """Keeps the registry up to date. `run` is the body of one thread."""

    def __init__(
        self, *, cluster: Cluster, registry: PodRegistry, retries: Retries, metrics: Metrics, stop: StopSignal,
        heartbeat: Heartbeat, clock: Clock,
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._registry = registry
        self._retries = retries
        self._metrics = metrics
        self._stop = stop
        self._heartbeat = heartbeat
        self._clock = clock
        self._version = ""  # empty: list again
        self._short = 0
        self._limited = logs.RateLimited()

    def run(self) -> None:
        """Until the stop. Raises Stopping."""
        while not self._stop.is_set():
            self.step()

    def step(self) -> None:
        """One list, or one watch from where the last one ended. Raises Stopping."""
        self._version = self._watch_once(self._version) if self._version else self._list()

    def _list(self) -> str:
        listed = self._retries.retry_forever("list pods", self._list_cluster)
        self._heartbeat.beat()
        self._registry.replace(listed)
        _log.info("watch.listed", "Watching %d worker pods", len(listed.pods), pods=len(listed.pods))
        return listed.resource_version

    def _list_cluster(self) -> PodList:
        self._registry.begin_list()
        try:
            return self._cluster.list()
        except ClusterRejected as error:
            # never for good: rights and namespaces come and go, and there is nothing better to do than to ask again
            raise ClusterUnavailable(str(error)) from error

    def _watch_once(self, version: str) -> str:
        """One watch, and the pause after one that was short. Two that end at once may not be the API server's: what
        there is then only a list shows.
        """
        began = self._clock.now()
        version = self._watch_from(version)
        self._short = self._short + 1 if self._clock.now() - began < SHORT_S else 0
        if self._short > 1:
            self._stop.wait(min(FIRST_PAUSE_S * 2.0 ** min(self._short - 2, 10), MAX_PAUSE_S))
            return ""
        return version

    def _watch_from(self, version: str) -> str:
        """Watch until the link ends. Returns the version to go on from, empty for "list again"."""
        try:
            for event in self._cluster.watch(version):
                self._heartbeat.beat()
                version = event.resource_version or version
                if event.pod is not None:
                    self._registry.publish(event.pod)
            self._metrics.watch_reconnects.inc("ended")
            self._heartbeat.beat()
            return version
        except WatchExpired:
            _log.info("watch.expired", "The watch's version is too old; listing again")
            self._metrics.watch_reconnects.inc("expired")
        except (Unavailable, ClusterRejected) as error:
            if not self._stop.is_set() and self._limited.is_due(str(error)):
                _log.warning("watch.broken", "The watch broke off; listing again", error=str(error))
            self._metrics.watch_reconnects.inc("unreachable")
            self._heartbeat.report_failure(f"the watch broke off: {error}")
        self._registry.mark_unknown()
        return ""
