"""One scale_down (or superseding event): choose, mark, end, wait, record.

Everything it does can be done again: the list is stored once, a mark is set once, a pod is deleted by UID and version,
the result is recorded once. So a process that dies anywhere in between is followed by one that simply begins again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ottoscaler import logs, ports
from ottoscaler.core.choice import Blocker, Choice, Claim, Victim
from ottoscaler.core.events import EventType, Mode
from ottoscaler.core.manifest import WorkerKey, event_hash, pod_name
from ottoscaler.core.plan import Candidate, is_older, rank
from ottoscaler.core.pods import Snapshot
from ottoscaler.core.results import scale_down_result
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.flow.ender import Ender
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.registry import Registry
from ottoscaler.ports import Attempts, Clock, Note, OpenTask, Status, StoredWorker

#: How often a victim that has not ended is ended again, seconds: its pod may have been seen only now.
AGAIN_EVERY_S: Final = 5

_log = logs.get(__name__)


@dataclass(slots=True)
class ScaleDown:
    """A scale_down (or superseding event) under way. Belongs to the control thread.

    `blocker` is the older event that comes first, if one does; `lost`: another process owns the task now; `reason` is
    what was last stored of what it waits for; `attempts` are the last that were stored of the victims.
    """

    task: OpenTask
    victims: list[Victim] | None = None
    waiting: list[Victim] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    blocker: Blocker | None = None
    lost: bool = False
    reason: str = ""
    attempts: dict[Victim, int] = field(default_factory=dict)
    again_at: float = 0.0
    signs: Sequence[object] = ()

    def __post_init__(self) -> None:
        if self.task.victims is not None:
            self.choose(self.task.victims, self.task.survivors)

    @property
    def chosen(self) -> bool:
        """Is the victim list stored?"""
        return self.victims is not None

    def choose(self, victims: Sequence[Victim], survivors: Sequence[str]) -> None:
        """This list holds."""
        self.victims, self.waiting, self.survivors = list(victims), list(victims), list(survivors)

    def termination(self) -> Termination:
        """The mark that each victim is given."""
        event = self.task.event
        if event.type is EventType.SCALE_UP:
            return Termination(
                Reason.SUPERSEDED, f"superseded by event {event.event_id}", drain=True, by=event.event_id
            )
        return Termination(
            Reason.SCALED_DOWN,
            f"ended by scale_down {event.event_id}",
            drain=event.mode is Mode.DRAIN,
            by=event.event_id,
        )


class ScaleDowns:
    """The steps of a scale_down. Belongs to the control thread."""

    def __init__(
        self,
        *,
        scale_downs: ports.ScaleDowns,
        attempts: Attempts,
        registry: Registry,
        ledger: Ledger,
        ender: Ender,
        clock: Clock,
        instance: str,
    ) -> None:
        self._scale_downs = scale_downs
        self._attempts = attempts
        self._registry = registry
        self._ledger = ledger
        self._ender = ender
        self._clock = clock
        self._instance = instance

    def advance(self, scale_down: ScaleDown) -> bool:
        """Carry it on as far as it goes now; returns whether it is over.
        Raises Unavailable; then it goes on later from where it stands.
        """
        if not scale_down.chosen and not self._choose(scale_down):
            return False
        if scale_down.lost or scale_down.task.event.type is EventType.SCALE_UP:
            return True  # a superseded worker is followed by its own task
        if self._clock.now() >= scale_down.again_at:
            self._end(scale_down)
            scale_down.again_at = self._clock.now() + AGAIN_EVERY_S
            self._note_ended(scale_down, scale_down.waiting)
        else:
            self._note_ended(
                scale_down, [victim for victim in scale_down.waiting if self._may_be_over(scale_down, victim)]
            )
        self._note_reason(scale_down)
        if scale_down.waiting:
            return False
        self._record_result(scale_down)
        return True

    def signs(self, scale_down: ScaleDown) -> Sequence[object]:
        """What can be seen of the victims without asking Redis: while it stays the same, their results do as well, but
        for those of workers that have no pod here.
        """
        pods = (self._pod(scale_down, victim) for victim in scale_down.waiting)
        return [pod and (pod.uid, pod.live, pod.started_at) for pod in pods]

    def _may_be_over(self, scale_down: ScaleDown, victim: Victim) -> bool:
        """A worker with a live pod has no result, and a drain spares it only if it has started."""
        pod = self._pod(scale_down, victim)
        drain = scale_down.task.event.mode is Mode.DRAIN
        return pod is None or not pod.live or (drain and pod.started_at is not None)

    def _pod(self, scale_down: ScaleDown, victim: Victim) -> Snapshot | None:
        attempt = scale_down.attempts.get(victim, 0)
        return self._registry.get(self._key(victim.event_id, victim.index, attempt))

    def _key(self, event_id: str, index: int, attempt: int) -> WorkerKey:
        return WorkerKey(event_hash(self._instance, event_id), index, attempt)

    def apply_marks(self, event_id: str) -> None:
        """Another replica has cancelled workers of a task of ours."""
        task = self._scale_downs.reload(event_id)
        for worker in task.workers.values() if task else ():
            if worker.termination is not None and worker.termination.is_cancel and not worker.outcome:
                self._end_worker(event_id, worker, worker.termination)

    def _choose(self, scale_down: ScaleDown) -> bool:
        """Choose the victims, unless an older event comes first. Returns False while one does.

        The candidates are read only when nothing comes first any more: then no worker of an older event can be missing.
        """
        event, before = scale_down.task.event, scale_down.blocker
        scale_down.blocker = self._scale_downs.blocker(event.stream_id)
        if scale_down.blocker is None:
            answer = self._scale_downs.choose(event.event_id, scale_down.task.owner, self._claim(scale_down))
            if isinstance(answer, Choice):
                self._chosen(scale_down, answer)
            scale_down.lost = answer is None
            scale_down.blocker = answer if isinstance(answer, Blocker) else None
        if scale_down.blocker != before and event.type is EventType.SCALE_DOWN and not scale_down.lost:
            self._store_reason(scale_down, _blocked_by(scale_down.blocker))
        return scale_down.blocker is None

    def _claim(self, scale_down: ScaleDown) -> Claim:
        event = scale_down.task.event
        if event.type is EventType.SCALE_DOWN:
            found, mode, count = self._candidates(event.task_id, event.stream_id), event.mode, event.pod_count
        else:
            found, mode, count = self._candidates("", event.stream_id, event.supersedes), Mode.DRAIN, 0
        ranked, spared = rank(found, mode)
        listed = [Victim(one.event.event_id, one.index, self._name(one)) for one in ranked]
        return Claim(scale_down.termination(), listed, count, [self._name(one) for one in spared])

    def _chosen(self, scale_down: ScaleDown, choice: Choice) -> None:
        """This choice holds: not what was asked for now, since an earlier one may have been stored and its answer
        lost.
        """
        event = scale_down.task.event
        scale_down.choose(choice.victims, choice.survivors)
        if event.type is EventType.SCALE_UP:
            self._end(scale_down)
            return
        _log.info(
            "scale_down.chosen", "Scaling down: %d workers end, %d stay", len(choice.victims), len(choice.survivors),
            event_id=event.event_id, task_id=event.task_id, mode=event.mode.value,
        )  # fmt: skip

    def _candidates(self, task_id: str, before: str, supersedes: str = "") -> list[Candidate]:
        """Unfinished workers of older tasks: of that task id, of that key, or all.
        Those that are being cancelled already do not count.
        """
        found = []
        for view in self._scale_downs.tasks():
            event = view.event
            wanted = (not task_id or event.task_id == task_id) and (not supersedes or event.supersedes == supersedes)
            if not wanted or not is_older(event.stream_id, before):
                continue
            hash_ = event_hash(self._instance, event.event_id)
            for index in range(1, event.pod_count + 1):
                worker = view.workers.get(index, StoredWorker(index))
                pod = self._registry.get(WorkerKey(hash_, index, worker.attempt))
                cancelled = worker.termination is not None and worker.termination.claims
                succeeded = pod is not None and pod.ended and pod.exit_code == 0  # its result is certain
                if not worker.outcome and not cancelled and not succeeded:
                    found.append(Candidate(event, index, worker.attempt, pod))
        return found

    def _name(self, one: Candidate) -> str:
        return pod_name(self._key(one.event.event_id, one.index, max(one.attempt, 1)))

    def _end(self, scale_down: ScaleDown) -> None:
        """See to it that each victim that has no result is ended. A victim has its mark since it was chosen; only a
        Redis that was wiped may have lost it.
        """
        event_id, termination = scale_down.task.event.event_id, scale_down.termination()
        stored = self._scale_downs.outcomes(scale_down.waiting)
        for victim, worker in zip(scale_down.waiting, stored, strict=True):
            scale_down.attempts[victim] = worker.attempt if worker is not None else 0
            if worker is None or worker.outcome or event_id in worker.spared:
                continue
            if worker.termination is None or worker.termination.by != event_id:
                answer = self._attempts.store_termination(victim.event_id, None, victim.index, termination)
                worker = replace(worker, termination=answer.termination if answer.status is Status.OK else None)
            if worker.termination is not None:
                self._end_worker(victim.event_id, worker, worker.termination)

    def _end_worker(self, event_id: str, worker: StoredWorker, termination: Termination) -> None:
        if self._ledger.cancel(event_id, worker.index, termination):
            return
        pod = self._registry.get(self._key(event_id, worker.index, worker.attempt))
        if pod is None or not pod.live or pod.deleting or (termination.drain and pod.started_at is not None):
            return
        self._ender.end(pod, termination)

    def _note_ended(self, scale_down: ScaleDown, asked: Sequence[Victim]) -> None:
        """A victim with a result and without a pod is over; one that a drain has spared becomes a survivor."""
        over = set()
        for victim, worker in zip(asked, self._scale_downs.outcomes(asked) if asked else (), strict=True):
            if worker is None:  # Redis was wiped: its owner restores the task, or it is taken up from its pods
                over |= set() if self._may_run(victim) else {victim}
            elif scale_down.task.event.event_id in worker.spared:
                scale_down.survivors.append(victim.pod)
                over.add(victim)
            elif worker.outcome and not self._has_pod(victim, worker):
                over.add(victim)
        scale_down.waiting = [victim for victim in scale_down.waiting if victim not in over]

    def _note_reason(self, scale_down: ScaleDown) -> None:
        """Store which pods stay although they have ended: the client that set a finalizer has to remove it."""
        names = {victim.pod for victim in scale_down.waiting}
        held = [pod for pod in self._registry.snapshots() if pod.name in names and pod.held] if names else []
        reason = "; ".join(
            f"pod {pod.name} has ended and is kept by finalizer {', '.join(pod.finalizers)}" for pod in held
        )
        self._store_reason(scale_down, reason)

    def _store_reason(self, scale_down: ScaleDown, reason: str) -> None:
        if reason != scale_down.reason:
            self._attempts.write_notes(
                [Note(scale_down.task.event.event_id, scale_down.task.owner, reason=reason[:1000])]
            )
            scale_down.reason = reason

    def _may_run(self, victim: Victim) -> bool:
        """Is the task of a victim open here, or is there a pod that has its name?"""
        there = any(pod.name == victim.pod for pod in self._registry.snapshots())
        return there or self._ledger.tasks.has(victim.event_id)

    def _has_pod(self, victim: Victim, worker: StoredWorker) -> bool:
        return self._registry.get(self._key(victim.event_id, victim.index, worker.attempt)) is not None

    def _record_result(self, scale_down: ScaleDown) -> None:
        event, spared = scale_down.task.event, set(scale_down.survivors)
        victims = [victim.pod for victim in scale_down.victims or () if victim.pod not in spared]
        fields = scale_down_result(event, victims, scale_down.survivors, self._clock.wall(self._clock.now()))
        answer = self._scale_downs.finish(event.event_id, scale_down.task.owner, fields)
        if answer.status is Status.OK:
            _log.info(
                "scale_down.finished",
                "Scaled down: %s",
                fields["message"],
                event_id=event.event_id,
                task_id=event.task_id,
            )


def _blocked_by(blocker: Blocker | None) -> str:
    """What a scale_down waits for, in words."""
    if blocker is None:
        return ""
    if not blocker.owner:
        return f"waits for entry {blocker.name}, which was sent before it and is not accepted yet"
    return (
        f"waits for event {blocker.name}, which was sent before it and has its victims still to choose;"
        f" it is {blocker.owner}'s, and is taken over within LEASE_S if that replica is gone"
    )
