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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import trial
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


def verdict(mutant: Mutant, folder: Path) -> str:
    """Empty if the tests noticed the mistake, otherwise what is wrong. `folder` is for the copy."""
    copy_to(folder)
    applied = subprocess.run(
        ["git", "apply", str(mutant.patch)], cwd=folder, capture_output=True, text=True, check=False
    )
    if applied.returncode:
        return f"the patch does not apply: {applied.stderr.strip()}"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not e2e", *mutant.tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return ""  # a test that hangs is red: pytest-timeout is there for the ordinary case
    if run.returncode == TESTS_FAILED:
        return ""
    if run.returncode == 0:
        return "no test noticed it"
    return f"its tests did not run (exit code {run.returncode}): {run.stdout.decode()[-500:]}"


def _try(mutant: Mutant) -> str:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        return verdict(mutant, Path(folder))


def main(names: list[str]) -> int:
    """Try the named mutants, or all. Returns 0 if every one was noticed."""
    patches = sorted(HERE.glob("*.patch"))
    chosen = [patch for patch in patches if not names or patch.stem in names]
    failed = 0
    mutants = [read(patch) for patch in chosen]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="mutant") as pool:
        for mutant, fault in zip(mutants, pool.map(_try, mutants), strict=True):
            failed += bool(fault)
            answer = f"NOT NOTICED ({fault})" if fault else "noticed"
            print(f"{answer}: {mutant.name}: {mutant.mistake}", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed or not chosen else 0


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
