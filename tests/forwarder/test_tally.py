"""What the forwarder counts for the controller's metrics: lines of all workers, each once, by what became of it."""

from __future__ import annotations

import pytest

from ottoscaler.core.log_figures import LineDrop, LogFigures, LogServer
from ottoscaler.core.log_progress import LogProgress
from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.limits import Limits
from ottoscaler.forwarder.lines import Gap, Line
from ottoscaler.forwarder.tally import LineTally, lag_s
from ottoscaler.forwarder.worker_stream import MAX_RETRIES, MAX_RETRY_S, Status, WorkerStream
from tests.forwarder.handler_model import T


def streams(tally: LineTally, count: int, limits: Limits | None = None, start: int = 0) -> list[WorkerStream]:
    """Workers with three lines of two bytes each; an earlier process had sent entries up to `start`."""
    found = []
    for number in range(count):
        stream = WorkerStream(
            WorkerIdentity(f"w-{number}", "t-1"), random=lambda: 1.0, progress=LogProgress("u"), tally=tally
        )
        stream.connected(limits or Limits(batch=100), start, 0.0)
        for text in (b"aa", b"bb", b"cc"):
            stream.offer(Line("combined", T, text))
        found.append(stream)
    return found


def taken(tally: LineTally) -> LogFigures:
    """What was counted since the last look."""
    return tally.take(follows=0, unacknowledged=0, lag_s=0.0)


def test_lines_of_all_workers_are_added_up_and_each_is_counted_once() -> None:
    """When they are acknowledged, whether by an answer or by the next registration."""
    tally = LineTally()
    answered, registered = streams(tally, 2)
    for stream in (answered, registered):
        stream.take(0.0)
    assert (answered.unacknowledged, taken(tally)) == (3, LogFigures())
    answered.answered(Status.ACK, 2, 0.0)
    registered.connected(Limits(batch=100), 3, 0.0)
    assert taken(tally) == LogFigures(lines=5, bytes=10)
    assert (answered.unacknowledged, registered.unacknowledged) == (1, 0)
    assert taken(tally) == LogFigures()


def test_what_an_earlier_process_has_sent_is_not_counted_again() -> None:
    """It was read again, and the handler has it."""
    tally = LineTally()
    (stream,) = streams(tally, 1, start=2)
    stream.take(0.0)
    stream.answered(Status.ACK, 3, 0.0)
    assert stream.account.acknowledged == 3
    assert taken(tally) == LogFigures(lines=1, bytes=2)


def test_dropped_lines_are_counted_by_reason() -> None:
    """And none of them as forwarded."""
    tally = LineTally()
    refused, again, unwanted, full = streams(tally, 4, Limits(buffer=3))
    refused.take(0.0)
    refused.answered(Status.DROP, 1, 0.0)
    for attempt in range(MAX_RETRIES + 1):
        again.take(MAX_RETRY_S / 2 * attempt)
        again.answered(Status.RETRY, 1, MAX_RETRY_S / 2 * attempt)
    unwanted.take(0.0)
    unwanted.give_up()
    unwanted.offer(Line("combined", T, b"dd"))
    full.offer(Line("combined", T, b"dd"))
    assert taken(tally).dropped == {
        LineDrop.REFUSED: 1, LineDrop.RETRIES: 1, LineDrop.UNWANTED: 4, LineDrop.NO_ROOM: 1,
    }  # fmt: skip


def test_gaps_and_reconnects_are_counted() -> None:
    """A look says whether there was something."""
    tally = LineTally()
    (stream,) = streams(tally, 1)
    stream.add_gap(Gap("combined", T))
    tally.reconnects[LogServer.KUBERNETES] += 2
    found = tally.take(follows=7, unacknowledged=8, lag_s=0.5)
    assert found == LogFigures(0, 0, {}, 1, {LogServer.KUBERNETES: 2}, 7, 8, 0.5)
    assert found.counts
    assert not LogFigures(follows=7, unacknowledged=8, lag_s=0.5).counts


def test_the_lag_is_the_age_of_the_oldest_line_that_is_not_answered() -> None:
    """Waiting, sent, or refused; of a worker without one there is none."""
    stream = WorkerStream(WorkerIdentity("w-1", "t-1"), random=lambda: 1.0)
    assert stream.oldest_timestamp == ""
    for second in (1, 2, 3):
        stream.offer(Line("combined", f"2026-05-01T12:00:0{second}.5Z", b"x"))
    assert stream.oldest_timestamp == "2026-05-01T12:00:01.5Z"
    stream.connected(Limits(batch=2), 0, 0.0)
    stream.take(0.0)
    stream.answered(Status.RETRY, 1, 0.0)
    stream.answered(Status.ACK, 2, 0.0)
    assert stream.oldest_timestamp == "2026-05-01T12:00:01.5Z"
    stream.take(10.0)
    stream.answered(Status.ACK, 1, 10.0)
    stream.answered(Status.ACK, 3, 10.0)
    assert stream.oldest_timestamp == ""


@pytest.mark.parametrize(
    ("oldest", "lag"),
    [
        ([], 0.0),
        (["", ""], 0.0),
        (["2026-05-01T12:00:09.123456789Z"], 0.876544),
        (["2026-05-01T12:00:09Z", "", "2026-05-01T14:00:08+02:00"], 2.0),
        (["2026-05-01T12:00:11Z"], 0.0),
    ],
)
def test_times_of_lines_have_nanoseconds_and_zones(oldest: list[str], lag: float) -> None:
    """As kubelets write them. A clock that is ahead makes no negative age."""
    assert lag_s(oldest, 1777636810.0) == pytest.approx(lag, abs=1e-5)
