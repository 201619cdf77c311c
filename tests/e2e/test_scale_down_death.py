"""A replica dies in the middle of a scale_down, at each of its steps, and another one goes on with it.

Never more victims than were asked for, never a survivor forgotten, one result. The dying one has a slow way to Redis,
so that each step lasts long enough to be met.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.controller import Controller
from tests.e2e.fleet import AuditedServer, Fleet
from tests.e2e.redis_server import DATABASES, RedisServer
from tests.e2e.system import names
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

_WORKERS, _ASKED = 4, 2
_DATABASE = DATABASES - 1
#: Of each chunk on the way to Redis and back, seconds: a command takes twice as long.
_SLOW_S = 0.15


@dataclass
class Case:
    """One scale_down, and what became of it."""

    moment: str
    up: str
    pods: list[str] = field(default_factory=list)
    down: str = ""
    victims: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)


def _marked(fleet: Fleet, case: Case) -> int:
    return sum(name.startswith("doom:") for name in fleet.redis.hkeys(f"otto:scale:task:{case.up}"))


#: What is to be seen when the one that carries the scale_down out is killed.
MOMENTS: dict[str, Callable[[Fleet, Case], object]] = {
    "before it has chosen": lambda fleet, case: fleet.stored(case.down, "owner"),
    "when it has chosen": lambda fleet, case: fleet.stored(case.down, "victims"),
    "when all are marked": lambda fleet, case: _marked(fleet, case) == _ASKED,
    "after the deletions": lambda fleet, case: len(fleet.pods_of(case.up)) == _WORKERS - _ASKED,
    "before it tells": lambda fleet, case: len(fleet.results(case.up)) == _ASKED,
}


class Chain:
    """Each replica starts a scale_down and is killed, the next one ends it and starts the next. One thread."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.cases: list[Case] = []
        self._ways: list[TcpProxy] = []
        self._holder = self._start()

    def close(self) -> None:
        """Take the ways away."""
        for way in self._ways:
            way.close()

    def die(self, moment: str) -> None:
        """A scale_down of two of four workers; its replica dies at that moment; the next one has to end it."""
        fleet, task_id = self.fleet, f"task-{len(self.cases)}"
        case = Case(moment, fleet.send(type="scale_up", pod_count=_WORKERS, task_id=task_id))
        self.cases.append(case)
        case.pods = names(fleet.running(case.up, _WORKERS))
        if moment == "before it has chosen":
            # it has to wait for an older event that another consumer has read
            fleet.read_by_a_dead_one(type="scale_up", run_s=0)
        self._ways[-1].delay_s = _SLOW_S
        case.down = fleet.send(type="scale_down", task_id=task_id, pod_count=_ASKED)
        wait_for(lambda: MOMENTS[moment](fleet, case), moment, poll_s=0.005)
        self._holder.kill()
        assert fleet.results(case.down, "scale_down") == [], f"{moment}: killed too late"
        self._holder = self._start()
        answer = fleet.finished(case.down, "scale_down")
        case.victims, case.survivors = json.loads(answer["victims"]), json.loads(answer["survivors"])

    def _start(self) -> Controller:
        self._ways.append(TcpProxy(self.fleet.server.port))
        return self.fleet.replica(REDIS_PORT=str(self._ways[-1].port)).ready()


@pytest.fixture(scope="module")
def chain(
    redis_server: RedisServer, audited_server: AuditedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    """All moments, one after the other; then the workers that are left end, and all is reported."""
    directory: Path = tmp_path_factory.mktemp("chain")
    with closing(Fleet(redis_server, _DATABASE, audited_server, directory)) as fleet, closing(Chain(fleet)) as made:
        for moment in MOMENTS:
            made.die(moment)
        fleet.pod_status.end_all()
        fleet.once([case.up for case in made.cases])
        fleet.nothing_left()
        yield made


@pytest.mark.contract("5.scale_down")
@pytest.mark.contract("3.pod_count")
def test_as_many_victims_as_were_asked_for(chain: Chain) -> None:
    """Each is reported as cancelled, and no other worker is."""
    for case in chain.cases:
        cancelled = [answer for answer in chain.fleet.results(case.up) if answer["outcome"] == "cancelled"]
        assert len(set(case.victims)) == _ASKED, case
        victims = {name.rpartition("-")[2]: name for name in case.victims}
        assert sorted(answer["index"] for answer in cancelled) == sorted(victims), case
        for answer in cancelled:
            # a pod that was gone before a replica saw it go is not known any more
            unseen = case.moment != "before it has chosen" and not answer["pod"]
            assert unseen or answer["pod"] == victims[answer["index"]], case
        assert {answer["reason"] for answer in cancelled} == {"ScaledDown"}, case


@pytest.mark.contract("5.survivors")
def test_no_survivor_is_forgotten(chain: Chain) -> None:
    """Victims and survivors are all that ran, and each survivor went on to its own end in its first pod."""
    for case in chain.cases:
        assert sorted(case.victims + case.survivors) == case.pods, case
        succeeded = [answer["pod"] for answer in chain.fleet.results(case.up) if answer["outcome"] == "succeeded"]
        assert sorted(succeeded) == sorted(case.survivors), case


@pytest.mark.contract("5.exactly-once")
def test_it_is_reported_once(chain: Chain) -> None:
    """One result for each scale_down, at the very end too."""
    for case in chain.cases:
        assert len(chain.fleet.results(case.down, "scale_down")) == 1, case


@pytest.mark.contract("5.deletion")
def test_no_other_running_pod_was_deleted(chain: Chain) -> None:
    """By the API server's own account."""
    victims = {name for case in chain.cases for name in case.victims}
    assert chain.fleet.wrongly_deleted(lambda one: one.name in victims) == []
