"""The JSON Schemas in deploy/schemas hold: for what the controller really writes, and for what its parser accepts.

A producer validates an event before it sends it, and a consumer reads results and dead letters, by these files alone.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, Final, cast

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ottoscaler.core import events, results, verdicts
from ottoscaler.core.events import BadEvent, DeadReason, ScaleEvent, parse
from ottoscaler.core.fields import REQUEST_FIELDS
from ottoscaler.core.policy import GRANTED
from ottoscaler.core.policy_reader import TOP, read_policy
from ottoscaler.core.policy_values import Path
from ottoscaler.core.profile_reader import PROFILE
from tests.cli.conftest import child
from tests.core.policies import EXAMPLE
from tests.core.test_policy_reader import WRONG, changed
from tests.fakes.wait import eventually
from tests.log_lines import line_faults
from tests.schemas import FOLDER, faults, schema

NAMES: Final = ("event", "result", "dead_letter", "policy", "explain", "log", "status")
LONG_S: Final = 45
STREAM_ID: Final = "1714557600000-0"
LARGEST: Final = 1000
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


# -- the files


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_its_examples_are_valid(name: str) -> None:
    """By the rules of JSON Schema 2020-12."""
    Draft202012Validator.check_schema(schema(name))
    assert [faults(name, example) for example in schema(name)["examples"]] == [[]] * len(schema(name)["examples"])


def test_there_are_no_other_files() -> None:
    """A schema without a test would soon be wrong."""
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.schema.json" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_each_field_has_a_description(name: str) -> None:
    """Also those of one kind of result only; a second mention may leave it to the first."""
    described: dict[str, bool] = {}
    for part in (schema(name), *schema(name).get("oneOf", ())):
        for field, rule in part.get("properties", {}).items():
            described[field] = described.get(field, False) or bool(rule.get("description"))
    assert [field for field, good in described.items() if not good] == []


def test_the_fields_are_those_of_the_code() -> None:
    """Of an event, of a result, of a dead letter; and their codes."""
    known = REQUEST_FIELDS | events.OVERRIDE_FIELDS | events.RESERVED_FIELDS | {"metadata"}
    assert schema("event")["properties"].keys() == known
    parts = (schema("result"), *schema("result")["oneOf"])
    assert {field for part in parts for field in part["properties"]} == results.RESULT_FIELDS
    assert set(schema("result")["properties"]["reason"]["enum"]) == {*verdicts.EndReason, "NothingToEnd"}
    assert schema("dead_letter")["properties"]["dead_reason"]["enum"] == list(DeadReason)


def test_the_reasons_have_their_outcomes_and_faults() -> None:
    """Those of the code's table, and no others."""
    (worker,) = (part for part in schema("result")["oneOf"] if part["title"] == "worker")
    found = {
        reason: (row["properties"]["outcome"]["const"], row["properties"]["fault"]["const"])
        for row in worker["oneOf"]
        for reason in row["properties"]["reason"]["enum"]
    }
    assert found == {reason: (reason.outcome, reason.fault) for reason in verdicts.EndReason}


# -- events: schema and parser say the same

_IDS = st.one_of(
    st.sampled_from(["", "a", "A-1", "x" * 128, "x" * 129, "a:b/c.d_e", "-a", "a b", "1-1", "redrive:1-0", "a\n", "ä"]),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,9}", fullmatch=True),
)
_COUNTS = st.sampled_from(["", "1", "3", "007", "1000", "0", "000", "-1", "1 ", "1\n", "1.0", "one", "9" * 10, "٣"])
_TEXTS = st.one_of(st.sampled_from(["", "a", "$(HOME)", "a\0b", "\0", "é\n", "🙂"]), st.text(max_size=9))
_STAMPS = st.sampled_from(
    ["", "2030-01-31T12:00:00Z", "2030-01-31t12:00:00.5+09:00", "2030-01-31", "2030-13-01T00:00:00Z", "1893456000", "x"]
)
_METADATA = st.sampled_from(["", "{}", '{"a": [1]}', "[]", "{", '{"a": NaN}', "1", '"a"', "{}\0", "null"])
_TRACES = st.sampled_from(["", "x", "\0", TRACEPARENT])
_REFUSED = st.sampled_from(sorted(events.RESERVED_FIELDS))
_FIELD_NAMES = st.sampled_from(["job_id", "a" * 63, "a" * 64, "A", "a-b", "1a", "", "_a", "a\n", "reason", "cut"])


@st.composite
def _entries(draw: st.DrawFn) -> dict[str, str]:
    """Mostly nearly right: some fields with good and bad values, and now and then one that no event may have."""
    entry = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "type": st.sampled_from(["scale_up"] * 4 + ["scale_down"] * 4 + ["", "scale", "scale_up\n"]),
                "task_id": _IDS,
                "event_id": _IDS,
                "supersedes": _IDS,
                "concurrency_key": _IDS,
                "concurrency_limit": st.sampled_from(
                    ["", "1", "007", "999", "1000", "1001", "2000", "0", "1\n", "-1", "0" * 10]
                ),
                "mode": st.sampled_from(["", "kill", "drain", "DRAIN", "kill\n"]),
                "traceparent": _TRACES,
                "metadata": _METADATA,
                "deadline_s": _COUNTS,
                "not_after": _STAMPS,
                "priority": st.sampled_from(["", "0", "9", "007", "10", "-1", "5\n", "٣"]),
                "retries": st.sampled_from(["", "0", "10", "0010", "11", "-1", "1\n", "٣", "0" * 10]),
                draw(st.sampled_from(["pod_count", "target_replicas"])): _COUNTS,
            },
        )
    )
    entry |= draw(st.dictionaries(_FIELD_NAMES, _TEXTS, max_size=2))
    if draw(st.integers(0, 5)) == 0:
        entry[draw(_REFUSED)] = draw(st.sampled_from(["", "x"]))
    return entry


def parsed(entry: Mapping[str, str]) -> ScaleEvent | BadEvent:
    """The entry as the controller reads it."""
    return parse(STREAM_ID, {name.encode(): value.encode() for name, value in entry.items()}, LARGEST)


@given(_entries())
def test_an_event_is_valid_exactly_if_the_parser_accepts_it(entry: dict[str, str]) -> None:
    """Whatever its fields are, apart from the eight rules that no schema can state."""
    found, accepted = faults("event", entry), parsed(entry)
    assert isinstance(accepted, ScaleEvent) is not found, (found, accepted)


@pytest.mark.parametrize("valid", [True, False])
def test_the_generated_events_are_of_both_kinds(valid: bool) -> None:
    """Or the comparison would say nothing."""
    assert [entry for entry in schema("event")["examples"] if isinstance(parsed(entry), BadEvent)] == []
    entry = {"type": "scale_up", "mode": "" if valid else "drain"}
    assert (not faults("event", entry), isinstance(parsed(entry), ScaleEvent)) == (valid, valid)


BEYOND: Final = {
    "at most 64 KiB together": {"type": "scale_up", "note": "x" * events.MAX_EVENT_BYTES},
    "as JSON the event has at most 240 KiB": {"type": "scale_up", "note": "\1" * (events.MAX_EVENT_BYTES - 20)},
    "8 MiB multiplied by pod_count": {"type": "scale_up", "pod_count": "1000", "note": "x" * 10_000},
    "at most MAX_PODS_PER_EVENT": {"type": "scale_up", "pod_count": "1001"},
    "pod_count and target_replicas are equal": {"type": "scale_up", "pod_count": "1", "target_replicas": "2"},
    "deadline_s is at most WORKER_DEADLINE_S": {"type": "scale_up", "deadline_s": "2592001"},
    "need a policy (POLICY_FILE) that allows them": {"type": "scale_up", "image": "busybox"},
    "the day of not_after exists": {"type": "scale_up", "not_after": "2030-02-30T12:00:00Z"},
    "at most 100 levels": {"type": "scale_up", "metadata": '{"a":' * 101 + "1" + "}" * 101},
}


@pytest.mark.parametrize("rule", BEYOND)
def test_what_only_the_parser_refuses_is_in_the_description(rule: str) -> None:
    """A producer that validates has to know what is still left to chance."""
    assert rule in schema("event")["description"]
    assert faults("event", BEYOND[rule]) == []
    assert isinstance(parsed(BEYOND[rule]), BadEvent)


def test_a_field_may_be_sent_256_times_and_no_more() -> None:
    """The limit on fields is that of the parser."""
    entry = {"type": "scale_up"} | {f"f{number}": "" for number in range(events.MAX_FIELDS - 1)}
    assert (faults("event", entry), isinstance(parsed(entry), ScaleEvent)) == ([], True)
    entry["one_more"] = ""
    assert faults("event", entry)
    assert isinstance(parsed(entry), BadEvent)


# -- the policy

#: What no schema can state: these faults are the parser's.
_PARSERS: Final = re.compile(
    "a pattern like|an image like|is no profile|not a regular expression|only once, at the end|cannot be allowed|"
    "there is none with the operator"
)


def test_the_examples_are_policies_for_both() -> None:
    """The schema's own, and that of the tests."""
    assert [read for one in schema("policy")["examples"] if isinstance(read := read_policy(one), list)] == []
    assert faults("policy", EXAMPLE) == []


@pytest.mark.parametrize(("path", "value", "sentence"), WRONG, ids=lambda one: str(one)[:40])
def test_what_the_parser_refuses_the_schema_refuses(path: Path, value: object, sentence: str) -> None:
    """Apart from what is in its description."""
    assert bool(faults("policy", changed(path, value))) is (_PARSERS.search(sentence) is None)


def test_the_fields_of_a_policy_are_those_of_the_code() -> None:
    """At the top, in profiles, in their overrides."""
    top = schema("policy")["properties"]
    profile = top["profiles"]["additionalProperties"]["properties"]
    assert (top.keys(), profile.keys()) == (TOP, PROFILE)
    assert set(profile["overrides"]["items"]["enum"]) == GRANTED
    assert [name for name, rule in profile.items() if not rule["description"]] == []


# -- what is really written

#: The log of the local system, line by line.
LOG: Final[list[str]] = []
#: The workers' program: it succeeds, or does what the event's field `do` says.
PROGRAM: Final = 'case "$OTTO_DO" in fail) exit 3 ;; wait) sleep 60 & wait ;; esac'
SENT: Final[Mapping[str, Mapping[str, str]]] = {
    "good": {"pod_count": "2", "reason": "why", "traceparent": TRACEPARENT},
    "failing": {"pod_count": "1", "do": "fail", "job_id": "7"},
    "older": {"task_id": "older", "do": "wait", "supersedes": "key"},
    "invalid": {"pod_count": "lots", "job_id": "7"},
    "unsupported": {"image": "busybox"},
    "large": {"note": "x" * 70_000},
    "huge": {"note": "x" * 1_100_000},
    "good-again": {"event_id": "good", "pod_count": "3"},
}  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    """The Redis of a local system that has carried out events of all kinds."""
    with child("local", OTTO_AGENT_COMMAND=PROGRAM, MAX_WORKERS="20", LOG_LEVEL="DEBUG", LOG_FORMAT="json") as process:
        output = process.stdout
        assert output is not None
        text = ""
        while (found := re.search(r"REDIS_PORT=([0-9]+)", text)) is None:
            text += output.readline()
        # all the time: a pipe that is not read fills up, and its writer waits
        threading.Thread(target=_keep_lines, args=(output,), daemon=True).start()
        with redis.Redis(port=int(found[1]), decode_responses=True, encoding_errors="replace") as connected:
            for name, fields in SENT.items():
                send(connected, {"type": "scale_up", "event_id": name, **fields})
            send(connected, {"type": "scale_up", b"note": b"\xff"})
            running(connected, "older")
            send(connected, {"type": "scale_down", "task_id": "older"})
            send(connected, {"type": "scale_down", "task_id": "nobody"})
            finished(connected, "older")
            send(connected, {"type": "scale_up", "event_id": "last", "do": "wait"})
            running(connected, "last")
            send(connected, {"type": "scale_down", "event_id": "all", "pod_count": "5", "note": "x"})
            finished(connected, "all")
            yield connected


def _keep_lines(output: IO[str]) -> None:
    """The body of a thread: until the process has ended, or the test closes its output."""
    with suppress(ValueError):
        for line in output:
            if line.startswith("{"):
                LOG.append(line)


def send(client: redis.Redis, fields: Mapping[str | bytes, str | bytes]) -> None:
    """Add an event."""
    client.xadd("otto:scale:events", cast("dict[redis.typing.FieldT, redis.typing.EncodableT]", dict(fields)))


def running(client: redis.Redis, event_id: str) -> None:
    """Wait until the only worker of an event runs."""
    key = f"otto:scale:task:{event_id}"
    eventually(lambda: '"running"' in str(client.hget(key, "worker:1")), LONG_S, f"{event_id} to run")


def finished(client: redis.Redis, event_id: str) -> None:
    """Wait until an event has its last result."""
    eventually(lambda: _of(client, event_id), LONG_S, f"{event_id} to finish")


def _of(client: redis.Redis, event_id: str) -> list[dict[str, str]]:
    ended = [fields for fields in entries(client, "results") if fields["kind"] != "worker"]
    return [fields for fields in ended if fields["event_id"] == event_id]


def entries(client: redis.Redis, name: str) -> list[dict[str, str]]:
    """What a stream holds."""
    found = cast("list[tuple[str, dict[str, str]]]", client.xrange(f"otto:scale:{name}"))
    return [fields for _, fields in found]


def test_every_result_is_as_its_schema_says(client: redis.Redis) -> None:
    """Of workers, of tasks and of scale_downs, with outcomes of three kinds."""
    written = entries(client, "results")
    assert {(fields["kind"], fields["outcome"]) for fields in written} >= {
        *((kind, outcome) for kind in ("worker", "task") for outcome in ("succeeded", "failed", "cancelled")),
        ("scale_down", "succeeded"),
    }
    assert [(fields, found) for fields in written if (found := faults("result", fields))] == []


def test_a_result_is_identified_by_event_kind_and_index(client: redis.Redis) -> None:
    """The key by which a consumer recognises one that it has seen."""
    keys = [(fields["event_id"], fields["kind"], fields.get("index")) for fields in entries(client, "results")]
    assert len(keys) == len(set(keys))


def test_every_dead_letter_is_as_its_schema_says(client: redis.Redis) -> None:
    """With the event as it was sent: whole, in part, and with bytes that are no text."""
    written = entries(client, "dead")
    assert {fields["dead_reason"] for fields in written} == {"Invalid", "Unsupported", "TooLarge", "Conflict"}
    assert [(fields, found) for fields in written if (found := faults("dead_letter", fields))] == []
    kept = [json.loads(fields["event"]) for fields in written]
    assert any(event.get("cut") is True for event in kept)
    assert {"base64": "/w=="} in [event.get("note") for event in kept]


def test_a_conflict_has_no_result(client: redis.Redis) -> None:
    """The results under that event id are those of the first event."""
    assert [fields["pod_count"] for fields in _of(client, "good")] == ["2"]


def test_an_event_that_was_carried_out_is_valid(client: redis.Redis) -> None:
    """The other way round, through the real scripts."""
    refused = {fields["stream_id"] for fields in entries(client, "dead")}
    sent = cast("list[tuple[str, dict[str, str]]]", client.xrange("otto:scale:events"))
    carried_out = [fields for entry, fields in sent if entry not in refused]
    assert carried_out
    assert [found for fields in carried_out if (found := faults("event", fields))] == []


def test_every_line_of_the_log_is_as_its_schema_says(client: redis.Redis) -> None:
    """Of all that the controller wrote until the last result: what it took in, what it made, what it refused."""
    last = "scale_down.finished", "all"
    eventually(lambda: any((line["event"], line.get("event_id")) == last for line in _lines()), LONG_S, "the last line")
    assert {line["event"] for line in _lines()} >= {
        *("controller.starting", "controller.started", "event.received", "event.dead", "worker.created"),
        *("worker.finished", "worker.deleted", "task.finished", "scale_down.chosen"),
    }
    assert [(line, found) for line in _lines() if (found := line_faults(line))] == []


def _lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in list(LOG)]
