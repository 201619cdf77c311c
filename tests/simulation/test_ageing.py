"""Events of the lowest priority behind an endless row of the highest: the ageing bound, in a world with a node."""

from __future__ import annotations

import pytest

from tests.simulation.turns import BOUND_S
from tests.simulation.world import World

#: A newcomer so often, and each pod runs for as long, seconds: there is never room for two.
EVERY_S = 60
#: It starts, it succeeds, it is deleted.
STEPS = 3


@pytest.mark.contract("3.priority")
@pytest.mark.parametrize("tenants", ["one", "two"])
def test_nothing_starves_beyond_the_ageing_bound(tenants: str) -> None:
    """Whatever comes meanwhile: it starts after the last of the newcomers that came before it was as urgent, and not
    much earlier.
    """
    world, waited_s = World(max_workers=1, patient=True), 0
    world.start(0)
    row = {"one": "c", "two": "b"}[tenants]
    for number in range(2):
        send(world, f"first-{number}", priority=9, team=row)
    world.bustle()
    low = send(world, "low", priority=0, team="c")
    while not has_begun(world, low) and waited_s < 2 * BOUND_S:
        send(world, f"new-{waited_s}", priority=9, team=row)
        world.clock.advance(EVERY_S)
        waited_s += EVERY_S
        for _ in range(STEPS):
            world.kubelets()
            world.bustle()
    assert not world.audit.faults, world.audit.faults
    assert has_begun(world, low), f"{low} waits for {waited_s} s"
    # newcomers of another tenant hold up nothing: its own has the next turn
    least_s = BOUND_S if tenants == "one" else 0
    assert least_s <= waited_s <= least_s + 3 * EVERY_S


def has_begun(world: World, event_id: str) -> bool:
    """Was an attempt stored for its worker?"""
    task = world.redis.find(event_id)
    return task is not None and task.worker(1).attempt > 0


def send(world: World, name: str, **fields: object) -> str:
    """A scale_up of one worker. Returns its event id."""
    sent = {"type": "scale_up", "event_id": name, **{field: str(value) for field, value in fields.items()}}
    world.redis.add(sent)
    world.audit.send(name, sent)
    return name
