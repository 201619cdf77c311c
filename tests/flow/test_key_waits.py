"""Concurrency keys in a whole controller: what waits uses nothing, starts when it may, and is never started twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ottoscaler.errors import Unavailable
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController


def pod_count(controller: SimulatedController) -> int:
    """How many pods there are."""
    return len(controller.cluster.names())


def why(controller: SimulatedController, event_id: str) -> str:
    """What the task says that it waits for."""
    return controller.redis.task(event_id).get("why", "")


@pytest.fixture
def servers() -> FakeServers:
    """With a clock that runs, five times as fast as time: leases have to run out here."""
    return FakeServers(SystemClock(rate=5))


@pytest.fixture
def controller(servers: FakeServers) -> Iterator[SimulatedController]:
    """One replica with all its threads, which may have two events read ahead."""
    with SimulatedController(servers, threads=ALL, READ_AHEAD=2) as made:
        yield made


@pytest.mark.contract("3.concurrency_key")
class TestWhatWaits:
    """A task that waits for a place of its key."""

    def test_starts_when_the_one_before_it_has_its_last_result(self, controller: SimulatedController) -> None:
        """And not with the result of one of its workers."""
        first = controller.send(concurrency_key="deploy", pod_count=2)
        second = controller.send(concurrency_key="deploy")
        pods = [controller.pod(first, index) for index in (1, 2)]
        controller.cluster.succeed(pods[0])
        controller.results(1)
        eventually(lambda: why(controller, second), what="what it waits for")
        assert controller.name(second) not in controller.cluster.names()
        controller.cluster.succeed(pods[1])
        controller.cluster.succeed(controller.pod(second))
        assert [result["event_id"] for result in controller.results(2, "task")] == [first, second]

    def test_says_what_it_waits_for(self, controller: SimulatedController) -> None:
        """The task that holds the key, and its position; nothing any more when it may start."""
        first = controller.send(concurrency_key="deploy-prod", task_id="release-1")
        second, third = (controller.send(concurrency_key="deploy-prod") for _ in range(2))
        text = "waits for task release-1, which holds deploy-prod, position {}"
        eventually(lambda: why(controller, third) == text.format(2), what="what it waits for")
        assert why(controller, second) == text.format(1)
        assert controller.redis.task(second)["state"] == "waiting"
        controller.cluster.succeed(controller.pod(first))
        controller.pod(second)
        eventually(lambda: "waits for task" not in why(controller, second), what="that it waits no longer")
        eventually(lambda: why(controller, third).endswith("position 1"), what="its new position")

    def test_names_how_many_hold_the_key(self, controller: SimulatedController) -> None:
        """Where there are several."""
        events = [
            controller.send(concurrency_key="k", concurrency_limit=2, task_id=f"t-{number}") for number in range(3)
        ]
        text = "waits for task t-0 and 1 more, which hold k, position 1"
        eventually(lambda: why(controller, events[2]) == text, what="what it waits for")

    def test_takes_nothing_from_others(self, controller: SimulatedController) -> None:
        """33 events of a key that is held, and READ_AHEAD is 2: what stands behind them starts at once."""
        controller.pod(controller.send(concurrency_key="k"))
        waiting = [controller.send(concurrency_key="k") for _ in range(33)]
        controller.pod(controller.send())
        assert pod_count(controller) == 2
        eventually(lambda: why(controller, waiting[-1]) == "waits for k, position over 20", what="its position")
        assert controller.ledger.thread_counts() == (2, 0)

    @pytest.mark.contract("2.ADMIT_MAX")
    def test_is_bounded(self, servers: FakeServers) -> None:
        """With ADMIT_MAX that wait nothing more is read, until one of them starts."""
        with SimulatedController(servers, threads=ALL, ADMIT_MAX=3) as controller:
            keyed = [controller.send(concurrency_key="k")]
            controller.pod(keyed[0])
            keyed += [controller.send(concurrency_key="k") for _ in range(4)]
            behind = controller.send()
            eventually(lambda: why(controller, keyed[3]), what="as many as there is room for")
            assert controller.redis.open_ids() == set(keyed[:4])
            controller.cluster.succeed(controller.pod(keyed[0]))
            eventually(lambda: why(controller, keyed[4]), what="one more")
            assert behind not in controller.redis.open_ids()
            controller.cluster.succeed(controller.pod(keyed[1]))
            controller.pod(behind)

    def test_ends_at_once_where_a_scale_down_chooses_it(self, controller: SimulatedController) -> None:
        """Without a place, and those behind it move up."""
        first = controller.send(concurrency_key="k")
        second = controller.send(concurrency_key="k", task_id="unwanted", pod_count=3)
        third = controller.send(concurrency_key="k")
        controller.pod(first)
        controller.send(type="scale_down", task_id="unwanted")
        assert {result["reason"] for result in controller.results(3)} == {"ScaledDown"}
        assert pod_count(controller) == 1
        assert second not in controller.redis.open_ids()
        eventually(lambda: why(controller, third).endswith("position 1"), what="its new position")

    def test_ends_at_once_where_a_newer_event_supersedes_it(self, controller: SimulatedController) -> None:
        """So the newest comes first among those that have not started."""
        events = [controller.send(concurrency_key="k", supersedes="branch")]
        controller.cluster.run(controller.pod(events[0]))
        events += [controller.send(concurrency_key="k", supersedes="branch") for _ in range(3)]
        assert {result["event_id"] for result in controller.results(2)} == set(events[1:3])
        controller.cluster.succeed(controller.pod(events[0]))
        controller.pod(events[3])

    def test_waits_through_retries(self, servers: FakeServers) -> None:
        """The one before it holds its place until its last attempt has ended."""
        with SimulatedController(servers, threads=ALL, WORKER_RETRIES=1) as controller:
            first, second = (controller.send(concurrency_key="k") for _ in range(2))
            controller.cluster.fail(controller.pod(first))
            again = controller.pod(first, attempt=2)
            assert controller.name(second) not in controller.cluster.names()
            controller.cluster.succeed(again)
            controller.pod(second)

    def test_goes_on_where_redis_was_wiped(self, servers: FakeServers) -> None:
        """Its owner stores it again, and so it does the one that holds the key."""
        with SimulatedController(servers, threads=ALL, LEASE_S=3) as controller:
            first, second = (controller.send(concurrency_key="k") for _ in range(2))
            pod = controller.pod(first)
            eventually(lambda: why(controller, second), what="what it waits for")
            controller.redis.flush()
            eventually(lambda: controller.redis.open_count() == 2, 10, "both to be stored again")
            assert pod_count(controller) == 1
            controller.cluster.succeed(pod)
            controller.pod(second)

    def test_does_not_stop_the_take_over_where_redis_refuses(self, controller: SimulatedController) -> None:
        """It is looked for again."""
        first, second = (controller.send(concurrency_key="k") for _ in range(2))
        eventually(lambda: why(controller, second), what="what it waits for")
        controller.redis.fail_next("admit", 2)
        controller.redis.fail_next("write_status", 1)
        controller.cluster.succeed(controller.pod(first))
        controller.pod(second)

    def test_costs_nothing_where_no_key_is_used(self, controller: SimulatedController) -> None:
        """No call for it."""
        controller.cluster.succeed(controller.pod(controller.send()))
        controller.results(1, "task")
        controller.idle()
        assert controller.redis.calls["admit"] == 0


class Dying(Unavailable):
    """The process dies in this call."""


#: Every write at which a replica may die while a key is held and waited for.
WRITES = ("accept", "store_attempt", "mark_pod_seen", "record_result", "admit", "write_status", "take_over", "renew")


class TestDeaths:
    """A replica dies; the others go on with its tasks, in order and never beyond the limit."""

    @pytest.mark.parametrize("after", [False, True])
    @pytest.mark.parametrize("write", WRITES)
    def test_at_any_write_lose_nothing(self, servers: FakeServers, write: str, after: bool) -> None:
        """Before its effect, or before its answer: six tasks of one key, one after the other."""
        watch = Holders(servers)
        dying = SimulatedController(servers, consumer="c1", threads=ALL, auto=lambda _: 0, LEASE_S=3)
        with (
            dying as first,
            SimulatedController(servers, consumer="c2", threads=ALL, auto=lambda _: 0, LEASE_S=3) as second,
        ):
            first.redis.fail_next(write, 1, after=after)
            events = [first.send(concurrency_key="k") for _ in range(6)]
            first.send()
            eventually(lambda: len(first.redis.results("worker")) >= 2, 20, "the first results")
            first.redis.fail_next(write, 1, after=after)
            first.close(release=False)
            results = second.results(7, "task")
        found = [result["event_id"] for result in results if result["event_id"] in events]
        assert found == events
        assert watch.most["k"] == 1

    def test_over_two_replicas_and_twenty_events(self, servers: FakeServers) -> None:
        """Each replica is killed in turn and started again: never two at once, in order, none stuck."""
        watch = Holders(servers)
        with ExitStack() as stack:

            def start(consumer: str, boot: int) -> SimulatedController:
                made = SimulatedController(
                    servers, consumer=consumer, incarnation=f"b{boot}", threads=ALL, auto=lambda _: 0, LEASE_S=3
                )
                return stack.enter_context(made)

            replicas = [start("c1", 1), start("c2", 1)]
            events = [replicas[0].send(concurrency_key="k") for _ in range(20)]
            others = [replicas[0].send() for _ in range(5)]
            eventually(lambda: len(_done(servers, others)) == 5, 10, "those without a key, which wait for nothing")
            for boot in range(2, 6):
                done = len(_done(servers, events))
                eventually(lambda: len(_done(servers, events)) > done or done == 20, 20, "one more to end")  # noqa: B023
                old = replicas[boot % 2]
                old.close(release=False)
                replicas[boot % 2] = start(f"c{boot % 2 + 1}", boot)
            eventually(lambda: len(_done(servers, events)) == 20, 40, "all to end")
        assert _done(servers, events) == events
        assert watch.most["k"] == 1
        assert Counter(result["event_id"] for result in servers.redis.results("worker")) == Counter(events + others)


def _done(servers: FakeServers, events: list[str]) -> list[str]:
    return [result["event_id"] for result in servers.redis.results("task") if result["event_id"] in events]


class Holders:
    """Counts, at each call to Redis, the keyed tasks that have live pods; and the most there ever were."""

    def __init__(self, servers: FakeServers) -> None:
        self.most: Counter[str] = Counter()
        self._servers = servers
        self._lock = threading.Lock()
        servers.redis.on_call = self._look

    def _look(self, _op: str) -> None:
        with self._lock, self._servers.redis.changed:
            tasks = dict(self._servers.redis.tasks)
            for key, holding in self._servers.redis.places.by_key().items():
                started = [
                    event_id
                    for event_id, task in tasks.items()
                    if task.event is not None and task.event.concurrency_key == key and task.state == "running"
                ]
                self.most[key] = max(self.most[key], len(holding), len(started))
