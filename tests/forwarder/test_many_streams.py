"""More workers than a proxy lets have a stream on one connection: the others wait for their turn, and none is lost."""

from __future__ import annotations

import asyncio
import importlib
from asyncio.sslproto import SSLProtocol
from collections.abc import Iterable
from typing import Any

import pytest

from ottoscaler.adapters.log_client import MAX_REGISTERING, LogHandlerClient
from ottoscaler.adapters.log_server import ServerSettings, start
from ottoscaler.forwarder.delivery import Delivery
from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.lines import Line
from ottoscaler.forwarder.tally import LineTally
from ottoscaler.forwarder.worker_stream import WorkerStream
from ottoscaler.proto.log_streaming_pb2 import LoggingConfig, LogResponse, RegistrationResponse
from ottoscaler.settings_log_handler import LogHandlerSettings
from tests.forwarder.handler_model import T

LONG_S = 100.0
LINES = 3
WAITS = "takes no further worker, while others have streams"


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
@pytest.mark.parametrize(("workers", "streams"), [(40, 4), pytest.param(1000, 100, marks=pytest.mark.full)])
def test_workers_wait_for_a_stream_and_lose_nothing(workers: int, streams: int) -> None:
    """Each log comes whole, with its end."""
    found = asyncio.run(deliver(workers, streams))
    assert len(found) == workers
    for messages in found.values():
        assert messages == ["0", "1", "2", f"end of log: {LINES} lines, 0 dropped"]


async def deliver_long(monkeypatch: pytest.MonkeyPatch, workers: int, streams: int) -> None:
    """Workers that keep their streams, for many times as long as a registration may take."""
    # not so short that a registration takes as long on a busy machine
    monkeypatch.setattr("ottoscaler.adapters.log_client.REGISTER_S", 1.0)
    receiver, said, tally = Keeping(), set[str](), LineTally()
    server, port = await start(receiver, ServerSettings(address="127.0.0.1:0", max_streams=streams))
    client = LogHandlerClient(LogHandlerSettings(address=("127.0.0.1", port)))
    tasks = {}
    for number in range(workers):
        worker = WorkerIdentity(f"w-{number}", "t-1")
        delivery = Delivery(client, worker, said.add, WorkerStream(worker, random=lambda: 0.5, tally=tally))
        delivery.offer(Line("stdout", T, b"begin"))
        tasks[asyncio.ensure_future(delivery.run())] = delivery
    try:
        async with asyncio.timeout(LONG_S):
            while not (tally.waiting and any(WAITS in sentence for sentence in said)):
                await asyncio.sleep(0.01)
            while tasks:  # each that ends makes room for the next
                for task, delivery in list(tasks.items()):
                    if task.done():
                        del tasks[task]
                    elif delivery.answers:
                        delivery.finish(T)
                await asyncio.sleep(0.01)
    finally:  # what a failure leaves open would fail other tests
        for task in tasks:
            task.cancel()
        await client.close()
        await server.stop(0)
    assert len(receiver.messages) == workers
    assert set(map(tuple, receiver.messages.values())) == {("begin", "end of log: 1 line, 0 dropped")}
    assert tally.waiting == 0
    assert sum(WAITS in sentence for sentence in said) == 1
    assert not any("DEADLINE_EXCEEDED" in sentence for sentence in said), "a worker that waited counted as a failure"


@pytest.mark.timeout(120)
def test_workers_that_wait_for_long_are_no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says so, and no deadline of a registration is taken for a failure."""
    asyncio.run(deliver_long(monkeypatch, workers=30, streams=4))


def test_a_tls_connection_has_a_small_buffer() -> None:
    """asyncio's own has 256 KiB, of which a thousand follows would have a thousand."""
    importlib.import_module("ottoscaler.adapters.pod_log_client")
    assert SSLProtocol.max_size <= 16 * 1024


async def most_registering(monkeypatch: pytest.MonkeyPatch, workers: int) -> int:
    """How many of these workers ask at once to be registered, where no one is answered for a while."""
    client, asking, most = LogHandlerClient(LogHandlerSettings(address=("127.0.0.1", 1))), 0, 0

    async def register(_registration: Any) -> Any:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(0.1)
        asking -= 1
        return RegistrationResponse(status=RegistrationResponse.INVALID_REQUEST)

    monkeypatch.setattr(client, "register", register)
    deliveries = [Delivery(client, WorkerIdentity(f"w-{number}", "t-1"), lambda _: None) for number in range(workers)]
    async with asyncio.timeout(LONG_S):
        await asyncio.gather(*(delivery.run() for delivery in deliveries))
    return most


def test_few_workers_ask_at_once_to_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for their turn here, where no deadline runs, and not in gRPC."""
    assert asyncio.run(most_registering(monkeypatch, 3 * MAX_REGISTERING)) == MAX_REGISTERING
