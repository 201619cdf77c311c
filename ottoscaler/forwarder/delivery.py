"""Carries the log of one worker to the handler: register, stream, and again after each loss, until the end is answered.

One event loop. What is sent and what an answer means is decided by WorkerStream; here are only the waits. An `offer` or
an answer sets `_wake`, and without it the writer would send a line up to ANSWER_TIMEOUT_S late.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ottoscaler.adapters.log_client import LogHandlerClient, LogStream
from ottoscaler.core.log_figures import LogServer
from ottoscaler.errors import LogHandlerUnavailable
from ottoscaler.forwarder.entries import WorkerIdentity, batch
from ottoscaler.forwarder.limits import Limits
from ottoscaler.forwarder.lines import Line
from ottoscaler.forwarder.worker_stream import WorkerStream
from ottoscaler.proto.log_streaming_pb2 import RegistrationResponse, WorkerMetadata, WorkerRegistration

#: Pauses between attempts, seconds: doubled each time, a random part of it left out, so that a thousand workers do not
#: come back in the same moment.
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
#: Where the handler is full, or says that it will refuse again.
LONGEST_REFUSED_PAUSE_S: Final = 30.0
#: The same sentence is said again after this long at the earliest, seconds: a handler that cuts often fills no log.
SAY_AGAIN_S: Final = 60.0
#: How often a stream with unanswered entries is looked at for a handler that has gone silent, seconds. A quiet one is
#: not looked at: there may be a thousand.
_LOOK_S: Final = 5.0
#: How long the handler may take to end a stream of which it has acknowledged everything, seconds.
_CLOSE_S: Final = 0.5


class Delivery:
    """The log of one worker and its connection. Belongs to one event loop."""

    def __init__(
        self,
        client: LogHandlerClient,
        worker: WorkerIdentity,
        report: Callable[[str], None],
        stream: WorkerStream | None = None,
    ) -> None:
        """Arguments: the channel; the worker; what is done with a sentence for people, the same one once a minute."""
        self.stream = stream or WorkerStream(worker, random=random.random)
        self._client = client
        self._worker = worker
        self._report = report
        self._reported: dict[str, float] = {}  # sentence -> when it was said last
        self._batches = True  # until the handler says that it has no such method
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()
        self._room = asyncio.Event()
        self._look: asyncio.TimerHandle | None = None  # the next look at the handler, while something is unanswered
        self._failures = 0
        self.answers = 0

    def offer(self, line: Line) -> None:
        """Add a line; the oldest ones are dropped where there is no room."""
        self.stream.offer(line)
        self._wake.set()

    def finish(self, timestamp: str) -> None:
        """No more lines come."""
        self.stream.finish(timestamp)
        self._wake.set()

    async def wait_answer(self, timeout_s: float) -> bool:
        """Wait for the next answer of the handler, which may make room; returns whether one came in time."""
        self._answered.clear()
        try:
            await asyncio.wait_for(self._answered.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def wait_room(self, timeout_s: float) -> None:
        """Wait until lines were sent, which may make room, or until `look_again`; at most so long."""
        self._room.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._room.wait(), timeout_s)

    def look_again(self) -> None:
        """End `wait_room`: there is something new to look at."""
        self._room.set()

    async def run(self) -> None:
        """Deliver until the end entry is answered, or the handler wants no logs of this worker."""
        while not self.stream.done:
            longest, refused = LONGEST_PAUSE_S, False
            try:
                await self._connect()
            except LogHandlerUnavailable as error:
                self._say(str(error))
                refused = error.refused
                longest = LONGEST_REFUSED_PAUSE_S if error.denied else LONGEST_PAUSE_S
            finally:
                if not self.stream.done:
                    self.stream.cut()
            if not self.stream.done:
                # a refused stream was never open
                self.stream.tally.reconnects[LogServer.HANDLER] += not refused
                await self._pause(longest)

    async def _pause(self, longest_s: float) -> None:
        pause = min(longest_s, FIRST_PAUSE_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        await asyncio.sleep(pause * (0.5 + random.random() / 2))

    async def _connect(self) -> None:
        """One registration and one stream, to its end."""
        self.stream.tally.waiting += 1
        try:
            async with self._client.turns:
                response = await self._register()
        finally:
            self.stream.tally.waiting -= 1
        if response.status == RegistrationResponse.INVALID_REQUEST:
            self._say(f"The log handler wants no logs of this worker: {response.message or 'no reason given'}")
            self.stream.give_up()
            self._answered.set()
            return
        if response.status == RegistrationResponse.SERVER_FULL:
            raise LogHandlerUnavailable(f"Log handler {self._client.target} is full: {response.message}", denied=True)
        limits = limits_of(response.config)
        batches = limits.batch > 1 and self._batches
        if not batches:
            limits = Limits(limits.rate, limits.buffer, limits.message, 1, limits.include_metadata)
        try:
            async with self._client.stream(response.session_id, batches=batches) as opened:
                self.stream.connected(limits, response.last_sequence, time.monotonic())
                await self._carry(opened, batches=batches)
        except LogHandlerUnavailable as error:
            if not (error.unimplemented and batches):
                raise
            self._batches = False  # single entries then, at once

    async def _register(self) -> Any:
        worker = self._worker
        metadata = WorkerMetadata(
            pod_name=worker.worker_id, namespace=worker.namespace, node_name=worker.node_name, labels=worker.labels
        )
        request = WorkerRegistration(
            worker_id=worker.worker_id, task_id=worker.task_id, metadata=metadata, server_endpoint=self._client.target
        )
        while True:
            try:
                return await self._client.register(request)
            except LogHandlerUnavailable as error:
                if error.unimplemented:
                    return RegistrationResponse()  # a handler without registration gets the stream all the same
                if not error.timed_out or not self._client.open_streams:
                    raise
                # No failure of this worker: it asks again at once and keeps its turn, so that it has the next stream
                # that is free. After a pause another worker would have it, and this one might never.
                self._say(
                    f"Log handler {self._client.target} takes no further worker, while others have streams: it hangs, "
                    "or it or a proxy before it limits the streams of one connection (max_concurrent_streams); "
                    "workers wait until a stream is free"
                )

    async def _carry(self, opened: LogStream, *, batches: bool) -> None:
        silent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reading = asyncio.ensure_future(self._read(opened))
        writing = asyncio.ensure_future(self._write(opened, silent, batches=batches))
        tasks = (writing, reading, silent)
        try:
            while not self.stream.done:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if silent in ended:
                    # Also while the writer waits for the connection to take a message: nothing would end that wait.
                    raise LogHandlerUnavailable(f"Log handler {self._client.target} does not answer")
                if reading in ended:
                    reading.result()
                else:
                    await _within(reading, _CLOSE_S)  # it knows how the stream has ended
                    writing.result()
        finally:
            if self._look is not None:
                self._look.cancel()
                self._look = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(LogHandlerUnavailable):  # all is acknowledged: how the handler closes changes nothing
            await opened.half_close()
            await _within(opened.read(), _CLOSE_S)

    def _look_for_silence(self, silent: asyncio.Future[None]) -> None:
        """Again and again while something is unanswered."""
        self._look = None
        if not self._end_if_overdue(silent) and self.stream.unacknowledged:
            self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_for_silence, silent)

    def _end_if_overdue(self, silent: asyncio.Future[None]) -> bool:
        """Set `silent`, which ends the stream, if the handler has not answered for too long; returns whether it has."""
        if self.stream.is_overdue(time.monotonic()) and not silent.done():
            silent.set_result(None)
        return silent.done()

    async def _write(self, opened: LogStream, silent: asyncio.Future[None], *, batches: bool) -> None:
        while not self.stream.done:
            self._wake.clear()
            while entries := self.stream.take(time.monotonic()):
                if self._look is None:
                    self._look_for_silence(silent)
                self._room.set()
                await opened.write(batch(entries) if batches else entries[0])
            self._room.set()
            next_at = self.stream.next_at()
            timeout_s = None if next_at is None else max(0.0, next_at - time.monotonic())
            try:
                await asyncio.wait_for(self._wake.wait(), timeout_s)
            except TimeoutError:
                if self._end_if_overdue(silent):
                    return  # not another turn: its wait would be over at once, again and again until the next look

    async def _read(self, opened: LogStream) -> None:
        while (response := await opened.read()) is not None:
            self.stream.answered(response.status, response.sequence, time.monotonic())
            self._failures = 0
            self.answers += 1
            self._wake.set()
            self._answered.set()
            if self.stream.done:
                return
        raise LogHandlerUnavailable(f"Log handler {self._client.target} ended the stream")

    def _say(self, sentence: str) -> None:
        now = time.monotonic()
        self._reported = {known: at for known, at in self._reported.items() if now - at < SAY_AGAIN_S}
        if sentence not in self._reported:
            self._reported[sentence] = now
            self._report(sentence)


async def _within(work: Awaitable[Any], timeout_s: float) -> None:
    """Wait for something at most that long; how it ends is of no interest unless it is the stream's error."""
    try:
        await asyncio.wait_for(work, timeout_s)
    except TimeoutError:
        return


def limits_of(config: Any) -> Limits:
    """The limits in a LoggingConfig."""
    return Limits.of(
        rate_limit=config.rate_limit,
        buffer_size=config.buffer_size,
        max_message_size=config.max_message_size,
        max_batch=config.max_batch,
        include_metadata=config.include_metadata,
    )
