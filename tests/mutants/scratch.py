"""Copies of the checkout in which something may be broken."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("ottoscaler", "ottoscaler.py", "tests", "pyproject.toml", "deploy", "Makefile", "requirements.txt")
_NO_LITTER = shutil.ignore_patterns("__pycache__", "*.pyc")


@contextmanager
def scratch() -> Iterator[Path]:
    """A copy in a folder of its own, removed in the end."""
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as folder:
        copy_to(Path(folder))
        yield Path(folder).resolve()


def copy_to(folder: Path) -> None:
    """What the fast suites need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=_NO_LITTER)
        else:
            shutil.copy(source, folder / name)


def environment(folder: Path) -> dict[str, str]:
    """The variables under which tests of a copy run."""
    return {**os.environ, "PYTHONPATH": str(folder), "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / ".hypothesis")}


def files() -> list[str]:
    """The paths of all files that are copied, relative to the checkout."""
    return [
        str(path.relative_to(ROOT))
        for name in COPIED
        for path in ([ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*")))
        if path.is_file() and "__pycache__" not in path.parts
    ]
