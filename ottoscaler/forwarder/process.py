"""The log forwarder: a child process of the controller that follows the logs of its pods and streams them.

Both cost CPU for each line, and the controller's interpreter has leases to renew. Started as
`python -m ottoscaler.forwarder.process DESCRIPTOR` with one end of a socket pair; when the other end closes, it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from ottoscaler.adapters.log_client import LogHandlerClient
from ottoscaler.adapters.pod_log_client import PodLogClient
from ottoscaler.core.log_figures import LogFigures
from ottoscaler.errors import ConfigError
from ottoscaler.forwarder.delivery import Delivery
from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.follower import MAX_HELD, Follower, Shared
from ottoscaler.forwarder.masking import policy_forms
from ottoscaler.forwarder.tally import LineTally, lag_s
from ottoscaler.forwarder.worker_stream import WorkerStream
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

#: How often what is held in memory is looked at, and how often progress is sent, seconds.
LOOK_S: Final = 0.25
PROGRESS_S: Final = 1.0
#: The same sentence about the handler or the kubelet is sent again after this long at the earliest, seconds.
NOTICE_S: Final = 60.0
#: The pause before a log is followed again after an error that no one expects, seconds.
RESTART_S: Final = 1.0
#: A task that has not ended this long after it was cancelled is cancelled again, seconds.
CANCEL_AGAIN_S: Final = 0.5
#: The controller's work comes first where both want one CPU.
_NICE: Final = 5
#: How many times we try to set the priority of our session, and the pause between two tries, seconds.
_AUTOGROUP_TRIES: Final = 5
_AUTOGROUP_PAUSE_S: Final = 0.15
_READ: Final = 64 * 1024


class LogForwarder:
    """All followers. One event loop."""

    def __init__(self, start: Start, writer: asyncio.StreamWriter) -> None:
        """Raises ConfigError if there is no way to a cluster."""
        self._start = start
        self._writer = writer
        self._shared = Shared(masks=policy_forms(start.masks))
        self._logs = PodLogClient(start.kube, start.server)
        self._client = LogHandlerClient(start.handler)
        self._followers: dict[str, Follower] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._endings: set[asyncio.Task[None]] = set()  # of followers that were given up
        self._noticed: dict[str, float] = {}
        self._tally = LineTally()
        self._figures = LogFigures()  # that were sent last

    def handle(self, message: Message) -> None:
        """What the controller asks for."""
        if isinstance(message, Follow):
            self._follow(message)
        elif isinstance(message, Masks):
            self._shared.masks[:] = policy_forms(message.patterns)
        elif isinstance(message, PodEnded) and message.uid in self._followers:
            self._followers[message.uid].pod_ended()
        elif isinstance(message, GiveUp) and message.uid in self._followers:
            # at once: the same log may be followed again in the next message
            del self._followers[message.uid]
            ending = asyncio.ensure_future(cancel_all([self._tasks.pop(message.uid)]))
            self._endings.add(ending)  # the loop itself keeps no task alive
            ending.add_done_callback(self._endings.discard)

    async def report_progress(self) -> None:
        """Without end: what the handler has acknowledged, and whether too much is in memory."""
        due_at = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            streams = [follower.delivery.stream for follower in self._followers.values()]
            self._shared.is_full = sum(stream.held_bytes for stream in streams) > MAX_HELD
            is_due = time.monotonic() >= due_at
            # A remark that lines are missing has a number of its own: a new process that went back before it could not
            # know, and would send again what the handler has behind it.
            news = [each.settled for each in streams if each.settled.has_news and (is_due or each.settled.has_marks)]
            for each in news:
                each.has_news = each.has_marks = False
            if news:
                self._send(Acknowledged([each.progress for each in news]))
            if is_due:
                due_at = time.monotonic() + PROGRESS_S
                self._send_figures(streams)

    def _send_figures(self, streams: list[WorkerStream]) -> None:
        figures = self._tally.take(
            follows=self._shared.follows.total(), unacknowledged=sum(stream.unacknowledged for stream in streams),
            lag_s=lag_s((stream.oldest_timestamp for stream in streams), time.time()),
        )  # fmt: skip
        # a message without news costs the controller a wake-up; what stands as it was is no news, unless it counts
        if figures != self._figures or figures.counts:
            self._figures = figures
            self._send(Figures(figures))

    async def close(self) -> None:
        """End all."""
        await cancel_all(self._tasks.values())
        await asyncio.gather(*self._endings)
        await self._client.close()
        await self._logs.close()

    def _follow(self, follow: Follow) -> None:
        uid = follow.progress.uid
        if uid in self._followers:
            return
        worker = WorkerIdentity(
            follow.pod, follow.task_id, follow.labels, namespace=self._start.kube.namespace, node_name=follow.node
        )
        report = partial(self._notice, follow.pod)
        stream = WorkerStream(worker, random=random.random, progress=follow.progress, tally=self._tally)
        delivery = Delivery(self._client, worker, report, stream)
        follower = Follower(
            follow, self._logs, delivery, self._shared, patience_s=self._start.handler.drain_s / 2, report=report
        )
        self._followers[uid] = follower
        self._tasks[uid] = asyncio.ensure_future(self._run(uid, follower))

    async def _run(self, uid: str, follower: Follower) -> None:
        while not await self._run_once(follower):
            await asyncio.sleep(RESTART_S)
        account = follower.delivery.stream.account
        del self._followers[uid], self._tasks[uid]
        self._send(Ended(uid, account.ended, account.lines, account.dropped))

    async def _run_once(self, follower: Follower) -> bool:
        """Returns whether the log is over. Without this an error that no one expects would end the task, and the
        controller would wait for the end of this log until LOG_DRAIN_S is over.
        """
        # Given back, and not raised: also the cancellation that gRPC raises for a call. One that is asked of this task
        # is raised.
        (error,) = await asyncio.gather(follower.run(), return_exceptions=True)
        if error is None or follower.delivery.stream.done:
            return True
        self._notice(follower.follow.pod, f"The log forwarder failed with the log of a pod, and tries again: {error!r}")
        return False

    def _notice(self, pod: str, sentence: str) -> None:
        now = time.monotonic()
        self._noticed = {known: at for known, at in self._noticed.items() if now - at < NOTICE_S}
        if sentence not in self._noticed:
            self._noticed[sentence] = now
            self._send(Notice(sentence, pod))

    def _send(self, message: Message) -> None:
        # Where the controller is gone, asyncio would warn on its standard error, which may be read as JSON lines.
        if not self._writer.is_closing():
            self._writer.write(encode_message(message))


async def cancel_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel until all have ended. `asyncio.wait_for` of Python 3.11 loses a cancellation that comes in the moment in
    which what it waits for is done; the task goes on then, and the process would outlive its controller.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


async def serve(connection: socket.socket) -> None:
    """Follow what the controller asks for, until it closes the connection."""
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        await _serve(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    messages = _messages(reader)
    start = await anext(messages, None)
    if not isinstance(start, Start):
        return
    if start.cpus:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, start.cpus)
    try:
        forwarder = LogForwarder(start, writer)
    except ConfigError as error:
        writer.write(encode_message(Notice(str(error))))
        await writer.drain()
        return
    reporting = asyncio.ensure_future(forwarder.report_progress())
    try:
        async for message in messages:
            forwarder.handle(message)
    finally:
        reporting.cancel()
        await forwarder.close()


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    buffer = MessageBuffer()
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_READ):
            for message in buffer.feed(data):
                yield message


async def _give_way() -> None:
    """Lower the priority of this process. Outside a container Linux may divide a CPU between sessions first
    (autogroup), and compares nice values only within a session. The controller has another session, so ours gets a
    lower priority, too.
    """
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    if os.getsid(0) != os.getpid():  # others are in our session
        return
    for _ in range(_AUTOGROUP_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(_NICE), encoding="ascii")
            return
        except BlockingIOError:  # the kernel takes one such write in a tenth of a second, from the whole machine
            await asyncio.sleep(_AUTOGROUP_PAUSE_S)
        except OSError:
            return


async def _run(connection: socket.socket) -> None:
    await _give_way()
    await serve(connection)


def main() -> None:
    """The process. Its argument: the number of the descriptor of its connection."""
    asyncio.run(_run(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
