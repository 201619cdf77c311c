"""The words of the stream suite: what every implementation brings along, and the steps that most tests begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ottoscaler.core.events import ScaleEvent, content_digest, parse
from ottoscaler.core.results import worker_result
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason, Verdict
from ottoscaler.core.victim_selection import Victim, VictimRequest
from ottoscaler.ports import Entry, OpenTask, RedisPorts, ScriptReply, StatusUpdate
from ottoscaler.stored import TaskNote, WorkerNote

#: What the implementations under test are configured with.
RESULT_MAXLEN = 50
TASK_TTL_S = 1000
BLOCK_S = 0.05
LEASE_S = 60.0
#: An id long ago, for entries older than TASK_TTL_S.
OLD_ID = "1-1"
#: An id in the far future (year 2286), above all that a wiped server ever gave.
LATE_ID = "9999999999999-0"

Fields = Mapping[str, str | bytes]


class StreamFactory(Protocol):
    """Makes a stream for one incarnation of one consumer; all that it makes share a server."""

    def __call__(self, consumer: str, *, incarnation: str = "boot-1", lease_s: float = LEASE_S) -> RedisPorts: ...


class StreamAdmin(Protocol):
    """What producers, operators and accidents do to the same server."""

    def add(self, fields: Fields, stream_id: str | None = None) -> str:
        """Send an event; returns its entry's id."""
        ...

    def results(self, kind: str | None = None) -> list[dict[str, str]]:
        """The result stream, or what is of a kind."""
        ...

    def dead_letters(self) -> list[dict[str, str]]:
        """The dead-letter stream."""
        ...

    def pending_count(self) -> int:
        """Entries read and not acknowledged."""
        ...

    def length(self) -> int:
        """Entries of the event stream."""
        ...

    def consumers(self) -> set[str]:
        """The consumers of the group."""
        ...

    def add_group(self, name: str) -> None:
        """A second group, of another program, that has read nothing."""
        ...

    def open_ids(self) -> set[str]:
        """Event ids of unfinished tasks."""
        ...

    def task(self, event_id: str) -> dict[str, str]:
        """The task hash; empty if there is none."""
        ...

    def expires_in(self, event_id: str) -> float | None:
        """Seconds until the task hash goes; None where that is not decided."""
        ...

    def expire_lease(self, event_id: str) -> None:
        """As if the owner had been silent for LEASE_S."""
        ...

    def postpone_lease(self, event_id: str, seconds: float) -> None:
        """As if the server's clock had been set back by these seconds since the lease was given."""
        ...

    def set_not_after(self, event_id: str, after_s: float) -> None:
        """As if a task's not_after were so many seconds after 1970."""
        ...

    def close_to_others(self, event_id: str) -> None:
        """As if a user had removed a task from the set of those that are open."""
        ...

    def remove_task(self, event_id: str) -> None:
        """As if a person had removed the task's hash, and nothing else."""
        ...

    def remove_key(self, key: str) -> None:
        """As if a person had removed what is stored of a concurrency key."""
        ...

    def trim(self) -> None:
        """Remove all entries of the event stream."""
        ...

    def flush(self) -> None:
        """Remove everything, the group too."""
        ...


def send(admin: StreamAdmin, **fields: str) -> str:
    """Send a scale_up of one worker, or what the fields say instead; returns the entry's id."""
    return admin.add({"type": "scale_up", **fields})


def receive(stream: RedisPorts) -> Entry:
    """Read the one entry that is there."""
    [entry] = stream.read(1)
    return entry


def event_of(entry: Entry) -> ScaleEvent:
    """The event of a good entry."""
    assert entry.fields is not None
    event = parse(entry.stream_id, entry.fields, 1000)
    assert isinstance(event, ScaleEvent), event
    return event


def accept(stream: RedisPorts, entry: Entry) -> OpenTask | None:
    """Accept one good entry."""
    assert entry.fields is not None
    [task] = stream.accept([(event_of(entry), content_digest(entry.fields))], [entry.fields])
    return task


def opened(stream: RedisPorts, admin: StreamAdmin, **fields: str) -> OpenTask:
    """A new task, owned by this stream."""
    send(admin, **fields)
    task = accept(stream, receive(stream))
    assert task is not None
    return task


def intend(
    stream: RedisPorts, task: OpenTask, index: int = 1, attempt: int = 1, infra_used: int = 0, oom_kills: int = 0
) -> ScriptReply:
    """Store an attempt."""
    return stream.store_attempt(
        task.event.event_id, task.owner, index, attempt=attempt, infra_used=infra_used, pod=f"pod-{index}-{attempt}",
        oom_kills=oom_kills,
    )  # fmt: skip


def result_of(
    task: OpenTask, index: int = 1, attempt: int = 1, reason: EndReason = EndReason.COMPLETED
) -> dict[str, str]:
    """The fields of a worker's result."""
    return worker_result(task.event, index, attempt, Verdict(reason, f"ended as {reason}"), None, 1_700_000_000.0)


def record(
    stream: RedisPorts, task: OpenTask, index: int = 1, *, attempt: int = 1, reason: EndReason = EndReason.COMPLETED
) -> ScriptReply:
    """Store a worker's result."""
    fields = result_of(task, index, attempt, reason)
    return stream.record_result(task.event.event_id, task.owner, index, attempt=attempt, fields=fields)


def cancel(reason: EndReason = EndReason.SCALED_DOWN, *, by: str = "down-1", drain: bool = False) -> Termination:
    """A cancel of an index, as a scale_down stores it."""
    return Termination(reason, f"asked for by {by}", drain=drain, by=by)


def claim(*candidates: Victim, count: int = 0, spared: Sequence[str] = (), by: str = "d-1") -> VictimRequest:
    """What a scale_down asks for: these workers, or a number of them."""
    return VictimRequest(cancel(by=by), candidates, count, spared)


def end(attempt: int, reason: EndReason = EndReason.PENDING_TIMEOUT) -> Termination:
    """A termination of one attempt, as a deadline stores it."""
    return Termination(reason, "took too long", attempt)


def taken_over(stream: RedisPorts, admin: StreamAdmin, task: OpenTask) -> OpenTask:
    """The task after its lease ran out and this stream took it."""
    admin.expire_lease(task.event.event_id)
    taken = stream.take_over(task.event.event_id, same_consumer=False)
    assert taken is not None
    return taken


def reloaded(stream: RedisPorts, event_id: str) -> OpenTask:
    """An open task as it is stored."""
    task = stream.reload_task(event_id)
    assert task is not None
    return task


def owned_by(task: OpenTask, owner: str) -> OpenTask:
    """The same task as another owner sees it."""
    return replace(task, owner=owner)


def note_states(stream: RedisPorts, event_id: str, owner: str, states: Mapping[int, tuple[str, int, str]]) -> None:
    """Show the states of workers."""
    notes = {index: WorkerNote(*state) for index, state in states.items()}
    stream.write_status([StatusUpdate(event_id, owner, notes)])


def note_why(stream: RedisPorts, event_id: str, owner: str, why: str, next_at: str) -> None:
    """Show why a task stands where it stands."""
    stream.write_status([StatusUpdate(event_id, owner, task=TaskNote(why, next_at=next_at))])


def note_logs(stream: RedisPorts, event_id: str, owner: str, progress: Mapping[int, str]) -> None:
    """Store how far the logs of workers have come."""
    stream.write_status([StatusUpdate(event_id, owner, log_progress=progress)])
