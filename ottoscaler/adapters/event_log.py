"""The event log in Redis: the event stream, its consumer group, and what becomes a task of it. Script functions:
event_log.lua.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec
import redis

from ottoscaler.adapters.redis_calls import RedisAdapter
from ottoscaler.adapters.redis_client import ReplyTooLarge
from ottoscaler.adapters.redis_values import chunks, decode_names, fields_of_reply
from ottoscaler.adapters.scripts import ScriptCall
from ottoscaler.adapters.task_codec import decode_dead_letter, encode_common_fields, not_after_ms
from ottoscaler.core.events import MAX_DEAD_EVENT_BYTES, BadEvent, ScaleEvent, content_digest, encode_original_fields
from ottoscaler.errors import ReadTooLarge
from ottoscaler.ports import Entry, OpenTask, StreamLevels

PENDING_COUNT: Final = 100
#: What one look at pending entries brings, bytes, if it is more than one entry: a process may have died of them.
PENDING_BYTES: Final = 1024 * 1024
#: What is brought of an entry that is too large for a dead letter, bytes.
HEAD_BYTES: Final = 16 * 1024
#: As if it had been idle for so long: longer than any LEASE_S.
HANDED_OVER_MS: Final = 86_400_000
#: More than a stopping process has in hand.
HANDED_OVER_COUNT: Final = 1000
#: Up to how many unread entries are counted one by one, where Redis has no count of its own.
UNREAD_COUNT: Final = 100

_pack: Final = msgspec.msgpack.encode


class RedisEventLog(RedisAdapter):
    """`ports.EventLog` on Redis 7.0 or later, or Valkey. Any thread; `read` and `peek` one thread each."""

    def ensure_group(self) -> None:
        """See ports.EventLog. The group starts at 0: what was sent before there was a controller counts too."""
        names = self._redis.names
        self._redis.create_group(self._redis.reading, names.stream, names.group, "0")

    # -- reading

    def read(self, count: int) -> Sequence[Entry]:
        """See ports.EventLog."""
        return self._read(count, self._redis.block_ms)

    def read_now(self, count: int) -> Sequence[Entry]:
        """See ports.EventLog."""
        return self._read(count, None)

    def _read(self, count: int, block_ms: int | None) -> Sequence[Entry]:
        names, consumer = self._redis.names, self._redis.consumer
        streams: dict[Any, Any] = {names.stream: ">"}
        with self._redis.translate_errors():
            try:
                reply = self._redis.reading.xreadgroup(names.group, consumer, streams, count=count, block=block_ms)
            except ReplyTooLarge as error:
                raise ReadTooLarge(f"reading {count} entries: {error}") from error
        return _entries_of_read(cast("Any", reply))

    def peek(self, after: str, count: int, *, block: bool) -> Sequence[Entry]:
        """See ports.EventLog."""
        client, block_ms = self._redis.peeking, self._redis.block_ms if block else None
        with self._redis.translate_errors():
            try:
                return _entries_of_read(cast("Any", client.xread({self._redis.names.stream: after}, count, block_ms)))
            except ReplyTooLarge:
                pass  # asked again by the script, which measures: otherwise one large entry would hide all others
        reply = self._redis.run(
            "peek", [], after, count, MAX_DEAD_EVENT_BYTES, HEAD_BYTES, PENDING_BYTES, client=client
        )
        return _sized_entries(reply)

    def last_delivered_id(self) -> str:
        """See ports.EventLog."""
        names = self._redis.names
        with self._redis.translate_errors():
            for group in cast("Any", self._redis.reading.xinfo_groups(names.stream)):
                if group["name"] == names.group.encode():
                    return cast("bytes", group["last-delivered-id"]).decode()
            raise redis.ResponseError(f"NOGROUP no consumer group {names.group}")

    def stream_levels(self) -> StreamLevels:
        """See ports.EventLog."""
        unread, pending, oldest_ms, results, results_oldest_ms, results_unread, dead = self._redis.run(
            "stream_levels", [], UNREAD_COUNT, client=self._redis.taking
        )
        return StreamLevels(unread, pending, oldest_ms / 1000, results, results_oldest_ms / 1000, results_unread, dead)

    def interrupt_reads(self) -> None:
        """See ports.EventLog. CLIENT UNBLOCK, unlike a closed connection, leaves no doubt about what was delivered."""
        with self._redis.translate_errors():
            for client in (self._redis.reading, self._redis.peeking):
                for connection_id in client.connection_ids():
                    self._redis.client.client_unblock(connection_id)

    # -- what was read and not accepted

    def claim_pending(self, *, own: bool, min_idle_s: float) -> Sequence[Entry]:
        """See ports.EventLog."""
        consumer, client = self._redis.consumer, self._redis.reading
        reply = self._redis.run(
            "claim_pending", [], consumer, int(own), int(min_idle_s * 1000), PENDING_COUNT, MAX_DEAD_EVENT_BYTES,
            HEAD_BYTES,
            PENDING_BYTES, client=client,
        )  # fmt: skip
        return _sized_entries(reply)

    def count_try(self, stream_id: str) -> int:
        """See ports.EventLog. The number is Redis's own, of deliveries."""
        return int(self._redis.run("count_try", [], self._redis.consumer, stream_id, client=self._redis.reading))

    def release_pending(self) -> None:
        """See ports.EventLog."""
        consumer, client = self._redis.consumer, self._redis.taking
        self._redis.run("release_pending", [], consumer, HANDED_OVER_MS, HANDED_OVER_COUNT, client=client)

    # -- accepting and refusing

    def accept(
        self, events: Sequence[tuple[ScaleEvent, str]], raws: Sequence[Mapping[bytes, bytes]]
    ) -> Sequence[OpenTask | BadEvent | None]:
        """See ports.EventLog."""
        calls = [self._accept_call(event, content, raw) for (event, content), raw in zip(events, raws, strict=True)]
        replies = self._redis.run_many(self._redis.reading, calls)
        return [_decode_accept_reply(event, reply) for (event, _), reply in zip(events, replies, strict=True)]

    def _accept_call(self, event: ScaleEvent, content: str, raw: Mapping[bytes, bytes]) -> ScriptCall:
        key = {"key": event.concurrency_key, "key_limit": event.concurrency_limit} if event.concurrency_key else {}
        packed = _pack(
            {
                **key,
                "stream_id": event.stream_id,
                "event_id": event.event_id,
                "digest": content,
                "event": event.encode(),
                "raw": encode_original_fields(raw),
                "common": encode_common_fields(event),
                "type": event.type.value,
                "task_id": event.task_id,
                "pod_count": event.pod_count,
                "process": self._redis.process,
                "lease_ms": self._redis.lease_ms,
                "supersedes": event.supersedes,
                "not_after": not_after_ms(event),
            }
        )
        return ScriptCall("accept", [self._redis.key.task(event.event_id), self._redis.key.choices], [packed])

    def dead_letter(self, entry: Entry, bad: BadEvent) -> BadEvent | None:
        """See ports.EventLog."""
        fields = entry.fields or {}
        packed = _pack(
            {
                "stream_id": entry.stream_id,
                "reason": bad.reason.value,
                "detail": bad.detail,
                "event_id": bad.event_id,
                "task_id": bad.task_id,
                "digest": content_digest(fields),
                "raw": encode_original_fields(fields, cut=bool(entry.size)),
                "common": "[]",
            }
        )
        reply = self._redis.run("dead_letter", [self._redis.key.task(bad.event_id)], packed)
        return decode_dead_letter(reply, bad.event_id, bad.task_id)

    # -- tidying

    def remove_consumers(self, gone_s: float) -> Sequence[str]:
        """See ports.EventLog."""
        names = self._redis.names
        with self._redis.translate_errors():
            found = cast("Any", self._redis.client.xinfo_consumers(names.stream, names.group))
        others = [name for name in decode_names([each["name"] for each in found]) if name != self._redis.consumer]
        gone: list[str] = []
        for part in chunks(others):
            keys = [self._redis.key.consumer(name) for name in part]
            reply = self._redis.run("remove_consumers", keys, int(gone_s * 1000), *part)
            gone += [name.decode() for name in reply]
        return gone

    def trim(self, keep: int) -> int:
        """See ports.EventLog."""
        return int(self._redis.run("trim", [], keep))


def _entries_of_read(reply: Any) -> list[Entry]:
    """The entries of XREAD or XREADGROUP."""
    return [Entry(stream_id.decode(), fields or None) for _, entries in reply or () for stream_id, fields in entries]


def _sized_entries(reply: Any) -> list[Entry]:
    """The entries that a script has measured: id, fields, and the size of one of which only the head is there."""
    return [
        Entry(stream_id.decode(), fields_of_reply(fields) if fields else None, int(size))
        for stream_id, fields, size in reply
    ]


def _decode_accept_reply(event: ScaleEvent, reply: Sequence[Any]) -> OpenTask | BadEvent | None:
    """The reply of accept about one event."""
    if reply[0] not in (b"ok", b"again"):
        return decode_dead_letter(reply, event.event_id, event.task_id)
    return OpenTask(
        event=event,
        owner=reply[1].decode(),
        received_at=reply[2].decode(),
        superseded=not event.supersedes,
        holds=list(reply[3:]) != [0],
        already_accepted=reply[0] == b"again",
    )
