"""The table of promises: that it counts what is marked, and that no test names a promise which is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.promises import PROMISES, Promise, lines, promised, unmatched
from tests.readme import variables
from tests.rows import ALIASES, ROWS, SECTIONS, Coverage, report

ROOT = Path(__file__).resolve().parent.parent
#: A row that waits for a part of the program which is not there.
LATER = next(row for row in ROWS if row.later)
EXAMPLE = f"""
import pytest

pytestmark = pytest.mark.contract("1.run")


@pytest.mark.contract("3.type")
@pytest.mark.parametrize("number", [1, 2])
def test_two(number):
    raise AssertionError("only collected, never run")


@pytest.mark.e2e
@pytest.mark.contract("5.NothingToEnd")
def test_one():
    pass


@pytest.mark.contract("3.typo")
def test_typo():
    pass


@pytest.mark.contract("{LATER.name}")
def test_later():
    pass
"""


def rows(*paths: Path) -> subprocess.CompletedProcess[str]:
    """`python -m tests.rows` over these paths; one process each, for a pytest in a pytest shares its plugins' state."""
    command = [sys.executable, "-m", "tests.rows", *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The table of the example, made once: to collect it takes a process of its own."""
    path = tmp_path_factory.mktemp("example") / "test_example.py"
    path.write_text(EXAMPLE, encoding="utf-8")
    return rows(path)


def line(table: str, row: str) -> list[str]:
    """The words of a row of the table."""
    (found,) = (words for words in map(str.split, table.splitlines()) if words and words[0] == row)
    return found


@pytest.mark.full
def test_every_test_of_a_row_is_counted_and_named_once(done: subprocess.CompletedProcess[str]) -> None:
    """Those of parameters and of the whole file, and those that only e2e runs."""
    assert line(done.stdout, "1.run") == ["1.run", "5", "test_two,", "test_one,", "test_typo,", "and", "1", "more"]
    assert line(done.stdout, "3.type") == ["3.type", "2", "test_two"]
    assert line(done.stdout, "5.NothingToEnd") == ["5.NothingToEnd", "1", "test_one"]


@pytest.mark.full
def test_a_promise_without_a_test_is_a_failure(done: subprocess.CompletedProcess[str]) -> None:
    """It is named, once; what is left for later is not."""
    assert done.returncode == 1
    assert done.stderr.count("no test: 1.send:") == 1
    assert not [row.name for row in ROWS if row.later and f"no test: {row.name}:" in done.stderr]
    other = next(row for row in ROWS if row.later and row != LATER)
    assert " ".join(line(done.stdout, other.name)[1:]) == f"waits for {other.later}"


@pytest.mark.full
def test_a_marker_that_names_no_row_is_a_failure(done: subprocess.CompletedProcess[str]) -> None:
    """It is reported with the test that has it."""
    assert done.returncode == 1
    assert "no such row: 3.typo, in test_typo" in done.stderr


@pytest.mark.full
def test_a_test_of_a_later_row_asks_whether_it_holds_now(done: subprocess.CompletedProcess[str]) -> None:
    """Or the table would be out of date in silence."""
    assert " ".join(line(done.stdout, LATER.name)).endswith("(has 1 tests: does it hold now?)")


@pytest.mark.full
def test_a_suite_that_cannot_be_collected_is_a_failure(tmp_path: Path) -> None:
    """With pytest's own words."""
    path = tmp_path / "test_broken.py"
    path.write_text("import nowhere_at_all", encoding="utf-8")
    done = rows(path)
    assert done.returncode == 1
    assert "nowhere_at_all" in done.stderr


def test_no_marker_names_an_unknown_row() -> None:
    """In the whole suite, as far as a marker is a plain text; `make rows` collects the suite and sees the others."""
    known = {row.name for row in ROWS} | ALIASES.keys()
    found = {
        name: path.name
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__).resolve()
        for name in re.findall(r"\bcontract\(\"([^\"{}]+)\"\)", path.read_text(encoding="utf-8"))
    }
    assert len(found) > len(SECTIONS)
    assert {name: file for name, file in found.items() if name not in known} == {}


def test_every_line_of_the_guarantees_has_an_entry_and_tests() -> None:
    """In the order of README and of the page that goes on from there."""
    assert unmatched(promised(), PROMISES) == []
    assert [each.name for each in PROMISES if not each.tests] == []
    there = lines(promised())
    order = [next(n for n, line in enumerate(there) if line.startswith(each.beginning)) for each in PROMISES]
    assert order == sorted(order)


SECTION = """# x

[Elsewhere](README.md) is another text.

## A part

One is kept. Two is, too: `x`.
It goes on.

| what | happens |
|---|---|
| a | b |

- a point
  of two lines
- another
"""


def test_a_line_is_a_sentence_a_row_or_a_point() -> None:
    """Whatever the width of the text is."""
    assert lines(SECTION) == [
        "One is kept.",
        "Two is, too: `x`.",
        "It goes on.",
        "a | b",
        "a point of two lines",
        "another",
    ]


def test_a_line_without_an_entry_and_an_entry_without_a_line_are_failures() -> None:
    """Each is named; so are two entries of one line."""
    known = tuple(Promise(str(n), words, ("x",)) for n, words in enumerate(lines(SECTION)))
    assert unmatched(SECTION, known) == []
    (fault,) = unmatched(SECTION, known[1:])
    assert fault == "the line has no entries in tests/promises.py: One is kept."
    (fault,) = unmatched(SECTION, (*known, Promise("more", "Three", ("x",))))
    assert fault == "no line begins as 8.more says: Three"
    (fault,) = unmatched(SECTION, (*known, Promise("more", "It", ("x",))))
    assert "has 2 entries" in fault


def test_a_promised_test_that_is_gone_is_a_failure() -> None:
    """Renaming a test must not leave its line without one in silence."""
    coverage = Coverage()

    class Item:
        nodeid = f"{PROMISES[0].tests[0].partition('::')[0]}::test_renamed"

        def iter_markers(self, name: str) -> list[object]:
            return []

    coverage.pytest_collection_finish(cast(pytest.Session, SimpleNamespace(items=[Item()])))
    assert f"8.{PROMISES[0].name}: {PROMISES[0].tests[0]}" in coverage.gone


def test_a_complete_coverage_lacks_nothing() -> None:
    """Each row once; the table then has no gap."""
    coverage = Coverage({row.name: [f"tests/test_x.py::test_{number}[a]"] for number, row in enumerate(ROWS)})
    assert (coverage.missing(), coverage.unknown()) == ([], [])
    assert not any("NONE" in words for words in report(coverage))


def test_the_names_of_rows_are_unique_and_have_their_section() -> None:
    """And an alias leads to a row."""
    known = {row.name for row in ROWS}
    assert len(known) == len(ROWS)
    assert {row.name.partition(".")[0] for row in ROWS} == SECTIONS.keys()
    assert set(ALIASES.values()) <= known


def test_each_variable_is_a_row_that_holds_now() -> None:
    """Those that the program reads, and no others."""
    apart = {"environment", "redis", "probes", "cluster"}
    now = {row.name.removeprefix("2.") for row in ROWS if row.name.startswith("2.") and not row.later}
    assert now - apart == variables().keys()
