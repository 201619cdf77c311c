"""What every part of the flow may need of the rest: put together once by the composition root, and handed to all."""

from __future__ import annotations

from dataclasses import dataclass

from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.registry import Registry
from ottoscaler.flow.stop import Stop
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock, Cluster, Stream
from ottoscaler.retries import Retries
from ottoscaler.settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """The ports, the two shared states and the tools of one controller. Immutable: any thread."""

    settings: Settings
    stream: Stream
    cluster: Cluster
    registry: Registry
    ledger: Ledger
    retries: Retries
    stop: Stop
    clock: Clock
    metrics: Metrics
    heartbeat: Heartbeat

    @property
    def lease_s(self) -> float:
        """LEASE_S, in seconds."""
        return float(self.settings.flow.lease_s)
