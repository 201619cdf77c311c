"""The path of one worker through the program is short: its reader passes few functions in few files."""

from __future__ import annotations

import pytest

from tests.worker_trace import Trace, trace_worker

#: More is a decision. The last seven files: the state of a worker apart from its rules, the counts of pods apart from
#: the registry, the order of turns, the room for pods and the turns of tenants apart from the queues, the kinds of
#: metrics apart from their list, and the marks of what has changed apart from the log; each was a duty of its own in a
#: file that had grown.
#: Calls: 300 when last counted; a thread that is woken once more, on a loaded machine, makes some more.
_CALLS = 308
_FILES = 19


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Of one worker that succeeds."""
    return trace_worker()


def test_one_worker_passes_few_functions(trace: Trace) -> None:
    """Calls of the product's functions on the worker's thread."""
    print(f"{trace.total} calls")
    assert trace.total <= _CALLS


def test_one_worker_passes_few_files(trace: Trace) -> None:
    """Those that have a part in it."""
    print(sorted(trace.files))
    assert len(trace.files) <= _FILES


def test_the_trace_is_of_a_whole_life(trace: Trace) -> None:
    """Each effect of the ordinary way is in it, once."""
    effects = ("_intend", "_create", "_check", "_record", "_delete", "_end_lifecycle")
    assert [trace.calls["flow/worker.py", f"WorkerRunner.{effect}"] for effect in effects] == [1] * len(effects)
    # for the manifest's metadata and variables, and for the check of the answer
    assert trace.calls["core/manifest.py", "pod_name"] <= 3
