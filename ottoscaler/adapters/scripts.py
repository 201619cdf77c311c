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

from ottoscaler.adapters.tasks import Key
from ottoscaler.settings import KeySettings

_SOURCE: Final = (Path(__file__).parent / "protocol.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SOURCE, usedforsecurity=False).hexdigest()


class Scripts:
    """The functions of protocol.lua, on the keys of one group. Any thread."""

    def __init__(self, keys: KeySettings) -> None:
        own = Key(keys.prefix)
        self._keys = (keys.stream, own.open, keys.result_stream, keys.dead_letter_stream, own.buried)
        self._settings = (keys.group, keys.result_maxlen, keys.task_ttl_s)

    def run(self, client: redis.Redis, function: str, tasks: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The answer of one function; `tasks` are the keys that it is about."""
        command = self._command(function, tasks, arguments)
        try:
            return client.execute_command(*command)
        except redis.exceptions.NoScriptError:
            client.script_load(_SOURCE)
            return client.execute_command(*command)

    def run_many(self, client: redis.Redis, calls: Sequence[tuple[str, Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Many calls, one trip. An error of one is raised after all have been sent:
        they are idempotent, so the caller repeats all.
        """
        if not client.script_exists(_SHA)[0]:
            client.script_load(_SOURCE)
        pipe = client.pipeline(transaction=False)
        for function, tasks, arguments in calls:
            pipe.execute_command(*self._command(function, tasks, arguments))
        return pipe.execute()

    def _command(self, function: str, tasks: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        keys = [*self._keys, *tasks]
        return ["EVALSHA", _SHA, len(keys), *keys, function, *self._settings, *arguments]
