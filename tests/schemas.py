"""The published JSON Schemas, with their content keywords as assertions: what an entry of a stream has to look like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

FOLDER: Final = Path(__file__).resolve().parent.parent / "deploy" / "schemas"


def _content(validator: Any, schema: Any, instance: object, parent: Mapping[str, Any]) -> Iterator[ValidationError]:
    """`contentSchema` says what the JSON inside a string is; the standard leaves it to readers to check that."""
    if not isinstance(instance, str) or not instance:
        return
    try:
        inside = json.loads(instance, parse_constant=_refuse)
    except ValueError as error:
        yield ValidationError(f"{parent.get('contentMediaType')} is expected: {error}")
        return
    yield from validator.descend(inside, schema)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_Checking: Final = extend(Draft202012Validator, {"contentSchema": _content})


def schema(name: str) -> dict[str, Any]:
    """A published schema, by the first part of its file's name."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    return found


_VALIDATORS: Final = {
    name: _Checking(schema(name)) for name in ("event", "result", "dead_letter", "policy", "explain", "log", "status")
}


def faults(name: str, entry: Mapping[str, Any]) -> list[str]:
    """What of an entry is not as the schema says: one line each; none for a valid one."""
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in _VALIDATORS[name].iter_errors(entry)]


#: Event of a log line -> the fields that each such line has, beside those of all.
LOG_FIELDS: Final[Mapping[str, Sequence[str]]] = {
    rule["if"]["properties"]["event"]["const"]: rule["then"]["required"] for rule in schema("log")["allOf"]
}
#: The same schema without the rules of all other events: a whole run has thousands of lines.
_LINE: Final = {key: rule for key, rule in schema("log").items() if key not in ("allOf", "examples")}
_LINES: Final[dict[str, Any]] = {}


def log_faults(line: Mapping[str, Any]) -> list[str]:
    """What of a line of the log is not as its schema says, and each field of it that the schema does not have."""
    event = str(line.get("event"))
    if event not in _LINES:
        _LINES[event] = _Checking({**_LINE, "required": [*_LINE["required"], *LOG_FIELDS.get(event, ())]})
    found = [f"{'/'.join(map(str, error.path))}: {error.message}" for error in _LINES[event].iter_errors(line)]
    return found + [f"{name}: not in the schema" for name in line if name not in _LINE["properties"]]


def said_twice(line: Mapping[str, Any]) -> bool:
    """Is the error of a line in its message, too?"""
    error = line.get("error")
    return isinstance(error, str) and len(error) > 3 and error in str(line.get("message"))
