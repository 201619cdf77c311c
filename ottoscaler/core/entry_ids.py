"""Ids of stream entries: `<milliseconds since the epoch>-<number>`, by the clock of Redis, or made up by the producer
(https://redis.io/docs/latest/develop/data-types/streams/#entry-ids).
"""

from __future__ import annotations

#: Both numbers of an id have 64 bits.
_DIGITS = 20


def entry_ms(stream_id: str) -> int | None:
    """When an entry was added by its id, milliseconds since the epoch; None for a text that is no id."""
    head = stream_id.partition("-")[0]
    return int(head) if head.isdecimal() and len(head) <= _DIGITS else None
