"""The contract of `ports.Stream`, second part: leases, take-overs, what is known. All implementations run it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from ottoscaler.core.choice import Choice, Victim
from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.errors import StreamUnavailable
from ottoscaler.ports import OpenTask, Status, StoredWorker, Stream
from tests.adapters.streams import (
    StreamAdmin,
    StreamFactory,
    accept,
    cancel,
    claim,
    event_of,
    intend,
    opened,
    receive,
    record,
    send,
    taken_over,
)
from tests.fakes.wait import eventually

__all__ = ["TestHandingOver", "TestLeases", "TestPoison", "TestRestart", "TestTakingOver", "TestTidying"]

#: `accept` is the first try, each take-over one more; at ten the event counts as poison.
TAKES_TO_POISON = 9

Write = Callable[[Stream, str, str], object]
_TERMINATION = Termination(Reason.PENDING_TIMEOUT, "late", 1)
#: Every write that shows an owner token, with the answer for one that is not the owner.
WRITES: dict[str, Write] = {
    "intend": lambda s, e, o: s.intend(e, o, 1, attempt=1, infra_used=0, pod="p").status,
    "note_refused": lambda s, e, o: s.note_refused(e, o, 1, 1).status,
    "check": lambda s, e, o: s.check(e, o, 1, 1).status,
    "store_termination": lambda s, e, o: s.store_termination(e, o, 1, _TERMINATION).status,
    "clear_termination": lambda s, e, o: s.clear_termination(e, o, 1, _TERMINATION).status,
    "record": lambda s, e, o: s.record(e, o, 1, attempt=1, fields={"outcome": "succeeded", "reason": "x"}).status,
    "finish": lambda s, e, o: s.finish(e, o, {"kind": "scale_down"}).status,
}


class TestLeases:
    """renew, release, expired: who holds a task, and for how long."""

    def test_run_out_in_time(self, stream_factory: StreamFactory, admin: StreamAdmin) -> None:
        """By the server's clock, and then anybody may have the task."""
        stream, other = stream_factory("c1", lease_s=0.2), stream_factory("c2")
        stream.ensure_group()
        task = opened(stream, admin)
        assert other.expired(same_consumer=False) == []
        expired = eventually(lambda: other.expired(same_consumer=False), what="the lease to run out")
        assert expired == [task.event.event_id]

    def test_are_extended_by_the_owner(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Even one that ran out, as long as nobody took the task."""
        task = opened(stream, admin, event_id="e-1")
        admin.expire_lease("e-1")
        assert stream.renew({"e-1": task.owner}).lost == {}
        assert other.expired(same_consumer=False) == []
        assert other.take("e-1", same_consumer=False) is None

    @pytest.mark.parametrize("ahead_s", [1.0, 4200.0])
    def test_outlive_a_clock_that_is_set_back_by_one_lease(
        self, stream: Stream, stream_factory: StreamFactory, admin: StreamAdmin, ahead_s: float
    ) -> None:
        """Whoever lives renews it meanwhile; the tasks of the dead do not wait for the clock."""
        other = stream_factory("c2", lease_s=0.3 if ahead_s > 1 else 15)
        opened(stream, admin, event_id="e-1")
        admin.postpone_lease("e-1", ahead_s)
        assert other.expired(same_consumer=False) == []
        assert other.take("e-1", same_consumer=False) is None
        if ahead_s > 1:
            eventually(lambda: other.expired(same_consumer=False) == ["e-1"], what="the lease to run out")
            assert other.take("e-1", same_consumer=False) is not None

    def test_are_those_of_all_that_have_an_owner(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Somebody has removed the set of open tasks: with the next renewal they can be taken over again."""
        task = opened(stream, admin, event_id="e-1")
        admin.close_to_others("e-1")
        assert stream.renew({"e-1": task.owner}).lost == {}
        assert admin.open_ids() == {"e-1"}
        assert taken_over(other, admin, task) is not None

    def test_of_another_owner_are_reported_as_lost(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """With the new owner's name, so that the log can tell who has it."""
        task = opened(stream, admin, event_id="e-1")
        taken = taken_over(other, admin, task)
        admin.expire_lease("e-1")
        renewal = stream.renew({"e-1": task.owner})
        assert (renewal.lost, renewal.cancels) == ({"e-1": taken.owner}, {})
        assert other.expired(same_consumer=False) == ["e-1"]

    def test_of_tasks_that_are_gone_are_not_reported_as_lost(self, stream: Stream, admin: StreamAdmin) -> None:
        """Finished ones have no owner; unknown ones were forgotten; renewing opens nothing."""
        done = opened(stream, admin, event_id="e-1")
        record(stream, done)
        renewal = stream.renew({"e-1": done.owner, "never": "c1/boot-1/1"})
        assert (renewal.lost, renewal.forgotten) == ({"e-1": ""}, ["never"])
        assert admin.open_ids() == set()

    def test_are_renewed_for_many_at_once(self, stream: Stream, admin: StreamAdmin) -> None:
        """Each with its own answer."""
        tasks = [opened(stream, admin) for _ in range(3)]
        owners = {task.event.event_id: task.owner for task in tasks[:2]} | {tasks[2].event.event_id: "c9/boot/1"}
        renewal = stream.renew(owners)
        assert set(renewal.cancels) == {task.event.event_id for task in tasks[:2]}
        assert renewal.lost == {tasks[2].event.event_id: tasks[2].owner}

    def test_of_nothing_is_nothing(self, stream: Stream) -> None:
        """An idle process renews as well."""
        renewal = stream.renew({})
        assert (dict(renewal.lost), dict(renewal.cancels), renewal.replaced) == ({}, {}, False)
        stream.release({})

    @pytest.mark.contract("2.REDIS_CONSUMER")
    def test_report_another_process_of_that_name(self, stream_factory: StreamFactory) -> None:
        """The one that was started last is the consumer, also after Redis was asked by the other."""
        older, newer = stream_factory("c1", boot="boot-1"), stream_factory("c1", boot="boot-2")
        older.announce()
        assert not older.renew({}).replaced
        newer.announce()
        assert older.renew({}).replaced
        assert not newer.renew({}).replaced
        assert older.renew({}).replaced

    def test_are_no_sign_of_another_process_after_a_wipe(
        self, stream: Stream, other: Stream, admin: StreamAdmin
    ) -> None:
        """Who is there is there; another consumer is another."""
        stream.announce()
        other.announce()
        admin.flush()
        assert (stream.renew({}).replaced, other.renew({}).replaced) == (False, False)

    def test_report_stored_cancels(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """The owner learns by its renewal that another replica cancelled something."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        assert stream.renew({"e-1": task.owner}).cancels == {"e-1": 0}
        other.store_termination("e-1", None, 2, cancel())
        assert stream.renew({"e-1": task.owner}).cancels == {"e-1": 1}

    def test_are_given_up_at_once_at_the_stop(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """The next replica goes on without waiting."""
        task = opened(stream, admin, event_id="e-1")
        stream.release({"e-1": task.owner})
        assert other.expired(same_consumer=False) == ["e-1"]
        assert other.take("e-1", same_consumer=False) is not None

    def test_are_given_up_by_their_owner_only(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """A process that was replaced cannot give away what it lost."""
        task = opened(stream, admin, event_id="e-1")
        other.release({"e-1": "c2/boot-1/1", "never": "c2/boot-1/1"})
        assert other.expired(same_consumer=False) == []
        assert stream.check("e-1", task.owner, 1, 1).status is Status.OK


class TestTakingOver:
    """take: a task whose lease ran out changes hands."""

    def test_raises_the_tenure(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """The token tells consumer, boot and tenure."""
        task = opened(stream, admin, event_id="e-1")
        assert taken_over(other, admin, task).owner == "c2/boot-1/2"
        assert admin.task("e-1")["owner"] == "c2/boot-1/2"

    def test_is_refused_while_the_lease_runs(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Nobody steals from the living, and a fresh take-over is a fresh lease."""
        task = opened(stream, admin, event_id="e-1")
        assert other.take("e-1", same_consumer=False) is None
        taken_over(other, admin, task)
        assert stream.take("e-1", same_consumer=False) is None

    def test_is_returned_again_to_its_owner(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """The answer was lost: the same tenure again, and no try more; only its owner finds it among his own."""
        task = opened(stream, admin, event_id="e-1")
        taken = taken_over(other, admin, task)
        again = other.take("e-1", same_consumer=False)
        assert again is not None
        assert (again.owner, again.event) == (taken.owner, taken.event)
        assert list(other.owned()) == ["e-1"]
        assert list(stream.owned()) == []

    def test_is_refused_for_what_is_not_open(self, stream: Stream, admin: StreamAdmin) -> None:
        """Finished or never heard of."""
        record(stream, opened(stream, admin, event_id="e-1"))
        assert stream.take("e-1", same_consumer=False) is None
        assert stream.take("never", same_consumer=True) is None
        assert admin.open_ids() == set()

    def test_brings_all_that_is_stored(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Attempts, used retries, refusals, terminations and outcomes, by index."""
        task = opened(stream, admin, event_id="e-1", pod_count="5")
        intend(stream, task, 1, attempt=2, infra_used=1)
        intend(stream, task, 2)
        stream.note_refused("e-1", task.owner, 2, 1)
        stream.store_termination("e-1", None, 3, cancel())
        record(stream, task, 4)
        taken = taken_over(other, admin, task)
        assert dict(taken.workers) == {
            1: StoredWorker(1, attempt=2, infra_used=1),
            2: StoredWorker(2, attempt=1, refused=True),
            3: StoredWorker(3, termination=cancel()),
            4: StoredWorker(4, outcome="succeeded", reason="Completed"),
        }
        assert (taken.event, taken.received_at, taken.cancels) == (task.event, task.received_at, 1)

    @pytest.mark.parametrize("write", WRITES)
    def test_ends_the_old_owners_rights(self, stream: Stream, other: Stream, admin: StreamAdmin, write: str) -> None:
        """A thread that was paused too long finds out at its next script."""
        task = opened(stream, admin, event_id="e-1")
        taken_over(other, admin, task)
        assert WRITES[write](stream, "e-1", task.owner) is Status.NOT_OURS
        assert (admin.results(), admin.open_ids()) == ([], {"e-1"})

    @pytest.mark.parametrize("write", WRITES)
    def test_of_an_unknown_task_never_happened(self, stream: Stream, write: str) -> None:
        """After FLUSHALL no write makes half a task; its owner is to wait until it is restored, not to let go."""
        with pytest.raises(StreamUnavailable, match="FORGOTTEN the task of event never is unknown"):
            WRITES[write](stream, "never", "c1/boot-1/1")
        assert stream.known(["never"]) == {}

    def test_within_one_process_names_its_threads(self, stream: Stream, admin: StreamAdmin) -> None:
        """An old thread of the same process cannot pass for the new owner: the tenure differs."""
        task = opened(stream, admin, event_id="e-1")
        taken = taken_over(stream, admin, task)
        assert taken.owner == "c1/boot-1/2"
        assert intend(stream, task).status is Status.NOT_OURS
        assert intend(stream, taken).status is Status.OK

    def test_lets_the_new_owner_go_on(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """With the new token everything works, and the result is the task's only one."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task, 1)
        taken = taken_over(other, admin, task)
        assert record(other, taken, 2).status is Status.OK
        assert record(stream, task, 2).status is Status.KNOWN
        assert [result["outcome"] for result in admin.results("task")] == ["succeeded"]


class TestRestart:
    """A new boot of the same consumer."""

    def test_takes_its_own_tasks_at_once(
        self, stream_factory: StreamFactory, stream: Stream, admin: StreamAdmin
    ) -> None:
        """However long the lease still runs: the earlier boot is dead or will be told."""
        opened(stream, admin, event_id="e-1")
        again = stream_factory("c1", boot="boot-2")
        assert again.expired(same_consumer=True) == ["e-1"]
        taken = again.take("e-1", same_consumer=True)
        assert taken is not None
        assert taken.owner == "c1/boot-2/2"

    def test_ends_the_earlier_boots_rights(
        self, stream_factory: StreamFactory, stream: Stream, admin: StreamAdmin
    ) -> None:
        """The replaced process sees at its renewal who it was replaced by."""
        task = opened(stream, admin, event_id="e-1")
        stream_factory("c1", boot="boot-2").take("e-1", same_consumer=True)
        assert intend(stream, task).status is Status.NOT_OURS
        assert stream.renew({"e-1": task.owner}).lost == {"e-1": "c1/boot-2/2"}

    def test_takes_them_only_when_it_means_to(
        self, stream_factory: StreamFactory, stream: Stream, admin: StreamAdmin
    ) -> None:
        """In the ordinary round, a task of the earlier boot is one like any other."""
        opened(stream, admin, event_id="e-1")
        assert stream_factory("c1", boot="boot-2").take("e-1", same_consumer=False) is None

    def test_does_not_take_from_itself(self, stream: Stream, admin: StreamAdmin) -> None:
        """The same boot is no earlier one: it has what it has, in the tenure it had."""
        task = opened(stream, admin, event_id="e-1")
        assert stream.expired(same_consumer=True) == []
        again = stream.take("e-1", same_consumer=True)
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
        """Names are compared whole: also of one whose name begins or ends like its own, or that a pattern would fit."""
        stream = stream_factory(theirs)
        stream.ensure_group()
        task = opened(stream, admin, event_id="e-1")
        for boot in ("boot-1", "boot-2"):
            other = stream_factory(mine, boot=boot)
            assert other.expired(same_consumer=True) == []
            assert other.owned() == []
            assert other.take("e-1", same_consumer=True) is None
            assert other.take("e-1", same_consumer=False) is None
        assert stream.owned() == ["e-1"]
        assert intend(stream, task).status is Status.OK


class TestPoison:
    """An event that the controller fails on time and again ends by itself."""

    @staticmethod
    def take_often(stream: Stream, admin: StreamAdmin, event_id: str, times: int = TAKES_TO_POISON) -> OpenTask:
        """Take a task so often, without any progress; returns it as it was taken last, once more if it was buried."""
        taken: OpenTask | BadEvent | None = None
        for _ in range(times):
            admin.expire_lease(event_id)
            taken = stream.take(event_id, same_consumer=False)
        if isinstance(taken, BadEvent):
            taken = stream.take(event_id, same_consumer=False)
        assert isinstance(taken, OpenTask)
        return taken

    @pytest.mark.contract("5.Poison")
    def test_cancels_each_unfinished_worker(self, stream: Stream, admin: StreamAdmin) -> None:
        """Live pods are ended by intent; what is recorded then says Poison."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task, 1)
        taken = self.take_often(stream, admin, "e-1", 10)
        worker = taken.workers[2]
        assert worker.termination is not None
        assert (worker.termination.reason, worker.termination.attempt, taken.workers[1].termination) == (
            Reason.POISON,
            0,
            None,
        )
        assert record(stream, taken, 2, attempt=0, reason=Reason.ERROR).status is Status.OK
        assert [result["reason"] for result in admin.results("task")] == ["Poison"]

    def test_leaves_one_dead_letter(self, stream: Stream, admin: StreamAdmin) -> None:
        """However often it is taken up after that."""
        sent = send(admin, event_id="e-1")
        task = stream.accept([(event_of(entry := receive(stream)), "digest")], [entry.fields or {}])[0]
        assert task is not None
        self.take_often(stream, admin, "e-1", TAKES_TO_POISON + 2)
        [letter] = admin.dead_letters()
        expected = {"dead_reason": "Poison", "event_id": "e-1", "stream_id": sent, "attempts": "10"}
        assert expected.items() <= letter.items()

    @pytest.mark.contract("5.Poison")
    def test_of_a_scale_down_ends_it_at_once(self, stream: Stream, admin: StreamAdmin) -> None:
        """It has no pods of its own: its result says Poison, once, and nobody can take it any more."""
        opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1", repository="a/b")
        self.take_often(stream, admin, "d-1", TAKES_TO_POISON - 1)
        admin.expire_lease("d-1")
        assert isinstance(stream.take("d-1", same_consumer=False), BadEvent)
        assert stream.take("d-1", same_consumer=False) is None
        [result] = admin.results()
        expected = {"kind": "scale_down", "event_id": "d-1", "task_id": "t-1", "reason": "Poison", "repository": "a/b"}
        assert expected.items() <= result.items()
        assert ([letter["dead_reason"] for letter in admin.dead_letters()], admin.open_ids()) == (["Poison"], set())

    @pytest.mark.contract("5.Poison")
    def test_of_a_scale_down_names_the_chosen_victims(self, stream: Stream, admin: StreamAdmin) -> None:
        """Those that it has marked do end, so its producer has to hear of them."""
        opened(stream, admin, event_id="e-1", pod_count="3")
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1")
        asked = claim(Victim("e-1", 2, "p-2"), Victim("e-1", 1, "p-1"), Victim("e-1", 3, "p-3"), count=2)
        assert isinstance(stream.choose("d-1", task.owner, asked), Choice)
        for _ in range(TAKES_TO_POISON + 1):  # one more: the choice was progress
            admin.expire_lease("d-1")
            stream.take("d-1", same_consumer=False)
        [result] = admin.results()
        told = (json.loads(result["victims"]), json.loads(result["survivors"]), result["pod_count"], result["reason"])
        assert told == (["p-2", "p-1"], ["p-3"], "2", "Poison")

    def test_is_no_task_that_is_handed_over_often(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """A roll-out is nobody's failure, however many there are."""
        task: OpenTask | None = opened(stream, admin, event_id="e-1")
        for _ in range(TAKES_TO_POISON + 1):
            assert task is not None
            stream.release({"e-1": task.owner})
            task = other.take("e-1", same_consumer=False)
            stream, other = other, stream
        assert task is not None
        assert (task.workers, admin.dead_letters()) == ({}, [])

    def test_needs_ten_tries(self, stream: Stream, admin: StreamAdmin) -> None:
        """Nine are bad luck."""
        opened(stream, admin, event_id="e-1")
        taken = self.take_often(stream, admin, "e-1", TAKES_TO_POISON - 1)
        assert (dict(taken.workers), admin.dead_letters()) == ({}, [])

    def test_is_no_task_that_only_runs(self, stream: Stream, admin: StreamAdmin) -> None:
        """However often its controllers die, and however soon: each had it at rest before."""
        task: OpenTask = opened(stream, admin, event_id="e-1")
        for _ in range(3 * TAKES_TO_POISON):
            stream.renew({"e-1": task.owner})
            task = self.take_often(stream, admin, "e-1", 1)
        assert admin.dead_letters() == []

    def test_is_a_task_that_its_owners_were_at_work_on(self, stream: Stream, admin: StreamAdmin) -> None:
        """To have renewed its lease proves nothing then."""
        task: OpenTask = opened(stream, admin, event_id="e-1")
        for _ in range(TAKES_TO_POISON - 1):
            stream.renew({"e-1": task.owner}, {"e-1"})
            task = self.take_often(stream, admin, "e-1", 1)
        admin.expire_lease("e-1")
        assert isinstance(stream.take("e-1", same_consumer=False), BadEvent)

    def test_is_no_task_of_a_process_that_died_over_what_it_read(
        self, stream_factory: StreamFactory, admin: StreamAdmin
    ) -> None:
        """An entry is tried ten times before anything else is blamed, whoever takes the tasks."""
        first = stream_factory("c1")
        first.ensure_group()
        opened(first, admin, event_id="e-1")
        send(admin, event_id="deadly")
        receive(first)
        for boot in range(2 * TAKES_TO_POISON):
            again = stream_factory("c1", boot=f"again-{boot}")
            again.announce()
            again.renew({})
            assert isinstance(again.take("e-1", same_consumer=True), OpenTask)
        other = stream_factory("c2")
        admin.expire_lease("e-1")
        taken = other.take("e-1", same_consumer=False)
        assert isinstance(taken, OpenTask)
        assert admin.dead_letters() == []

    @pytest.mark.parametrize("progress", ["intend", "record", "release"])
    def test_progress_restarts_the_count(self, stream: Stream, admin: StreamAdmin, progress: str) -> None:
        """Stored progress and a clean hand-over show that it is not the event."""
        opened(stream, admin, event_id="e-1", pod_count="2")
        taken = self.take_often(stream, admin, "e-1", TAKES_TO_POISON - 1)
        steps: dict[str, Callable[[], object]] = {
            "intend": lambda: intend(stream, taken),
            "record": lambda: record(stream, taken),
            "release": lambda: stream.release({"e-1": taken.owner}),
        }
        steps[progress]()
        self.take_often(stream, admin, "e-1", TAKES_TO_POISON)
        assert admin.dead_letters() == []

    def test_is_reported_by_the_writer_of_the_dead_letter_and_taken_at_once(
        self, stream: Stream, other: Stream, admin: StreamAdmin
    ) -> None:
        """Before anything is read of the task, which may be what goes wrong; its pods are left to be ended."""
        opened(stream, admin, event_id="e-1")
        self.take_often(stream, admin, "e-1", TAKES_TO_POISON - 1)
        admin.expire_lease("e-1")
        told = other.take("e-1", same_consumer=False)
        assert isinstance(told, BadEvent)
        assert (told.reason, told.detail, told.event_id) == (
            DeadReason.POISON,
            admin.dead_letters()[0]["dead_detail"],
            "e-1",
        )
        assert other.expired(same_consumer=False) == ["e-1"]
        assert isinstance(stream.take("e-1", same_consumer=False), OpenTask)

    @pytest.mark.contract("5.exactly-once")
    def test_what_no_process_can_end_is_closed_in_the_end(self, stream: Stream, admin: StreamAdmin) -> None:
        """After ten more tries: each worker that has none gets its result, and the task, with what it passes on."""
        task = opened(stream, admin, event_id="e-1", task_id="t-1", pod_count="3", repository="a/b")
        intend(stream, task, 3, attempt=2)
        record(stream, task, 1)
        for _ in range(19):  # its progress took the first try back
            admin.expire_lease("e-1")
            assert stream.take("e-1", same_consumer=False) is not None
        admin.expire_lease("e-1")
        assert stream.take("e-1", same_consumer=False) is None
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

    def test_a_worker_that_is_recorded_as_poison_makes_a_dead_letter(self, stream: Stream, admin: StreamAdmin) -> None:
        """Our own code failed on it time and again: once for the event, told to who records it."""
        sent = send(admin, event_id="e-1", pod_count="2")
        task = accept(stream, receive(stream))
        assert isinstance(task, OpenTask)
        answers = [record(stream, task, index, attempt=0, reason=Reason.POISON) for index in (1, 2)]
        assert [answer.dead for answer in answers] == ["ended as Poison", ""]
        [letter] = admin.dead_letters()
        assert (letter["dead_reason"], letter["stream_id"]) == ("Poison", sent)
        assert json.loads(letter["event"]) == {"type": "scale_up", "event_id": "e-1", "pod_count": "2"}


class TestHandingOver:
    """A process stops: what it read and did not accept must not wait for a lease."""

    def test_others_find_it_at_once(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """As if it had been idle for long."""
        sent = send(admin)
        receive(stream)
        assert other.pending(own=False, min_idle_s=3600) == []
        stream.hand_over()
        [entry] = other.pending(own=False, min_idle_s=3600)
        assert entry.stream_id == sent
        assert accept(other, entry) is not None
        assert stream.pending(own=True, min_idle_s=0) == []

    def test_counts_no_try(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """It was no failure of the entry."""
        sent = send(admin)
        receive(stream)
        stream.hand_over()
        assert other.retry(sent) == 2

    def test_concerns_its_own_entries_only(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """What others have in hand stays theirs."""
        send(admin)
        receive(other)
        stream.hand_over()
        assert stream.pending(own=False, min_idle_s=3600) == []

    def test_leaves_what_was_trimmed_to_be_buried(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """It is not forgotten."""
        send(admin)
        receive(stream)
        admin.trim()
        stream.hand_over()
        assert admin.pending_count() == 1
        assert [entry.fields for entry in other.pending(own=False, min_idle_s=0)] == [None]

    def test_of_nothing_is_nothing(self, stream: Stream) -> None:
        """Nor does it matter how often."""
        stream.hand_over()
        stream.hand_over()

    def test_a_blocked_read_is_ended(self, stream: Stream) -> None:
        """It returns as if nothing had come, and no error."""
        found: list[list[object]] = []

        def read() -> None:
            found.append([*stream.read(1), *stream.peek("0-0", 1, block=True)])

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: stream.interrupt() or not reader.is_alive(), what="the reader to end")
        reader.join(5)
        assert found == [[]]


class TestTidying:
    """Consumers and entries that are of no use any more."""

    def test_consumers_that_are_gone_are_removed(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """Not seen for so long, and nothing pending; ourselves never."""
        for each in (other, stream):
            send(admin)
            accept(each, receive(each))
            each.announce()
        assert admin.consumers() == {"c1", "c2"}
        assert list(stream.remove_consumers(3600)) == []
        eventually(lambda: list(stream.remove_consumers(0.1)) == ["c2"], what="c2 to be gone")
        assert admin.consumers() == {"c1"}
        assert list(stream.remove_consumers(0)) == []

    def test_one_that_has_something_pending_stays(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """However long it was not seen: the entry would be lost."""
        send(admin)
        receive(other)
        assert list(stream.remove_consumers(0)) == []
        assert (admin.consumers(), admin.pending_count()) == ({"c2"}, 1)

    @pytest.mark.parametrize("sign", ["announce", "renew", "read"])
    def test_one_that_lives_stays(self, stream: Stream, other: Stream, admin: StreamAdmin, sign: str) -> None:
        """It reads something, or it renews while it has no room to read: either is a sign of life."""
        read = lambda: send(admin) and accept(other, receive(other))  # noqa: E731
        signs = {"announce": other.announce, "renew": lambda: other.renew({}), "read": read}
        send(admin)
        assert accept(other, receive(other)) is not None
        threading.Event().wait(0.6)
        signs[sign]()
        assert list(stream.remove_consumers(0.5)) == []
        assert admin.consumers() == {"c2"}

    @pytest.mark.contract("2.EVENTS_KEEP")
    def test_acknowledged_entries_are_trimmed(self, stream: Stream, admin: StreamAdmin) -> None:
        """About down to so many, and none that is still to be read or accepted."""
        for _ in range(500):
            opened(stream, admin)
        send(admin)
        assert stream.trim(100) >= 250
        assert 100 <= admin.length() <= 250
        assert stream.trim(1000) == 0
        assert receive(stream).fields is not None

    @pytest.mark.contract("2.EVENTS_KEEP")
    def test_what_is_pending_and_what_comes_after_it_is_kept(self, stream: Stream, admin: StreamAdmin) -> None:
        """It would be a dead letter `Trimmed`."""
        send(admin)
        receive(stream)
        for _ in range(300):
            opened(stream, admin)
        assert stream.trim(1) == 0
        [entry] = stream.pending(own=True, min_idle_s=0)
        accept(stream, entry)
        assert stream.trim(1) > 0

    @pytest.mark.contract("2.EVENTS_KEEP")
    def test_what_another_group_has_not_read_is_kept(self, stream: Stream, admin: StreamAdmin) -> None:
        """Groups may share the stream."""
        admin.add_group("slow")
        for _ in range(300):
            opened(stream, admin)
        assert stream.trim(1) == 0
