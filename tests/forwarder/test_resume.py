"""A sender that dies and goes on from what was stored of its progress: nothing is lost, doubled or counted twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from ottoscaler.core.log_progress import LogCursor, LogProgress, decode_progress, encode_progress
from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.limits import Limits
from ottoscaler.forwarder.lines import Gap, Line
from ottoscaler.forwarder.pod_log import PodLogReader, Position
from ottoscaler.forwarder.worker_stream import Status, WorkerStream
from tests.forwarder.handler_model import Store, decoded
from tests.forwarder.pod_log_model import KubeletLog

END = "2026-05-01T13:00:00Z"
NOTHING = LogProgress("uid-1")
#: Steps that hypothesis decides; after those nothing dies and nothing is refused.
DECIDED = 40
MANY = 500


def stream_from(progress: LogProgress) -> WorkerStream:
    """What a new process begins with."""
    return WorkerStream(WorkerIdentity("w-1", "t-1"), random=lambda: 0.5, progress=progress)


def lines_of(log: KubeletLog, cursor: LogCursor = NOTHING.cursor) -> list[Line]:
    """What is read of a log from a place on. Fails where that is a gap."""
    found = PodLogReader(Position(cursor)).feed(log.answer(cursor.second))
    assert all(isinstance(line, Line) for line in found)
    return [line for line in found if isinstance(line, Line)]


def offer(stream: WorkerStream, lines: Iterable[Line]) -> None:
    """The sender gets these lines."""
    for line in lines:
        stream.offer(line)


@dataclass
class World:
    """The log of a pod, a sender with what is stored of its progress, and a handler."""

    data: st.DataObject
    log: KubeletLog
    limits: Limits
    stored: LogProgress = NOTHING
    store: Store = field(default_factory=Store)
    now: float = 0.0
    steps: int = 0
    rotates: bool = False
    """Whether the kubelet takes lines away while no process reads. Not before a place is stored: without one no process
    can know that the log had another beginning.
    """

    def __post_init__(self) -> None:
        self.begin()

    def choose(self, *options: object) -> object:
        return options[0] if self.steps > DECIDED else self.data.draw(st.sampled_from(options))

    def begin(self) -> None:
        """A new process: all that the last one knew is gone, but for what was stored."""
        if self.rotates and self.stored.sequence:
            self.log.first = min(len(self.log.lines), self.log.first + int(str(self.choose(0, 0, 1, 5))))
        self.stream = stream_from(self.stored)
        self.lines: deque[Line | Gap] = deque()
        reader = PodLogReader(Position(self.stored.cursor))
        self.lines.extend(reader.feed(self.log.answer(self.stored.cursor.second)) + reader.end())
        self.connected = False

    def run(self) -> None:
        while not self.stream.done:
            self.steps, self.now = self.steps + 1, self.now + 5.0
            assert self.steps < MANY
            match self.choose("go", "go", "die", "store", "cut"):
                case "die":
                    self.begin()
                case "store":
                    self.stored = self.stream.settled.progress
                case "cut":
                    self.stream.cut()
                    self.connected = False
                case _:
                    self.go()

    def go(self) -> None:
        while self.lines and self.stream.has_room:
            line = self.lines.popleft()
            if isinstance(line, Gap):
                self.stream.add_gap(line)
            else:
                self.stream.offer(line)
        if not self.lines:
            self.stream.finish(END)
        if not self.connected:
            self.connected = True
            self.stream.connected(self.limits, self.store.last_sequence, self.now)
        answers_come = True
        for entry in decoded(self.stream.take(self.now)):
            settled = self.rotates or entry.sequence in self.store.entries
            status = Status.ACK if settled else self.choose(Status.ACK, Status.ACK, Status.RETRY)
            assert isinstance(status, Status)
            self.store.take(entry, status)
            answers_come = answers_come and bool(self.choose(True, True, False))
            if answers_come:
                self.stream.answered(status, entry.sequence, self.now)
        if not answers_come or self.choose(False, True):
            self.stream.cut()
            self.connected = False


@settings(max_examples=150)
@given(
    data=st.data(),
    times=st.lists(st.integers(0, 3_000_000_000), max_size=25),
    buffer=st.sampled_from([1, 3, 1000]),
    batch=st.sampled_from([1, 4, 100]),
    message=st.sampled_from([0, 1024]),
)
def test_a_sender_that_dies_goes_on_where_it_was(
    data: st.DataObject, times: list[int], buffer: int, batch: int, message: int
) -> None:
    """Whenever it dies, however old what was stored is, and where a line needs several entries, too."""
    log = KubeletLog()
    for number, at_ns in enumerate(sorted(times)):
        log.write(at_ns, b"%d " % number * (300 if number % 5 == 0 else 1))
    limits = Limits(buffer=buffer, batch=batch, message=message or 1024 * 1024)
    world = World(data, log, limits)
    world.run()
    if world.stream.account.dropped or not world.stream.account.ended:  # refused again and again: dropped, and counted
        return
    written = b"".join(text for _, text in log.lines).decode()
    assert "".join(world.store.texts()) == written
    end = world.store.end
    assert end is not None
    assert end.end.bytes == len(written)
    assert end.end.gaps == 0
    assert end.sequence == max(world.store.entries) == len(world.store.entries)


@settings(max_examples=150)
@given(
    data=st.data(),
    times=st.lists(st.integers(0, 3_000_000_000), max_size=25, unique=True),
    buffer=st.sampled_from([1, 3, 1000]),
    batch=st.sampled_from([1, 4, 100]),
)
def test_where_lines_were_rotated_away_the_rest_comes_all_the_same(
    data: st.DataObject, times: list[int], buffer: int, batch: int
) -> None:
    """What can still be read is sent, and the end, whatever numbers an earlier process has given to other lines."""
    log = KubeletLog()
    for number, at_ns in enumerate(sorted(times)):
        log.write(at_ns, b"%d" % number)
    world = World(data, log, Limits(buffer=buffer, batch=batch), rotates=True)
    world.run()
    assert {text.decode() for _, text in log.lines[log.first :]} <= set(world.store.texts())
    # the handler may have an end from before, which says less: a process cannot know that it has it
    assert world.store.entries[max(world.store.entries)].HasField("end")


def test_the_end_comes_though_nothing_can_be_read_any_more() -> None:
    """A process has sent ten lines and has died, and the pod is gone, with what was stored after three of them."""
    stream = stream_from(LogProgress("uid-1", LogCursor("2026-05-01T12:00:00Z", "ab", 3, "2026-05-01T12:00:00Z"), 3, 3))
    stream.add_gap(Gap("combined", END))
    stream.finish(END)
    stream.connected(Limits(batch=10), 10, 0.0)
    (gap,) = decoded(stream.take(0.0))
    assert (gap.sequence, gap.metadata["gap"]) == (11, "true")
    stream.answered(Status.ACK, 11, 0.0)
    (end,) = decoded(stream.take(0.0))
    assert (end.sequence, end.end.gaps) == (12, 1)
    stream.answered(Status.ACK, 12, 0.0)
    assert stream.account.ended
    assert stream.tally.lines == 0


def test_an_end_that_the_handler_has_already_is_not_sent_again() -> None:
    """All lines were read again, so what the handler has behind them can only be that."""
    log = KubeletLog()
    log.write(0, b"line")
    stream = stream_from(NOTHING)
    offer(stream, lines_of(log))
    stream.finish(END)
    stream.connected(Limits(batch=10), 2, 0.0)
    assert stream.take(0.0) == []
    assert stream.done
    assert stream.account.ended


def test_lines_that_were_dropped_are_counted_once() -> None:
    """What is stored behind the mark for them says so."""
    stream = stream_from(NOTHING)
    stream.connected(Limits(buffer=2, batch=10), 0, 0.0)
    log = KubeletLog()
    for number in range(5):
        log.write(number, b"line %d" % number)
    offer(stream, lines_of(log))
    assert [entry.message.split(":")[0] for entry in decoded(stream.take(0.0))] == ["[3 lines dropped here", "line 3"]
    stream.answered(Status.ACK, 1, 0.0)
    progress = stream.settled.progress
    assert (progress.cursor.lines, progress.sequence, progress.dropped, progress.bytes) == (3, 1, 3, 18)
    assert stream.settled.has_marks
    again = stream_from(progress)
    rest = PodLogReader(Position(progress.cursor)).feed(log.answer(progress.cursor.second))
    assert [each.text for each in rest] == [b"line 3", b"line 4"]
    assert again.account.lines == 3


def test_a_gap_has_a_place_of_its_own() -> None:
    """It has a number: a new process that went back before it would give that to a line and send the next one twice."""
    stream = stream_from(NOTHING)
    stream.connected(Limits(batch=10), 0, 0.0)
    log = KubeletLog()
    for number in range(3):
        log.write(number, b"line %d" % number)
    offer(stream, lines_of(log)[:2])
    stream.add_gap(Gap("combined", END))
    stream.take(0.0)
    stream.answered(Status.ACK, 2, 0.0)
    before = stream.settled.progress
    assert (before.sequence, before.gaps, stream.settled.has_marks) == (2, 0, False)
    stream.answered(Status.ACK, 3, 0.0)
    behind = stream.settled.progress
    assert (behind, stream.settled.has_marks) == (before._replace(sequence=3, gaps=1), True)

    again = stream_from(behind)
    offer(again, lines_of(log, behind.cursor))
    again.connected(Limits(batch=10), 3, 0.0)
    assert [(entry.sequence, entry.message) for entry in decoded(again.take(0.0))] == [(4, "line 2")]


def test_a_gap_inside_a_line_that_goes_on_has_none() -> None:
    """A new process has to send that line from its beginning; the place behind the line is behind the gap as well."""
    stream = stream_from(NOTHING)
    stream.connected(Limits(batch=10), 0, 0.0)
    log = KubeletLog()
    log.write(0, b"line 0")
    (whole,) = lines_of(log)
    stream.offer(whole._replace(partial=True, place=None))
    stream.add_gap(Gap("combined", END))
    stream.offer(whole)
    stream.take(0.0)
    stream.answered(Status.ACK, 2, 0.0)
    assert (stream.settled.progress, stream.settled.has_marks) == (NOTHING, False)
    stream.answered(Status.ACK, 3, 0.0)
    assert (stream.settled.progress.sequence, stream.settled.progress.gaps, stream.settled.has_marks) == (3, 1, True)


def test_the_end_has_no_place() -> None:
    """A new process sends it with the same number."""
    stream = stream_from(NOTHING)
    stream.connected(Limits(batch=10), 0, 0.0)
    stream.finish(END)
    stream.take(0.0)
    stream.answered(Status.ACK, 1, 0.0)
    assert stream.done
    assert stream.settled.progress == NOTHING


def test_progress_stays_behind_a_refused_entry() -> None:
    """Later ones may be acknowledged, but a new process has to send the refused one."""
    stream = stream_from(NOTHING)
    stream.connected(Limits(batch=10), 0, 0.0)
    log = KubeletLog()
    for number in range(3):
        log.write(number, b"line %d" % number)
    offer(stream, lines_of(log))
    stream.take(0.0)
    stream.answered(Status.RETRY, 2, 0.0)
    stream.answered(Status.ACK, 3, 0.0)
    assert stream.settled.progress.sequence == 1
    (entry,) = decoded(stream.take(10.0))
    stream.answered(Status.ACK, entry.sequence, 10.0)
    assert stream.settled.progress.sequence == 3


def test_progress_survives_the_task_hash() -> None:
    """It is a short text there; one that cannot be read is none."""
    log = KubeletLog()
    log.write(0, b"x")
    reader = PodLogReader(Position())
    reader.feed(log.answer())
    progress = LogProgress("uid-1", reader.position.cursor, 7, 5, 1, 80, 1)
    text = encode_progress(progress)
    assert decode_progress(text) == progress
    assert len(text) < 160
    assert [decode_progress(other) for other in ("", "{", "[1]", "null", text.replace("7", "-7"))] == [None] * 5


def test_what_the_handler_has_already_is_not_sent() -> None:
    """A new process reads it again, since what was stored is older, and gives it the same numbers."""
    log = KubeletLog()
    for number in range(4):
        log.write(number, b"line %d" % number)
    stream = stream_from(NOTHING)
    offer(stream, lines_of(log))
    stream.connected(Limits(batch=10), 3, 0.0)
    assert [(entry.sequence, entry.message) for entry in decoded(stream.take(0.0))] == [(4, "line 3")]
    assert stream.settled.progress.sequence == 3
    assert stream.account.acknowledged == 3
