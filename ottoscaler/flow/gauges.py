"""The figures that a scrape reads: how the tasks, workers, threads and loops of this process stand.

A scrape must neither wait nor cost what grows with the work: no source does I/O, and each holds a lock only to copy
references.
"""

from __future__ import annotations

from collections import Counter

from ottoscaler.flow.control import ScaleDownProcessor
from ottoscaler.flow.heartbeat import KUBERNETES, REDIS, Heartbeat
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.metrics import Metrics

_SERVERS = {"redis": REDIS, "kubernetes": KUBERNETES}


class Gauges:
    """Reads them. Any thread; `register` is called once."""

    def __init__(
        self, *, ledger: Ledger, registry: PodRegistry, heartbeat: Heartbeat, control: ScaleDownProcessor
    ) -> None:
        self._ledger = ledger
        self._registry = registry
        self._heartbeat = heartbeat
        self._control = control

    def register(self, metrics: Metrics) -> None:
        """From now on a scrape reads them here."""
        registry, ledger = self._registry, self._ledger
        metrics.register_gauges(
            live_pods=lambda: registry.owned_live_count,
            ready_workers=lambda: ledger.thread_counts()[1],
            cluster_known=lambda: registry.is_known,
            leases_held=lambda: len(ledger.tasks.owners()) + len(self._control.owners()),
        )
        metrics.register_sources(
            tasks=self.tasks, workers=self.workers, worker_codes=self.worker_codes, pool_threads=self.pool_threads,
            servers_up=self.servers_up, loop_idle=self.loop_idle,
        )  # fmt: skip

    def tasks(self) -> dict[str, float]:
        """Open scale_up tasks by state."""
        return dict(Counter(state for state, _, _ in self._ledger.tasks.snapshot()))

    def workers(self) -> dict[str, float]:
        """Unfinished workers by state; one that has not had its turn is waiting."""
        counts: Counter[str] = Counter()
        for _, fresh, runs in self._ledger.tasks.snapshot():
            counts["waiting"] += fresh
            counts.update(run.state for run in runs)
        return dict(counts)

    def worker_codes(self) -> dict[str, float]:
        """The same by code."""
        return {code: float(count) for code, count in self._ledger.tasks.counts_by_code().items()}

    def pool_threads(self) -> dict[str, float]:
        """Threads that carry a worker on, by what they do."""
        busy, awaiting = self._ledger.thread_counts()[0], self._registry.awaiting_count
        # two looks: a thread may have let go of its worker in between
        return {"working": max(0, busy - awaiting), "awaiting_pod": min(awaiting, busy)}

    def servers_up(self) -> dict[str, float]:
        """1 for each server that answered the last call."""
        down = {finding.what for finding in self._heartbeat.unreachable()}
        return {label: float(name not in down) for label, name in _SERVERS.items()}

    def loop_idle(self) -> dict[str, float]:
        """Seconds since each loop's last sign of life."""
        return {age.what: age.lasted_s for age in self._heartbeat.ages()}
