"""`crashing_controller.py NOTE CLOCK POINT:VISITS…`: the controller, which dies at the first of these points; see
crash_points.py.

CLOCK is a file that says by how many seconds its wall clock is wrong, from now on.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ottoscaler import clock
from ottoscaler.cli import run
from tests.torture.crash_points import Crash, with_crash_points


class WrongTime:
    """The module `time` as a process sees it after an operator, or NTP, has set the wall clock. Any thread."""

    LOOK_S = 0.1

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shift_s = 0.0
        self._look_at = 0.0

    def time(self) -> float:
        """Seconds since the epoch, as wrong as the file says."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + self.LOOK_S
            self._shift_s = float(self._path.read_text(encoding="utf-8") or 0) if self._path.exists() else 0.0
        return time.time() + self._shift_s

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def main(arguments: list[str]) -> int:
    """Run the controller; returns its exit code if it gets that far."""
    note, wrong, *armed = arguments
    clock.time = WrongTime(Path(wrong))  # type: ignore[attr-defined]
    visits = {point: int(count) for point, _, count in (word.rpartition(":") for word in armed)}
    stream, cluster = with_crash_points(Crash(visits, Path(note)))
    run.RedisBackend, run.KubeCluster = stream, cluster  # type: ignore[attr-defined]
    return run.main([])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
