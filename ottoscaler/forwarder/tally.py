"""What became of the lines of all workers, for the controller's metrics. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ottoscaler.core.log_figures import LineDrop, LogFigures, LogServer
from ottoscaler.forwarder.lines import seconds_of


class LineTally:
    """Counts until it is asked. Not thread-safe."""

    def __init__(self) -> None:
        self.lines = 0
        self.bytes = 0
        self.gaps = 0
        self.dropped: Counter[LineDrop] = Counter()
        self.reconnects: Counter[LogServer] = Counter()
        self.waiting = 0
        """Workers that wait for their registration, now."""

    def take(self, *, follows: int, unacknowledged: int, lag_s: float) -> LogFigures:
        """What was counted since the last call, with how forwarding stands now."""
        figures = LogFigures(
            self.lines, self.bytes, dict(self.dropped), self.gaps, dict(self.reconnects), follows, unacknowledged,
            lag_s, self.waiting,
        )  # fmt: skip
        self.lines = self.bytes = self.gaps = 0
        self.dropped.clear()
        self.reconnects.clear()
        return figures


def lag_s(oldest: Iterable[str], now: float) -> float:
    """How long ago the first of these times was, in seconds: times of lines that are not answered (RFC 3339), empty
    where a worker has none. `now`: seconds since the epoch. Without any it is 0; also if a node's clock is ahead.
    """
    times = (seconds_of(time) for time in set(oldest) if time)
    return max(0.0, now - min(times, default=now))
