"""What `doctor` reports: findings, from the worst to what is well, and the rules about time and access.

A finding has a stable code, `<area>.<thing>`, and one sentence that names the thing, what was found and what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: Above this the ages, `not_after` and the leases of a take-over are visibly wrong, seconds. The API server gives its
#: time in whole seconds.
MAX_SKEW_S: Final = 5.0


class Severity(StrEnum):
    """How bad it is, the worst first. UNKNOWN: we have no permission to look, or there is nothing to look at."""

    BROKEN = "broken"
    WARNING = "warning"
    UNKNOWN = "unknown"
    OK = "ok"


_ORDER: Final = {severity: place for place, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: the check's code, and a sentence without a full stop."""

    code: str
    severity: Severity
    text: str

    @property
    def is_trouble(self) -> bool:
        """Whether there is something to mend."""
        return self.severity in (Severity.BROKEN, Severity.WARNING)


def broken(code: str, text: str) -> Finding:
    """It does not work."""
    return Finding(code, Severity.BROKEN, text)


def warning(code: str, text: str) -> Finding:
    """It works, and will hurt."""
    return Finding(code, Severity.WARNING, text)


def unknown(code: str, text: str) -> Finding:
    """It could not be checked."""
    return Finding(code, Severity.UNKNOWN, text)


def fine(code: str, text: str) -> Finding:
    """It is well."""
    return Finding(code, Severity.OK, text)


def worst_first(findings: Iterable[Finding]) -> Sequence[Finding]:
    """In the order of their severity; within one, as they were found."""
    return sorted(findings, key=lambda finding: _ORDER[finding.severity])


def tally(findings: Iterable[Finding]) -> Mapping[Severity, int]:
    """How many there are of each severity, all of them named."""
    counts = Counter(finding.severity for finding in findings)
    return {severity: counts[severity] for severity in Severity}


def clock_finding(ahead: Mapping[str, float]) -> Finding:
    """How far the clocks of these servers are ahead of ours, seconds: the worst of them decides."""
    if not ahead:
        return unknown("clock.skew", "No server gave its time, so the clocks are not compared")
    name, seconds = max(ahead.items(), key=lambda item: abs(item[1]))
    if abs(seconds) <= MAX_SKEW_S:
        return fine("clock.skew", f"The clocks of {', '.join(ahead)} and of this machine agree")
    side = "ahead of" if seconds > 0 else "behind"
    return warning(
        "clock.skew",
        f"The clock of {name} is {abs(seconds):.0f} s {side} this machine's, so ages and not_after are off by as much: "
        "let NTP set both clocks",
    )
