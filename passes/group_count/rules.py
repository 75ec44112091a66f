"""Rules that choose the number of groups of one norm; they are ours, see the pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

TIE = 1e-3
"""Ratios whose logarithms differ by less are equally close: the difference is below measurement error."""


@dataclass(frozen=True)
class GroupChoice:
    """What a rule chooses from.

    Attributes:
        n_in: inputs that one output channel of the weight reads at one position.
        n_out: output channels of the weight.
        num_groups: the present number of groups of the norm.
        slope: the mean square derivative of the activation over a standard normal; 1 without an activation.
        gains: the gradient gain of the chain for every divisor of ``n_out``.
        candidates: the divisors inside the band, at least one.
    """

    n_in: int
    n_out: int
    num_groups: int
    slope: float
    gains: Mapping[int, float]
    candidates: tuple[int, ...]


Rule: TypeAlias = Callable[[GroupChoice], int]
"""Returns one of the candidates."""


Distance: TypeAlias = Callable[[GroupChoice, int], float]
"""How far a number of groups is from the desired one."""


def isometry(choice: GroupChoice, groups: int) -> float:
    """How far the gradient gain with ``groups`` groups is from one, in ratio; infinite if it is 0 or infinite."""
    gain = choice.gains[groups]
    return abs(math.log(gain)) if 0 < gain < math.inf else math.inf


def channels_per_group(channels: int) -> Distance:
    """How far the size of a group is from ``channels`` channels, in ratio."""
    return lambda choice, groups: abs(math.log(choice.n_out / groups / channels))


def nearest(distance: Distance) -> Rule:
    """Return the rule that takes the candidate of smallest distance, up to :data:`TIE`; in a tie, fewest groups."""
    return lambda choice: min(_as_near(choice, distance, TIE))


def nearest_to_present(distance: Distance, tolerance: float) -> Rule:
    """Return the rule that changes no more than necessary.

    Of the candidates whose distance is the smallest, or within ``tolerance`` of it, it chooses the one nearest in ratio
    to the present number; in a tie, the fewer groups.

    Args:
        distance: measured in ratio.
        tolerance: 0.05 for 5 %.
    """

    def choose(choice: GroupChoice) -> int:
        equal = _as_near(choice, distance, slack(tolerance))
        return min(equal, key=lambda groups: (abs(math.log(groups / choice.num_groups)), groups))

    return choose


def slack(tolerance: float) -> float:
    """Return the difference in log ratio that still counts as equal."""
    return max(TIE, math.log1p(tolerance))


def _as_near(choice: GroupChoice, distance: Distance, slack: float) -> list[int]:
    """Return the candidates that are at most ``slack`` farther away than the nearest."""
    distances = {groups: distance(choice, groups) for groups in choice.candidates}
    smallest = min(distances.values())
    return [groups for groups, found in distances.items() if found <= smallest + slack]


@dataclass(frozen=True)
class Choosing:
    """A rule, its description in plans, and the band it chooses from.

    Attributes:
        rule: chooses one of the divisors in the band.
        why: description of its choice.
        distance: what it minimises, if anything; plans then say where the band ruled out a smaller one.
        min_channels_per_group, min_groups: the band.
        slack: differences of the distance up to this are ignored.
        on_values: whether gains are measured on the model's own values and inputs rather than expected over draws.
    """

    rule: Rule
    why: str
    distance: Distance | None
    min_channels_per_group: int
    min_groups: int
    slack: float = TIE
    on_values: bool = False

    def band(self, channels: int) -> tuple[int, ...]:
        return tuple(
            groups
            for groups in divisors(channels)
            if groups >= self.min_groups and channels // groups >= self.min_channels_per_group
        )


def divisors(channels: int) -> tuple[int, ...]:
    """Return every number of groups that divides ``channels``, in increasing order."""
    return tuple(groups for groups in range(1, channels + 1) if channels % groups == 0)
