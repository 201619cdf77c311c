"""deploy/schemas/log.schema.json and the lines in the code say the same: each event is in it, and each line of an event
has the fields that the schema requires, whichever way the program took to it.
"""

from __future__ import annotations

import ast
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator

from ottoscaler import logs
from tests.log_calls import (
    BY_VARIABLE,
    CALLS,
    PACKAGE,
    Call,
    event_of,
    events,
    missing_fields,
    published_events,
    unknown_fields,
)
from tests.schemas import log_faults, said_twice, schema


def test_the_events_are_those_of_the_code() -> None:
    """All, and no others; so that an event that is new is described."""
    assert published_events() == events()


@pytest.mark.parametrize("name", BY_VARIABLE)
def test_the_events_by_variable_are_there(name: str) -> None:
    """As they are listed above."""
    text = (PACKAGE / name).read_text(encoding="utf-8")
    assert [event for event in BY_VARIABLE[name] if f'"{event}"' not in text] == []


@pytest.mark.parametrize("call", CALLS, ids=lambda one: f"{event_of(one[1])}-{one[0]}")
def test_a_line_has_the_fields_of_itsevent_of(call: Call) -> None:
    """By its own words, or bound to its thread, or from the exception that it is about."""
    assert missing_fields(call[1]) == set()


@pytest.mark.parametrize("call", CALLS, ids=lambda one: f"{event_of(one[1])}-{one[0]}")
def test_no_field_is_unknown(call: Call) -> None:
    """Each that a line has is described."""
    assert unknown_fields(call[1]) == set()


@pytest.mark.parametrize("call", CALLS, ids=lambda one: f"{event_of(one[1])}-{one[0]}")
def test_an_error_is_in_its_field_and_not_in_the_message(call: Call) -> None:
    """Said twice, it makes a line twice as long, and a count of its words wrong."""
    errors = {"error", "outage", "refusal"}
    named = [ast.unparse(argument) for argument in call[1].args[1:]]
    facts = {keyword.arg for keyword in call[1].keywords}
    assert errors & set(named) == set()
    assert not ("error" in facts and any(f"str({name})" in argument for name in errors for argument in named))


EXAMPLES: Final[list[dict[str, Any]]] = schema("log")["examples"]
ALL: Final = Draft202012Validator(schema("log"))


@pytest.mark.parametrize("line", EXAMPLES, ids=lambda line: line["event"])
def test_the_check_of_a_line_is_that_of_the_whole_schema(line: dict[str, Any]) -> None:
    """Whatever is taken away from it, or of another kind."""
    changed = [{name: value for name, value in line.items() if name != left_out} for left_out in line]
    changed += [{**line, name: []} for name in line]
    assert [one for one in [line, *changed] if bool(log_faults(one)) == ALL.is_valid(one)] == []


@pytest.mark.parametrize("line", EXAMPLES, ids=lambda line: line["event"])
def test_what_is_wrong_is_found(line: dict[str, Any]) -> None:
    """A field that is not described, and an error that the message has as well."""
    assert log_faults(line) == []
    assert log_faults({**line, "surprise": 1}) == ["surprise: not in the schema"]
    assert not said_twice(line)
    assert said_twice({**line, "error": "away", "message": "Cannot look: away"})


def test_the_fields_of_all_lines_are_required() -> None:
    """Time, level, event, message, and which process wrote it."""
    assert schema("log")["required"] == [*logs._HEAD, "instance", "consumer"]
