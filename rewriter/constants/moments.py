"""Mean and variance of a stream of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations from the mean of all values seen, in double precision.

    Partial moments are merged by the formula of Chan, Golub and LeVeque, which avoids differences of large squares.
    """

    count: int = 0
    mean: float = 0.0
    squared_deviations: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation of the values (of the population: divided by their number)."""
        return math.sqrt(self.squared_deviations / self.count) if self.count else math.nan

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        between = difference * difference * self.count * other.count / count
        return Moments(
            count,
            self.mean + difference * other.count / count,
            self.squared_deviations + other.squared_deviations + between,
        )


def moments_of(tensor: torch.Tensor) -> Moments:
    """Return the moments of all values of a tensor of any shape, computed in single precision or better."""
    values = tensor.detach()
    if not values.numel():
        return Moments()
    values = values if values.dtype is torch.float64 else values.float()
    variance, mean = torch.var_mean(values, correction=0)
    return Moments(values.numel(), float(mean), float(variance) * values.numel())
