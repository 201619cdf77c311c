"""Attempts in Redis: one attempt of one worker, from the intent to its result. Script functions: attempts.lua."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from ottoscaler.adapters.redis_calls import RedisAdapter
from ottoscaler.adapters.redis_values import chunks
from ottoscaler.adapters.scripts import ScriptCall
from ottoscaler.adapters.task_codec import encode_task_note, encode_termination, encode_worker_note
from ottoscaler.core.termination import Termination
from ottoscaler.ports import ScriptReply, StatusUpdate
from ottoscaler.stored import WorkerNote


class RedisAttempts(RedisAdapter):
    """`ports.Attempts` on Redis. Any thread."""

    def store_attempt(
        self, event_id: str, owner: str, index: int, *, attempt: int, infra_used: int, pod: str, oom_kills: int = 0,
        traced: str = "",
    ) -> ScriptReply:  # fmt: skip
        """See ports.Attempts."""
        keys, state = [self._redis.key.task(event_id)], encode_worker_note(WorkerNote("creating", attempt, pod))
        return self._redis.run_for_worker(
            "store_attempt", keys, event_id, owner, index, attempt, infra_used, state, oom_kills, traced
        )

    def store_refusal(self, event_id: str, owner: str, index: int, attempt: int) -> ScriptReply:
        """See ports.Attempts."""
        keys, state = [self._redis.key.task(event_id)], encode_worker_note(WorkerNote("waiting", attempt, ""))
        return self._redis.run_for_worker("store_refusal", keys, event_id, owner, index, attempt, state)

    def mark_pod_seen(self, event_id: str, owner: str, index: int, attempt: int) -> ScriptReply:
        """See ports.Attempts."""
        return self._redis.run_for_worker(
            "mark_pod_seen", [self._redis.key.task(event_id)], event_id, owner, index, attempt
        )

    def store_termination(self, event_id: str, owner: str | None, index: int, termination: Termination) -> ScriptReply:
        """See ports.Attempts."""
        keys, text = [self._redis.key.task(event_id)], encode_termination(termination)
        return self._redis.run_for_worker("store_termination", keys, event_id, owner or "", index, text)

    def clear_termination(self, event_id: str, owner: str, index: int, termination: Termination) -> ScriptReply:
        """See ports.Attempts."""
        keys, text = [self._redis.key.task(event_id)], encode_termination(termination)
        return self._redis.run_for_worker("clear_termination", keys, event_id, owner, index, text)

    def record_result(
        self, event_id: str, owner: str, index: int, *, attempt: int, fields: Mapping[str, str]
    ) -> ScriptReply:
        """See ports.Attempts."""
        keys = [self._redis.key.task(event_id)]
        return self._redis.run_for_worker(
            "record_result", keys, event_id, owner, index, attempt, *chain.from_iterable(fields.items())
        )

    def write_status(self, notes: Sequence[StatusUpdate]) -> None:
        """See ports.Attempts."""
        calls = [call for note in notes for call in self._note_status(note) + self._note_logs(note)]
        # In parts, and not on the workers' connections: a thousand notes at once would hold up Redis for all attempts.
        for some in chunks(calls):
            self._redis.run_many(self._redis.taking, some)

    def _note_logs(self, note: StatusUpdate) -> list[ScriptCall]:
        keys = [self._redis.key.task(note.event_id)]
        parts = chunks(list(note.log_progress.items()))
        return [ScriptCall("note_logs", keys, [note.owner, *chain.from_iterable(part)]) for part in parts]

    def _note_status(self, note: StatusUpdate) -> list[ScriptCall]:
        """The task's note goes with the first workers', so that most updates are one call."""
        keys, calls = [self._redis.key.task(note.event_id)], []
        of_task: list[str] = [] if note.task is None else encode_task_note(note.task)
        for part in chunks(list(note.workers.items())) or [[]]:
            flat = [text for index, worker in part for text in (index, encode_worker_note(worker))]
            calls.append(ScriptCall("note_status", keys, [note.owner, len(of_task), *of_task, *flat]))
            of_task = []
        return calls
