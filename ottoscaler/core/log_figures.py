"""What the log forwarder counts for the controller's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class LineDrop(StrEnum):
    """Why a line was dropped."""

    NO_ROOM = "no_room"
    """There was no room for it: the handler did not take lines in time."""
    REFUSED = "refused"
    """The handler answered DROP."""
    RETRIES = "retries"
    """The handler answered RETRY too often."""
    UNWANTED = "unwanted"
    """The handler wants no log of this worker."""


class LogServer(StrEnum):
    """A server that the forwarder has connections to."""

    HANDLER = "handler"
    KUBERNETES = "kubernetes"


@dataclass(frozen=True, slots=True)
class LogFigures:
    """How forwarding stands, and what was counted since the figures before. Immutable: any thread."""

    lines: int = 0
    """Lines that the handler has acknowledged."""
    bytes: int = 0
    """Of these lines."""
    dropped: Mapping[LineDrop, int] = field(default_factory=dict)
    """Lines."""
    gaps: int = 0
    """Places at which lines may be missing that no one can count."""
    reconnects: Mapping[LogServer, int] = field(default_factory=dict)
    """Streams to the handler, and follows of a pod's log, that were opened again."""
    follows: int = 0
    """Those that are open now."""
    unacknowledged: int = 0
    """Entries that were sent and are not answered, now."""
    lag_s: float = 0.0
    """The age of the oldest line that was read and is not answered, now, in seconds; 0: there is none."""
    waiting: int = 0
    """Workers that wait for a stream to the handler, now."""

    @property
    def counts(self) -> bool:
        """Whether something was counted."""
        return bool(self.lines or self.gaps or self.dropped or self.reconnects)
