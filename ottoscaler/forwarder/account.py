"""What became of the lines of one worker. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ottoscaler.core.log_figures import LineDrop
from ottoscaler.core.log_progress import LogProgress
from ottoscaler.forwarder.tally import LineTally


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a log so far. Immutable: any thread."""

    acknowledged: int
    """Lines."""
    dropped: int
    """Lines."""
    bytes: int
    """Of acknowledged and dropped lines."""
    gaps: int
    ended: bool
    """Whether the handler has acknowledged the end entry: it has all that there is."""

    @property
    def lines(self) -> int:
        """Those that were acknowledged, and those that were dropped."""
        return self.acknowledged + self.dropped


class AccountKeeper:
    """Counts the lines of one worker, and those of all workers with them. Not thread-safe."""

    def __init__(self, start: LogProgress, tally: LineTally) -> None:
        """Arguments: what an earlier process has counted of this worker; what counts the lines of all workers."""
        self._acknowledged, self._dropped = start.acknowledged, start.dropped
        self._bytes, self._gaps = start.bytes, start.gaps
        self._tally = tally

    def account(self, *, ended: bool) -> Account:
        """As it stands. `ended`: whether the handler has acknowledged the end entry."""
        return Account(self._acknowledged, self._dropped, self._bytes, self._gaps, ended)

    def acknowledge(self, size: int, *, counts: bool) -> None:
        """A line with this many bytes. `counts`: this process has sent it, and not an earlier one."""
        self._acknowledged += 1
        self._bytes += size
        if counts:
            self._tally.lines += 1
            self._tally.bytes += size

    def drop(self, size: int, why: LineDrop) -> None:
        """A line with this many bytes."""
        self._dropped += 1
        self._bytes += size
        self._tally.dropped[why] += 1

    def add_gap(self) -> None:
        """Lines may be missing that no one can count."""
        self._gaps += 1
        self._tally.gaps += 1
