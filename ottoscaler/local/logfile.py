"""Container logs: written line by line with the time, as a container runtime does, and read as the kubelet serves
them.

Each line of a log file is ``<time> F <text>`` or, for a piece without its line end (longer than 16 KiB, or the last
one), ``<time> P <text>``: the CRI format without the stream's name, since stdout and stderr share one pipe so that
their order is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from ottoscaler.local.objects import Request, parse_time

_LONGEST_PIECE = 16 * 1024
_POLL_S = 0.05
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What of a log is wanted: PodLogOptions of the API. since is an RFC 3339 prefix to compare with, "" for all."""

    follow: bool = False
    timestamps: bool = False
    tail: int | None = None
    since: bytes = b""
    limit_bytes: int | None = None

    @classmethod
    def of(cls, request: Request) -> LogOptions:
        """The options in a request's query. Raises ApiError 400."""
        since = request.query.get("sinceTime")
        when = None if since is None else parse_time(since)
        seconds = request.number("sinceSeconds")
        if seconds is not None:
            when = datetime.now(UTC) - timedelta(seconds=seconds)
        return cls(
            follow=request.flag("follow"),
            timestamps=request.flag("timestamps"),
            tail=request.number("tailLines"),
            # Whole seconds: the API server passes sinceTime on to the kubelet without its fraction.
            since=b"" if when is None else when.strftime("%Y-%m-%dT%H:%M:%S").encode(),
            limit_bytes=request.number("limitBytes"),
        )


class LogWriter:
    """Writes one container's log. For one thread."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("ab")
        self._rest = b""
        self._last_ns = 0

    def write(self, data: bytes) -> None:
        """Take the next output; whole lines can be read at once."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._write_line(b"F", line)
        while len(self._rest) >= _LONGEST_PIECE:
            self._write_line(b"P", self._rest[:_LONGEST_PIECE])
            self._rest = self._rest[_LONGEST_PIECE:]
        self._file.flush()

    def close(self) -> None:
        """Write what has no line end, and close."""
        if self._rest:
            self._write_line(b"P", self._rest)
        self._file.close()

    def _write_line(self, tag: bytes, text: bytes) -> None:
        # Strictly rising, so that a reader knows where it stopped.
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        seconds, nanoseconds = divmod(self._last_ns, 1_000_000_000)
        whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        self._file.write(b"%s.%09dZ %s %s\n" % (whole.encode(), nanoseconds, tag, text))


def read(path: Path, options: LogOptions, ended: threading.Event) -> Iterator[bytes]:
    """The log in chunks as the API gives it; when following,
    an empty chunk while there is nothing new, until ``ended``.
    """
    left = _NO_LIMIT if options.limit_bytes is None else options.limit_bytes
    for chunk in _formatted_lines(path, options, ended):
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return


def last_lines(path: Path, *, lines: int, size: int) -> bytes:
    """The end of a log without its times: at most that number of lines, and at most `size` bytes."""
    ended = threading.Event()
    ended.set()
    return b"".join(read(path, LogOptions(tail=lines), ended))[-size:]


def _formatted_lines(path: Path, options: LogOptions, ended: threading.Event) -> Iterator[bytes]:
    tail, starts_line = options.tail, True
    for entries in _entries(path, options.follow, ended):
        if tail is not None:
            # Only of what is there at the start; what is written later comes whole.
            entries, tail = (entries[-tail:] if tail else []), None
        chunk = []
        for entry in entries:
            when, tag, text = entry.split(b" ", 2)
            if when < options.since:
                continue
            # A line in several pieces has one time, that of its first.
            chunk += [when, b" "] if options.timestamps and starts_line else []
            starts_line = tag == b"F"
            chunk += [text, b"\n"] if starts_line else [text]
        yield b"".join(chunk)


def _entries(path: Path, follow: bool, ended: threading.Event) -> Iterator[list[bytes]]:
    """First what is there; then, when following, what is added until the container has ended."""
    with path.open("rb") as file:
        rest = b""
        while True:
            # Look at the end before reading: what was written before it is then read for certain.
            last = ended.is_set() or not follow
            *entries, rest = (rest + file.read()).split(b"\n")
            yield entries
            if last:
                return
            ended.wait(_POLL_S)
