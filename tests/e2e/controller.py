"""The controller as operators see it: a process with an environment, a log, an exit code and a memory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.waiting import LONG_S, wait_for
from tests.log_lines import line_faults

SCRIPT = Path(__file__).resolve().parents[2] / "ottoscaler.py"
_TOLD_LINES = 60


class Controller:
    """`python ottoscaler.py run` with its log in a file. One thread."""

    def __init__(
        self, directory: Path, environ: Mapping[str, str], entry: Sequence[str] = (str(SCRIPT), "run")
    ) -> None:
        """`entry`: another way into the same program, after the interpreter."""
        self._log = directory / f"controller-{len(list(directory.glob('controller-*')))}.log"
        # nothing of the caller's own configuration may reach it
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        self._environ = {**kept, "PYTHONWARNINGS": "default", "LOG_FORMAT": "json", "HTTP_PORT": "0", **environ}
        self._lines: list[dict[str, Any]] = []
        self._read = 0
        with self._log.open("wb") as log:
            command = [sys.executable, *entry]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self._environ)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def text(self) -> str:
        """All that it has written."""
        return self._log.read_text(encoding="utf-8")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log so far; a line that is not JSON fails here, for every line is promised to be."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        self._lines += [json.loads(line) for line in whole.splitlines()]
        return self._lines

    def said(self, event: str, **facts: object) -> list[dict[str, Any]]:
        """The lines of that name with those facts."""
        wanted = {"event": event, **facts}
        return [line for line in self.lines if all(line.get(name) == value for name, value in wanted.items())]

    def until_said(self, event: str, timeout_s: float = LONG_S, **facts: object) -> dict[str, Any]:
        """The first such line, waiting for it."""
        return wait_for(lambda: self.said(event, **facts), f"the line {event} {facts}", timeout_s)[0]

    def ready(self) -> Controller:
        """Wait until it takes events. Returns itself."""

        def look() -> bool:
            assert self.process.poll() is None, f"it ended with code {self.process.returncode}:\n{self.text}"
            return bool(self.said("watch.listed") and self.said("controller.started"))

        wait_for(look, "the controller to start")
        return self

    def terminate(self) -> None:
        """The first signal of a stop."""
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, timeout_s: float = LONG_S) -> int:
        """Wait for its end."""
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """As the kernel does when memory is short: at once and without a word."""
        self.process.kill()
        self.process.wait(LONG_S)

    def status(self, name: str) -> int:
        """A figure of /proc/PID/status: VmHWM (peak memory, KiB), Threads, …"""
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
        assert found, name
        return int(found[1])

    def close(self) -> None:
        """End it, and show the end of its log: pytest prints that for a test that failed. Each line of its log is as
        deploy/schemas says.
        """
        if self.process.poll() is None:
            self.kill()
        print(f"-- {self._log}\n" + "\n".join(self.text.splitlines()[-_TOLD_LINES:]))
        assert self.line_faults() == []

    def line_faults(self) -> list[tuple[dict[str, Any], list[str]]]:
        """The lines that are not as published, each with what is wrong with it; the last may have been cut off."""
        whole = [line for line in self.text.split("\n")[:-1] if line.startswith("{")]
        lines = [json.loads(line) for line in whole]
        return [(line, found) for line in lines if (found := line_faults(line))]
