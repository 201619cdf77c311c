"""Words of sentences that many parts write."""

from __future__ import annotations

from typing import Final

#: How much of the words of a server, or of an error, a sentence of ours quotes, characters.
MAX_QUOTE: Final = 300


def count_text(count: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def one_line(words: object, most: int = MAX_QUOTE) -> str:
    """What a server or an error says, on one line of at most that many characters."""
    return " ".join(str(words).split())[:most]
