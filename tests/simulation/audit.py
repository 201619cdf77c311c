"""What must never happen in the simulation, held against every write as it happens.

Faults are collected, not raised: they show up in the middle of the program, which catches what its own code raises.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ottoscaler.core.effects import CreatePod, DeleteOldPod, GetPod, StoreAttempt
from ottoscaler.core.events import EventType, ScaleDownMode
from ottoscaler.core.lifecycle import Lifecycle
from ottoscaler.core.manifest import ANNOTATION_EVENT_ID, LABEL_ATTEMPT, LABEL_WORKER, AttemptKey, event_hash, pod_name
from ottoscaler.core.observations import CreateUnclear
from ottoscaler.core.shares import EQUAL_SHARES, Shares
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import LAST_TRY
from ottoscaler.core.victim_selection import VictimSelection
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.ports import Clock
from tests.fakes.kubernetes import FINISHED, FakeKubernetes, Pod
from tests.fakes.server import FakeRedis, Group, Id, TaskState, WorkerState, order
from tests.simulation.tenants import check_share

if TYPE_CHECKING:
    from tests.simulation.replica import Replica, Worker

INSTANCE = "ottoscaler"
_Worker = tuple[str, int]
#: The last lines of what happened that are shown with a fault.
SHOWN = 400


class Audit:
    """Looks at every result, creation, deletion and start of a program. `actor` sent the current request."""

    redis: FakeRedis
    kubernetes: FakeKubernetes

    def __init__(
        self, clock: Clock, max_workers: int, ttl_s: int, max_pending: int = 0, shares: Shares = EQUAL_SHARES
    ) -> None:
        self.actor: Replica | None = None
        self.replicas: list[Replica] = []
        self.faults: list[str] = []
        self.lines: list[str] = []
        self.sent: dict[str, dict[str, str]] = {}
        self.dead_nodes: set[str] = set()
        self.flushes = 0
        self._clock = clock
        self._max_workers = max_workers
        self._max_pending = max_pending
        self.shares = shares
        self._ttl_s = ttl_s
        self._before_flush: set[str] = set()
        self._results: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self._intended: set[str] = set()
        self._created: Counter[str] = Counter()
        self._zombies: set[str] = set()
        self._unheard: set[str] = set()
        self._starts: Counter[_Worker] = Counter()
        self._licenses: Counter[_Worker] = Counter()
        self._succeeded: set[_Worker] = set()
        self._once_succeeded: set[_Worker] = set()  # the pod is gone, and a replica may still see it as it was
        self._terminations: set[_Worker] = set()
        self._ended: dict[str, list[_Worker]] = {}
        self._forgotten: set[str] = set()  # a task of the same event id may have come since
        self._victim_of: dict[_Worker, str] = {}

    def send(self, event_id: str, fields: dict[str, str]) -> None:
        """An event is sent for the first time."""
        self.sent[event_id] = fields
        self.note(f"event {event_id} {fields}")

    def now(self) -> float:
        """Seconds of the world's clock, which all machines have."""
        return self._clock.now()

    def note(self, line: str) -> None:
        """For a person who has to find out what happened."""
        self.lines.append(f"{self._clock.now() % 100_000:9.1f} {line}")

    def complain(self, fault: str) -> None:
        """Something that must not be."""
        self.note(f"FAULT: {fault}")
        self.faults.append(fault)

    # -- programs

    def started(self, name: str) -> None:
        """A program starts: the first of its worker, or one that a failure allows."""
        worker = self._worker(self.kubernetes.pods[name])
        if name in self._zombies or self._wiped(worker[0]):
            return
        self._starts[worker] += 1
        if self._starts[worker] > 1 + self._licenses[worker]:
            self.complain(f"the program of {worker} is started a second time, as {name}, for no reason")
        for event_id, workers in self._ended.items():
            if worker in workers:
                self.complain(f"{name} starts after scale_down {event_id} has reported its end")

    def license(self, name: str, why: str) -> None:
        """A program may be started again: the one before has failed, or the platform has failed it.

        If that takes the pod away before the answer to its creation was received, it may even be created again.
        """
        worker = self._worker(self.kubernetes.pods[name])
        unclear = [one.run for replica in self.replicas for one in replica.workers if _is_unclear(one.run.life)]
        task = self.redis.find(worker[0])
        unseen = task is not None and not task.worker(worker[1]).seen  # its creator died before it could store that
        if unseen or name in map(pod_name, (run.key for run in unclear)):
            self._unheard.add(name)
        self._licenses[worker] += 1
        if why not in ("its program failed", "evict"):
            if worker in self._succeeded:
                self._once_succeeded.add(worker)
            self._succeeded.discard(worker)

    def changed(self, pod: Pod) -> None:
        """A pod is as it is now: has its worker succeeded before a replica asked for its end?"""
        name, worker = pod["metadata"]["name"], self._worker(pod)
        task = self.redis.find(worker[0])
        if pod["status"].get("phase") != "Succeeded" or name in self._zombies or task is None:
            return
        state = task.worker(worker[1])
        asked = "deletionTimestamp" in pod["metadata"]
        if not asked and not state.outcome and state.termination is None and state.attempt == _attempt(pod):
            self._succeeded.add(worker)

    # -- pods

    def creating(self, pod: Pod) -> None:
        """A create request arrives."""
        name, worker, actor = pod["metadata"]["name"], self._worker(pod), self.actor
        self.note(f"create {name} by {actor.name if actor else 'a late request'}")
        if name in self.kubernetes.pods:
            return
        wiped = self._wiped(worker[0])
        if name not in self._intended and not wiped:
            self.complain(f"{name} is created, and its attempt was never stored")
        self._created[name] += 1
        task = self.redis.find(worker[0])
        if actor is None or task is None or not self._is_current(pod, task, actor):
            self._zombies.add(name)
            return
        if self._created[name] > 1 and not wiped and name not in self._unheard:
            self.complain(f"{name} is created again")

    def using_room(self, actor: Replica, run: WorkerRun) -> None:
        """A worker is about to create a pod, on top of those that are there or about to be."""
        if not actor.registry.is_known:
            self.complain(f"{actor.name} makes {pod_name(run.key)}, and does not know what there is")
        live = self.live_pods(actor)
        coming = [
            pod_name(worker.run.key)
            for worker in actor.workers
            if worker.run is not run and _is_coming(worker)
            and pod_name(worker.run.key) not in self.kubernetes.pods
        ]  # fmt: skip
        if len(live) + len(coming) >= self._max_workers:
            self.complain(f"{actor.name} makes {pod_name(run.key)}, and owns {live}, with {coming} to come")
        check_share(self, actor, run, live)
        pending = [name for name in live if "nodeName" not in self.kubernetes.pods[name]["spec"]]
        if self._max_pending and len(pending) + len(coming) >= self._max_pending:
            self.complain(f"{actor.name} makes {pod_name(run.key)}, and {pending} wait for a node, with {coming}")

    def _is_current(self, pod: Pod, task: TaskState, actor: Replica) -> bool:
        """Is the creator still the owner, and does it create what is to be created?"""
        event_id, index = self._worker(pod)
        state = task.worker(index)
        owner = actor.ledger.tasks.owners().get(event_id)
        return task.owner == owner and not state.outcome and state.attempt == _attempt(pod)

    def live_pods(self, actor: Replica) -> list[str]:
        """The live pods of tasks that are this process's, as Redis and it itself believe; zombies do not count."""
        owners = actor.ledger.tasks.owners()
        return [
            name
            for name, pod in self.kubernetes.pods.items()
            if pod["status"].get("phase") not in FINISHED and name not in self._zombies
            and (task := self.redis.tasks.get(self._worker(pod)[0])) is not None
            and task.owner is not None and task.owner == owners.get(self._worker(pod)[0])
        ]  # fmt: skip

    def deleting(self, pod: Pod) -> None:
        """A deletion of ours is about to be carried out."""
        name, worker = pod["metadata"]["name"], self._worker(pod)
        self.note(
            f"delete {name} {pod['status'].get('phase')} by {self.actor.name if self.actor else 'a late request'}"
        )
        if "deletionTimestamp" in pod["metadata"] or self._is_over(pod):
            return
        task = self.redis.find(worker[0])
        if pod["status"].get("phase") in FINISHED:
            if not self._is_old(pod):
                self.complain(f"{name} is deleted, and how it finished is not stored")
            return
        termination = task.worker(worker[1]).termination if task is not None else None
        if termination is not None and termination.applies_to(_attempt(pod)):
            started = "containerStatuses" in pod["status"] and pod["status"]["phase"] == "Running"
            if termination.only_before_start and started:
                self.complain(f"{name} runs, is spared by {termination.reason}, and is deleted")
        elif not (self._wiped(worker[0]) and worker in self._terminations):
            self.complain(f"{name} is deleted alive, and nothing that is stored wants it")

    def _is_over(self, pod: Pod) -> bool:
        """Is what it came to stored, or is it of an attempt that is?"""
        worker = self._worker(pod)
        task = self.redis.find(worker[0])
        if task is not None and (task.worker(worker[1]).outcome or _attempt(pod) < task.worker(worker[1]).attempt):
            return True
        return bool(self._results.get(("worker", worker[0], str(worker[1]))))

    def _is_old(self, pod: Pod) -> bool:
        ended = pod["status"].get("containerStatuses", [{}])[0].get("state", {}).get("terminated", {}).get("finishedAt")
        return ended is not None and self._wiped(self._worker(pod)[0])

    # -- Redis

    def expired(self, event_id: str) -> None:
        """A finished task is forgotten after TASK_TTL_S: a later event with its id is another one."""
        self.note(f"{event_id} is forgotten")
        self._forgotten.add(event_id)
        hash_ = event_hash(INSTANCE, event_id)
        for name in [name for name in self._created if hash_ in name]:
            del self._created[name]
        for worker in [worker for worker in self._starts if worker[0] == event_id]:
            del self._starts[worker]
        self._succeeded = {worker for worker in self._succeeded if worker[0] != event_id}
        self._victim_of = {worker: by for worker, by in self._victim_of.items() if worker[0] != event_id}
        for name, workers in self._ended.items():
            self._ended[name] = [worker for worker in workers if worker[0] != event_id]

    def intended(self, name: str, event_id: str) -> None:
        """An attempt is stored: its pod may be created from now on, and not where it would be too late."""
        self._intended.add(name)
        not_after = self._not_after(event_id)
        if not_after is not None and self._clock.now() >= not_after:
            self.complain(f"{name} may be created after the not_after of {event_id}")

    def _not_after(self, event_id: str) -> float | None:
        task = self.redis.find(event_id)
        return task.event.overrides.not_after if task is not None and task.event is not None else None

    def terminated(self, event_id: str, index: int) -> None:
        """A termination is stored."""
        self._terminations.add((event_id, index))

    def withdrawn(self, event_id: str, index: int, termination: Termination) -> None:
        """A termination is cleared. A drain spares what has started, and a later scale_down may choose that."""
        worker = (event_id, index)
        if termination.drain and self._victim_of.get(worker) == termination.by:
            del self._victim_of[worker]

    def chosen(self, event_id: str, could: Sequence[_Worker], selection: VictimSelection) -> None:
        """Victims were chosen. `could` are the workers that could be ended, just before. There may be more: a pod that
        has succeeded this very moment, and is not seen to have.
        """
        victims = [(one.event_id, one.index) for one in selection.victims]
        self.note(f"victims of {event_id}: {victims}")
        task, group = self.redis.tasks[event_id], self.redis.group
        if task.event is None or group is None:
            return
        self._in_turn(event_id, order(task.event.stream_id), group)
        scale_down = task.event.type is EventType.SCALE_DOWN
        count = task.event.pod_count if scale_down else 0
        if (
            scale_down
            and task.event.mode is ScaleDownMode.KILL
            and len(victims) < (min(count, len(could)) if count else len(could))
        ):
            self.complain(f"scale_down {event_id} of {count or 'all'} ends {victims}, and there were {could}")
        if count and len(victims) > count:
            self.complain(f"scale_down {event_id} of {count} has {len(victims)} victims")
        for worker in victims:
            if self._victim_of.setdefault(worker, event_id) != event_id and not self._wiped(worker[0]):
                self.complain(f"{worker} is a victim of {self._victim_of[worker]} and of {event_id}")

    def _in_turn(self, event_id: str, limit: Id, group: Group) -> None:
        """Had everything older been accepted, and chosen its own victims?"""
        missed = [name for name in self.redis.entries if group.delivered < order(name) < limit]
        missed += [name for name in group.pending if order(name) < limit]
        if missed:
            self.complain(f"{event_id} has chosen, and {missed} are not accepted yet")
        for other, task in self.redis.tasks.items():
            if task.undecided and task.event is not None and order(task.event.stream_id) < limit:
                self.complain(f"{event_id} has chosen before {other}, which is older")

    def could_end(self, event_id: str) -> list[_Worker]:
        """The workers that a scale_down could end now, by what is stored and by the pods that there are."""
        down = self.redis.tasks[event_id].event
        found: list[_Worker] = []
        for name, task in self.redis.tasks.items():
            event = task.event
            if down is None or event is None or task.owner is None or event.type is not EventType.SCALE_UP:
                continue
            if order(event.stream_id) < order(down.stream_id) and down.task_id in ("", event.task_id):
                found += [(name, index) for index in range(1, event.pod_count + 1) if self._can_end(name, task, index)]
        return found

    def _can_end(self, event_id: str, task: TaskState, index: int) -> bool:
        state = task.workers.get(index, WorkerState(index))
        pod = self.kubernetes.pods.get(pod_name(AttemptKey(event_hash(INSTANCE, event_id), index, state.attempt)))
        succeeded = pod is not None and pod["status"].get("phase") == "Succeeded"
        # the replica that is to choose may see a pod that has succeeded and is gone by now
        succeeded = succeeded or (event_id, index) in self._once_succeeded
        return not succeeded and not state.outcome and (state.termination is None or not state.termination.claims)

    def published(self, fields: Mapping[str, str]) -> None:
        """A result is published."""
        kind, event_id, index = fields["kind"], fields["event_id"], fields.get("index", "")
        now = self._clock.now()
        self.note(f"result {kind} {event_id} {index} {fields['reason']}")
        times = self._results[kind, event_id, index]
        recent = [at for at in times if now - at < self._ttl_s]
        times.append(now)
        if len(recent) > (self.flushes if self._wiped(event_id) else 0):
            self.complain(f"the result of {kind} {event_id} {index} is published {len(recent) + 1} times")
        if kind == "worker":
            self._of_worker((event_id, int(index)), fields)
        elif kind == "scale_down" and not self._wiped(event_id):
            self._of_scale_down(event_id, json.loads(fields["victims"]), fields["reason"])

    def _of_worker(self, worker: _Worker, fields: Mapping[str, str]) -> None:
        if fields["reason"] == "Poison" and f"{LAST_TRY} times" in fields["message"]:
            return  # an event that killed every process so far is closed, whatever its pods came to
        if worker in self._succeeded and fields["outcome"] != "succeeded" and not self._wiped(worker[0]):
            self.complain(f"{worker} has succeeded, and {fields['reason']} is recorded")
        for name, pod in self.kubernetes.pods.items():
            live = self._worker(pod) == worker and pod["status"].get("phase") not in FINISHED
            if live and name not in self._zombies and name not in self.dead_nodes and not self._wiped(worker[0]):
                self.complain(f"{fields['reason']} is recorded, and {name} lives")
        if fields["reason"] == "ScaledDown" and not self.flushes:
            lists = [task.victims or [] for task in self.redis.tasks.values()]
            if not any((one.event_id, one.index) == worker for victims in lists for one in victims):
                self.complain(f"{worker} is recorded as scaled down, and is nobody's victim")

    def _of_scale_down(self, event_id: str, victims: list[str], reason: str) -> None:
        task = self.redis.tasks[event_id]
        asked = task.event.pod_count if task.event is not None else 0
        if asked and len(victims) > asked:
            self.complain(f"scale_down {event_id} of {asked} tells of {victims}")
        if reason == "Poison":
            return
        self._ended[event_id] = [(one.event_id, one.index) for one in task.victims or [] if one.pod in victims]
        for victim, index in self._ended[event_id]:
            other = self.redis.find(victim)
            is_another = victim in self._forgotten and other is not None and other.state == "finished"
            if other is not None and not other.worker(index).outcome and not is_another:
                self.complain(f"scale_down {event_id} has its result, and its victim {victim}/{index} has none")

    def flushed(self) -> None:
        """FLUSHALL: what was known until now may repeat itself, and no more."""
        self.note("FLUSHALL")
        self.flushes += 1
        self._before_flush |= self.sent.keys() | {worker for worker, _ in self._starts}
        self._succeeded.clear()
        self._victim_of.clear()

    def _wiped(self, event_id: str) -> bool:
        return event_id in self._before_flush

    # -- the end

    def at_the_end(self, settled: bool) -> None:
        """Everything has had time to come to its end."""
        if not settled:
            self.complain(f"it does not come to an end: {self._left()}")
            return
        dead = {letter["event_id"] or letter["stream_id"] for letter in self.redis.dead_entries}
        for event_id, fields in self.sent.items():
            if self._wiped(event_id) or event_id in dead:
                continue
            kind = "task" if fields["type"] == "scale_up" else "scale_down"
            if not self._results.get((kind, event_id, "")):
                self.complain(f"{kind} {event_id} has no result, and is no dead letter")
            for index in range(1, int(fields["pod_count"]) + 1 if kind == "task" else 1):
                if not self._results.get(("worker", event_id, str(index))):
                    self.complain(f"worker {index} of {event_id} has no result")

    def _left(self) -> str:
        group = self.redis.group
        pending = list(group.pending) if group else []
        pods = {name: pod["status"].get("phase") for name, pod in self.kubernetes.pods.items()}
        for replica in self.replicas:
            lives = [(worker.run.life, worker.blocked(), worker.busy) for worker in replica.workers]
            self.note(f"{replica.name} {replica.alive} {replica.runs}: {replica.ledger.tasks.owners()}, {lives}")
        return f"open {dict(self.redis.leases)}, pending {pending}, pods {pods}"

    @staticmethod
    def _worker(pod: Pod) -> _Worker:
        metadata = pod["metadata"]
        return metadata["annotations"][ANNOTATION_EVENT_ID], int(metadata["labels"][LABEL_WORKER])


def _attempt(pod: Pod) -> int:
    return int(pod["metadata"]["labels"][LABEL_ATTEMPT])


def _is_unclear(life: Lifecycle) -> bool:
    """Its pod may be there, and it does not know it."""
    return isinstance(life.todo, CreatePod) or (
        isinstance(life.todo, GetPod) and isinstance(life.todo.after, CreateUnclear)
    )


def _is_coming(worker: Worker) -> bool:
    """Its pod may be about to be created. One that is about to store an attempt asks for room itself before it does,
    and may have to wait; one that is in the middle of it has asked.
    """
    todo = worker.run.life.todo
    looks = isinstance(todo, GetPod) and todo.after is not None
    return looks or isinstance(todo, DeleteOldPod | CreatePod) or (isinstance(todo, StoreAttempt) and worker.busy)
