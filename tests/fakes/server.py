"""The fake Redis: the state that all fake streams on it share, and the test's own hands on it.

A test sends events, reads results and breaks things here; what the controller does goes through tests/fakes/stream.py.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import msgspec

from ottoscaler.core.events import EventType, ScaleEvent
from ottoscaler.core.results import rfc3339
from ottoscaler.core.termination import Termination
from ottoscaler.errors import RedisUnavailable
from ottoscaler.ports import Clock, StoredWorker, Victim
from ottoscaler.stored import TaskNote, WorkerNote
from tests.fakes.clock import SystemClock
from tests.fakes.places import Places

GROUP = "ottoscaler"
Id = tuple[int, int]
Fields = Mapping[bytes, bytes]


def order(stream_id: str) -> Id:
    """The numbers of an entry's id: ids are compared as these, never as text."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@dataclass(slots=True)
class WorkerState:
    """The fields of one worker in a task hash: `shown` is `worker:<index>`, `spared` the drains that it survived."""

    index: int
    attempt: int = 0
    infra_used: int = 0
    refused: bool = False
    termination: Termination | None = None
    outcome: str = ""
    spared: tuple[str, ...] = ()
    seen: bool = False
    shown: str = ""
    log: str = ""
    oom_kills: int = 0

    @property
    def has_state(self) -> bool:
        """Does it differ from a worker of which nothing was ever stored?"""
        return bool(self.attempt or self.termination or self.outcome or self.spared or self.log)

    def stored(self) -> StoredWorker:
        """The same as the port returns it."""
        return StoredWorker(
            self.index, self.attempt, self.infra_used, self.refused, self.termination, self.outcome,
            spared_by=self.spared,
            pod_was_seen=self.seen or self._is_noted_as_seen(), log_progress=self.log, oom_kills=self.oom_kills,
        )  # fmt: skip

    def _is_noted_as_seen(self) -> bool:
        """Does its note say that a pod of the stored attempt is there? Earlier releases stored only that."""
        note = json.loads(self.shown or "{}")
        return not self.outcome and note.get("state") in ("pending", "running") and note["attempt"] == self.attempt

    def with_reason(self) -> StoredWorker:
        """The same with the reason, as whole tasks have it."""
        return replace(self.stored(), reason=json.loads(self.shown)["reason"] if self.outcome else "")


@dataclass(slots=True, kw_only=True)
class TaskState:
    """One task hash. `event` is None for the trace of an event that was refused, `owner` for a finished task."""

    task_id: str
    digest: str
    received_at: str
    event: ScaleEvent | None = None
    raw: str = ""
    owner: str | None = None
    state: str = "waiting"
    epoch: int = 1
    tries: int = 1
    cancels: int = 0
    note: TaskNote = field(default_factory=lambda: TaskNote(""))
    workers: dict[int, WorkerState] = field(default_factory=dict)
    tally: Counter[str] = field(default_factory=Counter)
    output_bytes: int = 0
    first: dict[str, str] = field(default_factory=dict)
    victims: list[Victim] | None = None
    survivors: list[str] = field(default_factory=list)
    superseded: bool = False
    expired: bool = False
    expires_at: float | None = None

    @property
    def undecided(self) -> bool:
        """Is it open, has it victims to choose, and has not chosen them?"""
        if self.event is None or self.owner is None:
            return False
        return self.victims is None if self.event.type is EventType.SCALE_DOWN else not self.superseded

    def worker(self, index: int) -> WorkerState:
        """The fields of a worker, new ones if there are none."""
        return self.workers.setdefault(index, WorkerState(index))

    def with_reasons(self) -> dict[int, StoredWorker]:
        """The same with the reasons of those that have ended."""
        return {index: worker.with_reason() for index, worker in self.workers.items() if worker.has_state}

    def stored(self) -> dict[int, StoredWorker]:
        """The workers of which something was ever stored, by index."""
        return {index: worker.stored() for index, worker in self.workers.items() if worker.has_state}


@dataclass(slots=True)
class Delivery:
    """Which consumer read an entry, when (seconds since the epoch), and how often it was tried."""

    consumer: str
    at: float
    tries: int = 1


@dataclass(slots=True)
class Group:
    """The consumer group: the last id delivered, what was read and not acknowledged, when each consumer read last."""

    delivered: Id = (0, 0)
    pending: dict[str, Delivery] = field(default_factory=dict)
    consumers: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Fault:
    op: str
    times: int
    after: bool


class FakeRedis:
    """The server. Any thread; `changed` guards all of its state and wakes blocked readers.

    Attributes without underscore are for the fake streams; tests use the methods, `calls` (how often each operation was
    called), `advice` and `obstacles` (what is wrong with this server) and `on_call`, which gets the name of each
    operation before it is carried out, and may raise or block.
    """

    def __init__(self, clock: Clock | None = None, *, result_maxlen: int = 100_000, task_ttl_s: int = 604_800) -> None:
        self.clock = clock or SystemClock()
        self.result_maxlen = result_maxlen
        self.task_ttl_s = task_ttl_s
        self.changed = threading.Condition(threading.RLock())
        self.calls: Counter[str] = Counter()
        self.on_call: Callable[[str], None] = lambda _op: None
        self.advice: list[str] = []
        self.obstacles: list[str] = []
        self._faults: list[_Fault] = []
        self._down = False
        self._clear()

    def _clear(self) -> None:
        self.entries: dict[str, Fields] = {}
        self.last: Id = (0, 0)
        self.group: Group | None = None
        self.tasks: dict[str, TaskState] = {}
        self.cluster = ""
        self.leases: dict[str, float] = {}
        self.places = Places(self._is_open, self._is_preceded)
        self.incarnations: dict[str, str] = {}
        self.seen: dict[str, float] = {}
        self.other_groups: set[str] = set()
        self.left_entries: dict[str, bool] = {}  # those of a consumer's incarnation before this one
        self.buried: set[str] = set()
        self.result_entries: list[dict[str, str]] = []
        self.published_at: list[float] = []
        self.dead_entries: list[dict[str, str]] = []

    @contextmanager
    def call(self, op: str) -> Iterator[None]:
        """One atomic operation of a client. Raises RedisUnavailable where a fault was ordered for it."""
        self.on_call(op)
        with self.changed:
            self.calls[op] += 1
            fault = self._due(op)
            if self._down or (fault and not fault.after):
                raise RedisUnavailable(f"{op}: the server cannot be reached", unclear=False)
            yield
            self.changed.notify_all()
            if fault:
                raise RedisUnavailable(f"{op}: the answer was lost")

    def living_group(self) -> Group:
        """The group. Raises RedisUnavailable if there is none (NOGROUP)."""
        if self.group is None:
            raise RedisUnavailable(f"NOGROUP no consumer group {GROUP}", unclear=False)
        return self.group

    def find(self, event_id: str) -> TaskState | None:
        """The task, unless it is unknown or expired."""
        task = self.tasks.get(event_id)
        if task is not None and task.expires_at is not None and task.expires_at <= self.clock.now():
            del self.tasks[event_id]
            return None
        return task

    def known(self, event_id: str) -> TaskState:
        """The task. Raises RedisUnavailable if it is unknown or expired: then this server was wiped."""
        task = self.find(event_id)
        if task is None:
            raise RedisUnavailable(f"FORGOTTEN the task of event {event_id} is unknown", unclear=False)
        return task

    def _is_open(self, event_id: str) -> bool:
        task = self.find(event_id)
        return task is not None and task.owner is not None

    def _is_preceded(self, position: Id) -> bool:
        return any(order(name) < position for name in (self.group or Group()).pending)

    def remove_task(self, event_id: str) -> None:
        """As if a person had removed the task's hash, and nothing else."""
        with self.changed:
            del self.tasks[event_id]

    def remove_key(self, key: str) -> None:
        """As if a person had removed what is stored of a concurrency key."""
        with self.changed:
            self.places.drop(key)

    def publish(self, fields: Mapping[str, str]) -> None:
        """Add to the result stream, which has a limited length."""
        self.result_entries.append(dict(fields))
        self.published_at.append(self.clock.now())
        del self.result_entries[: -self.result_maxlen], self.published_at[: -self.result_maxlen]

    def entomb(self, marker: str, fields: Mapping[str, str]) -> bool:
        """Add a dead letter, once for each marker; False if it was there."""
        if marker in self.buried:
            return False
        self.buried.add(marker)
        self.dead_entries.append({**fields, "group": GROUP, "at": rfc3339(self.clock.now())})
        return True

    def _due(self, op: str) -> _Fault | None:
        for fault in self._faults:
            if fault.op in (op, "*") and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def add(self, fields: Mapping[str, str | bytes], stream_id: str | None = None) -> str:
        """Send an event; returns its entry's id (`stream_id`, where a test needs a certain one)."""
        with self.changed:
            now = int(self.clock.now() * 1000)
            position = order(stream_id) if stream_id else max((now, 0), (self.last[0], self.last[1] + 1))
            if position <= self.last:
                raise ValueError(f"{stream_id} is not above the last id")
            self.last = position
            name = f"{position[0]}-{position[1]}"
            self.entries[name] = {_bytes(key): _bytes(value) for key, value in fields.items()}
            self.changed.notify_all()
            return name

    def results(self, kind: str | None = None) -> list[dict[str, str]]:
        """The result stream, or only what is of a kind (worker, task, scale_down)."""
        with self.changed:
            return [dict(entry) for entry in self.result_entries if kind in (None, entry["kind"])]

    def dead_letters(self) -> list[dict[str, str]]:
        """The dead-letter stream."""
        with self.changed:
            return [dict(entry) for entry in self.dead_entries]

    def length(self) -> int:
        """Entries of the event stream."""
        with self.changed:
            return len(self.entries)

    def consumers(self) -> set[str]:
        """The consumers of the group."""
        with self.changed:
            return set(self.living_group().consumers)

    def add_group(self, name: str) -> None:
        """A second group, which has read nothing: no entry may be trimmed."""
        self.other_groups.add(name)

    def pending_count(self) -> int:
        """How many entries were read and not acknowledged."""
        with self.changed:
            return len(self.group.pending) if self.group else 0

    def open_ids(self) -> set[str]:
        """The event ids of unfinished tasks."""
        with self.changed:
            return set(self.leases)

    def open_count(self) -> int:
        """How many tasks are unfinished."""
        return len(self.open_ids())

    def task(self, event_id: str) -> dict[str, str]:
        """The task hash as operators read it; empty if there is none."""
        with self.changed:
            task = self.find(event_id)
            return _rendered(task) if task else {}

    def expires_in(self, event_id: str) -> float | None:
        """Seconds until a task is forgotten; None if that is not decided."""
        with self.changed:
            task = self.find(event_id)
            return None if task is None or task.expires_at is None else task.expires_at - self.clock.now()

    def expire_lease(self, event_id: str) -> None:
        """As if the owner had been silent for LEASE_S."""
        with self.changed:
            self.leases[event_id] = 0.001  # 0 would be one that was given up

    def postpone_lease(self, event_id: str, seconds: float) -> None:
        """As if the server's clock had been set back by these seconds since the lease was given."""
        with self.changed:
            self.leases[event_id] += seconds

    def set_not_after(self, event_id: str, after_s: float) -> None:
        """As if a task's not_after were so many seconds after 1970."""
        with self.changed:
            task = self.tasks[event_id]
            assert task.event is not None
            overrides = msgspec.structs.replace(task.event.overrides, not_after=after_s)
            task.event = msgspec.structs.replace(task.event, overrides=overrides)

    def close_to_others(self, event_id: str) -> None:
        """As if a user had removed a task from the set of those that are open."""
        with self.changed:
            del self.leases[event_id]

    def trim(self) -> None:
        """Remove all entries of the event stream; what is pending stays pending."""
        with self.changed:
            self.entries.clear()

    def flush(self) -> None:
        """FLUSHALL."""
        with self.changed:
            self._clear()
            self.changed.notify_all()

    def fail_next(self, op: str, times: int = 1, *, after: bool = False) -> None:
        """Let an operation (a method's name, or `*`) fail before it does anything, or lose its answer `after` it."""
        with self.changed:
            self._faults.append(_Fault(op, times, after))

    def set_down(self, down: bool) -> None:
        """Let every operation fail until it is up again; blocked reads fail at once."""
        with self.changed:
            self._down = down
            self.changed.notify_all()

    @property
    def down(self) -> bool:
        """Is the server out of reach?"""
        return self._down


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _rendered(task: TaskState) -> dict[str, str]:
    count = task.event.pod_count if task.event else 0
    shown = {"state": task.state, "task_id": task.task_id, "pod_count": str(count), "received_at": task.received_at}
    shown |= {"why": task.note.why, "next_at": task.note.next_at, "code": task.note.code, "since": task.note.since}
    if task.owner is not None:
        shown["owner"] = task.owner
    return shown | {f"worker:{index}": worker.shown for index, worker in task.workers.items() if worker.shown}


def worker_json(note: WorkerNote) -> str:
    """What `worker:<index>` shows while there is no result (contract, section 5)."""
    shown = {"state": note.state, "attempt": note.attempt, "pod": note.pod}
    more = {"code": note.code, "detail": note.detail, "since": note.since, "next_at": note.next_at}
    return json.dumps(shown | {name: text for name, text in more.items() if text})
