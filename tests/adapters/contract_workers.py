"""The contract of `ports.Stream`, fourth part: intents, terminations, what is shown. All implementations run it."""

from __future__ import annotations

import json

import pytest

from ottoscaler.core.verdicts import Reason
from ottoscaler.errors import StreamUnavailable
from ottoscaler.ports import Answer, OpenTask, Status, StoredWorker, Stream
from tests.adapters.streams import StreamAdmin, cancel, end, intend, note_states, note_why, opened, record, reloaded

__all__ = ["TestCancels", "TestIntending", "TestShowing", "TestTerminations"]


def stored(stream: Stream, task: OpenTask, index: int = 1) -> StoredWorker:
    """What is stored of a worker."""
    return reloaded(stream, task.event.event_id).workers.get(index, StoredWorker(index))


class TestIntending:
    """intend: no pod is created before its attempt is stored."""

    def test_stores_the_attempt(self, stream: Stream, admin: StreamAdmin) -> None:
        """With the retries that the platform used up, and for operators with the pod's name."""
        task = opened(stream, admin, event_id="e-1")
        assert intend(stream, task, attempt=2, infra_used=1) == Answer(Status.OK, None, 2)
        assert stored(stream, task) == StoredWorker(1, attempt=2, infra_used=1)
        shown = admin.task("e-1")
        assert shown["state"] == "running"
        assert json.loads(shown["worker:1"]) == {"state": "creating", "attempt": 2, "pod": "pod-1-2"}

    def test_again_after_a_lost_answer_is_the_same(self, stream: Stream, admin: StreamAdmin) -> None:
        """The same answer, the same state."""
        task = opened(stream, admin)
        assert intend(stream, task) == intend(stream, task)
        assert stored(stream, task) == StoredWorker(1, attempt=1)

    def test_never_lowers_the_attempt(self, stream: Stream, admin: StreamAdmin) -> None:
        """An older life of the worker is over."""
        task = opened(stream, admin)
        intend(stream, task, attempt=2)
        answer = intend(stream, task, attempt=1)
        assert (answer.status, answer.attempt) == (Status.OLD_ATTEMPT, 2)
        assert stored(stream, task).attempt == 2

    def test_is_refused_where_there_is_a_result(self, stream: Stream, admin: StreamAdmin) -> None:
        """What has ended is not started again."""
        task = opened(stream, admin, pod_count="2")
        record(stream, task)
        assert intend(stream, task, attempt=2).status is Status.HAS_RESULT

    @pytest.mark.parametrize("attempt", [0, 2])
    def test_is_refused_when_cancelled(self, stream: Stream, admin: StreamAdmin, attempt: int) -> None:
        """With the termination, and the attempt whose pod may be there (0: none ever was)."""
        task = opened(stream, admin, event_id="e-1")
        if attempt:
            intend(stream, task, attempt=attempt)
        stream.store_termination("e-1", None, 1, cancel())
        assert intend(stream, task, attempt=attempt + 1) == Answer(Status.CANCELLED, cancel(), attempt)
        assert stored(stream, task).attempt == attempt

    def test_is_refused_for_the_attempt_that_is_terminated(self, stream: Stream, admin: StreamAdmin) -> None:
        """It has to end first."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        assert intend(stream, task) == Answer(Status.CANCELLED, end(1), 1)

    def test_of_the_next_attempt_clears_the_termination_of_the_last(self, stream: Stream, admin: StreamAdmin) -> None:
        """A termination that is no cancel ends with its attempt."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        assert intend(stream, task, attempt=2).status is Status.OK
        assert stream.check("e-1", task.owner, 1, 1) == Answer(Status.OK)

    def test_a_refused_pod_is_noted(self, stream: Stream, admin: StreamAdmin) -> None:
        """Whoever takes over knows that there is nothing to look for; the next intent clears it."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        for _ in range(2):
            assert stream.note_refused("e-1", task.owner, 1, 1).status is Status.OK
            assert stored(stream, task) == StoredWorker(1, attempt=1, refused=True)
        assert json.loads(admin.task("e-1")["worker:1"]) == {"state": "waiting", "attempt": 1, "pod": ""}
        intend(stream, task)
        assert stored(stream, task) == StoredWorker(1, attempt=1)

    def test_a_refusal_of_an_older_attempt_says_nothing(self, stream: Stream, admin: StreamAdmin) -> None:
        """It came late."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task, attempt=2)
        stream.note_refused("e-1", task.owner, 1, 1)
        assert stored(stream, task) == StoredWorker(1, attempt=2)


class TestTerminations:
    """doom, check, withdraw: why a pod is to be ended is stored before it is."""

    def test_check_returns_none_where_there_is_none(self, stream: Stream, admin: StreamAdmin) -> None:
        """The usual case, right after a create."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        assert stream.check("e-1", task.owner, 1, 1) == Answer(Status.OK)

    def test_is_stored_and_returned(self, stream: Stream, admin: StreamAdmin) -> None:
        """Reason, message, attempt, drain and who asked for it."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        for _ in range(2):
            assert stream.store_termination("e-1", task.owner, 1, end(1)) == Answer(Status.OK, end(1))
        assert stream.check("e-1", task.owner, 1, 1) == Answer(Status.OK, end(1))
        assert stored(stream, task).termination == end(1)

    def test_the_first_of_an_attempt_holds(self, stream: Stream, admin: StreamAdmin) -> None:
        """Or a repetition would change the reason that somebody acted on."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        later = stream.store_termination("e-1", task.owner, 1, end(1, Reason.UNSCHEDULABLE))
        assert later == Answer(Status.OK, end(1))

    @pytest.mark.parametrize("attempt", [1, 3])
    def test_of_another_attempt_is_refused(self, stream: Stream, admin: StreamAdmin, attempt: int) -> None:
        """Only the stored attempt's pod can be ended."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task, attempt=2)
        assert stream.store_termination("e-1", task.owner, 1, end(attempt)).status is Status.OLD_ATTEMPT
        assert stored(stream, task).termination is None

    def test_comes_too_late_for_a_result(self, stream: Stream, admin: StreamAdmin) -> None:
        """So do check and withdraw, and a cancel of another replica."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task)
        assert stream.store_termination("e-1", task.owner, 1, end(1)).status is Status.HAS_RESULT
        assert stream.store_termination("e-1", None, 1, cancel()).status is Status.HAS_RESULT
        assert stream.check("e-1", task.owner, 1, 1).status is Status.HAS_RESULT
        assert stream.clear_termination("e-1", task.owner, 1, end(1)).status is Status.HAS_RESULT

    def test_is_withdrawn_when_the_pod_has_started(self, stream: Stream, admin: StreamAdmin) -> None:
        """Once, or twice after a lost answer."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        for _ in range(2):
            assert stream.clear_termination("e-1", task.owner, 1, end(1)) == Answer(Status.OK)
        assert stored(stream, task).termination is None

    def test_withdrawing_spares_any_other(self, stream: Stream, admin: StreamAdmin) -> None:
        """A cancel that came in between stays and is told."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        stream.store_termination("e-1", None, 1, cancel())
        assert stream.clear_termination("e-1", task.owner, 1, end(1)) == Answer(Status.OK, cancel())
        assert stored(stream, task).termination == cancel()


class TestCancels:
    """Terminations of an index, not of an attempt: they stay, and any replica may store them."""

    def test_come_from_any_replica(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """The owner need not be known."""
        task = opened(stream, admin, event_id="e-1")
        assert other.store_termination("e-1", None, 1, cancel()) == Answer(Status.OK, cancel())
        assert stream.check("e-1", task.owner, 1, 1) == Answer(Status.OK, cancel())

    def test_of_unknown_tasks_are_refused(self, stream: Stream) -> None:
        """Nothing is stored for a task that is not there: Redis was wiped, and its owner restores it."""
        with pytest.raises(StreamUnavailable, match="event never is unknown"):
            stream.store_termination("never", None, 1, cancel())
        assert stream.known(["never"]) == {}

    def test_count_once_each(self, stream: Stream, admin: StreamAdmin) -> None:
        """A repeated mark is the same mark."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        for index in (1, 1, 2):
            stream.store_termination("e-1", None, index, cancel())
        assert stream.renew({"e-1": task.owner}).cancels == {"e-1": 2}
        assert reloaded(stream, "e-1").cancels == 2

    def test_are_not_what_a_deadline_is(self, stream: Stream, admin: StreamAdmin) -> None:
        """A termination of one attempt is not counted as a cancel."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        assert stream.renew({"e-1": task.owner}).cancels == {"e-1": 0}

    def test_of_one_scale_down_are_not_withdrawn_by_another(self, stream: Stream, admin: StreamAdmin) -> None:
        """A kill came after the drain, or another drain."""
        task = opened(stream, admin, event_id="e-1")
        held = cancel(by="down-1", drain=True)
        stream.store_termination("e-1", None, 1, held)
        assert stream.clear_termination("e-1", task.owner, 1, cancel(by="down-2", drain=True)) == Answer(
            Status.OK, held
        )

    def test_override_other_terminations_and_not_the_other_way_round(self, stream: Stream, admin: StreamAdmin) -> None:
        """A cancel forbids new attempts, a deadline does not."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        assert stream.store_termination("e-1", None, 1, cancel()) == Answer(Status.OK, cancel())
        assert stream.store_termination("e-1", task.owner, 1, end(1)) == Answer(Status.OK, cancel())

    def test_the_first_holds(self, stream: Stream, admin: StreamAdmin) -> None:
        """Two scale_downs over one worker: the first one had it."""
        opened(stream, admin, event_id="e-1")
        stream.store_termination("e-1", None, 1, cancel(by="down-1"))
        assert stream.store_termination("e-1", None, 1, cancel(by="down-2")) == Answer(Status.OK, cancel(by="down-1"))

    def test_kill_overrides_drain_and_not_the_other_way_round(self, stream: Stream, admin: StreamAdmin) -> None:
        """drain spares who has started, kill nobody."""
        task = opened(stream, admin, event_id="e-1")
        drain, kill = cancel(by="down-1", drain=True), cancel(by="down-2")
        stream.store_termination("e-1", None, 1, drain)
        assert stream.store_termination("e-1", None, 1, kill) == Answer(Status.OK, kill)
        assert stream.store_termination("e-1", None, 1, drain) == Answer(Status.OK, kill)
        assert stored(stream, task).termination == kill

    def test_a_drain_that_was_survived_does_not_come_back(self, stream: Stream, admin: StreamAdmin) -> None:
        """Its scale_down stores it again after a restart, and the worker runs all the same; another one may."""
        task = opened(stream, admin, event_id="e-1")
        drain = cancel(by="down-1", drain=True)
        stream.store_termination("e-1", None, 1, drain)
        stream.clear_termination("e-1", task.owner, 1, drain)
        assert stream.store_termination("e-1", None, 1, drain) == Answer(Status.OK)
        assert stored(stream, task).termination is None
        again = cancel(by="down-2", drain=True)
        assert stream.store_termination("e-1", None, 1, again) == Answer(Status.OK, again)

    def test_do_not_touch_the_neighbours(self, stream: Stream, admin: StreamAdmin) -> None:
        """Worker 1 is not worker 11."""
        task = opened(stream, admin, event_id="e-1", pod_count="11")
        stream.store_termination("e-1", None, 11, cancel())
        assert stream.check("e-1", task.owner, 1, 1) == Answer(Status.OK)


class TestShowing:
    """write_notes: for whoever looks."""

    def test_states_are_shown(self, stream: Stream, admin: StreamAdmin) -> None:
        """By index, as operators read them."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        note_states(stream, "e-1", task.owner, {1: ("running", 1, "pod-1"), 2: ("pending", 2, "pod-2-r2")})
        shown = admin.task("e-1")
        assert json.loads(shown["worker:1"]) == {"state": "running", "attempt": 1, "pod": "pod-1"}
        assert json.loads(shown["worker:2"]) == {"state": "pending", "attempt": 2, "pod": "pod-2-r2"}

    def test_states_do_not_hide_a_result(self, stream: Stream, admin: StreamAdmin) -> None:
        """A late note changes nothing."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        record(stream, task, 1)
        before = admin.task("e-1")["worker:1"]
        note_states(stream, "e-1", task.owner, {1: ("running", 1, "pod-1")})
        assert admin.task("e-1")["worker:1"] == before

    def test_only_the_owner_writes(self, stream: Stream, other: Stream, admin: StreamAdmin) -> None:
        """What a replaced process still says is not shown."""
        opened(stream, admin, event_id="e-1")
        note_states(other, "e-1", "c2/boot-1/1", {1: ("running", 1, "pod-1")})
        note_why(other, "e-1", "c2/boot-1/1", "why", "when")
        shown = admin.task("e-1")
        assert ("worker:1" in shown, shown.get("why", "")) == (False, "")

    def test_why_is_shown_until_it_goes_on(self, stream: Stream, admin: StreamAdmin) -> None:
        """Why the task stands still, and when it goes on."""
        task = opened(stream, admin, event_id="e-1")
        note_why(stream, "e-1", task.owner, "QuotaExceeded", "2026-01-01T00:00:00Z")
        shown = admin.task("e-1")
        assert (shown["why"], shown["next_at"]) == ("QuotaExceeded", "2026-01-01T00:00:00Z")
        intend(stream, task)
        assert admin.task("e-1").get("why", "") == ""
