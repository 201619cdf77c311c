"""What the status page reads of Redis beyond what `explain` reads. Each call has a bound, whatever the streams hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

from ottoscaler.adapters.explain_reader import ExplainReader
from ottoscaler.adapters.redis_client import translate_errors
from ottoscaler.adapters.redis_values import chunks, entries_as_text, some_fields_as_text
from ottoscaler.adapters.scripts import ScriptCall, Scripts
from ottoscaler.adapters.status_reader import DeadLetter, dead_letter_from_entry
from ottoscaler.adapters.task_codec import TaskState, decode_state
from ottoscaler.settings import KeySettings, RedisSettings

#: What of a task is shown; the event itself, which may be large, is not read.
_HEAD: Final = (
    "type", "task_id", "state", "pod_count", "received_at", "owner", "why", "code", "since", "next_at", "succeeded",
    "failed", "cancelled",
)  # fmt: skip
_HEAD_NAMES: Final = tuple(name.encode() for name in _HEAD)
_HEAD_AND_FIRST: Final = (*_HEAD, "worker:1")
_POD_COUNT, _RECEIVED_AT = _HEAD.index("pod_count"), _HEAD.index("received_at")
#: What is shown of a result.
RESULT_FIELDS: Final = (
    "kind", "task_id", "event_id", "outcome", "reason", "message", "fault", "exit_code", "index", "attempt", "pod",
    "node", "repository", "commit_sha", "received_at", "created_at", "scheduled_at", "started_at", "finished_at",
)  # fmt: skip
_RESULT_NAMES: Final = tuple((name.encode(), name) for name in RESULT_FIELDS)
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
    """Any thread; each method raises RedisUnavailable when Redis does not answer.

    Unlike `status` and `explain` it calls a script, which writes nothing: as commands, the reads of two hundred tasks
    would take more of this process's time than all else that a viewer costs.
    """

    def __init__(self, server: RedisSettings, keys: KeySettings) -> None:
        super().__init__(server, keys)
        self._scripts = Scripts(keys)

    def some_open_tasks(self, most: int, most_workers: int) -> OpenTasks:
        """At most that many unfinished tasks. Workers are read until there are `most_workers`; a task behind that has
        none.
        """
        lease_ends = self.lease_ends(most)
        with translate_errors(self.where):
            count = self._client.zcard(self._key.open)
        # most tasks have one worker: it comes with the head, and saves the second trip
        found = zip(lease_ends, self._fields_of_tasks([(name, _HEAD_AND_FIRST) for name in lease_ends]), strict=True)
        heads = sorted((head for head in found if any(head[1])), key=_received_at)
        left, shown, wanted = most_workers, dict[str, tuple[bytes | None, ...]](), list[tuple[str, list[str]]]()
        for name, values in heads:
            count_text = values[_POD_COUNT] or b""
            pods = min(int(count_text) if count_text.isdigit() else 0, left)
            left -= pods
            shown[name] = values if pods else values[:-1]
            if pods > 1:
                wanted.append((name, [f"worker:{index}" for index in range(2, pods + 1)]))
        for (name, _), more in zip(wanted, self._fields_of_tasks(wanted), strict=True):
            shown[name] += more
        return OpenTasks([_task_of(name, values) for name, values in shown.items()], lease_ends, count)

    def passed_on(self, event_ids: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        """What these events pass on to results: event id -> field -> value. They never change."""
        stored = self._fields_of_tasks([(event_id, ("common",)) for event_id in event_ids])
        commons = (values[0] if values else None for values in stored)
        return {event_id: _pairs(common or b"[]") for event_id, common in zip(event_ids, commons, strict=True)}

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
        """Some results behind an entry id, oldest first; of each its RESULT_FIELDS."""
        with translate_errors(self.where):
            found = cast("Any", self._client.xrange(self._keys.result_stream, f"({start}", count=_CHUNK))
        return some_fields_as_text(found, _RESULT_NAMES)

    def newest_results(self, most: int) -> Sequence[tuple[str, Mapping[str, str]]]:
        """The newest results of every kind, newest first; of each its RESULT_FIELDS."""
        with translate_errors(self.where):
            found = cast("Any", self._client.xrevrange(self._keys.result_stream, count=most))
        return some_fields_as_text(found, _RESULT_NAMES)

    def _fields_of_tasks(self, wanted: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[bytes | None, ...]]:
        """What these fields of each task hold; nothing for a key that is no task."""
        calls = [
            ScriptCall(
                "fields_of_tasks", [self._key.task(event_id) for event_id, _ in part],
                [*(" ".join(fields) for _, fields in part)],
            )
            for part in chunks(wanted)
        ]  # fmt: skip
        if not calls:
            return []
        with translate_errors(self.where):
            replies = self._scripts.run_many(self._client, calls)
        return [tuple(values) for rows in replies for values in rows]


def _received_at(head: tuple[str, tuple[bytes | None, ...]]) -> bytes:
    return head[1][_RECEIVED_AT] or b""


@lru_cache(1024)
def _task_of(event_id: str, values: tuple[bytes | None, ...]) -> TaskState:
    """A task of the values of its head and its workers. Remembered: most stand as they did a second ago."""
    workers = (f"worker:{index}".encode() for index in range(1, len(values) - len(_HEAD) + 1))
    names = (*_HEAD_NAMES, *workers)
    return decode_state(event_id, {name: value for name, value in zip(names, values, strict=True) if value is not None})


def _pairs(stored: bytes) -> dict[str, str]:
    flat = json.loads(stored)
    return dict(zip(flat[::2], flat[1::2], strict=True))
