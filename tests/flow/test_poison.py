"""An event that our own code fails on ends as a dead letter after so many tries, and all others go on meanwhile.

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
from tests.flow.rig import Rig, World

pytestmark = pytest.mark.contract("3.dead-letter")
POISON = pytest.mark.contract("5.Poison")


class Defect(Exception):
    """What nobody has thought of."""


class Killed(BaseException):
    """SIGKILL, as far as a thread of this process can have it: nothing after it is carried out."""


def figure(rig: Rig, name: str) -> float:
    """One of the figures."""
    (line,) = [line for line in rig.metrics.render().decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def received(rig: Rig) -> float:
    """How many scale_ups were counted."""
    return figure(rig, 'ottoscaler_events_received_total{type="scale_up"}')


def dead(rig: Rig, reason: str) -> float:
    """How many dead letters of a reason were counted."""
    return figure(rig, f'ottoscaler_dead_letters_total{{reason="{reason}"}}')


def reasons(world: World) -> list[str]:
    """What is in the dead-letter stream."""
    return [letter["dead_reason"] for letter in world.redis.dead_letters()]


def break_(owner: object, name: str, when: Callable[..., bool], error: type[BaseException] = Defect) -> None:
    """Let a method raise for what `when` says, and else do what it does."""
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
    """Every dead letter is one line and one count, whoever wrote it; what is no new event is none."""

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
        with Rig() as rig:
            for fields in events:
                rig.accept(**fields)
            assert (reasons(rig.world), dead(rig, reason), received(rig)) == ([reason], 1.0, taken)
        (line,) = log.of("event.dead")
        assert line.startswith(f"Dead letter a: {reason} (")
        assert len(log.of("event.received")) == taken

    def test_of_one_that_is_too_old(self, log: Lines) -> None:
        """It was in the stream for longer than anything is remembered."""
        with Rig() as rig:
            rig.send(event_id="a")
            rig.pass_time(rig.settings.keys.task_ttl_s + 1)
            rig.intake.absorb(rig.stream.read_now(1))
            assert (reasons(rig.world), dead(rig, "TooOld"), received(rig)) == (["TooOld"], 1.0, 0.0)
        assert len(log.of("event.dead")) == 1

    def test_a_duplicate_is_neither_received_nor_dead(self, log: Lines) -> None:
        """A producer that was not sure; and an entry that two threads have in hand."""
        with Rig() as rig:
            rig.accept(event_id="a")
            rig.accept(event_id="a")
            rig.send(event_id="b")
            entries = rig.stream.read_now(1)
            rig.intake.absorb(entries)
            rig.intake.absorb(entries)
            assert (received(rig), reasons(rig.world)) == (2.0, [])
        assert len(log.of("event.received")) == 2


class TestAccepting:
    """Between reading and the task."""

    def test_the_others_of_the_batch_are_accepted(self, log: Lines) -> None:
        """The defect shows for all of them together, the blame is found one by one."""
        with Rig() as rig:
            break_(rig.stream, "accept", accepts("bad"))
            for event_id in ("a", "bad", "b"):
                rig.send(event_id=event_id)
            rig.intake.absorb(rig.stream.read_now(10))
            assert rig.ledger.owners().keys() == {"a", "b"}
            (letter,) = rig.redis.dead_letters()
            assert (letter["dead_reason"], letter["event_id"]) == ("Poison", "bad")
            assert letter["dead_detail"] == "the controller cannot accept this event: Defect"
            assert (dead(rig, "Poison"), rig.redis.pending_count()) == (1.0, 0)
        assert log.of("event.poison")

    def test_what_cannot_even_be_buried_is_buried_without_its_fields(self) -> None:
        """Else it would be read again for ever."""
        with Rig() as rig:
            break_(rig.stream, "dead_letter", lambda entry, _bad: entry.fields is not None)
            rig.accept(type="neither")
            assert (reasons(rig.world), rig.redis.pending_count()) == (["Invalid"], 0)

    def test_one_that_ends_the_process_every_time_is_read_ten_times(self, log: Lines) -> None:
        """Those that were read with it are accepted by the next process, however far down in its hand they were."""
        world, boots = World(), 0
        with Rig(world, boot="b0") as sender:
            for event_id in ("a", "bad", "b"):
                sender.send(event_id=event_id)
        while world.redis.pending_count() or not boots:
            boots += 1
            assert boots < 20
            with Rig(world, boot=f"b{boots}") as rig:
                break_(rig.stream, "accept", accepts("bad"), Killed)
                try:
                    rig.reader.step(0)
                except Killed:
                    continue
                finally:
                    rig.close(release=False)
        assert boots == 10
        (letter,) = world.redis.dead_letters()
        assert letter["dead_reason"] == "Poison"
        assert letter["dead_detail"] == "read 10 times, and each time the controller ended before it was accepted"
        (told,) = world.redis.results("task")
        assert (letter["event_id"], told["event_id"], told["reason"]) == ("bad", "bad", "Rejected")
        assert world.redis.open_ids() == {"a", "b"}
        assert len(log.of("event.dead")) == 1

    def test_an_outage_is_not_the_entrys_fault(self) -> None:
        """However often Redis fails in between, in one process it is one try."""
        with Rig() as rig:
            event_id = rig.send()
            rig.redis.fail_next("accept", times=50)
            rig.start("reader")
            eventually(lambda: rig.ledger.has(event_id))
            assert reasons(rig.world) == []


class TestOwning:
    """From the task on: the lease runs out, it is taken up again, and that is counted."""

    @POISON
    def test_a_task_that_cannot_be_opened_ends(self, log: Lines) -> None:
        """Its dead letter after ten tries; then, since its pods cannot be ended either, its results after twenty."""
        with Rig(threads=["watch", "lease"], auto=True, LEASE_S=3) as rig:
            break_(rig.ledger, "add", lambda task: task.event.event_id == "bad")
            rig.accept(event_id="bad", pod_count=2)
            rig.accept(event_id="good")
            assert rig.results(1, "task")[0]["event_id"] == "good"
            while len(rig.redis.results("task")) < 2:
                rig.wait_and_look(4)
            assert reasons(rig.world) == ["Poison"]
            assert rig.redis.results("task")[1]["reason"] == "Poison"
            assert [one["reason"] for one in rig.redis.results("worker")] == ["Completed", "Poison", "Poison"]
            assert (dead(rig, "Poison"), rig.redis.open_ids()) == (1.0, set())
        assert len(log.of("event.dead")) == 1

    @POISON
    def test_a_task_that_cannot_be_taken_does_not_keep_others_from_it(self) -> None:
        """What is stored of it cannot be read, for example; those behind it are taken all the same."""
        world = World()
        with Rig(world, consumer="dead", LEASE_S=3) as first:
            first.accept(event_id="bad")
            first.accept(event_id="good")
            first.close(release=False)
        with Rig(world, threads=["watch", "lease"], auto=True, LEASE_S=3) as rig:
            break_(rig.stream, "take", lambda event_id: event_id == "bad")
            while not world.redis.results("task"):
                rig.wait_and_look(4)
            assert rig.result("task")["event_id"] == "good"

    @POISON
    def test_a_scale_down_that_cannot_be_carried_on_ends(self, log: Lines) -> None:
        """Another one, sent after it, has to wait for it: victims are chosen in the order of the stream."""
        with Rig(threads=["watch", "control", "reader", "lease"], auto=lambda name: None, LEASE_S=3) as rig:
            break_(rig.scale_downs, "advance", descends("bad"))
            event_id = rig.send(task_id="t")
            rig.pod(event_id)
            rig.send(event_id="bad", type="scale_down", task_id="t")
            rig.send(event_id="good", type="scale_down", task_id="t")
            while len(rig.redis.results("scale_down")) < 2:
                rig.wait_and_look(4)
            bad, good = rig.redis.results("scale_down")
            assert (bad["event_id"], bad["outcome"], bad["reason"]) == ("bad", "failed", "Poison")
            assert (good["event_id"], good["outcome"], good["pod_count"]) == ("good", "succeeded", "1")
            assert (reasons(rig.world), rig.redis.open_ids(), dead(rig, "Poison")) == (["Poison"], set(), 1.0)
        assert len(log.of("event.dead")) == 1

    @POISON
    def test_a_worker_that_fails_makes_its_event_a_dead_letter(self, log: Lines) -> None:
        """With one line and one count, however many workers of it fail."""
        with Rig(threads=["watch"]) as rig:
            break_(rig.runner, "_create", lambda _job: True)
            event_id = rig.accept(pod_count=2)
            while not rig.redis.results("task"):
                rig.pass_time(60)
                eventually(lambda: rig.ledger.counts()[0] == 0)
            assert [one["reason"] for one in rig.redis.results("worker")] == ["Poison"] * 2
            (letter,) = rig.redis.dead_letters()
            assert (letter["dead_reason"], letter["event_id"], dead(rig, "Poison")) == ("Poison", event_id, 1.0)
        assert len(log.of("event.dead")) == 1

    @POISON
    def test_an_event_that_cannot_supersede_others_ends(self) -> None:
        """Else its worker would run on, its lease be renewed, and each later scale_down wait for its choice."""
        with Rig(threads=["watch", "control", "reader", "lease"], auto=lambda name: None, LEASE_S=3) as rig:
            break_(rig.scale_downs, "advance", descends("bad"))
            rig.send(event_id="bad", task_id="t", supersedes="branch")
            rig.send(event_id="good", type="scale_down", task_id="none")
            while not rig.redis.results("scale_down"):
                # Control fails on it and lets go of it; only then does time bring the next try.
                eventually(lambda: not rig.ledger.has("bad"), what="the event to be let go of")
                rig.wait_and_look(4)
            assert rig.result("scale_down")["event_id"] == "good"
            assert rig.result("task")["reason"] == "Poison"

    @POISON
    def test_a_worker_that_cannot_even_be_recorded_ends(self) -> None:
        """It is let go of until it is closed without our help; its neighbours have long ended.

        That takes twenty leases and a hundred pauses, so the test makes the steps of all threads but the watch itself.
        """
        with Rig(threads=["watch"], auto=True, LEASE_S=30) as rig:
            break_(rig.runner, "_record", lambda run, _effect: run.task.event.event_id == "bad")
            rig.accept(event_id="bad")
            rig.accept(event_id="good")
            while len(rig.redis.results("task")) < 2:
                rig.pass_time(25)  # less than LEASE_S: it would look like an outage otherwise
                rig.lease.step()
                rig.takeover.step()
                rig.control.step()
                rig.ender.step()
                rig.idle()
            good, bad = rig.redis.results("task")
            assert (good["event_id"], good["reason"]) == ("good", "Completed")
            assert (bad["event_id"], bad["reason"]) == ("bad", "Poison")
            assert (reasons(rig.world), dead(rig, "Poison")) == (["Poison"], 1.0)


def descends(event_id: str) -> Callable[[ScaleDown], bool]:
    """Is it this scale_down?"""
    return lambda scale_down: scale_down.task.event.event_id == event_id


def test_a_restored_task_that_cannot_be_stored_does_not_end_the_lease_thread() -> None:
    """Redis was wiped: the others are stored again."""
    with Rig(threads=["lease"], LEASE_S=3) as rig:

        def bad(task: OpenTask) -> bool:
            return task.event.event_id == "bad"

        break_(rig.stream, "restore", bad)
        rig.accept(event_id="bad")
        rig.accept(event_id="good")
        rig.redis.flush()
        rig.live(2)
        eventually(lambda: rig.redis.open_ids() == {"good"})
