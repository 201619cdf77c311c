"""What a quiet follow costs, as a process: `python -m tests.adapters.quiet_follows KUBECONFIG FIRST COUNT` opens FIRST
logs, and prints by how many KiB its resident memory has grown for each of COUNT further ones.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from ottoscaler.adapters.pod_log_client import PodLogClient
from ottoscaler.settings import KubeSettings

_AT_ONCE: Final = 10


def _rss_kib() -> int:
    gc.collect()
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1])


async def growth_of_each(open_more: Callable[[int], Awaitable[None]], first: int, count: int) -> float:
    """By how many KiB memory grows for each of `count` that are opened after the `first` ones."""
    await open_more(first)
    before = _rss_kib()
    await open_more(count)
    return (_rss_kib() - before) / count


async def _measure(kubeconfig: str, first: int, count: int) -> float:
    client = PodLogClient(KubeSettings(kubeconfig=kubeconfig))
    async with AsyncExitStack() as opened:
        grown = await growth_of_each(partial(_open, client, opened), first, count)
    await client.close()
    return grown


async def _open(client: PodLogClient, opened: AsyncExitStack, count: int) -> None:
    """Several at once, so that the first ones start all threads that there will be."""
    for _ in range(0, count, _AT_ONCE):
        answers = [client.open("quiet", since="", follow=True) for _ in range(_AT_ONCE)]
        await asyncio.gather(*map(opened.enter_async_context, answers))


if __name__ == "__main__":
    print(asyncio.run(_measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
