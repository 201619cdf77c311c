"""The whole controller over the fakes: every worker's result comes exactly once, whoever dies in between."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest

from ottoscaler.errors import ClusterUnavailable, Stopping
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.rig import ALL, Rig, World

contract = pytest.mark.contract


def all_once(rig: Rig, events: int, pods: int) -> None:
    """Wait for all results; each is there once, every pod is gone, no task is open."""
    rig.results(events, "task")
    counted = Counter((result["event_id"], result["index"]) for result in rig.redis.results("worker"))
    assert (len(counted), set(counted.values())) == (events * pods, {1})
    assert len({result["event_id"] for result in rig.redis.results("task")}) == len(rig.redis.results("task")) == events
    eventually(lambda: rig.cluster.names() == set(), what="all pods to be deleted")
    assert rig.redis.open_ids() == set()


@contract("5.exactly-once")
def test_twenty_events_of_three_pods() -> None:
    """All succeed, each pod was created once and deleted once."""
    with Rig(World(SystemClock()), threads=ALL, auto=True) as rig:
        for _ in range(20):
            rig.send(pod_count=3)
        all_once(rig, 20, 3)
        assert {result["outcome"] for result in rig.redis.results()} == {"succeeded"}
        eventually(lambda: rig.ledger.counts() == (0, 0))
        assert [rig.calls(verb) for verb in ("create", "delete", "get")] == [60, 60, 0]


@contract("5.exactly-once")
def test_two_controllers_share_a_group() -> None:
    """Each event is one's, and none is both's."""
    world = World(SystemClock())
    with (
        Rig(world, consumer="a", threads=ALL, auto=True) as rig,
        Rig(world, consumer="b", threads=ALL) as other,
    ):
        for _ in range(30):
            rig.send(pod_count=2)
        all_once(rig, 30, 2)
        assert rig.calls("create") == 60
        assert other.stop.cause is None


@contract("2.LEASE_S")
def test_one_of_two_dies_and_the_other_takes_over() -> None:
    """Its pods run on, and are nobody's for one lease; then they are the other's, as they are."""
    world = World()
    with (
        Rig(world, consumer="a", threads=ALL, auto=lambda _name: None, LEASE_S=3) as dead,
        Rig(world, consumer="b", LEASE_S=3) as rig,
    ):
        events = [dead.send(pod_count=3) for _ in range(5)]
        pods = [dead.pod(event_id, index) for event_id in events for index in (1, 2, 3)]
        dead.close(release=False)
        rig.start(*ALL)
        while rig.ledger.owners().keys() != set(events):
            rig.wait_and_look(2)
        for pod in pods:
            rig.cluster.succeed(pod)
        all_once(rig, 5, 3)
        assert rig.calls("create") == 15


@contract("5.exactly-once")
@pytest.mark.parametrize("step", ["intend", "create", "check", "record", "delete"])
def test_a_death_between_any_two_steps_leaves_one_result(step: str) -> None:
    """Whoever takes over begins with a look at what is there."""
    world = World()

    def die(verb: str, _name: str) -> None:
        if verb == step:
            raise Stopping("the process is gone")

    with Rig(world, consumer="dead", threads=["watch"], auto=True, LEASE_S=3) as dead:
        dead.send()
        world.redis.on_call, world.kubernetes.on_call = partial(die, _name=""), die
        dead.intake.absorb(dead.stream.read_now(1))
        dead.idle()
        dead.close(release=False)
    world.redis.on_call, world.kubernetes.on_call = lambda _op: None, lambda _verb, _name: None
    with Rig(world, threads=ALL, LEASE_S=3) as rig:
        while not rig.redis.results("task"):
            rig.wait_and_look(2)
        all_once(rig, 1, 1)
        assert rig.result()["outcome"] == "succeeded"
        assert max(times for (verb, _), times in world.kubernetes.calls.items() if verb == "create") == 1


@contract("5.exactly-once")
@pytest.mark.parametrize("seed", range(2))
def test_faults_everywhere_cost_time_and_nothing_else(seed: int) -> None:
    """Lost answers, outages, broken watches, in any order: all succeed, each once."""
    dice = random.Random(seed)
    with Rig(threads=ALL, auto=True, MAX_WORKERS=5, INFRA_RETRIES=10, LEASE_S=3) as rig:
        for _ in range(10):
            rig.send(pod_count=3)
        for _ in range(8):
            for _ in range(6):
                rig.redis.fail_next(
                    dice.choice(["intend", "check", "record", "accept", "read", "*"]), after=dice.random() < 0.5
                )
                rig.world.kubernetes.drop_replies(dice.choice(["create", "get", "delete"]))
            rig.world.kubernetes.end_watches(ClusterUnavailable("broken") if dice.random() < 0.5 else None)
            rig.live(1)
        while len(rig.redis.results("task")) < 10:
            rig.live(1)
        all_once(rig, 10, 3)
        assert {result["outcome"] for result in rig.redis.results()} == {"succeeded"}


@contract("2.MAX_WORKERS")
def test_a_thousand_workers_through_fifty_threads() -> None:
    """A big event and small ones: never more than fifty pods at once, and all end."""
    world, most = World(SystemClock()), list[int]()
    with Rig(world, auto=True, MAX_WORKERS=50) as rig:
        world.kubernetes.on_call = lambda verb, _name: most.append(rig.ledger.counts()[0]) if verb == "create" else None
        rig.start(*ALL)
        for count in (700, *[10] * 30):
            rig.send(pod_count=count)
        eventually(lambda: len(rig.redis.results("worker")) == 1000, 30)
        rig.results(31, "task")
        assert max(most) <= 50


@contract("1.exit-codes")
def test_a_clean_stop_leaves_the_pods_and_gives_up_the_leases() -> None:
    """Nothing waits for a pod to end, and the next one goes on at once."""
    world = World()
    with Rig(world, consumer="a", threads=ALL, auto=lambda _name: None) as first:
        pod = first.pod(first.send())
    assert world.kubernetes.count("delete") == 0
    with Rig(world, consumer="b", threads=ALL) as rig:
        while not rig.ledger.owners():
            rig.wait_and_look(2)
        rig.hears(pod, lambda seen: seen)
        rig.cluster.succeed(pod)
        all_once(rig, 1, 1)
