"""From bytes to lines, however the reads fall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.forwarder.lines import LONGEST_WORD, MAX_LINE, LineSplitter, cut_at


def split(*reads: bytes, max_line: int = MAX_LINE) -> list[tuple[bytes, bool]]:
    """All lines of some reads."""
    splitter = LineSplitter(max_line)
    found = [line for data in reads for line in splitter.feed(data)]
    return [*found, *splitter.end()]


@pytest.mark.parametrize(
    ("reads", "lines"),
    [
        ([b"one\ntwo\n"], [b"one", b"two"]),
        ([b"one\ntwo"], [b"one", b"two"]),
        ([b"o", b"ne", b"\n", b"two\n"], [b"one", b"two"]),
        ([b"\n\n"], [b"", b""]),
        ([b""], []),
        ([b"one\r\n"], [b"one\r"]),
        ([b"\xff\x00\xfe\n"], [b"\xff\x00\xfe"]),
        ([b"\xec\xa7", b"\x80\n"], ["\uc9c0".encode()]),
    ],
)
def test_lines_end_at_newlines(reads: list[bytes], lines: list[bytes]) -> None:
    """A last one without a newline comes at the end."""
    assert split(*reads) == [(line, False) for line in lines]


@given(st.lists(st.binary(max_size=40)), st.integers(2, 30))
def test_nothing_is_lost_or_changed(reads: list[bytes], max_line: int) -> None:
    """Parts put together again are what was written, and none is too long."""
    found = split(*reads, max_line=max_line)
    text = b"".join(part + (b"" if partial else b"\n") for part, partial in found)
    written = b"".join(reads)
    assert text == written + (b"\n" if written and not written.endswith(b"\n") else b"")
    assert all(len(part) <= max_line for part, _ in found)


@given(st.lists(st.sampled_from([b"a", b"bc ", b"\n", b"\xec\xa7\x80", b"x" * 30]), max_size=60), st.data())
def test_where_reads_end_makes_no_difference(words: list[bytes], data: st.DataObject) -> None:
    """The same output gives the same lines."""
    written = b"".join(words)
    place = data.draw(st.integers(0, len(written)))
    assert split(written[:place], written[place:], max_line=20) == split(written, max_line=20)


def test_a_long_line_is_cut_and_marked() -> None:
    """Each part but the last one goes on in the next."""
    found = split(b"x" * (2 * MAX_LINE + 1) + b"\ny\n")
    assert [(len(part), partial) for part, partial in found] == [
        (MAX_LINE, True),
        (MAX_LINE, True),
        (1, False),
        (1, False),
    ]


def test_memory_is_bounded_by_one_line() -> None:
    """Parts leave as soon as they are full, without a newline ever coming."""
    splitter = LineSplitter(1000)
    sizes = [len(part) for _ in range(100) for part, _ in splitter.feed(b"x" * 999)]
    assert sum(sizes) >= 100 * 999 - 1000


def test_a_cut_goes_through_no_word_and_no_character() -> None:
    """A token that reaches over the border is whole in one part."""
    token = b"ghp_" + b"a" * 36
    text = b"x" * (MAX_LINE - 20 - 1) + b" " + token + b"\n"
    assert [part for part, _ in split(text)] == [b"x" * (MAX_LINE - 21) + b" ", token]
    korean = "\uc9c0".encode()
    assert cut_at(korean * 10, 10) == 9
    assert cut_at(b"\x80" * 10, 5) == 5
    assert cut_at(b"x" * (LONGEST_WORD * 3), LONGEST_WORD * 2) == LONGEST_WORD * 2
