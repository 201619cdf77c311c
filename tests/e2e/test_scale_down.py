"""scale_down: at once, however busy the pool and however long the backlog; which workers end, and what it reports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.controller import Controller
from tests.e2e.system import LONG_RUN, RUNS, Fields, System, logged_at, names, sent_at
from tests.e2e.waiting import stays, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

_BACKLOG = 1000
#: Promised: the first deletion is asked for this long after XADD, seconds.
_AT_ONCE_S = 1.0


def victims(result: Fields) -> list[str]:
    """The pods that a scale_down ended."""
    return list(json.loads(result["victims"]))


def survivors(result: Fields) -> list[str]:
    """The pods that it left."""
    return list(json.loads(result["survivors"]))


def outcomes(results: list[Fields]) -> list[tuple[str, str, str]]:
    """Outcome, reason and fault of each."""
    return [(result["outcome"], result["reason"], result["fault"]) for result in results]


_CANCELLED = ("cancelled", "ScaledDown", "none")


class TestKill:
    """mode kill, the default."""

    @pytest.mark.contract("5.ScaledDown")
    @pytest.mark.contract("5.scale_down")
    @pytest.mark.contract("5.victims")
    def test_a_running_task(self, shared: System) -> None:
        """All its workers end, each is reported once, and so are task and scale_down."""
        event_id = shared.send(type="scale_up", pod_count=2, task_id="kill-1", script=LONG_RUN)
        pods = names(shared.running(event_id, 2))
        order = shared.send(type="scale_down", task_id="kill-1")
        result = shared.finished(order, "scale_down")
        assert (result["outcome"], result["reason"], result["pod_count"]) == ("succeeded", "Completed", "2")
        assert (sorted(victims(result)), survivors(result)) == (pods, [])
        assert outcomes(shared.results(event_id)) == [_CANCELLED, _CANCELLED]
        task = shared.finished(event_id)
        assert (task["outcome"], task["reason"], task["cancelled"]) == ("cancelled", "ScaledDown", "2")
        shared.no_pods(event_id)

    @pytest.mark.contract("5.deletion")
    def test_a_success_seen_in_between_wins(self, shared: System) -> None:
        """A worker that ends well when it is asked to end has done its work."""
        event_id = shared.send(type="scale_up", task_id="kill-4", script="trap 'exit 0' TERM; sleep 600 & wait $!")
        shared.running(event_id)
        shared.finished(shared.send(type="scale_down", task_id="kill-4"), "scale_down")
        assert outcomes([shared.verdict(event_id)]) == [("succeeded", "Completed", "none")]

    @pytest.mark.contract("5.scale_down")
    def test_recorded_when_the_pods_are_gone(self, shared: System) -> None:
        """The reader of the result may use the room."""
        event_id = shared.send(type="scale_up", task_id="kill-3", script=LONG_RUN)
        shared.running(event_id)
        shared.finished(shared.send(type="scale_down", task_id="kill-3"), "scale_down")
        assert shared.pods_of(event_id) == []

    @pytest.mark.contract("3.pod_count")
    @pytest.mark.contract("5.survivors")
    def test_so_many_of_a_task(self, shared: System) -> None:
        """One of two: the other one runs on to its own end."""
        event_id = shared.send(type="scale_up", pod_count=2, task_id="kill-2", script=RUNS.format(6))
        shared.running(event_id, 2)
        result = shared.finished(shared.send(type="scale_down", task_id="kill-2", pod_count=1), "scale_down")
        assert (len(victims(result)), len(survivors(result)), result["pod_count"]) == (1, 1, "1")
        task = shared.finished(event_id)
        assert [task[name] for name in ("outcome", "succeeded", "cancelled")] == ["cancelled", "1", "1"]
        spared = [worker for worker in shared.results(event_id) if worker["outcome"] == "succeeded"]
        assert [worker["pod"] for worker in spared] == survivors(result)

    @pytest.mark.contract("3.task_id")
    def test_the_youngest_of_all(self, system: System) -> None:
        """Without a task: the youngest worker of the group."""
        system.start()
        old = system.send(type="scale_up", task_id="old", script=LONG_RUN)
        system.running(old)
        young = system.send(type="scale_up", task_id="young", script=LONG_RUN)
        pods = names(system.running(young))
        result = system.finished(system.send(type="scale_down", pod_count=1), "scale_down")
        assert victims(result) == pods
        assert outcomes([system.verdict(young)]) == [_CANCELLED]
        assert stays(lambda: len(system.running(old)) == 1, 0.5)

    @pytest.mark.contract("5.NothingToEnd")
    def test_no_worker_to_end(self, shared: System) -> None:
        """Is a success."""
        result = shared.finished(shared.send(type="scale_down", task_id="never-heard-of"), "scale_down")
        assert (result["outcome"], result["reason"]) == ("succeeded", "NothingToEnd")
        assert (victims(result), survivors(result)) == ([], [])

    def test_without_a_task_it_needs_a_count(self, shared: System) -> None:
        """Or a slip would end everything: a dead letter."""
        order = shared.send(type="scale_down")
        (letter,) = wait_for(lambda: shared.dead_letters(order), "the dead letter")
        assert "pod_count" in letter["dead_detail"]


class TestDrain:
    """mode drain: a worker that has started is spared."""

    @pytest.mark.contract("3.mode")
    def test_only_what_has_not_started(self, system: System) -> None:
        """One runs and two wait for a thread: the two never start, the one runs on."""
        system.start(MAX_WORKERS="1")
        event_id = system.send(type="scale_up", pod_count=3, task_id="drained", script=RUNS.format(4))
        pods = names(system.running(event_id))
        result = system.finished(system.send(type="scale_down", task_id="drained", mode="drain"), "scale_down")
        assert (len(victims(result)), survivors(result)) == (2, pods)
        task = system.finished(event_id)
        assert [task[name] for name in ("outcome", "succeeded", "cancelled")] == ["cancelled", "1", "2"]

    @pytest.mark.contract("5.Superseded")
    @pytest.mark.contract("3.supersedes")
    def test_a_newer_event_supersedes_an_older_one(self, system: System) -> None:
        """Of the same key: what of the older one has not started is cancelled, what runs runs on."""
        system.start(MAX_WORKERS="1")
        older = system.send(type="scale_up", pod_count=2, supersedes="main", script="sleep 3")
        system.running(older)
        other = system.send(type="scale_up", supersedes="another-key")
        newer = system.send(type="scale_up", supersedes="main")
        assert system.finished(newer)["outcome"] == "succeeded"
        assert system.finished(other)["outcome"] == "succeeded"
        task = system.finished(older)
        assert [task[name] for name in ("succeeded", "cancelled")] == ["1", "1"]
        assert ("cancelled", "Superseded", "none") in outcomes(system.results(older))


@dataclass(frozen=True)
class Jam:
    """Two workers hold all threads, and a thousand events wait behind them."""

    system: System
    controller: Controller
    running: str
    pods: list[str]
    waiting: list[str]


@pytest.fixture(scope="module")
def jam(new_system: Callable[[], System]) -> Iterator[Jam]:
    """A pool of two, both busy for long, and a backlog."""
    system = new_system()
    controller = system.start(MAX_WORKERS="2", READ_AHEAD="4")
    event_id = system.send(type="scale_up", pod_count=2, task_id="busy", script=LONG_RUN)
    pods = names(system.running(event_id, 2))
    waiting = [system.send(type="scale_up", task_id="backlog", script="exit 0") for _ in range(_BACKLOG)]
    yield Jam(system, controller, event_id, pods, waiting)
    system.close()


@pytest.fixture(scope="module")
def cleared(jam: Jam) -> tuple[str, Fields]:
    """The scale_down of all that waits, and its result."""
    order = jam.system.send(type="scale_down", task_id="backlog")
    return order, jam.system.finished(order, "scale_down", timeout_s=60)


@pytest.fixture(scope="module")
def ended(jam: Jam, cleared: tuple[str, Fields]) -> tuple[str, Fields]:
    """With another thousand unread, the scale_down of the two that run, and its result."""
    for _ in range(_BACKLOG):
        jam.system.send(type="scale_up", task_id="more", pod_count=1, script="exit 0")
    order = jam.system.send(type="scale_down", task_id="busy")
    return order, jam.system.finished(order, "scale_down")


class TestJam:
    """First the backlog is ended while both threads stay busy, then, before another backlog, what runs."""

    @pytest.mark.contract("5.exactly-once")
    def test_a_backlog_never_starts(self, jam: Jam, cleared: tuple[str, Fields]) -> None:
        """Each waiting worker is cancelled, once, and none had a pod."""
        entries = jam.system.redis.xrange("otto:scale:results")
        results = [answer for _, answer in entries if answer["kind"] == "worker" and answer["task_id"] == "backlog"]
        assert Counter(result["event_id"] for result in results) == Counter(jam.waiting)
        assert set(outcomes(results)) == {_CANCELLED}
        assert {result["pod_uid"] for result in results} == {""}

    def test_it_is_reported_once(self, cleared: tuple[str, Fields]) -> None:
        """A thousand victims, no survivor."""
        _, result = cleared
        assert (len(set(victims(result))), survivors(result)) == (_BACKLOG, [])

    def test_the_first_deletion_comes_at_once(self, jam: Jam, ended: tuple[str, Fields]) -> None:
        """However full the pool and long the backlog."""
        order, _ = ended
        first = min(logged_at(line) for line in jam.controller.said("worker.deleted") if line["pod"] in jam.pods)
        assert first - sent_at(order) < _AT_ONCE_S

    def test_the_running_ones_end_once(self, jam: Jam, ended: tuple[str, Fields]) -> None:
        """Cancelled, with their pods named as victims."""
        _, result = ended
        assert (sorted(victims(result)), survivors(result)) == (jam.pods, [])
        assert outcomes(jam.system.results(jam.running)) == [_CANCELLED, _CANCELLED]
