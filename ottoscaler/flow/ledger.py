"""The open tasks of this process, and which worker runs next: order, fairness, room and cancelling are decided here,
under one lock.

Workers wait here and not in a queue of threads, so that a large event does not starve small ones (round robin over
events), a cancelled worker never starts, and a worker that waits for room holds no thread. Indices of a large event are
made when their turn comes, and no pod is created while this process has MAX_WORKERS live ones (run_queues.py).

Whatever makes a worker ready wakes a thread for it: an idle worker thread, or the dispatcher where there is none.
"""

from __future__ import annotations

import threading
from typing import Final

from ottoscaler.core.lifecycle import begin_lifecycle
from ottoscaler.core.manifest import event_hash
from ottoscaler.core.observations import OwnershipLost, TerminationStored
from ottoscaler.core.tenants import tenant_of
from ottoscaler.core.termination import Termination
from ottoscaler.flow.capacity import Capacity
from ottoscaler.flow.owned_tasks import OwnedTask, WorkerRun, restore_run, to_open_task
from ottoscaler.flow.read_limits import ReadLimits
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.room_waits import RoomWaits
from ottoscaler.flow.run_queues import RunQueues
from ottoscaler.flow.status_buffer import StatusBuffer
from ottoscaler.flow.task_table import TaskTable
from ottoscaler.ports import Clock, OpenTask, StoredWorker

#: How many idle threads one change wakes at most. Each of them wakes further ones if there is more to do, so the thread
#: that made the change (the reader, the watch) does not pay for waking thousands.
MAX_WAKES_PER_CHANGE: Final = 32


class Ledger:
    """The open tasks, and the next worker. Any thread; no call blocks (but `wait_for_room`) or does I/O."""

    def __init__(
        self, registry: PodRegistry, clock: Clock, *, instance: str, max_workers: int, read_ahead: int, admit_max: int,
        max_pending: int = 0, tenant_field: str = "",
    ) -> None:  # fmt: skip
        """`tenant_field`: the event's field that names its tenant; empty: there are no tenants."""
        self._registry = registry
        self._clock = clock
        self._instance = instance
        self.threads = max_workers  # as many may be given out; the dispatcher lowers it where the machine gives no more
        self._tenant_field = tenant_field
        self.tasks = TaskTable()
        self.status_buffer = StatusBuffer()
        self._lock = self.tasks.lock
        # All four wait with this lock. They are apart so that a change wakes only the threads that it concerns.
        self._room = threading.Condition(self._lock)  # the reader, for room in the read-ahead
        self._work = threading.Condition(self._lock)  # worker threads that have nothing to do
        self._dispatch = threading.Condition(self._lock)  # the dispatcher
        self._idle = threading.Condition(self._lock)  # the main thread, for the end of all workers
        # all guarded by _lock
        self._capacity = Capacity(registry, max_workers, max_pending)
        self._queues = RunQueues(self._capacity)
        self._read_limits = ReadLimits(
            self._queues, self.tasks, read_ahead=read_ahead, admit_max=admit_max, has_tenants=bool(tenant_field)
        )
        self.room_waits = RoomWaits(
            self._lock, self._queues, self._capacity, self.status_buffer, has_tenants=bool(tenant_field)
        )
        self._busy = 0
        self._idle_threads = 0  # in wait_for_work
        self._woken = 0  # were idle, and have not had the lock since they were woken: each will look for one worker
        self._closed = False
        # A pod that ends makes room, and a list that comes after an outage makes the room known.
        registry.on_change(self.wake_for_room)
        if max_pending:
            registry.on_node(self.wake_for_room)

    # -- tasks

    def add(self, opened: OpenTask) -> OwnedTask:
        """An accepted or taken-over task: what was stored of its workers decides how each goes on."""
        event = opened.event
        hash_ = event_hash(self._instance, event.event_id)
        task = OwnedTask(event, opened.owner, hash_, self._clock.now(), opened.received_at, opened.cancel_count)
        task.tenant = tenant_of(event.passed_on, self._tenant_field)
        with self._lock:
            old = self.tasks.get(event.event_id)
            if old is not None and old.owner == opened.owner:
                return old  # accepted twice: an entry can be read again before its acceptance was answered
            if old is not None:
                self._abandon_task(old)
            task.waits = not opened.holds
            self.tasks.put(task)
            self._registry.count_as_ours(task.event_hash)
            done = sum(1 for worker in opened.workers.values() if worker.outcome)
            task.open_workers = event.pod_count - done
            for worker in opened.workers.values():
                self._restore(task, worker)
            if not task.waits:
                self._queues.add_fresh(task, task.received_mono)
            self._wake_threads()
        return task

    def admit(self, task: OwnedTask) -> bool:
        """It has a place of its concurrency key: its workers may start. Returns whether it waited until now."""
        with self._lock:
            if admitted := self.tasks.admit(task):
                # Not since it was received: the queues of turns are in the order of waiting, and only their heads are
                # compared. Behind younger tasks, one that waited long for its key would be overlooked.
                self._queues.add_fresh(task, self._clock.now())
                self._room.notify()
                self._wake_threads()
            return admitted

    def task_to_restore(self, event_id: str) -> OpenTask | None:
        """A task of ours that Redis has forgotten, to be stored again; None if it is not open here.

        The states of its workers are written again, too.
        """
        with self._lock:
            task = self.tasks.get(event_id)
            if task is None:
                return None
            self.status_buffer.mark_all(task)
            return to_open_task(task)

    def drop(self, event_id: str, owner: str) -> bool:
        """Another process owns the task now: stop all work for it. `owner` is the token that was refused. Returns
        whether it was open here until now.
        """
        with self._lock:
            task = self.tasks.get(event_id)
            if open_here := task is not None and task.owner == owner:
                self._abandon_task(task)
            return open_here

    def at_work(self) -> set[str]:
        """The tasks that a thread is at work on or is about to get, and those on which our own code has failed.

        A task that was just taken over must not look as if it were at rest before its threads have begun: its tries
        would be forgotten, and an event that kills each process would never end as Poison.
        """
        with self._lock:
            found = {task.event.event_id for task in self.tasks if task.at_work()}
            if self._busy < self.threads:
                found |= self._queues.startable()
            return found

    # -- reader

    def wait_for_room(self, timeout_s: float) -> int:
        """How many events may be read, waiting at most so long for it to be more than none."""
        with self._room:
            if not self._read_limits.left():
                self._room.wait(timeout_s)
            return self._read_limits.left()

    # -- threads

    def take(self) -> WorkerRun | None:
        """The next worker to run, with a thread of its own; None while there is none, no thread is free or no room."""
        with self._lock:
            return self._take_next()

    def take_for_new_thread(self) -> WorkerRun | None:
        """The same for a thread that is to be started: None while the idle threads are enough for what is ready."""
        with self._lock:
            return self._take_next() if self._needs_thread() else None

    def takeable(self) -> bool:
        """Would `take` give a worker now? While there is a thread for it this lasts only a moment."""
        with self._lock:
            return self._busy < self.threads and self._ready_count(1) > 0

    def take_cancelled(self) -> WorkerRun | None:
        """The next cancelled worker that holds no thread; the caller carries it on."""
        with self._lock:
            self._queues.wake_due(self._clock.now())
            run = self._queues.next_cancelled()
            if run is not None:
                run.on_thread = True
            return run

    def take_resumed(self, event_hash: str, index: int) -> WorkerRun | None:
        """This worker, if it is resumed and no thread is free for it; the caller carries it on."""
        with self._lock:
            run = self._queues.take_resumed(event_hash, index)
            if run is not None:
                run.on_thread = True
            return run

    def let_go(self, run: WorkerRun, *, thread: bool = True) -> None:
        """The worker is let go of for now; with `thread`, its thread is free again."""
        with self._lock:
            run.on_thread = False
            self._requeue(run)
            self._busy -= thread
            if self._busy == 0:
                self._idle.notify_all()
            self._wake_threads()

    def wait_for_work(self) -> WorkerRun | None:
        """A worker thread waits until a worker may be ready for it, or the ledger is closed. Returns that worker.

        It may return None: several threads can be woken for one worker, and one of them gets it.
        """
        with self._work:
            if self._closed or self._ready_count(1):
                return self._take_next()
            self._idle_threads += 1
            # No time-out: thousands of threads may wait here, and only the dispatcher looks at pauses that end. With
            # one, a thread could wake up by itself in the moment in which it is counted as woken.
            self._work.wait()
            # In one step: between the two the dispatcher would see a worker without a thread, and start one for it.
            self._woken -= 1
            return self._take_next()

    def wait_for_dispatch(self, timeout_s: float) -> None:
        """The dispatcher waits until a cancelled worker or one without a thread waits, at most `timeout_s` seconds; and
        wakes idle threads for workers after their pause.
        """
        with self._dispatch:
            if not (self._closed or self._queues.has_cancelled() or self._needs_thread()):
                next_pause_end = self._queues.next_pause_end()
                pause_s = timeout_s if next_pause_end is None else min(timeout_s, next_pause_end - self._clock.now())
                self._dispatch.wait(max(0.0, pause_s))
            self._wake_threads()

    def wake_for_room(self) -> None:
        """Room may have been made: wake threads for the workers that can use it."""
        with self._lock:
            self._wake_threads()

    def close(self) -> None:
        """No worker is handed out any more, and the threads that wait for one return. Idempotent."""
        with self._lock:
            self._closed = True
            self._woken, self._idle_threads = self._woken + self._idle_threads, 0
            self._work.notify_all()
            self._dispatch.notify_all()

    @property
    def closed(self) -> bool:
        """Is it closed?"""
        return self._closed

    def wait_idle(self, deadline: float) -> int:
        """Wait until no worker holds a thread, at most until then (`Clock.now`); returns how many do."""
        with self._idle:
            while self._busy and (left_s := deadline - self._clock.now()) > 0:
                self._idle.wait(left_s)
            return self._busy

    def release_room(self, run: WorkerRun) -> None:
        """Its pod is seen, or there is none: its claim on room ends, and others may use the room that this makes."""
        with self._lock:
            if self._end_room_claim(run):
                self._wake_threads()

    def may_create_pod(self, run: WorkerRun) -> bool:
        """May it create a pod now? It needs new room for each, and the room that it had may have been taken back."""
        with self._lock:
            return self._capacity.use(run.worker_id)

    def pause(self, run: WorkerRun, until: float) -> None:
        """Its thread gives it back until then (`Clock.now`); if a create is next, its room as well."""
        with self._lock:
            run.paused_until = until
            if run.life.needs_room:
                self._end_room_claim(run)

    def worker_ended(self, run: WorkerRun) -> None:
        """Nothing is left to do for this worker."""
        with self._lock:
            task = run.task
            self._end_room_claim(run)
            if task.runs.pop(run.life.index, None) is None or task.closed:
                return
            task.open_workers -= 1
            if task.open_workers == 0:
                self._remove_task(task)

    # -- cancelling

    def cancel(self, event_id: str, index: int, termination: Termination) -> bool:
        """A cancel is stored for this worker: whatever stage it is in, it ends.

        Returns False if the task is not open here, or no thread follows a pod that may be there: then the caller ends
        the pod.
        """
        with self._lock:
            task = self.tasks.get(event_id)
            if task is None:
                return False
            task.terminations[index] = termination
            run = task.runs.get(index)
            if run is None and index >= task.next_index and index not in task.cancelled_indices:
                task.cancelled_indices.add(index)
                run = task.runs[index] = WorkerRun(task, begin_lifecycle(index))
                self._queues.add(run)
                self._dispatch.notify()
                return True
            if run is None:
                return True
            if not run.on_thread:
                self._queues.cancel(run)
                self._dispatch.notify()
                return True
        return self._registry.notify(task.event_hash, index, TerminationStored(termination))

    # -- states to show

    def thread_counts(self) -> tuple[int, int]:
        """Threads at work, and workers known to wait for one."""
        with self._lock:
            return self._busy, self._queues.count_waiting()

    # -- under the lock

    def _take_next(self) -> WorkerRun | None:
        if self._closed or self._busy >= self.threads:
            return None
        self._queues.wake_due(self._clock.now())
        run = self._queues.next()
        if run is not None:
            if not run.task.has_fresh():
                self._room.notify()
            run.on_thread = True
            self._busy += 1
            if run.task.wait is not None:
                run.task.wait = None
                self.status_buffer.mark_task(run.task)
            self._wake_threads()  # a change wakes only a few threads, and each of these the next
        return run

    def _ready_count(self, most: int) -> int:
        """How many workers could be given a thread now, counted up to `most`."""
        self._queues.wake_due(self._clock.now())
        return self._queues.count_ready(most)

    def _needs_thread(self) -> bool:
        """Is a worker ready beyond those for which threads wait or were woken, and may there be a further thread?"""
        there = self._idle_threads + self._woken
        return self._busy + there < self.threads and self._ready_count(MAX_WAKES_PER_CHANGE) > there

    def _wake_threads(self) -> None:
        """Wake idle threads for what is ready, and the dispatcher if they are too few or a worker is cancelled.

        Called after each change that can make a worker ready, and by each thread that takes one. A change without it
        would leave that worker to the dispatcher's next look: nothing is lost then, but it begins late.
        """
        count = min(self._ready_count(MAX_WAKES_PER_CHANGE) - self._woken, self._idle_threads)
        if count > 0:
            self._idle_threads -= count
            self._woken += count
            self._work.notify(count)
        if self._queues.has_cancelled() or (not self._idle_threads and self._needs_thread()):
            self._dispatch.notify()

    def _restore(self, task: OwnedTask, worker: StoredWorker) -> None:
        """How a worker goes on that a dead process, or we ourselves, left somewhere."""
        run = restore_run(task, worker)
        if run is None:
            return
        if not run.life.has_no_pod:
            self._capacity.claim(run.worker_id, task.tenant, used=True)
            self._queues.add_resumed(run)
        else:
            self._queues.add(run)

    def _end_room_claim(self, run: WorkerRun) -> bool:
        """Only workers of the current epoch of a task have claims."""
        return not run.task.closed and self._capacity.end_claim(run.worker_id)

    def _requeue(self, run: WorkerRun) -> None:
        """Only after its thread has let go of it: a worker that is due at once could otherwise be taken twice, or
        never.
        """
        until, run.paused_until = run.paused_until, None
        if until is None or not run.is_waiting:
            return
        if run.cancelled and run.life.not_before > self._clock.now():
            self._queues.cancel(run)
        elif self._queues.pause(run, until):
            self._dispatch.notify()  # it waits for the end of a later pause

    def _abandon_task(self, task: OwnedTask) -> None:
        """Notify its threads under the lock, so that no thread of the task's next epoch can get the notice."""
        self._remove_task(task)
        for run in task.runs.values():
            if run.on_thread:
                self._registry.notify(task.event_hash, run.life.index, OwnershipLost())

    def _remove_task(self, task: OwnedTask) -> None:
        self.tasks.close(task)
        self._registry.stop_counting(task.event_hash)
        self._capacity.drop(task.event.event_id, task.runs)
        self._queues.drop(task)
        self._room.notify()
        self._wake_threads()
