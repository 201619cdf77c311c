"""What a worker costs does not depend on how many there are: counted in lines of code that are executed, which are the
same on every machine.

All workers of one event live at once. Code that looks at all pods for each pod multiplies the cost of a worker with
the number of workers.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import ottoscaler
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

_PACKAGE = str(Path(ottoscaler.__file__).parent)
_COUNTED = tuple(f"{_PACKAGE}/{layer}/" for layer in ("flow", "core"))
#: The lease thread and its sisters tick meanwhile, and the last few waiters may look twice.
_LINEAR = 1.2
#: 2,390 to 2,650 when last counted, of 80 workers, with the ticks of loops on a busy machine: turns by priority, the
#: outputs, not_after and the concurrency keys brought about 400. More is a decision.
_LINES = 3000


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Count the lines of flow and core that are executed in threads started within: each turn of a loop is one."""
    numbers = itertools.count()
    seen = [0]

    def note(_frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            seen[0] = next(numbers)
        return note

    def choose(frame: FrameType, _event: str, _argument: Any) -> Any:
        return note if frame.f_code.co_filename.startswith(_COUNTED) else None

    before = threading.gettrace()
    threading.settrace(choose)
    try:
        yield lambda: seen[0]
    finally:
        threading.settrace(before)  # type: ignore[arg-type]


def lines_for(workers: int) -> tuple[float, dict[str, float]]:
    """Lines per worker of one event of so many, and its scripts in Redis."""
    with (
        counted() as lines,
        SimulatedController(
            FakeServers(SystemClock()), threads=ALL, auto=lambda _name: None, MAX_WORKERS=workers
        ) as controller,
    ):
        event_id = controller.send(pod_count=workers)
        pods = [controller.name(event_id, index) for index in range(1, workers + 1)]
        eventually(lambda: controller.registry.owned_live_count == workers, 20, "all to live")
        for pod in pods:
            controller.cluster.succeed(pod)
        controller.results(1, "task")
        eventually(lambda: not controller.cluster.names(), 20, "all to be deleted")
        scripts = {
            name: controller.redis.calls[name] / workers
            for name in ("store_attempt", "mark_pod_seen", "record_result", "store_termination", "clear_termination")
        }
        assert [controller.calls(verb) for verb in ("create", "delete", "get")] == [workers, workers, 0]
        return lines() / workers, scripts


@pytest.fixture(scope="module")
def costs() -> dict[int, tuple[float, dict[str, float]]]:
    """The same for one number of workers and for five times as many."""
    return {workers: lines_for(workers) for workers in (80, 400)}


def test_lines_per_worker_do_not_grow(costs: dict[int, tuple[float, dict[str, float]]]) -> None:
    """Five times as many workers cost five times as much."""
    few, many = costs[80][0], costs[400][0]
    print(f"lines per worker: {few:.0f} of 80, {many:.0f} of 400")
    assert many < few * _LINEAR
    assert few < _LINES


@pytest.mark.full
def test_scripts_per_worker(costs: dict[int, tuple[float, dict[str, float]]]) -> None:
    """One before the pod, one after it and one for the result."""
    assert (
        costs[80][1]
        == costs[400][1]
        == {"store_attempt": 1, "mark_pod_seen": 1, "record_result": 1, "store_termination": 0, "clear_termination": 0}
    )
