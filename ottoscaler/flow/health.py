"""What the probes say: is the process to be restarted (`/livez`), and is it of use (`/readyz`)?

`/livez` is red when a loop has given no sign of life for FROZEN_S. A failed try is one, so an outage of Redis or of the
API server, however long, restarts no process; a thread that hangs does. A sign of life is an iteration, a failed try
that was handled, or the answer to a call inside an iteration (one pass of the reconciler over a thousand pods with a
slow server is long).

`/readyz` is red while the process starts or stops; when the last call to Redis or to the API server failed; when a loop
has only failed for FAILING_S (a server that answers, and refuses just this); and when there has been work for STUCK_S
while no worker got a step further. Work is a worker that would be given a thread now (so there is a thread, room below
MAX_WORKERS, and the cluster's state is known), or a worker that holds a thread and does not wait for its pod. So a
process is ready if it is idle, if all its pods run, and if it waits for a quota: its workers have given their threads
back until their next try. Unread and unaccepted entries need no rule of their own: a reader that comes round has read
all that there is room for, one that fails is failing, one that hangs is frozen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ottoscaler.core.results import rfc3339
from ottoscaler.flow.heartbeat import HealthFinding, Heartbeat
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.registry import PodRegistry

#: Longer than the longest wait of any loop: a silent watch is noticed after 43 s.
FROZEN_S: Final = 60.0
#: One cut connection is no outage.
FAILING_S: Final = 10.0
#: Longer than all tries of the longest call of a worker.
STUCK_S: Final = 120.0


class Health:
    """Looks at the signs of life. Any thread; does no I/O."""

    def __init__(self, heartbeat: Heartbeat, ledger: Ledger, registry: PodRegistry) -> None:
        self._heartbeat = heartbeat
        self._ledger = ledger
        self._registry = registry

    def livez(self) -> list[str]:
        """Why the process should be restarted, one line each; empty: it should not."""
        return _finding_lines(frozen(self._heartbeat.ages()))

    def readyz(self) -> list[str]:
        """Why the process is of no use now, one line each; empty: it is."""
        busy, waiting = self._ledger.thread_counts()
        held = busy - self._registry.awaiting_count
        stalled = self._heartbeat.stalled_for(self._ledger.takeable() or held > 0)
        phase = self._heartbeat.idle_phase()
        findings = [*phase, *self._heartbeat.unreachable(), *failing(self._heartbeat.failing())]
        return _finding_lines([*findings, *([] if phase else stuck(stalled, waiting, held))])


def frozen(ages: Iterable[HealthFinding]) -> list[HealthFinding]:
    """The loops without a recent sign of life."""
    return [
        HealthFinding(f"loop {age.what}", "no sign of life", age.since, age.lasted_s)
        for age in ages
        if age.lasted_s > FROZEN_S
    ]


def failing(misses: Iterable[HealthFinding]) -> list[HealthFinding]:
    """The loops that have only failed for too long."""
    return [
        HealthFinding(f"loop {miss.what}", miss.reason, miss.since, miss.lasted_s)
        for miss in misses
        if miss.lasted_s > FAILING_S
    ]


def stuck(stalled: HealthFinding, waiting: int, held: int) -> list[HealthFinding]:
    """There is work, and no worker makes progress."""
    if stalled.lasted_s <= STUCK_S:
        return []
    reason = f"nothing moves, with {waiting} waiting for a thread and {max(held, 0)} that hold one and wait for no pod"
    return [HealthFinding(stalled.what, reason, stalled.since, stalled.lasted_s)]


def _finding_lines(findings: Iterable[HealthFinding]) -> list[str]:
    return [" ".join(f"{each.what}: {each.reason}, since {rfc3339(each.since)}".split()) for each in findings]
