"""The contract of `ports.ScaleDowns`: the choice of victims, how they stand, the result. All implementations run it."""

from __future__ import annotations

import pytest

from ottoscaler.core.events import BadEvent, DeadReason, ScaleEvent, parse
from ottoscaler.core.victim_selection import BlockingEvent, Victim, VictimRequest, VictimSelection
from ottoscaler.ports import RedisPorts, ScriptStatus, StoredWorker
from tests.adapters.streams import (
    LATE_ID,
    StreamAdmin,
    accept,
    cancel,
    claim,
    end,
    intend,
    opened,
    receive,
    record,
    reloaded,
    send,
    taken_over,
)

__all__ = ["TestChoosing", "TestFinishing", "TestLooking"]

LATE_MS = LATE_ID.partition("-")[0]


class TestChoosing:
    """choose, blocker: each worker is the victim of one choice, and choices are made in the order of the stream."""

    VICTIMS = (Victim("e-1", 2, "pod-2"), Victim("e-1", 1))

    def test_the_victims_are_chosen_and_marked_once(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A second list changes nothing: the first may have been acted on."""
        opened(stream, admin, event_id="e-1", pod_count="3")
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1")
        selection = VictimSelection(list(self.VICTIMS), ["pod-9"])
        assert stream.select_victims("d-1", task.owner, claim(*self.VICTIMS, spared=["pod-9"])) == selection
        assert stream.select_victims("d-1", task.owner, claim(Victim("e-1", 3))) == selection
        taken = taken_over(other, admin, task)
        assert (taken.victims, taken.survivors) == (list(self.VICTIMS), ["pod-9"])
        seen = reloaded(stream, "e-1")
        assert {index: worker.termination for index, worker in seen.workers.items()} == dict.fromkeys(
            (1, 2), cancel(by="d-1")
        )
        assert seen.cancel_count == 2

    def test_no_more_than_asked_for_in_the_order_of_preference(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A candidate after the last victim stays, and so does a worker that is spared."""
        opened(stream, admin, event_id="e-1", pod_count="3")
        task = opened(stream, admin, type="scale_down", event_id="d-1", pod_count="2")
        listed = [Victim("e-1", index, f"pod-{index}") for index in (3, 1, 2)]
        answer = stream.select_victims("d-1", task.owner, claim(*listed, count=2, spared=["pod-8"]))
        assert answer == VictimSelection(listed[:2], ["pod-2", "pod-8"])
        assert set(reloaded(stream, "e-1").workers) == {1, 3}

    def test_no_victims_are_a_choice_as_well(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """An empty list is not the same as none yet."""
        opened(stream, admin, event_id="e-1", pod_count="2")
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1")
        assert stream.select_victims("d-1", task.owner, claim()) == VictimSelection([], [])
        assert stream.select_victims("d-1", task.owner, claim(*self.VICTIMS)) == VictimSelection([], [])
        assert reloaded(stream, "d-1").victims == []

    def test_only_the_owner_chooses(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """None for the old owner, before and after the list is stored."""
        opened(stream, admin, event_id="e-1", pod_count="2")
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1")
        taken = taken_over(other, admin, task)
        assert stream.select_victims("d-1", task.owner, claim(*self.VICTIMS)) is None
        assert reloaded(stream, "e-1").workers == {}
        other.select_victims("d-1", taken.owner, claim(*self.VICTIMS))
        assert stream.select_victims("d-1", task.owner, claim(*self.VICTIMS)) is None

    @pytest.mark.contract("3.pod_count")
    def test_a_worker_is_the_victim_of_one_choice(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """The next takes the ones behind, whatever it believed when it asked; a drain's victim is no exception."""
        opened(stream, admin, event_id="e-1", pod_count="4")
        first = opened(stream, admin, type="scale_down", event_id="d-1", pod_count="2", mode="drain")
        second = opened(other, admin, type="scale_down", event_id="d-2", pod_count="1")
        listed = [Victim("e-1", index, f"pod-{index}") for index in (1, 2, 3, 4)]
        drain = VictimRequest(cancel(by="d-1", drain=True), listed, 2)
        assert stream.select_victims("d-1", first.owner, drain) == VictimSelection(listed[:2], ["pod-3", "pod-4"])
        answer = other.select_victims("d-2", second.owner, claim(*listed, count=1, by="d-2"))
        assert answer == VictimSelection(listed[2:3], ["pod-4"])
        terminations = {
            index: worker.termination and worker.termination.by
            for index, worker in reloaded(stream, "e-1").workers.items()
        }
        assert terminations == {1: "d-1", 2: "d-1", 3: "d-2"}

    @pytest.mark.contract("3.not_after")
    def test_a_worker_that_is_too_late_is_still_to_be_had(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Its own not_after spares it if it runs, and would save it from a scale_down."""
        older = opened(stream, admin, event_id="e-1", not_after="2001-01-01T00:00:00Z")
        assert stream.renew({"e-1": older.owner}).cancel_counts == {"e-1": 1}
        task = opened(stream, admin, type="scale_down", event_id="d-1", pod_count="1")
        assert stream.select_victims("d-1", task.owner, claim(Victim("e-1", 1))) == VictimSelection(
            [Victim("e-1", 1)], []
        )
        assert reloaded(stream, "e-1").workers[1].termination == cancel(by="d-1")

    def test_a_worker_that_has_ended_or_is_unknown_is_no_victim(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The list was made before: one more is taken instead. A deadline's mark gives way."""
        task = opened(stream, admin, event_id="e-1", pod_count="3")
        record(stream, opened(stream, admin, event_id="e-2"))
        record(stream, task, 1)
        intend(stream, task, 2)
        stream.store_termination("e-1", task.owner, 2, end(1))
        down = opened(stream, admin, type="scale_down", event_id="d-1", pod_count="2")
        listed = [Victim("e-1", 1, "p-1"), Victim("e-2", 1), Victim("e-9", 1), Victim("e-1", 2), Victim("e-1", 3)]
        assert stream.select_victims("d-1", down.owner, claim(*listed, count=2)) == VictimSelection(listed[3:], [])
        assert reloaded(stream, "e-1").workers[2].termination == cancel(by="d-1")

    def test_an_older_entry_comes_first(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """While it is unread, and while a replica has read it and not accepted it."""
        entry = send(admin, event_id="e-1")
        read = receive(other)
        down = opened(stream, admin, type="scale_down", event_id="d-1", pod_count="1")
        assert stream.select_victims("d-1", down.owner, claim(Victim("e-1", 1))) == BlockingEvent(entry)
        assert stream.blocker(down.event.stream_id) == BlockingEvent(entry)
        assert stream.blocker(entry) is None
        accept(other, read)
        assert stream.blocker(down.event.stream_id) is None
        assert isinstance(stream.select_victims("d-1", down.owner, claim(Victim("e-1", 1))), VictimSelection)

    @pytest.mark.parametrize("fields", [{"type": "scale_down", "pod_count": "1"}, {"supersedes": "k"}])
    def test_an_older_event_chooses_first(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin, fields: dict[str, str]
    ) -> None:
        """Whichever replica has accepted it: a scale_down, or an event that supersedes others."""
        opened(stream, admin, event_id="e-1", pod_count="2")
        older = opened(other, admin, event_id="d-1", **fields)
        younger = opened(stream, admin, type="scale_down", event_id="d-2", pod_count="1")
        asked = claim(Victim("e-1", 1), by="d-2")
        for _ in range(2):
            assert stream.select_victims("d-2", younger.owner, asked) == BlockingEvent("d-1", older.owner)
        assert stream.blocker(younger.event.stream_id) == BlockingEvent("d-1", older.owner)
        assert isinstance(other.select_victims("d-1", older.owner, claim(Victim("e-1", 2))), VictimSelection)
        assert stream.blocker(younger.event.stream_id) is None
        assert stream.select_victims("d-2", younger.owner, asked) == VictimSelection([Victim("e-1", 1)], [])

    def test_an_event_with_nothing_left_to_choose_blocks_no_other(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A scale_down that was closed without a choice: as poison, for one."""
        older = opened(other, admin, type="scale_down", event_id="d-1", pod_count="1")
        younger = opened(stream, admin, type="scale_down", event_id="d-2", pod_count="1")
        other.finish("d-1", older.owner, {"kind": "scale_down", "event_id": "d-1"})
        assert stream.blocker(younger.event.stream_id) is None
        assert isinstance(stream.select_victims("d-2", younger.owner, claim(by="d-2")), VictimSelection)

    def test_order_is_that_of_the_stream_and_not_of_the_alphabet(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Numbers of different lengths, in both halves of an id."""
        ids = [f"{LATE_MS}-9", f"{LATE_MS}-10", f"{LATE_MS}0-1", f"{LATE_MS}0-18446744073709551614"]
        tasks = []
        for number, stream_id in enumerate(ids):
            admin.add({"type": "scale_down", "pod_count": "1", "event_id": f"d-{number}"}, stream_id)
            tasks.append(accept(stream, receive(stream)))
        for number, task in enumerate(tasks):
            assert task is not None
            earlier = tasks[number - 1] if number else None
            blocker = BlockingEvent(f"d-{number - 1}", earlier.owner) if earlier else None
            assert stream.blocker(task.event.stream_id) == (BlockingEvent("d-0", tasks[0].owner) if blocker else None)  # type: ignore[union-attr]

    def test_superseding_is_a_choice_that_is_remembered(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Its victims are marked; no list of them is kept."""
        opened(stream, admin, event_id="e-0", supersedes="main")
        stream.select_victims("e-0", reloaded(stream, "e-0").owner, claim(by="e-0"))
        task = opened(stream, admin, event_id="e-1", supersedes="main")
        assert not task.superseded
        assert stream.select_victims("e-1", "c9/boot-1/1", claim(Victim("e-0", 1))) is None
        assert not reloaded(stream, "e-1").superseded
        assert stream.select_victims("e-1", task.owner, claim(Victim("e-0", 1, "p"), by="e-1")) == VictimSelection(
            [Victim("e-0", 1, "p")], []
        )
        assert reloaded(stream, "e-1").superseded
        assert reloaded(stream, "e-0").workers[1].termination == cancel(by="e-1")
        assert stream.select_victims("e-1", task.owner, claim(Victim("e-0", 1))) == VictimSelection([], [])

    def test_without_a_key_nothing_is_to_be_superseded(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """There is nothing left to do about older events."""
        assert opened(stream, admin, event_id="e-1").superseded
        assert reloaded(stream, "e-1").superseded

    @pytest.mark.timeout(60)
    def test_of_very_many_candidates(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """More than a script could take as arguments of one command."""
        for number in range(3):
            opened(stream, admin, event_id=f"e-{number}", pod_count="1000")
        task = opened(stream, admin, type="scale_down", event_id="d-1", pod_count="2500")
        listed = [Victim(f"e-{index % 3}", index // 3 + 1, f"pod-{index}") for index in range(3000)]
        answer = stream.select_victims("d-1", task.owner, claim(*listed, count=2500))
        assert answer == VictimSelection(listed[:2500], [victim.pod for victim in listed[2500:]])
        assert sum(len(reloaded(stream, f"e-{number}").workers) for number in range(3)) == 2500

    @pytest.mark.timeout(60)
    def test_of_few_among_very_many_none_is_missed(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The first five hundred are taken already, and those behind them are found all the same."""
        opened(stream, admin, event_id="e-1", pod_count="1000")
        first = opened(stream, admin, type="scale_down", event_id="d-1", pod_count="500")
        second = opened(stream, admin, type="scale_down", event_id="d-2", pod_count="2")
        listed = [Victim("e-1", index, f"pod-{index}") for index in range(1, 1001)]
        stream.select_victims("d-1", first.owner, claim(*listed[:500], count=500))
        answer = stream.select_victims("d-2", second.owner, claim(*listed, count=2, spared=["s"], by="d-2"))
        assert answer == VictimSelection(listed[500:502], [*(each.pod for each in listed[502:]), "s"])


class TestFinishing:
    """The result of a scale_down."""

    @pytest.mark.contract("5.scale_down")
    def test_its_result_is_published_once(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """And the task is closed by it."""
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1", repository="a/b")
        fields = {"kind": "scale_down", "event_id": "d-1", "task_id": "t-1", "outcome": "succeeded"}
        assert stream.finish("d-1", task.owner, fields).status is ScriptStatus.OK
        assert stream.finish("d-1", task.owner, fields).status is ScriptStatus.KNOWN
        assert admin.results() == [fields | {"repository": "a/b"}]
        assert (admin.open_ids(), admin.task("d-1")["state"]) == (set(), "finished")
        assert admin.expires_in("d-1") is not None


class TestLooking:
    """tasks, reload, outcomes: how workers stand, for a choice and after it."""

    def test_reload_shows_a_task_of_any_owner(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The same as its owner has, and the owner's token."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        seen = reloaded(other, "e-1")
        assert (seen.owner, seen.event, seen.workers[1].attempt) == (task.owner, task.event, 1)

    def test_reload_shows_open_tasks_only(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """None for a finished task and for an unknown one."""
        record(stream, opened(stream, admin, event_id="e-1"))
        assert stream.reload_task("e-1") is None
        assert stream.reload_task("never") is None

    def test_tasks_shows_open_scale_ups_of_all(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """Victims are chosen among these, whichever replica owns them."""
        first = opened(stream, admin, event_id="e-1", pod_count="2")
        intend(stream, first, 2)
        second = opened(other, admin, event_id="e-2")
        opened(stream, admin, type="scale_down", task_id="e-1", event_id="d-1")
        record(stream, opened(stream, admin, event_id="e-3"))
        views = {view.event.event_id: view for view in other.open_scale_ups()}
        assert set(views) == {"e-1", "e-2"}
        assert (views["e-1"].owner, views["e-2"].owner) == (first.owner, second.owner)
        assert dict(views["e-1"].workers) == {2: StoredWorker(2, attempt=1)}

    def test_outcomes_are_returned_in_the_order_asked(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """None where the task is unknown."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task, 2)
        asked = [Victim("never", 1), Victim("e-1", 2, "pod"), Victim("e-1", 1)]
        assert stream.stored_workers(asked) == [None, StoredWorker(2, outcome="succeeded"), StoredWorker(1)]
        assert stream.stored_workers([]) == []

    def test_a_worker_without_which_its_task_has_finished_is_unknown(
        self, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Its task was forgotten, and a late copy of its event became a dead letter: no result of it will ever come."""
        send(admin, event_id="e-1", pod_count="2")
        entry = receive(stream)
        event = parse(entry.stream_id, entry.fields or {}, 1000)
        assert isinstance(event, ScaleEvent)
        stream.dead_letter(entry, BadEvent(DeadReason.TOO_OLD, "why", event_id=event.event_id, task_id=event.task_id))
        assert [result["event_id"] for result in admin.results("task")] == ["e-1"]
        assert stream.stored_workers([Victim("e-1", 1), Victim("e-1", 2)]) == [None, None]
