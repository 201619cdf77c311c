"""What the controller's process asks for, seen in a process of its own: it cannot be taken back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ottoscaler.cli import process_tuning
from ottoscaler.cli.process_tuning import CpuSample, read_cpu_sample
from tests.cli.conftest import SCRIPT, printed_by

ASK = """
import ctypes, gc, threading
from ottoscaler.cli import process_tuning
process_tuning.tune_process({workers})
print(gc.get_freeze_count() > 1000, gc.get_threshold()[0], threading.stack_size())
threading.Thread(target=print).start()  # a process with one thread has no table yet
print(ctypes.CDLL(None).prctl(78, 2, 0, 0, 0))
"""


def answers(workers: int) -> list[str]:
    """What the process says of itself after it was prepared for so many workers."""
    return printed_by(ASK.format(workers=workers)).split()


def test_the_collector_leaves_the_libraries_alone_and_stacks_are_small() -> None:
    """Cycles are looked for rarely, and never in what was imported."""
    assert answers(1)[:3] == ["True", "10000", str(512 * 1024)]


@pytest.mark.parametrize(("workers", "slots"), [(1, 2), (1000, 1024), (8000, 8192), (10_000, 16384)])
def test_there_is_a_place_for_each_thread_that_waits(workers: int, slots: int) -> None:
    """By the kernel's own word."""
    answer = answers(workers)[3]
    if answer == "-1":
        pytest.skip("this kernel has no futex hash of its own for a process: Linux 6.16 has")
    assert int(answer) == slots


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its CPUs")
needs_two = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this machine has one CPU")


def sample(at: float, busy: Sequence[float], own: float = 0, *threads: tuple[float, float]) -> CpuSample:
    """What the kernel says; the CPUs are 0, 1, ..., and so are our threads."""
    return CpuSample(at, dict(enumerate(busy)), own, dict(enumerate(threads)))


#: Within ten seconds: busy with whatever, our own part, and how long our two threads ran and waited.
@pytest.mark.parametrize(
    ("busy", "own", "threads", "contended"),
    [
        (10, 5, [(2, 2), (3, 3)], True),
        (10, 2, [(2, 8), (0, 0)], True),
        (10, 10, [(5, 9), (5, 9)], False),
        (6, 5, [(5, 0.4), (0, 0)], False),
        (10, 0, [(0, 0), (0, 0)], False),
        (10, 5, [(0.1, 0.1), (0, 0)], True),
        (9, 5, [], False),
    ],
    ids=["shared", "starved", "alone", "hardly", "idle", "seen in part", "unseen"],
)
def test_a_cpu_is_let_go_where_we_wait_for_others(
    busy: float, own: float, threads: list[tuple[float, float]], contended: bool
) -> None:
    """Not where our threads only wait for each other, nor where others run while we have nothing to do."""
    before = sample(100, [50, 50], 7, *[(1, 1)] * len(threads))
    after = sample(110, [50 + busy, 50], 7 + own, *[(1 + ran, 1 + waited) for ran, waited in threads])
    assert after.contended(before, 0) is contended


@pytest.mark.parametrize(
    ("busy", "own", "waited", "free"),
    [
        ([0, 0], 0, 0, [0, 1]),
        ([10, 0], 0, 0, [1]),
        ([9, 8.5], 0, 0, []),
        ([5, 0], 5, 0, [1]),
        ([5, 5], 5, 0, [0, 1]),
        ([10, 10], 5, 0, []),
        ([0, 0], 0, 2, []),
        ([0.5, 0], 0, 0, [0, 1]),
        ([2, 0, 8, 0.2], 0.3, 0, [1, 3]),
    ],
)
def test_a_cpu_is_chosen_on_which_we_are_nearly_alone(
    busy: list[float], own: float, waited: float, free: list[int]
) -> None:
    """One of the least busy ones, and none while our threads wait for CPUs."""
    before = sample(0, [0] * len(busy), 0, (0, 0))
    assert sample(10, busy, own, (own, waited)).free(before, range(len(busy))) == free


@linux
def test_the_kernel_has_the_figures() -> None:
    """Our time on a CPU grows by what we do, and so does that of the CPUs."""
    before = read_cpu_sample(Path("/proc"))
    if before is None:
        pytest.skip("this kernel does not tell how long threads wait")
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = read_cpu_sample(Path("/proc"))
    assert after is not None
    main = threading.main_thread().native_id
    assert main is not None
    assert 0.2 < after.own - before.own < 5
    assert after.threads[main][0] - before.threads[main][0] > 0.2
    assert sum(after.busy.values()) - sum(before.busy.values()) > 0.2


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"stat": "cpu  1 1 1 1 1 1 1 1\ncpu0 1 1 1 1 1 1 1 1\n"},
        {"schedstat": "1 1 1\n"},
        {"schedstat": "1 1 1\n", "stat": ""},
        {"schedstat": "1 1 1\n", "stat": "cpu0 0 0 0 0 0 0 0 0\n"},
        {"schedstat": "0 0\n", "stat": "cpu0 1 1 1 1 1 1 1 1\n"},
        {"schedstat": "1 1 1\n", "stat": "cpu0 1 1\n"},
        {"schedstat": "1 1 x\n", "stat": "cpu0 a 1 1 1 1 1 1 1\n"},
    ],
)
def test_without_the_kernels_figures_no_cpu_is_chosen(tmp_path: Path, files: dict[str, str]) -> None:
    """No /proc, or a sandbox's that says nothing: what cannot be seen to cost something must not be done."""
    for thread in threading.enumerate():
        (tmp_path / "self" / "task" / str(thread.native_id)).mkdir(parents=True)
        if "schedstat" in files:
            (tmp_path / "self" / "task" / str(thread.native_id) / "schedstat").write_text(files["schedstat"])
    if "stat" in files:
        (tmp_path / "stat").write_text(files["stat"])
    assert read_cpu_sample(tmp_path) is None
    before = _affinity()
    waits: list[float | None] = []

    def wait(seconds: float | None) -> bool:
        waits.append(seconds)
        return seconds is None

    process_tuning.CpuPinning(tmp_path).run(wait)
    assert (waits, _affinity()) == ([None], before)


def _affinity() -> object:
    return os.sched_getaffinity(0) if sys.platform == "linux" else None


#: `there`: how many CPUs the machine seems to have; `calm`: what the kernel says of them.
PIN = """
import os, threading
from ottoscaler.cli import process_tuning
allowed = len(os.sched_getaffinity(0))
os.cpu_count = lambda: {there}
at = iter(range(1000))
idle = dict.fromkeys(range(allowed), 1.0)
process_tuning.read_cpu_sample = lambda proc: process_tuning.CpuSample(next(at), idle, 0.0, {{1: (1.0, 0.0)}})
{before}
process_tuning.tune_process(1)
go_on = threading.Event()
older = threading.Thread(target=lambda: go_on.wait() and print(len(os.sched_getaffinity(0)) == {left}))
older.start()
one = process_tuning.CpuPinning()
one.run(lambda seconds: seconds is None or next(at) > 20)
print(len(os.sched_getaffinity(0)) == {left})
go_on.set()
older.join()
threading.Thread(target=lambda: print(len(os.sched_getaffinity(0)) == {left})).start()
"""


@linux
@needs_two
@pytest.mark.parametrize(
    ("there", "left"),
    [("allowed", "1"), ("allowed + 1", "allowed")],
    ids=["all are ours", "somebody has chosen some for us"],
)
def test_all_threads_move_to_one_cpu_unless_one_was_chosen(there: str, left: str) -> None:
    """Those that are there, and those that come."""
    assert printed_by(PIN.format(there=there, left=left, before="")).split() == ["True"] * 3


@linux
@needs_two
@pytest.mark.parametrize(
    "before",
    [
        "def refuse(*asked): raise PermissionError(1, 'not here')\nos.sched_setaffinity = refuse",
        "def refuse(*asked): raise ValueError('negative CPU number')\nos.sched_setaffinity = refuse",
        "process_tuning._allowed_cpus = lambda: frozenset({0})",
    ],
    ids=["forbidden", "not said", "one CPU"],
)
def test_where_it_may_not_choose_it_runs_where_it_is_put(before: str) -> None:
    """A sandbox, or a cpuset of one CPU."""
    assert printed_by(PIN.format(there="allowed", left="allowed", before=before)).split() == ["True"] * 3


@linux
@needs_two
def test_a_process_moved_from_outside_stays_there() -> None:
    """An operator's taskset at run time wins."""
    code = """
import os
from ottoscaler.cli import process_tuning
at = iter(range(1000))
calm = dict.fromkeys(range(os.cpu_count()), 1.0)
process_tuning.read_cpu_sample = lambda proc: process_tuning.CpuSample(next(at), calm, 0.0, {1: (1.0, 0.0)})
one = process_tuning.CpuPinning()
os.sched_setaffinity(0, {1})
print(one.step(), one.step(), os.sched_getaffinity(0))
"""
    assert printed_by(code).strip() == "True False {1}"


#: A controller's stand-in: idle at first, then busy on a signal, in a few threads that share the interpreter.
BUSY = """
import os, sys, threading, time
os.sched_setaffinity(0, {0, 1})
os.cpu_count = lambda: 2
from ottoscaler.cli import process_tuning
process_tuning.tune_process(100)
start = float(sys.argv[1])
one = process_tuning.CpuPinning()
one._pin_threads({int(cpu) for cpu in sys.argv[3].split(",")})
threading.Thread(target=one.run, args=(threading.Event().wait,), daemon=True).start()
def burn():
    while time.time() < start:
        time.sleep(0.01)
    end = start + float(sys.argv[2])
    while time.time() < end:
        sum(range(1000))
threads = [threading.Thread(target=burn) for _ in range(2)]
for each in threads: each.start()
while time.time() < start:
    time.sleep(0.01)
pinned, before = len(os.sched_getaffinity(0)), time.process_time()
for each in threads: each.join()
print(pinned, time.process_time() - before)
"""


def test_a_process_that_waits_on_its_cpu_may_use_all_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it does not try the next one at once."""
    looks = iter([sample(0, [0, 0]), sample(10, [10, 0], 5, (0, 0)), sample(11, [11, 0], 6, (0, 0))])
    monkeypatch.setattr(process_tuning, "read_cpu_sample", lambda _proc: next(looks))
    monkeypatch.setattr(CpuSample, "contended", lambda *_: True)
    one = process_tuning.CpuPinning()
    one._all, one._set = frozenset({0, 1}), frozenset({0})
    moves: list[set[int]] = []
    monkeypatch.setattr(one, "_pin_threads", lambda cpus: not moves.append(set(cpus)))
    assert [one.step(), one.step()] == [True, True]
    assert moves == [{0, 1}]
    one._set = one._all
    assert one.step()
    assert moves == [{0, 1}]


@linux
@needs_two
@pytest.mark.real  # it measures CPU time, so no other suite may run beside it
@pytest.mark.timeout(90)
@pytest.mark.parametrize("cpus", [["0,1"] * 4, ["0", "0", "0", "1"]], ids=["on both", "three on one"])
def test_four_controllers_on_two_cpus_have_a_fair_share_each(cpus: list[str]) -> None:
    """Within 10 %, though most of them have chosen the same CPU while they were idle. What others run takes its part of
    all alike; with much of that, it is tried again.
    """
    for _ in range(3):
        shares = _shares(cpus, busy_s=12)
        fair = sum(shares) / len(shares)
        if all(abs(share - fair) <= 0.1 * fair for share in shares):
            return
    pytest.fail(f"CPU seconds of each: {shares}")


def _shares(cpus: Sequence[str], busy_s: float) -> list[float]:
    command = [sys.executable, "-c", BUSY, str(time.time() + 2), str(busy_s)]
    running = [
        subprocess.Popen([*command, each], stdout=subprocess.PIPE, text=True, cwd=SCRIPT.parent) for each in cpus
    ]
    lines = [each.communicate(timeout=60)[0].split() for each in running]
    return [float(line[1]) for line in lines]
