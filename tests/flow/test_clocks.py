"""Servers with wrong clocks, or with clocks set while workers run: no worker is ended early, and none is kept."""

from __future__ import annotations

import pytest

from ottoscaler.ports import Clock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract


class Shifted:
    """A server's clock: ours, off by a number of seconds. `ports.Clock`; any thread."""

    def __init__(self, clock: Clock, off_s: float) -> None:
        self._clock = clock
        self.off_s = off_s

    def now(self) -> float:
        return self._clock.now() + self.off_s

    def wall_time(self, at: float) -> float:
        return at + self.off_s


@pytest.mark.parametrize("off_s", [-4200.0, -1.0, 1.0, 4200.0])
@pytest.mark.parametrize("step_s", [-4200.0, 0.0, 4200.0])
class TestKubernetes:
    """API server and node share a clock here, which is not ours."""

    @contract("2.WORKER_DEADLINE_S")
    @contract("2.PENDING_TIMEOUT_S")
    def test_a_worker_has_its_time(self, off_s: float, step_s: float) -> None:
        """Pending, running, and past its deadline, where the kubelet does nothing."""
        servers = FakeServers()
        servers.kubernetes.clock = clock = Shifted(servers.clock, off_s)
        with SimulatedController(servers, threads=["watch"], PENDING_TIMEOUT_S=60, WORKER_DEADLINE_S=100) as controller:
            pod = controller.pod(controller.accept())
            controller.pass_time(59)
            controller.cluster.run(pod)
            controller.wait_seen(pod, lambda seen: seen.started_at)
            clock.off_s += step_s
            controller.pass_time(129)
            assert (controller.calls("delete"), controller.redis.results()) == (0, [])
            controller.pass_time(1)
            eventually(lambda: controller.calls("delete"))
            controller.cluster.kill(pod)
            assert controller.result()["reason"] == "DeadlineExceeded"

    @contract("5.PodDeleted")
    def test_a_deletion_from_outside_is_recognised(self, off_s: float, step_s: float) -> None:
        """By what was seen first."""
        servers = FakeServers()
        servers.kubernetes.clock = clock = Shifted(servers.clock, off_s)
        with SimulatedController(servers, threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.run(pod)
            controller.wait_seen(pod, lambda seen: seen.started_at)
            controller.cluster.delete_by_user(pod)
            controller.wait_seen(pod, lambda seen: seen.deleting)
            clock.off_s += step_s
            controller.cluster.kill(pod)
            assert controller.result()["reason"] == "PodDeleted"


@contract("2.TASK_TTL_S")
@pytest.mark.parametrize("off_s", [-(10.0**6), -4200.0, 4200.0])
def test_the_result_of_a_node_that_lives_in_the_past_is_not_thrown_away(off_s: float) -> None:
    """Redis was wiped; the pod has just finished, whatever its node's clock says."""
    servers = FakeServers()
    servers.kubernetes.clock = Shifted(servers.clock, off_s)
    with SimulatedController(servers, threads=["watch"]) as dead:
        event_id = dead.accept(pod_count=1)
        dead.pod(event_id)
    servers.redis.flush()
    with SimulatedController(servers, threads=["watch", "lease"], TASK_TTL_S=3600) as controller:
        name = controller.name(event_id)
        controller.cluster.run(name)
        controller.cluster.succeed(name)
        controller.sees(name, lambda seen: seen.finished)
        controller.reconciler.reconcile()
        controller.wait_and_look(controller.lease_s)
        controller.reconciler.reconcile()
        controller.wait_and_look(5)
        assert controller.result()["reason"] == "Completed"


@pytest.mark.parametrize("off_s", [-4200.0, 0.0, 4200.0])
def test_the_age_of_an_event_is_real(off_s: float) -> None:
    """The wait in the stream by Redis's clock, the wait for room by ours: never the difference of the two clocks."""
    servers = FakeServers()
    servers.redis.clock = Shifted(servers.clock, off_s)
    with SimulatedController(servers, threads=["watch"], MAX_WORKERS=1) as controller:
        controller.send(event_id="a")
        controller.send(event_id="b")
        controller.pass_time(7)
        controller.intake.accept_entries(controller.stream.read_now(100))
        pod = controller.pod("a")
        controller.pass_time(20)
        controller.cluster.vanish(pod)
        controller.pod("b")
        waits = controller.metrics.event_to_create_seconds.collect()[0].samples
        (total,) = [sample.value for sample in waits if sample.name.endswith("_sum")]
        assert total == pytest.approx(7 + 27, abs=0.01)
