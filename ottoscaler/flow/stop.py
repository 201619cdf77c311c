"""Starting threads and ending them: one event that all threads wait on, the first cause, one budget for the end.

A thread that dies takes the process with it: a controller that silently does half its work is worse than one that
restarts. One that is not vital is begun again instead: no worker's process ends for its sake.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Final

from ottoscaler import logs
from ottoscaler.errors import Stopping
from ottoscaler.ports import Clock

#: How soon a thread that the machine has refused is asked for again, seconds.
THREAD_RETRY_S: Final = 2.0
#: How soon a thread that is not vital is begun again after it died, seconds.
RESTART_S: Final = 10.0

_log = logs.get(__name__)


class StopSignal:
    """Whether the process is to stop, and why. Any thread."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._cause: BaseException | None = None  # guarded by _lock; the first one stays
        self._threads: list[threading.Thread] = []  # the vital ones; main thread only
        self._woken: list[threading.Event] = []  # guarded by _lock

    @property
    def cause(self) -> BaseException | None:
        """What went wrong; None for a stop that was asked for."""
        return self._cause

    def is_set(self) -> bool:
        """Is the process to stop?"""
        return self.event.is_set()

    def set(self, cause: BaseException | None = None) -> None:
        """Stop the process. The first call says why."""
        with self._lock:
            if not self.event.is_set():
                self._cause = cause
            self.event.set()
            woken = list(self._woken)
        for each in woken:
            each.set()

    def wake_on_stop(self, event: threading.Event) -> None:
        """A thread that waits for this event is woken by the stop as well."""
        with self._lock:
            self._woken.append(event)
            if self.event.is_set():
                event.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the stop, at most so long; returns whether it is set."""
        return self.event.wait(timeout_s)

    def spawn(self, name: str, run: Callable[[], None], *, vital: bool = True) -> None:
        """Start a supervised thread: if it raises, or returns before the stop,
        the process stops with that as its cause. One that is not `vital` is begun again, and `join` does not wait for
        it.

        Where the machine gives no thread (a limit of pids) it is tried again: a restart would find the same limit.
        Raises Stopping.
        """
        body = self._supervise if vital else self._begin_again
        thread = threading.Thread(target=body, args=(name, run), name=name, daemon=True)
        while not _try_start(thread):
            _log.error("thread.refused", "No thread is to be had for %s; trying again: raise the limit of pids", name)
            if self.wait(THREAD_RETRY_S):
                raise Stopping(f"stopped while waiting for the thread {name}")
        if vital:
            self._threads.append(thread)

    def join(self, clock: Clock, deadline: float, *, besides: str = "", only: Collection[str] = ()) -> list[str]:
        """Wait until all vital threads (besides the one of that name; or only those of these names) have ended, at most
        until the deadline; returns the names of those that have not.
        """
        threads = [thread for thread in self._threads if thread.name != besides]
        if only:
            threads = [thread for thread in threads if thread.name in only]
        for thread in threads:
            thread.join(max(0.0, deadline - clock.now()))
        return [thread.name for thread in threads if thread.is_alive()]

    def _supervise(self, name: str, run: Callable[[], None], *, vital: bool = True) -> None:
        try:
            run()
        except Stopping:
            return
        except Exception as error:  # the top of a thread: without this line its end would go unnoticed
            if vital or not self.is_set():  # what is not waited for may meet connections that are closed
                _log.exception("thread.died", "Thread %s died", name)
            if vital:
                self.set(error)
            return
        if vital and not self.is_set():
            self.set(RuntimeError(f"thread {name} ended too early"))

    def _begin_again(self, name: str, run: Callable[[], None]) -> None:
        while not self.is_set():
            self._supervise(name, run, vital=False)
            self.wait(RESTART_S)


def _try_start(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
