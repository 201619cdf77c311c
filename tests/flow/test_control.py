"""scale_down: at once, whichever replica owns the task and however busy all are; the right victims, once each."""

from __future__ import annotations

import json

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import Victim, VictimRequest, VictimSelection
from ottoscaler.ports import OpenTask
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract
THREADS = ("watch", "control", "reader")


def names(text: str) -> set[str]:
    """The pod names of a result's list."""
    return set(json.loads(text))


@contract("3.task_id")
@contract("5.ScaledDown")
def test_all_workers_of_a_task_end() -> None:
    """Each is killed, recorded once as ScaledDown, and named as a victim."""
    with SimulatedController(threads=THREADS, auto=lambda name: None) as controller:
        event_id = controller.send(pod_count=3, task_id="t")
        pods = {controller.pod(event_id, index) for index in (1, 2, 3)}
        controller.send(type="scale_down", task_id="t")
        result = controller.result("scale_down")
        assert names(result["victims"]) == pods
        assert [worker["reason"] for worker in controller.results(3)] == ["ScaledDown"] * 3
        assert controller.result("task")["outcome"] == "cancelled"


@contract("5.scale_down")
def test_the_result_comes_after_the_pods_are_gone() -> None:
    """A pod that takes its time to end keeps the result back."""
    with SimulatedController(threads=THREADS) as controller:
        event_id = controller.send(task_id="t")
        pod = controller.pod(event_id)
        controller.cluster.run(pod)
        controller.sees(pod, lambda seen: seen.started_at is not None)
        controller.send(type="scale_down", task_id="t")
        controller.sees(pod, lambda seen: seen.deleting)
        assert controller.redis.results("scale_down") == []
        controller.cluster.kill(pod)
        assert controller.result("scale_down")["outcome"] == "succeeded"
        assert controller.result()["exit_code"] == "143"


@contract("5.scale_down")
def test_a_finalizer_that_keeps_a_finished_victim_is_named() -> None:
    """With its pod: the program that set it has to take it away."""
    with SimulatedController(threads=THREADS) as controller:
        pod = controller.pod(controller.send(task_id="t"))
        controller.cluster.run(pod)
        controller.cluster.hold(pod, "example.org/keep")
        controller.sees(pod, lambda seen: seen.started_at is not None and bool(seen.finalizers))
        event_id = controller.send(type="scale_down", task_id="t")
        controller.sees(pod, lambda seen: seen.deleting)
        controller.cluster.fail(pod, 143)
        assert controller.result()["reason"] == "ScaledDown"

        def why() -> str:
            return controller.redis.tasks[event_id].note.why if event_id in controller.redis.tasks else ""

        eventually(lambda: why() == f"pod {pod} has ended and is kept by finalizer example.org/keep", what="the reason")
        assert controller.redis.results("scale_down") == []
        controller.cluster.vanish(pod)
        assert controller.result("scale_down")["outcome"] == "succeeded"


@contract("3.pod_count")
def test_no_more_victims_than_asked_for() -> None:
    """The rest survives, and is named."""
    with SimulatedController(threads=THREADS, auto=lambda name: None) as controller:
        event_id = controller.send(pod_count=4, task_id="t")
        pods = {controller.pod(event_id, index) for index in (1, 2, 3, 4)}
        controller.send(type="scale_down", task_id="t", pod_count=1)
        result = controller.result("scale_down")
        assert len(names(result["victims"])) == 1
        assert names(result["victims"]) | names(result["survivors"]) == pods
        assert len(controller.redis.results("worker")) == 1


@contract("3.task_id")
def test_without_a_task_the_youngest_of_the_group_end() -> None:
    """The later event's worker, not the earlier one's."""
    with SimulatedController(threads=THREADS, auto=lambda name: None) as controller:
        older, younger = controller.send(task_id="a"), controller.send(task_id="b")
        for event_id in (older, younger):  # equals: a worker that has not started would be ended first
            controller.sees(controller.pod(event_id), lambda seen: seen.started_at is not None)
        controller.send(type="scale_down", pod_count=1)
        assert names(controller.result("scale_down")["victims"]) == {controller.name(younger)}


@contract("3.mode")
def test_a_drain_ends_only_what_has_not_started() -> None:
    """The running worker survives, the pending one goes."""
    with SimulatedController(threads=THREADS) as controller:
        event_id = controller.send(pod_count=2, task_id="t")
        running, pending = controller.pod(event_id, 1), controller.pod(event_id, 2)
        controller.cluster.run(running)
        controller.sees(running, lambda seen: seen.started_at is not None)
        controller.send(type="scale_down", task_id="t", mode="drain")
        result = controller.result("scale_down")
        assert (names(result["victims"]), names(result["survivors"])) == ({pending}, {running})


def test_it_takes_effect_when_every_thread_is_busy_and_the_backlog_is_long() -> None:
    """One thread, forty events before it: the running pod goes at once, the waiting workers never start."""
    with SimulatedController(threads=THREADS, MAX_WORKERS=1, READ_AHEAD=1, auto=lambda name: None) as controller:
        event_id = controller.send(pod_count=3, task_id="t")
        pod = controller.pod(event_id)
        for number in range(40):
            controller.send(task_id=f"other-{number}")
        controller.send(type="scale_down", task_id="t")
        assert pod in names(controller.result("scale_down")["victims"])
        assert len(controller.results(3)) == 3
        assert controller.calls("create", controller.name(event_id, 2)) == 0


@contract("5.scale_down")
def test_nothing_to_end_is_a_success() -> None:
    """The reason says so."""
    with SimulatedController(threads=THREADS) as controller:
        controller.send(type="scale_down", task_id="nobody")
        result = controller.result("scale_down")
        assert (result["outcome"], result["reason"]) == ("succeeded", "NothingToEnd")


def test_a_task_of_another_replica_is_scaled_down_too() -> None:
    """The replica that handles the scale_down ends the pod; the owner records."""
    servers = FakeServers()
    with (
        SimulatedController(servers, consumer="owner", threads=["watch", "lease"], auto=lambda name: None) as owner,
        SimulatedController(servers, consumer="other") as controller,
    ):
        event_id = owner.accept(task_id="t")
        pod = owner.pod(event_id)
        controller.start(*THREADS)
        controller.sees(pod, lambda seen: seen.started_at is not None)
        controller.send(type="scale_down", task_id="t")
        assert owner.result()["reason"] == "ScaledDown"
        eventually(lambda: controller.ledger.thread_counts()[0] == 0)


def test_a_worker_of_another_replica_that_waits_is_cancelled() -> None:
    """Its owner finds the mark at the next renewal."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="owner", threads=["watch", "lease"], MAX_WORKERS=1) as owner:
        event_id = owner.accept(task_id="t", pod_count=2)
        pod = owner.pod(event_id)
        owner.cluster.run(pod)
        with SimulatedController(servers, consumer="other", threads=["watch"]) as other:
            other.inbox.submit(accepted(other, type="scale_down", task_id="t", pod_count=1))
            owner.start("control")
            other.start("control")
            eventually(lambda: 2 in other.taken(event_id).workers, what="the mark of worker 2")
            while not servers.redis.results("worker"):
                owner.wait_and_look(2)
            assert (owner.result()["index"], owner.result()["reason"]) == ("2", "ScaledDown")


def accepted(controller: SimulatedController, **fields: object) -> OpenTask:
    """An event that this replica has read and accepted, and no thread has acted on yet."""
    event_id = controller.send(**fields)
    controller.intake.accept_entries(controller.stream.read_now(10))
    (task,) = controller.inbox.tasks()
    controller.inbox.remove_opened([task])
    assert task.event.event_id == event_id
    return task


@pytest.mark.parametrize("op", ["select_victims", "finish", "stored_workers", "blocker"])
@pytest.mark.parametrize("after", [False, True])
def test_a_failure_at_any_step_is_made_good(op: str, after: bool) -> None:
    """Redis fails once, before or after the effect: the same victims, once each, and one result."""
    with SimulatedController(threads=THREADS, auto=lambda name: None) as controller:
        event_id = controller.send(pod_count=3, task_id="t")
        for index in (1, 2, 3):
            controller.pod(event_id, index)
        controller.redis.fail_next(op, after=after)
        controller.send(type="scale_down", task_id="t", pod_count=2)
        result = controller.result("scale_down")
        assert len(names(result["victims"])) == 2
        assert len(controller.results(2)) == 2
        assert len(controller.redis.results("scale_down")) == 1


def test_the_next_owner_ends_the_same_victims() -> None:
    """The list is stored once: the next replica acts on it and chooses no other worker."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead", threads=["watch"], auto=lambda name: None) as first:
        event_id = first.accept(pod_count=3, task_id="t")
        for index in (1, 2, 3):
            first.pod(event_id, index)
        task = accepted(first, type="scale_down", task_id="t", pod_count=1)
        termination = Termination(EndReason.SCALED_DOWN, by=task.event.event_id)
        chosen = VictimRequest(termination, [Victim(event_id, 1, first.name(event_id, 1))])
        assert isinstance(first.stream.select_victims(task.event.event_id, task.owner, chosen), VictimSelection)
        first.close(release=False)
    with SimulatedController(servers, threads=[*THREADS, "lease"]) as controller:
        controller.wait_and_look(controller.lease_s + 2)
        while not servers.redis.results("scale_down"):
            controller.wait_and_look(2)  # a worker that found its pod gone before it received the mark pauses first
        assert names(controller.result("scale_down")["victims"]) == {controller.name(event_id, 1)}
        assert len(servers.redis.results("worker")) == 1


@contract("3.supersedes")
@contract("5.Superseded")
def test_a_newer_event_of_the_same_key_cancels_what_has_not_started() -> None:
    """The running worker of the older event goes on, the waiting one never starts."""
    with SimulatedController(threads=THREADS, MAX_WORKERS=1) as controller:
        older = controller.send(task_id="a", pod_count=2, supersedes="branch-1")
        pod = controller.pod(older)
        controller.cluster.run(pod)
        controller.sees(pod, lambda seen: seen.started_at is not None)
        controller.send(task_id="b", supersedes="branch-1")
        result = controller.result()
        assert (result["index"], result["outcome"], result["reason"]) == ("2", "cancelled", "Superseded")
        assert controller.calls("delete", pod) == 0


@contract("3.supersedes")
def test_another_key_is_not_superseded() -> None:
    """Nor an event without one."""
    with SimulatedController(threads=THREADS) as controller:
        first, second = controller.send(supersedes="x"), controller.send()
        controller.send(supersedes="y")
        assert controller.pod(first)
        assert controller.pod(second)
        assert controller.redis.results() == []
