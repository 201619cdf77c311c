"""What must hold in the simulation of the pods that stay for inspection."""

from __future__ import annotations

from typing import Final

from ottoscaler.core.kept_pods import may_stay
from ottoscaler.core.pods import PodSnapshot
from tests.fakes.kubernetes import Pod, seen
from tests.simulation.audit import INSTANCE, Audit

#: As many may stay.
MOST: Final = 1


def check_deletion(audit: Audit, pod: Pod) -> None:
    """A deletion of ours is about to be carried out: of a kept pod only when its time is over, or there are too many.

    By what the replica sees: it may not have seen yet that others are gone. Of a late request nothing is said.
    """
    snapshot, actor = seen(pod, INSTANCE), audit.actor
    if actor is None or not is_kept(audit, snapshot) or snapshot.finished_at is None:
        return
    stayed_s = audit.now() - snapshot.finished_at
    there = [one.name for one in actor.registry.snapshots() if may_stay(one)]
    if stayed_s < snapshot.keep_failed_s and len(there) <= MOST:
        wanted = f"of {snapshot.keep_failed_s} s, and only {there} are there"
        audit.complain(f"{snapshot.name} is deleted after {stayed_s} s {wanted}")


def check_number(audit: Audit) -> None:
    """Every replica has had time to look round: there are not more than may stay."""
    kept = [one.name for pod in audit.kubernetes.pods.values() if is_kept(audit, one := seen(pod, INSTANCE))]
    if len(kept) > MOST:
        audit.complain(f"{kept} stay, and at most {MOST} may")


def is_kept(audit: Audit, pod: PodSnapshot) -> bool:
    """Does it stay for inspection?"""
    task = audit.redis.find(pod.event_id)
    if task is None or not may_stay(pod):
        return False
    worker = task.worker(pod.key.index)
    return worker.outcome == "failed" and worker.attempt == pod.key.attempt
