"""Waiting in tests: bounded, with a sentence when it was in vain, and no longer than needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")
_POLL_S = 0.003
#: How long a test waits for what has to happen, real seconds: a machine that runs three suites at once on two cores may
#: take long, and one that passes never waits for it.
PATIENCE_S: Final = 20.0


def eventually(predicate: Callable[[], _T], timeout_s: float = PATIENCE_S, what: str = "it to be so") -> _T:
    """The first true value of `predicate`, asked again and again. Raises AssertionError after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}; last seen: {value!r}")
        pause.wait(_POLL_S)
    return value
