"""From the answers of `pods/log?timestamps=true` to lines, each once, however often the answers are cut.

Pure: bytes in, lines out. There is one PodLogReader for each answer; it begins at the position at which the one before
it ended. A follow is cut by the kubelet after 4 hours, by proxies, by a roll-out of the API server and when a token or
certificate is replaced, and all of that is the same to it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from ottoscaler.core.log_progress import LogCursor
from ottoscaler.forwarder.lines import MAX_LINE, Gap, Line, LineSplitter

#: The API does not say which output a line comes from.
COMBINED: Final = "combined"
#: A time as the kubelet writes it in front of each line, and a blank.
_TIME: Final = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(Z|[+-]\d\d:\d\d) ")
_UTC: Final = len("2026-05-01T12:00:00.000000000Z ")
_SECOND: Final = len("2026-05-01T12:00:00")
_LONGEST_ERROR: Final = 300


class Position(NamedTuple):
    """How far the log of a pod was read. Immutable: any thread."""

    cursor: LogCursor = LogCursor()
    parts: int = 0
    """How many parts of the long line behind the cursor were read, too."""


class PodLogReader:
    """The lines of one answer. Not thread-safe."""

    def __init__(self, position: Position, max_line: int = MAX_LINE) -> None:
        """`position`: what lies behind it is wanted; the answer begins at the second of its cursor. `max_line`: a line
        that has more bytes, with its time, is cut into parts.
        """
        self.position = position
        """How far it has come."""
        self.error = ""
        """The kubelet's error text, where one stands in the place of lines. What follows it in this answer is no log
        either.
        """
        self._splitter = LineSplitter(max_line)
        self._known = _KnownLines(position.cursor) if position.cursor.second else None
        self._known_parts, self._parts = position.parts, 0  # of the line behind the cursor
        self._inside = self._skips = False  # inside a line that goes on in the next part; which was read before
        self._begun = position.cursor  # the place behind the line that has begun
        self._timestamp = ""
        self._without_time = ""

    def feed(self, data: bytes) -> list[Line | Gap]:
        """The lines that are complete with these bytes, and the places at which lines may be missing."""
        return self._lines(self._splitter.feed(data))

    def end(self) -> list[Line | Gap]:
        """What is left where the log has ended: a last line without a newline."""
        found = self._lines(self._splitter.end())
        if self._known is not None and not (self._known.all_passed or self.error):
            found.append(Gap(COMBINED, self.position.cursor.last))  # what the cursor counts is not there any more
        return found

    def cut(self) -> bool:
        """The answer has ended, and the log has not: what is left is half a line that comes again with the next answer,
        or the kubelet's error text. Returns whether something is left.
        """
        left = [text for text, _ in self._splitter.end()]
        for text in left:
            if not (self._inside or self.error or text[:4].isdigit()):
                self.error = _error_text(text)
        if not (self._timestamp or self.error):
            self.error = self._without_time
        return bool(left)

    def _lines(self, texts: Iterable[tuple[bytes, bool]]) -> list[Line | Gap]:
        found: list[Line | Gap] = []
        for text, partial in texts:
            if self.error:
                break
            length = 0
            inside, self._inside = self._inside, partial
            if not inside:
                length = self._begin(text, found)
                self._skips = not length
            if not self._skips:
                self._add(text[length:], found, partial=partial)
        return found

    def _begin(self, text: bytes, found: list[Line | Gap]) -> int:
        """A line begins. Returns how many bytes of it are its time, 0 for what is to be skipped."""
        time = _time_of(text)
        if time is None:
            # The first piece of an answer may be the rest of a long line of the second before, which was read. `cut`
            # takes it for an error if nothing follows.
            if self._known is None or self._timestamp or self._without_time:
                self.error = _error_text(text)
            self._without_time = _error_text(text)
            return 0
        length, second = time
        self._timestamp = timestamp = text[: length - 1].decode()
        if self._known is not None:
            if self._known.has(text, timestamp):
                return 0
            if self._known.has_gap:
                found.append(Gap(COMBINED, timestamp))
                self._known_parts = 0
            self._known = None
        cursor = self.position.cursor
        if second > cursor.second:
            self._begun = LogCursor(second, _hash(text), 1, timestamp)
        elif second == cursor.second:
            self._begun = LogCursor(second, cursor.first_hash, cursor.lines + 1, timestamp)
        else:  # the clock was set back: an answer that begins at the cursor's second has no such line
            self._begun = cursor
        return length

    def _add(self, text: bytes, found: list[Line | Gap], *, partial: bool) -> None:
        if partial:
            self._parts += 1
            self.position = Position(self.position.cursor, max(self._parts, self._known_parts))
            if self._parts > self._known_parts:
                found.append(Line(COMBINED, self._timestamp, text, partial))
            return
        self._parts = self._known_parts = 0
        self.position = Position(self._begun)
        found.append(Line(COMBINED, self._timestamp, text, partial, self._begun))


class _KnownLines:
    """Which of the first lines of an answer were read before. Not thread-safe."""

    def __init__(self, cursor: LogCursor) -> None:
        self._cursor = cursor
        self._left = cursor.lines
        self._by_time = False  # other lines are there than the cursor counts: the kubelet has rotated those away
        self.has_gap = False
        """Whether lines may be missing that no one has read."""

    @property
    def all_passed(self) -> bool:
        """Whether they have come, or others in their place."""
        return not self._left or self._by_time

    def has(self, text: bytes, timestamp: str) -> bool:
        """Whether the next line is one of them; the first one that is not is the last that may be asked about."""
        cursor = self._cursor
        if not self._by_time:
            other = self._left == cursor.lines and _hash(text) != cursor.first_hash
            if not other and not (self._left == 1 and timestamp != cursor.last):
                self._left -= 1
                return self._left >= 0
            self._by_time = True
            # An older line shows that what came behind it is still there.
            self.has_gap = _instant(timestamp) > _instant(cursor.last)
        return _instant(timestamp) <= _instant(cursor.last)


def _time_of(text: bytes) -> tuple[int, str] | None:
    """How many bytes are the time in front of a line, with its blank, and the whole second of it; None without one."""
    if text[_UTC - 2 : _UTC] == b"Z " and text[_SECOND : _SECOND + 1] == b"." and text[10:11] == b"T":  # nearly all
        return _UTC, f"{text[:_SECOND].decode()}Z"
    found = _TIME.match(text)
    return None if found is None else (found.end(), (found[1] + found[2]).decode())


def _instant(timestamp: str) -> tuple[datetime, str]:
    """For comparisons, exact to the nanosecond: a node may change its zone."""
    fraction = re.search(r"\.(\d+)", timestamp)
    whole = re.sub(r"\.\d+", "", timestamp)
    return datetime.fromisoformat(whole), (fraction[1] if fraction else "").ljust(9, "0")


def _hash(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _error_text(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").split())[:_LONGEST_ERROR] or "an empty line without a time"
