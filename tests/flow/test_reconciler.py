"""The reconciler: what fell between two steps is put right, and nothing that runs is ever deleted on a guess."""

from __future__ import annotations

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, RedisUnavailable
from ottoscaler.flow.stop import StopSignal
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract


class Turns(StopSignal):
    """No thread pauses on it, and it stops after the given number of pauses."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left

    def wait(self, timeout_s: float | None = None) -> bool:
        self._left -= 1
        return self._left < 0


def left_behind(servers: FakeServers, **fields: object) -> tuple[str, str]:
    """A task left by a controller that died with its pod just created; returns event id and pod name."""
    with SimulatedController(servers, consumer="dead", threads=["watch"]) as first:
        event_id = first.accept(**fields)
        pod = first.pod(event_id)
        first.close(release=False)
    return event_id, pod


def test_a_pod_with_a_result_goes() -> None:
    """Its controller died between the record and the delete."""
    servers = FakeServers()
    event_id, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"]) as controller:
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.sees(pod, lambda seen: seen.finished)
        servers.redis.find(event_id).worker(1).outcome = "succeeded"  # type: ignore[union-attr]
        controller.reconciler.reconcile()
        assert controller.cluster.names() == set()


def test_a_live_pod_of_an_older_attempt_goes() -> None:
    """A higher attempt is stored: no life owns this pod any more."""
    servers = FakeServers()
    event_id, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"]) as controller:
        servers.redis.find(event_id).worker(1).attempt = 2  # type: ignore[union-attr]
        controller.reconciler.reconcile()
        assert controller.calls("delete", pod) == 1


@pytest.mark.parametrize(("attempt", "ends"), [(0, True), (1, True), (2, False)])
def test_a_live_pod_that_is_terminated_is_ended(attempt: int, ends: bool) -> None:
    """Any replica that sees it ends it, whichever replica owns the task: a termination of one attempt ends no other."""
    servers = FakeServers()
    event_id, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"]) as controller:
        termination = Termination(EndReason.SCALED_DOWN, attempt=attempt)
        servers.redis.find(event_id).worker(1).termination = termination  # type: ignore[union-attr]
        controller.reconciler.reconcile()
        assert controller.calls("delete", pod) == ends


def test_a_drain_spares_a_pod_that_has_started() -> None:
    """Only what has not started is ended."""
    servers = FakeServers()
    event_id, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"]) as controller:
        controller.cluster.run(pod)
        controller.sees(pod, lambda seen: seen.started_at is not None)
        controller.stream.store_termination(
            event_id, None, 1, Termination(EndReason.SCALED_DOWN, drain=True, by="down")
        )
        controller.reconciler.reconcile()
        assert controller.calls("delete") == 0


def test_a_drain_spares_a_pod_that_the_live_look_shows_started() -> None:
    """What the watch last reported may be old."""
    servers = FakeServers()
    event_id, pod = left_behind(servers)
    with SimulatedController(servers) as controller:
        controller.registry.replace(controller.cluster.list())
        controller.cluster.run(pod)
        controller.stream.store_termination(
            event_id, None, 1, Termination(EndReason.SCALED_DOWN, drain=True, by="down")
        )
        controller.reconciler.reconcile()
        assert (controller.calls("get", pod), controller.calls("delete")) == (1, 0)


def test_a_terminated_pod_that_has_finished_is_left_for_its_result() -> None:
    """Nothing is deleted before it is recorded."""
    servers = FakeServers()
    event_id, pod = left_behind(servers)
    with SimulatedController(servers) as controller:
        controller.registry.replace(controller.cluster.list())
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.stream.store_termination(event_id, None, 1, Termination(EndReason.SCALED_DOWN))
        controller.reconciler.reconcile()
        assert controller.calls("delete") == 0


def test_a_pod_that_a_thread_follows_is_the_threads() -> None:
    """Whatever there is to do about it."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept()
        controller.pod(event_id)
        controller.stream.store_termination(event_id, None, 1, Termination(EndReason.SCALED_DOWN))
        controller.reconciler.reconcile()
        assert controller.calls("delete") == 0


def test_a_finished_pod_that_waits_for_a_thread_is_recorded() -> None:
    """The pool is full after a take-over: a worker that only needs two writes does not have to wait for it."""
    servers = FakeServers()
    event_id, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"], MAX_WORKERS=1) as controller:
        controller.pod(controller.accept())
        servers.redis.expire_lease(event_id)
        task = controller.stream.take_over(event_id, same_consumer=False)
        assert task is not None
        controller.intake.open_task(task)
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.sees(pod, lambda seen: seen.finished)
        controller.reconciler.reconcile()
        controller.terminator.step()
        assert controller.result()["event_id"] == event_id


def test_an_outage_cuts_the_pass_short_and_no_more(log: Lines) -> None:
    """The thread lives on."""
    with SimulatedController(stop=Turns(2)) as controller:
        controller.registry.replace(controller.cluster.list())
        controller.redis.set_down(True)
        with pytest.raises(RedisUnavailable):
            controller.reconciler.reconcile()
        controller.reconciler.run()
    assert len(log.of("reconciler.outage")) == 2


@pytest.mark.parametrize(
    "trouble",
    [ClusterRejected("the webhook denies it", status=403, reason="Forbidden"), ClusterUnavailable("no answer")],
)
def test_one_pod_that_cannot_be_deleted_is_no_other_pods_trouble(trouble: Exception, log: Lines) -> None:
    """The rest is deleted, what Redis does not know is adopted, and the reconciler counts as done."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead", threads=["watch"], LEASE_S=3) as first:
        kept = [first.accept(event_id=name) for name in ("a", "b", "c")]
        pods = [first.pod(event_id) for event_id in kept]
        unknown = first.accept(event_id="unknown")
        first.pod(unknown)
        first.close(release=False)
    for event_id in kept:
        servers.redis.find(event_id).worker(1).outcome = "failed"  # type: ignore[union-attr]
    del servers.redis.tasks[unknown], servers.redis.leases[unknown]

    def refuse(verb: str, name: str) -> None:
        if verb == "delete" and name == pods[0]:
            raise trouble

    with SimulatedController(servers, threads=["watch"], LEASE_S=3) as controller:
        servers.kubernetes.on_call = refuse
        controller.reconciler.reconcile()
        controller.pass_time(4)
        controller.reconciler.reconcile()
        assert [controller.calls("delete", pod) > 0 for pod in pods] == [False, True, True]
        assert servers.redis.find(unknown) is not None
    assert len(log.of("pod.trouble")) == 2


def test_a_pod_that_is_as_it_should_be_is_left_alone() -> None:
    """Running, its attempt stored, no termination: no request at all."""
    servers = FakeServers()
    _, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"]) as controller:
        controller.cluster.run(pod)
        controller.reconciler.reconcile()
        assert (controller.calls("get"), controller.calls("delete")) == (0, 0)


def test_every_deletion_comes_after_a_live_look() -> None:
    """The registry may be old: a pod that another has replaced stays."""
    servers = FakeServers()
    event_id, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"]) as controller:
        servers.redis.find(event_id).worker(1).attempt = 2  # type: ignore[union-attr]
        controller.cluster.vanish(pod, unseen=True)
        controller.reconciler.reconcile()
        assert (controller.calls("get", pod), controller.calls("delete", pod)) == (1, 0)


def test_a_running_pod_of_an_unknown_event_is_not_deleted() -> None:
    """Redis was wiped: absence of a record proves nothing."""
    servers = FakeServers()
    _, pod = left_behind(servers)
    servers.redis.flush()
    with SimulatedController(servers, threads=["watch"]) as controller:
        controller.cluster.run(pod)
        for _ in range(5):
            controller.reconciler.reconcile()
            controller.pass_time(60)
        assert controller.calls("delete") == 0


def test_an_unknown_event_is_taken_up_from_its_pods_after_a_lease() -> None:
    """Not before: its owner may be about to store it again."""
    servers = FakeServers()
    event_id, _ = left_behind(servers, task_id="task-7")
    servers.redis.flush()
    with SimulatedController(servers, threads=["watch"]) as controller:
        controller.reconciler.reconcile()
        assert servers.redis.open_ids() == set()
        controller.pass_time(controller.lease_s)
        controller.reconciler.reconcile()
        assert servers.redis.task(event_id)["task_id"] == "task-7"


def test_what_was_taken_up_ends_with_its_result() -> None:
    """The pod that runs is followed; indices without a pod are lost."""
    servers = FakeServers()
    event_id, pod = left_behind(servers, pod_count=1)
    servers.redis.flush()
    with SimulatedController(servers, threads=["watch", "lease"]) as controller:
        controller.reconciler.reconcile()
        controller.wait_and_look(controller.lease_s)
        controller.reconciler.reconcile()
        controller.wait_and_look(5)
        controller.cluster.run(controller.pod(event_id))
        controller.cluster.succeed(pod)
        assert controller.result()["reason"] == "Completed"


@contract("2.TASK_TTL_S")
def test_a_finished_pod_of_a_long_forgotten_event_goes() -> None:
    """When it is older than TASK_TTL_S, no replica can need it."""
    servers = FakeServers()
    _, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"], TASK_TTL_S=100) as controller:
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.sees(pod, lambda seen: seen.finished)
        controller.reconciler.reconcile()
        servers.redis.flush()
        controller.pass_time(200)
        controller.reconciler.reconcile()
        controller.pass_time(controller.lease_s)
        controller.reconciler.reconcile()
        assert controller.cluster.names() == set()


def test_a_pod_that_names_no_event_is_left_alone() -> None:
    """It has a worker's labels, but no event of ours can be behind it, however long it has been there."""
    servers = FakeServers()
    _, pod = left_behind(servers)
    with SimulatedController(servers, threads=["watch"], TASK_TTL_S=100) as controller:
        servers.kubernetes.change(pod, lambda changed: changed["metadata"].pop("annotations"))
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.sees(pod, lambda seen: seen.finished and not seen.event_id)
        controller.reconciler.reconcile()
        servers.redis.flush()
        controller.pass_time(200)
        controller.reconciler.reconcile()
        controller.pass_time(controller.lease_s)
        controller.reconciler.reconcile()
        assert controller.cluster.names() == {pod}


def test_nothing_is_done_while_the_cluster_is_unknown() -> None:
    """A broken watch may show what is long gone."""
    servers = FakeServers()
    event_id, _ = left_behind(servers)
    with SimulatedController(servers) as controller:
        servers.redis.find(event_id).worker(1).attempt = 2  # type: ignore[union-attr]
        controller.reconciler.reconcile()
        assert controller.calls("delete") == 0
