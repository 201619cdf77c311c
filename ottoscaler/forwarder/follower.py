"""Follows the log of one pod and hands its lines on, until the handler has acknowledged its end.

While the pod runs, a handler that is slow or away holds up the reading alone: what was not read yet waits in the
kubelet's file, and nothing of it is in memory. When the pod has ended that patience ends too, because the pod is about
to go: the rest is read, and where there is no room the oldest lines are dropped, counted and marked.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ottoscaler.adapters.pod_log_client import PodLog, PodLogClient
from ottoscaler.core.log_figures import LogServer
from ottoscaler.errors import PodLogUnavailable
from ottoscaler.forwarder.collector import now_text
from ottoscaler.forwarder.delivery import Delivery
from ottoscaler.forwarder.lines import Gap, Line, seconds_of
from ottoscaler.forwarder.masking import Form, FormMasker
from ottoscaler.forwarder.pod_log import COMBINED, PodLogReader, Position
from ottoscaler.log_forwarder_messages import Follow

#: Answers that are opened at once.
MAX_OPENS: Final = 16
#: Follows on one node: each holds an inotify instance of the kubelet's user, which has 128 by default. The logs of
#: further pods are polled.
MAX_FOLLOWS_PER_NODE: Final = 80
POLL_S: Final = 2.0
#: Pauses before a log is opened again, seconds: doubled each time, a random part of it left out.
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
#: Text of all pods in memory at most, bytes, about: a pod that has more than its share waits, or loses lines.
MAX_HELD: Final = 64 * 1024 * 1024
SHARE: Final = 64 * 1024
#: How often a kubelet rotates a file at most, seconds. A follow that comes to the end of its file goes on with the one
#: that is written then; if that is not the next one, the times of the lines before and behind are this far apart.
ROTATION_S: Final = 10.0
#: containerd reports the end of a container before it has written the last 4 KiB of each output to the file
#: (pkg/cri/io/logger.go: a buffered reader behind a pipe); on a busy node that takes a moment. So the log is read once
#: more this long after the end of the pod, seconds.
SETTLE_S: Final = 2.0
#: How long one wait for room lasts until conditions are looked at again, seconds.
_LOOK_S: Final = 1.0
_TENS: Final = len("2026-05-01T12:00:0")


@dataclass
class Shared:
    """What all followers share. One event loop."""

    opens: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_OPENS))
    follows: Counter[str] = field(default_factory=Counter)
    """Node -> follows that are open."""
    is_full: bool = False
    """Whether all pods together hold as much text in memory as they may."""
    masks: list[Form] = field(default_factory=list)
    """What the policy masks in the logs of all pods, as it is now."""


class Follower:
    """The log of one pod. One event loop."""

    def __init__(
        self, follow: Follow, logs: PodLogClient, delivery: Delivery, shared: Shared, *, patience_s: float,
        report: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`patience_s`: how long the rest of the log may wait for room when the pod has ended. `report`: what is done
        with a sentence for people.
        """
        self.follow = follow
        self.delivery = delivery
        self._logs = logs
        self._shared = shared
        self._patience_s = patience_s
        self._report = report
        self._position = Position(follow.progress.cursor)
        self._masker = FormMasker(shared.masks)
        self._ended = asyncio.Event()
        self._impatient_at = self._settled_at = float("inf")
        self._answer: PodLog | None = None
        self._last_read = ("", 0.0)  # of the last line of this answer: its time, and how old it was when it was read
        self._read_to_end = False  # the last answer came to its end, and no half line was left
        self._is_over = False  # nothing more will be read
        self._polls = False
        self._failures = 0
        if follow.ended:
            self.pod_ended()

    def pod_ended(self) -> None:
        """The pod has ended: read the rest."""
        if not self._ended.is_set():
            now = time.monotonic()
            self._impatient_at = now + self._patience_s
            self._settled_at = now + min(SETTLE_S, self._patience_s / 2)
            self._ended.set()
            if self._answer is not None:
                self._answer.cut()
            self.delivery.look_again()

    async def run(self) -> None:
        """Until the handler has acknowledged the end, or wants no log of this pod."""
        reading = asyncio.ensure_future(self._read_all())
        delivering = asyncio.ensure_future(self.delivery.run())
        try:
            await asyncio.wait({reading, delivering}, return_when=asyncio.FIRST_COMPLETED)
            if not delivering.done():
                reading.result()
            await delivering
        finally:
            for each in (reading, delivering):
                each.cancel()
            await asyncio.gather(reading, delivering, return_exceptions=True)

    async def _read_all(self) -> None:
        stream = self.delivery.stream
        while not stream.done:
            last = self._ended.is_set()
            self._read_to_end = self._read_to_end and last
            is_settled = time.monotonic() >= self._settled_at
            failed = await self._try_once(last=last, is_settled=is_settled)
            if last and not failed:
                if is_settled or self._is_over:
                    self.delivery.finish(now_text())
                    return
                await asyncio.sleep(self._settled_at - time.monotonic())
                continue
            if last or not self._ended.is_set():
                stream.tally.reconnects[LogServer.KUBERNETES] += not self._polls
                await self._pause()

    async def _try_once(self, *, last: bool, is_settled: bool) -> bool:
        """One answer to its end; returns whether it has to be tried again for what was wrong with it. `last`: the pod
        has ended. `is_settled`: so long ago that the runtime has written all lines.
        """
        node = self.follow.node
        follows = not last and self._shared.follows[node] < MAX_FOLLOWS_PER_NODE
        self._polls = not last and not follows
        self._shared.follows[node] += follows
        try:
            return await self._read_once(follows=follows, last=last, is_settled=is_settled)
        except PodLogUnavailable as error:
            if last and error.status == 404:  # the pod is gone, and with it what was not read
                if not self._read_to_end:
                    self.delivery.stream.add_gap(Gap(COMBINED, now_text()))
                self._is_over = True
                return False
            if last and error.status == 400:  # its container has never started
                self._is_over = True
                return False
            if last and self._read_to_end and time.monotonic() >= self._impatient_at:
                # All was read once. What was written late is unknown, and the end has to come in time.
                self.delivery.stream.add_gap(Gap(COMBINED, now_text()))
                self._is_over = True
                return False
            if error.status not in (0, 400, 404) and not self._ended.is_set():
                self._report(self._without_name(f"Cannot follow the log of a pod: {error}"))
            return True
        finally:
            self._shared.follows[node] -= follows
            if not self._shared.follows[node]:
                del self._shared.follows[node]

    async def _read_once(self, *, follows: bool, last: bool, is_settled: bool) -> bool:
        reader = PodLogReader(self._position)
        opened = self._logs.open(self.follow.pod, since=self._position.cursor.second, follow=follows)
        async with self._shared.opens:
            answer = await opened.__aenter__()
        try:
            if follows and self._ended.is_set():
                return True
            self._answer = answer
            self._last_read = ("", 0.0)
            old_at = time.monotonic() + ROTATION_S if follows else float("inf")
            while data := await answer.read():
                if await self._mask_and_deliver(
                    self._with_jumps(reader.feed(data), may_jump=time.monotonic() >= old_at)
                ):
                    self._failures = 0
                if reader.error:
                    break
        finally:
            self._answer = None
            self._position = reader.position
            await opened.__aexit__(None, None, None)
        if is_settled and not reader.error:
            await self._mask_and_deliver(reader.end())
        else:
            has_half_a_line = reader.cut()
            self._read_to_end = (follows or last) and not (reader.error or has_half_a_line)
        self._position = reader.position
        if reader.error:
            self._report(self._without_name(f"The kubelet gives no log of a pod: {reader.error}"))
        return bool(reader.error)

    def _with_jumps(self, found: list[Line | Gap], *, may_jump: bool) -> list[Line | Gap]:
        """The same, with a gap where a follow that is behind may have skipped a file that was rotated: nothing else
        shows that. `may_jump`: the follow is old enough for that.
        """
        if not found:
            return found
        (last, age_s), newest = self._last_read, found[-1].timestamp
        self._last_read = (newest, time.time() - seconds_of(newest))
        # alike but for the last digit of the second: no two of them are ROTATION_S apart
        if not may_jump or not last or last[:_TENS] == newest[:_TENS]:
            return found
        marked: list[Line | Gap] = []
        for each in found:
            is_far = each.timestamp[:_TENS] != last[:_TENS] and age_s >= ROTATION_S
            if is_far and seconds_of(each.timestamp) - seconds_of(last) >= ROTATION_S:
                marked.append(Gap(COMBINED, each.timestamp))
            last, age_s = each.timestamp, ROTATION_S  # older than the next one in any case
            marked.append(each)
        return marked

    async def _mask_and_deliver(self, found: list[Line | Gap]) -> int:
        """Hand lines on, each when there is room for it."""
        stream = self.delivery.stream
        masked = self._masker.mask_each([each.text for each in found if isinstance(each, Line)])
        for each in found:
            if isinstance(each, Gap):
                stream.add_gap(each)
                continue
            while not self._has_room and not stream.done and time.monotonic() < self._impatient_at:
                await self.delivery.wait_room(_LOOK_S)
            text = next(masked)
            # inside a private key a new process would not know that the next line is a part of it
            place = None if self._masker.inside_key else each.place
            self.delivery.offer(Line(each.source, each.timestamp, text, each.partial, place))
            if self._shared.is_full and self._ended.is_set():
                stream.shrink(SHARE)
        return len(found)

    @property
    def _has_room(self) -> bool:
        stream = self.delivery.stream
        return stream.has_room and not (self._shared.is_full and stream.held_bytes > SHARE)

    async def _pause(self) -> None:
        """Before the log is opened again; the pod's end ends it, but for a kubelet that gives no log of it."""
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failures) * (0.5 + random.random() / 2)
        if self._polls:
            pause_s = max(pause_s, POLL_S)
        self._failures = min(self._failures + 1, 10)
        if self._ended.is_set():
            await asyncio.sleep(min(pause_s, 1.0))
            return
        try:
            await asyncio.wait_for(self._ended.wait(), pause_s)
        except TimeoutError:
            return

    def _without_name(self, sentence: str) -> str:
        """The same sentence for all pods, so that it is logged once and not a thousand times."""
        return sentence.replace(self.follow.pod, "POD")
