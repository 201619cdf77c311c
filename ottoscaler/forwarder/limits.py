"""What a handler's LoggingConfig means for the sender, and a limit of entries per second. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Unacknowledged entries and waiting lines where the handler announces no buffer_size.
DEFAULT_BUFFER: Final = 1000
#: One message where the handler announces no max_message_size, bytes: grpc servers take 4 MiB.
DEFAULT_MESSAGE: Final = 1024 * 1024
#: A smaller max_message_size would leave no room for text beside the fields of an entry.
LEAST_MESSAGE: Final = 1024
#: Entries per second that are sent at once, as a part of a second, so that a strict handler sees no burst.
_BURST_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the handler wants of the sender. Immutable: any thread."""

    rate: int = 0
    """Entries per second; 0: no limit."""
    buffer: int = DEFAULT_BUFFER
    """Entries that may be unacknowledged, and lines that may wait."""
    message: int = DEFAULT_MESSAGE
    """Bytes of one message."""
    batch: int = 1
    """Entries of one message."""
    include_metadata: bool = False
    """Whether each entry carries what is known of the worker."""

    @classmethod
    def of(
        cls, *, rate_limit: int, buffer_size: int, max_message_size: int, max_batch: int, include_metadata: bool
    ) -> Limits:
        """The limits of a LoggingConfig: 0, or nonsense below it, leaves the value to the sender."""
        message = max(LEAST_MESSAGE, max_message_size) if max_message_size > 0 else DEFAULT_MESSAGE
        return cls(
            rate=max(0, rate_limit),
            buffer=buffer_size if buffer_size > 0 else DEFAULT_BUFFER,
            message=min(message, DEFAULT_MESSAGE),
            batch=max(1, max_batch),
            include_metadata=include_metadata,
        )


class RateLimit:
    """Gives out a number of permits per second at most. Not thread-safe."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate * _BURST_S)
        self._permits, self._at = self._most, now

    def available(self, now: float) -> int:
        """How many permits there are."""
        self._permits = min(self._most, self._permits + (now - self._at) * self._rate)
        self._at = now
        # a hair less than one is one: otherwise the wait for it could end again and again just before its time
        return int(self._permits + 1e-6)

    def take(self, count: int) -> None:
        """Use permits that are available."""
        self._permits -= count

    def next_at(self) -> float:
        """When there will be one."""
        return self._at + max(0.0, 1 - self._permits) / self._rate
