"""FLUSHALL in mid-task: the owner that lives stores its tasks again, and nothing that runs notices."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import CreatePod, Effect, StoreAttempt, StoreRefusal
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.flow.scale_down import TERMINATE_RETRY_S
from ottoscaler.ports import StoredWorker, TaskView
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.ledger_driver import LedgerDriver, task
from tests.flow.simulated_controller import FakeServers, SimulatedController

LEASE_S = 3


def restored(controller: SimulatedController) -> None:
    """A renewal finds that all is gone, and the tasks are stored again."""
    for _ in range(LEASE_S):
        controller.live(1)
    eventually(lambda: controller.redis.open_ids() >= ours(controller), what="the tasks to be stored again")


def ours(controller: SimulatedController) -> set[str]:
    """The tasks that are open here."""
    return controller.ledger.tasks.owners().keys() | controller.control.owners().keys()


def looked_at(controller: SimulatedController) -> None:
    """Control has looked at its scale_down again, more than once."""
    for _ in range(2):
        looks = controller.redis.calls["stored_workers"]
        controller.live(TERMINATE_RETRY_S)
        eventually(lambda: controller.redis.calls["stored_workers"] > looks, what="control to look again")  # noqa: B023


def stored(controller: SimulatedController, event_id: str) -> TaskView | None:
    """The open task as Redis has it now."""
    return next((view for view in controller.stream.open_scale_ups() if view.event.event_id == event_id), None)


def test_what_was_recorded_counts_and_is_not_published_again() -> None:
    """Of three workers one has ended before; the task's result sums up all three."""
    with SimulatedController(threads=["watch", "lease"], LEASE_S=LEASE_S) as controller:
        event_id = controller.accept(pod_count=3)
        pods = [controller.pod(event_id, index) for index in (1, 2, 3)]
        controller.cluster.fail(pods[0], 7)
        controller.results(1)
        eventually(lambda: pods[0] not in controller.cluster.names(), what="the first pod to be gone")
        controller.redis.flush()
        restored(controller)
        for pod in pods[1:]:
            controller.cluster.succeed(pod)
        assert sorted(result["pod"] for result in controller.results(2)) == sorted(pods[1:])
        total = controller.result("task")
        assert (total["succeeded"], total["failed"], total["reason"]) == ("2", "1", "Error")
        assert controller.calls("create") == 3


def test_a_worker_that_ends_before_its_task_is_restored_is_published_then(log: Lines) -> None:
    """Its thread waits instead of letting go, and the log says why."""
    with SimulatedController(threads=["watch"], LEASE_S=LEASE_S) as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)
        controller.redis.flush()
        records = controller.redis.calls["record_result"]
        controller.cluster.succeed(pod)
        eventually(
            lambda: controller.redis.calls["record_result"] > records,
            what="the record of the unknown task",
        )
        assert controller.redis.results("worker") == []
        eventually(lambda: f"No progress with {pod}" in "".join(log.of("worker.outage")), what="the reason in the log")
        controller.start("lease")
        restored(controller)
        while not controller.redis.results("worker"):
            controller.live(1)  # its thread may have begun to pause only when the task was stored again
        assert (controller.result()["pod"], controller.result()["outcome"]) == (pod, "succeeded")
        assert controller.result("task")["succeeded"] == "1"


def test_a_worker_that_waits_for_room_goes_on_waiting() -> None:
    """Nothing is known of it but that it has not begun, and it begins when its turn comes."""
    with SimulatedController(threads=["watch", "lease"], LEASE_S=LEASE_S, MAX_WORKERS=1) as controller:
        event_id = controller.accept(pod_count=2)
        first = controller.pod(event_id, 1)
        controller.redis.flush()
        restored(controller)
        controller.cluster.succeed(first)
        controller.cluster.succeed(controller.pod(event_id, 2))
        assert controller.result("task")["succeeded"] == "2"


def test_a_cancelled_worker_stays_cancelled() -> None:
    """The mark was in Redis only; the worker that has not begun does not begin after all."""
    with SimulatedController(threads=["watch", "lease"], LEASE_S=LEASE_S, MAX_WORKERS=1) as controller:
        event_id = controller.accept(pod_count=2)
        pod, termination = controller.pod(event_id, 1), Termination(EndReason.SCALED_DOWN, "enough", by="d-1")
        with controller.without_dispatch():
            controller.stream.store_termination(event_id, None, 2, termination)
            assert controller.ledger.cancel(event_id, 2, termination)
            controller.redis.flush()
            restored(controller)
        eventually(lambda: [controller.terminator.step(), controller.redis.results("worker")][1], what="its result")
        assert controller.result()["reason"] == "ScaledDown"
        controller.cluster.succeed(pod)
        assert controller.result("task")["cancelled"] == "1"
        assert controller.calls("create") == 1


def test_a_scale_down_ends_the_workers_that_it_chose() -> None:
    """Wiped between its choice and the end of its victim: the same victim, one result."""
    with SimulatedController(threads=["watch", "lease", "control", "reader"], LEASE_S=LEASE_S) as controller:
        event_id = controller.send(pod_count=2, task_id="t")
        pods = [controller.pod(event_id, 1), controller.pod(event_id, 2)]
        for pod in pods:
            controller.cluster.run(pod)
            controller.sees(pod, lambda seen: seen.started_at is not None)
        down_id = controller.send(type="scale_down", task_id="t", pod_count=1)
        eventually(lambda: any(pod.deleting for pod in controller.registry.snapshots()), what="the victim to be ended")
        [victim] = [pod.name for pod in controller.registry.snapshots() if pod.deleting]
        restores = controller.redis.calls["restore"]
        controller.redis.flush()
        looked_at(controller)
        restored(controller)
        assert controller.redis.calls["restore"] > restores
        assert [one.pod for one in controller.taken(down_id).victims or ()] == [victim]
        looked_at(controller)
        assert controller.redis.results("scale_down") == []
        controller.cluster.kill(victim)
        result = controller.result("scale_down")
        assert json.loads(result["victims"]) == [victim]
        assert json.loads(result["survivors"]) == [pod for pod in pods if pod != victim]


def test_others_wait_for_the_owner() -> None:
    """Their reconciler sees pods of an event that is in no task, and gives its owner one LEASE_S."""
    servers = FakeServers()
    with (
        SimulatedController(servers, threads=["watch", "lease"], LEASE_S=LEASE_S) as controller,
        SimulatedController(servers, consumer="c2", threads=["watch", "lease"], LEASE_S=LEASE_S) as other,
    ):
        event_id = controller.accept()
        pod = controller.pod(event_id)
        other.sees(pod, lambda _seen: True)
        servers.redis.flush()
        other.reconciler.reconcile()
        restored(controller)
        other.reconciler.reconcile()
        view = stored(controller, event_id)
        assert view is not None
        assert view.owner.startswith("c1/")
        assert other.calls("delete") == 0


def test_a_task_of_which_only_a_sleeper_knows_is_not_brought_back() -> None:
    """After more than TASK_TTL_S without a renewal it was not wiped: others finished it, and it has expired."""
    with SimulatedController(threads=["watch"], LEASE_S=LEASE_S, TASK_TTL_S=60) as controller:
        event_id = controller.accept()
        controller.pod(event_id)
        controller.lease._renewed_at = controller.clock.now()
        controller.redis.flush()
        controller.pass_time(61)
        controller.lease.step()
        assert not controller.ledger.tasks.has(event_id)
        assert controller.redis.calls["restore"] == 0


@pytest.mark.parametrize(
    ("event_id", "owner", "restores"), [("e", "c1/b1/1", 1), ("e", "c1/b1/0", 0), ("x", "c1/b1/1", 0)]
)
def test_only_a_task_that_is_still_ours_is_stored_again(event_id: str, owner: str, restores: int, log: Lines) -> None:
    """Between the renewal and the next look another process may have taken it, or it may be over."""
    with SimulatedController() as controller:
        controller.accept(event_id="e")
        controller.redis.flush()
        controller.takeover.on_announced()
        controller.takeover.restore_later({event_id: owner})
        controller.takeover.step()
        assert (controller.redis.calls["restore"], log.of("event.poison")) == (restores, [])


@pytest.mark.parametrize(
    ("todo", "refused"), [(StoreAttempt(2, 1), True), (StoreRefusal(2), True), (CreatePod(2), False)]
)
def test_an_attempt_that_has_no_pod_counts_as_refused(todo: Effect, refused: bool) -> None:
    """The replica that takes the task over creates it then, instead of looking for a pod and calling it lost."""
    driver = LedgerDriver()
    driver.ledger.add(task("e-1"))
    run = driver.take()
    run.life = replace(run.life, attempt=2, infra_used=1, todo=todo)
    known = driver.ledger.task_to_restore("e-1")
    assert known is not None
    assert known.workers == {1: StoredWorker(1, attempt=2, infra_used=1, create_refused=refused)}


def test_an_event_that_has_superseded_others_blocks_no_scale_down() -> None:
    """The event's victims were chosen before the wipe: a later scale_down does not wait for that choice again."""
    with SimulatedController(threads=["watch", "lease", "control", "reader"], LEASE_S=LEASE_S) as controller:
        event_id = controller.send(task_id="t", supersedes="branch")
        pod = controller.pod(event_id)
        controller.cluster.run(pod)
        controller.sees(pod, lambda seen: seen.started_at is not None)
        eventually(lambda: controller.taken(event_id).superseded, what="the older events to be superseded")
        controller.redis.flush()
        restored(controller)
        down_id = controller.send(type="scale_down", task_id="none")
        assert controller.result("scale_down")["event_id"] == down_id
