"""How workers stand: the part of `ports.Stream` about single workers, in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ottoscaler.adapters.replies import chunks
from ottoscaler.adapters.stream_calls import StreamCalls
from ottoscaler.adapters.tasks import encode_termination, worker_json
from ottoscaler.core.termination import Termination
from ottoscaler.ports import Answer, Note


class StreamWorkers(StreamCalls):
    """Attempts, terminations, results. Any thread."""

    def intend(self, event_id: str, owner: str, index: int, *, attempt: int, infra_used: int, pod: str) -> Answer:
        """See ports.Stream."""
        state = worker_json("creating", attempt, pod)
        return self._answer("intend", event_id, owner, index, attempt, infra_used, state)

    def note_refused(self, event_id: str, owner: str, index: int, attempt: int) -> Answer:
        """See ports.Stream."""
        return self._answer("refused", event_id, owner, index, attempt, worker_json("waiting", attempt, ""))

    def check(self, event_id: str, owner: str, index: int, attempt: int) -> Answer:
        """See ports.Stream."""
        return self._answer("check", event_id, owner, index, attempt)

    def doom(self, event_id: str, owner: str | None, index: int, termination: Termination) -> Answer:
        """See ports.Stream."""
        return self._answer("doom", event_id, owner or "", index, encode_termination(termination))

    def withdraw(self, event_id: str, owner: str, index: int, termination: Termination) -> Answer:
        """See ports.Stream."""
        return self._answer("withdraw", event_id, owner, index, encode_termination(termination))

    def record(self, event_id: str, owner: str, index: int, *, attempt: int, fields: Mapping[str, str]) -> Answer:
        """See ports.Stream."""
        return self._answer(
            "record", event_id, owner, index, attempt, *(text for pair in fields.items() for text in pair)
        )

    def write_notes(self, notes: Sequence[Note]) -> None:
        """See ports.Stream."""
        calls: list[tuple[str, Sequence[str], Sequence[Any]]] = []
        for note in notes:
            key, whose = [self._key.task(note.event_id)], (note.event_id, note.owner)
            for part in chunks(list(note.states.items())):
                flat = [text for index, state in part for text in (index, worker_json(*state))]
                calls.append(("note_states", key, (*whose, *flat)))
            if note.reason is not None:
                calls.append(("note_why", key, (*whose, note.reason, note.next_at)))
        with self._calling():
            for some in chunks(calls):
                self._scripts.run_many(self._taking, some)
