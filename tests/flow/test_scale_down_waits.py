"""What a scale_down waits for: it asks Redis little, nothing that takes its time holds it up, and what it waits for is
said.
"""

from __future__ import annotations

import threading

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from tests.fakes.wait import eventually
from tests.flow.rig import Rig, World

contract = pytest.mark.contract
THREADS = ("watch", "control", "reader")


def test_a_worker_between_two_attempts_is_cancelled_at_once() -> None:
    """The pause before the next attempt is not waited for: time stands still here."""
    with Rig(threads=THREADS, WORKER_RETRIES=0, INFRA_RETRIES=3) as rig:
        event_id = rig.send(task_id="t")
        pod = rig.pod(event_id)
        rig.cluster.run(pod)
        rig.cluster.end_pod(pod, "Evicted")
        rig.idle()
        rig.send(type="scale_down", task_id="t")
        assert rig.result()["reason"] == "ScaledDown"
        assert rig.result()["exit_code"] == ""
        assert rig.result("scale_down")["pod_count"] == "1"
        eventually(lambda: not rig.cluster.names(), what="the old pod to be gone")
        assert rig.calls("create") == 1


def test_a_cancel_that_comes_while_a_worker_goes_into_its_pause_is_carried_out_at_once() -> None:
    """Its thread is told, and has given the worker back before it hears."""
    with Rig(threads=["watch", "control"], INFRA_RETRIES=3) as rig:
        event_id = rig.accept(pod_count=1)
        pod = rig.pod(event_id)
        rig.cluster.run(pod)
        termination = Termination(Reason.SCALED_DOWN, by="elsewhere")
        run = rig.ledger._tasks[event_id].runs[1]
        rig.stream.store_termination(event_id, None, 1, termination)
        run.task.terminations[1] = termination
        rig.cluster.end_pod(pod, "Evicted")
        assert rig.result()["reason"] == "ScaledDown"


def test_the_lane_does_not_wait_for_the_cluster() -> None:
    """One pod of a cancelled worker takes its time; the next scale_down is carried out meanwhile."""
    world, held = World(), threading.Event()
    with Rig(world, consumer="dead", threads=["watch"]) as first:
        slow = first.accept(event_id="slow", task_id="slow")
        first.pod(slow)
        first.close(release=False)

    def hold(verb: str, name: str) -> None:
        if verb in ("get", "delete") and name == first.name(slow):
            held.wait(10)

    with Rig(world, threads=["watch"], MAX_WORKERS=1) as rig:
        rig.pod(rig.accept(task_id="other"))
        world.redis.expire_lease(slow)
        task = rig.stream.take(slow, same_consumer=False)
        rig.intake.open(task)
        world.kubernetes.on_call = hold
        rig.start("control", "reader")
        rig.send(type="scale_down", task_id="slow", event_id="d-1")
        eventually(lambda: "d-1" in rig.control._open and rig.control._open["d-1"].chosen)
        rig.send(type="scale_down", task_id="nobody", event_id="d-2")
        assert rig.result("scale_down")["event_id"] == "d-2"
        held.set()
        eventually(lambda: len(world.redis.results("scale_down")) == 2, 10)


def test_while_pods_end_redis_is_not_asked() -> None:
    """Eighty victims take their grace: they are asked for when they are gone, and now and then."""
    with Rig(threads=THREADS, MAX_WORKERS=100) as rig:
        event_id = rig.send(pod_count=80, task_id="t")
        pods = [rig.pod(event_id, index) for index in range(1, 81)]
        for pod in pods:
            rig.cluster.run(pod)
            rig.sees(pod, lambda seen: seen.started_at is not None)
        rig.send(type="scale_down", task_id="t")
        eventually(lambda: all(pod.deleting for pod in rig.registry.snapshots()), what="all to be asked to end")
        eventually(lambda: rig.control._pause_s > 1, what="the lane to be at rest")
        before = rig.redis.calls.total()
        threading.Event().wait(2)
        assert rig.redis.calls["outcomes"] < 20
        asked = rig.redis.calls.total() - before
        assert asked < 2 * (20 + 20 + 5)  # reader and control block for 50 ms each in these tests
        for pod in pods:
            rig.cluster.kill(pod)
        assert rig.result("scale_down")["pod_count"] == "80"


def test_why_names_the_older_event_that_has_to_choose_first() -> None:
    """It is a dead replica's: it holds younger choices until it is taken over."""
    world = World()
    with Rig(world, consumer="dead") as dead:
        dead.accept(type="scale_down", task_id="t", event_id="d-1")
        dead.close(release=False)
    with Rig(world, threads=["watch", "lease", *THREADS[1:]]) as rig:
        rig.send(type="scale_down", task_id="t", event_id="d-2")
        why = eventually(lambda: world.redis.task("d-2").get("why"), what="a why")
        assert "d-1" in why
        assert "dead/b1/1" in why
        while len(world.redis.results("scale_down")) < 2:
            rig.wait_and_look(rig.parts.lease_s / 3)
        assert [told["event_id"] for told in world.redis.results("scale_down")] == ["d-1", "d-2"]


@contract("3.pod_count")
def test_two_scale_downs_on_two_replicas_end_as_many_as_both_asked_for() -> None:
    """Accepted by different processes in the same moment: each worker is the victim of one."""
    world = World()
    with (
        Rig(world, consumer="a", threads=["watch"], auto=lambda name: None, MAX_WORKERS=30) as one,
        Rig(world, consumer="b", threads=["watch"]) as two,
    ):
        event_id = one.accept(pod_count=20, task_id="t")
        for index in range(1, 21):
            one.pod(event_id, index)
        for rig in (one, two):
            rig.accept(type="scale_down", task_id="t", pod_count=8)
        one.start("control")
        two.start("control")
        told = one.results(2, "scale_down")
        assert [entry["pod_count"] for entry in told] == ["8", "8"]
        assert len(one.results(16)) == 16
        assert len(one.cluster.names()) == 4


@contract("3.mode")
def test_a_kill_right_after_a_drain_takes_others() -> None:
    """Six of nine run: the drain takes the three, the kill two of the six."""
    with Rig(threads=THREADS, MAX_WORKERS=30) as rig:
        event_id = rig.send(pod_count=9, task_id="t")
        pods = [rig.pod(event_id, index) for index in range(1, 10)]
        for pod in pods[:6]:
            rig.cluster.run(pod)
            rig.hears(pod, lambda seen: seen.started_at is not None)
        rig.send(type="scale_down", task_id="t", mode="drain", event_id="d-1")
        rig.send(type="scale_down", task_id="t", pod_count=2, event_id="d-2")
        eventually(lambda: sum(pod.deleting for pod in rig.registry.snapshots()) + 9 - len(rig.cluster.names()) >= 5)
        for name in [pod.name for pod in rig.registry.snapshots() if pod.deleting]:
            rig.cluster.kill(name)
        told = {entry["event_id"]: entry["pod_count"] for entry in rig.results(2, "scale_down")}
        assert told == {"d-1": "3", "d-2": "2"}
        assert len(rig.results(5)) == 5


def test_an_attempt_without_a_pod_is_made_again_under_its_name() -> None:
    """Killed before each of its creates was carried out: no retry is used up."""
    world = World()
    for boot in range(5):
        with Rig(world, consumer="c", boot=f"b{boot}") as dying:
            if boot == 0:
                dying.accept(event_id="e")
                owner = dying.taken("e").owner
            else:
                owner = dying.stream.take("e", same_consumer=True).owner
            dying.stream.intend("e", owner, 1, attempt=1, infra_used=0, pod=dying.name("e"))
            dying.close(release=False)
    with Rig(world, consumer="c", boot="b9", threads=["watch"], auto=True, INFRA_RETRIES=3) as rig:
        rig.intake.open(rig.stream.take("e", same_consumer=True))
        rig.pool.pump()
        told = rig.result()
        assert (told["outcome"], told["attempt"], told["pod"]) == ("succeeded", "1", rig.name("e"))


def test_a_pod_that_was_seen_and_is_gone_is_lost() -> None:
    """Its program may have run: the next attempt uses up a retry."""
    world = World()
    with Rig(world, consumer="dead", threads=["watch"]) as first:
        event_id = first.accept()
        pod = first.pod(event_id)
        first.close(release=False)
    first.cluster.vanish(pod)
    world.redis.expire_lease(event_id)
    with Rig(world, threads=["watch"], INFRA_RETRIES=0) as rig:
        rig.intake.open(rig.stream.take(event_id, same_consumer=False))
        rig.pool.pump()
        assert (rig.result()["reason"], rig.calls("create")) == ("PodLost", 1)
