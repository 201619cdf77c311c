"""Secrets do not get through, however the output is cut."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.forwarder.lines import MAX_LINE, Line, LineSplitter
from ottoscaler.forwarder.masking import LONGEST_KEY, FormMasker, ValueMasker, mask_line, policy_forms, value_forms

# Put together here, so that no scanner takes this file for a leak.
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "a1B2" * 9
JWT = ".".join(("eyJ" + "hbGciOiJI", "eyJ" + "zdWIiOiIx", "SflKxwRJSM"))
SECRETS = {
    f"id {AWS} used": "id *** used",
    "aws_secret_access_key = " + "a" * 40: "aws_secret_access_key = ***",
    "AWS_SECRET_ACCESS_KEY=" + "b/" * 20: "AWS_SECRET_ACCESS_KEY=***",
    "key AIza" + "x" * 35: "key ***",
    "ya29." + "x" * 30: "***",
    "AccountKey=" + "q" * 44 + ";x": "AccountKey=***;x",
    f"token={GITHUB}.": "token=***.",
    "github_pat_" + "a_" * 20: "***",
    "glpat-" + "a" * 20: "***",
    "xoxb-" + "1" * 12: "***",
    "npm_" + "a" * 36: "***",
    f"Cookie: {JWT};": "Cookie: ***;",
    "git clone https://me:" + "pw@host/x": "git clone https://me:***@host/x",
    "redis://:" + "pw@host": "redis://:***@host",
    "Authorization: Bearer " + "a" * 12: "Authorization: Bearer ***",
}
#: Looks a little like one.
PLAIN = (
    "AKIA is short",
    "https://host:8080/path@x",
    "sha256:" + "a" * 64,
    "eyJ",
    "a bearer of news",
    "ghp_short",
    "-----BEGIN PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----",
)


@pytest.mark.parametrize("text", SECRETS)
def test_a_form_is_masked(text: str) -> None:
    """What stands around it stays."""
    assert FormMasker().mask(text.encode()).decode() == SECRETS[text]


@pytest.mark.parametrize("beginning", [*(f"gh{kind}_" for kind in "pousr"), *(f"xox{kind}-" for kind in "abeprs")])
def test_each_kind_of_a_token_is_masked(beginning: str) -> None:
    """Among lines that have rare letters, too: what is left of all of them decides whether a form is looked for."""
    texts = [b"XYZ-gh-1_@", f"token {beginning}{'a1B2' * 9} end".encode(), b"JQ"]
    assert list(FormMasker().mask_each(texts)) == [texts[0], b"token *** end", texts[2]]


@given(around=st.lists(st.binary(max_size=30).map(lambda text: text.replace(b"\n", b" ")), max_size=4))
def test_a_secret_is_masked_whatever_lines_are_around_it(around: list[bytes]) -> None:
    """Lines are looked at together, and each is masked as it is alone."""
    for text, expected in SECRETS.items():
        *others, masked_text = FormMasker().mask_each([*around, text.encode()])
        assert masked_text.decode() == expected
        assert others == [FormMasker().mask(line) for line in around]


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_is_left_alone(text: str) -> None:
    """Without a change, the line is the same object."""
    line = Line("stdout", "", text.encode())
    assert mask_line(line, FormMasker()) is line


@pytest.mark.parametrize("text", SECRETS)
def test_a_form_is_masked_over_two_reads(text: str) -> None:
    """Wherever the first one ends."""
    for place in range(len(text) + 1):
        splitter, masker = LineSplitter(), FormMasker()
        reads = (text[:place].encode(), text[place:].encode() + b"\n")
        lines = [masker.mask(line) for data in reads for line, _ in splitter.feed(data)]
        assert lines == [SECRETS[text].encode()]


def test_what_a_policy_adds_is_masked_over_two_reads() -> None:
    """Beside what always is; a list that changes counts as it is then."""
    text, expected = f"corp-{'a1' * 10} {GITHUB}", b"*** ***"
    forms = policy_forms(["corp-[a-z0-9]{20}"])
    for place in range(len(text) + 1):
        splitter, masker = LineSplitter(), FormMasker(forms)
        reads = (text[:place].encode(), text[place:].encode() + b"\n")
        assert [masker.mask(line) for data in reads for line, _ in splitter.feed(data)] == [expected]
    masker = FormMasker(forms)
    forms[:] = policy_forms(["other"])
    assert masker.mask(b"other corp-" + b"a" * 20) == b"*** corp-" + b"a" * 20


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "part",
    [
        "eyJ",
        "eyJaaaaaaaa.eyJ",
        "AKIA",
        "://a",
        "://:",
        "ghp_",
        "bearer ",
        "Bearer  ",
        "aws_secret_access_key=",
        "xoxb-",
    ],
)
def test_no_line_takes_long(part: str) -> None:
    """Half a minute for one line would stop the logs of all workers."""
    line = (part * MAX_LINE)[:MAX_LINE].encode()
    assert len(FormMasker().mask(line)) <= len(line)


def _key(lines: int) -> list[str]:
    return ["-----BEGIN RSA PRIVATE " + "KEY-----", *["MIIE" * 16] * lines, "-----END RSA PRIVATE " + "KEY-----"]


def masked(texts: list[str]) -> list[str]:
    """Lines of one source after another."""
    masker = FormMasker()
    return [masker.mask(text.encode()).decode() for text in texts]


def test_a_private_key_is_masked_over_its_lines() -> None:
    """And the line after it is plain again."""
    begin, *_, end = _key(1)
    assert masked(["before", *_key(3), "after"]) == ["before", f"{begin}***", "***", "***", "***", f"***{end}", "after"]
    assert masked(["in one: " + "\\n".join(_key(3)) + " and on"]) == [f"in one: {begin}***{end} and on"]


def test_it_is_known_of_each_line_whether_it_is_inside_a_key() -> None:
    """Also where all lines are read at once: at a place inside a key no new process may begin."""
    masker = FormMasker()
    texts = [text.encode() for text in ["before", *_key(2), "after"]]
    inside = [masker.inside_key for _ in masker.mask_each(texts)]
    assert inside == [False, True, True, True, False, False]


def test_a_key_that_never_ends_does_not_hide_the_rest() -> None:
    """After more lines than any key has, lines are plain."""
    found = masked([*_key(LONGEST_KEY + 10)[:-1], "plain"])
    assert found[-1] == "plain"
    assert found[1 : LONGEST_KEY - 1] == ["***"] * (LONGEST_KEY - 2)


def passed(masker: ValueMasker, *reads: bytes) -> bytes:
    """All that a masker lets through."""
    return b"".join([*map(masker.feed, reads), masker.end()])


@pytest.mark.parametrize(
    "shown",
    [
        b"s3cret/pass word",
        b"s3cret%2Fpass%20word",
        base64.b64encode(b"s3cret/pass word"),
    ],
)
def test_a_value_is_masked_as_it_is_shown(shown: bytes) -> None:
    """In a URL and in base64, too, over any two reads."""
    text = b"<" + shown + b">"
    for place in range(len(text) + 1):
        assert passed(ValueMasker(["s3cret/pass word"]), text[:place], text[place:]) == b"<***>"


def test_each_line_of_a_value_is_masked() -> None:
    """A key of several lines that is printed line by line; short lines, such as braces, stay."""
    masker = ValueMasker(["{\nlong-enough-1\nlong-enough-2\n}\n"])
    assert passed(masker, b"{\nlong-enough-2\n}\n") == b"{\n***\n}\n"
    assert passed(ValueMasker(["token-1\n"]), b"x token-1.") == b"x ***."


@pytest.mark.parametrize("value", ["", "abc", "\n\n\n\n\n"])
def test_a_value_that_is_too_short_masks_nothing(value: str) -> None:
    """It would garble the log."""
    assert value_forms(value) == set()
    assert passed(ValueMasker([value]), b"abc\n\n\n\n\n") == b"abc\n\n\n\n\n"


def test_a_value_that_is_not_utf8_is_masked() -> None:
    """As the environment gives it."""
    assert passed(ValueMasker([b"\xff\xfe12".decode(errors="surrogateescape")]), b"a\xff\xfe12b") == b"a***b"


@given(
    st.lists(st.text("ab", min_size=4, max_size=6), min_size=1, max_size=4),
    st.lists(st.binary(max_size=6) | st.sampled_from([b"ab", b"aabb", b"ba", b"abab"]), max_size=12),
)
def test_reads_make_no_difference(values: list[str], reads: list[bytes]) -> None:
    """The same bytes in one read or in many: the same is let through."""
    assert passed(ValueMasker(values), *reads) == passed(ValueMasker(values), b"".join(reads))


def test_only_what_may_be_a_value_is_held_back() -> None:
    """A prompt without a newline is seen at once."""
    masker = ValueMasker(["password"])
    assert masker.feed(b"Your name: ") == b"Your name: "
    assert masker.feed(b"pass") == b""
    assert masker.feed(b"port? ") == b"passport? "
