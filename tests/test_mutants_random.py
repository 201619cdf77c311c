"""Random mutants: what is broken, and that it is the same for the same seed."""

from __future__ import annotations

import ast

import pytest

from tests.mutants import trial
from tests.mutants.lua_places import lua_places
from tests.mutants.places import Place, python_places

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


def test_the_same_seed_gives_the_same_mutants() -> None:
    """And another one gives others; of each kind there are as many."""
    among = [place for place in trial.places() if place.path.startswith("ottoscaler/core/")]
    drawn = trial.drawn(among, 16, seed=7)
    assert drawn == trial.drawn(among, 16, seed=7)
    assert drawn != trial.drawn(among, 16, seed=8)
    assert {
        kind: sum(place.kind == kind for place in drawn) for kind in {place.kind for place in drawn}
    } == dict.fromkeys({place.kind for place in among}, 2)


def test_every_equivalent_mutant_has_a_reason() -> None:
    """Whether it can still happen is said by each run."""
    listed = trial.equivalents(trial.EQUIVALENT.read_text(encoding="utf-8"))
    assert listed
    assert all(len(why) > 20 for why in listed.values())


def test_the_list_of_equivalents_is_read_in_blocks() -> None:
    """Path, before, after, why."""
    text = "# a comment\n\na.py\n- x = 1\n+ x = 2\nIt is only a name.\n"
    assert trial.equivalents(text) == {("a.py", "x = 1", "x = 2"): "It is only a name."}
