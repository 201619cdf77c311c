"""`python -m tests.mutants [NAME…]`: apply each patch to a copy of the checkout and expect its tests to fail.
With `--random=COUNT --seed=NUMBER` changes made at random take the place of the patches: see trial.py.

A patch is a unified diff below two lines of its own: `Mistake:` what it gets wrong, `Tests:` which tests have to
notice. A patch that does not apply any more, and tests that cannot be run, are failures too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import trial
from tests.mutants.noticed_by import first_failed, remember, remembered
from tests.mutants.scratch import copy_to

HERE = Path(__file__).parent
TIMEOUT_S = 180
#: Mutants at once: their tests wait for servers about a third of the time.
AT_ONCE = (os.cpu_count() or 1) + 1
TESTS_FAILED = 1  # pytest's exit code; everything above it means that they did not run


@dataclass(frozen=True)
class Mutant:
    """One mistake."""

    name: str
    mistake: str
    tests: tuple[str, ...]
    patch: Path


def read(patch: Path) -> Mutant:
    """A mutant from its file. Raises KeyError if one of its two lines is missing."""
    head = dict(line.split(": ", 1) for line in patch.read_text(encoding="utf-8").splitlines()[:2] if ": " in line)
    return Mutant(patch.stem, head["Mistake"], tuple(head["Tests"].split()), patch)


@dataclass(frozen=True)
class Verdict:
    """What came of one mistake."""

    fault: str = ""
    """Empty if a test noticed it, otherwise what is wrong."""
    noticed_by: str = ""
    """The test that did, where its name is known."""


def verdict(mutant: Mutant, folder: Path, before: str = "") -> Verdict:
    """`folder` is for the copy. `before`: the test that noticed it the last time, which is tried first, alone."""
    copy_to(folder)
    applied = subprocess.run(
        ["git", "apply", str(mutant.patch)], cwd=folder, capture_output=True, text=True, check=False
    )
    if applied.returncode:
        return Verdict(f"the patch does not apply: {applied.stderr.strip()}")
    code, output = _pytest(folder, [before]) if before else (0, "")
    if code == TESTS_FAILED:
        return Verdict(noticed_by=before)
    code, output = _pytest(folder, mutant.tests)
    if code == TESTS_FAILED:
        return Verdict(noticed_by=first_failed(output))
    if code == 0:
        return Verdict("no test noticed it")
    return Verdict(f"its tests did not run (exit code {code}): {output[-500:]}")


def _pytest(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """The exit code and the output. A test that hangs is red: pytest-timeout is there for the ordinary case."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not e2e", *tests]
    variables = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=folder, env=variables, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return TESTS_FAILED, ""
    return run.returncode, run.stdout.decode(errors="replace")


def _try(mutant: Mutant, before: str) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        return verdict(mutant, Path(folder), before)


def main(names: list[str]) -> int:
    """Try the named mutants, or all. Returns 0 if every one was noticed."""
    begun = time.monotonic()
    patches = sorted(HERE.glob("*.patch"))
    mutants = [read(patch) for patch in patches if not names or patch.stem in names]
    before = remembered()
    noticed, faults = {}, {}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="mutant") as pool:
        tried = pool.map(lambda mutant: _try(mutant, before.get(mutant.name, "")), mutants)
        for mutant, found in zip(mutants, tried, strict=True):
            if found.fault:
                fault = " ".join(found.fault.split())  # .ci/run reads one line
                faults[mutant.name] = f"NOT NOTICED ({fault}): {mutant.name}: {mutant.mistake}"
            elif found.noticed_by:
                noticed[mutant.name] = found.noticed_by
            print(faults.get(mutant.name) or f"noticed: {mutant.name}: {mutant.mistake}", flush=True)
    remember(noticed, [patch.stem for patch in patches])
    for fault in faults.values():
        print(fault)  # once more, where a reader of a long output looks
    print(f"{len(mutants) - len(faults)} passed, {len(faults)} failed in {time.monotonic() - begun:.1f}s")
    return 1 if faults or not mutants else 0


def command(arguments: list[str]) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--random", type=int, metavar="COUNT", help="so many changes at random, and no patches")
    parser.add_argument("--seed", type=int, default=1, metavar="NUMBER", help="the same changes for the same number")
    parser.add_argument("--in", dest="within", default="", metavar="PATH,...", help="only in these files, or folders")
    parser.add_argument(
        "--suites", default="", metavar="PATH,...", help="only against these tests, which takes less time"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these patches; all, if there is none")
    given = parser.parse_args(arguments)
    if given.random:
        within, suites = ([path for path in text.split(",") if path] for text in (given.within, given.suites))
        return trial.run(given.random, given.seed, within, suites or trial.SUITES)
    return main(given.names)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
