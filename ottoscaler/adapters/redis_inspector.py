"""What `doctor` reads of Redis besides what the start asks. It writes nothing, and takes no entry from the group."""

from __future__ import annotations

from typing import Any, cast

import redis
from redis.crc import key_slot

from ottoscaler.adapters.preflight import RedisPreflight
from ottoscaler.adapters.redis_client import no_common_slot_error
from ottoscaler.adapters.redis_values import entry_time_s, text_of
from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.core.redis_findings import QueueFacts
from ottoscaler.errors import RedisUnavailable

#: A process renews each third of LEASE_S: one that was silent for two of them has ended.
_LEASES_ALIVE = 2.0


class RedisInspector(RedisPreflight):
    """One look at a queue. Any thread; each method raises RedisUnavailable, and ConfigError as the start does."""

    def check_slots(self, where: str) -> None:
        """Raises ConfigError if a Redis Cluster keeps our names on several nodes. `where`: its address."""
        names = self._redis.names
        ours = (names.stream, names.result_stream, names.dead_letter_stream, self._redis.key.open)
        if len({key_slot(name.encode()) for name in ours}) > 1:
            raise no_common_slot_error(where)

    def holders(self) -> tuple[str, str]:
        """The group and the cluster that the prefix belongs to; empty for none."""
        with self._redis.translate_errors():
            held = cast("list[bytes | None]", self._redis.client.hmget(self._redis.key.group, ["group", "cluster"]))
        return text_of(held[0] or b""), text_of(held[1] or b"")

    def queue(self, reader: StatusReader) -> QueueFacts:
        """How the queue stands."""
        now, backlog, names = reader.now(), reader.backlog(), self._redis.names
        oldest = self._oldest_waiting()
        with self._redis.translate_errors():
            tasks = self._redis.client.zcard(self._redis.key.open)
        age_s = max(0.0, now - entry_time_s(oldest)) if oldest else 0.0
        waiting = backlog.unread + backlog.pending
        return QueueFacts(names.stream, names.group, waiting, backlog.exact, age_s, tasks, self._live_consumers(now))

    def results(self, reader: StatusReader) -> tuple[int, float]:
        """How many results there are, and how old the oldest is, seconds."""
        stream = self._redis.names.result_stream
        with self._redis.translate_errors():
            first = cast("list[Any]", self._redis.client.xrange(stream, count=1))
            length = self._redis.client.xlen(stream)
        return length, max(0.0, reader.now() - entry_time_s(text_of(first[0][0]))) if first else 0.0

    def _oldest_waiting(self) -> str:
        """The id of the oldest entry that is pending or unread; empty if there is none."""
        names, client = self._redis.names, self._redis.client
        with self._redis.translate_errors():
            mine = [each for each in self._groups() if text_of(each["name"]) == names.group]
            if mine and mine[0]["pending"]:
                pending = cast("Any", client.xpending(names.stream, names.group))
                return text_of(pending["min"])
            after = text_of(mine[0]["last-delivered-id"]) if mine else "0-0"
            unread = cast("list[Any]", client.xrange(names.stream, f"({after}", count=1))
        return text_of(unread[0][0]) if unread else ""

    def _live_consumers(self, now: float) -> list[str]:
        """Those under which a process has announced itself within two leases."""
        names, client, lease_s = self._redis.names, self._redis.client, self._redis.lease_ms / 1000
        with self._redis.translate_errors():
            if names.group not in {text_of(each["name"]) for each in self._groups()}:
                return []
            found = cast("list[Any]", client.xinfo_consumers(names.stream, names.group))
            consumers = sorted(text_of(each["name"]) for each in found)
            seen = {name: client.hget(self._redis.key.consumer(name), "seen") for name in consumers}
        since = (now - _LEASES_ALIVE * lease_s) * 1000
        return [name for name, at in seen.items() if at is not None and float(cast("bytes", at)) >= since]

    def _groups(self) -> list[Any]:
        try:
            return cast("list[Any]", self._redis.client.xinfo_groups(self._redis.names.stream))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return []


def access_code(error: RedisUnavailable) -> str:
    """The code of a finding for a Redis that does not serve us."""
    cause = error.__cause__
    match cause:
        case redis.AuthenticationError():
            return "redis.auth"
        case redis.exceptions.NoPermissionError():
            return "redis.acl"
        case redis.ReadOnlyError():
            return "redis.role"
        case redis.exceptions.OutOfMemoryError():
            return "redis.memory"
        case redis.ResponseError() if "ACL failure" in str(cause) or "can't run this command" in str(cause):
            return "redis.acl"
        case redis.ResponseError() if "WRONGTYPE" in str(cause):
            return "redis.type"
        case redis.ConnectionError() if "SSL" in str(cause) or "certificate" in str(cause):
            return "redis.tls"
    return "redis.reach"
