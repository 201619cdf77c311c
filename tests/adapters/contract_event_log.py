"""The contract of `ports.EventLog`: reading, accepting, refusing, tidying. All implementations run it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ottoscaler.core.events import MAX_EVENT_BYTES, BadEvent, DeadReason, content_digest, parse, too_large_event
from ottoscaler.core.victim_selection import BlockingEvent
from ottoscaler.errors import ReadTooLarge, RedisUnavailable
from ottoscaler.ports import Entry, RedisPorts, ScriptStatus, StreamLevels
from tests.adapters.streams import (
    OLD_ID,
    StreamAdmin,
    StreamFactory,
    accept,
    event_of,
    intend,
    opened,
    receive,
    record,
    send,
)
from tests.fakes.wait import eventually

__all__ = [
    "TestAccepting",
    "TestDeadLetters",
    "TestGroup",
    "TestHandingOver",
    "TestLargeEntries",
    "TestLevels",
    "TestPending",
    "TestReading",
    "TestRetrying",
    "TestTidying",
]

SIZE = 2_000_000
COUNT = 6
#: What one answer may bring, bytes.
BOUND = 9_000_000


class TestGroup:
    """The consumer group: where it begins, and that it comes back."""

    def test_begins_at_the_streams_beginning(self, stream_factory: StreamFactory, admin: StreamAdmin) -> None:
        """What was sent before there was a controller is read, too."""
        early = send(admin)
        stream = stream_factory("c1")
        stream.ensure_group()
        assert receive(stream).stream_id == early

    def test_a_second_call_changes_nothing(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """What was delivered is not delivered again because another replica starts."""
        send(admin)
        receive(stream)
        stream.ensure_group()
        assert stream.read_now(1) == []

    def test_comes_back_after_the_server_was_wiped(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Without a group there is RedisUnavailable at worst; ensure_group makes it right again."""
        admin.flush()
        try:
            stream.read(1)
        except RedisUnavailable:
            stream.ensure_group()
        later = send(admin)
        assert receive(stream).stream_id == later

    def test_returns_the_last_delivered_id(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It rises with what is read, and not with what is sent."""
        assert stream.last_delivered_id() == "0-0"
        first = send(admin)
        receive(stream)
        send(admin)
        assert stream.last_delivered_id() == first

    def test_without_it_the_last_delivered_id_is_unavailable(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A wiped server is reported as such, not as an empty one."""
        admin.flush()
        with pytest.raises(RedisUnavailable):
            stream.last_delivered_id()


class TestReading:
    """New entries, with the group and without."""

    def test_gives_each_entry_once_in_order(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Entries come as they were sent, and never again as new."""
        ids = [send(admin, task_id="a"), send(admin, task_id="b")]
        assert [entry.stream_id for entry in stream.read(10)] == ids
        assert stream.read_now(10) == []

    def test_gives_fields_as_bytes(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Nothing is decoded: what is not UTF-8 is not the reader's business."""
        admin.add({"type": "scale_up", "reason": b"\xff\xfe"})
        assert receive(stream).fields == {b"type": b"scale_up", b"reason": b"\xff\xfe"}

    def test_takes_no_more_than_asked(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The rest stays for other replicas."""
        ids = [send(admin) for _ in range(3)]
        assert len(stream.read(2)) == 2
        assert [entry.stream_id for entry in other.read(2)] == ids[2:]

    def test_ends_with_nothing_when_nothing_comes(self, stream: RedisPorts) -> None:
        """A blocking read is bounded."""
        assert stream.read(1) == []

    def test_without_blocking_gives_what_is_there(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """control reads so what lies before a scale_down."""
        sent = send(admin)
        assert [entry.stream_id for entry in stream.read_now(5)] == [sent]
        assert stream.read_now(5) == []

    def test_peek_shows_what_lies_behind_an_id(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Entries behind the id, not the one at it."""
        first, second = send(admin), send(admin)
        assert [entry.stream_id for entry in stream.peek("0-0", 10, block=True)] == [first, second]
        assert [entry.stream_id for entry in stream.peek(first, 10, block=True)] == [second]

    def test_peek_takes_nothing_from_the_group(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Peeking is looking only."""
        send(admin)
        peeked = stream.peek("0-0", 1, block=True)
        assert admin.pending_count() == 0
        assert stream.read(1) == peeked

    def test_peek_need_not_wait(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """control looks once more for what lies before a scale_down."""
        assert stream.peek("0-0", 10, block=False) == []
        sent = send(admin)
        assert [entry.stream_id for entry in stream.peek("0-0", 10, block=False)] == [sent]

    def test_peek_ends_with_nothing_when_nothing_comes(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It is bounded like a read, and takes no more than asked."""
        last = [send(admin) for _ in range(2)][-1]
        assert len(stream.peek("0-0", 1, block=True)) == 1
        assert stream.peek(last, 10, block=True) == []


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
    def test_come_one_by_one_and_only_in_part(self, stream: RedisPorts, admin: StreamAdmin, sent: list[str]) -> None:
        """A read brings none; they are pending, with what a dead letter needs."""
        with pytest.raises(ReadTooLarge):
            stream.read(100)
        assert admin.pending_count() == COUNT
        found: list[str] = []
        while entries := stream.claim_pending(own=True, min_idle_s=0):
            assert brought(entries) < MAX_EVENT_BYTES
            for entry in entries:
                assert entry.size > SIZE
                bad = too_large_event(entry.stream_id, entry.fields or {}, entry.size)
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

    def test_a_read_now_brings_none(self, stream: RedisPorts, admin: StreamAdmin, sent: list[str]) -> None:
        """Control reads as well."""
        with pytest.raises(ReadTooLarge):
            stream.read_now(100)
        assert admin.pending_count() == len(sent)

    def test_the_ids_behind_what_is_large_are_kept_if_they_can_be_ids(
        self, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """So that its sender finds the result, wherever the ids stand; what is too long for an id is left out."""
        sent = [
            send(admin, blob="x" * SIZE, event_id="e-behind", task_id="t", other="o"),
            send(admin, blob="x" * SIZE, event_id="e" * 300),
        ]
        stream.read(100)
        behind, long = stream.claim_pending(own=True, min_idle_s=0)
        assert [behind.stream_id, long.stream_id] == sent
        assert behind.fields == {b"type": b"scale_up", b"event_id": b"e-behind", b"task_id": b"t"}
        assert long.fields == {b"type": b"scale_up"}

    def test_others_come_between_them(self, stream: RedisPorts, admin: StreamAdmin, sent: list[str]) -> None:
        """With all that they have, in the order of the stream."""
        small = send(admin, event_id="small")
        with pytest.raises(ReadTooLarge):
            stream.read(100)
        found = list(stream.claim_pending(own=True, min_idle_s=0))
        assert [entry.stream_id for entry in found] == [*sent, small]
        assert found[-1] == Entry(small, {b"type": b"scale_up", b"event_id": b"small"})

    def test_are_seen_in_part_ahead_of_the_group(self, stream: RedisPorts, admin: StreamAdmin, sent: list[str]) -> None:
        """All of them in turn, never all at once."""
        seen: list[str] = []
        while entries := stream.peek(seen[-1] if seen else "0-0", 100, block=False):
            assert brought(entries) < BOUND
            seen += [entry.stream_id for entry in entries]
        assert seen == sent

    def test_many_valid_ones_are_brought_in_parts(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Also those that were read before, of which a process may have died."""
        ids = [send(admin, blob="x" * 60_000) for _ in range(100)]
        assert [entry.stream_id for entry in stream.read(100)] == ids
        found = stream.claim_pending(own=True, min_idle_s=0)
        assert [entry.stream_id for entry in found] == ids[: len(found)]
        assert 1 <= len(found) < 30


class TestPending:
    """Entries that were read and not accepted."""

    def test_own_entries_are_read_again(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """As often as asked, until they are accepted; only our own."""
        send(admin)
        entry = receive(stream)
        assert stream.claim_pending(own=True, min_idle_s=0) == [entry]
        assert stream.claim_pending(own=True, min_idle_s=0) == [entry]
        assert other.claim_pending(own=True, min_idle_s=0) == []

    def test_accepted_entries_are_not(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """accept acknowledges."""
        opened(stream, admin)
        assert stream.claim_pending(own=True, min_idle_s=0) == []

    def test_idle_entries_of_others_become_ours(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Their reader died before it accepted them."""
        send(admin)
        entry = receive(stream)
        assert other.claim_pending(own=False, min_idle_s=0) == [entry]
        assert other.claim_pending(own=True, min_idle_s=0) == [entry]
        assert stream.claim_pending(own=True, min_idle_s=0) == []

    def test_entries_that_are_not_idle_stay(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """Their reader may be alive."""
        send(admin)
        entry = receive(stream)
        assert other.claim_pending(own=False, min_idle_s=3600) == []
        assert stream.claim_pending(own=True, min_idle_s=0) == [entry]

    @pytest.mark.parametrize("own", [True, False])
    def test_a_trimmed_entry_has_no_fields(self, stream: RedisPorts, admin: StreamAdmin, own: bool) -> None:
        """It comes again and again, until it is a dead letter."""
        send(admin)
        gone = Entry(receive(stream).stream_id, None)
        admin.trim()
        assert stream.claim_pending(own=own, min_idle_s=0) == [gone]
        assert stream.claim_pending(own=own, min_idle_s=0) == [gone]

    def test_an_unread_entry_comes_first(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """What lies before this id; the entry itself does not count."""
        first, second = send(admin), send(admin)
        assert stream.blocker(second) == BlockingEvent(first)
        assert stream.blocker(first) is None

    def test_an_entry_that_was_read_comes_first_until_it_is_accepted(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Whichever replica has it: it counts until it is accepted."""
        send(admin)
        second = send(admin)
        entry = receive(other)
        assert stream.blocker(second) == BlockingEvent(entry.stream_id)
        assert stream.blocker(entry.stream_id) is None
        accept(other, entry)
        assert stream.blocker(second) is None

    def test_a_buried_entry_does_not_come_first(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A dead letter does not hold up other entries."""
        send(admin)
        second = send(admin)
        stream.dead_letter(receive(stream), BadEvent(DeadReason.INVALID, "why"))
        assert stream.blocker(second) is None


class TestRetrying:
    """The difference between an entry that ends the process every time and one that has bad luck."""

    def test_counts_the_tries_with_the_first_reading(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """By any consumer; and the entry is its own from then on."""
        entry_id = send(admin)
        receive(stream)
        assert [each.count_try(entry_id) for each in (stream, stream, other)] == [2, 3, 4]
        assert stream.claim_pending(own=True, min_idle_s=0) == []
        assert [entry.stream_id for entry in other.claim_pending(own=True, min_idle_s=0)] == [entry_id]

    def test_looking_at_what_is_pending_is_no_try(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """It is looked at after every error of Redis; nor is being claimed from a consumer that is gone."""
        entry_id = send(admin)
        receive(stream)
        stream.claim_pending(own=True, min_idle_s=0)
        other.claim_pending(own=False, min_idle_s=0)
        assert other.count_try(entry_id) == 2

    def test_of_what_is_not_pending_is_none(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A replica has accepted it meanwhile."""
        entry_id = send(admin)
        accept(stream, receive(stream))
        assert stream.count_try(entry_id) == 0
        assert admin.pending_count() == 0

    def test_of_a_trimmed_entry_leaves_it_pending(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It is still to become a dead letter."""
        entry_id = send(admin)
        receive(stream)
        admin.trim()
        stream.count_try(entry_id)
        assert admin.pending_count() == 1


class TestHandingOver:
    """A process stops: what it read and did not accept must not wait for a lease."""

    def test_others_find_it_at_once(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """As if it had been idle for long."""
        sent = send(admin)
        receive(stream)
        assert other.claim_pending(own=False, min_idle_s=3600) == []
        stream.release_pending()
        [entry] = other.claim_pending(own=False, min_idle_s=3600)
        assert entry.stream_id == sent
        assert accept(other, entry) is not None
        assert stream.claim_pending(own=True, min_idle_s=0) == []

    def test_counts_no_try(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """It was no failure of the entry."""
        sent = send(admin)
        receive(stream)
        stream.release_pending()
        assert other.count_try(sent) == 2

    def test_concerns_its_own_entries_only(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """What others have in hand stays theirs."""
        send(admin)
        receive(other)
        stream.release_pending()
        assert stream.claim_pending(own=False, min_idle_s=3600) == []

    def test_leaves_what_was_trimmed_to_be_buried(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """It is not forgotten."""
        send(admin)
        receive(stream)
        admin.trim()
        stream.release_pending()
        assert admin.pending_count() == 1
        assert [entry.fields for entry in other.claim_pending(own=False, min_idle_s=0)] == [None]

    def test_of_nothing_is_nothing(self, stream: RedisPorts) -> None:
        """Nor does it matter how often."""
        stream.release_pending()
        stream.release_pending()

    def test_a_blocked_read_is_ended(self, stream: RedisPorts) -> None:
        """It returns as if nothing had come, and no error."""
        found: list[list[object]] = []

        def read() -> None:
            found.append([*stream.read(1), *stream.peek("0-0", 1, block=True)])

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: stream.interrupt_reads() or not reader.is_alive(), what="the reader to end")
        reader.join(5)
        assert found == [[]]


class TestAccepting:
    """accept: store, lease and acknowledge in one step."""

    def test_opens_the_task_and_acknowledges(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """From here on the task hash is the truth."""
        task = opened(stream, admin, pod_count="3", task_id="t-1", event_id="e-1")
        assert task.owner == "c1/boot-1/1"
        assert admin.pending_count() == 0
        assert admin.open_ids() == {"e-1"}
        shown = admin.task("e-1")
        assert (shown["state"], shown["task_id"], shown["pod_count"]) == ("waiting", "t-1", "3")
        assert (shown["owner"], shown["received_at"]) == (task.owner, task.received_at)

    def test_gives_a_task_of_which_nothing_is_stored_yet(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The event as it was read, no workers, no victims, no cancels."""
        send(admin, event_id="e-1")
        entry = receive(stream)
        task = accept(stream, entry)
        assert task is not None
        assert task.event == event_of(entry)
        assert (dict(task.workers), task.victims, task.cancel_count) == ({}, None, 0)

    def test_keeps_the_event_as_it_was(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Passed-on fields and trace context are there after a restart."""
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        task = opened(stream, admin, traceparent=trace, repository="a/b", metadata='{"k": "ü"}', supersedes="main")
        stored = stream.reload_task(task.event.event_id)
        assert stored is not None
        assert stored.event == task.event

    def test_again_after_a_lost_answer_gives_the_same(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The caller repeats what it got no answer for."""
        send(admin)
        entry = receive(stream)
        first = accept(stream, entry)
        assert first is not None
        assert accept(stream, entry) == replace(first, already_accepted=True)

    def test_again_by_another_consumer_gives_nothing(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A claimed entry that its first reader had accepted is only acknowledged."""
        send(admin, event_id="e-1")
        entry = receive(stream)
        accept(stream, entry)
        assert accept(other, entry) is None
        assert admin.task("e-1")["owner"] == "c1/boot-1/1"

    def test_the_same_event_sent_twice_is_one(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Same event_id, same content: known, acknowledged, no dead letter."""
        opened(stream, admin, event_id="e-1")
        send(admin, event_id="e-1")
        assert accept(stream, receive(stream)) is None
        assert (admin.pending_count(), admin.dead_letters(), admin.open_ids()) == (0, [], {"e-1"})

    def test_a_finished_event_sent_again_is_known(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It is not run again while its hash lives."""
        record(stream, opened(stream, admin, event_id="e-1"))
        send(admin, event_id="e-1")
        assert accept(stream, receive(stream)) is None
        assert (len(admin.results("task")), admin.open_ids(), admin.pending_count()) == (1, set(), 0)

    def test_other_content_under_a_known_id_is_a_conflict(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A dead letter; the task of that id goes on, and no result is written under it."""
        opened(stream, admin, event_id="e-1", pod_count="1")
        sent = send(admin, event_id="e-1", pod_count="2")
        entry = receive(stream)
        dead = accept(stream, entry)
        assert isinstance(dead, BadEvent)
        assert accept(stream, entry) is None
        [letter] = admin.dead_letters()
        assert (dead.reason, dead.detail, dead.event_id) == ("Conflict", letter["dead_detail"], "e-1")
        assert (letter["dead_reason"], letter["event_id"], letter["stream_id"]) == ("Conflict", "e-1", sent)
        assert (admin.results(), admin.task("e-1")["pod_count"], admin.pending_count()) == ([], "1", 0)

    def test_an_entry_older_than_the_memory_is_never_run(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """TooOld: it may have been run and forgotten."""
        admin.add({"type": "scale_up", "event_id": "e-1", "task_id": "t-1"}, OLD_ID)
        entry = receive(stream)
        dead = accept(stream, entry)
        assert isinstance(dead, BadEvent)
        assert (dead.reason, dead.task_id) == ("TooOld", "t-1")
        assert accept(stream, entry) is None
        assert [letter["dead_reason"] for letter in admin.dead_letters()] == ["TooOld"]
        [result] = admin.results()
        assert (result["kind"], result["outcome"], result["reason"]) == ("task", "failed", "Rejected")
        assert (admin.open_ids(), admin.pending_count()) == (set(), 0)

    def test_of_several_is_decided_for_each(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """One in conflict does not hold up its neighbours."""
        for fields in ({"event_id": "a"}, {"event_id": "a", "pod_count": "2"}, {"event_id": "b"}):
            send(admin, **fields)
        entries = stream.read(3)
        raws = [entry.fields or {} for entry in entries]
        pairs = [(event_of(entry), content_digest(raw)) for entry, raw in zip(entries, raws, strict=True)]
        tasks = stream.accept(pairs, raws)
        assert [task and getattr(task, "reason", "accepted") for task in tasks] == ["accepted", "Conflict", "accepted"]
        assert admin.pending_count() == 0

    def test_a_scale_down_is_accepted_like_any_other(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It is a task until its victims are gone."""
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1")
        assert task.event.pod_count == 0
        assert admin.open_ids() == {"d-1"}


class TestDeadLetters:
    """Dead letters: what cannot be carried out, each once."""

    @staticmethod
    def bad(entry: Entry) -> BadEvent:
        """Why an entry is no event."""
        bad = parse(entry.stream_id, entry.fields or {}, 1000)
        assert isinstance(bad, BadEvent)
        return bad

    def test_carries_what_came_and_why_it_is_refused(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """All that an operator needs, the event as sent included."""
        sent = send(admin, event_id="e-1", pod_count="0")
        entry = receive(stream)
        stream.dead_letter(entry, self.bad(entry))
        [letter] = admin.dead_letters()
        assert set(letter) >= {"group", "attempts", "at"}
        assert (letter["dead_reason"], letter["event_id"], letter["stream_id"]) == ("Invalid", "e-1", sent)
        assert "pod_count" in letter["dead_detail"]
        assert json.loads(letter["event"]) == {"type": "scale_up", "event_id": "e-1", "pod_count": "0"}

    def test_publishes_a_result_where_an_id_could_be_read(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A task result failed/Rejected, and nothing open."""
        send(admin, event_id="e-1", task_id="t-1", pod_count="0")
        entry = receive(stream)
        stream.dead_letter(entry, self.bad(entry))
        [result] = admin.results()
        expected = {"kind": "task", "event_id": "e-1", "task_id": "t-1", "outcome": "failed", "reason": "Rejected"}
        assert expected.items() <= result.items()
        assert set(result) >= {"message", "finished_at", "received_at", "pod_count", "succeeded", "failed", "cancelled"}
        assert (admin.open_ids(), admin.task("e-1")["state"]) == (set(), "finished")

    def test_happens_once_however_often_it_is_asked_for(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """After a lost answer, or by a consumer that claimed the entry meanwhile."""
        send(admin, pod_count="0")
        entry = receive(stream)
        written = [each.dead_letter(entry, self.bad(entry)) for each in (stream, stream, other)]
        assert written == [self.bad(entry), None, None]
        assert (len(admin.dead_letters()), len(admin.results()), admin.pending_count()) == (1, 1, 0)

    def test_without_an_id_there_is_only_a_dead_letter(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Without an id, no producer could find a result."""
        send(admin, event_id="not an id")
        entry = receive(stream)
        stream.dead_letter(entry, self.bad(entry))
        [letter] = admin.dead_letters()
        assert (letter["event_id"], admin.results(), admin.pending_count()) == ("", [], 0)

    def test_two_without_an_id_are_two_dead_letters(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Once for each entry, not once for all that lack an id."""
        for _ in range(2):
            send(admin, event_id="not an id")
        for entry in stream.read(2):
            stream.dead_letter(entry, self.bad(entry))
        assert len(admin.dead_letters()) == 2

    def test_a_trimmed_entry_leaves_a_dead_letter(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It was sent and is lost: its producer has to learn of it."""
        send(admin)
        receive(stream)
        admin.trim()
        [entry] = stream.claim_pending(own=True, min_idle_s=0)
        stream.dead_letter(entry, BadEvent(DeadReason.TRIMMED, "the entry was trimmed away"))
        assert [letter["dead_reason"] for letter in admin.dead_letters()] == ["Trimmed"]
        assert stream.claim_pending(own=True, min_idle_s=0) == []

    def test_keeps_what_is_not_utf8(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """As base64, so that the event can be sent again as it was."""
        admin.add({"type": "scale_up", "reason": b"\xff"})
        entry = receive(stream)
        stream.dead_letter(entry, self.bad(entry))
        assert json.loads(admin.dead_letters()[0]["event"])["reason"] == {"base64": "/w=="}

    def test_the_same_bad_event_sent_again_is_known(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The same event_id with the same content is the same event once, a refused one too."""
        for _ in range(2):
            send(admin, event_id="e-1", pod_count="0")
        for entry in stream.read(2):
            stream.dead_letter(entry, self.bad(entry))
        assert (len(admin.dead_letters()), len(admin.results()), admin.pending_count()) == (1, 1, 0)

    def test_a_refused_id_is_used_up(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Its task has its one result: other content under it is a conflict."""
        send(admin, event_id="e-1", pod_count="0")
        entry = receive(stream)
        stream.dead_letter(entry, self.bad(entry))
        send(admin, event_id="e-1", pod_count="1")
        assert isinstance(accept(stream, receive(stream)), BadEvent)
        assert [letter["dead_reason"] for letter in admin.dead_letters()] == ["Invalid", "Conflict"]
        assert len(admin.results()) == 1

    def test_a_bad_event_does_not_touch_the_task_that_has_its_id(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The result under that id belongs to the other event."""
        task = opened(stream, admin, event_id="e-1")
        send(admin, event_id="e-1", pod_count="0")
        entry = receive(stream)
        dead = stream.dead_letter(entry, self.bad(entry))
        assert dead is not None
        assert dead.reason is DeadReason.CONFLICT
        assert (len(admin.dead_letters()), admin.results(), admin.open_ids()) == (1, [], {"e-1"})
        assert intend(stream, task).status is ScriptStatus.OK


class TestLevels:
    """How much the streams hold."""

    def test_of_nothing_is_nothing(self, stream_factory: StreamFactory) -> None:
        """Also before there are streams."""
        assert stream_factory("c1").stream_levels() == StreamLevels()

    def test_what_is_unread_pending_and_done(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Each where it is, whatever was acknowledged and removed before it."""
        for _ in range(3):
            send(admin)
        assert (stream.stream_levels().unread, stream.stream_levels().pending) == (3, 0)
        first = receive(stream)
        assert (stream.stream_levels().unread, stream.stream_levels().pending) == (2, 1)
        task = accept(stream, first)
        assert task is not None
        intend(stream, task)
        record(stream, task)
        bad = receive(stream)
        stream.dead_letter(bad, BadEvent(DeadReason.INVALID, "of no use"))
        levels = stream.stream_levels()
        assert (levels.unread, levels.pending, levels.dead_letters) == (1, 0, 1)
        assert levels.results == len(admin.results())

    def test_the_oldest_counts_whether_read_or_not(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """By the clock that wrote its id; an id from the future has no age."""
        admin.add({"type": "scale_up"}, OLD_ID)
        send(admin)
        old = stream.stream_levels().oldest_s
        assert old > 3600
        receive(stream)
        assert stream.stream_levels().oldest_s >= old
        accept(stream, receive(stream))
        assert stream.stream_levels().oldest_s >= old

    def test_an_entry_of_the_future_has_no_age(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Its producer made its id up."""
        admin.add({"type": "scale_up"}, "99999999999999-0")
        assert stream.stream_levels() == StreamLevels(unread=1)


class TestTidying:
    """Consumers and entries that are of no use any more."""

    def test_consumers_that_are_gone_are_removed(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Not seen for the given time, and nothing pending; ourselves never."""
        for each in (other, stream):
            send(admin)
            accept(each, receive(each))
            each.announce()
        assert admin.consumers() == {"c1", "c2"}
        assert list(stream.remove_consumers(3600)) == []
        eventually(lambda: list(stream.remove_consumers(0.1)) == ["c2"], what="c2 to be gone")
        assert admin.consumers() == {"c1"}
        assert list(stream.remove_consumers(0)) == []

    def test_one_that_has_something_pending_stays(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """However long it was not seen: the entry would be lost."""
        send(admin)
        receive(other)
        assert list(stream.remove_consumers(0)) == []
        assert (admin.consumers(), admin.pending_count()) == ({"c2"}, 1)

    @pytest.mark.parametrize("sign", ["announce", "renew", "read"])
    def test_one_that_lives_stays(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin, sign: str) -> None:
        """It reads something, or it renews while it has no room to read: either is a sign of life."""
        read = lambda: send(admin) and accept(other, receive(other))  # noqa: E731
        signs = {"announce": other.announce, "renew": lambda: other.renew({}), "read": read}
        send(admin)
        assert accept(other, receive(other)) is not None
        threading.Event().wait(0.6)
        signs[sign]()
        assert list(stream.remove_consumers(0.5)) == []
        assert admin.consumers() == {"c2"}

    @pytest.mark.contract("2.EVENTS_KEEP")
    def test_acknowledged_entries_are_trimmed(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """About down to the given number, and none that is still to be read or accepted."""
        for _ in range(500):
            opened(stream, admin)
        send(admin)
        assert stream.trim(100) >= 250
        assert 100 <= admin.length() <= 250
        assert stream.trim(1000) == 0
        assert receive(stream).fields is not None

    @pytest.mark.contract("2.EVENTS_KEEP")
    def test_what_is_pending_and_what_comes_after_it_is_kept(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It would be a dead letter `Trimmed`."""
        send(admin)
        receive(stream)
        for _ in range(300):
            opened(stream, admin)
        assert stream.trim(1) == 0
        [entry] = stream.claim_pending(own=True, min_idle_s=0)
        accept(stream, entry)
        assert stream.trim(1) > 0

    @pytest.mark.contract("2.EVENTS_KEEP")
    def test_what_another_group_has_not_read_is_kept(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Groups may share the stream."""
        admin.add_group("slow")
        for _ in range(300):
            opened(stream, admin)
        assert stream.trim(1) == 0
