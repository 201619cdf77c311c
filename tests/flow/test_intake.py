"""From the stream to the ledger: everything is accepted once, or buried once."""

from __future__ import annotations

import pytest

from ottoscaler.core.events import ScaleEvent
from ottoscaler.errors import Stopping
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.rig import Rig, World

contract = pytest.mark.contract


def metric(rig: Rig, line: str) -> bool:
    """Is this line among the figures?"""
    return f"\n{line}\n" in rig.metrics.render().decode()


class TestAccepting:
    """What becomes of an entry."""

    @contract("3.type")
    @contract("6.event.received")
    def test_an_event_becomes_a_task_of_ours(self, log: Lines) -> None:
        """Stored, acknowledged, opened and said."""
        with Rig() as rig:
            event_id = rig.accept(pod_count=3)
            assert rig.ledger.owners() == {event_id: "c1/b1/1"}
            assert (rig.redis.open_ids(), rig.redis.pending_count()) == ({event_id}, 0)
            assert metric(rig, 'ottoscaler_events_received_total{type="scale_up"} 1.0')
        assert log.of("event.received") == ["Received scaling event: scale_up (PodCount: 3)"]

    @contract("3.dead-letter")
    def test_what_breaks_a_rule_is_buried(self, log: Lines) -> None:
        """Once, with its reason, and nothing is created."""
        with Rig() as rig:
            rig.accept(pod_count="many")
            (letter,) = rig.redis.dead_letters()
            assert (letter["dead_reason"], rig.redis.pending_count()) == ("Invalid", 0)
            assert rig.ledger.owners() == {}
            assert metric(rig, 'ottoscaler_dead_letters_total{reason="Invalid"} 1.0')
        assert log.of("event.dead")

    @contract("3.traceparent")
    def test_a_broken_trace_context_is_ignored_and_logged(self, log: Lines) -> None:
        """Once, with the event that it is about; an event without one has no such line."""
        with Rig() as rig:
            rig.accept(event_id="a", traceparent="00-xyz")
            rig.accept(event_id="a")
            assert (set(rig.ledger.owners()), rig.redis.dead_letters()) == ({"a"}, [])
        (line,) = log.of("event.ignored")
        assert '"00-xyz"' in line

    @contract("3.event_id")
    def test_an_empty_event_id_counts_as_not_set(self) -> None:
        """The entry's id is the event's, also where something else is wrong: its sender finds the result there."""
        with Rig() as rig:
            event_id = rig.accept(event_id="")
            assert rig.ledger.owners().keys() == {event_id}
            rig.accept(event_id="", pod_count="many")
            (letter,) = rig.redis.dead_letters()
            assert letter["event_id"] == letter["stream_id"]
            assert [result["event_id"] for result in rig.redis.results("task")] == [letter["stream_id"]]

    @contract("3.dead-letter")
    def test_a_bad_event_does_not_hold_up_the_good(self) -> None:
        """All of a batch are dealt with."""
        with Rig() as rig:
            rig.send(event_id="a")
            rig.send(type="nonsense")
            rig.accept(event_id="b")
            assert rig.ledger.owners().keys() == {"a", "b"}
            assert len(rig.redis.dead_letters()) == 1

    @contract("3.event_id")
    def test_the_same_event_twice_is_one(self) -> None:
        """A producer that was not sure sends it again."""
        with Rig() as rig:
            rig.accept(event_id="a", pod_count=2)
            rig.accept(event_id="a", pod_count=2)
            assert rig.ledger.counts() == (0, 2)
            assert rig.redis.dead_letters() == []

    @contract("3.event_id")
    def test_the_same_id_with_other_content_is_a_conflict(self) -> None:
        """The first one runs on."""
        with Rig() as rig:
            rig.accept(event_id="a", pod_count=2)
            rig.accept(event_id="a", pod_count=3)
            assert [letter["dead_reason"] for letter in rig.redis.dead_letters()] == ["Conflict"]
            assert rig.ledger.counts() == (0, 2)

    @contract("3.dead-letter")
    def test_an_entry_that_was_trimmed_away_is_a_dead_letter(self) -> None:
        """It was read by somebody who died, and is gone from the stream."""
        world = World()
        with Rig(world, consumer="dead") as dead:
            dead.send()
            dead.stream.read_now(1)
        world.redis.trim()
        with Rig(world) as rig:
            rig.intake.absorb(rig.stream.pending(own=False, min_idle_s=0))
            assert [letter["dead_reason"] for letter in rig.redis.dead_letters()] == ["Trimmed"]
            assert rig.redis.pending_count() == 0

    @contract("3.supersedes")
    def test_who_has_older_ones_to_end_is_told_to_control(self) -> None:
        """scale_downs, and events that supersede others, which run as well."""
        told: list[str] = []
        with Rig() as rig:
            rig.intake.connect(pump=lambda: None, control=lambda task: told.append(task.event.event_id))
            rig.accept(event_id="plain")
            rig.accept(event_id="down", type="scale_down", task_id="t")
            rig.accept(event_id="newer", supersedes="key")
            assert told == ["down", "newer"]
            assert rig.ledger.owners().keys() == {"plain", "newer"}

    def test_a_lost_answer_is_asked_for_again(self) -> None:
        """Before and after it was stored: the task is ours, and no lease has to run out for it to be run."""
        with Rig() as rig:
            rig.send(event_id="a")
            rig.redis.fail_next("accept")
            rig.redis.fail_next("accept", after=True)
            rig.intake.absorb(rig.stream.read_now(1))
            assert rig.redis.calls["accept"] == 3
            assert rig.ledger.owners() == {"a": "c1/b1/1"}

    def test_what_was_not_accepted_is_pending_still(self) -> None:
        """Redis was away until the stop: nothing is lost, nothing is run."""
        with Rig() as rig:
            rig.send(event_id="a")
            rig.redis.fail_next("accept")
            entries = rig.stream.read_now(1)
            rig.stop.set()
            with pytest.raises(Stopping):
                rig.intake.absorb(entries)
            assert (rig.redis.pending_count(), rig.ledger.owners()) == (1, {})
            rig.intake.absorb(rig.stream.pending(own=True, min_idle_s=0))
            assert rig.ledger.has("a")

    def test_an_entry_that_is_accepted_twice_runs_once(self) -> None:
        """Reader and control may have it in hand at the same time."""
        with Rig(threads=["watch"]) as rig:
            rig.send(event_id="a")
            entries = rig.stream.read_now(1)
            rig.intake.absorb(entries)
            pod = rig.pod("a")
            rig.intake.absorb(entries)
            rig.cluster.run(pod)
            rig.cluster.succeed(pod)
            rig.result()
            rig.idle()
            assert rig.calls("create") == 1


class TestReader:
    """The thread that reads."""

    def test_events_are_read_and_run(self) -> None:
        """Whatever was there before, and what comes."""
        with Rig(threads=["watch"], auto=True) as rig:
            rig.send()
            rig.start("reader")
            rig.results(1)
            rig.send()
            assert len(rig.results(2)) == 2

    @contract("2.READ_AHEAD")
    def test_no_more_is_read_than_there_is_room_for(self) -> None:
        """The rest is left in Redis for other replicas."""
        with Rig(threads=["watch"], MAX_WORKERS=1, READ_AHEAD=2) as rig:
            for number in range(6):
                rig.send(event_id=f"e{number}")
            rig.start("reader")
            pod = rig.pod("e0")
            eventually(lambda: rig.redis.open_count() == 3)
            assert rig.stream.blocker("9999999999999-0")
            rig.cluster.run(pod)
            rig.cluster.succeed(pod)
            eventually(lambda: rig.redis.open_ids() == {"e1", "e2", "e3"})

    def test_what_this_consumer_read_before_is_read_again_at_the_start(self) -> None:
        """An earlier boot died between reading and accepting."""
        world = World()
        with Rig(world, boot="b0") as old:
            event_id = old.send()
            old.stream.read_now(1)
        with Rig(world, threads=["reader"]) as rig:
            eventually(lambda: rig.ledger.has(event_id))

    def test_after_an_error_its_own_pending_entries_come_first(self) -> None:
        """The answer of a read may have been lost: its entries are delivered and nobody has them."""
        with Rig() as rig:
            rig.redis.fail_next("read", after=True)
            event_id = rig.send()
            rig.start("reader")
            eventually(lambda: rig.ledger.has(event_id))
            assert rig.redis.pending_count() == 0

    def test_a_group_that_is_gone_is_made_again(self) -> None:
        """FLUSHALL, or somebody deleted it."""
        with Rig(threads=["reader"]) as rig:
            eventually(lambda: rig.redis.calls["read"])
            rig.redis.flush()
            event_id = rig.send()
            eventually(lambda: rig.ledger.has(event_id))

    def test_it_outlives_an_outage(self) -> None:
        """However long it lasts."""
        with Rig(threads=["reader"]) as rig:
            rig.redis.set_down(True)
            eventually(lambda: rig.redis.calls["ensure_group"] > 20)
            rig.redis.set_down(False)
            event_id = rig.send()
            eventually(lambda: rig.ledger.has(event_id))


def test_the_event_reaches_the_ledger_as_it_was_sent() -> None:
    """Nothing is made up on the way."""
    with Rig() as rig:
        rig.accept(event_id="a", pod_count=2, task_id="t", repository="r")
        task = rig.taken("a")
        assert isinstance(task.event, ScaleEvent)
        assert (task.event.pod_count, task.event.task_id, task.event.passed_on) == (2, "t", {"repository": "r"})
