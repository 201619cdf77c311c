"""A real redis-server as a child process, which a test may stop, pause, lock and start again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from tests.e2e.waiting import wait_for

DATABASES = 512


class RedisServer:
    """One server on 127.0.0.1 with an append-only file. One thread."""

    def __init__(self, directory: Path, password: str = "") -> None:
        self.port = _free_port()
        self._directory = directory
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it on the same port and data as before; returns when it answers."""
        self.start_loading()
        self.await_answer()

    def start_loading(self, **settings: object) -> None:
        """Start it, with more settings if need be, and do not wait until it has read its data."""
        program = shutil.which("redis-server")
        assert program is not None
        self._directory.mkdir(parents=True, exist_ok=True)
        usual = {
            "bind": "127.0.0.1", "port": self.port, "dir": self._directory, "databases": DATABASES, "appendonly": "yes",
            "save": "", "maxmemory-policy": "noeviction", "requirepass": self._password,
        }  # fmt: skip
        command = [
            program,
            *(word for name, value in {**usual, **settings}.items() for word in (f"--{name}", str(value))),
        ]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def await_answer(self) -> None:
        """Wait until it is at work."""
        with self.client() as client:
            wait_for(lambda: _answers(client), "Redis to answer", 20)

    def client(self, db: int = 0) -> Any:
        """A plain client, to look past our own code."""
        return redis.Redis("127.0.0.1", self.port, db, password=self._password or None, decode_responses=True)

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def pause(self) -> None:
        """Let it answer no request until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As the kernel does when memory is short; `start` brings it back with what its append-only file holds."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)
        self._process = None

    def stop(self) -> None:
        """End it as an operator would; idempotent."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)


def _answers(client: Any) -> bool:
    with suppress(redis.RedisError):
        return bool(client.ping())
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
