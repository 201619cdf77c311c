"""A pytest plugin (`-p tests.mutants.observer`): runs the named tests in the named order, and ends at the first that
fails twice. A test that fails once and then passes has suffered from the machine's load, and has not seen anything.

OTTO_MUTANT_PLAN names a JSON file with the tests ({"test": longest seconds}); without it every test is run, and
OTTO_MUTANT_TIMES names the file for how long each took, seconds.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

_PLAN = os.environ.get("OTTO_MUTANT_PLAN")
_TIMES = os.environ.get("OTTO_MUTANT_TIMES")
_longest: dict[str, float] = json.loads(Path(_PLAN).read_text(encoding="utf-8")) if _PLAN else {}
_took: dict[str, float] = defaultdict(float)
_red: set[str] = set()
_expected: list[bool] = [bool(_PLAN)]


def expect(longest: dict[str, float]) -> None:
    """From now on, run tests as under a plan, which says how long each may take, seconds."""
    _longest.update(longest)
    _expected[0] = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only what is in the plan, in its order."""
    if _PLAN:
        order = {name: number for number, name in enumerate(_longest)}
        items[:] = sorted((one for one in items if one.nodeid in order), key=lambda one: order[one.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(_longest[item.nodeid]), append=False)


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Once, and if it fails once more."""
    if not (_expected[0] or _TIMES):
        return None
    for last in (False, True):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if last or not any(report.failed for report in reports):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    if _expected[0] and any(report.failed for report in reports):
        item.session.shouldstop = "noticed"
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """How long it took, and how it ended."""
    _took[report.nodeid] += report.duration
    if report.failed:
        _red.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Write down the times."""
    if _TIMES:
        green = {test: seconds for test, seconds in _took.items() if test not in _red}
        Path(_TIMES).write_text(json.dumps({"took": green, "red": sorted(_red)}), encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Do not wait for threads that a broken program has left: they may never end."""
    if _PLAN and (session := getattr(config, "_otto_exit", None)) is not None:
        os._exit(session)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(exitstatus: int, config: pytest.Config) -> None:
    """Remember how it went."""
    config._otto_exit = int(exitstatus)  # type: ignore[attr-defined]
