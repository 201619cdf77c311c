"""What an event may override without a policy: which values are taken, and that workers get them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ottoscaler.core import events
from ottoscaler.core.events import BadEvent, DeadReason, ScaleEvent, parse
from ottoscaler.core.manifest import AttemptKey, build_pod
from ottoscaler.core.overrides import FIELDS_WITHOUT_POLICY, MAX_DEADLINE_S, NO_OVERRIDES, Most, Overrides, numbers
from ottoscaler.core.policy import Rules
from ottoscaler.core.refusal import Violation
from ottoscaler.settings import WorkerSettings
from tests.core.builders import HASH, STREAM_ID

contract = pytest.mark.contract

SIX_HOURS = Rules(max_deadline_s=21_600)


def parsed(rules: Rules = SIX_HOURS, **fields: str) -> ScaleEvent | BadEvent:
    """A scale_up with these fields, or an event of another type."""
    texts = {"type": "scale_up"} | fields
    return parse(STREAM_ID, {name.encode(): value.encode() for name, value in texts.items()}, 1000, rules)


def overridden(rules: Rules = SIX_HOURS, **fields: str) -> Overrides:
    """What an event with these fields overrides."""
    found = parsed(rules, **fields)
    assert isinstance(found, ScaleEvent), found
    return found.overrides


def refused(rules: Rules = SIX_HOURS, **fields: str) -> str:
    """Why an event with these fields is refused."""
    found = parsed(rules, **fields)
    assert isinstance(found, BadEvent), found
    assert found.reason is DeadReason.INVALID
    return found.detail


def value_of(name: str, text: str) -> Any:
    """One field as it is read. Raises Violation."""
    return numbers({name: text}, Most())[name]


def test_an_event_without_them_overrides_nothing() -> None:
    """And its JSON is as short as before."""
    found = parsed()
    assert isinstance(found, ScaleEvent)
    assert found.overrides == NO_OVERRIDES
    assert "overrides" not in found.encode()


@contract("3.deadline_s")
@pytest.mark.parametrize("text", ["1", "0900", "21600"])
def test_a_deadline_is_up_to_the_configured_one(text: str) -> None:
    """In seconds, as a whole number."""
    assert overridden(deadline_s=text).deadline_s == int(text)


@contract("3.deadline_s")
@pytest.mark.parametrize("text", ["0", "21601", "-1", "1.5", "1e3", "NaN", "one", " 1", "1\n", "٣", "9" * 30])
def test_any_other_deadline_is_refused(text: str) -> None:
    """The message names the variable that sets the limit."""
    assert refused(deadline_s=text) == (
        f"field deadline_s is {json.dumps(text)}; a whole number from 1 to 21600 is expected (WORKER_DEADLINE_S)"
    )


@contract("3.deadline_s")
def test_without_a_configured_deadline_thirty_days_are_the_limit() -> None:
    """WORKER_DEADLINE_S=0: jobs may run for days."""
    assert overridden(Rules(), deadline_s=str(MAX_DEADLINE_S)).deadline_s == 2_592_000
    assert "from 1 to 2592000 is expected" in refused(Rules(), deadline_s=str(MAX_DEADLINE_S + 1))


@contract("3.deadline_s")
@pytest.mark.parametrize("configured", [0, 3600])
def test_the_kubelet_gets_the_events_deadline(configured: int) -> None:
    """Instead of the configured one, or of none."""
    found = parsed(Rules(max_deadline_s=configured), deadline_s="90")
    assert isinstance(found, ScaleEvent)
    template = WorkerSettings(deadline_s=configured)
    key = AttemptKey(HASH, 1, 1)
    pod = json.loads(build_pod(template, found, key, event_json=found.encode(), instance="otto", namespace="ci"))
    assert pod["spec"]["activeDeadlineSeconds"] == 90


@contract("3.retries")
@pytest.mark.parametrize(("text", "number"), [("0", 0), ("3", 3), ("010", 10)])
def test_retries_are_up_to_ten(text: str, number: int) -> None:
    """Zero is not the same as not set."""
    assert overridden(retries=text).retries == number
    assert overridden().retries is None


@contract("3.retries")
@pytest.mark.parametrize("text", ["11", "-1", "x", "1.0"])
def test_other_retries_are_refused(text: str) -> None:
    """With what is allowed."""
    assert refused(retries=text) == f'field retries is "{text}"; a whole number from 0 to 10 is expected'


@contract("3.overrides")
@pytest.mark.parametrize("name", sorted(FIELDS_WITHOUT_POLICY))
def test_a_scale_down_has_no_overrides(name: str) -> None:
    """It starts no workers."""
    assert refused(type="scale_down", task_id="t", **{name: "1"}) == f"field {name} belongs to scale_up only; remove it"


@contract("3.overrides")
def test_an_event_keeps_what_it_was_accepted_with() -> None:
    """Through its JSON, under which another process takes it up, and when it is sent again."""
    found = parsed(deadline_s="90", retries="0")
    assert isinstance(found, ScaleEvent)
    assert events.decode(found.encode()) == found
    sent = {"type": "scale_up", "pod_count": "1", "task_id": STREAM_ID}
    assert found.as_sent() == sent | {"deadline_s": "90", "retries": "0"}
    assert found.passed_on == {}


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("9", 9)])
def test_a_priority_has_one_digit(text: str, number: int) -> None:
    """From 0 to 9."""
    assert value_of("priority", text) == number


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2024-05-01T10:00:00Z", 1714557600.0),
        ("2024-05-01t12:30:00.25+02:30", 1714557600.25),
        ("2024-05-01T10:00:00.123456789z", 1714557600.123456),
        ("2024-05-01T05:00:00-05:00", 1714557600.0),
    ],
)
def test_a_time_is_one_of_rfc_3339(text: str, at: float) -> None:
    """With its zone, in upper or lower case; what is beyond microseconds does not count."""
    assert value_of("not_after", text) == at


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("priority", "10"),
        ("priority", "-1"),
        ("keep_failed_s", "604801"),
        *(
            ("not_after", text)
            for text in [
                "2024-05-01",
                "2024-05-01T10:00:00",
                "2024-05-01 10:00:00Z",
                "20240501T100000Z",
                "2024-W18-3T10:00:00Z",
                "2024-02-30T10:00:00Z",
                "0000-01-01T00:00:00Z",
                "2024-05-01T24:00:00Z",
                "2024-05-01T10:00:60Z",
                "2024-05-01T10:00:00+2:00",
                "2024-05-01T10:00:00Z\n",
                "1714557600",
                "tomorrow",
                "٢024-05-01T10:00:00Z",
            ]
        ),
    ],
)
def test_other_values_are_refused(name: str, text: str) -> None:
    """The message has the field, its value and what is expected."""
    with pytest.raises(Violation) as fault:
        value_of(name, text)
    assert str(fault.value).startswith(f"field {name} is {json.dumps(text)}; a ")
