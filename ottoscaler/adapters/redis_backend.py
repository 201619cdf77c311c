"""All ports to one Redis in one object."""

from __future__ import annotations

from ottoscaler.adapters.attempts import RedisAttempts
from ottoscaler.adapters.event_log import RedisEventLog
from ottoscaler.adapters.leases import RedisLeases
from ottoscaler.adapters.preflight import RedisPreflight
from ottoscaler.adapters.result_log import RedisResultLog
from ottoscaler.adapters.scale_downs import RedisScaleDowns


class RedisBackend(RedisEventLog, RedisLeases, RedisAttempts, RedisScaleDowns, RedisPreflight, RedisResultLog):
    """Event log, leases, attempts, scale-downs, preflight and result log on one set of connections. Any thread."""

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()
