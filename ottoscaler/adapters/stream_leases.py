"""Who owns a task, and for how long: the part of `ports.Stream` about leases, in Redis."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from ottoscaler.adapters.replies import answers_of, buried, chunks, names_of, pairs_of, text_of
from ottoscaler.adapters.stream_calls import StreamCalls
from ottoscaler.adapters.tasks import decode_task, encode_task
from ottoscaler.core.events import BadEvent, ScaleEvent
from ottoscaler.core.names import process_of
from ottoscaler.ports import OpenTask, Renewal, StoredWorker

#: The used retries of a worker that is to have none left, whatever INFRA_RETRIES is.
NONE_LEFT = 1000

#: Scripts of `CHUNK` renewals that are sent in one trip.
RENEWALS_AT_ONCE = 10
#: As if it had been idle for so long: longer than any LEASE_S.
HANDED_OVER_MS = 86_400_000
#: More than a stopping process has in hand.
HANDED_OVER_COUNT = 1000


class StreamLeases(StreamCalls):
    """Leases of tasks: given, renewed, taken over, given up. Any thread."""

    def adopt(self, event: ScaleEvent, attempts: Mapping[int, int]) -> None:
        """See ports.Stream."""
        workers = {
            index: StoredWorker(index, attempts.get(index, 1), 0 if index in attempts else NONE_LEFT, seen=True)
            for index in range(1, event.pod_count + 1)
        }
        self._restore(OpenTask(event, f"{self._base}0", workers=workers, superseded=True), 0)

    def restore(self, task: OpenTask) -> None:
        """See ports.Stream."""
        self._restore(task, self._lease_ms)

    def _restore(self, task: OpenTask, lease_ms: int) -> None:
        event_id = task.event.event_id
        flat = [value for pair in encode_task(task).items() for value in pair]
        keys, undecided = [self._key.task(event_id), self._key.choices], task.event.stream_id if task.undecided else ""
        self._run("restore", keys, event_id, lease_ms, json.dumps(flat), undecided, client=self._taking)

    def announce(self) -> None:
        """See ports.Stream."""
        self._announce(anew=True)

    def _announce(self, *, anew: bool) -> bool:
        key = self._key.consumer(self._consumer)
        return bool(self._run("announce", [key], self._boot, int(anew), self._consumer, client=self._leasing))

    def renew(self, owners: Mapping[str, str], at_work: Collection[str] = ()) -> Renewal:
        """See ports.Stream. Who has no task asks as well: he has to know, too, when Redis was away."""
        replaced = self._announce(anew=False)
        lost, cancels, forgotten = {}, {}, []
        for some in chunks(chunks(list(owners.items())), RENEWALS_AT_ONCE):
            calls = [self._renewal(part, at_work) for part in some]
            with self._calling():
                answers = self._scripts.run_many(self._leasing, calls)
            for part, answer in zip(some, answers, strict=True):
                for (event_id, _), (fate, detail) in zip(part, answer, strict=True):
                    if fate == b"ok":
                        cancels[event_id] = int(detail)
                    elif fate == b"lost":
                        lost[event_id] = text_of(detail)
                    else:
                        forgotten.append(event_id)
        return Renewal(lost, cancels, forgotten, replaced)

    def _renewal(
        self, part: Sequence[tuple[str, str]], at_work: Collection[str]
    ) -> tuple[str, Sequence[str], Sequence[Any]]:
        flat = [each for event_id, owner in part for each in (event_id, owner, int(event_id in at_work))]
        return "renew", [self._key.task(event_id) for event_id, _ in part], (self._lease_ms, *flat)

    def expired(self, *, same_consumer: bool) -> Sequence[str]:
        """See ports.Stream."""
        if same_consumer:
            owners = [(name, process_of(owner)) for name, owner in self._open()]
            return [name for name, (whose, boot) in owners if whose == self._consumer and boot != self._boot]
        return names_of(self._run("expired", [], self._lease_ms, client=self._taking))

    def owned(self) -> Sequence[str]:
        """See ports.Stream."""
        ours = (self._consumer, self._boot)
        return [event_id for event_id, owner in self._open() if process_of(owner) == ours]

    def _open(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        with self._calling():
            every = cast("list[bytes]", self._taking.zrange(self._key.open, 0, -1))
            for part in chunks(names_of(every)):
                pipe = self._taking.pipeline(transaction=False)
                for event_id in part:
                    pipe.hget(self._key.task(event_id), "owner")
                owners = zip(part, answers_of(self._taking, pipe, None), strict=True)
                found += [(name, text_of(owner or b"")) for name, owner in owners]
        return found

    def take(self, event_id: str, *, same_consumer: bool) -> OpenTask | BadEvent | None:
        """See ports.Stream."""
        arguments = (event_id, self._consumer, self._boot, self._lease_ms, int(same_consumer))
        keys = [self._key.task(event_id), self._key.consumer(self._consumer), self._key.choices]
        answer = self._run("take", keys, *arguments, client=self._taking)
        if answer[0] == b"ok":
            return decode_task(answer[1].decode(), pairs_of(answer[2]))
        return buried(answer, event_id, "")

    def reload(self, event_id: str) -> OpenTask | None:
        """See ports.Stream."""
        with self._calling():
            fields = cast("dict[bytes, bytes]", self._client.hgetall(self._key.task(event_id)))
        return decode_task(fields[b"owner"].decode(), fields) if b"owner" in fields else None

    def release(self, owners: Mapping[str, str]) -> None:
        """See ports.Stream."""
        for part in chunks(list(owners.items())):
            keys = [self._key.task(event_id) for event_id, _ in part]
            self._run("release", keys, *(text for pair in part for text in pair), client=self._taking)

    def hand_over(self) -> None:
        """See ports.Stream."""
        self._run("hand_over", [], self._consumer, HANDED_OVER_MS, HANDED_OVER_COUNT, client=self._taking)
