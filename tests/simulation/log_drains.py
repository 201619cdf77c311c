"""The logs of workers in the simulation: a handler that answers soon, late or never, and what must hold.

Rounds are seconds in which every replica does what is due, and no request fails: after so many of them there is no
excuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Final

from ottoscaler.core.log_progress import LogCursor, LogProgress
from ottoscaler.flow.log_drain import RETRY_S
from tests.fakes.kubernetes import Pod, seen
from tests.simulation.audit import INSTANCE, Audit
from tests.simulation.kept import is_kept

if TYPE_CHECKING:
    from tests.simulation.replica import Replica
    from tests.simulation.world import World

#: LOG_DRAIN_S: more than a lease.
DRAIN_S: Final = 12
SETTINGS: Final = {"LOG_HANDLER_ADDRESS": "127.0.0.1:1", "LOG_DRAIN_S": DRAIN_S}
#: Whether the handler answers at once, only when a rule says so, or never.
HANDLERS: Final = ("prompt", "late", "away")
#: Rounds after which a replica that sees the end of a pod has recorded it, and has let go of its thread and its room.
DONE_ROUNDS: Final = 6
#: Rounds after which a recorded pod is gone: its process may have died, and another one waits for the log again.
GONE_ROUNDS: Final = 2 * DRAIN_S + int(RETRY_S) + 6


class SimulatedForwarder:
    """`ports.LogForwarder` of one replica. One thread."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.followed: dict[str, bool] = {}
        """UID -> whether its pod has ended."""
        self.ends: dict[str, float] = {}
        """UID -> when the rest of the log was asked for first, seconds."""

    def follow(self, progress: LogProgress, *, pod: str, task_id: str, node: str, labels: Mapping[str, str]) -> None:
        """See ports.LogForwarder."""
        self._replica.world.note(f"  {self._replica.name} follows the log of {pod}")
        self.followed[progress.uid] = False

    def pod_ended(self, uid: str) -> None:
        """See ports.LogForwarder."""
        if uid in self.followed:
            self.followed[uid] = True
            self.ends.setdefault(uid, self._replica.world.clock.now())

    def give_up(self, uid: str) -> None:
        """See ports.LogForwarder."""
        self.followed.pop(uid, None)

    def deliver(self, which: int) -> bool:
        """The handler acknowledges one log: so far, or to its end. Returns whether there was one."""
        if not self.followed:
            return False
        uid = sorted(self.followed)[which % len(self.followed)]
        drain = self._replica.log_drain
        if self.followed[uid]:
            del self.followed[uid]
            self._replica.world.log_audit.arrived.add(uid)
            self._replica.world.note(f"  {self._replica.name} has sent the log of {uid}")
            drain.log_ended(uid, True, 1, 0)
        else:
            drain.progressed(LogProgress(uid, LogCursor("2026-05-01T12:00:00Z", "ab", 1, ""), 1, 1))
        return True

    def deliver_ended(self) -> None:
        """The handler acknowledges all logs of pods that have ended."""
        for uid in [uid for uid, ended in self.followed.items() if ended]:
            self.deliver(sorted(self.followed).index(uid))


class LogAudit:
    """What must hold where logs are on. One thread."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self.arrived: set[str] = set()
        """UIDs of pods of which the handler has the whole log."""
        self._rounds: Counter[Hashable] = Counter()

    def check_deletion(self, pod: Pod) -> None:
        """A deletion of ours is about to be carried out: of a finished pod only when its log has arrived, or when the
        deleting replica has tried to send it for LOG_DRAIN_S. Of a late request nothing is said.
        """
        uid, snapshot, actor = pod["metadata"]["uid"], seen(pod, INSTANCE), self._audit.actor
        if actor is None or not snapshot.finished or snapshot.started_at is None or snapshot.deleting:
            return
        tried_s = self._audit.now() - actor.forwarder.ends.get(uid, self._audit.now())
        if uid not in self.arrived and tried_s < DRAIN_S and not self._audit.flushes:
            self._audit.complain(
                f"{snapshot.name} is deleted, and its log was sent for {tried_s} s and has not arrived"
            )

    def check_round(self, world: World) -> None:
        """Every replica has done what is due."""
        now: set[Hashable] = set()
        for replica in world.replicas:
            if replica.runs and replica.registry.is_known:
                now |= self._held_up(replica, world)
        for pod in world.kubernetes.pods.values():
            if self._is_left(pod, world):
                now.add(("it is not deleted", pod["metadata"]["name"]))
        self._rounds = Counter({one: self._rounds[one] + 1 for one in now})
        for (what, *names), rounds in self._rounds.items():  # type: ignore[misc]
            if rounds > (GONE_ROUNDS if what == "it is not deleted" else DONE_ROUNDS):
                self._audit.complain(f"a pod has finished for {rounds} s, and {what}: {names}")

    def interrupted(self) -> None:
        """Something went wrong, or stood still: rounds are counted from here on."""
        self._rounds.clear()

    def _held_up(self, replica: Replica, world: World) -> set[Hashable]:
        """Workers that are not done, and room that is held, of pods that this replica sees as ended."""
        found: set[Hashable] = set()
        for run in [run for task in replica.ledger.tasks for run in task.runs.values()]:
            pod = run.life.pod
            if pod is not None and pod.finished and run.task.event.event_id not in world.cursed:
                found.add(("its worker is not done", replica.name, pod.uid))
        live = len(self._audit.live_pods(replica))
        if replica.registry.owned_live_count > live and not replica.workers:
            found.add(("it uses room", replica.name, replica.registry.owned_live_count))
        return found

    def _is_left(self, pod: Pod, world: World) -> bool:
        """Is it finished and recorded, and has no one asked for its deletion?"""
        snapshot = seen(pod, INSTANCE)
        if not snapshot.finished or snapshot.deleting or is_kept(self._audit, snapshot):
            return False
        task = world.redis.find(snapshot.event_id)
        runs = any(replica.runs for replica in world.replicas)
        return runs and task is not None and bool(task.worker(snapshot.key.index).outcome)
