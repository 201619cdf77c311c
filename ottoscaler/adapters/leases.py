"""Leases in Redis: which replica owns a task, and for how long. Script functions: leases.lua."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Final

from ottoscaler.adapters.redis_calls import RedisAdapter
from ottoscaler.adapters.redis_values import chunks, decode_names, fields_of_reply, pipeline_replies, text_of
from ottoscaler.adapters.scripts import ScriptCall
from ottoscaler.adapters.task_codec import decode_dead_letter, decode_or_none, decode_task, decode_workers, encode_task
from ottoscaler.core.events import BadEvent, ScaleEvent
from ottoscaler.ports import KeyPlaces, OpenTask, Renewal, StoredWorker
from ottoscaler.stored import split_owner_token

#: The used retries of a worker that is to have none left, whatever INFRA_RETRIES is.
RETRIES_EXHAUSTED: Final = 1000
#: Scripts of `CHUNK` renewals that are sent in one trip.
RENEWALS_AT_ONCE: Final = 10


class RedisLeases(RedisAdapter):
    """`ports.Leases` on Redis. Any thread."""

    def announce(self) -> None:
        """See ports.Leases."""
        self._announce(first=True)

    def _announce(self, *, first: bool) -> bool:
        redis = self._redis
        keys = [redis.key.consumer(redis.consumer)]
        return bool(redis.run("announce", keys, redis.incarnation, int(first), redis.consumer, client=redis.leasing))

    def renew(self, owners: Mapping[str, str], at_work: Collection[str] = ()) -> Renewal:
        """See ports.Leases. A process without tasks asks as well: it has to know, too, when Redis was away."""
        replaced = self._announce(first=False)
        lost, cancels, forgotten = {}, {}, []
        left_s: dict[str, float] = {}
        for some in chunks(chunks(list(owners.items())), RENEWALS_AT_ONCE):
            calls = [self._renew_call(part, at_work) for part in some]
            replies = self._redis.run_many(self._redis.leasing, calls)
            for part, reply in zip(some, replies, strict=True):
                for (event_id, _), (answer, detail, left) in zip(part, reply, strict=True):
                    if answer == b"ok":
                        cancels[event_id] = int(detail)
                        if left != b"":
                            left_s[event_id] = int(left) / 1000
                    elif answer == b"lost":
                        lost[event_id] = text_of(detail)
                    else:
                        forgotten.append(event_id)
        return Renewal(lost, cancels, forgotten, replaced, left_s)

    def _renew_call(self, part: Sequence[tuple[str, str]], at_work: Collection[str]) -> ScriptCall:
        flat = [each for event_id, owner in part for each in (event_id, owner, int(event_id in at_work))]
        return ScriptCall(
            "renew", [self._redis.key.task(event_id) for event_id, _ in part], [self._redis.lease_ms, *flat]
        )

    def release(self, owners: Mapping[str, str]) -> None:
        """See ports.Leases."""
        for part in chunks(list(owners.items())):
            keys = [self._redis.key.task(event_id) for event_id, _ in part]
            self._redis.run("release", keys, *chain.from_iterable(part), client=self._redis.taking)

    # -- taking over

    def expired(self, *, same_consumer: bool) -> Sequence[str]:
        """See ports.Leases."""
        if same_consumer:
            consumer, incarnation = self._redis.consumer, self._redis.incarnation
            owners = [(event_id, split_owner_token(owner)) for event_id, owner in self._open_tasks_with_owners()]
            return [event_id for event_id, (name, other) in owners if name == consumer and other != incarnation]
        return decode_names(self._redis.run("expired", [], self._redis.lease_ms, client=self._redis.taking))

    def owned(self) -> Sequence[str]:
        """See ports.Leases."""
        ours = (self._redis.consumer, self._redis.incarnation)
        return [event_id for event_id, owner in self._open_tasks_with_owners() if split_owner_token(owner) == ours]

    def _open_tasks_with_owners(self) -> list[tuple[str, str]]:
        """The open tasks with their owners, '' for one without."""
        client, key = self._redis.taking, self._redis.key
        found: list[tuple[str, str]] = []
        every = self._redis.open_event_ids(client)
        with self._redis.translate_errors():
            for part in chunks(every):
                pipe = client.pipeline(transaction=False)
                for event_id in part:
                    pipe.hget(key.task(event_id), "owner")
                owners = zip(part, pipeline_replies(client, pipe, None), strict=True)
                found += [(event_id, text_of(owner or b"")) for event_id, owner in owners]
        return found

    def take_over(self, event_id: str, *, same_consumer: bool) -> OpenTask | BadEvent | None:
        """See ports.Leases."""
        redis = self._redis
        keys = [redis.key.task(event_id), redis.key.consumer(redis.consumer), redis.key.choices]
        reply = redis.run(
            "take_over", keys, event_id, redis.consumer, redis.incarnation, redis.lease_ms, int(same_consumer),
            client=redis.taking,
        )  # fmt: skip
        if reply[0] == b"ok":
            return decode_task(reply[1].decode(), fields_of_reply(reply[2]), holds=reply[3:] != [0])
        return decode_dead_letter(reply, event_id, "")

    def admit(self, keys: Sequence[str], *, shown: int, check_open: bool) -> Mapping[str, KeyPlaces]:
        """See ports.Leases."""
        redis, found = self._redis, {}
        for part in chunks(list(keys)):
            names = [redis.key.concurrency(key) for key in part]
            replies = redis.run("admit", names, shown, int(check_open), client=redis.taking)
            for key, reply in zip(part, replies, strict=True):
                found[key] = KeyPlaces(readable=False)
                if reply:
                    first, holding, waiting = reply
                    found[key] = KeyPlaces(decode_names(holding), text_of(first), decode_names(waiting))
        return found

    # -- after Redis was wiped

    def known_tasks(self, event_ids: Sequence[str]) -> Mapping[str, tuple[str, Mapping[int, StoredWorker]]]:
        """See ports.Leases."""
        known: dict[str, tuple[str, Mapping[int, StoredWorker]]] = {}
        for event_id, fields in zip(event_ids, self._redis.hashes(event_ids), strict=True):
            workers = decode_or_none(decode_workers, fields) if b"state" in fields else None
            if workers is not None:
                known[event_id] = (text_of(fields[b"state"]), workers)
        return known

    def rebuild_from_pods(self, event: ScaleEvent, attempts: Mapping[int, int]) -> None:
        """See ports.Leases."""
        workers = {
            index: StoredWorker(
                index, attempts.get(index, 1), 0 if index in attempts else RETRIES_EXHAUSTED, pod_was_seen=True
            )
            for index in range(1, event.pod_count + 1)
        }
        self._restore(OpenTask(event, f"{self._redis.process}0", workers=workers, superseded=True), 0)

    def restore(self, task: OpenTask) -> None:
        """See ports.Leases."""
        self._restore(task, self._redis.lease_ms)

    def _restore(self, task: OpenTask, lease_ms: int) -> None:
        event_id, key = task.event.event_id, self._redis.key
        flat = json.dumps([*chain.from_iterable(encode_task(task).items())])
        undecided = task.event.stream_id if task.selection_pending else ""
        keys = [key.task(event_id), key.choices]
        holds = int(task.holds) if task.event.concurrency_key else ""
        self._redis.run("restore", keys, event_id, lease_ms, flat, undecided, holds, client=self._redis.taking)
