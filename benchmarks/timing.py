"""How the benchmarks take their times: pairs in one process, medians, ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pairs:
    """Seconds of two ways to do one thing, taken turn about, so that a busy moment hits both."""

    slow: list[float]
    fast: list[float]

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Least, median and greatest ratio of slow to fast over the pairs."""
        ratios = sorted(a / b for a, b in zip(self.slow, self.fast, strict=True))
        return ratios[0], statistics.median(ratios), ratios[-1]

    def __str__(self) -> str:
        low, middle, high = self.ratio
        return (
            f"{statistics.median(self.slow):.3g} s | {statistics.median(self.fast):.3g} s | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}, {len(self.slow)} pairs)"
        )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs(slow: Callable[[], object], fast: Callable[[], object], count: int) -> Pairs:
    """Time both ``count`` times, in turn, after one run of each that does not count."""
    slow(), fast()
    taken = [(seconds(slow), seconds(fast)) for _ in range(count)]
    return Pairs(*map(list, zip(*taken, strict=True)))
