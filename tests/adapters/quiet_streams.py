"""What a quiet stream to the log handler costs, as a process: `python -m tests.adapters.quiet_streams PORT FIRST COUNT`
opens FIRST streams, and prints by how many KiB its resident memory has grown for each of COUNT further ones.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from functools import partial

from ottoscaler.adapters.log_client import LogHandlerClient
from ottoscaler.forwarder.entries import EntryEncoder, WorkerIdentity, batch
from ottoscaler.forwarder.lines import Line
from ottoscaler.settings_log_handler import LogHandlerSettings
from tests.adapters.quiet_follows import growth_of_each


async def _measure(port: int, first: int, count: int) -> float:
    client = LogHandlerClient(LogHandlerSettings(address=("127.0.0.1", port)))
    async with AsyncExitStack() as opened:
        grown = await growth_of_each(partial(_open, client, opened), first, count)
    await client.close()
    return grown


async def _open(client: LogHandlerClient, opened: AsyncExitStack, count: int) -> None:
    """Each with one line that was sent and is answered."""
    entry = EntryEncoder(WorkerIdentity("w-1", "t-1")).line(Line("stdout", "2026-05-01T12:00:00.000000000Z", b"0"), 1)
    for _ in range(count):
        stream = await opened.enter_async_context(client.stream("w-1", batches=True))
        await stream.write(batch([entry]))
        assert await stream.read() is not None


if __name__ == "__main__":
    print(asyncio.run(_measure(*map(int, sys.argv[1:]))))
