"""What is kept of an event (its JSON, its digest, the original of a dead letter), and that no bytes can break it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ottoscaler.core import events
from ottoscaler.core.events import (
    BadEvent,
    EventType,
    ScaleDownMode,
    ScaleEvent,
    content_digest,
    content_fields,
    encode_original_fields,
    parse,
)
from ottoscaler.core.fields import REQUEST_FIELDS
from tests.core.builders import STREAM_ID, event

contract = pytest.mark.contract

Fields = Mapping[bytes, bytes]

KNOWN = sorted(
    name.encode() for name in REQUEST_FIELDS | events.OVERRIDE_FIELDS | events.RESERVED_FIELDS | {"metadata", "reason"}
)
VALUES = [b"", b"scale_up", b"scale_down", b"kill", b"drain", b"1", b"0", b"1-1", b"a", b"{}", b"\xff", b"\0"]

blobs = st.binary(max_size=30)
any_fields = st.dictionaries(st.sampled_from(KNOWN) | blobs, st.sampled_from(VALUES) | blobs, max_size=5)
ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,20}", fullmatch=True).map(str.encode)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40).map(str.encode)
#: Fields that mostly make an event: with nothing but noise, hypothesis would rarely find one.
likely_fields = st.fixed_dictionaries(
    {
        b"type": st.sampled_from([b"scale_up", b"scale_down"]),
        b"pod_count": st.integers(1, 1000).map(lambda n: b"%d" % n),
    },
    optional={b"task_id": ids, b"event_id": ids, b"mine": texts, b"reason": texts, b"metadata": st.just(b'{"a": 1}')},
)


@settings(max_examples=500)  # `make fuzz` tries a million
@given(st.booleans(), any_fields)
def test_nothing_that_redis_can_hold_makes_parse_raise(typed: bool, noise: dict[bytes, bytes]) -> None:
    """It is an event or it is none, and then a printable line says why."""
    result = parse(STREAM_ID, ({b"type": b"scale_up"} | noise) if typed else noise, 1000)
    if isinstance(result, BadEvent):
        assert result.detail.isprintable()
        assert result.detail


@contract("4.annotations")
@given(likely_fields)
def test_an_accepted_event_survives_its_own_json(fields: Fields) -> None:
    """What is read back from Redis or from a pod is the event that was accepted."""
    result = parse(STREAM_ID, fields, 1000)
    assume(isinstance(result, ScaleEvent))
    assert isinstance(result, ScaleEvent)
    assert events.decode(result.encode()) == result


@contract("3.redrive")
@given(likely_fields)
def test_an_accepted_event_can_be_sent_again(fields: Fields) -> None:
    """Redis was wiped and only its JSON is left: the fields that it gives make the same event."""
    result = parse(STREAM_ID, fields, 1000)
    assume(isinstance(result, ScaleEvent))
    assert isinstance(result, ScaleEvent)
    again = {name.encode(): value.encode() for name, value in result.as_sent().items()}
    assert parse(STREAM_ID, again, 1000) == result


def test_every_field_of_an_event_is_kept() -> None:
    """Also those that differ from their defaults."""
    full = event(
        type=EventType.SCALE_DOWN, mode=ScaleDownMode.DRAIN, supersedes="k", traceparent="t", passed_on={"a": "b"}
    )
    assert events.decode(full.encode()) == full


def test_an_event_stored_under_wider_limits_is_still_read() -> None:
    """A lower MAX_PODS_PER_EVENT must not lose tasks that run."""
    assert events.decode(event(pod_count=10**6).encode()).pod_count == 10**6


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"event_id": 1}', b"\xff", '{"type": "scale_sideways"}'])
def test_json_that_is_no_event_is_a_msgspec_error(text: str | bytes) -> None:
    """The one error of decode, for a damaged hash or a foreign annotation."""
    with pytest.raises(msgspec.MsgspecError):
        events.decode(text)


@contract("3.event_id")
@given(any_fields, any_fields)
def test_digests_are_equal_only_for_equal_content(one: Fields, other: Fields) -> None:
    """They distinguish a resent event from a conflicting one."""
    assert (content_digest(one) == content_digest(other)) == (_canonical(one) == _canonical(other))


def _canonical(fields: Fields) -> Fields:
    """The content, with one name for pod_count."""
    kept = content_fields(fields)
    if kept.get(b"pod_count") in (None, kept.get(b"target_replicas")) and b"target_replicas" in kept:
        kept[b"pod_count"] = kept.pop(b"target_replicas")
    return kept


@contract("3.event_id")
@given(st.dictionaries(blobs, blobs, min_size=2, max_size=6))
def test_the_order_of_fields_does_not_change_the_digest(fields: dict[bytes, bytes]) -> None:
    """Producers build their fields from maps."""
    assert content_digest(dict(reversed(fields.items()))) == content_digest(fields)


@contract("3.event_id")
@pytest.mark.parametrize(
    "other", [{b"ab": b"c"}, {b"a": b"bc", b"": b""}, {b"a": b"", b"bc": b""}, {b"a": b"1:bc"}, {b"a2": b"bc"}]
)
def test_the_digest_keeps_names_and_values_apart(other: Fields) -> None:
    """Moving a byte across a border is another content."""
    assert content_digest({b"a": b"bc"}) != content_digest(other)


@contract("3.event_id")
@pytest.mark.parametrize("name", [b"a2:bc0:d", b"a2:bc1:d", b"a0:bc1:d", b"abcd", b"a0:bc0:d"])
def test_no_name_can_pass_for_several_fields(name: bytes) -> None:
    """Also one that is written like the digest's own input."""
    assert content_digest({name: b"e"}) != content_digest({b"a": b"bc", b"d": b"e"})


@contract("3.dead-letter")
@given(any_fields)
def test_the_original_of_a_dead_letter_is_json(fields: Fields) -> None:
    """Whatever the bytes were: a JSON object, and UTF-8."""
    assert isinstance(json.loads(encode_original_fields(fields).encode()), dict)


@contract("3.dead-letter")
@given(st.dictionaries(texts, texts | blobs, max_size=6))
def test_the_original_gives_every_value_back(fields: Fields) -> None:
    """Text as text, other bytes as base64: enough to send the event again."""
    kept = json.loads(encode_original_fields(fields))
    assert {name.encode(): _bytes(value) for name, value in kept.items()} == fields


def _bytes(value: str | dict[str, str]) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


@contract("3.dead-letter")
def test_an_original_up_to_1_mib_is_whole() -> None:
    """Names count as well as values: exactly the limit."""
    fields = {b"a": b"x" * (1024 * 1024 - 1)}
    assert json.loads(encode_original_fields(fields)) == {"a": fields[b"a"].decode()}


@contract("3.dead-letter")
def test_an_original_above_1_mib_is_cut_and_marked() -> None:
    """The fields before the one that is too much stay readable."""
    fields = {b"type": b"scale_up", b"a": b"x" * (1024 * 1024), b"b": b"y"}
    assert json.loads(encode_original_fields(fields)) == {"cut": True, "fields": {"type": "scale_up"}}


@contract("3.dead-letter")
@pytest.mark.parametrize("number", [2, 3, 5, 16])
@pytest.mark.parametrize("too_much", [0, 1])
def test_the_fields_of_an_original_count_together(number: int, too_much: int) -> None:
    """Each is small: what is kept is what fits, up to exactly the limit."""
    sizes = [1024 * 1024 // number] * (number - 1)
    sizes.append(1024 * 1024 - sum(sizes) + too_much)
    fields = {b"%02d" % at: b"x" * (size - 2) for at, size in enumerate(sizes)}
    whole = {name.decode(): value.decode() for name, value in fields.items()}
    kept = dict(list(whole.items())[:-1])
    assert json.loads(encode_original_fields(fields)) == ({"cut": True, "fields": kept} if too_much else whole)


@contract("3.dead-letter")
def test_a_field_named_cut_does_not_mark_an_original() -> None:
    """`cut` is a field name like any other."""
    assert json.loads(encode_original_fields({b"cut": b"yes", b"a": b"b"})) == {"cut": "yes", "a": "b"}
