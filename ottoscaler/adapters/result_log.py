"""The result stream in Redis, as the trace exporter reads it: by a consumer group of its own, shared by all replicas.
Script function: result_log.lua.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import redis

from ottoscaler.adapters.redis_calls import RedisAdapter
from ottoscaler.adapters.redis_values import chunks, some_fields_as_text, text_of
from ottoscaler.adapters.scripts import ScriptCall
from ottoscaler.core.results import TRACE_GROUP
from ottoscaler.core.spans import RESULT_FIELDS, StoredTimes, milliseconds
from ottoscaler.stored import WorkerAttempt

#: A consumer that was not seen for so long, and has nothing pending, is that of a pod that is gone, ms.
FORGOTTEN_MS: Final = 3_600_000
#: The fields of a result that are read, as Redis names them and as we do.
_WANTED: Final = [(name.encode(), name) for name in RESULT_FIELDS]
#: Of a task hash, for any span.
_OF_TASK: Final = ("sid", "received_at", "type")


class RedisResultLog(RedisAdapter):
    """`trace_ports.ResultLog` on Redis. Any thread."""

    @property
    def _group(self) -> str:
        return f"{self._redis.names.group}{TRACE_GROUP}"

    def begin_results(self, *, from_start: bool = False) -> None:
        """See trace_ports.ResultLog."""
        first = "0" if from_start else "$"
        self._redis.create_group(self._redis.taking, self._redis.names.result_stream, self._group, first)

    def read_results(self, count: int) -> Sequence[tuple[str, Mapping[str, str]]]:
        """See trace_ports.ResultLog."""
        names: dict[Any, Any] = {self._redis.names.result_stream: ">"}
        with self._redis.translate_errors():
            try:
                reply = cast("Any", self._redis.taking.xreadgroup(self._group, self._redis.consumer, names, count))
            except redis.ResponseError as error:
                if not _is_gone(error):
                    raise
                reply = None
        if reply is None:  # Redis was wiped: all that the new stream has came after that
            self.begin_results(from_start=True)
        return [entry for _, entries in reply or () for entry in some_fields_as_text(entries, _WANTED)]

    def claim_results(self, min_idle_s: float, count: int) -> tuple[Sequence[tuple[str, Mapping[str, str]]], int]:
        """See trace_ports.ResultLog."""
        stream, client, consumer = self._redis.names.result_stream, self._redis.taking, self._redis.consumer
        with self._redis.translate_errors():
            try:
                for each in cast("Any", client.xinfo_consumers(stream, self._group)):
                    name, idle_ms, pending = text_of(each["name"]), int(each["idle"]), int(each["pending"])
                    if name != consumer and not pending and idle_ms > FORGOTTEN_MS:
                        client.xgroup_delconsumer(stream, self._group, name)
                _, entries, trimmed = cast(
                    "Any", client.xautoclaim(stream, self._group, consumer, int(min_idle_s * 1000), "0-0", count)
                )
            except redis.ResponseError as error:
                if not _is_gone(error):
                    raise
                return [], 0
        return some_fields_as_text(entries, _WANTED), len(trimmed)

    def renew_results(self, entry_ids: Sequence[str]) -> None:
        """See trace_ports.ResultLog."""
        stream, consumer = self._redis.names.result_stream, self._redis.consumer
        with self._redis.translate_errors():
            for part in chunks(entry_ids):
                self._redis.taking.xclaim(stream, self._group, consumer, 0, list(part), justid=True)

    def acknowledge_results(self, entry_ids: Sequence[str]) -> None:
        """See trace_ports.ResultLog."""
        with self._redis.translate_errors():
            for part in chunks(entry_ids):
                self._redis.taking.xack(self._redis.names.result_stream, self._group, *part)

    def stored_times(self, workers: Sequence[WorkerAttempt]) -> Sequence[StoredTimes | None]:
        """See trace_ports.ResultLog."""
        found: list[StoredTimes | None] = []
        for part in chunks(workers):
            keys = [self._redis.key.task(one.event_id) for one in part]
            call = ScriptCall("stored_times", keys, [*(" ".join(_names(one)) for one in part)])
            (rows,) = self._redis.run_many(self._redis.taking, [call])
            found += [_times(one, row) for one, row in zip(part, rows, strict=True)]
        return found

    def store_gone_time(self, workers: Sequence[WorkerAttempt]) -> Sequence[int]:
        """See trace_ports.ResultLog."""
        calls = [
            ScriptCall(
                "store_gone_time", [self._redis.key.task(one.event_id) for one in part], [*(one.index for one in part)]
            )
            for part in chunks(workers)
        ]
        return [int(at) for times in self._redis.run_many(self._redis.taking, calls) for at in times]


def _is_gone(error: redis.ResponseError) -> bool:
    """Is there no group, or no stream (any more)?"""
    return "NOGROUP" in str(error) or "no such key" in str(error)


def _names(one: WorkerAttempt) -> Sequence[str]:
    """The fields of a task hash of which `_times` makes what is stored of this."""
    if not one.index:
        return _OF_TASK
    attempts = range(1, one.attempt + 1)
    stages = [f"{what}:{one.index}:{attempt}" for what in ("intent", "ended") for attempt in attempts]
    return [*_OF_TASK, f"gone:{one.index}", *stages]


def _times(one: WorkerAttempt, row: Sequence[bytes | None]) -> StoredTimes | None:
    """What was damaged from outside counts as not known."""
    texts = ["" if value is None else value.decode("utf-8", "replace") for value in row]
    if not texts or row[0] is None:
        return None
    stream_id, received_at, event_type, *of_worker = texts
    gone, stages, last = of_worker[0] if of_worker else "", of_worker[1:], one.attempt
    return StoredTimes(
        event_type=event_type,
        stream_id=stream_id,
        received_ms=milliseconds(received_at),
        intended_ms={number: int(text) for number, text in enumerate(stages[:last], 1) if _is_time(text)},
        ended={number: _fields_of(text) for number, text in enumerate(stages[last:], 1)},
        gone_ms=int(gone) if _is_time(gone) else None,
    )


def _is_time(text: str) -> bool:
    return text.isdecimal() and len(text) < 14


def _fields_of(text: str) -> dict[str, str]:
    try:
        fields = json.loads(text or "{}")
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in fields.items()} if isinstance(fields, dict) else {}
