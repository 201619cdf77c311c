"""The path of one worker through the program: which functions its thread calls, from the moment at which the thread has
the worker until it lets go of it. `python -m tests.worker_trace` prints them.

One worker is run by the real controller over the fakes. Calls inside the fakes stand for the servers' own work and are
not counted; what a client does on the same thread (`created_pod_snapshot` parses the answer to a create) is.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import ottoscaler
from ottoscaler.core.pods import created_pod_snapshot
from ottoscaler.flow.worker import WorkerRunner
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

_PRODUCT = f"{Path(ottoscaler.__file__).parent}/"
_TESTS = f"{Path(__file__).parent}/"
_BEGIN = WorkerRunner.run.__code__
#: What the real client does on the worker's thread.
_OF_CLIENT = frozenset({created_pod_snapshot.__code__})


@dataclass
class Trace:
    """Calls of product functions by file and qualified name. `note` is a profile function for all threads; what it
    counts is a worker's thread's alone.
    """

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    _local: threading.local = field(default_factory=threading.local)

    @property
    def total(self) -> int:
        """How many calls."""
        return self.calls.total()

    @property
    def files(self) -> set[str]:
        """The product's files that have a part in it."""
        return {file for file, _ in self.calls}

    def note(self, frame: FrameType, event: str, _argument: object) -> None:
        """A function was called, or returns."""
        if event not in ("call", "return"):
            return
        code = frame.f_code
        stack: list[bool] | None = getattr(self._local, "stack", None)
        if stack is None:
            if code is not _BEGIN or event != "call":
                return
            stack = self._local.stack = []
        if event == "return":
            stack.pop()
            if not stack:
                self._local.stack = None
            return
        counts = stack[-1] if stack else True
        if code.co_filename.startswith(_TESTS):
            counts = False
        elif code in _OF_CLIENT:
            counts = True
        stack.append(counts)
        if counts and code.co_filename.startswith(_PRODUCT):
            self.calls[code.co_filename.removeprefix(_PRODUCT), code.co_qualname] += 1


def trace_worker() -> Trace:
    """The trace of one worker that is created, starts, succeeds, is recorded and deleted."""
    trace = Trace()
    threading.setprofile(trace.note)  # for threads that start from now on
    try:
        with SimulatedController(FakeServers(SystemClock()), threads=ALL, auto=lambda _name: None) as controller:
            event_id = controller.send(pod_count=1)
            pod = controller.pod(event_id)
            controller.cluster.succeed(pod)
            controller.results(1, "task")
            eventually(lambda: not controller.cluster.names(), what="the pod to be deleted")
            controller.idle()
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    return trace


def main() -> None:
    """Print the calls by file, the most frequent first."""
    trace = trace_worker()
    for file in sorted(trace.files):
        of_file = Counter({name: count for (where, name), count in trace.calls.items() if where == file})
        sys.stdout.write(f"{of_file.total():5} {file}\n")
        for name, count in of_file.most_common():
            sys.stdout.write(f"      {count:4} {name}\n")
    sys.stdout.write(f"{trace.total} calls in {len(trace.files)} files\n")


if __name__ == "__main__":
    main()
