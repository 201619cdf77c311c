"""The memory of a worker's later attempts: after each end as OOMKilled it grows by the profile's `oom_memory_factor`.

The sizes are decided with the event and stored with it; how often the worker was OOMKilled is stored with each attempt.
So every process gives the same attempt the same memory, whatever the policy says by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final

from ottoscaler.core.amounts import memory_bytes, memory_text

#: The least and the largest factor.
LEAST_FACTOR: Final = 1.1
MAX_FACTOR: Final = 10.0
#: How many sizes there are at most: no worker has more attempts after failures of its own.
MAX_SIZES: Final = 10
#: Sizes are whole multiples of it, bytes.
_UNIT: Final = 2**20


def larger_sizes(memory: str, factor: float, most: int) -> tuple[str, ...]:
    """The memory after the first, second ... end as OOMKilled, as Kubernetes quantities; the last one holds from there.

    Arguments: the first attempt's memory, the factor (0: none), and the most in bytes. Empty where it does not grow.
    """
    size, found = memory_bytes(memory), list[str]()
    if size is None or not factor:
        return ()
    while size < most and len(found) < MAX_SIZES:
        size = min(ceil(size * factor / _UNIT) * _UNIT, most)
        found.append(memory_text(size))
    return tuple(found)


def memory_of(memory: str, sizes: Sequence[str], oom_kills: int) -> str:
    """The memory of an attempt after `oom_kills` ends as OOMKilled. `memory` is that of the first attempt."""
    return sizes[min(oom_kills, len(sizes)) - 1] if sizes and oom_kills else memory
