"""From what a program writes to lines on their way to the handler, without holding the program up for long.

While the handler keeps up, the program is slowed down to its pace: then nothing is dropped. A handler that has gone
silent, or is slow for long, costs lines instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from ottoscaler.forwarder.delivery import Delivery
from ottoscaler.forwarder.lines import Line, LineSplitter
from ottoscaler.forwarder.masking import FormMasker

#: How long a program may wait for a handler that answers nothing, seconds. After that it does not wait again until the
#: handler has answered.
STALL_S: Final = 5.0
#: How long a program may wait for the handler in all, seconds.
BLOCKED_S: Final = 60.0


class Patience:
    """How long a program may still be held up for its log. One event loop."""

    def __init__(self, stall_s: float = STALL_S, blocked_s: float = BLOCKED_S) -> None:
        self._stall_s = stall_s
        self._left_s = blocked_s
        self._stalled_at = -1  # the number of answers when the last wait was in vain

    async def wait_room(self, delivery: Delivery) -> None:
        """Wait until there is room for a line, or until patience is at its end."""
        while not delivery.stream.has_room and not delivery.stream.done:
            if self._left_s <= 0 or delivery.answers == self._stalled_at:
                return
            begin = time.monotonic()
            in_time = await delivery.wait_answer(min(self._stall_s, self._left_s))
            self._left_s -= time.monotonic() - begin
            if not in_time:
                self._stalled_at = delivery.answers


class Collector:
    """The lines of one source. One event loop."""

    def __init__(self, source: str, delivery: Delivery, patience: Patience) -> None:
        self._source = source
        self._delivery = delivery
        self._patience = patience
        self._splitter = LineSplitter()
        self._forms = FormMasker()

    async def feed(self, data: bytes) -> None:
        """Send on the lines that are complete with these bytes."""
        await self._send(self._splitter.feed(data))

    async def end(self) -> None:
        """Send on what is left."""
        await self._send(self._splitter.end())

    async def _send(self, lines: Iterable[tuple[bytes, bool]]) -> None:
        timestamp, found = now_text(), list(lines)
        masked = self._forms.mask_each([text for text, _ in found])
        for _, partial in found:
            if not self._delivery.stream.has_room:
                await self._patience.wait_room(self._delivery)
            self._delivery.offer(Line(self._source, timestamp, next(masked), partial))


def now_text() -> str:
    """The time as entries have it: RFC 3339 with nanoseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
