"""Heartbeats: they distinguish a loop that hangs from one that waits for its server and from a process that slept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from ottoscaler.errors import ClusterUnavailable, RedisUnavailable
from ottoscaler.flow.health import FROZEN_S, Health, failing, frozen, stuck
from ottoscaler.flow.heartbeat import SHORTEST_OUTAGE_S, SUSPEND_GAP_S, HealthFinding, Heartbeat
from ottoscaler.flow.stop import StopSignal
from tests.fakes.clock import ManualClock
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import ALL, SimulatedController

pytestmark = pytest.mark.contract("2.probes")


def health(controller: SimulatedController) -> Health:
    """The probes of a controller, after its start: both servers have answered."""
    controller.heartbeat.set_phase("")
    controller.heartbeat.report_call("Redis")
    controller.heartbeat.report_call("Kubernetes")
    return Health(controller.heartbeat, controller.ledger, controller.registry)


def let_pass(controller: SimulatedController, seconds: float) -> None:
    """Time in which the process is awake: in steps, each of them looked at."""
    assert isinstance(controller.clock, ManualClock)
    while seconds > 0:
        controller.clock.advance(min(seconds, SUSPEND_GAP_S / 2))
        controller.heartbeat.ages()
        seconds -= SUSPEND_GAP_S / 2


def frozen_loops(probes: Health) -> set[str]:
    """The loops that `/livez` names."""
    return {line.partition(":")[0].removeprefix("loop ") for line in probes.livez()}


@dataclass(frozen=True)
class Hang:
    """A call that does not come back: whether it was made, and what ends it."""

    there: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hanging(controller: SimulatedController, call: str) -> Iterator[Hang]:
    """The next call of this name to Redis or Kubernetes hangs, at most until the end of the block."""
    held = Hang()

    def hang(name: str, *_: object) -> None:
        if name == call and not held.there.is_set():
            held.there.set()
            held.release.wait(30)

    controller.redis.on_call = controller.servers.kubernetes.on_call = hang
    try:
        yield held
    finally:
        held.release.set()


class Swift(StopSignal):
    """No thread waits on it for long."""

    def wait(self, timeout_s: float | None = None) -> bool:
        return super().wait(timeout_s if timeout_s is None else min(timeout_s, 0.01))


@pytest.mark.parametrize(
    ("rule", "bound_s"),
    [(frozen, 60.0), (failing, 10.0), (lambda found: stuck(found[0], 1, 1), 120.0)],
    ids=["frozen", "failing", "stuck"],
)
def test_a_bound_is_passed_only_after_it(
    rule: Callable[[Sequence[HealthFinding]], list[HealthFinding]], bound_s: float
) -> None:
    """Not at it; and what is found keeps its name, its beginning and how long it has lasted."""
    found = [HealthFinding("x", "no", 7.0, bound_s + more_s) for more_s in (-1, 0, 0.5)]
    assert [len(rule([each])) for each in found] == [0, 0, 1]
    (late,) = rule(found[2:])
    assert (late.what.removeprefix("loop "), late.since, late.lasted_s) == ("x", 7.0, bound_s + 0.5)


@pytest.mark.parametrize(("held", "shown"), [(-1, 0), (0, 0), (2, 2)])
def test_what_is_stuck_says_how_many_wait_and_how_many_hold_a_thread(held: int, shown: int) -> None:
    """Counted one after the other, they may differ for a moment: never a negative number."""
    (late,) = stuck(HealthFinding("workers", "", 7.0, 121.0), 3, held)
    assert late.reason == f"nothing moves, with 3 waiting for a thread and {shown} that hold one and wait for no pod"


@pytest.mark.parametrize(
    ("loop", "call"),
    [
        ("lease", "renew"),
        ("takeover", "expired"),
        ("reader", "read"),
        ("control", "peek"),
        ("reconciler", "known_tasks"),
    ],
)
def test_a_loop_that_hangs_is_named_after_a_minute(loop: str, call: str) -> None:
    """It alone, and not before: the others have come round meanwhile."""
    with SimulatedController(threads=ALL, LEASE_S=3) as controller:
        probes = health(controller)
        with hanging(controller, call) as held:
            let_pass(controller, 1)  # a renewal is due
            eventually(held.there.is_set, 10, "the loop to come by")
            let_pass(controller, FROZEN_S - SUSPEND_GAP_S)
            eventually(lambda: probes.livez() == [])
            let_pass(controller, 2 * SUSPEND_GAP_S)
            eventually(lambda: frozen_loops(probes) <= {loop, "reconciler", "watch"})
            assert loop in frozen_loops(probes)
            (line,) = (line for line in probes.livez() if loop in line)
            assert line in {f"loop {loop}: no sign of life, since 2023-11-14T22:13:2{second}.000Z" for second in (0, 1)}


def test_a_watch_that_hangs_is_named() -> None:
    """In its list: there the loop waits for no other thread."""
    with SimulatedController(threads=["watch"]) as controller:
        probes = health(controller)
        with hanging(controller, "list") as held:
            controller.break_watch(ClusterUnavailable("broken"))
            eventually(held.there.is_set, 10, "the list")
            let_pass(controller, FROZEN_S + SUSPEND_GAP_S)
            eventually(lambda: frozen_loops(probes) == {"watch"}, what="a sign of life of the others")


@pytest.mark.parametrize("loop", ["dispatcher", "lease", "takeover", "reader", "control", "reconciler"])
def test_a_loop_with_nothing_to_do_gives_signs_of_life(loop: str) -> None:
    """As often as it comes round."""
    with SimulatedController(threads=[loop], stop=Swift()) as controller:
        probes = health(controller)
        for _ in range(3):
            let_pass(controller, FROZEN_S / 2)
            eventually(lambda: not any(age.lasted_s for age in controller.heartbeat.ages()), what="a sign of life")
            assert probes.livez() == []


def test_an_event_is_a_sign_of_life_of_the_watch() -> None:
    """A bookmark, too: it need not have come to its end."""
    with SimulatedController(threads=["watch"]) as controller:
        probes = health(controller)
        let_pass(controller, FROZEN_S + SUSPEND_GAP_S)
        eventually(lambda: frozen_loops(probes) == {"watch"}, what="a sign of life of the others")
        controller.pod(controller.accept())
        eventually(lambda: probes.livez() == [], what="a sign of life")


def test_an_outage_restarts_no_process() -> None:
    """However long: each failed try is a sign of life, and `/readyz` says what is wrong."""
    with SimulatedController(threads=["watch", "lease", "control", "reader"], LEASE_S=3) as controller:
        probes = health(controller)
        controller.redis.set_down(True)
        controller.servers.kubernetes.refuse_next("list", ClusterUnavailable("away"), times=1_000_000)
        controller.break_watch(ClusterUnavailable("broken"))
        for _ in range(4):
            let_pass(controller, FROZEN_S / 2)
            eventually(lambda: probes.livez() == [], what="a try of each loop")
        answer = "\n".join(probes.readyz())
        for loop in ("watch", "lease", "control", "reader"):
            assert f"loop {loop}: " in answer
        controller.servers.kubernetes._faults.clear()
        controller.redis.set_down(False)
        eventually(lambda: probes.readyz() == [], 10, "all to be well again")


def test_a_process_that_slept_is_not_frozen() -> None:
    """Its signs of life are all old when it wakes up, and its loops are about to go on."""
    with SimulatedController() as controller:
        for name in ALL:
            controller.heartbeat.add_loop(name)
        probes = health(controller)
        assert isinstance(controller.clock, ManualClock)
        controller.clock.advance(3600)
        assert probes.livez() == []
        let_pass(controller, FROZEN_S)
        assert frozen_loops(probes) == set(ALL)


def test_a_call_inside_an_iteration_is_a_sign_of_life() -> None:
    """One reconciler over many pods may take longer than a minute."""
    with SimulatedController() as controller:
        controller.heartbeat.add_loop(threading.current_thread().name)
        probes = health(controller)
        for _ in range(10):
            let_pass(controller, FROZEN_S / 2)
            controller.heartbeat.report_call("Kubernetes")
        assert probes.livez() == []


def test_a_server_out_of_reach_is_named_since_its_first_error() -> None:
    """With its last one, on one line; an answer ends it."""
    with SimulatedController() as controller:
        probes = health(controller)
        controller.heartbeat.report_call("Redis", "first")
        let_pass(controller, 60)
        controller.heartbeat.report_call("Redis", "Redis at h:1 cannot\nbe reached")
        assert probes.readyz() == ["Redis: Redis at h:1 cannot be reached, since 2023-11-14T22:13:20.000Z"]
        controller.heartbeat.report_call("Redis")
        assert probes.readyz() == []


def test_a_single_failure_of_a_loop_is_no_outage() -> None:
    """One that lasts is, though the server answers others."""
    with SimulatedController() as controller:
        controller.heartbeat.add_loop(threading.current_thread().name)
        probes = health(controller)
        controller.heartbeat.report_failure("no permission")
        assert probes.readyz() == []
        let_pass(controller, 20)
        controller.heartbeat.report_failure("no permission")
        (line,) = probes.readyz()
        assert line == "loop MainThread: no permission, since 2023-11-14T22:13:20.000Z"
        controller.heartbeat.beat()
        assert probes.readyz() == []


def test_it_is_not_ready_before_the_start_and_at_the_stop() -> None:
    """Both servers are named until they have answered."""
    with SimulatedController() as controller:
        probes = Health(controller.heartbeat, controller.ledger, controller.registry)
        assert [line.partition(",")[0] for line in probes.readyz()] == [
            "controller: starting", "Redis: not reached yet", "Kubernetes: not reached yet",
        ]  # fmt: skip
        assert health(controller).readyz() == []
        controller.heartbeat.set_phase("stopping")
        assert probes.readyz()[0].startswith("controller: stopping")


class TestWork:
    """Work, room for it, and nothing moves."""

    def test_idle_is_ready(self) -> None:
        """For hours."""
        with SimulatedController(threads=["watch"]) as controller:
            probes = health(controller)
            for _ in range(100):
                let_pass(controller, 100)
                assert probes.readyz() == []

    def test_work_that_no_thread_takes_is_not(self) -> None:
        """There is room and a free thread, and after two minutes the worker has neither."""
        with SimulatedController(threads=["watch"]) as controller:
            probes = health(controller)
            with controller.without_dispatch():
                controller.accept()
                let_pass(controller, 100)
                assert probes.readyz() == []
                let_pass(controller, 100)
                assert probes.readyz() == []  # the first look was 100 s ago
                let_pass(controller, 100)
                (line,) = probes.readyz()
                assert line.startswith("workers: nothing moves, with 1 waiting for a thread and 0 that hold one")
            eventually(lambda: probes.readyz() == [])

    def test_a_look_that_finds_no_work_ends_the_standstill(self) -> None:
        """What waits after it has waited since the look after it at most."""
        clock = ManualClock()
        heartbeat = Heartbeat(clock)
        lasted = []
        for work in (True, True, True, False, True, True):
            clock.advance(5)
            lasted.append(heartbeat.stalled_for(work).lasted_s)
        assert lasted == [0, 5, 10, 0, 0, 5]

    def test_pods_that_run_are_no_standstill(self) -> None:
        """At full capacity, with others waiting."""
        with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:
            probes = health(controller)
            controller.pod(controller.accept(pod_count=3))
            assert controller.ledger.thread_counts() == (1, 2)
            for _ in range(5):
                let_pass(controller, 100)
                assert probes.readyz() == []

    def test_pods_that_no_thread_follows_take_room_as_well(self) -> None:
        """There is a free thread, and no room below MAX_WORKERS: nothing can be taken."""
        with SimulatedController(threads=["watch"], MAX_WORKERS=1) as old:
            old.pod(old.accept(event_id="old"))
            old.close(release=False)
            with SimulatedController(old.servers, consumer="c2", threads=["watch"], MAX_WORKERS=1) as controller:
                probes = health(controller)
                controller.registry.count_as_ours(controller.key("old").event_hash)
                controller.accept()
                assert controller.ledger.thread_counts() == (0, 1)
                for _ in range(5):
                    let_pass(controller, 100)
                    assert probes.readyz() == []

    def test_one_step_is_enough(self) -> None:
        """A worker with slow calls that come to an end is no standstill."""
        with SimulatedController(threads=["watch"]) as controller:
            probes = health(controller)
            with hanging(controller, "store_attempt") as first:
                controller.accept()
                eventually(first.there.is_set, 10, "the first call")
                assert probes.readyz() == []
                let_pass(controller, 70)
                assert probes.readyz() == []
                with hanging(controller, "create") as second:
                    first.release.set()
                    eventually(second.there.is_set, 10, "the second call")
                    let_pass(controller, 70)
                    assert probes.readyz() == []

    def test_waiting_for_a_quota_is_no_standstill(self) -> None:
        """The worker has given its thread back until its next try."""
        with SimulatedController(threads=["watch"]) as controller:
            probes = health(controller)
            refusal = ClusterUnavailable("exceeded quota", unclear=False)
            controller.servers.kubernetes.refuse_next("create", refusal, times=1_000_000)
            controller.accept()
            for _ in range(50):
                controller.pass_time(5)
                controller.idle()
                assert probes.readyz() == []

    def test_a_pool_that_hangs_is(self) -> None:
        """Threads are held, and none of them waits for a pod."""
        with SimulatedController(threads=["watch"], MAX_WORKERS=2) as controller:
            probes = health(controller)
            with hanging(controller, "store_attempt") as held:
                controller.accept()
                eventually(held.there.is_set, 10, "the worker to come by")
                for _ in range(3):
                    let_pass(controller, 70)
                    answer = probes.readyz()
                assert ["and 1 that hold one" in line for line in answer] == [True]
            eventually(lambda: probes.readyz() == [])


def test_redis_away_is_a_sign_of_life_of_each_try() -> None:
    """A retry on a loop's thread notes what failed; one on a worker's thread belongs to no loop."""
    with SimulatedController() as controller:
        controller.heartbeat.add_loop(threading.current_thread().name)
        left = [RedisUnavailable("away")]

        def attempt() -> None:
            if left:
                raise left.pop()

        controller.retries.retry_forever("read", attempt)
        (miss,) = controller.heartbeat.failing()
        assert miss.reason == "cannot read: away"
        thread = threading.Thread(target=controller.heartbeat.report_failure, args=("nobody's",), name="worker-1")
        thread.start()
        thread.join()
        assert [each.reason for each in controller.heartbeat.failing()] == ["cannot read: away"]


def test_a_thread_with_signs_of_life_is_a_loop() -> None:
    """Its requests wait for no worker's; those of all other threads may."""
    with SimulatedController() as controller:
        report: dict[str, bool] = {}
        controller.heartbeat.add_loop("watch")
        for name in ("watch", "worker-1"):
            thread = threading.Thread(
                target=lambda: report.update({_name(): controller.heartbeat.is_loop()}), name=name
            )
            thread.start()
            thread.join(5)
        assert report == {"watch": True, "worker-1": False}


def _name() -> str:
    return threading.current_thread().name


@pytest.mark.parametrize(
    ("server", "event", "name"), [("Redis", "redis.back", "Redis"), ("Kubernetes", "kubernetes.back", "The API server")]
)
def test_the_end_of_an_outage_is_one_line(log: Lines, server: str, event: str, name: str) -> None:
    """How long it was away: from the first call that failed to the first answer, whichever calls came in between."""
    clock = ManualClock()
    heartbeat = Heartbeat(clock)
    heartbeat.report_call(server)
    for _ in range(2):
        for _ in range(5):
            clock.advance(2.0)
            heartbeat.report_call(server, "no answer")
        clock.advance(2.5)
        for _ in range(3):
            heartbeat.report_call(server)
    lines = log.lines(event)
    assert [(line["message"], line["away_s"]) for line in lines] == [
        (f"{name} is back: it was away for 10.5 s", 10.5)
    ] * 2
    assert len(log.all()) == 2


def test_a_server_that_answers_late_at_the_start_is_back(log: Lines) -> None:
    """It was never there before, and the operator waits for it."""
    clock = ManualClock()
    heartbeat = Heartbeat(clock)
    clock.advance(3.0)
    heartbeat.report_call("Redis", "no answer")
    clock.advance(3.0)
    heartbeat.report_call("Redis")
    assert [line["away_s"] for line in log.lines("redis.back")] == [6.0]


def test_a_start_without_an_outage_has_no_such_line(log: Lines) -> None:
    """However long it takes until the first call is made."""
    clock = ManualClock()
    heartbeat = Heartbeat(clock)
    clock.advance(60.0)
    heartbeat.report_call("Redis")
    assert log.all() == []


def test_one_call_that_failed_is_no_outage(log: Lines) -> None:
    """Of hundreds in flight some fail now and then: the others go on."""
    clock = ManualClock()
    heartbeat = Heartbeat(clock)
    heartbeat.report_call("Redis")
    for _ in range(100):
        heartbeat.report_call("Redis", "no answer")
        clock.advance(SHORTEST_OUTAGE_S / 2)
        heartbeat.report_call("Redis")
    assert log.all() == []


def test_the_end_of_an_outage_is_one_line_of_many_threads(log: Lines) -> None:
    """Of many threads that get an answer at the same time, one logs the line."""
    clock = ManualClock()
    heartbeat = Heartbeat(clock)
    heartbeat.report_call("Redis", "no answer")
    clock.advance(5.0)
    threads = [threading.Thread(target=heartbeat.report_call, args=("Redis",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.lines("redis.back")) == 1
