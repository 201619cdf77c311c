"""The line that sums up `make test`: nothing that failed, was skipped or ended early is left out of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.summary import summary

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

def test_good(): pass
def test_bad(): assert False
@pytest.mark.skip(reason="needs the program kind")
def test_skipped(): pass
@pytest.fixture
def broken(): raise OSError
def test_unprepared(broken): pass
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pytest reports of such tests."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "test_some.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--junitxml=one.xml"]
    done = subprocess.run([*command, "test_some.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    return folder


@pytest.mark.full
def test_all_that_happened_is_counted(reports: Path) -> None:
    """With the reason for what was left out."""
    line = summary(reports, 7, ["one"])
    assert line == "make test: 1 passed, 2 failed, 1 skipped (1 needs the program kind), in 7 s"


@pytest.mark.full
def test_a_suite_that_died_is_a_failure(reports: Path) -> None:
    """It has written no report, half of one, or one without tests."""
    (reports / "two.xml").write_text("<testsuites><testsuite>", encoding="utf-8")
    (reports / "three.xml").write_text("<testsuites><testsuite/></testsuites>", encoding="utf-8")
    line = summary(reports, 7, ["one", "two", "three", "four"])
    assert "1 passed, 5 failed, 1 skipped" in line
    assert line.endswith("no report of two, three, four, in 7 s")


@pytest.mark.full
def test_the_line_is_not_one_of_pytests(reports: Path) -> None:
    """.ci/run adds up the lines of pytest: it must not count this one too."""
    (pattern,) = re.findall(r"\^=\* \?\(.*?\) in \[0-9\.\]\+s", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert re.match(pattern, "=== 3 passed, 1 skipped in 0.1s ===")
    assert not re.match(pattern, summary(reports, 7, ["one"]))
