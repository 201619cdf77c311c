"""A stream that a log handler, or a proxy before it, refuses to open: it is tried again, and is no reconnect."""

from __future__ import annotations

import asyncio
import random

import grpc
import grpc.aio
import pytest

from ottoscaler.adapters import log_client
from ottoscaler.adapters.log_client import LogHandlerClient
from ottoscaler.core.log_figures import LogServer
from ottoscaler.errors import LogHandlerUnavailable
from ottoscaler.forwarder.delivery import Delivery
from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.tally import LineTally
from ottoscaler.forwarder.worker_stream import WorkerStream
from ottoscaler.proto.log_streaming_pb2 import WorkerRegistration
from ottoscaler.settings_log_handler import LogHandlerSettings
from tests.forwarder.http2_refusals import resetting

INTERNAL_ERROR, REFUSED_STREAM = 2, 7
LONG_S = 30.0


async def tally_after(port: int, resets: list[int]) -> LineTally:
    """What was counted of one worker when it has asked three times."""
    client, tally, worker = LogHandlerClient(LogHandlerSettings(address=("127.0.0.1", port))), LineTally(), "w-1"
    identity = WorkerIdentity(worker, "t-1")
    stream = WorkerStream(identity, random=random.random, tally=tally)
    running = asyncio.ensure_future(Delivery(client, identity, lambda _: None, stream).run())
    try:
        async with asyncio.timeout(LONG_S):
            while len(resets) < 3:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await client.close()
    return tally


@pytest.mark.parametrize(("code", "counts"), [(REFUSED_STREAM, False), (INTERNAL_ERROR, True)])
def test_a_refused_stream_is_no_reconnect(code: int, counts: bool) -> None:
    """It was never open; any other reset counts."""
    resets: list[int] = []
    with resetting(code, resets) as port:
        tally = asyncio.run(tally_after(port, resets))
    assert (tally.reconnects[LogServer.HANDLER] > 0) == counts


async def register_at(wait_s: float, code: grpc.StatusCode) -> LogHandlerUnavailable:
    """How a registration fails that a proxy ends with this code, after that time."""

    async def refuse(_request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(wait_s)
        await context.abort(code, "no")
        return b""

    server = grpc.aio.server()
    methods = {"RegisterWorker": grpc.unary_unary_rpc_method_handler(refuse)}
    service = grpc.method_handlers_generic_handler("ottoscaler.v1.LogStreamingService", methods)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = LogHandlerClient(LogHandlerSettings(address=("127.0.0.1", port)))
    try:
        await client.register(WorkerRegistration(worker_id="w-1", task_id="t-1"))
    except LogHandlerUnavailable as error:
        return error
    finally:
        await client.close()
        await server.stop(0)
    raise AssertionError("it was answered")


@pytest.mark.parametrize(
    ("register_s", "wait_s", "code", "timed_out"),
    [
        (0.2, 30.0, grpc.StatusCode.OK, True),
        (10.0, 0.0, grpc.StatusCode.DEADLINE_EXCEEDED, False),
    ],
)
def test_only_our_own_deadline_is_a_wait_for_a_stream(
    monkeypatch: pytest.MonkeyPatch, register_s: float, wait_s: float, code: grpc.StatusCode, timed_out: bool
) -> None:
    """A proxy that says the same at once refuses."""
    monkeypatch.setattr(log_client, "REGISTER_S", register_s)
    assert asyncio.run(register_at(wait_s, code)).timed_out is timed_out
