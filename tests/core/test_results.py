"""Results: the table of reasons, and the fields of a worker's entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.results import RESULT_FIELDS, common_fields, rfc3339, task_outcome, worker_result
from ottoscaler.core.verdicts import EndReason, FaultOrigin, Outcome, RetryBudget, Verdict
from tests.core.builders import NOW, event, failed, pod, running

contract = pytest.mark.contract

USER, CONFIG, INFRA, NOBODY = FaultOrigin.USER, FaultOrigin.CONFIG, FaultOrigin.INFRA, FaultOrigin.NONE
FAILED, CANCELLED = Outcome.FAILED, Outcome.CANCELLED
#: The table of the contract, section 5, written down again: a change of the code's has to be made here too.
ROWS = [
    ("Completed", Outcome.SUCCEEDED, NOBODY, RetryBudget.NEVER),
    ("Error", FAILED, USER, RetryBudget.WORKER),
    ("OOMKilled", FAILED, USER, RetryBudget.WORKER),
    ("DeadlineExceeded", FAILED, USER, RetryBudget.NEVER),
    ("InvalidImage", FAILED, CONFIG, RetryBudget.NEVER),
    ("ImagePull", FAILED, CONFIG, RetryBudget.NEVER),
    ("ConfigError", FAILED, CONFIG, RetryBudget.NEVER),
    ("Rejected", FAILED, CONFIG, RetryBudget.NEVER),
    ("NameConflict", FAILED, CONFIG, RetryBudget.NEVER),
    ("CommandNotFound", FAILED, CONFIG, RetryBudget.NEVER),
    ("ServiceNotReady", FAILED, CONFIG, RetryBudget.NEVER),
    ("ImagePullTransient", FAILED, INFRA, RetryBudget.INFRA),
    ("Evicted", FAILED, INFRA, RetryBudget.INFRA),
    ("Preempted", FAILED, INFRA, RetryBudget.INFRA),
    ("NodeLost", FAILED, INFRA, RetryBudget.INFRA),
    ("PodLost", Outcome.LOST, INFRA, RetryBudget.INFRA),
    ("StartError", FAILED, INFRA, RetryBudget.INFRA),
    ("PendingTimeout", FAILED, INFRA, RetryBudget.NEVER),
    ("Unschedulable", FAILED, INFRA, RetryBudget.NEVER),
    ("PodDeleted", FAILED, USER, RetryBudget.NEVER),
    ("ScaledDown", CANCELLED, NOBODY, RetryBudget.NEVER),
    ("Superseded", CANCELLED, NOBODY, RetryBudget.NEVER),
    ("NotAfter", Outcome.EXPIRED, USER, RetryBudget.NEVER),
    ("Poison", FAILED, INFRA, RetryBudget.NEVER),
]


@pytest.mark.parametrize(
    ("reason", "outcome", "fault", "retry"),
    [pytest.param(*row, marks=contract(f"5.{row[0]}"), id=row[0]) for row in ROWS],
)
@contract("5.outcome")
@contract("5.fault")
def test_a_reason_has_its_row(reason: str, outcome: Outcome, fault: FaultOrigin, retry: RetryBudget) -> None:
    """How it ended, where the fault lies, and which side tries again."""
    end = Verdict(EndReason(reason))
    assert (end.reason.outcome, end.reason.fault, end.reason.retry) == (outcome, fault, retry)


def test_every_reason_has_a_row_here() -> None:
    """A new reason is a promise to users: it belongs into the table."""
    assert {row[0] for row in ROWS} == set(EndReason)


@contract("5.kind")
@contract("5.event_id")
@contract("5.task_id")
@contract("5.reason")
@contract("5.message")
@contract("5.pod")
@contract("5.pod_uid")
@contract("5.node")
@contract("5.attempt")
@contract("5.index")
@contract("5.created_at")
@contract("5.scheduled_at")
@contract("5.started_at")
@contract("5.output")
def test_a_workers_result_is_shown_in_full() -> None:
    """Every field of the contract, all of it text."""
    result = worker_result(
        event(traceparent="00-aa", passed_on={"job_id": "7"}),
        2,
        1,
        Verdict(EndReason.ERROR, "the worker exited with code 3"),
        failed(3, scheduled_at=NOW + 0.5, output="no such branch"),
        NOW + 60,
    )
    assert result == {
        "kind": "worker",
        "event_id": "e-1",
        "task_id": "t",
        "outcome": "failed",
        "reason": "Error",
        "message": "the worker exited with code 3",
        "fault": "user",
        "index": "2",
        "attempt": "1",
        "exit_code": "3",
        "pod": "otto-agent-0123456789-1",
        "pod_uid": "u-1",
        "node": "n-1",
        "created_at": "2024-05-01T10:00:00.000Z",
        "scheduled_at": "2024-05-01T10:00:00.500Z",
        "started_at": "2024-05-01T10:00:01.000Z",
        "finished_at": "2024-05-01T10:00:05.000Z",
        "output": "no such branch",
        "traceparent": "00-aa",
        "job_id": "7",
    }


def test_a_worker_that_never_had_a_pod_has_a_result_all_the_same() -> None:
    """The same fields, empty where nothing is known; it ended now."""
    result = worker_result(event(), 1, 0, Verdict(EndReason.SCALED_DOWN), None, NOW)
    empty = {name for name, value in result.items() if value == ""}
    times = {"created_at", "scheduled_at", "started_at"}
    assert empty == times | {"message", "exit_code", "pod", "pod_uid", "node", "output"}
    assert result["finished_at"] == "2024-05-01T10:00:00.000Z"


@contract("5.exit_code")
def test_exit_code_zero_is_not_unknown() -> None:
    """Zero is a code, an empty field is none."""
    assert worker_result(event(), 1, 1, Verdict(EndReason.COMPLETED), failed(0), NOW)["exit_code"] == "0"
    assert worker_result(event(), 1, 1, Verdict(EndReason.NODE_LOST), running(), NOW)["exit_code"] == ""


@contract("5.finished_at")
def test_a_pod_without_an_end_of_its_own_ended_now() -> None:
    """The replica that saw it go gives the time."""
    assert worker_result(event(), 1, 1, Verdict(EndReason.POD_DELETED), pod(), NOW + 9)["finished_at"] == rfc3339(
        NOW + 9
    )


def test_a_message_is_cut_at_a_thousand_characters() -> None:
    """A registry's page of HTML does not belong into Redis."""
    assert len(worker_result(event(), 1, 1, Verdict(EndReason.ERROR, "x" * 5000), None, NOW)["message"]) == 1000


@contract("3.passed-on")
@given(st.dictionaries(st.sampled_from(sorted(RESULT_FIELDS)), st.text(max_size=3)))
def test_a_passed_on_field_never_hides_one_of_the_results_own(passed_on: dict[str, str]) -> None:
    """It goes in under event_<name>."""
    end = Verdict(EndReason.ERROR, "m")
    plain = worker_result(event(), 1, 1, end, failed(), NOW)
    assert worker_result(event(passed_on=passed_on), 1, 1, end, failed(), NOW) == plain | {
        f"event_{name}": value for name, value in passed_on.items()
    }


#: Names that could meet in a result: the result's own, each behind up to three `event_`, and what is left without it.
NAMES = sorted(
    {f"{'event_' * times}{name}" for name in RESULT_FIELDS for times in range(4)}
    | {name.removeprefix("event_") for name in RESULT_FIELDS}
    | {"event_", "event_event_", "event_x", "x", "mine", "reasons", "myevent_reason", "event_reasons"}
)


@contract("3.passed-on")
def test_no_two_passed_on_fields_ever_meet() -> None:
    """All names at once: each comes back under a name of its own, and none is one of the result's."""
    given = {name: f"value of {name}" for name in NAMES if name not in ("event_id", "traceparent")}
    back = common_fields(event(passed_on=given), RESULT_FIELDS)
    assert sorted(back.values()) == sorted(given.values())
    assert not back.keys() & RESULT_FIELDS
    assert {name for name in given if back.get(name) == given[name]} >= {"x", "mine", "reasons", "event_x"}
    assert back["event_reason"] == "value of reason"
    assert back["event_event_reason"] == "value of event_reason"


@contract("3.passed-on")
@given(st.dictionaries(st.sampled_from(NAMES) | st.from_regex(r"(event_){0,3}[a-z]{1,3}", fullmatch=True), st.text()))
def test_none_is_lost_whatever_the_names(passed_on: dict[str, str]) -> None:
    """As many come back as were sent."""
    back = common_fields(event(passed_on=passed_on), RESULT_FIELDS)
    assert sorted(back.values()) == sorted(passed_on.values())


@contract("3.passed-on")
@contract("3.traceparent")
def test_what_was_passed_on_comes_back_unchanged() -> None:
    """With the trace context, where there is one."""
    assert common_fields(event(passed_on={"job_id": " ä "}), RESULT_FIELDS) == {"job_id": " ä "}
    assert common_fields(event(traceparent="00-aa"), RESULT_FIELDS) == {"traceparent": "00-aa"}


def test_the_names_of_a_result_are_all_reserved() -> None:
    """Or a passed-on field could overwrite one."""
    result = worker_result(event(traceparent="x"), 1, 1, Verdict(EndReason.ERROR), failed(), NOW)
    assert set(result) <= RESULT_FIELDS


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["succeeded", "succeeded"], "succeeded"),
        (["succeeded", "cancelled"], "cancelled"),
        (["cancelled"], "cancelled"),
        (["succeeded", "cancelled", "failed"], "failed"),
        (["expired", "cancelled"], "failed"),
        (["lost"], "failed"),
    ],
)
def test_a_task_ends_as_its_workers_did(outcomes: list[str], expected: str) -> None:
    """One failure is the task's; a cancelled worker is none."""
    assert task_outcome(outcomes) == expected


@contract("5.finished_at")
@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, ""),
        (0.0, "1970-01-01T00:00:00.000Z"),
        (NOW, "2024-05-01T10:00:00.000Z"),
        (NOW + 0.25, "2024-05-01T10:00:00.250Z"),
    ],
)
def test_times_are_utc_with_milliseconds(at: float | None, text: str) -> None:
    """RFC 3339; empty for none."""
    assert rfc3339(at) == text
