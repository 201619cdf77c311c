"""scale_down: at once, whoever owns the task and however full everybody is; the right victims, once, and told."""

from __future__ import annotations

import json

import pytest

from ottoscaler.core.choice import Choice, Claim, Victim
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.ports import OpenTask
from tests.fakes.wait import eventually
from tests.flow.rig import Rig, World

contract = pytest.mark.contract
THREADS = ("watch", "control", "reader")


def names(text: str) -> set[str]:
    """The pod names of a result's list."""
    return set(json.loads(text))


@contract("3.task_id")
@contract("5.ScaledDown")
def test_all_workers_of_a_task_end() -> None:
    """Each is killed, recorded once as ScaledDown, and named as a victim."""
    with Rig(threads=THREADS, auto=lambda name: None) as rig:
        event_id = rig.send(pod_count=3, task_id="t")
        pods = {rig.pod(event_id, index) for index in (1, 2, 3)}
        rig.send(type="scale_down", task_id="t")
        told = rig.result("scale_down")
        assert names(told["victims"]) == pods
        assert [worker["reason"] for worker in rig.results(3)] == ["ScaledDown"] * 3
        assert rig.result("task")["outcome"] == "cancelled"


@contract("5.scale_down")
def test_the_result_comes_after_the_pods_are_gone() -> None:
    """A pod that takes its time to end keeps the result back."""
    with Rig(threads=THREADS) as rig:
        event_id = rig.send(task_id="t")
        pod = rig.pod(event_id)
        rig.cluster.run(pod)
        rig.sees(pod, lambda seen: seen.started_at is not None)
        rig.send(type="scale_down", task_id="t")
        rig.sees(pod, lambda seen: seen.deleting)
        assert rig.redis.results("scale_down") == []
        rig.cluster.kill(pod)
        assert rig.result("scale_down")["outcome"] == "succeeded"
        assert rig.result()["exit_code"] == "143"


@contract("5.scale_down")
def test_a_finalizer_that_keeps_a_finished_victim_is_named() -> None:
    """With its pod: whoever set it has to take it away."""
    with Rig(threads=THREADS) as rig:
        pod = rig.pod(rig.send(task_id="t"))
        rig.cluster.run(pod)
        rig.cluster.hold(pod, "example.org/keep")
        rig.sees(pod, lambda seen: seen.started_at is not None and bool(seen.finalizers))
        event_id = rig.send(type="scale_down", task_id="t")
        rig.sees(pod, lambda seen: seen.deleting)
        rig.cluster.fail(pod, 143)
        assert rig.result()["reason"] == "ScaledDown"

        def why() -> str:
            return rig.redis.tasks[event_id].why if event_id in rig.redis.tasks else ""

        eventually(lambda: why() == f"pod {pod} has ended and is kept by finalizer example.org/keep", what="the reason")
        assert rig.redis.results("scale_down") == []
        rig.cluster.vanish(pod)
        assert rig.result("scale_down")["outcome"] == "succeeded"


@contract("3.pod_count")
def test_no_more_victims_than_asked_for() -> None:
    """The rest survives, and is named."""
    with Rig(threads=THREADS, auto=lambda name: None) as rig:
        event_id = rig.send(pod_count=4, task_id="t")
        pods = {rig.pod(event_id, index) for index in (1, 2, 3, 4)}
        rig.send(type="scale_down", task_id="t", pod_count=1)
        told = rig.result("scale_down")
        assert len(names(told["victims"])) == 1
        assert names(told["victims"]) | names(told["survivors"]) == pods
        assert len(rig.redis.results("worker")) == 1


@contract("3.task_id")
def test_without_a_task_the_youngest_of_the_group_end() -> None:
    """The later event's worker, not the earlier one's."""
    with Rig(threads=THREADS, auto=lambda name: None) as rig:
        older, younger = rig.send(task_id="a"), rig.send(task_id="b")
        for event_id in (older, younger):  # equals: who has not started would be ended first
            rig.sees(rig.pod(event_id), lambda seen: seen.started_at is not None)
        rig.send(type="scale_down", pod_count=1)
        assert names(rig.result("scale_down")["victims"]) == {rig.name(younger)}


@contract("3.mode")
def test_a_drain_ends_only_what_has_not_started() -> None:
    """The running worker survives, the pending one goes."""
    with Rig(threads=THREADS) as rig:
        event_id = rig.send(pod_count=2, task_id="t")
        running, pending = rig.pod(event_id, 1), rig.pod(event_id, 2)
        rig.cluster.run(running)
        rig.sees(running, lambda seen: seen.started_at is not None)
        rig.send(type="scale_down", task_id="t", mode="drain")
        told = rig.result("scale_down")
        assert (names(told["victims"]), names(told["survivors"])) == ({pending}, {running})


def test_it_takes_effect_when_every_thread_is_busy_and_the_backlog_is_long() -> None:
    """One thread, forty events before it: the running pod goes at once, the waiting workers never start."""
    with Rig(threads=THREADS, MAX_WORKERS=1, READ_AHEAD=1, auto=lambda name: None) as rig:
        event_id = rig.send(pod_count=3, task_id="t")
        pod = rig.pod(event_id)
        for number in range(40):
            rig.send(task_id=f"other-{number}")
        rig.send(type="scale_down", task_id="t")
        assert pod in names(rig.result("scale_down")["victims"])
        assert len(rig.results(3)) == 3
        assert rig.calls("create", rig.name(event_id, 2)) == 0


@contract("5.scale_down")
def test_nothing_to_end_is_a_success() -> None:
    """The reason says so."""
    with Rig(threads=THREADS) as rig:
        rig.send(type="scale_down", task_id="nobody")
        told = rig.result("scale_down")
        assert (told["outcome"], told["reason"]) == ("succeeded", "NothingToEnd")


def test_a_task_of_another_replica_is_scaled_down_too() -> None:
    """Whoever handles it ends the pod; the owner records."""
    world = World()
    with (
        Rig(world, consumer="owner", threads=["watch", "lease"], auto=lambda name: None) as owner,
        Rig(world, consumer="other") as rig,
    ):
        event_id = owner.accept(task_id="t")
        pod = owner.pod(event_id)
        rig.start(*THREADS)
        rig.sees(pod, lambda seen: seen.started_at is not None)
        rig.send(type="scale_down", task_id="t")
        assert owner.result()["reason"] == "ScaledDown"
        eventually(lambda: rig.ledger.counts()[0] == 0)


def test_a_worker_of_another_replica_that_waits_is_cancelled() -> None:
    """Its owner finds the mark at the next renewal."""
    world = World()
    with Rig(world, consumer="owner", threads=["watch", "lease"], MAX_WORKERS=1) as owner:
        event_id = owner.accept(task_id="t", pod_count=2)
        pod = owner.pod(event_id)
        owner.cluster.run(pod)
        with Rig(world, consumer="other", threads=["watch"]) as other:
            other.control.submit(accepted(other, type="scale_down", task_id="t", pod_count=1))
            owner.start("control")
            other.start("control")
            eventually(lambda: 2 in other.taken(event_id).workers, what="the mark of worker 2")
            while not world.redis.results("worker"):
                owner.wait_and_look(2)
            assert (owner.result()["index"], owner.result()["reason"]) == ("2", "ScaledDown")


def accepted(rig: Rig, **fields: object) -> OpenTask:
    """An event that this replica has read and accepted, and nobody acted on yet."""
    event_id = rig.send(**fields)
    taken: list[OpenTask] = []
    rig.intake.connect(pump=lambda: None, control=taken.append)
    rig.intake.absorb(rig.stream.read_now(10))
    rig.intake.connect(pump=rig.pool.pump, control=rig.control.submit)
    assert [task.event.event_id for task in taken] == [event_id]
    return taken[0]


@pytest.mark.parametrize("op", ["choose", "finish", "outcomes", "blocker"])
@pytest.mark.parametrize("after", [False, True])
def test_a_failure_at_any_step_is_made_good(op: str, after: bool) -> None:
    """Redis fails once, before or after the effect: the same victims, once each, and one result."""
    with Rig(threads=THREADS, auto=lambda name: None) as rig:
        event_id = rig.send(pod_count=3, task_id="t")
        for index in (1, 2, 3):
            rig.pod(event_id, index)
        rig.redis.fail_next(op, after=after)
        rig.send(type="scale_down", task_id="t", pod_count=2)
        told = rig.result("scale_down")
        assert len(names(told["victims"])) == 2
        assert len(rig.results(2)) == 2
        assert len(rig.redis.results("scale_down")) == 1


def test_who_takes_over_ends_the_same_victims() -> None:
    """The list is stored once: the next replica acts on it and chooses nobody else."""
    world = World()
    with Rig(world, consumer="dead", threads=["watch"], auto=lambda name: None) as first:
        event_id = first.accept(pod_count=3, task_id="t")
        for index in (1, 2, 3):
            first.pod(event_id, index)
        task = accepted(first, type="scale_down", task_id="t", pod_count=1)
        termination = Termination(Reason.SCALED_DOWN, by=task.event.event_id)
        chosen = Claim(termination, [Victim(event_id, 1, first.name(event_id, 1))])
        assert isinstance(first.stream.choose(task.event.event_id, task.owner, chosen), Choice)
        first.close(release=False)
    with Rig(world, threads=[*THREADS, "lease"]) as rig:
        rig.wait_and_look(rig.parts.lease_s + 2)
        while not world.redis.results("scale_down"):
            rig.wait_and_look(2)  # a worker that found its pod gone before it heard of the mark pauses first
        assert names(rig.result("scale_down")["victims"]) == {rig.name(event_id, 1)}
        assert len(world.redis.results("worker")) == 1


@contract("3.supersedes")
@contract("5.Superseded")
def test_a_newer_event_of_the_same_key_cancels_what_has_not_started() -> None:
    """The running worker of the older event goes on, the waiting one never starts."""
    with Rig(threads=THREADS, MAX_WORKERS=1) as rig:
        older = rig.send(task_id="a", pod_count=2, supersedes="branch-1")
        pod = rig.pod(older)
        rig.cluster.run(pod)
        rig.sees(pod, lambda seen: seen.started_at is not None)
        rig.send(task_id="b", supersedes="branch-1")
        told = rig.result()
        assert (told["index"], told["outcome"], told["reason"]) == ("2", "cancelled", "Superseded")
        assert rig.calls("delete", pod) == 0


@contract("3.supersedes")
def test_another_key_is_not_superseded() -> None:
    """Nor an event without one."""
    with Rig(threads=THREADS) as rig:
        first, second = rig.send(supersedes="x"), rig.send()
        rig.send(supersedes="y")
        assert rig.pod(first)
        assert rig.pod(second)
        assert rig.redis.results() == []
