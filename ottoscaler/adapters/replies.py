"""What Redis answers, turned into plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import redis

from ottoscaler.adapters.redis_cluster import FollowingRedis
from ottoscaler.core.events import BadEvent, DeadReason, ScaleEvent
from ottoscaler.ports import Entry, OpenTask

#: Tasks in one call of a script or pipeline.
CHUNK = 200

_T = TypeVar("_T")


def chunks(items: Sequence[_T], size: int = CHUNK) -> list[Sequence[_T]]:
    """The same items in parts that one call can take."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def entries_of(reply: Any) -> list[Entry]:
    """The entries of XREAD or XREADGROUP."""
    return [Entry(stream_id.decode(), fields or None) for _, entries in reply or () for stream_id, fields in entries]


def measured(reply: Any) -> list[Entry]:
    """The entries that a script has measured: id, fields, and the size of one of which only the head is there."""
    return [
        Entry(stream_id.decode(), pairs_of(fields) if fields else None, int(size)) for stream_id, fields, size in reply
    ]


def text_of(value: Any) -> str:
    """What a person is shown of a value: whatever is not UTF-8 is replaced."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def names_of(values: Sequence[bytes]) -> list[str]:
    """Names as Redis has them (of events, of consumers), without those that are not UTF-8: they are none of ours, since
    anybody may name a consumer, and must not end the process that meets them.
    """
    return [name for name, value in ((text_of(value), value) for value in values) if name.encode() == value]


def texts_of(entries: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries of XRANGE, XREVRANGE or of one stream of XREAD, as texts for people."""
    return [
        (text_of(entry_id), {text_of(name): text_of(value) for name, value in (fields or {}).items()})
        for entry_id, fields in entries
    ]


def pairs_of(flat: Sequence[bytes] | Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The fields of a hash or an entry: flat from a script, a mapping from a command."""
    if isinstance(flat, Mapping):
        return dict(flat)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def delivered_of(groups: Sequence[Mapping[str, Any]], name: str) -> str:
    """The last id that a group was given, by XINFO GROUPS. Raises redis.ResponseError if there is no such group."""
    for group in groups:
        if group["name"] == name.encode():
            return cast("bytes", group["last-delivered-id"]).decode()
    raise redis.ResponseError(f"NOGROUP no consumer group {name}")


def answers_of(client: FollowingRedis, pipe: Any, nothing: Any) -> list[Any]:
    """The answers of a pipeline that reads task hashes; `nothing` where a key is of another type: it is nobody's task,
    and must not hide the others. Raises redis.RedisError for any other error.
    """
    answers = []
    for answer in client.answers(pipe):
        wrong_type = isinstance(answer, redis.ResponseError) and "WRONGTYPE" in str(answer)
        if isinstance(answer, Exception) and not wrong_type:
            raise answer
        answers.append(nothing if wrong_type else answer)
    return answers


def accepted(event: ScaleEvent, answer: Sequence[bytes]) -> OpenTask | BadEvent | None:
    """What accept says of one event."""
    if answer[0] not in (b"ok", b"again"):
        return buried(answer, event.event_id, event.task_id)
    return OpenTask(
        event=event,
        owner=answer[1].decode(),
        received_at=answer[2].decode(),
        superseded=not event.supersedes,
        again=answer[0] == b"again",
    )


def buried(answer: Sequence[bytes], event_id: str, task_id: str) -> BadEvent | None:
    """The dead letter that a script says it has written; None if it has written none."""
    if answer[0] != b"dead":
        return None
    return BadEvent(DeadReason(answer[1].decode()), answer[2].decode(), event_id, task_id)


def advice_on(told: Mapping[str, Any]) -> list[str]:
    """What is wrong with a server, by its INFO (https://redis.io/docs/latest/commands/info/)."""
    found = []
    version = str(told.get("redis_version", "7.0"))
    if int(version.partition(".")[0]) < 7:
        found.append(f"Redis is version {version}: 7.0 or later, or Valkey, is needed")
    if not told.get("aof_enabled", 1):
        found.append("Redis keeps no append-only file: what is accepted is lost when it restarts; set appendonly yes")
    policy = told.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"Redis may evict keys (maxmemory-policy {policy}): tasks can vanish; set maxmemory-policy noeviction"
        )
    return found


def obstacle(key: str, kind: str, commands: str, setting: str) -> str:
    """What the script `examine` says of one key, as a sentence: the key, what it should hold if it holds something
    else, the commands that are not permitted on it, the setting that names it.
    """
    if kind:
        return (
            f"the key {key} holds something else than a {kind}: rename that key, or set {setting} to another name;"
            " nothing is read until then"
        )
    where = f" on the key {key}" if key else ""
    return (
        f"the user may not run {commands}{where}: give it the rights in deploy/REFERENCE.md; nothing is read until then"
    )
