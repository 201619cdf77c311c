"""What the status page reads of Redis beyond what `explain` reads. Each call has a bound, whatever the streams hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from ottoscaler.adapters.explain_reader import ExplainReader
from ottoscaler.adapters.redis_client import translate_errors
from ottoscaler.adapters.redis_values import chunks, entries_as_text, pipeline_replies
from ottoscaler.adapters.status_reader import DeadLetter, dead_letter_from_entry
from ottoscaler.adapters.task_codec import TaskState, decode_state

#: What of a task is shown; the event itself, which may be large, is not read.
_HEAD: Final = (
    "type", "task_id", "state", "pod_count", "received_at", "owner", "why", "code", "since", "next_at", "succeeded",
    "failed", "cancelled",
)  # fmt: skip
_CHUNK: Final = 1000


@dataclass(frozen=True, slots=True)
class OpenTasks:
    """Some unfinished tasks, oldest first; `count` is how many there are, `lease_ends` (by event id) until when their
    owners hold them, seconds since the epoch by the clock of Redis.
    """

    tasks: Sequence[TaskState]
    lease_ends: Mapping[str, float]
    count: int


class PageReader(ExplainReader):
    """Any thread; each method raises RedisUnavailable when Redis does not answer."""

    def some_open_tasks(self, most: int, most_workers: int) -> OpenTasks:
        """At most that many unfinished tasks. Workers are read until there are `most_workers`; a task behind that has
        none.
        """
        lease_ends = self.lease_ends(most)
        with translate_errors(self.where):
            count = self._client.zcard(self._key.open)
        found = zip(lease_ends, self._fields_of([(name, _HEAD) for name in lease_ends]), strict=True)
        heads = sorted((head for head in found if head[1]), key=lambda head: head[1].get(b"received_at", b""))
        wanted, left = [], most_workers
        for name, fields in heads:
            count_text = fields.get(b"pod_count", b"")
            pods = min(int(count_text) if count_text.isdigit() else 0, left)
            wanted.append((name, [f"worker:{index}" for index in range(1, pods + 1)]))
            left -= pods
        workers = self._fields_of([each for each in wanted if each[1]])
        by_name = dict(zip((name for name, fields in wanted if fields), workers, strict=True))
        tasks = [decode_state(name, {**fields, **by_name.get(name, {})}) for name, fields in heads]
        return OpenTasks(tasks, lease_ends, count)

    def passed_on(self, event_ids: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        """What these events pass on to results: event id -> field -> value. They never change."""
        stored = self._fields_of([(event_id, ("common",)) for event_id in event_ids])
        return {event_id: _pairs(raw.get(b"common", b"[]")) for event_id, raw in zip(event_ids, stored, strict=True)}

    def newest_dead_letters(self, most: int) -> Mapping[str, DeadLetter]:
        """The newest dead letters of our group by their ids, newest first, out of the last that many."""
        with translate_errors(self.where):
            found = cast("Any", self._client.xrevrange(self._keys.dead_letter_stream, count=most))
        return {
            entry_id: dead_letter_from_entry(entry_id, fields)
            for entry_id, fields in entries_as_text(found)
            if self._is_of_our_group(fields)
        }

    def results_after(self, start: str) -> Sequence[tuple[str, Mapping[str, str]]]:
        """Some results behind an entry id, oldest first."""
        with translate_errors(self.where):
            found = cast("Any", self._client.xrange(self._keys.result_stream, f"({start}", count=_CHUNK))
        return entries_as_text(found)

    def newest_results(self, most: int) -> Sequence[tuple[str, Mapping[str, str]]]:
        """The newest results of every kind, newest first."""
        with translate_errors(self.where):
            found = cast("Any", self._client.xrevrange(self._keys.result_stream, count=most))
        return entries_as_text(found)

    def _fields_of(self, wanted: Sequence[tuple[str, Sequence[str]]]) -> list[dict[bytes, bytes]]:
        """Those of these fields that each task has."""
        replies: list[list[bytes | None]] = []
        with translate_errors(self.where):
            for part in chunks(wanted):
                pipe = self._client.pipeline(transaction=False)
                for event_id, fields in part:
                    pipe.hmget(self._key.task(event_id), list(fields))
                replies += pipeline_replies(self._client, pipe, [])
        return [
            {name.encode(): value for name, value in zip(fields, reply, strict=False) if value is not None}
            for (_, fields), reply in zip(wanted, replies, strict=True)
        ]


def _pairs(stored: bytes) -> dict[str, str]:
    flat = json.loads(stored)
    return dict(zip(flat[::2], flat[1::2], strict=True))
