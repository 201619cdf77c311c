"""Concurrency keys over several controllers that are killed: never two at once, in order, and no other is delayed."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from itertools import pairwise

import pytest

from tests.e2e.controller import Controller
from tests.e2e.fleet import LEASE_S, Fleet
from tests.e2e.system import sent_at
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

EVENTS = 20
KILLS = 4


def live_events(fleet: Fleet, events: list[str]) -> set[str]:
    """Those of these events that have a pod that has not ended."""
    pods = [pod for pod in fleet.kube.pods() if pod["status"].get("phase") not in ("Succeeded", "Failed")]
    return {pod["metadata"]["annotations"]["ottoscaler.io/event-id"] for pod in pods} & set(events)


def ends(fleet: Fleet, events: list[str]) -> dict[str, float]:
    """When each of these tasks was reported, in this order."""
    found = fleet.redis.xrange("otto:scale:results")
    return {
        answer["event_id"]: sent_at(entry)
        for entry, answer in found
        if answer["kind"] == "task" and answer["event_id"] in events
    }


@pytest.mark.contract("3.concurrency_key")
def test_of_one_key_over_two_replicas_with_kills(fleet: Fleet) -> None:
    """Twenty events; the replica with the oldest task of the key is killed again and again, and another one started."""
    replicas: dict[str, Controller] = {}

    def start() -> None:
        name = fleet.next_user
        replicas[name] = fleet.replica(READ_AHEAD="4").ready()

    start()
    start()
    events = [fleet.send(type="scale_up", run_s=0.3, concurrency_key="deploy") for _ in range(EVENTS)]
    others = [fleet.send(type="scale_up", run_s=0.1) for _ in range(5)]
    wait_for(lambda: len(ends(fleet, others)) == len(others), "those without a key", 20)
    assert len(ends(fleet, events)) < EVENTS
    killed, most, until = 0, 0, time.monotonic() + 120
    while len(ends(fleet, events)) < EVENTS and time.monotonic() < until:
        most = max(most, len(live_events(fleet, events)))
        done = len(ends(fleet, events))
        if killed < KILLS and done >= 2 + 4 * killed:
            owner = next(filter(None, (fleet.stored(event_id, "owner") for event_id in events)), "")
            victim = max(replicas, key=lambda name: owner.startswith(f"{name}/"))
            replicas.pop(victim).kill()
            start()
            killed += 1
        time.sleep(0.05)
    reported = ends(fleet, events)
    assert list(reported) == events
    assert (killed, most) == (KILLS, 1)
    workers = {each: fleet.results(each) for each in events}
    assert Counter(len(found) for found in workers.values()) == Counter({1: EVENTS})
    starts = [datetime.fromisoformat(workers[each][0]["created_at"]).timestamp() for each in events]
    ended = list(reported.values())
    assert [at for at, before in zip(starts[1:], ended, strict=False) if at < int(before)] == []
    assert max(after - before for before, after in pairwise(ended)) < 2 * LEASE_S + 2
    fleet.nothing_left()
    assert fleet.redis.keys("otto:scale:key:*") == []
