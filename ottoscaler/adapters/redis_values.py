"""What Redis replies, turned into plain values, and lists cut into parts that one call can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import redis

from ottoscaler.adapters.redis_cluster import RedirectingRedis

#: Tasks in one call of a script or pipeline.
CHUNK: Final = 200

_T = TypeVar("_T")


def chunks(items: Sequence[_T], size: int = CHUNK) -> list[Sequence[_T]]:
    """The same items in parts that one call can take."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def text_of(value: Any) -> str:
    """What a person is shown of a value: what is not UTF-8 is replaced."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def decode_names(values: Sequence[bytes]) -> list[str]:
    """Names as Redis has them (of events, of consumers), without those that are not UTF-8: they are none of ours, since
    any client may name a consumer, and must not end the process that meets them.
    """
    return [name for name, value in ((text_of(value), value) for value in values) if name.encode() == value]


def entry_time_s(entry_id: str) -> float:
    """When an entry was added, seconds since the epoch by the clock of Redis, which its id begins with."""
    return int(entry_id.partition("-")[0]) / 1000


def entries_as_text(entries: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries of XRANGE, XREVRANGE or of one stream of XREAD, as texts for people."""
    return [
        (text_of(entry_id), {text_of(name): text_of(value) for name, value in (fields or {}).items()})
        for entry_id, fields in entries
    ]


def some_fields_as_text(entries: Any, names: Sequence[tuple[bytes, str]]) -> list[tuple[str, dict[str, str]]]:
    """The same for these fields alone, each as Redis names it and as we do: an entry may have many more, and each takes
    time.
    """
    return [
        (text_of(entry_id), {name: text_of(fields[raw]) for raw, name in names if raw in fields})
        for entry_id, fields in ((entry_id, fields or {}) for entry_id, fields in entries)
    ]


def fields_of_reply(flat: Sequence[bytes] | Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The fields of a hash or an entry: flat from a script, a mapping from a command."""
    if isinstance(flat, Mapping):
        return dict(flat)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def pipeline_replies(client: RedirectingRedis, pipe: Any, nothing: Any) -> list[Any]:
    """The replies of a pipeline that reads task hashes; `nothing` where a key is of another type: it is no task, and
    must not hide the others. Raises redis.RedisError for any other error.
    """
    answers = []
    for answer in client.execute_pipeline(pipe):
        wrong_type = isinstance(answer, redis.ResponseError) and "WRONGTYPE" in str(answer)
        if isinstance(answer, Exception) and not wrong_type:
            raise answer
        answers.append(nothing if wrong_type else answer)
    return answers
