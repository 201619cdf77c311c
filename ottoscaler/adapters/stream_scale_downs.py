"""The scale_downs in Redis: the part of `ports.Stream` that chooses victims and follows them to their end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ottoscaler.adapters.replies import answers_of, chunks
from ottoscaler.adapters.stream_calls import StreamCalls
from ottoscaler.adapters.tasks import encode_doom, stored_worker, worker_fields
from ottoscaler.core.choice import Blocker, Choice, Claim, Victim
from ottoscaler.ports import Answer, StoredWorker


class StreamScaleDowns(StreamCalls):
    """Choices in the order of the stream. Any thread."""

    def blocker(self, stream_id: str) -> Blocker | None:
        """See ports.Stream. A place that its event no longer needs is cleared away on the way."""
        while answer := self._run("blocker", [self._key.choices], stream_id):
            kind, name = (text.decode() for text in answer)
            if kind == "entry":
                return Blocker(name)
            event_id = name.partition("|")[2]
            owner = self._run("clear_place", [self._key.task(event_id), self._key.choices], event_id, name)
            if owner:
                return Blocker(event_id, owner.decode())
        return None

    def choose(self, event_id: str, owner: str, claim: Claim) -> Choice | Blocker | None:
        """See ports.Stream."""
        tasks = list(dict.fromkeys(candidate.event_id for candidate in claim.candidates))
        keys = [self._key.task(event_id), self._key.choices, *(self._key.task(task) for task in tasks)]
        text = _encoded(claim, tasks)
        while True:
            answer = self._run("choose", keys, event_id, owner, text)
            if answer[0] == b"ok":
                return Choice([Victim(*item) for item in json.loads(answer[1])], json.loads(answer[2]))
            if answer[0] == b"not_ours":
                return None
            if (blocker := self.blocker(answer[1].decode())) is not None:
                return blocker

    def finish_scale_down(self, event_id: str, owner: str, fields: Mapping[str, str]) -> Answer:
        """See ports.Stream."""
        return self._answer("finish", event_id, owner, *(text for pair in fields.items() for text in pair))

    def outcomes(self, victims: Sequence[Victim]) -> Sequence[StoredWorker | None]:
        """See ports.Stream. Only the fields in question are read."""
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


def _encoded(claim: Claim, tasks: Sequence[str]) -> str:
    """A claim as the script reads it: flat lists, which cost it half of what a list of lists does."""
    numbers = {event_id: number for number, event_id in enumerate(tasks, 1)}
    return json.dumps(
        {
            "doom": encode_doom(claim.doom),
            "count": claim.count,
            "events": tasks,
            "tasks": [numbers[candidate.event_id] for candidate in claim.candidates],
            "indices": [candidate.index for candidate in claim.candidates],
            "pods": [candidate.pod for candidate in claim.candidates],
            "spared": list(claim.spared),
        }
    )
