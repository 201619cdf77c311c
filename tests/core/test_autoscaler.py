"""A pod that no node takes, and an autoscaler: how long it may wait for a node that is on its way."""

from __future__ import annotations

from itertools import permutations

import pytest
from msgspec.structs import replace

from ottoscaler.core.autoscaler import NO_FORECAST, NodeForecast, PodEvent, node_forecast
from ottoscaler.core.effects import AwaitPod, GetPod, ListPodEvents, StoreTermination
from ottoscaler.core.lifecycle import without_pause
from ottoscaler.core.observations import (
    AttemptStored,
    NoResultYet,
    PodEventsListed,
    PodEventsUnknown,
    PodSeen,
    TimedOut,
)
from ottoscaler.core.pod_timeline import EVENTS_EVERY_S, MAX_NODE_WAIT_S
from ottoscaler.core.pods import StartTrouble
from ottoscaler.core.verdicts import EndReason
from tests.core.builders import NOW, pod, running
from tests.core.drive import LIMITS, Drive

contract = pytest.mark.contract

TIME = LIMITS.pending_timeout_s
NOWHERE = pod(trouble=StartTrouble.UNSCHEDULABLE, trouble_text="0/3 nodes are available", node="")
COMING = PodEventsListed(NodeForecast(True, "TriggeredScaleUp: [a 1->2]"))
NONE_COMES = PodEventsListed(NodeForecast(False, "NotTriggerScaleUp: max node group size reached"))

TRIGGERED = PodEvent("TriggeredScaleUp", "pod triggered scale-up: [{a 1->2 (max: 3)}]", "cluster-autoscaler", 10)
NOT_TRIGGERED = PodEvent("NotTriggerScaleUp", "pod didn't trigger scale-up", "cluster-autoscaler", 20)
NOMINATED = PodEvent("Nominated", "Pod should schedule on: nodeclaim/default-x", "karpenter", 30)
REFUSED = PodEvent("FailedScheduling", "Failed to schedule pod, no instance type fits", "karpenter", 40)
SCHEDULER = PodEvent("FailedScheduling", "0/3 nodes are available", "default-scheduler", 50)


class TestForecast:
    """From a pod's Events to whether a node is on its way."""

    @pytest.mark.parametrize(
        ("event", "expected"),
        [
            (TRIGGERED, True),
            (NOMINATED, True),
            (replace(NOMINATED, component="eks-auto-mode/compute"), True),
            (NOT_TRIGGERED, False),
            (REFUSED, False),
            (replace(REFUSED, component="eks-auto-mode/compute"), False),
        ],
    )
    def test_an_autoscaler_says_whether_a_node_comes(self, event: PodEvent, expected: bool) -> None:
        """In its own words, by the Event's reason."""
        assert node_forecast([event]) == NodeForecast(expected, f"{event.reason}: {event.message}")

    @pytest.mark.parametrize(
        "event", [SCHEDULER, PodEvent("Scheduled"), PodEvent("Pulled", "TriggeredScaleUp"), PodEvent("")]
    )
    def test_no_other_event_speaks_of_nodes_to_come(self, event: PodEvent) -> None:
        """Neither the scheduler, nor words in a message."""
        assert node_forecast([event]) == NO_FORECAST
        assert node_forecast([TRIGGERED, event]).expected

    @pytest.mark.parametrize("events", list(permutations([TRIGGERED, NOT_TRIGGERED, SCHEDULER])))
    def test_the_last_word_counts(self, events: tuple[PodEvent, ...]) -> None:
        """By the order of the writes, in whatever order they are listed."""
        assert not node_forecast(events).expected
        again = [replace(event, version=99) if event is TRIGGERED else event for event in events]
        assert node_forecast(again).expected

    def test_a_long_message_is_cut(self) -> None:
        """It is stored, and shown."""
        assert len(node_forecast([replace(TRIGGERED, message="x" * 10_000)]).message) < 600

    def test_nothing_said_is_no_forecast(self) -> None:
        """A cluster without an autoscaler."""
        assert node_forecast([]) == NO_FORECAST


def overdue() -> Drive:
    """A life with a pod that has been without a node for its whole time."""
    drive = Drive()
    drive.feed(AttemptStored(), PodSeen(NOWHERE), NoResultYet(None))
    drive.wait(TIME)
    drive.feed(TimedOut())
    return drive


@contract("5.Unschedulable")
@contract("2.PENDING_TIMEOUT_S")
class TestWaitForANode:
    """The clock of a pod that no node takes."""

    def test_nothing_is_asked_before_its_time_is_over(self) -> None:
        """A pod that gets its node in time costs no request."""
        drive = Drive()
        assert drive.feed(AttemptStored(), PodSeen(NOWHERE), NoResultYet(None)) == AwaitPod(NOW + TIME)
        drive.wait(TIME - 1)
        assert drive.feed(TimedOut()) == AwaitPod(NOW + TIME)
        drive.wait(1)
        assert drive.feed(TimedOut()) == ListPodEvents(NOWHERE)

    @pytest.mark.parametrize("answer", [NONE_COMES, PodEventsListed(NO_FORECAST)])
    def test_it_is_over_where_no_node_comes(self, answer: PodEventsListed) -> None:
        """The message has the scheduler's words, and the autoscaler's if there are any."""
        effect = overdue().feed(answer)
        assert isinstance(effect, StoreTermination)
        assert effect.termination.reason is EndReason.UNSCHEDULABLE
        said = f"; {answer.forecast.message}" if answer.forecast.message else ""
        assert effect.termination.message == f"0/3 nodes are available{said}"

    def test_it_goes_on_while_a_node_comes(self) -> None:
        """Asked again a minute later, and no sooner, whatever wakes the thread."""
        drive = overdue()
        assert drive.feed(COMING) == AwaitPod(drive.now + EVENTS_EVERY_S)
        drive.wait(EVENTS_EVERY_S - 1)
        assert drive.feed(PodSeen(NOWHERE)) == AwaitPod(drive.now + 1)
        drive.wait(1)
        assert drive.feed(TimedOut()) == ListPodEvents(NOWHERE)
        assert drive.life.start_trouble_text == "0/3 nodes are available; TriggeredScaleUp: [a 1->2]"

    def test_a_later_no_ends_the_extension(self) -> None:
        """The group was enlarged in vain."""
        drive = overdue()
        drive.feed(COMING)
        drive.wait(EVENTS_EVERY_S)
        assert isinstance(drive.feed(TimedOut(), NONE_COMES), StoreTermination)

    @pytest.mark.parametrize("answer", [COMING, PodEventsUnknown()])
    def test_the_extension_has_an_end(self, answer: PodEventsListed | PodEventsUnknown) -> None:
        """Whatever the autoscaler says, and whether or not it can be asked."""
        drive, asked = overdue(), 0
        while isinstance(drive.next, ListPodEvents):
            asked += 1
            drive.feed(answer)
            if isinstance(drive.next, AwaitPod):
                assert drive.next.until is not None
                drive.wait(drive.next.until - drive.now)
                drive.feed(TimedOut())
        assert isinstance(drive.next, StoreTermination)
        assert (drive.now, asked) == (NOW + TIME + MAX_NODE_WAIT_S, MAX_NODE_WAIT_S / EVENTS_EVERY_S)

    def test_an_earlier_yes_holds_while_the_api_server_does_not_answer(self) -> None:
        """An earlier no has ended it."""
        drive = overdue()
        drive.feed(COMING)
        drive.wait(EVENTS_EVERY_S)
        assert drive.feed(TimedOut(), PodEventsUnknown()) == AwaitPod(drive.now + EVENTS_EVERY_S)

    def test_a_node_that_comes_late_gives_the_pod_its_whole_time(self) -> None:
        """To pull its image there."""
        drive = overdue()
        drive.feed(COMING)
        assert drive.feed(PodSeen(pod())) == AwaitPod(drive.now + TIME)
        assert drive.life.start_trouble_text == ""
        assert drive.feed(PodSeen(running())) == AwaitPod(drive.now + LIMITS.deadline_s + 30)

    def test_a_worker_that_is_cancelled_meanwhile_is_looked_at(self) -> None:
        """It waits for nothing but the end of its pod."""
        assert without_pause(overdue().life).todo == GetPod(1)

    @pytest.mark.parametrize(
        "trouble", [one for one in StartTrouble if one not in (StartTrouble.UNSCHEDULABLE, StartTrouble.GATED)]
    )
    def test_no_other_trouble_is_asked_about(self, trouble: StartTrouble) -> None:
        """No node to come changes it."""
        drive = Drive()
        drive.feed(AttemptStored(), PodSeen(pod(trouble=trouble)), NoResultYet(None))
        drive.wait(TIME)
        if isinstance(drive.next, AwaitPod):
            drive.feed(TimedOut())
        assert isinstance(drive.next, StoreTermination)
