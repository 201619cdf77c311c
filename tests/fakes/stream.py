"""The fake of `ports.Stream`: the protocol over plain objects, one operation at a time under the server's lock.

Written from the port's contract and not from the Lua file, so that the suite that both pass means something.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ottoscaler.core.events import (
    MAX_DEAD_EVENT_BYTES,
    BadEvent,
    DeadReason,
    EventType,
    ScaleEvent,
    content_digest,
    encode_original_fields,
)
from ottoscaler.core.results import RESULT_FIELDS, common_fields, rfc3339
from ottoscaler.core.verdicts import MAX_TRIES
from ottoscaler.core.victim_selection import BlockingEvent, Victim, VictimRequest, VictimSelection
from ottoscaler.errors import ReadTooLarge, RedisUnavailable
from ottoscaler.ports import (
    Entry,
    KeyPlaces,
    OpenTask,
    Renewal,
    ScriptReply,
    ScriptStatus,
    StoredWorker,
    StreamLevels,
    TaskView,
)
from ottoscaler.stored import split_owner_token
from tests.fakes.server import GROUP, Delivery, FakeRedis, Group, Id, TaskState, WorkerState, order
from tests.fakes.workers import WorkerScripts, too_late

__all__ = ["FakeRedis", "FakeStream"]

#: What one read brings, one look at pending entries, and of one large entry; bytes.
#: As in leases.lua.
LEASES_AHEAD = 10
MAX_READ_BYTES, MAX_PENDING_BYTES, MAX_HEAD_BYTES = 8 * 1024 * 1024, 1024 * 1024, 16 * 1024


class FakeStream(WorkerScripts):
    """`ports.Stream` on a FakeRedis, for one incarnation of one consumer. Any thread.

    `lease_s` counts on the server's clock; a blocking read ends after `block_s` real seconds, whatever that clock says.
    """

    def __init__(
        self,
        server: FakeRedis,
        consumer: str = "c1",
        *,
        incarnation: str = "boot-1",
        lease_s: float = 15,
        block_s: float = 0.05,
    ) -> None:
        super().__init__(server)
        self._consumer, self._incarnation = consumer, incarnation
        self._base = f"{consumer}/{incarnation}/"
        self._lease_s = lease_s
        self._block_s = block_s

    def close(self) -> None:
        """Nothing is open."""

    def reserve_prefix(self) -> str:
        with self.server.call("reserve_prefix"):
            return GROUP

    def bind_queue_to_cluster(self, cluster: str) -> str:
        with self.server.call("bind_queue_to_cluster"):
            self.server.cluster = self.server.cluster or cluster
            return self.server.cluster

    def ensure_group(self) -> None:
        with self.server.call("ensure_group"):
            if self.server.group is None:
                self.server.group = Group()

    def read(self, count: int) -> Sequence[Entry]:
        return self._read("read", count, self._block_s)

    def read_now(self, count: int) -> Sequence[Entry]:
        return self._read("read_now", count, 0)

    def _read(self, op: str, count: int, block_s: float) -> Sequence[Entry]:
        server = self.server
        with server.call(op):
            server.living_group()
            server.changed.wait_for(
                lambda: server.down or not server.group or server.last > server.group.delivered, block_s
            )
            if server.down:
                raise RedisUnavailable(f"{op}: the connection was lost")
            group = server.living_group()
            group.consumers[self._consumer] = server.clock.now()
            found = self._behind(group.delivered, count)
            bytes_ = sum(_size(entry.fields or {}) for entry in found)
            for entry in found:
                group.pending[entry.stream_id] = Delivery(self._consumer, server.clock.now())
                group.delivered = order(entry.stream_id)
            if bytes_ > MAX_READ_BYTES:
                raise ReadTooLarge(f"{bytes_} bytes")
            return found

    def _behind(self, position: Id, count: int) -> list[Entry]:
        newer = [name for name in self.server.entries if order(name) > position]
        return [Entry(name, self.server.entries[name]) for name in newer[:count]]

    def peek(self, after: str, count: int, *, block: bool) -> Sequence[Entry]:
        server, position = self.server, order(after)
        with server.call("peek"):
            server.changed.wait_for(lambda: server.down or server.last > position, self._block_s if block else 0)
            if server.down:
                raise RedisUnavailable("peek: the connection was lost")
            found = self._behind(position, count)
            if sum(_size(entry.fields or {}) for entry in found) <= MAX_READ_BYTES:
                return found
            return list(_part(found))

    def last_delivered_id(self) -> str:
        with self.server.call("last_delivered_id"):
            return "{}-{}".format(*self.server.living_group().delivered)

    def stream_levels(self) -> StreamLevels:
        server = self.server
        with server.call("stream_levels"):
            now, group = server.clock.now(), server.group or Group()
            unread = [name for name in server.entries if order(name) > group.delivered] if server.group else []
            ages = [max(0.0, now - order(name)[0] / 1000) for name in (*unread, *group.pending)]
            return StreamLevels(
                len(unread), len(group.pending), max(ages, default=0.0), len(server.result_entries),
                now - server.published_at[0] if server.published_at else 0.0, 0, len(server.dead_entries),
            )  # fmt: skip

    def claim_pending(self, *, own: bool, min_idle_s: float) -> Sequence[Entry]:
        server = self.server
        with server.call("claim_pending"):
            now, found = server.clock.now(), []
            for name, delivery in sorted(server.living_group().pending.items(), key=lambda item: order(item[0])):
                wanted = delivery.consumer == self._consumer if own else now - delivery.at >= min_idle_s
                if not wanted:
                    continue
                found.append(Entry(name, server.entries.get(name)))
            brought = list(_part(found))
            for entry in brought:
                if not own and entry.fields is not None:
                    delivery = server.living_group().pending[entry.stream_id]
                    delivery.consumer, delivery.at = self._consumer, now
            return brought

    def count_try(self, stream_id: str) -> int:
        server = self.server
        with server.call("count_try"):
            delivery = server.living_group().pending.get(stream_id)
            if delivery is None:
                return 0
            if stream_id in server.entries:
                delivery.consumer, delivery.at = self._consumer, server.clock.now()
                delivery.tries += 1
            return delivery.tries

    def blocker(self, stream_id: str) -> BlockingEvent | None:
        with self.server.call("blocker"):
            return self._blocker(stream_id)

    def _blocker(self, stream_id: str) -> BlockingEvent | None:
        group, limit = self.server.living_group(), order(stream_id)
        unread = [name for name in self.server.entries if group.delivered < order(name) < limit]
        held = [name for name in group.pending if order(name) < limit]
        for names in (unread, held):
            if names:
                return BlockingEvent(min(names, key=order))
        found = [(order(task.event.stream_id), event_id, task) for event_id, task in self._undecided() if task.event]
        first = min(found, key=lambda item: item[0], default=None)
        if first is None or first[0] >= limit:
            return None
        return BlockingEvent(first[1], first[2].owner or "")

    def _undecided(self) -> list[tuple[str, TaskState]]:
        """The open events that have their victims still to choose."""
        tasks = [(event_id, self.server.find(event_id)) for event_id in self.server.leases]
        return [(event_id, task) for event_id, task in tasks if task is not None and task.undecided]

    def _acknowledge(self, stream_id: str) -> None:
        if self.server.group is not None:
            self.server.group.pending.pop(stream_id, None)

    def accept(
        self, events: Sequence[tuple[ScaleEvent, str]], raws: Sequence[Mapping[bytes, bytes]]
    ) -> Sequence[OpenTask | BadEvent | None]:
        with self.server.call("accept"):
            pairs = zip(events, raws, strict=True)
            return [self._accept(event, content, encode_original_fields(raw)) for (event, content), raw in pairs]

    def _accept(self, event: ScaleEvent, content: str, raw: str) -> OpenTask | BadEvent | None:
        server, event_id, now = self.server, event.event_id, self.server.clock.now()
        known = server.find(event_id)
        bad = None
        # one that was taken up from its pods has no digest: whatever comes under its id is taken for the same
        if known is not None and known.digest not in ("", content):
            bad = _conflict(event_id, event.task_id)
        elif known is None and order(event.stream_id)[0] < (now - server.task_ttl_s) * 1000:
            bad = BadEvent(
                DeadReason.TOO_OLD,
                f"the entry is older than TASK_TTL_S, {server.task_ttl_s} s",
                event_id,
                event.task_id,
            )
        if bad is not None:
            return self._bury(event.stream_id, bad, content, raw)
        self._acknowledge(event.stream_id)
        again = known is not None
        if known is None:
            known = self._open(event, content, raw)
            server.places.join(event, order(event.stream_id))
        same = known.event is not None and known.event.stream_id == event.stream_id
        return (
            OpenTask(
                event,
                known.owner or "",
                known.received_at,
                superseded=not event.supersedes,
                already_accepted=again,
                holds=server.places.holds(event),
            )
            if same and self._is_ours(known)
            else None
        )

    def _open(self, event: ScaleEvent, content: str, raw: str) -> TaskState:
        now = self.server.clock.now()
        task = TaskState(task_id=event.task_id, digest=content, received_at=rfc3339(now), event=event, raw=raw)
        task.owner, task.superseded = f"{self._base}1", not event.supersedes
        self.server.tasks[event.event_id] = task
        self.server.leases[event.event_id] = now + self._lease_s
        return task

    def rebuild_from_pods(self, event: ScaleEvent, attempts: Mapping[int, int]) -> None:
        with self.server.call("rebuild_from_pods"):
            if self.server.find(event.event_id) is not None:
                return
            task = self._open(event, "", json.dumps(event.as_sent(), ensure_ascii=False))
            task.owner, task.epoch, task.tries, task.state = f"{self._base}0", 0, 0, "running"
            self.server.leases[event.event_id] = 0.0
            self.server.places.put(event, order(event.stream_id), holds=True)
            for index in range(1, event.pod_count + 1):
                worker = task.worker(index)
                worker.attempt, worker.infra_used = (attempts[index], 0) if index in attempts else (1, 1000)
                worker.seen = True

    def restore(self, task: OpenTask) -> None:
        with self.server.call("restore"):
            if self.server.find(task.event.event_id) is not None:
                return
            state = self._open(task.event, "", json.dumps(task.event.as_sent(), ensure_ascii=False))
            state.owner, state.epoch, state.tries, state.state = (
                task.owner,
                int(task.owner.split("/")[-1]),
                0,
                "running",
            )
            if not task.holds:
                state.state = "waiting"
            self.server.places.put(task.event, order(task.event.stream_id), holds=task.holds)
            state.received_at, state.cancels = task.received_at or state.received_at, task.cancel_count
            state.superseded = task.superseded or not task.event.supersedes
            state.victims = None if task.victims is None else list(task.victims)
            state.survivors = list(task.survivors)
            for known in task.workers.values():
                state.workers[known.index] = _restored(known)
                if known.outcome:
                    tally = known.outcome if known.outcome in ("succeeded", "cancelled") else "failed"
                    state.tally[tally] += 1
                    state.first.setdefault(tally, known.reason)

    def dead_letter(self, entry: Entry, bad: BadEvent) -> BadEvent | None:
        with self.server.call("dead_letter"):
            fields = entry.fields or {}
            known, content = self.server.find(bad.event_id), content_digest(fields)
            if known is not None and known.digest == content:
                self._acknowledge(entry.stream_id)
                return None
            refused = _conflict(bad.event_id, bad.task_id) if known else bad
            return self._bury(entry.stream_id, refused, content, encode_original_fields(fields, cut=bool(entry.size)))

    def _bury(self, stream_id: str, bad: BadEvent, content: str, raw: str) -> BadEvent | None:
        server = self.server
        letter = {
            "dead_reason": bad.reason.value,
            "dead_detail": bad.detail,
            "event_id": bad.event_id,
            "stream_id": stream_id,
        }
        fresh = server.entomb(f"{GROUP}|{stream_id}", {**letter, "attempts": "0", "event": raw})
        self._acknowledge(stream_id)
        # in conflict with another event of that id: the result under it belongs to the other one
        if not fresh or not bad.event_id or server.find(bad.event_id) is not None:
            return bad if fresh else None
        at = rfc3339(server.clock.now())
        refused = TaskState(task_id=bad.task_id, digest=content, received_at=at)
        self._reject(bad.event_id, refused, f"{bad.reason}: {bad.detail}")
        return bad

    def announce(self) -> None:
        with self.server.call("announce"):
            if self.server.incarnations.get(self._consumer) != self._incarnation:
                self.server.left_entries[self._consumer] = self._is_reading(self._consumer)
            self.server.incarnations[self._consumer] = self._incarnation
            self.server.seen[self._consumer] = self.server.clock.now()

    def _is_reading(self, consumer: str) -> bool:
        pending = self.server.group.pending.values() if self.server.group else []
        return any(delivery.consumer == consumer for delivery in pending)

    def _has_failed(self, lease: float, task: TaskState) -> bool:
        """0: given up. A process that died over an entry that it had read died of that entry."""
        if lease == 0:
            return False
        process, _ = split_owner_token(task.owner or "")
        if process == self._consumer:
            return not self.server.left_entries.get(process, False)
        return not self._is_reading(process)

    def renew(self, owners: Mapping[str, str], at_work: Collection[str] = ()) -> Renewal:
        lost, cancels, forgotten = {}, {}, []
        left_s: dict[str, float] = {}
        with self.server.call("renew"):
            replaced = self.server.incarnations.setdefault(self._consumer, self._incarnation) != self._incarnation
            if not replaced:
                self.server.seen[self._consumer] = self.server.clock.now()
            for event_id, owner in owners.items():
                task = self._owned(event_id, owner)
                if task is None:
                    other = self.server.find(event_id)
                    if other is None:
                        forgotten.append(event_id)
                    else:
                        lost[event_id] = other.owner or ""
                    continue
                now = self.server.clock.now()
                self.server.leases[event_id] = now + self._lease_s
                if task.event is not None:
                    self.server.places.keep(task.event, order(task.event.stream_id), started=task.state != "waiting")
                if event_id not in at_work and task.tries < MAX_TRIES:
                    task.tries = 0
                not_after = task.event.overrides.not_after if task.event else None
                if not_after is not None and now < not_after:
                    left_s[event_id] = not_after - now
                self._expire(task, now)
                cancels[event_id] = task.cancels
        return Renewal(lost, cancels, forgotten, replaced, left_s)

    def _expire(self, task: TaskState, now: float) -> None:
        """Mark the workers that have not started in time, once."""
        late = too_late(task, now)
        if late is None or task.expired or task.event is None:
            return
        task.expired = True
        for worker in map(task.worker, range(1, task.event.pod_count + 1)):
            if not worker.outcome and worker.termination is None:
                worker.termination = late
                task.cancels += 1

    def expired(self, *, same_consumer: bool) -> Sequence[str]:
        with self.server.call("expired"):
            now = self.server.clock.now()
            for event_id, until in self.server.leases.items():
                if not same_consumer and until >= now + LEASES_AHEAD * self._lease_s:
                    self.server.leases[event_id] = now + self._lease_s
            leases = sorted(self.server.leases.items(), key=lambda item: item[1])
            if not same_consumer:
                return [event_id for event_id, until in leases if until <= now]
            return [event_id for event_id, _ in leases if self._was_ours(self.server.find(event_id))]

    def _was_ours(self, task: TaskState | None) -> bool:
        consumer, incarnation = split_owner_token((task.owner if task else None) or "")
        return consumer == self._consumer and incarnation != self._incarnation

    def _is_ours(self, task: TaskState | None) -> bool:
        return split_owner_token((task.owner if task else None) or "") == (self._consumer, self._incarnation)

    def owned(self) -> Sequence[str]:
        with self.server.call("owned"):
            found = ((event_id, self.server.find(event_id)) for event_id in sorted(self.server.leases))
            return [event_id for event_id, task in found if self._is_ours(task)]

    def take_over(self, event_id: str, *, same_consumer: bool) -> OpenTask | BadEvent | None:
        server = self.server
        with server.call("take_over"):
            task, now = server.find(event_id), server.clock.now()
            if task is None or task.event is None or event_id not in server.leases:
                return None
            if server.leases[event_id] > now and self._is_ours(task):
                return self._opened(task, task.event, task.owner or "")
            if server.leases[event_id] > now and not (same_consumer and self._was_ours(task)):
                return None
            task.epoch += 1
            task.tries += self._has_failed(server.leases[event_id], task)
            task.owner = f"{self._base}{task.epoch}"
            server.leases[event_id] = now + self._lease_s
            if task.tries >= MAX_TRIES:
                detail = f"taken up {MAX_TRIES} times without any progress"
                fresh = self._poison_letter(task, event_id, detail)
                self._poison(task, task.event)
                if fresh:
                    server.leases.update({event_id: 0.0} if event_id in server.leases else {})
                    return BadEvent(DeadReason.POISON, detail, event_id)
                if task.owner is None:
                    return None
            server.places.keep(task.event, order(task.event.stream_id), started=task.state != "waiting")
            return self._opened(task, task.event, task.owner)

    def _opened(self, task: TaskState, event: ScaleEvent, owner: str) -> OpenTask:
        return replace(_opened(task, event, owner), holds=self.server.places.holds(event))

    def admit(self, keys: Sequence[str], *, shown: int, check_open: bool) -> Mapping[str, KeyPlaces]:
        with self.server.call("admit"):
            return {key: self.server.places.admit(key, shown=shown, check_open=check_open) for key in keys}

    def reload_task(self, event_id: str) -> OpenTask | None:
        with self.server.call("reload_task"):
            task = self.server.find(event_id)
            if task is None or task.event is None or task.owner is None:
                return None
            return _opened(task, task.event, task.owner)

    def release(self, owners: Mapping[str, str]) -> None:
        with self.server.call("release"):
            for event_id, owner in owners.items():
                if (task := self._owned(event_id, owner)) is not None:
                    self.server.leases[event_id] = 0.0
                    task.tries = 0

    def release_pending(self) -> None:
        with self.server.call("release_pending"):
            for delivery in (self.server.group or Group()).pending.values():
                if delivery.consumer == self._consumer:
                    delivery.at = -math.inf

    def interrupt_reads(self) -> None:
        with self.server.call("interrupt_reads"):
            pass  # a blocking read ends within `block_s`

    def remove_consumers(self, gone_s: float) -> Sequence[str]:
        server = self.server
        with server.call("remove_consumers"):
            group, now = server.living_group(), server.clock.now()
            busy = {delivery.consumer for delivery in group.pending.values()} | {self._consumer}
            seen = {name: max(at, server.seen.get(name, 0)) for name, at in group.consumers.items()}
            gone = [name for name, at in seen.items() if name not in busy and now - at >= gone_s]
            for name in gone:
                del group.consumers[name]
            return gone

    def trim(self, keep: int) -> int:
        with self.server.call("trim"):
            group = self.server.living_group()
            unread: list[Id] = [(0, 0)] if self.server.other_groups else []
            first = min([*map(order, group.pending), group.delivered, *unread])
            acknowledged = [name for name in self.server.entries if order(name) < first]
            gone = acknowledged[: max(0, len(self.server.entries) - keep)]
            for name in gone:
                del self.server.entries[name]
            return len(gone)

    def open_scale_ups(self) -> Sequence[TaskView]:
        with self.server.call("open_scale_ups"):
            found = [self.server.find(event_id) for event_id in self.server.leases]
            return [
                TaskView(task.event, task.owner or "", task.stored())
                for task in found
                if task is not None and task.event is not None and task.event.type is EventType.SCALE_UP
            ]

    def known_tasks(self, event_ids: Sequence[str]) -> Mapping[str, tuple[str, Mapping[int, StoredWorker]]]:
        with self.server.call("known_tasks"):
            found = {event_id: self.server.find(event_id) for event_id in event_ids}
            return {event_id: (task.state, task.stored()) for event_id, task in found.items() if task is not None}

    def select_victims(self, event_id: str, owner: str, claim: VictimRequest) -> VictimSelection | BlockingEvent | None:
        with self.server.call("select_victims"):
            task = self.server.known(event_id)
            if task.owner != owner or task.event is None:
                return None
            if not task.undecided:
                return VictimSelection(list(task.victims or ()), list(task.survivors))
            if (blocker := self._blocker(task.event.stream_id)) is not None:
                return blocker
            victims = [one for one in claim.candidates if self._is_free(one)][: claim.count or None]
            last = claim.candidates.index(victims[-1]) if claim.count and len(victims) == claim.count else None
            survivors = [] if last is None else [one.pod for one in claim.candidates[last + 1 :]]
            for victim in victims:
                state = self.server.known(victim.event_id)
                state.worker(victim.index).termination = claim.termination
                state.cancels += 1
            selection = VictimSelection(victims, [*survivors, *claim.spared_pods])
            if task.event.type is EventType.SCALE_DOWN:
                task.victims, task.survivors = list(selection.victims), list(selection.survivors)
                task.state, task.tries = "running", 0
            task.superseded = True
            return selection

    def _is_free(self, candidate: Victim) -> bool:
        """Is its task open, has it no result, and has no earlier choice taken it?"""
        task = self.server.find(candidate.event_id)
        if task is None or task.owner is None:
            return False
        worker = task.workers.get(candidate.index, WorkerState(candidate.index))
        return not worker.outcome and (worker.termination is None or not worker.termination.claims)

    def finish(self, event_id: str, owner: str, fields: Mapping[str, str]) -> ScriptReply:
        with self.server.call("finish"):
            task = self.server.known(event_id)
            if task.state == "finished":
                return ScriptReply(ScriptStatus.KNOWN)
            if task.owner != owner or task.event is None:
                return ScriptReply(ScriptStatus.NOT_OURS)
            self.server.publish({**fields, **common_fields(task.event, RESULT_FIELDS)})
            self._close_task(task, event_id)
            return ScriptReply(ScriptStatus.OK)

    def stored_workers(self, victims: Sequence[Victim]) -> Sequence[StoredWorker | None]:
        with self.server.call("stored_workers"):
            return [self._stored_worker(self.server.find(victim.event_id), victim.index) for victim in victims]

    @staticmethod
    def _stored_worker(task: TaskState | None, index: int) -> StoredWorker | None:
        if task is None:
            return None
        worker = task.stored().get(index, StoredWorker(index))
        return None if task.state == "finished" and not worker.outcome else worker

    def key_problems(self) -> Sequence[str]:
        with self.server.call("key_problems"):
            return list(self.server.obstacles)

    def server_warnings(self) -> Sequence[str]:
        with self.server.call("server_warnings"):
            return list(self.server.advice)


def _head(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The first fields of a large entry, and its ids wherever they are."""
    head: dict[bytes, bytes] = {}
    is_open = True
    for name, value in fields.items():
        length = len(name) + len(value)
        is_open = is_open and _size(head) + length <= MAX_HEAD_BYTES
        if is_open or (name in (b"event_id", b"task_id") and length <= 200):
            head[name] = value
    return head


def _size(fields: Mapping[bytes, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in fields.items())


def _part(entries: Sequence[Entry]) -> Iterator[Entry]:
    """As many of them as are brought at once; of the larger ones what stands before the first large field."""
    brought = 0
    for entry in entries:
        if brought > MAX_PENDING_BYTES:
            return
        size = _size(entry.fields or {})
        if size > MAX_DEAD_EVENT_BYTES:
            entry = Entry(entry.stream_id, _head(entry.fields or {}), size)
        brought += _size(entry.fields or {})
        yield entry


def _restored(worker: StoredWorker) -> WorkerState:
    state = WorkerState(
        worker.index,
        worker.attempt,
        worker.infra_used,
        worker.create_refused,
        worker.termination,
        worker.outcome,
        tuple(worker.spared_by),
        worker.pod_was_seen,
        log=worker.log_progress,
        oom_kills=worker.oom_kills,
    )
    ended = {"outcome": worker.outcome, "reason": worker.reason, "attempt": worker.attempt}
    state.shown = json.dumps(ended) if worker.outcome else ""
    return state


def _opened(task: TaskState, event: ScaleEvent, owner: str) -> OpenTask:
    victims = None if task.victims is None else list(task.victims)
    return OpenTask(
        event=event,
        owner=owner,
        received_at=task.received_at,
        workers=task.with_reasons(),
        victims=victims,
        survivors=list(task.survivors),
        superseded=task.superseded,
        cancel_count=task.cancels,
    )


def _conflict(event_id: str, task_id: str) -> BadEvent:
    return BadEvent(DeadReason.CONFLICT, f"event_id {event_id} was used before, with other content", event_id, task_id)
