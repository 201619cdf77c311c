"""The pool: threads for workers, given out by the ledger."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import pytest

from ottoscaler.core.pods import Phase
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.parts import Parts
from ottoscaler.flow.pool import AT_ONCE, GROW_EVERY_S, Pool
from ottoscaler.flow.worker import Runner
from tests.fakes.node import AutoNode
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.desk import task
from tests.flow.pods import of
from tests.flow.rig import Rig

contract = pytest.mark.contract


def at_work() -> int:
    """How many pool threads there are."""
    return sum(thread.name.startswith("worker") for thread in threading.enumerate())


@contract("2.MAX_WORKERS")
def test_there_are_as_many_threads_as_workers_may_run() -> None:
    """Each follows one worker; the rest of the event waits in the ledger."""
    with Rig(threads=["watch"], MAX_WORKERS=3) as rig:
        event_id = rig.accept(pod_count=10)
        for index in (1, 2, 3):
            rig.pod(event_id, index)
        assert (at_work(), rig.ledger.counts(), rig.calls("create")) == (3, (3, 7), 3)


def test_a_thread_that_is_done_asks_for_the_next_worker() -> None:
    """Nobody else has to give it one."""
    with Rig(threads=["watch"], MAX_WORKERS=1, auto=True) as rig:
        rig.accept(pod_count=20)
        assert len(rig.results(20)) == 20
        assert at_work() == 1


class Later(Executor):
    """Threads that have been started and have not begun; `begin` lets one run to its end."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], Any]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting.append(partial(fn, *args, **kwargs))
        return Future()

    def begin(self) -> None:
        self.waiting.popleft()()


class Quick(Runner):
    """Every worker is done at once."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.done: list[int] = []

    def run(self, run: WorkerRun) -> None:
        self.done.append(run.life.index)


def test_nobody_who_calls_starts_a_thousand_threads() -> None:
    """The reader, the lease thread and the watch have their own work: each thread that begins starts the next ones."""
    count = 3 * AT_ONCE
    with Rig(MAX_WORKERS=count) as rig:
        rig.registry.replace(rig.cluster.list())
        later, runner = Later(), Quick(rig.parts)
        pool = Pool(rig.parts, runner, later)
        rig.ledger.add(task("e1", count))
        pool.pump()
        assert len(later.waiting) == AT_ONCE
        later.begin()
        assert len(later.waiting) > AT_ONCE
        while later.waiting:
            later.begin()
        assert sorted(runner.done) == list(range(1, count + 1))


def test_room_is_used_by_whoever_has_a_thread() -> None:
    """A worker that has given up its room is held up afterwards: the next one does not wait for it."""
    all_asked, go_on = threading.Event(), threading.Event()

    def hold(op: str) -> None:
        if op == "note_refused":
            go_on.wait(10)

    def gather(verb: str, _name: str) -> None:
        if verb == "create":
            all_asked.wait(10)

    with Rig(threads=["watch"], MAX_WORKERS=3) as rig:
        orphan = of("orphan", 5, Phase.RUNNING)
        rig.registry.publish(orphan)
        rig.registry.track(orphan.key.event_hash)
        rig.world.kubernetes.refuse_next("create", ClusterUnavailable("quota", unclear=False))
        rig.redis.on_call, rig.world.kubernetes.on_call = hold, gather
        event_id = rig.accept(pod_count=3)
        all_asked.set()
        rig.pod(event_id, 3)
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
    with Rig(threads=["watch"], MAX_WORKERS=10) as rig:
        event_id = rig.accept(pod_count=30)
        first = [rig.pod(event_id, index) for index in range(1, size + 1)]  # each thread is busy, so each is counted
        [line] = eventually(lambda: log.of("pool.shrunk"), what="a thread to be refused")
        AutoNode(rig.world.kubernetes)
        for pod in first:
            rig.cluster.succeed(pod)
        assert len(rig.results(30)) == 30
        assert at_work() <= size
    assert "can't start new thread" in line
    assert f"going on with {size} for MAX_WORKERS=10" in line


def test_who_waits_for_a_thread_is_not_stuck(machine: list[int]) -> None:
    """All threads follow a pod each: with the rest it is as with a full pool, and the process stays ready."""
    machine[0] = 2
    with Rig(threads=["watch"], MAX_WORKERS=10) as rig:
        event_id = rig.accept(pod_count=5)
        for index in (1, 2):
            rig.pod(event_id, index)
        assert rig.ledger.counts() == (2, 3)
        assert not rig.ledger.takeable()


def test_the_pool_grows_again_when_the_machine_has_threads_again(machine: list[int], log: Lines) -> None:
    """Also one that got none at all: nothing but time has to pass."""
    with Rig(threads=["watch"], MAX_WORKERS=10, auto=True) as rig:
        rig.accept(pod_count=5)
        assert (at_work(), rig.ledger.counts()) == (0, (0, 5))
        machine[0] = 10
        rig.pool.pump()
        assert at_work() == 0
        rig.pass_time(GROW_EVERY_S)
        assert len(rig.results(5)) == 5
    assert len(log.of("pool.shrunk")) == 1


def test_cancelled_workers_need_no_thread() -> None:
    """Their two writes are done by whoever asks, however full the pool is."""
    with Rig(threads=["watch"], MAX_WORKERS=1) as rig:
        rig.pod(rig.accept())
        event_id, termination = rig.accept(pod_count=5), Termination(Reason.SCALED_DOWN)
        for index in range(1, 6):
            rig.stream.store_termination(event_id, None, index, termination)
            rig.ledger.cancel(event_id, index, termination)
        assert rig.pool.run_cancelled(rig.ender.follow) == 5
        assert {result["reason"] for result in rig.results(5)} == {"ScaledDown"}
        assert rig.ledger.counts() == (1, 0)


def test_a_resumed_worker_can_be_carried_on_without_a_thread() -> None:
    """A pod that has finished is recorded, though the pool is full."""
    with Rig(threads=["watch"]) as first:
        event_id = first.accept()
        pod = first.pod(event_id)
        first.close()
        with Rig(first.world, consumer="c2", threads=["watch"], MAX_WORKERS=1) as rig:
            rig.pod(rig.accept())
            task = rig.stream.take(event_id, same_consumer=False)
            assert task is not None
            rig.intake.open(task)
            rig.cluster.run(pod)
            rig.cluster.succeed(pod)
            assert rig.pool.run_waiting(rig.key(event_id).event_hash, 1)
            assert rig.result()["event_id"] == event_id
            assert not rig.pool.run_waiting(rig.key(event_id).event_hash, 1)


def test_after_its_close_nothing_is_begun() -> None:
    """What waits is left to whoever comes next."""
    with Rig(threads=["watch"]) as rig:
        rig.pool.close()
        rig.pool.close()
        rig.accept()
        assert (rig.ledger.counts(), rig.calls("create")) == ((0, 1), 0)


def test_after_the_stop_a_thread_takes_nothing_more() -> None:
    """It finishes the write it is at, and that is all."""
    with Rig(threads=["watch"], MAX_WORKERS=1) as rig:
        pod = rig.pod(rig.accept(pod_count=2))
        rig.redis.on_call = lambda op: rig.stop.set() if op == "record" else None
        rig.cluster.run(pod)
        rig.cluster.succeed(pod)
        rig.result()
        rig.idle()
        assert (rig.ledger.counts(), rig.calls("create")) == ((0, 1), 1)


def test_waiting_for_idleness_tells_who_still_works() -> None:
    """The stop has to know whether it may go on."""
    with Rig(threads=["watch"]) as rig:
        rig.pod(rig.accept())
        assert rig.pool.wait_idle(rig.clock.now()) == 1
        rig.registry.close()
        eventually(lambda: rig.pool.wait_idle(rig.clock.now()) == 0)
