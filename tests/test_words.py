"""The words of the program: names that were given up do not come back, and sentences keep to plain English.

A name is looked for in identifiers and file names of Python and Lua, a word of the other list in comments, docstrings
and messages, and in the documents. Names in stored data are no identifiers: the format in Redis follows no rename.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.readme import DOCUMENTS, ROOT

PACKAGE = ROOT / "ottoscaler"
SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
SCRIPTS = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.lua"))

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
#: A comment of Lua (of several lines or of one), a string, or a word of the code.
_LUA = re.compile(r"--\[\[(?P<block>.*?)\]\]|--(?P<comment>[^\n]*)|'(?P<string>[^'\n]*)'|(?P<name>[A-Za-z_]\w*)", re.S)
#: What of a document is no sentence.
_FENCE = re.compile(r"^ *```.*?^ *```", re.M | re.S)
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


def lua_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and word of each name in a Lua file."""
    for found in _LUA.finditer(source):
        if name := found["name"]:
            yield _line(source, found.start()), name


def lua_sentences(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each comment and string with more than one word."""
    for found in _LUA.finditer(source):
        text = " ".join(filter(None, found.group("block", "comment", "string")))
        if " " in text.strip():
            yield _line(source, found.start()), _CODE.sub("`…`", text)


def paragraphs(document: str) -> Iterator[tuple[int, str]]:
    """Line and text of each paragraph and row, without examples and quoted code."""
    lines = _FENCE.sub(lambda fence: "\n" * fence.group().count("\n"), document)
    for found in re.finditer(r"(?:^.*\S.*(?:\n|\Z))+", lines, re.M):
        yield _line(lines, found.start()), _CODE.sub("`…`", found.group().replace("\n", " "))


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _source_of(path: str) -> str:
    return (PACKAGE / path).read_text(encoding="utf-8")


def given_up(found: Iterable[tuple[int, str]]) -> list[str]:
    """Those of some names that have a word which was given up."""
    return [
        f"line {line}: {name}: say {GIVEN_UP[part]}"
        for line, name in found
        if name not in KEPT
        for part in (each.lower() for each in _PARTS.findall(name))
        if part in GIVEN_UP
    ]


def odd(texts: Iterable[tuple[int, str]]) -> list[str]:
    """The odd words in some texts."""
    return [
        f"line {line}: {found.group()!r} in {text.strip()}"
        for line, text in texts
        for found in (*_ODD.finditer(text), *_ELSE.finditer(text))
    ]


def test_no_name_that_was_given_up_comes_back() -> None:
    """One word for one thing: the old ones say nothing to an engineer of the field."""
    assert [(path, wrong) for path in SOURCES for wrong in given_up(names(_source_of(path)))] == []
    assert [path for path in SOURCES if set(_PARTS.findall(Path(path).stem)) & GIVEN_UP.keys()] == []


def test_sentences_are_plain() -> None:
    """A reader gets a named actor and the field's word."""
    assert [(path, wrong) for path in SOURCES for wrong in odd(sentences(_source_of(path)))] == []


@pytest.mark.parametrize("path", SCRIPTS)
def test_the_scripts_of_redis_keep_to_both(path: str) -> None:
    """Their functions and comments have the words of the Python beside them."""
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert given_up(lua_names(source)) == []
    assert odd(lua_sentences(source)) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_are_plain(path: Path) -> None:
    """English ones: the Korean ones have none of the words."""
    assert odd(paragraphs(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("source", ["class Descents: ...", "def _doomed(): ...", "x.seldom()", "withPulse = 1"])
def test_a_given_up_name_is_noticed(source: str) -> None:
    """Whatever its case, and as a part of a longer name."""
    assert given_up(names(source.replace("Descents", "Descent"))) != []


@pytest.mark.parametrize("source", ["local tenure = 1", "function F.bury(x) end", "return pulse -- of x"])
def test_a_given_up_name_of_a_script_is_noticed(source: str) -> None:
    """In strings and comments it may be a field of Redis."""
    assert given_up(lua_names(source)) != []
    assert given_up(lua_names(f"return fields('tenure') -- tenure\n--[[ {source}\n{source} ]]")) == []


@pytest.mark.parametrize(
    "text", ["It is told of it.", "Whoever comes next.", "It waits for ever.", "Nobody knows.", "It holds, else not."]
)
def test_an_odd_word_is_noticed(text: str) -> None:
    """In a comment, in a docstring, in a message and in a document."""
    assert odd(sentences(f"# {text}\n")) != []
    assert odd(sentences(f'"""{text}"""\n')) != []
    assert odd(sentences(f'log("{text}")\n')) != []
    assert odd(lua_sentences(f"local x = 1 -- {text}\n")) != []
    assert odd(lua_sentences(f"--[[ Something.\n{text}\n]]")) != []
    assert odd(lua_sentences(f"return '{text}'")) != []
    assert odd(paragraphs(f"# Title\n\nBefore. {text}\nAfter.\n")) != []


@pytest.mark.parametrize("text", ["`tell` is quoted", "the shell is there", "x if y else z"])
def test_other_words_are_left_alone(text: str) -> None:
    """Quoted code, parts of words, and the keyword in a line of code."""
    assert odd(sentences(f"# {text}\n")) == []
    assert odd(lua_sentences(f"-- {text}\n")) == []
    assert odd(paragraphs(f"{text}\n\n```sh\ntell --whom\n```\n")) == []
