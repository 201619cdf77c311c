"""What the tests of the documents stand on: a little Markdown, the settings as the code has them, and a checkout in
which the README's commands can be run as they are written.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import redis

from ottoscaler import settings as settings_module
from ottoscaler import settings_log_handler, settings_traces, settings_worker
from ottoscaler.settings import Settings
from tests.fakes.wait import eventually

ROOT: Final = Path(__file__).resolve().parent.parent
README: Final = ROOT / "README.md"
REFERENCE: Final = ROOT / "deploy" / "REFERENCE.md"
GUARANTEES: Final = ROOT / "deploy" / "GUARANTEES.md"
DEVELOPMENT: Final = ROOT / "deploy" / "DEVELOPMENT.md"
SIZING: Final = ROOT / "deploy" / "SIZING.md"
PRODUCTION: Final = ROOT / "deploy" / "PRODUCTION.md"
LOGS: Final = ROOT / "deploy" / "LOGS.md"
METRICS: Final = ROOT / "deploy" / "METRICS.md"
TRACES: Final = ROOT / "deploy" / "TRACES.md"
TESTS: Final = ROOT / "tests" / "README.md"
HANDLER: Final = ROOT / "deploy" / "otto-handler" / "README.md"
#: Each has a Korean twin in deploy/.
ENGLISH: Final = (README, REFERENCE, GUARANTEES, DEVELOPMENT, SIZING, PRODUCTION, LOGS, METRICS, TRACES)


def korean(path: Path) -> Path:
    """The Korean text of a document."""
    return ROOT / "deploy" / f"{path.stem}.ko.md"


DOCUMENTS: Final = (*ENGLISH, *map(korean, ENGLISH), TESTS, HANDLER, HANDLER.with_name("README.ko.md"))
LONG_S: Final = 45
#: The modules that read settings.
_SETTINGS: Final = (settings_module, settings_worker, settings_log_handler, settings_traces)

Table = list[list[str]]


@dataclass(frozen=True, slots=True)
class Part:
    """What stands between two headings."""

    level: int
    heading: str
    text: str
    tables: list[Table]


def parts(path: Path) -> list[Part]:
    """The document, cut at its headings; fenced blocks are left out."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    _, *rest = re.split(r"^(#+) (.*)$", text, flags=re.MULTILINE)
    return [
        Part(len(marks), heading, body, _tables(body))
        for marks, heading, body in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    ]


def _tables(text: str) -> list[Table]:
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]


def fences(path: Path) -> list[tuple[str, str]]:
    """The fenced blocks: language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[str]:
    """Every line of every block of shell."""
    return [line for kind, text in fences(path) if kind == "sh" for line in text.splitlines() if line.strip()]


def table(head: str, path: Path = REFERENCE) -> Table:
    """The rows of a document's table with this first heading, or, if several have it, of all of them."""
    found = [each[2:] for part in parts(path) for each in part.tables if each[0][0] == head]
    assert found, f"{path.name} has no table headed {head!r}"
    return [row for rows in found for row in rows]


def codes(cell: str) -> list[str]:
    """What stands in code marks."""
    return re.findall(r"`([^`]+)`", cell)


def variables() -> dict[str, object]:
    """Variable -> default: each field of the settings begins its docstring with the variable's name."""
    loaded = Settings.load({}, "host-1", None)
    trees = [ast.parse(inspect.getsource(one)) for one in _SETTINGS]
    classes = {node.name: node.body for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    groups: dict[str, Any] = {type(each).__name__: each for each in (getattr(loaded, n) for n in loaded.__slots__)}
    found = {}
    for name, body in classes.items():
        for one, two in pairwise(body):
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(two, ast.Expr):
                word = re.match(r"[A-Z_0-9]+(?=[.:])", ast.literal_eval(two.value))
                if word:
                    found[word[0]] = getattr(groups.get(name, loaded), one.target.id)
    return found | {"ENV_FILE": None}


@dataclass(frozen=True, slots=True)
class Running:
    """The controller as the README starts it, and the servers that it works with."""

    checkout: Path
    environ: Mapping[str, str]
    log: Path
    client: redis.Redis

    def run(self, command: str) -> str:
        """Carry out a command as a person would; returns what it printed. redis-cli need not be installed."""
        if command.startswith("redis-cli "):
            return str(self.client.execute_command(*shlex.split(command)[1:]))
        command, where = without_make(command), self.checkout
        done = subprocess.run(
            command, shell=True, cwd=where, env=self.environ, capture_output=True, text=True, timeout=LONG_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def results(self, event_id: str, kind: str, count: int = 1) -> list[dict[str, str]]:
        """The results of an event, when there are so many."""

        def found() -> list[dict[str, str]]:
            entries = cast("list[tuple[str, dict[str, str]]]", self.client.xrange("otto:scale:results"))
            mine = [fields for _, fields in entries if (fields["event_id"], fields["kind"]) == (event_id, kind)]
            return mine if len(mine) >= count else []

        return eventually(found, LONG_S, f"{count} results of {event_id}")

    def lines(self) -> list[dict[str, Any]]:
        """The log of the controller; its last line may be half written."""
        text = self.log.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in text.splitlines()]


def without_make(command: str) -> str:
    """The command; where make is not installed (python:3.13-slim), what it would run in its place."""
    if shutil.which("make"):
        return command
    return re.sub(r"\bmake (run|demo|local)$", r".venv/bin/python ottoscaler.py \1", command)


def make_checkout(path: Path) -> Path:
    """The files of this one, beside a virtual environment that is one in name only: no test must change the real."""
    (path / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "deploy", "ottoscaler.py", "ottoscaler", "requirements.txt", "requirements-dev.txt"):
        (path / name).symlink_to(ROOT / name)
    python = path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    for stamp in ("runtime", "local", "dev"):
        (path / ".venv" / f".{stamp}-{sys.version_info[0]}.{sys.version_info[1]}").touch()
    return path
