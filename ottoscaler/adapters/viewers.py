"""The viewers of the status page: each has one connection, on which it gets what has changed, about once a second.

No thread is kept for them: the thread of the first viewer's request serves all of them, and ends with the last. No
viewer is waited for: what it does not take is kept up to a bound, and behind that, or after a while without progress,
its connection is closed. A browser connects again, and begins with everything.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ottoscaler.core.page_changes import PageState, changes, full, message
from ottoscaler.errors import ConfigError, Unavailable

#: At once; the next one gets 503.
MOST_VIEWERS: Final = 16
#: How often everything is looked at while there is a viewer, seconds.
LOOK_EVERY_S: Final = 1.0
#: The share of one processor that looks may take, as long as that leaves one every SLOWEST_LOOK_S: the workers of this
#: process need the time, too. Viewers call what is older than 5 s old.
LOOK_SHARE: Final = 0.005
SLOWEST_LOOK_S: Final = 3.0
#: What is kept for a viewer that reads slowly, bytes: several of the largest states.
MOST_BYTES: Final = 8 * 1024 * 1024
#: How long a viewer may take none of what is kept for it, seconds.
STALLED_S: Final = 10.0


class _Viewer:
    """One connection; the serving thread's own."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.begun = False  # whether it was sent everything
        self._kept: deque[memoryview] = deque()
        self._bytes = 0
        self._progress_at = time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether there is something that it has not taken yet."""
        return bool(self._kept)

    def add(self, data: bytes) -> None:
        """Keep this for it."""
        if not self._kept:
            self._progress_at = time.monotonic()
        self._kept.append(memoryview(data))
        self._bytes += len(data)

    def send(self) -> bool:
        """Send what it takes now; False if it is to be given up."""
        try:
            while self._kept:
                sent = self.connection.send(self._kept[0])
                self._bytes -= sent
                self._progress_at = time.monotonic()
                self._kept[0] = self._kept[0][sent:]
                if not self._kept[0]:
                    self._kept.popleft()
        except BlockingIOError:
            pass
        except OSError:
            return False
        stalled = self.waits and time.monotonic() - self._progress_at > STALLED_S
        return not stalled and self._bytes <= MOST_BYTES

    def has_left(self) -> bool:
        """Whether its end was closed. What it sends is read and forgotten: a browser sends nothing."""
        try:
            return self.connection.recv(4096) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


class Viewers:
    """All viewers of one process. Any thread may add one; one thread at a time serves."""

    def __init__(self, look: Callable[[], PageState]) -> None:
        """`look` returns how everything stands; it raises Unavailable while that cannot be found out."""
        self._read_state = look
        self._lock = threading.Lock()
        self._new: list[_Viewer] = []  # guarded by _lock
        self._count = 0  # guarded by _lock: those that were added and are not gone
        self._serving = False  # guarded by _lock
        self._closed = False  # guarded by _lock
        self._state: PageState = {}  # the serving thread's
        self._known = False  # the serving thread's: whether there is a state

    @property
    def count(self) -> int:
        """How many there are."""
        with self._lock:
            return self._count

    def reserve(self) -> bool:
        """Take a place for a viewer; False if there is none. Hand it to `add`, or give it back with `release`."""
        with self._lock:
            if self._closed or self._count >= MOST_VIEWERS:
                return False
            self._count += 1
            return True

    def release(self) -> None:
        """Give back a place that was taken."""
        with self._lock:
            self._count -= 1

    def add(self, connection: socket.socket) -> None:
        """A viewer with a place. Returns at once if a thread serves already; otherwise this thread does, and returns
        when the last viewer has gone.
        """
        connection.setblocking(False)
        with self._lock:
            self._new.append(_Viewer(connection))
            # Decided under the lock, as the end of `_serve` is: otherwise that thread could leave in between, and no
            # thread would serve this viewer.
            if self._serving:
                return
            self._serving = True
        self._serve()

    def close(self) -> None:
        """End all of them soon; idempotent."""
        with self._lock:
            self._closed = True

    def _serve(self) -> None:
        viewers: list[_Viewer] = []
        ended = False
        try:
            with selectors.DefaultSelector() as selector:
                while self._add_new(viewers, selector):
                    before = time.thread_time()
                    self._advance(viewers)
                    self._wait(viewers, selector, time.monotonic() + pause_after(time.thread_time() - before))
            ended = True
        finally:
            if not ended:  # a defect of ours: the browsers come again, and the next request's thread serves them
                with self._lock:
                    left = self._leave(viewers)
                _close_all(left)

    def _add_new(self, viewers: list[_Viewer], selector: selectors.BaseSelector) -> bool:
        """Add the new viewers; False if there are none at all, or no more are wanted."""
        with self._lock:
            new, self._new = self._new, []
            viewers += new
            # In one step with the look for new ones: a viewer that is added after this is served by its own thread.
            left = None if viewers and not self._closed else self._leave(viewers)
        if left is not None:
            _close_all(left)
            return False
        for viewer in new:
            selector.register(viewer.connection, selectors.EVENT_READ, viewer)
        return True

    def _leave(self, viewers: list[_Viewer]) -> list[_Viewer]:
        """No thread serves any more; returns the viewers that are to be closed. Under the lock."""
        left = [*viewers, *self._new]
        self._new = []
        self._count -= len(left)
        self._serving, self._known, self._state = False, False, {}
        return left

    def _advance(self, viewers: list[_Viewer]) -> None:
        """Look once, for all of them, and keep for each what it has not seen."""
        old, trouble = self._state, ""
        try:
            self._state, self._known = self._read_state(), True
        except (ConfigError, Unavailable) as error:
            trouble = str(error)
        tick = message("tick", {"trouble": trouble})
        news = changes(old, self._state) if self._known else b""
        everything = full(self._state) if self._known and not all(viewer.begun for viewer in viewers) else b""
        for viewer in viewers:
            if viewer.begun:
                viewer.add(news + tick)
            else:
                # without a state: no row at all, rather than none that looks like an empty queue
                viewer.add(everything + tick)
                viewer.begun = self._known

    def _wait(self, viewers: list[_Viewer], selector: selectors.BaseSelector, until: float) -> None:
        """Send to those that take something, until it is time to look again."""
        self._send(viewers, viewers, selector)
        while viewers and (left_s := until - time.monotonic()) > 0:
            for viewer in viewers:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if viewer.waits else 0)
                selector.modify(viewer.connection, wanted, viewer)
            ready = selector.select(left_s)
            gone = [key.data for key, mask in ready if mask & selectors.EVENT_READ and key.data.has_left()]
            self._drop(viewers, gone, selector)
            self._send(viewers, [key.data for key, mask in ready if mask & selectors.EVENT_WRITE], selector)

    def _send(self, viewers: list[_Viewer], some: list[_Viewer], selector: selectors.BaseSelector) -> None:
        self._drop(viewers, [viewer for viewer in some if viewer in viewers and not viewer.send()], selector)

    def _drop(self, viewers: list[_Viewer], gone: list[_Viewer], selector: selectors.BaseSelector) -> None:
        for viewer in gone:
            viewers.remove(viewer)
            selector.unregister(viewer.connection)
            _shut(viewer.connection)
        with self._lock:
            self._count -= len(gone)


def pause_after(look_s: float) -> float:
    """The pause after a look that took `look_s` seconds of processor time, seconds."""
    return max(LOOK_EVERY_S, min(look_s / LOOK_SHARE, SLOWEST_LOOK_S))


def _close_all(viewers: list[_Viewer]) -> None:
    for viewer in viewers:
        _shut(viewer.connection)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
