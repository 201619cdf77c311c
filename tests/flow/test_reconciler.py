"""The reconciler: what fell between two steps is put right, and nothing that runs is ever deleted on a guess."""

from __future__ import annotations

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, StreamUnavailable
from ottoscaler.flow.stop import Stop
from tests.flow.conftest import Lines
from tests.flow.rig import Rig, World

contract = pytest.mark.contract


class Turns(Stop):
    """Nobody pauses on it, and it stops after so many pauses."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left

    def wait(self, timeout_s: float | None = None) -> bool:
        self._left -= 1
        return self._left < 0


def left_behind(world: World, **fields: object) -> tuple[str, str]:
    """A task whose controller died with its pod just created; returns event id and pod name."""
    with Rig(world, consumer="dead", threads=["watch"]) as first:
        event_id = first.accept(**fields)
        pod = first.pod(event_id)
        first.close(release=False)
    return event_id, pod


def test_a_pod_with_a_result_goes() -> None:
    """Its controller died between the record and the delete."""
    world = World()
    event_id, pod = left_behind(world)
    with Rig(world, threads=["watch"]) as rig:
        rig.cluster.run(pod)
        rig.cluster.succeed(pod)
        rig.sees(pod, lambda seen: seen.finished)
        world.redis.find(event_id).worker(1).outcome = "succeeded"  # type: ignore[union-attr]
        rig.reconciler.once()
        assert rig.cluster.names() == set()


def test_a_live_pod_of_an_older_attempt_goes() -> None:
    """A higher attempt is stored: this one is nobody's any more."""
    world = World()
    event_id, pod = left_behind(world)
    with Rig(world, threads=["watch"]) as rig:
        world.redis.find(event_id).worker(1).attempt = 2  # type: ignore[union-attr]
        rig.reconciler.once()
        assert rig.calls("delete", pod) == 1


def test_a_live_pod_that_is_terminated_is_ended() -> None:
    """Whoever sees it ends it, whoever owns the task."""
    world = World()
    event_id, pod = left_behind(world)
    with Rig(world, threads=["watch"]) as rig:
        rig.stream.store_termination(event_id, None, 1, Termination(Reason.SCALED_DOWN))
        rig.reconciler.once()
        assert rig.calls("delete", pod) == 1


def test_a_drain_spares_a_pod_that_has_started() -> None:
    """Only what has not started is ended."""
    world = World()
    event_id, pod = left_behind(world)
    with Rig(world, threads=["watch"]) as rig:
        rig.cluster.run(pod)
        rig.sees(pod, lambda seen: seen.started_at is not None)
        rig.stream.store_termination(event_id, None, 1, Termination(Reason.SCALED_DOWN, drain=True, by="down"))
        rig.reconciler.once()
        assert rig.calls("delete") == 0


def test_a_drain_spares_a_pod_that_the_live_look_shows_started() -> None:
    """What the watch last told may be old."""
    world = World()
    event_id, pod = left_behind(world)
    with Rig(world) as rig:
        rig.registry.replace(rig.cluster.list())
        rig.cluster.run(pod)
        rig.stream.store_termination(event_id, None, 1, Termination(Reason.SCALED_DOWN, drain=True, by="down"))
        rig.reconciler.once()
        assert (rig.calls("get", pod), rig.calls("delete")) == (1, 0)


def test_a_terminated_pod_that_has_finished_is_left_for_its_result() -> None:
    """Nothing is deleted before it is recorded."""
    world = World()
    event_id, pod = left_behind(world)
    with Rig(world) as rig:
        rig.registry.replace(rig.cluster.list())
        rig.cluster.run(pod)
        rig.cluster.succeed(pod)
        rig.stream.store_termination(event_id, None, 1, Termination(Reason.SCALED_DOWN))
        rig.reconciler.once()
        assert rig.calls("delete") == 0


def test_a_pod_that_a_thread_follows_is_the_threads() -> None:
    """Whatever there is to do about it."""
    with Rig(threads=["watch"]) as rig:
        event_id = rig.accept()
        rig.pod(event_id)
        rig.stream.store_termination(event_id, None, 1, Termination(Reason.SCALED_DOWN))
        rig.reconciler.once()
        assert rig.calls("delete") == 0


def test_a_finished_pod_that_waits_for_a_thread_is_recorded() -> None:
    """The pool is full after a take-over: nobody has to wait for it who only needs two writes."""
    world = World()
    event_id, pod = left_behind(world)
    with Rig(world, threads=["watch"], MAX_WORKERS=1) as rig:
        rig.pod(rig.accept())
        world.redis.expire_lease(event_id)
        task = rig.stream.take(event_id, same_consumer=False)
        assert task is not None
        rig.intake.open(task)
        rig.cluster.run(pod)
        rig.cluster.succeed(pod)
        rig.sees(pod, lambda seen: seen.finished)
        rig.reconciler.once()
        assert rig.result()["event_id"] == event_id


def test_an_outage_cuts_the_pass_short_and_no_more(log: Lines) -> None:
    """The thread lives on."""
    with Rig(stop=Turns(2)) as rig:
        rig.registry.replace(rig.cluster.list())
        rig.redis.set_down(True)
        with pytest.raises(StreamUnavailable):
            rig.reconciler.once()
        rig.reconciler.run()
    assert len(log.of("reconciler.outage")) == 2


@pytest.mark.parametrize(
    "trouble",
    [ClusterRejected("the webhook denies it", status=403, reason="Forbidden"), ClusterUnavailable("no answer")],
)
def test_one_pod_that_cannot_be_deleted_is_no_other_pods_trouble(trouble: Exception, log: Lines) -> None:
    """The rest is deleted, what Redis does not know is adopted, and the reconciler counts as done."""
    world = World()
    with Rig(world, consumer="dead", threads=["watch"], LEASE_S=3) as first:
        kept = [first.accept(event_id=name) for name in ("a", "b", "c")]
        pods = [first.pod(event_id) for event_id in kept]
        unknown = first.accept(event_id="unknown")
        first.pod(unknown)
        first.close(release=False)
    for event_id in kept:
        world.redis.find(event_id).worker(1).outcome = "failed"  # type: ignore[union-attr]
    del world.redis.tasks[unknown], world.redis.leases[unknown]

    def refuse(verb: str, name: str) -> None:
        if verb == "delete" and name == pods[0]:
            raise trouble

    with Rig(world, threads=["watch"], LEASE_S=3) as rig:
        world.kubernetes.on_call = refuse
        rig.reconciler.once()
        rig.pass_time(4)
        rig.reconciler.once()
        assert [rig.calls("delete", pod) > 0 for pod in pods] == [False, True, True]
        assert world.redis.find(unknown) is not None
    assert len(log.of("pod.trouble")) == 2


def test_a_pod_that_is_as_it_should_be_is_left_alone() -> None:
    """Running, its attempt stored, no termination: no request at all."""
    world = World()
    _, pod = left_behind(world)
    with Rig(world, threads=["watch"]) as rig:
        rig.cluster.run(pod)
        rig.reconciler.once()
        assert (rig.calls("get"), rig.calls("delete")) == (0, 0)


def test_every_deletion_comes_after_a_live_look() -> None:
    """The registry may be old: a pod that another has replaced stays."""
    world = World()
    event_id, pod = left_behind(world)
    with Rig(world, threads=["watch"]) as rig:
        world.redis.find(event_id).worker(1).attempt = 2  # type: ignore[union-attr]
        rig.cluster.vanish(pod, unseen=True)
        rig.reconciler.once()
        assert (rig.calls("get", pod), rig.calls("delete", pod)) == (1, 0)


def test_a_running_pod_of_an_unknown_event_is_not_deleted() -> None:
    """Redis was wiped: absence of a record proves nothing."""
    world = World()
    _, pod = left_behind(world)
    world.redis.flush()
    with Rig(world, threads=["watch"]) as rig:
        rig.cluster.run(pod)
        for _ in range(5):
            rig.reconciler.once()
            rig.pass_time(60)
        assert rig.calls("delete") == 0


def test_an_unknown_event_is_taken_up_from_its_pods_after_a_lease() -> None:
    """Not before: its owner may be about to store it again."""
    world = World()
    event_id, _ = left_behind(world, task_id="task-7")
    world.redis.flush()
    with Rig(world, threads=["watch"]) as rig:
        rig.reconciler.once()
        assert world.redis.open_ids() == set()
        rig.pass_time(rig.parts.lease_s)
        rig.reconciler.once()
        assert world.redis.task(event_id)["task_id"] == "task-7"


def test_what_was_taken_up_ends_with_its_result() -> None:
    """The pod that runs is followed; indices without a pod are lost."""
    world = World()
    event_id, pod = left_behind(world, pod_count=1)
    world.redis.flush()
    with Rig(world, threads=["watch", "lease"]) as rig:
        rig.reconciler.once()
        rig.wait_and_look(rig.parts.lease_s)
        rig.reconciler.once()
        rig.wait_and_look(5)
        rig.cluster.run(rig.pod(event_id))
        rig.cluster.succeed(pod)
        assert rig.result()["reason"] == "Completed"


@contract("2.TASK_TTL_S")
def test_a_finished_pod_of_a_long_forgotten_event_goes() -> None:
    """Older than TASK_TTL_S nobody can want it."""
    world = World()
    _, pod = left_behind(world)
    with Rig(world, threads=["watch"], TASK_TTL_S=100) as rig:
        rig.cluster.run(pod)
        rig.cluster.succeed(pod)
        rig.sees(pod, lambda seen: seen.finished)
        rig.reconciler.once()
        world.redis.flush()
        rig.pass_time(200)
        rig.reconciler.once()
        rig.pass_time(rig.parts.lease_s)
        rig.reconciler.once()
        assert rig.cluster.names() == set()


def test_nothing_is_done_while_the_cluster_is_unknown() -> None:
    """A broken watch may show what is long gone."""
    world = World()
    event_id, _ = left_behind(world)
    with Rig(world) as rig:
        world.redis.find(event_id).worker(1).attempt = 2  # type: ignore[union-attr]
        rig.reconciler.once()
        assert rig.calls("delete") == 0
