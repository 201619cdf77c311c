"""How workers stand, and what scale_downs chose: the part of `ports.Stream` about single workers, in Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ottoscaler.adapters.replies import answers_of, chunks
from ottoscaler.adapters.stream_calls import StreamCalls
from ottoscaler.adapters.tasks import encode_doom, stored_worker, worker_fields, worker_json
from ottoscaler.core.acts import Doom
from ottoscaler.ports import Answer, StoredWorker, Victim


class StreamWorkers(StreamCalls):
    """Attempts, dooms, results, victims. Any thread."""

    def intend(self, event_id: str, owner: str, index: int, *, attempt: int, infra_used: int, pod: str) -> Answer:
        """See ports.Stream."""
        state = worker_json("creating", attempt, pod)
        return self._answer("intend", event_id, owner, index, attempt, infra_used, state)

    def note_refused(self, event_id: str, owner: str, index: int, attempt: int) -> Answer:
        """See ports.Stream."""
        return self._answer("refused", event_id, owner, index, attempt, worker_json("waiting", attempt, ""))

    def check(self, event_id: str, owner: str, index: int) -> Answer:
        """See ports.Stream."""
        return self._answer("check", event_id, owner, index)

    def doom(self, event_id: str, owner: str | None, index: int, doom: Doom) -> Answer:
        """See ports.Stream."""
        return self._answer("doom", event_id, owner or "", index, encode_doom(doom))

    def withdraw(self, event_id: str, owner: str, index: int, doom: Doom) -> Answer:
        """See ports.Stream."""
        return self._answer("withdraw", event_id, owner, index, encode_doom(doom))

    def record(self, event_id: str, owner: str, index: int, *, attempt: int, fields: Mapping[str, str]) -> Answer:
        """See ports.Stream."""
        return self._answer(
            "record", event_id, owner, index, attempt, *(text for pair in fields.items() for text in pair)
        )

    def note_states(self, event_id: str, owner: str, states: Mapping[int, tuple[str, int, str]]) -> None:
        """See ports.Stream."""
        for part in chunks(list(states.items())):
            flat = [text for index, state in part for text in (index, worker_json(*state))]
            self._run("note_states", [self._key.task(event_id)], event_id, owner, *flat)

    def note_why(self, event_id: str, owner: str, why: str, next_at: str) -> None:
        """See ports.Stream."""
        self._run("note_why", [self._key.task(event_id)], event_id, owner, why, next_at)

    # -- scale_down

    def choose(
        self, event_id: str, owner: str, victims: Sequence[Victim], survivors: Sequence[str]
    ) -> tuple[Sequence[Victim], Sequence[str]] | None:
        """See ports.Stream."""
        listed = json.dumps([[victim.event_id, victim.index, victim.pod] for victim in victims])
        answer = self._run("choose", [self._key.task(event_id)], event_id, owner, listed, json.dumps(list(survivors)))
        if answer[0] != b"ok":
            return None
        return [Victim(*item) for item in json.loads(answer[1])], json.loads(answer[2])

    def mark_superseded(self, event_id: str, owner: str) -> None:
        """See ports.Stream."""
        self._run("superseded", [self._key.task(event_id)], event_id, owner)

    def finish_scale_down(self, event_id: str, owner: str, fields: Mapping[str, str]) -> Answer:
        """See ports.Stream."""
        return self._answer("finish", event_id, owner, *(text for pair in fields.items() for text in pair))

    def outcomes(self, victims: Sequence[Victim]) -> Sequence[StoredWorker | None]:
        """See ports.Stream. Asked often while a scale_down is under way, so only the fields in question are read."""
        found: list[StoredWorker | None] = []
        with self._calling():
            for part in chunks(victims):
                pipe = self._client.pipeline(transaction=False)
                for victim in part:
                    pipe.hmget(self._key.task(victim.event_id), ["state", *worker_fields(victim.index)])
                for victim, (state, *values) in zip(
                    part, answers_of(self._client, pipe, [None] * (1 + len(worker_fields(1)))), strict=True
                ):
                    fields = dict(zip(worker_fields(victim.index), values, strict=True))
                    found.append(stored_worker(victim.index, fields) if state else None)
        return found
