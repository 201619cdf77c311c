"""The pool: one thread for each worker that runs, given out by the ledger.

The executor's own queue stays empty: it is submitted to only when the ledger has found a free thread, so order and
cancelling stay the ledger's. A thread that has done with one worker asks for the next itself.

Ten thousand threads take seconds to start, which neither the reader nor the watch has. So whoever calls starts a
few, and each of them begins with starting others.
"""

from __future__ import annotations

import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

from ottoscaler.flow.jobs import Job
from ottoscaler.flow.parts import Parts
from ottoscaler.flow.worker import Runner

#: Threads that one call starts at most.
AT_ONCE: Final = 32


class Pool:
    """Threads for workers. Any thread may `pump`; `close` belongs to the main thread."""

    def __init__(self, parts: Parts, runner: Runner, executor: Executor | None = None) -> None:
        """`executor` stands in for the pool's own threads."""
        self._ledger = parts.ledger
        self._runner = runner
        runner.connect(self.pump)
        self._stop = parts.stop
        self._pulse = parts.pulse
        self._executor = executor or ThreadPoolExecutor(parts.settings.flow.max_workers, thread_name_prefix="worker")
        self._lock = threading.Lock()
        self._closed = False  # guarded by _lock: nothing may be submitted to a closed executor

    def pump(self) -> None:
        """Give threads to a few workers that may run now, and these will to others.
        Cheap when there are none; call it whenever something has changed.
        """
        for _ in range(AT_ONCE):
            with self._lock:
                if self._closed or self._stop.is_set():
                    return
                job = self._ledger.take()
                if job is None:
                    return
                self._executor.submit(self._run, job)

    def run_cancelled(self) -> int:
        """Carry out, on this thread, the two writes of each cancelled worker that holds none;
        returns how many there were.
        """
        done = 0
        while not self._stop.is_set() and (job := self._ledger.take_cancelled()) is not None:
            self._runner.run(job)
            self._ledger.give_back(job, thread=False)
            done += 1
        return done

    def run_waiting(self, event_hash: str, index: int) -> bool:
        """Carry on, on this thread, a resumed worker for which there is none; False if it is not waiting."""
        job = self._ledger.take_waiting(event_hash, index)
        if job is None:
            return False
        self._runner.run(job)
        self._ledger.give_back(job, thread=False)
        return True

    def next_after(self, job: Job) -> Job | None:
        """The thread has done with a worker for now: the next one for it, if there is one."""
        self._ledger.give_back(job)
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
        """Wait until no worker holds a thread, at most until then (seconds since the epoch);
        returns how many still do.
        """
        return self._ledger.wait_idle(deadline)

    def _run(self, job: Job) -> None:
        self.pump()
        following: Job | None = job
        while following is not None:
            self._pulse.moved()
            self._runner.run(following)
            following = self.next_after(following)
