"""Several controllers at once: one dies, sleeps, is replaced; Redis sleeps; another Ottoscaler is next door.

Whatever happens, each worker's end is reported once, and no replica deletes a running pod that another one follows.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.controller import Controller
from tests.e2e.fleet import LEASE_S, TAKEN_OVER_S, AuditedServer, Fleet, until_taken
from tests.e2e.redis_server import RedisServer
from tests.e2e.system import logged_at, uids
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.waiting import stays, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

#: How long Redis sleeps, seconds; OTTO_PAUSE_S=60 makes it the full minute.
_PAUSES_S = [float(os.environ["OTTO_PAUSE_S"])] if "OTTO_PAUSE_S" in os.environ else [4.5, 6.1]


def start_tasks(fleet: Fleet, tasks: int, workers: int) -> list[str]:
    """Tasks that run until the test ends them; returns when all their pods run."""
    sent = [fleet.send(type="scale_up", pod_count=workers, task_id=f"task-{number}") for number in range(tasks)]
    for event_id in sent:
        fleet.running(event_id, workers)
    return sent


def followed_to_the_end(fleet: Fleet, event_ids: list[str]) -> None:
    """All end now: one result each, of the same pods, of the first attempt, and no replica had deleted one."""
    pods = uids(fleet.kube.pods())
    fleet.pod_status.end_all()
    workers = fleet.once(event_ids)
    assert {worker["pod_uid"] for worker in workers} == pods
    assert {(worker["outcome"], worker["attempt"]) for worker in workers} == {("succeeded", "1")}
    fleet.nothing_left()
    assert fleet.wrongly_deleted() == []


class TestTakeOver:
    """One after the other is killed; the next has all that it held."""

    _TRIALS = 3

    @pytest.mark.contract("2.LEASE_S")
    @pytest.mark.contract("5.exactly-once")
    def test_within_the_lease_and_two_seconds(self, fleet: Fleet) -> None:
        """From the kill to the line of the log, all tasks; the pods run on, and no retry is used."""
        holder = fleet.replica().ready()
        tasks = start_tasks(fleet, 6, 2)
        took = []
        for _ in range(self._TRIALS):
            heir = fleet.replica().ready()
            killed_at = time.time()
            holder.kill()
            took.append(max(logged_at(line) for line in until_taken(heir, tasks)) - killed_at)
            holder = heir
        print("taken over after", [round(each, 2) for each in took])
        assert max(took) <= TAKEN_OVER_S
        assert fleet.epochs(tasks) == [1 + self._TRIALS] * len(tasks)
        followed_to_the_end(fleet, tasks)

    def test_what_it_read_and_did_not_accept_too(self, fleet: Fleet) -> None:
        """A scale_up, and a scale_down of a task that another one has."""
        replica = fleet.replica().ready()
        (task,) = start_tasks(fleet, 1, 1)
        up = fleet.read_by_a_dead_one(type="scale_up", run_s=1)
        down = fleet.read_by_a_dead_one(type="scale_down", task_id="task-0")
        died_at = time.time()
        assert stays(lambda: not replica.said("event.received", event_id=up), LEASE_S - 1)
        took = [logged_at(replica.until_said("event.received", event_id=event_id)) - died_at for event_id in (up, down)]
        print("accepted after", [round(each, 2) for each in took])
        assert max(took) <= TAKEN_OVER_S
        assert fleet.finished(down, "scale_down")["pod_count"] == "1"
        assert fleet.finished(task)["reason"] == "ScaledDown"
        fleet.once([up])
        fleet.nothing_left()


class TestRollOut:
    """SIGTERM, and the next one is there already."""

    @pytest.mark.contract("1.exit-codes")
    def test_it_is_handed_over_at_once_and_counts_as_no_failure(self, fleet: Fleet) -> None:
        """Three times: in less time than any lease, no try and no retry counted."""
        holder = fleet.replica(LEASE_S="60").ready()
        tasks = start_tasks(fleet, 4, 2)
        took = []
        for _ in range(3):
            heir = fleet.replica(LEASE_S="60").ready()
            began = time.time()
            holder.terminate()
            took.append(max(logged_at(line) for line in until_taken(heir, tasks)) - began)
            assert holder.exit_code(20) == 0
            holder = heir
        print("handed over after", [round(each, 2) for each in took])
        assert max(took) <= 5
        assert [fleet.stored(event_id, "tries") for event_id in tasks] == ["0"] * len(tasks)
        followed_to_the_end(fleet, tasks)


class TestSleeper:
    """A replica that is stopped for longer than its lease, and wakes."""

    @pytest.mark.contract("5.exactly-once")
    def test_it_drops_what_it_had(self, fleet: Fleet) -> None:
        """Workers ended meanwhile, others run on: it touches neither, and takes new work."""
        sleeper, heir = self._pair(fleet)
        tasks = start_tasks(fleet, 3, 2)
        short = fleet.send(type="scale_up", pod_count=2, run_s=1.5)
        fleet.running(short, 2)
        sleeper.process.send_signal(signal.SIGSTOP)
        heir.process.send_signal(signal.SIGCONT)
        until_taken(heir, [*tasks, short])
        fleet.once([short])
        sleeper.process.send_signal(signal.SIGCONT)
        for event_id in tasks:
            sleeper.until_said("task.lost", event_id=event_id)
        pods = uids(fleet.kube.pods())
        assert stays(lambda: uids(fleet.kube.pods()) == pods, LEASE_S + 1)  # its reconciler has made a pass
        heir.process.send_signal(signal.SIGSTOP)
        later = fleet.send(type="scale_up", run_s=0)
        fleet.finished(later)
        wait_for(lambda: uids(fleet.kube.pods()) == pods, "the pod of the later event to be deleted")
        heir.process.send_signal(signal.SIGCONT)
        followed_to_the_end(fleet, tasks)

    def _pair(self, fleet: Fleet, **sleepers: str) -> tuple[Controller, Controller]:
        """One that gets all events, since the other one is stopped."""
        sleeper, heir = fleet.replica(**sleepers), fleet.replica()
        sleeper.ready()
        heir.ready().process.send_signal(signal.SIGSTOP)
        return sleeper, heir

    def test_in_the_middle_of_creates(self, fleet: Fleet, slow_way: Callable[[], TcpProxy]) -> None:
        """What it had asked for is found, what it asks for when it wakes is cleared away."""
        count = 40
        way = slow_way()
        slow = str(fleet.api.kubeconfig_of("otto-0", way.port))
        sleeper, heir = self._pair(fleet, KUBECONFIG=slow, KUBE_INFLIGHT="8")
        way.delay_s = 0.2
        event_id = fleet.send(type="scale_up", pod_count=count, run_s=1)
        wait_for(fleet.kube.pods, "the first pods", poll_s=0.01)
        sleeper.process.send_signal(signal.SIGSTOP)
        assert len(fleet.kube.pods()) < count
        heir.process.send_signal(signal.SIGCONT)
        until_taken(heir, [event_id])
        assert len(fleet.results(event_id)) < count
        sleeper.process.send_signal(signal.SIGCONT)
        sleeper.until_said("task.lost", event_id=event_id)
        results = {worker["index"]: worker for worker in fleet.once([event_id], timeout_s=120)}
        assert {worker["outcome"] for worker in results.values()} == {"succeeded"}
        fleet.nothing_left()
        # a late create may bring a name back after its pod has ended and is gone: the pod of the result is another one
        stale = fleet.wrongly_deleted(
            lambda one: one.attempt < int(results[one.index]["attempt"]) or one.uid != results[one.index]["pod_uid"]
        )
        assert stale == []
        print("attempts", Counter(worker["attempt"] for worker in results.values()))


@pytest.fixture
def slow_way(audited_server: AuditedServer) -> Iterator[Callable[[], TcpProxy]]:
    """Ways to the API server that a test may make slow."""
    made: list[TcpProxy] = []

    def make() -> TcpProxy:
        made.append(TcpProxy(audited_server.port))
        return made[-1]

    yield make
    for way in made:
        way.close()


@pytest.mark.contract("2.LEASE_S")
def test_while_redis_sleeps_no_replica_takes_over(
    own_redis: Callable[[], RedisServer], audited_server: AuditedServer, tmp_path: Path
) -> None:
    """Longer than any lease, with one that has tasks, and two that have none: each keeps what it had."""
    server = own_redis()
    server.start()
    with closing(Fleet(server, 0, audited_server, tmp_path)) as fleet:
        _sleep(fleet, server)


def _sleep(fleet: Fleet, server: RedisServer) -> None:
    fleet.replica().ready()
    tasks = start_tasks(fleet, 3, 2)
    idle = [fleet.replica(), fleet.replica()]
    for each in idle:
        each.ready()
    for pause_s in _PAUSES_S:
        server.pause()
        assert stays(lambda: True, pause_s)
        server.resume()
        assert stays(lambda: fleet.epochs(tasks) == [1] * len(tasks), LEASE_S + 2)
    assert [one.said("task.taken") for one in idle] == [[], []]
    followed_to_the_end(fleet, tasks)


class TestOneName:
    """Two processes with one REDIS_CONSUMER."""

    @pytest.mark.contract("1.exit-codes")
    @pytest.mark.contract("2.REDIS_CONSUMER")
    @pytest.mark.parametrize("busy", [True, False])
    def test_the_older_one_ends_and_says_why(self, fleet: Fleet, busy: bool) -> None:
        """With code 1, also if it has nothing to do, and in less than a lease."""
        older = fleet.replica().ready()
        tasks = start_tasks(fleet, 2, 1) if busy else []
        newer = fleet.replica(REDIS_CONSUMER="otto-0")
        newer.ready()
        assert older.exit_code(LEASE_S + 2) == 1
        assert "REDIS_CONSUMER must be unique" in older.said("controller.failed")[0]["error"]
        until_taken(newer, tasks)
        tasks.append(fleet.send(type="scale_up"))
        fleet.running(tasks[-1])
        followed_to_the_end(fleet, tasks)
        assert newer.process.poll() is None


HERE = {"INSTANCE": "here"}
THERE = {
    "INSTANCE": "there",
    "REDIS_STREAM": "there:events",
    "REDIS_CONSUMER_GROUP": "there",
    "KEY_PREFIX": "there:",
    "RESULT_STREAM": "there:results",
}


class TestNextDoor:
    """Two Ottoscalers, each with stream, group and state of its own, in one namespace."""

    @pytest.mark.contract("2.INSTANCE")
    def test_neither_touches_the_others_pods(self, fleet: Fleet) -> None:
        """Load on both, a scale_down of all here, one killed and one stopped: there all run to their ends."""
        here, there = fleet.replica(**HERE).ready(), fleet.replica(**THERE).ready()
        sent = [fleet.send(type="scale_up", pod_count=3) for _ in range(4)]
        theirs = [self._send_there(fleet, pod_count=3) for _ in range(4)]
        wait_for(lambda: fleet.pod_status.live == 24, "all pods")
        pods = self._pods_there(fleet)
        assert len(pods) == 3 * len(theirs)
        down = fleet.send(type="scale_down", pod_count=7)
        assert fleet.finished(down, "scale_down")["pod_count"] == "7"
        here.kill()
        heir = fleet.replica(**HERE).ready()
        until_taken(heir, [event_id for event_id in sent if event_id in fleet.open_ids()])
        assert stays(lambda: fleet.pod_status.live == 24 - 7, 2 * LEASE_S)  # each reconciler has made a pass
        assert self._pods_there(fleet) == pods
        fleet.pod_status.end_all()
        fleet.once(sent)
        wait_for(lambda: not fleet.kube.pods(), "the pods to go")
        there.terminate()
        assert there.exit_code() == 0
        found = [result for _, result in fleet.redis.xrange("there:results") if result["kind"] == "worker"]
        assert {(result["outcome"], result["attempt"]) for result in found} == {("succeeded", "1")}
        assert sorted(result["pod_uid"] for result in found) == sorted(pods)
        users = {"here": {"otto-0", "otto-2"}, "there": {"otto-1"}}
        deletions = fleet.api.deletions(fleet.kube.namespace)
        assert [one for one in deletions if one.user not in users[one.instance]] == []

    def _pods_there(self, fleet: Fleet) -> set[str]:
        pods = [pod for pod in fleet.kube.pods() if pod["metadata"]["labels"]["ottoscaler.io/instance"] == "there"]
        return uids(pods)

    def _send_there(self, fleet: Fleet, **fields: object) -> str:
        found = {"type": "scale_up", **{name: str(value) for name, value in fields.items()}}
        return str(fleet.redis.xadd("there:events", found))


__all__ = ["Controller"]
