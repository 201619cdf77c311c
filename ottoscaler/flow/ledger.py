"""The open tasks of this process, and who runs next: order, fairness, room and cancelling are decided here, under one
lock.

Workers wait here and not in the executor's queue, so that a large event does not starve small ones (round robin over
events), a cancelled worker never starts, and a worker that waits for room holds no thread. Indices of a large event are
made when their turn comes.

No pod is created while this process has MAX_WORKERS live ones: see capacity.py.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Mapping

from ottoscaler.core.lifecycle import begin, hurried
from ottoscaler.core.names import event_hash
from ottoscaler.core.observations import NotOurs, TerminationStored
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Verdict
from ottoscaler.flow.capacity import Capacity
from ottoscaler.flow.notes import Notes, States
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun, restore_run, to_open_task
from ottoscaler.flow.registry import Registry
from ottoscaler.ports import Clock, OpenTask, StoredWorker


class Ledger:
    """Who is open and who is next. Any thread; no call blocks (but `wait_for_room`) or does I/O."""

    def __init__(self, registry: Registry, clock: Clock, *, instance: str, max_workers: int, read_ahead: int) -> None:
        self._registry = registry
        self._clock = clock
        self._instance = instance
        self.threads = max_workers  # as many may be given out; the pool lowers it where the machine gives no more
        self._read_ahead = read_ahead
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        # all guarded by _lock
        self._tasks: dict[str, OwnedTask] = {}
        self._fresh: deque[OwnedTask] = deque()
        self._first: deque[WorkerRun] = deque()
        self._due: deque[WorkerRun] = deque()
        self._paused: list[tuple[float, int, WorkerRun]] = []
        self._cancelled: deque[WorkerRun] = deque()
        self._capacity = Capacity(registry, max_workers)
        self._busy = 0
        self._serial = 0
        self._notes = Notes()

    # -- tasks

    def add(self, opened: OpenTask) -> OwnedTask:
        """An accepted or taken-over task: what was stored of its workers decides how each goes on."""
        event = opened.event
        hash_ = event_hash(self._instance, event.event_id)
        task = OwnedTask(event, opened.owner, hash_, self._clock.now(), opened.received_at, opened.cancels)
        with self._lock:
            old = self._tasks.get(event.event_id)
            if old is not None and old.owner == opened.owner:
                return old  # accepted twice: an entry can be read again before its acceptance was answered
            if old is not None:
                self._abandon(old)
            self._tasks[event.event_id] = task
            self._registry.track(task.hash)
            done = sum(1 for worker in opened.workers.values() if worker.outcome)
            task.open_workers = event.pod_count - done
            for worker in opened.workers.values():
                self._restore(task, worker)
            self._capacity.take_back()
            if task.has_fresh():
                self._fresh.append(task)
        return task

    def recall(self, event_id: str) -> OpenTask | None:
        """A task of ours that Redis has forgotten, to be stored again; None if it is not open here.

        How its workers stand is shown anew, too.
        """
        with self._lock:
            task = self._tasks.get(event_id)
            if task is None:
                return None
            for run in task.runs.values():
                self._notes.add(run)
            return to_open_task(task)

    def recorded(self, run: WorkerRun, verdict: Verdict) -> None:
        """Its result is stored: kept in case that Redis is wiped before the task is finished."""
        life = run.life
        told = StoredWorker(life.index, life.attempt, life.infra_used, outcome=verdict.outcome, reason=verdict.reason)
        with self._lock:
            run.task.results[life.index] = told

    def drop(self, event_id: str, owner: str) -> bool:
        """The task is somebody else's now: stop whatever we do for it. `owner` is the token that was refused. Returns
        whether it was open here until now.
        """
        with self._lock:
            task = self._tasks.get(event_id)
            if open_here := task is not None and task.owner == owner:
                self._abandon(task)
            return open_here

    def owners(self) -> dict[str, str]:
        """Event id -> owner token of all open tasks."""
        with self._lock:
            return {event_id: task.owner for event_id, task in self._tasks.items()}

    def at_work(self) -> set[str]:
        """The tasks that a thread is at work on just now, and those on which our own code has failed."""
        with self._lock:
            return {name for name, task in self._tasks.items() if task.at_work()}

    def in_hand(self) -> set[str]:
        """The tasks of which some thread carries on a worker."""
        with self._lock:
            return {name for name, task in self._tasks.items() if any(run.on_thread for run in task.runs.values())}

    def has(self, event_id: str) -> bool:
        """Is this task open here?"""
        with self._lock:
            return event_id in self._tasks

    def newly_cancelled(self, cancels: Mapping[str, int]) -> list[str]:
        """Tasks that were given more cancel marks than we know of; from now on we do."""
        with self._lock:
            changed = [
                event_id
                for event_id, count in cancels.items()
                if event_id in self._tasks and count > self._tasks[event_id].cancels
            ]
            for event_id in changed:
                self._tasks[event_id].cancels = cancels[event_id]
        return changed

    # -- reader

    def wait_for_room(self, timeout_s: float) -> int:
        """How many events may be read, waiting at most so long for it to be more than none."""
        with self._room:
            if not self._spare():
                self._room.wait(timeout_s)
            return self._spare()

    def _spare(self) -> int:
        return max(0, self._read_ahead - len(self._fresh))

    # -- threads

    def take(self) -> WorkerRun | None:
        """The next worker to run, with a thread of its own; None while there is none, no thread is free or no room."""
        with self._lock:
            if self._busy >= self.threads:
                return None
            run = self._pick()
            if run is not None:
                run.on_thread = True
                self._busy += 1
            return run

    def takeable(self) -> bool:
        """Would `take` give a worker now? Where it would for long, nobody asks."""
        with self._lock:
            self._wake_due()
            ready = bool(self._first or (self._capacity.is_free() and (self._due or self._fresh)))
            return ready and self._busy < self.threads

    def take_cancelled(self) -> WorkerRun | None:
        """The next cancelled worker that holds no thread; whoever asks carries it on."""
        with self._lock:
            self._wake_due()
            run = self._next_open(self._cancelled)
            if run is not None:
                self._claim(run, used=True).on_thread = True
            return run

    def take_waiting(self, hash_: str, index: int) -> WorkerRun | None:
        """This worker, if it is resumed and no thread is free for it: the reconciler follows what no thread follows."""
        with self._lock:
            for run in self._first:
                if run.task.hash == hash_ and run.life.index == index:
                    self._first.remove(run)
                    run.on_thread = True
                    return run
        return None

    def give_back(self, run: WorkerRun, *, thread: bool = True) -> None:
        """Its thread is free again."""
        with self._lock:
            run.on_thread = False
            self._requeue(run)
            self._busy -= thread
            if self._busy == 0:
                self._idle.notify_all()

    def wait_idle(self, deadline: float) -> int:
        """Wait until no worker holds a thread, at most until then (`Clock.now`); returns how many do."""
        with self._idle:
            while self._busy and (left_s := deadline - self._clock.now()) > 0:
                self._idle.wait(left_s)
            return self._busy

    def settled(self, run: WorkerRun) -> bool:
        """Its pod is seen, or there is none: its claim on room ends. Returns whether others want the room it makes."""
        with self._lock:
            return self._settle(run) and bool(self._due or self._fresh)

    def holds_room(self, run: WorkerRun) -> bool:
        """May it create a pod now? It needs room anew for each, and what it was given may have been taken back."""
        with self._lock:
            return self._capacity.use(run.worker)

    def pause(self, run: WorkerRun, until: float) -> None:
        """Its thread gives it back until then (`Clock.now`); if a create is next, its room as well."""
        with self._lock:
            run.until = until
            if run.life.needs_room:
                self._settle(run)

    def failed(self, run: WorkerRun) -> None:
        """The program itself has failed on it: its task counts as worked on."""
        with self._lock:
            run.task.failed_on = True

    def ended(self, run: WorkerRun) -> None:
        """Nothing is left to do for this worker."""
        with self._lock:
            task = run.task
            self._settle(run)
            if task.runs.pop(run.life.index, None) is None or self._tasks.get(task.event.event_id) is not task:
                return
            task.open_workers -= 1
            if task.open_workers == 0:
                self._forget(task)

    def _pick(self) -> WorkerRun | None:
        self._wake_due()
        if (run := self._next_open(self._first)) is not None:
            return run
        if not self._capacity.is_free():
            return None
        if (run := self._next_open(self._due)) is not None:
            return self._claim(run)
        while self._fresh:
            task = self._fresh.popleft()
            if not task.has_fresh():
                self._room.notify()
                continue
            run = WorkerRun(task, begin(task.next_index))
            task.runs[task.next_index] = run
            task.next_index += 1
            if task.has_fresh():
                self._fresh.append(task)
            else:
                self._room.notify()
            return self._claim(run)
        return None

    def _next_open(self, runs: deque[WorkerRun]) -> WorkerRun | None:
        """The next of these whose task is still ours: those of a dropped one are skipped here, not searched for."""
        while runs:
            run = runs.popleft()
            if self._is_open(run):
                return run
        return None

    def _claim(self, run: WorkerRun, *, used: bool = False) -> WorkerRun:
        self._capacity.claim(run.worker, used=used)
        return run

    def _is_open(self, run: WorkerRun) -> bool:
        return self._tasks.get(run.task.event.event_id) is run.task and not run.on_thread

    def _wake_due(self) -> None:
        now = self._clock.now()
        while self._paused and self._paused[0][0] <= now:
            _, serial, run = heapq.heappop(self._paused)
            if run.queued == serial and self._is_open(run):
                run.queued = 0
                waiting = self._due if run.life.needs_room else self._first
                (self._cancelled if run.cancelled else waiting).append(run)

    # -- cancelling

    def cancel(self, event_id: str, index: int, termination: Termination) -> bool:
        """A cancel is stored for this worker: whatever stage it is in, it ends.

        Returns False if the task is not open here, or no thread follows a pod that may be there: then the caller ends
        the pod.
        """
        with self._lock:
            task = self._tasks.get(event_id)
            if task is None:
                return False
            task.terminations[index] = termination
            run = task.runs.get(index)
            if run is None and index >= task.next_index and index not in task.skip:
                task.skip.add(index)
                run = task.runs[index] = WorkerRun(task, begin(index))
                self._cancelled.append(run)
                return True
            if run is None:
                return True
            if not run.on_thread:
                self._cancel_waiting(run)
                return True
        return self._registry.notify(task.hash, index, TerminationStored(termination))

    def _cancel_waiting(self, run: WorkerRun) -> None:
        """Whatever it waits for (a pause, room, a thread), it does no longer."""
        for runs in (self._due, self._first):
            if run in runs:
                runs.remove(run)
        run.queued, run.life = 0, hurried(run.life)
        if run not in self._cancelled:
            self._cancelled.append(run)

    def spared(self, run: WorkerRun) -> None:
        """It is not cancelled any more: the mark was withdrawn."""
        with self._lock:
            run.task.terminations.pop(run.life.index, None)

    def first_look(self, task: OwnedTask) -> bool:
        """True once for each task: when the first of its pods is there."""
        with self._lock:
            first, task.monitored = not task.monitored, True
            return first

    # -- for those who look

    def note(self, run: WorkerRun, reason: str | None = None) -> None:
        """Its state is to be shown; written together with others, now and then."""
        with self._lock:
            self._notes.add(run, reason)

    def take_notes(self) -> list[tuple[OwnedTask, States, str | None]]:
        """The states that changed since the last call, by task, and why a task waits."""
        with self._lock:
            notes = self._notes.take()
            return [
                (self._tasks[event_id], states, reason) for event_id, states, reason in notes if event_id in self._tasks
            ]

    def counts(self) -> tuple[int, int]:
        """Threads at work, and workers known to wait for one."""
        with self._lock:
            waiting = sum(task.event.pod_count - task.next_index + 1 for task in self._fresh)
            return self._busy, waiting + len(self._first) + len(self._due) + len(self._paused)

    # -- under the lock

    def _restore(self, task: OwnedTask, worker: StoredWorker) -> None:
        """How a worker goes on that a dead process, or we ourselves, left somewhere."""
        run = restore_run(task, worker)
        if run is None:
            return
        if not run.life.has_no_pod:
            self._first.append(self._claim(run, used=True))
        else:
            (self._cancelled if worker.index in task.terminations else self._due).append(run)

    def _settle(self, run: WorkerRun) -> bool:
        """Of a task that was taken over anew, only the new tenure's workers have claims."""
        return self._tasks.get(run.task.event.event_id) is run.task and self._capacity.settle(run.worker)

    def _requeue(self, run: WorkerRun) -> None:
        """Only now that its thread has let go of it: one that is due at once could else be taken twice, or never."""
        until, run.until = run.until, None
        if until is not None and self._is_open(run) and run.cancelled and run.life.not_before > self._clock.now():
            self._cancel_waiting(run)
        elif until is not None and self._is_open(run):
            self._serial += 1
            run.queued = self._serial
            heapq.heappush(self._paused, (until, self._serial, run))

    def _abandon(self, task: OwnedTask) -> None:
        """Its threads are told under the lock, so that none of the task's next tenure can hear it."""
        self._forget(task)
        for run in task.runs.values():
            if run.on_thread:
                self._registry.notify(task.hash, run.life.index, NotOurs())

    def _forget(self, task: OwnedTask) -> None:
        event_id = task.event.event_id
        self._tasks.pop(event_id, None)
        self._registry.untrack(task.hash)
        self._notes.drop(event_id)
        self._capacity.drop(event_id, task.runs)
        if task in self._fresh:
            self._fresh.remove(task)
        self._room.notify()
