"""Says that another process has taken over a task, the same wherever this process finds out."""

from __future__ import annotations

from ottoscaler import logs
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, lease_lost_event
from ottoscaler.metrics import Metrics

_log = logs.get(__name__)


def report_loss(metrics: Metrics, event_id: str, new_owner: str, record_event: RecordKubeEvent) -> None:
    """Log and count a task of ours that `new_owner` has now."""
    metrics.lease_losses.inc()
    _log.warning("task.lost", "Task %s was taken over by %s", event_id, new_owner, event_id=event_id)
    record_event(lease_lost_event(event_id, new_owner))
