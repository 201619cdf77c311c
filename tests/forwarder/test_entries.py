"""Entries on the wire are what protobuf makes of the same values, and fit into the messages that the handler takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.forwarder.entries import BATCH_OVERHEAD, EntryEncoder, WorkerIdentity, batch
from ottoscaler.forwarder.lines import Line
from ottoscaler.proto.log_streaming_pb2 import LogBatch, LogEnd, LogEntry
from tests.forwarder.handler_model import T

WORKER = WorkerIdentity("otto-agent-0123456789-1", "task-1", {"attempt": "2"})


@pytest.mark.parametrize(
    ("text", "message", "raw"),
    [
        (b"plain", "plain", b""),
        (b"", "", b""),
        ("\uc9c0\U0001f600".encode(), "\uc9c0\U0001f600", b""),
        (b"a\x00b\r", "a\x00b\r", b""),
        (b"a\xffb", "a\ufffdb", b"a\xffb"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd", b"\xed\xa0\x80"),  # half of a surrogate pair
    ],
)
def test_a_line_becomes_an_entry(text: bytes, message: str, raw: bytes) -> None:
    """`raw` only where the line is not UTF-8."""
    found = LogEntry.FromString(EntryEncoder(WORKER).line(Line("stderr", T, text), 7))
    assert found == LogEntry(
        worker_id=WORKER.worker_id,
        task_id="task-1",
        timestamp=T,
        level="INFO",
        source="stderr",
        message=message,
        sequence=7,
        raw=raw,
    )


def test_a_part_is_marked_and_metadata_comes_on_request() -> None:
    """Both in `metadata`."""
    line = Line("stdout", T, b"x", partial=True)
    assert dict(LogEntry.FromString(EntryEncoder(WORKER).line(line, 1)).metadata) == {"partial": "true"}
    encoder = EntryEncoder(WORKER, include_metadata=True)
    assert dict(LogEntry.FromString(encoder.line(line, 1)).metadata) == {"partial": "true", "attempt": "2"}


def test_remarks_and_the_end_are_for_people_too() -> None:
    """None of them has an empty message: some handlers refuse that."""
    encoder = EntryEncoder(WORKER)
    dropped = LogEntry.FromString(encoder.dropped(1, timestamp=T, source="stderr", sequence=1))
    assert dropped.message == "[1 line dropped here: the log handler did not take them in time]"
    assert (dropped.level, dict(dropped.metadata)) == ("WARN", {"dropped": "1"})
    gap = LogEntry.FromString(encoder.gap(timestamp=T, source="combined", sequence=2))
    assert (gap.message, dict(gap.metadata)) == ("[lines may be missing here]", {"gap": "true"})
    account = LogEnd(lines=120, bytes=9, dropped=3, gaps=1)
    end = LogEntry.FromString(encoder.end(account, timestamp=T, sequence=3))
    assert (end.message, end.end, end.level) == ("end of log: 120 lines, 3 dropped", account, "INFO")


@given(st.lists(st.binary(max_size=300) | st.just(b"x" * 20_000), max_size=5))
def test_a_batch_is_read_as_its_entries(texts: list[bytes]) -> None:
    """Whatever the sizes are."""
    encoder = EntryEncoder(WORKER)
    entries = [encoder.line(Line("stdout", T, text), number) for number, text in enumerate(texts, start=1)]
    found = batch(entries)
    assert LogBatch.FromString(found) == LogBatch(entries=map(LogEntry.FromString, entries))
    assert len(found) <= sum(len(entry) + BATCH_OVERHEAD for entry in entries)


@given(
    st.lists(st.sampled_from([b"word ", b"\xff" * 7, "\uc9c0\uc9c0".encode(), b"x" * 500]), min_size=1, max_size=40),
    st.sampled_from([1024, 1500, 5000, 1024 * 1024]),
)
def test_parts_fit_into_a_message(words: list[bytes], message: int) -> None:
    """And are the line again when they are put together; all but the last are marked."""
    encoder = EntryEncoder(WORKER)
    line = Line("stdout", T, b"".join(words))
    parts = list(encoder.parts(line, message))
    assert b"".join(part.text for part in parts) == line.text
    assert [part.partial for part in parts] == [True] * (len(parts) - 1) + [False]
    assert all(len(encoder.line(part, 2**53 - 1)) + BATCH_OVERHEAD <= message for part in parts)


def test_ids_that_leave_no_room_give_small_parts() -> None:
    """Never none at all: the line would be cut without end."""
    encoder = EntryEncoder(WorkerIdentity("w" * 2000, "t"))
    assert [len(part.text) for part in encoder.parts(Line("stdout", T, b"x" * 130), 1024)] == [64, 64, 2]
