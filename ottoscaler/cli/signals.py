"""SIGTERM and SIGINT: the first one stops in order, the second one ends the process at once.

A handler written in Python runs inside whatever the main thread is doing, also while that holds the lock of an Event or
of the log: a handler that takes the same lock waits for itself, and one behind a blocked standard output never runs. So
the handlers here do nothing. The interpreter's own handler, in C, writes the number of the signal into a pipe
(https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd), whatever all threads are doing, and a thread that
only does this reads it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Final, Self

from ottoscaler.errors import ConfigError

#: Those that stop the process.
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: The process ends by force this long after its time for an orderly stop, seconds: the stop itself may hang, for
#: example in a log line while standard output is not read.
FORCED_EXIT_AFTER_S: Final = 5.0


class Signals:
    """Receives the signals. The main thread creates and closes it; a context manager, for tests."""

    def __init__(self, first: Callable[[], None], grace_s: float, force: Callable[[], None] | None = None) -> None:
        """Take the signals from now on.

        Arguments: what the first one does, on a thread of ours, so it may take locks; how long an orderly stop may take
        after it, in seconds; how the process ends after that time, or with the second signal (None:
        with exit code 1, and without another step of Python's).
        Raises ConfigError if there is no thread to be had.
        """
        self._first = first
        self._force = force or partial(os._exit, 1)
        self._grace_s = grace_s + FORCED_EXIT_AFTER_S
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)  # set_wakeup_fd demands it: a full pipe must not stop a handler
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise ConfigError(
                (f"the process may have no further thread ({error}): raise its limit of pids",)
            ) from error
        # the pipe first: a signal that came between the two would reach only the handler, which does nothing
        self._old_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._old = [(number, signal.signal(number, _ignore_signal)) for number in STOP_SIGNALS]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Restore the previous handlers, and end the thread."""
        for number, old in self._old:
            signal.signal(number, old)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def _run(self) -> None:
        count, timeout_s = 0, None
        while count < 2:
            ready, _, _ = select.select([self._reading], [], [], timeout_s)
            if not ready:
                break
            numbers = os.read(self._reading, 4096)
            if not numbers:
                return
            # other signals that have a handler of Python's come this way too
            stops = sum(number in STOP_SIGNALS for number in numbers)
            if stops and count == 0:
                self._first()
                timeout_s = self._grace_s
            count += stops
        self._force()


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    """All that a handler may safely do."""
