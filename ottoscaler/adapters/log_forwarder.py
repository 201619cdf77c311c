"""The controller's side of the log forwarder: starts it as a child process, keeps it running, and speaks with it.

Implements `ports.LogForwarder`. What was asked for is kept here, so a forwarder that dies is asked again, from the last
place that was acknowledged. Nothing of the forwarder is imported by the controller.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ottoscaler import logs
from ottoscaler.core.log_figures import LogFigures
from ottoscaler.core.log_progress import LogProgress
from ottoscaler.log_forwarder_messages import (
    Acknowledged,
    Ended,
    Figures,
    Follow,
    GiveUp,
    Masks,
    Message,
    MessageBuffer,
    Notice,
    PodEnded,
    Start,
    encode_message,
)

#: Pauses before a forwarder that has died is started again, seconds: doubled each time, until one has lived long.
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
LONG_LIFE_S: Final = 60.0
#: How long a forwarder may take to end when its connection is closed, seconds.
END_S: Final = 2.0
#: How often the thread looks up while nothing happens, seconds.
LOOK_S: Final = 0.25
_MODULE: Final = "ottoscaler.forwarder.process"
_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_READ: Final = 64 * 1024

_log = logs.get(__name__)


class LogForwarderProcess:
    """`ports.LogForwarder` over a socket pair. Any thread; `run` is the body of one."""

    def __init__(
        self, start: Start, *, on_progress: Callable[[LogProgress], None],
        on_end: Callable[[str, bool, int, int], None], on_figures: Callable[[LogFigures], None] = lambda _: None,
        beat: Callable[[], None] = lambda: None, masks: Callable[[], Sequence[str]] = tuple,
        waits_for_log: bool = False,
    ) -> None:  # fmt: skip
        """Arguments: what the forwarder is to know; what is done with what was acknowledged, and with
        a log that is over: the pod's UID, whether it was acknowledged to its end, its lines and how many were dropped;
        what is done with its figures; what is called again and again while it runs; what returns the patterns of
        the policy in force; whether the first process starts only when a log is to be followed.
        """
        self._start = start
        self._on_progress = on_progress
        self._on_end = on_end
        self._on_figures = on_figures
        self._beat = beat
        self._masks = masks
        self._waits_for_log = waits_for_log
        self.pid = 0
        """Of the forwarder that was started last; 0 before the first."""
        self._lock = threading.Lock()
        self._follows: dict[str, Follow] = {}  # guarded by _lock: what was asked for and is not over
        self._outgoing: deque[Message] = deque()  # guarded by _lock
        # never closed: a thread that comes late would wake what has got its number then
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        os.set_blocking(self._wake_reader, False)

    def follow(self, progress: LogProgress, *, pod: str, task_id: str, node: str, labels: Mapping[str, str]) -> None:
        """See ports.LogForwarder."""
        follow = Follow(progress, pod, task_id, node, labels)
        with self._lock:
            self._follows[progress.uid] = follow
            self._outgoing.append(follow)
        self._wake()

    def pod_ended(self, uid: str) -> None:
        """See ports.LogForwarder."""
        with self._lock:
            # In one step: a log that is over, or has come further, in between would be followed from its old place.
            known = self._follows.get(uid)
            if known is None or known.ended:
                return
            self._follows[uid] = replace(known, ended=True)
            self._outgoing.append(PodEnded(uid))
        self._wake()

    def give_up(self, uid: str) -> None:
        """See ports.LogForwarder."""
        with self._lock:
            known = self._follows.pop(uid, None)
            if known is not None:
                self._outgoing.append(GiveUp(uid))
        self._wake()

    def run(self, wait: Callable[[float], bool]) -> None:
        """Keep a forwarder running until `wait`, which waits this many seconds at most, returns true."""
        pause_s = FIRST_PAUSE_S
        while self._waits_for_log and not self._follows:
            if self._wait(wait, LOOK_S):
                return
        while not wait(0.0):
            begin = time.monotonic()
            code = self._run_one(wait)
            if wait(0.0):
                return
            if time.monotonic() - begin > LONG_LIFE_S:
                pause_s = FIRST_PAUSE_S
            _log.warning(
                "logs.forwarder_ended", "The log forwarder has ended with code %d; starting it again in %g s",
                code, pause_s,
            )  # fmt: skip
            if self._wait(wait, pause_s):
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _wait(self, wait: Callable[[float], bool], seconds: float) -> bool:
        while seconds > 0:
            self._beat()
            if wait(min(seconds, LOOK_S)):
                return True
            seconds -= LOOK_S
        return False

    def _run_one(self, wait: Callable[[float], bool]) -> int:
        """One forwarder, to its end or to the stop; returns its exit code."""
        ours, its = socket.socketpair()
        with ours:
            with its:
                process = subprocess.Popen(
                    [sys.executable, "-m", _MODULE, str(its.fileno())], pass_fds=[its.fileno()], cwd=_ROOT,
                    stdin=subprocess.DEVNULL,
                    # a Ctrl-C on the terminal is the controller's: the forwarder ends with it, and not before it
                    start_new_session=True,
                )  # fmt: skip
            self.pid = process.pid
            # All that was asked for, and nothing of what was meant for the forwarder before.
            start = replace(self._start, masks=tuple(self._masks()))
            with self._lock:
                self._outgoing = deque([start, *self._follows.values()])
            try:
                self._exchange(ours, wait, start.masks)
            finally:
                with suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)
                code = _end(process)
                self._on_figures(LogFigures())  # nothing is open, and nothing waits, where there is no forwarder
        return code

    def _exchange(self, ours: socket.socket, wait: Callable[[float], bool], masks: Sequence[str]) -> None:
        """Send what is asked for and take what comes, until the forwarder closes the connection, or the stop."""
        ours.setblocking(False)
        incoming, rest = MessageBuffer(), memoryview(b"")
        with selectors.DefaultSelector() as selector:
            selector.register(ours, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while not wait(0.0):
                masks = self._send_masks(masks)
                rest = rest or memoryview(self._take_outgoing())
                selector.modify(ours, selectors.EVENT_READ | (selectors.EVENT_WRITE if rest else 0))
                for key, ready in selector.select(LOOK_S):
                    if key.fileobj is not ours:
                        os.read(self._wake_reader, _READ)
                        continue
                    try:
                        if ready & selectors.EVENT_WRITE:
                            rest = rest[ours.send(rest) :]
                        if ready & selectors.EVENT_READ:
                            data = ours.recv(_READ)
                            if not data:
                                return
                            for message in incoming.feed(data):
                                self._handle(message)
                    except BlockingIOError:
                        continue
                    except ConnectionError:
                        return
                self._beat()

    def _send_masks(self, sent: Sequence[str]) -> Sequence[str]:
        """Send the patterns in force if they are not those that were sent last; returns them."""
        masks = tuple(self._masks())
        if masks != sent:
            with self._lock:
                self._outgoing.append(Masks(masks))
        return masks

    def _take_outgoing(self) -> bytes:
        with self._lock:
            messages, self._outgoing = self._outgoing, deque()
        return b"".join(map(encode_message, messages))

    def _handle(self, message: Message) -> None:
        if isinstance(message, Acknowledged):
            for progress in message.progress:
                with self._lock:
                    known = self._follows.get(progress.uid)
                    if known is not None:
                        self._follows[progress.uid] = replace(known, progress=progress)
                if known is not None:
                    self._on_progress(progress)
        elif isinstance(message, Ended):
            with self._lock:
                self._follows.pop(message.uid, None)
            self._on_end(message.uid, message.acknowledged, message.lines, message.dropped)
        elif isinstance(message, Figures):
            self._on_figures(message.figures)
        elif isinstance(message, Notice):
            _log.warning("logs.trouble", "%s", message.sentence, pod=message.pod)

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):  # it is full of wake-ups, or the thread has ended
            os.write(self._wake_writer, b".")


def _end(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a forwarder without a connection: it ends by itself, or is ended."""
    try:
        return process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
