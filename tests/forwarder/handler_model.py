"""A log handler as a model: it keeps entries as the interface promises, and loses connections as networks do."""

from __future__ import annotations

from dataclasses import dataclass, field

from ottoscaler.forwarder.lines import Line
from ottoscaler.forwarder.worker_stream import Status
from ottoscaler.proto.log_streaming_pb2 import LogEntry

T = "2026-05-01T12:00:00.000000001Z"


def lines(*texts: str, source: str = "stdout") -> list[Line]:
    """Lines of one source."""
    return [Line(source, T, text.encode()) for text in texts]


def decoded(entries: list[bytes]) -> list[LogEntry]:
    """What the handler reads."""
    return [LogEntry.FromString(entry) for entry in entries]


@dataclass(slots=True)
class Store:
    """What a handler has of one worker, and the answers that it owes."""

    entries: dict[int, LogEntry] = field(default_factory=dict)
    received: int = 0
    doubled: int = 0
    refused: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)

    @property
    def last_sequence(self) -> int:
        """The highest that it has, below the first that it has refused and that has not come again."""
        return min(self.refused) - 1 if self.refused else max(self.entries, default=0)

    def take(self, entry: LogEntry, status: Status) -> None:
        """Store an entry, or refuse it."""
        self.received += 1
        sequence = entry.sequence
        if status is Status.RETRY:
            self.refused.add(sequence)
            return
        self.refused.discard(sequence)
        if sequence in self.entries:
            self.doubled += 1
            assert self.entries[sequence] == entry  # the same number is the same entry
        elif status is Status.DROP:
            self.dropped.add(sequence)
        else:
            assert sequence not in self.dropped
            self.entries[sequence] = entry

    def texts(self) -> list[str]:
        """The lines in the order of their sequence, without remarks and the end."""
        found = sorted(self.entries.items())
        return [entry.message for _, entry in found if entry.level == "INFO" and not entry.HasField("end")]

    @property
    def end(self) -> LogEntry | None:
        """The last entry, if it is here."""
        return next((entry for entry in self.entries.values() if entry.HasField("end")), None)
