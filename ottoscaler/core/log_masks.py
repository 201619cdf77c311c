"""Patterns of secrets that a policy adds to those that are always masked in logs, and what is wrong with one.

They are looked for in each line of each worker, by a library that knows no limit of time: one pattern that tries too
many ways, and a worker that writes the line for it, would stop the logs of all workers. So a pattern is refused unless
its work is bounded, whatever the line.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

#: How many patterns there may be, and how many characters one may have.
MAX_PATTERNS: Final = 32
MAX_PATTERN: Final = 512
#: A pattern is tried only where the characters at its beginning are: at least this many.
LEAST_SIGN: Final = 3
#: Steps that a pattern may need for each byte of a line in the worst case.
MAX_STEPS: Final = 256

#: The parser of `re`: the only thing that knows its syntax.
_parser: Final[Any] = importlib.import_module("re._parser")
_ENDLESS: Final = int(_parser.MAXREPEAT)
#: What `re` warns of, as of a class inside a class.
_NESTED: Final = re.compile(r"\[\^?\[|\[\^?(?:\\.|[^\\])(?:\\.|[^\]\\])*?(?:--|&&|~~|\|\|)")
_REPEATS: Final = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
_SINGLE: Final = ("LITERAL", "NOT_LITERAL", "IN", "ANY")
_MANY: Final = 1_000_000
_OPEN: Final = "*, + and {n,} are possible only once, at the end, after one character or class; use {0,20} instead"
_OTHER: Final = "no look-around, reference, flag or condition is possible"


class _Work(NamedTuple):
    """In how many ways a part can match at one place, and how long a match is at most."""

    ways: int
    length: int


class _Refused(Exception):
    """Why a pattern is refused."""


def mask_fault(pattern: str) -> str:
    """What is wrong with a pattern, for a person; empty: nothing."""
    if not pattern.isascii() or not pattern.isprintable():
        return "printable ASCII is expected; write other bytes as \\xff"
    if len(pattern) > MAX_PATTERN:
        return f"{len(pattern)} characters; at most {MAX_PATTERN} are expected"
    if _NESTED.search(pattern):
        return "inside [...], write \\[ and \\- for these characters: Python may read them otherwise one day"
    try:
        re.compile(pattern.encode())
        parsed = _parser.parse(pattern.encode())
    except (re.error, OverflowError, RecursionError) as error:
        return f"not a regular expression: {error}"
    if parsed.state.flags:  # a letter of the sign would be another one
        return _OTHER
    sign = mask_sign(pattern)
    if len(sign) < LEAST_SIGN:
        return (
            f"at least {LEAST_SIGN} characters that stand for themselves are expected at its beginning, as in "
            "corp-[a-z0-9]{20}"
        )
    try:
        steps = _steps(list(parsed)) // len(sign)
    except _Refused as refused:
        return str(refused)
    if steps > MAX_STEPS:
        return f"it may need {steps} steps for each byte of a line, at most {MAX_STEPS}: use fewer or shorter repeats"
    return ""


def mask_sign(pattern: str) -> bytes:
    """The characters with which each match begins; the pattern is a regular expression."""
    sign = bytearray()
    for kind, value in _parser.parse(pattern.encode()):
        if str(kind) != "LITERAL":
            break
        sign.append(value)
    return bytes(sign)


def _steps(items: list[Any]) -> int:
    """Steps at one place of a line, at most. Raises _Refused."""
    least, rest = 0, items
    kind, value = items[-1]
    if str(kind) == "MAX_REPEAT" and len(value[2]) == 1 and str(value[2][0][0]) in _SINGLE:
        # Nothing comes behind it, so it takes what it can get and never goes back.
        least, rest = value[0], items[:-1]
    work = _sequence(rest)
    return work.ways * (work.length + least)


def _sequence(items: Sequence[Any]) -> _Work:
    ways, length = 1, 0
    for kind, value in items:
        work = _item(str(kind), value)
        ways, length = min(_MANY, ways * work.ways), min(_MANY, length + work.length)
    return _Work(ways, length)


def _item(kind: str, value: Any) -> _Work:
    if kind in _SINGLE:
        return _Work(1, 1)
    if kind == "AT":
        return _Work(1, 1)
    if kind == "SUBPATTERN" and not value[1] and not value[2]:
        return _sequence(value[3])
    if kind == "ATOMIC_GROUP":
        return _sequence(value)
    if kind == "BRANCH":
        found = [_sequence(each) for each in value[1]]
        return _Work(min(_MANY, sum(work.ways for work in found)), max(work.length for work in found))
    if kind in _REPEATS:
        least, most, inner = value[0], value[1], _sequence(value[2])
        if most == _ENDLESS:
            raise _Refused(_OPEN)
        each = min(_MANY, inner.ways ** min(most, 20)) if inner.ways > 1 else 1
        return _Work(min(_MANY, each * (most - least + 1)), min(_MANY, most * inner.length))
    raise _Refused(_OTHER)
