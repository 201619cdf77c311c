"""What a scale_down waits for: it asks Redis little, nothing that takes its time holds it up, and what it waits for is
said.
"""

from __future__ import annotations

import threading

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.flow.scale_down import TERMINATE_RETRY_S
from ottoscaler.local.store import DeleteOptions
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract
THREADS = ("watch", "control", "reader")


def test_a_worker_between_two_attempts_is_cancelled_at_once() -> None:
    """The pause before the next attempt is not waited for: time stands still here."""
    with SimulatedController(threads=THREADS, WORKER_RETRIES=0, INFRA_RETRIES=3) as controller:
        event_id = controller.send(task_id="t")
        pod = controller.pod(event_id)
        controller.cluster.run(pod)
        controller.cluster.end_pod(pod, "Evicted")
        controller.idle()
        controller.send(type="scale_down", task_id="t")
        assert controller.result()["reason"] == "ScaledDown"
        assert controller.result()["exit_code"] == ""
        assert controller.result("scale_down")["pod_count"] == "1"
        eventually(lambda: not controller.cluster.names(), what="the old pod to be gone")
        assert controller.calls("create") == 1


def test_a_cancel_that_comes_while_a_worker_goes_into_its_pause_is_carried_out_at_once() -> None:
    """Its thread is notified, but gives the worker back before it receives the notification."""
    with SimulatedController(threads=["watch", "control"], INFRA_RETRIES=3) as controller:
        event_id = controller.accept(pod_count=1)
        pod = controller.pod(event_id)
        controller.cluster.run(pod)
        termination = Termination(EndReason.SCALED_DOWN, by="elsewhere")
        run = controller.ledger.tasks._tasks[event_id].runs[1]
        controller.stream.store_termination(event_id, None, 1, termination)
        run.task.terminations[1] = termination
        controller.cluster.end_pod(pod, "Evicted")
        assert controller.result()["reason"] == "ScaledDown"


def test_the_lane_does_not_wait_for_the_cluster() -> None:
    """The API server takes its time over one cancelled worker; the next scale_down is carried out meanwhile."""
    servers, held = FakeServers(), threading.Event()
    with SimulatedController(servers, consumer="dead", threads=["watch"]) as first:
        slow = first.accept(event_id="slow", task_id="slow")
        first.pod(slow)
        first.close(release=False)

    def hold(verb: str, name: str) -> None:
        if verb in ("get", "delete") and name == first.name(slow):
            held.wait(10)

    with SimulatedController(servers, threads=["watch"], MAX_WORKERS=1) as controller:
        controller.pod(controller.accept(task_id="other"))
        controller.accept(task_id="waits")
        servers.redis.expire_lease(slow)
        task = controller.stream.take_over(slow, same_consumer=False)
        controller.intake.open_task(task)
        servers.kubernetes.on_call = hold
        controller.start("control", "reader")
        controller.send(type="scale_down", task_id="slow", event_id="d-1")
        eventually(lambda: "d-1" in controller.control._open and controller.control._open["d-1"].victims_selected)
        controller.send(type="scale_down", task_id="waits", event_id="d-2")
        assert controller.result("scale_down")["event_id"] == "d-2"
        held.set()
        eventually(lambda: len(servers.redis.results("scale_down")) == 2, 10)


def test_while_pods_end_redis_is_not_asked() -> None:
    """Eighty victims take their grace: they are asked for when they are gone, and now and then."""
    with SimulatedController(threads=THREADS, MAX_WORKERS=100) as controller:
        event_id = controller.send(pod_count=80, task_id="t")
        pods = [controller.pod(event_id, index) for index in range(1, 81)]
        for pod in pods:
            controller.cluster.run(pod)
            controller.sees(pod, lambda seen: seen.started_at is not None)
        controller.send(type="scale_down", task_id="t")
        eventually(lambda: all(pod.deleting for pod in controller.registry.snapshots()), what="all to be asked to end")
        eventually(lambda: controller.control._pause_s > 1, what="the lane to be at rest")
        before = controller.redis.calls.total()
        threading.Event().wait(2)
        assert controller.redis.calls["stored_workers"] < 20
        asked = controller.redis.calls.total() - before
        assert asked < 2 * (20 + 20 + 5)  # reader and control block for 50 ms each in these tests
        for pod in pods:
            controller.cluster.kill(pod)
        assert controller.result("scale_down")["pod_count"] == "80"


def test_the_end_of_a_victims_pod_ends_the_pause() -> None:
    """A look within the pause asks Redis only if a victim's pod has changed since the look before."""
    with SimulatedController(threads=["watch"]) as controller:
        pod = controller.pod(controller.accept(task_id="t"))
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        controller.accept(type="scale_down", task_id="t")
        controller.control.step()
        controller.sees(pod, lambda seen: seen.deleting)
        controller.control.step(due=False)
        looks = controller.redis.calls["stored_workers"]
        controller.control.step(due=False)
        assert (controller.redis.calls["stored_workers"], controller.redis.results()) == (looks, [])
        controller.cluster.kill(pod)
        controller.result()
        eventually(lambda: not controller.registry.snapshots(), what="the pod to be gone")
        controller.control.step(due=False)
        assert controller.result("scale_down")["pod_count"] == "1"


def test_a_mark_that_was_lost_is_stored_again_and_no_other_is() -> None:
    """A Redis that was restored may lack it: the victim would run on, and the scale_down would wait for it."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept(task_id="t")
        controller.cluster.run(controller.pod(event_id))
        controller.accept(type="scale_down", task_id="t", event_id="d-1")
        controller.control.step()
        assert controller.redis.calls["store_termination"] == 0  # the choice has stored it
        controller.redis.find(event_id).workers[1].termination = None  # type: ignore[union-attr]
        controller.pass_time(TERMINATE_RETRY_S)
        controller.control.step()
        termination = controller.taken(event_id).workers[1].termination
        assert (termination and termination.by, controller.redis.calls["store_termination"]) == ("d-1", 1)


@pytest.mark.parametrize(
    ("stage", "drain", "asked"),
    [("waits", True, 1), ("runs", True, 0), ("runs", False, 1), ("being deleted", False, 0), ("ended", False, 0)],
)
def test_the_cluster_is_asked_only_about_a_pod_that_has_to_end(stage: str, drain: bool, asked: int) -> None:
    """The task is another replica's. A drain spares a pod that has started; two others end without a request."""
    servers = FakeServers()
    with (
        SimulatedController(servers, consumer="owner", threads=["watch"]) as owner,
        SimulatedController(servers, consumer="other", threads=["watch"]) as other,
    ):
        event_id = owner.accept()
        pod = owner.pod(event_id)
        other.sees(pod, lambda seen: seen.live)
        owner.close(release=False)
        if stage in ("runs", "being deleted"):
            other.cluster.run(pod)
            other.sees(pod, lambda seen: seen.started_at is not None)
        if stage == "being deleted":
            servers.kubernetes.request_deletion(pod, DeleteOptions())
            other.sees(pod, lambda seen: seen.deleting)
        if stage == "ended":
            other.cluster.end_pod(pod, "Evicted")
            other.sees(pod, lambda seen: not seen.live)
        before = other.calls("get", pod)
        termination = Termination(EndReason.SCALED_DOWN, drain=drain, by="d-1")
        other.stream.store_termination(event_id, None, 1, termination)
        other.scale_downs.apply_cancel_marks(event_id)
        other.terminator.step()
        assert (other.calls("get", pod) - before, other.calls("delete", pod)) == (asked, asked)


def test_why_names_the_older_event_that_has_to_choose_first() -> None:
    """It is a dead replica's: it holds younger choices until it is taken over."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead") as dead:
        dead.accept(type="scale_down", task_id="t", event_id="d-1")
        dead.close(release=False)
    with SimulatedController(servers, threads=["watch", "lease", *THREADS[1:]]) as controller:
        controller.send(type="scale_down", task_id="t", event_id="d-2")
        why = eventually(lambda: servers.redis.task("d-2").get("why"), what="a why")
        assert "d-1" in why
        assert "dead/b1/1" in why
        while len(servers.redis.results("scale_down")) < 2:
            controller.wait_and_look(controller.lease_s / 3)
        assert [result["event_id"] for result in servers.redis.results("scale_down")] == ["d-1", "d-2"]


@contract("3.pod_count")
def test_two_scale_downs_on_two_replicas_end_as_many_as_both_asked_for() -> None:
    """Accepted by different processes in the same moment: each worker is the victim of one."""
    servers = FakeServers()
    with (
        SimulatedController(servers, consumer="a", threads=["watch"], auto=lambda name: None, MAX_WORKERS=30) as one,
        SimulatedController(servers, consumer="b", threads=["watch"]) as two,
    ):
        event_id = one.accept(pod_count=20, task_id="t")
        for index in range(1, 21):
            one.pod(event_id, index)
        # the other replica ends what it sees: a pod that its watch shows later is looked at again after
        # TERMINATE_RETRY_S
        eventually(lambda: len(two.registry.snapshots()) == 20, what="the other replica to see all pods")
        for controller in (one, two):
            controller.accept(type="scale_down", task_id="t", pod_count=8)
        one.start("control")
        two.start("control")
        results = one.results(2, "scale_down")
        assert [entry["pod_count"] for entry in results] == ["8", "8"]
        assert len(one.results(16)) == 16
        assert len(one.cluster.names()) == 4


@contract("3.mode")
def test_a_kill_right_after_a_drain_takes_others() -> None:
    """Six of nine run: the drain takes the three, the kill two of the six."""
    with SimulatedController(threads=THREADS, MAX_WORKERS=30) as controller:
        event_id = controller.send(pod_count=9, task_id="t")
        pods = [controller.pod(event_id, index) for index in range(1, 10)]
        for pod in pods[:6]:
            controller.cluster.run(pod)
            controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        controller.send(type="scale_down", task_id="t", mode="drain", event_id="d-1")
        controller.send(type="scale_down", task_id="t", pod_count=2, event_id="d-2")
        eventually(
            lambda: (
                sum(pod.deleting for pod in controller.registry.snapshots()) + 9 - len(controller.cluster.names()) >= 5
            )
        )
        for name in [pod.name for pod in controller.registry.snapshots() if pod.deleting]:
            controller.cluster.kill(name)
        results = {entry["event_id"]: entry["pod_count"] for entry in controller.results(2, "scale_down")}
        assert results == {"d-1": "3", "d-2": "2"}
        assert len(controller.results(5)) == 5


def test_an_attempt_without_a_pod_is_made_again_under_its_name() -> None:
    """Killed before each of its creates was carried out: no retry is used up."""
    servers = FakeServers()
    for incarnation in range(5):
        with SimulatedController(servers, consumer="c", incarnation=f"b{incarnation}") as dying:
            if incarnation == 0:
                dying.accept(event_id="e")
                owner = dying.taken("e").owner
            else:
                owner = dying.stream.take_over("e", same_consumer=True).owner
            dying.stream.store_attempt("e", owner, 1, attempt=1, infra_used=0, pod=dying.name("e"))
            dying.close(release=False)
    with SimulatedController(
        servers, consumer="c", incarnation="b9", threads=["watch"], auto=True, INFRA_RETRIES=3
    ) as controller:
        controller.intake.open_task(controller.stream.take_over("e", same_consumer=True))
        controller.ledger.wake_for_room()
        result = controller.result()
        assert (result["outcome"], result["attempt"], result["pod"]) == ("succeeded", "1", controller.name("e"))


def test_a_pod_that_was_seen_and_is_gone_is_lost() -> None:
    """Its program may have run: the next attempt uses up a retry."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead", threads=["watch"]) as first:
        event_id = first.accept()
        pod = first.pod(event_id)
        first.close(release=False)
    first.cluster.vanish(pod)
    servers.redis.expire_lease(event_id)
    with SimulatedController(servers, threads=["watch"], INFRA_RETRIES=0) as controller:
        controller.intake.open_task(controller.stream.take_over(event_id, same_consumer=False))
        controller.ledger.wake_for_room()
        assert (controller.result()["reason"], controller.calls("create")) == ("PodLost", 1)
