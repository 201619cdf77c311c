"""The depth of JSON: the same limit wherever it is read, on every platform."""

from __future__ import annotations

import json
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.events import MAX_CARRIED_BYTES, BadEvent, DeadReason, ScaleEvent, decode, parse
from ottoscaler.core.nesting import MAX_JSON_DEPTH, json_depth

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text('"\\[]{} a'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[]{}'), inner, max_size=3),
)


def true_levels(value: object) -> int:
    """By what was parsed."""
    if isinstance(value, dict):
        return 1 + max(map(true_levels, value.values()), default=0)
    return 1 + max(map(true_levels, value), default=0) if isinstance(value, list) else 0


@given(VALUES)
def test_levels_are_those_of_the_value(value: object) -> None:
    """Brackets inside strings are none."""
    assert json_depth(json.dumps(value)) == true_levels(value)


@pytest.mark.parametrize("text", ['"', '"\\', "]]]][", '["[', "{" * 5, '\\"[', '"\\"[["'])
def test_what_is_not_json_is_counted_as_well(text: str) -> None:
    """As far as a parser may get."""
    assert 0 <= json_depth(text) <= 5


@pytest.mark.parametrize("text", ['"' * 65_536, '\\"' * 32_768, '"\\' * 32_768, "[" * 65_536, '["' * 32_768])
def test_no_text_takes_long(text: str) -> None:
    """Nothing is looked at twice, whatever a producer sends."""
    began = time.perf_counter()
    json_depth(text)
    assert time.perf_counter() - began < 1


def nested(depth: int) -> str:
    """A JSON object with the given number of levels."""
    return '{"a":' * depth + "1" + "}" * depth


def event(**fields: str) -> ScaleEvent | BadEvent:
    """What becomes of these fields."""
    return parse("1-1", {name.encode(): value.encode() for name, value in {"type": "scale_up", **fields}.items()}, 1000)


@pytest.mark.contract("3.limits")
def test_metadata_may_have_a_hundred_levels() -> None:
    """And not one more; the dead letter names both figures."""
    assert isinstance(event(metadata=nested(MAX_JSON_DEPTH)), ScaleEvent)
    bad = event(metadata=nested(MAX_JSON_DEPTH + 1))
    assert isinstance(bad, BadEvent)
    assert bad.detail == "field metadata has 101 levels, one inside the other; at most 100 are allowed"


@pytest.mark.parametrize("limit", [200, 100_000])
def test_the_limit_is_not_the_platforms(limit: int) -> None:
    """Whatever Python would allow, on a thread with a small stack: the same verdicts."""
    received: list[object] = []

    def look() -> None:
        received.extend(type(event(metadata=nested(depth))) for depth in (MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1, 10_000))

    usual, size = sys.getrecursionlimit(), threading.stack_size(512 * 1024)
    sys.setrecursionlimit(limit)
    try:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(usual)
        threading.stack_size(size)
    assert received == [ScaleEvent, BadEvent, BadEvent]


def test_a_stored_event_that_was_changed_is_no_event() -> None:
    """Any user with the right to edit pods can change a pod's annotation."""
    with pytest.raises(ValueError, match="levels"):
        decode('{"event_id":"e","stream_id":"1-1","type":"scale_up","pod_count":1,"x":' + nested(50_000) + "}")


@pytest.mark.contract("3.limits")
@pytest.mark.parametrize(("size", "count"), [(60_000, 140), (60_000, 1000), (8_400, 1000)])
def test_size_times_workers_is_limited(size: int, count: int) -> None:
    """Each pod carries its event: the dead letter says what each would, and how large it may be."""
    bad = event(reason="x" * size, pod_count=str(count))
    assert isinstance(bad, BadEvent)
    assert bad.reason is DeadReason.TOO_LARGE
    assert f"each of {count} workers" in bad.detail
    assert f"at most {MAX_CARRIED_BYTES} are allowed" in bad.detail
    assert f"{MAX_CARRIED_BYTES // count} per event" in bad.detail


@pytest.mark.parametrize(("size", "count"), [(60_000, 139), (60_000, 1), (8_200, 1000), (200, 1000)])
def test_events_of_an_ordinary_size_may_have_as_many_workers_as_there_may_be(size: int, count: int) -> None:
    """And the largest event more than a hundred; a scale_down creates no pod, so its pod_count multiplies nothing."""
    assert isinstance(event(reason="x" * size, pod_count=str(count)), ScaleEvent)
    assert isinstance(event(type="scale_down", reason="x" * size, pod_count="1000"), ScaleEvent)


@pytest.mark.contract("3.limits")
@pytest.mark.parametrize("count", [128, 256, 512])
def test_the_limit_itself_is_allowed_and_one_byte_more_is_not(count: int) -> None:
    """These counts divide it, so that an event can be exactly as large as allowed."""
    smallest = event(reason="", pod_count=str(count), note="x")
    assert isinstance(smallest, ScaleEvent)
    room = 1 + MAX_CARRIED_BYTES // count - len(smallest.encode().encode())
    largest = event(reason="", pod_count=str(count), note="x" * room)
    assert isinstance(largest, ScaleEvent)
    assert len(largest.encode().encode()) * count == MAX_CARRIED_BYTES
    assert isinstance(event(reason="", pod_count=str(count), note="x" * (room + 1)), BadEvent)
