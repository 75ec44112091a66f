"""How numbers of a comparison are formatted: their unit, and the number of digits.

A metric is shown in percent, and its differences in percentage points, if all its values lie in [0, 1] and its name
does not call it a loss; any other is shown as a plain number. The digits follow the half-width of the interval, by the
rule of the Particle Data Group: two significant digits of it below 3.55, else one. Digits are added if a difference
would otherwise be shown as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rewriter.comparison.statistics import Interval, Mean

_MOST_DECIMALS = 6


@dataclass(frozen=True)
class Unit:
    """The unit of the metric of this name; ``percent`` if it is a fraction, shown in percent."""

    metric: str
    percent: bool

    @classmethod
    def of(cls, metric: str, values: Iterable[float]) -> Unit:
        """Return the unit of ``metric``, which takes these ``values``; those that are not finite are ignored."""
        fractions = all(0 <= value <= 1 for value in values if math.isfinite(value))
        return cls(metric, fractions and "loss" not in metric.lower())

    @property
    def label(self) -> str:
        """For a heading or an axis: ``top1, %``."""
        return f"{self.metric}, %" if self.percent else self.metric

    @property
    def difference_label(self) -> str:
        """For a heading or an axis: ``points of top1``."""
        return f"points of {self.metric}" if self.percent else self.metric

    def scaled(self, value: float) -> float:
        """Return the number to show."""
        return 100 * value if self.percent else value

    def decimals(self, half_width: float | None, visible: Iterable[float] = ()) -> int:
        """Return how many decimals suit an interval of this half-width, showing no nonzero ``visible`` as zero."""
        decimals = 2 if self.percent else 4
        if half_width:  # two significant digits of a half-width below 3.55, 35.5, …, else one
            shown = self.scaled(half_width)
            exponent = math.floor(math.log10(shown))
            decimals = (1 if shown / 10.0**exponent < 3.55 else 0) - exponent
        decimals = max(1 if self.percent else 0, min(decimals, _MOST_DECIMALS))
        numbers = [abs(self.scaled(value)) for value in visible if value != 0]
        while decimals <= _MOST_DECIMALS and any(float(f"{number:.{decimals}f}") == 0 for number in numbers):
            decimals += 1
        return decimals

    def decimals_of(self, interval: Interval) -> int:
        """Return the decimals for an interval, so that neither end is shown as zero unless it is."""
        return self.decimals(interval.half_width, (interval.low, interval.high))

    def number(self, value: float, decimals: int, *, sign: bool = False) -> str:
        """Format the number without its unit; numbers too small for decimals as ``1.2e-09``."""
        scaled = self.scaled(value) + 0.0  # no negative zero
        if not math.isfinite(scaled):
            return str(scaled)
        form = f".{decimals}f" if decimals <= _MOST_DECIMALS else ".2g" if scaled else ".0f"
        text = f"{scaled:{'+' if sign and scaled else ''}{form}}"
        if float(text) == 0:
            text = text.lstrip("+-")  # rounded to zero it has no direction
        return text.replace("-", "−")

    def interval(self, interval: Interval, decimals: int | None = None, *, sign: bool = True) -> str:
        """Format as ``−0.6 to +0.8``, by default with the digits that suit the interval."""
        decimals = self.decimals_of(interval) if decimals is None else decimals
        return " to ".join(self.number(end, decimals, sign=sign) for end in (interval.low, interval.high))

    def difference(self, mean: float, interval: Interval | None = None) -> tuple[str, str]:
        """Format a mean difference and its interval, with the digits that suit the interval."""
        decimals = self.decimals(None, (mean,)) if interval is None else self.decimals_of(interval)
        return self.number(mean, decimals, sign=True), "" if interval is None else self.interval(interval, decimals)

    def amount(self, value: float, decimals: int) -> str:
        """Format the size of a difference: ``1.2 points of top1``, ``0.12 in test_loss``."""
        return f"{self.number(value, decimals)} {'points of' if self.percent else 'in'} {self.metric}"

    def mean(self, mean: Mean) -> str:
        """Format as ``76.1 ± 0.4 %``; without the half-width if there is only one value.

        A t interval of two values, or one that extends beyond 0 to 100 %, is meaningless: then ``97.1 (95.0 to 99.5)
        %``, the lowest and the highest value.
        """
        low, high = (0.0, 1.0) if self.percent else (-math.inf, math.inf)
        half = mean.half_width
        if mean.count == 2 or (mean.interval and not low <= mean.interval.low <= mean.interval.high <= high):
            decimals = self.decimals(mean.range.half_width)
            spread = f" ({self.interval(mean.range, decimals, sign=False)})"
        else:
            decimals = self.decimals(half, () if half is None else (half,))
            spread = "" if half is None else f" ± {self.number(half, decimals)}"
        return f"{self.number(mean.mean, decimals)}{spread}{' %' if self.percent else ''}"

    def telling(self, *pairs: tuple[float, float]) -> int:
        """Return the decimals needed to show that two different values of a pair differ, within reason."""
        decimals = self.decimals(None)
        while decimals < _MOST_DECIMALS and any(
            old != new and self.number(old, decimals) == self.number(new, decimals) for old, new in pairs
        ):
            decimals += 1
        return decimals


def percentage(part: float) -> str:
    """Format a fraction in [0, 1] as percent; ``100 %`` or ``0 %`` only if exact."""
    if part in (0.0, 1.0) or not math.isfinite(part):
        return f"{100 * part:.0f} %"
    decimals = 1
    while decimals < _MOST_DECIMALS and float(f"{100 * part:.{decimals}f}") in (0.0, 100.0):
        decimals += 1
    return f"{100 * part:.{decimals}f} %"


def small(value: float) -> str:
    """Format a difference of outputs to two digits: ``3.1e-07``; ``0`` only if it is zero."""
    return f"{value:.2g}"
