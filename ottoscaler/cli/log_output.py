"""How lines of workers are shown: which worker a line is from, in colour on a terminal; and harmless there.

What a worker writes is untrusted: on a terminal, control characters could move the cursor, change the title or type.
Into a file or a pipe go the bytes as they are.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Mapping
from typing import Final

from ottoscaler.cli.table import printable
from ottoscaler.forwarder.lines import Line

#: Of the foreground: neither red, which looks like an error, nor black, white or grey.
_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
#: Colours and type faces (https://www.ecma-international.org/publications-and-standards/standards/ecma-48/, SGR).
_SGR: Final = re.compile(rb"\x1b\[[0-9;:]*m")


def harmless(text: bytes) -> str:
    """One line for a terminal: colours are left out, other control characters and what is not UTF-8 are escaped."""
    plain = _SGR.sub(b"", text).removesuffix(b"\r").decode("utf-8", "backslashreplace")
    if plain.isprintable():
        return plain
    return "".join(char if _is_shown(char) else char.encode("unicode_escape").decode() for char in plain)


def _is_shown(char: str) -> bool:
    return char.isprintable() or char == "\t" or unicodedata.category(char) == "Zs"


class LogPrinter:
    """Prints lines on standard output, and what there is to say of them on standard error. One thread."""

    def __init__(self, labels: Mapping[tuple[str, int], str], *, times: bool, terminal: bool | None = None) -> None:
        """`labels`: the name of each worker, by event id and index; empty where the lines need none, since they are of
        one worker. `times`: put each line's time in front. `terminal`: None finds out.
        """
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        coloured = self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        width = max(map(len, labels.values()), default=0)
        self._prefixes = {
            worker: _prefix(label.rjust(width), _COLOURS[number % len(_COLOURS)] if coloured else 0)
            for number, (worker, label) in enumerate(labels.items())
        }
        self._times = times

    def line(self, worker: tuple[str, int], line: Line) -> None:
        """Print a line. It may be written later: see `flush`."""
        prefix = self._prefixes.get(worker, b"")
        time = f"{line.timestamp} ".encode() if self._times and line.timestamp else b""
        text = harmless(line.text).encode() if self._terminal else line.text
        # only without a prefix can the next part follow at once: otherwise a line of another worker may come before it
        end = b"" if line.partial and not prefix else b"\n"
        sys.stdout.buffer.write(prefix + time + text + end)

    def note(self, text: str) -> None:
        """Say something about the lines."""
        self.flush()  # in its place among the lines, where both go to one terminal
        print(printable(text), file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Write out what was printed."""
        sys.stdout.flush()


def _prefix(label: str, colour: int) -> bytes:
    if not label.strip():
        return b""
    return (f"\x1b[{colour}m{label} |\x1b[0m " if colour else f"{label} | ").encode()
