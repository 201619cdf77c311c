"""The part of the stream suite on entries that are larger than any event may be: they never come whole in numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from ottoscaler.core.events import MAX_EVENT_BYTES, DeadReason, too_large
from ottoscaler.errors import TooMuch
from ottoscaler.ports import Entry, Stream
from tests.adapters.streams import StreamAdmin, send

__all__ = ["TestLargeEntries"]

SIZE = 2_000_000
COUNT = 6
#: What one answer may bring, bytes.
BOUND = 9_000_000


def brought(entries: Sequence[Entry]) -> int:
    """Bytes of all fields."""
    return sum(len(name) + len(value) for entry in entries for name, value in (entry.fields or {}).items())


class TestLargeEntries:
    """Together they are more than a small process has memory for."""

    @pytest.fixture
    def sent(self, admin: StreamAdmin) -> list[str]:
        """The ids of too many too large entries, each with its id in front of and a part behind what is large."""
        return [send(admin, event_id=f"e-{number}", blob="x" * SIZE, behind="y") for number in range(COUNT)]

    @pytest.mark.contract("3.limits")
    def test_come_one_by_one_and_only_in_part(self, stream: Stream, admin: StreamAdmin, sent: list[str]) -> None:
        """A read brings none; they are pending, with what a dead letter needs."""
        with pytest.raises(TooMuch):
            stream.read(100)
        assert admin.pending_count() == COUNT
        found: list[str] = []
        while entries := stream.pending(own=True, min_idle_s=0):
            assert brought(entries) < MAX_EVENT_BYTES
            for entry in entries:
                assert entry.size > SIZE
                bad = too_large(entry.stream_id, entry.fields or {}, entry.size)
                assert (bad.reason, bad.event_id) == (DeadReason.TOO_LARGE, f"e-{sent.index(entry.stream_id)}")
                assert str(entry.size) in bad.detail
                stream.dead_letter(entry, bad)
                found.append(entry.stream_id)
        assert found == sent
        letters = admin.dead_letters()
        assert [letter["stream_id"] for letter in letters] == sent
        kept = [json.loads(letter["event"]) for letter in letters]
        assert [(each["cut"], "blob" in each["fields"]) for each in kept] == [(True, False)] * COUNT
        assert [result["reason"] for result in admin.results("task")] == ["Rejected"] * COUNT

    def test_a_read_now_brings_none(self, stream: Stream, admin: StreamAdmin, sent: list[str]) -> None:
        """Control reads as well."""
        with pytest.raises(TooMuch):
            stream.read_now(100)
        assert admin.pending_count() == len(sent)

    def test_the_ids_behind_what_is_large_are_kept_if_they_can_be_ids(self, stream: Stream, admin: StreamAdmin) -> None:
        """So that its sender finds the result, wherever the ids stand; what is too long for an id is left out."""
        sent = [
            send(admin, blob="x" * SIZE, event_id="e-behind", task_id="t", other="o"),
            send(admin, blob="x" * SIZE, event_id="e" * 300),
        ]
        stream.read(100)
        behind, long = stream.pending(own=True, min_idle_s=0)
        assert [behind.stream_id, long.stream_id] == sent
        assert behind.fields == {b"type": b"scale_up", b"event_id": b"e-behind", b"task_id": b"t"}
        assert long.fields == {b"type": b"scale_up"}

    def test_others_come_between_them(self, stream: Stream, admin: StreamAdmin, sent: list[str]) -> None:
        """With all that they have, in the order of the stream."""
        small = send(admin, event_id="small")
        with pytest.raises(TooMuch):
            stream.read(100)
        found = list(stream.pending(own=True, min_idle_s=0))
        assert [entry.stream_id for entry in found] == [*sent, small]
        assert found[-1] == Entry(small, {b"type": b"scale_up", b"event_id": b"small"})

    def test_are_seen_in_part_ahead_of_the_group(self, stream: Stream, admin: StreamAdmin, sent: list[str]) -> None:
        """All of them in turn, never all at once."""
        seen: list[str] = []
        while entries := stream.peek(seen[-1] if seen else "0-0", 100, block=False):
            assert brought(entries) < BOUND
            seen += [entry.stream_id for entry in entries]
        assert seen == sent

    def test_many_valid_ones_are_brought_in_parts(self, stream: Stream, admin: StreamAdmin) -> None:
        """Also those that were read before, of which a process may have died."""
        ids = [send(admin, blob="x" * 60_000) for _ in range(100)]
        assert [entry.stream_id for entry in stream.read(100)] == ids
        found = stream.pending(own=True, min_idle_s=0)
        assert [entry.stream_id for entry in found] == ids[: len(found)]
        assert 1 <= len(found) < 30
