"""How the functions of protocol.lua are called: by the script's digest, with the keys and settings that all of them
get.

Raises what redis-py raises: whoever calls translates it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import redis

from ottoscaler.adapters.redis_cluster import FollowingRedis, remember_script
from ottoscaler.adapters.tasks import Key
from ottoscaler.settings import KeySettings


def source(name: str) -> bytes:
    """A Lua file, behind atomic.lua, on which all of them stand."""
    folder = Path(__file__).parent
    return (folder / "atomic.lua").read_bytes() + (folder / name).read_bytes()


_SOURCE: Final = source("protocol.lua")
_SHA: Final = hashlib.sha1(_SOURCE, usedforsecurity=False).hexdigest()
remember_script(_SHA, _SOURCE)


class Scripts:
    """The functions of protocol.lua, on the keys of one group. Any thread."""

    def __init__(self, keys: KeySettings) -> None:
        own = Key(keys.prefix)
        self._keys = (keys.stream, own.open, keys.result_stream, keys.dead_letter_stream, own.buried)
        self._settings = (keys.group, keys.result_maxlen, keys.task_ttl_s)

    def run(self, client: FollowingRedis, function: str, tasks: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The answer of one function; `tasks` are the keys that it is about."""
        return call_script(client, _SOURCE, self._command(function, tasks, arguments))

    def run_many(self, client: FollowingRedis, calls: Sequence[tuple[str, Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Many calls, one trip. An error of one is raised after all have been sent:
        they are idempotent, so the caller repeats all.
        """
        commands = [self._command(*call) for call in calls]
        pipe = client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        answers = client.answers(pipe)
        for number, command in enumerate(commands):
            if isinstance(answers[number], redis.exceptions.NoScriptError):
                answers[number] = call_script(client, _SOURCE, command)
            if isinstance(answers[number], Exception):
                raise answers[number]
        return answers

    def examine(self, client: FollowingRedis, keys: Sequence[str]) -> Any:
        """The answer of `examine` on the keys that all functions get and these."""
        names = [*self._keys, *keys]
        return call_script(client, _SOURCE, ["EVALSHA", _SHA, 0, "examine", *self._settings, *names])

    def _command(self, function: str, tasks: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        keys = [*self._keys, *tasks]
        return ["EVALSHA", _SHA, len(keys), *keys, function, *self._settings, *arguments]


def call_script(client: FollowingRedis, source: bytes, command: Sequence[Any]) -> Any:
    """The answer to an EVALSHA. The script is loaded where it is unknown, as after a restart or failover."""
    try:
        return client.execute_command(*command)
    except redis.exceptions.NoScriptError:
        client.script_load(source)
        return client.execute_command(*command)
