"""The whole system on one machine, for `local` and `demo`: Redis, a Kubernetes cluster, and the controller as a child.

The controller is started as in a cluster, `ottoscaler.py run` with environment variables, so that what is shown
here is what runs in a cluster. Each of the three ends when we do, however we end: see ottoscaler.local.guard.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections import ChainMap
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from ottoscaler.cli.connection import load
from ottoscaler.errors import LocalSystemError
from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.settings import Settings
from ottoscaler.settings_files import read_env_file

ROOT: Final = Path(__file__).resolve().parents[2]
SCRIPT: Final = ROOT / "ottoscaler.py"
#: The guard gives the controller 5 s after SIGTERM and then ends it by force; this is for both.
_STOP_S: Final = 10.0
#: Our own Redis has no password, no TLS and no sentinels, whatever the environment (or ENV_FILE) says: an empty
#: variable counts as not set.
_PLAIN_REDIS: Final = (
    "REDIS_DB",
    "REDIS_USERNAME",
    "REDIS_PASSWORD",
    "REDIS_PASSWORD_FILE",
    "REDIS_SENTINELS",
    "REDIS_SENTINEL_MASTER",
    "REDIS_TLS",
    "REDIS_CA_FILE",
)


class LocalSystem:
    """Redis, cluster and controller. One thread; a context manager that starts the servers and closes everything."""

    def __init__(
        self, data_dir: Path, environ: Mapping[str, str], *, binary: Path | None = None, external: bool = False
    ) -> None:
        """Store where the data lives, the environment of the controller, the Redis server's binary (None: the embedded
        one), or that the Redis of that environment is to be used.
        """
        self._data_dir = data_dir
        self._given = dict(environ)
        self._redis = None if external else EmbeddedRedis(data_dir / "redis", binary=binary)
        self._cluster = LocalCluster(data_dir / "cluster")
        self._http_port = _free_port()
        self._opened = ExitStack()
        self._controller: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalSystem:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start Redis and the cluster; they answer when this returns. Raises LocalSystemError, ConfigError."""
        load({**self._given, **(self._redis_overrides(port="6379") if self._redis else {})})
        with ExitStack() as opened:
            opened.enter_context(_lock_data_dir(self._data_dir))
            if self._redis is not None:
                opened.callback(self._redis.close)
                self._redis.start()
            opened.callback(self._cluster.close)
            self._cluster.start()
            self._opened = opened.pop_all()

    def start_controller(self, log: Path | None = None) -> None:
        """Start the controller; its lines go to our own output, or to a file. Raises LocalSystemError."""
        output: IO[bytes] | None = None if log is None else self._opened.enter_context(log.open("ab"))
        # The guard's session is not the terminal's: Ctrl-C is for us, and we stop things in order.
        command = [sys.executable, "-m", "ottoscaler.local.guard", "--", sys.executable, str(SCRIPT), "run"]
        path = os.pathsep.join(filter(None, [str(ROOT), self._given.get("PYTHONPATH")]))
        try:
            self._controller = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**self.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        except OSError as error:
            raise LocalSystemError(f"the controller could not be started: {error}") from error
        self._opened.callback(self._stop_controller)

    def close(self) -> None:
        """Stop the controller, then the cluster with its workers, then Redis. Idempotent."""
        self._opened.pop_all().close()

    @property
    def exit_code(self) -> int | None:
        """The controller's exit code, 128 + n after signal n; None while it runs or was not started."""
        return None if self._controller is None else self._controller.poll()

    @property
    def overrides(self) -> dict[str, str]:
        """The variables that the controller gets instead of those of the environment. After start."""
        redis = self._redis_overrides(str(self._redis.port)) if self._redis else {}
        web = {} if with_env_file(self._given).get("HTTP_PORT", "").strip() else {"HTTP_PORT": str(self._http_port)}
        return {**redis, **web, "KUBECONFIG": str(self.kubeconfig), "NAMESPACE": "default"}

    @property
    def environ(self) -> dict[str, str]:
        """The whole environment of the controller. After start."""
        return {**self._given, **self.overrides}

    @property
    def kubeconfig(self) -> Path:
        """The file for kubectl."""
        return self._cluster.kubeconfig.resolve()

    @property
    def url(self) -> str:
        """The address of the Kubernetes API. After start."""
        return self._cluster.url

    @property
    def settings(self) -> Settings:
        """The configuration as the controller reads it. After start."""
        return load(self.environ)

    def shell_prefix(self) -> str:
        """What to put before a command so that it finds this Redis: only what the environment would have wrong."""
        names = with_env_file(self._given)
        changed = {name: value for name, value in self.overrides.items() if name.startswith("REDIS_")}
        words = [f"{name}={value}" for name, value in changed.items() if name == "REDIS_PORT" or names.get(name)]
        return " ".join(words)

    def _redis_overrides(self, port: str) -> dict[str, str]:
        return {**dict.fromkeys(_PLAIN_REDIS, ""), "REDIS_HOST": EmbeddedRedis.host, "REDIS_PORT": port}

    def _stop_controller(self) -> None:
        """Closing the guard's input makes it send SIGTERM: unlike a signal to the guard, this cannot come too early."""
        process = self._controller
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def with_env_file(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment with what ENV_FILE adds to it."""
    path = environ.get("ENV_FILE", "").strip()
    return ChainMap(dict(environ), read_env_file(path)[0]) if path else environ


def _free_port() -> int:
    """For the probes: the usual one may be in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_redis_server() -> Path:
    """The Redis server on PATH. Raises LocalSystemError when there is none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    raise LocalSystemError("--redis-server auto: neither redis-server nor valkey-server is on PATH")


def _lock_data_dir(data_dir: Path) -> IO[str]:
    """Two servers on one append-only file would spoil it; the lock goes with the process that holds it."""
    try:
        for part in ("redis", "cluster"):
            (data_dir / part).mkdir(parents=True, exist_ok=True)
        file = (data_dir / "lock").open("w")
    except OSError as error:
        raise LocalSystemError(f"the data directory {data_dir} cannot be used: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise LocalSystemError(f"the data directory {data_dir} is in use by another local system") from error
    return file
