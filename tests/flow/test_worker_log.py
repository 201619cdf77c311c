"""What the log says of a worker that is tried again: which attempt ended, how, and which retry of how many follows."""

from __future__ import annotations

import pytest

from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import SimulatedController


def test_a_retry_after_an_eviction_has_its_reason_and_number(log: Lines) -> None:
    """The line names both pods, the verdict with its message, and the limit."""
    with SimulatedController(threads=["watch"], INFRA_RETRIES=3) as controller:
        event_id = controller.accept()
        first = controller.pod(event_id)
        controller.cluster.end_pod(first, "Evicted", "the node was low on memory")
        (line,) = eventually(lambda: log.of("worker.retried"), what="the retry")
    expected = f"Worker pod {first} ended: Evicted (the node was low on memory"
    assert line.startswith(expected)
    assert line.endswith(f"; retry 1 of 3 as {first}-r2")


@pytest.mark.parametrize("code", [1, 3])
def test_a_retry_after_the_workers_own_failure_counts_its_own_limit(log: Lines, code: int) -> None:
    """WORKER_RETRIES, not INFRA_RETRIES."""
    with SimulatedController(threads=["watch"], WORKER_RETRIES=1) as controller:
        event_id = controller.accept()
        first = controller.pod(event_id)
        controller.cluster.run(first)
        controller.cluster.fail(first, code)
        (line,) = eventually(lambda: log.of("worker.retried"), what="the retry")
    assert f"ended: Error (the worker exited with code {code}" in line
    assert line.endswith(f"; retry 1 of 1 as {first}-r2")
