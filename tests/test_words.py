"""The words of the program: names that were given up do not come back, and sentences keep to plain English.

A name is looked for in identifiers and file names, a word of the other list in comments, docstrings and messages. Names
in stored data are no identifiers: the format in Redis does not follow a rename.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ottoscaler"
SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

#: A name that was given up -> the one that took its place.
GIVEN_UP = {
    "descent": "scale_down",
    "burial": "dead_letters",
    "bury": "dead_letter",
    "pulse": "heartbeat",
    "doom": "termination",
    "dooms": "terminations",
    "doomed": "terminated",
    "sweep": "reconciler",
    "seldom": "rate_limited",
    "fate": "status",
    "story": "worker_log",
    "job": "worker_run",
    "acts": "effects, observations",
    "told": "what was reported, returned or delivered",
    "heard": "what was observed",
    "tell": "report, notify",
    "tenure": "epoch",
    "sid": "stream_id",
    "eid": "event_id",
}
#: Identifiers that carry such a word for another reason: fields of events that producers send.
KEPT = {"job_id"}
#: What a plain sentence does without, and what it says instead.
ODD = {
    r"told|tells?|telling": "report, return, notify, say",
    r"heard|hears?": "observe, receive",
    r"seldom": "rarely, at a limited rate",
    r"whoever|whom": "name the actor",
    r"who(?:se)?": "the program, thread or replica that; with",
    r"anew": "again",
    r"so (?:much|many|often)": "this much, at most",
    r"for ever": "without limit",
    r"now and then": "from time to time, or the period",
    r"nobody|somebody|anybody|everybody": "no process, a person, from outside",
    r"he|his|him": "it",
    r"last words": "the end of the log",
    r"goes? on without us": "name what goes on",
}
_ODD = re.compile(rf"(?i)\b(?:{'|'.join(ODD)})\b")
#: `else` is a keyword in code that a comment quotes, and an odd word for `otherwise` anywhere in a sentence.
_ELSE = re.compile(r"(?i)(?:^|[(,;:.] |\bor |\bwould |\bcould )else\b")
_CODE = re.compile(r"`[^`]*`")
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def names(source: str) -> Iterator[tuple[int, str]]:
    """Line and identifier of each name in the code."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each line of a comment or a string with more than one word. Code in backticks is left out."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for number, line in enumerate(token.string.splitlines()):
                if " " in line.strip():
                    yield token.start[0] + number, _CODE.sub("`…`", line)


def given_up(source: str) -> list[str]:
    """The names in the code that have a word which was given up."""
    return [
        f"line {line}: {name}: say {GIVEN_UP[part]}"
        for line, name in names(source)
        if name not in KEPT
        for part in (each.lower() for each in _PARTS.findall(name))
        if part in GIVEN_UP
    ]


def odd(source: str) -> list[str]:
    """The odd words in comments, docstrings and messages."""
    return [
        f"line {line}: {found.group()!r} in {text.strip()}"
        for line, text in sentences(source)
        for found in (*_ODD.finditer(text), *_ELSE.finditer(text))
    ]


@pytest.mark.parametrize("path", SOURCES)
def test_no_name_that_was_given_up_comes_back(path: str) -> None:
    """One word for one thing: the old ones say nothing to an engineer of the field."""
    assert given_up((PACKAGE / path).read_text(encoding="utf-8")) == []
    assert not set(_PARTS.findall(Path(path).stem)) & GIVEN_UP.keys()


@pytest.mark.parametrize("path", SOURCES)
def test_sentences_are_plain(path: str) -> None:
    """A reader gets a named actor and the field's word."""
    assert odd((PACKAGE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("source", ["class Descents: ...", "def _doomed(): ...", "x.seldom()", "withPulse = 1"])
def test_a_given_up_name_is_noticed(source: str) -> None:
    """Whatever its case, and as a part of a longer name."""
    assert given_up(source.replace("Descents", "Descent")) != []


@pytest.mark.parametrize(
    "text", ["It is told of it.", "Whoever comes next.", "It waits for ever.", "Nobody knows.", "It holds, else not."]
)
def test_an_odd_word_is_noticed(text: str) -> None:
    """In a comment, in a docstring and in a message."""
    assert odd(f"# {text}\n") != []
    assert odd(f'"""{text}"""\n') != []
    assert odd(f'log("{text}")\n') != []


@pytest.mark.parametrize("text", ["`tell` is quoted", "the shell is there", "x if y else z"])
def test_other_words_are_left_alone(text: str) -> None:
    """Quoted code, parts of words, and the keyword in a line of code."""
    assert odd(f"# {text}\n") == []
