"""The workers that wait: each is in one queue at a time, whatever was known of it before."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ottoscaler.core.lifecycle import begin_lifecycle
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.flow.capacity import Capacity
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.run_queues import RunQueues
from ottoscaler.ports import PodList
from tests.core.builders import event
from tests.fakes.clock import ManualClock


@pytest.fixture
def queues() -> RunQueues:
    """With room for some workers."""
    registry = PodRegistry(ManualClock())
    registry.replace(PodList([], "1"))
    return RunQueues(Capacity(registry, 10))


@pytest.fixture
def run() -> WorkerRun:
    """A worker in no queue."""
    task = OwnedTask(event=event(), owner="o", event_hash="h", received_mono=0.0, received_at="", cancel_count=0)
    return WorkerRun(task, begin_lifecycle(1))


def test_a_worker_comes_back_when_its_pause_is_over(queues: RunQueues, run: WorkerRun) -> None:
    """Not before, and once."""
    assert queues.pause(run, 10.0)
    queues.wake_due(9.9)
    assert (queues.next(), queues.next_pause_end()) == (None, 10.0)
    queues.wake_due(10.0)
    assert queues.next() is run
    assert (queues.next(), queues.next_pause_end()) == (None, None)


def test_only_its_last_pause_counts(queues: RunQueues, run: WorkerRun) -> None:
    """An earlier one is still in the heap; it wakes nobody."""
    queues.pause(run, 10.0)
    assert not queues.pause(run, 20.0)
    queues.wake_due(15.0)
    assert queues.next() is None
    queues.wake_due(20.0)
    assert queues.next() is run


def test_a_worker_that_is_cancelled_in_its_pause_waits_once(queues: RunQueues, run: WorkerRun) -> None:
    """For a thread that ends it, and for the end of its pause no longer."""
    queues.pause(run, 10.0)
    run.task.terminations[1] = Termination(EndReason.SCALED_DOWN)
    queues.cancel(run)
    queues.cancel(run)
    queues.wake_due(10.0)
    assert queues.next_cancelled() is run
    assert not queues.has_cancelled()
    assert queues.next() is None


def test_the_pause_of_a_task_that_was_closed_wakes_nobody(queues: RunQueues, run: WorkerRun) -> None:
    """Another process may have it by now."""
    queues.pause(run, 10.0)
    run.task.closed = True
    queues.wake_due(10.0)
    assert queues.count_waiting() == 0


def test_a_cancelled_worker_waits_for_no_thread(queues: RunQueues, run: WorkerRun) -> None:
    """Though it was about to have one."""
    run.life = replace(run.life, attempt=1)
    queues.add_resumed(run)
    queues.cancel(run)
    assert queues.next() is None
    assert queues.next_cancelled() is run
