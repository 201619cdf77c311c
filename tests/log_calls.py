"""The places in the code that write lines of the log, and the published schema of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import ottoscaler
from tests.schemas import LOG_FIELDS, schema

PACKAGE: Final = Path(ottoscaler.__file__).parent
#: Events that a call gets from a variable; each is written out elsewhere in the file.
BY_VARIABLE: Final = {
    "cli/run.py": {"redis.refused", "kubernetes.forbidden"},
    "cli/start_warnings.py": {"pids.advice", "config.unknown", "config.not_yet", "config.tenants_unused"},
    "flow/heartbeat.py": {"redis.back", "kubernetes.back"},
}
#: What the thread of a worker binds, so that no line of a worker or its task names it itself.
BOUND: Final = {"event_id", "task_id", "worker"}
_WRITES: Final = {f"_log.{level}" for level in ("debug", "info", "warning", "error", "exception")}
Call = tuple[str, ast.Call]


def _calls() -> Iterator[Call]:
    """Each place where a line is written, with its file: `_log.info(...)`, or `say(...)` where the level varies."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            words = ast.unparse(node.func)
            if words in _WRITES or (words == "say" and name == "flow/worker_log.py"):
                yield name, node


def event_of(call: ast.Call) -> str | None:
    """The event of the line, if it is written out there."""
    first = call.args[0]
    return first.value if isinstance(first, ast.Constant) else None


CALLS: Final = [(name, call) for name, call in _calls() if event_of(call) is not None]


def events() -> set[str]:
    """All that the code has."""
    return {str(event_of(call)) for _, call in CALLS}.union(*BY_VARIABLE.values())


def published_events() -> set[str]:
    """All that the schema has."""
    return set(schema("log")["properties"]["event"]["anyOf"][0]["enum"])


def missing_fields(call: ast.Call) -> set[str]:
    """What the schema requires of its event, and neither the call gives nor the thread of a worker, nor the exception
    that it is about.
    """
    event = str(event_of(call))
    given = {keyword.arg for keyword in call.keywords}
    if event.startswith(("worker.", "task.")):
        given |= BOUND
    if isinstance(call.func, ast.Attribute) and call.func.attr == "exception":
        given |= {"error", "traceback"}
    return set(LOG_FIELDS.get(event, ())) - given


def unknown_fields(call: ast.Call) -> set[str | None]:
    """What the schema does not describe."""
    return {keyword.arg for keyword in call.keywords} - schema("log")["properties"].keys()
