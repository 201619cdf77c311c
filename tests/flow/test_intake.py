"""From the stream to the ledger: everything is accepted once, or becomes one dead letter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ottoscaler.core.events import ScaleEvent
from ottoscaler.errors import RedisUnavailable, Stopping
from ottoscaler.flow import intake as intake_module
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract


def metric(controller: SimulatedController, line: str) -> bool:
    """Is this line among the figures?"""
    return f"\n{line}\n" in controller.metrics.render().decode()


class TestAccepting:
    """What becomes of an entry."""

    @contract("3.type")
    @contract("6.event.received")
    def test_an_event_becomes_a_task_of_ours(self, log: Lines) -> None:
        """Stored, acknowledged, opened and said."""
        with SimulatedController() as controller:
            event_id = controller.accept(pod_count=3)
            assert controller.ledger.tasks.owners() == {event_id: "c1/b1/1"}
            assert (controller.redis.open_ids(), controller.redis.pending_count()) == ({event_id}, 0)
            assert metric(controller, 'ottoscaler_events_received_total{outcome="accepted",type="scale_up"} 1.0')
        assert log.of("event.received") == ["Received scaling event: scale_up (PodCount: 3)"]

    @contract("3.dead-letter")
    def test_what_breaks_a_rule_is_buried(self, log: Lines) -> None:
        """Once, with its reason, and nothing is created."""
        with SimulatedController() as controller:
            controller.accept(pod_count="many")
            (letter,) = controller.redis.dead_letters()
            assert (letter["dead_reason"], controller.redis.pending_count()) == ("Invalid", 0)
            assert controller.ledger.tasks.owners() == {}
            assert metric(controller, 'ottoscaler_dead_letters_total{reason="Invalid"} 1.0')
        assert log.of("event.dead")

    @contract("3.dead-letter")
    @pytest.mark.parametrize("size", [0, 2_000_000])
    def test_what_is_too_large_to_be_read_is_buried_with_its_size(self, size: int) -> None:
        """By what was read of it; 0: it was read whole."""
        with SimulatedController() as controller:
            controller.send(event_id="e", task_id="t")
            (entry,) = controller.stream.read_now(10)
            controller.intake.accept_entries([replace(entry, size=size)])
            found = [(letter["dead_reason"], letter["event_id"]) for letter in controller.redis.dead_letters()]
            assert found == ([("TooLarge", "e")] if size else [])
            assert set(controller.ledger.tasks.owners()) == (set() if size else {"e"})
            assert controller.redis.pending_count() == 0
            assert not metric(controller, 'ottoscaler_events_received_total{outcome="known",type="scale_up"} 1.0')

    @contract("3.dead-letter")
    @pytest.mark.parametrize("good", [0, 1, 3])
    def test_an_event_that_our_own_code_cannot_read_is_buried_alone(
        self, monkeypatch: pytest.MonkeyPatch, good: int
    ) -> None:
        """With the defect's name; those beside it are accepted."""
        known = intake_module.parse

        def parse(stream_id: str, fields: Any, *rest: Any) -> object:
            if fields[b"event_id"] == b"bad":
                raise ZeroDivisionError
            return known(stream_id, fields, *rest)

        monkeypatch.setattr(intake_module, "parse", parse)
        with SimulatedController() as controller:
            names = [f"good-{number}" for number in range(good)]
            for name in ("bad", *names):
                controller.send(event_id=name)
            controller.intake.accept_entries(controller.stream.read_now(10))
            (letter,) = controller.redis.dead_letters()
            assert (letter["dead_reason"], letter["event_id"]) == ("Poison", "bad")
            assert letter["dead_detail"] == "the controller cannot read this event: ZeroDivisionError"
            assert set(controller.ledger.tasks.owners()) == set(names)
            assert controller.redis.pending_count() == 0

    @contract("3.traceparent")
    def test_a_broken_trace_context_is_ignored_and_logged(self, log: Lines) -> None:
        """Once, with the event that it is about; an event without one has no such line."""
        with SimulatedController() as controller:
            controller.accept(event_id="a", traceparent="00-xyz")
            controller.accept(event_id="a")
            assert (set(controller.ledger.tasks.owners()), controller.redis.dead_letters()) == ({"a"}, [])
        (line,) = log.of("event.ignored")
        assert '"00-xyz"' in line

    @contract("3.event_id")
    def test_an_empty_event_id_counts_as_not_set(self) -> None:
        """The entry's id is the event's, also where another field is wrong: its sender finds the result there."""
        with SimulatedController() as controller:
            event_id = controller.accept(event_id="")
            assert controller.ledger.tasks.owners().keys() == {event_id}
            controller.accept(event_id="", pod_count="many")
            (letter,) = controller.redis.dead_letters()
            assert letter["event_id"] == letter["stream_id"]
            assert [result["event_id"] for result in controller.redis.results("task")] == [letter["stream_id"]]

    @contract("3.dead-letter")
    def test_a_bad_event_does_not_hold_up_the_good(self) -> None:
        """All of a batch are dealt with."""
        with SimulatedController() as controller:
            controller.send(event_id="a")
            controller.send(type="nonsense")
            controller.accept(event_id="b")
            assert controller.ledger.tasks.owners().keys() == {"a", "b"}
            assert len(controller.redis.dead_letters()) == 1

    @contract("3.event_id")
    def test_the_same_event_twice_is_one(self) -> None:
        """A producer that was not sure sends it again."""
        with SimulatedController() as controller:
            controller.accept(event_id="a", pod_count=2)
            controller.accept(event_id="a", pod_count=2)
            assert controller.ledger.thread_counts() == (0, 2)
            assert controller.redis.dead_letters() == []

    @contract("3.event_id")
    def test_the_same_id_with_other_content_is_a_conflict(self) -> None:
        """The first one runs on."""
        with SimulatedController() as controller:
            controller.accept(event_id="a", pod_count=2)
            controller.accept(event_id="a", pod_count=3)
            assert [letter["dead_reason"] for letter in controller.redis.dead_letters()] == ["Conflict"]
            assert controller.ledger.thread_counts() == (0, 2)

    @contract("3.dead-letter")
    def test_an_entry_that_was_trimmed_away_is_a_dead_letter(self) -> None:
        """A process read it and died, and it is gone from the stream."""
        servers = FakeServers()
        with SimulatedController(servers, consumer="dead") as dead:
            dead.send()
            dead.stream.read_now(1)
        servers.redis.trim()
        with SimulatedController(servers) as controller:
            controller.intake.accept_entries(controller.stream.claim_pending(own=False, min_idle_s=0))
            assert [letter["dead_reason"] for letter in controller.redis.dead_letters()] == ["Trimmed"]
            assert controller.redis.pending_count() == 0

    @contract("3.supersedes")
    def test_an_event_that_supersedes_is_submitted_to_control(self) -> None:
        """scale_downs, and events that supersede others, which run as well."""
        with SimulatedController() as controller:
            controller.accept(event_id="plain")
            controller.accept(event_id="down", type="scale_down", task_id="t")
            controller.accept(event_id="newer", supersedes="key")
            assert [task.event.event_id for task in controller.inbox.tasks()] == ["down", "newer"]
            assert controller.ledger.tasks.owners().keys() == {"plain", "newer"}

    def test_a_lost_answer_is_asked_for_again(self) -> None:
        """Before and after it was stored: the task is ours, and no lease has to run out for it to be run."""
        with SimulatedController() as controller:
            controller.send(event_id="a")
            controller.redis.fail_next("accept")
            controller.redis.fail_next("accept", after=True)
            controller.intake.accept_entries(controller.stream.read_now(1))
            assert controller.redis.calls["accept"] == 3
            assert controller.ledger.tasks.owners() == {"a": "c1/b1/1"}

    def test_what_was_not_accepted_is_pending_still(self) -> None:
        """Redis was away until the stop: nothing is lost, nothing is run."""
        with SimulatedController() as controller:
            controller.send(event_id="a")
            controller.redis.fail_next("accept")
            entries = controller.stream.read_now(1)
            controller.stop.set()
            with pytest.raises(Stopping):
                controller.intake.accept_entries(entries)
            assert (controller.redis.pending_count(), controller.ledger.tasks.owners()) == (1, {})
            controller.intake.accept_entries(controller.stream.claim_pending(own=True, min_idle_s=0))
            assert controller.ledger.tasks.has("a")

    def test_an_outage_is_no_try_of_an_entry(self) -> None:
        """It is looked at again and not counted; an entry that was not tried yet is."""
        with SimulatedController() as controller:
            for event_id in ("a", "b"):
                controller.send(event_id=event_id)
            first, second = controller.stream.read_now(2)
            controller.redis.fail_next("accept")
            with pytest.raises(RedisUnavailable):
                controller.intake.accept_entries([first], patient=False)
            controller.intake.accept_pending_entries([first])
            assert (controller.redis.calls["count_try"], controller.ledger.tasks.has("a")) == (0, True)
            controller.intake.accept_pending_entries([second])
            assert (controller.redis.calls["count_try"], controller.ledger.tasks.has("b")) == (1, True)

    def test_an_entry_that_is_accepted_twice_runs_once(self) -> None:
        """Reader and control may have it in hand at the same time."""
        with SimulatedController(threads=["watch"]) as controller:
            controller.send(event_id="a")
            entries = controller.stream.read_now(1)
            controller.intake.accept_entries(entries)
            pod = controller.pod("a")
            controller.intake.accept_entries(entries)
            controller.cluster.run(pod)
            controller.cluster.succeed(pod)
            controller.result()
            controller.idle()
            assert controller.calls("create") == 1


class TestReader:
    """The thread that reads."""

    def test_events_are_read_and_run(self) -> None:
        """Whatever was there before, and what comes."""
        with SimulatedController(threads=["watch"], auto=True) as controller:
            controller.send()
            controller.start("reader")
            controller.results(1)
            controller.send()
            assert len(controller.results(2)) == 2

    @contract("2.READ_AHEAD")
    def test_no_more_is_read_than_there_is_room_for(self) -> None:
        """The rest is left in Redis for other replicas."""
        with SimulatedController(threads=["watch"], MAX_WORKERS=1, READ_AHEAD=2) as controller:
            for number in range(6):
                controller.send(event_id=f"e{number}")
            controller.start("reader")
            pod = controller.pod("e0")
            eventually(lambda: controller.redis.open_count() == 3)
            assert controller.stream.blocker("9999999999999-0")
            controller.cluster.run(pod)
            controller.cluster.succeed(pod)
            eventually(lambda: controller.redis.open_ids() == {"e1", "e2", "e3"})

    def test_what_this_consumer_read_before_is_read_again_at_the_start(self) -> None:
        """An earlier incarnation died between reading and accepting."""
        servers = FakeServers()
        with SimulatedController(servers, incarnation="b0") as old:
            event_id = old.send()
            old.stream.read_now(1)
        with SimulatedController(servers, threads=["reader"]) as controller:
            eventually(lambda: controller.ledger.tasks.has(event_id))

    def test_after_an_error_its_own_pending_entries_come_first(self) -> None:
        """The answer of a read may have been lost: its entries are delivered and no process has them."""
        with SimulatedController() as controller:
            controller.redis.fail_next("read", after=True)
            event_id = controller.send()
            controller.start("reader")
            eventually(lambda: controller.ledger.tasks.has(event_id))
            assert controller.redis.pending_count() == 0

    def test_each_answer_of_redis_ends_the_count_of_tries(self, log: Lines) -> None:
        """A link that dies with every read, and is good in between, does not make the pauses grow."""
        with SimulatedController() as controller:
            controller.redis.fail_next("read", 4)
            event_id = controller.send()
            controller.start("reader")
            eventually(lambda: controller.ledger.tasks.has(event_id))
        tries = [line.partition("(try ")[2].partition(")")[0] for line in log.of("retry.scheduled")]
        assert tries == ["1", "1", "1"]  # the first, the second and the fourth of like lines are logged

    def test_nothing_is_read_after_the_stop(self) -> None:
        """It would be pending until another replica takes it."""
        with SimulatedController() as controller:
            controller.reader.step()
            controller.send()
            controller.stop.set()
            controller.reader.step(0)
            assert controller.redis.calls["read"] == 0

    def test_a_group_that_is_gone_is_made_again(self) -> None:
        """FLUSHALL, or a user deleted it."""
        with SimulatedController(threads=["reader"]) as controller:
            eventually(lambda: controller.redis.calls["read"])
            controller.redis.flush()
            event_id = controller.send()
            eventually(lambda: controller.ledger.tasks.has(event_id))

    def test_it_outlives_an_outage(self) -> None:
        """However long it lasts."""
        with SimulatedController(threads=["reader"]) as controller:
            controller.redis.set_down(True)
            eventually(lambda: controller.redis.calls["ensure_group"] > 20)
            controller.redis.set_down(False)
            event_id = controller.send()
            eventually(lambda: controller.ledger.tasks.has(event_id))


def test_the_event_reaches_the_ledger_as_it_was_sent() -> None:
    """Nothing is made up on the way."""
    with SimulatedController() as controller:
        controller.accept(event_id="a", pod_count=2, task_id="t", repository="r")
        task = controller.taken("a")
        assert isinstance(task.event, ScaleEvent)
        assert (task.event.pod_count, task.event.task_id, task.event.passed_on) == (2, "t", {"repository": "r"})
