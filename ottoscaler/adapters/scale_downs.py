"""Scale-downs in Redis: the choice of victims, how they stand, and the result. Script functions: scale_downs.lua."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, cast

from ottoscaler.adapters.redis_calls import RedisAdapter
from ottoscaler.adapters.redis_values import chunks, pipeline_replies, text_of
from ottoscaler.adapters.task_codec import (
    decode_or_none,
    decode_task,
    decode_view,
    decode_worker,
    encode_termination,
    worker_field_names,
)
from ottoscaler.core.events import EventType
from ottoscaler.core.victim_selection import BlockingEvent, Victim, VictimRequest, VictimSelection
from ottoscaler.ports import OpenTask, ScriptReply, StoredWorker, TaskView

#: This many more candidates than requested are sent at first: some have ended, or are another choice's. Of a hundred
#: thousand the script would read all, and Redis would answer no other client meanwhile.
EXTRA_CANDIDATES: Final = 100


class RedisScaleDowns(RedisAdapter):
    """`ports.ScaleDowns` on Redis. Any thread."""

    def open_scale_ups(self) -> Sequence[TaskView]:
        """See ports.ScaleDowns."""
        hashes = self._redis.hashes(self._redis.open_event_ids(self._redis.client))
        views = [decode_or_none(decode_view, fields) for fields in hashes if b"owner" in fields]
        return [view for view in views if view is not None and view.event.type is EventType.SCALE_UP]

    def blocker(self, stream_id: str) -> BlockingEvent | None:
        """See ports.ScaleDowns. A place that its event no longer needs is cleared away on the way."""
        key = self._redis.key
        # Again after each place that was cleared: an event that lost its task in between would hold up all later ones.
        while reply := self._redis.run("blocker", [key.choices], stream_id):
            kind, name = map(text_of, reply)
            if kind == "entry":
                return BlockingEvent(name)
            event_id = name.partition("|")[2]
            if owner := self._clear_place(event_id, name):
                return BlockingEvent(event_id, owner)
        return None

    def _clear_place(self, event_id: str, place: str) -> str:
        keys = [self._redis.key.task(event_id), self._redis.key.choices]
        return text_of(self._redis.run("clear_place", keys, event_id, place))

    def select_victims(self, event_id: str, owner: str, claim: VictimRequest) -> VictimSelection | BlockingEvent | None:
        """See ports.ScaleDowns."""
        key = self._redis.key
        sent = claim.count + max(EXTRA_CANDIDATES, claim.count // 4) if claim.count else len(claim.candidates)
        while True:
            first, others = claim.candidates[:sent], claim.candidates[sent:]
            tasks = list(dict.fromkeys(candidate.event_id for candidate in first))
            keys = [key.task(event_id), key.choices, *(key.task(task) for task in tasks)]
            survivors = json.dumps([candidate.pod for candidate in others] + list(claim.spared_pods))[1:-1]
            text = _encode_victim_request(claim, first, tasks)
            reply = self._redis.run("select_victims", keys, event_id, owner, text, survivors, int(bool(others)))
            if reply[0] == b"more":  # too many of the few that were sent have ended: now all, and no third time
                sent = len(claim.candidates)
                continue
            if reply[0] == b"ok":
                return VictimSelection([Victim(*item) for item in json.loads(reply[1])], json.loads(reply[2]))
            if reply[0] == b"not_ours":
                return None
            if (blocker := self.blocker(reply[1].decode())) is not None:
                return blocker

    def reload_task(self, event_id: str) -> OpenTask | None:
        """See ports.ScaleDowns."""
        with self._redis.translate_errors():
            fields = cast("dict[bytes, bytes]", self._redis.client.hgetall(self._redis.key.task(event_id)))
        return decode_task(fields[b"owner"].decode(), fields) if b"owner" in fields else None

    def stored_workers(self, victims: Sequence[Victim]) -> Sequence[StoredWorker | None]:
        """See ports.ScaleDowns. One command for each task, however many of its workers are victims."""
        if not victims:
            return []  # nothing is asked: in an outage this must not count as an answer of Redis
        client, key = self._redis.client, self._redis.key
        of_task: dict[str, list[int]] = {}
        for victim in victims:
            of_task.setdefault(victim.event_id, []).append(victim.index)
        names = {
            event_id: [*chain.from_iterable(map(worker_field_names, indices))] for event_id, indices in of_task.items()
        }
        found: dict[tuple[str, int], StoredWorker | None] = {}
        with self._redis.translate_errors():
            for part in chunks(list(of_task.items())):
                pipe = client.pipeline(transaction=False)
                for event_id, _ in part:
                    pipe.hmget(key.task(event_id), ["state", *names[event_id]])
                for (event_id, indices), reply in zip(part, pipeline_replies(client, pipe, [None]), strict=True):
                    fields = dict(zip(names[event_id], reply[1:], strict=False))
                    for index in indices:
                        worker = decode_worker(index, fields) if reply[0] else None
                        is_missing = worker is None or (reply[0] == b"finished" and not worker.outcome)
                        found[event_id, index] = None if is_missing else worker
        return [found[victim.event_id, victim.index] for victim in victims]

    def finish(self, event_id: str, owner: str, fields: Mapping[str, str]) -> ScriptReply:
        """See ports.ScaleDowns."""
        return self._redis.run_for_worker(
            "finish", [self._redis.key.task(event_id)], event_id, owner, *chain.from_iterable(fields.items())
        )


def _encode_victim_request(claim: VictimRequest, candidates: Sequence[Victim], tasks: Sequence[str]) -> str:
    """A claim on these candidates as the script reads it: flat lists, which cost it half of what lists in a list do."""
    numbers = {event_id: number for number, event_id in enumerate(tasks, 1)}
    return json.dumps(
        {
            "termination": encode_termination(claim.termination),
            "count": claim.count,
            "events": tasks,
            "tasks": [numbers[candidate.event_id] for candidate in candidates],
            "indices": [candidate.index for candidate in candidates],
            "pods": [candidate.pod for candidate in candidates],
        }
    )
