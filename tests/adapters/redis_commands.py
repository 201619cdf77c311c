"""The commands that read and write Redis only, as people call them, on whatever kind of Redis the environment names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.settings import KeySettings, RedisSettings
from tests import warm
from tests.fakes.clock import SystemClock
from tests.flow.simulated_controller import FakeServers, SimulatedController

SCRIPT = Path(__file__).resolve().parents[2] / "ottoscaler.py"
#: Names with one hash tag, as a Redis Cluster asks for, and as the environment gives them.
NAMES = {
    "REDIS_STREAM": "{otto}:events", "RESULT_STREAM": "{otto}:results", "DEAD_LETTER_STREAM": "{otto}:dead",
    "KEY_PREFIX": "{otto}:scale:",
}  # fmt: skip


def keys_of(consumer: str = "c1", **environ: str) -> KeySettings:
    """The same names as settings."""
    names = {**NAMES, **environ}
    return KeySettings(
        consumer=consumer, stream=names["REDIS_STREAM"], result_stream=names["RESULT_STREAM"],
        dead_letter_stream=names["DEAD_LETTER_STREAM"], prefix=names["KEY_PREFIX"],
    )  # fmt: skip


def stream_at(settings: RedisSettings, consumer: str = "c1", lease_s: float = 15, **environ: str) -> RedisBackend:
    """A stream on those names."""
    return RedisBackend(
        RedisCalls(settings, keys_of(consumer, **environ), lease_s=lease_s, consumer=consumer, incarnation="b")
    )


def run(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own."""
    python = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    variables = {"PATH": "/usr/bin:/bin", **python, **NAMES, **environ}
    command = [sys.executable, str(SCRIPT), *arguments]
    return warm.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)


def all_commands_work(environ: Mapping[str, str], stream: RedisBackend, event_id: str) -> None:
    """send, status and dead, one after the other; `stream` is what a controller there would use."""
    sent = run(environ, "send", "type=scale_up", f"event_id={event_id}")
    assert sent.returncode == 0, sent.stderr
    stream.ensure_group()
    with SimulatedController(FakeServers(SystemClock()), stream=stream) as controller:
        stream._redis.client.xadd(NAMES["REDIS_STREAM"], {"type": "nonsense"})
        controller.intake.accept_entries(stream.read_now(10))
    shown = run(environ, "status", "--json")
    assert event_id in shown.stdout, shown.stderr
    listed = run(environ, "dead", "list")
    assert "Invalid" in listed.stdout, listed.stderr
    [(dead_id, _)] = stream._redis.client.xrevrange(NAMES["DEAD_LETTER_STREAM"], count=1)
    for command in (("redrive", "type=scale_up"), ("show",), ("purge",)):
        done = run(environ, "dead", command[0], dead_id.decode(), *command[1:])
        assert done.returncode == 0, (command, done.stderr)
