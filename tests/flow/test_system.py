"""The whole controller over the fakes: every worker's result comes exactly once, whichever process dies in between."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest

from ottoscaler.errors import ClusterUnavailable, Stopping
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

contract = pytest.mark.contract


def all_once(controller: SimulatedController, events: int, pods: int) -> None:
    """Wait for all results; each is there once, every pod is gone, no task is open."""
    controller.results(events, "task")
    counted = Counter((result["event_id"], result["index"]) for result in controller.redis.results("worker"))
    assert (len(counted), set(counted.values())) == (events * pods, {1})
    assert (
        len({result["event_id"] for result in controller.redis.results("task")})
        == len(controller.redis.results("task"))
        == events
    )
    eventually(lambda: controller.cluster.names() == set(), what="all pods to be deleted")
    assert controller.redis.open_ids() == set()


@contract("5.exactly-once")
def test_twenty_events_of_three_pods() -> None:
    """All succeed, each pod was created once and deleted once."""
    with SimulatedController(FakeServers(SystemClock()), threads=ALL, auto=True) as controller:
        for _ in range(20):
            controller.send(pod_count=3)
        all_once(controller, 20, 3)
        assert {result["outcome"] for result in controller.redis.results()} == {"succeeded"}
        eventually(lambda: controller.ledger.thread_counts() == (0, 0))
        assert [controller.calls(verb) for verb in ("create", "delete", "get")] == [60, 60, 0]


@contract("5.exactly-once")
def test_two_controllers_share_a_group() -> None:
    """Each event is one's, and none is both's."""
    servers = FakeServers(SystemClock())
    with (
        SimulatedController(servers, consumer="a", threads=ALL, auto=True) as controller,
        SimulatedController(servers, consumer="b", threads=ALL) as other,
    ):
        for _ in range(30):
            controller.send(pod_count=2)
        all_once(controller, 30, 2)
        assert controller.calls("create") == 60
        assert other.stop.cause is None


@contract("2.LEASE_S")
def test_one_of_two_dies_and_the_other_takes_over() -> None:
    """Its pods run on, and have no owner for one lease; then they are the other's, as they are."""
    servers = FakeServers()
    with (
        SimulatedController(servers, consumer="a", threads=ALL, auto=lambda _name: None, LEASE_S=3) as dead,
        SimulatedController(servers, consumer="b", LEASE_S=3) as controller,
    ):
        events = [dead.send(pod_count=3) for _ in range(5)]
        pods = [dead.pod(event_id, index) for event_id in events for index in (1, 2, 3)]
        dead.close(release=False)
        controller.start(*ALL)
        while controller.ledger.tasks.owners().keys() != set(events):
            controller.wait_and_look(2)
        for pod in pods:
            controller.cluster.succeed(pod)
        all_once(controller, 5, 3)
        assert controller.calls("create") == 15


@contract("5.exactly-once")
@pytest.mark.parametrize("step", ["store_attempt", "create", "mark_pod_seen", "record_result", "delete"])
def test_a_death_between_any_two_steps_leaves_one_result(step: str) -> None:
    """The replica that takes over begins with a look at what is there."""
    servers = FakeServers()

    def die(verb: str, _name: str) -> None:
        if verb == step:
            raise Stopping("the process is gone")

    with SimulatedController(servers, consumer="dead", threads=["watch"], auto=True, LEASE_S=3) as dead:
        dead.send()
        servers.redis.on_call, servers.kubernetes.on_call = partial(die, _name=""), die
        dead.intake.accept_entries(dead.stream.read_now(1))
        dead.idle()
        dead.close(release=False)
    servers.redis.on_call, servers.kubernetes.on_call = lambda _op: None, lambda _verb, _name: None
    with SimulatedController(servers, threads=ALL, LEASE_S=3) as controller:
        while not controller.redis.results("task"):
            controller.wait_and_look(2)
        all_once(controller, 1, 1)
        assert controller.result()["outcome"] == "succeeded"
        assert max(times for (verb, _), times in servers.kubernetes.calls.items() if verb == "create") == 1


@contract("5.exactly-once")
@pytest.mark.parametrize("seed", range(2))
def test_faults_everywhere_cost_time_and_nothing_else(seed: int) -> None:
    """Lost answers, outages, broken watches, in any order: all succeed, each once."""
    dice = random.Random(seed)
    with SimulatedController(threads=ALL, auto=True, MAX_WORKERS=5, INFRA_RETRIES=10, LEASE_S=3) as controller:
        for _ in range(10):
            controller.send(pod_count=3)
        for _ in range(8):
            for _ in range(6):
                controller.redis.fail_next(
                    dice.choice(["store_attempt", "mark_pod_seen", "record_result", "accept", "read", "*"]),
                    after=dice.random() < 0.5,
                )
                controller.servers.kubernetes.drop_replies(dice.choice(["create", "get", "delete"]))
            controller.servers.kubernetes.end_watches(ClusterUnavailable("broken") if dice.random() < 0.5 else None)
            controller.live(1)
        while len(controller.redis.results("task")) < 10:
            controller.live(1)
        all_once(controller, 10, 3)
        assert {result["outcome"] for result in controller.redis.results()} == {"succeeded"}


@contract("2.MAX_WORKERS")
@pytest.mark.parametrize("big", [200, pytest.param(700, marks=pytest.mark.full)])
def test_many_workers_through_fifty_threads(big: int) -> None:
    """A big event and small ones: never more than fifty pods at once, and all end."""
    servers, most = FakeServers(SystemClock()), list[int]()
    with SimulatedController(servers, auto=True, MAX_WORKERS=50) as controller:
        servers.kubernetes.on_call = lambda verb, _name: (
            most.append(controller.ledger.thread_counts()[0]) if verb == "create" else None
        )
        controller.start(*ALL)
        for count in (big, *[10] * 30):
            controller.send(pod_count=count)
        eventually(lambda: len(controller.redis.results("worker")) == big + 300, 30)
        controller.results(31, "task")
        assert max(most) <= 50


@contract("1.exit-codes")
def test_a_clean_stop_leaves_the_pods_and_gives_up_the_leases() -> None:
    """Nothing waits for a pod to end, and the next one goes on at once."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="a", threads=ALL, auto=lambda _name: None) as first:
        pod = first.pod(first.send())
    assert servers.kubernetes.count("delete") == 0
    with SimulatedController(servers, consumer="b", threads=ALL) as controller:
        while not controller.ledger.tasks.owners():
            controller.wait_and_look(2)
        controller.wait_seen(pod, lambda seen: seen)
        controller.cluster.succeed(pod)
        all_once(controller, 1, 1)
