"""Figures out of noisy pairs: percentiles, medians, and how sure they are. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and the interval in which it lies with 95 % (of the bootstrap's samples)."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def estimate(values: Sequence[float], *, samples: int = 2000) -> Estimate:
    """The median of what was seen. The same values give the same interval."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(samples))
    low, high = medians[int(samples * 0.025)], medians[int(samples * 0.975)]
    return Estimate(statistics.median(values), low, high, len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value below or at which that share of all lies."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def growth(cost: dict[int, float]) -> dict[int, float]:
    """f(2N)/f(N), by N, of a cost per unit: 1 is linear in all."""
    return {size: cost[2 * size] / each for size, each in sorted(cost.items()) if 2 * size in cost}
