"""Tenants: each gets its share of the turns, none has more workers than it may, and none hides the others."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.pods import Phase
from ottoscaler.core.shares import MAX_TENANT, Share, Shares
from ottoscaler.core.tenants import tenant_of
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.turns import AGEING_S
from ottoscaler.ports import StoredWorker
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.ledger_driver import LedgerDriver, task
from tests.flow.pods import of
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

pytestmark = pytest.mark.contract("2.TENANT_FIELD")


def shares(default: Share | None = None, **named: Share) -> Shares:
    """What the policy says."""
    return Shares(default or Share(), named)


def driver_of(rules: Shares, max_workers: int = 1, **limits: int) -> LedgerDriver:
    """A ledger with tenants."""
    driver = LedgerDriver(max_workers=max_workers, tenant_field="tenant", **{"read_ahead": 10_000, **limits})
    driver.ledger.room_waits.set_shares(rules)
    return driver


def served(driver: LedgerDriver, turns: int, run_for: int = 1) -> list[str]:
    """The tenants of the next workers, each of which ends after so many further turns."""
    running, found = deque[WorkerRun](), list[str]()
    for _ in range(turns):
        if len(running) == run_for:
            driver.end(running.popleft())
        run = driver.take()
        found.append(run.task.tenant)
        running.append(run)
    while running:
        driver.end(running.popleft())
    return found


def jain(parts: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all parts are equal, 1/n where one has everything."""
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts))


class TestTurns:
    """Which tenant is next."""

    def test_twenty_of_one_worker_end_before_one_of_five_hundred(self) -> None:
        """Which came first, and has a tenant of its own."""
        driver = driver_of(shares())
        driver.ledger.add(task("big", 500, tenant="big"))
        for number in range(20):
            driver.ledger.add(task(f"small-{number}", tenant="small"))
        assert served(driver, 40).count("small") == 20

    def test_a_tenant_that_comes_later_has_the_next_turn(self) -> None:
        """Behind a thousand events of another one."""
        driver = driver_of(shares())
        for number in range(1000):
            driver.ledger.add(task(f"a-{number}", tenant="a"))
        served(driver, 3)
        driver.ledger.add(task("b", tenant="b"))
        assert served(driver, 2) == ["b", "a"]

    def test_ten_tenants_with_loads_of_1_to_100_share_alike(self) -> None:
        """As long as all of them have work."""
        driver = driver_of(shares(), max_workers=10)
        loads = [100 * (1 + 11 * number) for number in range(10)]
        for number, load in enumerate(loads):
            for event in range(load // 100):
                driver.ledger.add(task(f"{number}-{event}", 100, tenant=f"t{number}"))
        turns = Counter(served(driver, 10 * 100, run_for=10))
        assert loads[-1] == 100 * loads[0]
        assert jain([turns[f"t{number}"] for number in range(10)]) >= 0.95

    @pytest.mark.parametrize("weights", [(1, 3), (2, 1), (5, 5)])
    def test_turns_are_by_weight(self, weights: tuple[int, int]) -> None:
        """As long as both have work."""
        driver = driver_of(shares(a=Share(weight=weights[0]), b=Share(weight=weights[1])))
        for name in ("a", "b"):
            driver.ledger.add(task(name, 100, tenant=name))
        turns = Counter(served(driver, 10 * sum(weights)))
        assert (turns["a"], turns["b"]) == (10 * weights[0], 10 * weights[1])

    def test_events_without_a_tenant_have_one_share(self) -> None:
        """All of them together."""
        driver = driver_of(shares())
        for number in range(3):
            driver.ledger.add(task(f"none-{number}", 10))
        driver.ledger.add(task("a", 10, tenant="a"))
        assert Counter(served(driver, 10)) == {"": 5, "a": 5}

    def test_priority_ranks_within_a_tenant(self) -> None:
        """And not between them: an event of priority 9 takes no turn of another tenant."""
        driver = driver_of(shares())
        driver.ledger.add(task("a-low", 3, tenant="a", priority=1))
        driver.ledger.add(task("b", 3, tenant="b", priority=0))
        driver.ledger.add(task("a-high", 3, tenant="a", priority=9))
        order = []
        for _ in range(6):
            order.append(driver.take())
            driver.end(order[-1])
        assert [run.task.event.event_id for run in order] == ["a-high", "b", "a-high", "b", "a-high", "b"]

    def test_a_further_attempt_costs_a_turn_of_its_tenant(self) -> None:
        """And comes before the tenant's workers that never had one: hundreds that failed delay no other tenant."""
        driver = driver_of(shares(), max_workers=5)
        driver.ledger.add(task("a", 10, tenant="a"))
        runs = [driver.take() for _ in range(3)]
        driver.ledger.add(task("b", 3, tenant="b"))
        for run in runs:
            driver.pause(run, 0)
        found = []
        for _ in range(4):
            run = driver.take()
            found.append(f"{run.task.tenant}/{run.life.index}")
            driver.end(run)
        assert found == ["b/1", "a/1", "b/2", "a/2"]


turn_lists = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=25)


@given(turn_lists, st.dictionaries(st.sampled_from("abc"), st.integers(1, 4)), st.integers(1, 3))
def test_nobody_waits_longer_than_the_rounds_and_ageing_allow(
    events: Sequence[tuple[str, int, int]], weights: Mapping[str, int], room: int
) -> None:
    """Between two turns of a tenant with waiting workers no other one has more turns than its weight, and a tenant's
    own older events of a priority that ageing has made equal come first.
    """
    rules = shares(**{name: Share(weight=weight) for name, weight in weights.items()})
    driver = driver_of(rules, max_workers=room)
    for number, (tenant, priority, workers) in enumerate(events):
        driver.ledger.add(task(f"{tenant}-{number}", workers, tenant=tenant, priority=priority))
    waits = Counter({tenant: sum(each[2] for each in events if each[0] == tenant) for tenant in "abc"})
    since: dict[str, Counter[str]] = {tenant: Counter() for tenant in "abc"}
    for _ in range(sum(waits.values())):
        driver.clock.advance(AGEING_S / 10)
        run = driver.take()
        driver.end(run)
        tenant = run.task.tenant
        waits[tenant] -= 1
        for other in "abc":
            since[other][tenant] += 1
            assert not waits[other] or other == tenant or since[other][tenant] <= rules.of(tenant).weight
        since[tenant] = Counter()
    assert not +waits


class TestMaxima:
    """What a tenant may have at once."""

    def test_a_tenant_has_no_more_workers_than_it_may(self) -> None:
        """The room that it leaves is others'."""
        driver = driver_of(shares(a=Share(max_workers=2)), max_workers=5)
        driver.ledger.add(task("a", 5, tenant="a"))
        driver.ledger.add(task("b", 5, tenant="b"))
        assert Counter(driver.take().task.tenant for _ in range(5)) == {"a": 2, "b": 3}
        assert driver.ledger.take() is None

    def test_a_tenant_that_waits_alone_gets_no_more(self) -> None:
        """Although there is room, and again when one of its workers has ended."""
        driver = driver_of(shares(Share(max_workers=1)), max_workers=5)
        driver.ledger.add(task("a", 3, tenant="a"))
        first = driver.take()
        assert (driver.ledger.take(), driver.ledger.takeable()) == (None, False)
        driver.end(first)
        assert driver.take().life.index == 2

    def test_pods_of_other_replicas_count(self) -> None:
        """A claim that was not used yet is taken back for them."""
        driver = driver_of(shares(a=Share(max_workers=2)), max_workers=5)
        driver.ledger.add(task("a", 3, tenant="a"))
        first, second = driver.take(), driver.take()
        assert driver.ledger.may_create_pod(first)
        driver.registry.publish(of("theirs", 5, tenant="a"))
        assert not driver.ledger.may_create_pod(second)
        driver.pause(second, 0)
        assert driver.ledger.take() is None
        driver.registry.publish(of("theirs", 6, Phase.FAILED, tenant="a"))
        assert driver.ledger.may_create_pod(driver.take())

    def test_a_worker_that_was_taken_over_counts_before_its_pod_is_seen(self) -> None:
        """And goes on, although there are more than there may be."""
        driver = driver_of(shares(a=Share(max_workers=1)), max_workers=5)
        stored = (StoredWorker(1, attempt=1), StoredWorker(2, attempt=1))
        driver.ledger.add(task("a", 3, *stored, tenant="a"))
        runs = [driver.take(), driver.take()]
        assert [run.life.index for run in runs] == [1, 2]
        assert driver.ledger.take() is None
        driver.end(runs[0])
        assert driver.ledger.take() is None
        driver.end(runs[1])
        assert driver.take().life.index == 3

    def test_a_further_attempt_waits_for_its_tenant_and_holds_up_no_other(self) -> None:
        """Another worker of the tenant has its room by then."""
        driver = driver_of(shares(a=Share(max_workers=1)), max_workers=5)
        driver.ledger.add(task("a", 2, tenant="a"))
        run = driver.take()
        driver.pause(run, 10)
        second = driver.take()
        driver.clock.advance(10)
        driver.ledger.add(task("b", tenant="b"))
        assert driver.order(1) == ["b/1"]
        assert driver.ledger.take() is None
        driver.end(second)
        assert driver.take() is run

    def test_a_new_policy_holds_for_what_has_not_started(self) -> None:
        """Nothing that runs is ended for a smaller maximum."""
        driver = driver_of(shares(), max_workers=5)
        driver.ledger.add(task("a", 5, tenant="a"))
        runs = [driver.take() for _ in range(3)]
        driver.ledger.room_waits.set_shares(shares(a=Share(max_workers=1)))
        for run in runs[:2]:
            driver.end(run)
            assert driver.ledger.take() is None
        driver.end(runs[2])
        driver.take()
        assert driver.ledger.take() is None


steps = st.lists(
    st.tuples(st.sampled_from(("add", "take", "take", "see", "end", "theirs", "drop")), st.integers(0, 9)), max_size=60
)


@given(steps, st.integers(1, 3), st.integers(1, 6))
def test_never_has_a_tenant_more_than_it_may(moves: Sequence[tuple[str, int]], most: int, room: int) -> None:
    """Whatever happens in whatever order: when a create is permitted, its tenant has room for it."""
    driver, running, names = driver_of(shares(a=Share(max_workers=most)), room), list[WorkerRun](), count()
    for version, (move, number) in enumerate(moves, 2):
        run = running[number % len(running)] if running else None
        if move == "add":
            driver.ledger.add(task(f"e{next(names)}", 3, tenant="ab"[number % 2]))
        elif move == "take" and (taken := driver.ledger.take()) is not None:
            if not driver.ledger.may_create_pod(taken):
                driver.pause(taken, 0)
                continue
            claims = driver.ledger._capacity._claims_of.get("a", ())
            assert taken.task.tenant != "a" or driver.registry.live_count_of("a") + len(claims) <= most
            running.append(taken)
        elif move == "theirs":
            driver.registry.publish(of(f"theirs-{number}", version, tenant="ab"[number % 2], gone=number > 4))
        elif move == "drop" and run is not None:
            driver.ledger.drop(run.task.event.event_id, "c1/b1/1")
            running = [each for each in running if each.task is not run.task]
        elif run is not None:
            event_id, index, tenant = run.task.event.event_id, run.life.index, run.task.tenant
            driver.registry.publish(of(event_id, version, index=index, tenant=tenant, gone=move == "end"))
            driver.ledger.release_room(run)
            if move == "end":
                driver.end(run)
                running.remove(run)


class TestReading:
    """How many events may be taken from the stream."""

    def test_one_tenants_events_do_not_hide_those_behind_them(self) -> None:
        """Of each tenant one event counts for READ_AHEAD; what waits for its share counts for ADMIT_MAX."""
        driver = driver_of(shares(), read_ahead=3, admit_max=6)
        for number in range(5):
            driver.ledger.add(task(f"a-{number}", tenant="a"))
        assert driver.ledger.wait_for_room(0) == 2
        for number in range(2):
            driver.ledger.add(task(f"b-{number}", tenant="b"))
        assert driver.ledger.wait_for_room(0) == 1
        driver.ledger.add(task("a-5", tenant="a"))
        assert driver.ledger.wait_for_room(0) == 0

    def test_as_many_tenants_as_may_start_are_enough(self) -> None:
        """The rest stays in Redis for other replicas."""
        driver = driver_of(shares(), read_ahead=3)
        for name in "abc":
            driver.ledger.add(task(name, tenant=name))
        assert driver.ledger.wait_for_room(0) == 0

    def test_a_tenant_that_has_as_many_workers_as_it_may_waits_for_its_share(self) -> None:
        """None of its events could start."""
        driver = driver_of(shares(Share(max_workers=1)), max_workers=5, read_ahead=1)
        driver.ledger.add(task("a", 2, tenant="a"))
        assert driver.ledger.wait_for_room(0) == 0
        driver.take()
        assert driver.ledger.wait_for_room(0) == 1

    def test_without_tenants_nothing_is_read_beyond_read_ahead(self) -> None:
        """The field is passed on, and means nothing."""
        driver = LedgerDriver(read_ahead=2)
        for name in "ab":
            driver.ledger.add(task(name, tenant="a"))
        assert driver.ledger.wait_for_room(0) == 0


def test_only_the_beginning_of_a_long_name_counts() -> None:
    """Each of its pods carries it."""
    assert tenant_of({"team": "é" * 200}, "team") == "é" * MAX_TENANT
    assert (tenant_of({"team": "x"}, "repository"), tenant_of({"team": "x"}, "")) == ("", "")


@pytest.fixture
def servers() -> FakeServers:
    """With a clock that runs."""
    return FakeServers(SystemClock())


SETTINGS: Mapping[str, Any] = {"threads": ALL, "TENANT_FIELD": "team", "MAX_WORKERS": 2, "READ_AHEAD": 2}


@pytest.fixture
def controller(servers: FakeServers) -> Iterator[SimulatedController]:
    """One replica with all its threads and room for two pods, of which team a may have one."""
    with SimulatedController(servers, shares=shares(a=Share(max_workers=1)), **SETTINGS) as made:
        yield made


class TestController:
    """A whole controller."""

    def test_a_tenant_behind_many_events_of_another_starts_at_once(self, controller: SimulatedController) -> None:
        """READ_AHEAD is 2, and 30 events of a tenant that may have one worker come first."""
        first = controller.send(team="a")
        for _ in range(30):
            controller.send(team="a")
        controller.pod(first)
        controller.pod(controller.send(team="b"))
        assert len(controller.cluster.names()) == 2

    def test_what_waits_says_for_what(self, controller: SimulatedController) -> None:
        """The maximum of its tenant, or that others wait for room, too; and nothing when it starts."""

        def why(event_id: str) -> str:
            return controller.redis.task(event_id).get("why", "")

        first = controller.pod(controller.send(team="a"))
        second, third = controller.send(team="a"), controller.send()
        controller.pod(third)
        fourth = controller.send(pod_count=2)
        full = "waits for its tenant's share: a has 1 workers, as many as it may (policy: tenants.a.max_workers)"
        eventually(lambda: why(second) == full, what="why it waits")
        others = "waits for its tenant's share: other tenants wait for room, too"
        eventually(lambda: why(fourth) == others, what="why the others wait")
        controller.cluster.succeed(first)

        def waits_no_longer(event_id: str) -> bool:
            return "share" not in why(event_id)

        eventually(lambda: waits_no_longer(second) or waits_no_longer(fourth), what="that one waits no longer")

    def test_pods_carry_their_tenant(self, controller: SimulatedController) -> None:
        """Other replicas count them by it; a pod of an event without a tenant has no such annotation."""
        with_one, without = controller.pod(controller.send(team="팀 a")), controller.pod(controller.send())
        pods = controller.servers.kubernetes.pods
        assert pods[with_one]["metadata"]["annotations"]["ottoscaler.io/tenant"] == "팀 a"
        assert "ottoscaler.io/tenant" not in pods[without]["metadata"]["annotations"]

    def test_keys_tenants_and_priorities_do_not_lock_each_other(self, servers: FakeServers) -> None:
        """Two keys that cross two tenants, of which one may have one worker: all come to their end."""
        rules, settings = shares(a=Share(max_workers=1)), {**SETTINGS, "MAX_PENDING": 1}
        with SimulatedController(servers, shares=rules, auto=lambda _: 0, **settings) as controller:
            events = [
                controller.send(team="ab"[number % 2], concurrency_key="kl"[number // 2 % 2], priority=number % 10)
                for number in range(24)
            ]
            assert {one["event_id"] for one in controller.results(24, "task")} == set(events)


class TestReplicas:
    """Several replicas, and deaths."""

    def test_the_maximum_counts_over_replicas(self, servers: FakeServers) -> None:
        """One has the only worker of the tenant; the other starts the next one when that has ended."""
        rules, settings = shares(a=Share(max_workers=1)), {**SETTINGS, "threads": ("watch", "lease")}
        with ExitStack() as stack:
            first, second = (
                stack.enter_context(SimulatedController(servers, shares=rules, consumer=name, **settings))
                for name in ("c1", "c2")
            )
            pod = first.pod(first.accept(team="a"))
            second.sees(pod, lambda seen: seen.tenant == "a")
            other = second.accept(team="a")
            eventually(lambda: "share" in second.redis.task(other).get("why", ""), what="why it waits")
            assert first.cluster.names() == {pod}
            first.cluster.succeed(pod)
            second.pod(other)

    def test_a_successor_counts_what_runs(self, servers: FakeServers) -> None:
        """Nothing is stored of shares: the tasks and the pods say it."""
        rules = shares(a=Share(max_workers=1))
        with SimulatedController(servers, shares=rules, **SETTINGS) as first:
            event_id = first.send(team="a", pod_count=2)
            pod = first.pod(event_id)
            first.close(release=False)
            with SimulatedController(servers, shares=rules, incarnation="b2", **SETTINGS) as heir:
                heir.pod(event_id)
                heir.pod(heir.send(team="b"))
                assert len(heir.cluster.names()) == 2
                heir.cluster.succeed(pod)
                heir.pod(event_id, 2)
