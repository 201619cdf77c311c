"""How long something has lasted: on our own clock, whatever the clocks of node and API server show or are set to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from msgspec.structs import replace as replace_pod

from ottoscaler.core.autoscaler import NO_FORECAST
from ottoscaler.core.effects import AwaitPod, GetPod, ListPodEvents, RecordResult, StoreTermination
from ottoscaler.core.observations import (
    AttemptStored,
    NoResultYet,
    Observation,
    PodEventsListed,
    PodSeen,
    TimedOut,
)
from ottoscaler.core.pod_timeline import (
    EMPTY_TIMELINE,
    RELOOK_S,
    RELOOK_UNWATCHED_S,
    due_effect,
    lost_with_node,
    observe,
)
from ottoscaler.core.pods import Phase, PodSnapshot, StartTrouble
from ottoscaler.core.verdicts import EndReason
from tests.core.builders import (
    NOW,
    Json,
    deleting,
    disrupted,
    failed,
    pod,
    raw_pod,
    running,
    seen,
    stamp,
    succeeded,
)
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

OFF_S = (-4200.0, -1.0, 0.0, 1.0, 4200.0)
HOUR = replace(LIMITS, deadline_s=60, pending_timeout_s=40, image_pull_grace_s=10)


@dataclass
class Clocks:
    """What the node's and the API server's clocks show at a moment `t`, in seconds after NOW. Both are off by a number
    of seconds, and each is set by a further step at the moment 20.
    """

    node_s: float
    server_s: float
    node_step_s: float = 0.0
    server_step_s: float = 0.0

    def node(self, t: float) -> str:
        """As the kubelet writes it."""
        return stamp(t + self.node_s + (self.node_step_s if t >= 20 else 0))

    def server(self, t: float) -> str:
        """As the API server writes it."""
        return stamp(t + self.server_s + (self.server_step_s if t >= 20 else 0))

    def pod(self, phase: str, state: Json | None = None, *, deleted: float | None = None, **status: Any) -> PodSnapshot:
        """A pod that was created and bound at 0; its deletion was asked for at a moment with a grace of 30 s."""
        bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": self.server(0)}
        conditions = [bound, *status.pop("conditions", [])]
        metadata: Json = {"creationTimestamp": self.server(0)}
        if deleted is not None:
            metadata |= {"deletionTimestamp": self.server(deleted + 30), "deletionGracePeriodSeconds": 30}
        status = {"startTime": self.node(0), **status}
        return seen(raw_pod(phase, state=state, conditions=conditions, metadata=metadata, status=status))

    def runs(self, **more: float) -> PodSnapshot:
        """It has run since 1."""
        return self.pod("Running", {"running": {"startedAt": self.node(1)}}, **more)

    def ended(self, t: float, code: int, **more: float) -> PodSnapshot:
        """It has run from 1 to a moment."""
        reason = "Error" if code else "Completed"
        state = {"exitCode": code, "reason": reason, "startedAt": self.node(1), "finishedAt": self.node(t)}
        return self.pod("Failed" if code else "Succeeded", {"terminated": state}, **more)


def every() -> Sequence[Clocks]:
    """The table: each clock off, and each set while the worker runs."""
    off = [Clocks(node, server) for node in OFF_S for server in OFF_S]
    steps = [(node, server) for node in (-4200.0, 0.0, 4200.0) for server in (-4200.0, 0.0, 4200.0)]
    return off + [Clocks(node, server, *step) for node in (0.0, -4200.0) for server in (0.0, 4200.0) for step in steps]


table = pytest.mark.parametrize("clocks", every(), ids=repr)


def until(drive: Drive, moment: float) -> None:
    """Let time pass up to a moment after NOW, and let the life look at its clock whenever it asked for that."""
    while isinstance(drive.next, AwaitPod) and drive.next.until is not None and drive.next.until <= NOW + moment:
        drive.wait(drive.next.until - drive.now)
        drive.feed(TimedOut())
    if drive.now < NOW + moment:
        drive.wait(NOW + moment - drive.now)


def led(*answer: tuple[float, Observation]) -> Drive:
    """A life that saw each of these at its moment."""
    drive = Drive(limits=HOUR)
    drive.feed(AttemptStored())
    for moment, observation in answer:
        until(drive, moment)
        drive.feed(observation, *([NoResultYet(None)] if moment == 0 else []))
    return drive


@table
@contract("2.WORKER_DEADLINE_S")
@contract("5.Completed")
def test_no_worker_is_ended_early(clocks: Clocks) -> None:
    """Not at its start, not when a clock is set, not a second before its time."""
    drive = led((0, PodSeen(clocks.pod("Pending"))), (1, PodSeen(clocks.runs())), (25, PodSeen(clocks.runs())))
    until(drive, 90)
    assert isinstance(drive.next, AwaitPod)
    end = drive.feed(PodSeen(clocks.ended(90, 0)))
    assert isinstance(end, RecordResult)
    assert end.verdict.reason is EndReason.COMPLETED


@table
@contract("2.WORKER_DEADLINE_S")
@contract("5.DeadlineExceeded")
def test_no_worker_is_kept_without_end(clocks: Clocks) -> None:
    """Where the kubelet does not end it at its deadline, we do half a minute later."""
    drive = led((0, PodSeen(clocks.pod("Pending"))), (1, PodSeen(clocks.runs())))
    until(drive, 91)
    assert isinstance(drive.next, StoreTermination)
    assert drive.next.termination.reason is EndReason.DEADLINE_EXCEEDED


@table
@contract("2.PENDING_TIMEOUT_S")
@contract("5.PendingTimeout")
def test_a_pod_that_does_not_start_has_its_whole_time_and_no_more(clocks: Clocks) -> None:
    """From when it was created, on our clock."""
    drive = led((0, PodSeen(clocks.pod("Pending"))))
    until(drive, 39)
    assert drive.next == AwaitPod(NOW + 40)
    until(drive, 40)
    assert isinstance(drive.next, StoreTermination)
    assert drive.next.termination.reason is EndReason.PENDING_TIMEOUT


@table
@contract("2.IMAGE_PULL_GRACE_S")
@contract("5.ImagePull")
def test_an_image_has_its_grace(clocks: Clocks) -> None:
    """From when the trouble was seen."""
    waits = clocks.pod("Pending", {"waiting": {"reason": "ErrImagePull", "message": "not found"}})
    drive = led((0, PodSeen(clocks.pod("Pending"))), (15, PodSeen(waits)))
    until(drive, 24)
    assert drive.next == AwaitPod(NOW + 25)
    until(drive, 25)
    assert isinstance(drive.next, StoreTermination)


#: A pod that no node takes, one that has a node, and one with an image that cannot be pulled now.
NOWHERE = pod(trouble=StartTrouble.UNSCHEDULABLE, trouble_text="0/3 nodes are available", node="")
BOUND = pod()
PULLING = pod(trouble=StartTrouble.IMAGE_PULL_TRANSIENT, trouble_text="ErrImagePull: 503")


@contract("2.PENDING_TIMEOUT_S")
@pytest.mark.parametrize(
    ("looks", "ended_at", "reason"),
    [
        ([(0, NOWHERE)], 40, EndReason.UNSCHEDULABLE),
        # a node came in the last moment: the pod has its whole time on it
        ([(0, NOWHERE), (39, BOUND)], 79, EndReason.PENDING_TIMEOUT),
        # an image of which the registry fails after a volume that took long
        ([(0, BOUND), (35, PULLING)], 75, EndReason.IMAGE_PULL_TRANSIENT),
        ([(0, NOWHERE), (30, BOUND), (60, PULLING)], 100, EndReason.IMAGE_PULL_TRANSIENT),
        # between two pulls it only starts: no clock begins a second time
        ([(0, BOUND), (10, PULLING), (20, BOUND), (45, PULLING)], 50, EndReason.IMAGE_PULL_TRANSIENT),
        ([(0, BOUND), (10, PULLING), (45, BOUND)], 50, EndReason.PENDING_TIMEOUT),
        # what asking again does not change has its short grace, whatever was before
        ([(0, NOWHERE), (30, replace_pod(BOUND, trouble=StartTrouble.CONFIG))], 40, EndReason.CONFIG_ERROR),
        ([(0, PULLING), (35, replace_pod(BOUND, trouble=StartTrouble.IMAGE_PULL))], 40, EndReason.IMAGE_PULL),
    ],
)
def test_each_trouble_has_its_own_clock(
    looks: list[tuple[float, PodSnapshot]], ended_at: float, reason: EndReason
) -> None:
    """And no later one pays for the time of an earlier one."""
    drive = led(*((moment, PodSeen(seen)) for moment, seen in looks))
    until(drive, ended_at - 1)
    assert isinstance(drive.next, AwaitPod)
    until(drive, ended_at)
    if isinstance(drive.next, ListPodEvents):
        drive.feed(PodEventsListed(NO_FORECAST))
    assert isinstance(drive.next, StoreTermination)
    assert drive.next.termination.reason is reason


@contract("2.PENDING_TIMEOUT_S")
def test_all_clocks_together_have_a_bound() -> None:
    """However often its trouble changes, a pod that does not start is ended."""
    drive = led((0, PodSeen(NOWHERE)))
    for moment in range(1, 3 * 40):
        until(drive, moment)
        if isinstance(drive.next, AwaitPod):
            drive.feed(PodSeen(PULLING if moment % 2 else BOUND))
    assert isinstance(drive.next, StoreTermination)


@contract("2.PENDING_TIMEOUT_S")
def test_a_pod_of_which_nothing_was_reported_is_looked_at_before_it_is_ended() -> None:
    """Nothing wakes its thread when it gets a node: it may have one by now."""
    drive = led((0, PodSeen(pod(node=""))))
    drive.wait(40)
    assert drive.feed(TimedOut()) == GetPod(1)
    assert drive.feed(PodSeen(pod()), NoResultYet(None)) == AwaitPod(NOW + 80)


@table
@contract("5.NodeLost")
def test_a_node_is_lost_in_its_time(clocks: Clocks) -> None:
    """Thirty seconds after the grace of a deletion, from when that was seen."""
    lost = clocks.pod(
        "Running",
        {"running": {"startedAt": clocks.node(1)}},
        deleted=10,
        conditions=[disrupted("DeletionByTaintManager")],
    )
    drive = led((0, PodSeen(clocks.pod("Pending"))), (1, PodSeen(clocks.runs())), (10, PodSeen(lost)))
    drive.wait(59)
    assert isinstance(drive.feed(PodSeen(lost)), AwaitPod)
    drive.wait(2)
    drive.feed(PodSeen(lost))
    assert drive.life.infra_used == 1


@table
@contract("5.PodDeleted")
def test_deleting_a_running_worker_from_outside_ends_it(clocks: Clocks) -> None:
    """The deletion was seen first."""
    drive = led(
        (0, PodSeen(clocks.pod("Pending"))), (1, PodSeen(clocks.runs())), (22, PodSeen(clocks.runs(deleted=22)))
    )
    end = drive.feed(PodSeen(clocks.ended(24, 143, deleted=22)))
    assert isinstance(end, RecordResult)
    assert end.verdict.reason is EndReason.POD_DELETED


@pytest.mark.parametrize("clocks", [Clocks(node, server) for node in OFF_S for server in OFF_S], ids=repr)
@pytest.mark.parametrize(("ended", "reason"), [(15, EndReason.ERROR), (35, EndReason.POD_DELETED)])
@contract("5.PodDeleted")
@contract("5.Error")
def test_where_both_are_seen_at_once_the_clocks_are_set_against_each_other(
    clocks: Clocks, ended: float, reason: EndReason
) -> None:
    """The kubelet began when the API server had bound the pod: so far apart are their clocks."""
    drive = led((0, PodSeen(clocks.pod("Pending"))), (1, PodSeen(clocks.runs())))
    end = drive.feed(PodSeen(clocks.ended(ended, 1, deleted=25)))
    assert isinstance(end, RecordResult)
    assert end.verdict.reason is reason


@pytest.mark.parametrize(("after_s", "reason"), [(30, EndReason.DEADLINE_EXCEEDED), (29, EndReason.EVICTED)])
@contract("5.DeadlineExceeded")
@contract("5.Evicted")
def test_a_deadline_that_came_too_early_is_the_nodes_fault(after_s: float, reason: EndReason) -> None:
    """The kubelet counts it on its own clock, and that clock was set: the worker is tried again."""
    drive = Drive(limits=replace(LIMITS, infra_retries=0))
    drive.feed(AttemptStored(), PodSeen(pod(deadline_s=60)), NoResultYet(None), PodSeen(running(deadline_s=60)))
    drive.wait(after_s)
    end = drive.feed(PodSeen(failed(137, reason="DeadlineExceeded", message="too long", deadline_s=60)))
    assert isinstance(end, RecordResult)
    assert end.verdict.reason is reason
    assert "DeadlineExceeded" in end.verdict.message or reason is EndReason.DEADLINE_EXCEEDED


@contract("5.NodeLost")
@pytest.mark.parametrize(("after_s", "lost"), [(0, False), (60, False), (60.1, True)])
def test_a_pod_that_a_dead_node_cannot_end_is_lost_with_it(after_s: float, lost: bool) -> None:
    """Thirty seconds after the grace of a deletion that the node controller asked for."""
    stuck = running(disruption=EndReason.NODE_LOST, deletion_requested_at=NOW - 4200, deletion_grace_s=30.0)
    assert lost_with_node(observe(EMPTY_TIMELINE, stuck, 5), stuck, 5 + after_s) is lost


@contract("5.NodeLost")
@pytest.mark.parametrize(
    "snap",
    [
        deleting(running()),
        running(disruption=EndReason.NODE_LOST),
        deleting(running(disruption=EndReason.EVICTED)),
        deleting(succeeded(disruption=EndReason.NODE_LOST)),
    ],
)
def test_no_other_pod_is_lost_with_its_node(snap: PodSnapshot) -> None:
    """However long its deletion takes."""
    assert not lost_with_node(observe(EMPTY_TIMELINE, snap, 0), snap, 10**6)


def test_what_was_seen_first_stays_the_first() -> None:
    """Later looks change nothing."""
    first = observe(EMPTY_TIMELINE, deleting(running()), 5)
    assert observe(first, deleting(running()), 9) == first
    assert (first.waiting_since, first.started, first.deleting_since) == (5, 5, 5)
    assert pod(Phase.UNKNOWN).stage != pod().stage


@pytest.mark.parametrize(
    "snap",
    [
        deleting(pod()),
        deleting(running()),
        deleting(failed()),
        pod(Phase.UNKNOWN),
        replace_pod(running(), phase=Phase.UNKNOWN),
    ],
)
@pytest.mark.parametrize(("altered", "after_s"), [("", RELOOK_S), ("the label was changed", RELOOK_UNWATCHED_S)])
def test_what_is_on_its_way_out_is_looked_at_again(snap: PodSnapshot, altered: str, after_s: float) -> None:
    """After a while; soon where no watch shows it."""
    snap = replace_pod(snap, altered_label=altered)
    expected = AwaitPod(NOW + after_s)
    if altered and snap.exit_code is None:  # an altered pod is ended, and then waited for
        assert isinstance(due_effect(EMPTY_TIMELINE, snap, NOW, HOUR, 1), StoreTermination)
    else:
        assert due_effect(EMPTY_TIMELINE, snap, NOW, HOUR, 1) == expected
    assert RELOOK_UNWATCHED_S < RELOOK_S <= 60
