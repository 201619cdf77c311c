"""What the process asks of the interpreter and of the kernel, so that a worker among thousands costs what one among
ten does.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

#: Enough for the deepest call that a worker makes, bytes; the default of 8 MiB only costs address space.
STACK_BYTES: Final = 512 * 1024
#: The garbage collector looks for cycles after this many new objects, and hardly any are made here. By default it looks
#: after 700: measured, 5 % of all CPU at 1,000 live pods, most of it for looking through the libraries again.
GC_THRESHOLD: Final = 10_000
#: https://man7.org/linux/man-pages/man2/PR_FUTEX_HASH.2const.html
_PR_FUTEX_HASH: Final = 78
_PR_FUTEX_HASH_SET_SLOTS: Final = 1
#: How often the kernel's figures are looked at, seconds, and at how many threads, the oldest first: our loops are.
LOOK_EVERY_S: Final = 1.0
SAMPLED_THREADS: Final = 32
#: What part of the time counts: of waiting for a CPU, and of others on it.
SIGNIFICANT_SHARE: Final = 0.1
#: CPUs that are busier than another by less than this part of the time are as good as that one.
SIMILAR_LOAD_SHARE: Final = 0.1
#: After our threads have waited, how long they may run everywhere, seconds: doubled each time.
FIRST_PAUSE_S: Final = 10.0
MAX_PAUSE_S: Final = 300.0


def tune_process(max_workers: int) -> None:
    """Once, when all is imported and before the first thread starts. Argument: how many workers there may be."""
    threading.stack_size(STACK_BYTES)
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    if sys.platform == "linux":
        _size_futex_table(max_workers)


def _size_futex_table(max_workers: int) -> None:
    """Give the kernel's table of waiting threads a place for each of ours.

    Since Linux 6.16 each process has a table of its own, by the number of cores and not of threads: with two cores it
    has 16 places, and each wake of one of 8,000 threads passes 500 others. Measured: 4.5 ms of system time for each
    pod at 8,000 live, 0.9 ms with this. Other kernels refuse, and have one large table for all processes.
    """
    slots = 1 << max_workers.bit_length()
    ctypes.CDLL(None).prctl(_PR_FUTEX_HASH, _PR_FUTEX_HASH_SET_SLOTS, slots, 0, 0)


class CpuPinning:
    """Keeps all threads on one CPU for as long as that costs nothing. `run` is the body of one thread.

    Python runs one thread at a time. With two CPUs, a thread that comes back from a system call finds the interpreter
    taken by one that was woken on the other, and sleeps again; with one it goes on. Measured: 30 % less CPU for a pod.
    But threads that may run on one CPU only wait for it when other processes want it too, while another CPU may be
    free. So the kernel's figures are read each second: where our threads wait, they may run everywhere again, and later
    the least busy CPU is tried.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """`proc`: where the kernel's figures are, for tests."""
        self._proc = proc
        self._all = _allowed_cpus()
        self._set = self._all
        self._before: CpuSample | None = None
        self._try_at = 0.0
        self._pause_s = FIRST_PAUSE_S

    def run(self, wait: Callable[[float | None], bool]) -> None:
        """Until `wait`, which waits this many seconds (None: without limit), returns true."""
        while len(self._all) > 1 and self.step():
            if wait(LOOK_EVERY_S):
                return
        wait(None)

    def step(self) -> bool:
        """Look, and move if need be; False for no more: no figures, no right to move, or the CPUs were chosen from
        outside.
        """
        after = read_cpu_sample(self._proc)
        if after is None:
            self._pin_threads(self._all)
            return False
        before, self._before = self._before, after
        if before is None:
            return True
        if len(self._set) == 1:
            if after.contended(before, *self._set):
                self._try_at = after.at + self._pause_s * random.uniform(1, 2)  # two that let go meet again otherwise
                self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
                return self._pin_threads(self._all)
        elif after.at >= self._try_at and (free := after.free(before, self._all)):
            return self._pin_threads({random.choice(free)})
        return True

    def _pin_threads(self, cpus: Collection[int]) -> bool:
        """All threads there are, and so all that they will start. False if we may not, or the CPUs were chosen from
        outside.
        """
        if set(cpus) == set(self._set):
            return True
        seen: set[int] = set()
        try:
            if os.sched_getaffinity(0) != set(self._set):
                return False
            while new := {int(name) for name in os.listdir(self._proc / "self" / "task")} - seen:
                for thread in new:
                    with suppress(ProcessLookupError):  # it has ended
                        os.sched_setaffinity(thread, cpus)
                seen |= new
        except (OSError, ValueError):  # a sandbox may forbid it
            return False
        self._set = frozenset(cpus)
        self._before = None  # what was measured before says nothing about the new place
        return True


def _allowed_cpus() -> frozenset[int]:
    """The CPUs among which we may choose: none if they were chosen from outside (taskset, a cpuset)."""
    if sys.platform != "linux":
        return frozenset()
    with suppress(OSError):
        allowed = os.sched_getaffinity(0)
        return frozenset(allowed if len(allowed) == os.cpu_count() else ())
    return frozenset()


class CpuSample(NamedTuple):
    """What the kernel says of the CPUs and of us, in seconds since some time in the past."""

    at: float
    busy: Mapping[int, float]
    """CPU -> how long it was busy, with whatever."""
    own: float
    """CPU time of this process."""
    threads: Mapping[int, tuple[float, float]]
    """Of some of our threads: how long it ran, and how long it could have run and waited for a CPU."""

    def contended(self, before: CpuSample, cpu: int) -> bool:
        """Do our threads, which may run on this CPU only, wait for others there?

        Both are needed: threads of ours also wait for each other, and others may run while we have nothing to do.
        """
        own = self.own - before.own
        others = self._busy_since(before, cpu) - own
        least = SIGNIFICANT_SHARE * (self.at - before.at)
        return others > least and self._waited_s(before, own) > least

    def free(self, before: CpuSample, cpus: Collection[int]) -> list[int]:
        """The CPUs on which we would be nearly alone, all about equally good; none while our threads wait for CPUs.

        We have run on one of them: that much of its load may have been ours.
        """
        lasted, own = self.at - before.at, self.own - before.own
        busy = {cpu: self._busy_since(before, cpu) for cpu in cpus if cpu in self.busy and cpu in before.busy}
        if not busy or self._waited_s(before, own) > SIGNIFICANT_SHARE * lasted:
            return []
        bound = min(min(busy.values()), own) + SIMILAR_LOAD_SHARE * lasted
        return [cpu for cpu, used in busy.items() if used <= bound]

    def _busy_since(self, before: CpuSample, cpu: int) -> float:
        return self.busy.get(cpu, 0.0) - before.busy.get(cpu, 0.0)

    def _waited_s(self, before: CpuSample, own: float) -> float:
        """How long all of our threads together waited: as the ones did that were looked at, by what they ran."""
        both = [(now, before.threads[thread]) for thread, now in self.threads.items() if thread in before.threads]
        ran = sum(now[0] - then[0] for now, then in both)
        waited = sum(now[1] - then[1] for now, then in both)
        return waited * max(own / ran, 1.0) if ran > 0 else waited


def read_cpu_sample(proc: Path) -> CpuSample | None:
    """The kernel's figures of now; None where it does not give them.

    Sources: https://man7.org/linux/man-pages/man5/proc_stat.5.html and
    https://docs.kernel.org/scheduler/sched-stats.html (/proc/<pid>/schedstat).
    """
    threads: dict[int, tuple[float, float]] = {}
    try:
        for thread in itertools.islice(threading.enumerate(), SAMPLED_THREADS):
            if thread.native_id is not None:
                with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    text = (proc / "self" / "task" / str(thread.native_id) / "schedstat").read_text("ascii")
                    ran, waited, _ = text.split()
                    threads[thread.native_id] = int(ran) / 1e9, int(waited) / 1e9
        lines = (proc / "stat").read_text("ascii").splitlines()
        busy = dict(_parse_busy_s(line) for line in lines if line.startswith("cpu") and line[3:4].isdigit())
    except (OSError, ValueError, IndexError):
        return None
    if not threads or not any(busy.values()):
        return None
    return CpuSample(time.monotonic(), busy, time.process_time(), threads)


def _parse_busy_s(line: str) -> tuple[int, float]:
    """CPU, and its user, nice, system, irq, softirq and steal time; guest time is in user already."""
    name, *ticks = line.split()
    used = sum(int(ticks[column]) for column in (0, 1, 2, 5, 6, 7))
    return int(name[3:]), used / os.sysconf("SC_CLK_TCK")
