"""Which test noticed a patch the last time. It runs first and alone: two seconds instead of a whole suite.

`make mutants` keeps noticed_by.txt up to date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

LIST = Path(__file__).parent / "noticed_by.txt"
_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/[\w/]+\.py::\w+(?:::\w+)*)", re.MULTILINE)


def remembered() -> dict[str, str]:
    """Patch -> test, as the file has it."""
    return dict(line.split(" ", 1) for line in LIST.read_text(encoding="utf-8").splitlines() if line)


def remember(noticed: Mapping[str, str], patches: Iterable[str]) -> None:
    """Write the file again: only patches that are there, by name."""
    kept = {**remembered(), **noticed}
    lines = [f"{name} {kept[name]}\n" for name in sorted(patches) if name in kept]
    LIST.write_text("".join(lines), encoding="utf-8")


def first_failed(output: str) -> str:
    """The first test that failed in what pytest printed, without its parameters; empty if its summary names none."""
    found = _FAILED.search(output)
    return found[1] if found else ""
