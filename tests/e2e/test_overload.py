"""More than there is room for: a quota, a server that says later, fails or is slow, a long backlog, a giant among many.

All of it is waiting, never failing; there are never more pods than MAX_WORKERS; memory does not grow with the backlog.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import AuditedServer, Fleet
from tests.e2e.recorder import Recorder
from tests.e2e.system import sent_at
from tests.e2e.waiting import stays, wait_for

#: Promised: quota that was freed is used so long after, seconds.
_FREED_S = 5.0
_BACKLOG = 10_000
#: How much more memory a backlog may cost, MiB: what is read ahead, and what the allocator keeps.
_GROWTH_MIB = 24
#: How long the backlog is worked off, seconds; OTTO_DRAIN_S=900 does so to its end.
_DRAIN_S = float(os.environ.get("OTTO_DRAIN_S", "8"))

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240 + _DRAIN_S)]


def quota(fleet: Fleet, pods: int, used: int) -> None:
    """What the quota controller would write: there is none here."""
    status = {"status": {"hard": {"pods": str(pods)}, "used": {"pods": str(used)}}}
    fleet.kube.api.patch_namespaced_resource_quota_status(
        "few", fleet.kube.namespace, status, _content_type="application/merge-patch+json", _preload_content=False
    )


class TestQuota:
    """403 of the real admission plugin."""

    @pytest.mark.contract("5.waiting")
    def test_what_is_freed_is_used_soon(self, fleet: Fleet) -> None:
        """However long it was refused before; no worker fails, no retry is used, and no thread asks without a break."""
        body = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
        fleet.kube.api.create_namespaced_resource_quota(fleet.kube.namespace, body, _preload_content=False)
        quota(fleet, 2, 0)
        controller = fleet.replica().ready()
        event_id = fleet.send(type="scale_up", pod_count=7)
        wait_for(lambda: fleet.pod_status.live == 2, "what the quota allows")
        assert stays(lambda: fleet.pod_status.live == 2, 7)  # its pauses are as long as they get
        wait_for(lambda: "exceeded quota" in fleet.stored(event_id, "why"), "the reason to be shown")
        dice, took = random.Random(4), []
        for allowed in (3, 4, 5):
            assert stays(lambda: True, dice.uniform(0, 2))
            quota(fleet, allowed, allowed - 1)
            freed_at = time.monotonic()
            wait_for(lambda: fleet.pod_status.live == allowed, "the quota to be used", 20, 0.01)  # noqa: B023
            took.append(time.monotonic() - freed_at)
        print("used after", [round(each, 2) for each in took])
        assert max(took) < _FREED_S
        quota(fleet, 100, 5)
        wait_for(lambda: fleet.pod_status.live == 7, "the rest")
        fleet.pod_status.end_all()
        assert {(answer["outcome"], answer["attempt"]) for answer in fleet.once([event_id])} == {("succeeded", "1")}
        fleet.nothing_left()
        assert len(controller.said("worker.created")) < 60


@pytest.fixture
def way(audited_server: AuditedServer, tmp_path: Path) -> Iterator[Recorder]:
    """A bad way to the API server."""
    made = Recorder(audited_server.kubeconfig, tmp_path)
    made.start()
    yield made
    made.close()


class TestServer:
    """The API server says later, fails, takes its time."""

    @pytest.mark.contract("5.waiting")
    def test_all_of_it_is_waited_out(self, fleet: Fleet, way: Recorder) -> None:
        """One result each, of the first attempt; the server that fails is left in peace; no lease is lost."""
        workers = 20
        controller = fleet.replica(KUBECONFIG=str(way.kubeconfig)).ready()
        way.refuse(workers)
        event_id = fleet.send(type="scale_up", pod_count=workers, run_s=0)
        fleet.once([event_id])
        assert way.counts()["create"] == 2 * workers
        way.fail(10_000)
        broken = fleet.send(type="scale_up", pod_count=workers, run_s=0)
        assert stays(lambda: not fleet.results(broken), 5)
        asked = way.counts()["create"] - 2 * workers
        way.fail(0)
        way.delay(2.0)
        slow = fleet.send(type="scale_up", pod_count=workers, run_s=0)
        worker_results = fleet.once([broken, slow])
        print(f"{asked} creates in 5 s of nothing but 500")
        assert workers < asked <= 5 * workers
        assert {(answer["outcome"], answer["attempt"]) for answer in worker_results} == {("succeeded", "1")}
        assert fleet.epochs([broken, slow]) == [1, 1]
        way.delay(0.0)
        fleet.nothing_left()
        assert not controller.said("task.lost")


@pytest.mark.contract("2.MAX_WORKERS")
def test_small_events_do_not_wait_for_a_giant(fleet: Fleet) -> None:
    """A thousand workers came first, then two hundred events of one: these end while the giant has hardly begun."""
    most, giant, small = 20, 1000, 200
    fleet.replica(MAX_WORKERS=str(most)).ready()
    first = fleet.send(type="scale_up", pod_count=giant, task_id="giant", run_s=0)
    wait_for(lambda: fleet.pod_status.peak, "the giant to begin")
    sent = [fleet.send(type="scale_up", run_s=0) for _ in range(small)]
    done = wait_for(lambda: _ends(fleet, sent), "the small ones", 120)
    giant_done = int(fleet.stored(first, "done") or 0)
    waits = sorted(at - sent_at(event_id) for event_id, at in done.items())
    print(f"small ones after {waits[small // 2]:.1f} s, the last {waits[-1]:.1f} s; {giant_done} of the giant by then")
    assert giant_done < giant / 2
    down = fleet.send(type="scale_down", task_id="giant", mode="drain")
    fleet.finished(down, "scale_down", timeout_s=90)
    fleet.once([first])
    fleet.nothing_left()
    assert fleet.pod_status.peak <= most


def _ends(fleet: Fleet, event_ids: list[str]) -> dict[str, float]:
    """When each of these tasks was reported, if all were."""
    found = fleet.redis.xrange("otto:scale:results")
    ends = {answer["event_id"]: sent_at(entry) for entry, answer in found if answer["kind"] == "task"}
    return {event_id: ends[event_id] for event_id in event_ids} if ends.keys() >= set(event_ids) else {}


@pytest.mark.contract("2.READ_AHEAD")
def test_a_backlog_costs_no_memory(fleet: Fleet) -> None:
    """Ten thousand events: READ_AHEAD of them are taken, the others stay in Redis, and then they are worked off."""
    most, ahead = 10, 32
    controller = fleet.replica(MAX_WORKERS=str(most), READ_AHEAD=str(ahead)).ready()
    jam = fleet.send(type="scale_up", pod_count=most)
    fleet.running(jam, most)
    warm = [fleet.send(type="scale_up", run_s=0) for _ in range(ahead)]
    wait_for(lambda: len(fleet.open_ids()) == 1 + len(warm), "what is read ahead")
    before = controller.status("VmRSS")
    pipe = fleet.redis.pipeline(transaction=False)
    for _ in range(_BACKLOG):
        pipe.xadd("otto:scale:events", {"type": "scale_up", "run_s": "0"})
    pipe.execute()
    assert stays(lambda: len(fleet.open_ids()) == 1 + ahead, 4)
    during = controller.status("VmRSS")
    fleet.pod_status.end_all()
    wait_for(_drained(fleet), "the backlog to be worked off", _DRAIN_S + 60)
    after = controller.status("VmRSS")
    done = len(fleet.redis.xrange("otto:scale:results")) // 2
    mib = [round(each / 1024, 1) for each in (before, during, after)]
    print(f"MiB before, with the backlog, after {done} events of it: {mib}")
    assert max(during, after) - before < _GROWTH_MIB * 1024
    assert len(fleet.open_ids()) <= 1 + ahead + most
    assert fleet.pod_status.peak <= most
    assert done > most


def _drained(fleet: Fleet) -> Callable[[], bool]:
    until = time.monotonic() + _DRAIN_S

    def look() -> bool:
        return time.monotonic() > until or fleet.redis.xlen("otto:scale:results") > 2 * _BACKLOG

    return look
