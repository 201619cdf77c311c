"""The ledger: cancelling, tasks that come and go, and what is told of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import Create, Intend, Look
from ottoscaler.core.names import event_hash
from ottoscaler.core.observations import NotOurs, TerminationStored
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.ports import PodList, StoredWorker
from tests.fakes.clock import START
from tests.flow.desk import Desk, task
from tests.flow.pods import INSTANCE, of

contract = pytest.mark.contract
CANCEL = Termination(Reason.SCALED_DOWN)


@pytest.fixture
def desk() -> Desk:
    """One with room for ten."""
    return Desk()


class TestCancel:
    """A cancel, in whatever stage it finds a worker."""

    def test_one_that_was_never_begun_never_starts(self, desk: Desk) -> None:
        """It is handed to whoever writes its two lines, and its turn is passed over."""
        desk.ledger.add(task("a", 2))
        assert desk.ledger.cancel("a", 1, CANCEL)
        assert desk.order(1) == ["a/2"]
        assert desk.ledger.take() is None
        run = desk.ledger.take_cancelled()
        assert run is not None
        assert (run.life.index, run.life.todo) == (1, Intend(1, 0))

    def test_twice_is_once(self, desk: Desk) -> None:
        """A scale_down repeats what it has not seen done."""
        desk.ledger.add(task("a"))
        assert desk.ledger.cancel("a", 1, CANCEL)
        assert desk.ledger.cancel("a", 1, CANCEL)
        assert desk.ledger.take_cancelled() is not None
        assert desk.ledger.take_cancelled() is None

    @pytest.mark.parametrize("due", [False, True], ids=["paused", "due"])
    def test_one_that_waits_for_its_next_attempt_does_not_wait_on(self, desk: Desk, due: bool) -> None:
        """Paused or due, it is handed over at once."""
        desk.ledger.add(task("a"))
        run = desk.take()
        desk.pause(run, 10)
        if due:
            desk.clock.advance(10)
            desk.registry.unknown()
            assert desk.ledger.take() is None
        assert desk.ledger.cancel("a", 1, CANCEL)
        assert desk.ledger.take_cancelled() is run
        desk.registry.replace(PodList([], "9"))
        desk.clock.advance(10)
        assert desk.ledger.take() is None

    def test_one_that_runs_is_told(self, desk: Desk) -> None:
        """Its thread ends the pod."""
        added = desk.ledger.add(task("a"))
        desk.take()
        with desk.registry.subscribe(added.hash, 1) as waiter:
            assert desk.ledger.cancel("a", 1, CANCEL)
            assert waiter.wait(1, START) == TerminationStored(CANCEL)

    def test_one_that_was_resumed_and_has_no_thread_needs_none(self, desk: Desk) -> None:
        """Its pod may be there: it is led to its end without a thread of the pool."""
        desk.ledger.add(task("a", 1, StoredWorker(1, attempt=1)))
        assert desk.ledger.cancel("a", 1, CANCEL)
        assert desk.ledger.take() is None
        run = desk.ledger.take_cancelled()
        assert run is not None
        assert isinstance(run.life.todo, Look)

    def test_one_that_has_ended_needs_nothing(self, desk: Desk) -> None:
        """There is nothing left to end."""
        desk.ledger.add(task("a", 2))
        desk.end(desk.take())
        assert desk.ledger.cancel("a", 1, CANCEL)
        assert desk.ledger.take_cancelled() is None

    def test_one_of_another_replica_is_the_callers(self, desk: Desk) -> None:
        """We have no such task."""
        assert not desk.ledger.cancel("theirs", 1, CANCEL)

    def test_a_stored_cancel_is_carried_out_after_a_take_over(self, desk: Desk) -> None:
        """The one who set it may be gone, too."""
        desk.ledger.add(task("a", 1, StoredWorker(1, termination=CANCEL)))
        assert desk.ledger.take() is None
        assert desk.ledger.take_cancelled() is not None

    def test_new_marks_are_noticed_once(self, desk: Desk) -> None:
        """The renewal counts them; a task of others is nobody's business."""
        desk.ledger.add(task("a", cancels=1))
        assert desk.ledger.newly_cancelled({"a": 1, "b": 7}) == []
        assert desk.ledger.newly_cancelled({"a": 3}) == ["a"]
        assert desk.ledger.newly_cancelled({"a": 3}) == []


class TestTasks:
    """Which tasks are open here."""

    def test_a_task_that_was_lost_is_forgotten_and_its_threads_are_told(self, desk: Desk) -> None:
        """Another process owns it: nothing more is touched."""
        added = desk.ledger.add(task("a", 3))
        run = desk.take()
        with desk.registry.subscribe(added.hash, 1) as waiter:
            desk.ledger.drop("a", "c1/b1/1")
            assert waiter.wait(1, START) == NotOurs()
        desk.pause(run, 0)
        assert (desk.ledger.has("a"), desk.ledger.take()) == (False, None)

    def test_a_refusal_of_an_old_tenure_does_not_drop_the_new(self, desk: Desk) -> None:
        """It is ours again under another token."""
        desk.ledger.add(task("a", tenure=2))
        desk.ledger.drop("a", "c1/b1/1")
        assert desk.ledger.owners() == {"a": "c1/b1/2"}

    def test_the_threads_of_an_older_tenure_are_told(self, desk: Desk) -> None:
        """Else two threads would follow one worker."""
        added = desk.ledger.add(task("a"))
        desk.take()
        with desk.registry.subscribe(added.hash, 1) as waiter:
            desk.ledger.add(task("a", tenure=2))
            assert waiter.wait(1, START) == NotOurs()

    def test_a_task_that_is_accepted_twice_is_one(self, desk: Desk) -> None:
        """The second answer changes nothing."""
        first = desk.ledger.add(task("a", 2))
        desk.take()
        assert desk.ledger.add(task("a", 2)) is first
        assert desk.order(1) == ["a/2"]

    def test_the_end_of_the_last_worker_is_the_end_of_the_task(self, desk: Desk) -> None:
        """Its pods do not count as ours any more, whatever becomes of them."""
        desk.ledger.add(task("a", 3, StoredWorker(3, outcome="succeeded")))
        desk.registry.publish(of("a", 5))
        desk.end(desk.take())
        assert desk.ledger.has("a")
        desk.end(desk.take())
        assert (desk.ledger.owners(), desk.registry.owned_live) == ({}, 0)

    def test_a_resumed_worker_can_be_taken_by_name(self) -> None:
        """The reconciler follows what no thread follows."""
        desk = Desk(max_workers=1)
        desk.ledger.add(task("a", 2, StoredWorker(1, attempt=1), StoredWorker(2, attempt=1)))
        desk.take()
        for stranger, index in (("b", 2), ("a", 3)):
            assert desk.ledger.take_waiting(event_hash(INSTANCE, stranger), index) is None
        run = desk.ledger.take_waiting(event_hash(INSTANCE, "a"), 2)
        assert run is not None
        assert desk.ledger.take_waiting(event_hash(INSTANCE, "a"), 2) is None


class TestShowing:
    """What those see who look."""

    @contract("5.state")
    def test_the_last_state_of_each_worker_is_told_once(self, desk: Desk) -> None:
        """Many changes, one write."""
        added = desk.ledger.add(task("a", 2))
        run = desk.take()
        run.life = replace(run.life, todo=Create(1))
        desk.ledger.note(run)
        desk.ledger.note(run, reason="quota")
        assert desk.ledger.take_notes() == [(added, {1: ("creating", 1, f"otto-agent-{added.hash}-1")}, "quota")]
        assert desk.ledger.take_notes() == []

    def test_nothing_is_told_of_tasks_that_are_gone(self, desk: Desk) -> None:
        """They are somebody else's to describe."""
        desk.ledger.add(task("a"))
        desk.ledger.note(desk.take())
        desk.ledger.drop("a", "c1/b1/1")
        assert desk.ledger.take_notes() == []

    def test_counts_are_threads_at_work_and_workers_that_wait(self) -> None:
        """For the figures."""
        desk = Desk(max_workers=3)
        desk.ledger.add(task("a", 5))
        desk.ledger.add(task("old", 1, StoredWorker(1, attempt=1)))
        desk.take()
        desk.pause(desk.take(), 5)
        assert desk.ledger.counts() == (1, 5)

    def test_the_first_pod_of_a_task_is_the_first_once(self, desk: Desk) -> None:
        """So that the log says it once."""
        added = desk.ledger.add(task("a", 2))
        assert [desk.ledger.first_look(added) for _ in range(2)] == [True, False]

    def test_waiting_for_idleness_ends_with_the_last_thread(self, desk: Desk) -> None:
        """Or at its time, with how many there still are."""
        desk.ledger.add(task("a"))
        run = desk.take()
        assert desk.ledger.wait_idle(desk.clock.now()) == 1
        with ThreadPoolExecutor(1) as main:
            left = main.submit(desk.ledger.wait_idle, desk.clock.now() + 30)
            desk.end(run)
            assert left.result(5) == 0
