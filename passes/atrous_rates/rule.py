"""The rule that chooses dilations for a map. It is ours; the paper's formula is not known to us."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

RateRule: TypeAlias = Callable[[int, int, int], Sequence[int]]
"""``(map_side, number_of_rates, kernel_size)``, in cells, → increasing dilations above 1; empty if none fit."""

SMALLEST_RATE = 2
"""A dilation of 1 is an ordinary convolution."""


def coverage(map_side: int, number_of_rates: int, kernel_size: int) -> list[int]:
    """Return dilations ``R, 2R, …, nR``, rounded, whose taps reach far but still land inside the map.

    Args:
        map_side: the smaller of the map's height and width, in cells.
        number_of_rates: the number of different dilations, ``n``.
        kernel_size: side of the kernel, odd, at least 3; the outermost taps of a larger kernel reach as far as those of
            a 3x3 kernel.

    Returns:
        The dilations, on a small map adjusted to be distinct and to reach the map; empty if there is no room for ``n``.
    """
    reach = best_reach(number_of_rates) * map_side
    rates = [round(2 * k * reach / (kernel_size - 1)) for k in range(1, number_of_rates + 1)]
    return fitted(rates, largest_rate(map_side, kernel_size))


def best_reach(number_of_rates: int) -> float:
    """Return the reach ``rho`` of the smallest rate, as a share of the map's side, that maximises the objective.

    Where all outermost taps reach some of the map (``n rho < 1``), the objective is a cubic in ``rho``, and the result
    is the zero of its derivative ``S1 (1 + sqrt 2) - S2 (2 + 4 sqrt 2) rho + 3 sqrt 2 S3 rho^2``, with
    ``Sm = 1^m + … + n^m``.
    """
    first, second, third = (sum(k**power for k in range(1, number_of_rates + 1)) for power in (1, 2, 3))
    a, b, c = 3 * math.sqrt(2) * third, (2 + 4 * math.sqrt(2)) * second, (1 + math.sqrt(2)) * first
    return (b - math.sqrt(b * b - 4 * a * c)) / (2 * a)


def energy_times_reach(rho: float, number_of_rates: int) -> float:
    """Return the objective: ``sum over k of k rho (v_k + sqrt(2) v_k^2)`` with ``v_k = max(0, 1 - k rho)``.

    A tap ``k rho`` map sides away along one axis lies inside the map at a share ``v_k`` of all positions; a corner tap,
    ``sqrt(2)`` times as far away, at ``v_k^2``.
    """
    total = 0.0
    for k in range(1, number_of_rates + 1):
        inside = max(0.0, 1 - k * rho)
        total += k * rho * (inside + math.sqrt(2) * inside**2)
    return total


def largest_rate(map_side: int, kernel_size: int) -> int:
    """Return the largest dilation whose outermost taps still reach the map at some position."""
    return 2 * (map_side - 1) // (kernel_size - 1)


def fitted(rates: Sequence[int], largest: int) -> list[int]:
    """Adjust ``rates`` to be distinct and within :data:`SMALLEST_RATE` to ``largest``; empty if they do not fit."""
    if largest - SMALLEST_RATE + 1 < len(rates):
        return []
    found: list[int] = []
    for number, rate in enumerate(rates):
        lowest = found[-1] + 1 if found else SMALLEST_RATE
        highest = largest - (len(rates) - 1 - number)  # leaves room for those that follow
        found.append(min(max(rate, lowest), highest))
    return found


def share_inside(map_size: Sequence[int], rates: Sequence[int], kernel_size: int) -> float:
    """Return the share of taps, over all positions and ``rates``, that lie inside a map of ``map_size`` cells."""
    half = (kernel_size - 1) // 2
    shares = [
        math.prod(
            sum(max(0.0, 1 - abs(tap) * rate / side) for tap in range(-half, half + 1)) / kernel_size
            for side in map_size
        )
        for rate in rates
    ]
    return sum(shares) / len(shares)


def field_of_view(rates: Sequence[int], kernel_size: int) -> int:
    """Return the side, in cells of the map, of the square spanned by the kernel of the largest rate."""
    return max(rates) * (kernel_size - 1) + 1
