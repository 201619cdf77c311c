"""The world of the simulation: time, Redis, Kubernetes, kubelets, users, bad luck, and the controllers in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from ottoscaler.core.shares import Share, Shares
from ottoscaler.errors import OttoscalerError
from tests.fakes.clock import ManualClock
from tests.fakes.node import NodeControls
from tests.simulation.audit import Audit
from tests.simulation.kept import MOST, check_number
from tests.simulation.links import NOTHING, Mishap, Move
from tests.simulation.log_drains import SETTINGS as LOG_SETTINGS
from tests.simulation.log_drains import LogAudit
from tests.simulation.replica import ROLES, Replica
from tests.simulation.servers import AuditedKubernetes, AuditedRedis

TTL_S: Final = 3600
SETTINGS: Final = {
    "LEASE_S": 6,
    "READ_AHEAD": 2,
    "TASK_TTL_S": TTL_S,
    "IMAGE_PULL_GRACE_S": 5,
    "INFRA_RETRIES": 2,
    "WORKER_RETRIES": 1,
    "KEEP_FAILED_MAX": MOST,
    "TENANT_FIELD": "team",
}
#: Live workers that tenant a may have, of one replica's tasks; those of the other replicas may be unseen.
SHARES: Final = Shares(named={"a": Share(max_workers=1)})
#: Limits that end many a worker, and none that could help a replica that receives nothing any more.
STRICT: Final = {"PENDING_TIMEOUT_S": 40, "WORKER_DEADLINE_S": 60}
PATIENT: Final = {"PENDING_TIMEOUT_S": 1_000_000, "WORKER_DEADLINE_S": 0}
#: Steps of the clock, seconds: between two renewals, beyond a pause, a lease, a grace, a deadline.
STEPS_S: Final = (1, 2, 3, 7, 10, 31, 61, 125)
#: What may be asked of `act`, apart from the roles of a controller.
HAPPENINGS: Final = (
    *ROLES,
    "worker",
    "worker",
    "workers",
    "kubelet",
    "luck",
    "clock",
    "deliver",
    "bustle",
    "live",
    "live",
    "live",
)
#: For how long pods of failed workers stay in some worlds, seconds: over several leases.
KEEP_S: Final = 40
#: Rounds after which every replica has looked round.
LOOKED_ROUND: Final = 20
#: Rounds after which everything must have come to its end.
ROUNDS: Final = 400
MAX_REPLICAS: Final = 4


class World(NodeControls):
    """Everything. One thread, that of the test."""

    def __init__(
        self, *, max_workers: int, patient: bool, max_pending: int = 0, keep: bool = False, handler: str = ""
    ) -> None:
        """`handler`: how the log handler answers (log_drains.py); without it logs are off."""
        self.clock = ManualClock()
        self.audit = Audit(self.clock, max_workers, TTL_S, max_pending, SHARES)
        self.redis = AuditedRedis(self.clock, self.audit, task_ttl_s=TTL_S)
        self.kubernetes = self.server = AuditedKubernetes(self.clock, self.audit)
        self.handler, self.log_audit = handler, LogAudit(self.audit)
        self.kubernetes.log_audit = self.log_audit if handler else None
        self.audit.redis, self.audit.kubernetes = self.redis, self.kubernetes
        self.kube_down = False
        self.cursed: set[str] = set()
        self.late: list[tuple[str, Callable[[], Any]]] = []
        self.replicas: list[Replica] = []
        limits = PATIENT if patient else STRICT
        chosen = {**SETTINGS, **limits, "MAX_WORKERS": max_workers, "MAX_PENDING": max_pending}
        if keep:  # one failure is enough then, for a pod to stay
            chosen |= {"KEEP_FAILED_S": KEEP_S, "WORKER_RETRIES": 0}
        if handler:
            chosen |= LOG_SETTINGS
        self._environ = {name: str(value) for name, value in chosen.items()}
        self._boots = 0
        self._plan: list[Mishap] = []
        self._requests: Counter[str] = Counter()

    # -- what links ask

    def next_mishap(self, kind: str) -> Mishap:
        """What happens to the next request, which is of that kind."""
        self._requests.update((kind, "*"))
        due = next((one for one in self._plan if self._requests[one.kind] == one.at and one.kind in (kind, "*")), None)
        if due is None:
            return NOTHING
        self._plan.remove(due)
        return due

    def meanwhile(self, moves: Sequence[Move]) -> None:
        """Others act, while a replica waits for an answer; nothing happens to their requests."""
        with self.mishaps(()):
            for move in moves:
                self.act(move)

    @contextmanager
    def acting(self, replica: Replica | None) -> Iterator[None]:
        """Requests within come from this replica."""
        before, self.audit.actor = self.audit.actor, replica
        try:
            yield
        finally:
            self.audit.actor = before

    def hold(self, replica: Replica, name: str, request: Callable[[], Any]) -> None:
        """Keep a request in the network."""
        self.late.append((f"{replica.name} {name}", request))

    def pass_by(self) -> None:
        """A second passes, in which pods get on, and are seen to."""
        self.clock.advance(1)
        self.kubelets()
        for role in ("watch", "lease", "takeover"):
            for replica in list(self.replicas):
                replica.act(role)

    def note(self, line: str) -> None:
        """For a person who has to find out what happened."""
        self.audit.note(line)

    def complain(self, fault: str) -> None:
        """Something that must not be."""
        self.audit.complain(fault)

    # -- what rules do

    @contextmanager
    def mishaps(self, planned: Sequence[Mishap]) -> Iterator[None]:
        """What happens to the requests of what is done within, counted from now."""
        before = self._plan, self._requests
        self._plan, self._requests = list(planned), Counter()
        try:
            yield
        finally:
            self._plan, self._requests = before

    def act(self, move: Move) -> None:
        """Let something happen."""
        kind, who, how = move
        replica = self._running(who)
        if kind in (*ROLES, "log_drain") and replica is not None:
            self.note(f"  {replica.name} {kind}")
            replica.act(kind)
        elif kind == "worker" and replica is not None:
            replica.work(how)
        elif kind == "workers" and replica is not None:
            for _ in range(len(replica.workers)):
                replica.work(how)
        elif kind == "kubelet":
            self.kubelet(who, how)
        elif kind == "luck":
            self.luck(who, how)
        elif kind == "clock":
            self.pass_time(STEPS_S[how % len(STEPS_S)])
        elif kind == "deliver":
            self.deliver(who)
        elif kind == "bustle":
            self.bustle()
        elif kind == "live":
            self.live(how + 1, pods=who % 2 == 0)
        elif kind in ("crash", "stop") and replica is not None:
            replica.kill() if kind == "crash" else replica.shut_down()
        elif kind == "start":
            self.start(who)

    def deliver_log(self, who: int, which: int) -> None:
        """The handler acknowledges a log that a replica sends, unless it is away."""
        replica = self._running(who)
        if replica is not None and self.handler != "away":
            replica.forwarder.deliver(which)

    def _running(self, who: int) -> Replica | None:
        running = [replica for replica in self.replicas if replica.runs]
        return running[who % len(running)] if running else None

    def start(self, who: int) -> None:
        """Another incarnation of a consumer. If the one before still runs, there are two: the older has to notice."""
        if sum(replica.alive for replica in self.replicas) >= MAX_REPLICAS:
            return
        self._boots += 1
        replica = Replica(self, f"c{who % 3}", self._boots, self._environ)
        self.note(f"{replica.name} starts")
        self.replicas = [old for old in self.replicas if old.alive] + [replica]
        self.audit.replicas = self.replicas

    def pass_time(self, seconds: int) -> None:
        """Time passes, in which no replica does anything."""
        self.note(f"{seconds} s pass")
        self.clock.advance(seconds)

    def servers(self, what: str) -> None:
        """A server is away, is back, answers from a stale cache, or forgets the watched past."""
        self.note(what)
        if "lists" in what:
            self.kubernetes.freeze_lists() if what == "stale lists" else self.kubernetes.thaw_lists()
        elif what == "410":
            self.kubernetes.compact()
        elif "Redis" in what:
            self.redis.set_down(what == "no Redis")
        else:
            self.kube_down = what == "no Kubernetes"

    def deliver(self, which: int) -> None:
        """A request that its sender has given up arrives; its answer is lost."""
        if not self.late or self.redis.down:
            return
        name, request = self.late.pop(which % len(self.late))
        self.note(f"late: {name}")
        with self.acting(None), suppress(OttoscalerError):  # it may well be refused
            request()

    def bustle(self, *, all_workers: bool = True) -> None:
        """Every replica does what is to be done, in turn."""
        for replica in list(self.replicas):
            for role in replica.roles:
                replica.act(role)
            for which in range(2 * len(replica.workers) + 1 if all_workers else 1):
                replica.work(which)

    def live(self, seconds: int, *, pods: bool) -> None:
        """Time passes as it should: every replica does what is due, each second; and the pods get on, or do not."""
        self.note(f"{seconds} s of life")
        for _ in range(seconds):
            self.bustle()
            if pods:
                self.kubelets()
            self._live_with_logs()
            self.clock.advance(1)

    def _live_with_logs(self) -> None:
        if not self.handler:
            return
        for replica in self.replicas:
            if self.handler == "prompt" and replica.runs:
                replica.forwarder.deliver_ended()
        if self._plan or self.kube_down or self.redis.down:
            self.log_audit.interrupted()
        self.log_audit.check_round(self)

    # -- pods

    def _pod(self, which: int) -> str | None:
        names = sorted(self.kubernetes.pods)
        return names[which % len(names)] if names else None

    def kubelets(self) -> None:
        """All nodes that live do what is to be done; their programs succeed."""
        for name in sorted(self.kubernetes.pods):
            self._kubelet(name, 0)

    def kubelet(self, which: int, how: int) -> None:
        """A pod gets on by one step."""
        name = self._pod(which)
        if name is not None:
            self._kubelet(name, how)

    def _kubelet(self, name: str, how: int) -> None:
        if name in self.audit.dead_nodes:
            return
        pod = self.kubernetes.pods[name]
        phase, asked = pod["status"]["phase"], "deletionTimestamp" in pod["metadata"]
        if phase in ("Succeeded", "Failed"):
            if asked:
                self.kubernetes.remove(name)
        elif phase == "Pending" and asked:
            self.kubernetes.remove(name)
        elif phase == "Pending":
            self._begin(name, how)
        elif asked:
            self.fail(name, 143) if how % 2 == 0 else self.succeed(name)
        elif how == 7:
            self.fail(name)
            self.audit.license(name, "its program failed")
        else:
            self.succeed(name)
        self.note(f"kubelet: {name} {phase} -> {self._phase(name)}")

    def _begin(self, name: str, how: int) -> None:
        troubles = {5: ("ErrImagePull", "not found"), 6: ("ErrImagePull", "i/o timeout"), 7: ("InvalidImageName", "")}
        if how in troubles:
            self.trouble(name, *troubles[how])
        elif how == 4:
            self.schedule(name)
        else:
            self.run(name)
            self.audit.started(name)

    def luck(self, which: int, how: int) -> None:
        """Something happens to a pod that no replica has asked for."""
        name = self._pod(which)
        if name is None or name in self.audit.dead_nodes:
            return
        phase = self._phase(name)
        kind = ("delete", "evict", "node", "vanish", "preempt", "unseen")[how % 6]
        self.note(f"bad luck: {name} {phase}: {kind}")
        self.audit.license(name, kind)
        if kind == "delete":
            self.delete_by_user(name)
        elif kind == "vanish":
            self.vanish(name)
        elif kind == "unseen":
            self.vanish(name, unseen=True)
            self.kubernetes.compact()
        elif kind == "evict" and phase == "Running":
            self.end_pod(name, "Evicted")
        elif kind == "preempt" and phase not in ("Succeeded", "Failed"):
            self.disrupt(name, "PreemptionByScheduler")
            self.delete_by_user(name)
        elif kind == "node" and phase == "Running":
            self.disrupt(name, "DeletionByTaintManager")
            self.delete_by_user(name)
            self.audit.dead_nodes.add(name)

    def _phase(self, name: str) -> str:
        pod = self.kubernetes.pods.get(name)
        return "gone" if pod is None else str(pod["status"]["phase"])

    # -- the end

    def settle(self) -> None:
        """No more faults: whatever is under way comes to its end, or there is a complaint."""
        self.note("-- no more faults")
        self.redis.set_down(False)
        self.kube_down = False
        self.kubernetes.thaw_lists()
        self.handler = self.handler.replace("late", "prompt")
        while self.late:
            self.deliver(0)
        for name in self.audit.dead_nodes & set(self.kubernetes.pods):
            self.vanish(name)
        self.audit.dead_nodes.clear()
        if not any(replica.runs for replica in self.replicas):
            self.start(0)
        for turn in range(ROUNDS):
            if turn > 3 and self.settled():
                break
            self.live(1, pods=True)
            if turn >= LOOKED_ROUND:
                check_number(self.audit)
            if not any(replica.runs for replica in self.replicas):
                self.start(turn)  # one that fails for good is started again, by Kubernetes
        self.audit.at_the_end(self.settled())

    def settled(self) -> bool:
        """Is nothing open, unread or pending, and no pod left?"""
        group = self.redis.group
        unread = group is None or group.delivered < self.redis.last or bool(group.pending)
        return not (unread or self.redis.leases or self.kubernetes.pods or self.late)
