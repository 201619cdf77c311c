"""The figures while the flow works: right, and no more of them however much passes through."""

from __future__ import annotations

from ottoscaler.errors import ClusterUnavailable
from tests.flow.rig import Rig
from tests.test_metrics import samples

EVENTS = 10_000
BATCH = 500


def test_gauges_are_asked_for_at_each_look() -> None:
    """Live pods of our tasks, and workers that wait for a thread."""
    with Rig(threads=["watch"], MAX_WORKERS=2) as rig:
        rig.metrics.show(live_pods=lambda: rig.registry.owned_live, ready_workers=lambda: rig.ledger.counts()[1])
        assert samples(rig.metrics)["ottoscaler_live_pods",] == 0
        event_id = rig.accept(pod_count=5)
        rig.pod(event_id, 1)
        rig.pod(event_id, 2)
        found = samples(rig.metrics)
        assert (found["ottoscaler_live_pods",], found["ottoscaler_ready_workers",]) == (2, 3)


def test_no_text_from_outside_makes_a_series() -> None:
    """Ten thousand events, all of them different, good and bad; some are carried out, with failures of the servers."""
    with Rig(threads=["watch"], auto=True, MAX_WORKERS=4, READ_AHEAD=1000, TASK_TTL_S=10**8) as rig:
        before = samples(rig.metrics).keys()
        rig.world.kubernetes.refuse_next("create", ClusterUnavailable("a secret of the server", unclear=False), times=2)
        for start in range(0, EVENTS, BATCH):
            for number in range(start, start + BATCH):
                odd = {"pod_count": f"many-{number}"} if number % 100 else {}
                rig.send(task_id=f"task-{number}", reason=f"reason {number}", **{f"field_{number}": number}, **odd)
            rig.intake.absorb(rig.stream.read_now(BATCH))
            rig.pass_time(5)  # whoever was refused tries again
        rig.results(EVENTS // 100)
        after = samples(rig.metrics)
        assert after["ottoscaler_dead_letters_total", "Invalid"] == EVENTS - EVENTS // 100
        assert after["ottoscaler_workers_finished_total", "succeeded"] == EVENTS // 100
        assert after.keys() == before
