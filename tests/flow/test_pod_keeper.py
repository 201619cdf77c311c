"""Pods of failed workers stay for inspection: the result comes at once, and they are in nobody's way until they go."""

from __future__ import annotations

from datetime import datetime

import pytest

from ottoscaler.core.manifest import ANNOTATION_KEEP
from ottoscaler.core.results import rfc3339
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.flow.pod_keeper import RETRY_S
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController

pytestmark = pytest.mark.contract("2.KEEP_FAILED_S")
contract = pytest.mark.contract
KEEP = {"KEEP_FAILED_S": 600}


def fail(controller: SimulatedController, **fields: object) -> str:
    """A task of one worker that exits with code 7, and its result; returns the name of its pod."""
    before = len(controller.redis.results("worker"))
    event_id = controller.accept(**fields)
    pod = controller.pod(event_id)
    controller.cluster.run(pod)
    controller.cluster.fail(pod, 7)
    results = controller.results(before + 1)
    assert (results[-1]["outcome"], results[-1]["exit_code"]) == ("failed", "7")
    controller.idle()
    if pod in controller.cluster.names():
        controller.sees(pod, lambda seen: seen.finished)
    return pod


def passes(controller: SimulatedController, seconds: float) -> None:
    """Time passes, and the reconciler and the thread that deletes look at it."""
    controller.pass_time(seconds)
    controller.reconciler.reconcile()
    controller.terminator.step()


def left(controller: SimulatedController) -> set[str]:
    """The pods that are there, when the watch has shown what was deleted."""
    names = controller.cluster.names()
    eventually(lambda: {pod.name for pod in controller.registry.snapshots()} == names, what="the watch")
    return names


def test_the_result_comes_at_once_and_the_pod_stays(log: Lines) -> None:
    """Two requests for the pod altogether: it costs no more than one that is deleted at once."""
    with SimulatedController(threads=["watch"], **KEEP) as controller:
        pod = fail(controller)
        assert controller.results(1, "task")[0]["outcome"] == "failed"
        passes(controller, 599)
        assert left(controller) == {pod}
        passes(controller, 1)
        assert left(controller) == set()
        assert (controller.calls("create"), controller.calls("delete"), controller.calls("get")) == (1, 1, 0)
    assert log.of("worker.kept") == [f"Keeping failed pod {pod} for 600 s"]
    assert log.of("worker.deleted") == [f"Cleaning up pod: {pod}"]


def test_the_result_says_until_when_the_pod_stays_and_how_to_look_at_it() -> None:
    """By the end of the pod; of what goes at once it says nothing."""
    with SimulatedController(threads=["watch"], **KEEP) as controller:
        pod = fail(controller)
        result = controller.results(1)[0]
        until = rfc3339(datetime.fromisoformat(result["finished_at"]).timestamp() + 600)
        command = f"kubectl logs -n {controller.settings.kube.namespace} {pod} -c agent"
        assert result["message"] == f"the worker exited with code 7 (its pod stays until {until} at most: {command})"
    with SimulatedController(threads=["watch"], KEEP_FAILED_MAX=0, **KEEP) as controller:
        fail(controller)
        assert controller.results(1)[0]["message"] == "the worker exited with code 7"


@contract("2.MAX_WORKERS")
def test_a_kept_pod_uses_no_room_and_holds_no_thread() -> None:
    """With room for one worker the next starts at once, also the next one of the same task."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=1, **KEEP) as controller:
        event_id = controller.accept(pod_count=2)
        kept = []
        for index in (1, 2):
            pod = controller.pod(event_id, index)
            controller.cluster.run(pod)
            controller.cluster.fail(pod, 7)
            kept.append(pod)
        controller.results(2)
        controller.idle()
        controller.sees(pod, lambda seen: seen.finished)
        assert (controller.registry.owned_live_count, controller.ledger.thread_counts()) == (0, (0, 0))
        following = controller.pod(controller.accept())
        assert controller.cluster.names() == {*kept, following}


@pytest.mark.parametrize("seconds", [0, 599])
def test_a_restart_changes_nothing(seconds: int) -> None:
    """The pod says itself when it ended and for how long it stays: nothing is remembered."""
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"], **KEEP) as first:
        pod = fail(first)
        first.pass_time(seconds)
        first.close(release=False)
    with SimulatedController(servers, threads=["watch"], incarnation="b2") as second:
        passes(second, 0)
        passes(second, 599 - seconds)
        assert left(second) == {pod}
        passes(second, 1)
        assert left(second) == set()
        assert len(second.redis.results("worker")) == 1


def test_any_replica_deletes_it_and_two_at_once_do_no_harm() -> None:
    """The second finds nothing: no other pod of that name can be there."""
    servers = FakeServers()
    with (
        SimulatedController(servers, threads=["watch"], **KEEP) as first,
        SimulatedController(servers, consumer="c2", threads=["watch"]) as second,
    ):
        fail(first)
        for controller in (first, second):
            controller.reconciler.reconcile()
        servers.clock.advance(600)  # type: ignore[attr-defined]
        for controller in (first, second):
            controller.terminator.step()
        assert (left(first), left(second)) == (set(), set())
        assert servers.kubernetes.count("delete") <= 2


def test_a_success_does_not_stay() -> None:
    """It is deleted as always."""
    with SimulatedController(threads=["watch"], **KEEP) as controller:
        pod = controller.pod(controller.accept())
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        assert controller.result()["outcome"] == "succeeded"
        eventually(lambda: not controller.cluster.names(), what="the pod to be gone")


def test_a_worker_that_is_scaled_down_leaves_no_pod() -> None:
    """The scale_down waits for its end."""
    with SimulatedController(threads=["watch", "control", "reader"], **KEEP) as controller:
        pod = controller.pod(controller.send(task_id="t"))
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        controller.send(type="scale_down", task_id="t")
        controller.sees(pod, lambda seen: seen.deleting)
        controller.cluster.kill(pod, 143)
        assert controller.result("scale_down")["pod_count"] == "1"
        assert controller.cluster.names() == set()


def test_a_cancel_that_wins_in_redis_takes_the_pod_along() -> None:
    """Its thread did not know of it when the worker failed."""
    with SimulatedController(threads=["watch"], **KEEP) as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        controller.stream.store_termination(event_id, None, 1, Termination(EndReason.SCALED_DOWN, by="elsewhere"))
        controller.cluster.fail(pod, 7)
        result = controller.result()
        assert result["reason"] == "ScaledDown"
        assert "stays" not in result["message"]
        eventually(lambda: not controller.cluster.names(), what="the pod to be gone")


def test_a_pod_of_another_outcome_does_not_stay() -> None:
    """Only the stored result counts, also where the pod failed."""
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"], **KEEP) as first:
        event_id = first.accept()
        pod = first.pod(event_id)
        first.close(release=False)
    servers.redis.find(event_id).worker(1).outcome = "cancelled"  # type: ignore[union-attr]
    with SimulatedController(servers, threads=["watch"], incarnation="b2") as second:
        second.cluster.run(pod)
        second.cluster.fail(pod, 7)
        second.sees(pod, lambda seen: seen.finished)
        passes(second, 0)
        assert left(second) == set()


def test_only_the_last_attempt_stays() -> None:
    """An earlier one is deleted before the next is created."""
    with SimulatedController(threads=["watch"], WORKER_RETRIES=1, **KEEP) as controller:
        event_id = controller.accept()
        for attempt in (1, 2):
            pod = controller.pod(event_id, attempt=attempt)
            controller.cluster.run(pod)
            controller.cluster.fail(pod, 7)
        assert controller.result()["attempt"] == "2"
        controller.idle()
        controller.sees(pod, lambda seen: seen.finished)
        passes(controller, 300)
        assert left(controller) == {pod}


# -- how many


@contract("2.KEEP_FAILED_MAX")
def test_the_oldest_goes_when_there_is_one_more() -> None:
    """At once: the thread that recorded the newest deletes it."""
    with SimulatedController(threads=["watch"], KEEP_FAILED_MAX=2, **KEEP) as controller:
        pods = []
        for _ in range(3):
            pods.append(fail(controller))
            controller.pass_time(1)
        eventually(lambda: controller.cluster.names() == set(pods[1:]), what="the oldest to be gone")


@contract("2.KEEP_FAILED_MAX")
def test_a_pod_that_a_user_deleted_counts_no_more() -> None:
    """The others keep their places."""
    with SimulatedController(threads=["watch"], KEEP_FAILED_MAX=2, **KEEP) as controller:
        first = fail(controller)
        controller.pass_time(1)
        controller.cluster.delete_by_user(fail(controller))
        assert left(controller) == {first}
        third = fail(controller)
        controller.terminator.step()
        assert left(controller) == {first, third}
        assert controller.keeper.count == 2


@contract("2.KEEP_FAILED_MAX")
def test_the_limit_holds_over_replicas_and_restarts() -> None:
    """Each counts what all of them keep."""
    servers = FakeServers()
    settings = {"KEEP_FAILED_MAX": 2, **KEEP}
    with SimulatedController(servers, threads=["watch"], **settings) as first:
        pods = [fail(first)]
        first.pass_time(1)
        pods.append(fail(first))
        first.pass_time(1)
        first.close(release=False)
    with SimulatedController(servers, consumer="c2", threads=["watch"], **settings) as second:
        second.reconciler.reconcile()
        pods.append(fail(second))
        assert left(second) == set(pods[1:])
    with SimulatedController(servers, consumer="c3", threads=["watch"], KEEP_FAILED_MAX=1) as third:
        passes(third, 0)
        assert left(third) == set(pods[2:])


def test_a_replica_whose_watch_is_late_keeps_it_too() -> None:
    """It saw the pod last when that still ran, and reads in Redis that its worker has failed."""
    servers = FakeServers()
    with (
        SimulatedController(servers, threads=["watch"], **KEEP) as owner,
        SimulatedController(servers, consumer="c2", **KEEP) as late,
    ):
        event_id = owner.accept()
        pod = owner.pod(event_id)
        owner.cluster.run(pod)
        late.registry.replace(late.cluster.list())
        owner.cluster.fail(pod)
        owner.results(1, "task")
        late.reconciler.reconcile()
        assert (late.calls("get", pod), owner.cluster.names()) == (1, {pod})


@contract("2.KEEP_FAILED_MAX")
def test_a_limit_of_zero_keeps_none(log: Lines) -> None:
    """Whatever the pods say."""
    with SimulatedController(threads=["watch"], KEEP_FAILED_MAX=0, **KEEP) as controller:
        fail(controller)
        eventually(lambda: not controller.cluster.names(), what="the pod to be gone")
    assert not log.of("worker.kept")


# -- what may go wrong


def test_a_deletion_that_fails_is_made_later(log: Lines) -> None:
    """Not at once again: the API server is away."""
    with SimulatedController(threads=["watch"], **KEEP) as controller:
        fail(controller)
        controller.servers.kubernetes.refuse_next("delete", ClusterUnavailable("away"))
        passes(controller, 600)
        controller.terminator.step()
        assert controller.calls("delete") == 1
        passes(controller, RETRY_S)
        assert left(controller) == set()
    assert len(log.of("pod.trouble")) == 1


def test_a_kept_pod_that_a_user_deletes_is_no_trouble() -> None:
    """Its result stays as it is."""
    with SimulatedController(threads=["watch"], **KEEP) as controller:
        pod = fail(controller)
        controller.cluster.delete_by_user(pod)
        assert left(controller) == set()
        passes(controller, 600)
        assert (controller.calls("delete"), len(controller.redis.results("worker"))) == (0, 1)
        assert controller.keeper.count == 0


def test_what_redis_forgot_is_not_recorded_again() -> None:
    """FLUSHALL after the task is finished: its pod still goes in time, and its other workers are not PodLost."""
    with SimulatedController(threads=["watch"], **KEEP) as controller:
        event_id = controller.accept(pod_count=2)
        first, second = controller.pod(event_id, 1), controller.pod(event_id, 2)
        controller.cluster.run(first)
        controller.cluster.succeed(first)
        controller.cluster.run(second)
        controller.cluster.fail(second, 7)
        controller.results(2)
        controller.idle()
        controller.sees(second, lambda seen: seen.finished)
        controller.redis.flush()
        for _ in range(5):
            passes(controller, 100)
        assert (left(controller), controller.redis.open_ids()) == ({second}, set())
        passes(controller, 100)
        assert left(controller) == set()


def test_what_redis_and_every_process_forgot_is_recorded_again() -> None:
    """As any finished pod of an unknown event: nothing says that its result was ever stored."""
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"], **KEEP) as first:
        pod = fail(first)
        first.close(release=False)
    servers.redis.flush()
    with SimulatedController(servers, threads=["watch", "lease"], consumer="c2") as second:
        second.reconciler.reconcile()
        second.wait_and_look(second.lease_s + 5)
        second.reconciler.reconcile()
        second.wait_and_look(5)
        assert second.result()["exit_code"] == "7"
        second.idle()
        assert left(second) == {pod}
        passes(second, 600)
        assert left(second) == set()


@contract("2.TASK_TTL_S")
def test_no_pod_outlives_its_task() -> None:
    """Redis forgets the task after TASK_TTL_S: its pod would be taken for one of a task that Redis lost."""
    with SimulatedController(threads=["watch"], TASK_TTL_S=100, KEEP_FAILED_S=50) as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)
        controller.servers.kubernetes.change(
            pod, lambda changed: changed["metadata"]["annotations"].update({ANNOTATION_KEEP: "5000"})
        )
        controller.cluster.run(pod)
        controller.cluster.fail(pod, 7)
        result = controller.result()
        until = rfc3339(datetime.fromisoformat(result["finished_at"]).timestamp() + 50)
        assert f"stays until {until} at most" in result["message"]
        controller.idle()
        controller.sees(pod, lambda seen: seen.finished)
        passes(controller, 49)
        assert left(controller) == {pod}
        passes(controller, 1)
        assert left(controller) == set()


@pytest.mark.parametrize("ahead_s", [-86_400, 86_400])
def test_wrong_clocks_never_double_the_time(ahead_s: int) -> None:
    """A process that saw the pod end goes by its own clock, one that did not by the pod's times, at most."""
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"], **KEEP) as first:
        pod = fail(first)
        stamp = servers.kubernetes.stamp(ahead_s)
        servers.kubernetes.change(
            pod,
            lambda changed: changed["status"]["containerStatuses"][0]["state"]["terminated"].update(finishedAt=stamp),
        )
        passes(first, 300)
        assert left(first) == {pod}
        first.close(release=False)
    with SimulatedController(servers, threads=["watch"], incarnation="b2") as second:
        passes(second, 0)
        passes(second, 600)
        assert left(second) == set()


# -- quotas


@pytest.mark.parametrize(("resource", "goes"), [("count/pods", True), ("pods", False), ("requests.cpu", False)])
def test_work_comes_before_inspection(resource: str, goes: bool) -> None:
    """A quota that counts finished pods refuses a create: the oldest kept pod makes room. No other quota counts it."""
    with SimulatedController(threads=["watch", "dispatcher"], **KEEP) as controller:
        kept = fail(controller)
        quota = f"exceeded quota: q, requested: {resource}=1, used: {resource}=1, limited: {resource}=1"
        controller.servers.kubernetes.refuse_next("create", ClusterUnavailable(quota, unclear=False))
        controller.accept()
        eventually(lambda: controller.calls("create") == 2, what="the create that is refused")
        controller.idle()
        assert (kept not in controller.cluster.names()) is goes
