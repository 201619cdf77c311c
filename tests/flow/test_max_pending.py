"""MAX_PENDING: so many pods may wait for a node at once, and room that appears is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.ports import PodList, StoredWorker
from tests.fakes.clock import ManualClock, SystemClock
from tests.fakes.wait import eventually
from tests.flow.ledger_driver import LedgerDriver, task
from tests.flow.pods import of, pod
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

pytestmark = pytest.mark.contract("2.MAX_PENDING")

#: Snapshots of a pod in the order of its life; the last has no node though it has ended.
STAGES = (
    {"phase": Phase.PENDING},
    {"phase": Phase.PENDING, "node": "n"},
    {"phase": Phase.RUNNING, "node": "n"},
    {"phase": Phase.FAILED, "node": "n"},
    {"phase": Phase.FAILED},
)
HOW = ("publish", "upsert", "delete", "gone", "list", "list again", "count_as_ours", "stop_counting")
changes = st.lists(st.tuples(st.sampled_from(HOW), st.integers(1, 4), st.sampled_from(STAGES)), max_size=40)


@given(changes)
def test_the_figures_are_what_a_recount_finds(steps: Sequence[tuple[str, int, dict[str, Any]]]) -> None:
    """Whatever was published, listed, looked at, deleted and taken over, in whatever order."""
    registry, owned = PodRegistry(ManualClock()), set[str]()
    for version, (how, number, stage) in enumerate(steps, 2):
        hash_ = str(number % 3)
        seen = pod(version, index=number, hash_=hash_, tenant="ab"[version % 2], **stage)
        if how == "publish":
            registry.publish(seen)
        elif how == "upsert":
            registry.upsert(seen)
        elif how == "delete":
            registry.delete(seen.key)
        elif how == "gone":
            registry.publish(seen.as_gone())
        elif how == "list":
            registry.begin_list()
            registry.replace(PodList([seen], str(version)))
        elif how == "list again":
            registry.replace(PodList(registry.snapshots(), str(version)))
        elif how == "count_as_ours":
            registry.count_as_ours(hash_)
            owned.add(hash_)
        else:
            registry.stop_counting(hash_)
            owned.discard(hash_)
        there = [one for one in registry.snapshots() if one.live]
        assert registry.without_node == sum(one.phase is Phase.PENDING and not one.node for one in there)
        assert registry.owned_live_count == sum(one.key.event_hash in owned for one in there)
        assert [registry.live_count_of(name) for name in "ab"] == [
            sum(one.tenant == name for one in there) for name in "ab"
        ]


@pytest.fixture
def driver() -> LedgerDriver:
    """With room for many pods, of which one may wait for a node."""
    return LedgerDriver(max_pending=1)


class TestRoom:
    """When the next pod may be created."""

    def test_a_create_in_flight_may_be_a_pod_that_waits(self, driver: LedgerDriver) -> None:
        """Its pod may be there though the registry does not show it."""
        driver.ledger.add(task("a", 2))
        run = driver.take()
        assert driver.ledger.take() is None
        driver.registry.upsert(of("a", 5, node="n"))
        assert driver.ledger.take() is None
        driver.ledger.release_room(run)
        assert driver.take().life.index == 2

    @pytest.mark.parametrize("stage", [*STAGES[1:], {"phase": Phase.UNKNOWN}])
    def test_a_pod_waits_until_it_has_a_node(self, driver: LedgerDriver, stage: dict[str, Any]) -> None:
        """Or has ended; where nothing is known of it, it has been on a node."""
        driver.ledger.add(task("a", 2))
        run = driver.take()
        driver.registry.upsert(of("a", 5))
        driver.ledger.release_room(run)
        assert driver.ledger.take() is None
        driver.registry.publish(of("a", 6, **stage))
        assert driver.take().life.index == 2

    def test_pods_of_other_replicas_count(self, driver: LedgerDriver) -> None:
        """They wait for the same nodes; a claim that was not used yet is taken back for them."""
        driver.ledger.add(task("ours"))
        run = driver.take()
        driver.registry.publish(of("theirs", 5))
        assert not driver.ledger.may_create_pod(run)
        driver.pause(run, 0)
        assert driver.ledger.take() is None
        driver.registry.publish(of("theirs", 6, node="n"))
        assert driver.ledger.may_create_pod(driver.take())

    def test_a_worker_that_may_have_a_pod_goes_on(self, driver: LedgerDriver) -> None:
        """A dead process stored its attempt: it needs no room. Others get some when its pod has a node."""
        driver.registry.publish(of("theirs", 5))
        driver.ledger.add(task("new"))
        driver.ledger.add(task("theirs", 1, StoredWorker(1, attempt=1)))
        run = driver.take()
        assert run.task.event.event_id == "theirs"
        driver.ledger.release_room(run)
        assert driver.ledger.take() is None
        driver.registry.publish(of("theirs", 6, node="n"))
        assert driver.order(1) == ["new/1"]

    def test_a_cancelled_worker_needs_no_room(self) -> None:
        """It creates no pod."""
        with SimulatedController(threads=["watch", "dispatcher"], MAX_PENDING=1) as controller:
            first, second = controller.accept(), controller.accept(task_id="unwanted")
            controller.pod(first)
            controller.start("lease", "control")
            controller.send(type="scale_down", task_id="unwanted")
            assert controller.result()["event_id"] == second


@given(
    st.lists(st.tuples(st.sampled_from(("take", "see", "place", "end", "theirs")), st.integers(0, 9)), max_size=60),
    st.integers(1, 3),
)
def test_never_do_more_pods_wait_than_may(steps: Sequence[tuple[str, int]], most: int) -> None:
    """Whatever happens in whatever order: when a create is permitted, there is room for one more that waits."""
    driver, running = LedgerDriver(max_workers=20, max_pending=most), list[WorkerRun]()
    driver.ledger.add(task("a", 100))
    theirs: dict[int, PodSnapshot] = {}
    for version, (move, number) in enumerate(steps, 2):
        run = running[number % len(running)] if running else None
        if move == "take" and (taken := driver.ledger.take()) is not None:
            if driver.ledger.may_create_pod(taken):
                assert driver.registry.without_node + len(driver.ledger._capacity._claims) <= most
                running.append(taken)
            else:
                driver.pause(taken, 0)
        elif move == "theirs":
            theirs[number] = of("b", version, index=number, node="" if number not in theirs else "n")
            driver.registry.publish(theirs[number])
        elif run is not None:
            seen = partial(of, "a", version, index=run.life.index)
            driver.registry.publish(seen() if move == "see" else seen(node="n"))
            driver.ledger.release_room(run)
            if move == "end":
                driver.registry.publish(seen(Phase.FAILED, node="n").as_gone())
                driver.end(run)
                running.remove(run)


@pytest.fixture
def controller() -> Iterator[SimulatedController]:
    """One replica with all its threads; a test stands in for the scheduler."""
    with SimulatedController(FakeServers(SystemClock()), threads=ALL, MAX_PENDING=2) as made:
        yield made


class TestNodes:
    """A cluster with room for few pods."""

    def test_room_that_appears_is_used_at_once(self, controller: SimulatedController) -> None:
        """Twelve workers, two wait for a node; each node that appears makes room for the next pod."""
        event_id = controller.send(pod_count=12)
        for placed in range(1, 6):
            names = [controller.pod(event_id, index) for index in (placed, placed + 1)]
            assert len(controller.cluster.names()) == placed + 1
            controller.cluster.run(names[0])
        controller.pod(event_id, 7)
        assert len(controller.cluster.names()) == 7

    def test_what_waits_says_so(self, controller: SimulatedController) -> None:
        """And no longer when its pod is there."""
        first = controller.send(pod_count=2)
        pods = [controller.pod(first, index) for index in (1, 2)]
        second = controller.send()

        def why() -> str:
            return controller.redis.task(second).get("why", "")

        sentence = "waits until fewer than 2 pods wait for a node (MAX_PENDING)"
        eventually(lambda: why() == sentence, what="why it waits")
        controller.cluster.run(pods[0])
        controller.pod(second)
        eventually(lambda: "MAX_PENDING" not in why(), what="that it waits no longer")

    def test_a_further_attempt_waits_as_the_first_did(self, controller: SimulatedController) -> None:
        """Its first pod was lost with its node, and others wait for one."""
        first = controller.send()
        name = controller.pod(first)
        controller.cluster.run(name)
        second = controller.send(pod_count=3)
        waiting = [controller.pod(second, index) for index in (1, 2)]
        controller.cluster.end_pod(name, "Evicted")
        for one in waiting:
            controller.cluster.run(one)
        controller.pod(first, attempt=2)
        controller.pod(second, 3)

    def test_a_new_process_counts_what_waits_already(self, controller: SimulatedController) -> None:
        """It sees the pods of the one that died, and creates no more until one of them is placed."""
        event_id = controller.send(pod_count=4)
        pods = [controller.pod(event_id, index) for index in (1, 2)]
        controller.close(release=False)
        settings = {"MAX_PENDING": 2, "incarnation": "b2"}
        with SimulatedController(controller.servers, threads=ALL, **settings) as heir:  # type: ignore[arg-type]
            for index in (1, 2):
                heir.pod(event_id, index)
            assert len(heir.cluster.names()) == 2
            heir.cluster.run(pods[0])
            heir.pod(event_id, 3)
            assert len(heir.cluster.names()) == 3
