"""The two clocks of the tests: one that only the test moves, and one that runs. Both are `ports.Clock`."""

from __future__ import annotations

import threading
import time

#: 2023-11-14T22:13:20Z: any fixed time that looks like a real one in stamps.
START: float = 1_700_000_000.0


class ManualClock:
    """Time stands still until a test moves it. Any thread."""

    def __init__(self, start: float = START) -> None:
        self._lock = threading.Lock()
        self._now = start

    def now(self) -> float:
        with self._lock:
            return self._now

    def wall_time(self, at: float) -> float:
        return at

    def advance(self, seconds: float) -> None:
        """Let the given seconds pass; never backwards. Raises ValueError for a negative number."""
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds}")
        with self._lock:
            self._now += seconds


class SystemClock:
    """The wall clock at the start, carried on by the monotonic one: fakes stamp with it. Any thread.

    At a `rate` above 1 it runs that many times as fast, so that leases run out while a test waits a moment.
    """

    def __init__(self, rate: float = 1.0) -> None:
        self._start, self._began, self._rate = time.time(), time.monotonic(), rate

    def now(self) -> float:
        return self._start + (time.monotonic() - self._began) * self._rate

    def wall_time(self, at: float) -> float:
        return at
