"""The dead-letter stream as `dead` shows it, with the two things that an operator can do to it: send an event again,
and remove an entry.

What was sent again is remembered in a hash of its own, in the same step that sends it, for as long as the dead letter
is there: the event id under which it is sent is forgotten after TASK_TTL_S.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any, Final, cast

from ottoscaler.adapters.redis_client import address, connect, translate_errors
from ottoscaler.adapters.redis_values import entries_as_text
from ottoscaler.adapters.scripts import Script, call_script, source
from ottoscaler.adapters.task_codec import RedisKeys
from ottoscaler.core.nesting import MAX_JSON_DEPTH, json_depth
from ottoscaler.errors import OttoscalerError
from ottoscaler.settings import KeySettings, RedisSettings

_TIMEOUT_S: Final = 5.0
_ID: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,20})", re.ASCII)
_LARGEST: Final = 2**64 - 1
_SCRIPT: Final = Script.of(source("atomic.lua", "dead.lua"))


class NotRedrivable(OttoscalerError):
    """The event of a dead letter cannot be sent again: the sentence says why."""


class DeadLetterOutcome(Enum):
    """What became of a request."""

    SENT = "sent"
    KNOWN = "known"
    PURGED = "purged"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDeadLetter:
    """One entry of the dead-letter stream. `event` is JSON as it stands there; `redriven_as` the entry that it was sent
    again as, empty if it was not.
    """

    id: str
    reason: str
    detail: str
    event_id: str
    stream_id: str
    group: str
    attempts: str
    at: str
    event: str
    redriven_as: str

    def fields(self) -> dict[bytes, bytes]:
        """The fields of the event, byte for byte as they were sent. Raises NotRedrivable."""
        try:
            kept = json.loads(self.event) if json_depth(self.event) <= MAX_JSON_DEPTH else None
        except ValueError:
            kept = None
        if not isinstance(kept, dict):
            raise NotRedrivable(f"Dead letter {self.id} holds no event that could be read: it is not sent again")
        # the values of an event are texts or {"base64": ...}, so this is no field that has the name "cut"
        if kept.get("cut") is True:
            raise NotRedrivable(
                f"The event of dead letter {self.id} was larger than 1 MiB and is kept only in part:"
                " it is not sent again"
            )
        if not kept:
            raise NotRedrivable(f"Dead letter {self.id} has no event any more (it was trimmed away): send it again")
        try:
            return {name.encode(): _field_bytes(value) for name, value in kept.items()}
        except (TypeError, KeyError, binascii.Error) as error:
            raise NotRedrivable(f"Dead letter {self.id} holds no event that could be read: {error!r}") from error


class DeadLetters:
    """Looks at dead letters, sends them again, takes them away. Any thread; each method raises RedisUnavailable."""

    def __init__(self, server: RedisSettings, keys: KeySettings) -> None:
        self._keys = keys
        self._key = RedisKeys(keys.prefix)
        self._client = connect(server, timeout_s=_TIMEOUT_S)
        self.where = address(server)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client.close()

    def count(self) -> int:
        """How many there are."""
        with translate_errors(self.where):
            return self._client.xlen(self._keys.dead_letter_stream)

    def newest(self, count: int) -> Sequence[StoredDeadLetter]:
        """The newest ones, newest first; at most `count`."""
        with translate_errors(self.where):
            return self._stored_letters(self._client.xrevrange(self._keys.dead_letter_stream, count=count))

    def find(self, dead_id: str) -> StoredDeadLetter | None:
        """The entry of that id (see `canonical_entry_id`); None if there is none."""
        with translate_errors(self.where):
            found = self._stored_letters(self._client.xrange(self._keys.dead_letter_stream, dead_id, dead_id))
        return found[0] if found else None

    def check_group(self, letter: StoredDeadLetter) -> None:
        """Several groups may share the stream of dead letters, but not that of events. Raises NotRedrivable."""
        if letter.group != self._keys.group:
            raise NotRedrivable(
                f"Dead letter {letter.id} is of the consumer group {letter.group!r}, not of {self._keys.group!r}:"
                " set REDIS_CONSUMER_GROUP and REDIS_STREAM to its own"
            )

    def redrive(self, dead_id: str, fields: Mapping[bytes, bytes]) -> tuple[DeadLetterOutcome, str]:
        """Send the event of these fields in place of a dead letter, once. SENT or KNOWN, with the id of the entry that
        was added now or the first time; GONE if there is no such dead letter (any more).
        """
        event_id = redrive_id(dead_id)
        flat = [*chain.from_iterable({**fields, b"event_id": event_id.encode()}.items())]
        keys = (self._keys.stream, self._key.task(event_id))
        return self._run("redrive", dead_id, keys, flat)

    def purge(self, dead_id: str) -> DeadLetterOutcome:
        """Take this one entry away. PURGED or GONE."""
        return self._run("purge", dead_id, (), ())[0]

    def _run(
        self, function: str, dead_id: str, more: Sequence[str], rest: Sequence[bytes]
    ) -> tuple[DeadLetterOutcome, str]:
        keys = [self._keys.dead_letter_stream, self._key.redriven, *more]
        with translate_errors(self.where):
            command = ("EVALSHA", _SCRIPT.digest, len(keys), *keys, function, dead_id, *rest)
            outcome, sent = cast("list[bytes]", call_script(self._client, _SCRIPT, command))
        return DeadLetterOutcome(outcome.decode()), sent.decode()

    def _stored_letters(self, entries: Any) -> list[StoredDeadLetter]:
        letters = entries_as_text(entries)
        ids = [dead_id for dead_id, _ in letters]
        redriven = cast("Any", self._client.hmget(self._key.redriven, ids)) if ids else []
        return [_stored_letter(*each, (sent or b"").decode()) for each, sent in zip(letters, redriven, strict=True)]


def canonical_entry_id(text: str) -> str | None:
    """An id as Redis writes it, so that no entry has two (`007-0` is `7-0`); None for what is no whole id."""
    match = _ID.fullmatch(text)
    numbers = [int(part) for part in match.groups()] if match else [_LARGEST + 1]
    return "-".join(map(str, numbers)) if max(numbers) <= _LARGEST else None


def redrive_id(dead_id: str) -> str:
    """The event id under which a dead letter is sent again."""
    return f"redrive:{dead_id}"


def _field_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"], validate=True)


def _stored_letter(dead_id: str, fields: Mapping[str, str], redriven: str) -> StoredDeadLetter:
    names = ("event_id", "stream_id", "group", "attempts", "at", "event")
    return StoredDeadLetter(
        id=dead_id,
        reason=fields.get("dead_reason", ""),
        detail=fields.get("dead_detail", ""),
        **{name: fields.get(name, "") for name in names},
        redriven_as=redriven,
    )
