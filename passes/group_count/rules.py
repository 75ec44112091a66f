"""Rules that choose a number of groups for one norm; ours, see the pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

TIE = 1e-3
"""Gains whose logarithms differ by less are equally near to one: less than a measurement can tell apart."""


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


def isometry(choice: GroupChoice) -> int:
    """The number of groups whose gradient gain is nearest to one, in ratio; of equals the one of larger groups."""
    return nearest(choice.candidates, {groups: _distance(choice.gains[groups]) for groups in choice.candidates})


def channels_per_group(channels: int) -> Rule:
    """The rule that makes groups as near to ``channels`` channels as the candidates allow, in ratio."""

    def choose(choice: GroupChoice) -> int:
        sizes = {groups: choice.n_out / groups for groups in choice.candidates}
        return nearest(sizes, {groups: abs(math.log(size / channels)) for groups, size in sizes.items()})

    return choose


def nearest(candidates: Iterable[int], distances: Mapping[int, float]) -> int:
    """The candidate of the smallest distance, up to :data:`TIE`; of equals the fewest groups."""
    smallest = min(distances[groups] for groups in candidates)
    return min(groups for groups in candidates if distances[groups] <= smallest + TIE)


def _distance(gain: float) -> float:
    return abs(math.log(gain)) if 0 < gain < math.inf else math.inf
