"""Bounded waiting for what other processes do: slower than `tests.fakes.wait`, for each look asks a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_POLL_S = 0.05
#: Long enough for a container to start on a loaded machine; nothing waits so long when all is well.
LONG_S = 40.0


def wait_for(look: Callable[[], _T], what: str, timeout_s: float = LONG_S, poll_s: float = _POLL_S) -> _T:
    """The first true value of `look`. Raises AssertionError after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what}; last seen: {value!r}"
        pause.wait(poll_s)
    return value


def stays(look: Callable[[], object], seconds: float, poll_s: float = _POLL_S) -> bool:
    """Is it true now, and at every look for so long?"""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while look():
        if time.monotonic() > deadline:
            return True
        pause.wait(poll_s)
    return False
