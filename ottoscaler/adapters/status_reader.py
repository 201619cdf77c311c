"""What the subcommands read from Redis: tasks, results, dead letters, backlog; and `send`, the one write.

Apart from the ports of the controller, because `status` must not be able to change anything: there is no script here,
no group is read for, no lease is touched. The head of common.lua and README list what the keys hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import redis

from ottoscaler.adapters.redis_client import address, connect, translate_errors
from ottoscaler.adapters.redis_values import entries_as_text, pipeline_replies, text_of
from ottoscaler.adapters.task_codec import RedisKeys, TaskState, decode_state
from ottoscaler.core.entry_ids import entry_ms
from ottoscaler.settings import KeySettings, RedisSettings

#: Longest time that `new_entries` blocks, seconds; the client's own time-out leaves room for it.
LONGEST_BLOCK_S: Final = 2.0
#: Unread entries are counted up to here: a command must not read a million events to say "too many".
COUNT_LIMIT: Final = 10_000

_TIMEOUT_S: Final = 5.0
_CHUNK: Final = 200
_COUNT_CHUNK: Final = 1000
_SEARCHED: Final = 20_000
#: After a failover the new master's clock may be behind the old one's: entries that much earlier are searched, too.
_CLOCK_SLACK_MS: Final = 60_000
_START: Final = "0-0"
_GLOB: Final = re.compile(r"([*?\[\]^\\])")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry of the dead-letter stream, without the event itself. `stream_id` is the event's entry."""

    id: str
    reason: str
    detail: str
    event_id: str
    stream_id: str


@dataclass(frozen=True, slots=True)
class StreamPositions:
    """How far the result stream and the dead-letter stream were read: an entry id of each."""

    results: str = _START
    dead: str = _START


@dataclass(frozen=True, slots=True)
class NewEntries:
    """What has come since a position: results with the fields that deploy/REFERENCE.md lists, dead letters, and the
    next position.
    """

    position: StreamPositions
    results: Sequence[Mapping[str, str]]
    dead: Sequence[DeadLetter]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Entries that no task knows yet: unread by the group (`exact` False: at least this many), and read but pending."""

    unread: int
    pending: int
    exact: bool = True


class StatusReader:
    """Redis as the subcommands read it. Any thread; each method raises RedisUnavailable when Redis does not answer."""

    def __init__(self, server: RedisSettings, keys: KeySettings) -> None:
        self._keys = keys
        self._key = RedisKeys(keys.prefix)
        self._client = connect(server, timeout_s=LONGEST_BLOCK_S + _TIMEOUT_S)
        self.where = address(server)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client.close()

    def send(self, fields: Mapping[str, str]) -> str:
        """Add one event to the stream, unchecked: what is wrong with it the controller says. Returns the entry's id."""
        with translate_errors(self.where):
            return text_of(self._client.xadd(self._keys.stream, cast("Any", dict(fields))))

    def now(self) -> float:
        """Redis TIME, which is what the times in task hashes and entry ids come from; seconds since the epoch."""
        with translate_errors(self.where):
            seconds, micros = self._client.time()
        return seconds + micros / 1e6

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def task(self, event_id: str) -> TaskState | None:
        """What is known of an event; None if nothing is (any more)."""
        return next(iter(self._read_tasks([event_id])), None)

    def tasks(self, event_ids: Iterable[str]) -> Sequence[TaskState]:
        """What is known of these events, the oldest first."""
        return sorted(self._read_tasks(list(event_ids)), key=lambda task: task.received_at)

    def lease_ends(self, most: int = 0) -> Mapping[str, float]:
        """Until when their owners hold the unfinished tasks, by event id: seconds since the epoch by Redis's clock. Of
        `most` tasks at most, those that end first; 0: of all.
        """
        with translate_errors(self.where):
            scored = cast("Any", self._client.zrange(self._key.open, 0, most - 1, withscores=True))
        return {text_of(event_id): score / 1000 for event_id, score in scored}

    def find_event_ids(self, event_or_task_id: str) -> Sequence[str]:
        """The event ids that an id stands for: itself, or every known event of that task, oldest first.

        Unfinished tasks are looked at first; only when there is none are all task hashes scanned, in small steps.
        """
        if self.task(event_or_task_id) is not None:
            return [event_or_task_id]
        found = [task for task in self.tasks(self.lease_ends()) if task.task_id == event_or_task_id]
        if not found:
            ids = list(self._known_ids())
            chunks = (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))
            found = [task for chunk in chunks for task in self._read_tasks(chunk) if task.task_id == event_or_task_id]
        return [task.event_id for task in sorted(found, key=lambda task: task.received_at)]

    def _known_ids(self) -> Iterator[str]:
        prefix = self._key.task("")
        with translate_errors(self.where):
            for name in self._client.scan_iter(match=_GLOB.sub(r"\\\1", prefix) + "*", count=_COUNT_CHUNK):
                yield text_of(name).removeprefix(prefix)

    def _read_tasks(self, event_ids: Sequence[str]) -> list[TaskState]:
        hashes: list[dict[bytes, bytes]] = []
        with translate_errors(self.where):
            for start in range(0, len(event_ids), _CHUNK):
                pipe = self._client.pipeline(transaction=False)
                for event_id in event_ids[start : start + _CHUNK]:
                    pipe.hgetall(self._key.task(event_id))
                hashes += pipeline_replies(self._client, pipe, {})
        return [decode_state(event_id, found) for event_id, found in zip(event_ids, hashes, strict=True) if found]

    # -- streams -------------------------------------------------------------------------------------------------------

    def backlog(self, limit: int | None = None) -> Backlog:
        """What no task knows yet; unread entries are counted up to about `limit`, None: COUNT_LIMIT.

        Counted, not taken from XINFO's lag, which is nil or wrong once entries were deleted or the group was moved:
        https://redis.io/docs/latest/commands/xinfo-groups/ ("lag").
        """
        after, count = self._last_delivered_id(), 0
        with translate_errors(self.where):
            while count < (COUNT_LIMIT if limit is None else limit):
                entries = self._client.xrange(self._keys.stream, f"({after}", count=_COUNT_CHUNK)
                count += len(cast("list[Any]", entries))
                if len(cast("list[Any]", entries)) < _COUNT_CHUNK:
                    return Backlog(count, self._pending_count())
                after = text_of(cast("Any", entries)[-1][0])
        return Backlog(count, self._pending_count(), exact=False)

    def count_dead_letters(self) -> int:
        """How many dead letters there are."""
        with translate_errors(self.where):
            return self._client.xlen(self._keys.dead_letter_stream)

    def dead_letter(self, stream_id: str) -> DeadLetter | None:
        """The dead letter of an entry of the event stream, which is younger than that entry; None if it has none."""
        for entry_id, fields in self._entries_since(self._keys.dead_letter_stream, stream_id):
            if self._is_of_our_group(fields) and fields.get("stream_id") == stream_id:
                return dead_letter_from_entry(entry_id, fields)
        return None

    def result(self, event_id: str, stream_id: str) -> Mapping[str, str] | None:
        """The closing result (kind `task` or `scale_down`) of an event of that entry, if it is still kept."""
        for _, fields in self._entries_since(self._keys.result_stream, stream_id):
            if fields.get("event_id") == event_id and fields.get("kind") != "worker":
                return fields
        return None

    def closing_results(self, count: int) -> Sequence[Mapping[str, str]]:
        """The newest results of kind `task` and `scale_down`, newest first; at most `count`, out of the last 1000."""
        with translate_errors(self.where):
            entries = cast("Any", self._client.xrevrange(self._keys.result_stream, count=_COUNT_CHUNK))
        closing = [fields for _, fields in entries_as_text(entries) if fields.get("kind") != "worker"]
        return closing[:count]

    def position(self) -> StreamPositions:
        """Where the streams end now: take it before `send`, and `new_entries` misses nothing."""
        return StreamPositions(
            self._last_entry_id(self._keys.result_stream), self._last_entry_id(self._keys.dead_letter_stream)
        )

    def new_entries(self, position: StreamPositions, block_s: float) -> NewEntries:
        """Results and dead letters after a position; waits for one up to `block_s` seconds, at most LONGEST_BLOCK_S."""
        results, dead = self._keys.result_stream, self._keys.dead_letter_stream
        # BLOCK 0 would have no end
        block_ms = int(min(block_s, LONGEST_BLOCK_S) * 1000) or None
        after: dict[Any, Any] = {results: position.results, dead: position.dead}
        with translate_errors(self.where):
            reply = cast("Any", self._client.xread(after, count=_CHUNK, block=block_ms))
        streams = {text_of(name): entries_as_text(entries) for name, entries in reply or ()}
        new_results, new_dead = streams.get(results, []), streams.get(dead, [])
        return NewEntries(
            StreamPositions(
                new_results[-1][0] if new_results else position.results,
                new_dead[-1][0] if new_dead else position.dead,
            ),
            [fields for _, fields in new_results],
            [
                dead_letter_from_entry(entry_id, fields)
                for entry_id, fields in new_dead
                if self._is_of_our_group(fields)
            ],
        )

    def _is_of_our_group(self, dead: Mapping[str, str]) -> bool:
        # several groups may share a dead-letter stream, and one may refuse what another carries out
        return dead.get("group") == self._keys.group

    def _last_entry_id(self, stream: str) -> str:
        with translate_errors(self.where):
            newest = cast("Any", self._client.xrevrange(stream, count=1))
        return text_of(newest[0][0]) if newest else _START

    def _last_delivered_id(self) -> str:
        """The group's last delivered id; the beginning, where the group starts, if there is no group or stream yet."""
        with translate_errors(self.where):
            try:
                groups = cast("Any", self._client.xinfo_groups(self._keys.stream))
            except redis.ResponseError as error:
                if "no such key" not in str(error):
                    raise
                return _START
        mine = (group for group in groups if text_of(group["name"]) == self._keys.group)
        return next((text_of(group["last-delivered-id"]) for group in mine), _START)

    def _pending_count(self) -> int:
        with translate_errors(self.where):
            try:
                return int(cast("Any", self._client.xpending(self._keys.stream, self._keys.group))["pending"])
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                return 0

    def _entries_since(self, stream: str, stream_id: str) -> Iterator[tuple[str, dict[str, str]]]:
        """The entries of a stream from about an entry's time on; not endlessly many."""
        sent_ms = entry_ms(stream_id)
        start = _START if sent_ms is None else f"{max(0, sent_ms - _CLOCK_SLACK_MS)}-0"
        for _ in range(_SEARCHED // _COUNT_CHUNK):
            with translate_errors(self.where):
                chunk = entries_as_text(cast("Any", self._client.xrange(stream, start, count=_COUNT_CHUNK)))
            yield from chunk
            if len(chunk) < _COUNT_CHUNK:
                return
            start = f"({chunk[-1][0]}"


def dead_letter_from_entry(entry_id: str, fields: Mapping[str, str]) -> DeadLetter:
    """An entry of the dead-letter stream as it is shown."""
    return DeadLetter(
        entry_id,
        fields.get("dead_reason", ""),
        fields.get("dead_detail", ""),
        fields.get("event_id", ""),
        fields.get("stream_id", ""),
    )
