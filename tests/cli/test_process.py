"""What the controller's process asks for, seen in a process of its own: it cannot be taken back."""

from __future__ import annotations

import sys

import pytest

from tests.cli.conftest import printed_by

ASK = """
import ctypes, gc, threading
from ottoscaler.cli import process
process.prepare({workers})
print(gc.get_freeze_count() > 1000, gc.get_threshold()[0], threading.stack_size())
threading.Thread(target=print).start()  # a process with one thread has no table yet
print(ctypes.CDLL(None).prctl(78, 2, 0, 0, 0))
"""


def answers(workers: int) -> list[str]:
    """What the process says of itself after it was prepared for so many workers."""
    return printed_by(ASK.format(workers=workers)).split()


def test_the_collector_leaves_the_libraries_alone_and_stacks_are_small() -> None:
    """Cycles are looked for seldom, and never in what was imported."""
    assert answers(1)[:3] == ["True", "10000", str(512 * 1024)]


@pytest.mark.parametrize(("workers", "slots"), [(1, 2), (1000, 1024), (8000, 8192), (10_000, 16384)])
def test_there_is_a_place_for_each_thread_that_waits(workers: int, slots: int) -> None:
    """By the kernel's own word."""
    told = answers(workers)[3]
    if told == "-1":
        pytest.skip("this kernel has no futex hash of its own for a process: Linux 6.16 has")
    assert int(told) == slots


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its CPUs")
@pytest.mark.parametrize(
    ("there", "left"),
    [("allowed", "1"), ("allowed + 1", "allowed")],
    ids=["all are ours", "somebody has chosen some for us"],
)
def test_all_threads_stay_on_one_cpu_unless_somebody_has_chosen(there: str, left: str) -> None:
    """A thread inherits what the main thread asked for."""
    code = f"""
import os, threading
allowed = len(os.sched_getaffinity(0))
os.cpu_count = lambda: {there}
from ottoscaler.cli import process
process.prepare(1)
threading.Thread(target=lambda: print(len(os.sched_getaffinity(0)) == {left})).start()
"""
    assert printed_by(code).strip() == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its CPUs")
@pytest.mark.parametrize("refusal", ["PermissionError(1, 'not here')", "ValueError('negative CPU number')"])
def test_a_sandbox_that_does_not_let_us_choose_is_no_reason_not_to_start(refusal: str) -> None:
    """The second is what Python says of CPU -1, which is the kernel's for: not told."""
    code = f"""
import os
def refuse(*asked):
    raise {refusal}
os.sched_setaffinity = refuse
os.cpu_count = lambda: len(os.sched_getaffinity(0))
from ottoscaler.cli import process
process.prepare(1)
print("started")
"""
    assert printed_by(code).strip() == "started"
