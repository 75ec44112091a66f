"""The gradient gain of a chain weight → group norm → activation, for every number of groups at once.

The *gradient gain* is the norm of the gradient at the input of the chain divided by its norm at the output, for a
random gradient at the output and gamma 1. The derivation is ours, not from a paper.

For a group of ``K`` elements with variance ``v``, the backward of a group norm is
``(g - mean(g) - z * mean(g * z)) / sqrt(v)``. With independent gradients after an activation ``f``, each element thus
keeps ``slope - (slope + radial_slope) / K`` of its square, where ``slope = E[f'(z)^2]`` and
``radial_slope = E[f'(z)^2 z^2]`` over a normal ``z``. The weight passes it to the input times ``e_c``, the squared norm
of the weights of its output channel ``c``:

    gain^2 = (slope - (slope + radial_slope) / K) * mean over samples and channels of e_c / (v + eps)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rewriter.analysis.activations import ActivationMoments
from rewriter.passes.group_count.rules import divisors


def measured(y: torch.Tensor, energy: torch.Tensor, eps: float, activation: ActivationMoments) -> dict[int, float]:
    """Return the squared gain by number of groups, measured on the input of the norm.

    Args:
        y: input of the norm, ``(N, C, …)``; half precision is measured in single precision.
        energy: for each of the ``C`` output channels of the weight, the sum of squares of the weights that connect one
            of its positions to the input.
        eps: of the norm.
        activation: the activation after the norm.
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
    """Return the squared gain by number of groups for weights drawn independently around zero, at any scale.

    With many positions the variance of a group of ``m`` channels is ``E[x^2] - E[x]^2 / m`` times the ``e_c`` of the
    weight, for independent channels and positions of its input ``x``. With one position, there are only the ``m``
    outputs, and the mean of the inverse of their variance is ``m / (m - 3)`` over ``E[x^2]``.

    Args:
        channels: outputs of the weight.
        positions: elements per channel.
        source: moments of ``x``; the identity for an input or a stream taken as unit normal.
        activation: the activation after the norm.
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
    """Return the gain by number of groups over all calls of one norm: the root mean square."""
    return {groups: math.sqrt(sum(call[groups] for call in calls) / len(calls)) for groups in calls[0]}


def _kept(activation: ActivationMoments, elements: int) -> float:
    return max(0.0, activation.slope - (activation.slope + activation.radial_slope) / elements)
