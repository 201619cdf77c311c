"""What the controller asks Redis before it reads the first event. Script functions: preflight.lua."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import redis

from ottoscaler.adapters.redis_calls import RedisAdapter
from ottoscaler.adapters.redis_values import text_of


class RedisPreflight(RedisAdapter):
    """`ports.Preflight` on Redis. Any thread."""

    def reserve_prefix(self) -> str:
        """See ports.Preflight."""
        return text_of(self._redis.run("reserve_prefix", [self._redis.key.group], client=self._redis.reading))

    def bind_queue_to_cluster(self, cluster: str) -> str:
        """See ports.Preflight."""
        keys, client = [self._redis.key.group], self._redis.reading
        return text_of(self._redis.run("bind_queue_to_cluster", keys, cluster, client=client))

    def key_problems(self) -> Sequence[str]:
        """See ports.Preflight. One script asks the server, and needs no right beyond those of all scripts."""
        key, names = self._redis.key, self._redis.names
        keys = [key.group, key.consumer(self._redis.consumer), key.task("any"), key.choices, key.concurrency("any")]
        found = self._redis.run_without_keys("key_problems", *keys, client=self._redis.reading)
        settings = {
            names.stream: "REDIS_STREAM",
            names.result_stream: "RESULT_STREAM",
            names.dead_letter_stream: "DEAD_LETTER_STREAM",
        }
        texts = [(text_of(name), text_of(kind), text_of(commands)) for name, kind, commands in found]
        return [_key_problem(name, kind, commands, settings.get(name, "KEY_PREFIX")) for name, kind, commands in texts]

    def server_warnings(self) -> Sequence[str]:
        """See ports.Preflight."""
        with self._redis.translate_errors():
            try:
                info = self._redis.client.info("everything")
            except redis.exceptions.NoPermissionError:
                return []
        return warnings_from_info(info)


def warnings_from_info(info: Mapping[str, Any]) -> list[str]:
    """What is wrong with a server, by its INFO (https://redis.io/docs/latest/commands/info/)."""
    found = []
    version = str(info.get("redis_version", "7.0"))
    if int(version.partition(".")[0]) < 7:
        found.append(f"Redis is version {version}: 7.0 or later, or Valkey, is needed")
    if not info.get("aof_enabled", 1):
        found.append("Redis keeps no append-only file: what is accepted is lost when it restarts; set appendonly yes")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"Redis may evict keys (maxmemory-policy {policy}): tasks can vanish; set maxmemory-policy noeviction"
        )
    return found


def _key_problem(key: str, kind: str, commands: str, setting: str) -> str:
    """One key of what the script says, as a sentence: the key, the kind that it should hold if it holds another, the
    commands that are not permitted on it, the setting that names it.
    """
    if kind:
        return (
            f"the key {key} holds something else than a {kind}: rename that key, or set {setting} to another name;"
            " nothing is read until then"
        )
    where = f" on the key {key}" if key else ""
    return (
        f"the user may not run {commands}{where}: give it the rights in deploy/REFERENCE.md; nothing is read until then"
    )
