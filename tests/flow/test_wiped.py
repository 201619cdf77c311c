"""FLUSHALL in mid-task: the owner that lives stores its tasks again, and nothing that runs notices."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import Create, Effect, Intend, NoteRefused
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.flow.scale_down import AGAIN_EVERY_S
from ottoscaler.ports import StoredWorker, TaskView
from tests.fakes.wait import eventually
from tests.flow.desk import Desk, task
from tests.flow.rig import Rig, World

LEASE_S = 3


def restored(rig: Rig) -> None:
    """A renewal finds that all is gone, and the tasks are stored again."""
    for _ in range(LEASE_S):
        rig.live(1)
    eventually(lambda: rig.redis.open_ids() >= ours(rig), what="the tasks to be stored again")


def ours(rig: Rig) -> set[str]:
    """The tasks that are open here."""
    return rig.ledger.owners().keys() | rig.control.owners().keys()


def looked_at(rig: Rig) -> None:
    """Control has looked at its scale_down again, more than once."""
    for _ in range(2):
        looks = rig.redis.calls["outcomes"]
        rig.live(AGAIN_EVERY_S)
        eventually(lambda: rig.redis.calls["outcomes"] > looks, what="control to look again")  # noqa: B023


def stored(rig: Rig, event_id: str) -> TaskView | None:
    """The open task as Redis has it now."""
    return next((view for view in rig.stream.tasks() if view.event.event_id == event_id), None)


def test_what_was_recorded_counts_and_is_not_told_again() -> None:
    """Of three workers one has ended before; the task's result sums up all three."""
    with Rig(threads=["watch", "lease"], LEASE_S=LEASE_S) as rig:
        event_id = rig.accept(pod_count=3)
        pods = [rig.pod(event_id, index) for index in (1, 2, 3)]
        rig.cluster.fail(pods[0], 7)
        rig.results(1)
        eventually(lambda: pods[0] not in rig.cluster.names(), what="the first pod to be gone")
        rig.redis.flush()
        restored(rig)
        for pod in pods[1:]:
            rig.cluster.succeed(pod)
        assert sorted(result["pod"] for result in rig.results(2)) == sorted(pods[1:])
        total = rig.result("task")
        assert (total["succeeded"], total["failed"], total["reason"]) == ("2", "1", "Error")
        assert rig.calls("create") == 3


def test_a_worker_that_ends_before_its_task_is_restored_is_told_of_then() -> None:
    """Its thread waits instead of letting go."""
    with Rig(threads=["watch", "lease"], LEASE_S=LEASE_S) as rig:
        event_id = rig.accept()
        pod = rig.pod(event_id)
        rig.redis.flush()
        records = rig.redis.calls["record"]
        rig.cluster.succeed(pod)
        eventually(lambda: rig.redis.calls["record"] > records, what="the record that nobody knows what to do with")
        assert rig.redis.results("worker") == []
        restored(rig)
        while not rig.redis.results("worker"):
            rig.live(1)  # its thread may have begun to pause only when the task was stored again
        assert (rig.result()["pod"], rig.result()["outcome"]) == (pod, "succeeded")
        assert rig.result("task")["succeeded"] == "1"


def test_who_waits_for_room_goes_on_waiting() -> None:
    """Nothing is known of it but that it has not begun, and it begins when its turn comes."""
    with Rig(threads=["watch", "lease"], LEASE_S=LEASE_S, MAX_WORKERS=1) as rig:
        event_id = rig.accept(pod_count=2)
        first = rig.pod(event_id, 1)
        rig.redis.flush()
        restored(rig)
        rig.cluster.succeed(first)
        rig.cluster.succeed(rig.pod(event_id, 2))
        assert rig.result("task")["succeeded"] == "2"


def test_a_cancelled_worker_stays_cancelled() -> None:
    """The mark was in Redis only; the worker that has not begun does not begin after all."""
    with Rig(threads=["watch", "lease"], LEASE_S=LEASE_S, MAX_WORKERS=1) as rig:
        event_id = rig.accept(pod_count=2)
        pod, termination = rig.pod(event_id, 1), Termination(Reason.SCALED_DOWN, "enough", by="d-1")
        rig.stream.store_termination(event_id, None, 2, termination)
        assert rig.ledger.cancel(event_id, 2, termination)
        rig.redis.flush()
        restored(rig)
        rig.pool.run_cancelled(rig.ender.follow)
        rig.ender.step()
        assert rig.result()["reason"] == "ScaledDown"
        rig.cluster.succeed(pod)
        assert rig.result("task")["cancelled"] == "1"
        assert rig.calls("create") == 1


def test_a_scale_down_ends_whom_it_chose() -> None:
    """Wiped between its choice and the end of its victim: the same victim, one result."""
    with Rig(threads=["watch", "lease", "control", "reader"], LEASE_S=LEASE_S) as rig:
        event_id = rig.send(pod_count=2, task_id="t")
        pods = [rig.pod(event_id, 1), rig.pod(event_id, 2)]
        for pod in pods:
            rig.cluster.run(pod)
            rig.sees(pod, lambda seen: seen.started_at is not None)
        down_id = rig.send(type="scale_down", task_id="t", pod_count=1)
        eventually(lambda: any(pod.deleting for pod in rig.registry.snapshots()), what="the victim to be ended")
        [victim] = [pod.name for pod in rig.registry.snapshots() if pod.deleting]
        restores = rig.redis.calls["restore"]
        rig.redis.flush()
        looked_at(rig)
        restored(rig)
        assert rig.redis.calls["restore"] > restores
        assert [one.pod for one in rig.taken(down_id).victims or ()] == [victim]
        looked_at(rig)
        assert rig.redis.results("scale_down") == []
        rig.cluster.kill(victim)
        told = rig.result("scale_down")
        assert json.loads(told["victims"]) == [victim]
        assert json.loads(told["survivors"]) == [pod for pod in pods if pod != victim]


def test_others_wait_for_the_owner() -> None:
    """Their reconciler sees pods of an event that nobody knows, and gives its owner one LEASE_S."""
    world = World()
    with (
        Rig(world, threads=["watch", "lease"], LEASE_S=LEASE_S) as rig,
        Rig(world, consumer="c2", threads=["watch", "lease"], LEASE_S=LEASE_S) as other,
    ):
        event_id = rig.accept()
        pod = rig.pod(event_id)
        other.sees(pod, lambda _seen: True)
        world.redis.flush()
        other.reconciler.once()
        restored(rig)
        other.reconciler.once()
        view = stored(rig, event_id)
        assert view is not None
        assert view.owner.startswith("c1/")
        assert other.calls("delete") == 0


def test_a_task_of_which_only_a_sleeper_knows_is_not_brought_back() -> None:
    """After more than TASK_TTL_S without a renewal it was not wiped: others finished it, and it has expired."""
    with Rig(threads=["watch"], LEASE_S=LEASE_S, TASK_TTL_S=60) as rig:
        event_id = rig.accept()
        rig.pod(event_id)
        rig.lease._renewed_at = rig.clock.now()
        rig.redis.flush()
        rig.pass_time(61)
        rig.lease.step()
        assert not rig.ledger.has(event_id)
        assert rig.redis.calls["restore"] == 0


@pytest.mark.parametrize(("todo", "refused"), [(Intend(2, 1), True), (NoteRefused(2), True), (Create(2), False)])
def test_an_attempt_that_has_no_pod_counts_as_refused(todo: Effect, refused: bool) -> None:
    """Whoever takes the task over creates it then, instead of looking for a pod and calling it lost."""
    desk = Desk()
    desk.ledger.add(task("e-1"))
    run = desk.take()
    run.life = replace(run.life, attempt=2, infra_used=1, todo=todo)
    known = desk.ledger.recall("e-1")
    assert known is not None
    assert known.workers == {1: StoredWorker(1, attempt=2, infra_used=1, refused=refused)}


def test_who_has_superseded_others_holds_no_scale_down_up() -> None:
    """The event's victims were chosen before the wipe: a later scale_down does not wait for that choice again."""
    with Rig(threads=["watch", "lease", "control", "reader"], LEASE_S=LEASE_S) as rig:
        event_id = rig.send(task_id="t", supersedes="branch")
        pod = rig.pod(event_id)
        rig.cluster.run(pod)
        rig.sees(pod, lambda seen: seen.started_at is not None)
        eventually(lambda: rig.taken(event_id).superseded, what="the older events to be superseded")
        rig.redis.flush()
        restored(rig)
        down_id = rig.send(type="scale_down", task_id="none")
        assert rig.result("scale_down")["event_id"] == down_id
