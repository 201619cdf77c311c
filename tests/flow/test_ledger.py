"""The ledger: which worker runs next, and how many run at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.effects import GetPod, StoreAttempt
from ottoscaler.core.lifecycle import begin_lifecycle
from ottoscaler.core.pods import Phase
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.ports import PodList, StoredWorker
from tests.fakes.wait import eventually
from tests.flow.ledger_driver import LedgerDriver, task
from tests.flow.pods import of

contract = pytest.mark.contract


@pytest.fixture
def driver() -> LedgerDriver:
    """One with room for ten."""
    return LedgerDriver()


class TestOrder:
    """Which worker is next."""

    def test_small_events_are_not_starved_by_a_big_one(self, driver: LedgerDriver) -> None:
        """Events take turns, whichever came first."""
        for opened in (task("big", 1000), task("a"), task("b", 2)):
            driver.ledger.add(opened)
        assert driver.order(6) == ["big/1", "a/1", "b/1", "big/2", "b/2", "big/3"]

    def test_workers_that_may_run_already_come_first(self, driver: LedgerDriver) -> None:
        """After a take-over, stored attempts are looked at before anything new begins."""
        driver.ledger.add(task("new"))
        driver.ledger.add(task("old", 2, StoredWorker(2, attempt=3, infra_used=1)))
        first = driver.take()
        assert (first.life.index, first.life.todo) == (2, GetPod(3, live=False))
        assert driver.order(2) == ["new/1", "old/1"]

    def test_a_refused_attempt_goes_on_as_waiting(self, driver: LedgerDriver) -> None:
        """Its pod is not there, so there is nothing to look at."""
        driver.ledger.add(task("old", 1, StoredWorker(1, attempt=2, infra_used=1, create_refused=True)))
        assert driver.take().life == begin_lifecycle(1, attempt=2, infra_used=1)

    def test_workers_with_a_result_do_not_run_again(self, driver: LedgerDriver) -> None:
        """A task that is taken over goes on with those that are left."""
        driver.ledger.add(task("old", 3, StoredWorker(1, outcome="succeeded"), StoredWorker(2, 1, outcome="failed")))
        assert driver.order(1) == ["old/3"]
        assert driver.ledger.take() is None

    @pytest.mark.parametrize("others", [(), (900.0,), (900.0, 1800.0)])
    def test_the_dispatcher_waits_no_longer_than_the_first_pause(
        self, driver: LedgerDriver, others: Sequence[float]
    ) -> None:
        """It is the only one that looks at pauses which end."""
        driver.ledger.add(task("old", 1 + len(others)))
        for seconds in (*others, 0.01):
            driver.pause(driver.take(), seconds)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(driver.ledger.wait_for_dispatch, 60.0).result(20)

    def test_a_paused_worker_comes_back_when_it_is_due(self, driver: LedgerDriver) -> None:
        """And not before."""
        driver.ledger.add(task("a"))
        run = driver.take()
        driver.pause(run, 10)
        driver.clock.advance(9)
        assert driver.ledger.take() is None
        driver.clock.advance(1)
        assert driver.take() is run

    @pytest.mark.parametrize("fresh", [False, True])
    @pytest.mark.parametrize("seconds", [5, 0])
    def test_a_worker_that_needs_room_again_gets_a_new_thread(
        self, driver: LedgerDriver, fresh: bool, seconds: float
    ) -> None:
        """Also where no other worker waits, and none that never had a turn."""
        driver.ledger.add(task("a"))
        run = driver.take()
        if fresh:
            driver.ledger.add(task("b"))
        driver.pause(run, seconds)
        driver.clock.advance(seconds)
        found = [driver.ledger.take_for_new_thread() for _ in range(3)]
        assert [each.task.event.event_id if each else "" for each in found] == ["a", "b" if fresh else "", ""]

    def test_a_worker_that_is_due_before_its_thread_lets_go_is_not_lost(self, driver: LedgerDriver) -> None:
        """A short pause may be over while its thread is still on its way out."""
        driver.ledger.add(task("a"))
        run = driver.take()
        driver.ledger.pause(run, driver.clock.now())
        assert driver.ledger.take() is None
        driver.ledger.let_go(run)
        assert driver.take() is run

    @contract("2.MAX_WORKERS")
    def test_no_more_workers_run_than_there_are_threads(self) -> None:
        """The executor's own queue stays empty."""
        driver = LedgerDriver(max_workers=2)
        driver.ledger.add(task("old", 3, *(StoredWorker(index, attempt=1) for index in (1, 2, 3))))
        first, _ = driver.take(), driver.take()
        assert driver.ledger.take() is None
        driver.end(first)
        assert driver.take().life.index == 3


class TestRoom:
    """How many pods there may be."""

    @contract("2.MAX_WORKERS")
    def test_a_create_in_flight_takes_room(self) -> None:
        """Its pod may be there though the registry does not show it."""
        driver = LedgerDriver(max_workers=1)
        driver.ledger.add(task("a", 2))
        run = driver.take()
        driver.ledger.let_go(run)
        assert driver.ledger.take() is None
        driver.ledger.release_room(run)
        assert driver.take().life.index == 2

    @contract("2.MAX_WORKERS")
    def test_a_live_pod_of_ours_takes_room_until_it_has_ended(self) -> None:
        """Seen by the watch, whichever replica created it."""
        driver = LedgerDriver(max_workers=1)
        driver.registry.publish(of("a", 5, Phase.RUNNING, index=9))
        driver.ledger.add(task("a", 9))
        assert driver.ledger.take() is None
        driver.registry.publish(of("a", 6, Phase.FAILED, index=9))
        assert driver.take().life.index == 1

    def test_settled_reports_once_that_others_may_go_on(self) -> None:
        """Between the sight of its pod and the end of its claim, another worker may have been turned away."""
        driver = LedgerDriver(max_workers=2)
        driver.ledger.add(task("a", 2))
        run = driver.take()
        driver.registry.upsert(of("a", 5))
        assert driver.ledger.take() is None
        driver.ledger.release_room(run)
        assert driver.take().life.index == 2

    @contract("2.MAX_WORKERS")
    def test_room_that_a_take_over_fills_is_taken_back(self) -> None:
        """A worker that has not begun to use it waits after all; one that has begun cannot be stopped any more."""
        driver = LedgerDriver(max_workers=3)
        driver.ledger.add(task("ours", 2))
        first, second = driver.take(), driver.take()
        assert driver.ledger.may_create_pod(first)
        driver.registry.publish(of("theirs", 5, Phase.RUNNING, index=1))
        driver.registry.publish(of("theirs", 6, Phase.RUNNING, index=2))
        driver.ledger.add(task("theirs", 2, StoredWorker(1, attempt=1), StoredWorker(2, attempt=1)))
        assert driver.ledger.may_create_pod(first)
        assert not driver.ledger.may_create_pod(second)

    @contract("2.MAX_WORKERS")
    def test_room_is_not_used_while_the_state_is_unknown(self, driver: LedgerDriver) -> None:
        """It may be gone meanwhile."""
        driver.ledger.add(task("a"))
        run = driver.take()
        driver.registry.mark_unknown()
        assert not driver.ledger.may_create_pod(run)

    def test_a_task_that_another_replica_takes_gives_up_its_room(self) -> None:
        """Its creates in flight count there from now on."""
        driver = LedgerDriver(max_workers=1)
        lost = driver.ledger.add(task("lost"))
        run = driver.take()
        assert driver.ledger.may_create_pod(run)
        driver.ledger.drop("lost", lost.owner)
        driver.ledger.let_go(run)
        driver.ledger.add(task("next"))
        assert driver.order(1) == ["next/1"]

    def test_a_thread_is_woken_by_the_end_of_a_pod(self) -> None:
        """By the change of the registry alone: the thread of the pod's worker may belong to another replica."""
        driver = LedgerDriver(max_workers=1)
        driver.registry.publish(of("a", 5, Phase.RUNNING, index=9))
        driver.ledger.add(task("a", 9))
        with ThreadPoolExecutor(1) as threads:
            run = threads.submit(driver.ledger.wait_for_work)
            eventually(lambda: driver.ledger._work._waiters, what="the thread to wait")  # type: ignore[attr-defined]
            driver.registry.publish(of("a", 6, Phase.FAILED, index=9))
            try:
                found = run.result(5)
                assert found is not None
                assert found.life.index == 1
            finally:
                driver.ledger.close()

    def test_pods_of_others_take_no_room(self) -> None:
        """Another replica's tasks are its own."""
        driver = LedgerDriver(max_workers=1)
        driver.registry.publish(of("theirs", 5, Phase.RUNNING))
        driver.ledger.add(task("ours"))
        assert driver.order(1) == ["ours/1"]

    def test_nothing_is_created_while_the_state_is_unknown(self, driver: LedgerDriver) -> None:
        """But a worker that may have a pod already goes on."""
        driver.registry.mark_unknown()
        driver.ledger.add(task("new"))
        driver.ledger.add(task("old", 1, StoredWorker(1, attempt=1)))
        assert driver.order(1) == ["old/1"]
        assert driver.ledger.take() is None
        driver.registry.replace(PodList([], "9"))
        assert driver.order(1) == ["new/1"]

    def test_workers_that_wait_for_redis_do_not_keep_each_other_out(self) -> None:
        """An outage at the first step: all are paused, and all come back."""
        driver = LedgerDriver(max_workers=2)
        driver.ledger.add(task("a", 2))
        runs = [driver.take(), driver.take()]
        for run in runs:
            driver.pause(run, 2)
        driver.clock.advance(2)
        assert [driver.take(), driver.take()] == runs

    def test_each_pod_needs_room_of_its_own(self, driver: LedgerDriver) -> None:
        """The room of an attempt that has failed may be taken when the next one is due."""
        driver.ledger.add(task("a"))
        run = driver.take()
        assert driver.ledger.may_create_pod(run)
        driver.ledger.release_room(run)
        assert not driver.ledger.may_create_pod(run)

    def test_old_epochs_do_not_give_up_the_room_of_new_ones(self) -> None:
        """A thread that is on its way out of a task that was taken over again."""
        driver = LedgerDriver(max_workers=2)
        driver.registry.publish(of("other", 5, Phase.RUNNING))
        driver.registry.count_as_ours(of("other", 5).key.event_hash)
        driver.ledger.add(task("a", 1, StoredWorker(1, attempt=1)))
        old = driver.take()
        driver.ledger.add(task("a", 1, StoredWorker(1, attempt=1), epoch=2))
        driver.ledger.add(task("b"))
        driver.ledger.release_room(old)
        driver.end(old)
        driver.take()
        assert driver.ledger.take() is None


MOVES = ("add", "take", "create", "settle", "pause", "end", "fail", "list", "lose", "drop")
moves = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 9)), max_size=60)


@contract("2.MAX_WORKERS")
@given(moves, st.integers(1, 4))
def test_never_are_more_pods_allowed_than_max_workers(steps: Sequence[tuple[str, int]], most: int) -> None:
    """Whatever happens in whatever order: when a create is permitted, there is room for it."""
    driver, running = LedgerDriver(max_workers=most), list[WorkerRun]()
    for version, (move, number) in enumerate(steps, 2):
        run = running[number % len(running)] if running else None
        if move == "take" and (taken := driver.ledger.take()) is not None:
            assert driver.registry.is_known
            assert driver.registry.owned_live_count + len(driver.ledger._capacity._claims) <= most
            running.append(taken)
        else:
            _play(driver, move, f"e{number % 3}", run, version)
        if run is not None and move in ("pause", "end"):
            running.remove(run)


def _play(driver: LedgerDriver, move: str, event_id: str, run: WorkerRun | None, version: int) -> None:
    """One thing that may happen between two takes; `run` is one of those that run."""
    match move:
        case "add" if not driver.ledger.tasks.has(event_id):
            driver.ledger.add(task(event_id, 3))
        case "list":
            driver.registry.replace(PodList(driver.registry.snapshots(), str(version)))
        case "lose":
            driver.registry.mark_unknown()
        case "drop":
            driver.ledger.drop(event_id, "c1/b1/1")
        case _ if run is not None:
            _act(driver, move, run, version)


def _act(driver: LedgerDriver, move: str, run: WorkerRun, version: int) -> None:
    """One thing that a worker's thread, or its pod, may do."""
    seen = partial(of, run.task.event.event_id, version, index=run.life.index)
    if move in ("create", "settle"):
        driver.registry.upsert(seen(Phase.RUNNING))
    if move in ("fail", "end"):
        driver.registry.upsert(seen(Phase.FAILED))
    if move == "settle":
        driver.ledger.release_room(run)
    if move == "pause":
        driver.pause(run, 0, todo=StoreAttempt(run.life.attempt, 0))
    if move == "end":
        driver.end(run)


class TestReadAhead:
    """How many events may be taken from the stream."""

    @contract("2.READ_AHEAD")
    def test_events_with_waiting_workers_use_it_up(self) -> None:
        """The rest stays in Redis for other replicas."""
        driver = LedgerDriver(max_workers=1, read_ahead=2)
        assert driver.ledger.wait_for_room(0) == 2
        driver.ledger.add(task("a", 2))
        driver.ledger.add(task("b", 2))
        assert driver.ledger.wait_for_room(0) == 0

    @contract("2.READ_AHEAD")
    def test_an_event_is_not_counted_while_all_its_workers_run(self, driver: LedgerDriver) -> None:
        """It is room that the next one may use."""
        driver.ledger.add(task("a", 2))
        assert driver.ledger.wait_for_room(0) == 4
        driver.order(2)
        assert driver.ledger.wait_for_room(0) == 5

    def test_the_reader_is_woken_when_there_is_room(self) -> None:
        """It does not wait for the end of its time."""
        driver = LedgerDriver(read_ahead=1)
        driver.ledger.add(task("a"))
        with ThreadPoolExecutor(1) as reader:
            room = reader.submit(driver.ledger.wait_for_room, 30)
            eventually(lambda: driver.ledger._room._waiters, what="the reader to wait")  # type: ignore[attr-defined]
            driver.take()
            assert room.result(5) == 1

    def test_the_reader_is_woken_by_a_place_of_a_concurrency_key(self) -> None:
        """The task that got it waits for its key no longer, and another may do so."""
        driver = LedgerDriver(admit_max=1)
        waiting = driver.ledger.add(dataclasses.replace(task("a"), holds=False))
        with ThreadPoolExecutor(1) as reader:
            room = reader.submit(driver.ledger.wait_for_room, 30)
            eventually(lambda: driver.ledger._room._waiters, what="the reader to wait")  # type: ignore[attr-defined]
            assert driver.ledger.admit(waiting)
            assert room.result(5) == 1
