"""The sender's protocol, rule by rule. Time is a number that the tests choose."""

from __future__ import annotations

import pytest

from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.limits import DEFAULT_BUFFER, DEFAULT_MESSAGE, LEAST_MESSAGE, Limits
from ottoscaler.forwarder.lines import MAX_LINE, Gap, Line
from ottoscaler.forwarder.worker_stream import (
    ANSWER_TIMEOUT_S,
    MAX_RETRIES,
    MAX_RETRY_S,
    MAX_WAITING_BYTES,
    RETRY_PAUSE_S,
    Status,
    WorkerStream,
)
from ottoscaler.proto.log_streaming_pb2 import LogEntry
from tests.forwarder.handler_model import T, decoded, lines

ACK, RETRY, DROP = Status.ACK, Status.RETRY, Status.DROP


def opened(count: int, limits: Limits | None = None) -> WorkerStream:
    """A stream that is open, with some lines: `1`, `2`, and so on."""
    stream = WorkerStream(WorkerIdentity("w-1", "t-1"), random=lambda: 1.0)
    stream.connected(limits or Limits(batch=100), 0, 0.0)
    for line in lines(*map(str, range(1, count + 1))):
        stream.offer(line)
    return stream


def sent(stream: WorkerStream, now: float = 0.0) -> list[tuple[int, str]]:
    """Sequence and text of what goes out at this time."""
    found: list[LogEntry] = []
    while entries := stream.take(now):
        found += decoded(entries)
    return [(entry.sequence, entry.message) for entry in found]


def test_nothing_is_sent_before_the_registration() -> None:
    """And nothing after a cut, until the next one."""
    stream = WorkerStream(WorkerIdentity("w-1", "t-1"), random=lambda: 1.0)
    stream.offer(Line("stdout", T, b"1"))
    assert stream.take(0.0) == []
    stream.connected(Limits(), 0, 0.0)
    stream.cut()
    assert stream.take(0.0) == []
    assert stream.next_at() is None


def test_the_end_entry_comes_when_all_others_are_answered() -> None:
    """Otherwise its account would be a guess."""
    stream = opened(2)
    stream.finish(T)
    assert sent(stream) == [(1, "1"), (2, "2")]
    stream.answered(ACK, 1, 0.0)
    assert sent(stream) == []
    stream.answered(DROP, 2, 0.0)
    (end,) = decoded(stream.take(0.0))
    assert (end.sequence, end.message) == (3, "end of log: 2 lines, 1 dropped")
    assert (end.end.lines, end.end.bytes, end.end.dropped, end.end.gaps) == (2, 2, 1, 0)
    assert not stream.done
    stream.answered(ACK, 3, 0.0)
    assert stream.done
    assert stream.account.ended


@pytest.mark.parametrize("status", [DROP, RETRY])
def test_an_end_entry_that_is_not_wanted_ends_the_stream(status: Status) -> None:
    """At once, or after as many attempts as for any other entry."""
    stream, now = opened(0), 0.0
    stream.finish(T)
    for _ in range(MAX_RETRIES + 1):
        now += 10
        sent(stream, now)
        stream.answered(status, 1, now)
    assert stream.done
    assert not stream.account.ended
    assert stream.account.lines == 0


@pytest.mark.parametrize(
    ("answers", "left"),
    [
        ([(ACK, 1)], [2, 3, 4]),
        ([(ACK, 3)], [4]),  # cumulative
        ([(ACK, 99)], []),
        ([(ACK, 0), (ACK, 0)], [3, 4]),  # by position
        ([(ACK, 2), (ACK, 1), (ACK, 2)], [3, 4]),  # again
        ([(DROP, 2)], [1, 3, 4]),
        ([(DROP, 0)], [2, 3, 4]),
        ([(DROP, 77)], [1, 2, 3, 4]),  # never sent
        ([(ACK, 4), (ACK, 0), (RETRY, 0)], []),  # to nothing
    ],
)
def test_an_answer_speaks_of_entries(answers: list[tuple[Status, int]], left: list[int]) -> None:
    """What is not answered is sent again after a cut, with the same sequence."""
    stream = opened(4)
    sent(stream)
    for status, sequence in answers:
        stream.answered(status, sequence, 0.0)
    stream.connected(Limits(batch=100), 0, 1.0)
    assert [number for number, _ in sent(stream, 1.0)] == left


@pytest.mark.parametrize("status", [RETRY, 17])
def test_a_refused_entry_is_sent_again_after_a_pause(status: int) -> None:
    """Nothing new goes before it; a word of a newer interface counts as RETRY."""
    stream = opened(2, Limits(buffer=2))
    assert sent(stream) == [(1, "1"), (2, "2")]
    stream.offer(Line("stdout", T, b"3"))
    stream.answered(status, 1, 0.0)
    stream.answered(ACK, 2, 0.0)
    assert stream.next_at() == RETRY_PAUSE_S
    assert sent(stream, RETRY_PAUSE_S - 0.01) == []
    assert sent(stream, RETRY_PAUSE_S) == [(1, "1"), (3, "3")]


def test_an_ack_of_a_later_entry_does_not_include_a_refused_one() -> None:
    """Its line would be lost without a word; so the answers on their way are awaited before it is sent again."""
    stream = opened(3)
    sent(stream)
    stream.answered(RETRY, 1, 0.0)
    assert sent(stream, 10.0) == []
    stream.answered(ACK, 3, 10.0)
    assert stream.account.acknowledged == 2
    assert sent(stream, 10.0) == [(1, "1")]


def test_what_the_handler_refused_before_a_cut_is_sent_again() -> None:
    """Although it has a higher sequence: that says nothing about this one."""
    stream = opened(3)
    sent(stream)
    stream.answered(RETRY, 1, 0.0)
    stream.connected(Limits(batch=100), 3, 0.0)
    assert sent(stream) == [(1, "1")]
    assert stream.account.acknowledged == 2


def test_retries_are_bounded_by_number() -> None:
    """After the fifth the line counts as dropped."""
    stream, now, times = opened(1), 0.0, 0
    while sent(stream, now):
        times += 1
        stream.answered(RETRY, 1, now)
        now += 5
    assert times == 1 + MAX_RETRIES
    assert (stream.account.acknowledged, stream.account.dropped) == (0, 1)


def test_retries_are_bounded_by_time() -> None:
    """A handler that takes long to refuse does not hold the log up."""
    stream = opened(1)
    sent(stream)
    stream.answered(RETRY, 1, 0.0)
    sent(stream, 1.0)
    stream.answered(RETRY, 1, MAX_RETRY_S + 1)
    assert stream.account.dropped == 1


def test_the_window_is_that_of_the_handler() -> None:
    """So a handler that buffers all it gets has no more than this."""
    stream = opened(3, Limits(buffer=3, batch=2))
    assert [len(stream.take(0.0)) for _ in range(3)] == [2, 1, 0]
    for line in lines("4", "5", "6"):
        stream.offer(line)
    assert stream.take(0.0) == []
    stream.answered(ACK, 2, 0.0)
    assert len(stream.take(0.0)) == 2


def test_unacknowledged_bytes_are_bounded() -> None:
    """Together with what waits it is 1 MiB, besides one line each."""
    stream = opened(0)
    offered = 0
    while stream.has_room:
        stream.offer(Line("stdout", T, b"x" * MAX_LINE))
        offered += 1
        sent(stream)
    assert offered == 4
    assert stream.account.dropped == 0


def test_the_rate_is_that_of_the_handler() -> None:
    """Ten lines per second: one each tenth of a second."""
    stream = opened(20, Limits(rate=10, batch=100))
    times: list[float] = []
    now = 0.0
    while len(times) < 20:
        found = sent(stream, now)
        times += [now] * len(found)
        now = stream.next_at() or now
    assert times == pytest.approx([each / 10 for each in range(20)], abs=1e-3)


def test_a_message_is_no_larger_than_the_handler_takes() -> None:
    """Lines are cut for it, and a batch has as many as fit."""
    stream = opened(0, Limits(message=2048, batch=100))
    for size in (100, 100, 5000, 100):
        stream.offer(Line("stdout", T, b"x" * size))
    messages = []
    while entries := stream.take(0.0):
        messages.append(entries)
        assert sum(len(entry) for entry in entries) <= 2048
    found = [entry for entries in messages for entry in decoded(entries)]
    assert sum(len(entry.message) for entry in found) == 5300
    assert [entry.metadata.get("partial") for entry in found][-2:] == [None, None]
    assert [entry.sequence for entry in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("buffer", [2, 3, 50])
def test_without_room_the_oldest_lines_are_dropped_and_marked(buffer: int) -> None:
    """In their place; what was sent stays."""
    stream = opened(2, Limits(buffer=buffer))
    first = sent(stream)
    for line in lines(*map(str, range(3, 103)), source="stderr"):
        stream.offer(line)
    stream.answered(ACK, len(first), 0.0)
    found: list[LogEntry] = []
    stream.finish(T)
    while not stream.done:
        for entry in decoded(stream.take(0.0)):
            found.append(entry)
            stream.answered(ACK, 0, 0.0)
    remark, *rest, end = found
    assert remark.metadata["dropped"] == str(102 - len(first) - buffer)
    assert (remark.source, remark.level) == ("stderr", "WARN")
    assert [entry.message for entry in rest] == [str(number) for number in range(103 - buffer, 103)]
    assert (end.end.lines, end.end.dropped) == (102, 102 - len(first) - buffer)


def test_the_bound_in_bytes_drops_lines_too() -> None:
    """A few long ones fill the memory as well as many short ones; the last one always has room."""
    stream = WorkerStream(WorkerIdentity("w-1", "t-1"), random=lambda: 1.0)
    for _ in range(5):
        stream.offer(Line("stdout", T, b"x" * MAX_LINE))
    assert stream.account.dropped == 5 - MAX_WAITING_BYTES // MAX_LINE
    stream.offer(Line("stdout", T, b"x" * (MAX_WAITING_BYTES * 2)))
    assert stream.account.dropped == 5


def test_a_gap_is_marked_and_counted() -> None:
    """Between the lines where it is."""
    stream = opened(1)
    stream.add_gap(Gap("combined", T))
    stream.offer(Line("combined", T, b"2"))
    assert sent(stream) == [(1, "1"), (2, "[lines may be missing here]"), (3, "2")]
    assert stream.account.gaps == 1


def test_a_gap_among_dropped_lines_needs_no_mark_of_its_own() -> None:
    """The mark of the dropped lines stands there; it is counted all the same."""
    stream = opened(0, Limits(buffer=1))
    stream.offer(Line("stdout", T, b"1"))
    stream.add_gap(Gap("stdout", T))
    stream.offer(Line("stdout", T, b"2"))
    assert [text[:16] for _, text in sent(stream)] == ["[1 line dropped "]
    assert (stream.account.gaps, stream.account.dropped) == (1, 1)


@pytest.mark.parametrize(("last", "left"), [(0, [1, 2, 3]), (2, [3]), (3, []), (100, [])])
def test_sending_goes_on_after_what_the_handler_has(last: int, left: list[int]) -> None:
    """Lost acknowledgements are made good by the registration."""
    stream = opened(3)
    sent(stream)
    stream.cut()
    stream.connected(Limits(batch=100), last, 1.0)
    assert [number for number, _ in sent(stream, 1.0)] == left
    assert stream.account.acknowledged == 3 - len(left)
    stream.offer(Line("stdout", T, b"4"))
    assert sent(stream, 1.0) == [(max(last, 3) + 1, "4")]


def test_a_handler_that_forgets_gets_the_rest() -> None:
    """What it has acknowledged is not there any more; sequences go on."""
    stream = opened(3)
    sent(stream)
    stream.answered(ACK, 2, 0.0)
    stream.connected(Limits(batch=100), 0, 1.0)
    assert sent(stream, 1.0) == [(3, "3")]


def test_a_silent_handler_is_noticed() -> None:
    """From the first entry that waits for an answer; an answer begins the time again."""
    stream = opened(2, Limits(buffer=1))
    assert not stream.is_overdue(1000.0)
    stream.take(50.0)
    assert stream.next_at() == 50.0 + ANSWER_TIMEOUT_S
    assert not stream.is_overdue(49.0 + ANSWER_TIMEOUT_S)
    assert stream.is_overdue(50.0 + ANSWER_TIMEOUT_S)
    stream.answered(ACK, 1, 60.0)
    stream.take(60.0)
    assert not stream.is_overdue(59.0 + ANSWER_TIMEOUT_S)


def test_giving_up_counts_all_that_is_left() -> None:
    """Sent, refused, waiting, and what comes later; the end never comes."""
    stream = opened(4, Limits(buffer=2))
    sent(stream)
    stream.answered(RETRY, 1, 0.0)
    stream.offer(Line("stdout", T, b"5"))
    stream.give_up()
    stream.offer(Line("stdout", T, b"6"))
    account = stream.account
    assert (account.acknowledged, account.lines, account.bytes, account.ended) == (0, 6, 6, False)
    assert stream.done
    assert stream.take(1.0) == []


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ((0, 0, 0, 0), Limits(0, DEFAULT_BUFFER, DEFAULT_MESSAGE, 1)),
        ((100, 50, 1024, 1), Limits(100, 50, 1024, 1)),
        ((5, 7, 10, 500), Limits(5, 7, LEAST_MESSAGE, 500)),
        ((-1, -1, -1, -1), Limits()),
        ((0, 0, 2**31 - 1, 0), Limits()),
    ],
)
def test_zero_leaves_a_value_to_the_sender(config: tuple[int, int, int, int], limits: Limits) -> None:
    """And so does nonsense."""
    rate, buffer, message, batch = config
    found = Limits.of(
        rate_limit=rate, buffer_size=buffer, max_message_size=message, max_batch=batch, include_metadata=False
    )
    assert found == limits
