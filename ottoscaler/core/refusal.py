"""Why an event is refused: the stable codes, and the exception that carries a sentence out of the checks."""

from __future__ import annotations

import json
from enum import StrEnum


class DeadReason(StrEnum):
    """Why an event is a dead letter: a stable code."""

    INVALID = "Invalid"
    TOO_LARGE = "TooLarge"
    UNSUPPORTED = "Unsupported"
    NOT_ALLOWED = "NotAllowed"
    CONFLICT = "Conflict"
    TOO_OLD = "TooOld"
    TRIMMED = "Trimmed"
    POISON = "Poison"


class Violation(Exception):
    """A rule is broken. Only the modules that check events raise it, and `events.parse` catches it."""

    def __init__(self, detail: str, reason: DeadReason = DeadReason.INVALID) -> None:
        super().__init__(detail)
        self.reason = reason


def shortened(text: str) -> str:
    """A value for a message: quoted, on one line, cut."""
    return json.dumps(text if len(text) <= 80 else text[:80] + "…", ensure_ascii=True)
