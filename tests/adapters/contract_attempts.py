"""The contract of `ports.Attempts`: intents, terminations, results, what is shown. All implementations run it."""

from __future__ import annotations

import json
import threading

import pytest

from ottoscaler.core.events import BadEvent
from ottoscaler.core.output import CUT, MAX_TASK_BYTES
from ottoscaler.core.termination import NOT_AFTER, Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import Victim
from ottoscaler.errors import RedisUnavailable
from ottoscaler.ports import OpenTask, RedisPorts, ScriptReply, ScriptStatus, StatusUpdate, StoredWorker
from ottoscaler.stored import TaskNote, WorkerNote
from tests.adapters.streams import (
    RESULT_MAXLEN,
    TASK_TTL_S,
    StreamAdmin,
    cancel,
    end,
    intend,
    note_logs,
    note_states,
    note_why,
    opened,
    record,
    reloaded,
    result_of,
    taken_over,
)

__all__ = [
    "TestCancels",
    "TestIntending",
    "TestOutput",
    "TestRecording",
    "TestSeeing",
    "TestShowing",
    "TestSparing",
    "TestTaskResult",
    "TestTerminations",
]

_SUCCESS, _FAILURE, _CANCEL = EndReason.COMPLETED, EndReason.ERROR, EndReason.SCALED_DOWN


def stored(stream: RedisPorts, task: OpenTask, index: int = 1) -> StoredWorker:
    """What is stored of a worker."""
    return reloaded(stream, task.event.event_id).workers.get(index, StoredWorker(index))


class TestIntending:
    """intend: no pod is created before its attempt is stored."""

    def test_stores_the_attempt(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """With the retries that the platform used up, and for operators with the pod's name."""
        task = opened(stream, admin, event_id="e-1")
        assert intend(stream, task, attempt=2, infra_used=1) == ScriptReply(ScriptStatus.OK, None, 2)
        assert stored(stream, task) == StoredWorker(1, attempt=2, infra_used=1)
        shown = admin.task("e-1")
        assert shown["state"] == "running"
        assert json.loads(shown["worker:1"]) == {"state": "creating", "attempt": 2, "pod": "pod-1-2"}

    def test_stores_how_many_attempts_were_oomkilled(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """It stays when the attempt is refused, seen, or stored again, and for the next owner."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        assert stored(stream, task).oom_kills == 0
        for _ in range(2):
            intend(stream, task, attempt=2, oom_kills=1)
            assert stored(stream, task) == StoredWorker(1, attempt=2, oom_kills=1)
        stream.store_refusal("e-1", task.owner, 1, 2)
        assert stored(stream, task) == StoredWorker(1, attempt=2, create_refused=True, oom_kills=1)
        stream.mark_pod_seen("e-1", task.owner, 1, 2)
        admin.expire_lease("e-1")
        taken = other.take_over("e-1", same_consumer=False)
        assert isinstance(taken, OpenTask)
        assert taken.workers == {1: StoredWorker(1, attempt=2, pod_was_seen=True, oom_kills=1)}
        intend(other, taken, attempt=3, oom_kills=2)
        assert stored(other, taken) == StoredWorker(1, attempt=3, oom_kills=2)

    def test_again_after_a_lost_answer_is_the_same(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The same answer, the same state."""
        task = opened(stream, admin)
        assert intend(stream, task) == intend(stream, task)
        assert stored(stream, task) == StoredWorker(1, attempt=1)

    def test_never_lowers_the_attempt(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """An older life of the worker is over."""
        task = opened(stream, admin)
        intend(stream, task, attempt=2)
        answer = intend(stream, task, attempt=1)
        assert (answer.status, answer.attempt) == (ScriptStatus.OLD_ATTEMPT, 2)
        assert stored(stream, task).attempt == 2

    @pytest.mark.contract("3.not_after")
    def test_is_refused_after_the_events_not_after(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """By the clock of Redis, and whatever was stored before; what ends it spares a worker that has started."""
        task = opened(stream, admin, event_id="e-1", not_after="2001-02-03T04:05:06+00:00")
        message = "the worker had not started by 2001-02-03T04:05:06.000Z (not_after)"
        late = Termination(EndReason.NOT_AFTER, message, drain=True, by=NOT_AFTER)
        assert intend(stream, task) == ScriptReply(ScriptStatus.CANCELLED, late, 0)
        assert stored(stream, task) == StoredWorker(1, termination=late)
        stream.clear_termination("e-1", task.owner, 1, late)
        assert intend(stream, task, attempt=2) == ScriptReply(ScriptStatus.CANCELLED, late, 0)
        assert stored(stream, task) == StoredWorker(1, termination=late, spared_by=(NOT_AFTER,))
        assert record(stream, task, attempt=0, reason=EndReason.NOT_AFTER).status is ScriptStatus.OK
        ended = admin.results("task")[0]
        assert (ended["outcome"], ended["reason"], ended["failed"]) == ("failed", "NotAfter", "1")

    @pytest.mark.contract("3.not_after")
    def test_is_stored_before_the_events_not_after(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It is a time like any other."""
        task = opened(stream, admin, not_after="2999-01-01T00:00:00Z")
        assert intend(stream, task).status is ScriptStatus.OK

    def test_is_refused_where_there_is_a_result(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """What has ended is not started again."""
        task = opened(stream, admin, pod_count="2")
        record(stream, task)
        assert intend(stream, task, attempt=2).status is ScriptStatus.HAS_RESULT

    @pytest.mark.parametrize("attempt", [0, 2])
    def test_is_refused_when_cancelled(self, stream: RedisPorts, admin: StreamAdmin, attempt: int) -> None:
        """With the termination, and the attempt that may have a pod (0: no attempt was ever stored)."""
        task = opened(stream, admin, event_id="e-1")
        if attempt:
            intend(stream, task, attempt=attempt)
        stream.store_termination("e-1", None, 1, cancel())
        assert intend(stream, task, attempt=attempt + 1) == ScriptReply(ScriptStatus.CANCELLED, cancel(), attempt)
        assert stored(stream, task).attempt == attempt

    def test_is_refused_for_the_attempt_that_is_terminated(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It has to end first."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        assert intend(stream, task) == ScriptReply(ScriptStatus.CANCELLED, end(1), 1)

    def test_of_the_next_attempt_clears_the_termination_of_the_last(
        self, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A termination that is no cancel ends with its attempt."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        assert intend(stream, task, attempt=2).status is ScriptStatus.OK
        assert stream.mark_pod_seen("e-1", task.owner, 1, 1) == ScriptReply(ScriptStatus.OK)

    def test_a_refused_pod_is_noted(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The replica that takes over knows that there is nothing to look for; the next intent clears it."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        for _ in range(2):
            assert stream.store_refusal("e-1", task.owner, 1, 1).status is ScriptStatus.OK
            assert stored(stream, task) == StoredWorker(1, attempt=1, create_refused=True)
        assert json.loads(admin.task("e-1")["worker:1"]) == {"state": "waiting", "attempt": 1, "pod": ""}
        intend(stream, task)
        assert stored(stream, task) == StoredWorker(1, attempt=1)

    def test_why_a_create_is_refused_is_shown_while_it_is_tried_again(
        self, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Or the reason would be seen only between two tries. A further attempt begins without it."""
        task = opened(stream, admin, event_id="e-1")
        refused = WorkerNote("waiting", 1, "", code="quota", detail="used up", next_at="2026-01-01T00:00:00Z")
        intend(stream, task)
        stream.store_refusal("e-1", task.owner, 1, 1)
        stream.write_status([StatusUpdate("e-1", task.owner, {1: refused})])
        noted = admin.task("e-1")["worker:1"]
        for _ in range(2):
            intend(stream, task)
            assert admin.task("e-1")["worker:1"] == noted
            stream.store_refusal("e-1", task.owner, 1, 1)
            assert admin.task("e-1")["worker:1"] == noted
        intend(stream, task, attempt=2)
        assert json.loads(admin.task("e-1")["worker:1"])["state"] == "creating"

    def test_a_refusal_of_an_older_attempt_says_nothing(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It came late."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task, attempt=2)
        stream.store_refusal("e-1", task.owner, 1, 1)
        assert stored(stream, task) == StoredWorker(1, attempt=2)


class TestSeeing:
    """check: a pod that was seen is lost when it is gone; an attempt without one is made again."""

    def test_is_stored_once_the_pod_is_there(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The replica that takes over knows; a late repetition of the intent changes nothing, the next attempt does."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task, infra_used=2)
        assert not reloaded(stream, "e-1").workers[1].pod_was_seen
        stream.mark_pod_seen("e-1", task.owner, 1, 1)
        intend(stream, task, infra_used=2)
        taken = taken_over(other, admin, task)
        assert taken.workers == {1: StoredWorker(1, attempt=1, infra_used=2, pod_was_seen=True)}
        other.store_refusal("e-1", taken.owner, 1, 1)
        assert reloaded(stream, "e-1").workers[1].pod_was_seen
        intend(other, taken, attempt=2, infra_used=3)
        assert not reloaded(stream, "e-1").workers[1].pod_was_seen

    def test_of_another_attempt_says_nothing(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It came late."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task, attempt=2)
        stream.mark_pod_seen("e-1", task.owner, 1, 1)
        assert not reloaded(stream, "e-1").workers[1].pod_was_seen

    @pytest.mark.parametrize("seen", [False, True])
    def test_a_controller_that_dies_at_every_create_ends_the_event_as_poison(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin, *, seen: bool
    ) -> None:
        """To store the same attempt again is no progress, to see its pod is."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        for _ in range(9):
            task = taken_over(other, admin, task)
            intend(other, task)
        if seen:
            other.mark_pod_seen("e-1", task.owner, 1, 1)
        admin.expire_lease("e-1")
        assert isinstance(other.take_over("e-1", same_consumer=False), BadEvent) is not seen


class TestTerminations:
    """doom, check, withdraw: why a pod is to be ended is stored before it is."""

    def test_check_returns_none_where_there_is_none(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The usual case, right after a create."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        assert stream.mark_pod_seen("e-1", task.owner, 1, 1) == ScriptReply(ScriptStatus.OK)

    def test_is_stored_and_returned(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Reason, message, attempt, drain and the event that asked for it."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        for _ in range(2):
            assert stream.store_termination("e-1", task.owner, 1, end(1)) == ScriptReply(ScriptStatus.OK, end(1))
        assert stream.mark_pod_seen("e-1", task.owner, 1, 1) == ScriptReply(ScriptStatus.OK, end(1))
        assert stored(stream, task).termination == end(1)

    def test_the_first_of_an_attempt_holds(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Otherwise a repetition would change the reason that a replica has acted on."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        later = stream.store_termination("e-1", task.owner, 1, end(1, EndReason.UNSCHEDULABLE))
        assert later == ScriptReply(ScriptStatus.OK, end(1))

    @pytest.mark.parametrize("attempt", [1, 3])
    def test_of_another_attempt_is_refused(self, stream: RedisPorts, admin: StreamAdmin, attempt: int) -> None:
        """Only the stored attempt's pod can be ended."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task, attempt=2)
        assert stream.store_termination("e-1", task.owner, 1, end(attempt)).status is ScriptStatus.OLD_ATTEMPT
        assert stored(stream, task).termination is None

    def test_comes_too_late_for_a_result(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """So do check and withdraw, and a cancel of another replica."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task)
        assert stream.store_termination("e-1", task.owner, 1, end(1)).status is ScriptStatus.HAS_RESULT
        assert stream.store_termination("e-1", None, 1, cancel()).status is ScriptStatus.HAS_RESULT
        assert stream.mark_pod_seen("e-1", task.owner, 1, 1).status is ScriptStatus.HAS_RESULT
        assert stream.clear_termination("e-1", task.owner, 1, end(1)).status is ScriptStatus.HAS_RESULT

    def test_is_withdrawn_when_the_pod_has_started(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Once, or twice after a lost answer."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        for _ in range(2):
            assert stream.clear_termination("e-1", task.owner, 1, end(1)) == ScriptReply(ScriptStatus.OK)
        assert stored(stream, task).termination is None

    def test_withdrawing_spares_any_other(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A cancel that came in between stays and is returned."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        stream.store_termination("e-1", None, 1, cancel())
        assert stream.clear_termination("e-1", task.owner, 1, end(1)) == ScriptReply(ScriptStatus.OK, cancel())
        assert stored(stream, task).termination == cancel()


class TestCancels:
    """Terminations of an index, not of an attempt: they stay, and any replica may store them."""

    def test_come_from_any_replica(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The owner need not be known."""
        task = opened(stream, admin, event_id="e-1")
        assert other.store_termination("e-1", None, 1, cancel()) == ScriptReply(ScriptStatus.OK, cancel())
        assert stream.mark_pod_seen("e-1", task.owner, 1, 1) == ScriptReply(ScriptStatus.OK, cancel())

    def test_of_unknown_tasks_are_refused(self, stream: RedisPorts) -> None:
        """Nothing is stored for a task that is not there: Redis was wiped, and its owner restores it."""
        with pytest.raises(RedisUnavailable, match="event never is unknown"):
            stream.store_termination("never", None, 1, cancel())
        assert stream.known_tasks(["never"]) == {}

    def test_count_once_each(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A repeated mark is the same mark."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        for index in (1, 1, 2):
            stream.store_termination("e-1", None, index, cancel())
        assert stream.renew({"e-1": task.owner}).cancel_counts == {"e-1": 2}
        assert reloaded(stream, "e-1").cancel_count == 2

    def test_are_not_what_a_deadline_is(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A termination of one attempt is not counted as a cancel."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        assert stream.renew({"e-1": task.owner}).cancel_counts == {"e-1": 0}

    def test_of_one_scale_down_are_not_withdrawn_by_another(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A kill came after the drain, or another drain."""
        task = opened(stream, admin, event_id="e-1")
        held = cancel(by="down-1", drain=True)
        stream.store_termination("e-1", None, 1, held)
        assert stream.clear_termination("e-1", task.owner, 1, cancel(by="down-2", drain=True)) == ScriptReply(
            ScriptStatus.OK, held
        )

    def test_override_other_terminations_and_not_the_other_way_round(
        self, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A cancel forbids new attempts, a deadline does not."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        assert stream.store_termination("e-1", None, 1, cancel()) == ScriptReply(ScriptStatus.OK, cancel())
        assert stream.store_termination("e-1", task.owner, 1, end(1)) == ScriptReply(ScriptStatus.OK, cancel())

    def test_the_first_holds(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Two scale_downs over one worker: the first one had it."""
        opened(stream, admin, event_id="e-1")
        stream.store_termination("e-1", None, 1, cancel(by="down-1"))
        assert stream.store_termination("e-1", None, 1, cancel(by="down-2")) == ScriptReply(
            ScriptStatus.OK, cancel(by="down-1")
        )

    def test_kill_overrides_drain_and_not_the_other_way_round(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """drain spares what has started, kill spares nothing."""
        task = opened(stream, admin, event_id="e-1")
        drain, kill = cancel(by="down-1", drain=True), cancel(by="down-2")
        stream.store_termination("e-1", None, 1, drain)
        assert stream.store_termination("e-1", None, 1, kill) == ScriptReply(ScriptStatus.OK, kill)
        assert stream.store_termination("e-1", None, 1, drain) == ScriptReply(ScriptStatus.OK, kill)
        assert stored(stream, task).termination == kill

    def test_a_drain_that_was_survived_does_not_come_back(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Its scale_down stores it again after a restart, and the worker runs all the same; another one may."""
        task = opened(stream, admin, event_id="e-1")
        drain = cancel(by="down-1", drain=True)
        stream.store_termination("e-1", None, 1, drain)
        stream.clear_termination("e-1", task.owner, 1, drain)
        assert stream.store_termination("e-1", None, 1, drain) == ScriptReply(ScriptStatus.OK)
        assert stored(stream, task).termination is None
        again = cancel(by="down-2", drain=True)
        assert stream.store_termination("e-1", None, 1, again) == ScriptReply(ScriptStatus.OK, again)

    def test_do_not_touch_the_neighbours(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Worker 1 is not worker 11."""
        task = opened(stream, admin, event_id="e-1", pod_count="11")
        stream.store_termination("e-1", None, 11, cancel())
        assert stream.mark_pod_seen("e-1", task.owner, 1, 1) == ScriptReply(ScriptStatus.OK)


class TestSparing:
    """What has started is spared by a drain, and by every termination that is for what has not started."""

    @pytest.mark.parametrize("reason", [EndReason.ERROR, EndReason.EVICTED, EndReason.COMPLETED])
    @pytest.mark.parametrize("by", [EndReason.SCALED_DOWN, EndReason.SUPERSEDED])
    def test_one_that_started_all_the_same_and_ended_by_itself_has_its_own_outcome(
        self, stream: RedisPorts, admin: StreamAdmin, reason: EndReason, by: EndReason
    ) -> None:
        """Its owner did not know of the mark; the drain counts it among the survivors."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        intend(stream, task)
        stream.store_termination("e-1", None, 1, cancel(by, drain=True))
        fields = result_of(task, reason=reason) | {"started_at": "then", "exit_code": "1"}
        answer = stream.record_result("e-1", task.owner, 1, attempt=1, fields=fields)
        assert (answer.status, answer.termination) == (ScriptStatus.OK, None)
        assert admin.results() == [fields]
        assert reloaded(stream, "e-1").workers[1].spared_by == ("down-1",)

    @pytest.mark.parametrize("started", ["", "then"])
    @pytest.mark.parametrize("termination", [cancel(), cancel(drain=True)])
    def test_one_that_was_deleted_is_cancelled(
        self, stream: RedisPorts, admin: StreamAdmin, termination: Termination, started: str
    ) -> None:
        """A replica that saw the mark deleted the pod: its owner sees only that it was deleted."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        stream.store_termination("e-1", None, 1, termination)
        fields = result_of(task, reason=EndReason.POD_DELETED) | {"started_at": started}
        assert stream.record_result("e-1", task.owner, 1, attempt=1, fields=fields).termination == termination
        assert admin.results()[0]["reason"] == "ScaledDown"
        assert reloaded(stream, "e-1").workers[1].spared_by == ()

    def test_a_kill_spares_no_worker(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """But one that succeeds."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        stream.store_termination("e-1", None, 1, cancel())
        fields = result_of(task, reason=EndReason.ERROR) | {"started_at": "then"}
        stream.record_result("e-1", task.owner, 1, attempt=1, fields=fields)
        assert admin.results()[0]["reason"] == "ScaledDown"

    def test_a_termination_for_not_starting_has_no_part_in_the_end_of_what_has_started(
        self, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """PendingTimeout, and then it started and failed."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        fields = result_of(task, reason=EndReason.ERROR) | {"started_at": "then"}
        assert stream.record_result("e-1", task.owner, 1, attempt=1, fields=fields).termination is None
        assert admin.results()[0]["reason"] == "Error"

    def test_one_that_several_drains_have_spared_is_a_survivor_of_each(
        self, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """And is marked by none of them again."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        for name in ("a", "b", "a"):
            stream.store_termination("e-1", None, 1, cancel(by=name, drain=True))
            stream.clear_termination("e-1", task.owner, 1, cancel(by=name, drain=True))
        assert reloaded(stream, "e-1").workers[1].termination is None
        record(stream, task)
        [worker] = stream.stored_workers([Victim("e-1", 1)])
        assert worker is not None
        assert worker.spared_by == ("a", "b")


class TestRecording:
    """record: a worker's result."""

    def test_is_published_and_kept(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The entry of the result stream; the same in the task hash, which has what all results carry only once."""
        task = opened(stream, admin, event_id="e-1", pod_count="2", repository="a/b")
        assert record(stream, task).status is ScriptStatus.OK
        assert admin.results() == [result_of(task)]
        own = {name: text for name, text in result_of(task).items() if name != "repository"}
        assert json.loads(admin.task("e-1")["worker:1"]) == own

    def test_happens_once(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """After a lost answer, and whatever comes later."""
        task = opened(stream, admin, pod_count="2")
        record(stream, task)
        assert record(stream, task).status is ScriptStatus.KNOWN
        assert record(stream, task, reason=EndReason.ERROR).status is ScriptStatus.KNOWN
        assert [result["outcome"] for result in admin.results()] == ["succeeded"]

    def test_of_many_threads_one_logs(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The reconciler and the worker's thread may see the same end."""
        task = opened(stream, admin, event_id="e-1")
        statuses: list[ScriptStatus] = []
        threads = [threading.Thread(target=lambda: statuses.append(record(stream, task).status)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(status.name for status in statuses) == ["KNOWN"] * 7 + ["OK"]
        assert [result["kind"] for result in admin.results()] == ["worker", "task"]

    def test_of_an_old_attempt_is_refused(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A higher attempt is stored: its end counts."""
        task = opened(stream, admin)
        intend(stream, task, attempt=2)
        answer = record(stream, task, attempt=1)
        assert (answer.status, answer.attempt) == (ScriptStatus.OLD_ATTEMPT, 2)
        assert admin.results() == []

    @pytest.mark.contract("5.ScaledDown")
    @pytest.mark.parametrize("reason", [EndReason.ERROR, EndReason.POD_DELETED])
    def test_a_cancel_wins_over_how_it_ended(self, stream: RedisPorts, admin: StreamAdmin, reason: EndReason) -> None:
        """A worker that we ended was not deleted from outside, and did not fail."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        intend(stream, task)
        stream.store_termination("e-1", None, 1, cancel())
        assert record(stream, task, reason=reason) == ScriptReply(ScriptStatus.OK, cancel(), 1)
        [result] = admin.results()
        expected = {"outcome": "cancelled", "reason": "ScaledDown", "fault": "none", "message": "asked for by down-1"}
        assert result == result_of(task, 1, 1, reason) | expected
        assert json.loads(admin.task("e-1")["worker:1"]) == result

    @pytest.mark.contract("5.Superseded")
    def test_a_cancel_is_recorded_without_any_attempt(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A worker that never started is cancelled under attempt 0, or under any that was stored."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        superseded = cancel(EndReason.SUPERSEDED)
        for index in (1, 2):
            stream.store_termination("e-1", None, index, superseded)
        assert record(stream, task, 1, attempt=0, reason=EndReason.SUPERSEDED).status is ScriptStatus.OK
        assert record(stream, task, 2, attempt=1, reason=EndReason.POD_LOST).status is ScriptStatus.OK
        assert [result["reason"] for result in admin.results("worker")] == ["Superseded", "Superseded"]

    def test_a_cancel_is_recorded_under_any_attempt(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """No attempt can follow, so any end is the end."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task, attempt=2)
        stream.store_termination("e-1", None, 1, cancel())
        assert record(stream, task, attempt=1, reason=EndReason.ERROR).status is ScriptStatus.OK
        assert [result["reason"] for result in admin.results()] == ["ScaledDown", "ScaledDown"]

    @pytest.mark.contract("5.Completed")
    def test_a_success_wins_over_any_termination(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The pod finished before it could be ended."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        for index, termination in ((1, cancel()), (2, end(1))):
            intend(stream, task, index)
            stream.store_termination("e-1", task.owner, index, termination)
            record(stream, task, index)
        assert [result["reason"] for result in admin.results("worker")] == ["Completed", "Completed"]

    @pytest.mark.contract("5.PendingTimeout")
    def test_the_termination_of_this_attempt_wins(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The controller deleted the pod because it did not start."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        record(stream, task, reason=EndReason.POD_DELETED)
        [result] = admin.results()
        assert (result["outcome"], result["reason"], result["fault"]) == ("failed", "PendingTimeout", "infra")

    @pytest.mark.contract("2.RESULT_MAXLEN")
    def test_goes_to_a_bounded_stream(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """About RESULT_MAXLEN results are kept; the trimming is by whole blocks of at most a hundred or so."""
        task = opened(stream, admin, pod_count="400")
        for index in range(1, 401):
            record(stream, task, index)
        assert RESULT_MAXLEN <= len(admin.results()) <= RESULT_MAXLEN + 200
        assert admin.results()[-1]["kind"] == "task"


class TestOutput:
    """What a worker gives back is kept with its result."""

    @pytest.mark.parametrize("text", ["42\n", "\t\ufffd[31m\u2028 \U0001f600", '{"a": "\\u0000"}', "[truncated] x"])
    def test_comes_back_as_it_is(self, stream: RedisPorts, admin: StreamAdmin, text: str) -> None:
        """In the result and in the hash."""
        task = opened(stream, admin, event_id="e-1")
        fields = result_of(task) | {"output": text}
        stream.record_result("e-1", task.owner, 1, attempt=1, fields=fields)
        assert [each["output"] for each in admin.results() if each["kind"] == "worker"] == [text]
        assert json.loads(admin.task("e-1")["worker:1"])["output"] == text

    def test_many_do_not_make_the_hash_large(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A task hash is read as a whole. What it does not hold, the stream has; a small one still has its place."""
        size, count = MAX_TASK_BYTES // 4, 6
        task = opened(stream, admin, event_id="e-1", pod_count=str(count + 1))
        for index in range(1, count + 1):
            text = "x" * (size - 1 if index == 1 else size)
            fields = result_of(task, index) | {"output": text}
            stream.record_result("e-1", task.owner, index, attempt=1, fields=fields)
        stream.record_result(
            "e-1", task.owner, count + 1, attempt=1, fields=result_of(task, count + 1) | {"output": "y"}
        )
        kept = [json.loads(admin.task("e-1")[f"worker:{index}"])["output"] for index in range(1, count + 2)]
        assert [len(text) for text in kept] == [size - 1, *[size] * (count - 3), len(CUT), len(CUT), 1]
        published = [each["output"] for each in admin.results() if each["kind"] == "worker"]
        assert sum(map(len, published)) == size * count


class TestTaskResult:
    """The task's own result, with its last worker's."""

    @pytest.mark.contract("5.Completed")
    def test_comes_with_the_last_worker(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Not before, and after that worker's own."""
        task = opened(stream, admin, event_id="e-1", task_id="t-1", pod_count="3")
        assert [record(stream, task, index).task_result_message for index in (3, 1)] == ["", ""]
        assert admin.results("task") == []
        assert record(stream, task, 2).task_result_message == "All 3 workers completed successfully"
        assert [result["kind"] for result in admin.results()] == ["worker", "worker", "worker", "task"]
        expected = {
            "kind": "task", "event_id": "e-1", "task_id": "t-1", "outcome": "succeeded", "reason": "Completed",
            "message": "All 3 workers completed successfully", "received_at": task.received_at, "pod_count": "3",
            "succeeded": "3", "failed": "0", "cancelled": "0",
        }  # fmt: skip
        [result] = admin.results("task")
        assert result == expected | {"finished_at": result["finished_at"]}

    @pytest.mark.parametrize(
        ("reasons", "outcome", "reason", "counts"),
        [
            ([_SUCCESS, _FAILURE, EndReason.EVICTED], "failed", "Error", ("1", "2", "0")),
            ([_CANCEL, EndReason.POD_LOST, _SUCCESS], "failed", "PodLost", ("1", "1", "1")),
            ([_SUCCESS, _CANCEL, EndReason.SUPERSEDED], "cancelled", "ScaledDown", ("1", "0", "2")),
            ([_CANCEL, _CANCEL, _CANCEL], "cancelled", "ScaledDown", ("0", "0", "3")),
        ],
    )
    def test_sums_up_the_workers(
        self,
        stream: RedisPorts,
        admin: StreamAdmin,
        reasons: list[EndReason],
        outcome: str,
        reason: str,
        counts: tuple[str, str, str],
    ) -> None:
        """Cancelled if what did not succeed was cancelled, otherwise failed; with the first failing worker's reason."""
        task = opened(stream, admin, pod_count="3")
        for index, each in enumerate(reasons, start=1):
            record(stream, task, index, reason=each)
        [result] = admin.results("task")
        assert (result["outcome"], result["reason"]) == (outcome, reason)
        assert (result["succeeded"], result["failed"], result["cancelled"]) == counts
        assert result["message"] == f"{counts[0]} of 3 workers completed"

    def test_carries_what_the_event_passed_on(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Unchanged; a field gets a prefix if the result uses its name itself."""
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        record(stream, opened(stream, admin, traceparent=trace, repository="a/b", reason="nightly", odd="x\ny\u00fc"))
        [result] = admin.results("task")
        passed = {"traceparent": trace, "repository": "a/b", "event_reason": "nightly", "odd": "x\ny\u00fc"}
        assert passed.items() <= result.items()
        assert result["reason"] == "Completed"

    def test_closes_the_task(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It is not open, has no owner, and is forgotten after TASK_TTL_S."""
        task = opened(stream, admin, event_id="e-1")
        note_why(stream, "e-1", task.owner, "why", "when")
        assert admin.expires_in("e-1") is None
        record(stream, task)
        assert admin.open_ids() == set()
        shown = admin.task("e-1")
        assert (shown["state"], shown.get("owner"), shown["why"], shown["code"]) == ("finished", None, "", "")
        left = admin.expires_in("e-1")
        assert left is not None
        assert TASK_TTL_S - 60 < left <= TASK_TTL_S


class TestShowing:
    """write_notes: for operators."""

    def test_states_are_shown(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """By index, as operators read them."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        note_states(stream, "e-1", task.owner, {1: ("running", 1, "pod-1"), 2: ("pending", 2, "pod-2-r2")})
        shown = admin.task("e-1")
        assert json.loads(shown["worker:1"]) == {"state": "running", "attempt": 1, "pod": "pod-1"}
        assert json.loads(shown["worker:2"]) == {"state": "pending", "attempt": 2, "pod": "pod-2-r2"}

    def test_states_do_not_hide_a_result(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A late note changes nothing."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task, 1)
        before = admin.task("e-1")["worker:1"]
        note_states(stream, "e-1", task.owner, {1: ("running", 1, "pod-1")})
        assert admin.task("e-1")["worker:1"] == before

    def test_only_the_owner_writes(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """What a replaced process still says is not shown."""
        opened(stream, admin, event_id="e-1")
        note_states(other, "e-1", "c2/boot-1/1", {1: ("running", 1, "pod-1")})
        note_why(other, "e-1", "c2/boot-1/1", "why", "when")
        shown = admin.task("e-1")
        assert ("worker:1" in shown, shown.get("why", "")) == (False, "")

    def test_how_far_logs_have_come_is_taken_over(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """With the worker that it is about, until something else is stored; also for one that has its result."""
        task = opened(stream, admin, event_id="e-1", pod_count="3")
        intend(stream, task)
        note_logs(stream, "e-1", task.owner, {1: "old", 2: "b"})
        record(stream, task, 2)
        note_logs(stream, "e-1", task.owner, {1: "a"})
        workers = reloaded(stream, "e-1").workers
        assert {index: worker.log_progress for index, worker in workers.items()} == {1: "a", 2: "b"}

    def test_only_the_owner_says_how_far_logs_have_come(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A replaced process has followed another log, or an older part of it."""
        task = opened(stream, admin, event_id="e-1")
        note_logs(stream, "e-1", task.owner, {1: "a"})
        note_logs(other, "e-1", "c2/boot-1/1", {1: "b"})
        assert reloaded(stream, "e-1").workers[1].log_progress == "a"

    def test_why_is_shown_until_the_owner_says_something_else(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Why the task stands where it stands, since when, and when it goes on."""
        task = opened(stream, admin, event_id="e-1")
        note = TaskNote("the quota is used up", "quota", since="2026-01-01T00:00:00Z", next_at="2026-01-01T00:00:04Z")
        stream.write_status([StatusUpdate("e-1", task.owner, task=note)])
        intend(stream, task)
        shown = admin.task("e-1")
        assert (shown["why"], shown["code"]) == (note.why, "quota")
        assert (shown["since"], shown["next_at"]) == (note.since, note.next_at)
        stream.write_status([StatusUpdate("e-1", task.owner, task=TaskNote(""))])
        assert [admin.task("e-1")[name] for name in ("why", "code", "since", "next_at")] == [""] * 4

    def test_a_task_and_its_workers_are_shown_at_once(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """In one call, with all that is known of each."""
        task = opened(stream, admin, event_id="e-1")
        shown = WorkerNote("pending", 1, "p-1", code="node", detail="0/3 nodes", since="a", next_at="b")
        stream.write_status([StatusUpdate("e-1", task.owner, {1: shown}, TaskNote("why", code="node"))])
        assert json.loads(admin.task("e-1")["worker:1"]) == {
            "state": "pending", "attempt": 1, "pod": "p-1", "code": "node", "detail": "0/3 nodes", "since": "a",
            "next_at": "b",
        }  # fmt: skip
        assert admin.task("e-1")["code"] == "node"
