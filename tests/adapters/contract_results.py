"""The contract of `ports.Stream`, fifth part: results, scale_downs. All implementations run it."""

from __future__ import annotations

import json
import threading

import pytest

from ottoscaler.core.verdicts import Reason
from ottoscaler.ports import Answer, Status, Stream
from tests.adapters.streams import (
    RESULT_MAXLEN,
    TASK_TTL_S,
    StreamAdmin,
    cancel,
    end,
    intend,
    note_why,
    opened,
    record,
    result_of,
)

__all__ = ["TestRecording", "TestScaleDown", "TestTaskResult"]

_SUCCESS, _FAILURE, _CANCEL = Reason.COMPLETED, Reason.ERROR, Reason.SCALED_DOWN


class TestRecording:
    """record: a worker's result."""

    def test_is_published_and_kept(self, stream: Stream, admin: StreamAdmin) -> None:
        """The entry of the result stream; the same in the task hash, which has what all results carry only once."""
        task = opened(stream, admin, event_id="e-1", pod_count="2", repository="a/b")
        assert record(stream, task).status is Status.OK
        assert admin.results() == [result_of(task)]
        own = {name: text for name, text in result_of(task).items() if name != "repository"}
        assert json.loads(admin.task("e-1")["worker:1"]) == own

    def test_happens_once(self, stream: Stream, admin: StreamAdmin) -> None:
        """After a lost answer, and whatever comes later."""
        task = opened(stream, admin, pod_count="2")
        record(stream, task)
        assert record(stream, task).status is Status.KNOWN
        assert record(stream, task, reason=Reason.ERROR).status is Status.KNOWN
        assert [result["outcome"] for result in admin.results()] == ["succeeded"]

    def test_of_many_threads_one_logs(self, stream: Stream, admin: StreamAdmin) -> None:
        """The reconciler and the worker's thread may see the same end."""
        task = opened(stream, admin, event_id="e-1")
        statuses: list[Status] = []
        threads = [threading.Thread(target=lambda: statuses.append(record(stream, task).status)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(status.name for status in statuses) == ["KNOWN"] * 7 + ["OK"]
        assert [result["kind"] for result in admin.results()] == ["worker", "task"]

    def test_of_an_old_attempt_is_refused(self, stream: Stream, admin: StreamAdmin) -> None:
        """A higher attempt is stored: its end counts."""
        task = opened(stream, admin)
        intend(stream, task, attempt=2)
        answer = record(stream, task, attempt=1)
        assert (answer.status, answer.attempt) == (Status.OLD_ATTEMPT, 2)
        assert admin.results() == []

    @pytest.mark.contract("5.ScaledDown")
    @pytest.mark.parametrize("reason", [Reason.ERROR, Reason.POD_DELETED])
    def test_a_cancel_wins_over_how_it_ended(self, stream: Stream, admin: StreamAdmin, reason: Reason) -> None:
        """What we ended was not deleted by somebody, and did not fail."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        intend(stream, task)
        stream.store_termination("e-1", None, 1, cancel())
        assert record(stream, task, reason=reason) == Answer(Status.OK, cancel(), 1)
        [result] = admin.results()
        told = {"outcome": "cancelled", "reason": "ScaledDown", "fault": "none", "message": "asked for by down-1"}
        assert result == result_of(task, 1, 1, reason) | told
        assert json.loads(admin.task("e-1")["worker:1"]) == result

    @pytest.mark.contract("5.Superseded")
    def test_a_cancel_is_recorded_without_any_attempt(self, stream: Stream, admin: StreamAdmin) -> None:
        """A worker that never started is cancelled under attempt 0, or under any that was stored."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        superseded = cancel(Reason.SUPERSEDED)
        for index in (1, 2):
            stream.store_termination("e-1", None, index, superseded)
        assert record(stream, task, 1, attempt=0, reason=Reason.SUPERSEDED).status is Status.OK
        assert record(stream, task, 2, attempt=1, reason=Reason.POD_LOST).status is Status.OK
        assert [result["reason"] for result in admin.results("worker")] == ["Superseded", "Superseded"]

    def test_a_cancel_is_recorded_under_any_attempt(self, stream: Stream, admin: StreamAdmin) -> None:
        """No attempt can follow, so any end is the end."""
        task = opened(stream, admin, event_id="e-1")
        intend(stream, task, attempt=2)
        stream.store_termination("e-1", None, 1, cancel())
        assert record(stream, task, attempt=1, reason=Reason.ERROR).status is Status.OK
        assert [result["reason"] for result in admin.results()] == ["ScaledDown", "ScaledDown"]

    @pytest.mark.contract("5.Completed")
    def test_a_success_wins_over_any_termination(self, stream: Stream, admin: StreamAdmin) -> None:
        """The pod finished before it could be ended."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        for index, termination in ((1, cancel()), (2, end(1))):
            intend(stream, task, index)
            stream.store_termination("e-1", task.owner, index, termination)
            record(stream, task, index)
        assert [result["reason"] for result in admin.results("worker")] == ["Completed", "Completed"]

    @pytest.mark.contract("5.PendingTimeout")
    def test_the_termination_of_this_attempt_wins(self, stream: Stream, admin: StreamAdmin) -> None:
        """We deleted the pod because it did not start: nobody else did."""
        task = opened(stream, admin, event_id="e-1", pod_count="2")
        intend(stream, task)
        stream.store_termination("e-1", task.owner, 1, end(1))
        record(stream, task, reason=Reason.POD_DELETED)
        [result] = admin.results()
        assert (result["outcome"], result["reason"], result["fault"]) == ("failed", "PendingTimeout", "infra")

    @pytest.mark.contract("2.RESULT_MAXLEN")
    def test_goes_to_a_bounded_stream(self, stream: Stream, admin: StreamAdmin) -> None:
        """About RESULT_MAXLEN results are kept; the trimming is by whole blocks of at most a hundred or so."""
        task = opened(stream, admin, pod_count="400")
        for index in range(1, 401):
            record(stream, task, index)
        assert RESULT_MAXLEN <= len(admin.results()) <= RESULT_MAXLEN + 200
        assert admin.results()[-1]["kind"] == "task"


class TestTaskResult:
    """The task's own result, with its last worker's."""

    @pytest.mark.contract("5.Completed")
    def test_comes_with_the_last_worker(self, stream: Stream, admin: StreamAdmin) -> None:
        """Not before, and after that worker's own."""
        task = opened(stream, admin, event_id="e-1", task_id="t-1", pod_count="3")
        assert [record(stream, task, index).finished for index in (3, 1)] == ["", ""]
        assert admin.results("task") == []
        assert record(stream, task, 2).finished == "All 3 workers completed successfully"
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
            ([_SUCCESS, _FAILURE, Reason.EVICTED], "failed", "Error", ("1", "2", "0")),
            ([_CANCEL, Reason.POD_LOST, _SUCCESS], "failed", "PodLost", ("1", "1", "1")),
            ([_SUCCESS, _CANCEL, Reason.SUPERSEDED], "cancelled", "ScaledDown", ("1", "0", "2")),
            ([_CANCEL, _CANCEL, _CANCEL], "cancelled", "ScaledDown", ("0", "0", "3")),
        ],
    )
    def test_sums_up_the_workers(
        self,
        stream: Stream,
        admin: StreamAdmin,
        reasons: list[Reason],
        outcome: str,
        reason: str,
        counts: tuple[str, str, str],
    ) -> None:
        """Cancelled if what did not succeed was cancelled, else failed; the reason is the first failing worker's."""
        task = opened(stream, admin, pod_count="3")
        for index, each in enumerate(reasons, start=1):
            record(stream, task, index, reason=each)
        [result] = admin.results("task")
        assert (result["outcome"], result["reason"]) == (outcome, reason)
        assert (result["succeeded"], result["failed"], result["cancelled"]) == counts
        assert result["message"] == f"{counts[0]} of 3 workers completed"

    def test_carries_what_the_event_passed_on(self, stream: Stream, admin: StreamAdmin) -> None:
        """Unchanged; a field whose name the result uses itself gets a prefix."""
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        record(stream, opened(stream, admin, traceparent=trace, repository="a/b", reason="nightly", odd="x\ny\u00fc"))
        [result] = admin.results("task")
        passed = {"traceparent": trace, "repository": "a/b", "event_reason": "nightly", "odd": "x\ny\u00fc"}
        assert passed.items() <= result.items()
        assert result["reason"] == "Completed"

    def test_closes_the_task(self, stream: Stream, admin: StreamAdmin) -> None:
        """It is not open, has no owner, and is forgotten after TASK_TTL_S."""
        task = opened(stream, admin, event_id="e-1")
        note_why(stream, "e-1", task.owner, "why", "when")
        assert admin.expires_in("e-1") is None
        record(stream, task)
        assert admin.open_ids() == set()
        shown = admin.task("e-1")
        assert (shown["state"], shown.get("owner"), shown["why"]) == ("finished", None, "")
        left = admin.expires_in("e-1")
        assert left is not None
        assert TASK_TTL_S - 60 < left <= TASK_TTL_S


class TestScaleDown:
    """The result of a scale_down."""

    @pytest.mark.contract("5.scale_down")
    def test_its_result_is_published_once(self, stream: Stream, admin: StreamAdmin) -> None:
        """And the task is closed by it."""
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1", repository="a/b")
        fields = {"kind": "scale_down", "event_id": "d-1", "task_id": "t-1", "outcome": "succeeded"}
        assert stream.finish("d-1", task.owner, fields).status is Status.OK
        assert stream.finish("d-1", task.owner, fields).status is Status.KNOWN
        assert admin.results() == [fields | {"repository": "a/b"}]
        assert (admin.open_ids(), admin.task("d-1")["state"]) == (set(), "finished")
        assert admin.expires_in("d-1") is not None
