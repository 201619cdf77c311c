"""How a task is written down in its Redis hash, and read again: the counterpart of protocol.lua on the Python side."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ottoscaler.core.acts import Doom
from ottoscaler.core.events import decode
from ottoscaler.core.verdicts import Reason
from ottoscaler.ports import OpenTask, StoredWorker, TaskView, Victim

_FIELD = re.compile(rb"(attempt|doom|outcome):([0-9]+)")


class Key:
    """The names of our own keys: one prefix, so that an ACL and a Redis Cluster hash tag can name them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.open = f"{prefix}open"
        self.buried = f"{prefix}buried"

    def task(self, event_id: str) -> str:
        """The hash of one task."""
        return f"{self._prefix}task:{event_id}"


def encode_doom(doom: Doom) -> str:
    """A doom as JSON, with what the result will say, so that the record script needs no table."""
    verdict = doom.verdict
    return json.dumps(
        {
            "reason": doom.reason,
            "outcome": verdict.outcome,
            "fault": verdict.fault,
            "message": doom.message,
            "attempt": doom.attempt,
            "drain": doom.drain,
            "by": doom.by,
        }
    )


def decode_doom(text: bytes | None) -> Doom | None:
    """The doom of its JSON; None for none."""
    if not text:
        return None
    fields = json.loads(text)
    return Doom(Reason(fields["reason"]), fields["message"], fields["attempt"], fields["drain"], fields["by"])


def worker_json(state: str, attempt: int, pod: str) -> str:
    """What `worker:<index>` shows while there is no result."""
    return json.dumps({"state": state, "attempt": attempt, "pod": pod})


def worker_fields(index: int) -> list[str]:
    """The fields of a task hash that tell how a worker stands."""
    return [f"attempt:{index}", f"doom:{index}", f"outcome:{index}"]


def stored_worker(index: int, fields: Mapping[str, bytes | None]) -> StoredWorker:
    """How a worker stands, by its `worker_fields`."""
    attempt, doom, outcome = (fields.get(name) for name in worker_fields(index))
    number, infra_used, *refused = (attempt or b"0:0").decode().split(":")
    return StoredWorker(
        index, int(number), int(infra_used), bool(refused), decode_doom(doom), (outcome or b"").decode()
    )


def decode_workers(fields: Mapping[bytes, bytes]) -> dict[int, StoredWorker]:
    """What a task hash knows of its workers, by index."""
    indices = {int(match[2]) for name in fields if (match := _FIELD.fullmatch(name))}
    texts = {name.decode(): value for name, value in fields.items() if _FIELD.fullmatch(name)}
    return {index: stored_worker(index, texts) for index in sorted(indices)}


def decode_task(owner: str, fields: Mapping[bytes, bytes]) -> OpenTask:
    """An open task from its hash."""
    victims = fields.get(b"victims")
    return OpenTask(
        event=decode(fields[b"event"]),
        owner=owner,
        received_at=fields[b"received_at"].decode(),
        workers=decode_workers(fields),
        victims=None if victims is None else [Victim(*item) for item in json.loads(victims)],
        survivors=json.loads(fields.get(b"survivors", b"[]")),
        superseded=fields.get(b"superseding") != b"todo",
        cancels=int(fields.get(b"cancels", b"0")),
    )


def decode_view(fields: Mapping[bytes, bytes]) -> TaskView:
    """A task from its hash, for those who choose among all."""
    return TaskView(decode(fields[b"event"]), fields[b"owner"].decode(), decode_workers(fields))
