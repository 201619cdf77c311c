"""An open task and its workers as this process holds them in memory, and as it would store them again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from ottoscaler.core.entry_ids import entry_ms
from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.lifecycle import Lifecycle, begin_lifecycle, resume_lifecycle
from ottoscaler.core.manifest import AttemptKey, pod_name
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.termination import Termination
from ottoscaler.core.worker_status import Obstacle, TaskStatus, WorkerStatus
from ottoscaler.ports import OpenTask, StoredWorker


@dataclass(slots=True)
class OwnedTask:
    """An open task of ours. Guarded by the ledger's lock, but for `event`, `event_json` (which each of its pods
    carries), `event_hash`, `owner` and `received_at`, which never change.

    `results` of workers, and the cancels (`terminations`) of those that have not had their turn, are kept for the case
    that Redis is wiped. `stream_wait_s`: seconds that the event was in the stream before it was accepted, by Redis's
    clock, which wrote both times; 0 where that cannot be known, as for an entry with an id that its producer made up.
    `had_defect`: our own code has failed on one of its workers. `waits`: for a place of its concurrency key; until it
    has one, no worker of it starts, and it is in no queue. `wait`: why its workers wait for room, as far as that was
    looked for. For the thread that writes the status: `noted` is what was last written of it, `noted_since` since when
    it has that code (RFC 3339), and `warned` the codes of its workers of which the log has a warning.
    `tenant`: empty where the event names none.
    """

    event: ScaleEvent
    owner: str
    event_hash: str
    received_mono: float
    received_at: str
    cancel_count: int
    runs: dict[int, WorkerRun] = field(default_factory=dict)
    cancelled_indices: set[int] = field(default_factory=set)
    results: dict[int, StoredWorker] = field(default_factory=dict)
    terminations: dict[int, Termination] = field(default_factory=dict)
    next_index: int = 1
    open_workers: int = 0
    first_pod_seen: bool = False
    had_defect: bool = False
    waits: bool = False
    wait: Obstacle | None = None
    noted: TaskStatus | None = None
    noted_since: str = ""
    warned: frozenset[StatusCode] = frozenset()
    tenant: str = ""
    closed: bool = False  # it is finished, or another process has it: what waits for a turn here gets none
    stream_wait_s: float = field(init=False, default=0.0)
    waits_since: float = field(init=False, default=0.0)  # by `Clock.now`: for a turn of its next worker
    event_json: str = field(init=False)

    def __post_init__(self) -> None:
        self.event_json = self.event.encode()
        sent_ms = entry_ms(self.event.stream_id)
        if self.received_at and sent_ms is not None:
            waited_s = datetime.fromisoformat(self.received_at).timestamp() - sent_ms / 1000
            self.stream_wait_s = max(0.0, waited_s)

    def at_work(self) -> bool:
        """Is a thread at work on it just now, or has our own code failed on it? One that waits for its pod is not."""
        return self.had_defect or any(run.on_thread and not run.awaits_pod for run in self.runs.values())

    def count_fresh(self) -> int:
        """At most how many indices have not had their turn: those cancelled before it count until they are passed."""
        return self.event.pod_count - self.next_index + 1

    def has_fresh(self) -> bool:
        """Are there indices that have not had their turn?"""
        while self.next_index in self.cancelled_indices:
            self.cancelled_indices.discard(self.next_index)
            self.next_index += 1
        return self.next_index <= self.event.pod_count


@dataclass(slots=True, eq=False)
class WorkerRun:
    """A worker that has had its turn. `life` belongs to the thread that runs it, otherwise to the ledger.

    `worker_id` is its event id and index, `owned_worker_id` the same with the owner token, as the scripts in Redis take
    it. `key` is what the labels of the current attempt's pod say, `pod_name` its name. `state` and `start_trouble_text`
    are what `life` had of these after its last step. `obstacle` is what kept it from its last step. `noted` is the
    status that was last written of it, and `noted_since` since when it has that code, in seconds since the epoch.
    `log_progress` is what an earlier process stored of its log.
    """

    task: OwnedTask
    life: Lifecycle
    failures: int = 0
    on_thread: bool = False
    awaits_pod: bool = False  # its thread only waits for its pod; written by that thread
    queue_serial: int = 0
    paused_until: float | None = None
    obstacle: Obstacle | None = None
    noted: WorkerStatus | None = None
    noted_since: float = 0.0
    log_progress: str = ""
    state: str = field(init=False)
    start_trouble_text: str = field(init=False)
    worker_id: tuple[str, int] = field(init=False)
    owned_worker_id: tuple[str, str, int] = field(init=False)
    key: AttemptKey = field(init=False)
    pod_name: str = field(init=False)

    def __post_init__(self) -> None:
        self.state, self.start_trouble_text = self.life.state, self.life.start_trouble_text
        self.worker_id = (self.task.event.event_id, self.life.index)
        self.owned_worker_id = (self.task.event.event_id, self.task.owner, self.life.index)
        self.update_pod_name()

    def update_pod_name(self) -> None:
        """To be called when `life` has another attempt: its pod has another name."""
        self.key = AttemptKey(self.task.event_hash, self.life.index, self.life.attempt)
        self.pod_name = pod_name(self.key)

    @property
    def is_waiting(self) -> bool:
        """Its task is open here, and no thread carries it on. Under the ledger's lock."""
        return not self.task.closed and not self.on_thread

    @property
    def cancelled(self) -> bool:
        """Is a cancel of it known here that was not withdrawn? Under the ledger's lock."""
        return self.life.index in self.task.terminations


def to_open_task(task: OwnedTask) -> OpenTask:
    """The task as Redis had it, as far as we know: for a Redis that was wiped. Under the ledger's lock.

    Whether older events were superseded is not known here: control does it again, without harm.
    """
    workers = dict(task.results)
    for index, run in task.runs.items():
        workers.setdefault(index, _stored_worker(run.life, task.terminations.get(index)))
    return OpenTask(
        task.event, task.owner, task.received_at, workers, cancel_count=task.cancel_count, holds=not task.waits
    )


def _stored_worker(life: Lifecycle, cancel: Termination | None) -> StoredWorker:
    """An attempt without a pod counts as refused: the next owner then creates it. A worker that has had
    its turn knows itself whether it is cancelled.
    """
    termination = life.termination or (cancel if life.has_no_pod else None)
    seen = life.pod_was_seen or life.pod is not None
    return StoredWorker(
        life.index,
        life.attempt,
        life.infra_used,
        create_refused=life.has_no_pod,
        termination=termination,
        pod_was_seen=seen,
        oom_kills=life.oom_kills,
    )


def restore_run(task: OwnedTask, worker: StoredWorker) -> WorkerRun | None:
    """How a worker goes on that was left somewhere: by a dead process, or by us. None if it needs no run of its own
    yet, or has its result. Under the ledger's lock.
    """
    index, cancelled = worker.index, worker.termination is not None and worker.termination.is_cancel
    if worker.termination is not None and cancelled:
        task.terminations[index] = worker.termination
    if worker.outcome:
        task.cancelled_indices.add(index)
        task.results[index] = worker
        return None
    if worker.attempt and not worker.create_refused:  # its pod may be there
        life = resume_lifecycle(
            index, worker.attempt, worker.infra_used, worker.termination, seen=worker.pod_was_seen,
            oom_kills=worker.oom_kills,
        )  # fmt: skip
    elif worker.attempt or cancelled:
        life = begin_lifecycle(index, max(worker.attempt, 1), worker.infra_used, worker.oom_kills)
    else:
        return None
    task.cancelled_indices.add(index)
    task.runs[index] = WorkerRun(task, life, log_progress=worker.log_progress)
    return task.runs[index]
