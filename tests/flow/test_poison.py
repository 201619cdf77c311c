"""An event that our own code fails on ends as a dead letter after a number of tries, and all others go on meanwhile.

The defects are put into the real objects here, at each place where a single event is in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ottoscaler.flow.scale_down import ScaleDown
from ottoscaler.ports import OpenTask
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController

pytestmark = pytest.mark.contract("3.dead-letter")
POISON = pytest.mark.contract("5.Poison")


class Defect(Exception):
    """A failure that no code provides for."""


class Killed(BaseException):
    """SIGKILL, as far as a thread of this process can have it: nothing after it is carried out."""


def figure(controller: SimulatedController, name: str) -> float:
    """One of the figures."""
    (line,) = [line for line in controller.metrics.render().decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def received(controller: SimulatedController) -> float:
    """How many scale_ups were counted."""
    return figure(controller, 'ottoscaler_events_received_total{outcome="accepted",type="scale_up"}')


def dead(controller: SimulatedController, reason: str) -> float:
    """How many dead letters of a reason were counted."""
    return figure(controller, f'ottoscaler_dead_letters_total{{reason="{reason}"}}')


def reasons(servers: FakeServers) -> list[str]:
    """What is in the dead-letter stream."""
    return [letter["dead_reason"] for letter in servers.redis.dead_letters()]


def break_(owner: object, name: str, when: Callable[..., bool], error: type[BaseException] = Defect) -> None:
    """Let a method raise for what `when` says, and otherwise do what it does."""
    method = getattr(owner, name)

    def broken(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            raise error("of all things")
        return method(*arguments, **named)

    setattr(owner, name, broken)


def accepts(event_id: str) -> Callable[..., bool]:
    """Is this event among those that are to be accepted?"""
    return lambda events, _raws: any(event.event_id == event_id for event, _ in events)


class TestFigures:
    """Every dead letter is one line and one count, whichever component wrote it; what is no new event is none."""

    @pytest.mark.parametrize(
        ("events", "reason", "taken"),
        [
            ([{"event_id": "a"}, {"event_id": "a", "pod_count": 2}], "Conflict", 1),
            ([{"event_id": "a"}, {"event_id": "a", "pod_count": 0}], "Conflict", 1),
            ([{"event_id": "a", "pod_count": 0}], "Invalid", 0),
            ([{"event_id": "a", "pod_count": 0}, {"event_id": "a", "pod_count": 0}], "Invalid", 0),
        ],
    )
    def test_of_what_the_scripts_refuse(
        self, log: Lines, events: Sequence[dict[str, Any]], reason: str, taken: int
    ) -> None:
        """By their rules, or for what was there before."""
        with SimulatedController() as controller:
            for fields in events:
                controller.accept(**fields)
            assert (reasons(controller.servers), dead(controller, reason), received(controller)) == (
                [reason],
                1.0,
                taken,
            )
        (line,) = log.of("event.dead")
        assert line.startswith(f"Dead letter a: {reason} (")
        assert len(log.of("event.received")) == taken

    def test_of_one_that_is_too_old(self, log: Lines) -> None:
        """It was in the stream for longer than anything is remembered."""
        with SimulatedController() as controller:
            controller.send(event_id="a")
            controller.pass_time(controller.settings.keys.task_ttl_s + 1)
            controller.intake.accept_entries(controller.stream.read_now(1))
            assert (reasons(controller.servers), dead(controller, "TooOld"), received(controller)) == (
                ["TooOld"],
                1.0,
                0.0,
            )
        assert len(log.of("event.dead")) == 1

    def test_a_duplicate_is_neither_received_nor_dead(self, log: Lines) -> None:
        """A producer that was not sure; and an entry that two threads have in hand."""
        with SimulatedController() as controller:
            controller.accept(event_id="a")
            controller.accept(event_id="a")
            controller.send(event_id="b")
            entries = controller.stream.read_now(1)
            controller.intake.accept_entries(entries)
            controller.intake.accept_entries(entries)
            assert (received(controller), reasons(controller.servers)) == (2.0, [])
        assert len(log.of("event.received")) == 2


class TestAccepting:
    """Between reading and the task."""

    def test_the_others_of_the_batch_are_accepted(self, log: Lines) -> None:
        """The defect shows for all of them together, the blame is found one by one."""
        with SimulatedController() as controller:
            break_(controller.stream, "accept", accepts("bad"))
            for event_id in ("a", "bad", "b"):
                controller.send(event_id=event_id)
            controller.intake.accept_entries(controller.stream.read_now(10))
            assert controller.ledger.tasks.owners().keys() == {"a", "b"}
            (letter,) = controller.redis.dead_letters()
            assert (letter["dead_reason"], letter["event_id"]) == ("Poison", "bad")
            assert letter["dead_detail"] == "the controller cannot accept this event: Defect"
            assert (dead(controller, "Poison"), controller.redis.pending_count()) == (1.0, 0)
        assert log.of("event.poison")

    def test_what_cannot_even_be_buried_is_buried_without_its_fields(self) -> None:
        """Otherwise it would be read again without limit."""
        with SimulatedController() as controller:
            break_(controller.stream, "dead_letter", lambda entry, _bad: entry.fields is not None)
            controller.accept(type="neither")
            assert (reasons(controller.servers), controller.redis.pending_count()) == (["Invalid"], 0)

    def test_one_that_ends_the_process_every_time_is_read_ten_times(self, log: Lines) -> None:
        """Those that were read with it are accepted by the next process, however far down in its hand they were."""
        servers, incarnations = FakeServers(), 0
        with SimulatedController(servers, incarnation="b0") as sender:
            for event_id in ("a", "bad", "b"):
                sender.send(event_id=event_id)
        while servers.redis.pending_count() or not incarnations:
            incarnations += 1
            assert incarnations < 20
            with SimulatedController(servers, incarnation=f"b{incarnations}") as controller:
                break_(controller.stream, "accept", accepts("bad"), Killed)
                try:
                    controller.reader.step(0)  # what the one before has read
                    controller.reader.step(0)  # what is new
                except Killed:
                    continue
                finally:
                    controller.close(release=False)
        assert incarnations == 10
        (letter,) = servers.redis.dead_letters()
        assert letter["dead_reason"] == "Poison"
        assert letter["dead_detail"] == "read 10 times, and each time the controller ended before it was accepted"
        (results,) = servers.redis.results("task")
        assert (letter["event_id"], results["event_id"], results["reason"]) == ("bad", "bad", "Rejected")
        assert servers.redis.open_ids() == {"a", "b"}
        assert len(log.of("event.dead")) == 1

    def test_an_outage_is_not_the_entrys_fault(self) -> None:
        """However often Redis fails in between, in one process it is one try."""
        with SimulatedController() as controller:
            event_id = controller.send()
            controller.redis.fail_next("accept", times=50)
            controller.start("reader")
            eventually(lambda: controller.ledger.tasks.has(event_id))
            assert reasons(controller.servers) == []


class TestOwning:
    """From the task on: the lease runs out, it is taken up again, and that is counted."""

    @POISON
    def test_a_task_that_cannot_be_opened_ends(self, log: Lines) -> None:
        """Its dead letter after ten tries; then, since its pods cannot be ended either, its results after twenty."""
        with SimulatedController(threads=["watch", "lease"], auto=True, LEASE_S=3) as controller:
            break_(controller.ledger, "add", lambda task: task.event.event_id == "bad")
            controller.accept(event_id="bad", pod_count=2)
            controller.accept(event_id="good")
            assert controller.results(1, "task")[0]["event_id"] == "good"
            while len(controller.redis.results("task")) < 2:
                controller.wait_and_look(4)
            assert reasons(controller.servers) == ["Poison"]
            assert controller.redis.results("task")[1]["reason"] == "Poison"
            assert [one["reason"] for one in controller.redis.results("worker")] == ["Completed", "Poison", "Poison"]
            assert (dead(controller, "Poison"), controller.redis.open_ids()) == (1.0, set())
        assert len(log.of("event.dead")) == 1

    @POISON
    def test_a_task_that_cannot_be_taken_does_not_keep_others_from_it(self) -> None:
        """What is stored of it cannot be read, for example; those behind it are taken all the same."""
        servers = FakeServers()
        with SimulatedController(servers, consumer="dead", LEASE_S=3) as first:
            first.accept(event_id="bad")
            first.accept(event_id="good")
            first.close(release=False)
        with SimulatedController(servers, threads=["watch", "lease"], auto=True, LEASE_S=3) as controller:
            break_(controller.stream, "take_over", lambda event_id: event_id == "bad")
            while not servers.redis.results("task"):
                controller.wait_and_look(4)
            assert controller.result("task")["event_id"] == "good"

    @POISON
    def test_a_scale_down_that_cannot_be_carried_on_ends(self, log: Lines) -> None:
        """Another one, sent after it, has to wait for it: victims are chosen in the order of the stream."""
        with SimulatedController(
            threads=["watch", "control", "reader", "lease"], auto=lambda name: None, LEASE_S=3
        ) as controller:
            break_(controller.scale_downs, "advance", descends("bad"))
            event_id = controller.send(task_id="t")
            controller.pod(event_id)
            controller.send(event_id="bad", type="scale_down", task_id="t")
            controller.send(event_id="good", type="scale_down", task_id="t")
            while len(controller.redis.results("scale_down")) < 2:
                controller.wait_and_look(4)
            bad, good = controller.redis.results("scale_down")
            assert (bad["event_id"], bad["outcome"], bad["reason"]) == ("bad", "failed", "Poison")
            assert (good["event_id"], good["outcome"], good["pod_count"]) == ("good", "succeeded", "1")
            assert (reasons(controller.servers), controller.redis.open_ids(), dead(controller, "Poison")) == (
                ["Poison"],
                set(),
                1.0,
            )
        assert len(log.of("event.dead")) == 1

    @POISON
    def test_a_worker_that_fails_makes_its_event_a_dead_letter(self, log: Lines) -> None:
        """With one line and one count, however many workers of it fail."""
        with SimulatedController(threads=["watch"]) as controller:
            break_(controller.cluster, "create", lambda _body: True)
            event_id = controller.accept(pod_count=2)
            while not controller.redis.results("task"):
                controller.pass_time(60)
                eventually(lambda: controller.ledger.thread_counts()[0] == 0)
            assert [one["reason"] for one in controller.redis.results("worker")] == ["Poison"] * 2
            (letter,) = controller.redis.dead_letters()
            assert (letter["dead_reason"], letter["event_id"], dead(controller, "Poison")) == ("Poison", event_id, 1.0)
        assert len(log.of("event.dead")) == 1

    @POISON
    def test_an_event_that_cannot_supersede_others_ends(self) -> None:
        """Otherwise its worker would run on, its lease be renewed, and each later scale_down wait for its choice."""
        with SimulatedController(
            threads=["watch", "control", "reader", "lease"], auto=lambda name: None, LEASE_S=3
        ) as controller:
            break_(controller.scale_downs, "advance", descends("bad"))
            controller.send(event_id="bad", task_id="t", supersedes="branch")
            controller.send(event_id="good", type="scale_down", task_id="none")
            while not controller.redis.results("scale_down"):
                # Control fails on it and lets go of it; only then does time bring the next try.
                eventually(lambda: not controller.ledger.tasks.has("bad"), what="the event to be let go of")
                controller.wait_and_look(4)
            assert controller.result("scale_down")["event_id"] == "good"
            assert controller.result("task")["reason"] == "Poison"

    @POISON
    def test_a_worker_that_cannot_even_be_recorded_ends(self) -> None:
        """It is let go of until it is closed without our help; its neighbours have long ended.

        That takes twenty leases and a hundred pauses, so the test makes the steps of all threads but the watch itself.
        """
        with SimulatedController(threads=["watch"], auto=True, LEASE_S=30) as controller:
            break_(controller.stream, "record_result", lambda event_id, *_: event_id == "bad")
            controller.accept(event_id="bad")
            controller.accept(event_id="good")
            while len(controller.redis.results("task")) < 2:
                controller.pass_time(25)  # less than LEASE_S: it would look like an outage otherwise
                controller.lease.step()
                controller.takeover.step()
                controller.control.step()
                controller.terminator.step()
                controller.idle()
            good, bad = controller.redis.results("task")
            assert (good["event_id"], good["reason"]) == ("good", "Completed")
            assert (bad["event_id"], bad["reason"]) == ("bad", "Poison")
            assert (reasons(controller.servers), dead(controller, "Poison")) == (["Poison"], 1.0)


def descends(event_id: str) -> Callable[[ScaleDown], bool]:
    """Is it this scale_down?"""
    return lambda scale_down: scale_down.task.event.event_id == event_id


def test_a_restored_task_that_cannot_be_stored_does_not_end_the_lease_thread() -> None:
    """Redis was wiped: the others are stored again."""
    with SimulatedController(threads=["lease"], LEASE_S=3) as controller:

        def bad(task: OpenTask) -> bool:
            return task.event.event_id == "bad"

        break_(controller.stream, "restore", bad)
        controller.accept(event_id="bad")
        controller.accept(event_id="good")
        controller.redis.flush()
        controller.live(2)
        eventually(lambda: controller.redis.open_ids() == {"good"})
