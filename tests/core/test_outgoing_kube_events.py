"""Kubernetes Events: what they say, within the limits of the API, and how many there are about one object."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.event_series import BURST, MAX_REMEMBERED, REFILL_S, EventSeries
from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.outgoing_kube_events import (
    MAX_NOTE_BYTES,
    EventReason,
    KubeEvent,
    PodReference,
    dead_letter_event,
    event_name,
    lease_lost_event,
    new_event,
    note_text,
    quota_event,
    repeated_event,
)

pytestmark = pytest.mark.contract("2.KUBERNETES_EVENTS")
POD = PodReference("otto-agent-0123456789-1", "uid-1")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@given(st.text(max_size=3000))
def test_no_text_breaks_a_limit_of_the_api(text: str) -> None:
    """Its size counts in bytes; nothing in it moves a reader's terminal."""
    made = note_text(text)
    assert len(made.encode()) <= MAX_NOTE_BYTES
    assert made.isprintable()
    assert "  " not in made


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand \x1b[31mred\x00", "two lines and [31mred"),
        ("lone \ud800 half", "lone half"),
        ("a" * 1024, "a" * 1024),
        ("a" * 1025, "a" * 1021 + "…"),
        ("ü" * 600, "ü" * 510 + "…"),
    ],
)
def test_a_text_is_one_line_that_ends_with_a_whole_character(text: str, shown: str) -> None:
    """A mark says that something is missing."""
    assert note_text(text) == shown


@pytest.mark.parametrize("name", ["otto-agent-0123456789-1", "a" * 253, "a" * 199 + "." + "b" * 53, "a" * 199 + "-bc"])
def test_the_name_is_one_that_the_api_takes(name: str) -> None:
    """A DNS subdomain, whatever the name of the pod."""
    made = event_name(PodReference(name, "u"), "0123456789abcdef")
    assert len(made) <= 253
    assert SUBDOMAIN.fullmatch(made)


def test_an_event_and_its_repetition() -> None:
    """As core/v1 has them."""
    event = KubeEvent(EventReason.WORKER_FAILED, "failed: Error", POD)
    body = json.loads(new_event(event, POD, name="n", namespace="ns", at=1700000000.9, count=2, instance="c" * 200))
    about = {"apiVersion": "v1", "kind": "Pod", "name": POD.name, "namespace": "ns", "uid": "uid-1"}
    assert (body["involvedObject"], body["metadata"]) == (about, {"name": "n", "namespace": "ns"})
    assert (body["type"], body["reason"], body["message"]) == ("Warning", "WorkerFailed", "failed: Error")
    assert (body["count"], body["firstTimestamp"], body["lastTimestamp"]) == (2, *["2023-11-14T22:13:20Z"] * 2)
    assert body["source"] == {"component": "ottoscaler"}
    assert len(body["reportingInstance"]) == 128
    again = json.loads(repeated_event(event, count=3, at=1700000060.0))
    assert again == {"count": 3, "lastTimestamp": "2023-11-14T22:14:20Z", "message": "failed: Error"}


def test_what_is_about_the_controller_names_the_case() -> None:
    """Each has the id by which the case is found elsewhere."""
    bad = BadEvent(DeadReason.INVALID, "pod_count=x: expected a number", "e-1", "t-1")
    assert dead_letter_event("e-1", bad).message == "Dead letter e-1: Invalid (pod_count=x: expected a number)"
    assert lease_lost_event("e-1", "c2").message == "Task e-1 was taken over by c2"
    assert quota_event("otto-agent-1", "the quota is used up").reason is EventReason.QUOTA_USED_UP
    assert {one.reason.event_type for one in (lease_lost_event("", ""), dead_letter_event("", bad))} == {"Warning"}


def test_an_object_has_a_budget_that_fills_up_again() -> None:
    """25 at once, then one every five minutes; another object has its own."""
    series = EventSeries()
    assert [series.take("a", 0.0) for _ in range(BURST + 2)] == [True] * BURST + [False] * 2
    assert series.take("b", 0.0)
    assert not series.take("a", REFILL_S - 1)
    assert [series.take("a", REFILL_S) for _ in range(2)] == [True, False]
    assert [series.take("a", 1000 * REFILL_S) for _ in range(BURST + 1)] == [True] * BURST + [False]


def test_what_is_not_written_counts_all_the_same() -> None:
    """The next that is written says how often it has happened."""
    series = EventSeries()
    assert [series.add("a", "DeadLetter", times).count for times in (1, 5, 1)] == [1, 6, 7]
    assert series.add("a", "LeaseLost", 1).count == 1


def test_memory_is_bounded() -> None:
    """The oldest goes first."""
    series = EventSeries()
    for number in range(MAX_REMEMBERED + 1):
        series.add(str(number), "r", 1)
        series.take(str(number), 0.0)
    assert series.add("0", "r", 1).count == 1
    assert series.add(str(MAX_REMEMBERED), "r", 1).count == 2


def test_what_still_happens_is_not_forgotten() -> None:
    """The oldest is the one to which nothing has happened for longest: else its budget would be full again."""
    series = EventSeries()
    for number in range(MAX_REMEMBERED):
        series.add(str(number), "r", 1)
        series.take(str(number), 0.0)
    assert series.add("0", "r", 1).count == 2
    assert [series.take("0", 0.0) for _ in range(BURST)] == [True] * (BURST - 1) + [False]
    series.add("new", "r", 1)
    series.take("new", 0.0)
    assert series.add("0", "r", 1).count == 3
    assert not series.take("0", 0.0)
