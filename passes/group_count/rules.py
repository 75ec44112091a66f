"""Rules that choose a number of groups for one norm; ours, see the pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

TIE = 1e-3
"""Ratios whose logarithms differ by less are equally near: less than a measurement can tell apart."""


@dataclass(frozen=True)
class GroupChoice:
    """What a rule is given to choose from.

    Attributes:
        n_in: inputs that one output channel of the weight reads at one position; ``n_out`` its output channels.
        num_groups: the number that the norm has now.
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
"""How far a number of groups is from what is wanted."""


def isometry(choice: GroupChoice, groups: int) -> float:
    """How far the gradient gain with ``groups`` groups is from one, in ratio; infinite for none at all."""
    gain = choice.gains[groups]
    return abs(math.log(gain)) if 0 < gain < math.inf else math.inf


def channels_per_group(channels: int) -> Distance:
    """How far the size of a group is from ``channels`` channels, in ratio."""
    return lambda choice, groups: abs(math.log(choice.n_out / groups / channels))


def nearest(distance: Distance) -> Rule:
    """The rule that chooses the candidate of the smallest distance, up to :data:`TIE`; of equals the fewest groups."""
    return lambda choice: min(_as_near(choice, distance, TIE))


def nearest_to_present(distance: Distance, tolerance: float) -> Rule:
    """The rule that changes no more than it must.

    Of the candidates whose distance is the smallest, or within ``tolerance`` of it, it chooses the one that is nearest
    in ratio to the number that is there; of two that are as near, the fewer groups.

    Args:
        distance: in ratio.
        tolerance: 0.05 for 5 %.
    """

    def choose(choice: GroupChoice) -> int:
        equal = _as_near(choice, distance, slack(tolerance))
        return min(equal, key=lambda groups: (abs(math.log(groups / choice.num_groups)), groups))

    return choose


def slack(tolerance: float) -> float:
    """How much farther in ratio counts as equal."""
    return max(TIE, math.log1p(tolerance))


def _as_near(choice: GroupChoice, distance: Distance, slack: float) -> list[int]:
    """The candidates that are at most by ``slack`` farther away than the nearest."""
    distances = {groups: distance(choice, groups) for groups in choice.candidates}
    smallest = min(distances.values())
    return [groups for groups, found in distances.items() if found <= smallest + slack]


@dataclass(frozen=True)
class Choosing:
    """A rule, what plans say of it, and the band that it chooses from.

    Attributes:
        rule: chooses one of the divisors in the band.
        why: what its choice is, in words.
        distance: what it makes smallest; then plans say where the band kept it from a smaller one.
        min_channels_per_group, min_groups: the band.
        slack: differences of the distance that do not count.
        on_values: whether gains are measured on the model's own values and inputs; else they are expected over draws.
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
    """Every number of groups that ``channels`` can be divided into, from the fewest."""
    return tuple(groups for groups in range(1, channels + 1) if channels % groups == 0)
