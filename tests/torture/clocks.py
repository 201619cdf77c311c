"""Clocks that are wrong, and that are set while everything runs: the node's, the API server's and each controller's.

Redis keeps the time of this machine, and all other clocks are set against it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Final

from tests.torture.kubelet import Kubelet
from tests.torture.slots import Slot
from tests.torture.strangers import Strangers

#: A wrong clock is wrong by one of these, seconds.
SHIFTS: Final = (-4200, -1, 0, 1, 4200)


class Clocks:
    """Sets them. One thread."""

    def __init__(self, kubelet: Kubelet, strangers: Strangers, slots: Sequence[Slot], dice: random.Random) -> None:
        self._setters = [
            lambda seconds: setattr(kubelet, "shift_s", float(seconds)),
            strangers.shift,
            *(slot.shift for slot in slots),
        ]
        self._dice = dice
        self._next_at = 0.0
        self.steps = 0
        """How often a clock was set."""

    def tick(self, wanted: float) -> None:
        """Set one if that was done less than `wanted` times."""
        now = time.monotonic()
        if self.steps < int(wanted) and now >= self._next_at:
            self._next_at = now + self._dice.uniform(0.3, 2.0)
            self._dice.choice(self._setters)(self._dice.choice(SHIFTS))
            self.steps += 1

    def clear(self) -> None:
        """All are right from now on, which is one more step for those that were not."""
        for setter in self._setters:
            setter(0)
