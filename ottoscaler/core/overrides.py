"""The fields of one event that replace the configuration for its workers.

Without a policy only some of them are allowed (WITHOUT_POLICY). What was allowed is stored with the event, so that a
task keeps what it was accepted with, whatever the limits are later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from ottoscaler.core.refusal import DeadReason, Fault, short

#: Fields that change the workers of one event.
OVERRIDES: Final = frozenset(
    {
        *("image", "command", "args", "env", "cpu", "memory", "profile"),
        *("deadline_s", "retries", "priority", "not_after", "keep_failed_s"),
    }
)
#: Those of them that need no policy.
WITHOUT_POLICY: Final = frozenset({"deadline_s", "retries"})

#: The longest deadline where WORKER_DEADLINE_S sets none, seconds: 30 days.
MAX_DEADLINE_S: Final = 30 * 86_400
MAX_RETRIES: Final = 10
MAX_PRIORITY: Final = 9
#: The priority of an event that sets none.
PRIORITY: Final = 5
#: The longest time that failed pods are kept, seconds: 7 days.
MAX_KEEP_FAILED_S: Final = 7 * 86_400

_WHOLE: Final = re.compile(r"[0-9]{1,9}")
#: RFC 3339, section 5.6, without leap seconds.
RFC_3339: Final = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


class Rules(msgspec.Struct, frozen=True):
    """What events may override. `max_deadline_s` is WORKER_DEADLINE_S; 0: it sets no limit."""

    max_deadline_s: int = 0


#: No rule of the configuration's: for what only reads an event.
NO_RULES: Final = Rules()


class Overrides(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an event overrides. `asked`: the fields as they were sent. All others are what workers get; where one is not
    set, the configuration holds.

    `deadline_s`: longest run of one attempt, seconds; 0: not set. `retries`: further attempts after the worker's own
    failures; None: not set. `priority`: 0 to 9. `not_after`: no worker starts later, seconds since the epoch; None: not
    set. `keep_failed_s`: how long failed pods are kept, seconds; None: not set.
    """

    asked: dict[str, str] = {}
    deadline_s: int = 0
    retries: int | None = None
    priority: int = PRIORITY
    not_after: float | None = None
    keep_failed_s: int | None = None


#: An event overrides nothing.
NOTHING: Final = Overrides()


def overrides_of(texts: Mapping[str, str], rules: Rules) -> Overrides:
    """What these fields override; other fields are not looked at. Raises Fault if one of them is not allowed."""
    asked = {name: texts[name] for name in sorted(OVERRIDES & texts.keys())}
    if not asked:
        return NOTHING
    for name in asked:
        if name not in WITHOUT_POLICY:
            raise Fault(f"field {name}: overrides are not supported yet; remove it", DeadReason.UNSUPPORTED)
    return Overrides(asked=asked, **read(asked, rules))


def read(asked: Mapping[str, str], rules: Rules) -> dict[str, Any]:
    """The values of those of these fields that are numbers or times. Raises Fault."""
    values: dict[str, Any] = {}
    if "deadline_s" in asked:
        values["deadline_s"] = _deadline_s(asked["deadline_s"], rules)
    if "retries" in asked:
        values["retries"] = _whole("retries", asked["retries"], 0, MAX_RETRIES)
    if "priority" in asked:
        values["priority"] = _whole("priority", asked["priority"], 0, MAX_PRIORITY)
    if "not_after" in asked:
        values["not_after"] = _time("not_after", asked["not_after"])
    if "keep_failed_s" in asked:
        values["keep_failed_s"] = _whole("keep_failed_s", asked["keep_failed_s"], 0, MAX_KEEP_FAILED_S)
    return values


def _deadline_s(text: str, rules: Rules) -> int:
    if rules.max_deadline_s:
        return _whole("deadline_s", text, 1, rules.max_deadline_s, " (WORKER_DEADLINE_S)")
    return _whole("deadline_s", text, 1, MAX_DEADLINE_S)


def _whole(name: str, text: str, least: int, most: int, source: str = "") -> int:
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise Fault(f"field {name} is {short(text)}; a whole number from {least} to {most} is expected{source}")
    return int(text)


def _time(name: str, text: str) -> float:
    try:
        if RFC_3339.fullmatch(text):
            return datetime.fromisoformat(_microseconds(text.upper())).timestamp()
    except (ValueError, OverflowError):  # a day that its month does not have, the year 0
        pass
    raise Fault(f"field {name} is {short(text)}; a time like 2030-01-31T12:00:00Z is expected (RFC 3339)")


def _microseconds(text: str) -> str:
    """The same time with at most six digits of a second."""
    return re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text)
