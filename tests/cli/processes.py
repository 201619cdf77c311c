"""Which processes belong to a test, as ps reports them."""

from __future__ import annotations

import subprocess

#: `python ottoscaler.py run` itself, and not the guard beside it.
CONTROLLER = "ottoscaler.py run"
_GUARD = "ottoscaler.local.guard"


def below(pid: int) -> dict[int, str]:
    """All processes below one, and their command lines."""
    everything = _all()
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        each = todo.pop()
        children = {own: words for own, (parent, words) in everything.items() if parent == each}
        found |= children
        todo += children
    return found


def controller(pid: int) -> int:
    """The controller's process below another one; 0 if it is not there (yet)."""
    found = below(pid).items()
    return next((own for own, words in found if words.endswith(CONTROLLER) and _GUARD not in words), 0)


def left(family: dict[int, str]) -> list[str]:
    """Which of these processes are still there."""
    everything = _all()
    return [words for pid, words in family.items() if pid in everything and everything[pid][1] == words]


def using(text: str) -> list[str]:
    """The command lines of this machine in which a text occurs, such as a directory of the test's own."""
    return [words for _, words in _all().values() if text in words]


def _all() -> dict[int, tuple[int, str]]:
    command = ["ps", "-axww", "-o", "pid=,ppid=,command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = (line.split(maxsplit=2) for line in listing.splitlines())
    return {int(own): (int(parent), " ".join(words)) for own, parent, *words in lines}
