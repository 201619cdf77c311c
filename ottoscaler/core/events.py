"""From a stream entry to a `ScaleEvent`, or to the reason why it is none.

Everything a producer can send arrives here as bytes; whatever breaks a rule becomes a `BadEvent`, a value that names
the field, the value and what is allowed, and never an exception. What passed is kept as JSON (in Redis and on the
pods), so that a task that was accepted under yesterday's limits is still the same task after a restart under today's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from ottoscaler.core.fields import CHOOSING_FIELDS, FIELD_NAME, OVERRIDE_FIELDS, RESERVED_FIELDS
from ottoscaler.core.nesting import MAX_JSON_DEPTH, json_depth
from ottoscaler.core.overrides import NO_OVERRIDES, Overrides
from ottoscaler.core.policy import NO_RULES, Rules, overrides_of
from ottoscaler.core.refusal import DeadReason as DeadReason
from ottoscaler.core.refusal import Violation, shortened
from ottoscaler.core.trace import normalize_traceparent
from ottoscaler.misspellings import closest_known_name, suggest_replacement

MAX_EVENT_BYTES: Final = 64 * 1024
#: Far more fields than an event needs. The bound is there because a Redis script takes only some thousand arguments.
MAX_FIELDS: Final = 256
#: Each pod carries its event as JSON, in which control characters are six times as long: 256 KiB are allowed for all
#: annotations (https://kubernetes.io/docs/concepts/overview/working-with-objects/annotations/), and there are others.
MAX_JSON_BYTES: Final = 240 * 1024
#: Each pod carries its event, and each result repeats what is passed on: an event of the largest size may have 128
#: workers. etcd has room for 2 GiB (https://etcd.io/docs/v3.6/dev-guide/limit/), and one event must not fill it.
MAX_CARRIED_BYTES: Final = 8 * 1024 * 1024
#: A dead letter keeps the original event up to this size (above it, it is cut, and not to be sent again).
MAX_DEAD_EVENT_BYTES: Final = 1024 * 1024

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_STREAM_ID = re.compile(r"[0-9]+-[0-9]+")
_COUNT = re.compile(r"[0-9]{1,9}")

#: The largest concurrency_limit: the holders of a key are counted at each start.
MAX_CONCURRENCY: Final = 1000

#: Fields that mean something, here or by custom: another name that is nearly one of these may be a slip.
KNOWN_FIELDS: Final = CHOOSING_FIELDS | {
    "job_id",
    "repository",
    "commit_sha",
    "triggered_by",
    "reason",
    "target_deployment",
    "timestamp",
    "metadata",
}
#: Fields that a scale_down must not have.
_SCALE_UP_ONLY: Final = OVERRIDE_FIELDS | {"supersedes", "concurrency_key", "concurrency_limit"}
#: Fields of which an empty value counts as not set: client libraries send empty strings for undefined values.
_OPTIONAL: Final = frozenset(name.encode() for name in CHOOSING_FIELDS)


class EventType(StrEnum):
    """What an event asks for."""

    SCALE_UP = "scale_up"
    SCALE_DOWN = "scale_down"


class ScaleDownMode(StrEnum):
    """How a scale_down ends workers: all of them, or only those that have not started."""

    KILL = "kill"
    DRAIN = "drain"


#: Why an event that could be read is a dead letter, with a place for its event id, for a key, for seconds.
CONFLICT: Final = "event_id %s was used before, with other content"
NOT_A_TASK: Final = "the key %s holds something else than a task"
NOT_A_KEY: Final = "the key %s holds something else than the tasks of a concurrency key"
TOO_OLD: Final = "the entry is older than TASK_TTL_S, %d s"


class ScaleEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One accepted event. `pod_count` 0 means "all of the task" and occurs with scale_down only. At most
    `concurrency_limit` tasks of a `concurrency_key` run at once; the limit counts only with a key.
    """

    event_id: str
    stream_id: str
    type: EventType
    pod_count: int
    task_id: str = ""
    mode: ScaleDownMode = ScaleDownMode.KILL
    supersedes: str = ""
    concurrency_key: str = ""
    concurrency_limit: int = 1
    traceparent: str = ""
    passed_on: dict[str, str] = {}
    overrides: Overrides = NO_OVERRIDES

    def encode(self) -> str:
        """The JSON that `decode` reads: kept in Redis and as an annotation of each pod."""
        return msgspec.json.encode(self).decode()

    def as_sent(self) -> dict[str, str]:
        """Fields of which `parse` would make this event: for a dead letter of an event without its original fields."""
        fields = {"type": self.type.value, **self.passed_on, **self.overrides.asked}
        if self.event_id != self.stream_id:
            fields["event_id"] = self.event_id
        if self.pod_count:
            fields["pod_count"] = str(self.pod_count)
        if self.mode is not ScaleDownMode.KILL:
            fields["mode"] = self.mode.value
        if self.concurrency_limit != 1:
            fields["concurrency_limit"] = str(self.concurrency_limit)
        given = {"task_id": self.task_id, "supersedes": self.supersedes, "traceparent": self.traceparent}
        given["concurrency_key"] = self.concurrency_key
        return fields | {name: text for name, text in given.items() if text}


# Decoders are made at import, while there is one thread: msgspec publishes what it knows of a struct before it is
# complete, and a second thread that decodes the same struct for the first time crashes the process.
_stored_event: Final = msgspec.json.Decoder(ScaleEvent)
_metadata: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class BadEvent(msgspec.Struct, frozen=True):
    """Why an entry is not an event. `event_id` is empty where none could be read."""

    reason: DeadReason
    detail: str
    event_id: str = ""
    task_id: str = ""


def decode(text: str | bytes) -> ScaleEvent:
    """An event from its own JSON (see `ScaleEvent.encode`). Raises msgspec.MsgspecError for other text."""
    shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
    if json_depth(shown) > MAX_JSON_DEPTH:  # the annotation can be edited by hand
        raise msgspec.ValidationError(f"the event's JSON has more than {MAX_JSON_DEPTH} levels")
    return _stored_event.decode(text)


def content_fields(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The fields that count: no empty one that only chooses something, and only a valid `traceparent`, as version 00.

    What one event and its repetition differ in besides is no other content.
    """
    kept = {name: value for name, value in fields.items() if value or name not in _OPTIONAL}
    if traceparent := normalize_traceparent(kept.pop(b"traceparent", b"")):
        kept[b"traceparent"] = traceparent
    return kept


def ignored_fields_warning(fields: Mapping[bytes, bytes]) -> str:
    """What of an entry counts as not set though it has a value: a sentence for the log, or empty."""
    given = fields.get(b"traceparent", b"")
    if not given or normalize_traceparent(given):
        return ""
    shown = shortened(given[:MAX_EVENT_BYTES].decode("utf-8", "backslashreplace"))
    return f"field traceparent is {shown}; a W3C trace context is expected, and the event goes on without one"


def content_digest(fields: Mapping[bytes, bytes]) -> str:
    """The digest of an event's content: SHA-256 over the sorted fields, lengths included.

    Two spellings of the same content (see `content_fields`, and `target_replicas` for `pod_count`) have one digest.
    """
    kept, total = content_fields(fields), hashlib.sha256()
    replicas = kept.get(b"target_replicas")
    if replicas is not None and kept.get(b"pod_count", replicas) == replicas:
        kept[b"pod_count"] = kept.pop(b"target_replicas")
    for name, value in sorted(kept.items()):
        total.update(b"%d:%b%d:%b" % (len(name), name, len(value), value))
    return total.hexdigest()


def parse(
    stream_id: str, fields: Mapping[bytes, bytes], max_pods: int, rules: Rules = NO_RULES
) -> ScaleEvent | BadEvent:
    """Check an entry against every rule of an event.

    Arguments: the entry's id, its fields as Redis gave them, the largest pod_count of a scale_up, and what an event may
    override.
    Returns the event, or why it is none; raises nothing.
    """
    event_id, task_id = readable_ids(stream_id, fields)
    try:
        return _carried(_event(stream_id, _decode_fields(fields), max_pods, rules))
    except Violation as fault:
        return BadEvent(fault.reason, str(fault), event_id, task_id)


def encode_original_fields(fields: Mapping[bytes, bytes], *, cut: bool = False) -> str:
    """The fields as JSON for a dead letter: text where it is UTF-8, `{"base64": ...}` where not;
    cut above 1 MiB and marked. `cut`: these are not all fields.
    """
    kept: dict[str, object] = {}
    room = MAX_DEAD_EVENT_BYTES
    for name, value in fields.items():
        if len(name) + len(value) > room:
            cut = True
            break
        room -= len(name) + len(value)
        kept[name.decode("utf-8", "backslashreplace")] = _text_or_base64(value)
    return json.dumps({"cut": True, "fields": kept} if cut else kept, ensure_ascii=False)


def _text_or_base64(value: bytes) -> object:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def readable_ids(stream_id: str, fields: Mapping[bytes, bytes]) -> tuple[str, str]:
    """The event id and task id of an entry that may be broken elsewhere; empty where they themselves are broken."""
    given = fields.get(b"event_id", b"").decode("utf-8", "replace")
    task_id = fields.get(b"task_id", b"").decode("utf-8", "replace")
    readable = _ID.fullmatch(given) and not _STREAM_ID.fullmatch(given)
    event_id = (given if readable else "") if given else stream_id
    return event_id, task_id if _ID.fullmatch(task_id) else stream_id


def too_large_event(stream_id: str, fields: Mapping[bytes, bytes] | None, size: int) -> BadEvent:
    """The refusal of an entry that is too large. Arguments: its id, the fields that were read, its size in bytes."""
    return BadEvent(DeadReason.TOO_LARGE, _too_many(size), *readable_ids(stream_id, fields or {}))


def _too_many(size: int) -> str:
    return f"the event has {size} bytes; at most {MAX_EVENT_BYTES} are allowed"


def _decode_fields(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    size = sum(len(name) + len(value) for name, value in fields.items())
    if size > MAX_EVENT_BYTES:
        raise Violation(_too_many(size), DeadReason.TOO_LARGE)
    if len(fields) > MAX_FIELDS:
        raise Violation(f"the event has {len(fields)} fields; at most {MAX_FIELDS} are allowed", DeadReason.TOO_LARGE)
    texts = {}
    for raw_name, raw_value in content_fields(fields).items():
        name = raw_name.decode("utf-8", "backslashreplace")
        if not FIELD_NAME.fullmatch(name):
            near = f"; did you mean {other}?" if (other := closest_known_name(name, KNOWN_FIELDS)) else ""
            raise Violation(f"field name {shortened(name)} is not of the form {FIELD_NAME.pattern}{near}")
        try:
            texts[name] = raw_value.decode()
        except UnicodeDecodeError:
            raise Violation(f"field {name} is not UTF-8") from None
        if "\0" in texts[name]:
            raise Violation(f"field {name} has a NUL character")
    return texts


def _event(stream_id: str, texts: dict[str, str], max_pods: int, rules: Rules) -> ScaleEvent:
    kind = _type(texts)
    passed_on = {name: value for name, value in texts.items() if name not in CHOOSING_FIELDS}
    _check_passed_on(passed_on)
    event_id = _id(texts, "event_id") or stream_id
    if "event_id" in texts and _STREAM_ID.fullmatch(event_id):
        raise Violation(f"field event_id is {event_id}; the form digits-digits is kept for entry ids")
    task_id = _id(texts, "task_id")
    if kind is EventType.SCALE_UP and "mode" in texts:
        raise Violation("field mode belongs to scale_down only; remove it")
    if kind is EventType.SCALE_DOWN:
        for name in sorted(texts.keys() & _SCALE_UP_ONLY):
            raise Violation(f"field {name} belongs to scale_up only; remove it")
    return ScaleEvent(
        event_id=event_id,
        stream_id=stream_id,
        type=kind,
        pod_count=_pod_count(texts, kind, max_pods, rules),
        task_id=task_id or (stream_id if kind is EventType.SCALE_UP else ""),
        mode=_mode(texts),
        supersedes=_id(texts, "supersedes"),
        concurrency_key=_id(texts, "concurrency_key"),
        concurrency_limit=_concurrency_limit(texts),
        traceparent=texts.get("traceparent", ""),
        passed_on=passed_on,
        overrides=overrides_of(texts, rules) if kind is EventType.SCALE_UP else NO_OVERRIDES,
    )


def _carried(event: ScaleEvent) -> ScaleEvent:
    """The event, if its pods can carry it."""
    if (size := len(event.encode().encode())) > MAX_JSON_BYTES:
        allowed = f"at most {MAX_JSON_BYTES} are allowed, and control characters take six each"
        raise Violation(f"the event has {size} bytes as JSON; {allowed}", DeadReason.TOO_LARGE)
    count = event.pod_count
    if event.type is EventType.SCALE_UP and size * count > MAX_CARRIED_BYTES:
        allowed = f"at most {MAX_CARRIED_BYTES} are allowed: with this pod_count {MAX_CARRIED_BYTES // count} per event"
        raise Violation(
            f"each of {count} workers carries the event of {size} bytes as JSON, which makes {size * count}; {allowed}",
            DeadReason.TOO_LARGE,
        )
    return event


def _missing(names: tuple[str, ...], texts: dict[str, str], expected: str) -> Violation:
    """The fault of an event with none of these fields, of which it needs one; it names the field that was misspelt."""
    sent, name = suggest_replacement(names, texts)
    near = f"; field {sent} was sent: did you mean {name}?" if sent else ""
    return Violation(f"field {names[0]} is missing; {expected}{near}")


def _type(texts: dict[str, str]) -> EventType:
    if "type" not in texts:
        raise _missing(("type",), texts, "scale_up or scale_down is expected")
    try:
        return EventType(texts["type"])
    except ValueError:
        raise Violation(f"field type is {shortened(texts['type'])}; scale_up or scale_down is expected") from None


def _mode(texts: dict[str, str]) -> ScaleDownMode:
    try:
        return ScaleDownMode(texts.get("mode", ScaleDownMode.KILL))
    except ValueError:
        raise Violation(f"field mode is {shortened(texts['mode'])}; kill or drain is expected") from None


def _pod_count(texts: dict[str, str], kind: EventType, max_pods: int, rules: Rules) -> int:
    given = {name: _whole(name, texts[name]) for name in ("pod_count", "target_replicas") if name in texts}
    if not given:
        if kind is EventType.SCALE_UP:
            return 1
        if "task_id" not in texts:
            names = ("pod_count", "target_replicas", "task_id")
            raise _missing(names, texts, "a scale_down without task_id needs it")
        return 0
    if len(set(given.values())) > 1:
        both = " and ".join(f"{name} is {count}" for name, count in given.items())
        raise Violation(f"field {both}; they are two names of one value: send one of them, or the same value in both")
    (name, count), *_ = given.items()
    if kind is EventType.SCALE_UP and count > max_pods:
        raise Violation(f"field {name} is {texts[name]}; at most {max_pods} are allowed (MAX_PODS_PER_EVENT)")
    most = rules.policy.max_pod_count if rules.policy is not None and kind is EventType.SCALE_UP else 0
    if most and count > most:
        allowed = f"at most {most} are allowed (policy: max.pod_count)"
        raise Violation(f"field {name} is {texts[name]}; {allowed}", DeadReason.NOT_ALLOWED)
    return count


def _concurrency_limit(texts: dict[str, str]) -> int:
    name = "concurrency_limit"
    if name not in texts:
        return 1
    if "concurrency_key" not in texts:
        raise Violation(f"field {name} needs the field concurrency_key, of which it is the limit; send both or none")
    limit = _whole(name, texts[name])
    if limit > MAX_CONCURRENCY:
        raise Violation(f"field {name} is {texts[name]}; at most {MAX_CONCURRENCY} is allowed")
    return limit


def _whole(name: str, text: str) -> int:
    if not _COUNT.fullmatch(text) or int(text) < 1:
        raise Violation(f"field {name} is {shortened(text)}; a whole number from 1 is expected")
    return int(text)


def _id(texts: dict[str, str], name: str) -> str:
    text = texts.get(name, "")
    if name in texts and not _ID.fullmatch(text):
        raise Violation(f"field {name} is {shortened(text)}; the form {_ID.pattern} is expected")
    return text


def _check_passed_on(passed_on: dict[str, str]) -> None:
    for name in sorted(passed_on.keys() & RESERVED_FIELDS):
        raise Violation(f"field {name} would hide the worker's own OTTO_{name.upper()}; choose another name")
    if not passed_on.get("metadata"):  # empty: passed on as it is, like every other
        return
    if (depth := json_depth(passed_on["metadata"])) > MAX_JSON_DEPTH:
        raise Violation(
            f"field metadata has {depth} levels, one inside the other; at most {MAX_JSON_DEPTH} are allowed"
        )
    try:
        _metadata.decode(passed_on["metadata"])  # unlike json.loads, it refuses NaN
    except msgspec.MsgspecError:
        raise Violation(f"field metadata is {shortened(passed_on['metadata'])}; a JSON object is expected") from None
