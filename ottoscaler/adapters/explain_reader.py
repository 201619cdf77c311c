"""What `explain` reads of Redis, beyond what `status` shows: where an event is in its stream, until when its lease
runs, and what is left of it. Each call has a bound, however large the streams are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
import redis

from ottoscaler.adapters.redis_client import translate_errors
from ottoscaler.adapters.redis_values import chunks, entries_as_text, pipeline_replies, text_of
from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.adapters.task_codec import TaskState

#: How many entries of a stream are searched for an id that no task has.
SEARCHED: Final = 2_000
#: Open tasks that are searched for a task id.
OPEN_SEARCHED: Final = 10_000
_CHUNK: Final = 500
_event = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class QueuedEvent:
    """An entry of the event stream that no task knows: `consumer` has read it (empty: none has), `idle_s` seconds ago;
    `before` is how many unread entries come before it, None for one that was read.
    """

    stream_id: str
    fields: Mapping[str, str]
    before: int | None = None
    consumer: str = ""
    idle_s: float = 0.0


class ExplainReader(StatusReader):
    """Any thread; each method raises RedisUnavailable when Redis does not answer."""

    def tasks_of(self, name: str) -> Sequence[TaskState]:
        """The task of an event id; or the open tasks of a task id, oldest first; or those of the newest results that
        have this task id.
        """
        if (task := self.task(name)) is not None:
            return [task]
        event_ids = self._open_with_task_id(name) or self._finished_with_task_id(name)
        found = (self.task(event_id) for event_id in event_ids)
        return sorted((task for task in found if task is not None), key=lambda task: task.received_at)

    def lease_end(self, event_id: str) -> float | None:
        """Until when its owner holds a task, seconds since the epoch by the clock of Redis; None: it is not open."""
        with translate_errors(self.where):
            end = self._client.zscore(self._key.open, event_id)
        return None if end is None else end / 1000

    def queued(self, name: str) -> QueuedEvent | None:
        """The entry with this id, event id or task id, which is not accepted yet; None if there is none."""
        for stream_id, consumer, idle_s in self._pending_entries():
            fields = self._entry(stream_id)
            if fields is not None and _is_named(name, stream_id, fields):
                return QueuedEvent(stream_id, fields, consumer=consumer, idle_s=idle_s)
        after, before = self._last_delivered_id(), 0
        while before < SEARCHED:
            with translate_errors(self.where):
                chunk = cast("Any", self._client.xrange(self._keys.stream, f"({after}", count=_CHUNK))
            for place, (stream_id, fields) in enumerate(entries_as_text(chunk)):
                if _is_named(name, stream_id, fields):
                    return QueuedEvent(stream_id, fields, before + place)
            before += len(chunk)
            if len(chunk) < _CHUNK:
                return None
            after = text_of(chunk[-1][0])
        return None

    def dead_letters_of(self, name: str) -> Sequence[Mapping[str, str]]:
        """The newest dead letters with this id, or of an event with this event id, entry id or task id, newest first;
        each with its `id`, without the event.
        """
        found, before = [], "+"
        for _ in range(SEARCHED // _CHUNK):
            with translate_errors(self.where):
                chunk = cast("Any", self._client.xrevrange(self._keys.dead_letter_stream, max=before, count=_CHUNK))
            for entry_id, fields in entries_as_text(chunk):
                if self._is_of_our_group(fields) and (
                    name in (entry_id, fields.get("event_id"), fields.get("stream_id")) or _has_task_id(name, fields)
                ):
                    found.append({"id": entry_id} | {key: text for key, text in fields.items() if key != "event"})
            if len(chunk) < _CHUNK:
                break
            before = f"({text_of(chunk[-1][0])}"
        return found

    def _open_with_task_id(self, task_id: str) -> list[str]:
        ids, found = list(self.lease_ends(OPEN_SEARCHED)), []
        for part in chunks(ids):
            pipe = self._client.pipeline(transaction=False)
            for event_id in part:
                pipe.hget(self._key.task(event_id), "task_id")
            with translate_errors(self.where):
                replies = pipeline_replies(self._client, pipe, None)
            found += [one for one, reply in zip(part, replies, strict=True) if reply and text_of(reply) == task_id]
        return found

    def _finished_with_task_id(self, task_id: str) -> list[str]:
        with translate_errors(self.where):
            newest = cast("Any", self._client.xrevrange(self._keys.result_stream, count=SEARCHED))
        results = (fields for _, fields in entries_as_text(newest))
        return list(dict.fromkeys(one["event_id"] for one in results if one.get("task_id") == task_id))

    def _pending_entries(self) -> list[tuple[str, str, float]]:
        with translate_errors(self.where):
            try:
                pending = cast(
                    "Any",
                    self._client.xpending_range(self._keys.stream, self._keys.group, min="-", max="+", count=_CHUNK),
                )
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                return []
        return [
            (text_of(one["message_id"]), text_of(one["consumer"]), one["time_since_delivered"] / 1000)
            for one in pending
        ]

    def _entry(self, stream_id: str) -> Mapping[str, str] | None:
        with translate_errors(self.where):
            found = entries_as_text(cast("Any", self._client.xrange(self._keys.stream, stream_id, stream_id)))
        return found[0][1] if found else None


def _is_named(name: str, stream_id: str, fields: Mapping[str, str]) -> bool:
    return name in (stream_id, fields.get("event_id"), fields.get("task_id"))


def _has_task_id(name: str, letter: Mapping[str, str]) -> bool:
    """Is it the task id of the event in this dead letter? An event that was cut is no JSON."""
    event = letter.get("event", "")
    if name not in event:  # most are not: an event may be large
        return False
    try:
        found = _event.decode(event)
    except msgspec.DecodeError:
        return False
    return found.get("task_id") == name
