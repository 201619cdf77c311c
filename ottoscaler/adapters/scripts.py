"""How the functions of the Lua files are called: by the script's digest, with the keys and settings that all of them
get.

The head of common.lua says how the files stand behind each other. The first lines of each script are generated here
from ottoscaler/core, so that each limit, sentence and list of result fields is written down once.

Raises what redis-py raises: the caller translates it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis

from ottoscaler.adapters.redis_cluster import RedirectingRedis, remember_script
from ottoscaler.adapters.task_codec import RedisKeys, encode_termination
from ottoscaler.core import events, output, results, verdicts
from ottoscaler.core.termination import NOT_AFTER, Termination
from ottoscaler.settings import KeySettings

FOLDER: Final = Path(__file__).parent
#: What stands before and behind the functions of each port.
PRELUDE_FILES: Final = ("atomic.lua", "common.lua")
EPILOGUE_FILES: Final = ("call.lua",)
#: The ports to Redis: each has a Python module and a Lua file of its name.
SCRIPT_MODULES: Final = (
    "preflight", "event_log", "leases", "attempts", "scale_downs", "result_log", "page_reader",
)  # fmt: skip
#: The error of a script about a task that Redis does not know, with a place for the event id.
TASK_UNKNOWN_ERROR: Final = "FORGOTTEN the task of event %s is unknown: was Redis wiped?"
#: What the scripts share with ottoscaler/core: Lua's name -> a number, or a sentence with places.
LUA_CONSTANTS: Final[dict[str, int | str]] = {
    "MAX_TRIES": verdicts.MAX_TRIES,
    "LAST_TRY": verdicts.LAST_TRY,
    "NOT_AFTER": encode_termination(
        Termination(verdicts.EndReason.NOT_AFTER, verdicts.TOO_LATE, drain=True, by=NOT_AFTER)
    ),
    "BY_NOT_AFTER": NOT_AFTER,
    "POISON_EVENT": verdicts.POISON_EVENT,
    "POISON_WORKER": verdicts.POISON_WORKER,
    "CONFLICT": events.CONFLICT,
    "NOT_A_TASK": events.NOT_A_TASK,
    "NOT_A_KEY": events.NOT_A_KEY,
    "TOO_OLD": events.TOO_OLD,
    "FORGOTTEN": TASK_UNKNOWN_ERROR,
    "REJECTED": results.REJECTED,
    "MAX_TASK_BYTES": output.MAX_TASK_BYTES,
    "CUT": output.CUT,
    "ALL_COMPLETED": results.ALL_COMPLETED,
    "SOME_COMPLETED": results.SOME_COMPLETED,
    "TRACE_GROUP": results.TRACE_GROUP,
}
#: The fields of results: Lua functions, so that only a call that publishes a result makes the list.
LUA_LISTS: Final = {
    "worker_fields": results.WORKER_FIELDS,
    "task_fields": results.TASK_FIELDS,
    "scale_down_fields": results.SCALE_DOWN_FIELDS,
}


class ScriptCall(NamedTuple):
    """A call of a script function: its name, the keys that it is about, its arguments."""

    function: str
    keys: Sequence[str]
    arguments: Sequence[Any]


def shared_constants() -> str:
    """The Lua lines that define what is SHARED. A JSON text without `\\u` is a Lua text too."""
    constants = [f"local {name} = {json.dumps(value)}\n" for name, value in LUA_CONSTANTS.items()]
    lists = [
        f"local function {name}() return {{{', '.join(map(json.dumps, names))}}} end\n"
        for name, names in LUA_LISTS.items()
    ]
    return "".join(constants + lists)


def source(*names: str) -> bytes:
    """The text of these Lua files, one behind the other."""
    return b"".join((FOLDER / name).read_bytes() for name in names)


@dataclass(frozen=True)
class Script:
    """A text that Redis runs, and the digest by which it is called."""

    source: bytes
    digest: str

    @classmethod
    def of(cls, source: bytes) -> Script:
        """The script of a text."""
        script = cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())
        remember_script(script.digest, source)
        return script


def _by_function() -> dict[str, Script]:
    """The script of each function: that of its port."""
    head, tail = shared_constants().encode() + source(*PRELUDE_FILES), source(*EPILOGUE_FILES)
    found: dict[str, Script] = {}
    for port in SCRIPT_MODULES:
        text = source(f"{port}.lua")
        names = re.findall(r"^function F\.(\w+)", text.decode(), re.MULTILINE)
        found |= dict.fromkeys(names, Script.of(head + text + tail))
    return found


_SCRIPTS: Final = _by_function()


class Scripts:
    """The functions of the protocol, on the keys of one group. Any thread."""

    def __init__(self, keys: KeySettings) -> None:
        own = RedisKeys(keys.prefix)
        self._keys = (keys.stream, own.open, keys.result_stream, keys.dead_letter_stream, own.buried)
        self._settings = (keys.group, keys.result_maxlen, keys.task_ttl_s)

    def run(self, client: RedirectingRedis, function: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The reply of one function."""
        return call_script(client, _SCRIPTS[function], self._command(function, keys, arguments))

    def run_many(self, client: RedirectingRedis, calls: Sequence[ScriptCall]) -> list[Any]:
        """Many calls, one trip. Raises the first error after all have been sent."""
        commands = [self._command(*call) for call in calls]
        pipe = client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        answers = client.execute_pipeline(pipe)
        for number, (call, command) in enumerate(zip(calls, commands, strict=True)):
            # After a restart of Redis: the others of this trip have been carried out, so only this one is sent again.
            if isinstance(answers[number], redis.exceptions.NoScriptError):
                answers[number] = call_script(client, _SCRIPTS[call.function], command)
            if isinstance(answers[number], Exception):
                raise answers[number]
        return answers

    def run_without_keys(self, client: RedirectingRedis, function: str, arguments: Sequence[Any]) -> Any:
        """The reply of a function that gets no KEYS, and as arguments the keys that all functions get and these."""
        script = _SCRIPTS[function]
        command = ["EVALSHA", script.digest, 0, function, *self._settings, *self._keys, *arguments]
        return call_script(client, script, command)

    def _command(self, function: str, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        count = len(self._keys) + len(keys)
        digest = _SCRIPTS[function].digest
        return ["EVALSHA", digest, count, *self._keys, *keys, function, *self._settings, *arguments]


def call_script(client: RedirectingRedis, script: Script, command: Sequence[Any]) -> Any:
    """The reply to an EVALSHA of this script. It is loaded where it is unknown, as after a restart or failover."""
    try:
        return client.execute_command(*command)
    except redis.exceptions.NoScriptError:
        client.script_load(script.source)
        return client.execute_command(*command)
