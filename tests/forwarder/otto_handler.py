"""The example of a handler in NestJS, built once and kept in .cache, and run as a process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import require
from tests.fakes.wait import eventually
from tests.npm import installed
from tests.readme import ROOT

SOURCE = ROOT / "deploy" / "otto-handler"
PROTO = ROOT / "ottoscaler" / "proto" / "log_streaming.proto"
LONG_S = 60


def built() -> Path:
    """The folder with the example, its packages and what tsc made of it. Without npm, or what it needs, the test is
    skipped; with OTTO_CI=1 it fails.
    """
    require("node")
    folder = installed(SOURCE / "package.json", "otto-handler")
    shutil.copytree(SOURCE / "src", folder / "src", dirs_exist_ok=True)
    shutil.copy(SOURCE / "tsconfig.json", folder)
    tsc = [str(folder / "node_modules" / ".bin" / "tsc")]
    done = subprocess.run(tsc, cwd=folder, capture_output=True, text=True, timeout=LONG_S * 2, check=False)
    assert done.returncode == 0, done.stdout
    return folder


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OttoHandler:
    """The example as a process, with a folder that outlives it. One thread."""

    def __init__(self, program: Path, folder: Path, redis_url: str = "redis://127.0.0.1:1", port: int = 0) -> None:
        self._program = program / "dist" / "main.js"
        self.folder = folder
        self.port = port or free_port()
        self._environ: Mapping[str, str] = {
            **os.environ,
            "GRPC_URL": f"127.0.0.1:{self.port}",
            "REDIS_URL": redis_url,
            "PROTO_PATH": str(PROTO),
            "LOG_FOLDER": str(folder / "logs"),
            "RESULT_FILE": str(folder / "results.jsonl"),
            "RESULT_CONSUMER": "handler-1",
        }
        self._process: subprocess.Popen[str] | None = None
        self._said: list[str] = []

    def start(self) -> None:
        """Start it; returns when it listens."""
        process = subprocess.Popen(
            [require("node"), str(self._program)],
            env=self._environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._process, self._said = process, []
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        eventually(lambda: "ready" in self._said, LONG_S, "the handler to listen")

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._said += (line.strip() for line in process.stdout)

    def send(self, **fields: str) -> str:
        """Let it send an event. Returns the entry's id."""
        assert self._process is not None
        assert self._process.stdin is not None
        before = len(self._said)
        self._process.stdin.write(json.dumps(fields) + "\n")
        self._process.stdin.flush()
        said = eventually(lambda: self._said[before:], LONG_S, "the event to be sent")
        assert said[0].startswith("sent "), said
        return said[0].removeprefix("sent ")

    def kill(self) -> None:
        """As a crash does. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(LONG_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def restart(self) -> None:
        """A crash, and the next process."""
        self.kill()
        self.start()

    def entries(self, worker: str) -> list[dict[str, Any]]:
        """What it has stored of a worker, in the order in which it was stored."""
        path = self.folder / "logs" / f"{worker}.jsonl"
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def results(self) -> list[dict[str, str]]:
        """The results that it has consumed."""
        path = self.folder / "results.jsonl"
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
