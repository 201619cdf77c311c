"""The part of the fake stream that deals with single workers: intents, terminations, results.

One attempt is current; a termination is stored before its pod is ended, and wins over every end but success; a result
is stored once, and the last one brings the task's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ottoscaler.core.events import DeadReason, EventType, ScaleEvent
from ottoscaler.core.output import CUT, MAX_TASK_BYTES
from ottoscaler.core.results import RESULT_FIELDS, common_fields, rfc3339, worker_result
from ottoscaler.core.termination import NOT_AFTER, Termination
from ottoscaler.core.verdicts import LAST_TRY, MAX_TRIES, TOO_LATE, EndReason, Outcome, Verdict
from ottoscaler.ports import ScriptReply, ScriptStatus, StatusUpdate
from ottoscaler.stored import TaskNote, WorkerNote
from tests.fakes.server import GROUP, FakeRedis, TaskState, WorkerState, worker_json


class WorkerScripts:
    """What `ports.Stream` says about one worker, on a FakeRedis. Any thread."""

    def __init__(self, server: FakeRedis) -> None:
        self.server = server

    def store_attempt(
        self, event_id: str, owner: str, index: int, *, attempt: int, infra_used: int, pod: str, oom_kills: int = 0,
        traced: str = "",
    ) -> ScriptReply:  # fmt: skip
        # no times for traces are kept here: the exporter is tested on a real server
        with self.server.call("store_attempt"):
            task, worker = self._look(event_id, index)
            if worker.outcome:
                return ScriptReply(ScriptStatus.HAS_RESULT)
            if task.owner != owner:
                return ScriptReply(ScriptStatus.NOT_OURS)
            if worker.termination is not None and (
                worker.termination.is_cancel or worker.termination.attempt >= attempt
            ):
                return ScriptReply(ScriptStatus.CANCELLED, worker.termination, worker.attempt)
            if task.event is not None and not self.server.places.holds(task.event):
                return ScriptReply(ScriptStatus.NOT_OURS)
            worker.termination = None
            if attempt < worker.attempt:
                return ScriptReply(ScriptStatus.OLD_ATTEMPT, None, worker.attempt)
            if (late := too_late(task, self.server.clock.now())) is not None:
                worker.termination = late
                return ScriptReply(ScriptStatus.CANCELLED, late, worker.attempt)
            again = worker.attempt == attempt
            if not again or worker.refused or worker.seen:
                task.tries = 0
            worker.seen = again and worker.seen
            refused = worker.refused
            worker.attempt, worker.infra_used, worker.refused = attempt, infra_used, False
            worker.oom_kills = oom_kills or worker.oom_kills
            if not (again and refused):
                worker.shown = worker_json(WorkerNote("creating", attempt, pod))
            task.state = "running"
            return ScriptReply(ScriptStatus.OK, None, attempt)

    def store_refusal(self, event_id: str, owner: str, index: int, attempt: int) -> ScriptReply:
        with self.server.call("store_refusal"):
            task, worker = self._look(event_id, index)
            if task.owner != owner:
                return ScriptReply(ScriptStatus.NOT_OURS)
            if worker.attempt == attempt and not worker.outcome and not worker.seen:
                worker.refused = True
                if '"state": "waiting"' not in worker.shown:
                    worker.shown = worker_json(WorkerNote("waiting", attempt, ""))
            return ScriptReply(ScriptStatus.OK)

    def mark_pod_seen(self, event_id: str, owner: str, index: int, attempt: int) -> ScriptReply:
        with self.server.call("mark_pod_seen"):
            task, worker = self._look(event_id, index)
            if worker.outcome:
                return ScriptReply(ScriptStatus.HAS_RESULT)
            if task.owner != owner:
                return ScriptReply(ScriptStatus.NOT_OURS)
            if worker.attempt == attempt and not worker.seen:
                worker.seen, worker.refused, task.tries = True, False, 0
            return ScriptReply(ScriptStatus.OK, worker.termination)

    def store_termination(self, event_id: str, owner: str | None, index: int, termination: Termination) -> ScriptReply:
        with self.server.call("store_termination"):
            task, worker = self._look(event_id, index)
            if worker.outcome:
                return ScriptReply(ScriptStatus.HAS_RESULT)
            if task.owner is None or (owner is not None and task.owner != owner):
                return ScriptReply(ScriptStatus.NOT_OURS)
            if not termination.applies_to(worker.attempt):
                return ScriptReply(ScriptStatus.OLD_ATTEMPT)
            spared = termination.drain and termination.by in worker.spared
            if spared or (worker.termination is not None and _stays(worker.termination, termination)):
                return ScriptReply(ScriptStatus.OK, worker.termination)
            worker.termination = termination
            task.cancels += termination.is_cancel
            return ScriptReply(ScriptStatus.OK, termination)

    def clear_termination(self, event_id: str, owner: str, index: int, termination: Termination) -> ScriptReply:
        with self.server.call("clear_termination"):
            task, worker = self._look(event_id, index)
            if worker.outcome:
                return ScriptReply(ScriptStatus.HAS_RESULT)
            if task.owner != owner:
                return ScriptReply(ScriptStatus.NOT_OURS)
            held = worker.termination
            if held is None or (held.attempt, held.reason, held.by) != (
                termination.attempt,
                termination.reason,
                termination.by,
            ):
                return ScriptReply(ScriptStatus.OK, held)
            worker.termination = None
            if termination.drain:
                _spare(worker, termination.by)
            return ScriptReply(ScriptStatus.OK)

    def record_result(
        self, event_id: str, owner: str, index: int, *, attempt: int, fields: Mapping[str, str]
    ) -> ScriptReply:
        with self.server.call("record_result"):
            task, worker = self._look(event_id, index)
            if worker.outcome:
                return ScriptReply(ScriptStatus.KNOWN)
            if task.owner != owner or task.event is None:
                return ScriptReply(ScriptStatus.NOT_OURS)
            termination = worker.termination
            cancelled = termination is not None and termination.is_cancel
            if worker.attempt not in (0, attempt) and not cancelled:
                return ScriptReply(ScriptStatus.OLD_ATTEMPT, None, worker.attempt)
            result = dict(fields)
            if termination is not None and (not termination.applies_to(attempt) or _had_no_part(termination, result)):
                if termination.drain and termination.is_cancel:
                    _spare(worker, termination.by)
                termination = None
            if termination is not None and result["outcome"] != Outcome.SUCCEEDED:
                result |= verdict_fields(termination.verdict) | {"fault": termination.verdict.reason.fault.value}
            else:
                termination = None
            poison = result["reason"] == EndReason.POISON
            dead = result["message"] if poison and self._poison_letter(task, event_id, result["message"]) else ""
            task.tries = 0
            finished = self._store(task, task.event, worker, result)
            return ScriptReply(ScriptStatus.OK, termination, attempt, finished, dead)

    def _poison_letter(self, task: TaskState, event_id: str, detail: str) -> bool:
        """The one dead letter of an event on which we failed time and again; False if it was there."""
        letter = {"dead_reason": DeadReason.POISON.value, "dead_detail": detail, "event_id": event_id}
        stream_id = task.event.stream_id if task.event else ""
        letter |= {"stream_id": stream_id, "attempts": str(task.tries), "event": task.raw}
        return self.server.entomb(f"{GROUP}|poison|{event_id}", letter)

    def _store(self, task: TaskState, event: ScaleEvent, worker: WorkerState, result: Mapping[str, str]) -> str:
        """The result, and with the last worker's the task's; returns the message of that one."""
        common = common_fields(event, RESULT_FIELDS)  # the hash has these once, not with each worker
        own = {name: value for name, value in result.items() if name not in common}
        task.output_bytes += (size := len(own.get("output", "").encode()))
        if task.output_bytes > MAX_TASK_BYTES:
            task.output_bytes -= size
            own["output"] = CUT
        worker.outcome, worker.shown = result["outcome"], json.dumps(own)
        tally = worker.outcome if worker.outcome in ("succeeded", "cancelled") else "failed"
        task.tally[tally] += 1
        task.first.setdefault(tally, result["reason"])
        self.server.publish(result)
        if task.tally.total() < event.pod_count:
            return ""
        ended = _ended(task, event.pod_count)
        self.server.publish(self._task_fields(event.event_id, task) | ended)
        self._close_task(task, event.event_id)
        return ended["message"]

    def write_status(self, notes: Sequence[StatusUpdate]) -> None:
        with self.server.call("write_status"):
            for note in notes:
                self._note(note)

    def _note(self, note: StatusUpdate) -> None:
        if (task := self._owned(note.event_id, note.owner)) is None:
            return
        for index, shown in note.workers.items():
            worker = task.worker(index)
            if not worker.outcome:
                worker.shown = worker_json(shown)
        if note.task is not None:
            task.note = note.task
        for index, progress in note.log_progress.items():
            task.worker(index).log = progress

    def _look(self, event_id: str, index: int) -> tuple[TaskState, WorkerState]:
        task = self.server.known(event_id)
        return task, task.worker(index)

    def _owned(self, event_id: str, owner: str) -> TaskState | None:
        task = self.server.find(event_id)
        return task if task is not None and task.owner == owner else None

    def _task_fields(self, event_id: str, task: TaskState) -> dict[str, str]:
        fields = {"kind": "task", "event_id": event_id, "task_id": task.task_id, "received_at": task.received_at}
        fields["finished_at"] = rfc3339(self.server.clock.now())
        fields["pod_count"] = str(task.event.pod_count if task.event else 0)
        fields |= {name: str(task.tally[name]) for name in ("succeeded", "failed", "cancelled")}
        return fields | (common_fields(task.event, RESULT_FIELDS) if task.event else {})

    def _close_task(self, task: TaskState, event_id: str) -> None:
        self.server.leases.pop(event_id, None)
        task.state, task.owner, task.note = "finished", None, TaskNote("")
        task.expires_at = self.server.clock.now() + self.server.task_ttl_s
        if task.event is not None:
            self.server.places.leave(task.event)

    def _poison(self, task: TaskState, event: ScaleEvent) -> None:
        """This ends a scale_down; a scale_up has pods that have to be ended first, unless no replica can."""
        verdict = Verdict(EndReason.POISON, f"the controller failed on this event {MAX_TRIES} times")
        if event.type is EventType.SCALE_DOWN:
            ids = {"event_id": event.event_id, "task_id": event.task_id, **verdict_fields(verdict)}
            detail = f"taken up {MAX_TRIES} times without any progress"
            chosen = [victim.pod for victim in task.victims or ()]
            ids |= {"victims": json.dumps(chosen), "pod_count": str(len(chosen))}
            self._publish_scale_down(event, ids | {"survivors": json.dumps(task.survivors), "message": detail})
            self._close_task(task, event.event_id)
            return
        last = Verdict(EndReason.POISON, f"the controller failed on this event {LAST_TRY} times")
        for worker in map(task.worker, range(1, event.pod_count + 1)):
            if worker.outcome:
                continue
            worker.termination = Termination(verdict.reason, verdict.message)
            if task.tries >= LAST_TRY:
                fields = worker_result(event, worker.index, worker.attempt, last, None, self.server.clock.now())
                self._store(task, event, worker, fields)

    def _publish_scale_down(self, event: ScaleEvent, fields: Mapping[str, str]) -> None:
        empty = {"kind": "scale_down", "finished_at": rfc3339(self.server.clock.now())}
        empty |= {"victims": "[]", "survivors": "[]", "pod_count": "0"}
        self.server.publish({**empty, **fields, **common_fields(event, RESULT_FIELDS)})

    def _reject(self, event_id: str, task: TaskState, message: str) -> None:
        """The task result of an event that cannot be carried out."""
        self.server.tasks[event_id] = task
        self._close_task(task, event_id)
        self.server.publish(self._task_fields(event_id, task) | verdict_fields(Verdict(EndReason.REJECTED, message)))


def too_late(task: TaskState, now: float) -> Termination | None:
    """What ends a worker that has not started, from the event's not_after on."""
    not_after = task.event.overrides.not_after if task.event else None
    if not_after is None or now < not_after:
        return None
    return Termination(EndReason.NOT_AFTER, TOO_LATE % rfc3339(not_after), drain=True, by=NOT_AFTER)


def _spare(worker: WorkerState, by: str) -> None:
    worker.spared = tuple(dict.fromkeys((*worker.spared, by)))


def _had_no_part(termination: Termination, result: Mapping[str, str]) -> bool:
    """It spares what has started, and this worker had, and ended for another reason than that its pod was deleted."""
    by_itself = result["reason"] not in (EndReason.POD_DELETED, termination.reason)
    return termination.only_before_start and bool(result["started_at"]) and by_itself


def _stays(held: Termination, new: Termination) -> bool:
    """A cancel overrides other terminations, and one without drain overrides one with; otherwise the first holds."""
    if held.is_cancel:
        return not new.is_cancel or new.drain or not held.drain
    return new.attempt == held.attempt


def verdict_fields(verdict: Verdict) -> dict[str, str]:
    """A verdict as a result shows it."""
    return {"outcome": verdict.reason.outcome.value, "reason": verdict.reason.value, "message": verdict.message}


def _ended(task: TaskState, count: int) -> dict[str, str]:
    """Outcome, reason and message of a task when all its workers have their results."""
    succeeded = task.tally["succeeded"]
    if succeeded == count:
        message = f"All {count} workers completed successfully"
        return {"outcome": "succeeded", "reason": "Completed", "message": message}
    outcome = "failed" if task.tally["failed"] else "cancelled"
    return {"outcome": outcome, "reason": task.first[outcome], "message": f"{succeeded} of {count} workers completed"}
