"""What a table of the commands shows: counts, progress and how a worker ended, in words."""

from __future__ import annotations

import pytest

from ottoscaler.adapters.task_codec import WorkerState
from ottoscaler.cli.table import duration, printable, tally_text, worker_text
from ottoscaler.core.wording import count_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3725, "1 h 2 min"), (90_000, "1 d 1 h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    """The seconds of a day are no use to a reader."""
    assert duration(seconds) == text


def test_states_are_shown_in_their_order() -> None:
    """What is done first; a state that is not known last, and no zeros."""
    assert tally_text({"odd": 1, "waiting": 2, "failed": 0, "succeeded": 3}) == "3 succeeded, 2 waiting, 1 odd"


@pytest.mark.parametrize(("count", "text"), [(0, "0 workers"), (1, "1 worker"), (2, "2 workers")])
def test_one_is_not_many(count: int, text: str) -> None:
    """The noun follows the number."""
    assert count_text(count, "worker") == text


def test_what_does_not_print_is_escaped() -> None:
    """Letters of all languages do print."""
    assert printable("grün\x1b[2J\r\n\u202e") == "grün\\x1b[2J\\r\\n\\u202e"


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        (WorkerState(2, "finished", outcome="failed", reason="Error", exit_code="3"), "2: Error, exit code 3"),
        (WorkerState(1, "finished", outcome="succeeded", reason="Completed", exit_code="0"), "1: Completed"),
        (WorkerState(3, "running"), "3: running"),
    ],
)
def test_a_worker_is_shown_by_what_is_known_best(worker: WorkerState, text: str) -> None:
    """Its reason once there is one, before that its state."""
    assert worker_text(worker) == text
