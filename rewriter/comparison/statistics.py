"""Means and paired differences over seeds, with intervals.

Verdicts are based on the t intervals. The bootstrap interval is shown beside them because it assumes no normal
distribution; with few seeds it is too narrow (with five seeds its coverage is about 83 %, not 95 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from rewriter.errors import ComparisonError

LEVEL = 0.95
"""Coverage probability of an interval, if its assumptions hold."""

_RESAMPLES = 10_000
_MOST_FLIPPED = 20
"""Sign flips are enumerated exactly for up to this many pairs: 2^20 sums of 8 bytes."""

_ROUNDING = 1e-6
"""Differences that vary by less than this fraction of the values count as equal: metrics are often float32."""


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``, in the unit of the values."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Mean:
    """The mean of ``count`` values and its 95 % t interval, which is None for a single value.

    ``range`` goes from the lowest to the highest value.
    """

    count: int
    mean: float
    interval: Interval | None
    range: Interval

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.interval is None else self.interval.half_width


@dataclass(frozen=True)
class Difference:
    """After − before over pairs.

    Attributes:
        differences: one per pair, in order.
        mean: of the differences.
        interval: 95 % t interval of the mean; None for one pair.
        bootstrap: 95 % percentile interval of the mean of 10 000 resamples of the pairs; None for one pair.
        p_value: exact two-sided p value of the mean under random sign flips of the differences; None for more than 20
            pairs.
        alike: whether the differences are equal up to rounding, so that their spread says nothing about other seeds.
    """

    differences: tuple[float, ...]
    mean: float
    interval: Interval | None
    bootstrap: Interval | None
    p_value: float | None
    alike: bool

    @property
    def count(self) -> int:
        """Number of pairs."""
        return len(self.differences)

    @property
    def zero(self) -> bool:
        """Whether every difference is exactly zero."""
        return not any(self.differences)

    @property
    def smallest_p_value(self) -> float:
        """The smallest p value that sign flips of this many pairs can give, with all differences of one sign."""
        return min(1.0, 2.0 ** (1 - self.count))


def mean_interval(values: Sequence[float]) -> Mean:
    """Return mean and 95 % t interval.

    Raises:
        ComparisonError: there are no values, or one is not finite.
    """
    if not values:
        raise ComparisonError("a mean needs at least one value, found none")
    if bad := [value for value in values if not math.isfinite(value)]:
        raise ComparisonError(f"a mean needs finite values, found {bad[0]}; leave out runs that were stopped")
    count, low, high = len(values), min(values), max(values)
    # rounding in the sum may move the mean of equal values away from them
    mean = min(max(fmean(values), low), high)
    interval = None
    if count > 1:
        from scipy.stats import t

        half_width = float(t.ppf((1 + LEVEL) / 2, count - 1)) * stdev(values) / math.sqrt(count)
        interval = Interval(mean - half_width, mean + half_width)
    return Mean(count, mean, interval, Interval(low, high))


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Difference:
    """Return after − before, with one value per seed in the same order.

    Raises:
        ComparisonError: the numbers of values differ, there are none, or one is not finite.
    """
    if len(before) != len(after):
        raise ComparisonError(f"pairs need as many values after as before, found {len(before)} and {len(after)}")
    differences = tuple(new - old for old, new in zip(before, after, strict=True))
    found = mean_interval(differences)
    bootstrap = p_value = None
    if len(differences) > 1:
        from scipy import stats

        ends = stats.bootstrap(
            (differences,), np.mean, n_resamples=_RESAMPLES, method="percentile", confidence_level=LEVEL,
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        bootstrap = Interval(float(ends.low), float(ends.high))
    if len(differences) <= _MOST_FLIPPED:  # scipy.stats.permutation_test gives the same, in ten seconds for 20 pairs
        sums = np.zeros(1)
        for value in differences:
            sums = np.concatenate([sums + value, sums - value])
        rounding = 1e-9 * sum(map(abs, differences))
        p_value = float(np.mean(np.abs(sums) >= abs(math.fsum(differences)) - rounding))
    width, largest = found.range.high - found.range.low, max(map(abs, (*before, *after)))
    return Difference(differences, found.mean, found.interval, bootstrap, p_value, width <= _ROUNDING * largest)


def discordance_p_value(only_before: int, only_after: int) -> float:
    """Return McNemar's exact two-sided p value, from the counts of images that only one of the models gets right."""
    from scipy.stats import binomtest

    discordant = only_before + only_after
    return float(binomtest(only_before, discordant).pvalue) if discordant else 1.0
