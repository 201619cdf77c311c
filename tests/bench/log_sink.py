"""A log handler for measurements: it keeps no lines, only what is to be known of them, and costs little itself.

Run as a process. It prints its port, then reads commands, each of which it answers with JSON: `mode NAME`, `count` and
`state`, which is all that is known of what has come.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from ottoscaler.adapters import log_server
from ottoscaler.proto.log_streaming_pb2 import LoggingConfig, LogResponse, RegistrationResponse

#: One message takes this long in the mode `slow`, seconds: all workers together get a few thousand lines per second.
SLOW_S: Final = 0.1
#: Delays that are kept.
MOST: Final = 100_000


@dataclass(slots=True)
class Received:
    """What was received of one worker. Each of its lines begins with its number, from 0."""

    lines: int = 0
    next: int = 0
    """The number of the line that is to come."""
    doubled: int = 0
    """Lines with a number that has come before."""
    missing: int = 0
    """Numbers that were left out."""
    end: dict[str, int] | None = None


@dataclass(slots=True)
class Sink:
    """A receiver for log_server. One event loop."""

    mode: str = "good"
    batch: int = 500
    workers: dict[str, Received] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    delays_ms: list[float] = field(default_factory=list)

    def register(self, registration: Any) -> Any:
        """As a good handler does."""
        worker = registration.worker_id
        config = LoggingConfig(max_batch=self.batch, buffer_size=5000)
        last = self.sequences.get(worker, 0)
        return RegistrationResponse(
            status=RegistrationResponse.SUCCESS, session_id=worker, config=config, last_sequence=last
        )

    def receive(self, worker_id: str, entries: Iterable[Any]) -> list[Any]:
        """Count the entries of one message. In the mode `lying` it has stored nothing, and its answers are wrong."""
        now = time.time()
        if self.mode == "slow":
            time.sleep(SLOW_S)
        last = self.sequences.get(worker_id, 0)
        if self.mode == "lying":
            return [LogResponse(sequence=max(1, last - 100)), LogResponse(sequence=last + 1_000_000)]
        received = self.workers.setdefault(worker_id, Received())
        timestamp = ""
        for entry in entries:
            if entry.sequence > last:
                last, timestamp = entry.sequence, entry.timestamp
                _count(received, entry)
        self.sequences[worker_id] = last
        if timestamp and len(self.delays_ms) < MOST:
            self.delays_ms.append((now - datetime.fromisoformat(timestamp).timestamp()) * 1000)
        return [LogResponse(sequence=last)]

    def command(self, words: list[str]) -> dict[str, Any]:
        """Carry a command out; returns its answer."""
        answer: dict[str, Any] = {"lines": sum(each.lines for each in self.workers.values())}
        if words[0] == "mode":
            self.mode = words[1]
        if words[0] == "state":
            answer["workers"] = {name: asdict(received) for name, received in self.workers.items()}
            answer["ms"] = self.delays_ms
        return answer


def _count(received: Received, entry: Any) -> None:
    if entry.HasField("end"):
        end = entry.end
        received.end = {"lines": end.lines, "dropped": end.dropped, "gaps": end.gaps}
        return
    head = entry.message.partition(" ")[0]
    if not head.isdigit():  # a remark of the sender
        return
    number = int(head)
    received.lines += 1
    received.doubled += number < received.next
    received.missing += max(0, number - received.next)
    received.next = max(received.next, number + 1)


async def _serve(sink: Sink) -> None:
    running, port = await log_server.start(sink, log_server.ServerSettings(address="127.0.0.1:0"))
    print(port, flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while words := (await reader.readline()).decode().split():
        print(json.dumps(sink.command(words)), flush=True)
    await running.stop(0)


if __name__ == "__main__":
    asyncio.run(_serve(Sink(batch=int(sys.argv[1]))))
