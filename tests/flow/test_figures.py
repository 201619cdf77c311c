"""The figures while the flow works: right, and no more of them however much passes through."""

from __future__ import annotations

import pytest

from ottoscaler.errors import ClusterUnavailable
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import SimulatedController
from tests.test_metrics import samples

BATCH = 500


def test_gauges_are_asked_for_at_each_look() -> None:
    """Live pods of our tasks, and workers that wait for a thread."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=2) as controller:
        controller.metrics.register_gauges(
            live_pods=lambda: controller.registry.owned_live, ready_workers=lambda: controller.ledger.thread_counts()[1]
        )
        assert samples(controller.metrics)["ottoscaler_live_pods",] == 0
        event_id = controller.accept(pod_count=5)
        controller.pod(event_id, 1)
        controller.pod(event_id, 2)
        found = samples(controller.metrics)
        assert (found["ottoscaler_live_pods",], found["ottoscaler_ready_workers",]) == (2, 3)


@pytest.mark.parametrize("events", [1000, pytest.param(10_000, marks=pytest.mark.full)])
def test_no_text_from_outside_makes_a_series(events: int) -> None:
    """Events that all differ, good and bad; some are carried out, with failures of the servers."""
    with SimulatedController(
        threads=["watch"], auto=True, MAX_WORKERS=4, READ_AHEAD=1000, TASK_TTL_S=10**8
    ) as controller:
        before = samples(controller.metrics).keys()
        controller.servers.kubernetes.refuse_next(
            "create", ClusterUnavailable("a secret of the server", unclear=False), times=2
        )
        for start in range(0, events, BATCH):
            for number in range(start, start + BATCH):
                odd = {"pod_count": f"many-{number}"} if number % 100 else {}
                controller.send(
                    task_id=f"task-{number}", reason=f"reason {number}", **{f"field_{number}": number}, **odd
                )
            controller.intake.accept_entries(controller.stream.read_now(BATCH))
            controller.pass_time(5)  # a worker that was refused tries again

        def ended() -> bool:
            controller.pass_time(5)  # one may have been refused after the last batch, and pauses by this clock
            return len(controller.redis.results("worker")) >= events // 100

        eventually(ended, what="all results")
        after = samples(controller.metrics)
        assert after["ottoscaler_dead_letters_total", "Invalid"] == events - events // 100
        assert after["ottoscaler_workers_finished_total", "succeeded"] == events // 100
        assert after.keys() == before
