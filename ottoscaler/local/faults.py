"""Faults that tests inject: errors, delays and lost replies, by method and path.

``POST /_emulator/faults`` takes a JSON list of rules and replaces the ones there; ``[]`` clears them; GET shows what
is left. A rule is {"method": "POST", "path_regex": "/pods$", "times": 2, and one of "status": 429, "delay_s": 1.5,
"drop_reply": true}; with a status also "retry_after" (seconds), "message" and "reason". A dropped reply is lost after
the request was carried out.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import asdict, dataclass

from ottoscaler.local.objects import ApiError


@dataclass(frozen=True, slots=True)
class FaultRule:
    """One rule; the default matches every request once and does nothing."""

    method: str = ""
    path_regex: str = ""
    times: int = 1
    status: int = 0
    delay_s: float = 0.0
    drop_reply: bool = False
    retry_after: int | None = None
    message: str = "injected fault"
    reason: str | None = None

    def error(self) -> ApiError | None:
        """The error to answer with, if this rule gives one."""
        if not self.status:
            return None
        return ApiError(self.status, self.message, reason=self.reason, retry_after=self.retry_after)


class FaultRules:
    """The rules in force. Every method may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[FaultRule] = []
        self._left: list[int] = []

    def replace(self, body: bytes) -> None:
        """Take the rules in ``body``. Raises ApiError 400."""
        try:
            rules = [FaultRule(**rule) for rule in json.loads(body)]
            for rule in rules:
                re.compile(rule.path_regex)
        except (ValueError, TypeError, re.error) as error:
            raise ApiError(400, f"faults: {error}") from None
        with self._lock:
            self._rules, self._left = rules, [rule.times for rule in rules]

    def describe(self) -> bytes:
        """The rules as JSON, with the number of times that each still has."""
        with self._lock:
            return json.dumps(
                [{**asdict(rule), "times": left} for rule, left in zip(self._rules, self._left, strict=True)]
            ).encode()

    def take(self, method: str, target: str) -> FaultRule | None:
        """The first rule for this request (path with query), used up by one; or None."""
        with self._lock:
            for index, rule in enumerate(self._rules):
                if self._left[index] > 0 and rule.method in ("", method) and re.search(rule.path_regex, target):
                    self._left[index] -= 1
                    return rule
        return None
