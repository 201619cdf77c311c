"""How many Kubernetes Events are written about one object, and which of them is one that is there already.

The same as the event recorder of client-go does it (https://pkg.go.dev/k8s.io/client-go/tools/record): what happens
again to the same object for the same reason raises the count of the first Event, and each object has a budget, 25 at
once and one more every five minutes, so that no object can fill the API server's store.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

#: What may be written about one object at once.
BURST: Final = 25
#: How long an object's budget takes to get one more, seconds.
REFILL_S: Final = 300.0
#: Objects, and series, that are remembered: those of the longest ago go first.
MAX_REMEMBERED: Final = 4096


class Series(msgspec.Struct):
    """What has happened to one object for one reason. `name`: of the Event that says so; empty while there is none."""

    count: int = 0
    name: str = ""


class _Budget(msgspec.Struct):
    left: float
    at: float


class EventSeries:
    """The series and the budgets of one process. Belongs to one thread."""

    def __init__(self) -> None:
        self._series: OrderedDict[tuple[str, str], Series] = OrderedDict()
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()

    def add(self, uid: str, reason: str, times: int) -> Series:
        """It has happened to the object with this UID that many times more. What is not written counts, too."""
        series = self._series.setdefault((uid, reason), Series())
        series.count += times
        self._series.move_to_end((uid, reason))
        if len(self._series) > MAX_REMEMBERED:
            self._series.popitem(last=False)
        return series

    def take(self, uid: str, now: float) -> bool:
        """Whether one more may be written about this object; `now`: monotonic, seconds. What may be is used up."""
        budget = self._budgets.setdefault(uid, _Budget(BURST, now))
        self._budgets.move_to_end(uid)
        if len(self._budgets) > MAX_REMEMBERED:
            self._budgets.popitem(last=False)
        budget.left = min(BURST, budget.left + (now - budget.at) / REFILL_S)
        budget.at = now
        if budget.left < 1:
            return False
        budget.left -= 1
        return True
