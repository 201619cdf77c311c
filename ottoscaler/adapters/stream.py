"""The event stream and the state of the tasks in Redis: implements `ports.Stream`.

Every write is one function of protocol.lua, so that it is atomic and may be repeated. Reads of the stream that block
have a connection of their own, and so have the leases, with short time-outs: a slow script of a worker must not cost a
lease.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import redis

from ottoscaler.adapters.redis_client import Heard, address, connect, drop_idle, mute, translated
from ottoscaler.adapters.replies import (
    accepted,
    advice_on,
    answers_of,
    buried,
    chunks,
    delivered_of,
    entries_of,
    pairs_of,
)
from ottoscaler.adapters.scripts import Scripts
from ottoscaler.adapters.tasks import (
    Key,
    common_json,
    decode_doom,
    decode_task,
    decode_view,
    decode_workers,
    encode_doom,
    encode_task,
    readable,
    stored_worker,
    worker_fields,
    worker_json,
)
from ottoscaler.core.acts import Doom
from ottoscaler.core.events import BadEvent, EventType, ScaleEvent, digest, original
from ottoscaler.core.names import process_of
from ottoscaler.errors import StreamUnavailable
from ottoscaler.ports import Answer, Entry, Fate, OpenTask, Renewal, StoredWorker, TaskView, Victim
from ottoscaler.settings import KeySettings, RedisSettings

#: A lost answer of a blocking read is noticed this long after the block's end, seconds. With the longest pause of
#: retries.py it is how long after a silence of the network events are read again.
READ_MARGIN_S = 1.5
SCRIPT_TIMEOUT_S = 5.0
LEASE_TIMEOUT_S = 2.0
CONNECTIONS = 16
#: Connections for what comes before a task is ours: for the reader, control and the lease thread.
READERS = 3
PENDING_COUNT = 100
#: The used retries of a worker that is to have none left, whatever INFRA_RETRIES is.
NONE_LEFT = 1000


class RedisStream:
    """`ports.Stream` on Redis 7.0 or later, or Valkey. Any thread; `read` and `peek` one thread each."""

    def __init__(
        self, server: RedisSettings, keys: KeySettings, *, lease_s: float, consumer: str, boot: str, heard: Heard = mute
    ) -> None:
        """`heard` is told of each call how it ended: empty for an answer, else the error."""
        self._keys = keys
        self._key = Key(keys.prefix)
        self._scripts = Scripts(keys)
        self._consumer = consumer
        self._boot = boot
        self._base = f"{consumer}/{boot}/"
        self._lease_ms = int(lease_s * 1000)
        self._block_ms = server.block_ms
        self._telling = partial(translated, address(server), heard)
        read_timeout_s = server.block_ms / 1000 + READ_MARGIN_S
        self._reading = connect(server, timeout_s=read_timeout_s, connections=READERS)
        self._peeking = connect(server, timeout_s=read_timeout_s, connections=1)
        self._leasing = connect(server, timeout_s=LEASE_TIMEOUT_S, connections=2)
        self._client = connect(server, timeout_s=SCRIPT_TIMEOUT_S, connections=CONNECTIONS)
        self._clients = (self._reading, self._peeking, self._leasing, self._client)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()

    # -- the stream and its group

    def ensure_group(self) -> None:
        """See ports.Stream. The group starts at 0: what was sent before there was a controller counts too."""
        with self._calling():
            try:
                self._reading.xgroup_create(self._keys.stream, self._keys.group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    def reserve(self) -> str:
        """See ports.Stream."""
        return str(self._run("reserve", [self._key.group], client=self._reading).decode())

    def read(self, count: int) -> Sequence[Entry]:
        """See ports.Stream."""
        return self._read(count, self._block_ms)

    def read_now(self, count: int) -> Sequence[Entry]:
        """See ports.Stream."""
        return self._read(count, None)

    def _read(self, count: int, block_ms: int | None) -> Sequence[Entry]:
        with self._calling():
            streams: dict[Any, Any] = {self._keys.stream: ">"}
            reply = self._reading.xreadgroup(self._keys.group, self._consumer, streams, count=count, block=block_ms)
        return entries_of(cast("Any", reply))

    def peek(self, after: str, count: int, *, block: bool) -> Sequence[Entry]:
        """See ports.Stream."""
        with self._calling():
            reply = self._peeking.xread(
                {self._keys.stream: after}, count=count, block=self._block_ms if block else None
            )
        return entries_of(cast("Any", reply))

    def delivered(self) -> str:
        """See ports.Stream."""
        with self._calling():
            return delivered_of(cast("Any", self._reading.xinfo_groups(self._keys.stream)), self._keys.group)

    def pending(self, *, own: bool, min_idle_s: float) -> Sequence[Entry]:
        """See ports.Stream."""
        arguments = (self._consumer, int(own), int(min_idle_s * 1000), PENDING_COUNT)
        found = self._run("pending", [], *arguments, client=self._reading)
        return [Entry(stream_id.decode(), pairs_of(fields) if fields else None) for stream_id, fields in found]

    def retry(self, stream_id: str) -> int:
        """See ports.Stream. The number is Redis's own, of deliveries."""
        return int(self._run("retry", [], self._consumer, stream_id, client=self._reading))

    def older_pending(self, stream_id: str) -> bool:
        """See ports.Stream. Unread first: an entry may become pending between the two looks, never unread again."""
        stream, group = self._keys.stream, self._keys.group
        with self._calling():
            last = delivered_of(cast("Any", self._client.xinfo_groups(stream)), group)
            unread = self._client.xrange(stream, f"({last}", f"({stream_id}", count=1)
            return bool(unread or self._client.xpending_range(stream, group, "-", f"({stream_id}", 1))

    # -- accepting

    def accept(
        self, events: Sequence[tuple[ScaleEvent, str]], raws: Sequence[Mapping[bytes, bytes]]
    ) -> Sequence[OpenTask | BadEvent | None]:
        """See ports.Stream."""
        calls = []
        for (event, content), raw in zip(events, raws, strict=True):
            arguments = (
                event.stream_id, event.event_id, content, event.encode(), original(raw), common_json(event),
                event.type.value, event.task_id, event.pod_count, self._base, self._lease_ms, event.supersedes,
            )  # fmt: skip
            calls.append(("accept", [self._key.task(event.event_id)], arguments))
        with self._calling():
            answers = self._scripts.run_many(self._reading, calls)
        return [accepted(event, answer) for (event, _), answer in zip(events, answers, strict=True)]

    def adopt(self, event: ScaleEvent, attempts: Mapping[int, int]) -> None:
        """See ports.Stream."""
        workers = {
            index: StoredWorker(index, attempts[index]) if index in attempts else StoredWorker(index, 1, NONE_LEFT)
            for index in range(1, event.pod_count + 1)
        }
        self._restore(OpenTask(event, f"{self._base}0", workers=workers, superseded=True), 0)

    def restore(self, task: OpenTask) -> None:
        """See ports.Stream."""
        self._restore(task, self._lease_ms)

    def _restore(self, task: OpenTask, lease_ms: int) -> None:
        event_id = task.event.event_id
        flat = [value for pair in encode_task(task).items() for value in pair]
        self._run("restore", [self._key.task(event_id)], event_id, lease_ms, json.dumps(flat), client=self._leasing)

    def bury(self, entry: Entry, bad: BadEvent) -> BadEvent | None:
        """See ports.Stream."""
        fields = entry.fields or {}
        answer = self._run(
            "bury", [self._key.task(bad.event_id)], entry.stream_id, bad.reason.value, bad.detail, bad.event_id,
            bad.task_id, digest(fields), original(fields), "[]",
        )  # fmt: skip
        return buried(answer, bad.event_id, bad.task_id)

    # -- owning

    def announce(self) -> None:
        """See ports.Stream."""
        self._announce(anew=True)

    def _announce(self, *, anew: bool) -> bool:
        key = self._key.consumer(self._consumer)
        return bool(self._run("announce", [key], self._boot, int(anew), client=self._leasing))

    def renew(self, owners: Mapping[str, str], failed_on: Collection[str] = ()) -> Renewal:
        """See ports.Stream. Who has no task asks as well: he has to know, too, when Redis was away."""
        replaced = self._announce(anew=False)
        lost, cancels, forgotten = {}, {}, []
        for part in chunks(list(owners.items())):
            keys = [self._key.task(event_id) for event_id, _ in part]
            flat = [each for event_id, owner in part for each in (event_id, owner, int(event_id in failed_on))]
            answers = self._run("renew", keys, self._lease_ms, *flat, client=self._leasing)
            for (event_id, _), (fate, detail) in zip(part, answers, strict=True):
                if fate == b"ok":
                    cancels[event_id] = int(detail)
                elif fate == b"lost":
                    lost[event_id] = detail.decode()
                else:
                    forgotten.append(event_id)
        return Renewal(lost, cancels, forgotten, replaced)

    def expired(self, *, same_consumer: bool) -> Sequence[str]:
        """See ports.Stream."""
        if same_consumer:
            owners = [(name, process_of(owner)) for name, owner in self._open()]
            return [name for name, (whose, boot) in owners if whose == self._consumer and boot != self._boot]
        with self._calling():
            seconds, micros = self._leasing.time()
            now_ms = seconds * 1000 + micros // 1000
            due = self._leasing.zrangebyscore(self._key.open, "-inf", now_ms)
            return [event_id.decode() for event_id in cast("list[bytes]", due)]

    def owned(self) -> Sequence[str]:
        """See ports.Stream."""
        ours = (self._consumer, self._boot)
        return [event_id for event_id, owner in self._open() if process_of(owner) == ours]

    def _open(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        with self._calling():
            every = cast("list[bytes]", self._leasing.zrange(self._key.open, 0, -1))
            for part in chunks([event_id.decode() for event_id in every]):
                pipe = self._leasing.pipeline(transaction=False)
                for event_id in part:
                    pipe.hget(self._key.task(event_id), "owner")
                owners = zip(part, answers_of(pipe, None), strict=True)
                found += [(name, (owner or b"").decode()) for name, owner in owners]
        return found

    def take(self, event_id: str, *, same_consumer: bool) -> OpenTask | BadEvent | None:
        """See ports.Stream."""
        arguments = (event_id, self._consumer, self._boot, self._lease_ms, int(same_consumer))
        answer = self._run("take", [self._key.task(event_id)], *arguments, client=self._leasing)
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
            self._run("release", keys, *(text for pair in part for text in pair), client=self._leasing)

    def tasks(self) -> Sequence[TaskView]:
        """See ports.Stream."""
        with self._calling():
            ids = [event_id.decode() for event_id in cast("list[bytes]", self._client.zrange(self._key.open, 0, -1))]
        views = [readable(decode_view, fields) for fields in self._hashes(ids) if b"owner" in fields]
        return [view for view in views if view is not None and view.event.type is EventType.SCALE_UP]

    def known(self, event_ids: Sequence[str]) -> Mapping[str, tuple[str, Mapping[int, StoredWorker]]]:
        """See ports.Stream."""
        found = zip(event_ids, self._hashes(event_ids), strict=True)
        workers = {
            event_id: (fields[b"state"].decode(), readable(decode_workers, fields))
            for event_id, fields in found
            if b"state" in fields
        }
        return {event_id: (state, known) for event_id, (state, known) in workers.items() if known is not None}

    def _hashes(self, event_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        hashes: list[dict[bytes, bytes]] = []
        with self._calling():
            for part in chunks(event_ids):
                pipe = self._client.pipeline(transaction=False)
                for event_id in part:
                    pipe.hgetall(self._key.task(event_id))
                hashes += answers_of(pipe, {})
        return hashes

    # -- one worker

    def intend(self, event_id: str, owner: str, index: int, *, attempt: int, infra_used: int, pod: str) -> Answer:
        """See ports.Stream."""
        state = worker_json("creating", attempt, pod)
        return self._answer("intend", event_id, owner, index, attempt, infra_used, state)

    def note_refused(self, event_id: str, owner: str, index: int, attempt: int) -> Answer:
        """See ports.Stream."""
        return self._answer("refused", event_id, owner, index, attempt, worker_json("waiting", attempt, ""))

    def check(self, event_id: str, owner: str, index: int) -> Answer:
        """See ports.Stream."""
        return self._answer("check", event_id, owner, index)

    def doom(self, event_id: str, owner: str | None, index: int, doom: Doom) -> Answer:
        """See ports.Stream."""
        return self._answer("doom", event_id, owner or "", index, encode_doom(doom))

    def withdraw(self, event_id: str, owner: str, index: int, doom: Doom) -> Answer:
        """See ports.Stream."""
        return self._answer("withdraw", event_id, owner, index, encode_doom(doom))

    def record(self, event_id: str, owner: str, index: int, *, attempt: int, fields: Mapping[str, str]) -> Answer:
        """See ports.Stream."""
        return self._answer(
            "record", event_id, owner, index, attempt, *(text for pair in fields.items() for text in pair)
        )

    def note_states(self, event_id: str, owner: str, states: Mapping[int, tuple[str, int, str]]) -> None:
        """See ports.Stream."""
        for part in chunks(list(states.items())):
            flat = [text for index, state in part for text in (index, worker_json(*state))]
            self._run("note_states", [self._key.task(event_id)], event_id, owner, *flat)

    def note_why(self, event_id: str, owner: str, why: str, next_at: str) -> None:
        """See ports.Stream."""
        self._run("note_why", [self._key.task(event_id)], event_id, owner, why, next_at)

    # -- scale_down

    def choose(
        self, event_id: str, owner: str, victims: Sequence[Victim], survivors: Sequence[str]
    ) -> tuple[Sequence[Victim], Sequence[str]] | None:
        """See ports.Stream."""
        listed = json.dumps([[victim.event_id, victim.index, victim.pod] for victim in victims])
        answer = self._run("choose", [self._key.task(event_id)], event_id, owner, listed, json.dumps(list(survivors)))
        if answer[0] != b"ok":
            return None
        return [Victim(*item) for item in json.loads(answer[1])], json.loads(answer[2])

    def mark_superseded(self, event_id: str, owner: str) -> None:
        """See ports.Stream."""
        self._run("superseded", [self._key.task(event_id)], event_id, owner)

    def finish_scale_down(self, event_id: str, owner: str, fields: Mapping[str, str]) -> Answer:
        """See ports.Stream."""
        return self._answer("finish", event_id, owner, *(text for pair in fields.items() for text in pair))

    def outcomes(self, victims: Sequence[Victim]) -> Sequence[StoredWorker | None]:
        """See ports.Stream. Asked often while a scale_down is under way, so only the fields in question are read."""
        found: list[StoredWorker | None] = []
        with self._calling():
            for part in chunks(victims):
                pipe = self._client.pipeline(transaction=False)
                for victim in part:
                    pipe.hmget(self._key.task(victim.event_id), ["state", *worker_fields(victim.index)])
                for victim, (state, *values) in zip(
                    part, answers_of(pipe, [None] * (1 + len(worker_fields(1)))), strict=True
                ):
                    fields = dict(zip(worker_fields(victim.index), values, strict=True))
                    found.append(stored_worker(victim.index, fields) if state else None)
        return found

    def advice(self) -> Sequence[str]:
        """See ports.Stream."""
        with self._calling():
            try:
                told = self._client.info("everything")
            except redis.exceptions.NoPermissionError:
                return []
        return advice_on(told)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        try:
            with self._telling():
                yield
        except StreamUnavailable as error:
            if error.unclear:
                for client in self._clients:
                    drop_idle(client)
            raise

    # -- scripts

    def _answer(self, function: str, event_id: str, *arguments: Any) -> Answer:
        reply = self._run(function, [self._key.task(event_id)], event_id, *arguments)
        doom = decode_doom(reply[1]) if len(reply) > 1 else None
        attempt = int(reply[2]) if len(reply) > 2 else 0
        told = [text.decode() for text in reply[3:]]
        return Answer(Fate[reply[0].decode().upper()], doom, attempt, *told)

    def _run(self, function: str, tasks: Sequence[str], *arguments: Any, client: redis.Redis | None = None) -> Any:
        with self._calling():
            return self._scripts.run(client or self._client, function, tasks, arguments)
