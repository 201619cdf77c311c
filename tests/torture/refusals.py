"""A Redis that is up and refuses: commands that the controllers have no right to, keys of another type, no memory, and
pauses. Each lasts for seconds and then is mended.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from tests.e2e.redis_server import RedisServer

USER: Final = "otto"
PASSWORD: Final = "torture"
#: Every right, as a rule.
ALL: Final = f"user {USER} on >{PASSWORD} ~* &* +@all"
#: Commands of the protocol, and of the connection.
COMMANDS: Final = (
    "xadd", "xack", "hset", "hget", "hmget", "hincrby", "zadd", "zrem", "expire", "evalsha", "xreadgroup", "xpending",
    "exists", "zrange", "sadd", "del", "info",
)  # fmt: skip
#: Keys that are of another type for a while. The events' is not among them: its group would go with it.
KEYS: Final = ("otto:scale:results", "otto:scale:dead", "otto:scale:open", "otto:scale:buried")
_ASIDE: Final = "otto-torture:aside:"
#: How each looks in Redis's own count of errors.
_COUNTED: Final = {"denied": "NOPERM", "wrong-type": "WRONGTYPE", "oom": "OOM"}


@dataclass(frozen=True)
class _Lasting:
    kind: str
    until: float
    mend: Callable[[], None]
    errors: int


class Refusals:
    """One at a time. One thread."""

    def __init__(self, server: RedisServer, client: Any, dice: random.Random) -> None:
        self._server = server
        self._redis = client
        self._dice = dice
        self._lasting: _Lasting | None = None
        self._next_at = 0.0
        self.hits: Counter[str] = Counter()
        """By kind: how often somebody was refused."""

    @staticmethod
    def rights(directory: Path) -> Path:
        """The server's file of users: ours has no password and every right, the controllers' may lose some."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "users.acl"
        path.write_text(f"user default on nopass ~* &* +@all\n{ALL}\n", encoding="utf-8")
        return path

    @property
    def busy(self) -> bool:
        """Is something refused now? Then nothing is sent, since a producer would be refused, too."""
        return self._lasting is not None

    def tick(self, wanted: dict[str, float]) -> None:
        """Mend what has lasted long enough, and begin what there was not enough of."""
        now = time.monotonic()
        if self._lasting is not None:
            if now >= self._lasting.until:
                self.clear()
            return
        due = [kind for kind, count in wanted.items() if self.hits[kind] < int(count)]
        if due and now >= self._next_at:
            self._begin(self._dice.choice(due), now)

    def clear(self) -> None:
        """Mend it; idempotent."""
        lasting, self._lasting = self._lasting, None
        if lasting is None:
            return
        if lasting.kind == "pause":
            lasting.mend()
            self.hits["pause"] += 1
        else:
            self.hits[lasting.kind] += self._errors(lasting.kind) > lasting.errors
            lasting.mend()
        self._next_at = time.monotonic() + self._dice.uniform(0.3, 1.2)

    def _begin(self, kind: str, now: float) -> None:
        errors = self._errors(kind)
        begin = {"denied": self._deny, "wrong-type": self._replace, "oom": self._exhaust, "pause": self._pause}[kind]
        mend = begin()
        longest = 1.5 if kind in ("pause", "oom") else 4.0
        self._lasting = _Lasting(kind, now + self._dice.uniform(0.3, longest), mend, errors)

    def _deny(self) -> Callable[[], None]:
        some = self._dice.sample(COMMANDS, self._dice.choice((1, 1, 2)))
        self._redis.execute_command("ACL", "SETUSER", USER, *(f"-{command}" for command in some))
        return lambda: self._redis.execute_command("ACL", "SETUSER", USER, "+@all")

    def _replace(self) -> Callable[[], None]:
        keys = self._dice.sample(KEYS, self._dice.choice((1, 1, 2)))
        pipe = self._redis.pipeline()
        there = [key for key in keys if self._redis.exists(key)]
        for key in there:
            pipe.rename(key, _ASIDE + key)
        for key in keys:
            pipe.set(key, "of another type")
        pipe.execute()
        return lambda: self._put_back(keys, there)

    def _put_back(self, keys: Sequence[str], there: Sequence[str]) -> None:
        pipe = self._redis.pipeline()
        pipe.delete(*keys)
        for key in there:
            pipe.rename(_ASIDE + key, key)
        pipe.execute()

    def _exhaust(self) -> Callable[[], None]:
        self._redis.config_set("maxmemory", "1mb")
        return lambda: self._redis.config_set("maxmemory", "0")

    def _pause(self) -> Callable[[], None]:
        self._server.pause()
        return self._server.resume

    def _errors(self, kind: str) -> int:
        with suppress(redis.RedisError):
            answer = self._redis.info("errorstats").get(f"errorstat_{_COUNTED.get(kind, '')}", {})
            return int(answer.get("count", 0)) if isinstance(answer, dict) else 0
        return 0
