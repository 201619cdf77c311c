"""`python -m tests.bytecode FOLDER`: begin a folder for bytecode (PYTHONPYCACHEPREFIX) with that of what is installed.

Python looks for bytecode only in that folder once it is set. Without this each suite would compile the standard library
and the installed packages again.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def environ() -> dict[str, str]:
    """What a process needs of our environment when a test sets all the rest: PATH, and where bytecode is kept."""
    names = ("PATH", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")
    return {name: os.environ[name] for name in names if name in os.environ}


def installed() -> set[str]:
    """Where this Python keeps the standard library and the installed packages."""
    return {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}


def link(roots: Iterable[str], prefix: str) -> int:
    """Link all bytecode below `roots` to where Python looks for it with that prefix. Returns how many were linked.

    What is there already stays. Python replaces an outdated file and never writes into it, so the original stays as it
    is. The links are symbolic: who changes owner or mode of the checkout changes nothing of the installation.
    """
    count = 0
    for root in roots:
        for folder, _, files in os.walk(root):
            if os.path.basename(folder) != "__pycache__":
                continue
            target = Path(prefix + os.path.abspath(os.path.dirname(folder)))
            target.mkdir(parents=True, exist_ok=True)
            for name in files:
                with suppress(OSError):
                    os.symlink(os.path.abspath(os.path.join(folder, name)), target / name)
                    count += 1
    return count


if __name__ == "__main__":
    link(installed(), os.path.abspath(sys.argv[1]))
