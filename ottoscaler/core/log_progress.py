"""How far the log of a pod has come: where in it, and what the log handler has of it.

The API gives the log from a whole second on, so a place is a number of lines behind the first one of a second. The hash
of that first line shows whether the log still begins there: the kubelet may have rotated it away meanwhile.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class LogCursor(NamedTuple):
    """A place in the log of a pod: behind a line. Immutable: any thread."""

    second: str = ""
    """RFC 3339, without a fraction: as `sinceTime` it gives the log from here on. Empty: nothing of it was read."""
    first_hash: str = ""
    """Of the first line of that second."""
    lines: int = 0
    """How many lines of that second were read."""
    last: str = ""
    """The time of the last of them, as the log has it."""


class LogProgress(NamedTuple):
    """What became of the log of one pod up to a place. Immutable: any thread."""

    uid: str
    """The pod's."""
    cursor: LogCursor = LogCursor()
    sequence: int = 0
    """The handler has answered all entries up to this one; the next line gets the next number."""
    acknowledged: int = 0
    """Lines."""
    dropped: int = 0
    """Lines."""
    bytes: int = 0
    """Of acknowledged and dropped lines."""
    gaps: int = 0
    """Places at which lines may be missing that no one can count."""


def encode_progress(progress: LogProgress) -> str:
    """As the task hash has it: a JSON list."""
    return json.dumps(progress, separators=(",", ":"))


def decode_progress(text: str) -> LogProgress | None:
    """What the task hash says; None where it says nothing that can be read: the log is read from its beginning then,
    and the handler knows what it has.
    """
    try:
        uid, cursor, *counts = json.loads(text)
        second, first_hash, lines, last = cursor
        progress = LogProgress(uid, LogCursor(second, first_hash, lines, last), *counts)
    except (ValueError, TypeError):
        return None
    return progress if _is_valid(progress) else None


def _is_valid(progress: LogProgress) -> bool:
    cursor = progress.cursor
    texts: tuple[Any, ...] = (progress.uid, cursor.second, cursor.first_hash, cursor.last)
    return all(isinstance(text, str) for text in texts) and all(
        type(number) is int and number >= 0 for number in (*progress[2:], cursor.lines)
    )
