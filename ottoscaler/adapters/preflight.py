"""What the controller asks Redis before it reads the first event. Script functions: preflight.lua."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis

from ottoscaler.adapters.redis_calls import RedisAdapter
from ottoscaler.adapters.redis_values import text_of
from ottoscaler.core.findings import Finding, broken
from ottoscaler.core.redis_findings import server_findings


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
        """See ports.Preflight."""
        return [finding.text for finding in self.key_findings()]

    def key_findings(self) -> Sequence[Finding]:
        """The same as findings. One script asks the server, and needs no right beyond those of all scripts."""
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
        info = self.server_info()
        return [] if info is None else [finding.text for finding in server_findings(info) if finding.is_trouble]

    def server_info(self) -> Mapping[str, Any] | None:
        """The answer to INFO; None where our user may not ask."""
        with self._redis.translate_errors():
            try:
                return cast("Mapping[str, Any]", self._redis.client.info("everything"))
            except redis.exceptions.NoPermissionError:
                return None


def _key_problem(key: str, kind: str, commands: str, setting: str) -> Finding:
    """One key of what the script says, in a sentence: the key, the kind that it should hold if it holds another, the
    commands that are not permitted on it, the setting that names it.
    """
    if kind:
        return broken(
            "redis.type",
            f"the key {key} holds something else than a {kind}: rename that key, or set {setting} to another name;"
            " nothing is read until then",
        )
    where = f" on the key {key}" if key else ""
    return broken(
        "redis.acl",
        f"the user may not run {commands}{where}: give it the rights in deploy/REFERENCE.md;"
        " nothing is read until then",
    )
