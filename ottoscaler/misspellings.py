"""Suggests the known name that was probably meant, for a variable or an event field that is nearly one of ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Final

#: How alike two names are, from 0 to 1 (difflib's ratio): one letter in eight may differ.
MIN_SIMILARITY: Final = 0.87
#: As alike is what was sent in place of a name that is missing: with no doubt that one is, typ and tpye are enough.
_ALIKE_IF_MISSING: Final = 0.75
#: A last word is an abbreviation of another, in this order of letters, from this many on: USER of USERNAME, CMD, IMG.
_SHORTEST: Final = 3
#: Of shorter names, as many as make sense are only one letter apart: model, mode.
_LONG: Final = 6
#: Endings that only give a unit.
_UNIT: Final = re.compile(r"_(S|SEC|SECS|SECOND|SECONDS|MS|MILLIS)$")
#: What others put before a name, to say of which program it is.
_OWNER: Final = re.compile(r"^(OTTO|OTTOSCALER)_")
#: Variables that Kubernetes gives each container for each Service of the namespace:
#: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE: Final = re.compile(r"_SERVICE_(HOST|PORT)(_.*)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_VALUE: Final = re.compile(r"(tcp|udp|sctp)://")
#: Variables of others that are like ours by chance; OTTO_NAMESPACE is a worker's own.
_OTHERS: Final = frozenset({"HTTPS_PORT", "OTTO_NAMESPACE"})


def closest_known_name(name: str, known: Collection[str]) -> str:
    """The known name that this one nearly is; empty if it is one itself, or like none."""
    if name in known:
        return ""
    plain = {_normalize(other): other for other in known}
    given = _normalize(name)
    if given in plain:
        return plain[given]
    near = {other for other in plain if _shortened(given, other) or f"{other}S" == given or other == f"{given}S"}
    if len(given) >= _LONG:
        near.update(difflib.get_close_matches(given, plain, n=1, cutoff=MIN_SIMILARITY))
    # of several the most alike: REDIS_PASSWORT could also stand for REDIS_PORT, of which it has all letters
    likeness = {other: difflib.SequenceMatcher(None, given, other).ratio() for other in sorted(near)}
    return plain[max(likeness, key=likeness.__getitem__)] if likeness else ""


def suggest_replacement(missing: Collection[str], given: Collection[str]) -> tuple[str, str]:
    """What was probably sent in place of a required name.

    Arguments: the names of which one is required and none was sent, and the names that were sent. Returns the name that
    was sent and the one that was meant, of several pairs the most alike; two empty texts if no name is like another.
    """
    likeness = {}
    for name in sorted(given):
        for other in sorted(missing):
            alike = difflib.SequenceMatcher(None, _normalize(name), _normalize(other)).ratio()
            words, other_words = set(_split_words(name)), set(_split_words(other))
            if alike >= _ALIKE_IF_MISSING or (words and (words <= other_words or other_words <= words)):
                likeness[name, other] = alike
    return max(likeness, key=likeness.__getitem__) if likeness else ("", "")


def misspelled_variables(environ: Mapping[str, str], known: Collection[str]) -> tuple[str, ...]:
    """A sentence for each variable that is set and nearly one of the known ones. Values are in none of them."""
    sentences = []
    for name, value in sorted(environ.items()):
        if not value.strip() or name in _OTHERS or _SERVICE.search(name) or _SERVICE_VALUE.match(value):
            continue
        if other := closest_known_name(name, known):
            sentences.append(f"{name} is set and is no variable of Ottoscaler's; did you mean {other}?")
    return tuple(sentences)


def _normalize(name: str) -> str:
    """Without what people mix up: case, dashes, a unit, and the owner."""
    upper = name.upper().replace("-", "_").replace(".", "_")
    return _UNIT.sub("", _OWNER.sub("", upper)).replace("__", "_")


def _split_words(name: str) -> list[str]:
    return [word for word in _normalize(name).split("_") if len(word) >= _SHORTEST]


def _shortened(one: str, other: str) -> bool:
    *first, last = one.split("_")
    *other_first, other_last = other.split("_")
    short, long = sorted((last, other_last), key=len)
    if not first or first != other_first or len(short) < _SHORTEST or short[0] != long[0]:
        return False
    letters = iter(long)
    return all(letter in letters for letter in short)
