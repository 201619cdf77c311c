"""A redis-server as the guide for production wants it: TLS only, with an ACL file, perhaps with a sentinel."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from tests.conftest import require
from tests.e2e.waiting import wait_for

ADMIN = "admin-secret"


class SecuredRedis:
    """One server on one address; `ca` is the file to trust. One thread."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.address = address
        self.port, self.sentinel_port = _free_port(address), _free_port(address)
        self.ca = folder / "ca.crt"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)
        _certificates(folder, address)
        (folder / "users.acl").write_text(f"user default on >{ADMIN} ~* &* +@all\n", encoding="utf-8")

    def start(self) -> None:
        """Start it on the data and with the users of before; returns when it answers."""
        settings = {"dir": self._folder, "aclfile": self._folder / "users.acl", "appendonly": "yes", "save": ""}
        self._launch("redis", "--tls-port", self.port, *_words(settings), "--maxmemory-policy", "noeviction")
        wait_for(self._answers, "Redis to answer", 20)

    def watch_over(self) -> None:
        """Start a sentinel that knows it as mymaster."""
        config = self._folder / "sentinel.conf"
        lines = (f"monitor mymaster {self.address} {self.port} 1", f"auth-pass mymaster {ADMIN}")
        text = "".join(f"sentinel {line}\n" for line in lines)
        config.write_text(f"{text}tls-replication yes\ndir {self._folder}\n", encoding="utf-8")
        self._launch("sentinel", "--sentinel", "--tls-port", self.sentinel_port, first=str(config))

    def run(self, command: str) -> Any:
        """Carry out a line that begins with redis-cli, as the administrator."""
        program, *words = shlex.split(command)
        assert program == "redis-cli"
        with self.client() as client:
            return client.execute_command(*words)

    def client(self) -> Any:
        """A plain client of the administrator."""
        return redis.Redis(
            self.address, self.port, password=ADMIN, ssl=True, ssl_ca_certs=str(self.ca), decode_responses=True
        )

    def restart(self) -> None:
        """As after an update of its machine: what is in memory only is gone, scripts among it."""
        process = self._processes.pop(0)
        process.terminate()
        process.wait(20)
        sentinels, self._processes = self._processes, []
        self.start()
        self._processes += sentinels

    def close(self) -> None:
        """End all; idempotent."""
        for process in self._processes:
            process.terminate()
            process.wait(20)
        self._processes = []

    def _launch(self, name: str, *options: object, first: str = "") -> None:
        here = self._folder
        tls = {"cert-file": here / "server.crt", "key-file": here / "server.key", "ca-cert-file": self.ca}
        words = [*_words({f"tls-{key}": value for key, value in tls.items()}), "--tls-auth-clients", "no"]
        command = [require("redis-server"), *filter(None, [first]), *map(str, options), *words]
        command += ["--port", "0", "--bind", self.address]
        with (here / f"{name}.log").open("ab") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _answers(self) -> bool:
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False


def _words(options: dict[str, object]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _certificates(here: Path, address: str) -> None:
    """An authority of one's own, and a server at an address."""
    assert shutil.which("openssl"), "needs openssl"
    key = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    server = ("-CA", "ca.crt", "-CAkey", "ca.key", "-addext", f"subjectAltName=IP:{address}")
    for name, extra in (("ca", ()), ("server", server)):
        command = ["openssl", "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run([*command, "-subj", f"/CN={name}", *extra], cwd=here, check=True, capture_output=True)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
