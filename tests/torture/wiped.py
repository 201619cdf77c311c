"""Redis is emptied in the middle of the work, and then the controller dies at the point where it puts things right.

Apart from the other kills, for here results may repeat, and those from before are gone. What holds all the same: no
running worker is ended, no program is started twice, each worker that ran has one result, and it all comes to an end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from tests.e2e.waiting import wait_for
from tests.torture.final_checks import false, published_twice, started_twice
from tests.torture.kubelet import LONG, Stage
from tests.torture.producer import STREAM, Sent
from tests.torture.slots import Slot
from tests.torture.torture_run import TortureRun

WORKERS = 5
#: A dead owner's tasks are taken up after LEASE_S; a lease is renewed each third of it.
DEATH_S = 60.0


def rounds(run: TortureRun) -> Iterator[str]:
    """Once the owner lives, stores the task again and dies at that; once it is dead, and another controller takes the
    event up from its pods and dies at that; and so on.
    """
    for number in range(run.amount.wipes):
        yield from _round(run, f"{LONG}restored-{number}", "restored", owner_lives=True)
        yield from _round(run, f"{LONG}taken-up-{number}", "taken up from pods", owner_lives=False)


def _round(run: TortureRun, event_id: str, point: str, *, owner_lives: bool) -> Iterator[str]:
    slot = run.slots[0]
    for each in run.slots:
        each.close()
    slot.start([point] if owner_lives else [])
    event = Sent(event_id, {"type": "scale_up", "pod_count": str(WORKERS), "event_id": event_id})
    run.client.xadd(STREAM, event.fields)
    if not _runs(run, event_id):
        yield f"{event_id}: its workers do not run"
        return
    if not owner_lives:
        slot.close()
    run.client.flushall()
    if not owner_lives:
        slot.start([point])
    if not _dies(run, slot, point):
        yield f"{event_id}: no controller died at {point!r}"
    slot.close()
    slot.start([])
    if not run.wait_idle():
        yield f"{event_id}: there is work left, and no controller does it"
    yield from _violations(run, event)


def _dies(run: TortureRun, slot: Slot, point: str) -> bool:
    before = run.toll.points[point]

    def look() -> bool:
        slot.watch()
        return run.toll.points[point] > before

    with suppress(AssertionError):
        return wait_for(look, f"a death at {point}", DEATH_S)
    return False


def _runs(run: TortureRun, event_id: str) -> bool:
    def look() -> bool:
        mine = [each for each in run.kubelet.book if each.event_id == event_id and each.stage is Stage.RUNNING]
        return len(mine) == WORKERS

    with suppress(AssertionError):
        return wait_for(look, f"{event_id} to run")
    return False


def _violations(run: TortureRun, event: Sent) -> Iterator[str]:
    history = run.history([event])
    for rule in (published_twice, started_twice, false):
        yield from rule(history)
    yield from (f"{each.name} ran and was ended" for each in history.book if each.stopped)
    found = {result["index"] for result in history.results if result["kind"] == "worker"}
    yield from (f"{each.name} has no result" for each in history.book if str(each.index) not in found)
    if not history.of("task"):
        yield f"{event.event_id} has no closing result"
