"""Which task is next: priority, ageing, and round robin over equals."""

from __future__ import annotations

import pytest

from ottoscaler.core.overrides import Overrides
from ottoscaler.flow.owned_tasks import OwnedTask
from ottoscaler.flow.turns import AGEING_S, Turns
from tests.core.builders import event
from tests.flow.ledger_driver import LedgerDriver
from tests.flow.ledger_driver import task as opened
from tests.flow.simulated_controller import SimulatedController

contract = pytest.mark.contract


def task(name: str, priority: int = 5) -> OwnedTask:
    """An open task of that priority."""
    fields = event(event_id=name, overrides=Overrides(priority=priority))
    return OwnedTask(event=fields, owner="o", event_hash=name, received_mono=0.0, received_at="", cancel_count=0)


def order(turns: Turns, now: float = 0.0) -> list[str]:
    """The tasks, each taken at that moment."""
    found = []
    while (one := turns.next(now)) is not None:
        found.append(one.event.event_id)
    return found


def turns_of(*waiting: tuple[str, int, float]) -> Turns:
    """Tasks by name, priority and since when they wait."""
    turns = Turns()
    for name, priority, since in waiting:
        turns.append(task(name, priority), since)
    return turns


@contract("3.priority")
def test_the_highest_priority_is_first_and_equals_in_their_order() -> None:
    """Whatever came before."""
    assert order(turns_of(("a", 5, 0), ("low", 0, 1), ("b", 5, 2), ("high", 9, 3))) == ["high", "a", "b", "low"]


@contract("3.priority")
def test_what_waits_becomes_more_urgent() -> None:
    """One priority for each ten minutes; of equals the one that waited longer is first."""
    waiting = (("low", 4, 0.0), ("new", 5, AGEING_S))
    assert order(turns_of(*waiting), AGEING_S - 1) == ["new", "low"]
    assert order(turns_of(*waiting), AGEING_S) == ["low", "new"]


@contract("3.priority")
def test_nothing_waits_behind_newcomers_for_more_than_90_minutes() -> None:
    """Of priority 0 behind an endless row of 9."""
    turns, now = turns_of(("low", 0, 0.0)), 0.0
    while True:
        turns.append(task("new", 9), now)
        taken = turns.next(now)
        assert taken is not None
        if taken.event.event_id == "low":
            break
        now += 60.0
    assert now == 9 * AGEING_S


@contract("3.priority")
def test_a_task_that_waited_for_its_key_waits_for_a_turn_from_then_on() -> None:
    """Not since it was received: behind younger ones of its priority it would be overlooked."""
    with SimulatedController(threads=["watch", "lease"], MAX_WORKERS=1) as controller:
        holder = controller.accept(concurrency_key="k")
        follower = controller.ledger.tasks.get(controller.accept(concurrency_key="k"))
        assert follower is not None
        received = follower.received_mono
        controller.clock.advance(3600)
        controller.ledger.admit(follower)
        assert follower.waits_since == received + 3600, holder


@contract("3.priority")
def test_a_large_event_does_not_age_while_it_has_turns() -> None:
    """It waits for its next turn only since its last one."""
    driver = LedgerDriver(max_workers=1)
    driver.ledger.add(opened("big", 100, priority=4))
    for _ in range(4):
        driver.end(driver.take())
        driver.clock.advance(AGEING_S / 2)
    driver.ledger.add(opened("new", priority=5))
    assert driver.order(1) == ["new/1"]


def test_a_task_that_is_dropped_has_no_turn() -> None:
    """It may have had its last one already."""
    turns, dropped = turns_of(("a", 5, 0.0)), task("b")
    turns.append(dropped, 0.0)
    turns.remove(dropped)
    turns.remove(dropped)
    assert ([one.event.event_id for one in turns], len(turns)) == (["a"], 1)


@contract("3.priority")
def test_an_urgent_event_gets_the_next_room() -> None:
    """Although the others came first; and a large event takes turns with its equals."""
    with SimulatedController(threads=["watch", "dispatcher"], MAX_WORKERS=1) as controller:
        first = controller.pod(controller.accept())
        names = [controller.accept(pod_count=2), controller.accept(), controller.accept(priority="9")]
        expected = [controller.name(names[2]), controller.name(names[0]), controller.name(names[1])]
        pods = [first]
        for name in [*expected, controller.name(names[0], 2)]:
            controller.cluster.run(pods[-1])
            controller.cluster.succeed(pods[-1])
            controller.wait_seen(name, lambda seen: seen)
            pods.append(name)


@contract("3.priority")
def test_a_large_event_does_not_grow_more_urgent_while_its_workers_get_turns() -> None:
    """It has waited since its last turn, and not since it came: a more urgent event that comes later is first."""
    with SimulatedController(threads=["watch", "dispatcher"], MAX_WORKERS=1) as controller:
        large = controller.accept(pod_count=3)
        controller.cluster.run(controller.pod(large))
        controller.clock.advance(5 * AGEING_S)
        controller.cluster.succeed(controller.name(large))
        second = controller.name(large, 2)
        controller.wait_seen(second, lambda seen: seen)
        urgent = controller.name(controller.accept(priority="6"))
        controller.cluster.run(second)
        controller.cluster.succeed(second)
        controller.wait_seen(urgent, lambda seen: seen)
        assert controller.name(large, 3) not in controller.cluster.names()
