"""The ledger: cancelling, tasks that come and go, and what status shows of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace as replace_task

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import CreatePod, GetPod, StoreAttempt
from ottoscaler.core.manifest import event_hash
from ottoscaler.core.observations import OwnershipLost, TerminationStored
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.flow.status_buffer import WRITE_EVERY_S
from ottoscaler.ports import PodList, StoredWorker
from tests.fakes.clock import START
from tests.flow.ledger_driver import LedgerDriver, task
from tests.flow.pods import INSTANCE, of

contract = pytest.mark.contract
CANCEL = Termination(EndReason.SCALED_DOWN)


@pytest.fixture
def driver() -> LedgerDriver:
    """One with room for ten."""
    return LedgerDriver()


class TestCancel:
    """A cancel, in whatever stage it finds a worker."""

    def test_one_that_was_never_begun_never_starts(self, driver: LedgerDriver) -> None:
        """It is handed to the thread that writes its two lines, and its turn is passed over."""
        driver.ledger.add(task("a", 2))
        assert driver.ledger.cancel("a", 1, CANCEL)
        assert driver.order(1) == ["a/2"]
        assert driver.ledger.take() is None
        run = driver.ledger.take_cancelled()
        assert run is not None
        assert (run.life.index, run.life.todo) == (1, StoreAttempt(1, 0))

    def test_twice_is_once(self, driver: LedgerDriver) -> None:
        """A scale_down repeats what it has not seen done."""
        driver.ledger.add(task("a"))
        assert driver.ledger.cancel("a", 1, CANCEL)
        assert driver.ledger.cancel("a", 1, CANCEL)
        assert driver.ledger.take_cancelled() is not None
        assert driver.ledger.take_cancelled() is None

    @pytest.mark.parametrize("due", [False, True], ids=["paused", "due"])
    def test_one_that_waits_for_its_next_attempt_does_not_wait_on(self, driver: LedgerDriver, due: bool) -> None:
        """Paused or due, it is handed over at once."""
        driver.ledger.add(task("a"))
        run = driver.take()
        driver.pause(run, 10)
        if due:
            driver.clock.advance(10)
            driver.registry.mark_unknown()
            assert driver.ledger.take() is None
        assert driver.ledger.cancel("a", 1, CANCEL)
        assert driver.ledger.take_cancelled() is run
        driver.registry.replace(PodList([], "9"))
        driver.clock.advance(10)
        assert driver.ledger.take() is None

    def test_one_that_is_withdrawn_is_forgotten(self, driver: LedgerDriver) -> None:
        """Of this worker alone: the cancels of the others hold."""
        driver.ledger.add(task("a", 3))
        runs = [driver.take() for _ in range(3)]
        for index in (1, 2, 3):
            driver.ledger.cancel("a", index, CANCEL)
        driver.ledger.tasks.clear_cancel(runs[1])
        driver.ledger.tasks.clear_cancel(runs[1])
        assert [run.cancelled for run in runs] == [True, False, True]

    def test_one_that_runs_is_reported(self, driver: LedgerDriver) -> None:
        """Its thread ends the pod."""
        added = driver.ledger.add(task("a"))
        driver.take()
        with driver.registry.subscribe(added.event_hash, 1) as waiter:
            assert driver.ledger.cancel("a", 1, CANCEL)
            assert waiter.wait(1, START) == TerminationStored(CANCEL)

    def test_one_that_was_resumed_and_has_no_thread_needs_none(self, driver: LedgerDriver) -> None:
        """Its pod may be there: it is led to its end without a thread of the pool."""
        driver.ledger.add(task("a", 1, StoredWorker(1, attempt=1)))
        assert driver.ledger.cancel("a", 1, CANCEL)
        assert driver.ledger.take() is None
        run = driver.ledger.take_cancelled()
        assert run is not None
        assert isinstance(run.life.todo, GetPod)

    def test_one_whose_cancel_was_carried_out_needs_nothing(self, driver: LedgerDriver) -> None:
        """Its turn never came, and it does not come any more."""
        driver.ledger.add(task("a", 2))
        assert driver.ledger.cancel("a", 2, CANCEL)
        run = driver.ledger.take_cancelled()
        assert run is not None
        driver.ledger.worker_ended(run)
        driver.ledger.let_go(run, thread=False)
        assert driver.ledger.cancel("a", 2, CANCEL)
        assert driver.ledger.take_cancelled() is None
        assert driver.order(1) == ["a/1"]
        assert driver.ledger.take() is None

    def test_one_that_has_ended_needs_nothing(self, driver: LedgerDriver) -> None:
        """There is nothing left to end."""
        driver.ledger.add(task("a", 2))
        driver.end(driver.take())
        assert driver.ledger.cancel("a", 1, CANCEL)
        assert driver.ledger.take_cancelled() is None

    def test_one_of_another_replica_is_the_callers(self, driver: LedgerDriver) -> None:
        """We have no such task."""
        assert not driver.ledger.cancel("theirs", 1, CANCEL)

    def test_a_stored_cancel_is_carried_out_after_a_take_over(self, driver: LedgerDriver) -> None:
        """The replica that set it may be gone, too."""
        driver.ledger.add(task("a", 1, StoredWorker(1, termination=CANCEL)))
        assert driver.ledger.take() is None
        assert driver.ledger.take_cancelled() is not None

    def test_new_marks_are_noticed_once(self, driver: LedgerDriver) -> None:
        """The renewal counts them; a task of another replica is ignored here."""
        driver.ledger.add(task("a", cancels=1))
        assert driver.ledger.tasks.newly_cancelled({"a": 1, "b": 7}) == []
        assert driver.ledger.tasks.newly_cancelled({"a": 3}) == ["a"]
        assert driver.ledger.tasks.newly_cancelled({"a": 3}) == []


class TestTasks:
    """Which tasks are open here."""

    def test_a_task_that_was_lost_is_dropped_and_its_threads_are_notified(self, driver: LedgerDriver) -> None:
        """Another process owns it: nothing more is touched."""
        added = driver.ledger.add(task("a", 3))
        run = driver.take()
        with driver.registry.subscribe(added.event_hash, 1) as waiter:
            driver.ledger.drop("a", "c1/b1/1")
            assert waiter.wait(1, START) == OwnershipLost()
        driver.pause(run, 0)
        assert (driver.ledger.tasks.has("a"), driver.ledger.take()) == (False, None)

    def test_a_refusal_of_an_old_epoch_does_not_drop_the_new(self, driver: LedgerDriver) -> None:
        """It is ours again under another token."""
        driver.ledger.add(task("a", epoch=2))
        driver.ledger.drop("a", "c1/b1/1")
        assert driver.ledger.tasks.owners() == {"a": "c1/b1/2"}

    def test_the_threads_of_an_older_epoch_are_notified(self, driver: LedgerDriver) -> None:
        """Otherwise two threads would follow one worker."""
        added = driver.ledger.add(task("a"))
        driver.take()
        with driver.registry.subscribe(added.event_hash, 1) as waiter:
            driver.ledger.add(task("a", epoch=2))
            assert waiter.wait(1, START) == OwnershipLost()

    def test_a_task_that_is_accepted_twice_is_one(self, driver: LedgerDriver) -> None:
        """The second answer changes nothing."""
        first = driver.ledger.add(task("a", 2))
        driver.take()
        assert driver.ledger.add(task("a", 2)) is first
        assert driver.order(1) == ["a/2"]

    def test_the_end_of_the_last_worker_is_the_end_of_the_task(self, driver: LedgerDriver) -> None:
        """Its pods do not count as ours any more, whatever becomes of them."""
        driver.ledger.add(task("a", 3, StoredWorker(3, outcome="succeeded")))
        driver.registry.publish(of("a", 5))
        driver.end(driver.take())
        assert driver.ledger.tasks.has("a")
        driver.end(driver.take())
        assert (driver.ledger.tasks.owners(), driver.registry.owned_live_count) == ({}, 0)

    def test_a_resumed_worker_can_be_taken_by_name(self) -> None:
        """The reconciler follows what no thread follows."""
        driver = LedgerDriver(max_workers=1)
        driver.ledger.add(task("a", 2, StoredWorker(1, attempt=1), StoredWorker(2, attempt=1)))
        driver.take()
        for stranger, index in (("b", 2), ("a", 3)):
            assert driver.ledger.take_resumed(event_hash(INSTANCE, stranger), index) is None
        run = driver.ledger.take_resumed(event_hash(INSTANCE, "a"), 2)
        assert run is not None
        assert driver.ledger.take_resumed(event_hash(INSTANCE, "a"), 2) is None


class TestShowing:
    """What a user sees of a task."""

    @contract("5.state")
    def test_the_last_state_of_each_worker_is_written_once(self, driver: LedgerDriver) -> None:
        """Many changes, one write."""
        added = driver.ledger.add(task("a", 2))
        run = driver.take()
        run.life = replace(run.life, todo=CreatePod(1))
        buffer, now = driver.ledger.status_buffer, driver.clock.now()
        buffer.mark(run)
        buffer.mark(run)
        assert buffer.take(now) == [(added, [run])]
        assert buffer.take(now + WRITE_EVERY_S) == []

    def test_a_task_is_written_once_a_second_at_most(self, driver: LedgerDriver) -> None:
        """What changes in between is written then, and nothing of it is lost."""
        added = driver.ledger.add(task("a", 2))
        run, buffer, now = driver.take(), driver.ledger.status_buffer, driver.clock.now()
        buffer.mark(run)
        assert buffer.take(now) == [(added, [run])]
        buffer.mark(run)
        assert buffer.take(now + WRITE_EVERY_S - 0.01) == []
        assert buffer.take(now + WRITE_EVERY_S) == [(added, [run])]

    def test_nothing_is_returned_of_tasks_that_are_gone(self, driver: LedgerDriver) -> None:
        """The other replica describes them."""
        driver.ledger.add(task("a"))
        driver.ledger.status_buffer.mark(driver.take())
        driver.ledger.drop("a", "c1/b1/1")
        assert driver.ledger.status_buffer.take(driver.clock.now()) == []

    def test_workers_are_counted_by_their_code(self) -> None:
        """Those that had their turn, those that had none, and those of a task that waits for its key."""
        driver = LedgerDriver(max_workers=1)
        driver.ledger.add(task("a", 3))
        driver.ledger.add(replace_task(task("b", 2), holds=False))
        run = driver.take()
        run.life = replace(run.life, todo=CreatePod(1))
        driver.ledger.room_waits.explain()
        assert driver.ledger.tasks.counts_by_code() == {
            StatusCode.CREATING: 1, StatusCode.CAPACITY: 2, StatusCode.CONCURRENCY_KEY: 2,
        }  # fmt: skip

    def test_counts_are_threads_at_work_and_workers_that_wait(self) -> None:
        """For the figures."""
        driver = LedgerDriver(max_workers=3)
        driver.ledger.add(task("a", 5))
        driver.ledger.add(task("old", 1, StoredWorker(1, attempt=1)))
        driver.take()
        driver.pause(driver.take(), 5)
        assert driver.ledger.thread_counts() == (1, 5)

    def test_the_first_pod_of_a_task_is_the_first_once(self, driver: LedgerDriver) -> None:
        """So that the log says it once."""
        added = driver.ledger.add(task("a", 2))
        assert [driver.ledger.tasks.mark_first_pod_seen(added) for _ in range(2)] == [True, False]

    def test_waiting_for_idleness_ends_with_the_last_thread(self, driver: LedgerDriver) -> None:
        """Or at its time, with how many there still are."""
        driver.ledger.add(task("a"))
        run = driver.take()
        assert driver.ledger.wait_idle(driver.clock.now()) == 1
        with ThreadPoolExecutor(1) as main:
            left = main.submit(driver.ledger.wait_idle, driver.clock.now() + 30)
            driver.end(run)
            assert left.result(5) == 0


def test_a_not_after_is_due_at_its_moment() -> None:
    """Counted from the renewal that found it; the next renewal of the task may find that there is none to come."""
    driver = LedgerDriver()
    tasks = driver.ledger.tasks
    for name in ("e1", "e2"):
        driver.ledger.add(task(name))
    tasks.set_expiries(["e1", "e2"], {"e1": 5.0, "e2": 9.0, "not-ours": 1.0}, now=100.0)
    assert [tasks.expires(moment) for moment in (102.0, 104.9, 105.0)] == [False, False, True]
    tasks.set_expiries(["e1"], {}, now=104.0)
    assert [tasks.expires(moment) for moment in (108.9, 109.0)] == [False, True]
