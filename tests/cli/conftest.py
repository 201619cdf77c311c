"""A real Redis for the commands, and in the controller's place a few lines that use its own adapter."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.cli.connection import load
from ottoscaler.core.events import BadEvent, ScaleEvent, content_digest, parse
from ottoscaler.core.results import worker_result
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason, Verdict
from ottoscaler.core.victim_selection import Victim, VictimRequest
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.ports import Entry, OpenTask
from ottoscaler.settings import Settings
from tests import warm
from tests.fakes.wait import eventually

SCRIPT = Path(__file__).resolve().parents[2] / "ottoscaler.py"
#: Long enough for a loaded machine; nothing waits so long when all is well.
LONG_S = 30


class Controller:
    """What the controller does to Redis, step by step, as a test says. One thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self.stream = RedisBackend(
            RedisCalls(settings.redis, settings.keys, lease_s=15, consumer="otto-0", incarnation="boot")
        )
        self.stream.ensure_group()

    def take(self) -> OpenTask | None:
        """Wait for the next event and accept it; None if it became a dead letter."""
        (entry,) = eventually(lambda: self.stream.read(1), LONG_S, "an event")
        event = self._parsed(entry)
        if isinstance(event, BadEvent):
            self.stream.dead_letter(entry, event)
            return None
        fields = dict(entry.fields or {})
        return self.stream.accept([(event, content_digest(fields))], [fields])[0]

    def _parsed(self, entry: Entry) -> ScaleEvent | BadEvent:
        return parse(entry.stream_id, entry.fields or {}, 1000)

    def start(self, task: OpenTask, index: int) -> None:
        """Let a worker's pod be created."""
        pod = f"otto-agent-x-{index}"
        self.stream.store_attempt(task.event.event_id, task.owner, index, attempt=1, infra_used=0, pod=pod)

    def end(self, task: OpenTask, *reasons: EndReason, **fields: str) -> None:
        """Let worker 1, 2, ... end, each for its reason; further fields go into each result."""
        for index, reason in enumerate(reasons, start=1):
            self.start(task, index)
            result = worker_result(task.event, index, 1, Verdict(reason, "so it was"), None, time.time())
            answer = {**result, **(fields if reason is not EndReason.COMPLETED else {})}
            self.stream.record_result(task.event.event_id, task.owner, index, attempt=1, fields=answer)

    def carry_out(self, *reasons: EndReason, **fields: str) -> None:
        """Take the next event and let its workers end."""
        if (task := self.take()) is not None:
            self.end(task, *reasons, **fields)

    def scale_down(self, of: OpenTask, *pods: str) -> None:
        """Take the next event, a scale_down, and end these pods of a task's workers."""
        task = self.take()
        assert task is not None
        event_id = task.event.event_id
        victims = [Victim(of.event.event_id, index, pod) for index, pod in enumerate(pods, 1)]
        self.stream.select_victims(
            event_id, task.owner, VictimRequest(Termination(EndReason.SCALED_DOWN, by=event_id), victims)
        )
        closing = {"kind": "scale_down", "event_id": event_id, "outcome": "succeeded", "reason": "Completed"}
        self.stream.finish(event_id, task.owner, closing)


def printed_by(program: str) -> str:
    """What a few lines of Python print, in a process of its own."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPT.parent, timeout=LONG_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Terminal:
    """A command on a terminal of its own. One thread."""

    def __init__(self, *arguments: str) -> None:
        self._main, slave = pty.openpty()
        environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        command = [sys.executable, str(SCRIPT), *arguments]
        self.process = warm.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=environ)
        os.close(slave)
        self.screen = ""

    def until(self, text: str) -> str:
        """Read what it draws until a text is there; the end of the output ends it too."""
        while text not in self.screen and (drawn := self._read()):
            self.screen += drawn
        return self.screen

    def end(self) -> int:
        """Read to the end. Returns the exit code."""
        while drawn := self._read():
            self.screen += drawn
        os.close(self._main)
        return self.process.wait(LONG_S)

    def _read(self) -> str:
        try:
            return os.read(self._main, 65536).decode()
        except OSError:  # EIO: no process has the other end open any more
            return ""


@contextmanager
def child(*arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A command as a process of its own, ended at the latest with the test."""
    process = warm.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The embedded Redis, in its own process."""
    embedded = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    embedded.start()
    yield embedded
    embedded.close()


@pytest.fixture
def names(server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """The environment: the server, and keys that no other test has."""
    own = uuid.uuid4().hex[:8]
    variables = {
        "REDIS_HOST": server.host,
        "REDIS_PORT": str(server.port),
        "REDIS_BLOCK_MS": "200",
        "REDIS_STREAM": f"{own}:events",
        "RESULT_STREAM": f"{own}:results",
        "DEAD_LETTER_STREAM": f"{own}:dead",
        "KEY_PREFIX": f"{own}:",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def settings(names: Mapping[str, str]) -> Settings:
    """The configuration as the commands read it."""
    return load(os.environ)


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A plain client, to look past our own code."""
    with redis.Redis(host=server.host, port=server.port, decode_responses=True) as plain:
        yield plain


@pytest.fixture
def controller(settings: Settings) -> Iterator[Controller]:
    """A controller that carries events out."""
    acting = Controller(settings)
    yield acting
    acting.stream.close()


@pytest.fixture
def reader(settings: Settings) -> Iterator[StatusReader]:
    """The reader that the commands look at."""
    looking = StatusReader(settings.redis, settings.keys)
    yield looking
    looking.close()


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future[Any]]]:
    """Do something in a thread beside the command under test; its failure is the test's."""
    with ThreadPoolExecutor(1) as pool:
        futures: list[Future[Any]] = []

        def submit(what: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
            futures.append(pool.submit(what, *arguments, **named))
            return futures[-1]

        yield submit
        for future in futures:
            future.result(LONG_S)


def entries(client: redis.Redis, stream: str) -> Sequence[tuple[str, Mapping[str, str]]]:
    """All entries of a stream."""
    return cast("Sequence[tuple[str, Mapping[str, str]]]", client.xrange(stream))
