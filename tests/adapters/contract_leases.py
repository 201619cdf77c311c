"""The contract of `ports.Leases`: renewals, take-overs, poison, and what is stored again after a wipe.

All implementations run it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import BlockingEvent, Victim, VictimSelection
from ottoscaler.errors import RedisUnavailable
from ottoscaler.ports import OpenTask, RedisPorts, ScriptStatus, StoredWorker
from tests.adapters.streams import (
    LATE_ID,
    StreamAdmin,
    StreamFactory,
    accept,
    cancel,
    claim,
    event_of,
    intend,
    note_logs,
    opened,
    owned_by,
    receive,
    record,
    reloaded,
    send,
    taken_over,
)
from tests.fakes.wait import eventually

__all__ = [
    "TestAdopting",
    "TestKnown",
    "TestLeases",
    "TestNotAfter",
    "TestPoison",
    "TestRestart",
    "TestRestoring",
    "TestTakingOver",
]

#: `accept` is the first try, each take-over one more; at ten the event counts as poison.
TAKES_TO_POISON = 9

Write = Callable[[RedisPorts, str, str], object]
_TERMINATION = Termination(EndReason.PENDING_TIMEOUT, "late", 1)
#: Every write that shows an owner token, with the answer for one that is not the owner.
WRITES: dict[str, Write] = {
    "store_attempt": lambda s, e, o: s.store_attempt(e, o, 1, attempt=1, infra_used=0, pod="p").status,
    "store_refusal": lambda s, e, o: s.store_refusal(e, o, 1, 1).status,
    "mark_pod_seen": lambda s, e, o: s.mark_pod_seen(e, o, 1, 1).status,
    "store_termination": lambda s, e, o: s.store_termination(e, o, 1, _TERMINATION).status,
    "clear_termination": lambda s, e, o: s.clear_termination(e, o, 1, _TERMINATION).status,
    "record_result": lambda s, e, o: (
        s.record_result(e, o, 1, attempt=1, fields={"outcome": "succeeded", "reason": "x"}).status
    ),
    "finish": lambda s, e, o: s.finish(e, o, {"kind": "scale_down"}).status,
}


class TestLeases:
    """renew, release, expired: which replica holds a task, and for how long."""

    def test_run_out_in_time(self, stream_factory: StreamFactory, admin: StreamAdmin) -> None:
        """By the server's clock, and then any replica may have the task."""
        stream, other = stream_factory("c1", lease_s=0.2), stream_factory("c2")
        stream.ensure_group()
        task = opened(stream, admin)
        assert other.expired(same_consumer=False) == []
        expired = eventually(lambda: other.expired(same_consumer=False), what="the lease to run out")
        assert expired == [task.event.event_id]

    def test_are_extended_by_the_owner(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """Even one that ran out, as long as no replica took the task."""
        task = opened(stream, admin, event_id="e-1")
        admin.expire_lease("e-1")
        assert stream.renew({"e-1": task.owner}).lost == {}
        assert other.expired(same_consumer=False) == []
        assert other.take_over("e-1", same_consumer=False) is None

    @pytest.mark.parametrize("ahead_s", [1.0, 4200.0])
    def test_outlive_a_clock_that_is_set_back_by_one_lease(
        self, stream: RedisPorts, stream_factory: StreamFactory, admin: StreamAdmin, ahead_s: float
    ) -> None:
        """A live replica renews it meanwhile; the tasks of a dead one do not wait for the clock."""
        other = stream_factory("c2", lease_s=0.3 if ahead_s > 1 else 15)
        opened(stream, admin, event_id="e-1")
        admin.postpone_lease("e-1", ahead_s)
        assert other.expired(same_consumer=False) == []
        assert other.take_over("e-1", same_consumer=False) is None
        if ahead_s > 1:
            eventually(lambda: other.expired(same_consumer=False) == ["e-1"], what="the lease to run out")
            assert other.take_over("e-1", same_consumer=False) is not None

    def test_are_those_of_all_that_have_an_owner(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A user has removed the set of open tasks: after the next renewal they can be taken over again."""
        task = opened(stream, admin, event_id="e-1")
        admin.close_to_others("e-1")
        assert stream.renew({"e-1": task.owner}).lost == {}
        assert admin.open_ids() == {"e-1"}
        assert taken_over(other, admin, task) is not None

    def test_of_another_owner_are_reported_as_lost(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """With the new owner's name, for the log."""
        task = opened(stream, admin, event_id="e-1")
        taken = taken_over(other, admin, task)
        admin.expire_lease("e-1")
        renewal = stream.renew({"e-1": task.owner})
        assert (renewal.lost, renewal.cancel_counts) == ({"e-1": taken.owner}, {})
        assert other.expired(same_consumer=False) == ["e-1"]

    def test_of_tasks_that_are_gone_are_not_reported_as_lost(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Finished ones have no owner; unknown ones were forgotten; renewing opens nothing."""
        done = opened(stream, admin, event_id="e-1")
        record(stream, done)
        renewal = stream.renew({"e-1": done.owner, "never": "c1/boot-1/1"})
        assert (renewal.lost, renewal.forgotten) == ({"e-1": ""}, ["never"])
        assert admin.open_ids() == set()

    def test_are_renewed_for_many_at_once(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Each with its own answer."""
        tasks = [opened(stream, admin) for _ in range(3)]
        owners = {task.event.event_id: task.owner for task in tasks[:2]} | {tasks[2].event.event_id: "c9/boot/1"}
        renewal = stream.renew(owners)
        assert set(renewal.cancel_counts) == {task.event.event_id for task in tasks[:2]}
        assert renewal.lost == {tasks[2].event.event_id: tasks[2].owner}

    def test_of_nothing_is_nothing(self, stream: RedisPorts) -> None:
        """An idle process renews as well."""
        renewal = stream.renew({})
        assert (dict(renewal.lost), dict(renewal.cancel_counts), renewal.replaced) == ({}, {}, False)
        stream.release({})

    @pytest.mark.contract("2.REDIS_CONSUMER")
    def test_report_another_process_of_that_name(self, stream_factory: StreamFactory) -> None:
        """The one that was started last is the consumer, also after Redis was asked by the other."""
        older, newer = stream_factory("c1", incarnation="boot-1"), stream_factory("c1", incarnation="boot-2")
        older.announce()
        assert not older.renew({}).replaced
        newer.announce()
        assert older.renew({}).replaced
        assert not newer.renew({}).replaced
        assert older.renew({}).replaced

    def test_are_no_sign_of_another_process_after_a_wipe(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A process that is there stays there; another consumer is another process."""
        stream.announce()
        other.announce()
        admin.flush()
        assert (stream.renew({}).replaced, other.renew({}).replaced) == (False, False)

    def test_report_stored_cancels(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The owner learns by its renewal that another replica cancelled something."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        assert stream.renew({"e-1": task.owner}).cancel_counts == {"e-1": 0}
        other.store_termination("e-1", None, 2, cancel())
        assert stream.renew({"e-1": task.owner}).cancel_counts == {"e-1": 1}

    def test_are_given_up_at_once_at_the_stop(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The next replica goes on without waiting."""
        task = opened(stream, admin, event_id="e-1")
        stream.release({"e-1": task.owner})
        assert other.expired(same_consumer=False) == ["e-1"]
        assert other.take_over("e-1", same_consumer=False) is not None

    def test_are_given_up_by_their_owner_only(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """A process that was replaced cannot give away what it lost."""
        task = opened(stream, admin, event_id="e-1")
        other.release({"e-1": "c2/boot-1/1", "never": "c2/boot-1/1"})
        assert other.expired(same_consumer=False) == []
        assert stream.mark_pod_seen("e-1", task.owner, 1, 1).status is ScriptStatus.OK


class TestNotAfter:
    """renew: workers that have not started by the event's not_after are marked, by the clock of Redis."""

    def test_marks_once_what_has_no_end_yet(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A result stays, and so does why a pod is being ended already; a mark that was cleared does not come back."""
        task = opened(stream, admin, event_id="e-1", pod_count="4", not_after="2999-01-01T00:00:00Z")
        intend(stream, task, 1)
        record(stream, task, 1)
        intend(stream, task, 2)
        stream.store_termination("e-1", task.owner, 2, _TERMINATION)
        stream.store_termination("e-1", None, 3, cancel())
        before = stream.renew({"e-1": task.owner})
        assert before.left_s["e-1"] > 86_400
        assert before.cancel_counts == {"e-1": 1}
        admin.set_not_after("e-1", 1.5)
        after = stream.renew({"e-1": task.owner})
        assert (after.cancel_counts, after.left_s) == ({"e-1": 2}, {})
        workers = reloaded(stream, "e-1").workers
        assert workers[1].termination is None
        assert workers[2].termination == _TERMINATION
        assert workers[3].termination == cancel()
        marked = workers[4].termination
        assert marked is not None
        assert (marked.reason, marked.is_cancel, marked.only_before_start) == (EndReason.NOT_AFTER, True, True)
        stream.clear_termination("e-1", task.owner, 4, marked)
        assert stream.renew({"e-1": task.owner}).cancel_counts == {"e-1": 2}
        assert reloaded(stream, "e-1").workers.get(4, StoredWorker(4)).termination is None

    def test_others_have_no_time(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Nothing is left of what is not there."""
        task = opened(stream, admin, event_id="e-1")
        assert stream.renew({"e-1": task.owner, "never": "c1/boot-1/1"}).left_s == {}

    def test_only_the_owner_marks(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Another's renewal finds that it is not the owner."""
        opened(stream, admin, event_id="e-1", not_after="2001-01-01T00:00:00Z")
        assert stream.renew({"e-1": "c1/other/1"}).cancel_counts == {}
        assert reloaded(stream, "e-1").workers == {}

    def test_comes_back_with_a_task_that_is_stored_again(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """After Redis was wiped."""
        task = opened(stream, admin, event_id="e-1", not_after="2001-01-01T00:00:00Z")
        admin.flush()
        stream.ensure_group()
        stream.restore(task)
        assert stream.renew({"e-1": task.owner}).cancel_counts == {"e-1": 1}


class TestTakingOver:
    """take: a task changes hands when its lease has run out."""

    def test_raises_the_epoch(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The token names consumer, incarnation and epoch."""
        task = opened(stream, admin, event_id="e-1")
        assert taken_over(other, admin, task).owner == "c2/boot-1/2"
        assert admin.task("e-1")["owner"] == "c2/boot-1/2"

    def test_is_refused_while_the_lease_runs(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """No replica takes a task from a live one, and a fresh take-over is a fresh lease."""
        task = opened(stream, admin, event_id="e-1")
        assert other.take_over("e-1", same_consumer=False) is None
        taken_over(other, admin, task)
        assert stream.take_over("e-1", same_consumer=False) is None

    def test_is_returned_again_to_its_owner(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The answer was lost: the same epoch again, and no try more; only its owner finds it among its own."""
        task = opened(stream, admin, event_id="e-1")
        taken = taken_over(other, admin, task)
        again = other.take_over("e-1", same_consumer=False)
        assert again is not None
        assert (again.owner, again.event) == (taken.owner, taken.event)
        assert list(other.owned()) == ["e-1"]
        assert list(stream.owned()) == []

    def test_is_refused_for_what_is_not_open(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Finished or unknown."""
        record(stream, opened(stream, admin, event_id="e-1"))
        assert stream.take_over("e-1", same_consumer=False) is None
        assert stream.take_over("never", same_consumer=True) is None
        assert admin.open_ids() == set()

    def test_brings_all_that_is_stored(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """Attempts, used retries, refusals, terminations and outcomes, by index."""
        task = opened(stream, admin, event_id="e-1", pod_count="5")
        intend(stream, task, 1, attempt=2, infra_used=1)
        intend(stream, task, 2)
        stream.store_refusal("e-1", task.owner, 2, 1)
        stream.store_termination("e-1", None, 3, cancel())
        record(stream, task, 4)
        taken = taken_over(other, admin, task)
        assert dict(taken.workers) == {
            1: StoredWorker(1, attempt=2, infra_used=1),
            2: StoredWorker(2, attempt=1, create_refused=True),
            3: StoredWorker(3, termination=cancel()),
            4: StoredWorker(4, outcome="succeeded", reason="Completed"),
        }
        assert (taken.event, taken.received_at, taken.cancel_count) == (task.event, task.received_at, 1)

    @pytest.mark.parametrize("write", WRITES)
    def test_ends_the_old_owners_rights(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin, write: str
    ) -> None:
        """A thread that was paused too long finds out at its next script."""
        task = opened(stream, admin, event_id="e-1")
        taken_over(other, admin, task)
        assert WRITES[write](stream, "e-1", task.owner) is ScriptStatus.NOT_OURS
        assert (admin.results(), admin.open_ids()) == ([], {"e-1"})

    @pytest.mark.parametrize("write", WRITES)
    def test_of_an_unknown_task_never_happened(self, stream: RedisPorts, write: str) -> None:
        """After FLUSHALL no write makes half a task; its owner is to wait until it is restored, not to let go."""
        with pytest.raises(RedisUnavailable, match="FORGOTTEN the task of event never is unknown"):
            WRITES[write](stream, "never", "c1/boot-1/1")
        assert stream.known_tasks(["never"]) == {}

    def test_within_one_process_names_its_threads(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """An old thread of the same process cannot pass for the new owner: the epoch differs."""
        task = opened(stream, admin, event_id="e-1")
        taken = taken_over(stream, admin, task)
        assert taken.owner == "c1/boot-1/2"
        assert intend(stream, task).status is ScriptStatus.NOT_OURS
        assert intend(stream, taken).status is ScriptStatus.OK

    def test_lets_the_new_owner_go_on(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """With the new token everything works, and the result is the task's only one."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task, 1)
        taken = taken_over(other, admin, task)
        assert record(other, taken, 2).status is ScriptStatus.OK
        assert record(stream, task, 2).status is ScriptStatus.KNOWN
        assert [result["outcome"] for result in admin.results("task")] == ["succeeded"]


class TestRestart:
    """A new incarnation of the same consumer."""

    def test_takes_its_own_tasks_at_once(
        self, stream_factory: StreamFactory, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """However long the lease still runs: the earlier incarnation is dead or learns it at its renewal."""
        opened(stream, admin, event_id="e-1")
        again = stream_factory("c1", incarnation="boot-2")
        assert again.expired(same_consumer=True) == ["e-1"]
        taken = again.take_over("e-1", same_consumer=True)
        assert taken is not None
        assert taken.owner == "c1/boot-2/2"

    def test_ends_the_earlier_boots_rights(
        self, stream_factory: StreamFactory, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """The replaced process sees at its renewal which one has replaced it."""
        task = opened(stream, admin, event_id="e-1")
        stream_factory("c1", incarnation="boot-2").take_over("e-1", same_consumer=True)
        assert intend(stream, task).status is ScriptStatus.NOT_OURS
        assert stream.renew({"e-1": task.owner}).lost == {"e-1": "c1/boot-2/2"}

    def test_takes_them_only_when_it_means_to(
        self, stream_factory: StreamFactory, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """In the ordinary round, a task of the earlier incarnation is one like any other."""
        opened(stream, admin, event_id="e-1")
        assert stream_factory("c1", incarnation="boot-2").take_over("e-1", same_consumer=False) is None

    def test_does_not_take_from_itself(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The same incarnation is no earlier one: it has what it has, in the epoch it had."""
        task = opened(stream, admin, event_id="e-1")
        assert stream.expired(same_consumer=True) == []
        again = stream.take_over("e-1", same_consumer=True)
        assert again is not None
        assert again.owner == task.owner == admin.task("e-1")["owner"]

    @pytest.mark.parametrize(
        ("mine", "theirs"),
        [
            ("c1", "c1-blue"), ("c1", "c1/blue"), ("c1", "c1/boot-1"), ("c1", "c1/boot-1/1"), ("c1/a", "c1/a/a"),
            ("c1/blue", "c1"), ("c1/", "c1"), ("c1", "c1/"), ("c1", "a/c1"), ("%a", "c1"), ("c.", "c1"), ("c1", "C1"),
        ],
    )  # fmt: skip
    @pytest.mark.contract("2.REDIS_CONSUMER")
    def test_leaves_the_tasks_of_others(
        self, stream_factory: StreamFactory, admin: StreamAdmin, mine: str, theirs: str
    ) -> None:
        """Names are compared whole: also a name that begins or ends like its own, or that a pattern would fit."""
        stream = stream_factory(theirs)
        stream.ensure_group()
        task = opened(stream, admin, event_id="e-1")
        for incarnation in ("boot-1", "boot-2"):
            other = stream_factory(mine, incarnation=incarnation)
            assert other.expired(same_consumer=True) == []
            assert other.owned() == []
            assert other.take_over("e-1", same_consumer=True) is None
            assert other.take_over("e-1", same_consumer=False) is None
        assert stream.owned() == ["e-1"]
        assert intend(stream, task).status is ScriptStatus.OK


class TestPoison:
    """An event that the controller fails on time and again ends by itself."""

    @staticmethod
    def take_often(stream: RedisPorts, admin: StreamAdmin, event_id: str, times: int = TAKES_TO_POISON) -> OpenTask:
        """Take a task this many times, without any progress; returns it as last taken, once more if buried."""
        taken: OpenTask | BadEvent | None = None
        for _ in range(times):
            admin.expire_lease(event_id)
            taken = stream.take_over(event_id, same_consumer=False)
        if isinstance(taken, BadEvent):
            taken = stream.take_over(event_id, same_consumer=False)
        assert isinstance(taken, OpenTask)
        return taken

    @pytest.mark.contract("5.Poison")
    def test_cancels_each_unfinished_worker(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Live pods are ended by intent; what is recorded then says Poison."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task, 1)
        taken = self.take_often(stream, admin, "e-1", 10)
        worker = taken.workers[2]
        assert worker.termination is not None
        assert (worker.termination.reason, worker.termination.attempt, taken.workers[1].termination) == (
            EndReason.POISON,
            0,
            None,
        )
        assert record(stream, taken, 2, attempt=0, reason=EndReason.ERROR).status is ScriptStatus.OK
        assert [result["reason"] for result in admin.results("task")] == ["Poison"]

    def test_leaves_one_dead_letter(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """However often it is taken up after that."""
        sent = send(admin, event_id="e-1")
        task = stream.accept([(event_of(entry := receive(stream)), "digest")], [entry.fields or {}])[0]
        assert task is not None
        self.take_often(stream, admin, "e-1", TAKES_TO_POISON + 2)
        [letter] = admin.dead_letters()
        expected = {"dead_reason": "Poison", "event_id": "e-1", "stream_id": sent, "attempts": "10"}
        assert expected.items() <= letter.items()

    @pytest.mark.contract("5.Poison")
    def test_of_a_scale_down_ends_it_at_once(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It has no pods of its own: its result says Poison, once, and no replica can take it any more."""
        opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1", repository="a/b")
        self.take_often(stream, admin, "d-1", TAKES_TO_POISON - 1)
        admin.expire_lease("d-1")
        assert isinstance(stream.take_over("d-1", same_consumer=False), BadEvent)
        assert stream.take_over("d-1", same_consumer=False) is None
        [result] = admin.results()
        expected = {"kind": "scale_down", "event_id": "d-1", "task_id": "t-1", "reason": "Poison", "repository": "a/b"}
        assert expected.items() <= result.items()
        assert ([letter["dead_reason"] for letter in admin.dead_letters()], admin.open_ids()) == (["Poison"], set())

    @pytest.mark.contract("5.Poison")
    def test_of_a_scale_down_names_the_chosen_victims(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Those that it has marked do end, so its producer has to be notified of them."""
        opened(stream, admin, event_id="e-1", pod_count="3")
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1")
        asked = claim(Victim("e-1", 2, "p-2"), Victim("e-1", 1, "p-1"), Victim("e-1", 3, "p-3"), count=2)
        assert isinstance(stream.select_victims("d-1", task.owner, asked), VictimSelection)
        for _ in range(TAKES_TO_POISON + 1):  # one more: the choice was progress
            admin.expire_lease("d-1")
            stream.take_over("d-1", same_consumer=False)
        [result] = admin.results()
        found = (json.loads(result["victims"]), json.loads(result["survivors"]), result["pod_count"], result["reason"])
        assert found == (["p-2", "p-1"], ["p-3"], "2", "Poison")

    def test_is_no_task_that_is_handed_over_often(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A roll-out is no failure, however many there are."""
        task: OpenTask | None = opened(stream, admin, event_id="e-1")
        for _ in range(TAKES_TO_POISON + 1):
            assert task is not None
            stream.release({"e-1": task.owner})
            task = other.take_over("e-1", same_consumer=False)
            stream, other = other, stream
        assert task is not None
        assert (task.workers, admin.dead_letters()) == ({}, [])

    def test_needs_ten_tries(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Nine are bad luck."""
        opened(stream, admin, event_id="e-1")
        taken = self.take_often(stream, admin, "e-1", TAKES_TO_POISON - 1)
        assert (dict(taken.workers), admin.dead_letters()) == ({}, [])

    def test_is_no_task_that_only_runs(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """However often its controllers die, and however soon: each had it at rest before."""
        task: OpenTask = opened(stream, admin, event_id="e-1")
        for _ in range(3 * TAKES_TO_POISON):
            stream.renew({"e-1": task.owner})
            task = self.take_often(stream, admin, "e-1", 1)
        assert admin.dead_letters() == []

    def test_is_a_task_that_its_owners_were_at_work_on(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """To have renewed its lease proves nothing then."""
        task: OpenTask = opened(stream, admin, event_id="e-1")
        for _ in range(TAKES_TO_POISON - 1):
            stream.renew({"e-1": task.owner}, {"e-1"})
            task = self.take_often(stream, admin, "e-1", 1)
        admin.expire_lease("e-1")
        assert isinstance(stream.take_over("e-1", same_consumer=False), BadEvent)

    def test_is_no_task_of_a_process_that_died_over_what_it_read(
        self, stream_factory: StreamFactory, admin: StreamAdmin
    ) -> None:
        """An entry is tried ten times before anything other than it is blamed, whichever replica takes the tasks."""
        first = stream_factory("c1")
        first.ensure_group()
        opened(first, admin, event_id="e-1")
        send(admin, event_id="deadly")
        receive(first)
        for incarnation in range(2 * TAKES_TO_POISON):
            again = stream_factory("c1", incarnation=f"again-{incarnation}")
            again.announce()
            again.renew({})
            assert isinstance(again.take_over("e-1", same_consumer=True), OpenTask)
        other = stream_factory("c2")
        admin.expire_lease("e-1")
        taken = other.take_over("e-1", same_consumer=False)
        assert isinstance(taken, OpenTask)
        assert admin.dead_letters() == []

    def test_is_a_task_whatever_its_new_owner_has_read(
        self, stream_factory: StreamFactory, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """What counts is what the process before had read when it died."""
        opened(stream, admin, event_id="e-1")
        self.take_often(stream, admin, "e-1", TAKES_TO_POISON - 1)
        again = stream_factory("c1", incarnation="again")
        again.announce()
        send(admin, event_id="just-read")
        receive(again)
        assert isinstance(again.take_over("e-1", same_consumer=True), BadEvent)

    @pytest.mark.parametrize("progress", ["store_attempt", "record_result", "release"])
    def test_progress_restarts_the_count(self, stream: RedisPorts, admin: StreamAdmin, progress: str) -> None:
        """Stored progress and a clean hand-over show that it is not the event."""
        opened(stream, admin, event_id="e-1", pod_count="2")
        taken = self.take_often(stream, admin, "e-1", TAKES_TO_POISON - 1)
        steps: dict[str, Callable[[], object]] = {
            "store_attempt": lambda: intend(stream, taken),
            "record_result": lambda: record(stream, taken),
            "release": lambda: stream.release({"e-1": taken.owner}),
        }
        steps[progress]()
        self.take_often(stream, admin, "e-1", TAKES_TO_POISON)
        assert admin.dead_letters() == []

    def test_is_reported_by_the_writer_of_the_dead_letter_and_taken_at_once(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Before anything is read of the task, which may be what goes wrong; its pods are left to be ended."""
        opened(stream, admin, event_id="e-1")
        self.take_often(stream, admin, "e-1", TAKES_TO_POISON - 1)
        admin.expire_lease("e-1")
        dead = other.take_over("e-1", same_consumer=False)
        assert isinstance(dead, BadEvent)
        assert (dead.reason, dead.detail, dead.event_id) == (
            DeadReason.POISON,
            admin.dead_letters()[0]["dead_detail"],
            "e-1",
        )
        assert other.expired(same_consumer=False) == ["e-1"]
        assert isinstance(stream.take_over("e-1", same_consumer=False), OpenTask)

    @pytest.mark.contract("5.exactly-once")
    def test_what_no_process_can_end_is_closed_in_the_end(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """After ten more tries: each worker that has none gets its result, and the task, with what it passes on."""
        task = opened(stream, admin, event_id="e-1", task_id="t-1", pod_count="3", repository="a/b")
        intend(stream, task, 3, attempt=2)
        record(stream, task, 1)
        for _ in range(19):  # its progress took the first try back
            admin.expire_lease("e-1")
            assert stream.take_over("e-1", same_consumer=False) is not None
        admin.expire_lease("e-1")
        assert stream.take_over("e-1", same_consumer=False) is None
        first, *others, total = admin.results()
        assert (first["reason"], first["index"]) == ("Completed", "1")
        assert [(each["index"], each["attempt"], each["reason"]) for each in others] == [
            ("2", "0", "Poison"),
            ("3", "2", "Poison"),
        ]
        for each in others:
            assert each.keys() == first.keys()
            assert (each["outcome"], each["fault"], each["repository"]) == ("failed", "infra", "a/b")
        assert (total["kind"], total["outcome"], total["reason"], total["failed"]) == ("task", "failed", "Poison", "2")
        assert (admin.open_ids(), len(admin.dead_letters())) == (set(), 1)
        assert admin.task("e-1")["state"] == "finished"

    def test_a_worker_that_is_recorded_as_poison_makes_a_dead_letter(
        self, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Our own code failed on it again and again: once for the event; the caller that records it learns of it."""
        sent = send(admin, event_id="e-1", pod_count="2")
        task = accept(stream, receive(stream))
        assert isinstance(task, OpenTask)
        answers = [record(stream, task, index, attempt=0, reason=EndReason.POISON) for index in (1, 2)]
        assert [answer.dead_letter_detail for answer in answers] == ["ended as Poison", ""]
        [letter] = admin.dead_letters()
        assert (letter["dead_reason"], letter["stream_id"]) == ("Poison", sent)
        assert json.loads(letter["event"]) == {"type": "scale_up", "event_id": "e-1", "pod_count": "2"}


class TestAdopting:
    """adopt: a task is stored again from its pods, after Redis was wiped."""

    @staticmethod
    def adopted(stream: RedisPorts, admin: StreamAdmin) -> OpenTask:
        """A task of three that was wiped; worker 2 had a pod of attempt 3."""
        task = opened(stream, admin, event_id="e-1", pod_count="3")
        admin.flush()
        stream.rebuild_from_pods(task.event, {2: 3})
        return task

    def test_lets_anybody_take_the_task(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """Its lease has run out already."""
        task = self.adopted(stream, admin)
        assert other.expired(same_consumer=False) == ["e-1"]
        taken = other.take_over("e-1", same_consumer=False)
        assert taken is not None
        assert taken.event == task.event

    def test_goes_on_with_the_attempts_that_were_seen(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """An index without a pod has no retries left: what it did is not known."""
        self.adopted(stream, admin)
        taken = stream.take_over("e-1", same_consumer=False)
        assert taken is not None
        assert taken.workers[2] == StoredWorker(2, attempt=3, pod_was_seen=True)
        lost = [taken.workers[index] for index in (1, 3)]
        assert [worker.attempt for worker in lost] == [1, 1]
        assert all(worker.infra_used > 10 and worker.pod_was_seen for worker in lost)

    def test_again_changes_nothing(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A known task is not stored again: it may have gone on meanwhile."""
        task = self.adopted(stream, admin)
        taken = stream.take_over("e-1", same_consumer=False)
        stream.rebuild_from_pods(task.event, {1: 7})
        assert taken is not None
        assert stream.mark_pod_seen("e-1", taken.owner, 1, 1).status is ScriptStatus.OK
        assert reloaded(stream, "e-1").workers[1].attempt == 1

    def test_the_event_sent_again_is_known(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Its content is not remembered exactly, so it must not count as a conflict."""
        self.adopted(stream, admin)
        stream.ensure_group()
        admin.add({"type": "scale_up", "event_id": "e-1", "pod_count": "3"}, LATE_ID)
        assert accept(stream, receive(stream)) is None
        assert (admin.dead_letters(), admin.results(), admin.pending_count()) == ([], [], 0)

    def test_the_results_come_as_usual(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Three workers, then the task's."""
        taken = taken_over(stream, admin, self.adopted(stream, admin))
        for index, attempt in ((1, 1), (2, 3), (3, 1)):
            record(stream, taken, index, attempt=attempt)
        assert [result["kind"] for result in admin.results()] == ["worker"] * 3 + ["task"]


class TestRestoring:
    """restore: the living owner stores a task again, after Redis was wiped."""

    @staticmethod
    def restored(stream: RedisPorts, admin: StreamAdmin) -> tuple[OpenTask, OpenTask]:
        """A task of five, each worker standing elsewhere, before the wipe and after it."""
        task = opened(stream, admin, event_id="e-1", pod_count="5")
        intend(stream, task, 1, attempt=2, infra_used=1, oom_kills=1)
        intend(stream, task, 2)
        stream.store_refusal("e-1", task.owner, 2, 1)
        stream.store_termination("e-1", None, 3, cancel())
        for index, reason in ((4, EndReason.ERROR), (5, EndReason.COMPLETED)):
            record(stream, task, index, reason=reason)
        note_logs(stream, "e-1", task.owner, {1: "seen-1", 4: "seen-4"})
        before = reloaded(stream, "e-1")
        assert {index for index, worker in before.workers.items() if worker.log_progress} == {1, 4}
        admin.flush()
        stream.restore(before)
        return before, reloaded(stream, "e-1")

    def test_brings_back_all_that_was_known(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Owner, attempts, refusals, terminations and outcomes; nothing is published again."""
        before, after = self.restored(stream, admin)
        assert after == before
        assert admin.results() == []

    def test_the_owner_goes_on(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """Its token is good, its lease runs, and the task's result counts what was recorded before the wipe."""
        task, _ = self.restored(stream, admin)
        assert stream.renew({"e-1": task.owner}).cancel_counts == {"e-1": 1}
        assert other.take_over("e-1", same_consumer=False) is None
        for index in (1, 2, 3):
            record(stream, task, index, attempt=2 if index == 1 else 1)
        [*_, total] = admin.results()
        assert [total[name] for name in ("kind", "reason", "succeeded", "failed", "cancelled")] == [
            "task", "Error", "4", "1", "0"
        ]  # fmt: skip
        assert total["received_at"] == task.received_at

    def test_can_be_taken_over_later(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """As any other task; the epoch goes on from where it was."""
        task, after = self.restored(stream, admin)
        taken = taken_over(other, admin, task)
        assert (taken.owner, taken.workers) == ("c2/boot-1/2", after.workers)

    def test_keeps_which_drain_spared_which_worker(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Such a worker has started in spite of them, and stays a survivor of each."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        admin.flush()
        spared = StoredWorker(1, attempt=1, spared_by=("d-1", "d-2"))
        stream.restore(replace(task, workers={1: spared, 2: StoredWorker(2, attempt=1)}))
        after = reloaded(stream, "e-1").workers
        assert (after[1].spared_by, after[2].spared_by) == (("d-1", "d-2"), ())

    def test_of_a_known_task_changes_nothing(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A replica has taken it up from its pods meanwhile, or the answer was lost and this is the second time."""
        task, after = self.restored(stream, admin)
        stream.restore(replace(task, owner="c9/boot/7", workers={}))
        assert reloaded(stream, "e-1") == after

    def test_of_a_scale_down_keeps_its_victims(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Chosen once stays chosen."""
        opened(stream, admin, event_id="e-1", pod_count="2")
        task = opened(stream, admin, event_id="d-1", type="scale_down", pod_count="1")
        selection = VictimSelection([Victim("e-1", 2, "pod-2")], ["pod-1"])
        assert (
            stream.select_victims("d-1", task.owner, claim(*selection.victims, spared=selection.survivors)) == selection
        )
        before = reloaded(stream, "d-1")
        admin.flush()
        stream.restore(before)
        assert reloaded(stream, "d-1") == before
        assert stream.select_victims("d-1", task.owner, claim(Victim("e-9", 9))) == selection

    def test_of_what_has_still_to_choose_keeps_its_turn(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Younger choices wait for it as before; not for one that had chosen."""
        tasks = [opened(stream, admin, event_id=f"d-{number}", type="scale_down", pod_count="1") for number in (1, 2)]
        younger = opened(stream, admin, event_id="d-3", type="scale_down", pod_count="1")
        stream.select_victims("d-1", tasks[0].owner, claim())
        before = [reloaded(stream, name) for name in ("d-1", "d-2", "d-3")]
        admin.flush()
        stream.ensure_group()
        for task in before:
            stream.restore(task)
        assert stream.blocker(younger.event.stream_id) == BlockingEvent("d-2", tasks[1].owner)


class TestKnown:
    """known: what Redis has of an event; and that every replica may read the owner's token."""

    def test_known_distinguishes_finished_from_unknown(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The reconciler may delete a pod of the first and has to take up one of the second."""
        record(stream, opened(stream, admin, event_id="e-1"))
        opened(stream, admin, event_id="e-2")
        known = stream.known_tasks(["e-1", "e-2", "never"])
        assert {event_id: state for event_id, (state, _) in known.items()} == {"e-1": "finished", "e-2": "waiting"}
        assert known["e-1"][1][1].outcome == "succeeded"
        assert stream.known_tasks([]) == {}

    def test_an_empty_token_is_no_secret(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """Ownership is the token, not the connection: another stream of ours may write with it."""
        task = opened(stream, admin, event_id="e-1")
        assert intend(other, owned_by(task, task.owner)).status is ScriptStatus.OK
