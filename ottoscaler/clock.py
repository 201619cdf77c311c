"""The clock of the process: the wall clock of its start, carried on by the monotonic one,
so that nobody can turn it back.
"""

from __future__ import annotations

import time


class SystemClock:
    """`ports.Clock`. Immutable: any thread."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch, never going back."""
        return self._offset_s + time.monotonic()
