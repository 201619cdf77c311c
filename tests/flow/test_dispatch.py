"""The dispatcher: which thread carries on which worker, and what needs none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ottoscaler.core.pods import Phase
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.flow.dispatch import MAX_STARTS_PER_STEP, THREAD_RETRY_S
from ottoscaler.flow.owned_tasks import WorkerRun
from tests.fakes.node import AutoNode
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.ledger_driver import LedgerDriver, task
from tests.flow.pods import of
from tests.flow.simulated_controller import SimulatedController

contract = pytest.mark.contract


def at_work() -> int:
    """How many pool threads there are."""
    return sum(thread.name.startswith("worker") for thread in threading.enumerate())


@contract("2.MAX_WORKERS")
def test_there_are_as_many_threads_as_workers_may_run() -> None:
    """Each follows one worker; the rest of the event waits in the ledger."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=3) as controller:
        event_id = controller.accept(pod_count=10)
        for index in (1, 2, 3):
            controller.pod(event_id, index)
        assert (at_work(), controller.ledger.thread_counts(), controller.calls("create")) == (3, (3, 7), 3)


def test_a_thread_that_is_done_asks_for_the_next_worker() -> None:
    """No other thread has to give it one."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=1, auto=True) as controller:
        controller.accept(pod_count=20)
        assert len(controller.results(20)) == 20
        assert at_work() == 1


def test_nobody_but_the_dispatcher_starts_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader, the lease thread and the watch have their own work, and a thousand threads take seconds to start."""
    starters: set[str] = set()
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        if thread.name.startswith("worker"):
            starters.add(threading.current_thread().name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    count = 3 * MAX_STARTS_PER_STEP
    with SimulatedController(threads=["watch", "reader"], MAX_WORKERS=count, auto=True) as controller:
        controller.send(pod_count=count)
        assert len(controller.results(count)) == count
    assert starters == {"dispatch"}


def test_a_step_starts_a_few_threads_and_then_looks_at_the_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale_down of workers that wait does not wait until all threads have begun."""
    started: list[WorkerRun] = []
    count = 3 * MAX_STARTS_PER_STEP
    with SimulatedController(MAX_WORKERS=count) as controller:
        controller.registry.replace(controller.cluster.list())
        monkeypatch.setattr(controller.dispatcher, "_start_thread", started.append)
        controller.ledger.add(task("e1", count))
        controller.dispatcher.step()
        assert len(started) == MAX_STARTS_PER_STEP
        for _ in range(2):
            controller.dispatcher.step()
        assert sorted(run.life.index for run in started) == list(range(1, count + 1))
        for run in started:
            controller.ledger.let_go(run)


def test_a_thread_that_waits_gets_the_next_worker() -> None:
    """No further one is started for it."""
    with SimulatedController(threads=["watch", "reader"], MAX_WORKERS=10, auto=True) as controller:
        for number in range(1, 6):
            controller.send()
            controller.results(number)
            eventually(lambda: controller.ledger._idle_threads, what="its thread to wait")
        assert at_work() == 1


def test_a_thread_that_was_woken_counts_until_it_looks_for_its_worker() -> None:
    """A wrong count would let the dispatcher look again and again, or leave a worker without a thread."""
    driver = LedgerDriver(max_workers=2)
    with ThreadPoolExecutor(1) as pool:
        for event_id in ("e1", "e2"):
            thread = pool.submit(driver.ledger.wait_for_work)
            eventually(lambda: driver.ledger._idle_threads, what="the thread to wait")
            driver.ledger.add(task(event_id))
            assert driver.ledger.take_for_new_thread() is None  # the one that was woken takes it
            run = thread.result(5)
            assert run is not None
            driver.end(run)
        began = time.monotonic()
        driver.ledger.wait_for_dispatch(0.2)
        assert time.monotonic() - began >= 0.2
        driver.ledger.add(task("e3"))
        assert driver.ledger.take_for_new_thread() is not None


def test_room_is_used_by_each_worker_that_has_a_thread() -> None:
    """A worker that has given up its room is held up afterwards: the next one does not wait for it."""
    all_asked, go_on = threading.Event(), threading.Event()

    def hold(op: str) -> None:
        if op == "store_refusal":
            go_on.wait(10)

    def gather(verb: str, _name: str) -> None:
        if verb == "create":
            all_asked.wait(10)

    with SimulatedController(threads=["watch"], MAX_WORKERS=3) as controller:
        orphan = of("orphan", 5, Phase.RUNNING)
        controller.registry.publish(orphan)
        controller.registry.count_as_ours(orphan.key.event_hash)
        controller.servers.kubernetes.refuse_next("create", ClusterUnavailable("quota", unclear=False))
        controller.redis.on_call, controller.servers.kubernetes.on_call = hold, gather
        event_id = controller.accept(pod_count=3)
        all_asked.set()
        controller.pod(event_id, 3)
        go_on.set()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pool threads the machine gives: the one item of the list, which a test may change."""
    limit, start = [0], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("worker") and at_work() >= limit[0]:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return limit


@contract("2.MAX_WORKERS")
@pytest.mark.parametrize("size", [1, 3, 9])
def test_a_pool_that_gets_no_further_thread_goes_on_with_those_it_has(
    machine: list[int], log: Lines, size: int
) -> None:
    """A limit of pids ends nothing: all workers come to their end, and the log says how many threads there are."""
    machine[0] = size
    with SimulatedController(threads=["watch"], MAX_WORKERS=10) as controller:
        event_id = controller.accept(pod_count=30)
        first = [
            controller.pod(event_id, index) for index in range(1, size + 1)
        ]  # each thread is busy, so each is counted
        [line] = eventually(lambda: log.lines("pool.shrunk"), what="a thread to be refused")
        AutoNode(controller.servers.kubernetes)
        for pod in first:
            controller.cluster.succeed(pod)
        assert len(controller.results(30)) == 30
        assert at_work() <= size
    assert "can't start new thread" in str(line["error"])
    assert f"going on with {size} for MAX_WORKERS=10" in str(line["message"])


def test_a_worker_that_waits_for_a_thread_is_not_stuck(machine: list[int]) -> None:
    """All threads follow a pod each: with the rest it is as with a full pool, and the process stays ready."""
    machine[0] = 2
    with SimulatedController(threads=["watch"], MAX_WORKERS=10) as controller:
        event_id = controller.accept(pod_count=5)
        for index in (1, 2):
            controller.pod(event_id, index)
        assert controller.ledger.thread_counts() == (2, 3)
        eventually(lambda: not controller.ledger.takeable(), what="a thread to be refused")


def test_the_pool_grows_again_when_the_machine_has_threads_again(machine: list[int], log: Lines) -> None:
    """Also one that got none at all: nothing but time has to pass."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=10, auto=True) as controller:
        controller.accept(pod_count=5)
        eventually(lambda: log.of("pool.shrunk"), what="a thread to be refused")
        assert (at_work(), controller.ledger.thread_counts()) == (0, (0, 5))
        machine[0] = 10
        controller.dispatcher.step()
        assert at_work() == 0
        controller.pass_time(THREAD_RETRY_S)
        assert len(controller.results(5)) == 5
    assert len(log.of("pool.shrunk")) == 1


def test_cancelled_workers_need_no_thread() -> None:
    """Their two writes are made by the dispatcher, however full the pool is."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:
        controller.pod(controller.accept())
        event_id, termination = controller.accept(pod_count=5), Termination(EndReason.SCALED_DOWN)
        for index in range(1, 6):
            controller.stream.store_termination(event_id, None, index, termination)
            controller.ledger.cancel(event_id, index, termination)
        assert {result["reason"] for result in controller.results(5)} == {"ScaledDown"}
        eventually(lambda: controller.ledger.thread_counts() == (1, 0), what="the last of them to be let go of")
        assert at_work() == 1


@pytest.mark.parametrize(
    ("count", "soon"), [(0, [False, False]), (3, [True, False]), (MAX_STARTS_PER_STEP, [False, True])]
)
def test_a_scale_down_looks_again_when_all_cancelled_workers_are_carried_on(count: int, soon: list[bool]) -> None:
    """A look between them would only find that some are left."""
    with SimulatedController() as controller:
        event_id, termination = controller.accept(pod_count=MAX_STARTS_PER_STEP), Termination(EndReason.SCALED_DOWN)
        for index in range(1, count + 1):
            controller.stream.store_termination(event_id, None, index, termination)
            controller.ledger.cancel(event_id, index, termination)
        found = []
        for _ in soon:
            controller.dispatcher.step()
            found.append(controller.inbox.take_look_request())
        assert found == soon


def test_a_resumed_worker_can_be_carried_on_without_a_thread() -> None:
    """A pod that has finished is recorded, though the pool is full."""
    with SimulatedController(threads=["watch"]) as first:
        event_id = first.accept()
        pod = first.pod(event_id)
        first.close()
        with SimulatedController(first.servers, consumer="c2", threads=["watch"], MAX_WORKERS=1) as controller:
            controller.pod(controller.accept())
            task = controller.stream.take_over(event_id, same_consumer=False)
            assert task is not None
            controller.intake.open_task(task)
            controller.cluster.run(pod)
            controller.cluster.succeed(pod)
            controller.sees(pod, lambda seen: seen.finished)
            assert controller.dispatcher.advance_resumed(controller.key(event_id).event_hash, 1)
            controller.terminator.step()
            assert controller.result()["event_id"] == event_id
            assert not controller.dispatcher.advance_resumed(controller.key(event_id).event_hash, 1)


def test_one_that_runs_on_goes_back_to_the_queue() -> None:
    """It was taken for finished, and a live look shows that it is not: it waits for a thread again."""
    with SimulatedController(threads=["watch"]) as first:
        event_id = first.accept()
        first.pod(event_id)
        first.close()
        with SimulatedController(first.servers, consumer="c2", threads=["watch"], MAX_WORKERS=1) as controller:
            other = controller.pod(controller.accept())
            task = controller.stream.take_over(event_id, same_consumer=False)
            assert task is not None
            controller.intake.open_task(task)
            assert controller.dispatcher.advance_resumed(controller.key(event_id).event_hash, 1)
            controller.terminator.step()
            assert controller.ledger.thread_counts() == (1, 1)
            controller.cluster.run(other)
            controller.cluster.succeed(other)
            controller.result()
            controller.pod(event_id)


def test_after_its_close_nothing_is_begun() -> None:
    """What waits is left to the next process."""
    with SimulatedController(threads=["watch"]) as controller:
        controller.dispatcher.close()
        controller.dispatcher.close()
        controller.accept()
        assert (controller.ledger.thread_counts(), controller.calls("create")) == ((0, 1), 0)


def test_after_the_stop_a_thread_takes_nothing_more() -> None:
    """It finishes the write it is at, and that is all."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:
        pod = controller.pod(controller.accept(pod_count=2))
        controller.redis.on_call = lambda op: controller.stop.set() if op == "record_result" else None
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.result()
        controller.idle()
        assert (controller.ledger.thread_counts(), controller.calls("create")) == ((0, 1), 1)


def test_waiting_for_idleness_names_the_busy_workers() -> None:
    """The stop has to know whether it may go on."""
    with SimulatedController(threads=["watch"]) as controller:
        controller.pod(controller.accept())
        assert controller.ledger.wait_idle(controller.clock.now()) == 1
        controller.registry.close()
        eventually(lambda: controller.ledger.wait_idle(controller.clock.now()) == 0)
