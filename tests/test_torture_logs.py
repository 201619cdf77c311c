"""What `make torture` holds the logs of workers against, without servers: each rule finds what it is meant for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.torture.kubelet import Fate, Run
from tests.torture.log_checks import LogHistory, doubled, held_up, late, lost
from tests.torture.log_handler import DRAIN_S
from tests.torture.pod_logs import written

RUN = Run("u", "p", "e", 1, 1, Fate(0, 0, ""), started_at=100.0, ended_at=100.25, deleted_at=101.0)


def stored(*texts: str, end: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """What a handler has: these lines, and the account at the end."""
    lines: list[dict[str, Any]] = [{"sequence": place, "message": text} for place, text in enumerate(texts, 1)]
    return lines if end is None else [*lines, {"sequence": len(texts) + 1, "message": "end of log", "end": end}]


def history(entries: Sequence[Mapping[str, Any]], **known: Any) -> LogHistory:
    """One pod with a log."""
    usual: dict[str, Any] = {"given_up": (), "recorded": {"u": 100.3}, "away": (), "settled_at": 0.0}
    return LogHistory(book=[RUN], entries={"p": entries}, **{**usual, **known})


END = {"dropped": 0, "gaps": 0}


def test_a_worker_writes_at_even_intervals_and_once_at_its_end() -> None:
    """What is there at any moment is the beginning of what there is at the end."""
    whole = [text for _, text in written(RUN, RUN.ended_at)]
    assert whole == ["p 0", "p 1", "p 2", "p ends"]
    running = Run("u", "p", "e", 1, 1, Fate(0, 0, ""), started_at=100.0)
    assert [text for _, text in written(running, 100.15)] == ["p 0", "p 1"]


@pytest.mark.parametrize(
    ("entries", "given_up", "twice", "silent"),
    [
        (stored("p 0", "p 1", "p 2", "p ends", end=END), False, 0, 0),
        (stored("p 0", "p 1", "p 1", "p 2", "p ends", end=END), False, 1, 1),
        (stored("p 1", "p 0", "p 2", "p ends", end=END), False, 1, 0),
        (stored("p 0", "p 1", "p 2", "p 3", "p ends", end=END), False, 2, 1),
        (stored("p 0", "p 1", "p 2", "p ends", end=END)[:4] * 2, False, 2, 1),
        (stored("p 0", "p 2", "p ends", end=END), False, 0, 1),
        (stored("p 0", "p 2", "p ends", end={"dropped": 1, "gaps": 0}), False, 0, 0),
        (stored("p 0", "p ends", end={"dropped": 0, "gaps": 1}), False, 0, 0),
        (stored("p 0", "p 1"), False, 0, 1),
        (stored("p 0", "p 1"), True, 0, 0),
        ([], False, 0, 1),
    ],
)
def test_lines_that_came_twice_and_lines_that_are_lost_are_found(
    entries: Sequence[Mapping[str, Any]], given_up: bool, twice: int, silent: int
) -> None:
    """Lost in silence: neither received nor counted, and no controller has given the log up."""
    found = history(entries, given_up={"p"} if given_up else ())
    assert (len(list(doubled(found))), len(list(lost(found)))) == (twice, silent)


@pytest.mark.parametrize(("deleted_s", "settled_at", "complaints"), [(5, 0, 0), (12, 0, 1), (12, 95, 0)])
def test_a_pod_that_stays_for_too_long_is_found(deleted_s: float, settled_at: float, complaints: int) -> None:
    """Only with controllers that live."""
    found = history([], recorded={"u": RUN.deleted_at - deleted_s + DRAIN_S - 6}, settled_at=settled_at)
    assert len(list(late(found))) == complaints


@pytest.mark.parametrize(("back_at", "complaints"), [(100.5, 0), (100.2, 1)])
def test_results_that_wait_for_the_handler_are_found(back_at: float, complaints: int) -> None:
    """It went away before the worker ended; its result came before the handler was back, or after."""
    found = history([], away=[(99.0, back_at)] * 5)
    assert len(list(held_up(found))) == complaints
