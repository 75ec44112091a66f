"""The gradient gain of a chain weight → group norm → activation, for every number of groups at once.

The *gradient gain* is the ratio of the norms of the gradients at the two ends of the chain, at its input over at its
output, for a random gradient at the output and gamma 1. What follows is our derivation, no paper's.

Of a group of ``K`` elements with variance ``v``, a group norm hands back ``(g - mean(g) - z * mean(g * z)) / sqrt(v)``.
So with independent gradients behind an activation ``f`` each element keeps ``slope - (slope + radial_slope) / K`` of
its square, where ``slope = E[f'(z)^2]`` and ``radial_slope = E[f'(z)^2 z^2]`` over a normal ``z``. The weight sends it
to the input times ``e_c``, the squared norm of what its output channel ``c`` reads:

    gain^2 = (slope - (slope + radial_slope) / K) * mean over samples and channels of e_c / (v + eps)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rewriter.analysis.activations import ActivationMoments
from rewriter.passes.group_count.rules import divisors


def measured(y: torch.Tensor, energy: torch.Tensor, eps: float, activation: ActivationMoments) -> dict[int, float]:
    """The squared gain by number of groups, from what the norm is given.

    Args:
        y: what the norm normalises, ``(N, C, …)``; half precision is measured in single precision.
        energy: for each of the ``C`` output channels of the weight, the sum of squares of the weights that reach the
            input from one of its positions.
        eps: of the norm.
        activation: what follows the norm.
    """
    samples, channels = y.shape[:2]
    y = (y if y.dtype == torch.float64 else y.float()).reshape(samples, channels, -1)
    mean, variance, positions = y.mean(-1), y.var(-1, correction=0), y.shape[-1]
    squares = []
    for groups in divisors(channels):
        within = variance.view(samples, groups, -1).mean(-1)
        between = mean.view(samples, groups, -1).var(-1, correction=0)
        inverse = energy.view(1, groups, -1).mean(-1) / (within + between + eps)
        squares.append(inverse.mean() * _kept(activation, channels // groups * positions))
    return dict(zip(divisors(channels), torch.stack(squares).tolist(), strict=True))


def closed_form(
    channels: int, positions: int, source: ActivationMoments, activation: ActivationMoments
) -> dict[int, float]:
    """The squared gain by number of groups, with weights drawn independently around zero, whatever their scale.

    With many positions the variance of a group of ``m`` channels is ``E[x^2] - E[x]^2 / m`` times the ``e_c`` of the
    weight, for independent channels and positions of its input ``x``. With one position the ``m`` outputs are all there
    is, and the mean of the inverse of their variance is ``m / (m - 3)`` over ``E[x^2]``.

    Args:
        channels: outputs of the weight, ``positions`` the elements of each.
        source: moments of ``x``; the identity for an input or a stream taken as unit normal.
        activation: what follows the norm.
    """
    found = {}
    for groups in divisors(channels):
        size = channels // groups
        if positions > 1:
            inverse = 1 / (source.square - source.mean**2 / size)
        else:
            inverse = size / (size - 3) / source.square if size > 3 else math.inf
        found[groups] = inverse * _kept(activation, size * positions) if inverse < math.inf else math.inf
    return found


def pooled(calls: Sequence[dict[int, float]]) -> dict[int, float]:
    """The gain by number of groups, of all calls of one norm: the root of the mean of their squares."""
    return {groups: math.sqrt(sum(call[groups] for call in calls) / len(calls)) for groups in calls[0]}


def _kept(activation: ActivationMoments, elements: int) -> float:
    return max(0.0, activation.slope - (activation.slope + activation.radial_slope) / elements)
