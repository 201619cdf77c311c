"""The log handler of the torture: it dies, stands still, cuts streams, refuses entries, and comes back."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Final

from tests.forwarder.processes import HandlerProcess

#: LOG_DRAIN_S of the controllers: longer than the handler is away.
DRAIN_S: Final = 6
#: No answer is lost on a stream that goes on: gRPC loses none, and behind a lost RETRY the next ACK would speak of what
#: was refused.
_HABITS: Final = ("--cut-every=400", "--retry-every=250", "--max-workers=1000000")


class LogHandler:
    """The process and its faults. One thread."""

    def __init__(self, directory: Path, dice: random.Random) -> None:
        directory.mkdir()
        self.process = HandlerProcess(directory, *_HABITS)
        self.process.start()
        self._dice = dice
        self._back_at: float | None = None
        self._killed = False
        self._next_at = 0.0
        self.faults = 0
        self.away: list[tuple[float, float]] = []
        """From when to when it did not answer."""

    def tick(self, wanted: float) -> None:
        """It comes back, or goes away if less than `wanted` has come."""
        now = time.time()
        if self._back_at is not None:
            if now >= self._back_at:
                self._come_back()
        elif self.faults < int(wanted) and now >= self._next_at:
            self._go_away(now)

    def clear(self) -> None:
        """It answers from now on."""
        if self._back_at is not None:
            self._come_back()

    def close(self) -> None:
        """End it."""
        self.clear()
        self.process.kill()

    def _go_away(self, now: float) -> None:
        self._killed = self._dice.random() < 0.6
        if self._killed:
            self.process.kill()
        else:
            self.process.signal(signal.SIGSTOP)
        self.faults += 1
        self.away.append((now, 0.0))
        self._back_at = now + self._dice.uniform(0.3, 3.0)

    def _come_back(self) -> None:
        if self._killed:
            self.process.start()
        else:
            self.process.signal(signal.SIGCONT)
        self._back_at, now = None, time.time()
        self.away[-1] = (self.away[-1][0], now)
        self._next_at = now + self._dice.uniform(0.5, 3.0)
