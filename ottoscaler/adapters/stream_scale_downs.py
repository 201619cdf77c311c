"""The scale_downs in Redis: the part of `ports.Stream` that chooses victims and follows them to their end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ottoscaler.adapters.replies import answers_of, chunks, text_of
from ottoscaler.adapters.stream_calls import StreamCalls
from ottoscaler.adapters.tasks import encode_termination, stored_worker, worker_fields
from ottoscaler.core.choice import Blocker, Choice, Claim, Victim
from ottoscaler.ports import Answer, StoredWorker

#: So many candidates more than are asked for are sent at first: some have ended, or are another choice's. Of a hundred
#: thousand the script would read all, and Redis would answer nobody meanwhile.
SPARE = 100


class StreamScaleDowns(StreamCalls):
    """Choices in the order of the stream. Any thread."""

    def blocker(self, stream_id: str) -> Blocker | None:
        """See ports.Stream. A place that its event no longer needs is cleared away on the way."""
        while answer := self._run("blocker", [self._key.choices], stream_id):
            kind, name = map(text_of, answer)
            if kind == "entry":
                return Blocker(name)
            event_id = name.partition("|")[2]
            owner = self._run("clear_place", [self._key.task(event_id), self._key.choices], event_id, name)
            if owner:
                return Blocker(event_id, text_of(owner))
        return None

    def choose(self, event_id: str, owner: str, claim: Claim) -> Choice | Blocker | None:
        """See ports.Stream."""
        sent = claim.count + max(SPARE, claim.count // 4) if claim.count else len(claim.candidates)
        while True:
            first, others = claim.candidates[:sent], claim.candidates[sent:]
            tasks = list(dict.fromkeys(candidate.event_id for candidate in first))
            keys = [self._key.task(event_id), self._key.choices, *(self._key.task(task) for task in tasks)]
            survivors = json.dumps([candidate.pod for candidate in others] + list(claim.spared))[1:-1]
            text = _encoded(claim, first, tasks)
            answer = self._run("choose", keys, event_id, owner, text, survivors, int(bool(others)))
            if answer[0] == b"more":
                sent = len(claim.candidates)
                continue
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
        """See ports.Stream. One command for each task, however many of its workers are victims."""
        of_task: dict[str, list[int]] = {}
        for victim in victims:
            of_task.setdefault(victim.event_id, []).append(victim.index)
        found: dict[tuple[str, int], StoredWorker | None] = {}
        with self._calling():
            for part in chunks(list(of_task.items())):
                pipe = self._client.pipeline(transaction=False)
                for event_id, indices in part:
                    names = [name for index in indices for name in worker_fields(index)]
                    pipe.hmget(self._key.task(event_id), ["state", *names])
                for (event_id, indices), answer in zip(part, answers_of(self._client, pipe, [None]), strict=True):
                    names = [name for index in indices for name in worker_fields(index)]
                    fields = dict(zip(names, answer[1:], strict=False))
                    for index in indices:
                        found[event_id, index] = stored_worker(index, fields) if answer[0] else None
        return [found[victim.event_id, victim.index] for victim in victims]


def _encoded(claim: Claim, candidates: Sequence[Victim], tasks: Sequence[str]) -> str:
    """A claim on these candidates as the script reads it: flat lists, which cost it half of what lists in a list do."""
    numbers = {event_id: number for number, event_id in enumerate(tasks, 1)}
    return json.dumps(
        {
            "doom": encode_termination(claim.termination),
            "count": claim.count,
            "events": tasks,
            "tasks": [numbers[candidate.event_id] for candidate in candidates],
            "indices": [candidate.index for candidate in candidates],
            "pods": [candidate.pod for candidate in candidates],
        }
    )
