"""The ledger: who runs next, and how many at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.effects import Intend, Look
from ottoscaler.core.lifecycle import begin
from ottoscaler.core.pods import Phase
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.ports import PodList, StoredWorker
from tests.fakes.wait import eventually
from tests.flow.desk import Desk, task
from tests.flow.pods import of

contract = pytest.mark.contract


@pytest.fixture
def desk() -> Desk:
    """One with room for ten."""
    return Desk()


class TestOrder:
    """Who is next."""

    def test_small_events_are_not_starved_by_a_big_one(self, desk: Desk) -> None:
        """Events take turns, whoever came first."""
        for opened in (task("big", 1000), task("a"), task("b", 2)):
            desk.ledger.add(opened)
        assert desk.order(6) == ["big/1", "a/1", "b/1", "big/2", "b/2", "big/3"]

    def test_workers_that_may_run_already_come_first(self, desk: Desk) -> None:
        """After a take-over, stored attempts are looked at before anything new begins."""
        desk.ledger.add(task("new"))
        desk.ledger.add(task("old", 2, StoredWorker(2, attempt=3, infra_used=1)))
        first = desk.take()
        assert (first.life.index, first.life.todo) == (2, Look(3, live=False))
        assert desk.order(2) == ["new/1", "old/1"]

    def test_a_refused_attempt_goes_on_as_waiting(self, desk: Desk) -> None:
        """Its pod is not there, so there is nothing to look at."""
        desk.ledger.add(task("old", 1, StoredWorker(1, attempt=2, infra_used=1, refused=True)))
        assert desk.take().life == begin(1, attempt=2, infra_used=1)

    def test_workers_with_a_result_do_not_run_again(self, desk: Desk) -> None:
        """A task that is taken over goes on with those that are left."""
        desk.ledger.add(task("old", 3, StoredWorker(1, outcome="succeeded"), StoredWorker(2, 1, outcome="failed")))
        assert desk.order(1) == ["old/3"]
        assert desk.ledger.take() is None

    def test_a_paused_worker_comes_back_when_it_is_due(self, desk: Desk) -> None:
        """And not before."""
        desk.ledger.add(task("a"))
        run = desk.take()
        desk.pause(run, 10)
        desk.clock.advance(9)
        assert desk.ledger.take() is None
        desk.clock.advance(1)
        assert desk.take() is run

    def test_a_worker_that_is_due_before_its_thread_lets_go_is_not_lost(self, desk: Desk) -> None:
        """A short pause may be over while its thread is still on its way out."""
        desk.ledger.add(task("a"))
        run = desk.take()
        desk.ledger.pause(run, desk.clock.now())
        assert desk.ledger.take() is None
        desk.ledger.give_back(run)
        assert desk.take() is run

    @contract("2.MAX_WORKERS")
    def test_no_more_workers_run_than_there_are_threads(self) -> None:
        """The executor's own queue stays empty."""
        desk = Desk(max_workers=2)
        desk.ledger.add(task("old", 3, *(StoredWorker(index, attempt=1) for index in (1, 2, 3))))
        first, _ = desk.take(), desk.take()
        assert desk.ledger.take() is None
        desk.end(first)
        assert desk.take().life.index == 3


class TestRoom:
    """How many pods there may be."""

    @contract("2.MAX_WORKERS")
    def test_a_create_in_flight_takes_room(self) -> None:
        """Its pod may be there though the registry does not show it."""
        desk = Desk(max_workers=1)
        desk.ledger.add(task("a", 2))
        run = desk.take()
        desk.ledger.give_back(run)
        assert desk.ledger.take() is None
        desk.ledger.settled(run)
        assert desk.take().life.index == 2

    @contract("2.MAX_WORKERS")
    def test_a_live_pod_of_ours_takes_room_until_it_has_ended(self) -> None:
        """Seen by the watch, whoever created it."""
        desk = Desk(max_workers=1)
        desk.registry.publish(of("a", 5, Phase.RUNNING, index=9))
        desk.ledger.add(task("a", 9))
        assert desk.ledger.take() is None
        desk.registry.publish(of("a", 6, Phase.FAILED, index=9))
        assert desk.take().life.index == 1

    def test_who_has_counted_twice_says_that_others_may_go_on(self) -> None:
        """Between the sight of its pod and the end of its claim somebody may have been turned away."""
        desk = Desk(max_workers=2)
        desk.ledger.add(task("a", 2))
        run = desk.take()
        desk.registry.upsert(of("a", 5))
        assert desk.ledger.take() is None
        assert desk.ledger.settled(run)
        assert not desk.ledger.settled(run)
        assert desk.take().life.index == 2

    @contract("2.MAX_WORKERS")
    def test_room_that_a_take_over_fills_is_taken_back(self) -> None:
        """Whoever has not begun to use it waits after all; whoever has cannot be stopped any more."""
        desk = Desk(max_workers=3)
        desk.ledger.add(task("ours", 2))
        first, second = desk.take(), desk.take()
        assert desk.ledger.holds_room(first)
        desk.registry.publish(of("theirs", 5, Phase.RUNNING, index=1))
        desk.registry.publish(of("theirs", 6, Phase.RUNNING, index=2))
        desk.ledger.add(task("theirs", 2, StoredWorker(1, attempt=1), StoredWorker(2, attempt=1)))
        assert desk.ledger.holds_room(first)
        assert not desk.ledger.holds_room(second)

    @contract("2.MAX_WORKERS")
    def test_room_is_not_used_while_the_state_is_unknown(self, desk: Desk) -> None:
        """It may be gone meanwhile."""
        desk.ledger.add(task("a"))
        run = desk.take()
        desk.registry.unknown()
        assert not desk.ledger.holds_room(run)

    def test_pods_of_others_take_no_room(self) -> None:
        """Another replica's tasks are its own."""
        desk = Desk(max_workers=1)
        desk.registry.publish(of("theirs", 5, Phase.RUNNING))
        desk.ledger.add(task("ours"))
        assert desk.order(1) == ["ours/1"]

    def test_nothing_is_created_while_the_state_is_unknown(self, desk: Desk) -> None:
        """But who may have a pod already goes on."""
        desk.registry.unknown()
        desk.ledger.add(task("new"))
        desk.ledger.add(task("old", 1, StoredWorker(1, attempt=1)))
        assert desk.order(1) == ["old/1"]
        assert desk.ledger.take() is None
        desk.registry.replace(PodList([], "9"))
        assert desk.order(1) == ["new/1"]

    def test_workers_that_wait_for_redis_do_not_keep_each_other_out(self) -> None:
        """An outage at the first step: all are paused, and all come back."""
        desk = Desk(max_workers=2)
        desk.ledger.add(task("a", 2))
        runs = [desk.take(), desk.take()]
        for run in runs:
            desk.pause(run, 2)
        desk.clock.advance(2)
        assert [desk.take(), desk.take()] == runs

    def test_each_pod_needs_room_of_its_own(self, desk: Desk) -> None:
        """The room of an attempt that has failed may be taken when the next one is due."""
        desk.ledger.add(task("a"))
        run = desk.take()
        assert desk.ledger.holds_room(run)
        desk.ledger.settled(run)
        assert not desk.ledger.holds_room(run)

    def test_old_tenures_do_not_give_up_the_room_of_new_ones(self) -> None:
        """A thread that is on its way out of a task that was taken over anew."""
        desk = Desk(max_workers=2)
        desk.registry.publish(of("other", 5, Phase.RUNNING))
        desk.registry.track(of("other", 5).key.event_hash)
        desk.ledger.add(task("a", 1, StoredWorker(1, attempt=1)))
        old = desk.take()
        desk.ledger.add(task("a", 1, StoredWorker(1, attempt=1), tenure=2))
        desk.ledger.add(task("b"))
        desk.ledger.settled(old)
        desk.end(old)
        desk.take()
        assert desk.ledger.take() is None


MOVES = ("add", "take", "create", "settle", "pause", "end", "fail", "list", "lose", "drop")
moves = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 9)), max_size=60)


@contract("2.MAX_WORKERS")
@given(moves, st.integers(1, 4))
def test_never_are_more_pods_allowed_than_max_workers(steps: Sequence[tuple[str, int]], most: int) -> None:
    """Whatever happens in whatever order: when a create is permitted, there is room for it."""
    desk, running = Desk(max_workers=most), list[WorkerRun]()
    for version, (move, number) in enumerate(steps, 2):
        run = running[number % len(running)] if running else None
        if move == "take" and (taken := desk.ledger.take()) is not None:
            assert desk.registry.known
            assert desk.registry.owned_live + len(desk.ledger._capacity._claims) <= most
            running.append(taken)
        else:
            _play(desk, move, f"e{number % 3}", run, version)
        if run is not None and move in ("pause", "end"):
            running.remove(run)


def _play(desk: Desk, move: str, event_id: str, run: WorkerRun | None, version: int) -> None:
    """One thing that may happen between two takes; `run` is one of those that run."""
    match move:
        case "add" if not desk.ledger.has(event_id):
            desk.ledger.add(task(event_id, 3))
        case "list":
            desk.registry.replace(PodList(desk.registry.snapshots(), str(version)))
        case "lose":
            desk.registry.unknown()
        case "drop":
            desk.ledger.drop(event_id, "c1/b1/1")
        case _ if run is not None:
            _act(desk, move, run, version)


def _act(desk: Desk, move: str, run: WorkerRun, version: int) -> None:
    """One thing that a worker's thread, or its pod, may do."""
    seen = partial(of, run.task.event.event_id, version, index=run.life.index)
    if move in ("create", "settle"):
        desk.registry.upsert(seen(Phase.RUNNING))
    if move in ("fail", "end"):
        desk.registry.upsert(seen(Phase.FAILED))
    if move == "settle":
        desk.ledger.settled(run)
    if move == "pause":
        desk.pause(run, 0, todo=Intend(run.life.attempt, 0))
    if move == "end":
        desk.end(run)


class TestReadAhead:
    """How many events may be taken from the stream."""

    @contract("2.READ_AHEAD")
    def test_events_with_waiting_workers_use_it_up(self) -> None:
        """The rest stays in Redis for other replicas."""
        desk = Desk(max_workers=1, read_ahead=2)
        assert desk.ledger.wait_for_room(0) == 2
        desk.ledger.add(task("a", 2))
        desk.ledger.add(task("b", 2))
        assert desk.ledger.wait_for_room(0) == 0

    @contract("2.READ_AHEAD")
    def test_an_event_whose_workers_all_run_is_not_counted(self, desk: Desk) -> None:
        """It is room that the next one may use."""
        desk.ledger.add(task("a", 2))
        assert desk.ledger.wait_for_room(0) == 4
        desk.order(2)
        assert desk.ledger.wait_for_room(0) == 5

    def test_the_reader_is_woken_when_there_is_room(self) -> None:
        """It does not wait for the end of its time."""
        desk = Desk(read_ahead=1)
        desk.ledger.add(task("a"))
        with ThreadPoolExecutor(1) as reader:
            room = reader.submit(desk.ledger.wait_for_room, 30)
            eventually(lambda: desk.ledger._room._waiters, what="the reader to wait")  # type: ignore[attr-defined]
            desk.take()
            assert room.result(5) == 1
