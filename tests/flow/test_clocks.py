"""Servers whose clocks are wrong, or are set while workers run: nobody is ended early, nobody kept."""

from __future__ import annotations

import pytest

from ottoscaler.ports import Clock
from tests.fakes.wait import eventually
from tests.flow.rig import Rig, World

contract = pytest.mark.contract


class Shifted:
    """A server's clock: ours, off by so much. `ports.Clock`; any thread."""

    def __init__(self, clock: Clock, off_s: float) -> None:
        self._clock = clock
        self.off_s = off_s

    def now(self) -> float:
        return self._clock.now() + self.off_s

    def wall(self, at: float) -> float:
        return at + self.off_s


@pytest.mark.parametrize("off_s", [-4200.0, -1.0, 1.0, 4200.0])
@pytest.mark.parametrize("step_s", [-4200.0, 0.0, 4200.0])
class TestKubernetes:
    """API server and node share a clock here, which is not ours."""

    @contract("2.WORKER_DEADLINE_S")
    @contract("2.PENDING_TIMEOUT_S")
    def test_a_worker_has_its_time(self, off_s: float, step_s: float) -> None:
        """Pending, running, and past its deadline, where the kubelet does nothing."""
        world = World()
        world.kubernetes.clock = clock = Shifted(world.clock, off_s)
        with Rig(world, threads=["watch"], PENDING_TIMEOUT_S=60, WORKER_DEADLINE_S=100) as rig:
            pod = rig.pod(rig.accept())
            rig.pass_time(59)
            rig.cluster.run(pod)
            rig.hears(pod, lambda seen: seen.started_at)
            clock.off_s += step_s
            rig.pass_time(129)
            assert (rig.calls("delete"), rig.redis.results()) == (0, [])
            rig.pass_time(1)
            eventually(lambda: rig.calls("delete"))
            rig.cluster.kill(pod)
            assert rig.result()["reason"] == "DeadlineExceeded"

    @contract("5.PodDeleted")
    def test_somebodys_deletion_is_known_as_one(self, off_s: float, step_s: float) -> None:
        """By what was seen first."""
        world = World()
        world.kubernetes.clock = clock = Shifted(world.clock, off_s)
        with Rig(world, threads=["watch"]) as rig:
            pod = rig.pod(rig.accept())
            rig.cluster.run(pod)
            rig.hears(pod, lambda seen: seen.started_at)
            rig.cluster.delete_by_user(pod)
            rig.hears(pod, lambda seen: seen.deleting)
            clock.off_s += step_s
            rig.cluster.kill(pod)
            assert rig.result()["reason"] == "PodDeleted"


@contract("2.TASK_TTL_S")
@pytest.mark.parametrize("off_s", [-(10.0**6), -4200.0, 4200.0])
def test_the_result_of_a_node_that_lives_in_the_past_is_not_thrown_away(off_s: float) -> None:
    """Redis was wiped; the pod has just finished, whatever its node's clock says."""
    world = World()
    world.kubernetes.clock = Shifted(world.clock, off_s)
    with Rig(world, threads=["watch"]) as dead:
        event_id = dead.accept(pod_count=1)
        dead.pod(event_id)
    world.redis.flush()
    with Rig(world, threads=["watch", "lease"], TASK_TTL_S=3600) as rig:
        name = rig.name(event_id)
        rig.cluster.run(name)
        rig.cluster.succeed(name)
        rig.sees(name, lambda seen: seen.finished)
        rig.reconciler.once()
        rig.wait_and_look(rig.parts.lease_s)
        rig.reconciler.once()
        rig.wait_and_look(5)
        assert rig.result()["reason"] == "Completed"


@pytest.mark.parametrize("off_s", [-4200.0, 0.0, 4200.0])
def test_the_age_of_an_event_is_real(off_s: float) -> None:
    """The wait in the stream by Redis's clock, the wait for room by ours: never the difference of the two clocks."""
    world = World()
    world.redis.clock = Shifted(world.clock, off_s)
    with Rig(world, threads=["watch"], MAX_WORKERS=1) as rig:
        rig.send(event_id="a")
        rig.send(event_id="b")
        rig.pass_time(7)
        rig.intake.absorb(rig.stream.read_now(100))
        pod = rig.pod("a")
        rig.pass_time(20)
        rig.cluster.vanish(pod)
        rig.pod("b")
        waits = rig.metrics.event_to_create_seconds.collect()[0].samples
        (total,) = [sample.value for sample in waits if sample.name.endswith("_sum")]
        assert total == pytest.approx(7 + 27, abs=0.01)
