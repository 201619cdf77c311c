"""Attempts in Redis: one attempt of one worker, from the intent to its result. Script functions: attempts.lua."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from ottoscaler.adapters.redis_calls import RedisAdapter
from ottoscaler.adapters.redis_values import chunks
from ottoscaler.adapters.scripts import Call
from ottoscaler.adapters.task_codec import encode_termination, worker_json
from ottoscaler.core.termination import Termination
from ottoscaler.ports import Answer, Note


class RedisAttempts(RedisAdapter):
    """`ports.Attempts` on Redis. Any thread."""

    def intend(self, event_id: str, owner: str, index: int, *, attempt: int, infra_used: int, pod: str) -> Answer:
        """See ports.Attempts."""
        keys, state = [self._redis.key.task(event_id)], worker_json("creating", attempt, pod)
        return self._redis.answer("intend", keys, event_id, owner, index, attempt, infra_used, state)

    def note_refused(self, event_id: str, owner: str, index: int, attempt: int) -> Answer:
        """See ports.Attempts."""
        keys, state = [self._redis.key.task(event_id)], worker_json("waiting", attempt, "")
        return self._redis.answer("note_refused", keys, event_id, owner, index, attempt, state)

    def check(self, event_id: str, owner: str, index: int, attempt: int) -> Answer:
        """See ports.Attempts."""
        return self._redis.answer("check", [self._redis.key.task(event_id)], event_id, owner, index, attempt)

    def store_termination(self, event_id: str, owner: str | None, index: int, termination: Termination) -> Answer:
        """See ports.Attempts."""
        keys, text = [self._redis.key.task(event_id)], encode_termination(termination)
        return self._redis.answer("store_termination", keys, event_id, owner or "", index, text)

    def clear_termination(self, event_id: str, owner: str, index: int, termination: Termination) -> Answer:
        """See ports.Attempts."""
        keys, text = [self._redis.key.task(event_id)], encode_termination(termination)
        return self._redis.answer("clear_termination", keys, event_id, owner, index, text)

    def record(self, event_id: str, owner: str, index: int, *, attempt: int, fields: Mapping[str, str]) -> Answer:
        """See ports.Attempts."""
        keys = [self._redis.key.task(event_id)]
        return self._redis.answer("record", keys, event_id, owner, index, attempt, *chain.from_iterable(fields.items()))

    def write_notes(self, notes: Sequence[Note]) -> None:
        """See ports.Attempts."""
        calls = [call for note in notes for call in self._note_states(note) + self._note_reason(note)]
        # In parts, and not on the workers' connections: a thousand notes at once would hold up Redis for all attempts.
        for some in chunks(calls):
            self._redis.run_many(self._redis.taking, some)

    def _note_states(self, note: Note) -> list[Call]:
        keys, calls = [self._redis.key.task(note.event_id)], []
        for part in chunks(list(note.states.items())):
            flat = [text for index, state in part for text in (index, worker_json(*state))]
            calls.append(Call("note_states", keys, [note.owner, *flat]))
        return calls

    def _note_reason(self, note: Note) -> list[Call]:
        if note.reason is None:
            return []
        return [Call("note_reason", [self._redis.key.task(note.event_id)], [note.owner, note.reason, note.next_at])]
