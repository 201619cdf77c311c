"""The stream suite's admin over plain redis-py, and the servers that it is run on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis
from redis.cluster import RedisCluster

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.settings import KeySettings, RedisSettings
from tests.adapters.streams import BLOCK_S, LEASE_S, RESULT_MAXLEN, TASK_TTL_S, Fields


class RedisAdmin:
    """What producers, operators and accidents do, with plain redis-py. One prefix: the server may be shared."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = cast("Any", client)
        # one hash tag, as a Redis Cluster asks for
        self.prefix = prefix = f"{{test:{uuid.uuid4().hex[:12]}}}:"
        self.stream = f"{prefix}events"

    def add(self, fields: Fields, stream_id: str | None = None) -> str:
        return str(self._client.xadd(self.stream, dict(fields), id=stream_id or "*"))

    def results(self, kind: str | None = None) -> list[dict[str, str]]:
        found = [fields for _, fields in self._client.xrange(f"{self.prefix}results")]
        return [fields for fields in found if kind in (None, fields["kind"])]

    def dead_letters(self) -> list[dict[str, str]]:
        return [fields for _, fields in self._client.xrange(f"{self.prefix}dead")]

    def pending_count(self) -> int:
        return int(self._client.xpending(self.stream, "group")["pending"])

    def length(self) -> int:
        return int(self._client.xlen(self.stream))

    def consumers(self) -> set[str]:
        return {each["name"] for each in self._client.xinfo_consumers(self.stream, "group")}

    def add_group(self, name: str) -> None:
        self._client.xgroup_create(self.stream, name, id="0")

    def open_ids(self) -> set[str]:
        return set(self._client.zrange(f"{self.prefix}open", 0, -1))

    def task(self, event_id: str) -> dict[str, str]:
        return dict(self._client.hgetall(f"{self.prefix}task:{event_id}"))

    def expires_in(self, event_id: str) -> float | None:
        left = self._client.ttl(f"{self.prefix}task:{event_id}")
        return None if left < 0 else float(left)

    def expire_lease(self, event_id: str) -> None:
        self._client.zadd(f"{self.prefix}open", {event_id: 1}, xx=True)  # 0 would be one that was given up

    def postpone_lease(self, event_id: str, seconds: float) -> None:
        self._client.zincrby(f"{self.prefix}open", seconds * 1000, event_id)

    def set_not_after(self, event_id: str, after_s: float) -> None:
        self._client.hset(f"{self.prefix}task:{event_id}", "not_after", str(int(after_s * 1000)))

    def close_to_others(self, event_id: str) -> None:
        self._client.zrem(f"{self.prefix}open", event_id)

    def remove_task(self, event_id: str) -> None:
        self._client.delete(f"{self.prefix}task:{event_id}")

    def remove_key(self, key: str) -> None:
        self._client.delete(f"{self.prefix}key:{key}")

    def trim(self) -> None:
        self._client.xtrim(self.stream, maxlen=0, approximate=False)

    def flush(self) -> None:
        # a cluster takes several keys in one command only where they are of one slot: the prefix is a hash tag
        if keys := list(self._client.scan_iter(f"{self.prefix}*", count=1000)):
            self._client.delete(*keys)


@dataclass(frozen=True)
class Server:
    """A server to test on; `ours` where it is only for us."""

    settings: RedisSettings
    ours: bool
    cluster: bool = False

    def client(self) -> redis.Redis:
        """A plain client of it, or redis-py's own for a cluster."""
        where = self.settings
        if self.cluster:
            return cast("redis.Redis", RedisCluster(where.host, where.port, decode_responses=True))
        return redis.Redis(
            where.host, where.port, where.db, username=where.username, password=where.password, decode_responses=True
        )


@contextmanager
def local_server(folder: Path, binary: Path | None = None) -> Iterator[Server]:
    """A server of our own: the embedded Valkey, or this binary."""
    started = EmbeddedRedis(folder, binary=binary)
    started.start()
    try:
        yield Server(RedisSettings(host=started.host, port=started.port, block_ms=int(BLOCK_S * 1000)), ours=True)
    finally:
        started.close()


def named(url: str) -> Server:
    """The server at a URL, which others may use as well."""
    parsed = redis.connection.parse_url(url)
    settings = RedisSettings(
        host=parsed.get("host", "localhost"),
        port=parsed.get("port", 6379),
        db=parsed.get("db", 0),
        username=parsed.get("username"),
        password=parsed.get("password"),
        block_ms=int(BLOCK_S * 1000),
    )
    return Server(settings, ours=False)


def open_stream(
    server: Server, admin: RedisAdmin, consumer: str, *, incarnation: str, lease_s: float = LEASE_S
) -> RedisBackend:
    """A stream on the keys of one test."""
    keys = KeySettings(
        stream=admin.stream,
        group="group",
        consumer=consumer,
        result_stream=f"{admin.prefix}results",
        dead_letter_stream=f"{admin.prefix}dead",
        prefix=admin.prefix,
        result_maxlen=RESULT_MAXLEN,
        task_ttl_s=TASK_TTL_S,
    )
    return RedisBackend(RedisCalls(server.settings, keys, lease_s=lease_s, consumer=consumer, incarnation=incarnation))
