"""Up to which place of a log everything is settled: acknowledged by the handler, or counted as dropped. Pure.

Answers may come in another order than entries: an entry that was refused is sent again while later ones are
acknowledged. A new process goes on behind the last line before which nothing is open.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ottoscaler.core.log_progress import LogCursor, LogProgress


@dataclass(slots=True)
class Entry:
    """An entry that has a sequence."""

    sequence: int
    encoded: bytes
    size: int
    """Bytes of text, of a line; -1: a remark."""
    timestamp: str = ""
    """When the line was written."""
    place: LogCursor | None = None
    """Behind the line, or the lines, that it stands for; None behind a part of a line that goes on."""
    marked_lines: int = 0
    """How many lines were dropped in its place."""
    marked_bytes: int = 0
    marked_gaps: int = 0
    is_end: bool = False
    retries: int = 0
    first_retry: float = 0.0
    acknowledged: bool | None = None
    """None until it is answered; False: it counts as dropped."""


class Settled:
    """What became of a log up to a place. Not thread-safe."""

    def __init__(self, progress: LogProgress) -> None:
        """`progress`: what an earlier process has stored."""
        self.progress = progress
        """Up to the last place before which nothing is open."""
        self.has_news = False
        """Whether it has come on since this was set to False; `has_marks`: behind a remark that lines are missing."""
        self.has_marks = False
        self._open: deque[Entry] = deque()
        # Behind the last entry before which nothing is open: its cursor is that of the last place. It may be inside a
        # line that goes on, or behind a remark of which no place was reported yet.
        self._passed = progress
        self._inside = self._marks = False

    @property
    def oldest_timestamp(self) -> str:
        """When the oldest line that is open was written; empty: none is."""
        return self._open[0].timestamp if self._open else ""

    def add(self, entry: Entry) -> None:
        """An entry that follows those added before."""
        self._open.append(entry)

    def move(self) -> None:
        """Some entries may have been answered."""
        place: LogProgress | None = None
        passed = self._passed
        cursor, sequence, bytes_ = passed.cursor, passed.sequence, passed.bytes
        acknowledged, dropped, gaps = passed.acknowledged, passed.dropped, passed.gaps
        while self._open and self._open[0].acknowledged is not None:
            entry = self._open.popleft()
            sequence = entry.sequence
            acknowledged += entry.size >= 0 and entry.acknowledged is True
            dropped += entry.marked_lines + (entry.size >= 0 and not entry.acknowledged)
            bytes_ += max(0, entry.size) + entry.marked_bytes
            gaps += entry.marked_gaps
            self._marks = self._marks or entry.marked_lines > 0 or entry.marked_gaps > 0
            if entry.place is not None:
                cursor, self._inside = entry.place, False
            elif entry.size >= 0 or entry.marked_lines:
                self._inside = True
            # Behind a gap, too: it has a number, and a new process that went back before it would give that to a line.
            if not self._inside and not entry.is_end:
                place = LogProgress(passed.uid, cursor, sequence, acknowledged, dropped, bytes_, gaps)
        if sequence == passed.sequence:
            return
        self._passed = LogProgress(passed.uid, cursor, sequence, acknowledged, dropped, bytes_, gaps)
        if place is not None:
            self.progress, self.has_news = place, True
            self.has_marks, self._marks = self.has_marks or self._marks, False
