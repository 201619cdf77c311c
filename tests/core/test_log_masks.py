"""Which patterns of secrets a policy may have: none that a line could make slow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.log_masks import MAX_PATTERN, mask_fault, mask_sign

LINE = 256 * 1024

GOOD = {
    "corp-[a-z0-9]{20}": b"corp-",
    "sk-[A-Za-z0-9]{32,}": b"sk-",
    "password=\\S+": b"password=",
    "abc[a-z]{8,16}-[a-f0-9]{32}": b"abc",
    "token[:=] {0,3}(?:[a-z]{10}|[0-9]{12})": b"token",
    "abc[a-z]*": b"abc",
    "ab\\x00c": b"ab\0c",
    "corp-[a-z]{1,30}\\b": b"corp-",
}
BAD = {
    "": "at least 3 characters",
    "ab": "at least 3 characters",
    "[a-z]{20}": "at least 3 characters",
    "abc|def": "at least 3 characters",
    "abc+": "at least 3 characters",
    "abc(": "not a regular expression: missing )",
    "abc[": "not a regular expression: unterminated",
    "abc{2,1}": "not a regular expression: min repeat",
    "abc[[a]": "write \\[",
    "abc[a--b]": "write \\[",
    "abc\\1": "not a regular expression: invalid group",
    "abc(a+)+": "only once, at the end",
    "abc.*x": "only once, at the end",
    "abc(a|a?)+": "only once, at the end",
    "abc[a-z]*?": "only once, at the end",
    "abc(d)\\1": "no look-around",
    "abc(?=x)": "no look-around",
    "abc(?<!x)": "no look-around",
    "(?i)abcdef": "no look-around, reference, flag",
    "abc(?i:def)": "no look-around, reference, flag",
    "abc" + "a?" * 25 + "a" * 25: "steps for each byte",
    "abc[a-z]{1,20}[a-z]{1,20}[a-z]{1,20}x": "steps for each byte",
    "abc((((a?){20}){20}){20})": "steps for each byte",
    "abc(a|b|c){1,30}d": "steps for each byte",
    "abcd{3000}": "steps for each byte",
    "abc(defgh){200}": "steps for each byte",
    "abc\u00e9": "printable ASCII",
    "abc\n": "printable ASCII",
    "a" * (MAX_PATTERN + 1): "at most 512",
}


@pytest.mark.parametrize("pattern", GOOD)
def test_a_pattern_of_bounded_work_is_taken(pattern: str) -> None:
    """With the characters at which it is tried."""
    assert mask_fault(pattern) == ""
    assert mask_sign(pattern) == GOOD[pattern]


@pytest.mark.parametrize("pattern", BAD)
def test_any_other_is_refused_with_the_reason(pattern: str) -> None:
    """In words that say what to do."""
    assert BAD[pattern] in mask_fault(pattern)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ["abc[a-z]{1,20}d", "abc(x|y){1,7}z", "abca?a?a?a{20}", "abc[a-z]{9,}"])
def test_the_worst_line_does_not_stop_a_pattern_that_was_taken(pattern: str) -> None:
    """Lines of its beginning again and again, of what nearly matches, and of what matches as long as there is more."""
    assert mask_fault(pattern) == ""
    found = re.compile(pattern.encode())
    for part in (b"abc", b"abcx", b"abcaaaaaaaaaaaaaaaaaaaaaaaaaaa", b"abcxyxyxyx"):
        assert len(found.sub(b"***", (part * LINE)[:LINE])) <= LINE


@given(st.text(alphabet="abc(){}[]*+?|,1.\\^$-&~", max_size=16))
def test_no_text_is_more_than_refused(text: str) -> None:
    """Whatever was typed: a reason, or a pattern of which each match begins with its sign."""
    if mask_fault("abc" + text) == "":
        assert mask_sign("abc" + text)[:2] == b"ab"
        re.compile(("abc" + text).encode())
