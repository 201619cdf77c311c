"""The two clocks of the process: a monotonic one for all that is measured, and the wall clock for what people read."""

from __future__ import annotations

import time


class SystemClock:
    """`ports.Clock`. Immutable: any thread."""

    def now(self) -> float:
        """See ports.Clock."""
        return time.monotonic()

    def wall_time(self, at: float) -> float:
        """See ports.Clock. Asked each time: a wall clock that was wrong at the start is right once it has been set."""
        return time.time() + (at - time.monotonic())
