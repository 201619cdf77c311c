"""All ports to one Redis in one object."""

from __future__ import annotations

from ottoscaler.adapters.attempts import RedisAttempts
from ottoscaler.adapters.event_log import RedisEventLog
from ottoscaler.adapters.leases import RedisLeases
from ottoscaler.adapters.preflight import RedisPreflight
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.adapters.redis_client import OnReply, ignore_reply
from ottoscaler.adapters.scale_downs import RedisScaleDowns
from ottoscaler.settings import KeySettings, RedisSettings


class RedisStream(RedisEventLog, RedisLeases, RedisAttempts, RedisScaleDowns, RedisPreflight):
    """Event log, leases, attempts, scale-downs and preflight on one set of connections. Any thread."""

    def __init__(
        self,
        server: RedisSettings,
        keys: KeySettings,
        *,
        lease_s: float,
        consumer: str,
        incarnation: str,
        on_reply: OnReply = ignore_reply,
    ) -> None:
        """`on_reply` gets for each call how it ended: empty for a reply, otherwise the error."""
        calls = RedisCalls(server, keys, lease_s=lease_s, consumer=consumer, incarnation=incarnation, on_reply=on_reply)
        super().__init__(calls)

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()
