"""Pods of failed workers that stay for inspection: which ones, since when, and which of them go.

A pod says itself for how long it stays (its annotation) and when it ended (its status). So every replica comes to the
same answer, also one that was started later, and nothing has to be written for it.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from ottoscaler.core.manifest import CONTAINER
from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.core.results import rfc3339
from ottoscaler.core.verdicts import Outcome


class KeptPod(msgspec.Struct, frozen=True):
    """A pod that stays, and since when: seconds of the process's own monotonic clock."""

    pod: PodSnapshot
    since: float

    def until(self, most_s: float) -> float:
        """When its time is over, by the same clock. `most_s`: no pod stays for longer, seconds."""
        return self.since + min(self.pod.keep_failed_s, most_s)


def may_stay(pod: PodSnapshot) -> bool:
    """Was it created to stay if its worker fails, and did it end by itself, not well, and is not being deleted?"""
    return pod.keep_failed_s > 0 and pod.phase is Phase.FAILED and not (pod.gone or pod.deleting)


def stays(pod: PodSnapshot, outcome: str) -> bool:
    """Does this pod stay, its worker having this recorded outcome?"""
    return outcome == Outcome.FAILED and may_stay(pod)


def ended_at(pod: PodSnapshot) -> float:
    """When it ended, seconds since the epoch by the API server's clock, as far as its times show: the node's clock is
    corrected by how far it is ahead. Where the kubelet gave no end, its creation.
    """
    if pod.finished_at is None:
        return pod.created_at or 0.0
    return pod.finished_at - pod.node_clock_ahead_s


def kept_note(pod: PodSnapshot, namespace: str, most_s: float) -> str:
    """Until when it stays, and how to look at it, for the message of its worker's result. `most_s`: no pod stays for
    longer, seconds.
    """
    until = rfc3339(ended_at(pod) + min(pod.keep_failed_s, most_s))
    return f"its pod stays until {until} at most: kubectl logs -n {namespace} {pod.name} -c {CONTAINER}"


def age_s(pod: PodSnapshot, wall_time: float, longest_s: float) -> float:
    """How long ago it ended, seconds, at the time `wall_time` (seconds since the epoch).

    `longest_s`: it cannot be longer, since the process did not see it before. Two clocks are compared here, which may
    be wrong, so what the process has seen itself wins over them.
    """
    return min(max(0.0, wall_time - ended_at(pod)), longest_s)


def surplus(kept: Collection[KeptPod], most: int) -> list[KeptPod]:
    """Those that are too many, the oldest first. By their own times: all replicas choose the same."""
    return sorted(kept, key=lambda one: (ended_at(one.pod), one.pod.name))[: max(0, len(kept) - most)]
