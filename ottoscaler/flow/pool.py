"""The pool: one thread for each worker that runs, given out by the ledger.

The executor's own queue stays empty: it is submitted to only when the ledger has found a free thread, so order and
cancelling stay the ledger's. A thread that has done with one worker asks for the next itself.

Ten thousand threads take seconds to start, which neither the reader nor the watch has. So whoever calls starts a
few, and each of them begins with starting others.

Where the machine gives no further thread (a limit of pids), the pool goes on with those that it has: each of them takes
the next worker when it has done with one, and now and then a further thread is tried.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

from ottoscaler import logs
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.flow.parts import Parts
from ottoscaler.flow.worker import Runner

#: Threads that one call starts at most.
AT_ONCE: Final = 32
#: After the machine has refused a thread, how long none is tried, seconds.
GROW_EVERY_S: Final = 10.0

_log = logs.get(__name__)


class Pool:
    """Threads for workers. Any thread may `pump`; `close` belongs to the main thread."""

    def __init__(self, parts: Parts, runner: Runner, executor: Executor | None = None) -> None:
        """`executor` stands in for the pool's own threads."""
        self._ledger = parts.ledger
        self._runner = runner
        runner.connect(self.pump)
        self._stop = parts.stop
        self._heartbeat = parts.heartbeat
        self._clock = parts.clock
        self._max_workers = parts.settings.flow.max_workers
        self._executor = executor or ThreadPoolExecutor(self._max_workers, thread_name_prefix="worker")
        self._lock = threading.Lock()
        self._closed = False  # guarded by _lock: nothing may be submitted to a closed executor
        self._grow_at = 0.0  # guarded by _lock
        self._logged = -1  # the size of the pool that the log has last; two lines for one size do no harm

    def pump(self) -> None:
        """Give threads to a few workers that may run now, and these will to others.
        Cheap when there are none; call it whenever something has changed.
        """
        for _ in range(AT_ONCE):
            with self._lock:
                if self._closed or self._stop.is_set():
                    return
                if self._ledger.threads < self._max_workers and self._clock.now() >= self._grow_at:
                    self._ledger.threads = self._max_workers
                run = self._ledger.take()
                if run is None:
                    return
                refusal = self._start(run)
            if refusal is not None:
                self._log_size(refusal)
                return

    def run_cancelled(self, follow: Callable[[WorkerRun], None]) -> int:
        """Carry each cancelled worker that holds no thread on, as far as writes to Redis go: for most these are two.
        `follow` gets those that need the cluster. Returns how many there were.
        """
        done = 0
        while not self._stop.is_set() and (run := self._ledger.take_cancelled()) is not None:
            done += 1
            if self._runner.write(run):
                self._ledger.give_back(run, thread=False)
            else:
                follow(run)
        return done

    def run_waiting(self, event_hash: str, index: int) -> bool:
        """Carry on, on this thread, a resumed worker for which there is none; False if it is not waiting."""
        run = self._ledger.take_waiting(event_hash, index)
        if run is None:
            return False
        self._runner.run(run)
        self._ledger.give_back(run, thread=False)
        return True

    def next_after(self, run: WorkerRun) -> WorkerRun | None:
        """The thread has done with a worker for now: the next one for it, if there is one."""
        self._ledger.give_back(run)
        following = None if self._stop.is_set() else self._ledger.take()
        if following is None:
            self.pump()
        return following

    def close(self) -> None:
        """Take nothing more on; does not wait. Idempotent."""
        with self._lock:
            self._closed = True
        self._executor.shutdown(wait=False)

    def wait_idle(self, deadline: float) -> int:
        """Wait until no worker holds a thread, at most until then (`Clock.now`);
        returns how many still do.
        """
        return self._ledger.wait_idle(deadline)

    def _start(self, run: WorkerRun) -> RuntimeError | None:
        """Under the lock: a thread for this worker. Where there is none, the worker waits for the next that comes free;
        returns what the machine has against it.
        """
        handed = [run]
        try:
            self._executor.submit(self._run, handed)
        except RuntimeError as error:  # can't start new thread
            # The executor has queued it before it asked for the thread: a thread that came free may have it already.
            # Otherwise it is taken back out of that queue, in which nobody else would ever see it.
            if not _taken(handed):
                return None
            self._ledger.pause(run, self._clock.now())
            self._ledger.give_back(run)
            self._ledger.threads = self._ledger.counts()[0]
            self._grow_at = self._clock.now() + GROW_EVERY_S
            return error
        return None

    def _log_size(self, refusal: RuntimeError) -> None:
        size = self._ledger.threads
        if size != self._logged:
            self._logged = size
            _log.warning(
                "pool.shrunk",
                "The machine gives no further thread (%s): going on with %d for MAX_WORKERS=%d, other workers wait;"
                " a limit of pids may be raised (Kubernetes: podPidsLimit of the kubelet), or MAX_WORKERS lowered",
                refusal, size, self._max_workers, error=str(refusal),
            )  # fmt: skip

    def _run(self, handed: list[WorkerRun]) -> None:
        following = _taken(handed)
        if following is None:
            return
        self.pump()
        while following is not None:
            self._heartbeat.progressed()
            self._runner.run(following)
            following = self.next_after(following)


def _taken(handed: list[WorkerRun]) -> WorkerRun | None:
    """The worker, for one of the two who want it; None for the other. `pop` is one step of the interpreter's."""
    try:
        return handed.pop()
    except IndexError:
        return None
