"""One scale_down (or superseding event): choose, mark, end, wait, record.

Everything it does can be done again: the list is stored once, a mark is set once, a pod is deleted by UID and version,
the result is recorded once. So a process that dies anywhere in between is followed by one that simply begins again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ottoscaler import logs, ports
from ottoscaler.core.events import EventType, ScaleDownMode
from ottoscaler.core.kept_pods import stays
from ottoscaler.core.manifest import AttemptKey, event_hash, pod_name
from ottoscaler.core.plan import VictimCandidate, is_older, rank_victims
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.results import rfc3339, scale_down_result
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import BlockingEvent, Victim, VictimRequest, VictimSelection
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.pod_terminator import PodTerminator
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.ports import Attempts, Clock, OpenTask, ScriptStatus, StatusUpdate, StoredWorker
from ottoscaler.stored import TaskNote

#: How often a victim that has not ended is ended again, seconds: its pod may have been seen only now.
TERMINATE_RETRY_S: Final = 5

_log = logs.get(__name__)


@dataclass(slots=True)
class ScaleDown:
    """A scale_down (or superseding event) under way. Belongs to the control thread.

    `blocker` is the older event that comes first, if one does; `ownership_lost`: another process owns the task now;
    `reason` is what was last stored of what it waits for; `attempts` are the last that were stored of the victims.
    """

    task: OpenTask
    victims: list[Victim] | None = None
    unfinished_victims: list[Victim] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    blocker: BlockingEvent | None = None
    ownership_lost: bool = False
    reason: str = ""
    attempts: dict[Victim, int] = field(default_factory=dict)
    terminate_retry_at: float = 0.0
    victim_fingerprint: Sequence[object] = ()

    def __post_init__(self) -> None:
        if self.task.victims is not None:
            self.set_victims(self.task.victims, self.task.survivors)

    @property
    def victims_selected(self) -> bool:
        """Is the victim list stored?"""
        return self.victims is not None

    def set_victims(self, victims: Sequence[Victim], survivors: Sequence[str]) -> None:
        """This list holds."""
        self.victims, self.unfinished_victims, self.survivors = list(victims), list(victims), list(survivors)

    def termination(self) -> Termination:
        """The mark that each victim is given."""
        event = self.task.event
        if event.type is EventType.SCALE_UP:
            return Termination(
                EndReason.SUPERSEDED, f"superseded by event {event.event_id}", drain=True, by=event.event_id
            )
        return Termination(
            EndReason.SCALED_DOWN,
            f"ended by scale_down {event.event_id}",
            drain=event.mode is ScaleDownMode.DRAIN,
            by=event.event_id,
        )


class ScaleDownSteps:
    """The steps of a scale_down. Belongs to the control thread."""

    def __init__(
        self,
        *,
        scale_downs: ports.ScaleDowns,
        attempts: Attempts,
        registry: PodRegistry,
        ledger: Ledger,
        terminator: PodTerminator,
        clock: Clock,
        instance: str,
    ) -> None:
        self._scale_downs = scale_downs
        self._attempts = attempts
        self._registry = registry
        self._ledger = ledger
        self._terminator = terminator
        self._clock = clock
        self._instance = instance

    def advance(self, scale_down: ScaleDown) -> bool:
        """Carry it on as far as it goes now; returns whether it is over.
        Raises Unavailable; then it goes on later from where it stands.
        """
        if not scale_down.victims_selected and not self._select_victims(scale_down):
            return False
        if scale_down.ownership_lost or scale_down.task.event.type is EventType.SCALE_UP:
            return True  # a superseded worker is followed by its own task
        if self._clock.now() >= scale_down.terminate_retry_at:
            self._end_victims(scale_down)
            scale_down.terminate_retry_at = self._clock.now() + TERMINATE_RETRY_S
            self._remove_ended_victims(scale_down, scale_down.unfinished_victims)
        else:
            self._remove_ended_victims(
                scale_down,
                [victim for victim in scale_down.unfinished_victims if self._victim_may_have_ended(scale_down, victim)],
            )
        self._update_wait_reason(scale_down)
        if scale_down.unfinished_victims:
            return False
        self._record_result(scale_down)
        return True

    def victim_fingerprint(self, scale_down: ScaleDown) -> Sequence[object]:
        """What can be seen of the victims without asking Redis: while it stays the same, their results do as well, but
        for those of workers that have no pod here.
        """
        pods = (self._pod_of_victim(scale_down, victim) for victim in scale_down.unfinished_victims)
        return [pod and (pod.uid, pod.live, pod.started_at) for pod in pods]

    def _victim_may_have_ended(self, scale_down: ScaleDown, victim: Victim) -> bool:
        """A worker with a live pod has no result, and a drain spares it only if it has started."""
        pod = self._pod_of_victim(scale_down, victim)
        drain = scale_down.task.event.mode is ScaleDownMode.DRAIN
        return pod is None or not pod.live or (drain and pod.started_at is not None)

    def _pod_of_victim(self, scale_down: ScaleDown, victim: Victim) -> PodSnapshot | None:
        attempt = scale_down.attempts.get(victim, 0)
        return self._registry.get(self._attempt_key(victim.event_id, victim.index, attempt))

    def _attempt_key(self, event_id: str, index: int, attempt: int) -> AttemptKey:
        return AttemptKey(event_hash(self._instance, event_id), index, attempt)

    def apply_cancel_marks(self, event_id: str) -> None:
        """Another replica has cancelled workers of a task of ours."""
        task = self._scale_downs.reload_task(event_id)
        for worker in task.workers.values() if task else ():
            if worker.termination is not None and worker.termination.is_cancel and not worker.outcome:
                self._end_worker(event_id, worker, worker.termination)

    def _select_victims(self, scale_down: ScaleDown) -> bool:
        """Choose the victims, unless an older event comes first. Returns False while one does.

        The candidates are read only when nothing comes first any more: then no worker of an older event can be missing.
        """
        event, before = scale_down.task.event, scale_down.blocker
        scale_down.blocker = self._scale_downs.blocker(event.stream_id)
        if scale_down.blocker is None:
            answer = self._scale_downs.select_victims(
                event.event_id, scale_down.task.owner, self._victim_request(scale_down)
            )
            if isinstance(answer, VictimSelection):
                self._apply_selection(scale_down, answer)
            scale_down.ownership_lost = answer is None
            scale_down.blocker = answer if isinstance(answer, BlockingEvent) else None
        if scale_down.blocker != before and event.type is EventType.SCALE_DOWN and not scale_down.ownership_lost:
            self._store_reason(scale_down, StatusCode.OLDER_EVENT, _blocked_by(scale_down.blocker))
        return scale_down.blocker is None

    def _victim_request(self, scale_down: ScaleDown) -> VictimRequest:
        event = scale_down.task.event
        if event.type is EventType.SCALE_DOWN:
            found, mode, count = self._candidates(event.task_id, event.stream_id), event.mode, event.pod_count
        else:
            found, mode, count = self._candidates("", event.stream_id, event.supersedes), ScaleDownMode.DRAIN, 0
        ranked, spared = rank_victims(found, mode)
        listed = [Victim(one.event.event_id, one.index, self._candidate_pod_name(one)) for one in ranked]
        return VictimRequest(scale_down.termination(), listed, count, [self._candidate_pod_name(one) for one in spared])

    def _apply_selection(self, scale_down: ScaleDown, selection: VictimSelection) -> None:
        """This choice holds: not what was asked for now, since an earlier one may have been stored and its answer
        lost.
        """
        event = scale_down.task.event
        scale_down.set_victims(selection.victims, selection.survivors)
        if event.type is EventType.SCALE_UP:
            self._end_victims(scale_down)
            return
        _log.info(
            "scale_down.chosen", "Scaling down: %d workers end, %d stay", len(selection.victims),
            len(selection.survivors),
            event_id=event.event_id, task_id=event.task_id, mode=event.mode.value, victims=len(selection.victims),
            survivors=len(selection.survivors),
        )  # fmt: skip

    def _candidates(self, task_id: str, before: str, supersedes: str = "") -> list[VictimCandidate]:
        """Unfinished workers of older tasks: of that task id, of that key, or all.
        Those that are being cancelled already do not count.
        """
        found = []
        for view in self._scale_downs.open_scale_ups():
            event = view.event
            wanted = (not task_id or event.task_id == task_id) and (not supersedes or event.supersedes == supersedes)
            if not wanted or not is_older(event.stream_id, before):
                continue
            hash_ = event_hash(self._instance, event.event_id)
            for index in range(1, event.pod_count + 1):
                worker = view.workers.get(index, StoredWorker(index))
                pod = self._registry.get(AttemptKey(hash_, index, worker.attempt))
                cancelled = worker.termination is not None and worker.termination.claims
                succeeded = pod is not None and pod.agent_ended and pod.exit_code == 0  # its result is certain
                if not worker.outcome and not cancelled and not succeeded:
                    found.append(VictimCandidate(event, index, worker.attempt, pod))
        return found

    def _candidate_pod_name(self, one: VictimCandidate) -> str:
        return pod_name(self._attempt_key(one.event.event_id, one.index, max(one.attempt, 1)))

    def _end_victims(self, scale_down: ScaleDown) -> None:
        """See to it that each victim that has no result is ended. A victim has its mark since it was chosen; only a
        Redis that was wiped may have lost it.
        """
        event_id, termination = scale_down.task.event.event_id, scale_down.termination()
        stored = self._scale_downs.stored_workers(scale_down.unfinished_victims)
        for victim, worker in zip(scale_down.unfinished_victims, stored, strict=True):
            scale_down.attempts[victim] = worker.attempt if worker is not None else 0
            if worker is None or worker.outcome or event_id in worker.spared_by:
                continue
            if worker.termination is None or worker.termination.by != event_id:
                answer = self._attempts.store_termination(victim.event_id, None, victim.index, termination)
                worker = replace(worker, termination=answer.termination if answer.status is ScriptStatus.OK else None)
            if worker.termination is not None:
                self._end_worker(victim.event_id, worker, worker.termination)

    def _end_worker(self, event_id: str, worker: StoredWorker, termination: Termination) -> None:
        if self._ledger.cancel(event_id, worker.index, termination):
            return
        pod = self._registry.get(self._attempt_key(event_id, worker.index, worker.attempt))
        if pod is None or not pod.live or pod.deleting or (termination.drain and pod.started_at is not None):
            return
        self._terminator.terminate(pod, termination)

    def _remove_ended_victims(self, scale_down: ScaleDown, asked: Sequence[Victim]) -> None:
        """A victim with a result and without a pod is over; one that a drain has spared becomes a survivor."""
        over = set()
        for victim, worker in zip(asked, self._scale_downs.stored_workers(asked) if asked else (), strict=True):
            if worker is None:  # Redis was wiped: its owner restores the task, or it is taken up from its pods
                over |= set() if self._may_run(victim) else {victim}
            elif scale_down.task.event.event_id in worker.spared_by:
                scale_down.survivors.append(victim.pod)
                over.add(victim)
            elif worker.outcome and not self._has_pod(victim, worker):
                over.add(victim)
        scale_down.unfinished_victims = [victim for victim in scale_down.unfinished_victims if victim not in over]

    def _update_wait_reason(self, scale_down: ScaleDown) -> None:
        """Store which pods stay although they have ended: the client that set a finalizer has to remove it."""
        names = {victim.pod for victim in scale_down.unfinished_victims}
        held = (
            [pod for pod in self._registry.snapshots() if pod.name in names and pod.held_by_finalizers] if names else []
        )
        self._store_reason(scale_down, StatusCode.FINALIZER, "; ".join(pod.held_detail for pod in held))

    def _store_reason(self, scale_down: ScaleDown, code: StatusCode, reason: str) -> None:
        """Empty: it waits for nothing of the kind."""
        if reason != scale_down.reason:
            event_id, owner = scale_down.task.event.event_id, scale_down.task.owner
            since = rfc3339(self._clock.wall_time(self._clock.now()))
            note = TaskNote(reason[:1000], code=code, since=since) if reason else TaskNote("")
            self._attempts.write_status([StatusUpdate(event_id, owner, task=note)])
            scale_down.reason = reason

    def _may_run(self, victim: Victim) -> bool:
        """Is the task of a victim open here, or is there a pod that has its name?"""
        there = any(pod.name == victim.pod for pod in self._registry.snapshots())
        return there or self._ledger.tasks.has(victim.event_id)

    def _has_pod(self, victim: Victim, worker: StoredWorker) -> bool:
        """A kept pod runs nothing and may stay for days: it is no reason to wait."""
        pod = self._registry.get(self._attempt_key(victim.event_id, victim.index, worker.attempt))
        return pod is not None and not stays(pod, worker.outcome)

    def _record_result(self, scale_down: ScaleDown) -> None:
        event, spared = scale_down.task.event, set(scale_down.survivors)
        victims = [victim.pod for victim in scale_down.victims or () if victim.pod not in spared]
        fields = scale_down_result(event, victims, scale_down.survivors, self._clock.wall_time(self._clock.now()))
        answer = self._scale_downs.finish(event.event_id, scale_down.task.owner, fields)
        if answer.status is ScriptStatus.OK:
            _log.info(
                "scale_down.finished", "Scaled down: %s", fields["message"],
                event_id=event.event_id, task_id=event.task_id, outcome=fields["outcome"], victims=len(victims),
                survivors=len(scale_down.survivors),
            )  # fmt: skip


def _blocked_by(blocker: BlockingEvent | None) -> str:
    """What a scale_down waits for, in words."""
    if blocker is None:
        return ""
    if not blocker.owner:
        return f"waits for entry {blocker.blocking_id}, which was sent before it and is not accepted yet"
    return (
        f"waits for event {blocker.blocking_id}, which was sent before it and has its victims still to choose;"
        f" it is {blocker.owner}'s, and is taken over within LEASE_S if that replica is gone"
    )
