"""Random mutants: what is broken, that it is the same for the same seed, and how a fork tries it."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence

import pytest

from ottoscaler.adapters import scripts
from ottoscaler.adapters.scripts import source
from tests.mutants import fork_server, trial
from tests.mutants.chart import Chart
from tests.mutants.forks import Forks
from tests.mutants.lua_places import lua_places
from tests.mutants.places import Place, python_places
from tests.mutants.scratch import scratch

SOURCE = b'''
"""Nothing is done to a docstring."""
LIMIT: int = 3

def allowed(count: int, names: list[str]) -> bool:
    """Nor to this one."""
    if count >= LIMIT and not names:
        _log.info("allowed", "None of this is looked at: %d", count + 1)
        return check(count, names)
    return count - 1 in names
'''
LUA = b"""-- nothing is done to a comment == 1
--[[ nor to one
  of more <lines>
]]
local function store(task, n)
  if n > 0 and task ~= '' then
    redis.call('HSET', task, 'count', n + 1)
  end
  return {'ok', n}
end
"""


def changes(places: list[Place], source: bytes) -> dict[str, set[str]]:
    """By kind: what becomes of what."""
    found: dict[str, set[str]] = {}
    for place in places:
        found.setdefault(place.kind, set()).add(f"{source[place.start : place.end].decode()} -> {place.text}")
    return found


def test_each_kind_of_change_is_found_in_python() -> None:
    """And nothing in docstrings, annotations and log calls."""
    assert changes(python_places("a.py", SOURCE), SOURCE) == {
        "constant": {"3 -> 4", "1 -> 2"},
        "condition": {"count >= LIMIT and not names -> (not (count >= LIMIT and (not names)))"},
        "boolean": {
            "count >= LIMIT and not names -> (count >= LIMIT or not names)",
            "count >= LIMIT and not names -> (count >= LIMIT)",
            "count >= LIMIT and not names -> (not names)",
            "not names -> (names)",
        },
        "comparison": {
            "count >= LIMIT -> (count > LIMIT)",
            "count >= LIMIT -> (count < LIMIT)",
            "count - 1 in names -> (count - 1 not in names)",
        },
        "arithmetic": {"count - 1 -> (count + 1)"},
        "arguments": {"check(count, names) -> (check(names, count))"},
        "return": {
            "return check(count, names) -> return not (check(count, names))",
            "return count - 1 in names -> return not (count - 1 in names)",
        },
    }


def test_each_kind_of_change_is_found_in_lua() -> None:
    """And nothing in comments; the names of commands stay what they are."""
    assert changes(lua_places("a.lua", LUA), LUA) == {
        "comparison": {"> -> >=", "> -> <=", "~= -> =="},
        "boolean": {"and -> or"},
        "condition": {"n > 0 and task ~= '' -> not (n > 0 and task ~= '')"},
        "constant": {"0 -> 1", "1 -> 2", "'count' -> 'count_'", "'ok' -> 'ok_'"},
        "arithmetic": {"+ -> -"},
        "return": {"{'ok', n} -> nil"},
        "statement": {"redis.call('HSET', task, 'count', n + 1) -> -- deleted"},
    }


@pytest.mark.parametrize("place", python_places("a.py", SOURCE), ids=lambda place: f"{place.kind}-{place.text}")
def test_what_is_broken_is_still_python(place: Place) -> None:
    """Otherwise it would prove nothing that the tests fail."""
    ast.parse(place.broken(SOURCE))


@pytest.mark.full
def test_the_same_seed_gives_the_same_mutants() -> None:
    """And another one gives others; of each kind there are as many."""
    among = [place for place in trial.places() if place.path.startswith("ottoscaler/core/")]
    drawn = trial.drawn(among, 16, seed=7)
    assert drawn == trial.drawn(among, 16, seed=7)
    assert drawn != trial.drawn(among, 16, seed=8)
    assert {
        kind: sum(place.kind == kind for place in drawn) for kind in {place.kind for place in drawn}
    } == dict.fromkeys({place.kind for place in among}, 2)


def test_every_equivalent_mutant_can_happen_and_has_a_reason() -> None:
    """A line that has changed since is another mutant, which nobody has looked at."""
    listed = trial.equivalents(trial.EQUIVALENT.read_text(encoding="utf-8"))
    assert listed
    assert all(len(why) > 20 for why in listed.values())
    assert trial.stale(listed, trial.places()) == []


VERDICTS = "ottoscaler/core/verdicts.py"


def verdicts_of(changes: Sequence[tuple[str, str]], tests: str) -> list[str]:
    """What the tests of one file say of changes of core/verdicts.py, in forks of one process."""
    with scratch() as folder:
        forks, found = Forks(folder, [tests.partition("::")[0]]), []
        try:
            forks.wait_ready()
            for line, broken in changes:
                [place] = [
                    one
                    for one in python_places(VERDICTS, trial.source_of(VERDICTS))
                    if trial.change(one) == (line, broken)
                ]
                found.append(forks.verdict(place, trial.source_of(VERDICTS), {tests: 20.0}, 20.0)[0])
        finally:
            forks.close()
        return found


@pytest.mark.full
def test_a_fork_has_the_broken_code_and_its_parent_has_not() -> None:
    """What is run at import is not tried there, and no mutant is left for the next one."""
    backoff, code = "return float(min(2.0 ** min(tries, 10), MAX_BACKOFF_S))", 'POISON = "Poison", Outcome.FAILED, '
    infra = "FaultOrigin.INFRA, RetryBudget.NEVER"
    assert verdicts_of(
        [
            (backoff, "return None"),
            (backoff, "return float(min(2.0 ** min(tries, 11), MAX_BACKOFF_S))"),
            (code + infra, code.replace('"Poison"', "'Poison_'") + infra),
        ],
        "tests/core/test_lifecycle.py::test_pauses_grow_up_to_half_a_minute[4-16]",
    ) == ["noticed", "missed", "unfit"]


def test_a_broken_text_takes_its_place_in_scripts() -> None:
    """Wherever a module holds it: in one text, or in the scripts of all functions."""
    before = source("atomic.lua")
    pid = os.fork()
    if pid == 0:
        put = fork_server.put_in("atomic.lua", before, before + b"-- broken\n")
        whole = all(b"-- broken" in script.source for script in scripts._SCRIPTS.values())
        os._exit(0 if put and whole else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("line", "end_line", "imported"), [(3, 3, True), (2, 3, True), (1, 9, True), (4, 5, False), (9, 9, False)]
)
def test_what_an_import_runs_is_known(line: int, end_line: int, imported: bool) -> None:
    """A fork that misses it has proven nothing."""
    known = Chart([], [], {}, {"a.py": {3, 7}, "b.py": {9}})
    assert known.is_imported(Place("a.py", "constant", line, end_line, 0, 1, "")) is imported


def test_the_list_of_equivalents_is_read_in_blocks() -> None:
    """Path, before, after, why."""
    text = "# a comment\n\na.py\n- x = 1\n+ x = 2\nIt is only a name.\n"
    assert trial.equivalents(text) == {("a.py", "x = 1", "x = 2"): "It is only a name."}
