"""Log entries as bytes of the wire. Pure.

An entry is encoded once, when it gets its sequence; a batch is nothing but its entries with their sizes between them
(https://protobuf.dev/programming-guides/encoding/), so sending an entry again, or together with others, costs no
encoding. What all entries of a worker have in common is encoded once and put in front: protobuf merges the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from ottoscaler.forwarder.lines import Line, cut_at
from ottoscaler.proto.log_streaming_pb2 import LogEnd, LogEntry

#: The source of the sender's own remarks where no line gives one.
STDOUT: Final = "stdout"
#: Field 1 of LogBatch, with a size before its bytes.
_ENTRIES: Final = b"\x0a"
#: What the fields of one entry besides its text need at most, bytes, without the worker's ids and metadata.
_OVERHEAD: Final = 160
#: Room for text that each entry has, whatever the handler announces, bytes.
_LEAST_TEXT: Final = 64


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """The worker that wrote the log. Immutable: any thread."""

    worker_id: str
    """The name of its pod."""
    task_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """What is known of it besides: in the registration, and in each entry where the handler wants that."""
    namespace: str = ""
    node_name: str = ""


class EntryEncoder:
    """Encodes the entries of one worker. Immutable: any thread."""

    def __init__(self, worker: WorkerIdentity, *, include_metadata: bool = False) -> None:
        common = LogEntry(worker_id=worker.worker_id, task_id=worker.task_id, level="INFO")
        if include_metadata:
            common.metadata.update(worker.labels)
        self._common: bytes = common.SerializeToString()

    def line(self, line: Line, sequence: int) -> bytes:
        """An entry for a line, or for a part of one."""
        try:
            text, raw = line.text.decode(), b""
        except UnicodeDecodeError:
            text, raw = line.text.decode(errors="replace"), line.text
        entry = LogEntry(timestamp=line.timestamp, source=line.source, message=text, sequence=sequence)
        if raw:
            entry.raw = raw
        if line.partial:
            entry.metadata["partial"] = "true"
        return self._encoded(entry)

    def dropped(self, count: int, *, timestamp: str, source: str, sequence: int) -> bytes:
        """An entry in the place of lines that are missing."""
        text = f"[{_lines(count)} dropped here: the log handler did not take them in time]"
        return self._remark(text, {"dropped": str(count)}, timestamp, source, sequence)

    def gap(self, *, timestamp: str, source: str, sequence: int) -> bytes:
        """An entry where lines may be missing that no one can count."""
        return self._remark("[lines may be missing here]", {"gap": "true"}, timestamp, source, sequence)

    def end(self, account: LogEnd, *, timestamp: str, sequence: int) -> bytes:
        """The last entry."""
        text = f"end of log: {_lines(account.lines)}, {account.dropped} dropped"
        entry = LogEntry(timestamp=timestamp, source=STDOUT, message=text, sequence=sequence, end=account)
        return self._encoded(entry)

    def _remark(self, text: str, facts: Mapping[str, str], timestamp: str, source: str, sequence: int) -> bytes:
        entry = LogEntry(
            timestamp=timestamp, source=source, message=text, sequence=sequence, level="WARN", metadata=facts
        )
        return self._encoded(entry)

    def _encoded(self, entry: LogEntry) -> bytes:
        encoded: bytes = entry.SerializeToString()
        return self._common + encoded

    def parts(self, line: Line, max_message: int) -> Iterator[Line]:
        """The line in parts, each of which fits into a message of this many bytes."""
        text = line.text
        # bytes that are not UTF-8 are there twice, and U+FFFD has three bytes in place of one
        room = max_message - _OVERHEAD - len(self._common)
        if len(text) <= room // 4:  # true of nearly every line: nothing to look at
            yield line
            return
        while text:
            size = self._part(text, max(_LEAST_TEXT, room))
            if not _is_utf8(text[:size]):
                size = self._part(text, max(_LEAST_TEXT, room // 4))
            goes_on = size < len(text)
            place = None if goes_on else line.place
            yield line._replace(text=text[:size], partial=line.partial or goes_on, place=place)
            text = text[size:]

    @staticmethod
    def _part(text: bytes, room: int) -> int:
        return len(text) if len(text) <= room else cut_at(text, room)


def _lines(count: int) -> str:
    return f"{count} line{'' if count == 1 else 's'}"


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def batch(entries: Iterable[bytes]) -> bytes:
    """A LogBatch of these entries."""
    pieces: list[bytes] = []
    for entry in entries:
        pieces += (_ENTRIES, _varint(len(entry)), entry)
    return b"".join(pieces)


#: What a batch adds to each of its entries at most, bytes: tag and size.
BATCH_OVERHEAD: Final = 6


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _VARINTS[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


_VARINTS: Final = tuple(bytes((number,)) for number in range(0x80))
