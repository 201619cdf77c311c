"""What the port to Redis speaks of: tasks, workers and entries as they are stored, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from ottoscaler.core.events import EventType, ScaleEvent
from ottoscaler.core.termination import Termination
from ottoscaler.core.victim_selection import Victim


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the event stream, as it is. `fields` is None for one that was trimmed away while it was pending.

    One that is too large to be brought has a `size`, in bytes: then `fields` has only its first fields and its ids.
    """

    stream_id: str
    fields: Mapping[bytes, bytes] | None
    size: int = 0


@dataclass(frozen=True, slots=True)
class StreamLevels:
    """How much the streams hold: entries of the event stream that the group has not read, those that are read and not
    accepted, and the age of the oldest of both; results, the age of the oldest, and how many of them the slowest group
    of their readers has not read (0 without a group); dead letters. Ages in seconds by the clock of Redis, 0 for none.
    """

    unread: int = 0
    pending: int = 0
    oldest_s: float = 0.0
    results: int = 0
    results_oldest_s: float = 0.0
    results_unread: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class StoredWorker:
    """What the task hash knows of a worker. `attempt` 0: none was ever stored. `create_refused`: that attempt's pod was
    refused and is not there. `pod_was_seen`: a replica has seen that attempt's pod. `reason` comes with the outcome,
    and only from calls that return whole tasks. `spared_by` are the scale_downs or events that spared it by a drain,
    since it had started. `log_progress`: how far the log of its pod has come (`core.log_progress`).
    `oom_kills`: how many attempts before the stored one ended as OOMKilled.
    """

    index: int
    attempt: int = 0
    infra_used: int = 0
    create_refused: bool = False
    termination: Termination | None = None
    outcome: str = ""
    reason: str = ""
    spared_by: Sequence[str] = ()
    pod_was_seen: bool = False
    log_progress: str = ""
    oom_kills: int = 0


@dataclass(frozen=True, slots=True)
class OpenTask:
    """An unfinished task as Redis has it.

    `owner` is the token of its owner, which each write has to show (`<consumer>/<incarnation>/<epoch>`);
    `workers` are those of which anything is stored, by index; `victims` is the stored victim list of a
    scale_down, None before it is chosen, `survivors` the pods that it spares; `superseded` is False while older events
    of its `supersedes` key are still to be dealt with; `cancel_count` counts the cancel marks that the task was ever
    given; `holds` is False while it waits for a place of its concurrency key; `already_accepted` says that it had been
    accepted before: two threads may have the same entry in hand.
    """

    event: ScaleEvent
    owner: str
    received_at: str = ""
    workers: Mapping[int, StoredWorker] = field(default_factory=dict)
    victims: Sequence[Victim] | None = None
    survivors: Sequence[str] = ()
    superseded: bool = False
    cancel_count: int = 0
    holds: bool = True
    already_accepted: bool = False

    @property
    def selection_pending(self) -> bool:
        """Has it victims to choose, and has not chosen them?"""
        if self.event.type is EventType.SCALE_DOWN:
            return self.victims is None
        return bool(self.event.supersedes) and not self.superseded


class ScriptStatus(Enum):
    """What a script replies."""

    OK = auto()
    NOT_OURS = auto()
    HAS_RESULT = auto()
    CANCELLED = auto()
    OLD_ATTEMPT = auto()
    KNOWN = auto()


@dataclass(frozen=True, slots=True)
class ScriptReply:
    """A script's answer about one worker: the status, the termination that is stored, the stored attempt.

    `task_result_message` is the message of the task's result where this worker was the last, `dead_letter_detail` the
    detail of the dead letter that the event became by this.
    """

    status: ScriptStatus
    termination: Termination | None = None
    attempt: int = 0
    task_result_message: str = ""
    dead_letter_detail: str = ""


@dataclass(frozen=True, slots=True)
class KeyPlaces:
    """How a concurrency key stands: the event ids of the tasks that hold a place, the task id of the first of them (""
    for none), and the event ids of the first that wait, in their order. None of these where Redis has something else
    under the key's name (`readable` False).
    """

    holding: Sequence[str] = ()
    first_task_id: str = ""
    waiting: Sequence[str] = ()
    readable: bool = True


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal found: tasks that are no longer ours, with their owner ("" where the task is finished), those
    that Redis does not know any more, the cancel counts of the others, and whether another process has announced
    itself under our consumer's name. `left_s`: seconds until the not_after of tasks that have one to come.
    """

    lost: Mapping[str, str]
    cancel_counts: Mapping[str, int]
    forgotten: Sequence[str] = ()
    replaced: bool = False
    left_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task, for the choice of victims and for status: the event, and each worker's stored state by index."""

    event: ScaleEvent
    owner: str
    workers: Mapping[int, StoredWorker]


@dataclass(frozen=True, slots=True)
class WorkerNote:
    """For operators: how a worker stands. Times are RFC 3339; what is not known is empty."""

    state: str
    attempt: int
    pod: str
    code: str = ""
    detail: str = ""
    since: str = ""
    next_at: str = ""


@dataclass(frozen=True, slots=True)
class TaskNote:
    """For operators: why a task stands where it stands, with the code of that, since when and which time comes next."""

    why: str
    code: str = ""
    since: str = ""
    next_at: str = ""


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """What is new of a task of ours: of its workers, by index, and of itself (None: nothing); how far the logs of its
    workers have come, by index.
    """

    event_id: str
    owner: str
    workers: Mapping[int, WorkerNote] = field(default_factory=dict)
    task: TaskNote | None = None
    log_progress: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerAttempt:
    """The last attempt of a worker of an event; index and attempt 0 for the event itself."""

    event_id: str
    index: int = 0
    attempt: int = 0


def split_owner_token(owner: str) -> tuple[str, str]:
    """Consumer and incarnation of an owner token `<consumer>/<incarnation>/<epoch>`; two empty texts if it is none.

    It is cut from the right: a consumer's name may contain slashes, and names are compared whole (`x` is not `x/y`).
    """
    parts = owner.rsplit("/", 2)
    return (parts[0], parts[1]) if len(parts) == 3 else ("", "")
