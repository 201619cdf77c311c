"""From the bytes that a worker writes to lines: cut at newlines, and inside a line that is too long.

Pure: bytes in, lines out. A part of a line that has no newline yet is kept until the next read, or until the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

from ottoscaler.core.log_progress import LogCursor

#: A longer line is cut into parts of at most this many bytes: 256 KiB.
MAX_LINE: Final = 256 * 1024
#: A part ends before the word that its end would split, unless that word alone is longer: 4 KiB. So a token stays in
#: one part, and masking sees the whole of it.
LONGEST_WORD: Final = 4 * 1024
_CONTINUATION: Final = range(0x80, 0xC0)


class Line(NamedTuple):
    """One line, or a part of a long one."""

    source: str
    """`stdout`, `stderr` or `combined`."""
    timestamp: str
    """When it was read: RFC 3339 with nanoseconds."""
    text: bytes
    """Without the newline."""
    partial: bool = False
    """Whether the line goes on in the next one of the same source."""
    place: LogCursor | None = None
    """Behind this line, where it comes from the log of a pod and is a line's end."""


class Gap(NamedTuple):
    """A place at which lines may be missing that no one can count."""

    source: str
    timestamp: str

    @property
    def text(self) -> bytes:
        """None of its own."""
        return b""


def seconds_of(timestamp: str) -> float:
    """The time of a line, RFC 3339, as seconds since the epoch."""
    return datetime.fromisoformat(timestamp).timestamp()


class LineSplitter:
    """Cuts the output of one source into lines. Not thread-safe."""

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """The lines that are complete with these bytes: text, and whether the line goes on in the next part."""
        head, newline, tail = data.partition(b"\n")
        if not newline:
            self._rest += data
            yield from self._cut()
            return
        self._rest += head
        yield from self._cut()
        yield bytes(self._rest), False
        self._rest.clear()
        *lines, last = tail.split(b"\n")
        for line in lines:
            if len(line) <= self._max_line:
                yield line, False
            else:
                self._rest += line
                yield from self._cut()
                yield bytes(self._rest), False
                self._rest.clear()
        self._rest += last
        yield from self._cut()

    def end(self) -> Iterator[tuple[bytes, bool]]:
        """What is left when the output has ended: a last line without a newline, if there is one."""
        if self._rest:
            yield bytes(self._rest), False
            self._rest.clear()

    def _cut(self) -> Iterator[tuple[bytes, bool]]:
        """Take parts off the front as long as more than one part is there."""
        while len(self._rest) > self._max_line:
            size = cut_at(self._rest, self._max_line)
            yield bytes(self._rest[:size]), True
            del self._rest[:size]


def cut_at(text: bytes | bytearray, limit: int) -> int:
    """Where to cut a text that is longer than a limit: at most there, behind the last space if that is near, and never
    inside a character of UTF-8.
    """
    near = max(0, limit - min(LONGEST_WORD, limit // 2))
    space = max(text.rfind(b" ", near, limit), text.rfind(b"\t", near, limit))
    if space >= 0:
        return space + 1
    size = limit
    while size > max(0, limit - 3) and text[size] in _CONTINUATION:
        size -= 1
    return size if size and text[size] not in _CONTINUATION else limit
