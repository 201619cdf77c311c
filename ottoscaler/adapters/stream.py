"""The event stream and the state of the tasks in Redis: implements `ports.Stream`.

Every write is one function of protocol.lua, so that it is atomic and may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis

from ottoscaler.adapters.redis_client import ReplyTooLarge
from ottoscaler.adapters.replies import (
    accepted,
    advice_on,
    buried,
    chunks,
    delivered_of,
    entries_of,
    measured,
    names_of,
    obstacle,
    text_of,
)
from ottoscaler.adapters.stream_leases import StreamLeases
from ottoscaler.adapters.stream_scale_downs import StreamScaleDowns
from ottoscaler.adapters.stream_workers import StreamWorkers
from ottoscaler.adapters.tasks import common_json, decode_view, decode_workers, readable
from ottoscaler.core.events import MAX_DEAD_EVENT_BYTES, BadEvent, EventType, ScaleEvent, digest, original
from ottoscaler.errors import TooMuch
from ottoscaler.ports import Entry, OpenTask, StoredWorker, TaskView

PENDING_COUNT = 100
#: What one look at pending entries brings, bytes, if it is more than one entry: a process may have died of them.
PENDING_BYTES = 1024 * 1024
#: What is brought of an entry that is too large for a dead letter, bytes.
HEAD_BYTES = 16 * 1024


class RedisStream(StreamLeases, StreamWorkers, StreamScaleDowns):
    """`ports.Stream` on Redis 7.0 or later, or Valkey. Any thread; `read` and `peek` one thread each."""

    _limits = (MAX_DEAD_EVENT_BYTES, HEAD_BYTES, PENDING_BYTES)

    # -- the stream and its group

    def ensure_group(self) -> None:
        """See ports.Stream. The group starts at 0: what was sent before there was a controller counts too."""
        with self._calling():
            try:
                self._reading.xgroup_create(self._keys.stream, self._keys.group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    def reserve(self) -> str:
        """See ports.Stream."""
        return text_of(self._run("reserve", [self._key.group], client=self._reading))

    def reserve_cluster(self, cluster: str) -> str:
        """See ports.Stream."""
        return text_of(self._run("reserve_cluster", [self._key.group], cluster, client=self._reading))

    def read(self, count: int) -> Sequence[Entry]:
        """See ports.Stream."""
        return self._read(count, self._block_ms)

    def read_now(self, count: int) -> Sequence[Entry]:
        """See ports.Stream."""
        return self._read(count, None)

    def _read(self, count: int, block_ms: int | None) -> Sequence[Entry]:
        with self._calling():
            streams: dict[Any, Any] = {self._keys.stream: ">"}
            try:
                reply = self._reading.xreadgroup(self._keys.group, self._consumer, streams, count=count, block=block_ms)
            except ReplyTooLarge as error:
                raise TooMuch(f"reading {count} entries: {error}") from error
        return entries_of(cast("Any", reply))

    def interrupt(self) -> None:
        """See ports.Stream. CLIENT UNBLOCK, unlike a closed connection, leaves no doubt about what was delivered."""
        with self._calling():
            for client in (self._reading, self._peeking):
                for connection_id in client.connection_ids():
                    self._client.client_unblock(connection_id)

    def remove_consumers(self, gone_s: float) -> Sequence[str]:
        """See ports.Stream."""
        with self._calling():
            found = cast("Any", self._client.xinfo_consumers(self._keys.stream, self._keys.group))
        names = [name for name in names_of([each["name"] for each in found]) if name != self._consumer]
        gone: list[str] = []
        for part in chunks(names):
            keys = [self._key.consumer(name) for name in part]
            answer = self._run("remove_consumers", keys, int(gone_s * 1000), *part)
            gone += [name.decode() for name in answer]
        return gone

    def trim(self, keep: int) -> int:
        """See ports.Stream."""
        return int(self._run("trim", [], keep))

    def peek(self, after: str, count: int, *, block: bool) -> Sequence[Entry]:
        """See ports.Stream."""
        with self._calling():
            try:
                reply = self._peeking.xread(
                    {self._keys.stream: after}, count=count, block=self._block_ms if block else None
                )
            except ReplyTooLarge:
                return measured(self._scripts.run(self._peeking, "peek", [], (after, count, *self._limits)))
        return entries_of(cast("Any", reply))

    def delivered(self) -> str:
        """See ports.Stream."""
        with self._calling():
            return delivered_of(cast("Any", self._reading.xinfo_groups(self._keys.stream)), self._keys.group)

    def pending(self, *, own: bool, min_idle_s: float) -> Sequence[Entry]:
        """See ports.Stream."""
        arguments = (self._consumer, int(own), int(min_idle_s * 1000), PENDING_COUNT, *self._limits)
        return measured(self._run("pending", [], *arguments, client=self._reading))

    def retry(self, stream_id: str) -> int:
        """See ports.Stream. The number is Redis's own, of deliveries."""
        return int(self._run("retry", [], self._consumer, stream_id, client=self._reading))

    # -- accepting

    def accept(
        self, events: Sequence[tuple[ScaleEvent, str]], raws: Sequence[Mapping[bytes, bytes]]
    ) -> Sequence[OpenTask | BadEvent | None]:
        """See ports.Stream."""
        calls = []
        for (event, content), raw in zip(events, raws, strict=True):
            arguments = (
                event.stream_id, event.event_id, content, event.encode(), original(raw), common_json(event),
                event.type.value, event.task_id, event.pod_count, self._base, self._lease_ms, event.supersedes,
            )  # fmt: skip
            calls.append(("accept", [self._key.task(event.event_id), self._key.choices], arguments))
        with self._calling():
            answers = self._scripts.run_many(self._reading, calls)
        return [accepted(event, answer) for (event, _), answer in zip(events, answers, strict=True)]

    def bury(self, entry: Entry, bad: BadEvent) -> BadEvent | None:
        """See ports.Stream."""
        fields = entry.fields or {}
        answer = self._run(
            "bury", [self._key.task(bad.event_id)], entry.stream_id, bad.reason.value, bad.detail, bad.event_id,
            bad.task_id, digest(fields), original(fields, cut=bool(entry.size)), "[]",
        )  # fmt: skip
        return buried(answer, bad.event_id, bad.task_id)

    # -- looking

    def tasks(self) -> Sequence[TaskView]:
        """See ports.Stream."""
        with self._calling():
            ids = names_of(cast("list[bytes]", self._client.zrange(self._key.open, 0, -1)))
        views = [readable(decode_view, fields) for fields in self._hashes(ids) if b"owner" in fields]
        return [view for view in views if view is not None and view.event.type is EventType.SCALE_UP]

    def known(self, event_ids: Sequence[str]) -> Mapping[str, tuple[str, Mapping[int, StoredWorker]]]:
        """See ports.Stream."""
        found = zip(event_ids, self._hashes(event_ids), strict=True)
        workers = {
            event_id: (text_of(fields[b"state"]), readable(decode_workers, fields))
            for event_id, fields in found
            if b"state" in fields
        }
        return {event_id: (state, known) for event_id, (state, known) in workers.items() if known is not None}

    def obstacles(self) -> Sequence[str]:
        """See ports.Stream. Asked of the server by one script, which needs no right beyond those of all scripts."""
        keys = [self._key.group, self._key.consumer(self._consumer), self._key.task("any"), self._key.choices]
        with self._calling():
            found = self._scripts.examine(self._reading, keys)
        settings = {self._keys.stream: "REDIS_STREAM", self._keys.result_stream: "RESULT_STREAM"}
        settings[self._keys.dead_letter_stream] = "DEAD_LETTER_STREAM"
        told = [(text_of(key), text_of(kind), text_of(commands)) for key, kind, commands in found]
        return [obstacle(key, kind, commands, settings.get(key, "KEY_PREFIX")) for key, kind, commands in told]

    def advice(self) -> Sequence[str]:
        """See ports.Stream."""
        with self._calling():
            try:
                told = self._client.info("everything")
            except redis.exceptions.NoPermissionError:
                return []
        return advice_on(told)
