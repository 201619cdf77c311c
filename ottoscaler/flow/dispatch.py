"""The dispatcher: the one place where a worker is handed to a thread of the pool.

The executor's own queue stays empty: it gets only a worker that the ledger gives out and that needs a new thread, so
order and cancelling stay the ledger's. A worker thread that has done with one worker takes the next one from the ledger
itself, and waits there when there is none. The dispatcher's own thread does what is left: it starts a thread where a
worker is ready and none waits for it, carries on cancelled workers (two writes to Redis, for which no worker thread is
needed), and wakes idle threads for workers after their pause. So what makes a worker ready (the reader, the watch, a
worker that ends) only notifies the ledger, and never starts a thread itself: thousands take seconds.

Where the machine gives no further thread (a limit of pids), the dispatcher goes on with those that it has: each of them
takes the next worker when it has done with one, and another thread is tried from time to time.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ottoscaler import logs
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.pod_terminator import PodTerminator
from ottoscaler.flow.stop import StopSignal
from ottoscaler.flow.worker import WorkerRunner
from ottoscaler.ports import Clock

#: Threads started, and cancelled workers carried on, before the dispatcher looks at the other kind of work.
MAX_STARTS_PER_STEP: Final = 32
#: After the machine has refused a thread, how long none is tried, seconds.
THREAD_RETRY_S: Final = 10.0
#: The longest wait for something to do, seconds: the delay until a stop, or room without a notice to the ledger, is
#: seen.
LOOK_EVERY_S: Final = 0.5

_log = logs.get(__name__)


class WorkerDispatcher:
    """Owns the worker threads. `run` is the body of one thread; `close` is for the main thread, the rest for any."""

    def __init__(
        self, *, ledger: Ledger, runner: WorkerRunner, terminator: PodTerminator, inbox: ScaleDownInbox,
        stop: StopSignal, heartbeat: Heartbeat,
        clock: Clock, max_workers: int,
    ) -> None:  # fmt: skip
        """`max_workers`: how many worker threads there are at most."""
        self._ledger = ledger
        self._runner = runner
        self._terminator = terminator
        self._inbox = inbox
        self._stop = stop
        self._heartbeat = heartbeat
        self._clock = clock
        self._max_workers = max_workers
        # Nothing may be submitted to an executor that is shut down. So `close` also closes the ledger, which then gives
        # out no more workers, and does both under the lock under which a worker is taken and submitted.
        self._lock = threading.Lock()
        self._executor = self._new_executor()  # guarded by _lock
        # the rest is the dispatcher's thread's own
        self._size = 0
        self._grow_at = 0.0
        self._logged = -1  # the size of the pool that the log has last
        self._cancelled = 0  # carried on since the scale_downs were last woken

    def run(self) -> None:
        """Until the stop."""
        while not self._stop.is_set():
            self.step()
            self._heartbeat.beat()
            self._ledger.wait_for_dispatch(LOOK_EVERY_S)

    def step(self) -> None:
        """Carry on some cancelled workers and start some threads. Raises nothing."""
        self._advance_cancelled()
        self._grow_pool()

    def advance_resumed(self, event_hash: str, index: int) -> bool:
        """Carry on a resumed worker although no thread is free for it; False if it is not waiting for one."""
        run = self._ledger.take_resumed(event_hash, index)
        if run is not None:
            self._terminator.finish_cancelled(run)
        return run is not None

    def close(self) -> None:
        """Hand out nothing more; does not wait. Idempotent."""
        with self._lock:
            self._ledger.close()
            self._executor.shutdown(wait=False)

    def _advance_cancelled(self) -> None:
        """As far as writes to Redis go; the ender gets those that need the cluster, which may take long to answer."""
        for _ in range(MAX_STARTS_PER_STEP):
            run = None if self._stop.is_set() else self._ledger.take_cancelled()
            if run is None:
                break
            self._cancelled += 1
            if self._runner.run_without_cluster(run):
                self._ledger.let_go(run, thread=False)
            else:
                self._terminator.finish_cancelled(run)
        else:
            return  # there may be more: a scale_down that looks now would only find that out
        if self._cancelled:
            self._cancelled = 0
            self._inbox.request_look()

    def _grow_pool(self) -> None:
        if self._clock.now() >= self._grow_at:
            self._ledger.threads = self._max_workers
        for _ in range(MAX_STARTS_PER_STEP):
            refusal = None
            with self._lock:
                # The size comes first: a thread between two workers is neither busy nor idle to the ledger.
                if self._size >= self._ledger.threads or self._stop.is_set():
                    return
                # A thread gets its first worker before it starts. If it took one itself, the dispatcher would not know
                # yet that this worker is taken, and start further threads for it.
                run = self._ledger.take_for_new_thread()
                if run is None:
                    return
                try:
                    self._start_thread(run)
                except RuntimeError as error:  # can't start new thread
                    refusal = error
                    self._on_thread_refused(run)
            if refusal is not None:
                self._log_pool_size(refusal)
                return
            self._size += 1

    def _start_thread(self, run: WorkerRun) -> None:
        """Start a thread with this worker. Under the lock. Raises RuntimeError if the machine gives none."""
        handed = [run]
        try:
            self._executor.submit(self._worker_thread, handed)
        except RuntimeError:
            # The executor has queued the worker before it asked for a thread, and would give this entry to the next
            # thread that it starts, while the worker of that thread stayed in the queue. So the queue is left behind:
            # the threads of the old executor go on, and those to come belong to a new one.
            handed.clear()
            self._executor.shutdown(wait=False)
            self._executor = self._new_executor()
            raise

    def _on_thread_refused(self, run: WorkerRun) -> None:
        """The worker waits for the next thread that comes free. The limit comes first: as long as the ledger counts on
        a further thread, it gives the same worker to the dispatcher again.
        """
        self._ledger.threads = self._size
        self._grow_at = self._clock.now() + THREAD_RETRY_S
        self._ledger.pause(run, self._clock.now())
        self._ledger.let_go(run)

    def _new_executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._max_workers, thread_name_prefix="worker")

    def _worker_thread(self, handed: list[WorkerRun]) -> None:
        """The body of a worker thread. `handed` has its first worker, or nothing if the executor refused the thread."""
        run = handed.pop() if handed else None
        while run is not None:
            self._heartbeat.progressed()
            self._runner.run(run)
            self._ledger.let_go(run)
            run = self._wait_for_next_worker()

    def _wait_for_next_worker(self) -> WorkerRun | None:
        """Wait for the next worker of this thread; None when the process stops."""
        while not (self._stop.is_set() or self._ledger.closed):
            if (run := self._ledger.wait_for_work()) is not None:
                return run
        return None

    def _log_pool_size(self, refusal: RuntimeError) -> None:
        if self._size != self._logged:
            self._logged = self._size
            _log.warning(
                "pool.shrunk",
                "The machine gives no further thread: going on with %d for MAX_WORKERS=%d, other workers wait;"
                " a limit of pids may be raised (Kubernetes: podPidsLimit of the kubelet), or MAX_WORKERS lowered",
                self._size, self._max_workers, error=str(refusal),
            )  # fmt: skip
