"""The contract of `ports.Stream`, third part: what is known, adopting. All implementations run it."""

from __future__ import annotations

from dataclasses import replace

from ottoscaler.core.choice import Blocker, Choice, Victim
from ottoscaler.core.verdicts import Reason
from ottoscaler.ports import OpenTask, Status, StoredWorker, Stream
from tests.adapters.streams import (
    LATE_ID,
    StreamAdmin,
    accept,
    cancel,
    claim,
    intend,
    opened,
    owned_by,
    receive,
    record,
    reloaded,
    taken_over,
)

__all__ = ["TestAdopting", "TestKnowing", "TestRestoring"]


class TestAdopting:
    """adopt: a task is stored anew from its pods, after Redis was wiped."""

    @staticmethod
    def adopted(stream: Stream, admin: StreamAdmin) -> OpenTask:
        """A task of three that was wiped; worker 2 had a pod of attempt 3."""
        task = opened(stream, admin, event_id="e-1", pod_count="3")
        admin.flush()
        stream.adopt(task.event, {2: 3})
        return task

    def test_lets_anybody_take_the_task(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Its lease has run out already."""
        task = self.adopted(stream, admin)
        assert other.expired(same_consumer=False) == ["e-1"]
        taken = other.take("e-1", same_consumer=False)
        assert taken is not None
        assert taken.event == task.event

    def test_goes_on_with_the_attempts_that_were_seen(self, stream: Stream, admin: StreamAdmin) -> None:
        """An index without a pod has no retries left: what it did is not known."""
        self.adopted(stream, admin)
        taken = stream.take("e-1", same_consumer=False)
        assert taken is not None
        assert taken.workers[2] == StoredWorker(2, attempt=3, seen=True)
        lost = [taken.workers[index] for index in (1, 3)]
        assert [worker.attempt for worker in lost] == [1, 1]
        assert all(worker.infra_used > 10 and worker.seen for worker in lost)

    def test_again_changes_nothing(self, stream: Stream, admin: StreamAdmin) -> None:
        """A known task is not stored anew: it may have gone on meanwhile."""
        task = self.adopted(stream, admin)
        taken = stream.take("e-1", same_consumer=False)
        stream.adopt(task.event, {1: 7})
        assert taken is not None
        assert stream.check("e-1", taken.owner, 1, 1).status is Status.OK
        assert reloaded(stream, "e-1").workers[1].attempt == 1

    def test_the_event_sent_again_is_known(self, stream: Stream, admin: StreamAdmin) -> None:
        """Its content is not remembered exactly, so it must not count as a conflict."""
        self.adopted(stream, admin)
        stream.ensure_group()
        admin.add({"type": "scale_up", "event_id": "e-1", "pod_count": "3"}, LATE_ID)
        assert accept(stream, receive(stream)) is None
        assert (admin.dead_letters(), admin.results(), admin.pending_count()) == ([], [], 0)

    def test_the_results_come_as_usual(self, stream: Stream, admin: StreamAdmin) -> None:
        """Three workers, then the task's."""
        taken = taken_over(stream, admin, self.adopted(stream, admin))
        for index, attempt in ((1, 1), (2, 3), (3, 1)):
            record(stream, taken, index, attempt=attempt)
        assert [result["kind"] for result in admin.results()] == ["worker"] * 3 + ["task"]


class TestRestoring:
    """restore: the living owner stores a task again, after Redis was wiped."""

    @staticmethod
    def restored(stream: Stream, admin: StreamAdmin) -> tuple[OpenTask, OpenTask]:
        """A task of five, each worker standing elsewhere, before the wipe and after it."""
        task = opened(stream, admin, event_id="e-1", pod_count="5")
        intend(stream, task, 1, attempt=2, infra_used=1)
        intend(stream, task, 2)
        stream.note_refused("e-1", task.owner, 2, 1)
        stream.store_termination("e-1", None, 3, cancel())
        for index, reason in ((4, Reason.ERROR), (5, Reason.COMPLETED)):
            record(stream, task, index, reason=reason)
        before = reloaded(stream, "e-1")
        admin.flush()
        stream.restore(before)
        return before, reloaded(stream, "e-1")

    def test_brings_back_all_that_was_known(self, stream: Stream, admin: StreamAdmin) -> None:
        """Owner, attempts, refusals, terminations and outcomes; nothing is published again."""
        before, after = self.restored(stream, admin)
        assert after == before
        assert admin.results() == []

    def test_the_owner_goes_on(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Its token is good, its lease runs, and the task's result counts what was recorded before the wipe."""
        task, _ = self.restored(stream, admin)
        assert stream.renew({"e-1": task.owner}).cancels == {"e-1": 1}
        assert other.take("e-1", same_consumer=False) is None
        for index in (1, 2, 3):
            record(stream, task, index, attempt=2 if index == 1 else 1)
        [*_, total] = admin.results()
        assert [total[name] for name in ("kind", "reason", "succeeded", "failed", "cancelled")] == [
            "task", "Error", "4", "1", "0"
        ]  # fmt: skip
        assert total["received_at"] == task.received_at

    def test_can_be_taken_over_later(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """As any other task; the tenure goes on from where it was."""
        task, after = self.restored(stream, admin)
        taken = taken_over(other, admin, task)
        assert (taken.owner, taken.workers) == ("c2/boot-1/2", after.workers)

    def test_keeps_which_drain_spared_which_worker(self, stream: Stream, admin: StreamAdmin) -> None:
        """Such a worker has started in spite of them, and stays a survivor of each."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        admin.flush()
        spared = StoredWorker(1, attempt=1, spared=("d-1", "d-2"))
        stream.restore(replace(task, workers={1: spared, 2: StoredWorker(2, attempt=1)}))
        after = reloaded(stream, "e-1").workers
        assert (after[1].spared, after[2].spared) == (("d-1", "d-2"), ())

    def test_of_a_known_task_changes_nothing(self, stream: Stream, admin: StreamAdmin) -> None:
        """Somebody has taken it up from its pods meanwhile, or the answer was lost and this is the second time."""
        task, after = self.restored(stream, admin)
        stream.restore(replace(task, owner="c9/boot/7", workers={}))
        assert reloaded(stream, "e-1") == after

    def test_of_a_scale_down_keeps_its_victims(self, stream: Stream, admin: StreamAdmin) -> None:
        """Chosen once stays chosen."""
        opened(stream, admin, event_id="e-1", pod_count="2")
        task = opened(stream, admin, event_id="d-1", type="scale_down", pod_count="1")
        choice = Choice([Victim("e-1", 2, "pod-2")], ["pod-1"])
        assert stream.choose("d-1", task.owner, claim(*choice.victims, spared=choice.survivors)) == choice
        before = reloaded(stream, "d-1")
        admin.flush()
        stream.restore(before)
        assert reloaded(stream, "d-1") == before
        assert stream.choose("d-1", task.owner, claim(Victim("e-9", 9))) == choice

    def test_of_what_has_still_to_choose_keeps_its_turn(self, stream: Stream, admin: StreamAdmin) -> None:
        """Younger choices wait for it as before; not for one that had chosen."""
        tasks = [opened(stream, admin, event_id=f"d-{number}", type="scale_down", pod_count="1") for number in (1, 2)]
        younger = opened(stream, admin, event_id="d-3", type="scale_down", pod_count="1")
        stream.choose("d-1", tasks[0].owner, claim())
        before = [reloaded(stream, name) for name in ("d-1", "d-2", "d-3")]
        admin.flush()
        stream.ensure_group()
        for task in before:
            stream.restore(task)
        assert stream.blocker(younger.event.stream_id) == Blocker("d-2", tasks[1].owner)


class TestKnowing:
    """What anybody may ask: reload, tasks, known, outcomes, now."""

    def test_reload_shows_a_task_of_any_owner(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """The same as its owner has, and the owner's token."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        seen = reloaded(other, "e-1")
        assert (seen.owner, seen.event, seen.workers[1].attempt) == (task.owner, task.event, 1)

    def test_reload_shows_open_tasks_only(self, stream: Stream, admin: StreamAdmin) -> None:
        """None for a finished one and for one nobody heard of."""
        record(stream, opened(stream, admin, event_id="e-1"))
        assert stream.reload("e-1") is None
        assert stream.reload("never") is None

    def test_tasks_shows_open_scale_ups_of_all(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Victims are chosen among these, whoever owns them."""
        first = opened(stream, admin, event_id="e-1", pod_count="2")
        intend(stream, first, 2)
        second = opened(other, admin, event_id="e-2")
        opened(stream, admin, type="scale_down", task_id="e-1", event_id="d-1")
        record(stream, opened(stream, admin, event_id="e-3"))
        views = {view.event.event_id: view for view in other.tasks()}
        assert set(views) == {"e-1", "e-2"}
        assert (views["e-1"].owner, views["e-2"].owner) == (first.owner, second.owner)
        assert dict(views["e-1"].workers) == {2: StoredWorker(2, attempt=1)}

    def test_known_distinguishes_finished_from_unknown(self, stream: Stream, admin: StreamAdmin) -> None:
        """The reconciler may delete a pod of the first and has to take up one of the second."""
        record(stream, opened(stream, admin, event_id="e-1"))
        opened(stream, admin, event_id="e-2")
        known = stream.known(["e-1", "e-2", "never"])
        assert {event_id: state for event_id, (state, _) in known.items()} == {"e-1": "finished", "e-2": "waiting"}
        assert known["e-1"][1][1].outcome == "succeeded"
        assert stream.known([]) == {}

    def test_outcomes_are_returned_in_the_order_asked(self, stream: Stream, admin: StreamAdmin) -> None:
        """None only where the task is unknown."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task, 2)
        asked = [Victim("never", 1), Victim("e-1", 2, "pod"), Victim("e-1", 1)]
        assert stream.outcomes(asked) == [None, StoredWorker(2, outcome="succeeded"), StoredWorker(1)]
        assert stream.outcomes([]) == []

    def test_an_empty_token_is_no_secret(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Ownership is the token, not the connection: another stream of ours may write with it."""
        task = opened(stream, admin, event_id="e-1")
        assert intend(other, owned_by(task, task.owner)).status is Status.OK
