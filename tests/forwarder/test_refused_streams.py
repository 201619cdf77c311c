"""A stream that a log handler, or a proxy before it, refuses to open: it is tried again, and is no reconnect."""

from __future__ import annotations

import asyncio
import random

import pytest

from ottoscaler.adapters.log_client import LogHandlerClient
from ottoscaler.core.log_figures import LogServer
from ottoscaler.forwarder.delivery import Delivery
from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.tally import LineTally
from ottoscaler.forwarder.worker_stream import WorkerStream
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
