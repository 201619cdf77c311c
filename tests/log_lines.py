"""All lines of the log that a test makes, checked by the published schema: beside whatever else becomes of them."""

from __future__ import annotations

import json
import logging
from types import TracebackType
from typing import Any, Final, Self

from ottoscaler import logs
from tests.schemas import log_faults, said_twice, schema

#: Fields of which the schema lists the values.
_BY_VALUE: Final = {"event"} | {name for name, rule in schema("log")["properties"].items() if "enum" in rule}


class CheckedLines(logging.Handler):
    """Keeps each line of ours, from DEBUG on, as a process with LOG_FORMAT=json writes it. Any thread."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs._Json({"instance": "ottoscaler", "consumer": "c1"}))
        self._package = logging.getLogger(logs.PACKAGE)
        self._level = self._package.level
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        self._package.addHandler(self)
        self._package.setLevel(logging.DEBUG)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._package.removeHandler(self)
        self._package.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line. It is formatted here, because the facts of `logs.bind` belong to this thread."""
        self._lines.append(self.format(record))

    def lines(self) -> list[dict[str, Any]]:
        """What was written so far."""
        return [json.loads(line) for line in list(self._lines)]

    def faults(self) -> list[tuple[dict[str, Any], list[str]]]:
        """The lines that are not as published, each with what is wrong with it. Of lines that are alike in all that the
        schema looks at, one is checked: ten thousand events have as many.
        """
        alike = {_looked_at(line): line for line in self.lines()}
        return [(line, found) for line in alike.values() if (found := line_faults(line))]


def _looked_at(line: dict[str, Any]) -> tuple[object, ...]:
    """Each field with its value where the schema has a list of those, and otherwise with its kind."""
    limited = [(name, value if name in _BY_VALUE else (type(value), _is_low(value))) for name, value in line.items()]
    return (*limited, said_twice(line))


def _is_low(value: object) -> bool:
    return isinstance(value, int | float) and value < 1


def line_faults(line: dict[str, Any]) -> list[str]:
    """What is wrong with a line: by the schema, and if its error is in its message as well."""
    return log_faults(line) + (["the message has the error, too"] if said_twice(line) else [])
