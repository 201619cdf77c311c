"""Lines out of the answers of a kubelet: each once, in order, whatever is cut and rotated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.log_progress import LogCursor
from ottoscaler.forwarder.lines import Gap, Line
from ottoscaler.forwarder.pod_log import PodLogReader, Position
from tests.forwarder.pod_log_model import KubeletLog

SECOND = 1_000_000_000
T = b"2026-05-01T12:00:00.000000001Z "


def texts(found: list[Line | Gap]) -> list[bytes]:
    """The lines' texts; a gap is `[gap]`."""
    return [b"[gap]" if isinstance(each, Gap) else each.text for each in found]


def read_on(log: KubeletLog, position: Position, *, cut_at: int | None = None) -> tuple[list[Line | Gap], Position]:
    """One more answer, cut behind so many bytes, or to the end of the log."""
    reader = PodLogReader(position)
    answer = log.answer(position.cursor.second)
    found = reader.feed(answer if cut_at is None else answer[:cut_at])
    if cut_at is None:
        found += reader.end()
    else:
        reader.cut()
    assert not reader.error
    return found, reader.position


def numbered(count: int, step_ns: int, zone: str = "Z") -> KubeletLog:
    """Lines 0, 1, ... at equal distances in time."""
    log = KubeletLog(zone)
    for number in range(count):
        log.write(number * step_ns, b"line %d" % number)
    return log


@pytest.mark.parametrize("zone", ["Z", "+09:00", "-03:30"])
def test_lines_have_the_time_of_the_log(zone: str) -> None:
    """It is cut off the text."""
    found, _ = read_on(numbered(2, SECOND, zone), Position())
    assert [each.timestamp for each in found] == [f"2026-05-01T12:00:0{n}.000000000{zone}" for n in (0, 1)]
    assert texts(found) == [b"line 0", b"line 1"]


def test_a_time_without_a_fraction_is_one() -> None:
    """Other servers leave out the zeros at its end."""
    reader = PodLogReader(Position())
    found = reader.feed(b"2026-05-01T12:00:00Z one\n2026-05-01T12:00:01.5Z two\n")
    assert (texts(found), reader.error) == ([b"one", b"two"], "")


def test_a_cursor_counts_the_lines_of_its_second() -> None:
    """A later second begins a new count."""
    log = numbered(5, SECOND // 2)
    found, position = read_on(log, Position())
    places = [each.place for each in found if isinstance(each, Line)]
    assert [(place.second[17:], place.lines) for place in places if place] == [
        ("00Z", 1), ("00Z", 2), ("01Z", 1), ("01Z", 2), ("02Z", 1),
    ]  # fmt: skip
    assert position == Position(places[-1])  # type: ignore[arg-type]


@given(
    st.lists(st.integers(0, 3 * SECOND), min_size=1, max_size=30),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from(["Z", "+09:00"]),
)
def test_cuts_lose_and_double_nothing(times: list[int], cuts: list[int], zone: str) -> None:
    """Wherever answers are cut, and in whatever seconds lines fall. Lines may be equal."""
    log = KubeletLog(zone)
    for number, at_ns in enumerate(sorted(times)):
        log.write(at_ns, b"line %d" % (number % 3))
    got: list[Line | Gap] = []
    position = Position()
    for cut_at in [*cuts, None]:
        found, position = read_on(log, position, cut_at=cut_at)
        got += found
    assert texts(got) == [text for _, text in log.lines]


@given(st.lists(st.integers(0, 900), max_size=8), st.sampled_from([60, 100, 1000]))
def test_cuts_inside_long_lines_double_no_part(cuts: list[int], max_line: int) -> None:
    """A line that is cut into parts goes on with the next part."""
    log = KubeletLog()
    for number in range(3):
        log.write(number * SECOND // 2, b"word%d " % number * 50)
    got: list[Line | Gap] = []
    position = Position()
    for cut_at in [*cuts, 1_000_000]:
        reader = PodLogReader(position, max_line)
        got += reader.feed(log.answer(position.cursor.second)[:cut_at])
        reader.cut()
        position = reader.position
    written = b"\n".join(text for _, text in log.lines) + b"\n"
    assert b"".join(each.text + (b"" if each.partial else b"\n") for each in got if isinstance(each, Line)) == written


@pytest.mark.parametrize(
    ("rotated", "expected"),
    [
        pytest.param(0, [b"line 4", b"line 5"], id="nothing-rotated"),
        pytest.param(1, [b"line 4", b"line 5"], id="before-the-second"),
        pytest.param(3, [b"line 4", b"line 5"], id="inside-the-second"),
        pytest.param(4, [b"[gap]", b"line 4", b"line 5"], id="up-to-the-cursor"),
        pytest.param(5, [b"[gap]", b"line 5"], id="behind-the-cursor"),
        pytest.param(6, [b"[gap]"], id="all"),
    ],
)
def test_what_was_rotated_away_is_a_gap_unless_it_was_read(rotated: int, expected: list[bytes]) -> None:
    """No one can count what is missing, so the place is marked."""
    log = KubeletLog()
    for number, at_ns in enumerate([0, SECOND, SECOND + 1, SECOND + 2, SECOND + 3, 2 * SECOND]):
        log.write(at_ns, b"line %d" % number)
    rest = len(log.answer()) - len(b"".join(b"2026-05-01T12:00:00.000000000Z " + t + b"\n" for _, t in log.lines[4:]))
    found, position = read_on(log, Position(), cut_at=rest)
    assert texts(found) == [b"line 0", b"line 1", b"line 2", b"line 3"]
    log.first = rotated
    assert texts(read_on(log, position)[0]) == expected


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            T + b"one\nfailed to create fsnotify watcher: too many open files\n",
            "failed to create fsnotify watcher: too",
        ),
        (b"unable to retrieve container logs for x\n", "unable to retrieve"),
        (b"unable to retrieve container logs for x", "unable to retrieve"),
        (T + b"one\n\n", "an empty line without a time"),
        (b"2026-05-01T12:00:00.00", ""),  # half a time
        (T + b"one\n" + T + b"tw", ""),
        (b"", ""),
    ],
)
def test_a_line_without_a_time_is_the_kubelets_error(answer: bytes, error: str) -> None:
    """It is no line of the log, and neither is what follows it."""
    reader = PodLogReader(Position())
    found = reader.feed(answer)
    reader.cut()
    assert reader.error.startswith(error)
    assert bool(reader.error) == bool(error)
    assert set(texts(found)) <= {b"one"}


def test_an_answer_may_begin_inside_a_line_that_was_read() -> None:
    """The API leaves out pieces of a long line that are older than the second asked for."""
    _, position = read_on(numbered(2, SECOND), Position())
    answer = b"the rest of a long line\n" + numbered(3, SECOND).answer(position.cursor.second)
    reader = PodLogReader(position)
    assert texts(reader.feed(answer)) == [b"line 2"]
    assert not reader.error
    alone = PodLogReader(position)
    assert not alone.feed(b"unable to retrieve container logs\n")
    alone.cut()
    assert alone.error == "unable to retrieve container logs"


def test_a_clock_that_is_set_back_doubles_nothing() -> None:
    """An answer from the cursor's second on has no line of before."""
    log = KubeletLog()
    for at_ns, text in ((5 * SECOND, b"five"), (2 * SECOND, b"two"), (5 * SECOND + 1, b"five again")):
        log.write(at_ns, text)
    found, position = read_on(log, Position())
    assert texts(found) == [b"five", b"two", b"five again"]
    assert position.cursor.lines == 2
    log.write(6 * SECOND, b"six")
    assert texts(read_on(log, position)[0]) == [b"six"]


def test_a_last_line_without_a_newline_counts_at_the_end_of_the_log_only() -> None:
    """Before the end it is half a line that comes again."""
    for ended, expected in ((False, []), (True, [b"one"])):
        reader = PodLogReader(Position())
        found = reader.feed(T + b"one")
        if ended:
            found += reader.end()
        assert texts(found) == expected
        assert (reader.position.cursor == LogCursor()) is not ended
