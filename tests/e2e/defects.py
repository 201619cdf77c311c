"""The controller with a defect to order: `python -m tests.e2e.defects die:reader` dies, or hangs, in a loop at SIGUSR1;
`hasty` never pauses for long. What production runs has no such switch.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ottoscaler.cli import run
from ottoscaler.flow.control import ScaleDownProcessor
from ottoscaler.flow.dispatch import WorkerDispatcher
from ottoscaler.flow.intake import StreamReader
from ottoscaler.flow.lease import LeaseKeeper
from ottoscaler.flow.reconciler import Reconciler
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.stop import StopSignal
from ottoscaler.flow.takeover import TakeOver
from ottoscaler.flow.worker import WorkerRunner

#: A method that its loop calls again and again; the watch's with each pod.
LOOPS = {
    "watch": (PodRegistry, "publish"),
    "reader": (StreamReader, "step"),
    "control": (ScaleDownProcessor, "look_ahead"),
    "scale-down": (ScaleDownProcessor, "step"),
    "dispatch": (WorkerDispatcher, "step"),
    "lease": (LeaseKeeper, "step"),
    "takeover": (TakeOver, "step"),
    "reconciler": (Reconciler, "reconcile"),
}
#: The same, and what a worker calls with each step: a defect of that ends no process.
STEPS = {**LOOPS, "worker": (WorkerRunner, "_carry_out")}
#: Longest pause of a hasty controller, seconds.
HASTE_S = 0.02


class _Hasty(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(timeout if timeout is None else min(timeout, HASTE_S))


class HastyStop(StopSignal):
    """All pauses of the controller are waits on this."""

    def __init__(self) -> None:
        super().__init__()
        self.event = _Hasty()


def _die() -> None:
    raise RuntimeError("a defect, to order")


def _hang() -> None:
    threading.Event().wait()


def arrange(loop: str, defect: Callable[[], None]) -> None:
    """From SIGUSR1 on, the next step of this loop is the defect."""
    ordered = threading.Event()
    owner, name = STEPS[loop]
    step = getattr(owner, name)

    @wraps(step)
    def changed(*arguments: Any, **options: Any) -> Any:
        if ordered.is_set():
            defect()
        return step(*arguments, **options)

    def order(_number: int, _frame: FrameType | None) -> None:
        ordered.set()

    setattr(owner, name, changed)
    signal.signal(signal.SIGUSR1, order)


def main(words: list[str]) -> int:
    """Run the controller so; its exit code."""
    for word in words:
        kind, _, loop = word.partition(":")
        if kind == "hasty":
            run.StopSignal = HastyStop  # type: ignore[misc]
        else:
            arrange(loop, {"die": _die, "hang": _hang}[kind])
    return run.main([])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
