"""`python -m tests.mutants [NAME…]`: apply each patch to a copy of the checkout and expect its tests to fail.

A patch is a unified diff below two lines of its own: `Mistake:` what it gets wrong, `Tests:` which tests have to
notice. A patch that does not apply any more, and tests that cannot be run, are failures too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COPIED = ("ottoscaler", "ottoscaler.py", "tests", "pyproject.toml")
TIMEOUT_S = 180
TESTS_FAILED = 1  # pytest's exit code; everything above it means that they did not run
_NO_LITTER = shutil.ignore_patterns("__pycache__", "*.pyc")


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
    """Empty if the tests noticed the mistake, else what is wrong. `folder` is for the copy."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=_NO_LITTER)
        else:
            shutil.copy(source, folder / name)
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


def main(names: list[str]) -> int:
    """Try the named mutants, or all. Returns 0 if every one was noticed."""
    patches = sorted(HERE.glob("*.patch"))
    chosen = [patch for patch in patches if not names or patch.stem in names]
    failed = 0
    for mutant in map(read, chosen):
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            fault = verdict(mutant, Path(folder))
        failed += bool(fault)
        told = f"NOT NOTICED ({fault})" if fault else "noticed"
        print(f"{told}: {mutant.name}: {mutant.mistake}", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
