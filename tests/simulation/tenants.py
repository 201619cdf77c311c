"""What must hold of tenants at every step of the simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ottoscaler.core.effects import CreatePod, DeleteOldPod
from ottoscaler.core.manifest import ANNOTATION_TENANT, pod_name
from ottoscaler.flow.owned_tasks import WorkerRun

if TYPE_CHECKING:
    from tests.simulation.audit import Audit
    from tests.simulation.replica import Replica


def check_share(audit: Audit, actor: Replica, run: WorkerRun, live: Sequence[str]) -> None:
    """A worker is about to create a pod. Its tenant has not as many workers as it may: those of the replica's own
    tasks, `live` or about to be there, count in any case.
    """
    tenant, pods = run.task.tenant, audit.kubernetes.pods
    most = audit.shares.of(tenant).max_workers
    there = [name for name in live if pods[name]["metadata"]["annotations"].get(ANNOTATION_TENANT) == tenant]
    coming = [
        pod_name(worker.run.key)
        for worker in actor.workers
        if worker.run is not run and worker.run.task.tenant == tenant
        and isinstance(worker.run.life.todo, CreatePod | DeleteOldPod) and pod_name(worker.run.key) not in pods
    ]  # fmt: skip
    if most and len(there) + len(coming) >= most:
        audit.complain(f"{pod_name(run.key)} is made, and {tenant} has {there}, with {coming} to come")
