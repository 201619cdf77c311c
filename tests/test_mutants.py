"""Mutants are patches, and patches break when code moves: here it is seen at once, and not only by `make mutants`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.mutants import noticed_by
from tests.mutants.__main__ import HERE, read
from tests.mutants.scratch import ROOT

#: The mistakes that this program must never make without a test that notices.
WANTED = {
    "absence-believed-from-a-list",
    "ack-without-storing",
    "attempt-not-stored-before-create",
    "capacity-from-a-counter",
    "terminated-pod-deleted-unseen",
    "no-list-after-410",
    "no-owner-check-in-record",
    "no-read-time-out",
    "own-pending-list-not-read",
    "owner-without-tenure",
    "random-names",
    "record-after-delete",
    "renewal-by-anybody",
    "result-and-close-in-two-steps",
    "take-over-after-a-pause",
    "unclear-create-repeated",
}
PATCHES = sorted(HERE.glob("*.patch"))


def applies(patch: Path) -> str:
    """What git has against it; empty if it applies."""
    # outside of a repository (an unpacked archive) `git apply` takes the paths as they are, too
    checked = subprocess.run(
        [require("git"), "apply", "--check", str(patch)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return checked.stderr if checked.returncode else ""


def test_each_mistake_that_matters_is_there() -> None:
    """None is dropped when its patch is a nuisance."""
    assert {patch.stem for patch in PATCHES} >= WANTED


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_it_applies_and_its_tests_are_there(patch: Path) -> None:
    """Otherwise it is to be brought up to date, in the same commit as the code that it is about."""
    assert applies(patch) == ""
    tests = read(patch).tests
    assert all((ROOT / test).exists() for test in tests)
    assert noticed_by.remembered().get(patch.stem, tests[0]).startswith(tests)


def test_a_patch_that_does_not_apply_is_noticed(tmp_path: Path) -> None:
    """A context that is not there is not overlooked."""
    stale = tmp_path / "stale.patch"
    stale.write_text(PATCHES[0].read_text().replace("\n-", "\n-not there "))
    assert applies(stale) != ""


@pytest.mark.parametrize(
    ("output", "test"),
    [
        ("FAILED tests/core/test_x.py::test_a - assert 1 == 2\n", "tests/core/test_x.py::test_a"),
        ("..F\nFAILED tests/core/test_x.py::test_a[with a - b]\n", "tests/core/test_x.py::test_a"),
        ("FAILED tests/a.py::TestIt::test_b - x\nFAILED tests/b.py::test_c - y\n", "tests/a.py::TestIt::test_b"),
        ("ERROR tests/a.py::test_b - OSError\n", "tests/a.py::test_b"),
        ("ERROR tests/a.py - SyntaxError\n", ""),
        ("a FAILED tests/a.py::test_b\n1 failed in 2.00s\n", ""),
        ("", ""),
    ],
)
def test_the_test_that_noticed_is_read_from_what_pytest_prints(output: str, test: str) -> None:
    """The first one, with all its parameters."""
    assert noticed_by.first_failed(output) == test


def test_what_noticed_is_remembered_for_patches_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer test takes the place of an older one; a patch that is gone goes from the file, too."""
    (tmp_path / "list.txt").write_text("a tests/a.py::test_1\nb tests/b.py::test_2\ngone tests/c.py::test_3\n")
    monkeypatch.setattr(noticed_by, "LIST", tmp_path / "list.txt")
    noticed_by.remember({"b": "tests/b.py::test_new", "c": "tests/c.py::test_4"}, ["c", "b", "a", "d"])
    assert noticed_by.remembered() == {
        "a": "tests/a.py::test_1", "b": "tests/b.py::test_new", "c": "tests/c.py::test_4",
    }  # fmt: skip
