"""What a viewer of the status page is sent: everything once, and then what has changed. Pure.

A state is sections of rows, each row by its key. A message is a server-sent event
(https://html.spec.whatwg.org/multipage/server-sent-events.html) with one line of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

#: Section -> key -> row.
PageState: TypeAlias = Mapping[str, Mapping[str, Any]]


def full(state: PageState) -> bytes:
    """All of a state: what comes first, after each new connection."""
    return message("full", state)


def changes(old: PageState, new: PageState) -> bytes:
    """What differs: rows that are new or others, and keys that are gone (null); empty if nothing does."""
    found = {name: rows for name in new.keys() | old.keys() if (rows := _rows(old.get(name, {}), new.get(name, {})))}
    return message("change", found) if found else b""


def message(event: str, data: object) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (event.encode(), msgspec.json.encode(data))


def _rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    # most rows are the very objects of the last state, which need not be compared
    changed = {key: row for key, row in new.items() if (last := old.get(key)) is not row and last != row}
    return changed | dict.fromkeys(old.keys() - new.keys())
