"""What a producer may send: each rule of an event with values that keep it and values that break it."""

from __future__ import annotations

import pytest

from ottoscaler.core import events
from ottoscaler.core.events import (
    BadEvent,
    DeadReason,
    EventType,
    ScaleDownMode,
    ScaleEvent,
    content_digest,
    ignored_fields_warning,
    parse,
)
from ottoscaler.core.fields import REQUEST_FIELDS
from ottoscaler.core.overrides import FIELDS_WITHOUT_POLICY, OVERRIDE_FIELDS
from tests.core.builders import STREAM_ID

contract = pytest.mark.contract

#: A JSON object all right, but deeper than any parser follows.
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def good(**fields: bytes) -> ScaleEvent:
    """The event of a scale_up with these fields."""
    return _good({b"type": b"scale_up"} | _named(fields))


def good_down(**fields: bytes) -> ScaleEvent:
    """The event of a scale_down with these fields."""
    return _good({b"type": b"scale_down"} | _named(fields))


def bad(fields: dict[bytes, bytes]) -> BadEvent:
    """Why these fields, with an otherwise good scale_up, are no event."""
    result = parse(STREAM_ID, {b"type": b"scale_up"} | fields, 1000)
    assert isinstance(result, BadEvent), result
    return result


def _named(fields: dict[str, bytes]) -> dict[bytes, bytes]:
    return {name.encode(): value for name, value in fields.items()}


def _good(fields: dict[bytes, bytes]) -> ScaleEvent:
    result = parse(STREAM_ID, fields, 1000)
    assert isinstance(result, ScaleEvent), result
    return result


@contract("3.type")
@contract("3.pod_count")
@contract("3.task_id")
@contract("3.event_id")
@contract("3.mode")
def test_the_smallest_event_takes_every_default() -> None:
    """One worker, task and event named by the entry's id."""
    assert good() == ScaleEvent(STREAM_ID, STREAM_ID, EventType.SCALE_UP, 1, STREAM_ID, ScaleDownMode.KILL)


@contract("3.task_id")
def test_the_task_is_named_by_the_entry_even_if_the_producer_named_the_event() -> None:
    """The default of task_id is the entry's id, whatever the event_id."""
    assert good(event_id=b"mine").task_id == STREAM_ID


@contract("3.type")
@pytest.mark.parametrize("value", [b" ", b"scale", b"SCALE_UP", b"scale_up ", b"scale_up\n", "scale_ùp".encode()])
def test_an_unknown_type_is_refused(value: bytes) -> None:
    """Only the two types, exactly as written."""
    assert "scale_up or scale_down is expected" in bad({b"type": value}).detail


@contract("3.type")
def test_an_event_without_a_type_is_refused() -> None:
    """There is no default type."""
    result = parse(STREAM_ID, {b"pod_count": b"1"}, 1000)
    assert isinstance(result, BadEvent)
    assert (result.reason, result.detail[:21]) == (DeadReason.INVALID, "field type is missing")


@contract("3.type")
@contract("3.pod_count")
@contract("3.task_id")
@pytest.mark.parametrize(
    ("sent", "name"),
    [
        *[(sent, "type") for sent in ("typ", "tpye", "typo", "typee", "types", "event_type", "type_")],
        *[(sent, "pod_count") for sent in ("podcount", "pod_cnt", "pods_count", "count", "pod_coutn")],
        *[(sent, "target_replicas") for sent in ("replicas", "target_replica", "targetreplicas")],
        *[(sent, "task_id") for sent in ("taskid", "task", "tsak_id", "task_ids")],
    ],
)
def test_what_was_sent_in_place_of_a_missing_field_is_named(sent: str, name: str) -> None:
    """The producer sees at once what was misspelt."""
    given = {sent.encode(): b"7"} | ({} if name == "type" else {b"type": b"scale_down"})
    result = parse(STREAM_ID, given, 1000)
    assert isinstance(result, BadEvent)
    assert result.detail.startswith(f"field {'type' if name == 'type' else 'pod_count'} is missing; ")
    assert result.detail.endswith(f"; field {sent} was sent: did you mean {name}?")


@contract("3.type")
@pytest.mark.parametrize("sent", sorted(events.KNOWN_FIELDS - {"type", "pod_count", "target_replicas", "task_id"}))
def test_a_field_with_a_meaning_stands_for_no_missing_one(sent: str) -> None:
    """Nor does one of the producer's own that is like none of ours."""
    for fields in ({}, {b"type": b"scale_down"}):
        result = parse(STREAM_ID, {sent.encode(): b"", b"note": b"1", b"id": b"1", **fields}, 1000)
        assert isinstance(result, BadEvent)
        assert "is missing; " in result.detail
        assert "did you mean" not in result.detail


@pytest.mark.parametrize(
    ("sent", "name"),
    [("Type", "type"), ("podCount", "pod_count"), ("task-id", "task_id"), ("TRACEPARENT", "traceparent")],
)
def test_a_field_name_of_another_form_is_refused_with_the_one_that_was_meant(sent: str, name: str) -> None:
    """Fields have small letters and underscores."""
    assert bad({sent.encode(): b"1"}).detail.endswith(f"; did you mean {name}?")


@contract("3.pod_count")
@pytest.mark.parametrize(("value", "count"), [(b"1", 1), (b"3", 3), (b"007", 7), (b"1000", 1000)])
def test_pod_count_is_a_whole_number_from_one(value: bytes, count: int) -> None:
    """Up to the limit of the configuration."""
    assert good(pod_count=value).pod_count == count


@contract("3.pod_count")
@pytest.mark.parametrize(
    "value",
    [
        b"0",
        b"000",
        b"-1",
        b"+1",
        b" 1",
        b"1 ",
        b"1\n",
        b"1.0",
        b"1e3",
        b"0x1",
        b"one",
        b"9" * 10,
        "٣".encode(),
        "²".encode(),
    ],
)
@pytest.mark.parametrize("name", ["pod_count", "target_replicas"])
@pytest.mark.contract("2.MAX_PODS_PER_EVENT")
def test_any_other_pod_count_is_refused(name: str, value: bytes) -> None:
    """Also what Python's int would take; the field that was sent is named."""
    result = bad({name.encode(): value})
    assert result.reason is DeadReason.INVALID
    assert result.detail.startswith(f"field {name} is ")
    assert "a whole number from 1 is expected" in result.detail


@contract("3.pod_count")
@pytest.mark.parametrize("name", ["pod_count", "target_replicas"])
def test_more_workers_than_allowed_are_refused(name: str) -> None:
    """One above the limit, and field and limit are named."""
    expected = f"field {name} is 1001; at most 1000 are allowed (MAX_PODS_PER_EVENT)"
    assert bad({name.encode(): b"1001"}).detail == expected


@contract("3.pod_count")
@pytest.mark.parametrize("fields", [{b"type": b"scale_up"}, {b"type": b"scale_down"}], ids=["up", "down"])
@pytest.mark.parametrize("also", [{}, {b"pod_count": b"3"}, {b"pod_count": b"03"}, {b"pod_count": b""}])
def test_target_replicas_is_another_name_of_pod_count(fields: dict[bytes, bytes], also: dict[bytes, bytes]) -> None:
    """It chooses how many, and is not passed on besides."""
    event = _good(fields | also | {b"target_replicas": b"3"})
    assert (event.pod_count, event.passed_on) == (3, {})


@contract("3.pod_count")
@pytest.mark.parametrize("kind", [b"scale_up", b"scale_down"])
def test_two_names_with_two_values_are_refused(kind: bytes) -> None:
    """Nothing shows which of them was meant."""
    result = bad({b"type": kind, b"pod_count": b"3", b"target_replicas": b"4"})
    assert result.reason is DeadReason.INVALID
    assert "pod_count is 3 and target_replicas is 4" in result.detail


@contract("3.pod_count")
def test_a_scale_down_may_end_more_than_one_event_may_start() -> None:
    """The limit is one of creating, not of ending."""
    assert good_down(pod_count=b"5000").pod_count == 5000


@contract("3.pod_count")
@contract("3.task_id")
def test_a_scale_down_of_a_task_ends_all_of_it() -> None:
    """Without a pod_count: 0 stands for all."""
    event = good_down(task_id=b"task-123")
    assert (event.task_id, event.pod_count) == ("task-123", 0)


@contract("3.task_id")
def test_a_scale_down_of_the_group_names_no_task() -> None:
    """With a pod_count and no task_id, the youngest workers of the group are meant."""
    assert good_down(pod_count=b"2").task_id == ""


@contract("3.task_id")
@contract("3.pod_count")
def test_a_scale_down_needs_a_task_or_a_count() -> None:
    """Neither would end everything there is."""
    result = parse(STREAM_ID, {b"type": b"scale_down"}, 1000)
    assert isinstance(result, BadEvent)
    assert "a scale_down without task_id needs it" in result.detail


@contract("3.mode")
@pytest.mark.parametrize("value", ["kill", "drain"])
def test_a_scale_down_has_two_modes(value: str) -> None:
    """All workers, or only those that have not started."""
    assert good_down(task_id=b"t", mode=value.encode()).mode == ScaleDownMode(value)


@contract("3.mode")
@pytest.mark.parametrize("value", [b" ", b"DeleteIfUnchanged", b"stop", b"drain\n"])
def test_an_unknown_mode_is_refused(value: bytes) -> None:
    """A typing error must not kill what was to be spared."""
    assert "kill or drain is expected" in bad({b"type": b"scale_down", b"task_id": b"t", b"mode": value}).detail


@contract("3.mode")
def test_a_scale_up_has_no_mode() -> None:
    """It would be ignored, which its sender could not know."""
    assert "belongs to scale_down only" in bad({b"mode": b"kill"}).detail


@contract("3.supersedes")
def test_a_scale_up_may_supersede_older_ones() -> None:
    """The key is an id like any other."""
    assert good(supersedes=b"branch/main").supersedes == "branch/main"


@contract("3.supersedes")
def test_a_scale_down_supersedes_nothing() -> None:
    """It starts nothing that could be superseded."""
    fields = {b"type": b"scale_down", b"task_id": b"t", b"supersedes": b"k"}
    assert "belongs to scale_up only" in bad(fields).detail


@contract("3.limits")
@pytest.mark.parametrize("name", [b"task_id", b"event_id", b"supersedes"])
@pytest.mark.parametrize(
    "value", [b"a", b"7", b"Task-1", b"a.b_c:d/e-f", b"1-2-3", b"a1-2", b"redrive:1-0", b"x" * 128]
)
def test_an_id_has_a_plain_form(name: bytes, value: bytes) -> None:
    """Letters, digits and a few signs, 128 characters at most."""
    assert getattr(_good({b"type": b"scale_up", name: value}), name.decode()) == value.decode()


@contract("3.limits")
@pytest.mark.parametrize("name", [b"task_id", b"event_id", b"supersedes"])
@pytest.mark.parametrize(
    "value", [b" ", b"-a", b".a", b"/a", b"_a", b"a b", b"a\n", b"a{b}", b"a*", b"a$", b"x" * 129, "ä".encode()]
)
def test_any_other_id_is_refused(name: bytes, value: bytes) -> None:
    """Ids become keys, labels' neighbours and command line arguments."""
    result = bad({name: value})
    assert result.reason is DeadReason.INVALID
    assert result.detail.startswith(f"field {name.decode()} is ")


@contract("3.event_id")
def test_a_producers_event_id_names_the_event() -> None:
    """The entry's id stays known beside it."""
    event = good(event_id=b"build-7")
    assert (event.event_id, event.stream_id) == ("build-7", STREAM_ID)


@contract("3.event_id")
@pytest.mark.parametrize("value", [b"0-0", b"1714557600000-0", b"1-23"])
def test_an_event_id_never_looks_like_an_entry_id(value: bytes) -> None:
    """It could be taken for another entry, past or to come."""
    result = bad({b"event_id": value})
    assert "the form digits-digits is kept for entry ids" in result.detail
    assert result.event_id == ""


@contract("3.traceparent")
def test_a_trace_context_is_kept() -> None:
    """It is its own field, not passed on twice."""
    event = good(traceparent=TRACE)
    assert (event.traceparent, event.passed_on) == (TRACE.decode(), {})


#: What W3C Trace Context forbids, and what no version has.
NO_TRACE = [
    b"x",
    b" ",
    b"\xff",
    b"a\0b",
    TRACE.upper(),
    b"ff" + TRACE[2:],
    b"ff" + TRACE[2:] + b"-00",
    b"FE" + TRACE[2:],
    b"0" + TRACE[2:],
    b"0g" + TRACE[2:],
    TRACE + b"-00",
    TRACE + b"-",
    TRACE + b"\n",
    b" " + TRACE,
    TRACE[:-1],
    TRACE.replace(b"-", b"_"),
    b"00-" + b"0" * 32 + TRACE[35:],
    TRACE[:36] + b"0" * 16 + b"-01",
    b"01-" + b"0" * 32 + TRACE[35:],
    b"01" + TRACE[2:36] + b"0" * 16 + b"-01-x",
    b"01" + TRACE[2:] + b"x",
    b"01" + TRACE[2:] + b"-x\n",
    b"01" + TRACE[2:54],
]


@contract("3.traceparent")
@pytest.mark.parametrize("value", NO_TRACE)
def test_a_trace_context_that_is_not_valid_is_ignored(value: bytes) -> None:
    """The event runs without one, the log says so, and a repetition without it is the same event."""
    event = good(traceparent=value)
    assert (event.traceparent, event.passed_on) == ("", {})
    sentence = ignored_fields_warning({b"traceparent": value})
    assert "a W3C trace context is expected" in sentence
    assert sentence.isprintable()
    assert content_digest({b"type": b"scale_up", b"traceparent": value}) == content_digest({b"type": b"scale_up"})


@contract("3.traceparent")
@pytest.mark.parametrize(
    ("value", "read"),
    [
        (TRACE, TRACE),
        (TRACE[:-2] + b"00", TRACE[:-2] + b"00"),
        (TRACE[:-2] + b"ff", TRACE[:-2] + b"ff"),
        (b"01" + TRACE[2:], TRACE),
        (b"cc" + TRACE[2:], TRACE),
        (b"fe" + TRACE[2:], TRACE),
        (b"01" + TRACE[2:] + b"-", TRACE),
        (b"cc" + TRACE[2:] + b"-what-the-future-will-be-like.", TRACE),
        (b"01" + TRACE[2:-2] + b"03", TRACE),
        (b"01" + TRACE[2:-2] + b"02", TRACE[:-2] + b"00"),
    ],
)
def test_a_future_version_is_read_as_version_00(value: bytes, read: bytes) -> None:
    """Its ids and its sampled bit; our code cannot read anything more that it may have."""
    assert good(traceparent=value).traceparent == read.decode()
    assert ignored_fields_warning({b"traceparent": value}) == ""


#: Every field that chooses something: a client library sends an empty string for it when it is not defined.
CHOOSING = sorted(REQUEST_FIELDS | events.OVERRIDE_FIELDS)


@contract("3.limits")
@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("kind", [b"scale_up", b"scale_down"])
def test_an_empty_field_that_chooses_something_counts_as_not_set(name: str, kind: bytes) -> None:
    """The result is that of an event without it, and so is the content."""
    without = {b"task_id": b"t"} if name != "task_id" else {b"pod_count": b"2"}
    if name != "type":
        without[b"type"] = kind
    given = without | {name.encode(): b""}
    assert parse(STREAM_ID, given, 1000) == parse(STREAM_ID, without, 1000)
    assert content_digest(given) == content_digest(without)
    assert ignored_fields_warning(given) == ""


@contract("3.limits")
def test_all_of_them_may_be_empty_at_once() -> None:
    """The smallest event, as such a library sends it."""
    empty = {name.encode(): b"" for name in CHOOSING if name != "type"}
    assert _good(empty | {b"type": b"scale_up"}) == good()


@contract("3.passed-on")
@pytest.mark.parametrize("name", ["job_id", "reason", "timestamp", "metadata", "mine"])
def test_an_empty_field_that_is_only_passed_on_is_passed_on(name: str) -> None:
    """And it is content: without it, it is another event."""
    assert good(**{name: b""}).passed_on == {name: ""}
    assert content_digest({name.encode(): b""}) != content_digest({})


@contract("3.event_id")
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({b"pod_count": b"3"}, {b"target_replicas": b"3"}, True),
        ({b"pod_count": b"3"}, {b"target_replicas": b"3", b"pod_count": b"3"}, True),
        ({b"pod_count": b"3"}, {b"target_replicas": b"3", b"pod_count": b""}, True),
        ({b"pod_count": b"3"}, {b"target_replicas": b"4"}, False),
        ({b"pod_count": b"3"}, {b"target_replicas": b"4", b"pod_count": b"3"}, False),
        ({b"traceparent": TRACE}, {b"traceparent": b"01" + TRACE[2:] + b"-x"}, True),
        ({b"traceparent": TRACE}, {}, False),
        ({b"mode": b"kill"}, {}, False),
    ],
)
def test_two_spellings_of_one_content_have_one_digest(
    one: dict[bytes, bytes], other: dict[bytes, bytes], same: bool
) -> None:
    """What is read is what counts; a default that is written down is content like any other value."""
    assert (content_digest(one) == content_digest(other)) is same


@contract("3.passed-on")
@pytest.mark.parametrize(
    "name",
    [
        "job_id",
        "repository",
        "commit_sha",
        "triggered_by",
        "reason",
        "target_deployment",
        "timestamp",
        "mine",
    ],
)
def test_a_field_that_chooses_nothing_is_passed_on_unchanged(name: str) -> None:
    """The known ones and any other: as sent, spaces and all."""
    assert good(**{name: " ä $(X)\n".encode()}).passed_on == {name: " ä $(X)\n"}


@contract("3.passed-on")
@pytest.mark.parametrize("value", [b"{}", b' {"a": [1, {"b": null}]} ', '{"ä": "ö"}'.encode()])
def test_metadata_is_a_json_object(value: bytes) -> None:
    """Passed on as it was written."""
    assert good(metadata=value).passed_on == {"metadata": value.decode()}


@contract("3.passed-on")
@pytest.mark.parametrize(
    "value", [b" ", b"x", b"[]", b"1", b"null", b'"{}"', b"{", b"{} {}", b"{'a': 1}", b'{"a": NaN}']
)
def test_metadata_of_any_other_kind_is_refused(value: bytes) -> None:
    """Also the NaN that Python's json would take."""
    assert "a JSON object is expected" in bad({b"metadata": value}).detail


@contract("3.passed-on")
@contract("4.env")
@pytest.mark.parametrize(
    "name", [b"worker_index", b"worker_count", b"attempt", b"task_key", b"pod_name", b"namespace", b"output"]
)
def test_a_field_that_would_hide_a_workers_variable_is_refused(name: bytes) -> None:
    """OTTO_<FIELD> is already the worker's own."""
    result = bad({name: b"1"})
    assert f"would hide the worker's own OTTO_{name.decode().upper()}" in result.detail


@contract("3.overrides")
@pytest.mark.parametrize(
    "name",
    sorted(OVERRIDE_FIELDS - FIELDS_WITHOUT_POLICY),
)
def test_an_override_is_refused_as_unsupported(name: str) -> None:
    """Never passed on as if it had done something."""
    result = bad({name.encode(): b"1"})
    assert result.reason is DeadReason.UNSUPPORTED
    assert result.detail == f"field {name} needs a policy, and POLICY_FILE is not set; remove it"


@contract("3.limits")
@pytest.mark.parametrize("name", ["a", "a1", "a_b", "z" * 63])
def test_a_field_name_is_a_small_identifier(name: str) -> None:
    """It becomes part of a variable's name."""
    assert good(**{name: b"v"}).passed_on == {name: "v"}


@contract("3.limits")
@pytest.mark.parametrize(
    "name", [b"", b"A", b"1a", b"_a", b"a-b", b"a.b", b"a b", b"a\n", b"a\0", b"a=", b"z" * 64, "ä".encode(), b"\xff"]
)
def test_any_other_field_name_is_refused(name: bytes) -> None:
    """In a message of one line, whatever characters the name has."""
    result = bad({name: b"v"})
    assert result.detail.startswith("field name ")
    assert result.detail.isprintable()


@contract("3.limits")
@pytest.mark.parametrize("name", [b"pod_count", b"task_id", b"event_id", b"mine"])
@pytest.mark.parametrize("value", [b"\xff", b"a\xc3", b"\xed\xa0\x80"])
def test_a_value_that_is_not_utf8_is_refused(name: bytes, value: bytes) -> None:
    """Broken bytes, a cut character, a lone surrogate."""
    assert bad({name: value}).detail == f"field {name.decode()} is not UTF-8"


@contract("3.limits")
def test_a_value_with_a_nul_is_refused() -> None:
    """No variable of a process can hold it."""
    assert bad({b"mine": b"a\0b"}).detail == "field mine has a NUL character"


@contract("3.limits")
def test_an_event_of_64_kib_is_taken() -> None:
    """Names count as well as values: exactly the limit."""
    room = 64 * 1024 - len(b"type" + b"scale_up" + b"mine")
    assert len(good(mine=b"x" * room).passed_on["mine"]) == room


@contract("3.limits")
def test_an_event_above_64_kib_is_refused() -> None:
    """One byte more than the limit."""
    room = 64 * 1024 - len(b"type" + b"scale_up" + b"mine")
    result = bad({b"mine": b"x" * (room + 1)})
    assert result.reason is DeadReason.TOO_LARGE
    assert "has 65537 bytes; at most 65536" in result.detail


@contract("3.limits")
@contract("4.annotations")
@pytest.mark.parametrize(("count", "fits"), [(40_000, True), (41_000, False)])
def test_an_event_that_no_pod_could_carry_is_refused(count: int, fits: bool) -> None:
    """Control characters are six times as long in the annotation, where 256 KiB are allowed."""
    result = parse(STREAM_ID, {b"type": b"scale_up", b"mine": b"\x01" * count}, 1000)
    assert isinstance(result, ScaleEvent) is fits
    assert fits or (result.reason, "as JSON" in result.detail) == (DeadReason.TOO_LARGE, True)  # type: ignore[union-attr]


@contract("3.limits")
@pytest.mark.parametrize(("more", "fits"), [(255, True), (256, False)])
def test_an_event_has_at_most_256_fields(more: int, fits: bool) -> None:
    """More than a script of Redis can be handed."""
    result = parse(STREAM_ID, {b"type": b"scale_up"} | {b"f%d" % number: b"" for number in range(more)}, 1000)
    assert isinstance(result, ScaleEvent) is fits
    assert fits or result.reason is DeadReason.TOO_LARGE  # type: ignore[union-attr]


@contract("3.dead-letter")
@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({}, (STREAM_ID, STREAM_ID)),
        ({b"event_id": b"mine", b"task_id": b"t"}, ("mine", "t")),
        ({b"event_id": b"mine"}, ("mine", STREAM_ID)),
        ({b"event_id": b"\xff", b"task_id": b"t"}, ("", "t")),
        ({b"event_id": b"1-1"}, ("", STREAM_ID)),
        ({b"event_id": b"", b"task_id": b""}, (STREAM_ID, STREAM_ID)),
        ({b"task_id": b"not an id"}, (STREAM_ID, STREAM_ID)),
    ],
)
def test_a_bad_event_carries_the_ids_that_could_be_read(fields: dict[bytes, bytes], ids: tuple[str, str]) -> None:
    """They decide whether its sender gets a result, and under which name."""
    result = bad({b"pod_count": b"many"} | fields)
    assert (result.event_id, result.task_id) == ids


def test_a_long_value_is_cut_in_the_message() -> None:
    """A dead letter's detail is a line, not a copy of the event."""
    assert len(bad({b"pod_count": b"9" * 60_000}).detail) < 200


class TestConcurrencyKeys:
    """concurrency_key and concurrency_limit."""

    @contract("3.concurrency_key")
    def test_a_key_has_the_form_of_an_id(self) -> None:
        """Upper and lower case are two keys."""
        event = good(concurrency_key=b"Deploy/prod:1", concurrency_limit=b"0003")
        assert (event.concurrency_key, event.concurrency_limit) == ("Deploy/prod:1", 3)
        assert events.decode(event.encode()) == event
        assert event.as_sent()["concurrency_limit"] == "3"

    def test_without_a_limit_it_is_one(self) -> None:
        """And without a key there is none; empty values count as not set."""
        assert good(concurrency_key=b"k").concurrency_limit == 1
        assert good(concurrency_key=b"", concurrency_limit=b"").concurrency_key == ""
        assert "concurrency" not in good().encode()

    @pytest.mark.parametrize("value", [b"a{b", b"a\nb", b"x" * 129, b"-a", "ä".encode()])
    def test_another_form_is_refused(self, value: bytes) -> None:
        """With the field, the value and what is allowed."""
        assert bad({b"concurrency_key": value}).detail.startswith("field concurrency_key is ")

    @pytest.mark.parametrize("value", [b"0", b"1001", b"-1", b"1.5", b"many", b"9999999999"])
    @contract("3.concurrency_limit")
    def test_a_limit_is_from_1_to_1000(self, value: bytes) -> None:
        """Nothing else."""
        assert bad({b"concurrency_key": b"k", b"concurrency_limit": value}).detail.startswith(
            "field concurrency_limit is "
        )

    def test_a_limit_needs_its_key(self) -> None:
        """Or it would limit nothing, unnoticed."""
        assert "needs the field concurrency_key" in bad({b"concurrency_limit": b"2"}).detail

    @pytest.mark.parametrize("name", ["concurrency_key", "concurrency_limit"])
    def test_they_belong_to_scale_up(self, name: str) -> None:
        """A scale_down takes effect at once."""
        fields = {b"type": b"scale_down", b"task_id": b"t", name.encode(): b"1"}
        assert bad(fields).detail == f"field {name} belongs to scale_up only; remove it"
