"""More workers than a proxy lets have a stream on one connection: the others wait for their turn, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from ottoscaler.adapters.log_client import LogHandlerClient
from ottoscaler.adapters.log_server import ServerSettings, start
from ottoscaler.forwarder.delivery import Delivery
from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.lines import Line
from ottoscaler.proto.log_streaming_pb2 import LoggingConfig, LogResponse, RegistrationResponse
from ottoscaler.settings_log_handler import LogHandlerSettings
from tests.forwarder.handler_model import T

LONG_S = 100.0
LINES = 3


class Keeping:
    """A receiver that keeps what it gets, and answers each message."""

    def __init__(self) -> None:
        self.messages: dict[str, list[str]] = {}

    def register(self, registration: Any) -> Any:
        """Batches are welcome."""
        return RegistrationResponse(session_id=registration.worker_id, config=LoggingConfig(max_batch=100))

    def receive(self, worker_id: str, entries: Iterable[Any]) -> Iterable[Any]:
        """All of the message is acknowledged."""
        found = list(entries)
        self.messages.setdefault(worker_id, []).extend(entry.message for entry in found)
        return [LogResponse(sequence=found[-1].sequence)]


async def deliver(workers: int, streams: int) -> dict[str, list[str]]:
    """All of these workers at once, through a server that lets one connection have so many streams."""
    receiver = Keeping()
    server, port = await start(receiver, ServerSettings(address="127.0.0.1:0", max_streams=streams))
    client = LogHandlerClient(LogHandlerSettings(address=("127.0.0.1", port)))
    deliveries = []
    for number in range(workers):
        delivery = Delivery(client, WorkerIdentity(f"w-{number}", "t-1"), lambda _: None)
        for line in range(LINES):
            delivery.offer(Line("stdout", T, b"%d" % line))
        delivery.finish(T)
        deliveries.append(delivery)
    async with asyncio.timeout(LONG_S):
        await asyncio.gather(*(delivery.run() for delivery in deliveries))
    assert all(delivery.stream.account.ended for delivery in deliveries)
    await client.close()
    await server.stop(0)
    return receiver.messages


@pytest.mark.timeout(120)
def test_workers_wait_for_a_stream_and_lose_nothing() -> None:
    """Each log comes whole, with its end."""
    found = asyncio.run(deliver(workers=40, streams=4))
    assert len(found) == 40
    for messages in found.values():
        assert messages == ["0", "1", "2", f"end of log: {LINES} lines, 0 dropped"]
