"""The peers measured beside the product: processes that say `ready`, wait for a line, report their work, and wait for
the end of their input, so that neither their start nor their end is in the figures.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.lab import NAMESPACE, PEER, Lab

ROOT = Path(__file__).resolve().parents[2]


class Peer:
    """One loop as a process. One thread; a `with` block ends it."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
            )
        self._said(60)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def run(self, timeout_s: float) -> dict[str, Any]:
        """Let it work; returns what it says of it."""
        self._go()
        answer: dict[str, Any] = json.loads(self._said(timeout_s))
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait(20)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def _said(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else ""
        assert line, f"no word within {timeout_s} s; its log: {self._log.read_text(errors='replace')[-500:]}"
        return line


def bare(lab: Lab, pods: int, *, prefix: str) -> Peer:
    """The limit: create, watch, delete in Go, nothing else."""
    return Peer(lab.loop("bare", pods=pods, prefix=prefix), lab.directory / "bare.log")


def polling(lab: Lab, events: int, pods: int, *, rate: float, prefix: str) -> Peer:
    """The polling design; `rate` requests per second, 0 for no limit."""
    return Peer(lab.loop("poll", events=events, pods=pods, rate=rate, prefix=prefix), lab.directory / "poll.log")


def warm(lab: Lab, pods: int, *, prefix: str) -> Peer:
    """Create and delete at once."""
    return Peer(lab.loop("warm", pods=pods, prefix=prefix), lab.directory / "warm.log")


def typed(lab: Lab, pods: int, *, prefix: str) -> Peer:
    """The naive one: the client's models, a thread per pod."""
    facts = [str(lab.kubeconfig), NAMESPACE, f"ottoscaler.io/instance={PEER}", str(lab.directory / "pod.json")]
    return Peer(
        [sys.executable, "-m", "tests.bench.typed_client", *facts, prefix, str(pods)], lab.directory / "typed.log"
    )
