"""The reference handler and the agent as processes, and certificates for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import warm
from tests.readme import ROOT

SCRIPT = ROOT / "ottoscaler.py"
LONG_S = 60


class HandlerProcess:
    """The reference handler, with a folder that outlives it. One thread."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.folder = folder / "logs"
        self.folder.mkdir(exist_ok=True)
        self._options = options
        self.port = port
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, on the port of before if there was one; returns when it listens."""
        address = f"127.0.0.1:{self.port}"
        command = [sys.executable, str(SCRIPT), "handler", "--quiet", "--address", address, "--store", str(self.folder)]
        self._process = warm.Popen([*command, *self._options], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        assert first.startswith("Log handler listens on 127.0.0.1:"), first
        self.port = int(first.split()[4].rpartition(":")[2])

    def kill(self) -> None:
        """As a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> str:
        """Stop it in order; returns what it printed at the end."""
        assert self._process is not None
        self._process.terminate()
        return self._process.communicate(timeout=LONG_S)[0]

    def entries(self, worker: str = "w-1") -> list[dict[str, Any]]:
        """What it has stored of a worker, as it came."""
        path = self.folder / f"{worker}.jsonl"
        stored = path.read_bytes() if path.exists() else b""
        # what is behind the last newline is being written just now
        return [json.loads(line) for line in stored.rpartition(b"\n")[0].splitlines()]

    def lines(self, source: str | None = None, worker: str = "w-1") -> list[str]:
        """The lines of a worker, by sequence."""
        found = sorted(self.entries(worker), key=lambda entry: entry["sequence"])
        assert len({entry["sequence"] for entry in found}) == len(found)  # none is stored twice
        plain = [entry for entry in found if entry["level"] == "INFO" and "end" not in entry]
        return [entry["message"] for entry in plain if source in (None, entry["source"])]

    def end(self, worker: str = "w-1") -> dict[str, int] | None:
        """The account in the end entry."""
        return next((entry["end"] for entry in self.entries(worker) if "end" in entry), None)


@contextmanager
def handler(folder: Path, *options: str) -> Iterator[HandlerProcess]:
    """A handler that listens."""
    process = HandlerProcess(folder, *options)
    process.start()
    try:
        yield process
    finally:
        process.kill()


def agent_environ(port: int, **more: str) -> Mapping[str, str]:
    """The environment of a worker."""
    ours = {"LOG_HANDLER_ADDRESS": f"127.0.0.1:{port}", "OTTO_POD_NAME": "w-1", "OTTO_TASK_ID": "t-1"}
    return {**os.environ, **ours, **more}


def agent_command(*command: str) -> list[str]:
    """The agent's command line."""
    return [sys.executable, str(SCRIPT), "agent", "--", *command]


def run_agent(port: int, *command: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command under the agent, to its end."""
    return warm.run(
        agent_command(*command), env=agent_environ(port, **more), capture_output=True, timeout=LONG_S, check=False
    )


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def certificates(folder: Path, *names: str) -> None:
    """An authority in ca.crt, and for each name NAME.crt and NAME.key, good for 127.0.0.1."""
    authority = ("-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt")
    _openssl(folder, "req", "-x509", *_NEW_KEY, "-days", "2", *authority)
    (folder / "names.cnf").write_text("subjectAltName=IP:127.0.0.1\n", encoding="utf-8")
    signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-days", "2", "-CAcreateserial", "-extfile", "names.cnf")
    for name in names:
        files = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
        _openssl(folder, "req", *_NEW_KEY, "-subj", f"/CN={name}", *files)
        _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.crt")


def _openssl(folder: Path, *arguments: str) -> None:
    command: Sequence[str] = ("openssl", *arguments)
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=LONG_S)
